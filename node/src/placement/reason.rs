//! Why a node was not taken, in the words of whoever asked for a clone.

use std::fmt;

use zdap_proto::digest::NodeReport;
use zdap_proto::name::SnapshotTime;

use super::share::{Demand, Share};

/// Why a node is no place for the clone that was asked for. Displayed after the node's name and a colon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Another node was named.
    NotPinned,
    /// No node has the name that was given.
    NoSuchNode,
    /// It has left, or is given up.
    Down,
    /// It did not answer the others a moment ago.
    Suspect,
    /// It has said nothing of itself yet.
    Unheard,
    /// It could not take its figures for a while.
    Stale,
    /// It is of a version that cannot be asked.
    Incompatible {
        /// The highest version of the protocol that it speaks.
        protocol: u16,
    },
    /// What it serves has not come round yet.
    Uncharted,
    /// It does not serve the resource.
    NoResource,
    /// It has no snapshot of the resource.
    NoSnapshot,
    /// It does not have the snapshot that was named.
    NoSuchSnapshot {
        /// That one.
        wanted: SnapshotTime,
    },
    /// Its newest snapshot is too far behind.
    TooOld {
        /// Its newest.
        newest: SnapshotTime,
        /// The newest of all.
        elsewhere: SnapshotTime,
    },
    /// It is being emptied.
    Draining,
    /// Its pool takes no writes.
    ReadOnly,
    /// It has no room, by its own rules.
    Full,
    /// Its pool would be fuller than [`FULLEST_POOL`].
    Pool {
        /// With the clone's growth.
        used: Share,
    },
    /// It has too little memory.
    Memory {
        /// Not used and not promised, in MiB.
        free_mib: u64,
        /// For the clone and for the machine itself, in MiB.
        needed_mib: u64,
    },
    /// It got busier than it was when it was chosen.
    Outpaced {
        /// What it had offered, with some grace.
        at_most: Share,
        /// What it has come to.
        cost: Share,
    },
    /// It did not answer in time when it was asked.
    NoAnswer,
    /// It said so itself, in these words.
    Said(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPinned => f.write_str("another node was asked for"),
            Self::NoSuchNode => f.write_str("there is no node of this name"),
            Self::Down => f.write_str("is down"),
            Self::Suspect => f.write_str("does not answer the other nodes"),
            Self::Unheard => f.write_str("has not said yet how it is"),
            Self::Stale => f.write_str("cannot tell how it is"),
            Self::Incompatible { protocol } => {
                write!(f, "speaks version {protocol} of the protocol, too old; update it")
            }
            Self::Uncharted => f.write_str("has not said yet what it serves"),
            Self::NoResource => f.write_str("does not have this resource"),
            Self::NoSnapshot => f.write_str("has no snapshot of it"),
            Self::NoSuchSnapshot { wanted } => write!(f, "does not have the snapshot of {wanted}"),
            Self::TooOld { newest, elsewhere } => write!(
                f,
                "its newest snapshot is of {newest}, too old beside that of {elsewhere} on another node"
            ),
            Self::Draining => f.write_str("is being drained"),
            Self::ReadOnly => f.write_str("its pool is read-only"),
            Self::Full => f.write_str("is full"),
            Self::Pool { used } => write!(f, "its pool would be {used} full; {FULLEST_POOL} is the most"),
            Self::Memory { free_mib, needed_mib } => write!(
                f,
                "{} of memory free, {} needed",
                Size(*free_mib),
                Size(*needed_mib)
            ),
            Self::Outpaced { .. } => f.write_str("others were quicker to take the place"),
            Self::NoAnswer => f.write_str("did not answer in time"),
            Self::Said(words) => f.write_str(words),
        }
    }
}

/// A size in MiB, for people.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            mib @ 0..1024 => write!(f, "{mib} MiB"),
            mib => write!(f, "{}.{} GiB", mib / 1024, mib % 1024 * 10 / 1024),
        }
    }
}

/// Returns why a node that says `report` has no room for `clone`, beside what is `promised` there; it is asked with what
/// others know of the node, and again by the node itself when it promises.
pub fn obstacle(report: &NodeReport, promised: Demand, clone: Demand) -> Option<Reason> {
    let flags = report.flags;
    let pool_taken = u64::from(report.pool_total_mib.saturating_sub(report.pool_free_mib));
    let pool_taken = pool_taken.saturating_add((promised + clone).disk_mib);
    let pool = Share::of(pool_taken, report.pool_total_mib.into());
    let free_mib = u64::from(report.memory_free_mib).saturating_sub(promised.memory_mib);
    let needed_mib = match clone.memory_mib {
        0 => 0,
        memory => memory.saturating_add((report.memory_total_mib / KEPT_MEMORY).into()),
    };
    if flags.stale {
        Some(Reason::Stale)
    } else if flags.draining {
        Some(Reason::Draining)
    } else if flags.read_only {
        Some(Reason::ReadOnly)
    } else if flags.full {
        Some(Reason::Full)
    } else if pool > FULLEST_POOL {
        Some(Reason::Pool { used: pool })
    } else if report.memory_total_mib > 0 && free_mib < needed_mib {
        Some(Reason::Memory { free_mib, needed_mib })
    } else {
        None
    }
}

/// ZFS slows down and fragments beyond this, and the clones that are there need room to grow.
pub const FULLEST_POOL: Share = Share(850_000);

/// One part in so many of a machine's memory is for the machine itself: the file system's cache, and zdap.
const KEPT_MEMORY: u32 = 20;
