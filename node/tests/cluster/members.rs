//! Several nodes: who is there, how each is, and what they know of each other.

use std::time::{Duration, Instant};

use zdap_node::cluster::{Seen, View};
use zdap_node::faults::Faults;
use zdap_node::gossip::MemberState;
use zdap_proto::identity::Subject;
use zdap_proto::message::Invited;
use zdap_proto::transport::Purpose;

use crate::by_hand::turned_away;
use crate::world::{Apart, Machine, SOON};

/// The first node of a cluster, with a snapshot, and others that have joined it.
async fn cluster<const OTHERS: usize>(
    first: &Machine,
    others: [&Machine; OTHERS],
) -> (Apart, [Apart; OTHERS]) {
    let founder = first.start_apart(0, None).await.unwrap();
    founder.operator().await.restore().await;
    let mut joined = Vec::new();
    for machine in others {
        let token = founder.token(Invited::Node).await;
        joined.push(machine.start_apart(0, Some(&token)).await.unwrap());
    }
    let Ok(joined) = joined.try_into() else {
        panic!("as many as there are machines")
    };
    (founder, joined)
}

fn seen<'a>(view: &'a View, name: &str) -> Option<&'a Seen> {
    view.members.get(&name.parse().unwrap())
}

fn is(view: &View, name: &str, state: MemberState) -> bool {
    seen(view, name).is_some_and(|seen| seen.state == state)
}

/// Whether a node is there and what it has is known.
fn is_known(view: &View, name: &str) -> bool {
    is(view, name, MemberState::Alive)
        && seen(view, name).is_some_and(|seen| {
            let digest = seen.digest.as_ref().map(|heard| heard.digest.report.catalog_hash);
            digest.is_some() && digest == seen.catalog.as_ref().map(|catalog| catalog.hash)
        })
}

fn snapshots(view: &View, name: &str) -> usize {
    let catalog = seen(view, name).and_then(|seen| seen.catalog.as_ref());
    catalog.map_or(0, |catalog| catalog.facts.snapshots.len())
}

#[tokio::test]
async fn nodes_that_have_joined_know_each_other_and_what_each_has() {
    let machines = ["a", "b", "c"].map(Machine::new);
    let began = Instant::now();
    let (a, [b, c]) = cluster(&machines[0], [&machines[1], &machines[2]]).await;
    for node in [&a, &b, &c] {
        node.until("all know all", |view| {
            ["a", "b", "c"].iter().all(|name| is_known(view, name))
        })
        .await;
    }
    println!(
        "all know all {:?} after the first began to start",
        began.elapsed()
    );
    c.until("the snapshot is known", |view| snapshots(view, "a") == 1)
        .await;
    let view = c.views.borrow().clone();
    let catalog = seen(&view, "a").unwrap().catalog.clone().unwrap();
    assert_eq!(catalog.facts.address, a.address);
    assert_eq!(catalog.facts.resources.len(), 1);
    assert!(
        catalog.facts.users.contains(&"a".parse().unwrap()),
        "owns what it makes"
    );

    b.operator().await.restore().await;
    for node in [&a, &c] {
        node.until("the new snapshot is known", |view| snapshots(view, "b") == 1)
            .await;
    }
    let token = c.token(Invited::Node).await;
    let late = Machine::new("d");
    let late = late.start_apart(0, Some(&token)).await.unwrap();
    late.until("the newcomer knows all", |view| {
        ["a", "b", "c", "d"].iter().all(|name| is_known(view, name))
    })
    .await;
    let mut addresses = late.node.upgrade().unwrap().cluster.addresses();
    assert_eq!(addresses.remove(0), late.address, "its own first");
    assert_eq!(addresses, [&a, &b, &c].map(|node| node.address.clone()));
}

#[tokio::test]
async fn a_node_that_was_killed_is_given_up_and_welcome_when_it_is_back() {
    let machines = ["a", "b", "c"].map(Machine::new);
    let (a, [b, c]) = cluster(&machines[0], [&machines[1], &machines[2]]).await;
    for node in [&a, &b, &c] {
        node.until("all know all", |view| {
            ["a", "b", "c"].iter().all(|name| is_known(view, name))
        })
        .await;
    }
    let epoch = seen(&a.views.borrow(), "c").unwrap().epoch;
    let port = c.port();
    c.kill();
    for node in [&a, &b] {
        node.until("c is not chosen any more", |view| {
            !is(view, "c", MemberState::Alive)
        })
        .await;
    }
    for node in [&a, &b] {
        node.until("c is down", |view| is(view, "c", MemberState::Down))
            .await;
        assert!(is(&node.views.borrow(), "a", MemberState::Alive));
        assert!(is(&node.views.borrow(), "b", MemberState::Alive));
    }
    let c = machines[2].start_apart(port, None).await.unwrap();
    for node in [&a, &b, &c] {
        node.until("c is back", |view| {
            ["a", "b", "c"].iter().all(|name| is_known(view, name))
                && seen(view, "c").is_some_and(|seen| seen.epoch > epoch)
        })
        .await;
    }
}

#[tokio::test]
async fn what_a_dead_node_had_is_known_to_one_that_comes_later() {
    let machines = ["a", "b", "c"].map(Machine::new);
    let (a, [b, c]) = cluster(&machines[0], [&machines[1], &machines[2]]).await;
    c.operator().await.restore().await;
    for node in [&a, &b] {
        node.until("the snapshot of c is known", |view| snapshots(view, "c") == 1)
            .await;
    }
    c.kill();
    a.until("c is down", |view| is(view, "c", MemberState::Down))
        .await;
    let token = a.token(Invited::Node).await;
    let late = Machine::new("d");
    let late = late.start_apart(0, Some(&token)).await.unwrap();
    late.until("a or b has told of c", |view| {
        is(view, "c", MemberState::Down) && snapshots(view, "c") == 1
    })
    .await;
}

#[tokio::test]
async fn a_node_that_restarts_at_once_is_not_missed() {
    let machines = ["a", "b"].map(Machine::new);
    let (a, [b]) = cluster(&machines[0], [&machines[1]]).await;
    a.until("b is known", |view| is_known(view, "b")).await;
    b.until("a is known", |view| is_known(view, "a")).await;
    let epoch = seen(&a.views.borrow(), "b").unwrap().epoch;
    let port = b.port();
    b.kill();
    let b = machines[1].start_apart(port, None).await.unwrap();
    let back = Instant::now();
    a.until("b is back", |view| {
        is_known(view, "b") && seen(view, "b").is_some_and(|seen| seen.epoch > epoch)
    })
    .await;
    b.until("a is known again", |view| is_known(view, "a")).await;
    println!("known again after {:?}", back.elapsed());
}

#[tokio::test]
async fn a_node_that_stops_says_so() {
    let machines = ["a", "b"].map(Machine::new);
    let (a, [b]) = cluster(&machines[0], [&machines[1]]).await;
    a.until("b is known", |view| is_known(view, "b")).await;
    b.until("a is known", |view| is_known(view, "a")).await;
    let began = Instant::now();
    b.stop().await;
    a.until("b is down", |view| is(view, "b", MemberState::Down))
        .await;
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(3),
        "{took:?}: as long as for one that was killed"
    );
}

#[tokio::test]
async fn a_node_that_is_emptied_says_so_and_still_does_after_a_restart() {
    let machines = ["a", "b"].map(Machine::new);
    let (a, [b]) = cluster(&machines[0], [&machines[1]]).await;
    a.until("b is known", |view| is_known(view, "b")).await;
    b.node.upgrade().unwrap().cluster.drain(true).unwrap();
    let is_draining = |view: &View| {
        seen(view, "b")
            .and_then(|seen| seen.digest.as_ref())
            .is_some_and(|heard| heard.digest.report.flags.draining)
    };
    a.until("b is being emptied", is_draining).await;
    let port = b.port();
    b.stop().await;
    a.until("b is down", |view| is(view, "b", MemberState::Down))
        .await;
    let b = machines[1].start_apart(port, None).await.unwrap();
    a.until("b is back", |view| is(view, "b", MemberState::Alive))
        .await;
    assert!(is_draining(&b.views.borrow()));
    assert!(is_draining(&a.views.borrow()));
}

#[tokio::test]
async fn who_is_revoked_on_one_node_is_so_on_all() {
    let machines = ["a", "b"].map(Machine::new);
    let (a, [b]) = cluster(&machines[0], [&machines[1]]).await;
    a.until("b is known", |view| is_known(view, "b")).await;
    let ada = "ada".parse().unwrap();
    b.node.upgrade().unwrap().cluster.revoke(&ada).unwrap();
    a.until("it is known of b", |view| {
        let catalog = seen(view, "b").and_then(|seen| seen.catalog.as_ref());
        catalog.is_some_and(|catalog| catalog.facts.revoked.contains(&ada))
    })
    .await;
    assert!(a.node.upgrade().unwrap().cluster.is_revoked(&ada));
    b.until("a has taken it over", |view| {
        let catalog = seen(view, "a").and_then(|seen| seen.catalog.as_ref());
        catalog.is_some_and(|catalog| catalog.facts.revoked.contains(&ada))
    })
    .await;
}

#[tokio::test]
async fn a_user_hears_nothing_of_the_gossip() {
    let node = Machine::new("a").start().await;
    let ada = node.certify(&Subject::User("ada".parse().unwrap()));
    let reason = turned_away(&node, Some(&ada), Purpose::Gossip).await;
    assert!(
        reason.ends_with("the cluster's gossip is for nodes only"),
        "{reason}"
    );
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_has_stopped_lets_go_of_its_port_also_when_it_has_spoken_to_others() {
    let machines = ["a", "b"].map(Machine::new);
    let a = machines[0].start_apart(0, None).await.unwrap();
    let token = a.token(Invited::Node).await;
    let b = machines[1].start_with(Faults::none(), 0, Some(&token)).await;
    let b = b.unwrap();
    a.until("b is known", |view| is_known(view, "b")).await;
    let port = b.port();
    b.stop().await;
    let again = machines[1].start_with(Faults::none(), port, None);
    let again = tokio::time::timeout(SOON, again).await;
    again.expect("the port is free").unwrap();
}

#[tokio::test]
async fn the_name_of_a_node_that_lives_is_taken() {
    let machines = ["a", "b"].map(Machine::new);
    let (a, [b]) = cluster(&machines[0], [&machines[1]]).await;
    a.until("b is known", |view| is_known(view, "b")).await;
    let token = a.token(Invited::Node).await;
    let Err(error) = Machine::new("b").start_apart(0, Some(&token)).await else {
        panic!("the name is taken")
    };
    assert!(
        error.to_string().contains("the name of node `b` is taken"),
        "{error}"
    );

    b.until("a is known", |view| is_known(view, "a")).await;
    let written = || std::fs::read_to_string(machines[1].state().join("members")).unwrap_or_default();
    while !written().contains(&a.address) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let Err(error) = machines[1].cloned().start_apart(0, None).await else {
        panic!("one of the two is too many")
    };
    let told = format!(
        "the name of node `b` is taken: a node of that name answers at {}",
        b.address
    );
    assert!(error.to_string().contains(&told), "{error}");
}
