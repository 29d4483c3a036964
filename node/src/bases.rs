//! Restores a resource into a base and snapshots it: container, retrieval, creation, masking, clean stop, snapshot. All or
//! nothing, one at a time per resource, several resources at once.
//!
//! A restore is a task of its own: it goes on when whoever asked for it leaves, and whoever asks for the same resource
//! meanwhile waits for the same restore.

mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{Notify, watch};
use zdap_proto::name::{BaseId, ResourceName, SnapshotId, SnapshotTime};
use zdap_proto::refusal::{Refusal, RefusalKind, chain};

pub use self::stage::RestoreState;
use self::stage::Stage;
use crate::resource::Resource;
use crate::runtime::{Address, InstanceId, Runtime, client_environment};
use crate::storage::{DatasetId, Inventory, Storage};
use crate::{instance, refuse, script};

/// The bases of this node and their snapshots.
#[derive(Debug)]
pub struct Bases {
    storage: Arc<dyn Storage>,
    runtime: Arc<dyn Runtime>,
    known: Mutex<Known>,
    shutdown: watch::Receiver<bool>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    snapshots: BTreeMap<SnapshotId, u64>,
    restores: BTreeMap<ResourceName, Restore>,
}

#[derive(Debug, Clone)]
struct Restore {
    base: BaseId,
    state: watch::Receiver<RestoreState>,
}

impl Bases {
    /// Takes over what was found on the disk. Restores end, undone, when `shutdown` becomes true.
    pub fn adopt(
        storage: Arc<dyn Storage>,
        runtime: Arc<dyn Runtime>,
        inventory: &Inventory,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let snapshots = inventory
            .bases
            .iter()
            .flat_map(|base| base.snapshots.iter().cloned())
            .collect();
        let known = Mutex::new(Known {
            snapshots,
            restores: BTreeMap::new(),
        });
        Self {
            storage,
            runtime,
            known,
            shutdown,
            changed: Notify::new(),
        }
    }

    /// Starts to restore a resource, or joins the restore that is under way.
    pub fn restore(
        self: &Arc<Self>,
        resource: &Arc<Resource>,
        now: DateTime<Utc>,
    ) -> watch::Receiver<RestoreState> {
        let mut known = self.known();
        if let Some(restore) = known.restores.get(&resource.name) {
            return restore.state.clone();
        }
        let base = BaseId {
            resource: resource.name.clone(),
            created_at: known.free_time(&resource.name, now),
        };
        let stage = Stage::new();
        let state = stage.watch();
        known.restores.insert(
            resource.name.clone(),
            Restore {
                base: base.clone(),
                state: state.clone(),
            },
        );
        drop(known);
        tokio::spawn(Arc::clone(self).run(Arc::clone(resource), base, stage));
        state
    }

    /// Snapshots the newest base as it is now.
    pub async fn snapshot_existing(
        &self,
        resource: &ResourceName,
        now: DateTime<Utc>,
    ) -> Result<SnapshotId, Refusal> {
        let newest = self.newest(resource).ok_or_else(|| no_snapshot(resource))?;
        let taken_at = self.known().free_time(resource, now);
        let snapshot = SnapshotId {
            base: newest.base,
            taken_at,
        };
        self.storage
            .snapshot(&snapshot)
            .await
            .map_err(|error| refuse::storage(&error))?;
        self.add(&snapshot).await;
        Ok(snapshot)
    }

    /// Removes a base or a snapshot. Clones that hang from it are an error.
    pub async fn remove(&self, dataset: &DatasetId) -> Result<(), Refusal> {
        self.storage
            .destroy(dataset)
            .await
            .map_err(|error| refuse::storage(&error))?;
        self.known().snapshots.retain(|snapshot, _| match dataset {
            DatasetId::Base(base) => &snapshot.base != base,
            DatasetId::Snapshot(removed) => snapshot != removed,
            DatasetId::Clone(_) => true,
        });
        self.changed.notify_one();
        tracing::info!(%dataset, "removed");
        Ok(())
    }

    /// Returns the snapshots that are known.
    pub fn snapshots(&self) -> BTreeSet<SnapshotId> {
        self.known().snapshots.keys().cloned().collect()
    }

    /// Forgets the snapshots, of those `before` the look, that were removed behind our back.
    pub fn observe(&self, before: &BTreeSet<SnapshotId>, inventory: &Inventory) {
        let there: BTreeSet<_> = inventory
            .bases
            .iter()
            .flat_map(|base| base.snapshots.iter().map(|(snapshot, _)| snapshot))
            .collect();
        for snapshot in before.iter().filter(|snapshot| !there.contains(snapshot)) {
            if self.known().snapshots.remove(snapshot).is_some() {
                self.changed.notify_one();
                tracing::warn!(%snapshot, "a snapshot is gone from the disk; forgetting it");
            }
        }
    }

    /// Removes a base that the reconcile pass found unfinished, unless its restore is under way or has ended well since.
    pub async fn remove_unfinished(&self, base: &BaseId) {
        let in_use = {
            let known = self.known();
            known.restores.values().any(|restore| &restore.base == base)
                || known.snapshots.keys().any(|snapshot| &snapshot.base == base)
        };
        if !in_use {
            self.undo(base).await;
        }
    }

    /// Removes the instance of a base, unless its restore is under way.
    pub async fn remove_orphan(&self, base: &BaseId) {
        let restoring = self
            .known()
            .restores
            .values()
            .any(|restore| &restore.base == base);
        if !restoring && let Err(error) = self.runtime.remove(&InstanceId::Base(base.clone())).await {
            tracing::warn!(%base, error = chain(&error), "remove instance; trying again later");
        }
    }

    /// Returns the newest snapshot of a resource: the last of the newest base, whenever older ones were snapshotted again.
    pub fn newest(&self, resource: &ResourceName) -> Option<SnapshotId> {
        self.of(resource)
            .max_by_key(|snapshot| (snapshot.base.created_at, snapshot.taken_at))
    }

    /// Returns the snapshot of a resource taken at a time.
    pub fn find(&self, resource: &ResourceName, taken_at: SnapshotTime) -> Option<SnapshotId> {
        self.of(resource).find(|snapshot| snapshot.taken_at == taken_at)
    }

    /// Returns how many bytes a snapshot refers to.
    pub fn bytes(&self, snapshot: &SnapshotId) -> Option<u64> {
        self.known().snapshots.get(snapshot).copied()
    }

    /// Returns all snapshots with the bytes each refers to.
    pub fn list(&self) -> Vec<(SnapshotId, u64)> {
        self.known()
            .snapshots
            .iter()
            .map(|(snapshot, bytes)| (snapshot.clone(), *bytes))
            .collect()
    }

    /// Waits until a snapshot has come or gone since the last time this was awaited. For one who waits.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns the restores under way.
    pub fn in_flight(&self) -> BTreeSet<InstanceId> {
        self.known()
            .restores
            .values()
            .map(|restore| InstanceId::Base(restore.base.clone()))
            .collect()
    }

    /// Waits until no restore is under way.
    pub async fn idle(&self) {
        loop {
            let Some(mut restore) = self.known().restores.values().next().cloned() else {
                return;
            };
            // The sender goes only after the restore has been taken off the list.
            while restore.state.changed().await.is_ok() {}
        }
    }

    async fn run(self: Arc<Self>, resource: Arc<Resource>, base: BaseId, stage: Stage) {
        tracing::info!(%base, "restore begins");
        let listed = Listed {
            bases: Arc::clone(&self),
            resource: resource.name.clone(),
        };
        let mut shutdown = self.shutdown.clone();
        let result = tokio::select! {
            biased; // so that a simulation is the same each time
            result = self.steps(&resource, &base, &stage) => result,
            () = crate::stopped(&mut shutdown) => Err(Refusal::new(RefusalKind::Unavailable, "the node is stopping")),
        };
        let result = match result {
            Ok(snapshot) => {
                self.add(&snapshot).await;
                Ok(snapshot)
            }
            Err(refusal) => {
                tracing::error!(%base, error = %refusal, "restore failed");
                stage.enter("undoing");
                let refusal = self.with_room(refusal).await;
                self.undo(&base).await;
                Err(refusal)
            }
        };
        drop(listed);
        stage.end(result);
    }

    async fn steps(&self, resource: &Resource, base: &BaseId, stage: &Stage) -> Result<SnapshotId, Refusal> {
        let file = match &resource.retrieval {
            Some(retrieval) => {
                stage.enter("running retrieval script");
                self.retrieve(resource, base, retrieval).await?
            }
            None => OsString::new(),
        };

        stage.enter("starting database");
        let properties = &resource.restore_params.zfs;
        let data = self
            .storage
            .create_base(base, properties)
            .await
            .map_err(|error| refuse::storage(&error))?;
        let id = InstanceId::Base(base.clone());
        let spec = instance::spec(resource, id.clone(), data);
        let started = self
            .runtime
            .start(&spec)
            .await
            .map_err(|error| refuse::runtime(&error))?;

        let arguments = [file, OsString::from(self.runtime.instance_name(&id))];
        let environment = script_environment(base, Some((&started.address, &spec.env)));
        let scripts = [
            ("running creation script", Some(&resource.creation)),
            ("running masking script", resource.masking.as_ref()),
        ];
        for (what, path) in scripts {
            let Some(path) = path else { continue };
            stage.enter(what);
            let work = script::run(path, &arguments, &environment, resource.timeouts.creation);
            self.watched(base, stage, work)
                .await
                .map_err(|error| refuse::script(&error))?;
        }

        stage.enter("stopping database");
        self.runtime
            .stop(&id, STOP_GRACE)
            .await
            .map_err(|error| refuse::runtime(&error))?;
        self.runtime
            .remove(&id)
            .await
            .map_err(|error| refuse::runtime(&error))?;

        stage.enter("taking snapshot");
        let snapshot = SnapshotId::of_restore(base.clone());
        self.storage
            .snapshot(&snapshot)
            .await
            .map_err(|error| refuse::storage(&error))?;
        Ok(snapshot)
    }

    async fn retrieve(
        &self,
        resource: &Resource,
        base: &BaseId,
        retrieval: &Path,
    ) -> Result<OsString, Refusal> {
        let environment = script_environment(base, None);
        let last = script::run(retrieval, &[], &environment, resource.timeouts.retrieval).await;
        match last.map_err(|error| refuse::script(&error))? {
            Some(file) => Ok(OsString::from(file)),
            None => Err(Refusal::new(
                RefusalKind::Failed,
                format!("`{}` printed no file", retrieval.display()),
            )
            .with_hint("the last line it prints must be the file for the creation script")),
        }
    }

    /// Awaits `work`, saying how much is on the disk meanwhile, if anybody listens.
    async fn watched<T>(&self, base: &BaseId, stage: &Stage, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let dataset = DatasetId::Base(base.clone());
        loop {
            if let Ok(done) = tokio::time::timeout(PROGRESS, &mut work).await {
                return done;
            }
            if stage.is_watched()
                && let Ok(bytes) = self.storage.referenced_bytes(&dataset).await
            {
                stage.grown_to(bytes);
            }
        }
    }

    /// Removes what a restore has made. What cannot be removed now the reconcile pass removes later.
    async fn undo(&self, base: &BaseId) {
        if let Err(error) = self.runtime.remove(&InstanceId::Base(base.clone())).await {
            tracing::warn!(%base, error = chain(&error), "remove instance; trying again later");
            return;
        }
        if let Err(error) = self.storage.destroy(&DatasetId::Base(base.clone())).await {
            tracing::warn!(%base, error = chain(&error), "destroy dataset; trying again later");
        }
    }

    /// Adds to a failed restore's reason that the disk is full, if it is: the script's own words may not say so.
    async fn with_room(&self, refusal: Refusal) -> Refusal {
        match self.storage.capacity().await {
            Ok(room) if room.free_bytes < room.total_bytes / FULL => Refusal {
                kind: RefusalKind::Full,
                message: format!(
                    "{}\nthe disk is full: {} of {} bytes are free",
                    refusal.message, room.free_bytes, room.total_bytes
                ),
                hint: Some("make room: destroy clones and old snapshots, or enlarge the pool".to_owned()),
            },
            Ok(_) | Err(_) => refusal,
        }
    }

    async fn add(&self, snapshot: &SnapshotId) {
        let bytes = self
            .storage
            .referenced_bytes(&DatasetId::Base(snapshot.base.clone()))
            .await
            .unwrap_or_default();
        self.known().snapshots.insert(snapshot.clone(), bytes);
        self.changed.notify_one();
    }

    fn of(&self, resource: &ResourceName) -> impl Iterator<Item = SnapshotId> + use<> {
        let known = self.known();
        let of: Vec<_> = known
            .snapshots
            .keys()
            .filter(|snapshot| &snapshot.base.resource == resource)
            .cloned()
            .collect();
        of.into_iter()
    }

    /// No code that holds this can panic half-way through a change, so a poisoned lock still guards whole values.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A restore on the list of those under way; it goes from there however it ends, by a panic too.
struct Listed {
    bases: Arc<Bases>,
    resource: ResourceName,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.bases.known().restores.remove(&self.resource);
    }
}

impl Known {
    /// Returns `now`, or the first second after it at which the resource has neither base nor snapshot.
    fn free_time(&self, resource: &ResourceName, now: DateTime<Utc>) -> SnapshotTime {
        let taken = |time: SnapshotTime| {
            let mut of = self
                .snapshots
                .keys()
                .filter(|snapshot| &snapshot.base.resource == resource);
            of.any(|snapshot| snapshot.taken_at == time || snapshot.base.created_at == time)
                || self
                    .restores
                    .get(resource)
                    .is_some_and(|restore| restore.base.created_at == time)
        };
        let mut time = SnapshotTime::new(now);
        while taken(time) {
            time = SnapshotTime::new(time.time() + TimeDelta::seconds(1));
        }
        time
    }
}

/// `spec.md`, section 2: what a script finds in its environment.
fn script_environment(base: &BaseId, database: Option<(&Address, &[String])>) -> BTreeMap<String, String> {
    let mut environment = database
        .map(|(address, env)| client_environment(address, env))
        .unwrap_or_default();
    environment.insert("ZDAP_RESOURCE".to_owned(), base.resource.to_string());
    environment.insert("ZDAP_BASE".to_owned(), base.to_string());
    environment
}

/// Refuses because a resource has no snapshot yet.
pub fn no_snapshot(resource: &ResourceName) -> Refusal {
    Refusal::new(RefusalKind::NotFound, format!("`{resource}` has no snapshot yet"))
        .with_hint(format!("`zdapd create snap {resource}` on the node makes one"))
}

/// A large database writes a checkpoint before it stops; the original gave it a minute, which 200 GB can exceed.
const STOP_GRACE: Duration = Duration::from_secs(600);
/// How often whoever waits is told how much is on the disk.
const PROGRESS: Duration = Duration::from_secs(1);
/// Less than this part of the disk left counts as full.
const FULL: u64 = 100;
