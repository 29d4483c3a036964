//! A user of one cluster with two nodes.

use std::net::{TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::node::{Node, await_until};
use crate::program::{has_keys, run};
use crate::user::User;

#[test]
fn a_user_who_knows_one_node_sees_and_uses_both() {
    const TEST: &str = "a_user_who_knows_one_node_sees_and_uses_both";
    let Some(first) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let token = first.zdapd(&["token", "node"]).line();
    let Some(second) = Node::joining(TEST, "db2", &["orders"], Some(&token)) else {
        return;
    };
    let user = User::of(&first, &["orders"]);
    sees(&user, "resources", &["db1", "db2"]);
    sees(&user, "snaps", &["db1", "db2"]);

    let origins = user.zdap(&["list", "origins", "--json"]).json();
    assert_eq!(names(&origins, |origin| &origin["node"]["name"]), ["db1", "db2"]);
    let nodes = user.zdap(&["list", "nodes", "--json"]).json();
    assert_eq!(names(&nodes, |node| &node["name"]), ["db1", "db2"]);

    let line = user.zdap(&["attach", "orders", "@db2"]).line();
    assert_eq!(
        line,
        format!("orders attached: {} on db2", second.clones().join(" "))
    );
    let text = user.read("docker-compose.override.yml");
    let ports = [second.port, first.port].map(|port| format!("host.docker.internal:{port}"));
    assert!(
        text.contains(&format!("ZDAP_SERVERS: \"{}\"", ports.join(","))),
        "its own node first: {text}"
    );
    assert_eq!(first.clones(), [] as [&str; 0]);
    let address = first.address();
    let id = user.zdap(&["clone", &format!("@{address}"), "orders"]).line();
    assert_eq!(first.clones(), [id.as_str()]);

    let tree = user.zdap(&["list", "clones"]).line();
    assert!(
        tree.contains("db1\n") && tree.contains("db2\n") && tree.contains("attached here"),
        "{tree}"
    );
    let pinned = user.zdap(&["list", "clones", "@db1", "--json"]).json();
    assert_eq!(names(&pinned, |clone| &clone["id"]), [id.as_str()]);
    user.zdap(&["attach", "orders", "@db3"])
        .fails(1, &["`orders` is attached already"]);
    user.zdap(&["clone", "orders", "@db3"])
        .fails(1, &["no node @db3", &address, &second.address()])
        .hints("zdap list nodes");

    user.zdap(&["destroy", &id]).done();
    user.zdap(&["detach", "orders"]).done();
    assert_eq!(first.clones(), second.clones());
}

#[test]
fn a_token_does_at_the_address_of_any_node() {
    const TEST: &str = "a_token_does_at_the_address_of_any_node";
    let Some(mut first) = Node::embedded(TEST, &[]) else {
        return;
    };
    let token = first.zdapd(&["token", "node"]).line();
    let Some(second) = Node::joining(TEST, "db2", &[], Some(&token)) else {
        return;
    };
    let user = User::new(first.programs());
    user.zdap(&[
        "add",
        "origin",
        &second.address(),
        "--token",
        &first.token("ada@laptop"),
    ])
    .done();
    let origins = user.zdap(&["list", "origins", "--json"]).json();
    let mut nodes = names(&origins, |origin| &origin["node"]["name"]);
    nodes.sort_unstable();
    assert_eq!(nodes, ["db1", "db2"]);
    for origin in origins.as_array().unwrap() {
        assert_eq!(
            origin["added"], true,
            "the token's address, and the one that was typed"
        );
    }
    user.zdap(&["remove", "origin", &first.address()]).done();
    user.zdap(&["remove", "origin", &first.address()])
        .fails(1, &["was not added", "a cluster has told of it"])
        .hints(&format!("`zdap remove origin {}`", second.address()));

    let token = first.token("bob@laptop");
    first.kill();
    let bob = User::new(second.programs());
    bob.zdap(&["add", "origin", &second.address(), "--token", &token])
        .fails(
            3,
            &["did not make this token", "no answer from", &first.address()],
        )
        .hints("a node that you can reach");
    bob.zdap(&[
        "add",
        "origin",
        &second.address(),
        "--token",
        &second.token("bob@laptop"),
    ])
    .done();
}

#[test]
fn a_node_that_meets_nobody_says_where_it_is_looked_for() {
    const TEST: &str = "a_node_that_meets_nobody_says_where_it_is_looked_for";
    let Some(first) = Node::embedded(TEST, &[]) else {
        return;
    };
    let token = first.zdapd(&["token", "node"]).line();
    let Some(mut second) = Node::joining(TEST, "db2", &[], Some(&token)) else {
        return;
    };
    let warning = "no other node has been met";
    await_until("the nodes have met", || {
        second.logged().contains("other nodes are here").then_some(())
    });
    assert!(!second.logged().contains(warning));
    second.kill();
    drop(first);
    second.revive();
    await_until("it says so", || {
        let log = second.logged();
        let line = log.lines().find(|line| line.contains(warning))?;
        assert!(line.contains(&second.address()), "{line}");
        Some(())
    });
}

#[test]
fn which_nodes_were_considered_is_said_when_asked() {
    const TEST: &str = "which_nodes_were_considered_is_said_when_asked";
    let Some(first) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let token = first.zdapd(&["token", "node"]).line();
    let Some(_second) = Node::joining(TEST, "db2", &["orders"], Some(&token)) else {
        return;
    };
    let user = User::of(&first, &["orders"]);
    sees(&user, "snaps", &["db1", "db2"]);
    let said = user.zdap(&["clone", "orders", "--explain", "--json"]).done();
    assert!(
        said.stderr.contains("BOTTLENECK") && said.stderr.contains("chosen"),
        "{said:#?}"
    );
    let clone = said.json();
    let mut considered = names(&clone["considered"], |considered| &considered["node"]);
    assert_eq!(
        considered[0],
        clone["node"].as_str().unwrap(),
        "the chosen one first"
    );
    considered.sort_unstable();
    assert_eq!(considered, ["db1", "db2"]);
    has_keys(&clone["considered"][0], "node expected offered outcome");
    let plain = user.zdap(&["clone", "orders", "--json"]).json();
    assert_eq!(plain["considered"], Value::Null);
    user.zdap(&["destroy", "orders", "--all"]).done();
}

#[test]
fn with_the_only_origin_away_the_other_node_is_used_and_the_first_is_named() {
    const TEST: &str = "with_the_only_origin_away_the_other_node_is_used_and_the_first_is_named";
    let Some(mut first) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let token = first.zdapd(&["token", "node"]).line();
    let Some(second) = Node::joining(TEST, "db2", &["orders"], Some(&token)) else {
        return;
    };
    let user = User::of(&first, &["orders"]);
    sees(&user, "snaps", &["db1", "db2"]);
    let left = user.zdap(&["clone", "orders", "@db1"]).line();
    let known_to_second = User::of(&second, &[]);
    await_until("the second knows that the first has a clone", || {
        let nodes = known_to_second.zdap(&["list", "nodes", "--json"]).json();
        (nodes[0]["clones"] == 1).then_some(())
    });
    first.kill();
    let line = user.zdap(&["attach", "orders"]).line();
    assert!(line.ends_with(" on db2"), "{line}");
    await_until("the first is shown as down, and the second as alive", || {
        let origins = user.zdap(&["list", "origins"]).line();
        (origins.contains("down") && origins.contains("alive")).then_some(())
    });
    let said = user.zdap(&["list", "clones"]).done();
    assert!(
        said.stderr.contains("warning: db1 does not answer: "),
        "{said:#?}"
    );
    assert!(said.stdout.starts_with("db2\n"), "{said:#?}");
    user.zdap(&["destroy", "nothing"])
        .fails(1, &["on the nodes that answered", "db1"]);
    user.zdap(&["detach", "orders"]).done();
    assert_eq!(second.clones(), [] as [&str; 0]);

    first.revive();
    await_until("the first answers again", || {
        let clones = user.zdap(&["list", "clones", "--json"]).json();
        (names(&clones, |clone| &clone["id"]) == [left.as_str()]).then_some(())
    });
    user.zdap(&["destroy", &left]).done();
}

#[test]
fn a_clone_whose_node_cannot_be_reached_is_reached_through_the_other() {
    const TEST: &str = "a_clone_whose_node_cannot_be_reached_is_reached_through_the_other";
    let Some(first) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let token = first.zdapd(&["token", "node"]).line();
    let Some(second) = Node::joining(TEST, "db2", &[], Some(&token)) else {
        return;
    };
    let user = User::of(&first, &["orders"]);
    user.zdap(&["attach", "orders"]).done();
    let clone = first.clones().concat();

    // It takes packets and says nothing, like a firewall.
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap();
    let servers = format!("{},{}", closed.local_addr().unwrap(), second.address());
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let mut relay = Command::new(user.programs().join("zdap-proxyd"));
    user.prepare(&mut relay);
    relay
        .env("LISTEN_PORT", &port)
        .env("ZDAP_CLONE", &clone)
        .env("ZDAP_SERVERS", servers)
        .env("ZDAP_IDENTITY", user.file(".zdap.d/orders"))
        .stderr(Stdio::null());
    let relay = Ended(relay.spawn().unwrap());
    let rows = await_until("the relay serves", || {
        let mut psql = Command::new("psql");
        psql.env("PGPASSWORD", "secret")
            .args(["-XAtc", "select count(*) from item"]);
        let said = run(psql.arg(format!("postgres://postgres@127.0.0.1:{port}/orders")));
        (said.code == Some(0)).then(|| said.line())
    });
    assert_eq!(rows, "3");
    drop(relay);
    user.zdap(&["detach", "orders"]).done();
}

/// A process that ends with its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the user is shown what is on these nodes.
fn sees(user: &User, what: &str, expected: &[&str]) {
    await_until(&format!("the user sees {what} of {expected:?}"), || {
        let list = user.zdap(&["list", what, "--json"]).json();
        (names(&list, |view| &view["node"]) == expected).then_some(())
    });
}

fn names<'a>(list: &'a Value, name: impl Fn(&'a Value) -> &'a Value) -> Vec<&'a str> {
    let list = list.as_array().unwrap().iter();
    list.filter_map(|entry| name(entry).as_str()).collect()
}
