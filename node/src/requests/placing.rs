//! A clone, on the node that is best for it: choose, reserve, make; on the next one if that fails.
//!
//! The policy is [`crate::placement`]'s. Whatever is asked of another node here can be asked twice, and a clone that may
//! have been made on a node that was lost meanwhile is taken back when that node returns.

mod stray;
mod survey;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rand::rngs::StdRng;
use tokio::time::{Instant, timeout};
use zdap_proto::message::{Answer, CloneView, Considered, Outcome, Request, Sought, Stages};
use zdap_proto::name::{NodeName, RequestId, UserName};
use zdap_proto::refusal::{Refusal, RefusalKind};

pub use self::stray::take_back_strays;
use self::stray::{Stray, Strays};
use self::survey::Survey;
use super::asker::Asker;
use super::bidding::NotReserved;
use super::finding::{ANSWERED, Bounded, Search, search};
use super::making::Wanted;
use super::{Answered, Made, bidding, making, resource_named};
use crate::gossip::MemberState;
use crate::node::Node;
use crate::peers::{PeerError, Trouble};
use crate::placement::{self, Bid, Choice, Debits, Reason};
use crate::refuse;
use crate::reserve::{Offered, Refused};

/// What this node remembers of the clones it has placed.
#[derive(Debug)]
pub struct Placing {
    debits: Mutex<Debits>,
    turns: Mutex<Bounded<(UserName, RequestId), Turn>>,
    strays: Strays,
    /// Held by who chooses a node.
    choosing: tokio::sync::Mutex<()>,
    rng: Mutex<StdRng>,
}

/// One request for a clone at a time, and the clone once it is made.
type Turn = Arc<tokio::sync::Mutex<Option<CloneView>>>;

impl Placing {
    /// Begins with nothing placed; `rng` chooses between nodes that are as good.
    pub fn new(rng: StdRng) -> Self {
        Self {
            debits: Mutex::default(),
            turns: Mutex::default(),
            strays: Strays::default(),
            choosing: tokio::sync::Mutex::default(),
            rng: Mutex::new(rng),
        }
    }

    /// Returns the turn of a request that was seen here.
    pub(super) fn turn(&self, owner: &UserName, request_id: &RequestId) -> Option<Turn> {
        let key = (owner.clone(), request_id.clone());
        locked(&self.turns).get(&key).map(Arc::clone)
    }

    fn new_turn(&self, owner: &UserName, request_id: &RequestId) -> Turn {
        let key = (owner.clone(), request_id.clone());
        let mut turns = locked(&self.turns);
        if let Some(turn) = turns.get(&key) {
            return Arc::clone(turn);
        }
        let turn = Turn::default();
        turns.insert(key, Arc::clone(&turn));
        turn
    }
}

/// Makes a clone on the node that is best for it, or on the one that is named. The same request again, of this node or, said
/// to be a retry, of another, gives the same clone.
pub(super) async fn clone(
    node: &Arc<Node>,
    asker: &Asker,
    wanted: Wanted,
    pinned: Option<NodeName>,
    is_retry: bool,
) -> Result<Answered, Refusal> {
    let began = Instant::now();
    let turn = node.placing.new_turn(&wanted.owner, &wanted.request_id);
    let mut placed = turn.lock().await;
    if let Some(at) = earlier(node, &wanted, placed.as_ref(), is_retry).await? {
        match make(node, &at, asker, &wanted).await {
            Ok(answered) => {
                *placed = view_of(&answered);
                return Ok(Answered {
                    made: None,
                    ..answered
                });
            }
            Err(NotMade { refusal, is_lost }) => {
                if !is_lost {
                    return Err(refusal);
                }
                node.placing.strays.note(Stray::new(&at, &wanted));
            }
        }
    }

    if node.cluster.view().members.len() == 1 {
        // What is wrong here is wrong everywhere, and is said in more words.
        let resource = resource_named(node, &wanted.resource)?;
        making::snapshot_of(node, &resource.name, wanted.snapshot)?;
    }
    // One after the other: what the one before has placed, and has learned of the others, is in what the next one sees.
    let mut choosing = timeout(IN_TURN, node.placing.choosing.lock()).await.ok();
    let survey = Survey::of(node, &wanted, pinned)?;
    let mut choice = {
        let mut rng = locked(&node.placing.rng);
        let ranking = survey.rank(&mut *rng);
        Choice::new(ranking, &mut *rng)
    };
    ask_for_offers(node, &survey, &mut choice).await;
    let place_ms = milliseconds(began.elapsed());
    let mut reserving = Duration::ZERO;
    while let Some(bid) = choice.next_bid() {
        let began_to_reserve = Instant::now();
        let reserved = reserve(node, &survey, &bid, &wanted.request_id).await;
        reserving += began_to_reserve.elapsed();
        match reserved {
            Ok(()) => note(node, &survey, &bid.node, None),
            Err(NotReserved::Outpaced(offered)) => {
                note(node, &survey, &bid.node, Some(offered));
                choice.refused(&bid, outpaced(&bid, offered));
                continue;
            }
            Err(NotReserved::Out(reason)) => {
                choice.declined(&bid.node, reason);
                continue;
            }
        }
        choosing = None;
        match make(node, &bid.node, asker, &wanted).await {
            Ok(mut answered) => {
                choice.accepted(&bid);
                *placed = view_of(&answered);
                if let Answer::Created {
                    stages, considered, ..
                } = &mut answered.answer
                {
                    *considered = told(choice.considered());
                    *stages = Stages {
                        place_ms,
                        reserve_ms: milliseconds(reserving),
                        total_ms: milliseconds(began.elapsed()),
                        ..*stages
                    };
                }
                return Ok(answered);
            }
            Err(NotMade { refusal, is_lost }) => {
                if is_lost {
                    node.placing.strays.note(Stray::new(&bid.node, &wanted));
                }
                if !refusal.kind.is_retryable() {
                    return Err(refusal);
                }
                tracing::info!(node = %bid.node, reason = %refusal, "no clone there; trying the next node");
                choice.declined(&bid.node, Reason::Said(refusal.message));
            }
        }
    }
    Err(survey.refusal(&choice.considered()))
}

/// Returns where this very request has been answered before, or is being.
async fn earlier(
    node: &Node,
    wanted: &Wanted,
    placed: Option<&CloneView>,
    is_retry: bool,
) -> Result<Option<NodeName>, Refusal> {
    if node.clones.made_for(&wanted.owner, &wanted.request_id).is_some() {
        return Ok(Some(node.name.clone()));
    }
    if let Some(placed) = placed {
        return Ok(Some(placed.node.clone()));
    }
    if !is_retry {
        return Ok(None);
    }
    let sought = Sought::Made {
        owner: wanted.owner.clone(),
        request_id: wanted.request_id.clone(),
    };
    if node.cluster.is_meeting() {
        return Err(Refusal::new(
            RefusalKind::Unavailable,
            "the clone may be on another node, and this one has just started and not met all of them yet",
        )
        .with_hint("try again in a moment"));
    }
    let Search { found, silent } = search(node, sought).await;
    if let Some(found) = found {
        return Ok(Some(found.node));
    }
    // A node that answers the others and not this one may be making the clone. One that is lost does not count: should it
    // come back with a clone, that is taken away.
    let view = node.cluster.view();
    let is_alive = |name: &NodeName| {
        view.members
            .get(name)
            .is_some_and(|seen| seen.state == MemberState::Alive)
    };
    for silent in silent {
        if is_alive(&silent.node) {
            return Err(Refusal::new(
                RefusalKind::Unavailable,
                format!(
                    "the clone may be in the making on node `{}`, which {}",
                    silent.node, silent.reason
                ),
            )
            .with_hint("try again in a moment"));
        }
        node.placing.strays.note(Stray::new(&silent.node, wanted));
    }
    Ok(None)
}

/// Asks the shortlist how busy each would be, all at once. Whoever takes long is waited for only as long as no other has
/// answered.
async fn ask_for_offers(node: &Arc<Node>, survey: &Survey, choice: &mut Choice) {
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
        return bidding::offer(node, &resource, snapshot);
    }
    let request = Request::Offer { resource, snapshot };
    let itself = node.identity.subject();
    let answer = node.peers.ask(at, itself, &request, OFFERED_AT_LAST).await;
    let answer = answer.map_err(|error| reason(&error))?;
    bidding::heard(&answer).ok_or_else(|| Reason::Said(Trouble::OddAnswer.to_string()))
}

async fn reserve(
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
fn note(node: &Node, survey: &Survey, at: &NodeName, offered: Option<Offered>) {
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

fn outpaced(bid: &Bid, offered: Offered) -> Refused {
    let cost = offered.predicted.cost();
    let at_most = bid.at_most.unwrap_or(cost);
    Refused {
        reason: Reason::Outpaced { at_most, cost },
        offered,
    }
}

/// Why a clone was not made at one node.
struct NotMade {
    refusal: Refusal,
    /// The node was lost meanwhile: it may have been made all the same.
    is_lost: bool,
}

/// Makes the clone at a node, this one or another.
async fn make(node: &Arc<Node>, at: &NodeName, asker: &Asker, wanted: &Wanted) -> Result<Answered, NotMade> {
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
        is_retry: false,
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

fn view_of(answered: &Answered) -> Option<CloneView> {
    match &answered.answer {
        Answer::Created { clone, .. } => Some(clone.clone()),
        _ => None,
    }
}

fn reason(error: &PeerError) -> Reason {
    match &error.trouble {
        Trouble::Slow(_) => Reason::NoAnswer,
        Trouble::Down => Reason::Down,
        Trouble::Refused(refusal) => Reason::Said(refusal.message.clone()),
        other => Reason::Said(other.to_string()),
    }
}

/// Returns what was considered as clients see it, the chosen one first.
fn told(considered: Vec<placement::Considered>) -> Vec<Considered> {
    let mut told: Vec<_> = considered
        .into_iter()
        .map(|considered| Considered {
            expected: considered.predicted.as_ref().map(bidding::shown),
            offered: considered.offered.as_ref().map(bidding::shown),
            outcome: match considered.outcome {
                placement::Outcome::Chosen => Outcome::Chosen,
                placement::Outcome::Spare => Outcome::Passed,
                placement::Outcome::Out(reason) => Outcome::Refused(reason.to_string()),
            },
            node: considered.node,
        })
        .collect();
    told.sort_by_key(|considered| considered.outcome != Outcome::Chosen);
    told
}

/// What is behind each is right after each statement, so a panic elsewhere spoils nothing.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

/// A choice takes two round trips; of a crowd that waits longer than this everybody goes ahead.
const IN_TURN: Duration = Duration::from_millis(250);
/// Whoever has not said what it offers by then, or within three round trips, is passed over for one that has.
const OFFERED: Duration = Duration::from_millis(50);
/// Where nobody has; the connections may have to be made first.
const OFFERED_AT_LAST: Duration = Duration::from_secs(1);
const RESERVED: Duration = ANSWERED;
