//! What foca's codec and listener tell the machine around foca, which owns them and gives no way back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use foca::State;
use zdap_proto::digest::NodeDigest;
use zdap_proto::name::NodeName;

use super::digests::Digests;
use super::peer::Peer;

/// Shared by the three, who never run at the same time.
#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<Mutex<Overheard>>);

/// What came in with the packets.
#[derive(Debug)]
pub(super) struct Overheard {
    /// This node, as it is called now.
    pub(super) me: Peer,
    /// By whom the packet is that is being read.
    pub(super) sender: Option<NodeName>,
    /// Others think that it is down, and it has not come back yet.
    pub(super) is_given_up: bool,
    /// The time of the call that runs.
    pub(super) now: Instant,
    /// The newest of every node.
    pub(super) digests: Digests,
    /// Digests that were news, not yet told.
    pub(super) news: Vec<NodeDigest>,
    /// A generation of this node's digests that is not from this life of it.
    pub(super) ahead: Option<u64>,
    /// Others that go by this node's name.
    pub(super) sightings: Vec<Sighting>,
    /// The keys of members that were spoken of: what is known of them may have changed.
    pub(super) mentioned: Vec<u128>,
}

/// Somebody with this node's name.
#[derive(Debug, Clone)]
pub(super) struct Sighting {
    /// As it was called.
    pub(super) peer: Peer,
    /// What it was said to be.
    pub(super) state: State,
    /// It sent the packet itself.
    pub(super) is_sender: bool,
}

impl Shared {
    pub(super) fn new(me: Peer, now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Overheard {
            me,
            sender: None,
            is_given_up: false,
            now,
            digests: Digests::default(),
            news: Vec::new(),
            ahead: None,
            sightings: Vec::new(),
            mentioned: Vec::new(),
        })))
    }

    /// Never waits: only one of the three runs at a time.
    pub(super) fn lock(&self) -> MutexGuard<'_, Overheard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Overheard {
    /// Takes a digest from another node; returns whether it is news. Of itself only this node has news.
    pub(super) fn hear(&mut self, digest: &NodeDigest) -> bool {
        if digest.node == *self.me.name {
            let held = self.digests.get(&digest.node);
            if held.is_none_or(|held| digest.version() > held.version()) {
                self.ahead = self.ahead.max(Some(digest.generation));
            }
            return false;
        }
        let is_news = self.digests.merge(digest, self.now);
        if is_news {
            self.news.push(digest.clone());
        }
        is_news
    }

    /// Notes what is said of `peer` if it goes by this node's name; returns whether it would speak for it.
    pub(super) fn sight(&mut self, peer: &Peer, state: State, is_sender: bool) -> bool {
        let is_other = peer.name == self.me.name && *peer != self.me;
        if is_other {
            self.sightings.push(Sighting {
                peer: peer.clone(),
                state,
                is_sender,
            });
        }
        is_other && peer.wins(&self.me)
    }
}
