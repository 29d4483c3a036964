//! What `settings.json` holds: who the user wants to be, and where the nodes are.

use serde::{Deserialize, Serialize};
use zdap_proto::message::NodeView;
use zdap_proto::name::{ClusterId, NodeName, UserName};

/// What `settings.json` holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The name that `zdap set user` was given.
    #[serde(default)]
    pub user: Option<UserName>,
    /// The addresses that the user has added, in that order.
    #[serde(default)]
    pub origins: Vec<Origin>,
    /// What the nodes there have told since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<Learned>,
}

/// An address that the user has added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// `host:port`.
    pub address: String,
    /// Which cluster's identity opens it.
    pub cluster: ClusterId,
}

/// What a cluster has told of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// Which one.
    pub cluster: ClusterId,
    /// The address that answered last.
    pub last: String,
    /// Its nodes, by name.
    pub nodes: Vec<LearnedNode>,
}

/// A node that a cluster has told of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LearnedNode {
    /// Its name.
    pub name: NodeName,
    /// `host:port`.
    pub address: String,
}

/// What became of an address that is to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forgotten {
    /// It is gone, and with a cluster's last origin also what was learned of it: these addresses.
    Gone(Vec<String>),
    /// It was not added but learned, from the cluster of these origins.
    Learned(Vec<String>),
    /// It was not known.
    Unknown,
}

impl Settings {
    /// Remembers an address that the user has added; of another cluster now, if it is known already.
    pub fn remember(&mut self, address: &str, cluster: &ClusterId) {
        match self.origins.iter_mut().find(|origin| origin.address == address) {
            Some(origin) => origin.cluster = cluster.clone(),
            None => self.origins.push(Origin {
                address: address.to_owned(),
                cluster: cluster.clone(),
            }),
        }
        self.drop_left_clusters();
    }

    /// Remembers an address where nobody has looked yet; one that is known already stays that of its cluster.
    pub fn remember_new(&mut self, address: &str, cluster: &ClusterId) {
        if self.origins.iter().all(|origin| origin.address != address) {
            self.remember(address, cluster);
        }
    }

    /// Puts what a cluster has told through `last` in the place of what it told before; nothing once its origins are gone.
    pub fn learn(&mut self, cluster: &ClusterId, last: &str, nodes: &[NodeView]) {
        let nodes = nodes.iter().map(|node| LearnedNode {
            name: node.name.clone(),
            address: node.address.clone(),
        });
        let mut learned = Learned {
            cluster: cluster.clone(),
            last: last.to_owned(),
            nodes: nodes.collect(),
        };
        learned.nodes.sort();
        match self.clusters.iter_mut().find(|known| known.cluster == *cluster) {
            Some(known) => *known = learned,
            None => self.clusters.push(learned),
        }
        self.drop_left_clusters();
    }

    /// Forgets an address that the user has added.
    pub fn forget(&mut self, address: &str) -> Forgotten {
        let Some(index) = self.origins.iter().position(|origin| origin.address == address) else {
            let from = self.clusters.iter().find(|known| known.has(address));
            return from.map_or(Forgotten::Unknown, |known| {
                Forgotten::Learned(self.added(&known.cluster))
            });
        };
        let cluster = self.origins.remove(index).cluster;
        let mut also = match self.added(&cluster).is_empty() {
            true => self.addresses(&cluster),
            false => Vec::new(),
        };
        also.retain(|known| known != address);
        self.drop_left_clusters();
        Forgotten::Gone(also)
    }

    /// Returns the clusters, in the order in which their first origin was added.
    pub fn known_clusters(&self) -> Vec<ClusterId> {
        let mut clusters: Vec<ClusterId> = Vec::new();
        for origin in &self.origins {
            if !clusters.contains(&origin.cluster) {
                clusters.push(origin.cluster.clone());
            }
        }
        clusters
    }

    /// Returns all the addresses of a cluster, the likeliest to answer first: the one that did last, those that the user has
    /// added, those that were learned.
    pub fn addresses(&self, cluster: &ClusterId) -> Vec<String> {
        let learned = self.clusters.iter().find(|known| known.cluster == *cluster);
        let mut addresses: Vec<String> = Vec::new();
        let nodes = learned.iter().flat_map(|known| &known.nodes);
        let all = self
            .added(cluster)
            .into_iter()
            .chain(nodes.map(|node| node.address.clone()));
        for address in all {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        // Stable: the others keep their order.
        addresses.sort_by_key(|address| learned.is_none_or(|known| known.last != *address));
        addresses
    }

    /// Returns the name of the node at an address, as far as it was learned.
    pub fn name_at(&self, cluster: &ClusterId, address: &str) -> Option<NodeName> {
        let known = self.clusters.iter().find(|known| known.cluster == *cluster)?;
        let node = known.nodes.iter().find(|node| node.address == address)?;
        Some(node.name.clone())
    }

    /// Returns whether the user has added an address of a cluster; else that has told of it.
    pub fn is_added(&self, cluster: &ClusterId, address: &str) -> bool {
        self.added(cluster).iter().any(|added| added == address)
    }

    fn added(&self, cluster: &ClusterId) -> Vec<String> {
        let origins = self.origins.iter().filter(|origin| origin.cluster == *cluster);
        origins.map(|origin| origin.address.clone()).collect()
    }

    fn drop_left_clusters(&mut self) {
        let kept = self.known_clusters();
        self.clusters.retain(|known| kept.contains(&known.cluster));
    }
}

impl Learned {
    fn has(&self, address: &str) -> bool {
        self.nodes.iter().any(|node| node.address == address)
    }
}

#[cfg(test)]
mod tests {
    use zdap_proto::message::NodeState;

    use super::*;
    use crate::cluster::tests::node_view;

    fn cluster(id: &str) -> ClusterId {
        id.parse().unwrap()
    }

    fn address(name: &str) -> String {
        format!("{name}.example.com:43210")
    }

    fn views(names: &[&str]) -> Vec<NodeView> {
        let views = names.iter().map(|name| node_view(name, NodeState::Alive));
        views.collect()
    }

    fn settings() -> Settings {
        let mut settings = Settings::default();
        settings.remember("nat:1", &cluster("abc"));
        settings.learn(&cluster("abc"), &address("b"), &views(&["c", "a", "b"]));
        settings
    }

    #[test]
    fn the_address_that_answered_last_is_tried_first() {
        assert_eq!(
            settings().addresses(&cluster("abc")),
            [address("b"), "nat:1".to_owned(), address("a"), address("c")]
        );
    }

    #[test]
    fn a_node_that_has_left_or_has_another_address_leaves_no_trace() {
        let mut settings = settings();
        let mut nodes = views(&["a", "c"]);
        nodes[0].address = "10.0.0.1:1".to_owned();
        settings.learn(&cluster("abc"), "nat:1", &nodes);
        let known = settings.addresses(&cluster("abc"));
        assert_eq!(known, ["nat:1", "10.0.0.1:1", &address("c")]);
        assert_eq!(
            settings.name_at(&cluster("abc"), "10.0.0.1:1"),
            Some("a".parse().unwrap())
        );
    }

    #[test]
    fn an_address_of_two_clusters_is_added_where_the_user_added_it() {
        let mut settings = settings();
        settings.remember(&address("a"), &cluster("xyz"));
        assert!(settings.is_added(&cluster("xyz"), &address("a")));
        assert!(
            !settings.is_added(&cluster("abc"), &address("a")),
            "it was learned"
        );
        assert!(settings.is_added(&cluster("abc"), "nat:1"));
    }

    #[test]
    fn what_is_told_again_in_another_order_changes_nothing() {
        let mut again = settings();
        again.learn(&cluster("abc"), &address("b"), &views(&["b", "a", "c"]));
        assert_eq!(again, settings());
    }

    #[test]
    fn an_address_where_nobody_has_looked_stays_that_of_another_cluster() {
        let mut settings = settings();
        settings.remember_new("nat:1", &cluster("xyz"));
        settings.remember_new("other:1", &cluster("xyz"));
        assert_eq!(settings.added(&cluster("abc")), ["nat:1"]);
        assert_eq!(settings.added(&cluster("xyz")), ["other:1"]);
    }

    #[test]
    fn with_its_last_origin_a_cluster_is_forgotten() {
        let mut settings = settings();
        settings.remember(&address("b"), &cluster("abc"));
        settings.remember("other:1", &cluster("xyz"));
        assert_eq!(settings.forget("nat:1"), Forgotten::Gone(vec![]));
        assert_eq!(
            settings.forget(&address("a")),
            Forgotten::Learned(vec![address("b")])
        );
        assert_eq!(settings.forget("nowhere:1"), Forgotten::Unknown);
        assert_eq!(
            settings.forget(&address("b")),
            Forgotten::Gone(vec![address("a"), address("c")])
        );
        assert_eq!(settings.known_clusters(), [cluster("xyz")]);
        settings.learn(&cluster("abc"), &address("a"), &views(&["a"]));
        assert!(settings.addresses(&cluster("abc")).is_empty(), "it was left");
    }
}
