//! The backends as the tests need them, each with room for data.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use zdap_node::faults::Faults;
use zdap_node::runtime::docker::Docker;
use zdap_node::runtime::memory::Memory;
use zdap_node::runtime::process::Process;
use zdap_node::runtime::{InstanceId, InstanceSpec, Runtime};
use zdap_proto::name::CloneId;

use crate::lab::variable;
use crate::machine::{docker, kill_servers_on, new_directory, servers_on, shared_directory};

/// A backend with room for data, as a clause of the contract needs it.
#[allow(async_fn_in_trait, reason = "only these tests call it")]
pub(crate) trait Lab: Sized {
    fn runtime(&self) -> &dyn Runtime;
    /// Makes it ready, or skips `test` aloud.
    async fn open(test: &str) -> Option<Self>;
    /// Checks that nothing is left.
    async fn close(self);
    /// Returns the runtime of the next life of the node.
    async fn next_life(&self) -> Box<dyn Runtime>;
    /// Returns a new empty data directory.
    fn data(&self) -> PathBuf;
    /// Kills the server of an instance behind the node's back.
    async fn kill(&self, id: &InstanceId);
    /// Whether there is a real Postgres to talk to.
    const REAL: bool;
    /// Returns what still works on the data of an instance.
    fn left_running(&self, spec: &InstanceSpec) -> Vec<String>;
    /// Returns all that an instance printed.
    fn log(&self, id: &InstanceId) -> String;
    /// Changes `spec` so that its server ends while it starts.
    fn make_it_exit(&self, spec: &mut InstanceSpec);
    /// Changes `spec` so that its server never answers, although it runs.
    async fn make_it_hang(&self, spec: &mut InstanceSpec);
    /// An image that is nowhere.
    fn missing_image(&self) -> &'static str;
}

pub(crate) struct MemoryLab(Memory);

impl Lab for MemoryLab {
    const REAL: bool = false;

    async fn open(_test: &str) -> Option<Self> {
        let memory = Memory::new();
        memory.lose_image("nowhere/postgres:15");
        Some(Self(memory))
    }

    async fn close(self) {}

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

    fn left_running(&self, _spec: &InstanceSpec) -> Vec<String> {
        Vec::new()
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

pub(crate) struct ProcessLab {
    pub(crate) runtime: Process,
    pub(crate) directory: TempDir,
}

impl Lab for ProcessLab {
    const REAL: bool = true;

    async fn open(test: &str) -> Option<Self> {
        variable(test, "ZDAP_TEST_POSTGRES_BIN")?;
        let directory = shared_directory();
        let runtime = Process::open(&directory.path().join("state")).unwrap();
        Some(Self { runtime, directory })
    }

    async fn close(self) {
        assert!(servers_on(self.directory.path()).is_empty());
    }

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

    fn left_running(&self, spec: &InstanceSpec) -> Vec<String> {
        servers_on(&spec.data)
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

pub(crate) struct DockerLab {
    pub(crate) runtime: Docker,
    pub(crate) node: String,
    pub(crate) directory: TempDir,
}

impl Lab for DockerLab {
    const REAL: bool = true;

    async fn open(test: &str) -> Option<Self> {
        variable(test, "ZDAP_TEST_DOCKER")?;
        variable(test, "ZDAP_TEST_IMAGE")?;
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

    fn left_running(&self, spec: &InstanceSpec) -> Vec<String> {
        servers_on(&spec.data)
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

pub(crate) fn spec<L: Lab>(lab: &L) -> InstanceSpec {
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

pub(crate) fn clone_id() -> InstanceId {
    InstanceId::Clone(CloneId::random(&"orders".parse().unwrap()))
}

/// Makes the data a standby's that waits for a primary for ever, and without `hot_standby` refuses sessions as long.
pub(crate) async fn hang_in_recovery<L: Lab>(lab: &L, spec: &mut InstanceSpec) {
    lab.runtime().start(spec).await.unwrap();
    lab.runtime().stop(&spec.id, GRACE).await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
    std::fs::write(spec.data.join("standby.signal"), "").unwrap();
    spec.cmd = ["-c", "hot_standby=off", "-c", "restore_command=false"]
        .map(str::to_owned)
        .to_vec();
}

/// Long enough for a checkpoint on a busy machine.
pub(crate) const GRACE: Duration = Duration::from_secs(60);
