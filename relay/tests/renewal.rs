//! A relay whose certificate is about to end, against a node over real QUIC.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{ClusterCa, Identity, Subject};
use zdap_proto::message::{Answer, Call, Reply, Request};
use zdap_proto::transport::{Purpose, accept, bind, handshake, server_endpoint};
use zdap_relay::config::Config;
use zdap_relay::{listen, run};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// It has begun an hour before it was made, so that more than two thirds of its life are over.
const ALMOST_OVER: Duration = Duration::from_secs(60);
const CLONE: &str = "orders-k3v9x2mq";

fn relay() -> Subject {
    Subject::Relay {
        owner: "ada".parse().unwrap(),
        clone: CLONE.parse().unwrap(),
    }
}

/// Starts a node that renews certificates; returns where, and how often it was asked.
fn node(ca: &Arc<ClusterCa>) -> (String, Arc<AtomicUsize>) {
    let identity = Subject::Node("db1".parse().unwrap());
    let identity = ca.identity(&identity, DAY, Utc::now()).unwrap();
    let endpoint = server_endpoint(bind("127.0.0.1:0".parse().unwrap()).unwrap(), &identity).unwrap();
    let address = endpoint.local_addr().unwrap().to_string();
    let (ca, asked) = (ca.clone(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Some(connecting) = accept(&endpoint).await {
            let accepted = handshake(connecting, ca.cluster()).await.unwrap();
            if accepted.purpose != Purpose::Control {
                continue;
            }
            let subject = accepted.peer.unwrap().subject;
            let (mut send, mut recv) = accepted.connection.accept_bi().await.unwrap();
            let call: Call = frame::read(&mut recv, REQUEST_CAP).await.unwrap();
            let Request::Renew { public_key } = call.request else {
                panic!("{call:?}");
            };
            let certificate = ca.issue(&public_key, &subject, DAY, Utc::now()).unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let reply = Reply::Done(Answer::Certificate(certificate));
            frame::write(&mut send, &reply, REPLY_CAP).await.unwrap();
            accepted.connection.closed().await;
        }
    });
    (address, asked)
}

fn start(directory: &Path, address: String) {
    let config = Config {
        listen_port: 5432,
        clone: CLONE.parse().unwrap(),
        servers: vec![address],
        identity: directory.to_owned(),
    };
    tokio::spawn(run(config, listen(0).unwrap(), std::future::pending()));
}

#[tokio::test]
async fn a_certificate_whose_end_is_near_is_renewed_where_the_next_start_finds_it() {
    let ca = Arc::new(ClusterCa::found(Utc::now()).unwrap());
    let directory = tempfile::tempdir().unwrap();
    let first = ca.identity(&relay(), ALMOST_OVER, Utc::now()).unwrap();
    first.save(directory.path()).unwrap();
    let (address, asked) = node(&ca);
    start(directory.path(), address);
    let renewed = async {
        loop {
            let there = Identity::load(directory.path()).unwrap();
            if there.expires_at() > first.expires_at() + TimeDelta::hours(1) {
                return there;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let renewed = tokio::time::timeout(Duration::from_secs(20), renewed)
        .await
        .unwrap();
    assert_eq!(renewed.peer(), first.peer());
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_certificate_that_is_good_for_long_is_left_alone() {
    let ca = Arc::new(ClusterCa::found(Utc::now()).unwrap());
    let directory = tempfile::tempdir().unwrap();
    let first = ca.identity(&relay(), DAY, Utc::now()).unwrap();
    first.save(directory.path()).unwrap();
    let (address, asked) = node(&ca);
    start(directory.path(), address);
    tokio::time::sleep(Duration::from_millis(300)).await; // nothing happens, which takes a while to see
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}
