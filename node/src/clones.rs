//! The lives of clones, over storage and runtime: `create`, `destroy`, `start_again`.
//!
//! What is known here is what lies on the disk, read once at start and kept in step after. Each clone has a lock; who
//! holds it is working on the clone, and the reconcile pass leaves it alone. Nothing here is safe to drop half-way: the
//! server runs each call in a task of its own, and what a crash cuts off the reconcile pass finishes.

mod order;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Notify, OwnedMutexGuard};
use zdap_proto::message::{CloneRecord, CloneState, Stages};
use zdap_proto::name::{CloneId, RequestId, ResourceName, UserName};
use zdap_proto::refusal::{Refusal, RefusalKind, chain};

pub use self::order::Order;
use crate::resource::Resource;
use crate::runtime::{Address, InstanceId, Observed, Runtime};
use crate::storage::{CloneDataset, DatasetId, Inventory, Storage, StorageError};
use crate::{instance, refuse};

/// The clones of this node.
#[derive(Debug)]
pub struct Clones {
    storage: Arc<dyn Storage>,
    runtime: Arc<dyn Runtime>,
    known: Mutex<BTreeMap<CloneId, Known>>,
    /// How many instances have ended so far.
    ended: AtomicU64,
    changed: Notify,
    names: Mutex<StdRng>,
}

#[derive(Debug, Clone)]
struct Known {
    record: CloneRecord,
    data: Option<PathBuf>,
    address: Option<Address>,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl Clones {
    /// Takes over what was found on the disk and running.
    pub fn adopt(
        storage: Arc<dyn Storage>,
        runtime: Arc<dyn Runtime>,
        inventory: &Inventory,
        instances: &[Observed],
    ) -> Self {
        let known = inventory
            .clones
            .iter()
            .map(|clone| (clone.record.id.clone(), Known::found(clone, instances)));
        let known = Mutex::new(known.collect());
        Self {
            storage,
            runtime,
            known,
            ended: AtomicU64::new(0),
            changed: Notify::new(),
            names: Mutex::new(StdRng::from_rng(&mut rand::rng())),
        }
    }

    /// Takes what new clones are called from this chance.
    pub fn with_names_from(self, chance: StdRng) -> Self {
        Self {
            names: Mutex::new(chance),
            ..self
        }
    }

    /// Makes a clone and returns when it answers; undoes everything if it cannot.
    ///
    /// There are no stages if an earlier request of the same id had made it.
    pub async fn create(&self, order: Order) -> Result<(CloneRecord, Option<Stages>), Refusal> {
        let began = Instant::now();
        let (mut record, _held) = loop {
            match self.admit(&order)? {
                Admission::New(record, held) => break (*record, held),
                // Another request made, or is making, this very clone.
                Admission::Made(record) => {
                    return Ok((self.asked_again(*record, order.attempt).await?, None));
                }
                Admission::InTheMaking(lock) => drop(lock.lock().await),
            }
        };
        match self.build(&mut record, &order.resource).await {
            Ok(stages) => {
                let stages = Stages {
                    total_ms: milliseconds(began.elapsed()),
                    ..stages
                };
                tracing::info!(clone = %record.id, owner = %record.owner, ?stages, "clone is ready");
                Ok((record, Some(stages)))
            }
            Err(refusal) => {
                tracing::warn!(clone = %record.id, owner = %record.owner, error = %refusal, "clone could not be made");
                self.take_away(&record.id).await;
                Err(refusal)
            }
        }
    }

    /// Notes that a clone is the answer to a later attempt too.
    async fn asked_again(&self, record: CloneRecord, attempt: u32) -> Result<CloneRecord, Refusal> {
        if attempt <= record.attempt {
            return Ok(record);
        }
        let id = record.id;
        let gone = || Refusal::new(RefusalKind::Unavailable, format!("`{id}` is being destroyed"));
        let lock = self.lock_of(&id).ok_or_else(gone)?;
        let _held = lock.lock().await;
        let there = self.find(&id).filter(|record| record.state == CloneState::Ready);
        let mut record = there.ok_or_else(gone)?;
        record.attempt = record.attempt.max(attempt);
        let written = self.storage.update_record(&record).await;
        written.map_err(|error| refuse::storage(&error))?;
        self.change(&id, |known| known.record = record.clone());
        Ok(record)
    }

    /// Removes a clone and all of its data; what is gone already counts as removed. A dataset that is still busy stays
    /// marked `destroying`, and the reconcile pass tries again.
    pub async fn destroy(&self, id: &CloneId) {
        let Some(lock) = self.lock_of(id) else { return };
        let _held = lock.lock_owned().await;
        if self.find(id).is_some() {
            self.take_away(id).await;
        }
    }

    /// Removes a clone as [`Self::destroy`] does, unless it was the answer to a later attempt than `attempt`; returns whether
    /// it is gone.
    pub async fn take_back(&self, id: &CloneId, attempt: u32) -> bool {
        let Some(lock) = self.lock_of(id) else { return true };
        let _held = lock.lock_owned().await;
        match self.find(id) {
            Some(record) if record.attempt > attempt => false,
            Some(_) => {
                self.take_away(id).await;
                true
            }
            None => true,
        }
    }

    /// Starts the instance of a ready clone that does not run, unless something is being done to the clone.
    pub async fn start_again(&self, id: &CloneId, resource: &Resource) -> Result<(), Refusal> {
        let Some((known, _held)) = self.hold(id) else {
            return Ok(());
        };
        let data = match (known.record.state, known.address, known.data) {
            (CloneState::Ready, None, Some(data)) => data,
            // The disk says `ready` because it could not be marked; it was promised to go.
            (CloneState::Destroying, _, _) => {
                self.take_away(id).await;
                return Ok(());
            }
            (CloneState::Ready, None, None) => {
                let message = format!("the dataset of `{id}` is not mounted");
                return Err(
                    Refusal::new(RefusalKind::Unavailable, message).with_hint("the node's log says why")
                );
            }
            (CloneState::Ready | CloneState::Creating, _, _) => return Ok(()),
        };
        let spec = instance::spec(resource, InstanceId::Clone(id.clone()), data);
        let started = self.runtime.start(&spec).await;
        let started = started.map_err(|error| refuse::runtime(&error))?;
        self.change(id, |known| known.address = Some(started.address));
        Ok(())
    }

    /// Returns how many instances have ended so far, for [`Self::observe`].
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Takes over where instances answer, and where data is mounted, as they were just seen; `ended` was read before the
    /// look. An address outlives its instance, and the engine gives it to somebody else's: one that was not seen is
    /// forgotten, and one that was may have been lost since.
    pub fn observe(
        &self,
        inventory: &Inventory,
        instances: &[Observed],
        in_flight: &BTreeSet<InstanceId>,
        ended: u64,
    ) {
        let is_late = ended != self.ended();
        for clone in &inventory.clones {
            if in_flight.contains(&InstanceId::Clone(clone.record.id.clone())) {
                continue;
            }
            self.change(&clone.record.id, |known| {
                if known.record.state == CloneState::Ready {
                    let seen = Known::found(clone, instances);
                    known.data = seen.data;
                    if !is_late || seen.address.is_none() {
                        known.address = seen.address;
                    }
                }
            });
        }
    }

    /// Forgets where the instance of a clone answered, since it has ended, unless something is being done to the clone.
    pub fn lose_address(&self, id: &CloneId) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        if let Some((_, _held)) = self.hold(id) {
            self.change(id, |known| known.address = None);
        }
    }

    /// Forgets where every instance answered, since the engine may have given the addresses to others.
    pub fn lose_addresses(&self) {
        for clone in self.list() {
            self.lose_address(&clone.id);
        }
    }

    /// Removes a clone that the reconcile pass found interrupted or expired, unless something is being done to it, or it
    /// has become ready since.
    pub async fn remove_interrupted(&self, id: &CloneId, now: DateTime<Utc>) {
        let Some((known, _held)) = self.hold(id) else {
            return;
        };
        let expired = known
            .record
            .expires_at
            .is_some_and(|expires_at| expires_at <= now);
        if known.record.state != CloneState::Ready || expired {
            self.take_away(id).await;
        }
    }

    /// Removes the instance of a clone that has no dataset, unless the clone has come into being since.
    pub async fn remove_orphan(&self, id: &CloneId) {
        if self.find(id).is_none() {
            self.remove_instance(id).await;
        }
    }

    /// Forgets a clone whose dataset was removed behind our back.
    pub async fn forget(&self, id: &CloneId) {
        let Some((_, _held)) = self.hold(id) else { return };
        tracing::warn!(clone = %id, "the dataset of a clone is gone; forgetting the clone");
        self.remove_instance(id).await;
        self.known().remove(id);
        self.changed.notify_one();
    }

    /// Returns the record of a clone.
    pub fn find(&self, id: &CloneId) -> Option<CloneRecord> {
        self.known().get(id).map(|known| known.record.clone())
    }

    /// Returns the record of the clone that a request has made or is making.
    pub fn made_for(&self, owner: &UserName, request_id: &RequestId) -> Option<CloneRecord> {
        let known = self.known();
        let mut records = known.values().map(|known| &known.record);
        let is_it = |record: &&CloneRecord| {
            record.owner == *owner
                && record.request_id == *request_id
                && record.state != CloneState::Destroying
        };
        records.find(is_it).cloned()
    }

    /// Returns how many clones there are of requests that count.
    pub fn count(&self, counts: impl Fn(&RequestId) -> bool) -> usize {
        let known = self.known();
        known
            .values()
            .filter(|known| counts(&known.record.request_id))
            .count()
    }

    /// Returns all records, in the order of their ids.
    pub fn list(&self) -> Vec<CloneRecord> {
        self.known().values().map(|known| known.record.clone()).collect()
    }

    /// Waits until a clone has come or gone since the last time this was awaited. For one who waits.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns where a clone's database answers, if it does.
    pub fn address(&self, id: &CloneId) -> Option<Address> {
        self.known().get(id).and_then(|known| known.address.clone())
    }

    /// Returns the instances that something is being done to.
    pub fn in_flight(&self) -> BTreeSet<InstanceId> {
        let known = self.known();
        let busy = known.iter().filter(|(_, known)| known.lock.try_lock().is_err());
        busy.map(|(id, _)| InstanceId::Clone(id.clone())).collect()
    }

    /// Decides whether an order is a new clone, one that was made already, or one that is being made.
    fn admit(&self, order: &Order) -> Result<Admission, Refusal> {
        let mut known = self.known();
        // What is being destroyed is as good as gone: it is neither found again nor counted.
        let mine = |known: &&Known| {
            known.record.owner == order.owner && known.record.state != CloneState::Destroying
        };
        let same = |known: &&Known| known.record.request_id == order.request_id;
        if let Some(same) = known.values().filter(mine).find(same) {
            return match (same.record.state, &same.address) {
                (CloneState::Creating, _) => Ok(Admission::InTheMaking(Arc::clone(&same.lock))),
                (_, Some(_)) => Ok(Admission::Made(Box::new(same.record.clone()))),
                (_, None) => Err(starting(&same.record.id)),
            };
        }
        if let Some(most) = order.resource.limits.clones_per_user {
            let of_resource = |known: &&Known| known.record.resource() == &order.resource.name;
            if known.values().filter(mine).filter(of_resource).count()
                >= usize::try_from(most).unwrap_or(usize::MAX)
            {
                return Err(as_many_as_allowed(&order.owner, &order.resource.name, most));
            }
        }
        let record = order.record(&mut self.names.lock().unwrap_or_else(PoisonError::into_inner));
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        let held = Arc::clone(&lock).try_lock_owned().expect("the lock is new");
        known.insert(
            record.id.clone(),
            Known {
                record: record.clone(),
                data: None,
                address: None,
                lock,
            },
        );
        self.changed.notify_one();
        Ok(Admission::New(Box::new(record), held))
    }

    async fn build(&self, record: &mut CloneRecord, resource: &Resource) -> Result<Stages, Refusal> {
        let began = Instant::now();
        let properties = &resource.clone_params.zfs;
        let made = self
            .storage
            .create_clone(record, properties, resource.limits.disk_bytes)
            .await;
        let data = made.map_err(|error| refuse::storage(&error))?;
        let storage_ms = milliseconds(began.elapsed());

        let spec = instance::spec(resource, InstanceId::Clone(record.id.clone()), data.clone());
        let started = self
            .runtime
            .start(&spec)
            .await
            .map_err(|error| refuse::runtime(&error))?;

        record.state = CloneState::Ready;
        self.storage
            .update_record(record)
            .await
            .map_err(|error| refuse::storage(&error))?;
        self.change(&record.id, |known| {
            *known = Known {
                record: record.clone(),
                data: Some(data),
                address: Some(started.address),
                lock: Arc::clone(&known.lock),
            };
        });
        let (start_ms, ready_ms) = (milliseconds(started.start), milliseconds(started.ready));
        Ok(Stages {
            storage_ms,
            start_ms,
            ready_ms,
            ..Stages::default()
        })
    }

    /// Removes instance and dataset; the caller holds the clone's lock. It is marked first, so that after a crash it is
    /// not started again.
    async fn take_away(&self, id: &CloneId) {
        let Some(mut record) = self.find(id) else { return };
        record.state = CloneState::Destroying;
        self.change(id, |known| {
            known.record = record.clone();
            known.address = None;
        });
        match self.storage.update_record(&record).await {
            Ok(()) | Err(StorageError::Missing(_)) => {}
            Err(error) => {
                tracing::warn!(clone = %id, error = chain(&error), "mark clone as destroying")
            }
        }
        if !self.remove_instance(id).await {
            return;
        }
        match self.storage.destroy(&DatasetId::Clone(id.clone())).await {
            Ok(()) => {
                self.known().remove(id);
                self.changed.notify_one();
                tracing::info!(clone = %id, owner = %record.owner, "clone is gone");
            }
            Err(error) => {
                tracing::warn!(clone = %id, error = chain(&error), "destroy dataset; trying again later");
            }
        }
    }

    async fn remove_instance(&self, id: &CloneId) -> bool {
        match self.runtime.remove(&InstanceId::Clone(id.clone())).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(clone = %id, error = chain(&error), "remove instance; trying again later");
                false
            }
        }
    }

    /// Takes the clone's lock if it is free.
    fn hold(&self, id: &CloneId) -> Option<(Known, OwnedMutexGuard<()>)> {
        let held = self.lock_of(id)?.try_lock_owned().ok()?;
        // Read once the lock is held: whoever held it before may have changed or removed the clone.
        let known = self.known().get(id).cloned()?;
        Some((known, held))
    }

    fn lock_of(&self, id: &CloneId) -> Option<Arc<tokio::sync::Mutex<()>>> {
        self.known().get(id).map(|known| Arc::clone(&known.lock))
    }

    fn change(&self, id: &CloneId, change: impl FnOnce(&mut Known)) {
        if let Some(known) = self.known().get_mut(id) {
            change(known);
        }
    }

    /// No code that holds this can panic half-way through a change, so a poisoned lock still guards whole values.
    fn known(&self) -> MutexGuard<'_, BTreeMap<CloneId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn found(clone: &CloneDataset, instances: &[Observed]) -> Self {
        let id = InstanceId::Clone(clone.record.id.clone());
        let instance = instances.iter().find(|instance| instance.id == id);
        Self {
            record: clone.record.clone(),
            data: clone.mounted.then(|| clone.path.clone()),
            address: instance.and_then(|instance| instance.running.clone()),
            lock: Arc::default(),
        }
    }
}

enum Admission {
    New(Box<CloneRecord>, OwnedMutexGuard<()>),
    Made(Box<CloneRecord>),
    InTheMaking(Arc<tokio::sync::Mutex<()>>),
}

/// Refuses a clone to somebody who has `most` of the resource.
pub fn as_many_as_allowed(owner: &UserName, resource: &ResourceName, most: u32) -> Refusal {
    Refusal::new(
        // Of all nodes, so that none of them is of any help.
        RefusalKind::Conflict,
        format!("`{owner}` has {most} clones of `{resource}` already, as many as are allowed"),
    )
    .with_hint("`zdap list clones` shows them; `zdap destroy CLONE_ID` gives one back")
}

fn starting(id: &CloneId) -> Refusal {
    Refusal::new(RefusalKind::Unavailable, format!("`{id}` is being started"))
        .with_hint("try again in a moment")
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
