//! What each call begins and ends with: everything is brought in line with what foca did in it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foca::{State, Timer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zdap_proto::name::NodeName;

use super::members::Change;
use super::outbox::Notice;
use super::timers::Timers;
use super::{Action, Gossip, Peer, new_foca, take_due};

impl Gossip {
    /// Starts a call.
    pub(super) fn begin(&mut self, now: Instant) {
        let mut overheard = self.shared.lock();
        overheard.now = now;
        overheard.mentioned.clear();
    }

    /// Brings everything in line with what foca did in this call.
    pub(super) fn settle(&mut self, now: Instant) {
        self.collect(now);
        self.follow_sightings(now);
        if take_due(&mut self.next.renew, now) {
            self.renew(now);
        }
        self.follow_digests(now);
        self.resize();
    }

    /// Turns what foca left in the outbox into timers, changes of members and actions.
    pub(super) fn collect(&mut self, now: Instant) {
        for (after, timer) in std::mem::take(&mut self.outbox.timers) {
            if let Timer::ChangeSuspectToDown {
                member_id,
                incarnation,
                ..
            } = &timer
            {
                self.ask_suspect(member_id, *incarnation, now);
            }
            let after = match timer {
                // All nodes' clocks start when a split ends: without this they would all ask at once, and then none for 5 s.
                Timer::PeriodicAnnounceDown(_) => after.mul_f64(self.rng.random_range(0.5..1.5)),
                Timer::ProbeRandomMember(_)
                | Timer::SendIndirectProbe { .. }
                | Timer::ChangeSuspectToDown { .. }
                | Timer::PeriodicAnnounce(_)
                | Timer::PeriodicGossip(_)
                | Timer::RemoveDown(_) => after,
            };
            self.timers.set(now + after, timer);
        }
        let mut mentioned = std::mem::take(&mut self.shared.lock().mentioned);
        mentioned.append(&mut self.outbox.mentioned);
        self.mirror(mentioned, now);
        for notice in std::mem::take(&mut self.outbox.notices) {
            match notice {
                Notice::Connected => {
                    if self.is_alone {
                        self.is_alone = false;
                        // Time to hear of the others before they count as forgotten.
                        self.next.reconcile = Some(now + RECONCILE_PERIOD);
                        self.actions.push_back(Action::Connected);
                    }
                    self.next.knock = Some(now + self.jittered(self.settings.knock_period));
                    self.exchange(2, now);
                }
                Notice::Alone => {
                    self.lose_everybody(now);
                    self.start_over();
                }
                Notice::GivenUp if self.has_left => {}
                Notice::GivenUp => {
                    self.shared.lock().is_given_up = true;
                    self.want_renewal(now);
                }
            }
        }
        self.actions.extend(
            self.outbox
                .packets
                .drain(..)
                .map(|(to, packet)| Action::Send { to, packet }),
        );
    }

    /// Sees to it that the mirror shows what foca knows of those who were mentioned. A packet mentions many, mostly without
    /// any news of them, so foca's list is gone through once for all of them.
    fn mirror(&mut self, mut mentioned: Vec<u128>, now: Instant) {
        if mentioned.is_empty() {
            return;
        }
        mentioned.sort_unstable();
        let members = self.foca.iter_membership_state();
        let members = members.filter(|member| {
            mentioned.binary_search(&member.id().key).is_ok() && member.id().key != self.me.key
        });
        let changes: Vec<Change> = members
            .filter_map(|member| self.mirror.note(member, now))
            .collect();
        for change in changes {
            self.actions.push_back(Action::Member(change.member));
            if change.is_lasting {
                // Few miss the news, but those do for long.
                let soon = now + self.jittered(self.settings.settling_time);
                self.next.exchange = self.next.exchange.map(|at| at.min(soon));
            }
        }
    }

    /// Compares the whole mirror, should a change have been missed, and forgets what is long gone.
    pub(super) fn reconcile(&mut self, now: Instant) {
        self.next.reconcile = Some(now + RECONCILE_PERIOD);
        let mut names = BTreeSet::new();
        for member in self.foca.iter_membership_state() {
            if member.id().name == self.me.name {
                continue;
            }
            names.insert(Arc::clone(&member.id().name));
            if let Some(change) = self.mirror.note(member, now) {
                self.actions.push_back(Action::Member(change.member));
            }
        }
        if !self.is_alone {
            for member in self.mirror.retain(|name| names.contains(name)) {
                self.contacts.insert(member.address);
                self.actions.push_back(Action::Forgotten(member.name));
            }
        }
        let is_known = |node: &NodeName| *node == *self.me.name || names.contains(node);
        self.shared.lock().digests.expire(now, is_known);
    }

    pub(super) fn lose_everybody(&mut self, now: Instant) {
        if !self.is_alone {
            self.is_alone = true;
            self.actions.push_back(Action::Alone);
            self.next.knock = Some(now + self.jittered(self.settings.lonely_knock_period));
        }
    }

    /// Begins anew with nobody known. A node that lost everybody has lost its network rather than they their lives: it must
    /// not tell those it meets again that all others are down. The mirror goes on to show them as down.
    pub(super) fn start_over(&mut self) {
        let rng = StdRng::from_rng(&mut self.rng);
        self.foca = new_foca(&self.cluster, &self.me, &self.settings, &self.shared, rng);
        self.timers = Timers::default();
        self.allowed = None;
        self.doubts.clear();
        self.suspects.clear();
        self.sized_for = 1;
    }

    /// Has an epoch or a generation written down before it is used.
    pub(super) fn persist(&mut self, number: u64) {
        if number > self.persisted {
            self.persisted = number;
            self.actions.push_back(Action::PersistGeneration(number));
        }
    }

    /// Whether this very life of a member is alive or suspect.
    pub(super) fn is_active(&self, peer: &Peer) -> bool {
        self.foca.iter_members().any(|member| member.id() == peer)
    }

    /// Whether a timer is about a suspicion that was taken back. foca would tell the member to rejoin all the same.
    pub(super) fn is_stale(&self, timer: &Timer<Peer>) -> bool {
        match timer {
            Timer::ChangeSuspectToDown {
                member_id,
                incarnation,
                ..
            } => !self.foca.iter_membership_state().any(|member| {
                member.id() == member_id
                    && member.incarnation() == *incarnation
                    && member.state() == State::Suspect
            }),
            Timer::ProbeRandomMember(_)
            | Timer::SendIndirectProbe { .. }
            | Timer::PeriodicAnnounce(_)
            | Timer::PeriodicAnnounceDown(_)
            | Timer::PeriodicGossip(_)
            | Timer::RemoveDown(_) => false,
        }
    }

    /// Fits foca's numbers to the size of the cluster.
    fn resize(&mut self) {
        let nodes = self.foca.num_members() + 1;
        if self.sized_for != nodes {
            self.sized_for = nodes;
            if let Err(error) = self.foca.set_config(self.settings.swim(nodes)) {
                tracing::debug!(%error, "the numbers stay as they are");
            }
        }
    }
}

/// How often the mirror is compared as a whole.
pub(super) const RECONCILE_PERIOD: Duration = Duration::from_secs(10);
