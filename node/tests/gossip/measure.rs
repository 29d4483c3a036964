//! The figures a cluster is judged by. All times are virtual, and the same for the same seed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zdap_node::gossip::{MemberState, Settings};
use zdap_proto::digest::NodeReport;

use super::cluster::{Cluster, Seen, What};

/// Times, and how often the thing did not happen in the time given for it.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    /// Those that were taken.
    pub(crate) times: Vec<Duration>,
    /// Those that took too long.
    pub(crate) missed: usize,
}

impl Samples {
    fn add(&mut self, time: Option<Duration>) {
        match time {
            Some(time) => self.times.push(time),
            None => self.missed += 1,
        }
    }

    /// Returns the time within which so many of a hundred happened; none if that many did not.
    pub(crate) fn percentile(&self, of_hundred: usize) -> Option<Duration> {
        let mut times = self.times.clone();
        times.sort_unstable();
        let total = times.len() + self.missed;
        let rank = (total * of_hundred).div_ceil(100).max(1);
        times.get(rank - 1).copied()
    }

    /// Returns the time that 95 of a hundred were within, in seconds; infinite if fewer happened.
    pub(crate) fn p95(&self) -> f64 {
        self.percentile(95)
            .map_or(f64::INFINITY, |time| time.as_secs_f64())
    }
}

/// How a lone update fares in a quiet cluster.
#[derive(Debug)]
pub(crate) struct Spread {
    /// Until the last node had it.
    pub(crate) to_all: Samples,
    /// Bytes on the wire, sent by each node for each update.
    pub(crate) bytes: f64,
    /// Length of the digest.
    pub(crate) digest_bytes: usize,
}

/// Has one node after the other say something.
pub(crate) fn spread(nodes: usize, updates: usize, seed: u64) -> Spread {
    let mut cluster = Cluster::knit(nodes, seed, quiet());
    let window = Duration::from_secs(if nodes < 1000 { 4 } else { 2 });
    let before = cluster.bytes();
    cluster.run_for(window * 5);
    let idle = (cluster.bytes().0 - before.0) / 5;
    let mut to_all = Samples::default();
    let (mut bytes, mut digest_bytes) = (0, 0);
    for update in 0..updates {
        let publisher = update * 7 % nodes;
        let clones = u16::try_from(update + 1).unwrap();
        let before = cluster.bytes();
        let began = cluster.now();
        let mut missing = nodes - 1;
        cluster.publish(publisher, report(clones));
        let (time, seen) = cluster.run_until(window, |seen| {
            let What::Digest(node, digest) = &seen.what else {
                return false;
            };
            missing -= usize::from(*node == publisher && digest.report.clones == clones);
            missing == 0
        });
        to_all.add(time);
        digest_bytes = seen
            .iter()
            .find_map(|seen| match &seen.what {
                What::Digest(_, digest) => Some(digest.encode().len()),
                What::Member(..) | What::Renewed | What::Conflict(_) => None,
            })
            .unwrap_or(digest_bytes);
        cluster.run_for(window - (cluster.now() - began));
        bytes += (cluster.bytes().0 - before.0).saturating_sub(idle);
    }
    Spread {
        to_all,
        bytes: bytes as f64 / (updates * nodes) as f64,
        digest_bytes,
    }
}

/// How a crash is noticed.
#[derive(Debug, Default)]
pub(crate) struct Crashes {
    /// Until the first node suspects.
    pub(crate) first_suspect: Samples,
    /// Until the last node knows it is down.
    pub(crate) all_know: Samples,
}

/// Crashes one node after the other. Where there are plenty, the next goes before the last is given up; where there are few,
/// each is started again first.
pub(crate) fn crashes(nodes: usize, count: usize, seed: u64) -> Crashes {
    let mut cluster = Cluster::knit(nodes, seed, quiet());
    let mut rng = StdRng::seed_from_u64(seed);
    let mut crashes = Crashes::default();
    let is_plenty = nodes > 10 * count;
    let mut crashed = Vec::new();
    let mut seen = Vec::new();
    for crash in 0..count {
        let victim = crash % nodes;
        // At no particular moment of anybody's period.
        let pause = rng.random_range(Duration::from_secs(1)..Duration::from_secs(3));
        seen.extend(cluster.run_for(pause));
        cluster.crash(victim);
        crashed.push((victim, cluster.now()));
        if !is_plenty {
            seen.extend(cluster.run_for(Duration::from_secs(20)));
            crashes.add(
                &cluster,
                &std::mem::take(&mut crashed),
                &std::mem::take(&mut seen),
            );
            let everybody: Vec<_> = (0..nodes).filter(|node| *node != victim).collect();
            cluster.start(victim, &everybody);
            assert!(
                cluster.run_until_agreed(Duration::from_secs(60)).is_some(),
                "back again"
            );
        }
    }
    seen.extend(cluster.run_for(Duration::from_secs(30)));
    crashes.add(&cluster, &crashed, &seen);
    crashes
}

impl Crashes {
    /// Reads from what was seen how each crash was noticed by those that are still up.
    fn add(&mut self, cluster: &Cluster, crashed: &[(usize, Instant)], seen: &[Seen]) {
        let noticing = cluster.up().count();
        for (victim, at) in crashed {
            let mut suspected = None;
            let mut known = BTreeMap::new();
            for seen in seen {
                if let What::Member(node, member) = &seen.what
                    && node == victim
                    && seen.at >= *at
                    && cluster.is_up(seen.node)
                    && member.state != MemberState::Alive
                {
                    let after = seen.at - *at;
                    suspected.get_or_insert(after);
                    if member.state == MemberState::Down {
                        known.entry(seen.node).or_insert(after);
                    }
                }
            }
            self.first_suspect.add(suspected);
            let last = known.values().copied().max();
            self.all_know.add(last.filter(|_| known.len() == noticing));
        }
    }
}

/// How long a node that knows one address takes to know all, and all to know it.
#[derive(Debug, Default)]
pub(crate) struct Joins {
    /// Until it knows all.
    pub(crate) knows_all: Samples,
    /// Until all know it.
    pub(crate) known_by_all: Samples,
}

/// Has one node join, `count` times, each time at another member.
pub(crate) fn joins(nodes: usize, count: usize, seed: u64) -> Joins {
    let mut joins = Joins::default();
    let mut cluster = Cluster::knit(nodes, seed, quiet());
    let joiner = nodes - 1;
    for join in 0..count {
        cluster.crash(joiner);
        cluster.run_for(Duration::from_secs(20));
        cluster.start(joiner, &[join % joiner]);
        let began = cluster.now();
        let (mut known, mut knowing) = (nodes - 1, nodes - 1);
        let mut knows_all = None;
        let (known_by_all, _) = cluster.run_until(Duration::from_secs(30), |seen| {
            let What::Member(node, member) = &seen.what else {
                return false;
            };
            if member.state == MemberState::Alive {
                if seen.node == joiner {
                    known -= 1;
                    if known == 0 {
                        knows_all = Some(seen.at - began);
                    }
                }
                knowing -= usize::from(*node == joiner);
            }
            knowing == 0 && known == 0
        });
        joins.knows_all.add(knows_all);
        joins.known_by_all.add(known_by_all);
    }
    joins
}

/// Counts how often a node that is well was given up, with packets lost; an episode that many nodes see is one.
pub(crate) fn false_downs(nodes: usize, loss: f64, time: Duration, seed: u64) -> usize {
    let mut cluster = Cluster::knit(nodes, seed, quiet());
    cluster.network.loss = loss;
    let seen = cluster.run_for(time);
    let mut episodes: Vec<_> = seen
        .iter()
        .filter_map(|seen| match &seen.what {
            What::Member(node, member) if member.state == MemberState::Down => Some((*node, member.epoch)),
            What::Member(..) | What::Digest(..) | What::Renewed | What::Conflict(_) => None,
        })
        .collect();
    episodes.sort_unstable();
    episodes.dedup();
    episodes.len()
}

/// Splits a cluster in two for a time; returns how long after the end of it all agree again.
pub(crate) fn heal(nodes: usize, split: Duration, seeds: std::ops::Range<u64>) -> Samples {
    let mut samples = Samples::default();
    for seed in seeds {
        let mut cluster = Cluster::knit(nodes, seed, quiet());
        cluster.network.side = |node| node % 2;
        cluster.run_for(split);
        assert!(!cluster.agrees(), "a split that nobody noticed");
        cluster.network.side = |_| 0;
        samples.add(cluster.run_until_agreed(Duration::from_secs(120)));
    }
    samples
}

/// Bytes a second that each node sends.
#[derive(Debug)]
pub(crate) struct Idle {
    /// In packets.
    pub(crate) packets: f64,
    /// On streams, in exchanges.
    pub(crate) streams: f64,
    /// QUIC's acknowledgements of the packets.
    pub(crate) acknowledgements: f64,
}

/// Watches a cluster in which nothing happens: every node has said how it is, and takes its figures every 10 s.
pub(crate) fn idle(nodes: usize, time: Duration, seed: u64) -> Idle {
    let mut cluster = Cluster::knit(nodes, seed, Settings::default());
    for node in 0..nodes {
        cluster.publish(node, report(1));
    }
    cluster.run_for(Duration::from_secs(30));
    let before = (cluster.bytes(), cluster.acknowledgement_bytes());
    let end = cluster.now() + time;
    while cluster.now() < end {
        for node in 0..nodes {
            cluster.publish(node, report(1));
        }
        cluster.run_for(Duration::from_secs(10).min(end - cluster.now()));
    }
    let after = (cluster.bytes(), cluster.acknowledgement_bytes());
    let each = |bytes: u64| bytes as f64 / nodes as f64 / time.as_secs_f64();
    Idle {
        packets: each(after.0.0 - before.0.0),
        streams: each(after.0.1 - before.0.1),
        acknowledgements: each(after.1 - before.1),
    }
}

/// Settings with which a node that said something need not be told again that it is so.
pub(crate) fn quiet() -> Settings {
    Settings {
        stale_after: Duration::from_hours(10),
        ..Settings::default()
    }
}

/// A usual report.
pub(crate) fn report(clones: u16) -> NodeReport {
    NodeReport {
        pool_free_mib: 1_500_000,
        pool_total_mib: 2_000_000,
        memory_free_mib: 48_000,
        memory_total_mib: 64_000,
        load_percent: 35,
        clones,
        reservations: 1,
        catalog_version: 300,
        catalog_hash: [0xab; 8],
        protocol: 1,
        software: [0, 1, 0],
        ..NodeReport::default()
    }
}
