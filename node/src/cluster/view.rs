//! What a node believes of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;
use zdap_proto::digest::NodeDigest;
use zdap_proto::name::NodeName;

use crate::catalog::{Catalog, Life};
use crate::gossip::{Member, MemberState};

/// What a node believes of the cluster.
#[derive(Debug, Clone)]
pub struct View {
    /// Who believes it.
    pub me: NodeName,
    /// All nodes that were ever known, this one included: what a node has stays, however long it is down. Only one that had
    /// nothing when it left is forgotten, and one of which somebody says that it is gone for good.
    pub members: BTreeMap<NodeName, Seen>,
}

/// A node as it is seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Where its packets go.
    pub address: SocketAddr,
    /// How it is.
    pub state: MemberState,
    /// Its life; it grows when the node starts, and when it was given up and came back.
    pub epoch: u64,
    /// Whether something was heard of it in this node's own life.
    pub is_met: bool,
    /// The newest digest that was heard.
    pub digest: Option<Heard>,
    /// What it last told of itself, as far as it has come.
    pub catalog: Option<Arc<Catalog>>,
}

/// A digest, and when it came by this machine's clock.
#[derive(Debug, Clone)]
pub struct Heard {
    /// It.
    pub digest: NodeDigest,
    /// When it came; of this node itself, when it was last looked at.
    pub at: Instant,
}

impl Seen {
    /// Returns where clients and nodes connect, `host:port`, as the node itself says.
    pub fn host_port(&self) -> String {
        match &self.catalog {
            Some(catalog) => catalog.facts.address.clone(),
            None => self.address.to_string(),
        }
    }

    /// A node that was met in an earlier life of this one.
    pub(super) fn before(address: SocketAddr, epoch: u64) -> Self {
        Self {
            is_met: false,
            ..Self::met(address, MemberState::Down, epoch)
        }
    }

    /// One that this life has heard of, and nothing of what it has.
    pub(crate) fn met(address: SocketAddr, state: MemberState, epoch: u64) -> Self {
        Self {
            address,
            state,
            epoch,
            is_met: true,
            digest: None,
            catalog: None,
        }
    }

    /// Whether it took no more clones and had none left when it was last heard of: it was stopped, or emptied.
    fn was_emptied(&self) -> bool {
        let report = self.digest.as_ref().map(|heard| &heard.digest.report);
        report.is_some_and(|report| report.flags.draining && report.clones == 0)
    }

    /// Whether its digest tells of a catalog that is not held.
    pub(super) fn is_stale(&self) -> bool {
        let wanted = self.digest.as_ref().map(|heard| &heard.digest.report);
        let held = self.catalog.as_ref().map(|catalog| catalog.hash);
        wanted.is_some_and(|report| report.catalog_version > 0 && Some(report.catalog_hash) != held)
    }
}

impl View {
    /// Returns whether the member is new. One that is down and forgotten is none.
    pub(super) fn note(&mut self, member: Member, forgotten: &BTreeSet<Life>) -> bool {
        let Member {
            name,
            address,
            state,
            epoch,
            ..
        } = member;
        if state == MemberState::Down && forgotten.iter().any(|life| life.covers(&name, epoch)) {
            self.members.remove(&name);
            return false;
        }
        match self.members.get_mut(&name) {
            Some(seen) => {
                (seen.address, seen.state, seen.epoch) = (address, state, epoch);
                seen.is_met = true;
                false
            }
            None => {
                self.members.insert(name, Seen::met(address, state, epoch));
                true
            }
        }
    }

    /// Notes that the gossip knows a member no more: it has been down for a day, or whoever knew it was lost.
    pub(super) fn forget(&mut self, name: &NodeName) {
        match self.members.get_mut(name) {
            Some(seen) if seen.was_emptied() => drop(self.members.remove(name)),
            Some(seen) => seen.state = MemberState::Down,
            None => {}
        }
    }

    /// Forgets of these nodes those that are down.
    pub(super) fn lose(&mut self, lives: &BTreeSet<Life>) {
        self.members.retain(|name, seen| {
            seen.state != MemberState::Down || !lives.iter().any(|life| life.covers(name, seen.epoch))
        });
    }

    /// What a node says before it is a member is found when it is one.
    pub(super) fn overhear(&mut self, digest: NodeDigest, at: Instant) {
        if let Some(seen) = self.members.get_mut(&digest.node) {
            seen.digest = Some(Heard { digest, at });
        }
    }
}

#[cfg(test)]
mod tests {
    use zdap_proto::digest::{NodeFlags, NodeReport};

    use super::*;

    #[test]
    fn a_node_is_forgotten_only_if_it_had_nothing_when_it_left() {
        let after = |draining, clones| {
            let mut view = View {
                me: "a".parse().unwrap(),
                members: BTreeMap::new(),
            };
            let name: NodeName = "b".parse().unwrap();
            let mut seen = Seen::before("10.0.0.2:43210".parse().unwrap(), 1);
            let flags = NodeFlags {
                draining,
                ..NodeFlags::default()
            };
            let report = NodeReport {
                clones,
                flags,
                ..NodeReport::default()
            };
            let digest = NodeDigest {
                node: name.clone(),
                generation: 1,
                sequence: 1,
                report,
            };
            seen.digest = Some(Heard {
                digest,
                at: Instant::now(),
            });
            view.members.insert(name.clone(), seen);
            view.forget(&name);
            view.members.get(&name).map(|seen| seen.state)
        };
        assert_eq!(after(true, 0), None);
        assert_eq!(after(true, 1), Some(MemberState::Down));
        assert_eq!(after(false, 0), Some(MemberState::Down));
    }
}
