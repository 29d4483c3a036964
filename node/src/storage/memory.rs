//! The fake: datasets that are names only, with latency and faults on request.
//!
//! A [`Memory`] is a daemon's hold on a disk. [`Memory::reopened`] gives what the next daemon finds: the same disk,
//! without the faults. For a crash test, run once without faults and count [`Memory::calls`]; then, for each of them,
//! fail or stop there, reopen, and look.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use zdap_proto::message::CloneRecord;
use zdap_proto::name::{BaseId, CloneId, SnapshotId};

use super::record::{CLONES, Record};
use super::{
    BaseDataset, Capacity, CloneDataset, DatasetId, Inventory, Storage, StorageError, ZfsProperties,
};

/// A disk that is not there. Clones of a value are the same handle.
#[derive(Debug, Clone)]
pub struct Memory {
    disk: Arc<Mutex<Disk>>,
    handle: Arc<Mutex<Handle>>,
    stopped: watch::Sender<bool>,
}

/// A call of [`Storage`], by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`Storage::inventory`]
    Inventory,
    /// [`Storage::create_base`]
    CreateBase(BaseId),
    /// [`Storage::snapshot`]
    Snapshot(SnapshotId),
    /// [`Storage::create_clone`]
    CreateClone(CloneId),
    /// [`Storage::update_record`]
    UpdateRecord(CloneId),
    /// [`Storage::destroy`]
    Destroy(DatasetId),
    /// [`Storage::referenced_bytes`]
    ReferencedBytes(DatasetId),
    /// [`Storage::capacity`]
    Capacity,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inventory => write!(f, "inventory"),
            Self::CreateBase(base) => write!(f, "create_base {base}"),
            Self::Snapshot(snapshot) => write!(f, "snapshot {snapshot}"),
            Self::CreateClone(clone) => write!(f, "create_clone {clone}"),
            Self::UpdateRecord(clone) => write!(f, "update_record {clone}"),
            Self::Destroy(dataset) => write!(f, "destroy {dataset}"),
            Self::ReferencedBytes(dataset) => write!(f, "referenced_bytes {dataset}"),
            Self::Capacity => write!(f, "capacity"),
        }
    }
}

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before the call has done anything.
    Before,
    /// When the call has done everything, but has not said so.
    After,
}

impl Memory {
    /// Makes an empty disk of 1 TiB.
    pub fn new() -> Self {
        let disk = Disk {
            bases: BTreeMap::new(),
            clones: BTreeMap::new(),
            foreign: BTreeSet::new(),
            base_bytes: 1 << 30,
            capacity: Capacity {
                free_bytes: 1 << 40,
                total_bytes: 1 << 40,
            },
        };
        Self::on(Arc::new(Mutex::new(disk)))
    }

    /// Returns what the next daemon finds: the same disk, no faults, no calls yet.
    pub fn reopened(&self) -> Self {
        Self::on(Arc::clone(&self.disk))
    }

    fn on(disk: Arc<Mutex<Disk>>) -> Self {
        Self {
            disk,
            handle: Arc::default(),
            stopped: watch::Sender::new(false),
        }
    }

    /// Lets `passed` more calls pass; the one after them returns an error.
    pub fn fail_after(&self, passed: usize, moment: Moment) {
        self.add_fault(passed, moment, Fault::Fail);
    }

    /// Lets `passed` more calls pass; the one after them, and every later one, never returns: the daemon is dead.
    pub fn stop_after(&self, passed: usize, moment: Moment) {
        self.add_fault(passed, moment, Fault::Stop);
    }

    /// Waits until a call has been stopped by [`Self::stop_after`].
    pub async fn stopped(&self) {
        let mut stopped = self.stopped.subscribe();
        // The sender lives in `self`: waiting cannot fail.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }

    /// Makes the next `times` calls of `destroy` that would destroy something find it busy.
    pub fn busy_for(&self, times: usize) {
        held(&self.handle).busy = times;
    }

    /// Makes every call take this long.
    pub fn set_latency(&self, latency: Duration) {
        held(&self.handle).latency = latency;
    }

    /// Sets the room there is. Nothing can be made when none is free.
    pub fn set_capacity(&self, capacity: Capacity) {
        held(&self.disk).capacity = capacity;
    }

    /// Sets how many bytes bases made from now on refer to. They are not taken from the capacity.
    pub fn set_base_bytes(&self, bytes: u64) {
        held(&self.disk).base_bytes = bytes;
    }

    /// Lays something on the disk that is not ours.
    pub fn add_foreign(&self, name: &str) {
        held(&self.disk).foreign.insert(name.to_owned());
    }

    /// Returns every call on this handle so far, failed and stopped ones included.
    pub fn calls(&self) -> Vec<Call> {
        held(&self.handle).calls.clone()
    }

    fn add_fault(&self, passed: usize, moment: Moment, fault: Fault) {
        let mut handle = held(&self.handle);
        let call = handle.calls.len() + passed;
        handle.faults.insert(call, (moment, fault));
    }

    /// Carries out `call` with its latency and fault.
    async fn call<T>(
        &self,
        call: Call,
        act: impl FnOnce(&mut Disk, &mut Handle) -> Result<T, StorageError> + Send,
    ) -> Result<T, StorageError> {
        let (latency, fault) = {
            let mut handle = held(&self.handle);
            let number = handle.calls.len();
            handle.calls.push(call.clone());
            (handle.latency, handle.faults.remove(&number))
        };
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        if *self.stopped.borrow() {
            return std::future::pending().await;
        }
        let act = || act(&mut held(&self.disk), &mut held(&self.handle));
        let failure = || {
            Err(StorageError::Command {
                command: call.to_string(),
                stderr: "was told to fail".to_owned(),
            })
        };
        match fault {
            None => act(),
            Some((Moment::Before, Fault::Fail)) => failure(),
            Some((Moment::After, Fault::Fail)) => act().and_then(|_| failure()),
            Some((moment, Fault::Stop)) => {
                if moment == Moment::After {
                    let _ = act(); // nobody is left to be told
                }
                self.stopped.send_replace(true);
                std::future::pending().await
            }
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Storage for Memory {
    async fn inventory(&self) -> Result<Inventory, StorageError> {
        self.call(Call::Inventory, |disk, _| Ok(disk.inventory())).await
    }

    async fn create_base(&self, base: &BaseId, _: &ZfsProperties) -> Result<PathBuf, StorageError> {
        self.call(Call::CreateBase(base.clone()), |disk, _| disk.create_base(base))
            .await
    }

    async fn snapshot(&self, snapshot: &SnapshotId) -> Result<(), StorageError> {
        self.call(Call::Snapshot(snapshot.clone()), |disk, _| {
            disk.snapshot(snapshot)
        })
        .await
    }

    async fn create_clone(
        &self,
        record: &CloneRecord,
        _: &ZfsProperties,
        _: Option<u64>,
    ) -> Result<PathBuf, StorageError> {
        self.call(Call::CreateClone(record.id.clone()), |disk, _| {
            disk.create_clone(record)
        })
        .await
    }

    async fn update_record(&self, record: &CloneRecord) -> Result<(), StorageError> {
        self.call(Call::UpdateRecord(record.id.clone()), |disk, _| {
            disk.update_record(record)
        })
        .await
    }

    async fn destroy(&self, dataset: &DatasetId) -> Result<(), StorageError> {
        self.call(Call::Destroy(dataset.clone()), |disk, handle| {
            if handle.busy > 0 && disk.bytes(dataset).is_some() {
                handle.busy -= 1;
                return Err(StorageError::Busy(dataset.clone()));
            }
            disk.destroy(dataset)
        })
        .await
    }

    async fn referenced_bytes(&self, dataset: &DatasetId) -> Result<u64, StorageError> {
        self.call(Call::ReferencedBytes(dataset.clone()), |disk, _| {
            disk.bytes(dataset)
                .ok_or_else(|| StorageError::Missing(dataset.clone()))
        })
        .await
    }

    async fn capacity(&self) -> Result<Capacity, StorageError> {
        self.call(Call::Capacity, |disk, _| Ok(disk.capacity)).await
    }
}

/// What one daemon does and suffers.
#[derive(Debug, Default)]
struct Handle {
    calls: Vec<Call>,
    faults: BTreeMap<usize, (Moment, Fault)>,
    busy: usize,
    latency: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Fail,
    Stop,
}

/// What lies there, whoever looks.
#[derive(Debug)]
struct Disk {
    bases: BTreeMap<BaseId, Base>,
    clones: BTreeMap<CloneId, CloneRecord>,
    foreign: BTreeSet<String>,
    base_bytes: u64,
    capacity: Capacity,
}

#[derive(Debug)]
struct Base {
    bytes: u64,
    snapshots: BTreeSet<SnapshotId>,
}

impl Disk {
    fn inventory(&self) -> Inventory {
        let base = |(id, base): (&BaseId, &Base)| BaseDataset {
            id: id.clone(),
            path: base_path(id),
            snapshots: base
                .snapshots
                .iter()
                .map(|snapshot| (snapshot.clone(), base.bytes))
                .collect(),
        };
        let clone = |record: &CloneRecord| CloneDataset {
            record: record.clone(),
            path: clone_path(&record.id),
        };
        Inventory {
            bases: self.bases.iter().map(base).collect(),
            clones: self.clones.values().map(clone).collect(),
            foreign: self.foreign.iter().cloned().collect(),
        }
    }

    fn create_base(&mut self, id: &BaseId) -> Result<PathBuf, StorageError> {
        if !self.bases.contains_key(id) {
            self.check_room()?;
            let base = Base {
                bytes: self.base_bytes,
                snapshots: BTreeSet::new(),
            };
            self.bases.insert(id.clone(), base);
        }
        Ok(base_path(id))
    }

    fn snapshot(&mut self, id: &SnapshotId) -> Result<(), StorageError> {
        self.check_room()?;
        match self.bases.get_mut(&id.base) {
            Some(base) => {
                base.snapshots.insert(id.clone());
                Ok(())
            }
            None => Err(StorageError::Missing(DatasetId::Base(id.base.clone()))),
        }
    }

    fn create_clone(&mut self, record: &CloneRecord) -> Result<PathBuf, StorageError> {
        Record::Clone(record.clone()).text()?;
        match self.clones.get(&record.id) {
            Some(there) if there == record => return Ok(clone_path(&record.id)),
            Some(_) => {
                return Err(StorageError::Command {
                    command: format!("create_clone {}", record.id),
                    stderr: "it already exists, with another record".to_owned(),
                });
            }
            None => {}
        }
        let snapshot = DatasetId::Snapshot(record.snapshot.clone());
        if self.bytes(&snapshot).is_none() {
            return Err(StorageError::Missing(snapshot));
        }
        self.check_room()?;
        self.clones.insert(record.id.clone(), record.clone());
        Ok(clone_path(&record.id))
    }

    fn update_record(&mut self, record: &CloneRecord) -> Result<(), StorageError> {
        Record::Clone(record.clone()).text()?;
        match self.clones.get_mut(&record.id) {
            Some(there) => {
                there.clone_from(record);
                Ok(())
            }
            None => Err(StorageError::Missing(DatasetId::Clone(record.id.clone()))),
        }
    }

    fn destroy(&mut self, dataset: &DatasetId) -> Result<(), StorageError> {
        let has_clones = self.clones.values().any(|clone| match dataset {
            DatasetId::Base(base) => clone.snapshot.base == *base,
            DatasetId::Snapshot(snapshot) => clone.snapshot == *snapshot,
            DatasetId::Clone(_) => false,
        });
        if has_clones {
            return Err(StorageError::HasClones(dataset.clone()));
        }
        match dataset {
            DatasetId::Base(base) => {
                self.bases.remove(base);
            }
            DatasetId::Snapshot(snapshot) => {
                if let Some(base) = self.bases.get_mut(&snapshot.base) {
                    base.snapshots.remove(snapshot);
                }
            }
            DatasetId::Clone(clone) => {
                self.clones.remove(clone);
            }
        }
        Ok(())
    }

    fn bytes(&self, dataset: &DatasetId) -> Option<u64> {
        let (base, snapshot) = match dataset {
            DatasetId::Base(base) => (base, None),
            DatasetId::Snapshot(snapshot) => (&snapshot.base, Some(snapshot)),
            DatasetId::Clone(clone) => {
                let snapshot = &self.clones.get(clone)?.snapshot;
                (&snapshot.base, Some(snapshot))
            }
        };
        let base = self.bases.get(base)?;
        match snapshot {
            Some(snapshot) if !base.snapshots.contains(snapshot) => None,
            Some(_) | None => Some(base.bytes),
        }
    }

    fn check_room(&self) -> Result<(), StorageError> {
        match self.capacity.free_bytes {
            0 => Err(StorageError::Full("the disk in memory".to_owned())),
            _ => Ok(()),
        }
    }
}

fn base_path(base: &BaseId) -> PathBuf {
    PathBuf::from(format!("/memory/{base}"))
}

fn clone_path(clone: &CloneId) -> PathBuf {
    PathBuf::from(format!("/memory/{CLONES}/{clone}"))
}

/// Nothing panics while it holds one of these locks; a poisoned one would be as good as any.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
