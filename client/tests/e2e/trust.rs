//! Who is let in and who is not: tokens, certificates, clocks, and nodes that are not there.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use zdap_proto::identity::{ClusterCa, Subject};

use crate::node::{Node, await_until};
use crate::user::User;

#[test]
fn a_token_is_good_once_for_whom_it_is_for() {
    const TEST: &str = "a_token_is_good_once_for_whom_it_is_for";
    let Some(node) = Node::embedded(TEST, &[]) else {
        return;
    };
    let (ada, eve) = (User::new(node.programs()), User::new(node.programs()));
    let token = node.token("ada@laptop");
    ada.zdap(&["add", "origin", &token]).done();
    let remembered = |user: &User| user.zdap(&["list", "origins", "--json"]).json();

    eve.zdap(&["add", "origin", &token])
        .fails(1, &["this token was used already, at 20"])
        .hints("zdapd token user");
    eve.zdap(&["add", "origin", &node.address(), "--token", &token])
        .fails(1, &["this token was used already"]);

    let short = node.zdapd(&["token", "user", "--ttl", "1s"]).line();
    let over = Utc::now() + TimeDelta::seconds(1);
    await_until("the token has expired", || (Utc::now() > over).then_some(()));
    eve.zdap(&["add", "origin", &short])
        .fails(1, &["this token expired at 20"])
        .hints("zdapd token user");

    let for_node = node.zdapd(&["token", "node"]).line();
    eve.zdap(&["add", "origin", &for_node])
        .fails(1, &["this token lets in a node, not a user"])
        .hints("zdapd token user");

    let cut = &token[..token.len() - 5];
    eve.zdap(&["add", "origin", cut])
        .fails(1, &["the token is cut off or mistyped"])
        .hints("copy the whole line");
    eve.zdap(&["add", "origin", &token.replace("zdap1-", "zdap9-")])
        .fails(1, &["this token is for another version of zdap"]);
    eve.zdap(&["add", "origin", &node.address(), "--token", "hunter2"])
        .fails(1, &["this is not a token: one begins with `zdap1-`"]);
    eve.zdap(&["add", "origin", &node.address()])
        .fails(1, &["a token is needed for", &node.address()])
        .hints("zdapd token user NAME");

    assert_eq!(remembered(&eve).as_array().map(Vec::len), Some(0));
    eve.zdap(&["set", "user", "ada@laptop"]).done();
    let anybody = node.zdapd(&["token", "user"]).line();
    eve.zdap(&["add", "origin", &anybody])
        .fails(1, &["the name `ada@laptop` is somebody's already"])
        .hints("zdap set user");
    eve.zdap(&["set", "user", "eve@laptop"]).done();
    let added = eve.zdap(&["add", "origin", &anybody, "--json"]).json();
    assert_eq!(added["user"], "eve@laptop", "a refusal does not use the token up");
}

#[test]
fn a_node_of_another_cluster_is_not_talked_to() {
    const TEST: &str = "a_node_of_another_cluster_is_not_talked_to";
    let (Some(ours), Some(mut theirs)) = (Node::embedded(TEST, &[]), Node::embedded(TEST, &[])) else {
        return;
    };
    let user = User::of(&ours, &["orders"]);
    let token = theirs.token("ada@laptop");

    // A token of theirs, taken to one of ours while theirs is away.
    theirs.kill();
    let settings = std::fs::read(user.home().join("settings.json")).unwrap();
    user.zdap(&["add", "origin", &ours.address(), "--token", &token])
        .fails(3, &[&ours.address(), "not a node of this cluster"]);
    assert_eq!(
        std::fs::read(user.home().join("settings.json")).unwrap(),
        settings
    );

    // Another cluster at the address that ours had.
    let Some(imposter) = Node::embedded(TEST, &[]) else {
        return;
    };
    let settings = String::from_utf8(settings).unwrap();
    let moved = settings.replace(&ours.address(), &imposter.address());
    std::fs::write(user.home().join("settings.json"), moved).unwrap();
    user.zdap(&["attach", "orders"])
        .fails(3, &[&imposter.address(), "its certificate is of another CA"]);
}

#[test]
fn a_node_that_is_not_there_is_named() {
    const TEST: &str = "a_node_that_is_not_there_is_named";
    let Some(mut node) = Node::embedded(TEST, &[]) else {
        return;
    };
    let user = User::of(&node, &["orders"]);
    let files = user.files();
    node.kill();
    let none = format!("no answer from {}", node.address());
    // At once: each waits as long as a node is given to answer.
    let failure = std::thread::scope(|scope| {
        for command in [
            &["attach", "orders"][..],
            &["list", "resources"],
            &["psql", "orders"],
        ] {
            let (user, none) = (&user, &none);
            scope.spawn(move || {
                let said = user.zdap(command).fails(3, &["no origin was reached", none]);
                said.hints("check that zdapd runs there")
            });
        }
        let stranger = User::new(node.programs());
        let (address, none) = (node.address(), &none);
        scope.spawn(move || {
            let said = stranger.zdap(&["add", "origin", &address]);
            said.fails(3, &[none]).hints("check that zdapd runs there")
        });
        user.zdap(&["clone", "orders", "--json"])
    });
    assert_eq!(failure.code, Some(3));
    let document: serde_json::Value = serde_json::from_str(&failure.stdout).unwrap();
    assert_eq!(document["error"]["kind"], "unreachable");
    assert_eq!(user.files(), files);
}

#[test]
fn a_clock_that_is_wrong_by_more_than_the_certificate_allows_is_said() {
    const TEST: &str = "a_clock_that_is_wrong_by_more_than_the_certificate_allows_is_said";
    let Some(node) = Node::embedded(TEST, &[]) else {
        return;
    };
    let user = User::of(&node, &["orders"]);
    let ca = ClusterCa::load(&node.state()).unwrap();
    let certify = |at: DateTime<Utc>| {
        let subject = Subject::User("ada@laptop".parse().unwrap());
        let identity = ca.identity(&subject, Duration::from_secs(3600), at).unwrap();
        let directory = user.home().join("clusters").join(ca.cluster().as_str());
        identity.save(&directory).unwrap();
    };
    certify(Utc::now() - TimeDelta::days(2));
    user.zdap(&["attach", "orders"])
        .fails(
            3,
            &[&node.address(), "expired at 20", "this machine's clock says 20"],
        )
        .hints("clock");
    certify(Utc::now() + TimeDelta::days(2));
    user.zdap(&["attach", "orders"])
        .fails(
            3,
            &[
                &node.address(),
                "is not valid before 20",
                "this machine's clock says 20",
            ],
        )
        .hints("clock");
    certify(Utc::now());
    user.zdap(&["list", "resources"]).done();
}

#[test]
fn an_identity_that_is_damaged_is_named_with_its_file() {
    const TEST: &str = "an_identity_that_is_damaged_is_named_with_its_file";
    let Some(node) = Node::embedded(TEST, &[]) else {
        return;
    };
    let user = User::of(&node, &["orders"]);
    let cluster = ClusterCa::load(&node.state()).unwrap().cluster().to_string();
    let path = user.home().join("clusters").join(cluster).join("identity.pem");
    std::fs::write(&path, "nonsense").unwrap();
    user.zdap(&["list", "resources"])
        .fails(3, &[&path.display().to_string(), "no identity to show"])
        .hints("enrol again");
    std::fs::remove_file(&path).unwrap();
    user.zdap(&["list", "resources"])
        .fails(3, &[&path.display().to_string(), "no identity to show"]);
}
