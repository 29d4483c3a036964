//! What is asked of the candidates: an offer, a place, the clone. Of this node by a call, of others over the wire.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use zdap_proto::message::{Answer, Request};
use zdap_proto::name::{NodeName, RequestId};
use zdap_proto::refusal::Refusal;

use super::super::asker::Asker;
use super::super::bidding::{self, NotReserved};
use super::super::finding::ANSWERED;
use super::super::making::{self, Wanted};
use super::super::{Answered, Made};
use super::locked;
use super::survey::Survey;
use crate::node::Node;
use crate::peers::{PeerError, Trouble};
use crate::placement::{Bid, Choice, Reason};
use crate::refuse;
use crate::reserve::{Offered, Refused};

/// Asks the shortlist how busy each would be, all at once. Whoever takes long is waited for only as long as no other has
/// answered.
pub(super) async fn ask_for_offers(node: &Arc<Node>, survey: &Survey, choice: &mut Choice) {
    let asked: Vec<NodeName> = choice.to_ask().cloned().collect();
    let mut silent: BTreeSet<&NodeName> = asked.iter().collect();
    let round_trips = asked.iter().filter_map(|at| node.peers.round_trip(at));
    let patience = round_trips
        .max()
        .map_or(OFFERED, |longest| OFFERED.max(3 * longest));
    let mut offers: FuturesUnordered<_> = asked
        .iter()
        .map(|at| async move { (at, offer(node, survey, at).await) })
        .collect();
    let enough = tokio::time::sleep(patience);
    tokio::pin!(enough);
    let mut has_offer = false;
    while !silent.is_empty() {
        let (at, offer) = tokio::select! {
            biased;
            Some(offer) = offers.next() => offer,
            () = &mut enough, if has_offer => break,
        };
        silent.remove(at);
        match offer {
            Ok(offered) => {
                has_offer = true;
                note(node, survey, at, Some(offered));
                choice.offered(at, offered);
            }
            Err(reason) => choice.declined(at, reason),
        }
    }
    for at in silent {
        choice.declined(at, Reason::NoAnswer);
    }
}

async fn offer(node: &Arc<Node>, survey: &Survey, at: &NodeName) -> Result<Offered, Reason> {
    let snapshot = survey.snapshot_at(at).ok_or(Reason::NoSnapshot)?;
    let resource = survey.resource.clone();
    if *at == node.name {
        return bidding::offer(node, &node.name, &resource, snapshot);
    }
    let request = Request::Offer { resource, snapshot };
    let itself = node.identity.subject();
    let answer = node.peers.ask(at, itself, &request, OFFERED_AT_LAST).await;
    let answer = answer.map_err(|error| reason(&error))?;
    bidding::heard(&answer).ok_or_else(|| Reason::Said(Trouble::OddAnswer.to_string()))
}

pub(super) async fn reserve(
    node: &Arc<Node>,
    survey: &Survey,
    bid: &Bid,
    request_id: &RequestId,
) -> Result<(), NotReserved> {
    let snapshot = survey
        .snapshot_at(&bid.node)
        .ok_or(NotReserved::Out(Reason::NoSnapshot))?;
    let resource = survey.resource.clone();
    if bid.node == node.name {
        return bidding::reserve(node, &resource, snapshot, request_id, bid.at_most);
    }
    let request = Request::Reserve {
        resource,
        snapshot,
        request_id: request_id.clone(),
        at_most: bidding::limit(bid.at_most),
    };
    let itself = node.identity.subject();
    match node.peers.ask(&bid.node, itself, &request, RESERVED).await {
        Ok(Answer::Reserved) => Ok(()),
        Ok(answer) => Err(match bidding::heard(&answer) {
            Some(offered) => NotReserved::Outpaced(offered),
            None => NotReserved::Out(Reason::Said(Trouble::OddAnswer.to_string())),
        }),
        Err(error) => Err(NotReserved::Out(reason(&error))),
    }
}

/// Counts what `at` has promised, or has said to have promised others, until its digest does.
pub(super) fn note(node: &Node, survey: &Survey, at: &NodeName, offered: Option<Offered>) {
    if *at == node.name {
        return;
    }
    let view = node.cluster.view();
    let heard = view.members.get(at).and_then(|seen| seen.digest.as_ref());
    let version = heard.map(|heard| heard.digest.version()).unwrap_or_default();
    let now = Instant::now().into_std();
    let mut debits = locked(&node.placing.debits);
    match offered {
        Some(offered) => debits.learn(at, offered, survey.demand, version, now),
        None => debits.note(at, survey.demand, version, now),
    }
}

pub(super) fn outpaced(bid: &Bid, offered: Offered) -> Refused {
    let cost = offered.predicted.cost();
    let at_most = bid.at_most.unwrap_or(cost);
    Refused {
        reason: Reason::Outpaced { at_most, cost },
        offered,
    }
}

/// Why a clone was not made at one node.
pub(super) struct NotMade {
    pub(super) refusal: Refusal,
    /// The node was lost meanwhile: it may have been made all the same.
    pub(super) is_lost: bool,
}

/// Makes the clone at a node, this one or another.
pub(super) async fn make(
    node: &Arc<Node>,
    at: &NodeName,
    asker: &Asker,
    wanted: &Wanted,
) -> Result<Answered, NotMade> {
    if *at == node.name {
        let made = making::clone(node, wanted.clone()).await;
        return made.map_err(|refusal| NotMade {
            refusal,
            is_lost: false,
        });
    }
    let request = Request::CreateClone {
        resource: wanted.resource.clone(),
        snapshot: wanted.snapshot,
        node: None,
        owner: Some(wanted.owner.clone()),
        request_id: wanted.request_id.clone(),
        attempt: wanted.attempt,
    };
    let answer = node
        .peers
        .ask_patiently(at, &asker.subject, &request, |_| {})
        .await;
    let error = match answer {
        Ok(Answer::Created {
            clone,
            stages,
            considered,
        }) => {
            node.located.note(&clone.id, &clone.node);
            let made = Made {
                clone: clone.id.clone(),
                node: clone.node.clone(),
                attempt: wanted.attempt,
            };
            let answer = Answer::Created {
                clone,
                stages,
                considered,
            };
            return Ok(Answered {
                made: Some(made),
                ..answer.into()
            });
        }
        Ok(_) => Trouble::OddAnswer.of(at),
        Err(error) => error,
    };
    Err(NotMade {
        refusal: refuse::peer(&error),
        is_lost: !matches!(error.trouble, Trouble::Refused(_)),
    })
}

fn reason(error: &PeerError) -> Reason {
    match &error.trouble {
        Trouble::Slow(_) => Reason::NoAnswer,
        Trouble::Down => Reason::Down,
        Trouble::Refused(refusal) => Reason::Said(refusal.message.clone()),
        Trouble::Unknown
        | Trouble::Unreachable(_)
        | Trouble::Another { .. }
        | Trouble::Lost(_)
        | Trouble::Misunderstood(_)
        | Trouble::OddAnswer => Reason::Said(error.trouble.to_string()),
    }
}

/// Whoever has not said what it offers by then, or within three round trips, is passed over for one that has.
const OFFERED: Duration = Duration::from_millis(50);
/// Where nobody has; the connections may have to be made first.
const OFFERED_AT_LAST: Duration = Duration::from_secs(1);
const RESERVED: Duration = ANSWERED;
