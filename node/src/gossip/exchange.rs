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
    /// Not the bytes of knowledge.
    #[error("not what a node knows")]
    Malformed(#[source] postcard::Error),
    /// More bytes than it has.
    #[error("{0} bytes after the end of what a node knows")]
    Trailing(usize),
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

    /// Returns its bytes, for a stream: some 35 for each member and 70 for each digest.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data into a vector")
    }

    /// Reads it back.
    pub fn decode(bytes: &[u8]) -> Result<Self, KnowledgeError> {
        match postcard::take_from_bytes(bytes).map_err(KnowledgeError::Malformed)? {
            (knowledge, []) => Ok(knowledge),
            (_, rest) => Err(KnowledgeError::Trailing(rest.len())),
        }
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
