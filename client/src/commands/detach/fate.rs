//! What has become of the clones that are to be given back, as far as their clusters say.

use std::collections::BTreeSet;

use zdap_proto::message::{CloneView, NodeState};
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
    /// The nodes that have answered.
    heard: BTreeSet<String>,
    pub(super) silent: Vec<Silent>,
}

pub(super) async fn ask(cluster: &Cluster) -> Result<Answer, NodeError> {
    let subject = cluster.identity().subject();
    let (nodes, answer) = tokio::try_join!(cluster.nodes(), cluster.clones(subject.is_admin()))?;
    let mut heard: BTreeSet<String> = nodes
        .iter()
        .filter(|node| node.state != NodeState::Down)
        .map(|node| node.name.to_string())
        .collect();
    for silent in &answer.silent {
        heard.remove(silent.node.as_str());
    }
    Ok(Answer {
        cluster: cluster.id().clone(),
        owner: match subject.is_admin() {
            true => None,
            false => subject.owner().map(ToString::to_string),
        },
        clones: answer.clones,
        heard,
        silent: answer.silent.into_iter().map(Silent::from).collect(),
    })
}

/// What has become of a clone.
#[derive(Debug, PartialEq)]
pub(super) enum Fate {
    There(Box<CloneView>),
    Gone,
    /// It is not ours to see: we are somebody else to its node now.
    OfAnother(String),
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

    /// Returns what the answer says of the clone; nothing if its node was not heard. Names of nodes repeat across clusters.
    pub(super) fn fate(&self, answer: &Answer) -> Option<Fate> {
        let clone = answer
            .clones
            .iter()
            .find(|clone| clone.id.as_str() == self.attached.clone);
        if let Some(clone) = clone {
            return Some(Fate::There(Box::new(clone.clone())));
        }
        let is_cluster = self
            .cluster
            .as_ref()
            .is_none_or(|cluster| *cluster == answer.cluster);
        if !answer.heard.contains(&self.attached.node) || !is_cluster {
            return None;
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
            heard: BTreeSet::from([node.to_owned()]),
            silent: Vec::new(),
        }
    }

    #[test]
    fn a_clone_is_gone_only_when_its_own_node_was_heard() {
        let wanted = Wanted {
            attached: attached("orders"),
            cluster: Some("abc".parse().unwrap()),
        };
        assert_eq!(wanted.fate(&answer("db1", "abc", "ada")), Some(Fate::Gone));
        assert_eq!(wanted.fate(&answer("db2", "abc", "ada")), None);
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
    fn a_clone_of_an_unknown_cluster_is_not_taken_for_gone_while_a_cluster_is_silent() {
        let of = |cluster: Option<&str>| Wanted {
            attached: attached("orders"),
            cluster: cluster.map(|cluster| cluster.parse().unwrap()),
        };
        let silent = |node: Option<&str>| Silent {
            node: node.map(|node| node.parse().unwrap()),
            reason: "no answer".to_owned(),
            hint: None,
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
