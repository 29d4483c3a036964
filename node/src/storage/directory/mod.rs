//! Datasets as directories: reflinked where the file system can, else copied. No root, no ZFS.
//!
//! ```text
//! <root>/.zdap-node                            whose tree this is
//! <root>/<resource>/<time>/record.json         a base
//! <root>/<resource>/<time>/data/               its data
//! <root>/<resource>/<time>/@base/              a snapshot: a copy of the data that nothing writes to
//! <root>/<resource>/<time>/base.bytes          the snapshot's size
//! <root>/clones/<clone id>/record.json, data/  a clone
//! <root>/.new/, .trash/                        what is being made or removed; emptied at start
//! ```
//!
//! Nothing appears under its own name before it is whole: it is made in `.new`, its record first, and renamed. Nothing
//! is removed under its own name: it is renamed to `.trash` and removed there. A snapshot reaches the disk before it
//! appears; a clone's data does when the kernel writes it, so a power failure can spoil a clone that was made shortly
//! before. Limits of a clone's size and ZFS properties are passed over.

mod copy;
mod files;
mod tree;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use zdap_proto::message::CloneRecord;
use zdap_proto::name::{BaseId, ResourceName, SnapshotId};

use super::record::Record;
use super::{Capacity, DatasetId, Inventory, Storage, StorageError, ZfsProperties};
use tree::Tree;

/// A directory that holds the datasets of one node.
#[derive(Debug)]
pub struct Directory {
    tree: Arc<Tree>,
    /// What it may take of the disk, in bytes.
    size: Option<u64>,
    /// Whose limits of size have been warned of.
    unlimited: Mutex<BTreeSet<ResourceName>>,
}

impl Directory {
    /// Takes the directory `root`, and makes it if it is absent.
    ///
    /// The file `.zdap-node` in it says whose it is: `owner` (`<cluster>/<node>`). A directory of another's, one with
    /// things in it that is nobody's, and one that another process works on are refused. What an earlier process left
    /// half made or half removed is removed.
    pub async fn open(root: &Path, owner: &str) -> Result<Self, StorageError> {
        let (root, owner) = (root.to_owned(), owner.to_owned());
        let tree = on_thread(move || Tree::open(root, &owner)).await?;
        Ok(Self {
            tree: Arc::new(tree),
            size: None,
            unlimited: Mutex::default(),
        })
    }

    /// Counts no more than so many bytes as room, whatever the disk has. What is shared between files counts as often as it
    /// is shared.
    #[must_use]
    pub fn with_size(self, bytes: Option<u64>) -> Self {
        Self { size: bytes, ..self }
    }

    /// Returns whether this is the first clone of the resource that has a limit.
    fn is_first_limited(&self, resource: &ResourceName) -> bool {
        let mut known = self.unlimited.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(resource.clone())
    }

    /// Does `work` on a thread where waiting for the disk hinders nobody. When the caller goes away, copying ends.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tree, &AtomicBool) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let abandoned = AbandonedOnDrop(Arc::default());
        let (tree, flag) = (Arc::clone(&self.tree), Arc::clone(&abandoned.0));
        on_thread(move || work(&tree, &flag)).await
    }
}

#[async_trait]
impl Storage for Directory {
    async fn inventory(&self) -> Result<Inventory, StorageError> {
        self.work(|tree, _| tree.inventory()).await
    }

    async fn create_base(&self, base: &BaseId, _: &ZfsProperties) -> Result<PathBuf, StorageError> {
        let record = Record::Base(base.clone());
        self.work(move |tree, _| tree.make(&record, |_| Ok(()))).await
    }

    async fn snapshot(&self, snapshot: &SnapshotId) -> Result<(), StorageError> {
        let snapshot = snapshot.clone();
        self.work(move |tree, abandoned| tree.snapshot(&snapshot, abandoned))
            .await
    }

    async fn create_clone(
        &self,
        record: &CloneRecord,
        _: &ZfsProperties,
        disk_limit_bytes: Option<u64>,
    ) -> Result<PathBuf, StorageError> {
        let resource = &record.snapshot.base.resource;
        if disk_limit_bytes.is_some() && self.is_first_limited(resource) {
            tracing::warn!(
                %resource,
                "`limits.disk` is not enforced: a directory cannot be kept from growing; use ZFS to have it enforced"
            );
        }
        let record = record.clone();
        self.work(move |tree, abandoned| tree.create_clone(record, abandoned))
            .await
    }

    async fn update_record(&self, record: &CloneRecord) -> Result<(), StorageError> {
        let record = record.clone();
        self.work(move |tree, _| tree.update_record(&record)).await
    }

    async fn destroy(&self, dataset: &DatasetId) -> Result<(), StorageError> {
        let dataset = dataset.clone();
        self.work(move |tree, _| tree.destroy(&dataset)).await
    }

    async fn referenced_bytes(&self, dataset: &DatasetId) -> Result<u64, StorageError> {
        let dataset = dataset.clone();
        self.work(move |tree, _| tree.referenced_bytes(&dataset)).await
    }

    async fn capacity(&self) -> Result<Capacity, StorageError> {
        let size = self.size;
        self.work(move |tree, _| tree.capacity(size)).await
    }
}

/// Tells the thread that works for a future when that future has gone away.
struct AbandonedOnDrop(Arc<AtomicBool>);

impl Drop for AbandonedOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(StorageError::Io {
            doing: "work on a directory".to_owned(),
            source: io::Error::other(error),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_limit_that_is_not_enforced_is_warned_of_once_for_each_resource() {
        let root = tempfile::tempdir().unwrap();
        let storage = Directory::open(root.path(), "c1/node-a").await.unwrap();
        let (orders, customers) = ("orders".parse().unwrap(), "customers".parse().unwrap());
        let first = [&orders, &customers, &orders].map(|resource| storage.is_first_limited(resource));
        assert_eq!(first, [true, true, false]);
    }
}
