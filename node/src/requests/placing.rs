//! A clone, on the node that is best for it: choose, reserve, make; on the next one if that fails.
//!
//! The policy is [`crate::placement`]'s. Whatever is asked of another node here can be asked twice, and a clone that may
//! have been made on a node that was lost meanwhile is taken back when that node returns.

mod asking;
mod quota;
mod stray;
mod survey;
mod unwanted;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::{Instant, sleep, timeout};
use zdap_proto::message::{Answer, CloneState, Considered, FoundClone, Outcome, SilentNode, Sought, Stages};
use zdap_proto::name::{NodeName, RequestId, UserName};
use zdap_proto::refusal::{Refusal, RefusalKind};

use self::asking::{NotMade, ask_for_offers, make, note, outpaced, reserve};
use self::quota::Quotas;
pub(super) use self::stray::take_back;
pub use self::stray::take_back_strays;
use self::stray::{Stray, Strays};
use self::survey::{Survey, real_name};
pub(super) use self::unwanted::Unwanted;
use super::asker::Asker;
use super::bidding::NotReserved;
use super::finding::{Bounded, Search, search};
use super::making::Wanted;
use super::{Answered, Made, bidding, making, resource_named};
use crate::gossip::MemberState;
use crate::node::Node;
use crate::placement::{self, Choice, Debits, Reason};

/// What this node remembers of the clones it has placed.
#[derive(Debug)]
pub struct Placing {
    debits: Mutex<Debits>,
    turns: Mutex<Bounded<(UserName, RequestId), Turn>>,
    quotas: Quotas,
    strays: Strays,
    pub(super) unwanted: Unwanted,
    /// Held by who chooses a node.
    choosing: tokio::sync::Mutex<()>,
    rng: Mutex<StdRng>,
}

/// One request for a clone at a time, and the clone once it is made.
type Turn = Arc<tokio::sync::Mutex<Option<FoundClone>>>;

impl Placing {
    /// Begins with nothing placed, and with what earlier lives have left to be taken back; `rng` chooses between nodes that
    /// are as good.
    pub fn open(state_dir: &Path, rng: StdRng) -> io::Result<Self> {
        Ok(Self {
            debits: Mutex::default(),
            turns: Mutex::default(),
            quotas: Quotas::default(),
            strays: Strays::open(state_dir)?,
            unwanted: Unwanted::open(state_dir)?,
            choosing: tokio::sync::Mutex::default(),
            rng: Mutex::new(rng),
        })
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
        let is_running = |turn: &Turn| Arc::strong_count(turn) > 1;
        turns.insert_sparing(key, Arc::clone(&turn), is_running);
        turn
    }

    /// Forgets a turn that has led to nothing, unless the same request is made once more right now.
    fn end_turn(&self, wanted: &Wanted, turn: &Turn) {
        let mut turns = locked(&self.turns);
        // Here and there.
        if Arc::strong_count(turn) == 2 {
            turns.remove(&(wanted.owner.clone(), wanted.request_id.clone()));
        }
    }
}

/// Makes a clone on the node that is best for it, or on the one that is named. The same request again, of this node or, said
/// to be a retry, of another, gives the same clone.
pub(super) async fn clone(
    node: &Arc<Node>,
    asker: &Asker,
    wanted: Wanted,
    pinned: Option<NodeName>,
) -> Result<Answered, Refusal> {
    if node.cluster.view().members.len() == 1 && !node.cluster.is_meeting() {
        // What is wrong here is wrong everywhere, and is said in more words.
        resource_named(node, &wanted.resource)?;
    }
    // Every node knows it by its name; an alias may be another's elsewhere.
    let wanted = Wanted {
        resource: real_name(node, &wanted.resource)?,
        ..wanted
    };
    let turn = node.placing.new_turn(&wanted.owner, &wanted.request_id);
    let answered = in_turn(node, asker, &wanted, pinned, &turn).await;
    if answered.is_err() {
        node.placing.end_turn(&wanted, &turn);
    }
    answered
}

async fn in_turn(
    node: &Arc<Node>,
    asker: &Asker,
    wanted: &Wanted,
    pinned: Option<NodeName>,
    turn: &Turn,
) -> Result<Answered, Refusal> {
    let began = Instant::now();
    let mut placed = turn.lock().await;
    if let Some(at) = earlier(node, wanted, placed.as_ref()).await? {
        match make(node, &at, asker, wanted).await {
            Ok(answered) => {
                *placed = settle(node, wanted, &answered);
                // Who asks again has lost the one that made it: nobody else takes it back when it is no longer wanted.
                let made = placed.as_ref().filter(|_| wanted.attempt > 0).map(|found| Made {
                    clone: found.clone.id.clone(),
                    node: found.clone.node.clone(),
                    attempt: wanted.attempt,
                });
                return Ok(Answered { made, ..answered });
            }
            Err(NotMade { refusal, is_lost }) => {
                if !is_lost {
                    return Err(refusal);
                }
                node.placing.strays.note(Stray::new(&at, wanted));
            }
        }
    }

    match place(node, asker, wanted, pinned, began).await {
        Ok(answered) => {
            *placed = settle(node, wanted, &answered);
            Ok(answered)
        }
        Err(refusal) => {
            // It may be answered by another node from here on; a retry here looks for the clone again.
            node.placing.strays.refused(wanted);
            Err(refusal)
        }
    }
}

/// Returns the one clone of this request from now on.
fn settle(node: &Node, wanted: &Wanted, answered: &Answered) -> Option<FoundClone> {
    let Answer::Created { clone, .. } = &answered.answer else {
        return None;
    };
    let placed = FoundClone {
        clone: clone.clone(),
        attempt: wanted.attempt,
    };
    node.placing.strays.answered(wanted, &placed);
    Some(placed)
}

/// Chooses a node, reserves a place there, and makes the clone; on the next one if that fails, a few times.
async fn place(
    node: &Arc<Node>,
    asker: &Asker,
    wanted: &Wanted,
    pinned: Option<NodeName>,
    began: Instant,
) -> Result<Answered, Refusal> {
    if node.cluster.view().members.len() == 1 {
        making::snapshot_of(node, &wanted.resource, wanted.snapshot)?;
    }
    let _counted = node.placing.quotas.admit(node, wanted).await?;
    // One after the other: what the one before has placed, and has learned of the others, is in what the next one sees.
    let mut choosing = timeout(IN_TURN, node.placing.choosing.lock()).await.ok();
    let survey = Survey::of(node, wanted, pinned);
    let mut choice = {
        let mut rng = locked(&node.placing.rng);
        let ranking = survey.rank(&mut *rng);
        Choice::new(ranking, &mut *rng)
    };
    ask_for_offers(node, &survey, &mut choice).await;
    let place_ms = milliseconds(began.elapsed());
    let mut reserving = Duration::ZERO;
    let mut makes = 0;
    let mut failed = Vec::new();
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
        drop(choosing.take());
        makes += 1;
        match make(node, &bid.node, asker, wanted).await {
            Ok(mut answered) => {
                choice.accepted(&bid);
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
                    node.placing.strays.note(Stray::new(&bid.node, wanted));
                }
                // What has failed there may be the node's own trouble; anything else is the request's.
                let has_failed = refusal.kind == RefusalKind::Failed;
                if has_failed && survey.has_no_choice() || !has_failed && !refusal.kind.is_retryable() {
                    return Err(refusal);
                }
                tracing::info!(node = %bid.node, reason = %refusal, "no clone there");
                if has_failed {
                    failed.push(bid.node.clone());
                }
                choice.declined(&bid.node, Reason::Said(refusal.message));
                if makes == MAKES || began.elapsed() >= TRYING {
                    break;
                }
            }
        }
    }
    Err(survey.refusal(&choice.considered(), &failed))
}

/// Returns where this very request has been answered before, or is being and nobody else may go on with it.
async fn earlier(
    node: &Node,
    wanted: &Wanted,
    placed: Option<&FoundClone>,
) -> Result<Option<NodeName>, Refusal> {
    let began = Instant::now();
    loop {
        let here = node.clones.made_for(&wanted.owner, &wanted.request_id);
        let is_ready = here.as_ref().is_some_and(|here| here.state == CloneState::Ready);
        let here = here.map(|_| node.name.clone());
        if is_ready {
            return Ok(here);
        }
        if let Some(placed) = placed {
            return Ok(Some(placed.clone.node.clone()));
        }
        if wanted.attempt == 0 {
            return Ok(here);
        }
        if node.cluster.is_meeting() {
            return Err(may_be_elsewhere(
                "may be on another node, and this one has just started and not met all of them yet",
            ));
        }
        let sought = Sought::Made {
            owner: wanted.owner.clone(),
            request_id: wanted.request_id.clone(),
        };
        let Search { found, silent } = search(node, sought).await;
        // A node that answers the others and not this one may be making the clone. One that is lost does not count: should
        // it come back with a clone, that is taken away.
        let view = node.cluster.view();
        let is_alive = |silent: &&SilentNode| {
            let seen = view.members.get(&silent.node);
            seen.is_some_and(|seen| seen.state == MemberState::Alive)
        };
        let in_the_making = found.map(|found| found.node).or(here);
        match silent.iter().find(is_alive) {
            None => {
                for silent in silent {
                    node.placing.strays.note(Stray::new(&silent.node, wanted));
                }
                return Ok(in_the_making);
            }
            // Whoever has it made answers when that has come to an end.
            Some(_) if in_the_making.is_some() && began.elapsed() < JOINING => sleep(AGAIN).await,
            Some(silent) => {
                return Err(may_be_elsewhere(&format!(
                    "may be in the making on node `{}`, which {}",
                    silent.node, silent.reason
                )));
            }
        }
    }
}

fn may_be_elsewhere(how: &str) -> Refusal {
    Refusal::new(RefusalKind::Unavailable, format!("the clone {how}")).with_hint("try again in a moment")
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

/// For a clone that is in the making as long as a database may take to answer; and how often it is looked at.
const JOINING: Duration = Duration::from_secs(180);
const AGAIN: Duration = Duration::from_millis(100);
/// What fails on so many nodes fails everywhere.
const MAKES: u32 = 3;
/// No node is tried after this: a database that is not ready by then is not so on the next one either.
const TRYING: Duration = Duration::from_secs(20);
/// A choice takes two round trips; of a crowd that waits longer than this everybody goes ahead.
const IN_TURN: Duration = Duration::from_millis(250);
