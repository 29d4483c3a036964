//! What a node is made of, and the pass that keeps it in order.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use zdap_proto::identity::{ClusterCa, Identity};
use zdap_proto::name::{CloneId, NodeName, SnapshotId};
use zdap_proto::refusal::{Refusal, chain};

use crate::bases::Bases;
use crate::clock::Clock;
use crate::clones::Clones;
use crate::cluster::Cluster;
use crate::invites::Invites;
use crate::machine::Figures;
use crate::peers::Peers;
use crate::reconcile::{Repair, plan};
use crate::refuse;
use crate::requests::{Located, Placing};
use crate::reserve::Reservations;
use crate::resource::catalogue::Catalogue;
use crate::retention::{self, SnapshotUse};
use crate::runtime::{InstanceId, Observed, Runtime};
use crate::storage::{Capacity, Inventory, Storage};

/// One node: its name, its identity, its seams and what it serves.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Where clients and peers connect, `host:port`.
    pub address: String,
    /// Its certificate as of the start: who it is.
    pub identity: Identity,
    /// Its newest certificate, to connect with.
    pub certified: watch::Sender<Identity>,
    /// The cluster's CA.
    pub ca: ClusterCa,
    /// Outstanding invites.
    pub invites: Invites,
    /// The resources it serves.
    pub catalogue: watch::Receiver<Arc<Catalogue>>,
    /// The first seam.
    pub storage: Arc<dyn Storage>,
    /// The second seam.
    pub runtime: Arc<dyn Runtime>,
    /// The time of day.
    pub clock: Clock,
    /// Its bases.
    pub bases: Arc<Bases>,
    /// Its clones.
    pub clones: Arc<Clones>,
    /// The room there was a few seconds ago; [`Self::keep_measured`] keeps it, so that asking forks no program.
    pub capacity: watch::Sender<Capacity>,
    /// Whether the last look at that succeeded.
    pub is_measured: AtomicBool,
    /// Memory and load of the machine.
    pub figures: Figures,
    /// Its place in the cluster.
    pub cluster: Cluster,
    /// Says that an instance has ended, so that the next pass is due.
    pub ended: Notify,
    /// The ways to the other nodes.
    pub peers: Arc<Peers>,
    /// Places promised here.
    pub reservations: Reservations,
    /// What it has placed elsewhere.
    pub placing: Placing,
    /// Where clones are that are not here.
    pub located: Located,
    /// The relay program for clients that do not have its image.
    pub relay_program: PathBuf,
}

impl Node {
    /// Looks at the disk and at what runs, and repairs what a crash, a reboot or a failed removal left behind; then
    /// removes the snapshots that retention lets go. Failures are logged, and met again by the next pass.
    pub async fn keep_in_order(&self, now: DateTime<Utc>) {
        let stopped = self.put_right(now).await;
        self.start_clones(stopped).await;
    }

    /// Does all of [`Self::keep_in_order`] but starting clones, which can take minutes; returns those to start.
    pub async fn put_right(&self, now: DateTime<Utc>) -> Vec<CloneId> {
        let clones: Vec<CloneId> = self.clones.list().into_iter().map(|clone| clone.id).collect();
        let snapshots = self.bases.snapshots();
        let ended = self.clones.ended();
        let mut in_flight = self.in_flight();
        let (inventory, instances) = match self.look().await {
            Ok(seen) => seen,
            Err(refusal) => {
                tracing::error!(error = %refusal, "look at what is there");
                return Vec::new();
            }
        };
        // What was being worked on before or after the look may have been seen half done.
        in_flight.extend(self.in_flight());
        self.bases.observe(&snapshots, &inventory);
        self.clones.observe(&inventory, &instances, &in_flight, ended);
        for id in gone(&clones, &inventory) {
            if !in_flight.contains(&InstanceId::Clone(id.clone())) {
                self.clones.forget(id).await;
            }
        }
        let (starts, removals): (Vec<_>, Vec<_>) = plan(&inventory, &instances, &in_flight, now)
            .into_iter()
            .partition(|repair| matches!(repair, Repair::StartClone(_)));
        join_all(removals.into_iter().map(|repair| self.remove(repair, now))).await;
        self.retire_snapshots(now).await;
        let starts = starts.into_iter().filter_map(|repair| match repair {
            Repair::StartClone(id) => Some(id),
            Repair::RemoveInstance(_) | Repair::DestroyClone(_) | Repair::DestroyBase(_) => None,
        });
        starts.collect()
    }

    /// Starts clones, a few at a time: a machine that has just booted has many.
    pub async fn start_clones(&self, clones: Vec<CloneId>) {
        let starts = futures_util::stream::iter(clones);
        starts
            .for_each_concurrent(STARTS, |id| async move { self.start_clone(&id).await })
            .await;
    }

    /// Keeps the node in order until dropped: at once, soon after the start, when an instance has ended, and every
    /// minute. `stopped` are the clones that the look before the start found not running.
    pub async fn stay_in_order(self: Arc<Self>, stopped: Vec<CloneId>) {
        let mut stopped = stopped;
        let mut next = Instant::now() + SOON;
        loop {
            let node = Arc::clone(&self);
            // In a task of its own: a clone that takes long to start does not hold up the next pass.
            tokio::spawn(async move { node.start_clones(stopped).await });
            tokio::time::sleep_until(next).await;
            let _ = tokio::time::timeout(PASS.saturating_sub(SOON), self.ended.notified()).await;
            stopped = self.put_right(self.clock.now()).await;
            next = Instant::now() + SOON;
        }
    }

    /// Forgets at once where a clone answered when its instance ends, and has it started again, until dropped.
    pub async fn watch_ends(self: Arc<Self>) {
        loop {
            let mut ends = self.runtime.ends();
            while let Some(instance) = ends.next().await {
                if let InstanceId::Clone(id) = instance {
                    self.clones.lose_address(&id);
                    self.ended.notify_one();
                }
            }
            tracing::warn!("the engine no longer says which instances end; asking it again");
            self.clones.lose_addresses();
            self.ended.notify_one();
            tokio::time::sleep(SOON).await;
        }
    }

    async fn look(&self) -> Result<(Inventory, Vec<Observed>), Refusal> {
        let inventory = self
            .storage
            .inventory()
            .await
            .map_err(|error| refuse::storage(&error))?;
        let instances = self
            .runtime
            .instances()
            .await
            .map_err(|error| refuse::runtime(&error))?;
        Ok((inventory, instances))
    }

    /// Measures the room there is every few seconds, until dropped.
    pub async fn keep_measured(self: Arc<Self>) {
        loop {
            let measured = self.storage.capacity().await;
            self.is_measured.store(measured.is_ok(), Ordering::Relaxed);
            match measured {
                Ok(capacity) => {
                    self.capacity.send_replace(capacity);
                }
                Err(error) => tracing::warn!(error = chain(&error), "measure the room there is"),
            }
            tokio::time::sleep(MEASURED).await;
        }
    }

    async fn remove(&self, repair: Repair, now: DateTime<Utc>) {
        tracing::info!(?repair, "putting right");
        match repair {
            Repair::RemoveInstance(InstanceId::Clone(id)) => self.clones.remove_orphan(&id).await,
            Repair::RemoveInstance(InstanceId::Base(id)) => self.bases.remove_orphan(&id).await,
            Repair::DestroyClone(id) => self.clones.remove_interrupted(&id, now).await,
            Repair::DestroyBase(id) => self.bases.remove_unfinished(&id).await,
            Repair::StartClone(_) => {}
        }
    }

    async fn start_clone(&self, id: &CloneId) {
        let Some(record) = self.clones.find(id) else {
            return;
        };
        let resource = self.catalogue.borrow().resources.get(record.resource()).cloned();
        let Some(resource) = resource else {
            return tracing::warn!(clone = %id, "its resource is not served any more, so the clone stays stopped");
        };
        if let Err(refusal) = self.clones.start_again(id, &resource).await {
            tracing::warn!(clone = %id, error = %refusal, "start clone again");
        }
    }

    async fn retire_snapshots(&self, now: DateTime<Utc>) {
        let clones = self.clones.list();
        let resources: Vec<_> = self.catalogue.borrow().resources.values().cloned().collect();
        for resource in resources {
            let all = self.bases.list().into_iter().map(|(snapshot, _)| snapshot);
            let of = all.filter(|snapshot| snapshot.base.resource == resource.name);
            let used = |id: SnapshotId| {
                let clones = clones.iter().filter(|clone| clone.snapshot == id).count();
                SnapshotUse {
                    clones: u32::try_from(clones).unwrap_or(u32::MAX),
                    id,
                }
            };
            let snapshots: Vec<_> = of.map(used).collect();
            for dataset in retention::plan(&snapshots, &resource.retention, now) {
                if let Err(refusal) = self.bases.remove(&dataset).await {
                    tracing::warn!(%dataset, error = %refusal, "remove what retention lets go");
                }
            }
        }
    }

    fn in_flight(&self) -> std::collections::BTreeSet<InstanceId> {
        let mut in_flight = self.clones.in_flight();
        in_flight.extend(self.bases.in_flight());
        in_flight
    }
}

/// Clones that were known before the look and have no dataset.
fn gone<'a>(known: &'a [CloneId], inventory: &Inventory) -> impl Iterator<Item = &'a CloneId> {
    known
        .iter()
        .filter(|id| !inventory.clones.iter().any(|clone| &clone.record.id == *id))
}

/// A disk of terabytes does not fill up in between.
const MEASURED: Duration = Duration::from_secs(5);
/// Longer than an engine takes to make a container: what a dead node asked for just before it died is seen by the second
/// pass. And the shortest time between passes, for a clone that ends as soon as it is started.
const SOON: Duration = Duration::from_secs(5);
/// Often enough that what a crash left does not pile up; a pass costs one listing of datasets and one of containers.
const PASS: Duration = Duration::from_secs(60);
/// Each reads a database's files and replays its log.
const STARTS: usize = 8;
