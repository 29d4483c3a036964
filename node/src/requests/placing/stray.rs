//! Clones that may have been made on a node that was lost before it said so, while the request went on to another.
//!
//! What this node has answered the request with is the clone that counts; whatever else was made for it, on the lost node
//! or by it, is taken back when that returns. Until there is an answer nothing is: who asked may have got theirs elsewhere.
//!
//! ```text
//! <state-dir>/strays   node, owner, request and the clone that was answered with, one stray a line
//! ```

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use zdap_proto::message::{Answer, Request, Sought};
use zdap_proto::name::{CloneId, NodeName, RequestId, UserName};

use super::super::finding::ANSWERED;
use super::{Wanted, locked};
use crate::gossip::MemberState;
use crate::node::Node;
use crate::peers::{PeerError, Trouble};
use crate::state::replace;

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
    /// The clone that the request was answered with, once it was.
    answered: Option<CloneId>,
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

    fn line(&self) -> Option<String> {
        let Self {
            node,
            owner,
            request_id,
            answered,
        } = self;
        Some(format!("{node} {owner} {request_id} {}\n", answered.as_ref()?))
    }

    /// What is not understood is of another version, or damaged; then it is as if the node had forgotten it.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self {
            node: words.next()?.parse().ok()?,
            owner: words.next()?.parse().ok()?,
            request_id: words.next()?.parse().ok()?,
            answered: Some(words.next()?.parse().ok()?),
        })
    }
}

impl Strays {
    /// Reads those that were there when the node ended last.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let file = state_dir.join("strays");
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            file,
            waiting: Mutex::new(text.lines().filter_map(Stray::parse).collect()),
            noted: Notify::new(),
        })
    }

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
    }

    /// Notes with which clone a request was answered: whatever else was made for it is to go.
    pub(super) fn answered(&self, wanted: &Wanted, clone: &CloneId) {
        let mut waiting = locked(&self.waiting);
        let mut is_news = false;
        for stray in waiting.iter_mut() {
            if (&stray.owner, &stray.request_id) == (&wanted.owner, &wanted.request_id) {
                stray.answered = Some(clone.clone());
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

/// Destroys what was made for a request on, or by, a node that was lost, unless it is what the request was answered with.
async fn take_back(node: &Arc<Node>, stray: &Stray) -> Result<(), PeerError> {
    let itself = node.identity.subject();
    let find = Request::Find(Sought::Made {
        owner: stray.owner.clone(),
        request_id: stray.request_id.clone(),
    });
    let Answer::Found(found) = node.peers.ask(&stray.node, itself, &find, ANSWERED).await? else {
        return Err(Trouble::OddAnswer.of(&stray.node));
    };
    let Some(found) = found.filter(|found| stray.answered.as_ref() != Some(&found.id)) else {
        return Ok(());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(request_id: &RequestId) -> Wanted {
        Wanted {
            resource: "orders".parse().unwrap(),
            snapshot: None,
            owner: "ada@laptop".parse().unwrap(),
            request_id: request_id.clone(),
        }
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
        strays.answered(&wanted(&answered), &"orders-k3v9x2mq".parse().unwrap());
        let listed = strays.list();
        assert_eq!(listed.len(), 1);
        let again = Strays::open(directory.path()).unwrap();
        assert_eq!(again.list(), listed);
        again.forget(&listed[0]);
        assert_eq!(Strays::open(directory.path()).unwrap().list(), []);
    }
}
