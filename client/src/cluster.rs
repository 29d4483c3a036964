//! A cluster, by way of whichever of its nodes answers: any of them answers for all.

use std::sync::Arc;

use quinn::Endpoint;
use tokio::sync::{Mutex, OnceCell};
use zdap_proto::connect::{ConnectError, most_telling};
use zdap_proto::identity::Identity;
use zdap_proto::message::{
    Account, Answer, Certificate, CloneView, Considered, NodeState, NodeView, Progress, Request,
    ResourceView, SilentNode, SnapshotView, Stages,
};
use zdap_proto::name::{CloneId, ClusterId, NodeName, RequestId, ResourceName, SnapshotTime};
use zdap_proto::renewal::{RenewalError, renew};

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

/// A clone that was made, where the time went, and what else it could have been made on.
#[derive(Debug, Clone, PartialEq)]
pub struct Created {
    /// The clone.
    pub clone: CloneView,
    /// Where the time went.
    pub stages: Stages,
    /// The chosen node first; none when nothing had to be chosen.
    pub considered: Vec<Considered>,
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

    /// Has a clone made, on `pinned` or on the best node. Under one request id, so that it is one clone whatever became of
    /// a first try.
    pub async fn create_clone(
        &self,
        resource: &ResourceName,
        snapshot: Option<SnapshotTime>,
        pinned: Option<NodeName>,
        mut progress: impl FnMut(Progress),
    ) -> Result<Created, NodeError> {
        let request = Request::CreateClone {
            resource: resource.clone(),
            snapshot,
            node: pinned,
            owner: None,
            request_id: RequestId::random(),
            attempt: 0,
        };
        let (answer, node) = self.ask_with(request, &mut progress).await?;
        let Answer::Created {
            clone,
            stages,
            considered,
        } = answer
        else {
            return Err(node.other_answer());
        };
        Ok(Created {
            clone,
            stages,
            considered,
        })
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

    /// Returns where a clone on `owner` can be reached: there first, then through some others that answer.
    pub async fn servers(&self, owner: &NodeName) -> Vec<String> {
        let node = self.node().await;
        let own = (node.name().as_ref() == Some(owner)).then(|| node.address().to_owned());
        match self.nodes().await {
            Ok(nodes) => servers(nodes, owner, own),
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

    async fn ask(&self, request: Request) -> Result<(Answer, Node), NodeError> {
        self.ask_with(request, |_| {}).await
    }

    /// Asks, and when the node is lost or cannot do it now, asks another one once more. All that is asked can be asked
    /// twice.
    async fn ask_with(
        &self,
        mut request: Request,
        mut progress: impl FnMut(Progress),
    ) -> Result<(Answer, Node), NodeError> {
        let node = self.node().await;
        let error = match node.ask(&request, &mut progress).await {
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
        if let Request::CreateClone { attempt, .. } = &mut request {
            *attempt += 1;
        }
        let answer = node.ask(&request, &mut progress).await?;
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
                most_telling(errors, &addresses)
            })?;
        }
        Ok(node.clone())
    }
}

/// The node's own addresses, `reached` by us first; then others that answer, beginning behind it in the order of names, so
/// that the clones of different nodes go through different others.
fn servers(nodes: &[NodeView], owner: &NodeName, reached: Option<String>) -> Vec<String> {
    let mut others: Vec<&NodeView> = nodes
        .iter()
        .filter(|node| matches!(node.state, NodeState::Alive | NodeState::Draining) && node.name != *owner)
        .collect();
    others.sort_by_key(|node| (node.name < *owner, node.name.clone()));
    let own = nodes.iter().filter(|node| node.name == *owner).chain(others);
    let mut servers: Vec<String> = Vec::new();
    for address in reached.into_iter().chain(own.map(|node| node.address.clone())) {
        if !servers.contains(&address) && servers.len() < MOST_SERVERS {
            servers.push(address);
        }
    }
    servers
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

/// A handful; each is tried within a second when none before it answers.
const MOST_SERVERS: usize = 8;

#[cfg(test)]
pub(crate) mod tests {
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
    fn a_clone_is_reached_at_its_own_node_first_and_then_through_others_that_answer() {
        let nodes = [
            node_view("a", NodeState::Alive),
            node_view("b", NodeState::Alive),
            node_view("c", NodeState::Down),
            node_view("d", NodeState::Suspect),
            node_view("e", NodeState::Draining),
        ];
        let owner = "b".parse().unwrap();
        let address = |name: &str| format!("{name}.example.com:43210");
        assert_eq!(
            servers(&nodes, &owner, None),
            [address("b"), address("e"), address("a")]
        );
        let reached = servers(&nodes, &owner, Some("10.0.0.2:1".to_owned()));
        assert_eq!(reached[..2], ["10.0.0.2:1".to_owned(), address("b")]);
        assert_eq!(servers(&nodes, &"c".parse().unwrap(), None)[0], address("c"));
    }

    #[test]
    fn a_relay_is_given_a_handful_of_servers_however_many_there_are() {
        let nodes: Vec<NodeView> = (0..300)
            .map(|number| node_view(&format!("n{number:03}"), NodeState::Alive))
            .collect();
        let servers = servers(&nodes, &"n150".parse().unwrap(), None);
        assert_eq!(servers.len(), 8);
        assert_eq!(servers[0], "n150.example.com:43210");
        assert_eq!(servers[1], "n151.example.com:43210");
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
