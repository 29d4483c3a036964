//! QUIC alone over the network in memory.

use std::time::Duration;

use chrono::Utc;
use zdap_proto::connect::connect;
use zdap_proto::identity::{ClusterCa, Subject};
use zdap_proto::transport::{self, Purpose, client_endpoint_on, server_endpoint};

use crate::network::{Network, Weather};

/// Sends 100 KB to a server, which sends it back, and returns the trace.
async fn echo(seed: u64) -> (u64, u64) {
    let network = Network::new(seed);
    network.set_weather(Weather {
        latency: (2, 20),
        loss: 0.1,
        doubled: 0.05,
        late: 0.05,
    });
    let (life, now) = (Duration::from_secs(86_400), Utc::now());
    let ca = ClusterCa::found(now).unwrap();
    let subject = |name: &str| match name {
        "a" => Subject::Node(name.parse().unwrap()),
        user => Subject::User(user.parse().unwrap()),
    };
    let [node, ada] = ["a", "ada"].map(|name| ca.identity(&subject(name), life, now).unwrap());
    let server = server_endpoint(network.bind("10.0.0.1:1".parse().unwrap()), &node).unwrap();
    let client = client_endpoint_on(network.bind("10.0.1.1:1".parse().unwrap())).unwrap();
    let cluster = ca.cluster().clone();
    tokio::spawn(async move {
        while let Some(connecting) = transport::accept(&server).await {
            let accepted = transport::handshake(connecting, &cluster).await.unwrap();
            let (mut send, mut receive) = accepted.connection.accept_bi().await.unwrap();
            tokio::io::copy(&mut receive, &mut send).await.unwrap();
            send.finish().unwrap();
            accepted.connection.closed().await;
        }
    });
    let connection = connect(&client, &ada, "10.0.0.1:1", Purpose::Control)
        .await
        .unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let sent: Vec<u8> = (0..100_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let written = sent.clone();
    tokio::spawn(async move {
        send.write_all(&written).await.unwrap();
        send.finish().unwrap();
        let _ = send.stopped().await;
    });
    let back = receive.read_to_end(1 << 20).await.unwrap();
    assert!(back == sent, "{} bytes came back", back.len());
    network.trace()
}

#[test]
fn the_same_seed_gives_the_same_packets_at_the_same_times_and_another_seed_others() {
    let traces = [1, 1, 2].map(|seed| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(echo(seed))
    });
    assert!(traces[0].1 > 150, "{traces:?}");
    assert_eq!(traces[0], traces[1]);
    assert_ne!(traces[0], traces[2]);
}
