//! Nodes to ask, and people who ask them.

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::Utc;
use quinn::{Connection, RecvStream, SendStream};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use zdap_node::clock::Clock;
use zdap_node::cluster::{GossipSetup, View};
use zdap_node::config::{Config, StorageChoice};
use zdap_node::faults::Faults;
use zdap_node::gossip::Settings;
use zdap_node::machine::Figures;
use zdap_node::node::Node;
use zdap_node::state::{self, StateDir};
use zdap_node::storage::Storage;
use zdap_node::{Parts, runtime, storage};
use zdap_proto::connect::connect;
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{ClusterCa, Identity, Subject};
use zdap_proto::message::{Answer, CloneRecord, Invited, Request, TokenText, TunnelHello, TunnelReply};
use zdap_proto::name::CloneId;
use zdap_proto::refusal::Refusal;
use zdap_proto::token::Token;
use zdap_proto::transport::{self, Purpose};

use crate::client::Client;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// Longer than anything takes, also on a machine that does much else.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A machine with the resource `orders`: its disk, its engine and its state directory outlive the node that runs on it.
pub(crate) struct Machine {
    pub(crate) storage: storage::memory::Memory,
    pub(crate) runtime: runtime::memory::Memory,
    /// Of nodes that run apart.
    pub(crate) faults: Faults,
    /// Of the gossip.
    pub(crate) settings: Settings,
    name: &'static str,
    figures: Figures,
    state: Arc<TempDir>,
    resources: Arc<TempDir>,
}

/// A node at work on a machine.
pub(crate) struct Running {
    pub(crate) address: String,
    pub(crate) ca: ClusterCa,
    identity: Identity,
    stop: oneshot::Sender<()>,
    served: JoinHandle<anyhow::Result<()>>,
    /// The directories it works on.
    _machine: [Arc<TempDir>; 2],
}

/// A node on a runtime of its own.
pub(crate) struct Apart {
    running: Option<Running>,
    /// Gone when the node is.
    pub(crate) node: Weak<Node>,
    /// What it believes.
    pub(crate) views: watch::Receiver<Arc<View>>,
    runtime: Option<Runtime>,
}

impl Machine {
    pub(crate) fn new(name: &'static str) -> Self {
        let resources = tempfile::tempdir().unwrap();
        let creation = resources.path().join("creation.sh");
        std::fs::write(&creation, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&creation, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(
            resources.path().join("orders.resource.yml"),
            format!("name: orders\ncreation: ./creation.sh\ndocker:\n  image: {IMAGE}\n  env: [POSTGRES_PASSWORD=secret]\n"),
        )
        .unwrap();
        Self {
            storage: storage::memory::Memory::new(),
            runtime: runtime::memory::Memory::new().with_echo(),
            faults: Faults::none(),
            settings: Settings::default(),
            name,
            figures: Figures::Fixed(zdap_node::machine::Machine {
                available_memory_bytes: 64 << 30,
                total_memory_bytes: 64 << 30,
                load: [0.0; 3],
            }),
            state: Arc::new(tempfile::tempdir().unwrap()),
            resources: Arc::new(resources),
        }
    }

    /// A machine of so many times the size.
    pub(crate) fn of_weight(name: &'static str, weight: u64) -> Self {
        let machine = Self::new(name);
        let bytes = weight << 40;
        machine.storage.set_capacity(storage::Capacity {
            free_bytes: bytes,
            total_bytes: bytes,
        });
        Self {
            figures: Figures::Fixed(zdap_node::machine::Machine {
                available_memory_bytes: weight << 36,
                total_memory_bytes: weight << 36,
                load: [0.0; 3],
            }),
            ..machine
        }
    }

    /// Adds a line to the resource file.
    pub(crate) fn with_setting(self, line: &str) -> Self {
        let file = self.resources.path().join("orders.resource.yml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{text}{line}\n")).unwrap();
        self
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Has databases of `orders` start and not answer, or answer again.
    pub(crate) fn is_ready_when_started(&self, is_ready: bool) {
        match is_ready {
            true => self.runtime.ready_again(IMAGE),
            false => self.runtime.never_ready(IMAGE),
        }
    }

    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    pub(crate) fn invites(&self) -> PathBuf {
        self.state.path().join("invites.json")
    }

    /// Starts a node that has restored `orders` once.
    pub(crate) async fn start(&self) -> Running {
        let node = self.start_with(Faults::none(), 0, None).await.unwrap();
        let operator = node.operator().await;
        if self.storage.inventory().await.unwrap().bases.is_empty() {
            operator.restore().await;
        }
        node
    }

    /// Starts a node on a port, 0 for any, whose disk has `faults`.
    pub(crate) async fn start_with(
        &self,
        faults: Faults,
        port: u16,
        token: Option<&Token>,
    ) -> anyhow::Result<Running> {
        let (config, parts) = self.parts(faults, port, token).await?;
        let (address, identity) = (
            parts.socket.local_addr()?.to_string(),
            parts.membership.identity.clone(),
        );
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            zdap_node::serve(&config, parts, shutdown).await
        });
        Ok(Running {
            address,
            ca: ClusterCa::load(self.state.path())?,
            identity,
            stop,
            served,
            _machine: [Arc::clone(&self.state), Arc::clone(&self.resources)],
        })
    }

    /// Starts a node that can be watched, and killed: it runs apart from the test.
    pub(crate) async fn start_apart(&self, port: u16, token: Option<&Token>) -> anyhow::Result<Apart> {
        let (config, parts) = self.parts(self.faults.clone(), port, token).await?;
        let (address, identity) = (
            parts.socket.local_addr()?.to_string(),
            parts.membership.identity.clone(),
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let (show, shown) = oneshot::channel();
        let mut served = runtime.spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            let started = |node: &Arc<Node>| {
                let _ = show.send((Arc::downgrade(node), node.cluster.watch()));
            };
            zdap_node::serve_watched(&config, parts, started, shutdown).await
        });
        let runtime = Some(runtime);
        let (node, views) = tokio::select! {
            Ok(shown) = shown => shown,
            ended = &mut served => {
                let mut runtime = runtime;
                if let Some(runtime) = runtime.take() {
                    runtime.shutdown_background();
                }
                return Err(ended?.unwrap_err());
            }
        };
        let running = Running {
            address,
            ca: ClusterCa::load(self.state.path())?,
            identity,
            stop,
            served,
            _machine: [Arc::clone(&self.state), Arc::clone(&self.resources)],
        };
        Ok(Apart {
            running: Some(running),
            node,
            views,
            runtime,
        })
    }

    /// A second machine with a copy of this one's state directory.
    pub(crate) fn cloned(&self) -> Self {
        let copy = Self::new(self.name);
        for file in std::fs::read_dir(self.state.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.state.path().join(file.file_name())).unwrap();
        }
        copy
    }

    async fn parts(
        &self,
        faults: Faults,
        port: u16,
        token: Option<&Token>,
    ) -> anyhow::Result<(Config, Parts)> {
        let config = Config {
            storage: StorageChoice::Directory {
                path: PathBuf::from("/in/memory"),
                size: None,
            },
            config_dir: self.resources.path().to_owned(),
            network_address: "127.0.0.1".parse().map_err(anyhow::Error::msg)?,
            api_port: port,
            state_dir: self.state.path().to_owned(),
            node_name: self.name.parse()?,
            runtime: None,
        };
        let state = StateDir::lock(&config.state_dir)?;
        let membership = state::membership(&state, &config.node_name, token, Utc::now()).await?;
        let socket = bind(port).await?;
        let parts = Parts {
            address: socket.local_addr()?,
            socket: socket.into(),
            resources: zdap_node::resource::watch::open(&config.config_dir)?,
            state,
            membership,
            storage: Arc::new(self.storage.reopened(faults)),
            runtime: Arc::new(self.runtime.clone()),
            clock: Clock::Machine,
            figures: self.figures,
            gossip: GossipSetup {
                settings: self.settings.clone(),
                ..GossipSetup::default()
            },
        };
        Ok((config, parts))
    }

    pub(crate) async fn clones(&self) -> Vec<CloneRecord> {
        let inventory = self.storage.inventory().await.unwrap();
        inventory.clones.into_iter().map(|clone| clone.record).collect()
    }

    pub(crate) async fn snapshots(&self) -> usize {
        let inventory = self.storage.inventory().await.unwrap();
        inventory.bases.iter().map(|base| base.snapshots.len()).sum()
    }

    /// Waits until the clones on the disk are as wanted.
    pub(crate) async fn until(&self, wanted: impl Fn(&[CloneRecord]) -> bool) {
        while !wanted(&self.clones().await) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Running {
    /// Asks the node to stop, and waits until it has.
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.served.await.unwrap().unwrap();
    }

    /// Asks the node to stop.
    pub(crate) fn begin_to_stop(self) -> JoinHandle<anyhow::Result<()>> {
        let _ = self.stop.send(());
        self.served
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.parse::<SocketAddr>().unwrap().port()
    }

    pub(crate) fn certify(&self, subject: &Subject) -> Identity {
        self.ca.identity(subject, HOUR, Utc::now()).unwrap()
    }

    pub(crate) async fn client(&self, identity: Identity) -> Client {
        let endpoint = transport::client_endpoint().unwrap();
        let connection = connect(&endpoint, &identity, &self.address, Purpose::Control)
            .await
            .unwrap();
        Client {
            identity,
            connection,
            endpoint,
        }
    }

    pub(crate) async fn user(&self, name: &str) -> Client {
        self.client(self.certify(&Subject::User(name.parse().unwrap())))
            .await
    }

    pub(crate) async fn admin(&self, name: &str) -> Client {
        self.client(self.certify(&Subject::Admin(name.parse().unwrap())))
            .await
    }

    /// The commands of the node's own machine.
    pub(crate) async fn operator(&self) -> Client {
        self.client(self.identity.clone()).await
    }

    pub(crate) async fn token(&self, invited: Invited) -> Token {
        let request = Request::IssueToken {
            invited,
            ttl_seconds: 3600,
        };
        let answer = self.operator().await.ask(&request).await.unwrap();
        let Answer::Token(TokenText(token)) = answer else {
            panic!("{answer:?}")
        };
        token.parse().unwrap()
    }

    /// Opens a stream to a clone's database, or says why there is none.
    pub(crate) async fn tunnel(
        &self,
        identity: &Identity,
        clone: &CloneId,
    ) -> Result<(Connection, SendStream, RecvStream), Refusal> {
        let endpoint = transport::client_endpoint().unwrap();
        let connection = connect(&endpoint, identity, &self.address, Purpose::Tunnel)
            .await
            .unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        let hello = TunnelHello {
            clone: clone.clone(),
            on_behalf_of: None,
        };
        frame::write(&mut send, &hello, REQUEST_CAP).await.unwrap();
        match frame::read(&mut receive, REPLY_CAP).await.unwrap() {
            TunnelReply::Open => Ok((connection, send, receive)),
            TunnelReply::Refused(refusal) => Err(refusal),
        }
    }

    /// Says whether bytes go to a clone's database and come back, or why not.
    pub(crate) async fn echo(&self, identity: &Identity, clone: &CloneId) -> Result<(), Refusal> {
        let (_connection, mut send, mut receive) = self.tunnel(identity, clone).await?;
        send.write_all(b"select 1").await.unwrap();
        send.finish().unwrap();
        let back = rest(&mut receive).await.unwrap();
        assert_eq!(back, b"select 1");
        Ok(())
    }
}

/// Returns what is left of a stream. Not by quinn's own `read_to_end`, which miscounts a stream whose beginning was read in
/// order.
pub(crate) async fn rest(receive: &mut RecvStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    AsyncReadExt::read_to_end(receive, &mut bytes).await?;
    Ok(bytes)
}

impl Apart {
    /// Waits until the node believes something.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&View) -> bool) {
        let mut views = self.views.clone();
        let waited = tokio::time::timeout(SOON, views.wait_for(|view| is_so(view))).await;
        if !matches!(waited, Ok(Ok(_))) {
            panic!("{what}: {:#?}", self.views.borrow());
        }
    }

    /// Ends the node as a crash does: nobody is told anything.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// Asks the node to stop, and waits until it has.
    pub(crate) async fn stop(mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Deref for Apart {
    type Target = Running;

    fn deref(&self) -> &Running {
        self.running.as_ref().unwrap()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.end();
    }
}

/// A port is free a moment after the node that had it has ended.
async fn bind(port: u16) -> io::Result<std::net::UdpSocket> {
    loop {
        match transport::bind(SocketAddr::from(([127, 0, 0, 1], port))) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => tokio::task::yield_now().await,
            bound => return bound,
        }
    }
}

/// Of the resource.
const IMAGE: &str = "postgres:15";
