//! What a node is made of, and the pass that keeps it in order.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;
use zdap_proto::identity::{ClusterCa, Identity};
use zdap_proto::name::{CloneId, NodeName, SnapshotId};

use crate::bases::Bases;
use crate::clones::Clones;
use crate::invites::Invites;
use crate::reconcile::{Repair, plan};
use crate::refuse;
use crate::resource::catalogue::Catalogue;
use crate::retention::{self, SnapshotUse};
use crate::runtime::{InstanceId, Runtime};
use crate::storage::{Capacity, Inventory, Storage};

/// One node: its name, its identity, its seams and what it serves.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Where clients and peers connect, `host:port`.
    pub address: String,
    /// Its certificate.
    pub identity: Identity,
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
    /// Its bases.
    pub bases: Arc<Bases>,
    /// Its clones.
    pub clones: Arc<Clones>,
    /// The room there was a few seconds ago; [`Self::keep_measured`] keeps it, so that asking forks no program.
    pub capacity: watch::Sender<Capacity>,
    /// The relay program for clients that do not have its image.
    pub relay_program: PathBuf,
}

impl Node {
    /// Looks at the disk and at what runs, and repairs what a crash, a reboot or a failed removal left behind; then
    /// removes the snapshots that retention lets go. Failures are logged, and met again by the next pass.
    pub async fn keep_in_order(&self, now: DateTime<Utc>) {
        let known: Vec<CloneId> = self.clones.list().into_iter().map(|clone| clone.id).collect();
        let mut in_flight = self.in_flight();
        let inventory = match self.storage.inventory().await {
            Ok(inventory) => inventory,
            Err(error) => return tracing::error!(error = refuse::chain(&error), "look at the datasets"),
        };
        let instances = match self.runtime.instances().await {
            Ok(instances) => instances,
            Err(error) => return tracing::error!(error = refuse::chain(&error), "look at the instances"),
        };
        // What was being worked on before or after the look may have been seen half done.
        in_flight.extend(self.in_flight());
        for id in gone(&known, &inventory).filter(|id| !in_flight.contains(&InstanceId::Clone((*id).clone())))
        {
            self.clones.forget(id).await;
        }
        let repairs = plan(&inventory, &instances, &in_flight, now);
        join_all(repairs.into_iter().map(|repair| self.repair(repair, now))).await;
        self.retire_snapshots(now).await;
    }

    /// Runs [`Self::keep_in_order`] soon after the start, then every minute, until `shutdown`. What the node asked for just
    /// before a crash the engine may still carry out after the restart has looked; the early pass meets it.
    pub async fn stay_in_order(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let mut minute = tokio::time::interval_at(Instant::now() + FIRST_PASS, PASS);
        minute.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = minute.tick() => self.keep_in_order(Utc::now()).await,
                () = crate::stopped(&mut shutdown) => return,
            }
        }
    }

    /// Measures the room there is every few seconds, until dropped.
    pub async fn keep_measured(self: Arc<Self>) {
        loop {
            match self.storage.capacity().await {
                Ok(capacity) => {
                    self.capacity.send_replace(capacity);
                }
                Err(error) => tracing::warn!(error = refuse::chain(&error), "measure the room there is"),
            }
            tokio::time::sleep(MEASURED).await;
        }
    }

    async fn repair(&self, repair: Repair, now: DateTime<Utc>) {
        tracing::info!(?repair, "putting right");
        match repair {
            Repair::RemoveInstance(InstanceId::Clone(id)) => self.clones.remove_orphan(&id).await,
            Repair::RemoveInstance(InstanceId::Base(id)) => self.bases.remove_orphan(&id).await,
            Repair::DestroyClone(id) => self.clones.remove_interrupted(&id, now).await,
            Repair::DestroyBase(id) => self.bases.remove_unfinished(&id).await,
            Repair::StartClone(id) => self.start_clone(&id).await,
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
/// Longer than an engine takes to make a container.
const FIRST_PASS: Duration = Duration::from_secs(5);
/// Often enough that what a crash left does not pile up; a pass costs one listing of datasets and one of containers.
const PASS: Duration = Duration::from_secs(60);
