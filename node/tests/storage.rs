//! The contract of `Storage`, kept by all three: memory, directories (plain and reflinked) and ZFS.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it does not expect fails"
)]

mod lab;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tempfile::TempDir;
use zdap_node::faults::{Faults, Moment};
use zdap_node::storage::directory::Directory;
use zdap_node::storage::memory::Memory;
use zdap_node::storage::zfs::Zfs;
use zdap_node::storage::{Capacity, DatasetId, Inventory, Storage, StorageError, ZfsProperties};
use zdap_proto::message::{CloneRecord, CloneState};
use zdap_proto::name::{BaseId, CloneId, RequestId, ResourceName, SnapshotId};

const OWNER: &str = "c1/node-a";

/// A place where a storage can be opened again and again.
enum Place {
    Memory(Memory),
    Directory(TempDir),
    Zfs(LabDataset),
}

impl Place {
    async fn open(&self) -> Arc<dyn Storage> {
        match self {
            Self::Memory(memory) => Arc::new(memory.reopened(Faults::none())),
            Self::Directory(root) => Arc::new(Directory::open(root.path(), OWNER).await.unwrap()),
            Self::Zfs(dataset) => Arc::new(Zfs::open(&dataset.name, OWNER).await.unwrap()),
        }
    }

    /// Lays two things into the tree that are not ours, one looking much like a clone; returns words of their names.
    fn add_strangers(&self) -> [&'static str; 2] {
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

    fn has_files(&self) -> bool {
        !matches!(self, Self::Memory(_))
    }
}

/// A dataset of the lab's pool, destroyed with all that is in it at the end of the test.
struct LabDataset {
    name: String,
}

impl LabDataset {
    fn new(test: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let pool = lab::variable(test, "ZDAP_TEST_ZPOOL")?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dataset = Self {
            name: format!("{pool}/storage-{}-{number}", std::process::id()),
        };
        dataset.zfs(&["create", &dataset.name]);
        Some(dataset)
    }

    fn zfs(&self, arguments: &[&str]) -> String {
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
const NOBODY: u32 = 65534;
/// For what takes a moment.
const PATIENCE: Duration = Duration::from_secs(20);

macro_rules! contract {
    ($($sentence:ident)*) => {
        mod memory {
            use super::*;
            $(#[tokio::test]
            async fn $sentence() {
                super::$sentence(&Place::Memory(Memory::new())).await;
            })*
        }
        mod directory {
            use super::*;
            $(#[tokio::test]
            async fn $sentence() {
                super::$sentence(&Place::Directory(tempfile::tempdir().unwrap())).await;
            })*
        }
        mod reflink {
            use super::*;
            $(#[tokio::test]
            async fn $sentence() {
                let test = concat!("storage::reflink::", stringify!($sentence));
                if let Some(root) = lab::variable(test, "ZDAP_TEST_REFLINK_DIR") {
                    super::$sentence(&Place::Directory(tempfile::tempdir_in(root).unwrap())).await;
                }
            })*
        }
        mod zfs {
            use super::*;
            $(#[tokio::test]
            async fn $sentence() {
                if let Some(dataset) = LabDataset::new(concat!("storage::zfs::", stringify!($sentence))) {
                    super::$sentence(&Place::Zfs(dataset)).await;
                }
            })*
        }
    };
}

contract! {
    doing_it_twice_is_doing_it_once
    undoing_what_is_absent_succeeds
    a_record_is_there_as_soon_as_its_clone
    an_updated_record_replaces_the_old_one_whole
    updating_the_record_of_an_absent_clone_says_missing
    a_clone_of_an_absent_snapshot_says_missing
    a_snapshot_of_an_absent_base_says_missing
    another_clone_of_the_same_id_is_an_error_and_changes_nothing
    what_is_not_ours_is_named_and_never_touched
    a_clone_has_the_snapshots_data_and_writes_reach_nothing_else
    two_snapshots_of_a_base_keep_their_own_data
    a_base_with_clones_is_not_destroyed_and_loses_nothing
    a_destroyed_dataset_leaves_nothing_behind
    what_is_found_after_a_restart_is_what_was_left
    the_longest_names_do
    a_resource_named_clones_gets_in_no_clones_way
    many_at_once_get_what_they_ask_for
    there_is_room_and_a_base_refers_to_its_data
}

async fn doing_it_twice_is_doing_it_once(place: &Place) {
    let storage = place.open().await;
    let snapshot = SnapshotId::of_restore(base("orders"));
    let path = storage.create_base(&snapshot.base, &none()).await.unwrap();
    assert_eq!(storage.create_base(&snapshot.base, &none()).await.unwrap(), path);
    storage.snapshot(&snapshot).await.unwrap();
    storage.snapshot(&snapshot).await.unwrap();
    let record = record(&snapshot);
    let path = storage.create_clone(&record, &none(), None).await.unwrap();
    assert_eq!(storage.create_clone(&record, &none(), None).await.unwrap(), path);
    let inventory = storage.inventory().await.unwrap();
    assert_eq!(
        (inventory.bases.len(), inventory.bases[0].snapshots.len()),
        (1, 1)
    );
    assert_eq!(inventory.clones.len(), 1);
    assert_eq!(inventory.foreign, Vec::<String>::new());
}

async fn undoing_what_is_absent_succeeds(place: &Place) {
    let storage = place.open().await;
    let snapshot = SnapshotId::of_restore(base("orders"));
    storage
        .destroy(&DatasetId::Clone(record(&snapshot).id))
        .await
        .unwrap();
    storage
        .destroy(&DatasetId::Snapshot(snapshot.clone()))
        .await
        .unwrap();
    storage
        .destroy(&DatasetId::Base(snapshot.base.clone()))
        .await
        .unwrap();
    let record = cloned(&*storage, &snapshot).await;
    for dataset in [
        DatasetId::Clone(record.id.clone()),
        DatasetId::Snapshot(snapshot.clone()),
        DatasetId::Base(snapshot.base.clone()),
    ] {
        storage.destroy(&dataset).await.unwrap();
        storage.destroy(&dataset).await.unwrap();
    }
    assert_eq!(storage.inventory().await.unwrap(), Inventory::default());
}

async fn a_record_is_there_as_soon_as_its_clone(place: &Place) {
    let storage = place.open().await;
    let record = cloned(&*storage, &SnapshotId::of_restore(base("orders"))).await;
    let inventory = storage.inventory().await.unwrap();
    assert_eq!(inventory.clones[0].record, record);
}

async fn an_updated_record_replaces_the_old_one_whole(place: &Place) {
    let storage = place.open().await;
    let mut record = cloned(&*storage, &SnapshotId::of_restore(base("orders"))).await;
    let path = storage.inventory().await.unwrap().clones[0].path.clone();
    record.state = CloneState::Ready;
    record.owner = "bob".parse().unwrap();
    record.expires_at = Some("2027-01-01T00:00:00Z".parse().unwrap());
    storage.update_record(&record).await.unwrap();
    record.expires_at = None;
    storage.update_record(&record).await.unwrap();
    let clones = storage.inventory().await.unwrap().clones;
    assert_eq!(
        (clones.len(), &clones[0].record, &clones[0].path),
        (1, &record, &path)
    );
}

async fn updating_the_record_of_an_absent_clone_says_missing(place: &Place) {
    let storage = place.open().await;
    let record = record(&SnapshotId::of_restore(base("orders")));
    let error = storage.update_record(&record).await.unwrap_err();
    assert!(
        matches!(&error, StorageError::Missing(DatasetId::Clone(id)) if *id == record.id),
        "{error:?}"
    );
    assert_eq!(storage.inventory().await.unwrap(), Inventory::default());
}

async fn a_clone_of_an_absent_snapshot_says_missing(place: &Place) {
    let storage = place.open().await;
    let snapshot = SnapshotId::of_restore(base("orders"));
    storage.create_base(&snapshot.base, &none()).await.unwrap();
    let error = storage
        .create_clone(&record(&snapshot), &none(), None)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, StorageError::Missing(DatasetId::Snapshot(id)) if *id == snapshot),
        "{error:?}"
    );
    assert_eq!(storage.inventory().await.unwrap().clones, vec![]);
}

async fn a_snapshot_of_an_absent_base_says_missing(place: &Place) {
    let storage = place.open().await;
    let snapshot = SnapshotId::of_restore(base("orders"));
    let error = storage.snapshot(&snapshot).await.unwrap_err();
    assert!(
        matches!(&error, StorageError::Missing(DatasetId::Base(id)) if *id == snapshot.base),
        "{error:?}"
    );
    let dataset = DatasetId::Base(snapshot.base);
    let error = storage.referenced_bytes(&dataset).await.unwrap_err();
    assert!(
        matches!(&error, StorageError::Missing(id) if *id == dataset),
        "{error:?}"
    );
}

async fn another_clone_of_the_same_id_is_an_error_and_changes_nothing(place: &Place) {
    let storage = place.open().await;
    let record = cloned(&*storage, &SnapshotId::of_restore(base("orders"))).await;
    let other = CloneRecord {
        owner: "mallory".parse().unwrap(),
        ..record.clone()
    };
    storage.create_clone(&other, &none(), None).await.unwrap_err();
    assert_eq!(storage.inventory().await.unwrap().clones[0].record, record);
}

async fn what_is_not_ours_is_named_and_never_touched(place: &Place) {
    let storage = place.open().await;
    let record = cloned(&*storage, &SnapshotId::of_restore(base("orders"))).await;
    let names = place.add_strangers();
    let foreign = storage.inventory().await.unwrap().foreign;
    for name in names {
        assert!(foreign.iter().any(|line| line.contains(name)), "{foreign:?}");
    }
    let lookalike = DatasetId::Clone("orders-bbbbbbbb".parse().unwrap());
    if place.has_files() {
        let error = storage.destroy(&lookalike).await.unwrap_err();
        assert!(matches!(error, StorageError::Unusable { .. }), "{error:?}");
    } else {
        storage.destroy(&lookalike).await.unwrap(); // there is no such clone
    }
    destroy_all(&*storage, &record).await;
    let left = storage.inventory().await.unwrap();
    assert_eq!((left.bases, left.clones, left.foreign), (vec![], vec![], foreign));
}

async fn a_clone_has_the_snapshots_data_and_writes_reach_nothing_else(place: &Place) {
    let storage = place.open().await;
    let snapshot = SnapshotId::of_restore(base("orders"));
    let base_path = storage.create_base(&snapshot.base, &none()).await.unwrap();
    if place.has_files() {
        fs::create_dir(base_path.join("pg_wal")).unwrap();
        fs::write(base_path.join("pg_wal/0001"), "of the base").unwrap();
        fs::write(base_path.join("empty"), "").unwrap();
        symlink("pg_wal/0001", base_path.join("link")).unwrap();
        fs::set_permissions(&base_path, fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(base_path.join("pg_wal/0001"), fs::Permissions::from_mode(0o640)).unwrap();
    }
    storage.snapshot(&snapshot).await.unwrap();
    let (one, other) = (record(&snapshot), record(&snapshot));
    let one_path = storage.create_clone(&one, &none(), None).await.unwrap();
    let other_path = storage.create_clone(&other, &none(), None).await.unwrap();
    assert_ne!(one_path, other_path);
    if !place.has_files() {
        return;
    }
    for path in [&one_path, &other_path] {
        assert_eq!(read(path, "pg_wal/0001"), "of the base");
        assert_eq!(read(path, "link"), "of the base");
        assert_eq!(read(path, "empty"), "");
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o700);
        let (copy, original) = (
            fs::metadata(path.join("pg_wal/0001")).unwrap(),
            fs::metadata(base_path.join("pg_wal/0001")).unwrap(),
        );
        assert_eq!(copy.mode(), original.mode());
        assert_eq!((copy.uid(), copy.gid()), (original.uid(), original.gid()));
        assert_eq!(copy.modified().unwrap(), original.modified().unwrap());
    }
    fs::write(one_path.join("pg_wal/0001"), "of one clone").unwrap();
    fs::write(one_path.join("new"), "of one clone").unwrap();
    assert_eq!(read(&base_path, "pg_wal/0001"), "of the base");
    assert_eq!(read(&other_path, "pg_wal/0001"), "of the base");
    assert!(!other_path.join("new").exists());
    let third = storage
        .create_clone(&record(&snapshot), &none(), None)
        .await
        .unwrap();
    assert_eq!(read(&third, "pg_wal/0001"), "of the base");
}

async fn two_snapshots_of_a_base_keep_their_own_data(place: &Place) {
    let storage = place.open().await;
    let first = SnapshotId::of_restore(base("orders"));
    let later = SnapshotId {
        base: first.base.clone(),
        taken_at: "2026-11-23T08:00:00Z".parse().unwrap(),
    };
    let path = storage.create_base(&first.base, &none()).await.unwrap();
    for (snapshot, text) in [(&first, "first"), (&later, "later")] {
        if place.has_files() {
            fs::write(path.join("data"), text).unwrap();
        }
        storage.snapshot(snapshot).await.unwrap();
    }
    for (snapshot, text) in [(&first, "first"), (&later, "later")] {
        let clone = storage
            .create_clone(&record(snapshot), &none(), None)
            .await
            .unwrap();
        if place.has_files() {
            assert_eq!(read(&clone, "data"), text);
        }
    }
    let bases = storage.inventory().await.unwrap().bases;
    let snapshots: Vec<_> = bases[0].snapshots.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(snapshots, [first.clone(), later.clone()]);

    let error = storage
        .destroy(&DatasetId::Snapshot(first.clone()))
        .await
        .unwrap_err();
    assert!(matches!(error, StorageError::HasClones(_)), "{error:?}");
    let of_first = storage.inventory().await.unwrap().clones;
    let of_first = of_first
        .iter()
        .find(|clone| clone.record.snapshot == first)
        .unwrap();
    storage
        .destroy(&DatasetId::Clone(of_first.record.id.clone()))
        .await
        .unwrap();
    storage.destroy(&DatasetId::Snapshot(first)).await.unwrap();
    let bases = storage.inventory().await.unwrap().bases;
    assert_eq!(bases[0].snapshots.len(), 1);
    assert_eq!(bases[0].snapshots[0].0, later);
}

async fn a_base_with_clones_is_not_destroyed_and_loses_nothing(place: &Place) {
    let storage = place.open().await;
    let snapshot = SnapshotId::of_restore(base("orders"));
    let path = storage.create_base(&snapshot.base, &none()).await.unwrap();
    if place.has_files() {
        fs::write(path.join("data"), "precious").unwrap();
    }
    storage.snapshot(&snapshot).await.unwrap();
    let later = SnapshotId {
        base: snapshot.base.clone(),
        taken_at: "2026-11-23T08:00:00Z".parse().unwrap(),
    };
    storage.snapshot(&later).await.unwrap();
    let clone = storage
        .create_clone(&record(&later), &none(), None)
        .await
        .unwrap();
    let before = storage.inventory().await.unwrap();
    for dataset in [DatasetId::Base(snapshot.base), DatasetId::Snapshot(later)] {
        let error = storage.destroy(&dataset).await.unwrap_err();
        assert!(
            matches!(&error, StorageError::HasClones(id) if *id == dataset),
            "{error:?}"
        );
    }
    assert_eq!(storage.inventory().await.unwrap(), before);
    if place.has_files() {
        assert_eq!(read(&path, "data"), "precious");
        assert_eq!(read(&clone, "data"), "precious");
    }
}

async fn a_destroyed_dataset_leaves_nothing_behind(place: &Place) {
    let storage = place.open().await;
    let record = cloned(&*storage, &SnapshotId::of_restore(base("orders"))).await;
    let found = storage.inventory().await.unwrap();
    let (base_path, clone_path) = (&found.bases[0].path, &found.clones[0].path);
    if place.has_files() {
        fs::create_dir(clone_path.join("directory")).unwrap();
        fs::write(clone_path.join("directory/file"), "text").unwrap();
    }
    destroy_all(&*storage, &record).await;
    assert_eq!(storage.inventory().await.unwrap(), Inventory::default());
    assert!(!clone_path.exists() && !base_path.exists());
    assert!(!base_path.parent().unwrap().exists(), "{}", base_path.display());
    if let Place::Zfs(dataset) = place {
        let left = dataset.zfs(&["list", "-H", "-r", "-o", "name", "-t", "all", &dataset.name]);
        assert_eq!(left.lines().count(), 3, "itself, /zdap, /zdap/clones: {left}");
    }
    // What was removed can be made anew.
    cloned(&*storage, &record.snapshot).await;
}

async fn what_is_found_after_a_restart_is_what_was_left(place: &Place) {
    let storage = place.open().await;
    let unfinished = base("unfinished");
    storage.create_base(&unfinished, &none()).await.unwrap();
    cloned(&*storage, &SnapshotId::of_restore(base("orders"))).await;
    cloned(&*storage, &SnapshotId::of_restore(base("customers"))).await;
    let before = storage.inventory().await.unwrap();
    assert_eq!((before.bases.len(), before.clones.len()), (3, 2));
    let base = before.bases.iter().find(|base| base.id == unfinished).unwrap();
    assert_eq!(base.snapshots, vec![]);
    drop(storage);
    assert_eq!(place.open().await.inventory().await.unwrap(), before);
}

async fn the_longest_names_do(place: &Place) {
    let storage = place.open().await;
    let mut record = record(&SnapshotId::of_restore(base(&"r".repeat(63))));
    record.owner = "o".repeat(128).parse().unwrap();
    record.expires_at = Some("2027-01-01T00:00:00.123456789Z".parse().unwrap());
    storage.create_base(&record.snapshot.base, &none()).await.unwrap();
    storage.snapshot(&record.snapshot).await.unwrap();
    storage.create_clone(&record, &none(), None).await.unwrap();
    assert_eq!(storage.inventory().await.unwrap().clones[0].record, record);
    destroy_all(&*storage, &record).await;
}

async fn a_resource_named_clones_gets_in_no_clones_way(place: &Place) {
    let storage = place.open().await;
    let record = cloned(&*storage, &SnapshotId::of_restore(base("clones"))).await;
    let found = storage.inventory().await.unwrap();
    assert_eq!(found.bases[0].id, record.snapshot.base);
    assert_eq!(found.clones[0].record, record);
    assert_eq!(found.foreign, Vec::<String>::new());
    let other = cloned(&*storage, &SnapshotId::of_restore(base("orders"))).await;
    destroy_all(&*storage, &record).await;
    assert_eq!(storage.inventory().await.unwrap().clones[0].record, other);
}

async fn many_at_once_get_what_they_ask_for(place: &Place) {
    let storage = place.open().await;
    let snapshot = SnapshotId::of_restore(base("orders"));
    storage.create_base(&snapshot.base, &none()).await.unwrap();
    storage.snapshot(&snapshot).await.unwrap();
    let records: Vec<_> = (0..8).map(|_| record(&snapshot)).collect();
    let lives = records.iter().map(|first| {
        let storage = Arc::clone(&storage);
        let mut record = first.clone();
        async move {
            let path = storage.create_clone(&record, &none(), None).await?;
            record.state = CloneState::Ready;
            storage.update_record(&record).await?;
            let found = storage.inventory().await?;
            assert!(
                found
                    .clones
                    .iter()
                    .any(|clone| clone.record == record && clone.path == path)
            );
            storage.destroy(&DatasetId::Clone(record.id)).await
        }
    });
    for life in join_all(lives).await {
        life.unwrap();
    }
    assert_eq!(storage.inventory().await.unwrap().clones, vec![]);
}

async fn there_is_room_and_a_base_refers_to_its_data(place: &Place) {
    let storage = place.open().await;
    let capacity = storage.capacity().await.unwrap();
    assert!(
        capacity.free_bytes > 0 && capacity.free_bytes <= capacity.total_bytes,
        "{capacity:?}"
    );
    let snapshot = SnapshotId::of_restore(base("orders"));
    let path = storage.create_base(&snapshot.base, &none()).await.unwrap();
    if place.has_files() {
        fs::write(path.join("data"), noise(1 << 20)).unwrap();
        rustix::fs::syncfs(fs::File::open(&path).unwrap()).unwrap();
    }
    storage.snapshot(&snapshot).await.unwrap();
    let bytes = storage
        .referenced_bytes(&DatasetId::Base(snapshot.base.clone()))
        .await
        .unwrap();
    assert!(bytes >= 1 << 20, "{bytes}");
    let found = storage.inventory().await.unwrap();
    let bytes = found.bases[0].snapshots[0].1;
    assert!(bytes >= 1 << 20, "{bytes}");
}

// What one backend only can show.

#[tokio::test]
async fn a_zfs_clone_that_is_in_use_is_busy_and_goes_when_it_is_not() {
    let Some(dataset) =
        LabDataset::new("storage::a_zfs_clone_that_is_in_use_is_busy_and_goes_when_it_is_not")
    else {
        return;
    };
    let storage = Zfs::open(&dataset.name, OWNER).await.unwrap();
    let record = cloned(&storage, &SnapshotId::of_restore(base("orders"))).await;
    let clone = DatasetId::Clone(record.id.clone());
    let found = storage.inventory().await.unwrap();
    let in_use = fs::File::create(found.clones[0].path.join("open")).unwrap();
    let error = storage.destroy(&clone).await.unwrap_err();
    assert!(
        matches!(&error, StorageError::Busy(id) if *id == clone),
        "{error:?}"
    );
    assert_eq!(storage.inventory().await.unwrap(), found);
    drop(in_use);
    storage.destroy(&clone).await.unwrap();
    assert!(!found.clones[0].path.exists());
}

#[tokio::test]
async fn a_zfs_clone_is_stopped_at_its_limit_and_one_below_its_data_is_refused() {
    let Some(dataset) = LabDataset::new("storage::a_zfs_clone_is_stopped_at_its_limit") else {
        return;
    };
    let storage = Zfs::open(&dataset.name, OWNER).await.unwrap();
    let record = cloned(&storage, &SnapshotId::of_restore(base("orders"))).await;
    let limited = self::record(&record.snapshot);
    let path = storage
        .create_clone(&limited, &none(), Some(2 << 20))
        .await
        .unwrap();
    // ZFS lets a transaction or two pass before it notices.
    let full = (0..64).find_map(|number| {
        let written = fs::write(path.join(number.to_string()), noise(1 << 20));
        rustix::fs::syncfs(fs::File::open(&path).unwrap()).ok();
        written.err()
    });
    let full = full
        .expect("64 MiB were written to a clone of at most 2 MiB")
        .kind();
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    assert!(matches!(full, QuotaExceeded | StorageFull), "{full}");
    let error = storage
        .create_clone(&self::record(&record.snapshot), &none(), Some(1000))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("at most 1000 bytes (`limits.disk`)"),
        "{error}"
    );
}

#[tokio::test]
async fn a_full_zfs_pool_is_said_to_be_full() {
    let Some(dataset) = LabDataset::new("storage::a_full_zfs_pool_is_said_to_be_full") else {
        return;
    };
    let storage = Zfs::open(&dataset.name, OWNER).await.unwrap();
    let record = cloned(&storage, &SnapshotId::of_restore(base("orders"))).await;
    dataset.zfs(&["set", "quota=1000000", &dataset.name]);
    let path = storage.inventory().await.unwrap().bases[0].path.clone();
    for number in 0..64 {
        let _ = fs::write(path.join(number.to_string()), noise(1 << 16));
        rustix::fs::syncfs(fs::File::open(&path).unwrap()).ok();
    }
    let record = self::record(&record.snapshot);
    let error = storage.create_clone(&record, &none(), None).await.unwrap_err();
    assert!(matches!(error, StorageError::Full(_)), "{error:?}");
    storage.destroy(&DatasetId::Clone(record.id)).await.unwrap();
    assert_eq!(storage.inventory().await.unwrap().clones.len(), 1);
}

#[tokio::test]
async fn zfs_properties_are_set_and_a_wrong_one_is_told_in_zfs_words() {
    let Some(dataset) = LabDataset::new("storage::zfs_properties_are_set") else {
        return;
    };
    let storage = Zfs::open(&dataset.name, OWNER).await.unwrap();
    let base = base("orders");
    let properties = ZfsProperties::parse(["recordsize=16k"]).unwrap();
    storage.create_base(&base, &properties).await.unwrap();
    let name = format!("{}/zdap/{base}", dataset.name);
    let value = dataset.zfs(&["get", "-Hp", "-o", "value", "recordsize", &name]);
    assert_eq!(value.trim(), "16384");
    let properties = ZfsProperties::parse(["recordsize=17"]).unwrap();
    let error = storage
        .create_base(&self::base("other"), &properties)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("recordsize"), "{error}");
}

#[tokio::test]
async fn a_zfs_clone_left_unmounted_is_mounted_at_the_next_start() {
    let Some(dataset) = LabDataset::new("storage::a_zfs_clone_left_unmounted_is_mounted") else {
        return;
    };
    let storage = Zfs::open(&dataset.name, OWNER).await.unwrap();
    let snapshot = SnapshotId::of_restore(base("orders"));
    let path = storage.create_base(&snapshot.base, &none()).await.unwrap();
    fs::write(path.join("data"), "text").unwrap();
    storage.snapshot(&snapshot).await.unwrap();
    let record = record(&snapshot);
    let path = storage.create_clone(&record, &none(), None).await.unwrap();
    let name = format!("{}/zdap/clones/{}", dataset.name, record.id);
    dataset.zfs(&["umount", &name]);
    assert!(!path.join("data").exists());
    assert_eq!(storage.create_clone(&record, &none(), None).await.unwrap(), path);
    assert_eq!(read(&path, "data"), "text");
    dataset.zfs(&["umount", &name]);
    drop(storage);
    Zfs::open(&dataset.name, OWNER).await.unwrap();
    assert_eq!(read(&path, "data"), "text");
}

#[tokio::test]
async fn a_zfs_clone_that_cannot_be_mounted_is_said_not_to_be_until_an_inventory_mounts_it() {
    let Some(dataset) = LabDataset::new("storage::a_zfs_clone_that_cannot_be_mounted") else {
        return;
    };
    let storage = Zfs::open(&dataset.name, OWNER).await.unwrap();
    let record = cloned(&storage, &SnapshotId::of_restore(base("orders"))).await;
    let clone = async || storage.inventory().await.unwrap().clones.remove(0);
    let path = clone().await.path;
    fs::write(path.join("data"), "text").unwrap();
    dataset.zfs(&["umount", &format!("{}/zdap/clones/{}", dataset.name, record.id)]);
    fs::write(path.join("in the way"), "").unwrap(); // ZFS mounts on empty directories only
    assert!(!clone().await.mounted);
    fs::remove_file(path.join("in the way")).unwrap();
    assert!(clone().await.mounted);
    assert_eq!(read(&path, "data"), "text");
}

#[tokio::test]
async fn a_mountpoint_of_the_administrators_choice_is_used_and_none_is_refused() {
    let Some(dataset) = LabDataset::new("storage::a_mountpoint_of_the_administrators_choice") else {
        return;
    };
    let elsewhere = tempfile::tempdir().unwrap();
    dataset.zfs(&["set", "mountpoint=none", &dataset.name]);
    let error = Zfs::open(&dataset.name, OWNER).await.unwrap_err();
    assert!(error.to_string().contains("mountpoint `none`"), "{error}");
    let mountpoint = elsewhere.path().join("pool");
    dataset.zfs(&[
        "set",
        &format!("mountpoint={}", mountpoint.display()),
        &dataset.name,
    ]);
    let storage = Zfs::open(&dataset.name, OWNER).await.unwrap();
    let record = cloned(&storage, &SnapshotId::of_restore(base("orders"))).await;
    let path = storage.inventory().await.unwrap().clones[0].path.clone();
    assert_eq!(path, mountpoint.join("zdap/clones").join(record.id.as_str()));
    fs::write(path.join("data"), "text").unwrap();
    destroy_all(&storage, &record).await;
    drop(storage);
    drop(dataset);
}

#[tokio::test]
async fn a_pool_that_cannot_be_used_is_refused_with_the_reason() {
    let Some(dataset) = LabDataset::new("storage::a_pool_that_cannot_be_used_is_refused") else {
        return;
    };
    for (pool, words) in [
        ("zdap-no-such-pool", "no such pool"),
        ("", "does not begin with a letter"),
        ("-x", "does not begin with a letter"),
        ("tank@snap", "holds '@'"),
        ("tank//x", "has an empty part"),
        ("tank/", "has an empty part"),
        (&"t".repeat(200), "is longer than"),
        (&format!("{}/absent", dataset.name), "does not exist"),
    ] {
        let error = Zfs::open(pool, OWNER).await.unwrap_err();
        assert!(matches!(error, StorageError::Unusable { .. }), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.to_string().contains(pool), "{error}");
    }
}

#[tokio::test]
async fn a_zfs_tree_of_another_node_or_of_nobody_or_in_use_is_refused() {
    let Some(dataset) = LabDataset::new("storage::a_zfs_tree_of_another_node_is_refused") else {
        return;
    };
    let tree = format!("{}/zdap", dataset.name);
    dataset.zfs(&["create", &tree]);
    dataset.zfs(&["create", &format!("{tree}/important")]);
    refused(
        Zfs::open(&dataset.name, OWNER).await.err(),
        &["not ours", "important"],
    );
    dataset.zfs(&["destroy", &format!("{tree}/important")]);
    let storage = Zfs::open(&dataset.name, OWNER).await.unwrap(); // empty: taken
    refused(
        Zfs::open(&dataset.name, OWNER).await.err(),
        &["another zdapd", "process"],
    );
    refused(
        Zfs::open(&dataset.name, "c1/node-b").await.err(),
        &[OWNER, "c1/node-b"],
    );
    drop(storage);
    refused(
        Zfs::open(&dataset.name, "c1/node-b").await.err(),
        &[OWNER, "c1/node-b"],
    );
    Zfs::open(&dataset.name, OWNER).await.unwrap();
}

#[tokio::test]
async fn a_first_start_on_zfs_that_failed_leaves_a_tree_that_the_next_node_can_take() {
    let Some(dataset) = LabDataset::new("storage::a_first_start_on_zfs_that_failed") else {
        return;
    };
    let mountpoint = dataset.zfs(&["get", "-H", "-o", "value", "mountpoint", &dataset.name]);
    let place = Path::new(mountpoint.trim()).join("zdap");
    // The tree cannot be mounted, then not be locked, then its folder of clones cannot be mounted.
    for obstacle in ["file", ".zdap-lock/file", "clones/file"] {
        let path = place.join(obstacle);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        Zfs::open(&dataset.name, "c1/lost").await.unwrap_err();
        match obstacle {
            "file" => fs::remove_file(&path).unwrap(),
            _ => fs::remove_dir_all(path.parent().unwrap()).unwrap(),
        }
        let tree = format!("{}/zdap", dataset.name);
        if obstacle == "file" {
            dataset.zfs(&["mount", &tree]);
        }
    }
    Zfs::open(&dataset.name, OWNER).await.unwrap();
    refused(
        Zfs::open(&dataset.name, "c1/lost").await.err(),
        &[OWNER, "c1/lost"],
    );
}

#[tokio::test]
async fn foreign_snapshots_of_a_base_are_named_and_keep_it() {
    let Some(dataset) = LabDataset::new("storage::foreign_snapshots_of_a_base_are_named") else {
        return;
    };
    let storage = Zfs::open(&dataset.name, OWNER).await.unwrap();
    let base = base("orders");
    storage.create_base(&base, &none()).await.unwrap();
    storage
        .snapshot(&SnapshotId::of_restore(base.clone()))
        .await
        .unwrap();
    let name = format!("{}/zdap/{base}@autosnap", dataset.name);
    dataset.zfs(&["snapshot", &name]);
    let before = storage.inventory().await.unwrap();
    assert_eq!(before.foreign.len(), 1);
    assert!(before.foreign[0].starts_with(&name), "{:?}", before.foreign);
    assert_eq!(before.bases[0].snapshots.len(), 1);
    let error = storage.destroy(&DatasetId::Base(base)).await.unwrap_err();
    assert!(error.to_string().contains("@autosnap"), "{error}");
    assert_eq!(storage.inventory().await.unwrap(), before);
}

#[tokio::test]
async fn a_directory_of_another_node_or_of_nobody_or_in_use_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("data");
    let storage = Directory::open(&root, OWNER).await.unwrap();
    refused(
        Directory::open(&root, OWNER).await.err(),
        &["another zdapd", "process"],
    );
    drop(storage);
    refused(
        Directory::open(&root, "c1/node-b").await.err(),
        &[OWNER, "c1/node-b"],
    );
    Directory::open(&root, OWNER).await.unwrap();
    let other = parent.path().join("home");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("thesis.tex"), "").unwrap();
    refused(
        Directory::open(&other, OWNER).await.err(),
        &["not ours", "thesis.tex"],
    );
    refused(
        Directory::open(&other.join("thesis.tex/x"), OWNER).await.err(),
        &["thesis.tex/x"],
    );
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_refused_by_name() {
    // `/proc` says no to root as well.
    refused(
        Directory::open(Path::new("/proc/zdap"), OWNER).await.err(),
        &["cannot write `/proc/zdap`"],
    );
}

#[tokio::test]
async fn a_directory_has_no_more_room_than_the_size_it_is_given() {
    let root = tempfile::tempdir().unwrap();
    let size = 1 << 20;
    let storage = Directory::open(root.path(), OWNER)
        .await
        .unwrap()
        .with_size(Some(size));
    let empty = storage.capacity().await.unwrap();
    assert_eq!(empty.total_bytes, size);
    let data = storage.create_base(&base("orders"), &none()).await.unwrap();
    fs::write(data.join("table"), vec![7; 1 << 19]).unwrap();
    let used = storage.capacity().await.unwrap();
    assert_eq!(used.total_bytes, size);
    assert!(
        used.free_bytes <= empty.free_bytes - (1 << 19),
        "{empty:?} {used:?}"
    );
    fs::write(data.join("more"), vec![7; 1 << 20]).unwrap();
    assert_eq!(storage.capacity().await.unwrap().free_bytes, 0);
}

#[tokio::test]
async fn a_directory_on_a_read_only_disk_is_refused_saying_so() {
    let disk = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "ro", "tmpfs"])
        .arg(disk.path())
        .output()
        .unwrap();
    if !mount.status.success() {
        let reason = String::from_utf8_lossy(&mount.stderr).trim().to_owned();
        lab::skip::<()>("storage::a_directory_on_a_read_only_disk_is_refused", &reason);
        return;
    }
    let errors = [
        Directory::open(disk.path(), OWNER).await.err(),
        Directory::open(&disk.path().join("data"), OWNER).await.err(),
    ];
    let unmounted = Command::new("umount").arg(disk.path()).status().unwrap();
    assert!(unmounted.success());
    for error in errors {
        refused(
            error,
            &["cannot write `", disk.path().to_str().unwrap(), "Read-only"],
        );
    }
}

#[tokio::test]
async fn what_a_killed_process_left_half_made_or_half_removed_is_removed_at_start() {
    let root = tempfile::tempdir().unwrap();
    drop(Directory::open(root.path(), OWNER).await.unwrap());
    for path in [".new/7/data", ".trash/clone orders-k3v9x2mq/data"] {
        fs::create_dir_all(root.path().join(path)).unwrap();
        fs::write(root.path().join(path).join("file"), "text").unwrap();
    }
    let storage = Directory::open(root.path(), OWNER).await.unwrap();
    assert_eq!(storage.inventory().await.unwrap(), Inventory::default());
    for name in [".new", ".trash"] {
        assert_eq!(fs::read_dir(root.path().join(name)).unwrap().count(), 0, "{name}");
    }
}

#[tokio::test]
async fn what_an_earlier_process_left_and_cannot_be_removed_keeps_nobody_from_starting() {
    let root = tempfile::tempdir().unwrap();
    drop(Directory::open(root.path(), OWNER).await.unwrap());
    let left = [".new/0", ".trash/clone orders-k3v9x2mq"].map(|name| root.path().join(name));
    for path in &left {
        fs::create_dir(path).unwrap();
        // What something is mounted on is busy, for root as well.
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "tmpfs"])
            .arg(path)
            .output()
            .unwrap();
        if !mount.status.success() {
            let reason = String::from_utf8_lossy(&mount.stderr).trim().to_owned();
            lab::skip::<()>(
                "storage::what_an_earlier_process_left_and_cannot_be_removed",
                &reason,
            );
            return;
        }
    }
    let opened = Directory::open(root.path(), OWNER).await;
    if let Ok(storage) = &opened {
        cloned(storage, &SnapshotId::of_restore(base("orders"))).await;
    }
    for path in &left {
        assert!(Command::new("umount").arg(path).status().unwrap().success());
    }
    opened.unwrap();
}

#[tokio::test]
async fn data_that_a_container_gave_away_is_named_with_the_remedy_when_it_cannot_be_read() {
    let test = "data_that_a_container_gave_away_is_named_with_the_remedy_when_it_cannot_be_read";
    if rustix::process::geteuid().is_root() {
        // Root reads everything: once more, as a user who does not.
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let suite = directory.path().join("suite");
        fs::copy(std::env::current_exe().unwrap(), &suite).unwrap();
        let output = Command::new(&suite)
            .uid(NOBODY)
            .args(["--exact", test])
            .env("TMPDIR", directory.path())
            .current_dir(directory.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let storage = Directory::open(root.path(), OWNER).await.unwrap();
    let snapshot = SnapshotId::of_restore(base("orders"));
    let path = storage.create_base(&snapshot.base, &none()).await.unwrap();
    fs::create_dir(path.join("global")).unwrap();
    fs::set_permissions(path.join("global"), fs::Permissions::from_mode(0o000)).unwrap();
    let us = format!("zdapd runs as user {}", rustix::process::geteuid().as_raw());
    for error in [
        storage.snapshot(&snapshot).await.err(),
        storage
            .referenced_bytes(&DatasetId::Base(snapshot.base))
            .await
            .err(),
    ] {
        refused(error, &[path.join("global").to_str().unwrap(), &us]);
    }
    fs::set_permissions(path.join("global"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[tokio::test]
async fn the_inventory_of_a_directory_does_not_look_at_the_data() {
    let root = tempfile::tempdir().unwrap();
    let storage = Directory::open(root.path(), OWNER).await.unwrap();
    let record = cloned(&storage, &SnapshotId::of_restore(base("orders"))).await;
    let before = storage.inventory().await.unwrap();
    let snapshot = root.path().join(record.snapshot.base.to_string()).join("@base");
    fs::write(snapshot.join("more"), noise(1 << 20)).unwrap();
    assert_eq!(storage.inventory().await.unwrap(), before);
    // Unless the size has been lost.
    fs::remove_file(snapshot.with_file_name("base.bytes")).unwrap();
    for _ in 0..2 {
        let size = storage.inventory().await.unwrap().bases[0].snapshots[0].1;
        assert!(size >= 1 << 20, "{size}");
    }
    // Of a snapshot that has gone nothing stays.
    storage.destroy(&DatasetId::Clone(record.id)).await.unwrap();
    storage
        .destroy(&DatasetId::Snapshot(record.snapshot.clone()))
        .await
        .unwrap();
    let mut left: Vec<_> = fs::read_dir(snapshot.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["data", "record.json"]);
}

#[tokio::test]
async fn a_copy_that_nobody_waits_for_any_more_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let storage = Directory::open(root.path(), OWNER).await.unwrap();
    let snapshot = SnapshotId::of_restore(base("orders"));
    let path = storage.create_base(&snapshot.base, &none()).await.unwrap();
    for number in 0..500 {
        fs::write(path.join(number.to_string()), "text").unwrap();
    }
    storage.snapshot(&snapshot).await.unwrap();
    let record = record(&snapshot);
    let (properties, new) = (none(), root.path().join(".new"));
    let copying = async {
        while fs::read_dir(&new).unwrap().count() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        _ = storage.create_clone(&record, &properties, None) => panic!("the copy was done before it was seen to begin"),
        () = copying => {}
    }
    // The thread ends when it sees that it is alone; then the directory it worked in is gone.
    let begun = Instant::now();
    while fs::read_dir(&new).unwrap().count() > 0 {
        assert!(begun.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    }
    assert_eq!(storage.inventory().await.unwrap().clones, vec![]);
    storage.create_clone(&record, &none(), None).await.unwrap();
}

#[tokio::test]
async fn sockets_and_pipes_are_left_out_of_a_copy() {
    let root = tempfile::tempdir().unwrap();
    let storage = Directory::open(root.path(), OWNER).await.unwrap();
    let snapshot = SnapshotId::of_restore(base("orders"));
    let path = storage.create_base(&snapshot.base, &none()).await.unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path.join(".s.PGSQL.5432")).unwrap();
    fs::write(path.join("file"), "text").unwrap();
    fs::hard_link(path.join("file"), path.join("other-name")).unwrap();
    storage.snapshot(&snapshot).await.unwrap();
    let clone = storage
        .create_clone(&record(&snapshot), &none(), None)
        .await
        .unwrap();
    let mut names: Vec<_> = fs::read_dir(&clone)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["file", "other-name"]);
    assert_eq!(read(&clone, "other-name"), "text");
}

#[tokio::test]
async fn a_reflinked_clone_takes_no_room() {
    let test = "storage::a_reflinked_clone_takes_no_room";
    let Some(parent) = lab::variable(test, "ZDAP_TEST_REFLINK_DIR") else {
        return;
    };
    let root = tempfile::tempdir_in(parent).unwrap();
    let storage = Directory::open(root.path(), OWNER).await.unwrap();
    let snapshot = SnapshotId::of_restore(base("orders"));
    let path = storage.create_base(&snapshot.base, &none()).await.unwrap();
    let size = 64 << 20;
    fs::write(path.join("data"), noise(size)).unwrap();
    storage.snapshot(&snapshot).await.unwrap();
    let before = free(&storage, &path).await;
    let mut clones = Vec::new();
    for _ in 0..4 {
        clones.push(
            storage
                .create_clone(&record(&snapshot), &none(), None)
                .await
                .unwrap(),
        );
    }
    let taken = before.saturating_sub(free(&storage, &path).await);
    assert!(taken < size as u64, "4 clones of {size} bytes took {taken}");
    assert_eq!(fs::read(clones[3].join("data")).unwrap(), noise(size));
}

#[tokio::test]
async fn memory_fails_the_call_it_was_told_to_before_or_after_its_effect() {
    let disk = Memory::new();
    let snapshot = SnapshotId::of_restore(base("orders"));
    for (moment, bases) in [(Moment::Before, 0), (Moment::After, 1)] {
        let faults = Faults::none();
        faults.fail_call(1, moment);
        let storage = disk.reopened(faults.clone());
        storage.inventory().await.unwrap();
        let error = storage.create_base(&snapshot.base, &none()).await.unwrap_err();
        assert!(error.to_string().contains("told to fail"), "{error}");
        assert_eq!(storage.inventory().await.unwrap().bases.len(), bases);
        assert_eq!(faults.calls(), ["inventory", "create_base", "inventory"]);
    }
}

#[tokio::test]
async fn memory_is_busy_and_full_on_request() {
    let storage = Memory::new();
    let record = cloned(&storage, &SnapshotId::of_restore(base("orders"))).await;
    let clone = DatasetId::Clone(record.id.clone());
    storage.busy_for(2);
    for _ in 0..2 {
        let error = storage.destroy(&clone).await.unwrap_err();
        assert!(matches!(error, StorageError::Busy(_)), "{error:?}");
    }
    storage.destroy(&clone).await.unwrap();
    storage.set_capacity(Capacity {
        free_bytes: 0,
        total_bytes: 1,
    });
    let error = storage.create_clone(&record, &none(), None).await.unwrap_err();
    assert!(matches!(error, StorageError::Full(_)), "{error:?}");
}

fn refused(error: Option<StorageError>, words: &[&str]) {
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
async fn cloned(storage: &dyn Storage, snapshot: &SnapshotId) -> CloneRecord {
    storage.create_base(&snapshot.base, &none()).await.unwrap();
    storage.snapshot(snapshot).await.unwrap();
    let record = record(snapshot);
    storage.create_clone(&record, &none(), None).await.unwrap();
    record
}

async fn destroy_all(storage: &dyn Storage, record: &CloneRecord) {
    storage
        .destroy(&DatasetId::Clone(record.id.clone()))
        .await
        .unwrap();
    storage
        .destroy(&DatasetId::Base(record.snapshot.base.clone()))
        .await
        .unwrap();
}

fn base(resource: &str) -> BaseId {
    BaseId {
        resource: resource.parse().unwrap(),
        created_at: "2026-11-22T13:39:25Z".parse().unwrap(),
    }
}

fn record(snapshot: &SnapshotId) -> CloneRecord {
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

fn none() -> ZfsProperties {
    ZfsProperties::default()
}

fn read(directory: &Path, name: &str) -> String {
    fs::read_to_string(directory.join(name)).unwrap()
}

/// Returns bytes that no file system can compress.
fn noise(length: usize) -> Vec<u8> {
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

async fn free(storage: &Directory, path: &PathBuf) -> u64 {
    rustix::fs::syncfs(fs::File::open(path).unwrap()).unwrap();
    storage.capacity().await.unwrap().free_bytes
}
