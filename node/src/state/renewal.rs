//! Keeps a node's own certificate from ending while the node runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use quinn::Endpoint;
use tokio::sync::watch;
use zdap_proto::identity::{ClusterCa, Identity};
use zdap_proto::transport;

use super::CERTIFICATE_LIFE;
use crate::node::Node;

/// Renews the node's certificate at two thirds of its life, on the disk, on the endpoint and for its own connections, until
/// dropped.
pub async fn stay_certified(node: Arc<Node>, endpoint: Endpoint, state_dir: PathBuf) {
    renew_in_time(&node.ca, &node.certified, &endpoint, &state_dir, CERTIFICATE_LIFE).await;
}

/// Returns from when on a certificate that was made for `life` is to be renewed.
pub(super) fn due(identity: &Identity, life: Duration) -> DateTime<Utc> {
    let third = TimeDelta::from_std(life / 3).unwrap_or_default();
    identity.expires_at() - third
}

async fn renew_in_time(
    ca: &ClusterCa,
    certified: &watch::Sender<Identity>,
    endpoint: &Endpoint,
    state_dir: &Path,
    life: Duration,
) {
    loop {
        let identity = certified.borrow().clone();
        let left = (due(&identity, life) - Utc::now()).to_std().unwrap_or_default();
        if !left.is_zero() {
            // In short naps: a machine that was suspended has not counted the time.
            tokio::time::sleep(left.min(LOOK)).await;
            continue;
        }
        match renew(ca, &identity, endpoint, state_dir, life) {
            Ok(fresh) => {
                tracing::info!(until = %fresh.expires_at(), "renewed the node's certificate");
                certified.send_replace(fresh);
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "renew the node's certificate"),
        }
        if due(&certified.borrow(), life) <= Utc::now() {
            // It failed, or the CA itself is about to end.
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn renew(
    ca: &ClusterCa,
    identity: &Identity,
    endpoint: &Endpoint,
    state_dir: &Path,
    life: Duration,
) -> anyhow::Result<Identity> {
    let fresh = ca.renew(identity, life, Utc::now())?;
    fresh.save(state_dir)?;
    transport::serve_as(endpoint, &fresh).context("serve with the new certificate")?;
    Ok(fresh)
}

const LOOK: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use zdap_proto::connect::connect;
    use zdap_proto::identity::Subject;
    use zdap_proto::transport::Purpose;

    use super::*;

    #[tokio::test]
    async fn a_node_that_stays_up_serves_with_a_new_certificate_before_the_old_one_ends() {
        let directory = tempfile::tempdir().unwrap();
        let ca = ClusterCa::found(Utc::now()).unwrap();
        let node = Subject::Node("a".parse().unwrap());
        let first = ca.identity(&node, LIFE, Utc::now()).unwrap();
        first.save(directory.path()).unwrap();
        let key = key_in(directory.path());
        let socket = transport::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = transport::server_endpoint(socket, &first).unwrap();
        let address = endpoint.local_addr().unwrap().to_string();
        let certified = watch::Sender::new(first.clone());
        let visit = async {
            while Identity::load(directory.path()).unwrap().expires_at() == first.expires_at() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(Utc::now() < first.expires_at(), "in time");
            while Utc::now() <= first.expires_at() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let user = Subject::User("ada".parse().unwrap());
            let user = ca.identity(&user, LIFE, Utc::now()).unwrap();
            let client = transport::client_endpoint().unwrap();
            connect(&client, &user, &address, Purpose::Control).await.unwrap();
            assert_eq!(key_in(directory.path()), key, "resets are known by the key");
        };
        let serve = async {
            while let Some(connecting) = transport::accept(&endpoint).await {
                transport::handshake(connecting, ca.cluster()).await.unwrap();
            }
        };
        tokio::select! {
            () = visit => {}
            () = serve => panic!("the endpoint has ended"),
            () = renew_in_time(&ca, &certified, &endpoint, directory.path(), LIFE) => {}
        }
    }

    fn key_in(directory: &Path) -> String {
        let text = std::fs::read_to_string(directory.join("identity.pem")).unwrap();
        text.split("-----END").next().unwrap().to_owned()
    }

    /// Certificates count in whole seconds.
    const LIFE: Duration = Duration::from_secs(4);
}
