//! The name of this node, and which life or machine speaks for it.

use std::time::{Duration, Instant};

use foca::State;
use zdap_proto::digest::MAX_GENERATION;

use super::packet::GreetingKind;
use super::shared::Sighting;
use super::{Action, Gossip, Peer};

/// Somebody else by this node's name, alive, whom the others listen to.
#[derive(Debug)]
pub(super) struct Rival {
    peer: Peer,
    seen: Instant,
    told: Instant,
}

impl Gossip {
    /// Looks at who else was seen under this node's name.
    pub(super) fn follow_sightings(&mut self, now: Instant) {
        let sightings = std::mem::take(&mut self.shared.lock().sightings);
        for Sighting {
            peer,
            state,
            is_sender,
        } in sightings
        {
            let wins = peer.wins(&self.me);
            let is_elsewhere = peer.address != self.me.address;
            match state {
                // An earlier life, as rumour or on its way out.
                _ if !(wins || is_elsewhere && is_sender) => {}
                State::Alive | State::Suspect if is_elsewhere => self.meet_rival(peer, wins, now),
                State::Alive | State::Suspect | State::Down => {
                    // A later life of this very node: its disk was put back to an earlier state.
                    self.highest_epoch = self.highest_epoch.max(peer.epoch);
                    if self.rival.as_ref().is_some_and(|rival| rival.peer == peer) {
                        self.rival = None;
                    }
                    if wins && !self.has_left {
                        self.want_renewal(now);
                    }
                }
            }
        }
    }

    fn meet_rival(&mut self, peer: Peer, is_winning: bool, now: Instant) {
        let told = self.rival.as_ref().map(|rival| rival.told);
        let is_told = told.is_some_and(|told| now.saturating_duration_since(told) < CONFLICT_PERIOD);
        if !is_told {
            self.actions.push_back(Action::Conflict {
                other: peer.clone(),
                is_winning,
            });
        }
        self.rival = Some(Rival {
            peer,
            seen: now,
            told: told.filter(|_| is_told).unwrap_or(now),
        });
    }

    /// Has this node come back under a higher epoch as soon as it may, however often it is told to.
    pub(super) fn want_renewal(&mut self, now: Instant) {
        self.next.renew = Some(self.renewable_from.map_or(now, |from| from.max(now)));
    }

    /// Goes on under a higher epoch than one up to which somebody has had all nodes forget this one.
    pub fn outlive(&mut self, epoch: u64, now: Instant) {
        if (self.me.epoch..MAX_GENERATION).contains(&epoch) && !self.has_left {
            self.highest_epoch = self.highest_epoch.max(epoch);
            self.want_renewal(now);
        }
    }

    /// Comes back under a higher epoch, after others gave this node up or its name was seen with one.
    ///
    /// Not while another machine that wins goes by the name: the two would take it from each other for ever. That one is
    /// asked for again and again, and once it has not been seen for a while, this one speaks for the name.
    pub(super) fn renew(&mut self, now: Instant) {
        if self.has_left {
            return;
        }
        if let Some(rival) = &self.rival
            && rival.peer.wins(&self.me)
            && now.saturating_duration_since(rival.seen) < RIVAL_MEMORY
        {
            self.renewable_from = Some((now + CONFLICT_PERIOD).min(rival.seen + RIVAL_MEMORY));
            self.want_renewal(now);
            self.knock(now);
            return;
        }
        let epoch = self.highest_epoch.max(self.me.epoch) + 1;
        let Ok(me) = Peer::new(self.me.name().clone(), self.me.address, epoch) else {
            tracing::error!(epoch, "no epoch is left to come back with");
            return;
        };
        self.me = me.clone();
        self.highest_epoch = epoch;
        let mut overheard = self.shared.lock();
        overheard.me = me.clone();
        overheard.is_given_up = false;
        drop(overheard);
        self.renewable_from = Some(now + RENEW_PERIOD);
        self.persist(epoch);
        self.actions.push_back(Action::Renewed);
        if let Some(peer) = self.told_by.take() {
            // That one may be on the other side of a split, or have seen a later life than any that was heard of here. Its
            // answer says which, and it learns of this life.
            self.greet(peer.address, GreetingKind::Knock);
        }
        if self.foca.num_members() == 0 {
            self.lose_everybody(now);
            self.start_over();
            self.knock(now);
            return;
        }
        let renewed = self
            .foca
            .change_identity(me, &mut self.outbox)
            // foca notices only now that there are members.
            .and_then(|()| self.foca.apply_many(std::iter::empty(), false, &mut self.outbox));
        if let Err(error) = renewed {
            tracing::error!(%error, "come back under a higher epoch");
        }
        self.collect(now);
    }
}

/// A node that is given up again and again comes back at most this often, so that its epochs stay near the time.
const RENEW_PERIOD: Duration = Duration::from_secs(1);

/// How often a person is told that two machines have one name.
const CONFLICT_PERIOD: Duration = Duration::from_secs(10);

/// How long a rival that is not seen is thought to be there: longer than it takes to ask for it again.
const RIVAL_MEMORY: Duration = Duration::from_secs(15);
