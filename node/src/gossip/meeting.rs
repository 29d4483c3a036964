//! How a node meets others: by knocking at addresses, and by comparing all it knows with one of them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foca::State;
use rand::RngExt;
use rand::seq::IteratorRandom;
use zdap_proto::name::NodeName;

use super::packet::{self, Greeting, GreetingKind};
use super::{Action, Gossip, MemberState, Peer};

impl Gossip {
    /// Asks who is there, at addresses whose node is no member: three while there is no member, else one.
    pub(super) fn knock(&mut self, now: Instant) {
        let (count, period) = match self.is_alone {
            true => (3, self.settings.lonely_knock_period),
            false => (1, self.settings.knock_period),
        };
        self.next.knock = Some(now + self.jittered(period));
        let mut addresses = self.contacts.clone();
        addresses.extend(self.mirror.addresses(|_| true));
        if !self.is_alone {
            for address in self.mirror.addresses(|state| state != MemberState::Down) {
                addresses.remove(&address);
            }
        }
        addresses.remove(&self.me.address);
        for address in addresses.into_iter().sample(&mut self.rng, count) {
            self.greet(address, GreetingKind::Knock);
        }
    }

    /// Compares with this member now.
    pub(super) fn exchange_with(&mut self, name: &NodeName) {
        if let Some(at) = self.mirror.address(name) {
            let with = name.clone();
            self.actions.push_back(Action::Exchange { with, at });
        }
    }

    pub(super) fn greet(&mut self, to: SocketAddr, kind: GreetingKind) {
        let packet = packet::greeting(&Greeting {
            cluster: self.cluster.clone(),
            from: self.me.clone(),
            kind,
        });
        self.actions.push_back(Action::Send { to, packet });
    }

    pub(super) fn answer(&mut self, greeting: Greeting, now: Instant) {
        let from = greeting.from;
        if from.name == self.me.name {
            self.shared.lock().sight(&from, State::Alive, true);
            if greeting.kind == GreetingKind::Knock && from != self.me {
                let you = Some(foca::Member::alive(self.me.clone()));
                self.greet(from.address, GreetingKind::Here { you });
            }
            return;
        }
        match greeting.kind {
            GreetingKind::Knock => {
                self.actions.push_back(Action::Knocked(from.address));
                // One that is given up probes nobody, and what it knows may be long past.
                let is_given_up = self.shared.lock().is_given_up;
                let you = self
                    .foca
                    .iter_membership_state()
                    .find(|member| !is_given_up && member.id().name == from.name)
                    .cloned();
                self.greet(from.address, GreetingKind::Here { you });
            }
            GreetingKind::Here { you: None } => self.announce_to(from),
            GreetingKind::Here { you: Some(you) } if *you.id() == self.me => match you.state() {
                State::Alive | State::Suspect => self.announce_to(from),
                State::Down => self.give_way(from, now),
            },
            GreetingKind::Here { you: Some(you) } => self.correct(from, you.id(), you.state()),
            GreetingKind::Suspected { you, incarnation } if you == self.me => self.refute(from, incarnation),
            GreetingKind::GivenUp { you } if you == self.me => self.give_way(from, now),
            GreetingKind::Suspected { you, .. } | GreetingKind::GivenUp { you } => {
                self.correct(from, &you, State::Alive);
            }
        }
    }

    /// Comes back under a higher epoch, for one who thinks that this life is down.
    fn give_way(&mut self, from: Peer, now: Instant) {
        self.told_by = Some(from);
        self.want_renewal(now);
    }

    /// Answers one who takes another life for this node's: an earlier one is put right by hearing of this one, and above a
    /// later one this node has to go.
    fn correct(&mut self, from: Peer, you: &Peer, state: State) {
        if self.shared.lock().sight(you, state, false) {
            self.told_by = Some(from.clone());
        }
        self.announce_to(from);
    }

    fn announce_to(&mut self, peer: Peer) {
        if let Err(error) = self.foca.announce(peer, &mut self.outbox) {
            tracing::debug!(%error, "announce this node");
        }
    }

    /// Compares with `count` members now, and with one before long.
    pub(super) fn exchange(&mut self, count: usize, now: Instant) {
        self.next.exchange = match self.is_alone {
            true => None,
            false => Some(now + self.jittered(self.settings.exchange_period)),
        };
        let members = self.mirror.iter(now);
        let alive = members.filter(|member| member.state == MemberState::Alive);
        for member in alive.sample(&mut self.rng, count) {
            self.actions.push_back(Action::Exchange {
                with: member.name,
                at: member.address,
            });
        }
    }

    /// Returns three to five quarters of `period`, so that nodes that started together do not stay together.
    pub(super) fn jittered(&mut self, period: Duration) -> Duration {
        period.mul_f64(self.rng.random_range(0.75..1.25))
    }
}
