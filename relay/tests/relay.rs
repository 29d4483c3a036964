//! The relay against a small node over real QUIC: many clients, a node that restarts, and one that says no.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::Utc;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{ClusterCa, Identity, Subject};
use zdap_proto::message::{TunnelHello, TunnelReply};
use zdap_proto::refusal::{Refusal, RefusalKind};
use zdap_proto::splice::splice;
use zdap_proto::transport::{accept, bind, handshake, server_endpoint};
use zdap_relay::config::Config;
use zdap_relay::{RelayError, ask_health, listen, run};

const DAY: Duration = Duration::from_secs(24 * 3600);
const CLONE: &str = "orders-k3v9x2mq";

/// A cluster of one node, whose one clone is `database`.
struct World {
    ca: ClusterCa,
    node: Identity,
    directory: TempDir,
    database: SocketAddr,
    sessions: Arc<AtomicUsize>,
}

impl World {
    /// Makes one whose database repeats what it is told.
    async fn with_echo() -> Self {
        Self::with_database(|mut stream| async move {
            let (mut reader, mut writer) = stream.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        })
        .await
    }

    async fn with_database<F, R>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let database = listener.local_addr().unwrap();
        let sessions = Arc::new(AtomicUsize::new(0));
        let counter = sessions.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (counter, session) = (counter.clone(), serve(stream));
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    session.await;
                    counter.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        let ca = ClusterCa::found(Utc::now()).unwrap();
        let node = ca
            .identity(&Subject::Node("db1".parse().unwrap()), DAY, Utc::now())
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let relay = Subject::Relay {
            owner: "ada".parse().unwrap(),
            clone: CLONE.parse().unwrap(),
        };
        ca.identity(&relay, DAY, Utc::now())
            .unwrap()
            .save(directory.path())
            .unwrap();
        Self {
            ca,
            node,
            directory,
            database,
            sessions,
        }
    }

    /// Starts the node, which knows `clone`, in a runtime of its own, so that it can be killed like a process.
    fn start_node(&self, address: SocketAddr, clone: &'static str) -> (Process, SocketAddr) {
        let process = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (node, cluster, database) = (self.node.clone(), self.ca.cluster().clone(), self.database);
        let socket = (0..1000)
            .find_map(|_| match bind(address) {
                Ok(socket) => Some(socket),
                Err(_) => {
                    std::thread::yield_now(); // a killed one takes a moment to let go of it
                    None
                }
            })
            .unwrap();
        let address = socket.local_addr().unwrap();
        process.spawn(async move {
            let endpoint = server_endpoint(socket, &node).unwrap();
            while let Some(connecting) = accept(&endpoint).await {
                let cluster = cluster.clone();
                tokio::spawn(async move {
                    let Ok(accepted) = handshake(connecting, &cluster).await else {
                        return;
                    };
                    while let Ok((mut send, mut recv)) = accepted.connection.accept_bi().await {
                        tokio::spawn(async move {
                            let hello: TunnelHello = frame::read(&mut recv, REQUEST_CAP).await.unwrap();
                            if hello.clone.as_str() != clone {
                                let refusal = Refusal::new(
                                    RefusalKind::NotFound,
                                    format!("no clone `{}` here", hello.clone),
                                );
                                let refused = TunnelReply::Refused(refusal.with_hint("attach again"));
                                frame::write(&mut send, &refused, REPLY_CAP).await.unwrap();
                                return;
                            }
                            let stream = TcpStream::connect(database).await.unwrap();
                            frame::write(&mut send, &TunnelReply::Open, REPLY_CAP)
                                .await
                                .unwrap();
                            let _ = splice(stream, send, recv).await;
                        });
                    }
                });
            }
        });
        (Process(Some(process)), address)
    }

    fn start_relay(&self, servers: Vec<String>) -> Relay {
        let listeners = listen(0).unwrap();
        let address = SocketAddr::from((
            Ipv4Addr::LOCALHOST,
            listeners.clients.local_addr().unwrap().port(),
        ));
        let config = Config {
            listen_port: address.port(),
            clone: CLONE.parse().unwrap(),
            servers,
            identity: self.directory.path().to_owned(),
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(run(config, listeners, async move {
            let _ = stopped.await;
        }));
        Relay { address, stop, task }
    }
}

/// A node's process; dropping it kills it: no farewell is sent.
struct Process(Option<tokio::runtime::Runtime>);

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

struct Relay {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), RelayError>>,
}

impl Relay {
    async fn echo(&self, text: &str) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address).await?;
        say(&mut stream, text).await?;
        Ok(stream)
    }

    async fn health(&self) -> Result<(), String> {
        let port = self.address.port();
        tokio::task::spawn_blocking(move || ask_health(port))
            .await
            .unwrap()
    }
}

async fn say(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    let mut heard = vec![0; text.len()];
    stream.read_exact(&mut heard).await?;
    assert_eq!(heard, text.as_bytes());
    Ok(())
}

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("this ends")
}

#[tokio::test]
async fn two_hundred_idle_connections_all_answer_and_leave_nothing_behind() {
    let world = World::with_echo().await;
    let (_node, address) = world.start_node(any_port(), CLONE);
    let relay = world.start_relay(vec![address.to_string()]);
    let mut open = Vec::new();
    for number in 0..200 {
        open.push(soon(relay.echo(&format!("hello {number}"))).await.unwrap());
    }
    assert_eq!(world.sessions.load(Ordering::Relaxed), 200);
    for stream in &mut open {
        soon(say(stream, "still there")).await.unwrap();
    }
    drop(open);
    soon(async {
        while world.sessions.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn many_quick_connections_at_once_are_all_served() {
    let world = World::with_echo().await;
    let (_node, address) = world.start_node(any_port(), CLONE);
    let relay = Arc::new(world.start_relay(vec![address.to_string()]));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..20 {
        let relay = relay.clone();
        clients.spawn(async move {
            for turn in 0..20 {
                relay.echo(&format!("{number} {turn}")).await.unwrap();
            }
        });
    }
    soon(clients.join_all()).await;
}

#[tokio::test]
async fn after_a_restart_of_the_node_new_connections_work_by_themselves() {
    let world = World::with_echo().await;
    let (node, address) = world.start_node(any_port(), CLONE);
    let relay = world.start_relay(vec![address.to_string()]);
    let mut old = soon(relay.echo("before")).await.unwrap();
    drop(node);
    let (_node, _) = world.start_node(address, CLONE);
    let began = Instant::now();
    soon(relay.echo("after")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // The old connection has lost its database and says so.
    assert!(soon(say(&mut old, "anybody?")).await.is_err());
}

#[tokio::test]
async fn a_client_waits_for_a_node_that_is_away_for_a_moment() {
    let world = World::with_echo().await;
    let (node, address) = world.start_node(any_port(), CLONE);
    let relay = world.start_relay(vec![address.to_string()]);
    soon(relay.echo("before")).await.unwrap();
    drop(node);
    let (answer, _node) = tokio::join!(soon(relay.echo("meanwhile")), async {
        tokio::time::sleep(Duration::from_millis(1500)).await; // how long the node is away is what is tried
        world.start_node(address, CLONE)
    });
    answer.unwrap();
}

#[tokio::test]
async fn a_dead_server_in_the_list_does_not_hold_up_the_others() {
    let world = World::with_echo().await;
    let (_node, address) = world.start_node(any_port(), CLONE);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let servers = vec![
        "no-such-host.invalid:1".to_owned(),
        silent.local_addr().unwrap().to_string(),
        address.to_string(),
    ];
    let relay = world.start_relay(servers);
    let began = Instant::now();
    soon(relay.echo("hello")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_postgres_client_is_told_why_its_clone_is_refused() {
    let world = World::with_echo().await;
    let (_node, address) = world.start_node(any_port(), "another-bcdfghjk");
    let relay = world.start_relay(vec![address.to_string()]);
    let heard = soon(postgres_client(relay.address)).await;
    assert!(
        heard.contains("FATAL") && heard.contains("zdap: no clone `orders-k3v9x2mq` here"),
        "{heard:?}"
    );
    assert!(heard.contains("Hattach again"), "{heard:?}");
    assert_eq!(
        relay.health().await,
        Err("no clone `orders-k3v9x2mq` here".to_owned())
    );
}

#[tokio::test]
async fn a_relay_of_another_cluster_is_told_so_at_once() {
    let (world, other) = (World::with_echo().await, World::with_echo().await);
    let (_node, address) = other.start_node(any_port(), CLONE);
    let relay = world.start_relay(vec![address.to_string()]);
    let heard = soon(postgres_client(relay.address)).await;
    assert!(heard.contains("is not a node of this cluster"), "{heard:?}");
}

/// Opens as `psql` does, and returns all that comes back.
async fn postgres_client(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'N');
    stream
        .write_all(b"\0\0\0\x12\0\x03\0\0user\0ada\0\0")
        .await
        .unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    String::from_utf8_lossy(&heard).into_owned()
}

#[tokio::test]
async fn health_is_what_the_database_says() {
    for (answer, health) in [
        (&b"R\0\0\0\x08\0\0\0\0"[..], Ok(())),
        (b"E\0\0\0\x14SFATAL\0C28000\0\0\0", Ok(())),
        (
            b"E\0\0\0\x1FSFATAL\0C57P03\0Mstarting\0\0\0\0\0",
            Err("the database does not take connections: starting".to_owned()),
        ),
        (b"", Ok(())), // says nothing: speaks another protocol
    ] {
        let world = World::with_database(move |mut stream| async move {
            let mut opening = [0; 8];
            stream.read_exact(&mut opening).await.unwrap();
            stream.write_all(answer).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let (_node, address) = world.start_node(any_port(), CLONE);
        let relay = world.start_relay(vec![address.to_string()]);
        assert_eq!(soon(relay.health()).await, health);
    }
}

#[tokio::test]
async fn a_relay_that_is_told_to_stop_stops_and_closes_its_connections() {
    let world = World::with_echo().await;
    let (_node, address) = world.start_node(any_port(), CLONE);
    let relay = world.start_relay(vec![address.to_string()]);
    let mut open = soon(relay.echo("hello")).await.unwrap();
    let began = Instant::now();
    relay.stop.send(()).unwrap();
    soon(relay.task).await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(matches!(soon(open.read(&mut [0])).await, Ok(0) | Err(_)));
    assert!(TcpStream::connect(relay.address).await.is_err());
    assert!(
        ask_health(relay.address.port())
            .unwrap_err()
            .starts_with("no relay answers on port")
    );
}

#[tokio::test]
async fn an_identity_that_is_not_there_or_that_others_can_read_is_named() {
    let world = World::with_echo().await;
    let config = |identity| Config {
        listen_port: 1,
        clone: CLONE.parse().unwrap(),
        servers: vec!["127.0.0.1:1".to_owned()],
        identity,
    };
    let gone = world.directory.path().join("gone");
    let error = run(config(gone), listen(0).unwrap(), async {}).await.unwrap_err();
    assert!(matches!(error, RelayError::Identity(_)), "{error:?}");

    use std::os::unix::fs::PermissionsExt;
    let file = world.directory.path().join("identity.pem");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = run(
        config(world.directory.path().to_owned()),
        listen(0).unwrap(),
        async {},
    )
    .await
    .unwrap_err();
    let RelayError::Identity(source) = error else {
        panic!("{error:?}")
    };
    assert_eq!(source.hint(), Some(format!("`chmod 600 {}`", file.display())));
}

#[test]
fn a_wrong_environment_ends_the_program_with_one_message_and_code_2() {
    let relay = |variables: &[(&str, &str)], arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_zdap-proxyd"))
            .env_clear()
            .envs(variables.iter().copied())
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text)
    };
    let message = "error: ZDAP_CLONE is not set; set it as in ZDAP_CLONE=orders-k3v9x2mq\n".to_owned();
    assert_eq!(relay(&[], &[]), (Some(2), message));
    let (code, text) = relay(&[("LISTEN_PORT", "x")], &["health"]);
    assert!(
        code == Some(2) && text.starts_with("error: LISTEN_PORT is `x`"),
        "{text}"
    );
    assert_eq!(relay(&[], &["frob"]).0, Some(2));
    let (code, text) = relay(&[("LISTEN_PORT", "1")], &["health"]);
    assert!(
        code == Some(1) && text.starts_with("no relay answers on port 1"),
        "{text}"
    );
}
