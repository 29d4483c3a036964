//! Databases that run: the second of the two seams.
//!
//! `docker` runs containers through the engine's API, `process` runs `postgres` children as an unprivileged user, `memory`
//! is the fake with faults on request. `node/tests/runtime.rs` is the contract that all three keep.

pub mod docker;
pub mod memory;
pub mod process;
pub mod ready;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use zdap_proto::name::{BaseId, CloneId};

use crate::faults::Injected;

/// Runs databases. Every mutation is "ensure": doing it twice, or undoing what is absent, succeeds.
#[async_trait]
pub trait Runtime: Send + Sync + fmt::Debug {
    /// Starts the instance (making it if absent) and returns when its database answers, or has been found dead, or
    /// `spec.ready_timeout` is over. Never pulls an image: [`RuntimeError::ImageMissing`].
    ///
    /// On an error the instance may be there, running or not: `remove` it.
    async fn start(&self, spec: &InstanceSpec) -> Result<Started, RuntimeError>;

    /// Stops the database cleanly, so that its data directory needs no recovery; returns when it has stopped.
    /// [`RuntimeError::NotClean`] if it had to be killed after `grace`.
    async fn stop(&self, instance: &InstanceId, grace: Duration) -> Result<(), RuntimeError>;

    /// Kills the instance if it runs, and removes every trace of it but its data.
    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError>;

    /// Returns every instance of this node, running or not, in one pass. Others' are never in it.
    async fn instances(&self) -> Result<Vec<Observed>, RuntimeError>;

    /// Returns the name under which the instance is known outside, as `docker exec` wants it.
    fn instance_name(&self, instance: &InstanceId) -> String {
        instance.name()
    }

    /// Says which instances of this node end, as they end. It ends itself when the engine can no longer tell; what has
    /// ended meanwhile is found by [`Self::instances`]. A runtime whose addresses are never used again says nothing.
    fn ends(&self) -> BoxStream<'_, InstanceId> {
        futures_util::stream::pending().boxed()
    }

    /// Returns whether `image` can be started from without fetching anything.
    async fn has_image(&self, image: &str) -> Result<bool, RuntimeError>;

    /// Fetches `image`, saying now and then how far it has come.
    async fn fetch_image(
        &self,
        image: &str,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), RuntimeError>;
}

/// An instance belongs to a base that is being restored, or to a clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceId {
    /// A restore's.
    Base(BaseId),
    /// A clone's.
    Clone(CloneId),
}

impl InstanceId {
    /// Returns the name of its container, `zdap-orders-base-2026-11-22T13.39.25Z` or `zdap-orders-k3v9x2mq`. Unique
    /// within a node: the backend adds the node's name where several nodes share an engine.
    pub fn name(&self) -> String {
        match self {
            Self::Base(base) => format!("zdap-{}-base-{}", base.resource, base.created_at.dashed()),
            Self::Clone(clone) => format!("zdap-{clone}"),
        }
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// What to run, and on which data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceSpec {
    /// What it is for.
    pub id: InstanceId,
    /// The container image, `postgres:15`. The process runtime takes the version from its tag.
    pub image: String,
    /// The port of the database inside.
    pub port: u16,
    /// `NAME=value` pairs; the official image's `POSTGRES_*` and `PGDATA` mean the same under every runtime.
    pub env: Vec<String>,
    /// Replaces the image's entrypoint, unless empty.
    pub entrypoint: Vec<String>,
    /// Replaces the image's command, unless empty.
    pub cmd: Vec<String>,
    /// The data on this machine.
    pub data: PathBuf,
    /// Where the data appears inside, `/var/lib/postgresql/data`.
    pub volume: String,
    /// For databases other than Postgres: a shell command that succeeds once the database answers.
    pub healthcheck: Option<String>,
    /// Size of `/dev/shm`, in bytes.
    pub shm_bytes: Option<u64>,
    /// Processors, in thousandths.
    pub millicpus: Option<u64>,
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// How long the database may take until it answers.
    pub ready_timeout: Duration,
}

/// How a start went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Where the database answers, from this machine only.
    pub address: Address,
    /// Until the instance ran.
    pub start: Duration,
    /// From then until the database answered.
    pub ready: Duration,
}

/// Where a database answers; reachable from this machine only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A container's own address, or a port on loopback.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
    /// A fake's door, in this process.
    Memory(memory::Door),
}

/// An instance as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// What it is for.
    pub id: InstanceId,
    /// Where it answers, if it runs.
    pub running: Option<Address>,
}

/// The environment that `psql` and its like read (`PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD`), to reach an instance.
pub fn client_environment(address: &Address, env: &[String]) -> BTreeMap<String, String> {
    let (host, port) = match address {
        Address::Tcp(address) => (address.ip().to_string(), address.port().to_string()),
        Address::Unix(path) => {
            let directory = path.parent().unwrap_or(path).display().to_string();
            let port = path
                .extension()
                .map_or_else(|| "5432".to_owned(), |port| port.to_string_lossy().into_owned());
            (directory, port)
        }
        Address::Memory(door) => (door.to_string(), "5432".to_owned()),
    };
    let mut environment = BTreeMap::from([("PGHOST".to_owned(), host), ("PGPORT".to_owned(), port)]);
    environment.insert(
        "PGUSER".to_owned(),
        variable(env, "POSTGRES_USER").unwrap_or("postgres").to_owned(),
    );
    if let Some(password) = variable(env, "POSTGRES_PASSWORD") {
        environment.insert("PGPASSWORD".to_owned(), password.to_owned());
    }
    environment
}

/// Returns the value of `name` in `NAME=value` pairs; the last one counts.
pub fn variable<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter()
        .rev()
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// Why an instance could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The image is not on this machine.
    #[error("the image `{0}` is not on this machine")]
    ImageMissing(String),
    /// The instance ended before its database answered; the last lines it printed.
    #[error(
        "{instance} exited with status {status} before its database answered; its last output:\n{output}"
    )]
    Exited {
        /// Which.
        instance: String,
        /// The exit code, or the signal as a shell shows it (128 + n).
        status: i64,
        /// The last lines of its log.
        output: String,
    },
    /// The database did not answer in time; the last lines the instance printed.
    #[error("the database of {instance} did not answer within {waited:?}; its last output:\n{output}")]
    NotReady {
        /// Which.
        instance: String,
        /// How long it was waited for.
        waited: Duration,
        /// The last lines of its log.
        output: String,
    },
    /// It had to be killed: the data directory needs recovery.
    #[error("{instance} did not stop within {grace:?} and was killed")]
    NotClean {
        /// Which.
        instance: String,
        /// How long it was given.
        grace: Duration,
    },
    /// The resource asks for something this runtime cannot do.
    #[error("{message}")]
    Unsupported {
        /// What, naming the value.
        message: String,
        /// The remedy.
        hint: String,
    },
    /// The engine or system could not do it.
    #[error("{doing}: {reason}")]
    Failed {
        /// What was being done.
        doing: String,
        /// What the engine or system said.
        reason: String,
    },
}

impl From<Injected> for RuntimeError {
    fn from(fault: Injected) -> Self {
        Self::Failed {
            doing: fault.name.to_owned(),
            reason: fault.to_string(),
        }
    }
}

/// Returns the last [`SHOWN_LINES`] lines of what an instance printed, without those that our own asking whether it is
/// ready makes Postgres log: nothing else might be left.
fn last_lines(output: &str) -> String {
    let mut after_ours = false;
    let told = |line: &&str| {
        let ours = line.contains(NOT_YET) || after_ours && line.contains("DETAIL:");
        after_ours = ours;
        !ours
    };
    let lines: Vec<&str> = output.trim_end().lines().filter(told).collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

/// Postgres's message for SQLSTATE 57P03: it is starting up, shutting down, or not accepting connections.
const NOT_YET: &str = "FATAL:  the database system is ";
/// Enough to see why a database did not start.
const SHOWN_LINES: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn spec(clone: &str) -> InstanceSpec {
        InstanceSpec {
            id: InstanceId::Clone(clone.parse().unwrap()),
            image: "postgres:15".to_owned(),
            port: 5432,
            env: vec!["POSTGRES_PASSWORD=secret".to_owned()],
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            data: PathBuf::from("/pool/orders"),
            volume: "/var/lib/postgresql/data".to_owned(),
            healthcheck: None,
            shm_bytes: None,
            millicpus: None,
            memory_bytes: None,
            ready_timeout: Duration::from_secs(60),
        }
    }

    #[test]
    fn the_last_of_several_values_counts() {
        let env = ["A=1", "AB=2", "A=3=4"].map(str::to_owned);
        assert_eq!(variable(&env, "A"), Some("3=4"));
        assert_eq!(variable(&env, "B"), None);
    }

    #[test]
    fn psql_is_led_to_a_socket_by_its_directory_and_port() {
        let address = Address::Unix(PathBuf::from("/run/zdapd/1f/.s.PGSQL.5433"));
        let environment = client_environment(&address, &["POSTGRES_USER=ada".to_owned()]);
        let pairs: Vec<String> = environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(pairs, ["PGHOST=/run/zdapd/1f", "PGPORT=5433", "PGUSER=ada"]);
    }

    #[test]
    fn only_the_last_lines_are_shown() {
        let output: String = (0..80).map(|line| format!("{line}\n")).collect();
        let shown = last_lines(&output);
        assert!(shown.starts_with("30\n") && shown.ends_with("\n79"));
        assert_eq!(last_lines(""), "");
    }

    #[test]
    fn what_our_own_asking_makes_postgres_log_is_not_shown() {
        let output = "LOG:  entering standby mode\n\
                      FATAL:  the database system is not accepting connections\n\
                      DETAIL:  Hot standby mode is disabled.\n\
                      LOG:  waiting\nDETAIL:  For a primary.\n";
        assert_eq!(
            last_lines(output),
            "LOG:  entering standby mode\nLOG:  waiting\nDETAIL:  For a primary."
        );
    }

    #[test]
    fn an_id_reads_back_from_its_json() {
        let base = InstanceId::Base(BaseId {
            resource: "orders".parse().unwrap(),
            created_at: "2026-11-22T13:39:25Z".parse().unwrap(),
        });
        for id in [base, spec("orders-k3v9x2mq").id] {
            let text = serde_json::to_string(&id).unwrap();
            assert_eq!(serde_json::from_str::<InstanceId>(&text).unwrap(), id);
        }
    }
}
