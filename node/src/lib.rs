//! `zdapd`: one node of the cluster.
//!
//! # Map
//! - [`cli`], [`config`]: flags and environment -> what to do
//! - [`resource`], [`quantity`]: resource files
//! - [`storage`], [`runtime`]: the two seams, each with several real implementations and one contract; [`faults`] for their fakes
//! - [`bases`], [`clones`], [`script`], [`instance`]: what is made over the seams
//! - [`reconcile`], [`retention`], [`schedule`]: pure policy, and the clock that calls it
//! - [`state`], [`invites`], [`enrol`]: who is who
//! - [`server`], [`requests`], [`tunnel`], [`relay_program`]: what peers may ask
//! - [`peers`]: what this node asks of the others
//! - [`placement`], [`reserve`]: where a clone is made; pure
//! - [`gossip`]: who is in the cluster and how each node is: sans-io, and the driver that gives it packets and time
//! - [`catalog`], [`cluster`]: what the nodes tell each other, and what this one believes of them
//! - [`node`]: what a node is made of; [`clock`]: the time of day it goes by
//! - [`admin`]: the commands of this machine, asked of the running node

pub mod admin;
pub mod bases;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod clones;
pub mod cluster;
pub mod config;
pub mod enrol;
pub mod faults;
pub mod gossip;
pub mod images;
pub mod instance;
pub mod invites;
pub mod machine;
pub mod node;
pub mod peers;
pub mod placement;
pub mod quantity;
pub mod reconcile;
pub mod refuse;
pub mod relay_program;
pub mod requests;
pub mod reserve;
pub mod resource;
pub mod retention;
pub mod runtime;
pub mod schedule;
pub mod script;
pub mod server;
pub mod state;
pub mod storage;
pub mod tunnel;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, anyhow};
use chrono::{Local, Utc};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use zdap_proto::refusal::chain;
use zdap_proto::token::Token;
use zdap_proto::transport::{self, Socket};

use crate::bases::Bases;
use crate::clock::Clock;
use crate::clones::Clones;
use crate::cluster::{Cluster, GossipSetup, View, addresses, namesake, report};
use crate::config::{Config, RuntimeKind, StorageChoice};
use crate::gossip::driver;
use crate::gossip::links::Links;
use crate::invites::Invites;
use crate::machine::Figures;
use crate::node::Node;
use crate::peers::Peers;
use crate::requests::{Located, Placing};
use crate::reserve::Reservations;
use crate::resource::watch::Watched;
use crate::runtime::Runtime;
use crate::runtime::docker::Docker;
use crate::runtime::process::Process;
use crate::state::{Membership, Origin, StateDir};
use crate::storage::directory::Directory;
use crate::storage::zfs::Zfs;
use crate::storage::{Storage, StorageError};

/// Runs a node until `shutdown` is done.
pub async fn run(
    config: Config,
    join: Option<Token>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let parts = open(&config, join).await?;
    serve(&config, parts, shutdown).await
}

/// What a node stands on. Tests put in their own.
#[derive(Debug)]
pub struct Parts {
    /// Its state directory, locked.
    pub state: StateDir,
    /// Its place in the cluster.
    pub membership: Membership,
    /// The UDP socket it serves.
    pub socket: Socket,
    /// Where other nodes reach that.
    pub address: SocketAddr,
    /// The resource files.
    pub resources: Watched,
    /// The first seam.
    pub storage: Arc<dyn Storage>,
    /// The second seam.
    pub runtime: Arc<dyn Runtime>,
    /// The time of day.
    pub clock: Clock,
    /// Memory and load of the machine.
    pub figures: Figures,
    /// How the gossip runs.
    pub gossip: GossipSetup,
}

/// Opens what the configuration names. What is wrong with it is found here, and leaves nothing behind.
pub async fn open(config: &Config, join: Option<Token>) -> anyhow::Result<Parts> {
    let state = StateDir::lock(&config.state_dir)?;
    let socket = transport::bind_any(config.api_port).with_context(|| {
        format!(
            "listen on UDP port {}; --api-port chooses another",
            config.api_port
        )
    })?;
    let address = addresses::own(&config.network_address, socket.local_addr()?.port()).await?;
    let membership = state::membership(&state, &config.node_name, join.as_ref(), Utc::now()).await?;
    match open_seams(config, &state, &membership).await {
        Ok((resources, runtime, storage)) => Ok(Parts {
            state,
            membership,
            socket: socket.into(),
            address,
            resources,
            storage,
            runtime,
            clock: Clock::Machine,
            figures: Figures::Proc,
            gossip: GossipSetup::default(),
        }),
        Err(error) => {
            // To take over another node's data, one has to know as whom.
            let is_others = matches!(error.downcast_ref(), Some(StorageError::NotOurs { .. }));
            if membership.origin == Origin::Founded && !is_others {
                state.forget_founding();
            }
            Err(error)
        }
    }
}

/// Opens the storage last: it is marked as this node's for good.
async fn open_seams(
    config: &Config,
    state: &StateDir,
    membership: &Membership,
) -> anyhow::Result<(Watched, Arc<dyn Runtime>, Arc<dyn Storage>)> {
    let owner = format!("{}/{}", membership.identity.cluster(), config.node_name);
    let resources = resource::watch::open(&config.config_dir)?;
    let runtime = open_runtime(config.runtime, state, &owner).await?;
    let storage = open_storage(&config.storage, &owner).await?;
    Ok((resources, runtime, storage))
}

/// Serves until `shutdown` is done.
pub async fn serve(
    config: &Config,
    parts: Parts,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    serve_watched(config, parts, |_| {}, shutdown).await
}

/// Does what [`serve`] does, and shows the node to `started` once it serves. Every long-lived task is started here, and has ended when this returns.
pub async fn serve_watched(
    config: &Config,
    parts: Parts,
    started: impl FnOnce(&Arc<Node>) + Send,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let Parts {
        state,
        membership,
        socket,
        address,
        resources: (watch, catalogue),
        storage,
        runtime,
        clock,
        figures,
        mut gossip,
    } = parts;
    let (stop, stopping) = watch::channel(false);
    let inventory = storage.inventory().await?;
    for what in &inventory.foreign {
        tracing::warn!("{what}: not zdap's, left alone");
    }
    let instances = runtime.instances().await?;
    let capacity = watch::Sender::new(storage.capacity().await?);
    let bases = Bases::adopt(
        Arc::clone(&storage),
        Arc::clone(&runtime),
        &inventory,
        stopping.clone(),
    );
    let clones = Clones::adopt(Arc::clone(&storage), Arc::clone(&runtime), &inventory, &instances)
        .with_names_from(StdRng::from_rng(&mut gossip.rng));
    let port = socket.local_addr()?.port();
    let contacts = cluster::remembered(state.path()).context("read where the other nodes are")?;
    let contacts = addresses::of_others(&contacts).await;
    let own_thread = gossip.own_thread;
    let rng = StdRng::from_rng(&mut gossip.rng);
    let (cluster, driver) = Cluster::open(
        state.path(),
        membership.identity.cluster().clone(),
        config.node_name.clone(),
        address,
        config.network_address.with_port(port),
        gossip,
    )?;
    let endpoint = transport::server_endpoint(socket, &membership.identity)?;
    let certified = watch::Sender::new(membership.identity.clone());
    let peers = Peers::new(endpoint.clone(), certified.subscribe(), cluster.watch());
    let node = Arc::new(Node {
        name: config.node_name.clone(),
        address: config.network_address.with_port(port),
        peers: Arc::new(peers),
        reservations: Reservations::default(),
        placing: Placing::open(state.path(), rng).context("read which clones are to be taken back")?,
        located: Located::default(),
        certified,
        is_measured: AtomicBool::new(true),
        figures,
        cluster,
        invites: Invites::load(state.invites()).context("read the invites")?,
        relay_program: relay_program::path(),
        capacity,
        ended: Notify::new(),
        bases: Arc::new(bases),
        clones: Arc::new(clones),
        identity: membership.identity,
        ca: membership.ca,
        catalogue,
        storage,
        runtime,
        clock,
    });
    let (links, opened) = Links::new(endpoint.clone(), node.certified.subscribe());
    // Before anything is put right: what looks like this node's own may be its namesake's.
    namesake::refuse(&links, &contacts, &node.name, address).await?;
    let stopped_clones = node.put_right(node.clock.now()).await;
    report::tell(&node, &mut report::Told::new(&node.cluster));
    state.publish_port(port).context("write down the port")?;
    announce(&node, membership.origin);
    let mut tasks = JoinSet::new();
    tasks.spawn(watch.run());
    tasks.spawn(Arc::clone(&node).keep_measured());
    tasks.spawn(Arc::clone(&node).stay_in_order(stopped_clones));
    tasks.spawn(Arc::clone(&node).watch_ends());
    tasks.spawn(report::keep_telling(Arc::clone(&node)));
    tasks.spawn(node.cluster.clone().keep_members());
    tasks.spawn(node.cluster.clone().keep_names());
    tasks.spawn(Arc::clone(&node.peers).stay_ready());
    tasks.spawn(requests::take_back_strays(Arc::clone(&node)));
    tasks.spawn(images::keep_present(
        Arc::clone(&node.runtime),
        node.catalogue.clone(),
    ));
    tasks.spawn(scheduled_restores(Arc::clone(&node)));
    tasks.spawn(state::stay_certified(
        Arc::clone(&node),
        endpoint.clone(),
        state.path().to_owned(),
    ));
    let server = tokio::spawn(server::serve(
        Arc::clone(&node),
        endpoint.clone(),
        links.clone(),
        opened,
        stopping,
    ));
    if !contacts.is_empty() {
        tasks.spawn(warn_if_unmet(node.cluster.watch(), node.address.clone()));
    }
    let gossip_ended = driver::start(driver, links, contacts, own_thread).context("start the gossip")?;
    started(&node);
    let ended = tokio::select! {
        biased; // so that a simulation is the same each time
        () = shutdown => Ok(()),
        _ = gossip_ended => Err(anyhow!("the gossip has ended by itself; what this node believed of the others was of no use any more")),
        error = failed(&mut tasks) => Err(error),
    };
    tracing::info!("stopping; clones keep running");
    // While requests finish here, this node is there for the others, but for new clones.
    node.cluster.begin_to_stop();
    stop.send_replace(true);
    // What a restore could not undo in this time the next start does.
    let _ = tokio::time::timeout(UNDOING, node.bases.idle()).await;
    let served = server.await.context("the server failed");
    node.cluster.leave().await;
    server::close(&endpoint).await;
    tasks.shutdown().await;
    ended.and(served)
}

/// Says so when none of the nodes that are known has been met after a while. Where this node is told to be reached at another
/// machine's address, everything else looks as if all were well.
async fn warn_if_unmet(mut views: watch::Receiver<Arc<View>>, address: String) {
    let is_met = |view: &Arc<View>| {
        let mut others = view.members.iter().filter(|(name, _)| **name != view.me);
        others.any(|(_, seen)| seen.state == gossip::MemberState::Alive)
    };
    if tokio::time::timeout(UNMET, views.wait_for(is_met)).await.is_err() {
        tracing::warn!(
            "no other node has been met within {} s: is one of them up, and do they reach this one at {address} (--network-address), UDP?",
            UNMET.as_secs()
        );
    }
}

/// Waits until one of the tasks fails; that others end does no harm.
async fn failed(tasks: &mut JoinSet<()>) -> anyhow::Error {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            return anyhow::Error::new(error).context("a part of the node failed");
        }
    }
    std::future::pending().await
}

/// Waits until the node is to stop; also when whoever would say so is gone.
pub(crate) async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

async fn open_storage(choice: &StorageChoice, owner: &str) -> anyhow::Result<Arc<dyn Storage>> {
    Ok(match choice {
        StorageChoice::Zfs(pool) => Arc::new(Zfs::open(pool.as_str(), owner).await?),
        StorageChoice::Directory { path, size } => {
            Arc::new(Directory::open(path, owner).await?.with_size(*size))
        }
    })
}

/// Docker if its engine answers, unless something was chosen; the choice and its reason are logged.
async fn open_runtime(
    choice: Option<RuntimeKind>,
    state: &StateDir,
    owner: &str,
) -> anyhow::Result<Arc<dyn Runtime>> {
    let process = || Process::open(state.path());
    Ok(match choice {
        Some(RuntimeKind::Docker) => Arc::new(Docker::connect(owner).await?),
        Some(RuntimeKind::Process) => Arc::new(process()?),
        None => match Docker::connect(owner).await {
            Ok(docker) => {
                tracing::info!("runtime: docker, since its engine answers");
                Arc::new(docker)
            }
            Err(error) => {
                tracing::info!(
                    reason = chain(&error),
                    "runtime: process, since no Docker engine answers"
                );
                Arc::new(process()?)
            }
        },
    })
}

/// Restores what is due, and lets the log say how it went.
async fn scheduled_restores(node: Arc<Node>) {
    let bases = Arc::clone(&node.bases);
    let catalogue = node.catalogue.clone();
    let clock = node.clock.clone();
    let local = move || clock.now().with_timezone(&Local);
    schedule::run(node.catalogue.clone(), local, move |name| {
        if let Some(resource) = catalogue.borrow().resources.get(&name) {
            bases.restore(resource, node.clock.now());
        }
    })
    .await;
}

fn announce(node: &Node, origin: Origin) {
    let cluster = node.identity.cluster();
    tracing::info!(node = %node.name, address = node.address, %cluster, "serving");
    match origin {
        Origin::Founded => tracing::info!(
            "founded the cluster {cluster}; `zdapd token user NAME` lets a user in, `zdapd token node` another node"
        ),
        Origin::Joined => tracing::info!("joined the cluster {cluster}"),
        Origin::Known => {}
    }
}

/// Two nodes that reach each other have met within a tenth of a second.
const UNMET: Duration = Duration::from_secs(5);
/// `spec.md`: SIGTERM lets what is under way finish for 10 s.
const UNDOING: Duration = Duration::from_secs(10);
