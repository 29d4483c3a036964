//! What a clone takes, and how busy a node is with it: the figures of placement.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

use zdap_proto::digest::NodeReport;

/// A part of a node, in millionths. More than the whole is possible: load and clones have no hard end.
///
/// An integer, so that it crosses the wire, orders totally, and is the same on every machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(pub u32);

impl Share {
    /// Returns `part` of `whole`; of nothing, all is taken.
    pub fn of(part: u64, whole: u64) -> Self {
        let millionths = (u128::from(part) * u128::from(MILLION))
            .checked_div(whole.into())
            .unwrap_or_else(|| MILLION.into());
        Self(u32::try_from(millionths).unwrap_or(u32::MAX))
    }
}

impl Add for Share {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", (u64::from(self.0) + 5_000) / 10_000)
    }
}

/// What clones take of a node: those that are promised and not yet in its figures, or the one that is wished for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// How many.
    pub clones: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Growth of the pool, in MiB.
    pub disk_mib: u64,
}

impl Demand {
    /// Estimates one clone.
    ///
    /// - Memory: `limits.memory` of the resource file, in bytes, if there is one, as that is what it may take; else
    ///   256 MiB, a Postgres with its usual 128 MiB of shared buffers and a few connections.
    /// - Disk: a tenth of the snapshot's data, as a clone shares what it does not write; but at least 64 MiB, four
    ///   segments of write-ahead log, and at most 10 GiB, as nobody rewrites a tenth of a huge database for a test.
    pub fn of_clone(memory_limit_bytes: Option<u64>, snapshot_bytes: u64) -> Self {
        Self {
            clones: 1,
            memory_mib: memory_limit_bytes.map_or(256, |bytes| (bytes / MIB).max(1)),
            disk_mib: (snapshot_bytes / 10 / MIB).clamp(64, 10 * 1024),
        }
    }

    /// Returns what `count` of these take.
    #[must_use]
    pub fn times(self, count: u32) -> Self {
        Self {
            clones: self.clones.saturating_mul(count),
            memory_mib: self.memory_mib.saturating_mul(count.into()),
            disk_mib: self.disk_mib.saturating_mul(count.into()),
        }
    }
}

impl Add for Demand {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            clones: self.clones.saturating_add(other.clones),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_mib: self.disk_mib.saturating_add(other.disk_mib),
        }
    }
}

impl AddAssign for Demand {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Demand {
    fn sum<I: Iterator<Item = Self>>(demands: I) -> Self {
        demands.fold(Self::default(), Add::add)
    }
}

/// Which of a node's resources the largest share is taken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is what it is called")]
pub enum Bottleneck {
    Clones,
    Memory,
    Pool,
    Load,
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clones => "clones",
            Self::Memory => "memory",
            Self::Pool => "pool",
            Self::Load => "load",
        })
    }
}

/// How busy a node would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prediction {
    /// The dominant share: the largest of its four.
    pub share: Share,
    /// What that is a share of.
    pub bottleneck: Bottleneck,
    /// The share of its clones alone.
    pub crowding: Share,
}

impl Prediction {
    /// Returns what nodes are compared by: the share of the clones, and what the dominant share has above a half.
    ///
    /// The dominant share alone would not do. Where it is a measured one, as the load or a pool that is filled with bases, it
    /// does not move when a clone is promised, and moves late when one runs; until it did, everybody would choose the one
    /// node that is a little less busy. The count of clones moves at once and exactly. And of two nodes that are both half
    /// empty neither is the better place: there clones spread by the size of the nodes.
    pub fn cost(&self) -> Share {
        Share(self.share.0.saturating_sub(COMFORTABLE.0)) + self.crowding
    }
}

/// Predicts a node that says `report`, once what is `promised` there and `more` clones like `clone` are made. What is
/// promised must be all that the report's figures do not contain; its own count of reservations is not looked at.
///
/// | share of | taken                                                     | whole                              |
/// |----------|-----------------------------------------------------------|------------------------------------|
/// | memory   | what is not available to new programs, and the promised   | the machine's                      |
/// | pool     | what is not free, and the growth of the promised          | the pool's                         |
/// | load     | the average of the last minute                            | the machine's cores                |
/// | clones   | those it holds, and the promised                          | as many like this as its memory and its pool could hold if empty |
///
/// The whole of the clones is a soft cap: nothing is refused for it, but it makes a node of twice the size worth twice the
/// clones from the first one on. Memory that cannot be read is left out of account.
pub fn predict(report: &NodeReport, promised: Demand, clone: Demand, more: u32) -> Prediction {
    let promised = promised + clone.times(more);
    let memory_taken = u64::from(report.memory_total_mib.saturating_sub(report.memory_free_mib));
    let pool_taken = u64::from(report.pool_total_mib.saturating_sub(report.pool_free_mib));
    let memory = match report.memory_total_mib {
        0 => Share::default(),
        total => Share::of(memory_taken.saturating_add(promised.memory_mib), total.into()),
    };
    let pool = Share::of(
        pool_taken.saturating_add(promised.disk_mib),
        report.pool_total_mib.into(),
    );
    let load = Share::of(report.load_percent.into(), 100);
    let clones = u64::from(report.clones) + u64::from(promised.clones);
    let crowding = Share::of(clones, soft_cap(report, clone));
    let shares = [
        (crowding, Bottleneck::Clones),
        (memory, Bottleneck::Memory),
        (pool, Bottleneck::Pool),
        (load, Bottleneck::Load),
    ];
    let (share, bottleneck) = shares.into_iter().max().unwrap_or(shares[0]);
    Prediction {
        share,
        bottleneck,
        crowding,
    }
}

fn soft_cap(report: &NodeReport, clone: Demand) -> u64 {
    let by_pool = u64::from(report.pool_total_mib) / clone.disk_mib.max(1);
    let by_memory = match report.memory_total_mib {
        0 => by_pool,
        total => u64::from(total) / clone.memory_mib.max(1),
    };
    by_pool.min(by_memory).max(1)
}

/// Up to a half, no share of a node is a reason to prefer another.
const COMFORTABLE: Share = Share(500_000);
const MIB: u64 = 1 << 20;
const MILLION: u32 = 1_000_000;
