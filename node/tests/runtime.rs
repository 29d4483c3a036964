//! The contract of [`Runtime`], on every backend: what a caller may rely on, one test a sentence.
//!
//! `memory` runs everywhere. `process` needs PostgreSQL on the machine, `docker` an engine (`ZDAP_TEST_DOCKER`) with the
//! image `ZDAP_TEST_IMAGE`; `docker` on ZFS also the pool `ZDAP_TEST_ZPOOL`. What is not there is skipped aloud.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail and talk as tests do"
)]

mod lab;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::TempDir;
use zdap_node::faults::Faults;
use zdap_node::runtime::docker::Docker;
use zdap_node::runtime::memory::Memory;
use zdap_node::runtime::process::Process;
use zdap_node::runtime::{Address, InstanceId, InstanceSpec, Runtime, RuntimeError, client_environment};
use zdap_proto::name::{BaseId, CloneId};

/// One clause of the contract is a function here and a test in each backend's module.
macro_rules! contract {
    ($($clause:ident),* $(,)?) => {
        contract!(@on memory, MemoryLab, $($clause),*);
        contract!(@on process, ProcessLab, $($clause),*);
        contract!(@on docker, DockerLab, $($clause),*);
    };
    (@on $backend:ident, $lab:ident, $($clause:ident),*) => {
        mod $backend {
            use super::*;
            $(
                #[tokio::test]
                async fn $clause() {
                    if let Some(lab) = $lab::open(concat!(stringify!($backend), "::", stringify!($clause))).await {
                        super::$clause(&lab).await;
                        lab.close().await;
                    }
                }
            )*
        }
    };
}

contract! {
    a_start_on_empty_data_initialises_it_and_the_database_answers,
    starting_twice_is_harmless,
    after_a_clean_stop_the_next_start_needs_no_recovery,
    stopping_and_removing_what_is_absent_succeeds,
    removing_keeps_the_data,
    a_killed_instance_is_seen_not_to_run_and_can_be_started_again,
    the_next_life_of_a_node_finds_what_the_last_one_started,
    an_instance_that_ends_at_start_gives_its_last_output,
    a_database_that_never_answers_is_given_up_with_its_output,
    an_image_that_is_not_there_is_refused_without_fetching,
    user_password_and_database_are_as_the_variables_say,
    instances_of_a_base_and_of_a_clone_are_told_apart,
}

/// A backend with room for data, as a clause of the contract needs it.
#[allow(async_fn_in_trait, reason = "only these tests call it")]
trait Lab {
    fn runtime(&self) -> &dyn Runtime;
    /// Returns the runtime of the next life of the node.
    async fn next_life(&self) -> Box<dyn Runtime>;
    /// Returns a new empty data directory.
    fn data(&self) -> PathBuf;
    /// Kills the server of an instance behind the node's back.
    async fn kill(&self, id: &InstanceId);
    /// Whether there is a real Postgres to talk to.
    const REAL: bool;
    /// Returns all that an instance printed.
    fn log(&self, id: &InstanceId) -> String;
    /// Changes `spec` so that its server ends while it starts.
    fn make_it_exit(&self, spec: &mut InstanceSpec);
    /// Changes `spec` so that its server never answers, although it runs.
    async fn make_it_hang(&self, spec: &mut InstanceSpec);
    /// An image that is nowhere.
    fn missing_image(&self) -> &'static str;
}

async fn a_start_on_empty_data_initialises_it_and_the_database_answers<L: Lab>(lab: &L) {
    let spec = spec(lab);
    let started = lab.runtime().start(&spec).await.unwrap();
    let observed = lab.runtime().instances().await.unwrap();
    let ours = observed.iter().find(|instance| instance.id == spec.id).unwrap();
    assert_eq!(ours.running.as_ref(), Some(&started.address));
    if L::REAL {
        assert_eq!(query(&started.address, &spec, "postgres", "select 6 * 7"), "42");
    }
    lab.runtime().remove(&spec.id).await.unwrap();
}

async fn starting_twice_is_harmless<L: Lab>(lab: &L) {
    let spec = spec(lab);
    let first = lab.runtime().start(&spec).await.unwrap();
    let began_at = L::REAL.then(|| began(&first.address, &spec));
    let second = lab.runtime().start(&spec).await.unwrap();
    assert_eq!(first.address, second.address);
    if let Some(began_at) = began_at {
        assert_eq!(
            began(&second.address, &spec),
            began_at,
            "the server was restarted"
        );
    }
    assert_eq!(lab.runtime().instances().await.unwrap().len(), 1);
    lab.runtime().remove(&spec.id).await.unwrap();
}

async fn after_a_clean_stop_the_next_start_needs_no_recovery<L: Lab>(lab: &L) {
    let spec = spec(lab);
    let started = lab.runtime().start(&spec).await.unwrap();
    if L::REAL {
        query(
            &started.address,
            &spec,
            "postgres",
            "create table t as select generate_series(1, 1000)",
        );
    }
    lab.runtime().stop(&spec.id, GRACE).await.unwrap();
    let observed = lab.runtime().instances().await.unwrap();
    assert_eq!(observed.len(), 1);
    assert_eq!(observed[0].running, None);
    lab.runtime().stop(&spec.id, GRACE).await.unwrap();
    if L::REAL {
        let control = control_data(&spec.data);
        assert!(control.contains("shut down"), "{control}");
        assert!(!control.contains("in production"), "{control}");
    }
    let started = lab.runtime().start(&spec).await.unwrap();
    if L::REAL {
        assert_eq!(
            query(&started.address, &spec, "postgres", "select count(*) from t"),
            "1000"
        );
        let log = lab.log(&spec.id);
        assert!(log.contains("database system was shut down at"), "{log}");
        assert!(!log.contains("not properly shut down"), "{log}");
    }
    lab.runtime().remove(&spec.id).await.unwrap();
}

async fn stopping_and_removing_what_is_absent_succeeds<L: Lab>(lab: &L) {
    let id = clone_id();
    lab.runtime().stop(&id, GRACE).await.unwrap();
    lab.runtime().remove(&id).await.unwrap();
    let spec = spec(lab);
    lab.runtime().start(&spec).await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
    assert_eq!(lab.runtime().instances().await.unwrap(), []);
}

async fn removing_keeps_the_data<L: Lab>(lab: &L) {
    let mut spec = spec(lab);
    let started = lab.runtime().start(&spec).await.unwrap();
    if L::REAL {
        query(&started.address, &spec, "postgres", "create table kept (n int)");
    }
    lab.runtime().stop(&spec.id, GRACE).await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
    spec.id = clone_id();
    let started = lab.runtime().start(&spec).await.unwrap();
    if L::REAL {
        assert_eq!(
            query(&started.address, &spec, "postgres", "select count(*) from kept"),
            "0"
        );
    }
    lab.runtime().remove(&spec.id).await.unwrap();
}

async fn a_killed_instance_is_seen_not_to_run_and_can_be_started_again<L: Lab>(lab: &L) {
    let spec = spec(lab);
    lab.runtime().start(&spec).await.unwrap();
    lab.kill(&spec.id).await;
    let observed = lab.runtime().instances().await.unwrap();
    assert_eq!(observed.len(), 1);
    assert_eq!(observed[0].running, None);
    if L::REAL {
        let error = lab.runtime().stop(&spec.id, GRACE).await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::Failed { reason, .. } if reason.contains("ended")),
            "{error}"
        );
    }
    lab.runtime().start(&spec).await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
}

async fn the_next_life_of_a_node_finds_what_the_last_one_started<L: Lab>(lab: &L) {
    let spec = spec(lab);
    let started = lab.runtime().start(&spec).await.unwrap();
    let next = lab.next_life().await;
    let observed = next.instances().await.unwrap();
    assert_eq!(observed.len(), 1);
    assert_eq!(observed[0].id, spec.id);
    assert_eq!(observed[0].running.as_ref(), Some(&started.address));
    assert_eq!(next.start(&spec).await.unwrap().address, started.address);
    next.stop(&spec.id, GRACE).await.unwrap();
    next.remove(&spec.id).await.unwrap();
    assert_eq!(lab.runtime().instances().await.unwrap(), []);
}

async fn an_instance_that_ends_at_start_gives_its_last_output<L: Lab>(lab: &L) {
    let mut spec = spec(lab);
    lab.make_it_exit(&mut spec);
    let error = lab.runtime().start(&spec).await.unwrap_err();
    let RuntimeError::Exited {
        instance,
        status,
        output,
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(instance, lab.runtime().instance_name(&spec.id));
    assert_eq!(status, 1);
    assert!(output.contains("FATAL"), "{output}");
    lab.runtime().remove(&spec.id).await.unwrap();
    assert_eq!(lab.runtime().instances().await.unwrap(), []);
}

async fn a_database_that_never_answers_is_given_up_with_its_output<L: Lab>(lab: &L) {
    let mut spec = spec(lab);
    lab.make_it_hang(&mut spec).await;
    spec.ready_timeout = Duration::from_secs(5);
    let error = lab.runtime().start(&spec).await.unwrap_err();
    let RuntimeError::NotReady { waited, output, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(waited, spec.ready_timeout);
    assert!(output.contains("LOG"), "{output}");
    lab.runtime().remove(&spec.id).await.unwrap();
    assert_eq!(lab.runtime().instances().await.unwrap(), []);
}

async fn an_image_that_is_not_there_is_refused_without_fetching<L: Lab>(lab: &L) {
    let mut spec = spec(lab);
    assert!(lab.runtime().has_image(&spec.image).await.unwrap());
    spec.image = lab.missing_image().to_owned();
    assert!(!lab.runtime().has_image(&spec.image).await.unwrap());
    let error = lab.runtime().start(&spec).await.unwrap_err();
    match &error {
        RuntimeError::ImageMissing(image) => assert_eq!(*image, spec.image),
        RuntimeError::Unsupported { message, .. } => assert!(message.contains(&spec.image), "{message}"),
        RuntimeError::Exited { .. }
        | RuntimeError::NotReady { .. }
        | RuntimeError::NotClean { .. }
        | RuntimeError::Failed { .. } => panic!("{error:?}"),
    }
    assert_eq!(lab.runtime().instances().await.unwrap(), []);
}

async fn user_password_and_database_are_as_the_variables_say<L: Lab>(lab: &L) {
    let mut spec = spec(lab);
    spec.env = [
        "POSTGRES_USER=ada",
        "POSTGRES_PASSWORD=it's \"secret\"",
        "POSTGRES_DB=Order \"book\"",
        "POSTGRES_INITDB_ARGS=--data-checksums",
    ]
    .map(str::to_owned)
    .to_vec();
    let started = lab.runtime().start(&spec).await.unwrap();
    if L::REAL {
        let database = "Order \"book\"";
        assert_eq!(
            query(&started.address, &spec, database, "select current_user"),
            "ada"
        );
        assert_eq!(
            query(&started.address, &spec, database, "show data_checksums"),
            "on"
        );
        let mut wrong = spec.clone();
        wrong.env[1] = "POSTGRES_PASSWORD=guess".to_owned();
        let output = psql(&started.address, &wrong, database, "select 1");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            complaint.contains("password authentication failed"),
            "{complaint}"
        );
    }
    lab.runtime().remove(&spec.id).await.unwrap();
}

async fn instances_of_a_base_and_of_a_clone_are_told_apart<L: Lab>(lab: &L) {
    let (mut base, clone) = (spec(lab), spec(lab));
    base.id = InstanceId::Base(BaseId {
        resource: "orders".parse().unwrap(),
        created_at: "2026-11-22T13:39:25Z".parse().unwrap(),
    });
    let (of_base, of_clone) = tokio::join!(lab.runtime().start(&base), lab.runtime().start(&clone));
    assert_ne!(of_base.unwrap().address, of_clone.unwrap().address);
    lab.runtime().stop(&base.id, GRACE).await.unwrap();
    for instance in lab.runtime().instances().await.unwrap() {
        assert_eq!(
            instance.running.is_some(),
            instance.id == clone.id,
            "{instance:?}"
        );
    }
    lab.runtime().remove(&base.id).await.unwrap();
    let left = lab.runtime().instances().await.unwrap();
    assert_eq!(left.iter().map(|left| &left.id).collect::<Vec<_>>(), [&clone.id]);
    lab.runtime().remove(&clone.id).await.unwrap();
}

/// The process runtime again, this time by a user without privileges: the whole suite in a child.
#[test]
fn an_ordinary_user_can_run_the_process_runtime() {
    if !is_root() {
        return; // Then the suite itself just showed it.
    }
    let directory = shared_directory();
    let suite = directory.path().join("suite");
    std::fs::copy(std::env::current_exe().unwrap(), &suite).unwrap();
    let home = directory.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    let output = std::os::unix::process::CommandExt::uid(&mut Command::new(&suite), NOBODY)
        .args(["process::", "--test-threads=2"])
        .env("TMPDIR", &home)
        .env("HOME", &home)
        .env_remove("XDG_RUNTIME_DIR")
        .current_dir(&home)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("12 passed"), "{said}");
}

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
    println!(
        "clone on ZFS: start {:?}, ready {:?}",
        started.start, started.ready
    );
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

/// The same data, restored in a container and cloned as a process: its owner changes.
#[tokio::test]
async fn a_process_takes_over_data_that_a_container_made() {
    let test = "a_process_takes_over_data_that_a_container_made";
    if !is_root() {
        return; // Only root can change the owner.
    }
    let (Some(containers), Some(processes)) = (DockerLab::open(test).await, ProcessLab::open(test).await)
    else {
        return;
    };
    let mut spec = spec(&processes);
    containers.runtime().start(&spec).await.unwrap();
    containers.runtime().stop(&spec.id, GRACE).await.unwrap();
    containers.runtime().remove(&spec.id).await.unwrap();
    run("chown", &["-R", "12345:12345", spec.data.to_str().unwrap()]);
    spec.id = clone_id();
    let started = processes.runtime().start(&spec).await.unwrap();
    assert_eq!(query(&started.address, &spec, "postgres", "select 1"), "1");
    processes.runtime().remove(&spec.id).await.unwrap();
    containers.close().await;
    processes.close().await;
}

#[tokio::test]
async fn a_database_other_than_postgres_is_ready_when_its_healthcheck_passes() {
    let test = "a_database_other_than_postgres_is_ready_when_its_healthcheck_passes";
    let Some(lab) = DockerLab::open(test).await else {
        return;
    };
    let mut spec = spec(&lab);
    let image = format!("zdap-test-{}:1", lab.node.rsplit('-').next().unwrap());
    docker(&["tag", &spec.image, &image]);
    spec.image = image.clone();
    spec.healthcheck = Some("test -e /var/lib/postgresql/data/healthy".to_owned());
    let mut starting = lab.runtime().start(&spec);
    // It accepts connections by then, but is not what the healthcheck wants.
    let data = spec.data.clone();
    let listens = async {
        while !std::fs::read_to_string(data.join("postmaster.pid")).is_ok_and(|text| text.contains("ready")) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        started = &mut starting => panic!("{started:?}"),
        () = listens => {}
    }
    std::fs::write(spec.data.join("healthy"), "").unwrap();
    starting.await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
    docker(&["rmi", "--no-prune", &image]);
    lab.close().await;
}

#[tokio::test]
async fn containers_cannot_reach_each_other_and_publish_no_port() {
    let test = "containers_cannot_reach_each_other_and_publish_no_port";
    let Some(lab) = DockerLab::open(test).await else {
        return;
    };
    let (one, other) = (spec(&lab), spec(&lab));
    lab.runtime().start(&one).await.unwrap();
    let Address::Tcp(address) = lab.runtime().start(&other).await.unwrap().address else {
        panic!("a container has a TCP address")
    };
    let name = lab.runtime().instance_name(&one.id);
    let reach = |host: &str| {
        let host = format!("--host={host}");
        let arguments = ["exec", &name, "pg_isready", "--timeout=2", &host];
        Command::new("docker").args(arguments).status().unwrap().success()
    };
    assert!(reach("127.0.0.1"));
    assert!(!reach(&address.ip().to_string()));
    assert_eq!(docker(&["port", &name]), "");
    lab.runtime().remove(&one.id).await.unwrap();
    lab.runtime().remove(&other.id).await.unwrap();
    lab.close().await;
}

#[tokio::test]
async fn a_container_of_somebody_else_is_left_alone() {
    let test = "a_container_of_somebody_else_is_left_alone";
    let Some(lab) = DockerLab::open(test).await else {
        return;
    };
    let stranger = DockerLab::open(test).await.unwrap();
    let mut spec = spec(&lab);
    lab.runtime().start(&spec).await.unwrap();
    assert_eq!(stranger.runtime().instances().await.unwrap(), []);
    for error in [
        stranger.runtime().start(&spec).await.unwrap_err(),
        stranger.runtime().stop(&spec.id, GRACE).await.unwrap_err(),
        stranger.runtime().remove(&spec.id).await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("is not this node's"), "{error}");
    }
    spec.ready_timeout = Duration::from_secs(10);
    lab.runtime().start(&spec).await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
    lab.close().await;
}

/// Datasets of one test's own, gone at its end.
struct Pool(String);

impl Pool {
    fn open(test: &str) -> Option<Self> {
        let pool = lab::variable(test, "ZDAP_TEST_ZPOOL")?;
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

struct MemoryLab(Memory);

impl MemoryLab {
    async fn open(_test: &str) -> Option<Self> {
        let memory = Memory::new();
        memory.lose_image("nowhere/postgres:15");
        Some(Self(memory))
    }

    async fn close(self) {}
}

impl Lab for MemoryLab {
    const REAL: bool = false;

    fn runtime(&self) -> &dyn Runtime {
        &self.0
    }

    async fn next_life(&self) -> Box<dyn Runtime> {
        Box::new(self.0.reopened(Faults::none()))
    }

    fn data(&self) -> PathBuf {
        PathBuf::from("/memory/orders")
    }

    async fn kill(&self, id: &InstanceId) {
        self.0.kill(id);
    }

    fn log(&self, _id: &InstanceId) -> String {
        String::new()
    }

    fn make_it_exit(&self, spec: &mut InstanceSpec) {
        spec.image = "exits:15".to_owned();
        self.0.exits_at_start(&spec.image);
    }

    async fn make_it_hang(&self, spec: &mut InstanceSpec) {
        spec.image = "hangs:15".to_owned();
        self.0.never_ready(&spec.image);
    }

    fn missing_image(&self) -> &'static str {
        "nowhere/postgres:15"
    }
}

struct ProcessLab {
    runtime: Process,
    directory: TempDir,
}

impl ProcessLab {
    async fn open(test: &str) -> Option<Self> {
        let directory = shared_directory();
        match Process::open(&directory.path().join("state")) {
            Ok(runtime) => Some(Self { runtime, directory }),
            Err(error) => lab::skip(test, &error.to_string()),
        }
    }

    async fn close(self) {
        assert!(servers_on(self.directory.path()).is_empty());
    }
}

impl Lab for ProcessLab {
    const REAL: bool = true;

    fn runtime(&self) -> &dyn Runtime {
        &self.runtime
    }

    async fn next_life(&self) -> Box<dyn Runtime> {
        Box::new(Process::open(&self.directory.path().join("state")).unwrap())
    }

    fn data(&self) -> PathBuf {
        new_directory(self.directory.path())
    }

    async fn kill(&self, _id: &InstanceId) {
        kill_servers_on(self.directory.path());
    }

    fn log(&self, id: &InstanceId) -> String {
        let home = self.directory.path().join("state/instances").join(id.name());
        std::fs::read_to_string(home.join("log")).unwrap()
    }

    fn make_it_exit(&self, spec: &mut InstanceSpec) {
        spec.cmd = ["postgres", "-c", "nonsense=1"].map(str::to_owned).to_vec();
    }

    async fn make_it_hang(&self, spec: &mut InstanceSpec) {
        hang_in_recovery(self, spec).await;
    }

    fn missing_image(&self) -> &'static str {
        "postgres:99"
    }
}

struct DockerLab {
    runtime: Docker,
    node: String,
    directory: TempDir,
}

impl DockerLab {
    async fn open(test: &str) -> Option<Self> {
        lab::variable(test, "ZDAP_TEST_DOCKER")?;
        lab::variable(test, "ZDAP_TEST_IMAGE")?;
        let node = format!("test/{}", CloneId::random(&"node".parse().unwrap()));
        Some(Self {
            runtime: Docker::connect(&node).await.unwrap(),
            node,
            directory: shared_directory(),
        })
    }

    async fn close(self) {
        assert_eq!(self.runtime.instances().await.unwrap(), []);
    }
}

impl Lab for DockerLab {
    const REAL: bool = true;

    fn runtime(&self) -> &dyn Runtime {
        &self.runtime
    }

    async fn next_life(&self) -> Box<dyn Runtime> {
        Box::new(Docker::connect(&self.node).await.unwrap())
    }

    fn data(&self) -> PathBuf {
        new_directory(self.directory.path())
    }

    async fn kill(&self, id: &InstanceId) {
        docker(&["kill", &self.runtime.instance_name(id)]);
    }

    fn log(&self, id: &InstanceId) -> String {
        docker(&["logs", &self.runtime.instance_name(id)])
    }

    fn make_it_exit(&self, spec: &mut InstanceSpec) {
        spec.cmd = ["postgres", "-c", "nonsense=1"].map(str::to_owned).to_vec();
    }

    async fn make_it_hang(&self, spec: &mut InstanceSpec) {
        hang_in_recovery(self, spec).await;
    }

    fn missing_image(&self) -> &'static str {
        "nowhere.invalid/postgres:15"
    }
}

fn spec<L: Lab>(lab: &L) -> InstanceSpec {
    InstanceSpec {
        id: clone_id(),
        image: std::env::var("ZDAP_TEST_IMAGE").unwrap_or_else(|_| "postgres:15".to_owned()),
        port: 5432,
        env: vec!["POSTGRES_PASSWORD=secret".to_owned()],
        entrypoint: Vec::new(),
        cmd: ["-c", "fsync=off"].map(str::to_owned).to_vec(),
        data: lab.data(),
        volume: "/var/lib/postgresql/data".to_owned(),
        healthcheck: None,
        shm_bytes: None,
        millicpus: None,
        memory_bytes: None,
        ready_timeout: Duration::from_secs(120),
    }
}

fn clone_id() -> InstanceId {
    InstanceId::Clone(CloneId::random(&"orders".parse().unwrap()))
}

/// Makes the data a standby's that waits for a primary for ever, and without `hot_standby` refuses sessions as long.
async fn hang_in_recovery<L: Lab>(lab: &L, spec: &mut InstanceSpec) {
    lab.runtime().start(spec).await.unwrap();
    lab.runtime().stop(&spec.id, GRACE).await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
    std::fs::write(spec.data.join("standby.signal"), "").unwrap();
    spec.cmd = ["-c", "hot_standby=off", "-c", "restore_command=false"]
        .map(str::to_owned)
        .to_vec();
}

/// Runs `psql` as a script of a resource would.
fn psql(address: &Address, spec: &InstanceSpec, database: &str, sql: &str) -> Output {
    Command::new("psql")
        .args([
            "--no-psqlrc",
            "-v",
            "ON_ERROR_STOP=1",
            "-Atc",
            sql,
            "-d",
            database,
        ])
        .envs(client_environment(address, &spec.env))
        .output()
        .unwrap()
}

fn query(address: &Address, spec: &InstanceSpec, database: &str, sql: &str) -> String {
    let output = psql(address, spec, database, sql);
    assert!(
        output.status.success(),
        "{sql}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn began(address: &Address, spec: &InstanceSpec) -> String {
    query(address, spec, "postgres", "select pg_postmaster_start_time()")
}

fn control_data(data: &Path) -> String {
    let programs = std::env::var("ZDAP_TEST_POSTGRES_BIN").unwrap_or("/usr/lib/postgresql/15/bin".to_owned());
    let output = Command::new(Path::new(&programs).join("pg_controldata"))
        .arg(data)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A temporary directory that every user can enter, as a pool's mount point is.
fn shared_directory() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

fn new_directory(parent: &Path) -> PathBuf {
    let path = parent.join(CloneId::random(&"data".parse().unwrap()).as_str());
    std::fs::create_dir(&path).unwrap();
    path
}

/// Returns the ids of processes that name something below `directory` on their command line.
fn servers_on(directory: &Path) -> Vec<String> {
    let output = Command::new("pgrep")
        .args(["-f", "--", directory.to_str().unwrap()])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

fn kill_servers_on(directory: &Path) {
    let servers = servers_on(directory);
    assert!(!servers.is_empty());
    Command::new("kill").arg("-9").args(&servers).status().unwrap();
    while servers
        .iter()
        .any(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| !command.is_empty()))
    {
        std::thread::yield_now();
    }
}

fn docker(arguments: &[&str]) -> String {
    run("docker", arguments)
}

/// Runs a program that has to succeed, and returns all it prints.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

const GRACE: Duration = Duration::from_secs(60);
/// `nobody`, on every Linux.
const NOBODY: u32 = 65534;
