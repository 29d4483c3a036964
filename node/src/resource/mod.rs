//! `*.resource.yml` -> [`Resource`]: a database described by one file.
//!
//! `yaml` reads text into a tree that knows its lines, `section` reads the tree by key, `parse` makes a [`Resource`] of it,
//! `catalogue` reads a whole directory, and `watch` reads it again when it changes.

pub mod catalogue;
mod parse;
mod section;
#[cfg(test)]
pub(crate) mod testing;
pub mod watch;
mod yaml;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use zdap_proto::name::ResourceName;

use crate::schedule::Schedule;
use crate::storage::ZfsProperties;

/// A database that can be restored and cloned, as one resource file describes it. A value is right in itself: names
/// parsed, scripts there and executable, `cron` understood, `docker.image` present.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Its name.
    pub name: ResourceName,
    /// A second name for people; no other resource has it as its name or alias.
    pub alias: Option<String>,
    /// The file that says all this.
    pub file: PathBuf,
    /// The script whose last line of output names the dump to restore.
    pub retrieval: Option<PathBuf>,
    /// The script that restores the dump, `creation FILE NAME`.
    pub creation: PathBuf,
    /// The script that makes the data fit to be seen; its failure means no snapshot.
    pub masking: Option<PathBuf>,
    /// When to restore anew: five fields, in the machine's local time.
    pub cron: Option<Schedule>,
    /// What runs the database.
    pub docker: DockerSettings,
    /// Added to `docker` while restoring.
    pub restore_params: Params,
    /// Added to `docker` for clones.
    pub clone_params: Params,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// What a clone may use.
    pub limits: Limits,
    /// Which snapshots are kept.
    pub retention: Retention,
    /// Clones kept ready for whoever asks next.
    pub clone_pool: Option<ClonePool>,
    /// How long a clone lives; until it is destroyed unless given.
    pub ttl: Option<Duration>,
    /// After how long without a connection a clone is stopped; never unless given.
    pub idle_stop: Option<Duration>,
}

/// What runs the database: the original's `docker` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerSettings {
    /// The image.
    pub image: String,
    /// The port of the database inside; 5432 unless given.
    pub port: u16,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Replaces the image's entrypoint, unless empty.
    pub entrypoint: Vec<String>,
    /// Replaces the image's command, unless empty.
    pub cmd: Vec<String>,
    /// Where the data lies inside; `/var/lib/postgresql/data` unless given.
    pub volume: String,
    /// A shell command that succeeds once the database answers; for Postgres the wire protocol itself is asked.
    pub healthcheck: Option<String>,
    /// Size of `/dev/shm`, in bytes.
    pub shm_bytes: Option<u64>,
}

/// What is added to [`DockerSettings`] for one purpose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params {
    /// Appended to `docker.env`.
    pub env: Vec<String>,
    /// Appended to `docker.entrypoint`.
    pub entrypoint: Vec<String>,
    /// Appended to `docker.cmd`.
    pub cmd: Vec<String>,
    /// Set on the dataset.
    pub zfs: ZfsProperties,
}

/// How long things may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the database answers; 2 minutes unless given.
    pub ready: Duration,
    /// For the retrieval script; 12 hours unless given.
    pub retrieval: Duration,
    /// For the creation script, and for the masking script; 12 hours unless given.
    pub creation: Duration,
}

/// What a clone may use; nothing is limited unless given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Processors, in thousandths.
    pub millicpus: Option<u64>,
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Data of the clone, shared with the snapshot or not, in bytes.
    pub disk_bytes: Option<u64>,
    /// Clones of this resource a user may have on a node.
    pub clones_per_user: Option<u32>,
}

/// Which snapshots are kept; one with clones is never removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many; 3 unless given.
    pub keep_snapshots: u32,
    /// And all that are younger than so many days.
    pub keep_days: Option<u32>,
}

/// Clones kept ready for whoever asks next: the original's `clone_pool` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClonePool {
    /// So many are kept ready; none unless given.
    pub min_clones: u32,
    /// At most so many, those given away included; as many as `min_clones` unless given, and never fewer.
    pub max_clones: u32,
    /// Whether those that nobody has asked for are made anew from a new snapshot.
    pub reset_on_new_snap: bool,
    /// The longest that a clone may be claimed for; 90000 seconds unless given.
    pub claim_max_timeout: Duration,
    /// How long a clone is claimed for when nobody says; 300 seconds unless given, and never longer than the longest.
    pub claim_default_timeout: Duration,
}

/// Why a file or directory is not in service: one line that names the file, the line and the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceError {
    /// The file, or the directory that could not be read.
    pub file: PathBuf,
    /// Where in the file.
    pub position: Option<Position>,
    /// The key it is about, `docker.image`.
    pub key: Option<String>,
    /// What is wrong, with the value, and the remedy where there is one.
    pub message: String,
}

impl fmt::Display for ResourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ResourceError {}

/// A place in a file; both count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}
