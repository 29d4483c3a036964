//! What a node tells the others of itself beside its digest: where it is reached, its resources and snapshots, who is
//! known there. Too large for a packet, so it is pulled over a stream when the digest says that there is a newer one.
//!
//! The node it is about keeps a [`Ledger`]: each entry with the version that last changed it, and what was removed. From it
//! comes an [`Update`] for whoever holds an older version; others hold the [`Catalog`] itself, and pass it on whole.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use zdap_proto::name::{NodeName, ResourceName, SnapshotId, UserName};

/// What a node tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Where clients and other nodes connect, `host:port`.
    pub address: String,
    /// The resources it serves.
    pub resources: BTreeMap<ResourceName, ResourceFacts>,
    /// Its snapshots, each with the bytes it refers to.
    pub snapshots: BTreeMap<SnapshotId, u64>,
    /// Who is enrolled there, promised a name, or owns a clone; and who was so at a node that was lost, if nobody else tells.
    pub users: BTreeSet<UserName>,
    /// Whose certificates are good no more; nobody is ever taken off.
    pub revoked: BTreeSet<UserName>,
    /// Nodes that nobody waits for any more; none is ever taken off.
    pub forgotten: BTreeSet<Life>,
}

/// A node up to the end of one of its lives. One that comes back begins another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Life {
    /// Which.
    pub node: NodeName,
    /// The last that counts.
    pub epoch: u64,
}

impl Life {
    /// Whether a node of this name and epoch is meant.
    pub fn covers(&self, node: &NodeName, epoch: u64) -> bool {
        self.node == *node && epoch <= self.epoch
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.node, self.epoch)
    }
}

impl FromStr for Life {
    type Err = LifeError;

    fn from_str(line: &str) -> Result<Self, LifeError> {
        let read = || {
            let (node, epoch) = line.split_once(' ')?;
            Some(Self {
                node: node.parse().ok()?,
                epoch: epoch.parse().ok()?,
            })
        };
        read().ok_or(LifeError)
    }
}

/// What is not a [`Life`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not `NODE EPOCH`")]
pub struct LifeError;

/// What others need to know of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceFacts {
    /// Its second name.
    pub alias: Option<String>,
    /// The image it runs in.
    pub image: String,
    /// The longest time between two restores, in seconds; absent if it is not restored by itself.
    pub period_seconds: Option<u64>,
    /// The memory that a clone is allowed, in bytes; absent if there is no limit.
    pub clone_memory_bytes: Option<u64>,
    /// How many clones are kept ready, at least and at most; absent if none are.
    pub pool: Option<PoolSize>,
}

/// How many clones are kept ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSize {
    /// So many.
    pub min: u32,
    /// At most so many, those given away included.
    pub max: u32,
}

/// Orders the catalogs of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// Grows with each start of the node.
    pub generation: u64,
    /// Grows with each change.
    pub number: u64,
}

/// What a node told of itself, at one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    /// Which.
    pub version: Version,
    /// Digest of the facts: the same at every node that holds them.
    pub hash: Hash,
    /// What it told.
    pub facts: Facts,
}

/// The first bytes of a SHA-256.
pub type Hash = [u8; 8];

/// What brings a held catalog up to date.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Update {
    /// All there is.
    Full {
        /// The version that it is.
        version: Version,
        /// Digest of the facts.
        hash: Hash,
        /// All.
        facts: Facts,
    },
    /// What has changed.
    Delta {
        /// The version it follows.
        since: Version,
        /// The version it leads to.
        version: Version,
        /// Digest of the facts at that version.
        hash: Hash,
        /// The address, and the other entries that are new or changed.
        changed: Facts,
        /// The entries that are gone.
        removed: Vec<Key>,
    },
}

/// What an entry is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// A resource.
    Resource(ResourceName),
    /// A snapshot.
    Snapshot(SnapshotId),
    /// A user.
    User(UserName),
    /// A user whose certificates are good no more.
    Revoked(UserName),
    /// A node that nobody waits for any more.
    Forgotten(Life),
}

/// An update that is not taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// It follows a version that is not held.
    #[error("it follows the version {since:?}, and {held:?} is held")]
    Gap {
        /// The version it follows.
        since: Version,
        /// The one that is held.
        held: Option<Version>,
    },
    /// The facts are not those it was made of.
    #[error("its facts have another hash than they should")]
    Hash,
    /// What is held is newer.
    #[error("it is of the version {offered:?}, and {held:?} is held")]
    Old {
        /// The version it leads to.
        offered: Version,
        /// The one that is held.
        held: Version,
    },
    /// More than any node has.
    #[error("it has {count} {what}, more than {most}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many there may be.
        most: usize,
    },
}

impl Catalog {
    /// Makes the catalog of some facts.
    pub fn new(version: Version, facts: Facts) -> Self {
        Self {
            version,
            hash: facts.hash(),
            facts,
        }
    }

    /// Returns it whole, for whoever holds none.
    pub fn whole(&self) -> Update {
        Update::Full {
            version: self.version,
            hash: self.hash,
            facts: self.facts.clone(),
        }
    }

    /// Returns what follows `held` by an update. `wanted` is the hash in the node's newest digest: what has it is right,
    /// and anything else must at least be newer than what is held, so that no version goes back.
    pub fn following(held: Option<&Self>, update: Update, wanted: Hash) -> Result<Self, CatalogError> {
        let (catalog, hash) = match update {
            Update::Full { version, hash, facts } => (Self::new(version, facts), hash),
            Update::Delta {
                since,
                version,
                hash,
                changed,
                removed,
            } => {
                let held = held
                    .filter(|held| held.version == since)
                    .ok_or_else(|| CatalogError::Gap {
                        since,
                        held: held.map(|held| held.version),
                    })?;
                (Self::new(version, held.facts.with(changed, &removed)), hash)
            }
        };
        catalog.facts.check()?;
        if catalog.hash != hash {
            return Err(CatalogError::Hash);
        }
        match held {
            Some(held) if held.version >= catalog.version && catalog.hash != wanted => {
                Err(CatalogError::Old {
                    offered: catalog.version,
                    held: held.version,
                })
            }
            Some(_) | None => Ok(catalog),
        }
    }
}

/// A node's own catalog, and how it came to be what it is.
#[derive(Debug)]
pub struct Ledger {
    current: Arc<Catalog>,
    /// The number of the version that last changed an entry.
    changed: BTreeMap<Key, u64>,
    /// The number of the version that removed an entry.
    removed: BTreeMap<Key, u64>,
    /// What was removed before this version is not remembered any more.
    forgotten_before: u64,
}

impl Ledger {
    /// Begins with the first version of a generation.
    pub fn new(generation: u64, facts: Facts) -> Self {
        let version = Version {
            generation,
            number: 1,
        };
        Self {
            changed: facts.keys().into_iter().map(|key| (key, 1)).collect(),
            current: Arc::new(Catalog::new(version, facts)),
            removed: BTreeMap::new(),
            forgotten_before: 0,
        }
    }

    /// Returns the newest version.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.current
    }

    /// Makes a new version if the facts have changed; returns whether they have.
    pub fn set(&mut self, facts: Facts) -> bool {
        if self.current.facts == facts {
            return false;
        }
        let version = Version {
            number: self.current.version.number + 1,
            ..self.current.version
        };
        let before = &self.current.facts;
        let keys = facts.keys();
        for key in before.keys().difference(&keys) {
            self.changed.remove(key);
            self.removed.insert(key.clone(), version.number);
        }
        for key in keys {
            if !facts.agrees(before, &key) {
                self.removed.remove(&key);
                self.changed.insert(key, version.number);
            }
        }
        while self.removed.len() > MAX_TOMBSTONES
            && let Some(oldest) = self.removed.values().min().copied()
        {
            self.removed.retain(|_, number| *number != oldest);
            self.forgotten_before = oldest;
        }
        self.current = Arc::new(Catalog::new(version, facts));
        true
    }

    /// Returns what brings somebody who holds `held` up to date.
    pub fn since(&self, held: Option<Version>) -> Update {
        let current = &self.current;
        let held = held.filter(|held| {
            held.generation == current.version.generation
                && (self.forgotten_before..=current.version.number).contains(&held.number)
        });
        let Some(since) = held else {
            return current.whole();
        };
        let later = |(key, number): (&Key, &u64)| (*number > since.number).then(|| key.clone());
        let changed: BTreeSet<Key> = self.changed.iter().filter_map(later).collect();
        Update::Delta {
            since,
            version: current.version,
            hash: current.hash,
            changed: current.facts.only(&changed),
            removed: self.removed.iter().filter_map(later).collect(),
        }
    }
}

impl Facts {
    fn hash(&self) -> Hash {
        let bytes = postcard::to_stdvec(self).expect("plain data into a vector");
        let digest = digest(&SHA256, &bytes);
        std::array::from_fn(|index| digest.as_ref()[index])
    }

    fn keys(&self) -> BTreeSet<Key> {
        let resources = self.resources.keys().cloned().map(Key::Resource);
        let snapshots = self.snapshots.keys().cloned().map(Key::Snapshot);
        let users = self.users.iter().cloned().map(Key::User);
        let revoked = self.revoked.iter().cloned().map(Key::Revoked);
        let forgotten = self.forgotten.iter().cloned().map(Key::Forgotten);
        let names = users.chain(revoked).chain(forgotten);
        resources.chain(snapshots).chain(names).collect()
    }

    /// Whether an entry is the same in both.
    fn agrees(&self, other: &Self, key: &Key) -> bool {
        match key {
            Key::Resource(name) => self.resources.get(name) == other.resources.get(name),
            Key::Snapshot(id) => self.snapshots.get(id) == other.snapshots.get(id),
            Key::User(name) => self.users.contains(name) == other.users.contains(name),
            Key::Revoked(name) => self.revoked.contains(name) == other.revoked.contains(name),
            Key::Forgotten(life) => self.forgotten.contains(life) == other.forgotten.contains(life),
        }
    }

    /// Returns the address and these entries.
    fn only(&self, keys: &BTreeSet<Key>) -> Self {
        let mut some = Self {
            address: self.address.clone(),
            ..Self::default()
        };
        for key in keys {
            match key {
                Key::Resource(name) => {
                    let facts = self.resources.get(name).cloned();
                    some.resources.extend(facts.map(|facts| (name.clone(), facts)));
                }
                Key::Snapshot(id) => {
                    let bytes = self.snapshots.get(id).copied();
                    some.snapshots.extend(bytes.map(|bytes| (id.clone(), bytes)));
                }
                Key::User(name) => some.users.extend(self.users.get(name).cloned()),
                Key::Revoked(name) => some.revoked.extend(self.revoked.get(name).cloned()),
                Key::Forgotten(life) => some.forgotten.extend(self.forgotten.get(life).cloned()),
            }
        }
        some
    }

    fn with(&self, changed: Self, removed: &[Key]) -> Self {
        let mut facts = self.clone();
        facts.address = changed.address;
        facts.resources.extend(changed.resources);
        facts.snapshots.extend(changed.snapshots);
        facts.users.extend(changed.users);
        facts.revoked.extend(changed.revoked);
        facts.forgotten.extend(changed.forgotten);
        for key in removed {
            match key {
                Key::Resource(name) => drop(facts.resources.remove(name)),
                Key::Snapshot(id) => drop(facts.snapshots.remove(id)),
                Key::User(name) => drop(facts.users.remove(name)),
                Key::Revoked(name) => drop(facts.revoked.remove(name)),
                Key::Forgotten(life) => drop(facts.forgotten.remove(life)),
            }
        }
        facts
    }

    fn check(&self) -> Result<(), CatalogError> {
        let longest = |texts: &mut dyn Iterator<Item = &String>| texts.map(String::len).max().unwrap_or(0);
        let mut aliases = self
            .resources
            .values()
            .filter_map(|resource| resource.alias.as_ref());
        let mut images = self.resources.values().map(|resource| &resource.image);
        let counts = [
            ("bytes of address", self.address.len(), MAX_TEXT),
            ("bytes of alias", longest(&mut aliases), MAX_TEXT),
            ("bytes of image", longest(&mut images), MAX_TEXT),
            ("resources", self.resources.len(), MAX_RESOURCES),
            ("snapshots", self.snapshots.len(), MAX_SNAPSHOTS),
            ("users", self.users.len(), MAX_USERS),
            ("revoked users", self.revoked.len(), MAX_USERS),
            ("forgotten nodes", self.forgotten.len(), MAX_NODES),
        ];
        match counts.into_iter().find(|(_, count, most)| count > most) {
            Some((what, count, most)) => Err(CatalogError::TooMuch { what, count, most }),
            None => Ok(()),
        }
    }
}

/// Removals that are remembered. Whoever missed more is told all.
const MAX_TOMBSTONES: usize = 1000;
/// An image's name with its registry, path, tag and digest.
const MAX_TEXT: usize = 1024;
const MAX_RESOURCES: usize = 4096;
/// A hundred resources restored every hour, kept for a month.
const MAX_SNAPSHOTS: usize = 65_536;
const MAX_USERS: usize = 65_536;
const MAX_NODES: usize = 65_536;

#[cfg(test)]
mod tests;
