//! Real QUIC on loopback: who gets in, who does not and what they are told, and the splice.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zdap_proto::connect::{ConnectError, connect, connect_for_enrol, explain};
use zdap_proto::identity::{ClusterCa, Identity, IdentityError, Subject};
use zdap_proto::splice::{Side, SpliceError, Spliced, splice};
use zdap_proto::token::Token;
use zdap_proto::transport::{
    self, AcceptError, Accepted, Purpose, accept, bind, client_endpoint, handshake, server_endpoint,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

struct Cluster {
    ca: ClusterCa,
}

impl Cluster {
    fn found() -> Self {
        Self {
            ca: ClusterCa::found(Utc::now() - TimeDelta::days(900)).unwrap(),
        }
    }

    fn identity(&self, subject: Subject, now: DateTime<Utc>) -> Identity {
        self.ca.identity(&subject, DAY, now).unwrap()
    }

    fn node(&self) -> Identity {
        self.identity(Subject::Node("db1".parse().unwrap()), Utc::now())
    }

    fn user(&self) -> Identity {
        self.identity(ada(), Utc::now())
    }

    /// Starts a node, and returns where it listens.
    fn serve(&self, identity: &Identity) -> (Endpoint, String) {
        let socket = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let endpoint = server_endpoint(socket, identity).unwrap();
        let address = endpoint.local_addr().unwrap().to_string();
        (endpoint, address)
    }

    async fn admit(&self, endpoint: &Endpoint) -> Result<Accepted, AcceptError> {
        handshake(accept(endpoint).await.unwrap(), self.ca.cluster()).await
    }
}

fn ada() -> Subject {
    Subject::User("ada@laptop+1".parse().unwrap())
}

/// Lets `identity` connect and returns how that went at both ends.
async fn meet(
    cluster: &Cluster,
    node: &Identity,
    identity: &Identity,
    purpose: Purpose,
) -> (Result<Connection, ConnectError>, Result<Accepted, AcceptError>) {
    let (server, address) = cluster.serve(node);
    let client = client_endpoint().unwrap();
    let (connected, admitted) = tokio::join!(
        async {
            // The client is through before the node has seen its certificate: the end of the connection tells.
            let connection = connect(&client, identity, &address, purpose).await?;
            match tokio::time::timeout(Duration::from_millis(300), connection.closed()).await {
                Ok(error) => Err(explain(&address, error)),
                Err(_) => Ok(connection),
            }
        },
        cluster.admit(&server)
    );
    (connected, admitted)
}

#[tokio::test]
async fn a_user_gets_in_and_is_known_by_name() {
    let cluster = Cluster::found();
    let (connected, admitted) = meet(&cluster, &cluster.node(), &cluster.user(), Purpose::Tunnel).await;
    let admitted = admitted.unwrap();
    assert_eq!(admitted.purpose, Purpose::Tunnel);
    assert_eq!(admitted.peer.unwrap().subject, ada());
    assert!(admitted.valid_until.unwrap() > Utc::now());
    let node = transport::peer(&connected.unwrap()).unwrap();
    assert_eq!(node.subject, Subject::Node("db1".parse().unwrap()));
}

#[tokio::test]
async fn a_newcomer_with_a_token_reaches_the_node_and_nothing_but_enrolment() {
    let cluster = Cluster::found();
    let (server, address) = cluster.serve(&cluster.node());
    let client = client_endpoint().unwrap();
    // The first address is dead: 240.0.0.0/4 is reserved.
    let token = Token::new(
        vec!["240.0.0.1:1".to_owned(), address],
        cluster.ca.fingerprint(),
        false,
    );
    let (connected, admitted) = tokio::join!(connect_for_enrol(&client, &token), cluster.admit(&server));
    connected.unwrap();
    let admitted = admitted.unwrap();
    assert_eq!((admitted.purpose, admitted.peer), (Purpose::Enrol, None));
}

#[tokio::test]
async fn a_token_of_another_cluster_trusts_no_node_of_this_one() {
    let cluster = Cluster::found();
    let (server, address) = cluster.serve(&cluster.node());
    let client = client_endpoint().unwrap();
    let token = Token::new(vec![address], Cluster::found().ca.fingerprint(), false);
    let (connected, admitted) = tokio::join!(connect_for_enrol(&client, &token), cluster.admit(&server));
    assert!(
        matches!(connected, Err(ConnectError::OtherCluster(_))),
        "{connected:?}"
    );
    assert!(matches!(admitted, Err(AcceptError::Handshake(_))));
}

#[tokio::test]
async fn nobody_without_a_certificate_gets_past_enrolment() {
    let cluster = Cluster::found();
    for purpose in [Purpose::Control, Purpose::Tunnel] {
        let (server, _) = cluster.serve(&cluster.node());
        let client = Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let connecting = client
            .connect_with(
                anonymous(&cluster, purpose),
                server.local_addr().unwrap(),
                &format!("node.{}.zdap", cluster.ca.cluster()),
            )
            .unwrap();
        let (connected, admitted) = tokio::join!(connecting, cluster.admit(&server));
        assert!(matches!(admitted, Err(AcceptError::Anonymous)), "{admitted:?}");
        let error = explain("db1", connected.unwrap().closed().await);
        assert_eq!(
            error.to_string(),
            "db1 closed the connection: a certificate of this cluster is needed: enrol first"
        );
        assert!(error.is_definite());
    }
}

/// A TLS client that shows no certificate, whatever it wants.
fn anonymous(cluster: &Cluster, purpose: Purpose) -> quinn::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cluster.ca.certificate_der().to_vec().into()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![purpose.alpn().to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    quinn::ClientConfig::new(std::sync::Arc::new(crypto))
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_at_both_ends() {
    let (ours, theirs) = (Cluster::found(), Cluster::found());
    let (connected, admitted) = meet(&ours, &ours.node(), &theirs.user(), Purpose::Control).await;
    assert!(
        matches!(connected, Err(ConnectError::OtherCluster(_))),
        "{connected:?}"
    );
    assert!(matches!(admitted, Err(AcceptError::Handshake(_))));

    // One that trusts the node all the same is refused by the node.
    let (server, _) = ours.serve(&ours.node());
    let client = Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let config = stranger(&ours, &theirs.user());
    let name = format!("node.{}.zdap", ours.ca.cluster());
    let connecting = client
        .connect_with(config, server.local_addr().unwrap(), &name)
        .unwrap();
    let (connected, admitted) = tokio::join!(
        async { connecting.await.unwrap().closed().await },
        ours.admit(&server)
    );
    assert!(matches!(admitted, Err(AcceptError::Handshake(_))), "{admitted:?}");
    let error = explain("db1", connected);
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
    assert!(error.is_definite());
}

/// A TLS client that trusts `cluster` and shows an identity of its own.
fn stranger(cluster: &Cluster, identity: &Identity) -> quinn::ClientConfig {
    let directory = tempfile::tempdir().unwrap();
    identity.save(directory.path()).unwrap();
    let pem = std::fs::read(directory.path().join("identity.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cluster.ca.certificate_der().to_vec().into()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    use rustls::pki_types::pem::PemObject;
    let chain = rustls::pki_types::CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(&pem).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![Purpose::Control.alpn().to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    quinn::ClientConfig::new(std::sync::Arc::new(crypto))
}

#[tokio::test]
async fn who_is_not_a_node_cannot_pass_for_one() {
    let cluster = Cluster::found();
    let (connected, _) = meet(&cluster, &cluster.user(), &cluster.user(), Purpose::Control).await;
    assert!(
        matches!(connected, Err(ConnectError::NotANode(_))),
        "{connected:?}"
    );
}

#[tokio::test]
async fn an_expired_certificate_is_named_with_both_times_before_anything_is_sent() {
    let cluster = Cluster::found();
    let expired = cluster.identity(ada(), Utc::now() - TimeDelta::days(2));
    let error = connect(
        &client_endpoint().unwrap(),
        &expired,
        "127.0.0.1:1",
        Purpose::Control,
    )
    .await
    .unwrap_err();
    let ConnectError::Identity(IdentityError::Expired { at, now, .. }) = &error else {
        panic!("{error:?}")
    };
    assert!(at < now);

    let early = cluster.identity(ada(), Utc::now() + TimeDelta::days(2));
    let error = connect(
        &client_endpoint().unwrap(),
        &early,
        "127.0.0.1:1",
        Purpose::Control,
    )
    .await
    .unwrap_err();
    let ConnectError::Identity(IdentityError::NotYetValid { from, now, .. }) = &error else {
        panic!("{error:?}")
    };
    assert!(from > now);
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_the_node_too() {
    let cluster = Cluster::found();
    for made in [Utc::now() - TimeDelta::days(2), Utc::now() + TimeDelta::days(2)] {
        let (server, _) = cluster.serve(&cluster.node());
        let client = Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let config = stranger(&cluster, &cluster.identity(ada(), made));
        let name = format!("node.{}.zdap", cluster.ca.cluster());
        let connecting = client
            .connect_with(config, server.local_addr().unwrap(), &name)
            .unwrap();
        let (connected, admitted) = tokio::join!(
            async { connecting.await.unwrap().closed().await },
            cluster.admit(&server)
        );
        assert!(matches!(admitted, Err(AcceptError::Handshake(_))));
        let error = explain("db1", connected);
        assert!(error.to_string().contains("clock"), "{error}");
    }
}

#[tokio::test]
async fn a_node_whose_certificate_is_over_or_has_not_begun_is_named_with_both_times() {
    let cluster = Cluster::found();
    for (made, words) in [
        (Utc::now() - TimeDelta::days(2), "expired at"),
        (Utc::now() + TimeDelta::days(2), "is not valid before"),
    ] {
        let node = cluster.identity(Subject::Node("db1".parse().unwrap()), made);
        let (connected, _) = meet(&cluster, &node, &cluster.user(), Purpose::Control).await;
        let error = connected.unwrap_err();
        assert!(matches!(error, ConnectError::Dates { .. }), "{error:?}");
        assert!(
            error.to_string().contains(words) && error.to_string().contains("clock says"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn another_version_of_the_protocol_is_named() {
    let cluster = Cluster::found();
    let (server, address) = cluster.serve(&cluster.node());
    let client = Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cluster.ca.certificate_der().to_vec().into()).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_root_certificates(roots)
    .with_no_client_auth();
    tls.alpn_protocols = vec![b"zdap/2".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(std::sync::Arc::new(crypto));
    let name = format!("node.{}.zdap", cluster.ca.cluster());
    let connecting = client
        .connect_with(config, server.local_addr().unwrap(), &name)
        .unwrap();
    let connected = tokio::select! {
        connected = connecting => connected,
        admitted = cluster.admit(&server) => panic!("{admitted:?}"),
    };
    let error = explain(&address, connected.unwrap_err());
    assert!(matches!(error, ConnectError::OtherVersion(_)), "{error:?}");
}

#[tokio::test]
async fn an_address_that_is_none_or_that_nobody_has_is_named() {
    let (cluster, client) = (Cluster::found(), client_endpoint().unwrap());
    for address in ["", "db1", "db1:", ":1", "db1:99999", "::1:5", "a b:c"] {
        let error = connect(&client, &cluster.user(), address, Purpose::Control)
            .await
            .unwrap_err();
        assert!(
            matches!(error, ConnectError::Address(_)),
            "{address:?}: {error:?}"
        );
    }
    let error = connect(
        &client,
        &cluster.user(),
        "no-such-host.invalid:1",
        Purpose::Control,
    )
    .await
    .unwrap_err();
    assert!(matches!(error, ConnectError::Unresolved { .. }), "{error:?}");
}

#[tokio::test]
async fn silence_is_named_with_the_address() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let error = connect(
        &client_endpoint().unwrap(),
        &Cluster::found().user(),
        &address,
        Purpose::Control,
    )
    .await
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no answer from {address} within 5 s (UDP)")
    );
}

#[tokio::test]
async fn a_restarted_node_tells_its_old_peers_that_it_knows_them_no_more() {
    let cluster = std::sync::Arc::new(Cluster::found());
    let identity = cluster.node();
    // In a runtime of its own, to die as a process does that is killed: without a farewell.
    let process = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (server, address) = {
        let _inside = process.enter();
        cluster.serve(&identity)
    };
    let socket: SocketAddr = address.parse().unwrap();
    let admitting = cluster.clone();
    let admitted = process.spawn(async move {
        let admitted = admitting.admit(&server).await;
        (admitted, server)
    });
    let (client, user) = (client_endpoint().unwrap(), cluster.user());
    let connection = connect(&client, &user, &address, Purpose::Tunnel).await.unwrap();
    let admitted = admitted.await.unwrap();
    process.shutdown_background();
    drop(admitted);
    let revived = soon(async {
        loop {
            match bind(socket) {
                Ok(socket) => break server_endpoint(socket, &identity).unwrap(),
                Err(_) => tokio::task::yield_now().await, // the dead take a moment to let go of it
            }
        }
    })
    .await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&[0; 100]).await.unwrap();
    let error = soon(connection.closed()).await;
    assert!(matches!(error, ConnectionError::Reset), "{error:?}");
    drop(revived);
}

/// Two TCP connections with a splice at each end of a QUIC stream between them.
struct Path {
    client: TcpStream,
    database: TcpStream,
    client_splice: tokio::task::JoinHandle<Result<Spliced, SpliceError>>,
    database_splice: tokio::task::JoinHandle<Result<Spliced, SpliceError>>,
    _ends: (Connection, Accepted, Endpoint, Endpoint),
}

async fn path() -> Path {
    let cluster = Cluster::found();
    let (server, address) = cluster.serve(&cluster.node());
    let endpoint = client_endpoint().unwrap();
    let user = cluster.user();
    let (connected, admitted) = tokio::join!(
        connect(&endpoint, &user, &address, Purpose::Tunnel),
        cluster.admit(&server)
    );
    let (connection, admitted) = (connected.unwrap(), admitted.unwrap());
    let (mut send, recv) = connection.open_bi().await.unwrap();
    send.write_all(b"!").await.unwrap(); // a stream is there for the other end once something comes
    let (other_send, mut other_recv) = admitted.connection.accept_bi().await.unwrap();
    let mut first = [0];
    other_recv.read_exact(&mut first).await.unwrap();
    let (client, client_splice) = tcp_spliced(send, recv).await;
    let (database, database_splice) = tcp_spliced(other_send, other_recv).await;
    Path {
        client,
        database,
        client_splice,
        database_splice,
        _ends: (connection, admitted, endpoint, server),
    }
}

async fn tcp_spliced(
    send: SendStream,
    recv: RecvStream,
) -> (TcpStream, tokio::task::JoinHandle<Result<Spliced, SpliceError>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (ours, accepted) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (
        ours.unwrap(),
        tokio::spawn(splice(accepted.unwrap().0, send, recv)),
    )
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("this ends")
}

#[tokio::test]
async fn each_direction_ends_for_itself() {
    for client_first in [true, false] {
        let mut path = path().await;
        let (first, second) = match client_first {
            true => (&mut path.client, &mut path.database),
            false => (&mut path.database, &mut path.client),
        };
        first.write_all(b"question").await.unwrap();
        first.shutdown().await.unwrap();
        let mut heard = String::new();
        soon(second.read_to_string(&mut heard)).await.unwrap();
        assert_eq!(heard, "question");
        // The other way is still open.
        second.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        soon(first.read_exact(&mut answer)).await.unwrap();
        second.shutdown().await.unwrap();
        assert_eq!(soon(first.read(&mut answer)).await.unwrap(), 0);
        let (there, back) = (8, 6);
        let (to, from) = if client_first {
            (there, back)
        } else {
            (back, there)
        };
        let spliced = soon(path.client_splice).await.unwrap().unwrap();
        assert_eq!(
            spliced,
            Spliced {
                bytes_to_stream: to,
                bytes_from_stream: from
            }
        );
        soon(path.database_splice).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn megabytes_in_both_directions_at_once_are_exact() {
    let path = path().await;
    let (mut client_read, mut client_write) = path.client.into_split();
    let (mut database_read, mut database_write) = path.database.into_split();
    let (up, down) = (pattern(5_000_003, 1), pattern(7_000_001, 2));
    let (mut up_heard, mut down_heard) = (Vec::new(), Vec::new());
    let (sent_up, sent_down) = (up.clone(), down.clone());
    soon(async {
        tokio::join!(
            async move { client_write.write_all(&sent_up).await.unwrap() },
            async move { database_write.write_all(&sent_down).await.unwrap() },
            async { database_read.read_to_end(&mut up_heard).await.unwrap() },
            async { client_read.read_to_end(&mut down_heard).await.unwrap() },
        )
    })
    .await;
    assert!(up == up_heard && down == down_heard);
    soon(path.client_splice).await.unwrap().unwrap();
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed);
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

#[tokio::test]
async fn a_reset_at_one_end_is_a_reset_at_the_other() {
    for client_resets in [true, false] {
        let mut path = path().await;
        path.client.write_all(b"x").await.unwrap();
        let mut byte = [0];
        soon(path.database.read_exact(&mut byte)).await.unwrap();
        let (resetting, mut other, resetting_splice, other_splice) = match client_resets {
            true => (
                path.client,
                path.database,
                path.client_splice,
                path.database_splice,
            ),
            false => (
                path.database,
                path.client,
                path.database_splice,
                path.client_splice,
            ),
        };
        resetting.set_zero_linger().unwrap();
        drop(resetting);
        let error = soon(other.read(&mut byte)).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(
            soon(resetting_splice).await.unwrap().unwrap_err().side,
            Side::Local
        );
        assert_eq!(soon(other_splice).await.unwrap().unwrap_err().side, Side::Stream);
    }
}

#[tokio::test]
async fn last_words_arrive_although_the_speaker_listens_no_more() {
    let mut path = path().await;
    // As a server that refuses a client: it says why and closes, with things unread.
    path.client.write_all(&[7; 1000]).await.unwrap();
    path.database.readable().await.unwrap();
    path.database.write_all(b"FATAL: go away").await.unwrap();
    path.database.shutdown().await.unwrap();
    let mut heard = String::new();
    soon(path.client.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "FATAL: go away");
    drop(path.database); // unread bytes: this is a reset
    drop(path.client);
    let _ = soon(path.client_splice).await.unwrap();
    let _ = soon(path.database_splice).await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_connection_ends_the_splice() {
    let mut path = path().await;
    transport::Close::Stopping.connection(&path._ends.0, "the end");
    let mut byte = [0];
    assert!(soon(path.client.read(&mut byte)).await.is_err());
    assert!(soon(path.database.read(&mut byte)).await.is_err());
    assert_eq!(
        soon(path.client_splice).await.unwrap().unwrap_err().side,
        Side::Stream
    );
}
