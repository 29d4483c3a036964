//! A cluster of one node on loopback, for the tests.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use quinn::Endpoint;
use zdap_proto::identity::{ClusterCa, Identity, Subject};
use zdap_proto::transport::{AcceptError, Accepted, accept, bind, handshake, server_endpoint};

const DAY: Duration = Duration::from_secs(24 * 3600);

pub struct Cluster {
    pub ca: ClusterCa,
}

impl Cluster {
    pub fn found() -> Self {
        Self {
            ca: ClusterCa::found(Utc::now() - TimeDelta::days(900)).unwrap(),
        }
    }

    pub fn identity(&self, subject: Subject, now: DateTime<Utc>) -> Identity {
        self.ca.identity(&subject, DAY, now).unwrap()
    }

    pub fn node(&self) -> Identity {
        self.identity(Subject::Node("db1".parse().unwrap()), Utc::now())
    }

    pub fn user(&self) -> Identity {
        self.identity(ada(), Utc::now())
    }

    /// Starts a node, and returns where it listens.
    pub fn serve(&self, identity: &Identity) -> (Endpoint, String) {
        let socket = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let endpoint = server_endpoint(socket, identity).unwrap();
        let address = endpoint.local_addr().unwrap().to_string();
        (endpoint, address)
    }

    pub async fn admit(&self, endpoint: &Endpoint) -> Result<Accepted, AcceptError> {
        handshake(accept(endpoint).await.unwrap(), self.ca.cluster()).await
    }
}

pub fn ada() -> Subject {
    Subject::User("ada@laptop+1".parse().unwrap())
}

/// Waits for what comes in a moment unless something is wrong.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("this ends")
}
