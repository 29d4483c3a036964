//! Bases and clones on real ZFS: owners of files, clean starts.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use zdap_proto::name::CloneId;

use crate::lab::variable;
use crate::labs::{DockerLab, GRACE, Lab, ProcessLab, spec};
use crate::machine::{query, run};

/// A base and its clone on ZFS: what the files' owners are there, and whether a clone starts without recovery.
async fn a_clone_of_a_stopped_base_starts_without_recovery<L: Lab>(lab: &L, pool: &Pool) {
    let mut base = spec(lab);
    base.data = pool.create("base");
    let started = lab.runtime().start(&base).await.unwrap();
    query(
        &started.address,
        &base,
        "postgres",
        "create table t as select 7 as n",
    );
    lab.runtime().stop(&base.id, GRACE).await.unwrap();
    lab.runtime().remove(&base.id).await.unwrap();
    let mut clone = spec(lab);
    clone.data = pool.clone("base", "clone");
    let started = lab.runtime().start(&clone).await.unwrap();
    assert_eq!(
        query(&started.address, &clone, "postgres", "select n from t"),
        "7"
    );
    let log = lab.log(&clone.id);
    assert!(log.contains("database system was shut down at"), "{log}");
    lab.runtime().remove(&clone.id).await.unwrap();
}

#[tokio::test]
async fn a_container_on_a_zfs_clone_starts_without_recovery() {
    let test = "a_container_on_a_zfs_clone_starts_without_recovery";
    if let (Some(pool), Some(lab)) = (Pool::open(test), DockerLab::open(test).await) {
        a_clone_of_a_stopped_base_starts_without_recovery(&lab, &pool).await;
        lab.close().await;
    }
}

#[tokio::test]
async fn a_process_on_a_zfs_clone_starts_without_recovery() {
    let test = "a_process_on_a_zfs_clone_starts_without_recovery";
    if let (Some(pool), Some(lab)) = (Pool::open(test), ProcessLab::open(test).await) {
        a_clone_of_a_stopped_base_starts_without_recovery(&lab, &pool).await;
        lab.close().await;
    }
}

/// Datasets of one test's own, gone at its end.
struct Pool(String);

impl Pool {
    fn open(test: &str) -> Option<Self> {
        let pool = variable(test, "ZDAP_TEST_ZPOOL")?;
        let dataset = format!("{pool}/{}", CloneId::random(&"runtime".parse().unwrap()));
        run("zfs", &["create", &dataset]);
        Some(Self(dataset))
    }

    fn create(&self, name: &str) -> PathBuf {
        let dataset = format!("{}/{name}", self.0);
        run("zfs", &["create", &dataset]);
        Self::mount_point(&dataset)
    }

    fn clone(&self, from: &str, name: &str) -> PathBuf {
        let (snapshot, dataset) = (format!("{}/{from}@base", self.0), format!("{}/{name}", self.0));
        run("zfs", &["snapshot", &snapshot]);
        run("zfs", &["clone", &snapshot, &dataset]);
        Self::mount_point(&dataset)
    }

    fn mount_point(dataset: &str) -> PathBuf {
        PathBuf::from(run("zfs", &["get", "-H", "-o", "value", "mountpoint", dataset]))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // "dataset is busy" goes on for a while after the last process has left.
        for _ in 0..100 {
            let destroyed = Command::new("zfs").args(["destroy", "-R", &self.0]).output();
            if destroyed.is_ok_and(|output| output.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
