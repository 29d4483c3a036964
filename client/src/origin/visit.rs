//! A visit to every address that is known: who answers there, and of whom it is not waited for.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use zdap_proto::connect::ConnectError;
use zdap_proto::message::{NodeState, NodeView};
use zdap_proto::name::{ClusterId, NodeName};

use super::{Known, Origins, Silent};

/// One address, and who answers there.
#[derive(Debug)]
pub struct Visit {
    /// `host:port`.
    pub address: String,
    /// The cluster that it should belong to.
    pub cluster: ClusterId,
    /// The node's name and what it knows of all nodes.
    pub result: Result<(Option<NodeName>, Vec<NodeView>), Silent>,
}

impl Origins {
    /// Goes to every address and asks for the nodes.
    pub async fn visit_all(&self) -> Vec<Visit> {
        let visits = self.known.iter().map(|known| known.visit_all(self));
        join_all(visits).await.into_iter().flatten().collect()
    }
}

impl Known {
    /// A node that others say is down is given up soon after. One that they hold for alive gets its full time: it may be this
    /// machine that does not reach it.
    async fn visit_all(&self, origins: &Origins) -> Vec<Visit> {
        let (tell, told) = watch::channel(Vec::<NodeView>::new());
        let visits = self.addresses.iter().map(async |address| {
            let result = tokio::select! {
                biased;
                result = self.visit(origins, address) => result,
                () = self.given_up(address, told.clone()) => Err(Silent {
                    node: self.names.get(address).cloned(),
                    reason: format!("no answer from {address}, and another node says that it is down"),
                    hint: None,
                }),
            };
            if let Ok((_, nodes)) = &result {
                tell.send_modify(|told| told.extend_from_slice(nodes));
            }
            Visit {
                address: address.clone(),
                cluster: self.cluster.clone(),
                result,
            }
        });
        join_all(visits).await
    }

    async fn visit(
        &self,
        origins: &Origins,
        address: &str,
    ) -> Result<(Option<NodeName>, Vec<NodeView>), Silent> {
        let identity = self
            .identity
            .as_ref()
            .map_err(|reason| Silent::without_identity(address, reason))?;
        let reached = origins.reach_any(identity, &[address.to_owned()]).await;
        let cluster = reached.map_err(|errors| match errors.first() {
            Some((_, error)) => Silent::unreached(address, error),
            None => Silent::unreached(address, &ConnectError::NoAddress),
        })?;
        let name = cluster.node().await.name();
        match cluster.nodes().await {
            Ok(nodes) => Ok((name, nodes.to_vec())),
            Err(error) => Err(Silent::failed(address, &error)),
        }
    }

    /// Returns a moment after it was told that the node there is down, unless somebody says meanwhile that it is not.
    async fn given_up(&self, address: &str, mut told: watch::Receiver<Vec<NodeView>>) {
        loop {
            // The sender outlives all who wait.
            let _ = told.wait_for(|told| self.is_down(address, told)).await;
            tokio::select! {
                biased;
                _ = told.wait_for(|told| !self.is_down(address, told)) => {}
                () = tokio::time::sleep(MOMENT) => return,
            }
        }
    }

    /// Returns whether the node there is down to all who know of it.
    fn is_down(&self, address: &str, told: &[NodeView]) -> bool {
        let is_it = |node: &&NodeView| match self.names.get(address) {
            Some(name) => node.name == *name,
            None => node.address == address,
        };
        let mut views = told.iter().filter(is_it).peekable();
        views.peek().is_some() && views.all(|node| node.state == NodeState::Down)
    }
}

/// Two round trips to the other side of the world: one that is back already would have answered.
const MOMENT: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use super::*;
    use crate::cluster::tests::node_view;

    fn known() -> Known {
        Known {
            cluster: "abc".parse().unwrap(),
            identity: Err("none is needed".to_owned()),
            addresses: vec!["vpn:1".to_owned()],
            names: [("vpn:1".to_owned(), "db2".parse().unwrap())].into(),
        }
    }

    #[test]
    fn a_node_is_down_when_all_say_so_who_know_of_it() {
        let known = known();
        let (up, down) = (
            node_view("db2", NodeState::Alive),
            node_view("db2", NodeState::Down),
        );
        let other = node_view("db3", NodeState::Down);
        assert!(!known.is_down("vpn:1", &[]));
        assert!(!known.is_down("vpn:1", std::slice::from_ref(&other)));
        assert!(known.is_down("vpn:1", &[other.clone(), down.clone()]));
        assert!(!known.is_down("vpn:1", &[down, up]));
        assert!(
            known.is_down("db3.example.com:43210", &[other]),
            "whose name is not known"
        );
    }

    #[tokio::test]
    async fn a_node_that_is_down_to_one_and_not_to_the_next_is_not_given_up() {
        let (known, (tell, told)) = (known(), watch::channel(vec![node_view("db2", NodeState::Down)]));
        known.given_up("vpn:1", told.clone()).await;

        let mut given_up = pin!(known.given_up("vpn:1", told));
        assert_eq!(futures_util::poll!(&mut given_up), Poll::Pending);
        tell.send_modify(|told| told.push(node_view("db2", NodeState::Alive)));
        assert!(tokio::time::timeout(2 * MOMENT, given_up).await.is_err());
    }
}
