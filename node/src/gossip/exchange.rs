//! All that one node knows, for another to compare and take over: over a stream, at a join and every few seconds.

use serde::{Deserialize, Serialize};
use zdap_proto::digest::{MAX_GENERATION, NodeDigest};
use zdap_proto::name::ClusterId;

use super::peer::Peer;

/// What a node knows of members and digests, itself included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knowledge {
    pub(super) cluster: ClusterId,
    pub(super) members: Vec<foca::Member<Peer>>,
    pub(super) digests: Vec<NodeDigest>,
}

/// Knowledge that is not taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KnowledgeError {
    /// Of another cluster.
    #[error("this is the cluster `{ours}`, that is what a node of `{theirs}` knows")]
    OtherCluster {
        /// This one.
        ours: ClusterId,
        /// That one.
        theirs: ClusterId,
    },
    /// A generation that no node comes to.
    #[error("the digest of `{node}` has the generation {generation}, above {MAX_GENERATION}", node = .0.node, generation = .0.generation)]
    Generation(Box<NodeDigest>),
}

impl Knowledge {
    /// Returns how many members it tells of.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// Checks what its types do not.
    pub(super) fn check(&self, ours: &ClusterId) -> Result<(), KnowledgeError> {
        if self.cluster != *ours {
            return Err(KnowledgeError::OtherCluster {
                ours: ours.clone(),
                theirs: self.cluster.clone(),
            });
        }
        match self
            .digests
            .iter()
            .find(|digest| digest.generation > MAX_GENERATION)
        {
            Some(digest) => Err(KnowledgeError::Generation(Box::new(digest.clone()))),
            None => Ok(()),
        }
    }
}
