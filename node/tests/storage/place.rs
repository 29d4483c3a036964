//! Places for storages, and what tests put there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use zdap_node::faults::Faults;
use zdap_node::storage::directory::Directory;
use zdap_node::storage::memory::Memory;
use zdap_node::storage::zfs::Zfs;
use zdap_node::storage::{DatasetId, Storage, StorageError, ZfsProperties};
use zdap_proto::message::{CloneRecord, CloneState};
use zdap_proto::name::{BaseId, CloneId, RequestId, ResourceName, SnapshotId};

use crate::lab;

pub(crate) const OWNER: &str = "c1/node-a";

/// A place where a storage can be opened again and again.
pub(crate) enum Place {
    Memory(Memory),
    Directory(TempDir),
    Zfs(LabDataset),
}

impl Place {
    pub(crate) async fn open(&self) -> Arc<dyn Storage> {
        match self {
            Self::Memory(memory) => Arc::new(memory.reopened(Faults::none())),
            Self::Directory(root) => Arc::new(Directory::open(root.path(), OWNER).await.unwrap()),
            Self::Zfs(dataset) => Arc::new(Zfs::open(&dataset.name, OWNER).await.unwrap()),
        }
    }

    /// Lays two things into the tree that are not ours, one looking much like a clone; returns words of their names.
    pub(crate) fn add_strangers(&self) -> [&'static str; 2] {
        match self {
            Self::Memory(memory) => {
                memory.add_foreign("stranger");
                memory.add_foreign("orders-bbbbbbbb");
            }
            Self::Directory(root) => {
                fs::create_dir_all(root.path().join("strangers/stranger")).unwrap();
                fs::create_dir_all(root.path().join("clones/orders-bbbbbbbb/data")).unwrap();
            }
            Self::Zfs(dataset) => {
                dataset.zfs(&["create", &format!("{}/zdap/stranger", dataset.name)]);
                dataset.zfs(&["create", &format!("{}/zdap/clones/orders-bbbbbbbb", dataset.name)]);
            }
        }
        ["stranger", "orders-bbbbbbbb"]
    }

    pub(crate) fn has_files(&self) -> bool {
        !matches!(self, Self::Memory(_))
    }
}

/// A dataset of the lab's pool, destroyed with all that is in it at the end of the test.
pub(crate) struct LabDataset {
    pub(crate) name: String,
}

impl LabDataset {
    pub(crate) fn new(test: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let pool = lab::variable(test, "ZDAP_TEST_ZPOOL")?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dataset = Self {
            name: format!("{pool}/storage-{}-{number}", std::process::id()),
        };
        dataset.zfs(&["create", &dataset.name]);
        Some(dataset)
    }

    pub(crate) fn zfs(&self, arguments: &[&str]) -> String {
        let begun = Instant::now();
        loop {
            let output = Command::new("zfs").args(arguments).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            if stderr.contains("busy") && begun.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(20)); // as ZFS is for a moment, for no reason to wait for
                continue;
            }
            assert!(output.status.success(), "zfs {arguments:?}: {stderr}");
            return String::from_utf8(output.stdout).unwrap();
        }
    }
}

impl Drop for LabDataset {
    fn drop(&mut self) {
        let begun = Instant::now();
        let destroy = || Command::new("zfs").args(["destroy", "-R", &self.name]).output();
        while !destroy().is_ok_and(|output| output.status.success()) {
            if begun.elapsed() > PATIENCE {
                assert!(std::thread::panicking(), "{} cannot be destroyed", self.name);
                return;
            }
            std::thread::sleep(Duration::from_millis(20)); // busy for a moment, as above
        }
    }
}

/// `nobody`, on every Linux.
pub(crate) const NOBODY: u32 = 65534;
/// For what takes a moment.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn refused(error: Option<StorageError>, words: &[&str]) {
    let Some(StorageError::Unusable { message, hint } | StorageError::NotOurs { message, hint }) = error
    else {
        panic!("{error:?}");
    };
    for word in words {
        assert!(message.contains(word), "{word}: {message}");
    }
    assert!(!hint.is_empty());
}

/// Makes a base, a snapshot and a clone.
pub(crate) async fn cloned(storage: &dyn Storage, snapshot: &SnapshotId) -> CloneRecord {
    storage.create_base(&snapshot.base, &none()).await.unwrap();
    storage.snapshot(snapshot).await.unwrap();
    let record = record(snapshot);
    storage.create_clone(&record, &none(), None).await.unwrap();
    record
}

pub(crate) async fn destroy_all(storage: &dyn Storage, record: &CloneRecord) {
    storage
        .destroy(&DatasetId::Clone(record.id.clone()))
        .await
        .unwrap();
    storage
        .destroy(&DatasetId::Base(record.snapshot.base.clone()))
        .await
        .unwrap();
}

pub(crate) fn base(resource: &str) -> BaseId {
    BaseId {
        resource: resource.parse().unwrap(),
        created_at: "2026-11-22T13:39:25Z".parse().unwrap(),
    }
}

pub(crate) fn record(snapshot: &SnapshotId) -> CloneRecord {
    let resource: &ResourceName = &snapshot.base.resource;
    CloneRecord {
        id: CloneId::random(resource),
        request_id: RequestId::random(),
        attempt: 0,
        owner: "ada@laptop".parse().unwrap(),
        snapshot: snapshot.clone(),
        created_at: "2026-11-22T14:00:00.123456789Z".parse().unwrap(),
        state: CloneState::Creating,
        pooled: false,
        expires_at: None,
    }
}

pub(crate) fn none() -> ZfsProperties {
    ZfsProperties::default()
}

pub(crate) fn read(directory: &Path, name: &str) -> String {
    fs::read_to_string(directory.join(name)).unwrap()
}

/// Returns bytes that no file system can compress.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) async fn free(storage: &Directory, path: &PathBuf) -> u64 {
    rustix::fs::syncfs(fs::File::open(path).unwrap()).unwrap();
    storage.capacity().await.unwrap().free_bytes
}
