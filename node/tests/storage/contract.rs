//! What every storage does.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;

use futures_util::future::join_all;
use zdap_node::storage::memory::Memory;
use zdap_node::storage::{DatasetId, Inventory, StorageError};
use zdap_proto::message::{CloneRecord, CloneState};
use zdap_proto::name::SnapshotId;

use crate::lab;
use crate::place::{LabDataset, Place, base, cloned, destroy_all, noise, none, read, record};

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
                let test = concat!("storage::contract::reflink::", stringify!($sentence));
                if let Some(root) = lab::variable(test, "ZDAP_TEST_REFLINK_DIR") {
                    super::$sentence(&Place::Directory(tempfile::tempdir_in(root).unwrap())).await;
                }
            })*
        }
        mod zfs {
            use super::*;
            $(#[tokio::test]
            async fn $sentence() {
                if let Some(dataset) = LabDataset::new(concat!("storage::contract::zfs::", stringify!($sentence))) {
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
