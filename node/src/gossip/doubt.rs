//! Members whose life is in question and who are asked themselves: suspects, and those that are alive here and given up
//! elsewhere, after a split, or because this node has missed the news.
//!
//! That one is down is for ever, under its epoch: to believe it would take a healthy node out of this side of a split too,
//! and not to believe it would leave the two views apart. So the member itself is asked. If it is well it comes back under
//! a higher epoch, which all sides believe; if it does not within the time that a suspect has, it is down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use foca::{Incarnation, State};

use super::packet::GreetingKind;
use super::settings::suspicion;
use super::{Gossip, Peer};

/// A member that is asked.
#[derive(Debug)]
pub(super) struct Doubt {
    peer: Peer,
    until: Instant,
}

impl Doubt {
    /// Gives it longer to answer.
    pub(super) fn put_off(&mut self, by: Duration) {
        self.until += by;
    }
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

    /// Asks a member that did not answer a probe. That it is suspected comes round to it, and its answer back, by chance; where
    /// packets are lost, asking it straight away and again and again is what saves the healthy.
    pub(super) fn ask_suspect(&mut self, peer: &Peer, incarnation: Incarnation, now: Instant) {
        let suspect = foca::Member::new(peer.clone(), incarnation, State::Suspect);
        self.suspects.insert(Arc::clone(&peer.name), suspect);
        self.next.doubt.get_or_insert(now + ASK_PERIOD);
        let you = peer.clone();
        self.greet(peer.address, GreetingKind::Suspected { you, incarnation });
    }

    /// Tells whoever suspects this node that it is well, and others with it.
    pub(super) fn refute(&mut self, from: Peer, incarnation: Incarnation) {
        let suspected = foca::Member::new(self.me.clone(), incarnation, State::Suspect);
        let told = self
            .foca
            .apply_many(std::iter::once(suspected), true, &mut self.outbox)
            .and_then(|()| self.foca.announce(from, &mut self.outbox));
        if let Err(error) = told {
            tracing::debug!(%error, "refute a suspicion");
        }
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
        let mut suspects = std::mem::take(&mut self.suspects);
        suspects.retain(|_, suspect| self.foca.iter_members().any(|member| member == suspect));
        for suspect in suspects.values() {
            let you = suspect.id().clone();
            let incarnation = suspect.incarnation();
            self.greet(you.address, GreetingKind::Suspected { you, incarnation });
        }
        self.suspects = suspects;
        if !(open.is_empty() && self.suspects.is_empty()) {
            self.next.doubt = Some(now + ASK_PERIOD);
        }
        self.doubts = open.into_iter().collect();
    }
}

/// Packets may be lost.
const ASK_PERIOD: Duration = Duration::from_secs(1);
