//! What has become of the clones that are to be given back, as far as their clusters say.

use std::collections::BTreeMap;

use zdap_proto::message::{CloneView, NodeState, NodeView};
use zdap_proto::name::ClusterId;

use crate::cluster::Cluster;
use crate::compose::Attached;
use crate::node::NodeError;
use crate::origin::Silent;

/// A clone to be given back.
pub(super) struct Wanted {
    pub(super) attached: Attached,
    /// None: its relay's identity is lost.
    pub(super) cluster: Option<ClusterId>,
}

/// What a cluster says, and to whom.
pub(super) struct Answer {
    cluster: ClusterId,
    /// Whose clones they are; none: everybody's.
    owner: Option<String>,
    clones: Vec<CloneView>,
    /// The nodes that there are, and whether each has answered.
    nodes: BTreeMap<String, bool>,
    pub(super) silent: Vec<Silent>,
}

pub(super) async fn ask(cluster: &Cluster) -> Result<Answer, NodeError> {
    let subject = cluster.identity().subject();
    let (nodes, answer) = tokio::try_join!(cluster.nodes(), cluster.clones(subject.is_admin()))?;
    let is_heard = |node: &NodeView| {
        let is_silent = answer.silent.iter().any(|silent| silent.node == node.name);
        node.state != NodeState::Down && !is_silent
    };
    let nodes = nodes
        .iter()
        .map(|node| (node.name.to_string(), is_heard(node)))
        .collect();
    Ok(Answer {
        cluster: cluster.id().clone(),
        owner: match subject.is_admin() {
            true => None,
            false => subject.owner().map(ToString::to_string),
        },
        clones: answer.clones,
        nodes,
        silent: answer.silent.into_iter().map(Silent::from).collect(),
    })
}

/// What has become of a clone.
#[derive(Debug, PartialEq)]
pub(super) enum Fate {
    There(Box<CloneView>),
    Gone,
    /// Its cluster has forgotten its node, which is gone for good.
    GoneWithNode,
    /// It is not ours to see: we are somebody else to its node now.
    OfAnother(String),
}

impl Answer {
    fn has_heard(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|is_heard| *is_heard)
    }

    /// Returns whether the cluster has no such node any more. While any is silent, what is said of the nodes is not taken for
    /// the whole of it.
    fn has_forgotten(&self, node: &str) -> bool {
        let is_whole = self.silent.is_empty() && self.nodes.values().all(|is_heard| *is_heard);
        is_whole && !self.nodes.contains_key(node)
    }
}

impl Wanted {
    /// Returns whether the clone may be with one of the silent although another says that it is gone: it is not known which
    /// cluster it is in, and each may have a node of that name.
    pub(super) fn may_be_at(&self, silent: &[Silent]) -> bool {
        let may_have_it = |silent: &Silent| {
            let node = silent.node.as_ref();
            node.is_none_or(|node| node.as_str() == self.attached.node)
        };
        self.cluster.is_none() && silent.iter().any(may_have_it)
    }

    /// Returns what the answer says of the clone; nothing if its node was not heard and may be there. Names of nodes repeat
    /// across clusters.
    pub(super) fn fate(&self, answer: &Answer) -> Option<Fate> {
        let clone = answer
            .clones
            .iter()
            .find(|clone| clone.id.as_str() == self.attached.clone);
        if let Some(clone) = clone {
            return Some(Fate::There(Box::new(clone.clone())));
        }
        let node = &self.attached.node;
        match &self.cluster {
            Some(cluster) if *cluster != answer.cluster => return None,
            // Of a cluster that need not be the clone's this would say nothing.
            Some(_) if answer.has_forgotten(node) => return Some(Fate::GoneWithNode),
            Some(_) | None if !answer.has_heard(node) => return None,
            Some(_) | None => {}
        }
        match &answer.owner {
            Some(owner) if *owner != self.attached.owner => Some(Fate::OfAnother(owner.clone())),
            Some(_) | None => Some(Fate::Gone),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::detach::tests::attached;
    use crate::commands::tests::clone_view;

    fn answer(node: &str, cluster: &str, owner: &str) -> Answer {
        Answer {
            cluster: cluster.parse().unwrap(),
            owner: Some(owner.to_owned()),
            clones: Vec::new(),
            nodes: BTreeMap::from([(node.to_owned(), true)]),
            silent: Vec::new(),
        }
    }

    fn silent(node: Option<&str>) -> Silent {
        Silent {
            node: node.map(|node| node.parse().unwrap()),
            reason: "no answer".to_owned(),
            hint: None,
        }
    }

    #[test]
    fn a_clone_is_gone_only_when_its_own_node_was_heard() {
        let wanted = Wanted {
            attached: attached("orders"),
            cluster: Some("abc".parse().unwrap()),
        };
        assert_eq!(wanted.fate(&answer("db1", "abc", "ada")), Some(Fate::Gone));
        let down = Answer {
            nodes: BTreeMap::from([("db1".to_owned(), false), ("db2".to_owned(), true)]),
            ..answer("db2", "abc", "ada")
        };
        assert_eq!(wanted.fate(&down), None);
        assert_eq!(
            wanted.fate(&answer("db1", "xyz", "ada")),
            None,
            "another cluster's db1"
        );
        let clone = clone_view("orders-k3v9x2mq", "2026-11-22T13:39:25Z", "2026-11-22T04:00:00Z");
        let there = Answer {
            clones: vec![clone.clone()],
            ..answer("db1", "abc", "ada")
        };
        assert_eq!(wanted.fate(&there), Some(Fate::There(Box::new(clone))));
    }

    #[test]
    fn a_clone_is_gone_with_its_node_once_its_own_cluster_has_none_of_that_name_and_none_that_is_silent() {
        let of = |cluster: Option<&str>| Wanted {
            attached: attached("orders"),
            cluster: cluster.map(|cluster| cluster.parse().unwrap()),
        };
        let others = || answer("db2", "abc", "ada");
        assert_eq!(of(Some("abc")).fate(&others()), Some(Fate::GoneWithNode));
        assert_eq!(of(Some("xyz")).fate(&others()), None, "another cluster");
        assert_eq!(of(None).fate(&others()), None, "any cluster");
        let down = Answer {
            nodes: BTreeMap::from([("db2".to_owned(), true), ("db3".to_owned(), false)]),
            ..others()
        };
        assert_eq!(of(Some("abc")).fate(&down), None);
        let silent = Answer {
            silent: vec![silent(Some("db1"))],
            ..others()
        };
        assert_eq!(of(Some("abc")).fate(&silent), None);
    }

    #[test]
    fn a_clone_of_an_unknown_cluster_is_not_taken_for_gone_while_a_cluster_is_silent() {
        let of = |cluster: Option<&str>| Wanted {
            attached: attached("orders"),
            cluster: cluster.map(|cluster| cluster.parse().unwrap()),
        };
        assert!(of(None).may_be_at(&[silent(None)]), "a whole cluster");
        assert!(of(None).may_be_at(&[silent(Some("db1"))]));
        assert!(!of(None).may_be_at(&[silent(Some("db2"))]));
        assert!(!of(Some("abc")).may_be_at(&[silent(None)]), "it is known");
        assert!(!of(None).may_be_at(&[]));
    }

    #[test]
    fn the_clone_of_ones_former_name_is_not_taken_for_gone() {
        let wanted = Wanted {
            attached: attached("orders"),
            cluster: None,
        };
        let fate = wanted.fate(&answer("db1", "abc", "bob"));
        assert_eq!(fate, Some(Fate::OfAnother("bob".to_owned())));
    }
}
