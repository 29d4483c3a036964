//! How many connections somebody may hold, so that nobody holds them all.
//!
//! Whoever has a certificate has so many at once, and no more. Newcomers have none to tell them apart by; of too many,
//! the one that has been silent for longest goes, since an honest one says at once what it wants.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use quinn::Connection;
use zdap_proto::identity::Subject;
use zdap_proto::transport::{Close, Purpose};

/// The connections of a node, by who holds them.
#[derive(Debug, Default)]
pub(super) struct Limits {
    held: Mutex<HashMap<Holder, usize>>,
    newcomers: Mutex<VecDeque<Connection>>,
}

type Holder = (Subject, Purpose);

/// A place among a peer's connections, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    limits: Arc<Limits>,
    holder: Holder,
}

/// A place among the newcomers, free again when dropped.
#[derive(Debug)]
pub(super) struct Newcomer {
    limits: Arc<Limits>,
    connection: usize,
}

impl Limits {
    /// Counts a connection in, or closes it if its holder has as many as may be.
    pub(super) fn admit(
        self: &Arc<Self>,
        connection: &Connection,
        subject: &Subject,
        purpose: Purpose,
    ) -> Option<Place> {
        let holder = (subject.clone(), purpose);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(holder.clone()).or_default();
        let most = most(subject, purpose);
        if *count >= most {
            tracing::warn!(%subject, most, "too many connections");
            Close::Busy.connection(
                connection,
                &format!("{subject} has {most} connections open already"),
            );
            return None;
        }
        *count += 1;
        Some(Place {
            limits: Arc::clone(self),
            holder,
        })
    }

    /// Counts a newcomer in; of too many, closes the one that came first.
    pub(super) fn admit_newcomer(self: &Arc<Self>, connection: &Connection) -> Newcomer {
        let mut newcomers = self.newcomers.lock().unwrap_or_else(PoisonError::into_inner);
        newcomers.push_back(connection.clone());
        if newcomers.len() > NEWCOMERS
            && let Some(oldest) = newcomers.pop_front()
        {
            Close::Busy.connection(&oldest, "too many enrol at once; try again");
        }
        Newcomer {
            limits: Arc::clone(self),
            connection: connection.stable_id(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.limits.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.holder);
            }
        }
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let mut newcomers = self
            .limits
            .newcomers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        newcomers.retain(|other| other.stable_id() != self.connection);
    }
}

fn most(subject: &Subject, purpose: Purpose) -> usize {
    match purpose {
        // One for each user who comes by way of that node.
        Purpose::Tunnel if matches!(subject, Subject::Node(_)) => 4096,
        // The commands of one person, or of the jobs that share a name; each holds a megabyte at most.
        Purpose::Control => 256,
        // A relay has one, and for a moment two; each may make the node hold 64 MiB.
        Purpose::Tunnel => 64,
        Purpose::Enrol => NEWCOMERS,
        // A node has one or two, and those of its earlier lives until they have been silent for two minutes: one that starts
        // and dies every second must still be heard.
        Purpose::Gossip => 256,
    }
}

/// A class of students in the same minute.
const NEWCOMERS: usize = 256;
