//! One name, several lives or machines.

use std::time::{Duration, Instant};

use zdap_node::gossip::{Action, Gossip, MemberState};
use zdap_proto::digest::NodeDigest;

use super::cluster::{Cluster, Seen, What, cluster_id};
use super::measure::{quiet, report};
use super::packets::node;

fn conflicts(seen: &[Seen], node: usize) -> Vec<bool> {
    let seen = seen.iter().filter(|seen| seen.node == node);
    seen.filter_map(|seen| match seen.what {
        What::Conflict(is_winning) => Some(is_winning),
        What::Member(..) | What::Digest(..) | What::Renewed => None,
    })
    .collect()
}

#[test]
fn a_node_that_restarts_is_back_under_its_name_at_once() {
    let mut cluster = Cluster::knit(5, 41, quiet());
    cluster.crash(2);
    cluster.run_for(Duration::from_millis(200));
    cluster.start(2, &[0]);
    assert!(cluster.run_until_agreed(Duration::from_secs(2)).is_some());
    let members = cluster.gossip(0).members(cluster.now());
    let member = members
        .iter()
        .find(|member| member.name == *cluster.name(2))
        .unwrap();
    assert_eq!(
        (member.epoch, member.state),
        (cluster.persisted(2), MemberState::Alive)
    );
}

#[test]
fn a_node_that_moved_is_known_at_its_new_address_alone() {
    let mut cluster = Cluster::knit(6, 42, quiet());
    cluster.crash(2);
    cluster.crash(5);
    cluster.run_for(Duration::from_millis(200));
    // Where node 5 was, under node 2's name.
    let (name, address) = (cluster.name(2).clone(), cluster.address(5));
    cluster.rename(5, name.clone());
    let generation = cluster.persisted(2) + 10_000;
    cluster.start_as(5, generation, address, &[0]);
    let seen = cluster.run_for(Duration::from_secs(15));
    assert!(conflicts(&seen, 5).is_empty(), "the old life is dead");
    let members = cluster.gossip(0).members(cluster.now());
    let member = members.iter().find(|member| member.name == name).unwrap();
    assert_eq!((member.address, member.state), (address, MemberState::Alive));
}

#[test]
fn a_node_whose_disk_was_put_back_goes_above_its_later_life() {
    let mut cluster = Cluster::knit(5, 43, quiet());
    cluster.publish(2, report(5));
    cluster.run_for(Duration::from_secs(5));
    let later = cluster.persisted(2);
    cluster.crash(2);
    cluster.run_for(Duration::from_secs(20));
    cluster.start_as(2, later - 1_000_000, cluster.address(2), &[0]);
    cluster.publish(2, report(6));
    let seen = cluster.run_for(Duration::from_secs(10));
    assert!(cluster.agrees());
    assert!(cluster.persisted(2) > later, "written down for the next start");
    assert!(conflicts(&seen, 2).is_empty());
    for node in [0, 1, 3, 4] {
        let digests = cluster.gossip(node).digests(cluster.now());
        let of_two = |(digest, _): &(NodeDigest, _)| digest.node == *cluster.name(2);
        let (digest, _) = digests.into_iter().find(of_two).unwrap();
        assert_eq!(digest.report.clones, 6, "its new digests count");
    }
}

#[test]
fn two_machines_with_one_name_are_told_about_and_do_not_fight() {
    let mut cluster = Cluster::knit(6, 44, quiet());
    cluster.crash(5);
    cluster.run_for(Duration::from_secs(20));
    // A copy of node 2's machine comes up where node 5 was, with what was on its disk.
    let (name, address) = (cluster.name(2).clone(), cluster.address(5));
    cluster.rename(5, name.clone());
    cluster.start_as(5, cluster.persisted(2) - 1, address, &[0]);
    let before = cluster.persisted(2);
    let seen = cluster.run_for(Duration::from_mins(2));
    let told = conflicts(&seen, 5);
    assert!(
        (5..=20).contains(&told.len()),
        "told now and then: {}",
        told.len()
    );
    assert!(
        told.iter().all(|is_winning| *is_winning),
        "the other speaks for the name"
    );
    assert_eq!(cluster.persisted(2), before, "and was not disturbed");
    for node in [0, 1, 3, 4] {
        let members = cluster.gossip(node).members(cluster.now());
        let member = members.iter().find(|member| member.name == name).unwrap();
        assert_eq!(
            (member.address, member.state),
            (cluster.address(2), MemberState::Alive)
        );
    }
    // Once the first is gone, the copy takes its place.
    cluster.crash(2);
    cluster.run_for(Duration::from_mins(1));
    let members = cluster.gossip(0).members(cluster.now());
    let member = members.iter().find(|member| member.name == name).unwrap();
    assert_eq!((member.address, member.state), (address, MemberState::Alive));
}

#[test]
fn a_member_that_is_given_up_elsewhere_is_asked_and_is_down_if_it_stays_silent() {
    let start = Instant::now();
    let [mut a, mut b, mut c] =
        [("a", 1), ("b", 2), ("c", 3)].map(|(name, port)| node(cluster_id(), name, port, start));
    a.learn(c.knowledge(), start).unwrap();
    b.learn(c.knowledge(), start).unwrap();
    a.learn(b.knowledge(), start).unwrap();
    // It is well here, and has told the other that it goes.
    c.learn(b.knowledge(), start).unwrap();
    c.leave(start);
    while let Some(action) = c.poll_action() {
        if let Action::Send { to, packet } = action
            && to == b.me().address()
        {
            b.handle_packet(c.me().name(), &packet, start).unwrap();
        }
    }
    while a.poll_action().is_some() {}
    a.learn(b.knowledge(), start).unwrap();
    let state = |a: &Gossip, now| {
        let members = a.members(now).into_iter();
        members
            .filter(|member| member.name == *c.me().name())
            .map(|member| member.state)
            .next()
    };
    assert_eq!(state(&a, start), Some(MemberState::Alive), "not on hearsay");
    let asked = std::iter::from_fn(|| a.poll_action());
    let to_c = asked.filter(|action| matches!(action, Action::Send { to, .. } if *to == c.me().address()));
    assert!(to_c.count() > 0, "it is asked");
    let later = start + Duration::from_secs(4);
    let mut now = start;
    while now < later {
        now += Duration::from_millis(10);
        a.handle_wake(now);
    }
    assert_eq!(state(&a, later), Some(MemberState::Down));
}
