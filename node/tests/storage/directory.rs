//! What directories alone can show.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use zdap_node::storage::directory::Directory;
use zdap_node::storage::{DatasetId, Inventory, Storage};
use zdap_proto::name::SnapshotId;

use crate::lab;
use crate::place::{NOBODY, OWNER, PATIENCE, base, cloned, free, noise, none, read, record, refused};

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
        lab::skip::<()>(
            "storage::directory::a_directory_on_a_read_only_disk_is_refused",
            &reason,
        );
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
                "storage::directory::what_an_earlier_process_left_and_cannot_be_removed",
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
    let test = "directory::data_that_a_container_gave_away_is_named_with_the_remedy_when_it_cannot_be_read";
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
    let test = "storage::directory::a_reflinked_clone_takes_no_room";
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
