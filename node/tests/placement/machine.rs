//! One simulated node: its clones, what it measures of itself with the usual lag, and what it has heard of the others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use zdap_node::placement::{Debits, Demand};
use zdap_node::reserve::{Place, Reservations};
use zdap_proto::digest::{NodeDigest, NodeReport};
use zdap_proto::name::NodeName;

pub(crate) struct Machine {
    pub(crate) name: NodeName,
    pub(crate) weight: u32,
    clones: Vec<Running>,
    pub(crate) reservations: Reservations,
    /// Of clones in the making, by request.
    pub(crate) places: BTreeMap<usize, Place>,
    pub(crate) debits: Debits,
    /// The newest digests of all nodes that have come in here.
    pub(crate) heard: Vec<Heard>,
    /// What it last published.
    pub(crate) said: Heard,
    /// Load averages of a minute and of 15, in cores.
    load: [f64; 2],
    /// Of its only snapshot, in days; the original weighs it.
    snapshot_days: f64,
    /// Used by others than clones, as parts of the whole.
    memory_base: f64,
    pool_base: f64,
}

/// A digest, and when it was published or heard.
#[derive(Clone)]
pub(crate) struct Heard {
    pub(crate) digest: NodeDigest,
    pub(crate) at: Duration,
}

/// A clone. Its memory comes with the first minute.
struct Running {
    since: Duration,
    until: Duration,
}

impl Machine {
    /// Returns a node with about `preload` clones for each weight, more or less by a fifth.
    pub(crate) fn new(at: usize, weight: u32, preload: f64, rng: &mut StdRng) -> Self {
        let name: NodeName = format!("node{at}").parse().unwrap();
        let count = (preload * f64::from(weight) * rng.random_range(0.8..1.2)).round() as usize;
        let load = count as f64 * CLONE_LOAD;
        let running = |_| Running {
            since: Duration::ZERO,
            until: lifetime(rng),
        };
        let mut machine = Self {
            clones: (0..count).map(running).collect(),
            weight,
            reservations: Reservations::default(),
            places: BTreeMap::new(),
            debits: Debits::default(),
            heard: Vec::new(),
            said: Heard {
                digest: NodeDigest {
                    node: name.clone(),
                    generation: 1,
                    sequence: 0,
                    report: NodeReport::default(),
                },
                at: Duration::ZERO,
            },
            name,
            load: [load, load],
            snapshot_days: rng.random_range(0.3..0.4),
            memory_base: rng.random_range(0.08..0.12),
            pool_base: rng.random_range(0.18..0.22),
        };
        machine.said.digest.report = machine.figures(Duration::ZERO);
        machine
    }

    pub(crate) fn start(&mut self, since: Duration, until: Duration) {
        self.clones.push(Running { since, until });
    }

    pub(crate) fn running(&self, now: Duration) -> usize {
        self.clones.iter().filter(|clone| clone.until > now).count()
    }

    /// Returns what it measures. Clones in the making have their places, and are not in it.
    pub(crate) fn figures(&self, now: Duration) -> NodeReport {
        let running = || self.clones.iter().filter(|clone| clone.until > now);
        let grown: f64 = running()
            .map(|clone| (now - clone.since).as_secs_f64().min(60.0) / 60.0)
            .sum();
        let size = |each: u32, base: f64, of_clone: f64| {
            let total = self.weight * CLONES_PER_WEIGHT * each;
            let free = f64::from(total) * (1.0 - base) - grown * of_clone;
            (free.max(0.0) as u32, total)
        };
        let (memory_free_mib, memory_total_mib) = size(256, self.memory_base, 200.0);
        let (pool_free_mib, pool_total_mib) = size(4 * 1024, self.pool_base, 512.0);
        NodeReport {
            pool_free_mib,
            pool_total_mib,
            memory_free_mib,
            memory_total_mib,
            load_percent: (self.load[0] * 100.0 / f64::from(self.weight * CORES_PER_WEIGHT)) as u16,
            clones: running().count() as u16,
            protocol: 1,
            ..NodeReport::default()
        }
    }

    pub(crate) fn report(&self, now: Duration, instant: Instant) -> NodeReport {
        self.reservations.report(instant, |_| self.figures(now))
    }

    /// Returns the next digest, if it is due: a second after the last if anything has changed, and after 30 s in any case.
    pub(crate) fn publish(&mut self, now: Duration, instant: Instant) -> Option<NodeDigest> {
        let report = self.report(now, instant);
        let said = &mut self.said;
        let is_due = report != said.digest.report || now - said.at >= Duration::from_secs(30);
        is_due.then(|| {
            said.digest.sequence += 1;
            said.digest.report = report;
            said.at = now;
            said.digest.clone()
        })
    }

    /// Lets a second pass: loads come nearer to what runs, clones whose time is over go.
    pub(crate) fn settle(&mut self, now: Duration) {
        self.clones.retain(|clone| clone.until > now);
        let running = self.clones.len() as f64 * CLONE_LOAD;
        for (load, seconds) in self.load.iter_mut().zip([60.0, 900.0]) {
            *load += (running - *load) * (1.0 - f64::exp(-1.0 / seconds));
        }
    }

    /// The score of the original's `findServerCandidate`, from its source: free disk, free memory, clones, load and age.
    pub(crate) fn original_score(&self, now: Duration) -> f64 {
        let figures = self.figures(now);
        let gibibytes = |mib: u32| f64::from(mib) / 1024.0;
        let log = |value: f64| value.max(0.001).log2();
        log(gibibytes(figures.pool_free_mib) / 100.0) + log(gibibytes(figures.memory_free_mib))
            - log(f64::from(figures.clones).max(1.0))
            - log(self.load[1].max(0.01))
            - log(self.snapshot_days)
    }
}

/// What a clone is said to take: 256 MiB of memory and 1 GiB of disk.
pub(crate) fn clone() -> Demand {
    Demand::of_clone(None, 10 << 30)
}

/// Returns how long a clone lives, [`LIFETIME`] in the mean; or how long one still does that is there.
pub(crate) fn lifetime(rng: &mut StdRng) -> Duration {
    Duration::from_secs_f64(-LIFETIME * (1.0 - rng.random::<f64>()).ln())
}

/// Seconds.
pub(crate) const LIFETIME: f64 = 1200.0;
/// A node of weight 1 is full with so many.
pub(crate) const CLONES_PER_WEIGHT: u32 = 32;
const CORES_PER_WEIGHT: u32 = 2;
/// Of one core, for each clone.
const CLONE_LOAD: f64 = 0.04;
