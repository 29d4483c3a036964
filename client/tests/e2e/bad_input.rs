//! What is wrong is named, with the place, and nothing is left behind.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::node::Node;
use crate::program::{programs, run};
use crate::user::User;

#[test]
fn without_an_origin_every_command_says_how_to_get_one() {
    let Some(programs) = programs("without_an_origin_every_command_says_how_to_get_one") else {
        return;
    };
    let user = User::new(&programs);
    user.write("compose.yml", "services: {orders: {image: a}}\n");
    let files = user.files();
    for command in [
        &["attach", "orders"][..],
        &["clone", "orders"],
        &["destroy", "orders"],
        &["connect", "orders", "--port=0"],
        &["psql", "orders"],
        &["list", "resources"],
        &["list", "snaps"],
        &["list", "clones"],
    ] {
        user.zdap(command)
            .fails(3, &["no origin is set"])
            .hints("zdap add origin TOKEN");
    }
    assert_eq!(user.files(), files);
    assert!(!user.home().exists());
}

#[test]
fn with_json_a_failure_is_one_document_whatever_failed() {
    let Some(programs) = programs("with_json_a_failure_is_one_document_whatever_failed") else {
        return;
    };
    let user = User::new(&programs);
    for (arguments, code, kind) in [
        (&["atach", "--json"][..], 2, "usage"),
        (&["--json", "attach", "orders", "--port=x"], 2, "usage"),
        (&["psql", "orders", "--json"], 2, "usage"),
        (&["auto-complete", "bash", "--json"], 2, "usage"),
        (&["list", "clones", "--json"], 3, "unreachable"),
    ] {
        let said = user.zdap(arguments);
        assert_eq!(said.code, Some(code), "{said:#?}");
        let document: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!(document["error"]["kind"], kind, "{said:#?}");
        assert_ne!(document["error"]["message"], "", "{said:#?}");
    }
    let version = user.zdap(&["--json", "--version"]).done();
    assert!(version.stdout.starts_with("zdap "), "{version:#?}");
}

#[test]
fn what_makes_no_sense_is_wrong_usage() {
    let Some(programs) = programs("what_makes_no_sense_is_wrong_usage") else {
        return;
    };
    let user = User::new(&programs);
    user.write("compose.yml", "services: {orders: {image: a}}\n");
    for arguments in [
        &["atach", "orders"][..],
        &["attach"],
        &["attach", "orders", "--port", "70000"],
        &["attach", "orders", "--new=perhaps"],
        &["attach", "orders", "--timeout=0"],
        &["attach", "orders", "--frobnicate"],
        &["list", "tables"],
        &["list", "clones", "--format=xml"],
        &["detach"],
        &["auto-complete", "cmd"],
        &[],
    ] {
        let said = user.zdap(arguments);
        assert_eq!(said.code, Some(2), "{said:#?}");
        assert_eq!(said.stdout, "", "{said:#?}");
    }
    user.zdap(&["attach", "orders", "users"])
        .fails(2, &["two resources, `orders` and `users`"]);
    user.zdap(&["attach", "orders", "yesterday"])
        .fails(2, &["`yesterday`"])
        .hints("2026-11-22T13:39:25Z");
    user.zdap(&["add", "origin", "zdap1-AVbk..."])
        .fails(1, &["the token is cut off or mistyped"])
        .hints("copy the whole line");
    user.zdap(&["attach", "orders", "@"])
        .fails(2, &["`@` names no node"])
        .hints("`@node`");
    user.zdap(&["attach", "@db1"])
        .fails(2, &["a resource is missing"])
        .hints("zdap list resources");
    user.zdap(&["attach", "orders", "2026-13-22T13:39:25Z"])
        .fails(2, &["2026-13-22T13:39:25Z", "RFC 3339"]);
    user.zdap(&["attach", "orders", "@db1:port"])
        .fails(2, &["db1:port"]);
    for address in ["db 1", "db1:0", "db1:70000", "http://db1", "dé1"] {
        user.zdap(&["add", "origin", address])
            .fails(2, &[&format!("`{address}` is not an address")]);
    }
}

#[test]
fn a_name_that_cannot_be_is_refused_before_anything_is_asked() {
    let Some(programs) = programs("a_name_that_cannot_be_is_refused_before_anything_is_asked") else {
        return;
    };
    let user = User::new(&programs);
    user.write("compose.yml", "services: {orders: {image: a}}\n");
    let files = user.files();
    let long = "a".repeat(300);
    for (name, reason) in [
        ("a/b", "holds '/'"),
        ("a@b", "holds '@'"),
        ("..", ".."),
        ("../orders", "'/'"),
        ("a b", "holds ' '"),
        ("ordérs", "holds 'é'"),
        ("数据库", "holds '数'"),
        ("", "empty"),
        (&long, "63"),
    ] {
        for command in ["attach", "clone"] {
            let said = user.zdap(&[command, name]).fails(2, &["resource name `", reason]);
            assert!(said.stderr.len() < 300, "the value is shortened: {said:#?}");
        }
    }
    for (name, reason) in [
        ("a/b", "holds '/'"),
        ("a b", "holds ' '"),
        ("é", "holds 'é'"),
        (&long, "128"),
    ] {
        user.zdap(&["set", "user", name])
            .fails(2, &["user name `", reason]);
    }
    assert_eq!(user.files(), files);
    assert!(!user.home().exists());
}

#[test]
fn a_project_that_cannot_take_the_clone_is_named_and_no_clone_is_made() {
    const TEST: &str = "a_project_that_cannot_take_the_clone_is_named_and_no_clone_is_made";
    let Some(node) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let user = User::of(&node, &[]);
    let compose = "docker-compose.yml";
    let file = user.file(compose).display().to_string();
    let project = user.project().display().to_string();
    let things = node.things();
    let attach_fails = |words: &[&str]| {
        let files = user.files();
        let said = user.zdap(&["attach", "orders"]).fails(1, words);
        assert_eq!(user.files(), files, "{said:#?}");
        said
    };

    fs::remove_file(user.file(compose)).unwrap();
    attach_fails(&["no compose project in", &project]).hints("zdap init --compose FILE");
    user.write(
        ".zdap",
        "{\"compose\": \"deploy/compose.yml\", \"override\": \"o.yml\"}",
    );
    attach_fails(&["deploy/compose.yml does not exist"]);
    user.write(".zdap", "compose: x");
    attach_fails(&[".zdap: line 1"]).hints("zdap init");
    fs::remove_file(user.file(".zdap")).unwrap();

    for (text, words) in [
        ("services: [\n", &[file.as_str(), "line 2", "not valid YAML"][..]),
        (
            "services:\n  orders: {image: a\n",
            &[&file, "line ", "not valid YAML"],
        ),
        ("just a text", &[&file, "line 1"]),
        ("services: 5", &[&file, "line 1", "services"]),
        (
            "services:\n  web: {image: a}\n",
            &[&file, "no service `orders`", "which has `web`"],
        ),
        ("services: {}", &[&file, "no service `orders`"]),
        ("", &[&file, "no service `orders`"]),
        (
            "services:\n  orders: {image: a}\n  orders: {image: b}\n",
            &[&file, "line 3", "`orders`", "second time"],
        ),
        (
            "services:\n  orders:\n    image: a\n    ports: [\"abc:def\"]\n",
            &[&file, "line 4", "port `abc:def`"],
        ),
        (
            "services:\n  orders:\n    image: a\n    ports:\n      - \"5432:99999\"\n",
            &[&file, "line 5", "port `5432:99999`"],
        ),
        (
            "services:\n  orders:\n    image: a\n    ports:\n      - {published: 5432}\n",
            &[&file, "line 5"],
        ),
        (
            "services:\n  orders:\n    image: a\n    ports: many\n",
            &[&file, "line 4", "ports"],
        ),
    ] {
        user.write(compose, text);
        attach_fails(words);
    }
    fs::write(user.file(compose), b"services: \xff").unwrap();
    attach_fails(&[&file, "not UTF-8"]);

    user.write(compose, "services:\n  orders: {image: postgres:15}\n");
    let r#override = "docker-compose.override.yml";
    for (text, words) in [
        ("services: [\n", &[r#override, "line 2", "not valid YAML"][..]),
        (
            "services:\n  orders: {image: mine}\n",
            &[r#override, "line 2", "`orders` is already in the override"],
        ),
    ] {
        user.write(r#override, text);
        attach_fails(words);
    }

    user.write(r#override, "# mine\n");
    fs::set_permissions(user.file(r#override), Permissions::from_mode(0o444)).unwrap();
    attach_fails(&[r#override, "is read-only"]);
    fs::set_permissions(user.file(r#override), Permissions::from_mode(0o644)).unwrap();

    assert_eq!(node.things(), things);
    assert_eq!(node.clones(), [] as [&str; 0]);
}

#[test]
fn a_directory_that_may_not_be_written_gets_no_clone() {
    const TEST: &str = "a_directory_that_may_not_be_written_gets_no_clone";
    let Some(node) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let user = User::of(&node, &["orders"]);
    user.write("docker-compose.override.yml", "# mine\n");
    let (things, files) = (node.things(), user.files());
    fs::set_permissions(user.project(), Permissions::from_mode(0o555)).unwrap();
    // Root may write anywhere; without its capabilities it is a user like any other.
    let mut command = match rustix::process::geteuid().is_root() {
        true => {
            let mut command = Command::new("setpriv");
            command
                .args(["--bounding-set=-all", "--inh-caps=-all"])
                .arg(node.programs().join("zdap"));
            command
        }
        false => Command::new(node.programs().join("zdap")),
    };
    user.prepare(&mut command);
    let said = run(command.args(["attach", "orders"]));
    fs::set_permissions(user.project(), Permissions::from_mode(0o755)).unwrap();
    said.fails(
        1,
        &[
            "cannot",
            &user.project().display().to_string(),
            "ermission denied",
        ],
    );
    assert_eq!(user.files(), files);
    assert_eq!(node.things(), things);
}

#[test]
fn what_the_node_does_not_have_is_refused_by_name() {
    const TEST: &str = "what_the_node_does_not_have_is_refused_by_name";
    let Some(node) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let user = User::of(&node, &["orders", "users"]);
    let (things, files) = (node.things(), user.files());
    user.zdap(&["attach", "users"])
        .fails(1, &["there is no resource `users`", "orders"])
        .hints("zdap list resources --all");
    user.zdap(&["clone", "orders", "2020-01-01T00:00:00Z"])
        .fails(1, &["`orders` has no snapshot of 2020-01-01T00:00:00Z"])
        .hints("zdap list snaps orders");
    user.zdap(&["attach", "--new=false", "orders"])
        .fails(1, &["you have no clone of `orders`"])
        .hints("zdap list clones --all");
    user.zdap(&["attach", "orders", "@db9:43210"])
        .fails(1, &["no node @db9:43210", &node.address()])
        .hints("zdap list nodes");
    for unknown in ["orders-k3v9x2mq", "a/b", "..", "ordérs", &"a".repeat(300)] {
        for command in [&["destroy"][..], &["psql"], &["connect", "--port=0"]] {
            user.zdap(&[command, &[unknown]].concat())
                .fails(1, &["you have no clone `"]);
        }
    }
    user.zdap(&["detach", "orders"])
        .fails(1, &["`orders` is not attached"])
        .hints("nothing is attached in this project");
    user.zdap(&["remove", "origin", "db9"])
        .fails(1, &["`db9:43210` is not among the origins"])
        .hints(&node.address());

    user.zdap(&["attach", "orders"]).done();
    let attached = user.files();
    let clone = node.clones().concat();
    user.zdap(&["attach", "orders"]).fails(
        1,
        &[
            "docker-compose.override.yml",
            "`orders` is attached already, to clone",
            &clone,
        ],
    );
    assert_eq!(user.files(), attached);
    assert_eq!(node.clones(), [clone]);
    user.zdap(&["detach", "orders"]).done();
    assert_eq!(user.files(), files);
    assert_eq!(node.things(), things);
}

#[test]
fn the_clones_of_others_are_not_to_be_seen_or_touched() {
    const TEST: &str = "the_clones_of_others_are_not_to_be_seen_or_touched";
    let Some(node) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let ada = User::of(&node, &["orders"]);
    let bob = User::new(node.programs());
    bob.zdap(&["add", "origin", &node.token("bob@laptop")]).done();
    let clone = ada.zdap(&["clone", "orders"]).line();
    assert_eq!(
        bob.zdap(&["list", "clones", "--json"]).json(),
        serde_json::json!([])
    );
    for command in [&["destroy"][..], &["psql"], &["connect", "--port=0"]] {
        bob.zdap(&[command, &[&clone]].concat())
            .fails(1, &[&format!("you have no clone `{clone}`")]);
    }
    assert_eq!(node.clones(), [clone.as_str()]);

    // An admin may, when they name it.
    let eve = User::new(node.programs());
    let token = node.zdapd(&["token", "user", "eve@laptop", "--admin"]).line();
    eve.zdap(&["add", "origin", &token]).done();
    let ids = |arguments: &[&str]| {
        let clones = eve
            .zdap(&[&["list", "clones", "--json"], arguments].concat())
            .json();
        let clones = clones.as_array().unwrap().iter();
        clones
            .map(|clone| clone["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&[]), [] as [&str; 0]);
    assert_eq!(ids(&["--all"]), [clone.as_str()]);
    eve.zdap(&["psql", &clone, "--", "-XAtc", "select 1"]).done();
    eve.zdap(&["destroy", "orders"])
        .fails(1, &["you have no clone of `orders`"]);
    eve.zdap(&["destroy", &clone]).done();
    assert_eq!(node.clones(), [] as [&str; 0]);
}
