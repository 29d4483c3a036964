//! What ZFS alone can show.

use std::fs;
use std::path::Path;

use zdap_node::storage::zfs::Zfs;
use zdap_node::storage::{DatasetId, Storage, StorageError, ZfsProperties};
use zdap_proto::name::SnapshotId;

use crate::place::{LabDataset, OWNER, base, cloned, destroy_all, noise, none, read, record, refused};

#[tokio::test]
async fn a_zfs_clone_that_is_in_use_is_busy_and_goes_when_it_is_not() {
    let Some(dataset) =
        LabDataset::new("storage::zfs::a_zfs_clone_that_is_in_use_is_busy_and_goes_when_it_is_not")
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
    let Some(dataset) = LabDataset::new("storage::zfs::a_zfs_clone_is_stopped_at_its_limit") else {
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
    let Some(dataset) = LabDataset::new("storage::zfs::a_full_zfs_pool_is_said_to_be_full") else {
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
    let Some(dataset) = LabDataset::new("storage::zfs::zfs_properties_are_set") else {
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
    let Some(dataset) = LabDataset::new("storage::zfs::a_zfs_clone_left_unmounted_is_mounted") else {
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
    let Some(dataset) = LabDataset::new("storage::zfs::a_zfs_clone_that_cannot_be_mounted") else {
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
    let Some(dataset) = LabDataset::new("storage::zfs::a_mountpoint_of_the_administrators_choice") else {
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
    let Some(dataset) = LabDataset::new("storage::zfs::a_pool_that_cannot_be_used_is_refused") else {
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
    let Some(dataset) = LabDataset::new("storage::zfs::a_zfs_tree_of_another_node_is_refused") else {
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
    let Some(dataset) = LabDataset::new("storage::zfs::a_first_start_on_zfs_that_failed") else {
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
    let Some(dataset) = LabDataset::new("storage::zfs::foreign_snapshots_of_a_base_are_named") else {
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
