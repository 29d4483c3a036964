//! All that one node knows, for another to compare and take over: over a stream, at a join and every few seconds.

use std::time::Instant;

use foca::State;
use serde::{Deserialize, Serialize};
use zdap_proto::digest::{MAX_GENERATION, NodeDigest};
use zdap_proto::name::ClusterId;

use super::Gossip;
use super::peer::{FNV_BASIS, Peer, fnv};

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

impl Gossip {
    /// Returns a number that two nodes share if they know the same.
    pub fn fingerprint(&self) -> u64 {
        let members = self.foca.iter_membership_state();
        let members = members.filter(|member| member.id().name != self.me.name);
        let of = |peer: &Peer, is_down: bool| {
            let hash = fnv(FNV_BASIS, peer.name.as_str().as_bytes());
            fnv(fnv(hash, &peer.epoch.to_le_bytes()), &[u8::from(is_down)])
        };
        let members = members.fold(of(&self.me, false), |sum, member| {
            sum ^ of(member.id(), member.state() == State::Down)
        });
        members ^ self.shared.lock().digests.fingerprint()
    }

    /// Returns all that this node knows, for an exchange.
    pub fn knowledge(&self) -> Knowledge {
        let members = self.foca.iter_membership_state();
        let members = members.filter(|member| member.id().name != self.me.name);
        // A suspicion is for those who raised it: without their timer it would stand for ever.
        let members = members.map(|member| match member.state() {
            State::Suspect => foca::Member::new(member.id().clone(), member.incarnation(), State::Alive),
            State::Alive | State::Down => member.clone(),
        });
        let overheard = self.shared.lock();
        let digests = overheard.digests.iter(overheard.now);
        Knowledge {
            cluster: self.cluster.clone(),
            members: members.chain([foca::Member::alive(self.me.clone())]).collect(),
            digests: digests.map(|(digest, _)| digest.clone()).collect(),
        }
    }

    /// Takes over what another node knows.
    pub fn learn(&mut self, knowledge: Knowledge, now: Instant) -> Result<(), KnowledgeError> {
        knowledge.check(&self.cluster)?;
        if self.has_left {
            return Ok(());
        }
        self.begin(now);
        let mut members = Vec::new();
        for member in knowledge.members {
            let mut overheard = self.shared.lock();
            overheard.mentioned.push(member.id().key);
            if overheard.sight(member.id(), member.state(), false) {
                continue;
            }
            drop(overheard);
            match member.state() {
                State::Down if self.is_active(member.id()) => self.doubt(member.id(), now),
                State::Alive | State::Suspect | State::Down => members.push(member),
            }
        }
        let mut overheard = self.shared.lock();
        for digest in &knowledge.digests {
            overheard.hear(digest);
        }
        drop(overheard);
        // Whoever knows it has told others already.
        if let Err(error) = self.foca.apply_many(members.into_iter(), false, &mut self.outbox) {
            tracing::debug!(%error, "learn of members");
        }
        self.settle(now);
        Ok(())
    }
}
