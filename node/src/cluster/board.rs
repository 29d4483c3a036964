//! What the gossip, those who ask, and this node itself write and read: the [`View`] and what goes with it.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use zdap_proto::digest::NodeDigest;
use zdap_proto::name::{NodeName, UserName};

use super::files::{Files, Remembered};
use super::names::Names;
use super::{Seen, View};
use crate::catalog::{Catalog, Hash, Ledger, Life};
use crate::gossip::{Member, MemberState};

/// What is believed and said.
#[derive(Debug)]
pub(crate) struct Board {
    pub(super) view: watch::Sender<Arc<View>>,
    pub(super) ledger: Mutex<Ledger>,
    /// Whose catalogs are being pulled.
    pub(super) pulling: Mutex<BTreeSet<NodeName>>,
    /// Who is a user at any node, or was.
    pub(super) users: Names<UserName>,
    pub(super) revoked: Names<UserName>,
    /// Nodes that nobody waits for any more.
    pub(super) forgotten: Names<Life>,
    /// Another node told of names that may not be in the files yet.
    pub(super) unwritten: Notify,
    pub(super) is_draining: AtomicBool,
    pub(super) is_stopping: AtomicBool,
    /// The other nodes when this one ended last.
    pub(super) remembered: Vec<Remembered>,
    /// Where others are of which no more is known: this node has just joined.
    pub(super) unmet: Mutex<BTreeSet<String>>,
    pub(super) opened: Instant,
    /// Something that this node says of itself may have changed.
    pub(super) changed: Notify,
    pub(crate) files: Files,
}

/// Something that the gossip has heard.
#[derive(Debug)]
pub(crate) enum News {
    /// A member is new or has changed.
    Member(Member),
    /// The gossip knows a member no more: it has been down for long, or whoever knew it was lost.
    Forgotten(NodeName),
    /// A node said something new of itself.
    Digest(NodeDigest),
    /// This node has come back under another epoch.
    Renewed(u64),
}

impl Board {
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Writes down what was heard. `digests` gives those that came before their nodes were known.
    pub(crate) fn hear(&self, news: Vec<News>, digests: impl FnOnce() -> Vec<(NodeDigest, Duration)>) {
        let now = Instant::now();
        self.view.send_modify(|view| {
            let view = Arc::make_mut(view);
            let forgotten = self.forgotten.all();
            let mut has_newcomers = false;
            for news in news {
                match news {
                    News::Member(member) => {
                        self.meet(&member.address.to_string());
                        has_newcomers |= view.note(member, &forgotten);
                    }
                    News::Forgotten(name) => view.forget(&name),
                    News::Digest(digest) => view.overhear(digest, now),
                    News::Renewed(epoch) => {
                        if let Some(me) = view.members.get_mut(&view.me) {
                            me.epoch = epoch;
                        }
                    }
                }
            }
            if has_newcomers {
                for (digest, age) in digests() {
                    let is_new = |seen: &Seen| seen.digest.is_none();
                    if view.members.get(&digest.node).is_some_and(is_new) {
                        view.overhear(digest, now.checked_sub(age).unwrap_or(now));
                    }
                }
            }
        });
    }

    /// Changes what is believed of one node, if it is known.
    pub(super) fn change(&self, name: &NodeName, change: impl FnOnce(&mut Seen)) {
        self.view.send_if_modified(|view| {
            let seen = Arc::make_mut(view).members.get_mut(name);
            seen.map(change).is_some()
        });
    }

    /// Keeps what a node told.
    pub(crate) fn keep(&self, of: &NodeName, catalog: Catalog) {
        self.meet(&catalog.facts.address);
        self.note_users(&catalog.facts.users);
        if self.revoked.add(&catalog.facts.revoked) {
            self.changed.notify_one();
            self.unwritten.notify_one();
        }
        if self.forget(&catalog.facts.forgotten) {
            self.unwritten.notify_one();
        }
        self.change(of, |seen| seen.catalog = Some(Arc::new(catalog)));
    }

    /// Returns whose catalogs are to be pulled, and marks them as being so: of `names`, or of all.
    pub(crate) fn begin_to_pull(self: &Arc<Self>, names: Option<BTreeSet<NodeName>>) -> Vec<Pulling> {
        let view = self.view();
        let names = names.unwrap_or_else(|| view.members.keys().cloned().collect());
        let mut pulling = self.pulling.lock().unwrap_or_else(PoisonError::into_inner);
        let is_stale = |name: &NodeName| view.members.get(name).is_some_and(Seen::is_stale);
        let stale = names
            .into_iter()
            .filter(|name| *name != view.me && is_stale(name));
        let begun = stale.filter(|name| pulling.insert(name.clone()));
        begun
            .map(|of| Pulling {
                of,
                board: Arc::clone(self),
            })
            .collect()
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes who is a user; it is written down soon.
    pub(super) fn note_users(&self, users: &BTreeSet<UserName>) {
        if self.users.add(users) {
            self.unwritten.notify_one();
        }
    }

    /// Returns the users of nodes that were lost: no other that is there tells of them.
    pub(super) fn orphaned_users(&self) -> BTreeSet<UserName> {
        let view = self.view();
        let others = view.members.iter().filter(|(name, _)| **name != view.me);
        let living = others.filter(|(_, seen)| seen.state != MemberState::Down);
        let catalogs = living.filter_map(|(_, seen)| seen.catalog.as_ref());
        let told: BTreeSet<&UserName> = catalogs.flat_map(|catalog| &catalog.facts.users).collect();
        let mut users = self.users.all();
        users.retain(|user| !told.contains(user));
        users
    }

    pub(super) fn revoke(&self, user: &UserName) -> io::Result<()> {
        // Also when it cannot be written down: until the next start is better than not at all.
        if self.revoked.add(&BTreeSet::from([user.clone()])) {
            self.changed.notify_one();
        }
        let written = self.revoked.write();
        if written.is_err() {
            self.unwritten.notify_one();
        }
        written
    }

    /// Waits no more for these nodes; returns whether any is new.
    pub(super) fn forget(&self, lives: &BTreeSet<Life>) -> bool {
        let news: BTreeSet<Life> = lives.difference(&self.forgotten.all()).cloned().collect();
        if news.is_empty() {
            return false;
        }
        self.forgotten.add(&news);
        self.view.send_modify(|view| Arc::make_mut(view).lose(&news));
        self.changed.notify_one();
        true
    }

    /// Returns the last life of a node that nobody waits for any more.
    pub(crate) fn forgotten_epoch(&self, name: &NodeName) -> Option<u64> {
        let forgotten = self.forgotten.all();
        let lives = forgotten.iter().filter(|life| life.node == *name);
        lives.map(|life| life.epoch).max()
    }

    /// Returns where nodes are that this one has never met.
    pub(super) fn unmet(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.unmet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meet(&self, address: &str) {
        self.unmet().remove(address);
    }

    pub(super) fn write_names(&self) -> io::Result<()> {
        // One that cannot be written does not keep the others from it.
        let (users, revoked, forgotten) = (self.users.write(), self.revoked.write(), self.forgotten.write());
        users.and(revoked).and(forgotten)
    }
}

/// A catalog that is being pulled; not any more when dropped.
#[derive(Debug)]
pub(crate) struct Pulling {
    pub(crate) of: NodeName,
    board: Arc<Board>,
}

impl Pulling {
    /// Returns what the node's newest digest says its catalog is, and the one that is held; nothing if they are the same.
    pub(crate) fn wanted(&self) -> Option<(Hash, Option<Arc<Catalog>>)> {
        let view = self.board.view();
        let seen = view.members.get(&self.of).filter(|seen| seen.is_stale())?;
        let digest = &seen.digest.as_ref()?.digest;
        Some((digest.report.catalog_hash, seen.catalog.clone()))
    }

    pub(crate) fn keep(&self, catalog: Catalog) {
        self.board.keep(&self.of, catalog);
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        let mut pulling = self.board.pulling.lock().unwrap_or_else(PoisonError::into_inner);
        pulling.remove(&self.of);
    }
}
