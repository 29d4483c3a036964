//! The ways of a tunnel over real QUIC: the clone's own node first, another where that does not answer, and back.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod cluster;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use quinn::{RecvStream, SendStream};
use tokio::sync::Notify;
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{Identity, Subject};
use zdap_proto::message::{TunnelHello, TunnelReply};
use zdap_proto::refusal::{Refusal, RefusalKind};
use zdap_proto::transport::{accept, bind, client_endpoint, handshake, server_endpoint};
use zdap_proto::tunnel::{Tunnel, TunnelError};

use crate::cluster::{Cluster, soon};

/// What a node says to who wants the clone.
#[derive(Debug, Clone, Copy)]
enum Says {
    /// Its own letter, and then whatever it hears.
    Letter(u8),
    /// The same, once it has found out whether it reaches the clone's node, which takes seconds.
    LetterAtLast(u8),
    /// That it cannot reach the clone's node.
    Unavailable,
}

/// A node's process; dropping it kills it: no farewell is sent.
struct Process {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
    /// When the certificates end that its connections were opened with.
    ends: Arc<Mutex<Vec<i64>>>,
    asked: Arc<Notify>,
}

impl Process {
    fn start(cluster: &Cluster, address: SocketAddr, says: Says) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let socket = (0..100_000).find_map(|_| match bind(address) {
            Ok(socket) => Some(socket),
            Err(_) => {
                std::thread::yield_now(); // a killed one takes a moment to let go of it
                None
            }
        });
        let socket = socket.unwrap();
        let address = socket.local_addr().unwrap();
        let (identity, name) = (cluster.node(), cluster.ca.cluster().clone());
        let (ends, asked) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        let (noted, told) = (ends.clone(), asked.clone());
        runtime.spawn(async move {
            let endpoint = server_endpoint(socket, &identity).unwrap();
            while let Some(connecting) = accept(&endpoint).await {
                let (name, noted, told) = (name.clone(), noted.clone(), told.clone());
                tokio::spawn(async move {
                    let Ok(accepted) = handshake(connecting, &name).await else {
                        return;
                    };
                    noted
                        .lock()
                        .unwrap()
                        .push(accepted.valid_until.unwrap().timestamp());
                    while let Ok((send, recv)) = accepted.connection.accept_bi().await {
                        told.notify_one();
                        tokio::spawn(answer(says, send, recv));
                    }
                });
            }
        });
        Self {
            runtime: Some(runtime),
            address,
            ends,
            asked,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(says: Says, mut send: SendStream, mut recv: RecvStream) {
    let _: TunnelHello = frame::read(&mut recv, REQUEST_CAP).await.unwrap();
    if let Says::LetterAtLast(_) = says {
        tokio::time::sleep(Duration::from_secs(3)).await; // what this is about
    }
    match says {
        Says::Letter(letter) | Says::LetterAtLast(letter) => {
            frame::write(&mut send, &TunnelReply::Open, REPLY_CAP)
                .await
                .unwrap();
            send.write_all(&[letter]).await.unwrap();
            let _ = tokio::io::copy(&mut recv, &mut send).await;
        }
        Says::Unavailable => {
            let refusal = Refusal::new(RefusalKind::Unavailable, "db1 cannot be reached from here");
            let refused = TunnelReply::Refused(refusal);
            frame::write(&mut send, &refused, REPLY_CAP).await.unwrap();
            let _ = send.finish();
            let _ = send.stopped().await;
        }
    }
}

/// A connection to the database, and through which node.
struct Session {
    letter: u8,
    send: SendStream,
    recv: RecvStream,
}

impl Session {
    async fn open(tunnel: &Tunnel) -> Self {
        let (send, mut recv) = soon(tunnel.open()).await.unwrap();
        let mut letter = [0];
        soon(recv.read_exact(&mut letter)).await.unwrap();
        Self {
            letter: letter[0],
            send,
            recv,
        }
    }

    async fn is_alive(&mut self) -> bool {
        let mut heard = [0; 5];
        self.send.write_all(b"hello").await.is_ok()
            && soon(self.recv.read_exact(&mut heard)).await.is_ok()
            && heard == *b"hello"
    }
}

fn tunnel(identity: Identity, servers: &[SocketAddr]) -> Tunnel {
    Tunnel::new(
        client_endpoint().unwrap(),
        identity,
        servers.iter().map(ToString::to_string).collect(),
        "orders-k3v9x2mq".parse().unwrap(),
    )
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Somewhere that takes packets and says nothing, like a firewall.
fn silent() -> (std::net::UdpSocket, SocketAddr) {
    let socket = std::net::UdpSocket::bind(any_port()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test]
async fn the_clones_own_node_is_taken_where_it_answers() {
    let cluster = Cluster::found();
    let owner = Process::start(&cluster, any_port(), Says::Letter(b'o'));
    let other = Process::start(&cluster, any_port(), Says::Letter(b'x'));
    let tunnel = tunnel(cluster.user(), &[owner.address, other.address]);
    assert_eq!(Session::open(&tunnel).await.letter, b'o');
    assert!(other.ends.lock().unwrap().is_empty(), "nobody has bothered it");
}

#[tokio::test]
async fn where_the_direct_way_is_closed_another_node_is_taken_within_a_second() {
    let cluster = Cluster::found();
    let (_firewalls, closed): (Vec<_>, Vec<_>) = (0..3).map(|_| silent()).unzip();
    let other = Process::start(&cluster, any_port(), Says::Letter(b'x'));
    let servers = [closed.as_slice(), &[other.address]].concat();
    let begun = Instant::now();
    let tunnel = tunnel(cluster.user(), &servers);
    assert_eq!(Session::open(&tunnel).await.letter, b'x');
    assert!(begun.elapsed() < SECOND_AND_SOME, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_direct_way_that_opens_is_taken_by_new_connections_and_old_ones_stay() {
    let cluster = Cluster::found();
    let (firewall, closed) = silent();
    let other = Process::start(&cluster, any_port(), Says::Letter(b'x'));
    let tunnel = tunnel(cluster.user(), &[closed, other.address]);
    let mut old = Session::open(&tunnel).await;
    assert_eq!(old.letter, b'x');

    drop(firewall);
    let owner = Process::start(&cluster, closed, Says::Letter(b'o'));
    let direct = async {
        while Session::open(&tunnel).await.letter != b'o' {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(direct).await;
    assert!(old.is_alive().await);
    assert_eq!(Session::open(&tunnel).await.letter, b'o');

    // And there once more, when that way closes in the middle.
    drop(owner);
    let begun = Instant::now();
    assert_eq!(Session::open(&tunnel).await.letter, b'x');
    assert!(begun.elapsed() < SECOND_AND_SOME, "{:?}", begun.elapsed());
    assert!(old.is_alive().await);
}

#[tokio::test]
async fn a_node_that_does_not_reach_the_clones_own_is_left_for_the_next() {
    let cluster = Cluster::found();
    let (_firewall, closed) = silent();
    let cut_off = Process::start(&cluster, any_port(), Says::Unavailable);
    let other = Process::start(&cluster, any_port(), Says::Letter(b'x'));
    let tunnel = tunnel(cluster.user(), &[closed, cut_off.address, other.address]);
    assert_eq!(Session::open(&tunnel).await.letter, b'x');
    soon(cut_off.asked.notified()).await;
}

#[tokio::test]
async fn a_node_that_takes_seconds_to_answer_is_not_taken_for_dead() {
    let cluster = Cluster::found();
    let slow = Process::start(&cluster, any_port(), Says::LetterAtLast(b'x'));
    let tunnel = tunnel(cluster.user(), &[slow.address]);
    assert_eq!(Session::open(&tunnel).await.letter, b'x');
    assert_eq!(slow.ends.lock().unwrap().len(), 1, "connections");
}

#[tokio::test]
async fn what_a_node_has_last_said_is_why_there_is_no_connection_in_the_end() {
    let cluster = Cluster::found();
    let node = Process::start(&cluster, any_port(), Says::Unavailable);
    let tunnel = tunnel(cluster.user(), &[node.address]);
    let error = tunnel.open().await.unwrap_err();
    let TunnelError::Refused(refusal) = error else {
        panic!("{error}");
    };
    assert_eq!(refusal.kind, RefusalKind::Unavailable);
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_by_new_connections_and_old_ones_stay() {
    let cluster = Cluster::found();
    let owner = Process::start(&cluster, any_port(), Says::Letter(b'o'));
    let first = cluster.user();
    let subject = Subject::User("ada@laptop+1".parse().unwrap());
    let second = cluster.identity(subject, Utc::now() + TimeDelta::hours(1));
    let ends = [first.expires_at().timestamp(), second.expires_at().timestamp()];
    let tunnel = tunnel(first, &[owner.address]);
    let mut old = Session::open(&tunnel).await;
    tunnel.renew(second);
    let renewed = async {
        while *owner.ends.lock().unwrap() != ends {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(renewed).await;
    assert!(old.is_alive().await);
    assert!(Session::open(&tunnel).await.is_alive().await);
}

/// What the tunnel promises, and as much again for a machine that has other things to do.
const SECOND_AND_SOME: Duration = Duration::from_secs(2);
