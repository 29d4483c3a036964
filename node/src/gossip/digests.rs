//! The newest digest of every node, and what foca asks of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use foca::{BroadcastHandler, Invalidates};
use zdap_proto::digest::{DigestError, NodeDigest};
use zdap_proto::name::NodeName;

use super::peer::{FNV_BASIS, Peer, fnv};
use super::shared::Shared;

/// How long the last digest of a node that is gone is kept.
pub(super) const KEPT: Duration = Duration::from_hours(24);

/// More nodes than any cluster has; beyond it, new names are not stored.
const CAP: usize = 4096;

/// The newest digest of every node. Ages are by the local clock: no two nodes' clocks are ever compared.
#[derive(Debug, Default)]
pub(super) struct Digests {
    held: BTreeMap<NodeName, Held>,
}

#[derive(Debug)]
struct Held {
    digest: NodeDigest,
    received: Instant,
}

impl Digests {
    /// Keeps `digest` if it is the newest of its node; returns whether it is.
    pub(super) fn merge(&mut self, digest: &NodeDigest, now: Instant) -> bool {
        let is_news = match self.held.get(&digest.node) {
            Some(held) => digest.version() > held.digest.version(),
            None => self.held.len() < CAP,
        };
        if is_news {
            let held = Held {
                digest: digest.clone(),
                received: now,
            };
            self.held.insert(digest.node.clone(), held);
        }
        is_news
    }

    /// Returns the newest of `node`.
    pub(super) fn get(&self, node: &NodeName) -> Option<&NodeDigest> {
        self.held.get(node).map(|held| &held.digest)
    }

    /// Forgets what is older than [`KEPT`], of nodes that are not known any more.
    pub(super) fn expire(&mut self, now: Instant, is_known: impl Fn(&NodeName) -> bool) {
        self.held
            .retain(|node, held| is_known(node) || now.saturating_duration_since(held.received) < KEPT);
    }

    /// Returns all, by name, each with its age.
    pub(super) fn iter(&self, now: Instant) -> impl Iterator<Item = (&NodeDigest, Duration)> {
        self.held
            .values()
            .map(move |held| (&held.digest, now.saturating_duration_since(held.received)))
    }

    /// Returns a number that two tables share if they hold the same versions.
    pub(super) fn fingerprint(&self) -> u64 {
        self.held.values().fold(0, |sum, held| {
            let (generation, sequence) = held.digest.version();
            let name = fnv(FNV_BASIS, held.digest.node.as_str().as_bytes());
            sum ^ fnv(fnv(name, &generation.to_le_bytes()), &sequence.to_le_bytes())
        })
    }
}

/// A newer digest of a node replaces what waits to be passed on.
pub(super) struct DigestKey(NodeName);

impl Invalidates for DigestKey {
    fn invalidates(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// Receives digests from foca: what is news here is passed on.
pub(super) struct Listener(pub(super) Shared);

impl BroadcastHandler<Peer> for Listener {
    type Key = DigestKey;
    type Error = DigestError;

    fn receive_item(&mut self, data: &[u8], sender: Option<&Peer>) -> Result<Option<DigestKey>, DigestError> {
        let digest = NodeDigest::decode(data)?;
        let is_news = match sender {
            Some(_) => self.0.lock().hear(&digest),
            None => true,
        };
        Ok(is_news.then_some(DigestKey(digest.node)))
    }
}
