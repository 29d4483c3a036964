//! Copy-on-write datasets: the first of the two seams.
//!
//! A node's memory is what lies here: each dataset of ours carries one record, written by the command that makes it, and
//! the [`Inventory`] read at start is the whole observed state. `zfs` runs the ZFS programs, `directory` copies files
//! (by reflink where the file system can), `memory` is the fake with faults on request. `node/tests/storage.rs` is the
//! contract that all three keep.

pub mod directory;
mod lock;
pub mod memory;
mod record;
pub mod zfs;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use zdap_proto::message::CloneRecord;
use zdap_proto::name::{BaseId, CloneId, SnapshotId};

/// Copy-on-write datasets. Every mutation is "ensure": doing it twice, or undoing what is absent, succeeds.
///
/// A call that returns an error may have been carried out or not; calling it again, or `destroy`, is always right. So is
/// dropping its future: what has begun is carried out or given up, and shows in a later inventory, never as a half.
#[async_trait]
pub trait Storage: Send + Sync + fmt::Debug {
    /// Returns everything of ours, in one pass, and mounts what of it should be mounted and is not. What is under our tree but carries no record of ours is left out of
    /// `bases` and `clones`, is named in `foreign`, and is never touched.
    async fn inventory(&self) -> Result<Inventory, StorageError>;

    /// Makes an empty dataset to restore into and returns where it is mounted.
    async fn create_base(&self, base: &BaseId, properties: &ZfsProperties) -> Result<PathBuf, StorageError>;

    /// Takes a snapshot of a base. The base's database must be stopped cleanly before.
    async fn snapshot(&self, snapshot: &SnapshotId) -> Result<(), StorageError>;

    /// Makes a writable copy of a snapshot, with its record on it from the first moment, and returns where it is mounted.
    /// If there is one with this very record already, that is it; one of the same id with another record is an error.
    /// `disk_limit_bytes` bounds what the clone alone may hold, data shared with the snapshot included (`refquota`).
    async fn create_clone(
        &self,
        record: &CloneRecord,
        properties: &ZfsProperties,
        disk_limit_bytes: Option<u64>,
    ) -> Result<PathBuf, StorageError>;

    /// Replaces the record of a clone, whole. Fails with [`StorageError::Missing`] if there is no such clone.
    async fn update_record(&self, record: &CloneRecord) -> Result<(), StorageError>;

    /// Removes a base with its snapshots, one snapshot, or a clone.
    ///
    /// [`StorageError::HasClones`] if clones hang from it. [`StorageError::Busy`] if something still uses it after the
    /// backend's own short retries: try again later. [`StorageError::Unusable`], with nothing done, if it is, or holds,
    /// something that is not ours.
    async fn destroy(&self, dataset: &DatasetId) -> Result<(), StorageError>;

    /// Returns how many bytes a base or clone refers to: the size of its data, shared or not.
    async fn referenced_bytes(&self, dataset: &DatasetId) -> Result<u64, StorageError>;

    /// Returns the room there is.
    async fn capacity(&self) -> Result<Capacity, StorageError>;
}

/// What lies on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Every base with its snapshots, finished or not.
    pub bases: Vec<BaseDataset>,
    /// Every clone.
    pub clones: Vec<CloneDataset>,
    /// What lies in our tree without a readable record, by name and what is odd about it: reported, never touched.
    pub foreign: Vec<String>,
}

/// A base on disk. Without a snapshot it is a restore that was not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseDataset {
    /// Its name.
    pub id: BaseId,
    /// Where it is mounted.
    pub path: PathBuf,
    /// Its snapshots, oldest first, each with the bytes it refers to.
    pub snapshots: Vec<(SnapshotId, u64)>,
}

/// A clone on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneDataset {
    /// What is written on it.
    pub record: CloneRecord,
    /// Where it is mounted.
    pub path: PathBuf,
    /// Whether its data is there. If not, `path` is at best an empty directory, which no database may be started on.
    pub mounted: bool,
}

/// One thing that can be destroyed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DatasetId {
    /// A base and all its snapshots.
    Base(BaseId),
    /// One snapshot of a base.
    Snapshot(SnapshotId),
    /// A clone.
    Clone(CloneId),
}

impl fmt::Display for DatasetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base(id) => write!(f, "base {id}"),
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
            Self::Clone(id) => write!(f, "clone {id}"),
        }
    }
}

/// Room, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// What can still be written.
    pub free_bytes: u64,
    /// Free and used together.
    pub total_bytes: u64,
}

/// ZFS properties a resource file asks for, `recordsize=16k`; other backends pass over them.
///
/// Only the names are checked, on construction: lower case letters, digits, `:`, `_`, `-` and `.`; not ours
/// (`zdap:...`), and not those that would move or lose a dataset (`mountpoint`, `canmount`, `quota`, `readonly`, ...).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZfsProperties(BTreeMap<String, String>);

impl ZfsProperties {
    /// Parses `name=value` pairs; later ones win.
    pub fn parse<'a>(pairs: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        pairs
            .into_iter()
            .map(parse_property)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Returns the pairs in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

fn parse_property(pair: &str) -> Result<(String, String), String> {
    let Some((name, value)) = pair.split_once('=') else {
        return Err(format!("`{pair}` is not of the form property=value"));
    };
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b":_-.".contains(&byte);
    if name.is_empty() || name.starts_with('-') || !name.bytes().all(allowed) {
        return Err(format!("`{name}` is not the name of a ZFS property"));
    }
    if name.starts_with("zdap:") || OURS.contains(&name) {
        return Err(format!("the ZFS property `{name}` is zdap's own to set"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Set by us, or able to hide, move or freeze a dataset. `quota` counts snapshots and so stops a database that has
/// barely written (`limits.disk` is `refquota`).
const OURS: &[&str] = &[
    "mountpoint",
    "canmount",
    "readonly",
    "quota",
    "refquota",
    "origin",
    "zoned",
    "sharenfs",
    "sharesmb",
    "setuid",
    "devices",
    "exec",
];

/// Why something could not be done to a dataset.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The dataset does not exist.
    #[error("{0} does not exist")]
    Missing(DatasetId),
    /// Something still uses it; a later try may succeed.
    #[error("{0} is busy")]
    Busy(DatasetId),
    /// Clones hang from it.
    #[error("{0} still has clones")]
    HasClones(DatasetId),
    /// The disk, pool or quota is full.
    #[error("no space left on {0}")]
    Full(String),
    /// The tree is another node's, or nobody's that we know; nothing was changed.
    #[error("{message}")]
    NotOurs {
        /// Whose it is.
        message: String,
        /// The remedy.
        hint: String,
    },
    /// The pool or directory is not there or cannot be used; nothing was changed.
    #[error("{message}")]
    Unusable {
        /// What is wrong, naming the pool or path.
        message: String,
        /// The remedy.
        hint: String,
    },
    /// A program failed.
    #[error("`{command}` failed: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// The file system failed.
    #[error("{doing}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// What a program printed or a file holds could not be understood.
    #[error("{0}")]
    Unreadable(String),
}
