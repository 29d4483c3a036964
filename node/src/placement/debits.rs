//! What others hold and have not yet told of in their digests, as far as this node has seen it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use zdap_proto::digest::NodeDigest;
use zdap_proto::name::NodeName;

use super::Demand;
use crate::reserve::Offered;

/// What is placed on other nodes and not in their digests: by this node, and by others as an offer has shown.
///
/// Each entry dies when a digest of the node is newer than the one that was its newest at the time, or after 30 s, when a
/// clone that was never made is not worth remembering either. A node's digests must have its promises in them: the one
/// that is published next after a promise counts it.
#[derive(Debug, Default)]
pub struct Debits {
    placed: BTreeMap<NodeName, Vec<Debit>>,
    offered: BTreeMap<NodeName, Heard>,
}

/// A clone that this node has placed.
#[derive(Debug)]
struct Debit {
    demand: Demand,
    seen: Seen,
}

/// How many clones a node had, promised ones included, when it made an offer; promises to this node from before are in it.
#[derive(Debug)]
struct Heard {
    taken: u32,
    clone: Demand,
    seen: Seen,
}

/// When, and what the newest digest of the node was then: generation and sequence.
#[derive(Debug, Clone, Copy)]
struct Seen {
    version: (u64, u32),
    at: Instant,
}

impl Debits {
    /// Notes a place that `node` has promised. `version` is that of the newest digest it had published
    /// ([`NodeDigest::version`]), as it said with its promise.
    pub fn note(&mut self, node: &NodeName, demand: Demand, version: (u64, u32), now: Instant) {
        let seen = Seen { version, at: now };
        let debits = self.placed.entry(node.clone()).or_default();
        debits.retain(|debit| debit.seen.is_young(now));
        debits.push(Debit { demand, seen });
    }

    /// Notes what `node` has offered for `clone`, or said when it refused one; `version` as in [`Self::note`].
    pub fn learn(
        &mut self,
        node: &NodeName,
        offered: Offered,
        clone: Demand,
        version: (u64, u32),
        now: Instant,
    ) {
        let heard = Heard {
            taken: offered.taken,
            clone,
            seen: Seen { version, at: now },
        };
        self.offered.insert(node.clone(), heard);
    }

    /// Returns what is placed on a node and not in `digest`, the newest of it that is known here.
    pub fn pending(&self, digest: &NodeDigest, now: Instant) -> Demand {
        let version = digest.version();
        let offered = self.offered.get(&digest.node);
        let offered = offered.filter(|heard| heard.seen.is_live(version, now));
        let debits = self.placed.get(&digest.node).into_iter().flatten();
        let placed: Demand = debits
            .filter(|debit| debit.seen.is_live(version, now))
            .filter(|debit| offered.is_none_or(|heard| heard.seen.at < debit.seen.at))
            .map(|debit| debit.demand)
            .sum();
        let told = u32::from(digest.report.clones) + u32::from(digest.report.reservations);
        let beyond = |heard: &Heard| heard.clone.times(heard.taken.saturating_sub(told));
        placed + offered.map(beyond).unwrap_or_default()
    }

    /// Forgets what `digest` has shown to be told.
    pub fn heard(&mut self, digest: &NodeDigest, now: Instant) {
        let version = digest.version();
        if let Some(debits) = self.placed.get_mut(&digest.node) {
            debits.retain(|debit| debit.seen.is_live(version, now));
        }
        self.placed.retain(|_, debits| !debits.is_empty());
        self.offered
            .retain(|node, heard| *node != digest.node || heard.seen.is_live(version, now));
    }
}

impl Seen {
    fn is_live(self, newest: (u64, u32), now: Instant) -> bool {
        newest <= self.version && self.is_young(now)
    }

    fn is_young(self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < LONGEST
    }
}

/// As long as a reservation that nobody takes.
const LONGEST: Duration = crate::reserve::TTL;
