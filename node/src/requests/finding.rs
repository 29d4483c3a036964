//! Which node has a clone: this one, one that is known to, or whichever says so when all are asked.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use zdap_proto::message::{
    Answer, CloneRecord, CloneState, CloneView, FoundClone, Request, SilentNode, Sought,
};
use zdap_proto::name::{CloneId, NodeName};
use zdap_proto::refusal::{Refusal, RefusalKind};

use crate::gossip::MemberState;
use crate::node::Node;
use crate::peers::{PeerError, Trouble};

/// Where the clones of other nodes are, of as many as fit: a clone never moves. And what came of the latest searches.
#[derive(Debug, Default)]
pub struct Located {
    known: Mutex<Bounded<CloneId, NodeName>>,
    searches: Mutex<Bounded<CloneId, Arc<Searched>>>,
}

/// When a clone was last looked for, and what came of it; who holds the lock is searching.
type Searched = tokio::sync::Mutex<Option<(Instant, Whereabouts)>>;

/// The node that has a clone; none if no node has.
type Whereabouts = Result<Option<NodeName>, Refusal>;

impl Located {
    pub(super) fn note(&self, clone: &CloneId, node: &NodeName) {
        self.bounded().insert(clone.clone(), node.clone());
    }

    fn get(&self, clone: &CloneId) -> Option<NodeName> {
        self.bounded().get(clone).cloned()
    }

    /// Makes one `search` for all who look for the same clone meanwhile. That it is nowhere holds for a moment longer: an id is
    /// told to nobody before there is a clone.
    async fn shared(&self, clone: &CloneId, search: impl Future<Output = Whereabouts>) -> Whereabouts {
        let began = Instant::now();
        let searched = self.searched(clone);
        let mut last = searched.lock().await;
        if let Some((ended, found)) = &*last
            && (*ended > began || matches!(found, Ok(None)) && ended.elapsed() < NOWHERE)
        {
            return found.clone();
        }
        let found = search.await;
        *last = Some((Instant::now(), found.clone()));
        found
    }

    fn searched(&self, clone: &CloneId) -> Arc<Searched> {
        let mut searches = self.searches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(searched) = searches.get(clone) {
            return Arc::clone(searched);
        }
        let searched = Arc::default();
        let is_running = |searched: &Arc<Searched>| Arc::strong_count(searched) > 1;
        searches.insert_sparing(clone.clone(), Arc::clone(&searched), is_running);
        searched
    }

    fn bounded(&self) -> std::sync::MutexGuard<'_, Bounded<CloneId, NodeName>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As many values as fit; the oldest goes first.
#[derive(Debug)]
pub(super) struct Bounded<K, V> {
    values: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Bounded<K, V> {
    fn default() -> Self {
        Self {
            values: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, V> Bounded<K, V> {
    pub(super) fn insert(&mut self, key: K, value: V) {
        self.insert_sparing(key, value, |_| false);
    }

    /// Inserts, and lets go of no value that is to be spared, even if there are too many then.
    pub(super) fn insert_sparing(&mut self, key: K, value: V, is_spared: impl Fn(&V) -> bool) {
        if self.values.insert(key.clone(), value).is_some() {
            return;
        }
        self.order.push_back(key);
        while self.order.len() > REMEMBERED {
            let may_go = |key: &K| !self.values.get(key).is_some_and(&is_spared);
            let Some(oldest) = self.order.iter().position(may_go) else {
                return;
            };
            if let Some(oldest) = self.order.remove(oldest) {
                self.values.remove(&oldest);
            }
        }
    }

    pub(super) fn remove(&mut self, key: &K) {
        if self.values.remove(key).is_some() {
            self.order.retain(|other| other != key);
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.values.get(key)
    }
}

/// Returns the node that has a clone, if it is another one: none if the clone is here, or nowhere. Refused if it is not
/// found and some node could not be asked.
pub(crate) async fn elsewhere(node: &Node, clone: &CloneId) -> Result<Option<NodeName>, Refusal> {
    if node.clones.find(clone).is_some() {
        return Ok(None);
    }
    if let Some(owner) = node.located.get(clone)
        && node.cluster.view().members.contains_key(&owner)
    {
        return Ok(Some(owner));
    }
    node.located.shared(clone, search_everywhere(node, clone)).await
}

async fn search_everywhere(node: &Node, clone: &CloneId) -> Whereabouts {
    // Whoever is met while the others are asked is not asked.
    let missed = node.cluster.missed();
    let Search { found, silent } = search(node, Sought::Clone(clone.clone())).await;
    match found {
        Some(view) => {
            node.located.note(clone, &view.node);
            Ok(Some(view.node))
        }
        None if silent.is_empty() => match missed {
            None => Ok(None),
            Some(address) => Err(not_met(clone, &address)),
        },
        None => Err(unknown_whereabouts(clone, &silent)),
    }
}

/// Returns a clone of this node. For one that is named by its request and not ready here, waits until this node has done its
/// part in that: it may be placing it on another one right now, or be about to, should the one in the making here fail.
pub(super) async fn here(node: &Node, sought: &Sought) -> Option<FoundClone> {
    let found = |record: CloneRecord| FoundClone {
        clone: record.view(&node.name),
        attempt: record.attempt,
    };
    match sought {
        Sought::Clone(clone) => node.clones.find(clone).map(found),
        Sought::Made { owner, request_id } => {
            let made_here = || node.clones.made_for(owner, request_id).map(found);
            let is_ready = |found: &FoundClone| found.clone.state == CloneState::Ready;
            if let Some(made) = made_here().filter(is_ready) {
                return Some(made);
            }
            match node.placing.turn(owner, request_id) {
                Some(turn) => turn.lock().await.clone().or_else(made_here),
                None => made_here(),
            }
        }
    }
}

/// What came of asking every node.
pub(super) struct Search {
    /// What was looked for, at another node.
    pub(super) found: Option<CloneView>,
    /// The nodes that may have it and could not be asked. None counts once it is found, unless it is named by its request
    /// and still in the making: it may fail, and one of these go on with the request.
    pub(super) silent: Vec<SilentNode>,
}

/// Asks all other nodes at once; the first that has it for good ends the search.
pub(super) async fn search(node: &Node, sought: Sought) -> Search {
    let (others, mut silent) = others(node);
    let mut in_the_making = None;
    let is_for_good = |clone: &CloneView| match &sought {
        Sought::Clone(_) => true,
        Sought::Made { .. } => clone.state != CloneState::Creating,
    };
    let (itself, request) = (node.identity.subject(), Request::Find(sought.clone()));
    let mut asked: FuturesUnordered<_> = others
        .iter()
        .map(|other| async {
            let answer = node.peers.ask(other, itself, &request, ANSWERED).await;
            match answer {
                Ok(Answer::Found(found)) => Ok(found),
                Ok(_) => Err(Trouble::OddAnswer.of(other)),
                Err(error) => Err(error),
            }
        })
        .collect();
    while let Some(result) = asked.next().await {
        match result {
            Ok(Some(found)) if is_for_good(&found.clone) => {
                return Search {
                    found: Some(found.clone),
                    silent: Vec::new(),
                };
            }
            Ok(Some(found)) => in_the_making = Some(found.clone),
            Ok(None) => {}
            Err(error) => silent.push(silence(&error)),
        }
    }
    silent.sort_by(|a, b| a.node.cmp(&b.node));
    Search {
        found: in_the_making,
        silent,
    }
}

/// Returns the nodes that can be asked, and those that cannot. One that is down may have got clones since it was last heard
/// of, on the other side of a split.
pub(super) fn others(node: &Node) -> (Vec<NodeName>, Vec<SilentNode>) {
    let view = node.cluster.view();
    let (mut asked, mut silent) = (Vec::new(), Vec::new());
    for (name, seen) in view.members.iter().filter(|(name, _)| **name != node.name) {
        match seen.state {
            MemberState::Alive | MemberState::Suspect => asked.push(name.clone()),
            MemberState::Down => silent.push(SilentNode {
                node: name.clone(),
                reason: Trouble::Down.to_string(),
            }),
        }
    }
    (asked, silent)
}

/// Names a node that has not answered.
pub(super) fn silence(error: &PeerError) -> SilentNode {
    let mut reason = error.trouble.to_string();
    if let Some(source) = std::error::Error::source(&error.trouble) {
        reason = format!("{reason}: {}", zdap_proto::refusal::chain(source));
    }
    SilentNode {
        node: error.node.clone(),
        reason,
    }
}

fn not_met(clone: &CloneId, address: &str) -> Refusal {
    Refusal::new(
        RefusalKind::Unavailable,
        format!(
            "`{clone}` is on none of the nodes that answer, and may be on the one at {address}, which this node has not \
             met since it started"
        ),
    )
    .with_hint("try again in a moment, or through another node")
}

fn unknown_whereabouts(clone: &CloneId, silent: &[SilentNode]) -> Refusal {
    let lines: Vec<_> = silent
        .iter()
        .map(|SilentNode { node, reason }| format!("\n  {node}: {reason}"))
        .collect();
    Refusal::new(
        RefusalKind::Unavailable,
        format!(
            "`{clone}` is on none of the nodes that answer, and may be on one that does not{}",
            lines.concat()
        ),
    )
    .with_hint("try again when it is back; `zdap list nodes` shows how the nodes are")
}

/// Whoever has not answered by then is named as silent.
pub(super) const ANSWERED: Duration = Duration::from_secs(3);
/// Whoever asks for the same again and again costs the other nodes a question now and then.
const NOWHERE: Duration = Duration::from_secs(2);
/// A few hundred KiB.
const REMEMBERED: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_more_than_fit_the_oldest_is_forgotten_and_what_is_told_again_takes_no_place() {
        let mut bounded = Bounded::default();
        for number in 0..REMEMBERED {
            bounded.insert(number, number);
            bounded.insert(number, number + 1);
        }
        assert_eq!(bounded.get(&0), Some(&1));
        bounded.insert(REMEMBERED, 0);
        assert_eq!((bounded.get(&0), bounded.get(&1)), (None, Some(&2)));
        assert_eq!(bounded.order.len(), REMEMBERED);
        assert_eq!(bounded.values.len(), REMEMBERED);
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_look_for_one_clone_at_once_cause_one_search_and_nowhere_holds_for_a_moment() {
        let (located, searches) = (Located::default(), std::cell::Cell::new(0));
        let clone = CloneId::random(&"orders".parse().unwrap());
        let look = |found: Whereabouts| {
            located.shared(&clone, async {
                searches.set(searches.get() + 1);
                tokio::time::sleep(ANSWERED).await;
                found
            })
        };
        let silent = || Err(unknown_whereabouts(&clone, &[]));
        let all = futures_util::future::join_all((0..8).map(|_| look(silent()))).await;
        assert_eq!((all, searches.get()), (vec![silent(); 8], 1));
        // Whoever was silent may answer the next time.
        assert_eq!((look(Ok(None)).await, searches.get()), (Ok(None), 2));
        assert_eq!((look(silent()).await, searches.get()), (Ok(None), 2));
        tokio::time::advance(NOWHERE).await;
        assert_eq!((look(silent()).await, searches.get()), (silent(), 3));
    }

    #[test]
    fn what_is_spared_stays_and_goes_once_it_is_not() {
        let mut bounded = Bounded::default();
        for number in 0..2 * REMEMBERED {
            bounded.insert_sparing(number, number, |number| *number == 0);
        }
        assert_eq!((bounded.get(&0), bounded.get(&1)), (Some(&0), None));
        assert_eq!(bounded.order.len(), REMEMBERED);
        for number in 0..=REMEMBERED {
            bounded.insert_sparing(number, number, |_| true);
        }
        assert!(bounded.order.len() > REMEMBERED);
        bounded.insert(usize::MAX, 0);
        assert_eq!(bounded.order.len(), REMEMBERED);
        bounded.remove(&usize::MAX);
        assert_eq!(
            (bounded.order.len(), bounded.values.len()),
            (REMEMBERED - 1, REMEMBERED - 1)
        );
    }
}
