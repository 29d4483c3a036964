//! Real QUIC on loopback: who gets in, who does not, and what they are told.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod cluster;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use quinn::{Connection, ConnectionError, Endpoint};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zdap_proto::connect::{ConnectError, connect, connect_for_enrol, explain};
use zdap_proto::identity::{Identity, IdentityError, Subject};
use zdap_proto::token::Token;
use zdap_proto::transport::{self, AcceptError, Accepted, Purpose, bind, client_endpoint, server_endpoint};

use crate::cluster::{Cluster, ada, soon};

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
    connected.unwrap();
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
    for purpose in [Purpose::Control, Purpose::Tunnel, Purpose::Gossip] {
        let (server, _) = cluster.serve(&cluster.node());
        let (connecting, _client) = knock(&cluster, &server, stranger(&cluster, None, purpose.alpn()));
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
    let config = stranger(&ours, Some(&theirs.user()), Purpose::Control.alpn());
    let (connecting, _client) = knock(&ours, &server, config);
    let (connected, admitted) = tokio::join!(
        async { connecting.await.unwrap().closed().await },
        ours.admit(&server)
    );
    assert!(matches!(admitted, Err(AcceptError::Handshake(_))), "{admitted:?}");
    let error = explain("db1", connected);
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
    assert!(error.is_definite());
}

#[tokio::test]
async fn the_gossip_is_for_nodes_only() {
    let cluster = Cluster::found();
    let (connected, admitted) = meet(&cluster, &cluster.node(), &cluster.user(), Purpose::Gossip).await;
    assert!(matches!(admitted, Err(AcceptError::NotANode(_))), "{admitted:?}");
    let error = connected.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("the cluster's gossip is for nodes only")
            && error.is_definite(),
        "{error}"
    );
    let (node, (server, address)) = (cluster.node(), cluster.serve(&cluster.node()));
    let client = client_endpoint().unwrap();
    let (connected, admitted) = tokio::join!(
        connect(&client, &node, &address, Purpose::Gossip),
        cluster.admit(&server)
    );
    let (connected, admitted) = (connected.unwrap(), admitted.unwrap());
    assert_eq!(connected.max_datagram_size(), Some(1162));
    connected.send_datagram(vec![7; 1162].into()).unwrap();
    let packet = admitted.connection.read_datagram().await.unwrap();
    assert_eq!(packet.len(), 1162);
    assert_eq!(transport::peer(&connected), Some(cluster.node().peer().clone()));
}

/// A client of another make: trusts the nodes of `cluster`, shows `identity` without looking at it, or nothing.
fn stranger(cluster: &Cluster, identity: Option<&Identity>, alpn: &[u8]) -> quinn::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cluster.ca.certificate_der().to_vec().into()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let directory = tempfile::tempdir().unwrap();
            identity.save(directory.path()).unwrap();
            let pem = std::fs::read(directory.path().join("identity.pem")).unwrap();
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            let key = PrivateKeyDer::from_pem_slice(&pem).unwrap();
            builder.with_client_auth_cert(chain.unwrap(), key).unwrap()
        }
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    quinn::ClientConfig::new(Arc::new(crypto))
}

/// Lets such a client knock at `server`.
fn knock(cluster: &Cluster, server: &Endpoint, config: quinn::ClientConfig) -> (quinn::Connecting, Endpoint) {
    let client = Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let name = format!("node.{}.zdap", cluster.ca.cluster());
    let connecting = client
        .connect_with(config, server.local_addr().unwrap(), &name)
        .unwrap();
    (connecting, client)
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
        let identity = cluster.identity(ada(), made);
        let config = stranger(&cluster, Some(&identity), Purpose::Control.alpn());
        let (connecting, _client) = knock(&cluster, &server, config);
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
    let (connecting, _client) = knock(&cluster, &server, stranger(&cluster, None, b"zdap/2"));
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

#[tokio::test(start_paused = true)]
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
    let cluster = Arc::new(Cluster::found());
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
    // Dead before the connection is dropped: nobody is left to say goodbye.
    let dead = tokio::task::spawn_blocking(move || process.shutdown_timeout(Duration::from_secs(10)));
    dead.await.unwrap();
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
