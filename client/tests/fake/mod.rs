//! Small nodes over real QUIC, for the tests of the client: each says what its test wants it to say.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::fs::Permissions;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::Utc;
use quinn::{RecvStream, SendStream};
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{ClusterCa, Identity, Subject};
use zdap_proto::message::{Answer, Call, CloneState, CloneView, NodeState, NodeView, Reply, Request};
use zdap_proto::refusal::{Refusal, RefusalKind};
use zdap_proto::transport::{accept, bind, handshake, server_endpoint};

pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a node says to a request; none: nothing at all.
pub type Says = Arc<dyn Fn(Request) -> Option<Reply> + Send + Sync>;

/// A node's process; dropping it kills it: no farewell is sent.
pub struct Process {
    pub runtime: Option<tokio::runtime::Runtime>,
    pub address: String,
    pub asked: Arc<Mutex<Vec<Request>>>,
}

impl Process {
    pub fn start(ca: &ClusterCa, name: &str, says: Says) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let subject = Subject::Node(name.parse().unwrap());
        let (identity, cluster) = (
            ca.identity(&subject, DAY, Utc::now()).unwrap(),
            ca.cluster().clone(),
        );
        let socket = bind(any_port()).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        runtime.spawn(async move {
            let endpoint = server_endpoint(socket, &identity).unwrap();
            while let Some(connecting) = accept(&endpoint).await {
                let (cluster, noted, says) = (cluster.clone(), noted.clone(), says.clone());
                tokio::spawn(async move {
                    let Ok(accepted) = handshake(connecting, &cluster).await else {
                        return;
                    };
                    while let Ok((send, recv)) = accepted.connection.accept_bi().await {
                        tokio::spawn(answer(noted.clone(), says.clone(), send, recv));
                    }
                });
            }
        });
        Self {
            runtime: Some(runtime),
            address,
            asked,
        }
    }

    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(noted: Arc<Mutex<Vec<Request>>>, says: Says, mut send: SendStream, mut recv: RecvStream) {
    let Ok(Call { request, .. }) = frame::read(&mut recv, REQUEST_CAP).await else {
        return;
    };
    noted.lock().unwrap().push(request.clone());
    match says(request) {
        Some(reply) => frame::write(&mut send, &reply, REPLY_CAP).await.unwrap(),
        None => std::future::pending().await,
    }
}

pub fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub fn ca() -> ClusterCa {
    ClusterCa::found(Utc::now()).unwrap()
}

pub fn ada(ca: &ClusterCa) -> Arc<Identity> {
    let subject = Subject::User("ada@laptop".parse().unwrap());
    Arc::new(ca.identity(&subject, DAY, Utc::now()).unwrap())
}

pub fn view(name: &str, address: &str) -> NodeView {
    NodeView {
        name: name.parse().unwrap(),
        address: address.to_owned(),
        state: NodeState::Alive,
        generation: 1,
        clones: 0,
        snapshots: 0,
        free_bytes: 1 << 30,
        total_bytes: 2 << 30,
        available_memory_bytes: 1 << 30,
        total_memory_bytes: 2 << 30,
        load: 0.25,
        resources: vec!["orders".parse().unwrap()],
        version: "0.1.0".to_owned(),
    }
}

pub fn clone_view(node: &str) -> CloneView {
    CloneView {
        id: "orders-k3v9x2mq".parse().unwrap(),
        resource: "orders".parse().unwrap(),
        node: node.parse().unwrap(),
        owner: "ada@laptop".parse().unwrap(),
        snapshot: "2026-11-22T04:00:00Z".parse().unwrap(),
        created_at: "2026-11-22T13:39:25Z".parse().unwrap(),
        state: CloneState::Ready,
        pooled: false,
        expires_at: None,
    }
}

pub fn no_nodes() -> Reply {
    Reply::Done(Answer::Nodes(Vec::new()))
}

/// Refuses some requests, from when it is told to.
pub fn refusing(
    which: fn(&Request) -> bool,
) -> (
    Arc<AtomicBool>,
    impl Fn(&Request) -> Option<Reply> + Send + Sync + Clone + 'static,
) {
    let refuses = Arc::new(AtomicBool::new(false));
    let told = refuses.clone();
    let refuse = move |request: &Request| {
        let refusal = Refusal::new(RefusalKind::Failed, "the disk is on fire");
        (told.load(Ordering::Relaxed) && which(request)).then_some(Reply::Refused(refusal))
    };
    (refuses, refuse)
}

/// Keeps an identity where zdap looks for it.
pub fn keep(home: &Path, identity: &Identity) {
    let directory = home.join("clusters").join(identity.cluster().as_str());
    identity.save(&directory).unwrap();
}

/// Reads it back.
pub fn kept(home: &Path, ca: &ClusterCa) -> Identity {
    Identity::load(&home.join("clusters").join(ca.cluster().as_str())).unwrap()
}

/// Makes ada one who is enrolled in a cluster and has added these origins of it, none of which need answer.
pub fn enrol(home: &Path, ca: &ClusterCa, addresses: &[&str]) {
    std::fs::set_permissions(home, Permissions::from_mode(0o700)).unwrap(); // or zdap says that others can look into it
    keep(home, &ada(ca));
    let path = home.join("settings.json");
    let text = std::fs::read(&path).unwrap_or_else(|_| br#"{"origins": []}"#.to_vec());
    let mut settings: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let origins = settings["origins"].as_array_mut().unwrap();
    origins.extend(addresses.iter().map(|address| {
        let cluster = ca.cluster().as_str();
        serde_json::json!({"address": address, "cluster": cluster})
    }));
    std::fs::write(&path, settings.to_string()).unwrap();
}

/// An address where nobody answers for as long as the socket is held.
pub fn silent() -> (UdpSocket, String) {
    let socket = UdpSocket::bind(any_port()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

/// What zdap printed, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Returns zdap, to be run in `directory` with its settings in `home`.
pub fn command(directory: &Path, home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zdap"));
    command
        .args(arguments)
        .env_clear()
        .env("ZDAP_HOME", home)
        .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        .current_dir(directory);
    command
}

/// Runs zdap in `directory`, with its settings in `home`.
pub async fn zdap_in(directory: &Path, home: &Path, arguments: &[&str]) -> Output {
    let mut command = command(directory, home, arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

/// Runs zdap where there is no project.
pub async fn zdap(home: &Path, arguments: &[&str]) -> Output {
    zdap_in(home, home, arguments).await
}
