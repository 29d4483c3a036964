//! From a ranking to a node that has promised: whom to ask, where to reserve next, and what came of it.

use rand::Rng;
use zdap_proto::name::NodeName;

use super::{Prediction, Ranking, Reason, Rejected, Share};
use crate::reserve::{Offered, Refused};

/// The way to a node for one clone; sans-io.
///
/// Send an offer request to everyone in [`Self::to_ask`] and tell what each said; then reserve at [`Self::next_bid`] until
/// one accepts or there is none left.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Those that were eligible: the shortlist, then the others by rank.
    candidates: Vec<Candidate>,
    rejected: Vec<Rejected>,
    /// The first so many are asked for offers.
    asked: usize,
    /// Reservations tried with a limit.
    tries: u32,
    chosen: Option<NodeName>,
}

#[derive(Debug, Clone)]
struct Candidate {
    node: NodeName,
    predicted: Prediction,
    offered: Option<Offered>,
    /// Why it is out.
    reason: Option<Reason>,
}

/// Where to reserve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bid {
    /// There.
    pub node: NodeName,
    /// Unless it has come to cost more; whatever it costs, when absent.
    pub at_most: Option<Share>,
}

/// One node, and what became of it: a line of `--explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// Which.
    pub node: NodeName,
    /// How busy it would be with the clone, from what is known of it here.
    pub predicted: Option<Prediction>,
    /// The same, as it says itself, promises included.
    pub offered: Option<Prediction>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The clone is made there.
    Chosen,
    /// It would have done as well.
    Spare,
    /// It was no place for it.
    Out(Reason),
}

impl Choice {
    /// Begins with a ranking.
    pub fn new(ranking: Ranking, rng: &mut (impl Rng + ?Sized)) -> Self {
        let (asked, order) = ranking.shortlist(rng);
        let candidates = order.into_iter().map(|ranked| Candidate {
            node: ranked.node,
            predicted: ranked.predicted,
            offered: None,
            reason: None,
        });
        Self {
            candidates: candidates.collect(),
            rejected: ranking.ineligible,
            // Where there is no choice, an offer changes nothing.
            asked: if asked == 1 { 0 } else { asked },
            tries: 0,
            chosen: None,
        }
    }

    /// Returns who is to be asked for an offer, all at once.
    pub fn to_ask(&self) -> impl Iterator<Item = &NodeName> {
        self.candidates[..self.asked]
            .iter()
            .map(|candidate| &candidate.node)
    }

    /// Takes what a node offers.
    pub fn offered(&mut self, node: &NodeName, offered: Offered) {
        if let Some(candidate) = self.candidate(node) {
            candidate.offered = Some(offered);
        }
    }

    /// Takes that a node is out: it did not answer, or said that it cannot.
    pub fn declined(&mut self, node: &NodeName, reason: Reason) {
        if let Some(candidate) = self.candidate(node) {
            candidate.reason = Some(reason);
        }
    }

    /// Takes that a node refused a bid. One that was outpaced stays in, with what it says now.
    pub fn refused(&mut self, bid: &Bid, refused: Refused) {
        let Some(candidate) = self.candidate(&bid.node) else {
            return;
        };
        candidate.offered = Some(refused.offered);
        let may_try_again = bid.at_most.is_some() && matches!(refused.reason, Reason::Outpaced { .. });
        if !may_try_again {
            candidate.reason = Some(refused.reason);
        }
    }

    /// Takes that a node has promised a place.
    pub fn accepted(&mut self, bid: &Bid) {
        self.chosen = Some(bid.node.clone());
    }

    /// Returns where to reserve next: 3 times at the cheapest of those that offered, as long as it is no worse than the next
    /// best; then at any, at any cost. There are no more than the number of nodes and 3.
    pub fn next_bid(&mut self) -> Option<Bid> {
        let remaining = || {
            self.candidates
                .iter()
                .filter(|candidate| candidate.reason.is_none())
        };
        let mut offers: Vec<_> = remaining()
            .filter_map(|candidate| Some((candidate, candidate.offered?)))
            .collect();
        offers.sort_by_key(|(_, offered)| offered.predicted.cost());
        let bid = match offers.as_slice() {
            [(candidate, offered), others @ ..] => {
                // As long as it is no worse than the next best, another round trip would gain nothing.
                let next = others
                    .first()
                    .map_or(offered.limit, |(_, next)| next.predicted.cost());
                Bid {
                    node: candidate.node.clone(),
                    at_most: (self.tries < TRIES).then_some(next.max(offered.predicted.cost())),
                }
            }
            [] => Bid {
                node: remaining().next()?.node.clone(),
                at_most: None,
            },
        };
        self.tries += u32::from(bid.at_most.is_some());
        Some(bid)
    }

    /// Returns every node with its figures and what became of it, for [`Reason`]s and `--explain`: the shortlist first,
    /// then the other eligible ones by rank, then the rest.
    pub fn considered(self) -> Vec<Considered> {
        let chosen = self.chosen;
        let candidates = self.candidates.into_iter().map(|candidate| Considered {
            outcome: match candidate.reason {
                _ if Some(&candidate.node) == chosen.as_ref() => Outcome::Chosen,
                Some(reason) => Outcome::Out(reason),
                None => Outcome::Spare,
            },
            node: candidate.node,
            predicted: Some(candidate.predicted),
            offered: candidate.offered.map(|offered| offered.predicted),
        });
        let rejected = self.rejected.into_iter().map(|rejected| Considered {
            node: rejected.node,
            predicted: rejected.predicted,
            offered: None,
            outcome: Outcome::Out(rejected.reason),
        });
        candidates.chain(rejected).collect()
    }

    fn candidate(&mut self, node: &NodeName) -> Option<&mut Candidate> {
        self.candidates
            .iter_mut()
            .find(|candidate| candidate.node == *node)
    }
}

/// Each costs a round trip; who is outpaced so often is in a crowd where any place will do.
const TRIES: u32 = 3;
