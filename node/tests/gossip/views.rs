//! What nodes believe of each other after the network or a machine has failed them.

use std::time::Duration;

use zdap_node::gossip::{MemberState, Settings};
use zdap_proto::digest::{NodeFlags, NodeReport};

use super::cluster::{Cluster, Seen, What};
use super::measure::{quiet, report};

/// Returns who has been given up.
fn is_down(seen: &Seen) -> Option<usize> {
    is_now(MemberState::Down, seen)
}

/// Returns who is suspected.
fn is_suspect(seen: &Seen) -> Option<usize> {
    is_now(MemberState::Suspect, seen)
}

fn is_now(state: MemberState, seen: &Seen) -> Option<usize> {
    match &seen.what {
        What::Member(node, member) if member.state == state => Some(*node),
        What::Member(..) | What::Digest(..) | What::Renewed | What::Conflict(_) => None,
    }
}

fn renewals(seen: &[Seen]) -> usize {
    seen.iter()
        .filter(|seen| matches!(seen.what, What::Renewed))
        .count()
}

#[test]
fn one_seed_gives_one_course_of_events() {
    let run = |seed| {
        let mut cluster = Cluster::knit(5, seed, Settings::default());
        cluster.network.loss = 0.1;
        cluster.publish(0, report(1));
        cluster.crash(3);
        cluster.run_for(Duration::from_secs(10));
        cluster.start(3, &[0]);
        cluster.run_for(Duration::from_secs(10));
        (cluster.trace, cluster.bytes())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn nodes_that_join_one_after_the_other_all_know_each_other() {
    let mut cluster = Cluster::new(8, 21);
    cluster.start(0, &[]);
    for node in 1..cluster.len() {
        cluster.start(node, &[node - 1]);
        assert!(
            cluster.run_until_agreed(Duration::from_secs(3)).is_some(),
            "{node} joined"
        );
    }
}

#[test]
fn nodes_that_all_start_at_once_find_each_other() {
    let mut cluster = Cluster::new(8, 22);
    for node in 0..cluster.len() {
        cluster.start(node, &[0, 1, 2]);
    }
    assert!(cluster.run_until_agreed(Duration::from_secs(10)).is_some());
}

#[test]
fn a_suspicion_that_was_refuted_makes_nobody_rejoin() {
    let mut cluster = Cluster::knit(10, 23, quiet());
    let mut suspicions = 0;
    for _ in 0..10 {
        cluster.stall(4, Duration::from_secs(2));
        let seen = cluster.run_for(Duration::from_secs(15));
        let suspects = seen.iter().filter_map(is_suspect);
        suspicions += suspects.filter(|node| *node == 4).count();
        assert_eq!(renewals(&seen), 0);
        assert_eq!(seen.iter().filter_map(is_down).count(), 0);
    }
    assert!(suspicions > 0, "nobody was suspected at all");
    assert!(cluster.agrees());
}

#[test]
fn a_node_that_stalled_for_long_comes_back_by_itself_and_takes_nobody_down() {
    let mut cluster = Cluster::knit(10, 24, quiet());
    for _ in 0..5 {
        cluster.stall(4, Duration::from_secs(20));
        let seen = cluster.run_for(Duration::from_secs(19));
        assert!(
            seen.iter().filter_map(is_down).all(|node| node == 4),
            "only the stalled one"
        );
        assert!(!cluster.agrees(), "it was given up");
        cluster.run_for(Duration::from_secs(1));
        let seen = cluster.run_for(Duration::from_secs(3));
        assert_eq!(seen.iter().filter_map(is_down).count(), 0);
        assert!(cluster.agrees(), "back within three seconds");
    }
}

#[test]
fn nodes_that_all_wait_for_a_processor_suspect_nobody_but_the_dead() {
    let mut cluster = Cluster::knit(20, 27, quiet());
    // A packet waits as well, for other parts of a node than this one.
    let latency = std::mem::replace(&mut cluster.network.latency, TURN..TURN * 15);
    let seen = take_turns(&mut cluster, TURN, Duration::from_secs(40));
    assert_eq!(seen.iter().filter_map(is_suspect).count(), 0);

    cluster.crash(7);
    let seen = take_turns(&mut cluster, TURN, Duration::from_secs(40));
    assert!(cluster.agrees(), "late or not, they find out");
    assert!(seen.iter().filter_map(is_suspect).all(|node| node == 7));

    cluster.network.latency = latency;
    cluster.crash(8);
    let seen = cluster.run_for(Duration::from_secs(7));
    assert!(cluster.agrees(), "and soon, once they are quick again");
    assert!(seen.iter().filter_map(is_suspect).all(|node| node == 8));
}

#[test]
fn nodes_that_are_a_little_late_find_a_crash_as_soon_as_others_and_later_ones_not_much_later() {
    for (turn, seconds) in [(TURN, 2), (TURN * 2, 6)] {
        for seed in 0..20 {
            let mut cluster = Cluster::knit(5, seed, quiet());
            take_turns(&mut cluster, turn, Duration::from_secs(1));
            cluster.crash(4);
            let seen = take_turns(&mut cluster, turn, Duration::from_secs(seconds));
            let mut suspects = seen.iter().filter_map(is_suspect);
            assert!(suspects.any(|node| node == 4), "turns of {turn:?}, seed {seed}");
        }
    }
}

/// What a node gets of its processor at a time.
const TURN: Duration = Duration::from_millis(20);

/// Halts each node but for its turn.
fn take_turns(cluster: &mut Cluster, turn: Duration, time: Duration) -> Vec<Seen> {
    let mut seen = Vec::new();
    let end = cluster.now() + time;
    let others = u32::try_from(cluster.len() - 1).unwrap();
    while cluster.now() < end {
        for node in 0..cluster.len() {
            cluster.stall(node, turn * others);
            seen.extend(cluster.run_for(turn));
        }
    }
    seen
}

#[test]
fn nodes_that_all_stood_still_go_on_as_if_nothing_had_been() {
    let mut cluster = Cluster::knit(20, 28, quiet());
    for _ in 0..20 {
        (0..20).for_each(|node| cluster.stall(node, Duration::from_secs(10)));
        let seen = cluster.run_for(Duration::from_secs(14));
        assert_eq!(seen.iter().filter_map(is_suspect).count(), 0);
        assert!(cluster.agrees());
    }
}

#[test]
fn a_suspect_has_its_time_to_speak_up_though_all_stood_still_meanwhile_and_were_late_before() {
    let mut cluster = Cluster::knit(20, 29, quiet());
    for _ in 0..5 {
        cluster.stall(4, Duration::from_secs(2));
        let seen = cluster.run_for(Duration::from_millis(1900));
        assert!(seen.iter().filter_map(is_suspect).any(|node| node == 4));
        for time in [Duration::from_millis(80), Duration::from_secs(10)] {
            (0..20).for_each(|node| cluster.stall(node, time));
            let seen = cluster.run_for(time + Duration::from_millis(1));
            assert_eq!(seen.iter().filter_map(is_down).count(), 0);
        }
        let seen = cluster.run_for(Duration::from_secs(6));
        assert_eq!(seen.iter().filter_map(is_down).count(), 0);
        assert!(cluster.agrees());
    }
}

#[test]
fn a_node_that_was_cut_off_does_not_talk_the_others_out_of_their_lives() {
    let mut cluster = Cluster::knit(6, 25, quiet());
    cluster.network.side = |node| usize::from(node == 5);
    cluster.run_for(Duration::from_mins(2));
    assert_eq!(cluster.alive_at(5), 0);
    assert_eq!(cluster.alive_at(0), 4);
    cluster.network.side = |_| 0;
    let seen = cluster.run_for(Duration::from_secs(6));
    assert!(cluster.agrees());
    assert!(
        seen.iter().all(|seen| is_down(seen).is_none()),
        "nobody else goes down for it"
    );
    let renewed: Vec<_> = seen
        .iter()
        .filter(|seen| matches!(seen.what, What::Renewed))
        .map(|seen| seen.node)
        .collect();
    assert!(renewed.iter().all(|node| *node == 5), "{renewed:?}");
}

#[test]
fn a_split_heals_without_anybody_going_down_for_it() {
    let mut cluster = Cluster::knit(10, 26, quiet());
    cluster.network.side = |node| node % 2;
    cluster.run_for(Duration::from_mins(1));
    cluster.network.side = |_| 0;
    let seen = cluster.run_for(Duration::from_secs(10));
    assert!(cluster.agrees());
    assert_eq!(seen.iter().filter_map(is_down).count(), 0);
}

#[test]
fn a_node_that_leaves_is_known_to_be_gone_at_once() {
    let mut cluster = Cluster::knit(10, 27, quiet());
    let now = cluster.now();
    cluster.with(3, |gossip| gossip.leave(now));
    assert_eq!(cluster.gossip(3).next_wake(), None);
    let mut missing = 9;
    let (time, _) = cluster.run_until(Duration::from_secs(5), |seen| {
        missing -= usize::from(is_down(seen) == Some(3));
        missing == 0
    });
    assert!(time.is_some_and(|time| time < Duration::from_secs(1)), "{time:?}");
}

#[test]
fn a_late_joiner_and_a_node_that_was_cut_off_learn_what_was_said_meanwhile() {
    let mut cluster = Cluster::knit(5, 28, quiet());
    cluster.crash(4);
    cluster.network.side = |node| usize::from(node == 3);
    cluster.publish(0, report(7));
    cluster.run_for(Duration::from_secs(30));
    cluster.network.side = |_| 0;
    cluster.start(4, &[1]);
    cluster.run_for(Duration::from_secs(10));
    for node in [3, 4] {
        let digests = cluster.gossip(node).digests(cluster.now());
        let [(digest, age)] = digests.as_slice() else {
            panic!("{node} has {digests:?}");
        };
        assert_eq!((digest.node.as_str(), digest.report.clones), ("node-000", 7));
        assert!(
            *age <= Duration::from_secs(10),
            "aged by its own clock, from when it heard"
        );
    }
}

#[test]
fn many_changes_are_said_once_a_period_and_a_drain_at_once() {
    let mut cluster = Cluster::knit(3, 29, quiet());
    let heard = |seen: &[Seen]| {
        let digests = seen.iter().filter(|seen| seen.node == 1);
        digests
            .filter_map(|seen| match &seen.what {
                What::Digest(_, digest) => Some(digest.clone()),
                What::Member(..) | What::Renewed | What::Conflict(_) => None,
            })
            .collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for clones in 0..50 {
        cluster.publish(0, report(clones));
        all.extend(heard(&cluster.run_for(Duration::from_millis(100))));
    }
    assert!((4..=6).contains(&all.len()), "{} digests in 5 s", all.len());
    assert!(all.is_sorted_by_key(|digest| digest.version()));
    cluster.run_for(Duration::from_secs(2));
    cluster.publish(
        0,
        NodeReport {
            flags: NodeFlags {
                draining: true,
                ..NodeFlags::default()
            },
            ..report(49)
        },
    );
    let drained = heard(&cluster.run_for(Duration::from_millis(50)));
    assert!(drained.last().is_some_and(|digest| digest.report.flags.draining));
}

#[test]
fn a_report_that_stays_the_same_is_said_once_and_known_for_days() {
    // Slow, for the sake of the test.
    let settings = Settings {
        probe_period: Duration::from_mins(1),
        gossip_period: Duration::from_mins(1),
        exchange_period: Duration::from_mins(1),
        ..Settings::default()
    };
    let mut cluster = Cluster::knit(3, 30, settings);
    let mut heard = 0;
    for _ in 0..25 * 60 {
        cluster.publish(0, report(1));
        let seen = cluster.run_for(Duration::from_mins(1));
        heard += seen
            .iter()
            .filter(|seen| matches!(seen.what, What::Digest(..)))
            .count();
    }
    assert_eq!(heard, 2, "by both others");
    for node in 0..3 {
        assert_eq!(cluster.gossip(node).digests(cluster.now()).len(), 1);
    }
}

#[test]
fn a_node_that_takes_no_figures_any_more_says_so() {
    let mut cluster = Cluster::knit(3, 31, Settings::default());
    for _ in 0..4 {
        cluster.publish(0, report(1));
        cluster.run_for(Duration::from_mins(1));
    }
    let says = |seen: &Seen, stale| matches!(&seen.what, What::Digest(0, digest) if digest.report.flags.stale == stale);
    let (time, _) = cluster.run_until(Duration::from_mins(1), |seen| says(seen, true));
    assert!(time.is_some_and(|time| time.as_secs() == 30), "{time:?}");
    cluster.run_for(Duration::from_secs(2));
    cluster.publish(0, report(1));
    let (time, _) = cluster.run_until(Duration::from_mins(1), |seen| says(seen, false));
    assert!(time.is_some_and(|time| time.as_millis() < 10), "{time:?}");
}
