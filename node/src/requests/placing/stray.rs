//! Clones that may have been made on a node that was lost before it said so, while the request went on to another.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use zdap_proto::message::{Answer, Request, Sought};
use zdap_proto::name::{NodeName, RequestId, UserName};

use super::super::finding::ANSWERED;
use super::{Wanted, locked};
use crate::gossip::MemberState;
use crate::node::Node;
use crate::peers::{PeerError, Trouble};

/// The strays that are not taken back yet.
#[derive(Debug, Default)]
pub(super) struct Strays {
    waiting: Mutex<VecDeque<Stray>>,
    noted: Notify,
}

/// A clone that may be where it should not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stray {
    node: NodeName,
    owner: UserName,
    request_id: RequestId,
}

impl Stray {
    pub(super) fn new(node: &NodeName, wanted: &Wanted) -> Self {
        Self {
            node: node.clone(),
            owner: wanted.owner.clone(),
            request_id: wanted.request_id.clone(),
        }
    }
}

impl Strays {
    /// Remembers one, until its node is back.
    pub(super) fn note(&self, stray: Stray) {
        let mut waiting = locked(&self.waiting);
        if waiting.contains(&stray) {
            return;
        }
        if waiting.len() == MOST {
            waiting.pop_front();
        }
        waiting.push_back(stray);
        self.noted.notify_one();
    }

    fn list(&self) -> Vec<Stray> {
        locked(&self.waiting).iter().cloned().collect()
    }

    fn forget(&self, stray: &Stray) {
        locked(&self.waiting).retain(|other| other != stray);
    }
}

/// Destroys strays as soon as their nodes are back, until dropped.
pub async fn take_back_strays(node: Arc<Node>) {
    let mut views = node.cluster.watch();
    let strays = &node.placing.strays;
    loop {
        let waiting = strays.list();
        let view = views.borrow_and_update().clone();
        for stray in &waiting {
            let seen = view.members.get(&stray.node);
            if !seen.is_some_and(|seen| seen.state == MemberState::Alive) {
                continue;
            }
            match take_back(&node, stray).await {
                Ok(()) => strays.forget(stray),
                Err(error) => tracing::debug!(%error, "take back a clone that was made on a lost node"),
            }
        }
        tokio::select! {
            biased; // so that a simulation is the same each time
            () = strays.noted.notified() => {}
            changed = views.changed(), if !waiting.is_empty() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Destroys what was made for a request on, or by, a node that was lost, if this node has answered the request with another
/// clone. If it has not, what was made there is the one, or nobody knows of it and it is no second one.
async fn take_back(node: &Arc<Node>, stray: &Stray) -> Result<(), PeerError> {
    let Some(turn) = node.placing.turn(&stray.owner, &stray.request_id) else {
        return Ok(());
    };
    let Some(answered) = turn.lock().await.clone() else {
        return Ok(());
    };
    let itself = node.identity.subject();
    let find = Request::Find(Sought::Made {
        owner: stray.owner.clone(),
        request_id: stray.request_id.clone(),
    });
    let found = match node.peers.ask(&stray.node, itself, &find, ANSWERED).await? {
        Answer::Found(Some(found)) if found.id != answered.id => found,
        Answer::Found(_) => return Ok(()),
        _ => return Err(Trouble::OddAnswer.of(&stray.node)),
    };
    tracing::info!(clone = %found.id, node = %found.node, through = %stray.node, "taking back a clone that was made on a lost node");
    if found.node == node.name {
        node.clones.destroy(&found.id).await;
        return Ok(());
    }
    let destroy = Request::DestroyClone { clone: found.id };
    let done = node.peers.ask_patiently(&found.node, itself, &destroy, |_| {});
    done.await.map(drop)
}

/// Requests that were under way at one moment.
const MOST: usize = 1024;
