//! What foca knows of the members, as it is told to others: a mirror, since foca does not say when it suspects one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foca::State;
use zdap_proto::name::NodeName;

use super::peer::Peer;

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// Where it is reached.
    pub address: SocketAddr,
    /// How it is.
    pub state: MemberState,
    /// Its life; it grows when it starts, and when it was given up and came back.
    pub epoch: u64,
    /// How long it has been in this state, by the local clock.
    pub age: Duration,
}

/// How a node is, as far as is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It did not answer, and has a few seconds to speak up. Place nothing there.
    Suspect,
    /// It has left or is given up. Place nothing there; what it holds stays.
    Down,
}

impl From<State> for MemberState {
    fn from(state: State) -> Self {
        match state {
            State::Alive => Self::Alive,
            State::Suspect => Self::Suspect,
            State::Down => Self::Down,
        }
    }
}

/// What is new of a member.
pub(super) struct Change {
    /// As it is now.
    pub(super) member: Member,
    /// It has come or gone, rather than been suspected or cleared.
    pub(super) is_lasting: bool,
}

/// A member that is known no more.
pub(super) struct Forgotten {
    /// Its name.
    pub(super) name: NodeName,
    /// Where it was.
    pub(super) address: SocketAddr,
}

/// The members by name.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    known: BTreeMap<Arc<NodeName>, Known>,
}

#[derive(Debug)]
struct Known {
    peer: Peer,
    state: MemberState,
    since: Instant,
}

impl Mirror {
    /// Takes over what foca knows of one member; returns what that changed.
    pub(super) fn note(&mut self, member: &foca::Member<Peer>, now: Instant) -> Option<Change> {
        let state = member.state().into();
        let peer = member.id();
        let before = self.known.get(&peer.name);
        if before.is_some_and(|known| known.peer == *peer && known.state == state) {
            return None;
        }
        let known = Known {
            peer: peer.clone(),
            state,
            since: match before {
                Some(known) if known.state == state => known.since,
                Some(_) | None => now,
            },
        };
        let change = Change {
            member: known.view(now),
            is_lasting: state == MemberState::Down || before.is_none_or(|known| known.peer != *peer),
        };
        self.known.insert(Arc::clone(&peer.name), known);
        Some(change)
    }

    /// Returns how `name` is, if it is known.
    pub(super) fn state(&self, name: &NodeName) -> Option<MemberState> {
        self.known.get(name).map(|known| known.state)
    }

    /// Returns where `name` is reached, if it is known.
    pub(super) fn address(&self, name: &NodeName) -> Option<SocketAddr> {
        self.known.get(name).map(|known| known.peer.address)
    }

    /// Drops the members that foca forgot, and returns them.
    pub(super) fn retain(&mut self, is_known: impl Fn(&NodeName) -> bool) -> Vec<Forgotten> {
        let mut forgotten = Vec::new();
        self.known.retain(|name, known| {
            let is_known = is_known(name);
            if !is_known {
                forgotten.push(Forgotten {
                    name: NodeName::clone(name),
                    address: known.peer.address,
                });
            }
            is_known
        });
        forgotten
    }

    /// Returns all, by name.
    pub(super) fn iter(&self, now: Instant) -> impl Iterator<Item = Member> {
        self.known.values().map(move |known| known.view(now))
    }

    /// Returns where those are reached that are in a state.
    pub(super) fn addresses(&self, wanted: impl Fn(MemberState) -> bool) -> impl Iterator<Item = SocketAddr> {
        self.known
            .values()
            .filter(move |known| wanted(known.state))
            .map(|known| known.peer.address)
    }
}

impl Known {
    fn view(&self, now: Instant) -> Member {
        Member {
            name: NodeName::clone(&self.peer.name),
            address: self.peer.address,
            state: self.state,
            epoch: self.peer.epoch,
            age: now.saturating_duration_since(self.since),
        }
    }
}
