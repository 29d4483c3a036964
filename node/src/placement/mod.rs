//! Where a clone is made: which nodes may, in which order they are asked, and why the others may not. Pure.
//!
//! # The policy
//! 1. **Filter** ([`rank`]). A node is eligible if it answers, knows how it is, speaks the protocol, serves the resource,
//!    has the snapshot, is not drained, read-only or full, and has room: after the clone its pool is at most 85 % full, and
//!    memory for the clone and a twentieth of the machine's is left. Who names a node gets that one or none.
//! 2. **Freshness** is part of the filter, and never of the order. Who names a time gets a node that has precisely that
//!    snapshot. Else a node is eligible if its newest snapshot is at most one period of the resource's `cron` older than the
//!    newest on any node that answers. A node that is down keeps nobody from what the others have, and neither does one
//!    whose clock is fast: snapshots of the future do not count as the newest.
//! 3. **Order**: by [`Prediction::cost`], how busy the node would be with the clone, all that is promised counted: the
//!    reservations it has told of, what this node has placed there since, and what its last offer has shown that others have
//!    ([`Debits`]). Ties are random. A clone that waits there warm costs nothing.
//! 4. **Shortlist** ([`Ranking::shortlist`]): 3 random ones of the best max(5, N/4) of the N eligible; all if they are at
//!    most 5. What is known of others is always a little old, and if everybody went for the best, everybody would choose
//!    the same node.
//! 5. **Offers** ([`Choice`]): the 3 are asked in parallel how busy they would be, promises included, and half of the offers
//!    they have made to other nodes in the last moment: who asks at the same time may be about to come. A node makes one
//!    choice after the other, as long as none takes long.
//! 6. **Reservation** ([`crate::reserve`]): at the cheapest, which refuses if it has no room any more, or if it has come to
//!    cost more than the next best offer; where there is no other, more than 2 further clones would have made of its own. A
//!    refusal says what it costs now. After 3 tries any node with room will do, those that offered first, then the others in
//!    their order. If there is none, every node is named with its reason.

#![deny(clippy::disallowed_methods)]

mod choice;
mod debits;
mod reason;
mod share;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rand::Rng;
use rand::seq::SliceRandom;
use zdap_proto::digest::NodeReport;
use zdap_proto::name::{NodeName, SnapshotTime};

pub use self::choice::{Bid, Choice, Considered, Outcome};
pub use self::debits::Debits;
pub use self::reason::{FULLEST_POOL, Reason, obstacle};
pub use self::share::{Bottleneck, Demand, Prediction, Share, predict};
use crate::gossip::MemberState;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Only of this time; the newest when absent.
    pub snapshot: Option<SnapshotTime>,
    /// Only on this node.
    pub node: Option<NodeName>,
    /// How often the resource is restored: from one time of its `cron` to the next. A day when absent: what people restore
    /// by hand on several nodes is never of the same second.
    pub period: Option<Duration>,
    /// What the clone takes.
    pub clone: Demand,
    /// The time of day here.
    pub now: DateTime<Utc>,
}

/// What is known here of one node, this one included.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Its name.
    pub node: &'a NodeName,
    /// Whether it answers.
    pub state: MemberState,
    /// What it last said of itself: it stands until it says something else. Of this node what is true now, reservations
    /// filled in ([`crate::reserve::Reservations::report`]).
    pub report: Option<&'a NodeReport>,
    /// What it has of the resource.
    pub stock: Stock<'a>,
    /// What this node has placed there and the report does not contain ([`Debits::pending`]). Nothing for this node itself.
    pub debits: Demand,
    /// Whether a clone waits there for whoever asks next.
    pub has_warm: bool,
}

/// What a node has of a resource.
#[derive(Debug, Clone, Copy)]
pub enum Stock<'a> {
    /// Its catalog has not come yet.
    Unknown,
    /// It does not serve it.
    None,
    /// It serves it and has these snapshots, in any order.
    Snapshots(&'a [SnapshotTime]),
}

/// Every node that is known, as a place for one clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranking {
    /// Those that may make it, the best first.
    pub eligible: Vec<Ranked>,
    /// The others, in the order they were given.
    pub ineligible: Vec<Rejected>,
}

/// A node that may make the clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranked {
    /// Which.
    pub node: NodeName,
    /// How busy it would be with the clone.
    pub predicted: Prediction,
}

/// A node that may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Which.
    pub node: NodeName,
    /// How busy it would be, if that is known.
    pub predicted: Option<Prediction>,
    /// Why not.
    pub reason: Reason,
}

/// Returns which of the nodes may make the clone, the best first, and why the others may not.
pub fn rank<'a>(
    nodes: impl IntoIterator<Item = Known<'a>>,
    wish: &Wish,
    rng: &mut (impl Rng + ?Sized),
) -> Ranking {
    let nodes: Vec<Known<'a>> = nodes.into_iter().collect();
    let newest = nodes
        .iter()
        .filter(|known| known.answers())
        .flat_map(Known::snapshots)
        .filter(|snapshot| snapshot.time() <= wish.now + CLOCKS_DIFFER)
        .max()
        .copied();
    let mut eligible = Vec::new();
    let mut ineligible = Vec::new();
    for known in &nodes {
        let node = known.node.clone();
        let predicted = known.predict(wish);
        match (predicted, known.reason(wish, newest)) {
            (Some(predicted), None) => eligible.push((known.order(wish), Ranked { node, predicted })),
            (predicted, reason) => ineligible.push(Rejected {
                node,
                predicted,
                reason: reason.unwrap_or(Reason::Unheard),
            }),
        }
    }
    if let Some(pinned) = &wish.node
        && !nodes.iter().any(|known| known.node == pinned)
    {
        ineligible.push(Rejected {
            node: pinned.clone(),
            predicted: None,
            reason: Reason::NoSuchNode,
        });
    }
    eligible.shuffle(rng);
    eligible.sort_by_key(|(order, _)| *order);
    let eligible = eligible.into_iter().map(|(_, ranked)| ranked).collect();
    Ranking { eligible, ineligible }
}

impl Ranking {
    /// Returns how many are asked for offers, and whom, in random order: they stand first in the returned list of all
    /// that are eligible; behind them stand the others by rank.
    pub fn shortlist(&self, rng: &mut (impl Rng + ?Sized)) -> (usize, Vec<Ranked>) {
        let mut order = self.eligible.clone();
        let nodes = order.len();
        if nodes <= BEST_AT_LEAST {
            order.shuffle(rng);
            return (nodes, order);
        }
        let best = nodes.div_ceil(4).max(BEST_AT_LEAST);
        let mut places: Vec<usize> = (0..best).collect();
        places.shuffle(rng);
        places.truncate(ASKED);
        let asked: Vec<Ranked> = places.iter().map(|place| order[*place].clone()).collect();
        order.retain(|ranked| !asked.contains(ranked));
        (ASKED, [asked, order].concat())
    }
}

impl Known<'_> {
    fn answers(&self) -> bool {
        self.state == MemberState::Alive && self.report.is_some_and(|report| !report.flags.stale)
    }

    fn snapshots(&self) -> &[SnapshotTime] {
        match self.stock {
            Stock::Unknown | Stock::None => &[],
            Stock::Snapshots(snapshots) => snapshots,
        }
    }

    /// Returns what is promised there and not in its figures, as far as is known here. Of what others have reserved only the
    /// number is told; it counts as clones like the one that is asked for.
    fn promised(&self, report: &NodeReport, wish: &Wish) -> Demand {
        self.debits + wish.clone.times(report.reservations.into())
    }

    fn predict(&self, wish: &Wish) -> Option<Prediction> {
        let report = self.report?;
        let more = if self.has_warm { 0 } else { 1 };
        Some(predict(report, self.promised(report, wish), wish.clone, more))
    }

    fn order(&self, wish: &Wish) -> Share {
        let predicted = self.predict(wish);
        predicted.map_or(Share(u32::MAX), |predicted| predicted.cost())
    }

    fn reason(&self, wish: &Wish, newest: Option<SnapshotTime>) -> Option<Reason> {
        if wish.node.as_ref().is_some_and(|pinned| pinned != self.node) {
            return Some(Reason::NotPinned);
        }
        match self.state {
            MemberState::Alive => {}
            MemberState::Suspect => return Some(Reason::Suspect),
            MemberState::Down => return Some(Reason::Down),
        }
        let Some(report) = self.report else {
            return Some(Reason::Unheard);
        };
        if report.protocol < OLDEST_PROTOCOL {
            let protocol = report.protocol;
            return Some(Reason::Incompatible { protocol });
        }
        self.shortage(wish, newest).or_else(|| {
            let clone = if self.has_warm {
                Demand::default()
            } else {
                wish.clone
            };
            obstacle(report, self.promised(report, wish), clone)
        })
    }

    /// Returns why it does not have the snapshot that is needed.
    fn shortage(&self, wish: &Wish, elsewhere: Option<SnapshotTime>) -> Option<Reason> {
        let snapshots = match self.stock {
            Stock::Unknown => return Some(Reason::Uncharted),
            Stock::None => return Some(Reason::NoResource),
            Stock::Snapshots(snapshots) => snapshots,
        };
        if let Some(wanted) = wish.snapshot {
            let has_it = snapshots.contains(&wanted);
            return (!has_it).then_some(Reason::NoSuchSnapshot { wanted });
        }
        let Some(newest) = snapshots.iter().max().copied() else {
            return Some(Reason::NoSnapshot);
        };
        let elsewhere = elsewhere.unwrap_or(newest);
        let behind = elsewhere.time() - newest.time();
        let period = TimeDelta::from_std(wish.period.unwrap_or(USUAL_PERIOD)).unwrap_or(TimeDelta::MAX);
        (behind > period).then_some(Reason::TooOld { newest, elsewhere })
    }
}

/// Nobody is asked for more offers. A fourth would gain a hundredth of balance, for a third more messages.
const ASKED: usize = 3;

/// Of so many the offers are asked at least: with fewer, those who ask at the same time would ask the same.
const BEST_AT_LEAST: usize = 5;

/// The usual `cron` of a resource is once a night.
const USUAL_PERIOD: Duration = Duration::from_hours(24);

/// A snapshot that is later than this node's clock by more was not taken then.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::minutes(5);

/// The first version that knows reservations.
const OLDEST_PROTOCOL: u16 = 1;

#[cfg(test)]
mod tests;
