//! Places promised on this node: the one lock that admission takes. Pure.

#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zdap_proto::digest::NodeReport;
use zdap_proto::name::{NodeName, RequestId};

use crate::placement::{Demand, Prediction, Reason, Share, obstacle, predict};

/// The places that are promised here: reserved, or taken by clones that are being made. Cheap to clone.
///
/// Each is in here under the id of its request until its clone is made, has failed, or was never begun within [`TTL`]. A clone
/// is counted either here or in the figures of the node, so these are made under the lock: `figures` is called with
/// [`Tokens`], and leaves out the clones of these requests. It must not call back in here, nor drop a [`Place`].
#[derive(Debug, Clone, Default)]
pub struct Reservations {
    promised: Arc<Mutex<Tokens>>,
}

/// The requests that have a place here.
#[derive(Debug, Default)]
pub struct Tokens {
    promises: BTreeMap<RequestId, Promise>,
    /// The nodes that were made an offer in the last moment, and when each was made its last.
    offers: BTreeMap<NodeName, Instant>,
}

#[derive(Debug)]
struct Promise {
    demand: Demand,
    /// It goes then, unless taken.
    until: Instant,
    /// How many [`Place`]s there are of it.
    takers: u32,
}

/// What a node says when it is asked for an offer, and when it refuses a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offered {
    /// How busy it would be with the clone.
    pub predicted: Prediction,
    /// Its cost with [`GRACE`] further ones: what to reserve at.
    pub limit: Share,
    /// How many clones it has, promised ones included.
    pub taken: u32,
}

/// A place that was not promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// How busy it would be, were it not for that.
    pub offered: Offered,
}

/// A place that is being used. Drop it when the clone is made, or has failed.
#[derive(Debug)]
pub struct Place {
    promised: Arc<Mutex<Tokens>>,
    token: RequestId,
}

impl Reservations {
    /// Says to the node `by` how busy this node would be with `clone`, or that there is no room for it.
    ///
    /// Of the others that were made an offer in the last [`MOMENT`], one in two is counted as if it took it. Each asks three
    /// nodes and takes one, but those who ask at the same time want the same one. A node makes one choice after the other,
    /// as long as none takes long: what came of its last is known, so of each only one is open.
    pub fn offer(
        &self,
        by: &NodeName,
        clone: Demand,
        now: Instant,
        figures: impl FnOnce(&Tokens) -> NodeReport,
    ) -> Result<Offered, Refused> {
        let mut tokens = self.lock(now);
        tokens.offers.retain(|to, made| to != by && *made + MOMENT > now);
        let expected = u32::try_from(tokens.offers.len().div_ceil(2)).unwrap_or(u32::MAX);
        tokens.offers.insert(by.clone(), now);
        tokens.admit(clone, expected, None, &figures(&tokens))
    }

    /// Promises a place for `clone` to the request `token`, for [`TTL`], unless there is no room, or the node has come to cost
    /// more than `at_most`. The same token again has its place already, and keeps it for longer.
    ///
    /// `figures` are those of this very moment, see above.
    pub fn reserve(
        &self,
        token: &RequestId,
        clone: Demand,
        at_most: Option<Share>,
        now: Instant,
        figures: impl FnOnce(&Tokens) -> NodeReport,
    ) -> Result<(), Refused> {
        let until = now + TTL;
        let mut tokens = self.lock(now);
        if let Some(promise) = tokens.promises.get_mut(token) {
            promise.until = until;
            return Ok(());
        }
        tokens.admit(clone, 0, at_most, &figures(&tokens))?;
        let promise = Promise {
            demand: clone,
            until,
            takers: 0,
        };
        tokens.promises.insert(token.clone(), promise);
        Ok(())
    }

    /// Takes the place of a request, to make its clone; there is none if it was not reserved, or too long ago. It is kept
    /// until every [`Place`] is dropped: a retry may take it a second time.
    pub fn take(&self, token: &RequestId, now: Instant) -> Option<Place> {
        self.lock(now).promises.get_mut(token)?.takers += 1;
        Some(Place {
            promised: Arc::clone(&self.promised),
            token: token.clone(),
        })
    }

    /// Returns what this node says of itself: `figures`, and how many places are promised. Due again with each promise and
    /// each place that is dropped.
    pub fn report(&self, now: Instant, figures: impl FnOnce(&Tokens) -> NodeReport) -> NodeReport {
        let tokens = self.lock(now);
        NodeReport {
            reservations: u16::try_from(tokens.promises.len()).unwrap_or(u16::MAX),
            ..figures(&tokens)
        }
    }

    fn lock(&self, now: Instant) -> MutexGuard<'_, Tokens> {
        let mut tokens = lock(&self.promised);
        tokens
            .promises
            .retain(|_, promise| promise.takers > 0 || promise.until > now);
        tokens
    }
}

impl Tokens {
    /// Returns whether the clone of this request is counted here, and so not by the figures.
    pub fn contains(&self, token: &RequestId) -> bool {
        self.promises.contains_key(token)
    }

    fn admit(
        &self,
        clone: Demand,
        expected: u32,
        at_most: Option<Share>,
        report: &NodeReport,
    ) -> Result<Offered, Refused> {
        let promised: Demand = self.promises.values().map(|promise| promise.demand).sum();
        let predicted = predict(report, promised, clone, 1 + expected);
        let offered = Offered {
            predicted,
            limit: predict(report, promised, clone, 1 + expected + GRACE).cost(),
            taken: u32::from(report.clones).saturating_add(promised.clones),
        };
        let cost = predicted.cost();
        let outpaced = at_most
            .filter(|at_most| cost > *at_most)
            .map(|at_most| Reason::Outpaced { at_most, cost });
        match obstacle(report, promised, clone).or(outpaced) {
            Some(reason) => Err(Refused { reason, offered }),
            None => Ok(offered),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut tokens = lock(&self.promised);
        if let Some(promise) = tokens.promises.get_mut(&self.token) {
            promise.takers = promise.takers.saturating_sub(1);
            if promise.takers == 0 {
                tokens.promises.remove(&self.token);
            }
        }
    }
}

/// What is behind it is right after each statement, so a panic elsewhere spoils nothing.
fn lock(promised: &Mutex<Tokens>) -> MutexGuard<'_, Tokens> {
    promised.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A reservation that nobody takes goes after this: whoever made it is gone, or went elsewhere.
pub const TTL: Duration = Duration::from_secs(30);

/// Two round trips within a site: by then an offer has become a reservation here, or elsewhere.
pub const MOMENT: Duration = Duration::from_millis(2);

/// So many clones may come in between an offer and its reservation; with fewer there are more retries, with more less balance.
pub const GRACE: u32 = 2;

#[cfg(test)]
mod tests;
