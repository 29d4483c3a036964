//! Several attaches at once, and attaches that do not get to their end.

use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::node::{Node, await_until, pid};
use crate::program::Said;
use crate::user::User;

#[test]
fn several_attaches_at_once_do_not_lose_each_other() {
    const TEST: &str = "several_attaches_at_once_do_not_lose_each_other";
    const SERVICES: [&str; 3] = ["orders", "users", "stock"];
    const OVERRIDE: &str = "services:\n  web: {image: nginx} # mine\n";
    let Some(node) = Node::embedded(TEST, &SERVICES) else {
        return;
    };
    let user = User::of(&node, &SERVICES);
    user.write("docker-compose.override.yml", OVERRIDE);
    let (things, files) = (node.things(), user.files());

    let attaching = SERVICES.map(|service| start(&user, &["attach", service]));
    for child in attaching {
        finish(child).done();
    }
    let attached = user.zdap(&["list", "clones", "--attached", "--json"]).json();
    assert_eq!(attached.as_array().map(Vec::len), Some(3), "{attached}");
    let text = user.read("docker-compose.override.yml");
    for clone in node.clones() {
        assert_eq!(
            text.matches(&format!("ZDAP_CLONE: \"{clone}\"\n")).count(),
            1,
            "{text}"
        );
    }

    user.zdap(&["detach", "users"]).done();
    user.zdap(&["detach", "stock", "orders"]).done();
    assert_eq!(user.files(), files);
    assert_eq!(node.things(), things);
}

#[test]
fn of_several_attaches_of_one_service_at_once_one_has_it_and_its_identity() {
    const TEST: &str = "of_several_attaches_of_one_service_at_once_one_has_it_and_its_identity";
    let Some(node) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let user = User::of(&node, &["orders"]);
    let (things, files) = (node.things(), user.files());
    let attaching = [(); 3].map(|()| start(&user, &["attach", "orders"]));
    let said = attaching.map(finish);
    assert_eq!(
        said.iter().filter(|said| said.code == Some(0)).count(),
        1,
        "{said:#?}"
    );
    await_until("the losers have given their clones back", || {
        (node.clones().len() == 1).then_some(())
    });
    let clone = node.clones().concat();
    assert!(user.read("docker-compose.override.yml").contains(&clone));
    assert!(user.file(".zdap.d/orders/identity.pem").exists());
    user.zdap(&["detach", "orders"]).done();
    assert_eq!(user.files(), files);
    assert_eq!(node.things(), things);
}

#[test]
fn several_detaches_at_once_give_back_the_original_bytes() {
    const TEST: &str = "several_detaches_at_once_give_back_the_original_bytes";
    const SERVICES: [&str; 2] = ["orders", "users"];
    let Some(node) = Node::embedded(TEST, &SERVICES) else {
        return;
    };
    let user = User::of(&node, &SERVICES);
    let (things, files) = (node.things(), user.files());
    for service in SERVICES {
        user.zdap(&["attach", service]).done();
    }
    for child in SERVICES.map(|service| start(&user, &["detach", service])) {
        finish(child).done();
    }
    assert_eq!(user.files(), files);
    assert_eq!(node.things(), things);
}

#[test]
fn an_attach_that_is_interrupted_at_any_moment_leaves_nothing() {
    const TEST: &str = "an_attach_that_is_interrupted_at_any_moment_leaves_nothing";
    let Some(node) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let user = User::of(&node, &["orders"]);
    let (things, files) = (node.things(), user.files());
    let mut interrupted = 0;
    for milliseconds in (0..300).step_by(20) {
        let attach = start(&user, &["attach", "orders"]);
        std::thread::sleep(Duration::from_millis(milliseconds)); // the moment is what is tried
        let _ = kill_process(pid(&attach), Signal::INT);
        let said = finish(attach);
        match said.code {
            Some(0) => {
                user.zdap(&["detach", "orders"]).done();
            }
            Some(130) => {
                interrupted += 1;
                said.fails(130, &["interrupted"]);
            }
            None if milliseconds < 40 => {} // it was too early for zdap to know what to do
            _ => panic!("{said:#?}"),
        }
        assert_eq!(user.files(), files, "after {milliseconds} ms");
        await_until("the node has undone it", || {
            (node.clones().is_empty() && node.things() == things).then_some(())
        });
    }
    assert!(interrupted > 0);
}

#[test]
fn an_attach_that_takes_too_long_leaves_nothing() {
    const TEST: &str = "an_attach_that_takes_too_long_leaves_nothing";
    let Some(node) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let user = User::of(&node, &["orders"]);
    let (things, files) = (node.things(), user.files());
    let said = user.zdap(&["attach", "orders", "--timeout", "0.05"]);
    // On a machine that is busy the node itself is not reached by then.
    match said.stderr.contains("no origin was reached") {
        true => said.fails(3, &["no origin was reached within 0.05 s; it was: "]),
        false => said.fails(1, &["not done within 0.05 s; it was: "]),
    };
    await_until("the node has undone it", || {
        (node.things() == things).then_some(())
    });
    assert_eq!(user.files(), files);
}

#[test]
fn a_detach_whose_node_is_away_changes_nothing_unless_it_is_forced() {
    const TEST: &str = "a_detach_whose_node_is_away_changes_nothing_unless_it_is_forced";
    let Some(mut node) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let user = User::of(&node, &["orders"]);
    let (things, before) = (node.things(), user.files());
    user.zdap(&["attach", "orders"]).done();
    let attached = user.files();
    let clone = node.clones().concat();
    node.kill();
    user.zdap(&["detach", "orders"])
        .fails(
            3,
            &[
                "no way to",
                &clone,
                "on db1; nothing was changed",
                &node.address(),
            ],
        )
        .hints("--force");
    assert_eq!(user.files(), attached);
    let said = user.zdap(&["detach", "orders", "--force"]).done();
    assert!(
        said.stderr.contains(&format!("clone {clone} stays on db1")),
        "{said:#?}"
    );
    assert_eq!(user.files(), before);

    node.revive();
    user.zdap(&["destroy", &clone]).done();
    assert_eq!(node.things(), things);
}

pub(crate) fn start(user: &User, arguments: &[&str]) -> Child {
    let mut command = user.command();
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

pub(crate) fn finish(child: Child) -> Said {
    Said::of("zdap", &child.wait_with_output().unwrap())
}
