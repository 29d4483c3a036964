//! Who a member of the cluster is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zdap_proto::digest::MAX_GENERATION;
use zdap_proto::name::{ClusterId, NodeName};

/// One life of a node: a name is one member, and the life with the highest epoch speaks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PeerBytes", into = "PeerBytes")]
pub struct Peer {
    /// What members are told apart by: foca asks for it, by value, once for every member it looks at.
    pub(super) key: u128,
    /// Shared, since foca and the mirror both hold it.
    pub(super) name: Arc<NodeName>,
    pub(super) address: SocketAddr,
    pub(super) epoch: u64,
}

/// What is not a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Nothing can be sent there.
    #[error("node `{name}` at {address}: nothing can be sent to that address")]
    Address {
        /// Whose.
        name: NodeName,
        /// What it said.
        address: SocketAddr,
    },
    /// An epoch that leaves no higher one.
    #[error("node `{name}` has the epoch {epoch}, above {MAX_GENERATION}")]
    Epoch {
        /// Whose.
        name: NodeName,
        /// What it said.
        epoch: u64,
    },
}

impl Peer {
    /// Makes a peer of `name`, reached at `address`; `epoch` must be above that of every life before.
    pub fn new(name: NodeName, address: SocketAddr, epoch: u64) -> Result<Self, PeerError> {
        if address.ip().is_unspecified() || address.port() == 0 {
            return Err(PeerError::Address { name, address });
        }
        if epoch > MAX_GENERATION {
            return Err(PeerError::Epoch { name, epoch });
        }
        Ok(Self {
            key: key(name.as_str()),
            name: Arc::new(name),
            address,
            epoch,
        })
    }

    /// Returns the name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Returns where it is reached.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether this life speaks for the name rather than `other`. A total order, so that all sides agree.
    pub(super) fn wins(&self, other: &Self) -> bool {
        (self.epoch, self.address) > (other.epoch, other.address)
    }

    /// Returns six bytes for packets to be addressed with: three for the node of this cluster, three for this life.
    pub(super) fn label(&self, cluster: &ClusterId) -> [u8; 6] {
        let node = fnv(
            fnv(FNV_BASIS, cluster.as_str().as_bytes()),
            self.name.as_str().as_bytes(),
        );
        let life = match self.address.ip() {
            IpAddr::V4(address) => fnv(node, &address.octets()),
            IpAddr::V6(address) => fnv(node, &address.octets()),
        };
        let life = fnv(life, &self.address.port().to_le_bytes());
        let life = fnv(life, &self.epoch.to_le_bytes());
        let mut label = [0; 6];
        label[..3].copy_from_slice(&node.to_le_bytes()[..3]);
        label[3..].copy_from_slice(&life.to_le_bytes()[..3]);
        label
    }
}

impl foca::Identity for Peer {
    type Addr = u128;

    /// Never: when and how far the epoch goes up is decided in one place, which foca tells by `Defunct`.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> u128 {
        self.key
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.wins(adversary)
    }
}

/// The parts of a peer as they travel.
#[derive(Serialize, Deserialize)]
struct PeerBytes {
    name: NodeName,
    address: SocketAddr,
    epoch: u64,
}

impl TryFrom<PeerBytes> for Peer {
    type Error = PeerError;

    fn try_from(bytes: PeerBytes) -> Result<Self, PeerError> {
        Self::new(bytes.name, bytes.address, bytes.epoch)
    }
}

impl From<Peer> for PeerBytes {
    fn from(peer: Peer) -> Self {
        Self {
            name: NodeName::clone(&peer.name),
            address: peer.address,
            epoch: peer.epoch,
        }
    }
}

/// FNV-1a of 128 bits over a name: two names of one cluster never share it.
fn key(name: &str) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    name.bytes()
        .fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

/// FNV-1a over `bytes`, on from `hash`. It tells packets apart, it keeps nobody out: that is TLS's part.
pub(super) fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Where FNV-1a starts.
pub(super) const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
