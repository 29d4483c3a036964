//! What comes out: things to do, and packets that were not taken.

use std::net::SocketAddr;

use zdap_proto::digest::NodeDigest;
use zdap_proto::name::{ClusterId, NodeName};

use super::{Member, Peer};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a packet, of at most [`super::MAX_PACKET_BYTES`]. If it is lost, it is lost.
    Send {
        /// Where to.
        to: SocketAddr,
        /// Its bytes.
        packet: Vec<u8>,
    },
    /// The node at this address knocks: it does not know this one, or not any more. What is connected to it may lead to an
    /// earlier life of it.
    Knocked(SocketAddr),
    /// Write this down before anything after it is done. The next start takes at least one more.
    PersistGeneration(u64),
    /// A member is new or has changed.
    Member(Member),
    /// A member is known no more: it has been down for a day, or this node has lost everybody and not met it again.
    Forgotten(NodeName),
    /// A node said something new of itself.
    Digest(NodeDigest),
    /// Compare [`super::Gossip::fingerprint`]s with this member over a stream, and if they differ give each the other's
    /// [`super::Gossip::knowledge`].
    Exchange {
        /// The member.
        with: NodeName,
        /// Where it is reached.
        at: SocketAddr,
    },
    /// The first member is known, again or at last.
    Connected,
    /// No member is left.
    Alone,
    /// This node was given up by others and has come back, under a higher epoch.
    Renewed,
    /// Another machine goes by this node's name. A person has to see to it.
    Conflict {
        /// The other.
        other: Peer,
        /// Whether the others listen to that one and no more to this one.
        is_winning: bool,
    },
}

/// A packet that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Not a packet, or damaged. Nothing of it was believed, or only what came before the damage.
    #[error("node `{from}` sent what is no packet: {reason}")]
    Malformed {
        /// The sender.
        from: NodeName,
        /// What is wrong with it.
        reason: String,
    },
    /// Its sender says to be someone else.
    #[error("node `{from}` sent a packet in the name of `{claimed}`")]
    Forged {
        /// The sender.
        from: NodeName,
        /// Who it says to be.
        claimed: NodeName,
    },
    /// For another node: one that was at this address, or one of another cluster. Usual after a move.
    #[error("node `{from}` sent a packet that is for another node")]
    Astray {
        /// The sender.
        from: NodeName,
    },
    /// From another cluster.
    #[error("node `{from}` is of the cluster `{cluster}`")]
    OtherCluster {
        /// The sender.
        from: NodeName,
        /// Its cluster.
        cluster: ClusterId,
    },
}
