//! A user of one cluster with two nodes.

use crate::node::Node;
use crate::user::User;

#[test]
fn a_user_of_one_cluster_sees_and_uses_both_its_nodes() {
    const TEST: &str = "a_user_of_one_cluster_sees_and_uses_both_its_nodes";
    let Some(first) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let token = first.zdapd(&["token", "node"]).line();
    let Some(second) = Node::joining(TEST, "db2", &["orders"], Some(&token)) else {
        return;
    };
    let user = User::of(&first, &["orders"]);
    user.zdap(&["add", "origin", &second.address()]).done();

    let origins = user.zdap(&["list", "origins", "--json"]).json();
    let names = origins
        .as_array()
        .unwrap()
        .iter()
        .map(|origin| origin["node"]["name"].as_str());
    assert_eq!(names.collect::<Vec<_>>(), [Some("db1"), Some("db2")]);
    for what in ["resources", "snaps"] {
        let list = user.zdap(&["list", what, "--json"]).json();
        let nodes = list.as_array().unwrap().iter().map(|view| view["node"].as_str());
        assert_eq!(nodes.collect::<Vec<_>>(), [Some("db1"), Some("db2")], "{what}");
    }

    let line = user.zdap(&["attach", "orders", "@db2"]).line();
    assert_eq!(
        line,
        format!("orders attached: {} on db2", second.clones().join(" "))
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
    user.zdap(&["attach", "orders", "@db3"])
        .fails(1, &["`orders` is attached already"]);
    user.zdap(&["clone", "orders", "@db3"])
        .fails(1, &["no node @db3", &address, &second.address()])
        .hints("zdap list origins");

    user.zdap(&["destroy", &id]).done();
    user.zdap(&["detach", "orders"]).done();
    assert_eq!(first.clones(), second.clones());
}

#[test]
fn with_one_node_away_the_other_is_used_and_the_first_is_named() {
    const TEST: &str = "with_one_node_away_the_other_is_used_and_the_first_is_named";
    let Some(mut first) = Node::embedded(TEST, &[]) else {
        return;
    };
    let token = first.zdapd(&["token", "node"]).line();
    let Some(second) = Node::joining(TEST, "db2", &["orders"], Some(&token)) else {
        return;
    };
    let user = User::of(&first, &["orders"]);
    user.zdap(&["add", "origin", &second.address()]).done();
    first.kill();
    let (said, origins) = std::thread::scope(|scope| {
        let said = scope.spawn(|| user.zdap(&["list", "resources"]).done());
        let origins = scope.spawn(|| user.zdap(&["list", "origins"]).line());
        user.zdap(&["attach", "orders"]).done();
        (said.join().unwrap(), origins.join().unwrap())
    });
    let away = format!("warning: no answer from {}", first.address());
    assert!(said.stderr.contains(&away), "{said:#?}");
    assert!(said.stdout.starts_with("db2\n"), "{said:#?}");
    assert!(origins.contains("could not connect"), "{origins}");
    assert_eq!(second.clones().len(), 1);
    user.zdap(&["detach", "orders"]).done();
}
