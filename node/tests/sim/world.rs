//! Machines and the nodes on them: how they start, how they are killed, and what they find when they start again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::time::Instant;
use zdap_node::Parts;
use zdap_node::clock::Clock;
use zdap_node::cluster::{self, GossipSetup};
use zdap_node::config::{Config, StorageChoice};
use zdap_node::faults::Faults;
use zdap_node::gossip::Settings;
use zdap_node::machine::{self, Figures};
use zdap_node::node::Node;
use zdap_node::state::{Membership, Origin, StateDir};
use zdap_node::storage::Storage;
use zdap_node::{runtime, storage};
use zdap_proto::identity::{ClusterCa, Identity, Subject};
use zdap_proto::message::CloneRecord;
use zdap_proto::name::{BaseId, NodeName, SnapshotId, SnapshotTime};

use crate::network::Network;
use crate::plan::{BRIEF, Finds, LASTING, LIFE, Plan};

/// All there is.
pub(crate) struct World {
    pub(crate) network: Network,
    pub(crate) ca: ClusterCa,
    pub(crate) machines: Vec<Machine>,
    began: Instant,
    call_latency: Duration,
    log: Mutex<Vec<String>>,
    rng: Mutex<StdRng>,
    directory: TempDir,
}

/// A machine: its disk and its engine outlive the nodes that run on it.
pub(crate) struct Machine {
    pub(crate) name: NodeName,
    pub(crate) address: SocketAddr,
    pub(crate) clock: Clock,
    inner: Mutex<Inner>,
}

struct Inner {
    storage: storage::memory::Memory,
    runtime: runtime::memory::Memory,
    state_dir: PathBuf,
    lives: usize,
    life: Option<Life>,
    /// The node, once it serves.
    node: Option<Arc<Node>>,
    /// How often the disk was lost with all that was on it.
    losses: usize,
    /// How often what the node had written down in its state directory was lost.
    lapses: usize,
}

/// A node from its start to its end.
struct Life {
    faults: Faults,
    stop: oneshot::Sender<()>,
}

impl World {
    /// Makes the machines of a plan, each with one snapshot of each resource; none runs a node yet.
    pub(crate) async fn new(plan: &Plan, rng: &mut StdRng) -> Arc<Self> {
        // Where the state directories lie is of no consequence, and in memory they cost no time.
        let memory = Path::new("/dev/shm");
        let directory = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let directory = directory.unwrap();
        write_resources(&directory.path().join("resources"));
        let ca = ClusterCa::found(Utc::now()).unwrap();
        let mut machines = Vec::new();
        for index in 0..plan.nodes {
            let name: NodeName = format!("node-{index}").parse().unwrap();
            let state_dir = directory.path().join(format!("{name}-0"));
            fresh_state(&state_dir, &ca, &name, plan.nodes);
            let inner = Inner {
                storage: disk().await,
                runtime: runtime::memory::Memory::new().with_doors(),
                state_dir,
                lives: 0,
                life: None,
                node: None,
                losses: 0,
                lapses: 0,
            };
            machines.push(Machine {
                name,
                address: address_of(index),
                clock: Clock::simulated(noon()),
                inner: Mutex::new(inner),
            });
        }
        Arc::new(Self {
            network: Network::new(rng.random()),
            ca,
            machines,
            began: Instant::now(),
            call_latency: plan.call_latency,
            log: Mutex::default(),
            rng: Mutex::new(StdRng::from_rng(rng)),
            directory,
        })
    }

    /// Notes what happens, for who reads why a run has failed.
    pub(crate) fn say(&self, what: impl std::fmt::Display) {
        let line = format!("{:9.3}  {what}", self.began.elapsed().as_secs_f64());
        tracing::info!(target: "sim", "{what}");
        self.log.lock().unwrap().push(line);
    }

    /// Returns what was noted.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Returns a source of chance of its own.
    pub(crate) fn chance(&self) -> StdRng {
        StdRng::from_rng(&mut *self.rng.lock().unwrap())
    }

    /// Starts a node that does not run, and again whenever its start fails.
    pub(crate) fn start(self: &Arc<Self>, index: usize) {
        let machine = &self.machines[index];
        if machine.inner().life.is_some() {
            return;
        }
        let faults = Faults::none();
        faults.set_latency(self.call_latency);
        let (stop, stopped) = oneshot::channel();
        let (config, parts) = self.parts(index, &faults);
        machine.inner().life = Some(Life {
            faults: faults.clone(),
            stop,
        });
        self.say(format_args!("{} starts", machine.name));
        let world = Arc::clone(self);
        let served = tokio::spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            let started = |node: &Arc<Node>| world.machines[index].inner().node = Some(Arc::clone(node));
            zdap_node::serve_watched(&config, parts, started, shutdown).await
        });
        let world = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = faults.stopped() => world.kill(index),
                ended = served => if let Ok(Err(error)) = ended {
                    world.say(format_args!("{} ends: {error:#}", world.machines[index].name));
                    world.kill(index);
                    tokio::time::sleep(RESTART).await;
                    world.start(index);
                },
            }
        });
    }

    /// Kills a node, as `kill -9` does.
    pub(crate) fn kill(&self, index: usize) {
        let machine = &self.machines[index];
        let mut inner = machine.inner();
        let Some(life) = inner.life.take() else { return };
        inner.node = None;
        self.network.kill(machine.address);
        life.faults.stop();
        // What is left of it can do nothing any more. It is told to end so that it does not go on for ever.
        let _ = life.stop.send(());
        let left = inner.state_dir.clone();
        inner.lives += 1;
        inner.state_dir = self
            .directory
            .path()
            .join(format!("{}-{}", machine.name, inner.lives));
        copy(&left, &inner.state_dir);
        drop(inner);
        self.say(format_args!("{} is dead", machine.name));
    }

    /// Leaves a machine without a node what one finds there that starts again.
    pub(crate) async fn leave(&self, index: usize, finds: Finds) {
        let machine = &self.machines[index];
        let state_dir = machine.inner().state_dir.clone();
        match finds {
            Finds::Everything => {}
            Finds::OldState => {
                std::fs::remove_dir_all(&state_dir).unwrap();
                copy(&self.old_state(index), &state_dir);
                machine.inner().lapses += 1;
            }
            Finds::NothingButItsKey => {
                std::fs::remove_dir_all(&state_dir).unwrap();
                fresh_state(&state_dir, &self.ca, &machine.name, self.machines.len());
                let disk = disk().await;
                let mut inner = machine.inner();
                inner.storage = disk;
                inner.runtime = runtime::memory::Memory::new().with_doors();
                inner.losses += 1;
                inner.lapses += 1;
            }
        }
    }

    /// Keeps the state directories as they are now, for nodes that find them again later.
    pub(crate) fn keep_state(&self) {
        for (index, machine) in self.machines.iter().enumerate() {
            copy(&machine.inner().state_dir, &self.old_state(index));
        }
    }

    fn old_state(&self, index: usize) -> PathBuf {
        self.directory.path().join(format!("old-{index}"))
    }

    fn parts(&self, index: usize, faults: &Faults) -> (Config, Parts) {
        let machine = &self.machines[index];
        let inner = machine.inner();
        let config = Config {
            storage: StorageChoice::Directory {
                path: PathBuf::from("/in/memory"),
                size: None,
            },
            config_dir: self.directory.path().join("resources"),
            network_address: machine.address.ip().to_string().parse().unwrap(),
            api_port: machine.address.port(),
            state_dir: inner.state_dir.clone(),
            node_name: machine.name.clone(),
            runtime: None,
        };
        let state = StateDir::lock(&config.state_dir).unwrap();
        let membership = Membership {
            ca: ClusterCa::load(state.path()).unwrap(),
            identity: Identity::load(state.path()).unwrap(),
            origin: Origin::Known,
        };
        let parts = Parts {
            state,
            membership,
            socket: self.network.bind(machine.address),
            address: machine.address,
            resources: zdap_node::resource::watch::open(&config.config_dir).unwrap(),
            storage: Arc::new(inner.storage.reopened(faults.clone())),
            runtime: Arc::new(inner.runtime.reopened(faults.clone())),
            clock: machine.clock.clone(),
            figures: Figures::Fixed(machine::Machine {
                available_memory_bytes: 8 << 30,
                total_memory_bytes: 16 << 30,
                load: [0.5; 3],
            }),
            gossip: GossipSetup {
                settings: Settings::default(),
                rng: self.chance(),
                now: machine.clock.now(),
                own_thread: false,
            },
        };
        (config, parts)
    }
}

impl Machine {
    pub(crate) fn host(&self) -> IpAddr {
        self.address.ip()
    }

    pub(crate) fn runs(&self) -> bool {
        self.inner().life.is_some()
    }

    /// Returns how often the machine has lost its disk so far.
    pub(crate) fn losses(&self) -> usize {
        self.inner().losses
    }

    /// Returns how often its node has lost what it had written down.
    pub(crate) fn lapses(&self) -> usize {
        self.inner().lapses
    }

    /// Returns what goes wrong in the life of the node that runs, if one does.
    pub(crate) fn faults(&self) -> Option<Faults> {
        self.inner().life.as_ref().map(|life| life.faults.clone())
    }

    /// Returns the node that serves, if one does.
    pub(crate) fn node(&self) -> Option<Arc<Node>> {
        self.inner().node.clone()
    }

    pub(crate) fn storage(&self) -> storage::memory::Memory {
        self.inner().storage.reopened(Faults::none())
    }

    pub(crate) fn runtime(&self) -> runtime::memory::Memory {
        self.inner().runtime.reopened(Faults::none())
    }

    /// Returns the clones on its disk.
    pub(crate) async fn records(&self) -> Vec<CloneRecord> {
        let inventory = self.storage().inventory().await.unwrap();
        inventory.clones.into_iter().map(|clone| clone.record).collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

/// A disk on which each resource has been restored once.
async fn disk() -> storage::memory::Memory {
    let disk = storage::memory::Memory::new();
    for resource in [LASTING, BRIEF] {
        let base = BaseId {
            resource: resource.parse().unwrap(),
            created_at: SnapshotTime::new(noon() - Duration::from_secs(3600)),
        };
        disk.create_base(&base, &storage::ZfsProperties::default())
            .await
            .unwrap();
        disk.snapshot(&SnapshotId::of_restore(base)).await.unwrap();
    }
    disk
}

/// What a node has that has just joined: its key, the CA, and where the others are.
fn fresh_state(directory: &Path, ca: &ClusterCa, name: &NodeName, nodes: usize) {
    std::fs::create_dir(directory).unwrap();
    let subject = Subject::Node(name.clone());
    let identity = ca.identity(&subject, YEARS, Utc::now()).unwrap();
    ca.save(directory).unwrap();
    identity.save(directory).unwrap();
    let addresses: Vec<_> = (0..nodes).map(|index| address_of(index).to_string()).collect();
    cluster::remember(directory, &addresses).unwrap();
}

fn address_of(node: usize) -> SocketAddr {
    let octet = u8::try_from(node + 1).unwrap();
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, octet), 43_210))
}

fn write_resources(directory: &Path) {
    std::fs::create_dir(directory).unwrap();
    let script = directory.join("creation.sh");
    std::fs::write(&script, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let ttl = format!("ttl: {}s\n", LIFE.as_secs());
    for (name, more) in [(LASTING, ""), (BRIEF, ttl.as_str())] {
        let text = format!(
            "name: {name}\ncreation: ./creation.sh\ndocker:\n  image: {IMAGE}\ntimeouts:\n  ready: 5s\n{more}"
        );
        std::fs::write(directory.join(format!("{name}.resource.yml")), text).unwrap();
    }
}

/// Copies a directory as it is now.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}

/// When a simulation begins by its machines' clocks.
fn noon() -> DateTime<Utc> {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

/// The image of both resources.
pub(crate) const IMAGE: &str = "postgres:15";
/// Certificates are not what is tried here. TLS looks at the real time.
pub(crate) const YEARS: Duration = Duration::from_secs(5 * 365 * 86_400);
/// After a start that failed.
const RESTART: Duration = Duration::from_secs(1);
