//! Members that are alive here and given up elsewhere: after a split, or because this node has missed the news.
//!
//! That one is down is for ever, under its epoch: to believe it would take a healthy node out of this side of a split too,
//! and not to believe it would leave the two views apart. So the member itself is asked. If it is well it comes back under
//! a higher epoch, which all sides believe; if it does not within the time that a suspect has, it is down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::packet::GreetingKind;
use super::settings::suspicion;
use super::{Gossip, Peer};

/// A member that is asked.
#[derive(Debug)]
pub(super) struct Doubt {
    peer: Peer,
    until: Instant,
}

impl Gossip {
    /// Asks a member that another node has given up.
    pub(super) fn doubt(&mut self, peer: &Peer, now: Instant) {
        if self
            .doubts
            .get(&peer.name)
            .is_some_and(|doubt| doubt.peer == *peer)
        {
            return;
        }
        let doubt = Doubt {
            peer: peer.clone(),
            until: now + suspicion(self.sized_for),
        };
        self.doubts.insert(Arc::clone(&peer.name), doubt);
        self.next.doubt.get_or_insert(now + ASK_PERIOD);
        self.greet(peer.address, GreetingKind::GivenUp { you: peer.clone() });
    }

    /// Asks those again that have not answered, or gives them up.
    pub(super) fn follow_doubts(&mut self, now: Instant) {
        let mut doubts = std::mem::take(&mut self.doubts);
        doubts.retain(|_, doubt| self.is_active(&doubt.peer));
        let (over, open): (Vec<_>, Vec<_>) = doubts.into_iter().partition(|(_, doubt)| doubt.until <= now);
        for (_, doubt) in &open {
            let you = doubt.peer.clone();
            self.greet(doubt.peer.address, GreetingKind::GivenUp { you });
        }
        let down = over.into_iter().map(|(_, doubt)| foca::Member::down(doubt.peer));
        if let Err(error) = self.foca.apply_many(down, true, &mut self.outbox) {
            tracing::debug!(%error, "give up members");
        }
        if !open.is_empty() {
            self.next.doubt = Some(now + ASK_PERIOD);
        }
        self.doubts = open.into_iter().collect();
    }
}

/// Packets may be lost.
const ASK_PERIOD: Duration = Duration::from_secs(1);
