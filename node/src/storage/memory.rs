//! The fake: datasets that are names only, with latency and faults on request.
//!
//! A [`Memory`] is a daemon's hold on a disk. [`Memory::reopened`] gives what the next daemon finds: the same disk,
//! with the faults of its own life ([`Faults`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use zdap_proto::message::CloneRecord;
use zdap_proto::name::{BaseId, CloneId, SnapshotId};

use crate::faults::{Faults, Injected};

use super::record::{CLONES, Record};
use super::{
    BaseDataset, Capacity, CloneDataset, DatasetId, Inventory, Storage, StorageError, ZfsProperties,
};

/// A disk that is not there. Clones of a value are the same handle.
#[derive(Debug, Clone)]
pub struct Memory {
    disk: Arc<Mutex<Disk>>,
    faults: Faults,
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
            busy: 0,
        };
        Self {
            disk: Arc::new(Mutex::new(disk)),
            faults: Faults::none(),
        }
    }

    /// Returns what the next daemon finds: the same disk, with its own faults.
    pub fn reopened(&self, faults: Faults) -> Self {
        Self {
            disk: Arc::clone(&self.disk),
            faults,
        }
    }

    /// Makes the next `times` calls of `destroy` that would destroy something find it busy.
    pub fn busy_for(&self, times: usize) {
        held(&self.disk).busy = times;
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

    /// Carries out one call, with what was asked for going wrong around it.
    async fn call<T>(
        &self,
        name: &'static str,
        act: impl FnOnce(&mut Disk) -> Result<T, StorageError> + Send,
    ) -> Result<T, StorageError> {
        self.faults.call(name, async { act(&mut held(&self.disk)) }).await
    }
}

impl From<Injected> for StorageError {
    fn from(injected: Injected) -> Self {
        Self::Command {
            command: injected.name.to_owned(),
            stderr: injected.to_string(),
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
        self.call("inventory", |disk| Ok(disk.inventory())).await
    }

    async fn create_base(&self, base: &BaseId, _: &ZfsProperties) -> Result<PathBuf, StorageError> {
        self.call("create_base", |disk| disk.create_base(base)).await
    }

    async fn snapshot(&self, snapshot: &SnapshotId) -> Result<(), StorageError> {
        self.call("snapshot", |disk| disk.snapshot(snapshot)).await
    }

    async fn create_clone(
        &self,
        record: &CloneRecord,
        _: &ZfsProperties,
        _: Option<u64>,
    ) -> Result<PathBuf, StorageError> {
        self.call("create_clone", |disk| disk.create_clone(record)).await
    }

    async fn update_record(&self, record: &CloneRecord) -> Result<(), StorageError> {
        self.call("update_record", |disk| disk.update_record(record))
            .await
    }

    async fn destroy(&self, dataset: &DatasetId) -> Result<(), StorageError> {
        self.call("destroy", |disk| disk.destroy_unless_busy(dataset))
            .await
    }

    async fn referenced_bytes(&self, dataset: &DatasetId) -> Result<u64, StorageError> {
        let bytes = |disk: &mut Disk| {
            disk.bytes(dataset)
                .ok_or_else(|| StorageError::Missing(dataset.clone()))
        };
        self.call("referenced_bytes", bytes).await
    }

    async fn capacity(&self) -> Result<Capacity, StorageError> {
        self.call("capacity", |disk| Ok(disk.capacity)).await
    }
}

/// What lies there, whoever looks.
#[derive(Debug)]
struct Disk {
    bases: BTreeMap<BaseId, Base>,
    clones: BTreeMap<CloneId, CloneRecord>,
    foreign: BTreeSet<String>,
    base_bytes: u64,
    capacity: Capacity,
    busy: usize,
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
            mounted: true,
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

    fn destroy_unless_busy(&mut self, dataset: &DatasetId) -> Result<(), StorageError> {
        if self.busy > 0 && self.bytes(dataset).is_some() {
            self.busy -= 1;
            return Err(StorageError::Busy(dataset.clone()));
        }
        self.destroy(dataset)
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
