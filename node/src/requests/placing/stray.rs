//! Clones that may have been made on a node that was lost before it said so, while the request went on to another.
//!
//! When the lost node returns there may be two clones of one request: the one that this node has answered it with, and
//! one that was made on the lost node or by it. Of the two the one stays that was the answer to the later attempt, since
//! nobody heeds the answer to an earlier one; the other is taken back. Until this node has answered, nothing is.
//!
//! ```text
//! <state-dir>/strays   lost node, owner, request; attempt, clone and its node that were the answer: one stray a line
//! ```

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;
use zdap_proto::message::{Answer, FoundClone, Request, Sought};
use zdap_proto::name::{CloneId, NodeName, RequestId, UserName};

use super::super::Made;
use super::super::finding::{ANSWERED, here};
use super::{Wanted, locked};
use crate::gossip::MemberState;
use crate::node::Node;
use crate::peers::{PeerError, Trouble};
use crate::state::{read_if_any, replace};

/// The strays that are not taken back yet.
#[derive(Debug)]
pub(super) struct Strays {
    file: PathBuf,
    waiting: Mutex<VecDeque<Stray>>,
    noted: Notify,
}

/// A clone that may be where it should not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stray {
    node: NodeName,
    owner: UserName,
    request_id: RequestId,
    /// What the request was answered with, once it was.
    answered: Option<Answered>,
}

/// What a request was answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answered {
    clone: CloneId,
    node: NodeName,
    attempt: u32,
}

impl Stray {
    pub(super) fn new(node: &NodeName, wanted: &Wanted) -> Self {
        Self {
            node: node.clone(),
            owner: wanted.owner.clone(),
            request_id: wanted.request_id.clone(),
            answered: None,
        }
    }

    fn is_of(&self, wanted: &Wanted) -> bool {
        (&self.owner, &self.request_id) == (&wanted.owner, &wanted.request_id)
    }

    fn line(&self) -> Option<String> {
        let Self {
            node,
            owner,
            request_id,
            answered,
        } = self;
        let Answered {
            clone,
            node: at,
            attempt,
        } = answered.as_ref()?;
        Some(format!("{node} {owner} {request_id} {attempt} {clone} {at}\n"))
    }

    /// What is not understood is of another version, or damaged; then it is as if the node had forgotten it.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self {
            node: words.next()?.parse().ok()?,
            owner: words.next()?.parse().ok()?,
            request_id: words.next()?.parse().ok()?,
            answered: Some(Answered {
                attempt: words.next()?.parse().ok()?,
                clone: words.next()?.parse().ok()?,
                node: words.next()?.parse().ok()?,
            }),
        })
    }
}

impl Strays {
    /// Reads those that were there when the node ended last.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let file = state_dir.join("strays");
        let text = read_if_any(&file)?;
        Ok(Self {
            file,
            waiting: Mutex::new(text.lines().filter_map(Stray::parse).collect()),
            noted: Notify::new(),
        })
    }

    /// Remembers one, until its node is back. Of too many the oldest goes, of too many of one owner the oldest of these.
    pub(super) fn note(&self, stray: Stray) {
        let mut waiting = locked(&self.waiting);
        if waiting.contains(&stray) {
            return;
        }
        let is_theirs = |other: &Stray| other.owner == stray.owner;
        let oldest = match waiting.iter().filter(|other| is_theirs(other)).count() < MOST_OF_ONE {
            true if waiting.len() < MOST => None,
            true => Some(0),
            false => waiting.iter().position(is_theirs),
        };
        if let Some(oldest) = oldest {
            waiting.remove(oldest);
        }
        waiting.push_back(stray);
    }

    /// Forgets what was noted for a request that this node could not answer: somebody else may.
    pub(super) fn refused(&self, wanted: &Wanted) {
        locked(&self.waiting).retain(|stray| stray.answered.is_some() || !stray.is_of(wanted));
    }

    /// Notes with which clone a request was answered: of this and whatever else was made for it one is to go.
    pub(super) fn answered(&self, wanted: &Wanted, with: &FoundClone) {
        let mut waiting = locked(&self.waiting);
        let mut is_news = false;
        for stray in waiting.iter_mut() {
            if stray.is_of(wanted) {
                stray.answered = Some(Answered {
                    clone: with.clone.id.clone(),
                    node: with.clone.node.clone(),
                    attempt: with.attempt,
                });
                is_news = true;
            }
        }
        if is_news {
            self.write(&waiting);
            self.noted.notify_one();
        }
    }

    fn list(&self) -> Vec<Stray> {
        let waiting = locked(&self.waiting);
        let answered = waiting.iter().filter(|stray| stray.answered.is_some());
        answered.cloned().collect()
    }

    fn forget(&self, stray: &Stray) {
        let mut waiting = locked(&self.waiting);
        waiting.retain(|other| other != stray);
        self.write(&waiting);
    }

    fn write(&self, waiting: &VecDeque<Stray>) {
        let text: String = waiting.iter().filter_map(Stray::line).collect();
        if let Err(error) = replace(&self.file, text.as_bytes()) {
            tracing::error!(%error, "write down which clones are to be taken back");
        }
    }
}

/// Destroys strays, and what nobody waits for any more, as soon as their nodes are back, until dropped.
pub async fn take_back_strays(node: Arc<Node>) {
    let mut views = node.cluster.watch();
    let (strays, unwanted) = (&node.placing.strays, &node.placing.unwanted);
    loop {
        let (lost, given_up) = (strays.list(), unwanted.list());
        let view = views.borrow_and_update().clone();
        let is_alive = |name: &NodeName| {
            let seen = view.members.get(name);
            seen.is_some_and(|seen| seen.state == MemberState::Alive)
        };
        let with_some = lost.iter().map(|stray| &stray.node);
        let with_some = with_some.chain(given_up.iter().map(|made| &made.node));
        let back: BTreeSet<&NodeName> = with_some.filter(|name| is_alive(name)).collect();
        drop(view); // whoever changes it meanwhile would have to copy it
        // All at once: a node that hangs holds up no other.
        join_all(back.into_iter().map(|at| async {
            let taken = take_back_from(&node, at, &lost, &given_up).await;
            if let Err(error) = taken {
                tracing::debug!(%error, "take back a clone that was made on a lost node");
            }
        }))
        .await;
        tokio::select! {
            biased; // so that a simulation is the same each time
            () = strays.noted.notified() => {}
            () = unwanted.noted() => {}
            changed = views.changed(), if !(lost.is_empty() && given_up.is_empty()) => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Takes back all that is at one node, or as much as it lets.
async fn take_back_from(
    node: &Arc<Node>,
    at: &NodeName,
    lost: &[Stray],
    given_up: &[Made],
) -> Result<(), PeerError> {
    for made in given_up.iter().filter(|made| made.node == *at) {
        take_back(node, made).await?;
        node.placing.unwanted.forget(made);
    }
    for stray in lost.iter().filter(|stray| stray.node == *at) {
        // Asked for once more meanwhile, it may be the one that somebody has.
        while !choose_one(node, stray).await? {}
        node.placing.strays.forget(stray);
    }
    Ok(())
}

/// Leaves of a request's clones the one that somebody has; returns whether that is so.
async fn choose_one(node: &Arc<Node>, stray: &Stray) -> Result<bool, PeerError> {
    let Some(answered) = &stray.answered else {
        return Ok(true);
    };
    let made = Sought::Made {
        owner: stray.owner.clone(),
        request_id: stray.request_id.clone(),
    };
    let Some(FoundClone { clone: found, .. }) = find(node, &stray.node, made).await? else {
        return Ok(true);
    };
    if found.id == answered.clone {
        return Ok(true);
    }
    // Each is asked for at its own node, which knows the last attempt that it was an answer to.
    let Some(other) = find(node, &found.node, Sought::Clone(found.id)).await? else {
        return Ok(true);
    };
    let ours = find(node, &answered.node, Sought::Clone(answered.clone.clone())).await?;
    let attempt = ours.as_ref().map_or(answered.attempt, |ours| ours.attempt);
    let FoundClone {
        clone: stale,
        attempt,
    } = match (ours, other.attempt > attempt) {
        (_, false) => other,
        (Some(ours), true) => ours,
        (None, true) => return Ok(true),
    };
    tracing::info!(clone = %stale.id, node = %stale.node, "taking back a clone that nobody was told of, since a node was lost");
    if let Some(turn) = node.placing.turn(&stray.owner, &stray.request_id) {
        turn.lock().await.take_if(|placed| placed.clone.id == stale.id);
    }
    let stale = Made {
        clone: stale.id,
        node: stale.node,
        attempt,
    };
    take_back(node, &stale).await
}

/// Destroys a clone at its node, this one or another, unless it was the answer to a later attempt; returns whether it is
/// gone, or says why it may still be there.
pub(in super::super) async fn take_back(node: &Arc<Node>, made: &Made) -> Result<bool, PeerError> {
    let Made {
        clone,
        node: at,
        attempt,
    } = made;
    if *at == node.name {
        return Ok(node.clones.take_back(clone, *attempt).await);
    }
    let request = Request::TakeBack {
        clone: clone.clone(),
        attempt: *attempt,
    };
    let itself = node.identity.subject();
    let Answer::TakenBack { is_gone } = node.peers.ask(at, itself, &request, DESTROYED).await? else {
        return Err(Trouble::OddAnswer.of(at));
    };
    Ok(is_gone)
}

/// Asks a node, this one or another, for a clone.
async fn find(node: &Arc<Node>, at: &NodeName, sought: Sought) -> Result<Option<FoundClone>, PeerError> {
    if *at == node.name {
        return Ok(here(node, &sought).await);
    }
    let (itself, request) = (node.identity.subject(), Request::Find(sought));
    let Answer::Found(found) = node.peers.ask(at, itself, &request, ANSWERED).await? else {
        return Err(Trouble::OddAnswer.of(at));
    };
    Ok(found)
}

/// A node goes on with what it was asked when nobody waits any more, so that the next time there is nothing left to do.
const DESTROYED: Duration = Duration::from_secs(10);
/// Requests that were under way at one moment.
const MOST: usize = 1024;
/// Of one owner, so that nobody's are forgotten for those of another.
const MOST_OF_ONE: usize = 64;

#[cfg(test)]
mod tests {
    use zdap_proto::message::{CloneState, CloneView};

    use super::*;

    fn wanted(request_id: &RequestId) -> Wanted {
        Wanted {
            resource: "orders".parse().unwrap(),
            snapshot: None,
            owner: "ada@laptop".parse().unwrap(),
            request_id: request_id.clone(),
            attempt: 0,
        }
    }

    fn placed() -> FoundClone {
        let clone = CloneView {
            id: "orders-k3v9x2mq".parse().unwrap(),
            resource: "orders".parse().unwrap(),
            node: "db2".parse().unwrap(),
            owner: "ada@laptop".parse().unwrap(),
            snapshot: "2026-11-22T13:39:25Z".parse().unwrap(),
            created_at: "2026-11-22T14:00:00Z".parse().unwrap(),
            state: CloneState::Ready,
            pooled: false,
            expires_at: None,
        };
        FoundClone { clone, attempt: 2 }
    }

    #[test]
    fn nobodys_strays_are_forgotten_for_those_of_another_and_what_was_refused_is_nobodys() {
        let directory = tempfile::tempdir().unwrap();
        let strays = Strays::open(directory.path()).unwrap();
        let node: NodeName = "db1".parse().unwrap();
        let ours = wanted(&RequestId::random());
        strays.note(Stray::new(&node, &ours));
        let of_another = || Wanted {
            owner: "eve".parse().unwrap(),
            ..wanted(&RequestId::random())
        };
        for _ in 0..2 * MOST {
            strays.note(Stray::new(&node, &of_another()));
        }
        assert_eq!(locked(&strays.waiting).len(), 1 + MOST_OF_ONE);
        let refused = wanted(&RequestId::random());
        strays.note(Stray::new(&node, &refused));
        strays.refused(&refused);
        strays.answered(&refused, &placed());
        assert_eq!(strays.list(), []);
        strays.answered(&ours, &placed());
        strays.refused(&ours);
        assert_eq!(strays.list().len(), 1);
    }

    #[test]
    fn what_was_answered_outlives_the_node_and_what_was_not_is_never_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let strays = Strays::open(directory.path()).unwrap();
        let (answered, open) = (RequestId::random(), RequestId::random());
        let node: NodeName = "db1".parse().unwrap();
        for request_id in [&answered, &open] {
            strays.note(Stray::new(&node, &wanted(request_id)));
        }
        assert_eq!(strays.list(), []);
        strays.answered(&wanted(&answered), &placed());
        let listed = strays.list();
        assert_eq!(listed.len(), 1);
        let again = Strays::open(directory.path()).unwrap();
        assert_eq!(again.list(), listed);
        again.forget(&listed[0]);
        assert_eq!(Strays::open(directory.path()).unwrap().list(), []);
    }
}
