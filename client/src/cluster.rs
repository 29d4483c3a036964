//! A cluster, by way of whichever of its nodes answers: any of them answers for all.

mod creating;
mod servers;

use std::sync::Arc;

use quinn::Endpoint;
use tokio::sync::{Mutex, OnceCell};
use zdap_proto::connect::{ConnectError, most_telling};
use zdap_proto::identity::Identity;
use zdap_proto::message::{
    Account, Answer, Certificate, CloneView, NodeView, Request, ResourceView, SilentNode, SnapshotView,
};
use zdap_proto::name::{CloneId, ClusterId, NodeName, ResourceName};
use zdap_proto::renewal::{RenewalError, renew};

pub use self::creating::Created;
use self::servers::servers;
use crate::node::{Node, NodeError};
use crate::words::Pin;
use zdap_proto::refusal::chain;

/// A cluster of which one node was reached. Copies share the connection; when it is lost, another node is taken.
#[derive(Debug, Clone)]
pub struct Cluster(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    identity: Arc<Identity>,
    addresses: Vec<String>,
    node: Mutex<Node>,
    nodes: OnceCell<Vec<NodeView>>,
}

/// The clones that there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clones {
    /// Of all nodes that answered.
    pub clones: Vec<CloneView>,
    /// The others.
    pub silent: Vec<SilentNode>,
}

impl Cluster {
    /// Reaches one node of a cluster, or says why each of `addresses` does not do.
    pub async fn reach(
        endpoint: &Endpoint,
        identity: &Arc<Identity>,
        addresses: &[String],
    ) -> Result<Self, Vec<(String, ConnectError)>> {
        let node = Node::reach(endpoint, identity, addresses).await?;
        Ok(Self(Arc::new(Shared {
            endpoint: endpoint.clone(),
            identity: identity.clone(),
            addresses: addresses.to_vec(),
            node: Mutex::new(node),
            nodes: OnceCell::new(),
        })))
    }

    /// Returns which cluster it is.
    pub fn id(&self) -> &ClusterId {
        self.0.identity.cluster()
    }

    /// Returns who we are there.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Returns the node that is asked at the moment.
    pub async fn node(&self) -> Node {
        self.0.node.lock().await.clone()
    }

    /// Returns the nodes of the cluster, which are asked for once.
    pub async fn nodes(&self) -> Result<&[NodeView], NodeError> {
        let nodes = self.0.nodes.get_or_try_init(|| async {
            let (answer, node) = self.ask(Request::ListNodes).await?;
            let Answer::Nodes(nodes) = answer else {
                return Err(node.other_answer());
            };
            Ok(nodes)
        });
        nodes.await.map(Vec::as_slice)
    }

    /// Asks which resources are served.
    pub async fn resources(&self) -> Result<Vec<ResourceView>, NodeError> {
        let (answer, node) = self.ask(Request::ListResources).await?;
        let Answer::Resources(resources) = answer else {
            return Err(node.other_answer());
        };
        Ok(resources)
    }

    /// Asks which snapshots there are, of one resource or all.
    pub async fn snapshots(&self, resource: Option<ResourceName>) -> Result<Vec<SnapshotView>, NodeError> {
        let (answer, node) = self.ask(Request::ListSnapshots { resource }).await?;
        let Answer::Snapshots(snapshots) = answer else {
            return Err(node.other_answer());
        };
        Ok(snapshots)
    }

    /// Asks which clones we have, or everybody has, which only admins may know.
    pub async fn clones(&self, all_owners: bool) -> Result<Clones, NodeError> {
        let request = Request::ListClones {
            resource: None,
            all_owners,
        };
        let (answer, node) = self.ask(request).await?;
        let Answer::Clones { clones, silent } = answer else {
            return Err(node.other_answer());
        };
        Ok(Clones { clones, silent })
    }

    /// Gives a clone back; one that is gone already is fine.
    pub async fn destroy(&self, clone: &CloneId) -> Result<(), NodeError> {
        let request = Request::DestroyClone { clone: clone.clone() };
        let (answer, node) = self.ask(request).await?;
        let Answer::Destroyed = answer else {
            return Err(node.other_answer());
        };
        Ok(())
    }

    /// Asks for a certificate that opens one clone and nothing else.
    pub async fn relay_certificate(
        &self,
        clone: &CloneId,
        public_key: Vec<u8>,
    ) -> Result<Certificate, NodeError> {
        let request = Request::IssueRelay {
            clone: clone.clone(),
            public_key,
        };
        let (answer, node) = self.ask(request).await?;
        let Answer::Certificate(certificate) = answer else {
            return Err(node.other_answer());
        };
        Ok(certificate)
    }

    /// Asks for the account of a clone's database.
    pub async fn account(&self, clone: &CloneId) -> Result<Account, NodeError> {
        let (answer, node) = self.ask(Request::Account { clone: clone.clone() }).await?;
        let Answer::Account(account) = answer else {
            return Err(node.other_answer());
        };
        Ok(account)
    }

    /// Asks for our certificate anew.
    pub async fn renew(&self) -> Result<Identity, RenewalError> {
        renew(self.node().await.connection(), &self.0.identity).await
    }

    /// Returns once the node has heard what was said before.
    pub async fn last_word(&self) {
        // What was said before this question arrives before it.
        let _ = self.node().await.ask(&Request::ListNodes, |_| {}).await;
    }

    /// Returns where a clone on `owner` can be reached: there first, then as we reach the cluster, then through some others
    /// that answer.
    pub async fn servers(&self, owner: &NodeName) -> Vec<String> {
        let node = self.node().await;
        let is_owner = node.name().as_ref() == Some(owner);
        match self.nodes().await {
            Ok(nodes) => servers(nodes, owner, node.address(), is_owner),
            Err(error) => {
                tracing::debug!("no list of nodes: {}", chain(&error));
                vec![node.address().to_owned()]
            }
        }
    }

    /// Returns the name of the node that is wanted, if it is of this cluster.
    pub async fn resolve(&self, pin: &Pin) -> Result<Option<NodeName>, NodeError> {
        let known = named(self.nodes().await?, pin);
        let Pin::Address(address) = pin else {
            return Ok(known);
        };
        if known.is_some() || !self.0.addresses.contains(address) {
            return Ok(known);
        }
        // An address of our own for it.
        let there = Node::reach(&self.0.endpoint, &self.0.identity, std::slice::from_ref(address)).await;
        Ok(there.ok().and_then(|node| node.name()))
    }

    /// Asks, and when the node is lost or cannot do it now, asks another one once more. All that is asked here can be asked
    /// twice.
    async fn ask(&self, request: Request) -> Result<(Answer, Node), NodeError> {
        let node = self.node().await;
        let error = match node.ask(&request, |_| {}).await {
            Ok(answer) => return Ok((answer, node)),
            Err(error) if error.is_its_own() => error,
            Err(error) => return Err(error),
        };
        let is_lost = matches!(error, NodeError::Connect(_));
        if !is_lost && self.0.addresses.len() < 2 {
            return Err(error);
        }
        tracing::debug!("asking again: {}", chain(&error));
        let node = self.another(&node).await?;
        let answer = node.ask(&request, |_| {}).await?;
        Ok((answer, node))
    }

    /// Takes another node than the one that was lost, or the same where there is no other.
    async fn another(&self, lost: &Node) -> Result<Node, NodeError> {
        let mut node = self.0.node.lock().await;
        if node.is(lost) {
            let mut addresses = self.0.addresses.clone();
            addresses.sort_by_key(|address| address == lost.address()); // stable: the others keep their order
            let reached = Node::reach(&self.0.endpoint, &self.0.identity, &addresses).await;
            *node = reached.map_err(|errors| {
                let errors = errors.into_iter().map(|(_, error)| error).collect();
                most_telling(errors)
            })?;
        }
        Ok(node.clone())
    }
}

/// By its name, or the host of its address, or its address.
fn named(nodes: &[NodeView], pin: &Pin) -> Option<NodeName> {
    let host = |node: &NodeView| node.address.rsplit_once(':').map(|(host, _)| host.to_owned());
    let found = match pin {
        Pin::Name(wanted) => nodes
            .iter()
            .find(|node| node.name.as_str() == wanted)
            .or_else(|| nodes.iter().find(|node| host(node).as_ref() == Some(wanted))),
        Pin::Address(wanted) => nodes.iter().find(|node| node.address == *wanted),
    };
    found.map(|node| node.name.clone())
}

#[cfg(test)]
pub(crate) mod tests {
    use zdap_proto::message::NodeState;

    use super::*;

    pub(crate) fn node_view(name: &str, state: NodeState) -> NodeView {
        NodeView {
            name: name.parse().unwrap(),
            address: format!("{name}.example.com:43210"),
            state,
            generation: 7,
            clones: 3,
            snapshots: 2,
            free_bytes: 1 << 30,
            total_bytes: 4 << 30,
            available_memory_bytes: 1 << 30,
            total_memory_bytes: 2 << 30,
            load: 0.5,
            resources: vec!["orders".parse().unwrap()],
            version: "0.1.0".to_owned(),
        }
    }

    #[test]
    fn a_node_is_called_by_its_name_its_host_or_its_address() {
        let nodes = [
            node_view("db1", NodeState::Alive),
            node_view("db2", NodeState::Alive),
        ];
        let named = |pin: Pin| named(&nodes, &pin).map(|name| name.to_string());
        let by_name = |name: &str| named(Pin::Name(name.to_owned()));
        assert_eq!(by_name("db2").as_deref(), Some("db2"));
        assert_eq!(by_name("db1.example.com").as_deref(), Some("db1"));
        assert_eq!(by_name("db"), None);
        let by_address = |address: &str| named(Pin::Address(address.to_owned()));
        assert_eq!(by_address("db2.example.com:43210").as_deref(), Some("db2"));
        assert_eq!(by_address("db2.example.com:1"), None);
    }
}
