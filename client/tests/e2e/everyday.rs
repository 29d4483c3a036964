//! The commands of every day, what they print, and their JSON.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::node::{Node, pid};
use crate::program::{has_keys, programs, run};
use crate::user::User;

const CLONE: &str = "id resource node owner snapshot created_at state pooled expires_at";
const NODE: &str = "name address state generation clones free_bytes total_bytes load resources";

#[test]
fn what_there_is_can_be_seen_as_a_tree_as_yaml_and_as_json() {
    const TEST: &str = "what_there_is_can_be_seen_as_a_tree_as_yaml_and_as_json";
    let Some(node) = Node::embedded(TEST, &["orders", "users"]) else {
        return;
    };
    let user = User::of(&node, &["orders", "web"]);
    let id = user.zdap(&["clone", "orders", "--quiet"]).line();

    let resources = user.zdap(&["list", "resources", "--json"]).json();
    has_keys(&resources[0], "name alias image node snapshots");
    assert_eq!(
        names(&resources, "name"),
        ["orders"],
        "`users` is no service of the project"
    );
    let all = user.zdap(&["list", "resources", "--all", "--format=json"]).json();
    assert_eq!(names(&all, "name"), ["orders", "users"]);
    let said = user.zdap(&["list", "resources"]).done();
    assert!(
        said.stdout.starts_with("db1\n└─ orders  postgres:15\n   └─ 20"),
        "{said:#?}"
    );
    assert_eq!(
        said.stderr,
        "not services of this project: users; `--all` shows them too\n"
    );
    assert_eq!(user.zdap(&["list", "resources", "-q"]).done().stderr, "");
    let yaml = user.zdap(&["list", "resources", "users", "--format=yaml"]).line();
    let yaml: Value = serde_yaml::from_str(&yaml).unwrap();
    assert_eq!(yaml[0], all[1]);

    let snaps = user.zdap(&["list", "snaps", "--json"]).json();
    has_keys(&snaps[0], "resource taken_at node clones size_bytes");
    assert_eq!(snaps[0]["taken_at"], resources[0]["snapshots"][0]);
    assert_eq!(snaps[0]["clones"], 1);
    assert!(snaps[0]["size_bytes"].as_u64().unwrap() > 1 << 20, "{snaps}");
    let tree = user.zdap(&["list", "snaps", "users"]).line();
    assert!(tree.starts_with("db1\n└─ users\n   └─ 20"), "{tree}");
    for what in ["resources", "snaps", "clones"] {
        user.zdap(&["list", what, "user"])
            .fails(1, &["there is no resource `user`"])
            .hints("did you mean `users`?");
    }
    let said = user.zdap(&["list", "clones", "users"]).done();
    assert!(said.stderr.starts_with("no clones of `users`; "), "{said:#?}");

    let clones = user.zdap(&["list", "clones", "--json"]).json();
    has_keys(&clones[0], CLONE);
    assert_eq!(names(&clones, "id"), [id.as_str()]);
    assert_eq!(clones[0]["owner"], "ada@laptop");
    assert_eq!(clones[0]["state"], "ready");
    let tree = user.zdap(&["list", "clones"]).line();
    assert!(tree.contains(&format!("{id}  made 20")), "{tree}");
    let services = user.zdap(&["list", "clones", "--format=yaml"]).line();
    let services: Value =
        serde_yaml::from_str(&services.replace("!reset", "").replace("!override", "")).unwrap();
    assert_eq!(services["services"]["orders"]["environment"]["ZDAP_CLONE"], id);
    assert_eq!(
        user.zdap(&["list", "clones", "--attached", "--json"]).json(),
        serde_json::json!([])
    );

    let origins = user.zdap(&["list", "origins", "--json"]).json();
    has_keys(&origins[0], "added address cluster connected error node");
    has_keys(&origins[0]["node"], NODE);
    assert_eq!(origins[0]["address"], node.address());
    let nodes = user.zdap(&["list", "nodes", "--json"]).json();
    has_keys(&nodes[0], NODE);
    assert_eq!(nodes[0]["state"], "alive");
    assert_eq!(nodes[0]["resources"], serde_json::json!(["orders", "users"]));
    let table = user.zdap(&["list", "nodes"]).line();
    assert!(table.contains("db1") && table.contains("orders,users"), "{table}");
    let table = user.zdap(&["list", "origins", "--verbose"]).line();
    assert!(
        table.contains("RESOURCES") && table.contains(" GiB of "),
        "{table}"
    );

    // What the shell asks for when somebody presses Tab.
    let complete = |words: &[&str]| {
        let mut command = user.command();
        command
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
        command
            .env("_CLAP_COMPLETE_COMP_TYPE", "9")
            .env("_CLAP_IFS", "\n");
        let offered = run(command.arg("--").args(words)).done().stdout;
        offered
            .lines()
            .map(|line| line.trim().to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(
        complete(&["zdap", "attach", "o"]),
        BTreeSet::from(["orders".to_owned()])
    );
    assert_eq!(
        complete(&["zdap", "clone", "@"]),
        BTreeSet::from(["@db1".to_owned()])
    );
    assert_eq!(complete(&["zdap", "destroy", "orders-"]), BTreeSet::from([id]));

    user.zdap(&["remove", "origin", &node.address()]).done();
    user.zdap(&["list", "clones"]).fails(3, &["no origin is set"]);
}

#[test]
fn a_clone_is_made_found_again_and_given_back() {
    const TEST: &str = "a_clone_is_made_found_again_and_given_back";
    let Some(node) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let user = User::of(&node, &["orders"]);
    let (things, files) = (node.things(), user.files());

    let first = user.zdap(&["clone", "orders", "--json"]).json();
    has_keys(&first, &format!("{CLONE} stages"));
    has_keys(
        &first["stages"],
        "place_ms reserve_ms storage_ms start_ms ready_ms total_ms",
    );
    let first_id = first["id"].as_str().unwrap();
    let snapshot = first["snapshot"].as_str().unwrap();
    let second_id = user.zdap(&["clone", snapshot, "orders", "@db1"]).line();

    let several = user.zdap(&["destroy", "orders"]);
    several
        .fails(1, &["2 of your clones fit `orders`", first_id, &second_id])
        .hints("--all");
    assert_eq!(node.clones().len(), 2);

    // The newest is attached, and kept when it is detached.
    let attached = user.zdap(&["attach", "--new=false", "orders", "--json"]).json();
    has_keys(&attached, &format!("{CLONE} override stages"));
    assert_eq!(attached["id"], second_id);
    let path = user.file("docker-compose.override.yml").display().to_string();
    assert_eq!(attached["override"], path);
    let list = user.zdap(&["list", "clones"]).line();
    assert!(list.contains("attached here"), "{list}");
    let detached = user
        .zdap(&["detach", "orders", "--destroy=false", "--json"])
        .json();
    assert_eq!(detached["detached"][0]["destroyed"], false);
    assert_eq!(node.clones().len(), 2);
    assert_eq!(user.files(), files);

    // A clone that is gone is not said to be there.
    let gone = attached_clone(&user.zdap(&["attach", "orders"]).line());
    user.zdap(&["destroy", &gone]).done();
    let said = user.zdap(&["attach", "orders", "--force"]).done();
    assert!(!said.stderr.contains(&gone), "{said:#?}");
    assert!(said.stderr.contains("docker compose up -d"), "{said:#?}");
    user.zdap(&["detach"])
        .fails(2, &["a service is missing"])
        .hints("attached are `orders`");
    user.zdap(&["detach", "--all"]).done();
    assert_eq!(user.files(), files);
    assert_eq!(node.clones().len(), 2);

    // By time, with a port, in the place of another, and still in its label when its clone goes first.
    user.zdap(&["attach", "orders", snapshot, "--port", "6543"])
        .done();
    assert!(user.read("docker-compose.override.yml").contains("6543:5432"));
    let said = user.zdap(&["attach", "orders", "@db1", "--force"]).done();
    assert!(
        said.stderr.contains("which it replaces, is still there"),
        "{said:#?}"
    );
    assert_eq!(node.clones().len(), 4);
    let said = user.zdap(&["destroy", "orders", "--all", "--json"]);
    assert!(
        said.stderr.contains("`orders` is still attached to orders-")
            && said.stderr.contains(" here: `zdap detach orders`"),
        "{said:#?}"
    );
    assert_eq!(said.json()["destroyed"].as_array().map(Vec::len), Some(4));
    assert_eq!(node.things(), things);
    let said = user.zdap(&["detach", "orders"]).done();
    assert!(said.stderr.contains("is gone already"), "{said:#?}");
    assert_eq!(user.files(), files);
}

#[test]
fn a_clone_is_reached_without_docker() {
    const TEST: &str = "a_clone_is_reached_without_docker";
    let Some(node) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let user = User::of(&node, &["orders"]);
    user.zdap(&["clone", "orders"]).done();

    let rows = user.zdap(&[
        "psql",
        "orders",
        "--",
        "-XAtc",
        "select name from item order by name",
    ]);
    assert_eq!(rows.line(), "anvil\nbolt\norders");
    let failed = user.zdap(&["psql", "orders", "--", "-Xc", "select 1 from nothing"]);
    assert_eq!(failed.code, Some(1), "psql's own: {failed:#?}");
    assert!(
        failed.stderr.contains("relation \"nothing\" does not exist"),
        "{failed:#?}"
    );

    let mut command = user.command();
    command.args(["connect", "orders", "--port=0", "--json"]);
    let mut connect = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(connect.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let document: Value = serde_json::from_str(&line).unwrap();
    has_keys(&document, "url host port clone");
    has_keys(&document["clone"], CLONE);
    let url = document["url"].as_str().unwrap();
    assert_eq!(url, format!("postgres://127.0.0.1:{}", document["port"]));
    let mut psql = Command::new("psql");
    psql.env("PGPASSWORD", "secret")
        .args(["-XAt", "-U", "postgres", "-c", "select count(*) from item"]);
    assert_eq!(run(psql.arg(format!("{url}/orders"))).line(), "3");
    let taken = document["port"].to_string();
    user.zdap(&["connect", "orders", "--port", &taken])
        .fails(1, &[&format!("cannot listen on 127.0.0.1:{taken}")])
        .hints("--port 0");
    kill_process(pid(&connect), Signal::INT).unwrap();
    assert_eq!(connect.wait().unwrap().code(), Some(0), "Ctrl-C is how it ends");
    let talk = std::io::read_to_string(connect.stderr.take().unwrap()).unwrap();
    assert!(talk.contains("user `postgres`, database `orders`"), "{talk}");
    assert!(!talk.contains("secret"), "{talk}");
}

#[test]
fn a_machine_is_set_up_without_a_node() {
    let Some(programs) = programs("a_machine_is_set_up_without_a_node") else {
        return;
    };
    let user = User::new(&programs);
    let set = user.zdap(&["set", "user", "ada@laptop"]).done();
    assert_eq!(
        (set.stdout.as_str(), set.stderr.as_str()),
        ("", "user is `ada@laptop`\n")
    );
    let set = user.zdap(&["set", "user", "ada@desktop", "--json"]).json();
    assert_eq!(set, serde_json::json!({"user": "ada@desktop"}));

    user.write("deploy/compose.yml", "services:\n  orders: {image: a}\n");
    user.zdap(&["init"]).fails(1, &["no compose project in"]);
    user.zdap(&["init", "--compose", "deploy/nothing.yml"])
        .fails(1, &["cannot read", "deploy/nothing.yml"]);
    let said = user.zdap(&["init", "--compose", "deploy/compose.yml"]).done();
    assert!(said.stderr.contains("its services are orders"), "{said:#?}");
    let project: Value = serde_json::from_str(&user.read(".zdap")).unwrap();
    has_keys(&project, "compose override");
    assert_eq!(user.read("deploy/compose.override.yml"), "");

    let origins = user.zdap(&["list", "origins"]).done();
    assert_eq!(origins.stdout, "");
    assert!(origins.stderr.contains("zdap add origin TOKEN"), "{origins:#?}");
}

#[test]
fn the_completion_scripts_are_accepted_by_their_shells() {
    let Some(programs) = programs("the_completion_scripts_are_accepted_by_their_shells") else {
        return;
    };
    let user = User::new(&programs);
    for shell in ["bash", "zsh", "fish"] {
        let script = user.zdap(&["auto-complete", shell]).done().stdout;
        assert!(script.contains("COMPLETE") && script.contains("zdap"), "{script}");
        user.write(shell, &script);
    }
    run(Command::new("bash").arg("-n").arg(user.file("bash"))).done();
    let complete = "source ./bash; complete -p zdap";
    let said = run(Command::new("bash")
        .args(["-c", complete])
        .current_dir(user.project()));
    assert!(said.line().ends_with(" zdap"));
}

#[test]
fn what_is_printed_is_plain_and_nobody_has_to_read_it() {
    const TEST: &str = "what_is_printed_is_plain_and_nobody_has_to_read_it";
    let Some(node) = Node::embedded(TEST, &[]) else {
        return;
    };
    let user = User::of(&node, &[]);
    for arguments in [
        &["list", "origins", "-v"][..],
        &["--help"],
        &["attach", "a/b"],
        &["attach", "--nonsense"],
    ] {
        for variable in ["NO_COLOR", "TERM"] {
            let said = run(user.command().args(arguments).env(variable, "1"));
            let all = format!("{}{}", said.stdout, said.stderr);
            assert!(!all.is_empty() && !all.contains('\u{1b}'), "{said:#?}");
        }
    }
    // A reader that has left, as in `zdap list origins | true`.
    for arguments in [
        &["list", "origins"][..],
        &["list", "origins", "--json"],
        &["auto-complete", "zsh"],
        &["--help"],
    ] {
        let mut command = user.command();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command.args(arguments).stdout(writer).output().unwrap();
        assert_eq!(
            (output.status.code(), output.stderr.as_slice()),
            (Some(0), &b""[..]),
            "{arguments:?}"
        );
    }
    let talk = |flags: &[&str]| {
        let mut arguments = vec!["list", "resources", "--all"];
        arguments.extend(flags);
        user.zdap(&arguments).done().stderr
    };
    assert_eq!(talk(&["--quiet"]), "");
    assert_eq!(talk(&["--json"]), "");
    assert!(talk(&[]).starts_with("no resources; "), "{}", talk(&[]));
    assert!(talk(&["-vv"]).contains("DEBUG"), "{}", talk(&["-vv"]));
}

/// The third word of `RES attached: CLONE on NODE`.
fn attached_clone(line: &str) -> String {
    line.split(' ').nth(2).unwrap().to_owned()
}

fn names<'a>(list: &'a Value, key: &str) -> Vec<&'a str> {
    let list = list.as_array().unwrap().iter();
    list.filter_map(|entry| entry[key].as_str()).collect()
}
