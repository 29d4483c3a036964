//! What this node has placed on others and they have not yet told of.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use zdap_proto::name::NodeName;

use super::Demand;

/// What this node has placed on others, until their digests contain it.
///
/// A debit dies when a digest of the node is newer than the one that was its newest when it promised the place, or after
/// 30 s, when a clone that was never made is not worth remembering either.
#[derive(Debug, Default)]
pub struct Debits {
    by_node: BTreeMap<NodeName, Vec<Debit>>,
}

#[derive(Debug)]
struct Debit {
    demand: Demand,
    /// The newest digest of the node when it promised: generation and sequence.
    version: (u64, u32),
    at: Instant,
}

impl Debits {
    /// Notes a place that `node` has promised, when the newest digest it had published was of `version`
    /// ([`zdap_proto::digest::NodeDigest::version`]).
    pub fn note(&mut self, node: &NodeName, demand: Demand, version: (u64, u32), now: Instant) {
        let debits = self.by_node.entry(node.clone()).or_default();
        debits.retain(|debit| debit.is_live(None, now));
        debits.push(Debit {
            demand,
            version,
            at: now,
        });
    }

    /// Returns what is placed on `node` and not in its digest of the version `heard`, the newest that is known here.
    pub fn pending(&self, node: &NodeName, heard: Option<(u64, u32)>, now: Instant) -> Demand {
        let debits = self.by_node.get(node).into_iter().flatten();
        debits
            .filter(|debit| debit.is_live(heard, now))
            .map(|debit| debit.demand)
            .sum()
    }

    /// Forgets what a digest of `node` has shown to be told.
    pub fn heard(&mut self, node: &NodeName, version: (u64, u32), now: Instant) {
        if let Some(debits) = self.by_node.get_mut(node) {
            debits.retain(|debit| debit.is_live(Some(version), now));
            if debits.is_empty() {
                self.by_node.remove(node);
            }
        }
    }
}

impl Debit {
    fn is_live(&self, heard: Option<(u64, u32)>, now: Instant) -> bool {
        heard.is_none_or(|heard| heard <= self.version) && now.saturating_duration_since(self.at) < LONGEST
    }
}

/// As long as a reservation that nobody takes.
const LONGEST: Duration = crate::reserve::TTL;
