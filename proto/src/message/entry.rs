//! The first frames of the streams that are not requests: tunnels and enrolment.

use serde::{Deserialize, Serialize};

use super::Certificate;
use crate::identity::Subject;
use crate::name::{CloneId, ClusterId, NodeName, UserName};
use crate::refusal::Refusal;

/// The first frame of a tunnel stream: which clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelHello {
    /// The clone whose database is wanted.
    pub clone: CloneId,
    /// Who wants it, when a node passes on the connection of somebody else. Nodes alone may say; what they are answered is
    /// the owner node's own.
    pub on_behalf_of: Option<Subject>,
}

/// The answer to a [`TunnelHello`]; after `Open` the stream is the database connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TunnelReply {
    /// Connected.
    Open,
    /// Not connected, and why.
    Refused(Refusal),
}

/// A token, and the public key that wants a certificate for it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The token's one-time secret.
    pub secret: Vec<u8>,
    /// The public key (DER, SubjectPublicKeyInfo); the private key stays where it was made.
    pub public_key: Vec<u8>,
    /// The name wanted.
    pub wanted: Wanted,
}

impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolRequest")
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}

/// Who wants to be enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// A user; the token may name them, else this name is used.
    User {
        /// The name the user has set, if any.
        name: Option<UserName>,
    },
    /// A node under this name.
    Node {
        /// Its name.
        name: NodeName,
    },
}

/// The answer to an [`EnrolRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrolReply {
    /// Welcome.
    Enrolled(Enrolled),
    /// Not let in, and why.
    Refused(Refusal),
}

/// What a newcomer is given.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// The cluster it belongs to now.
    pub cluster: ClusterId,
    /// Its certificate.
    pub certificate: Certificate,
    /// For nodes only: the CA's private key (PKCS #8 DER), since all nodes are peers and hold the same data.
    pub ca_key: Option<Vec<u8>>,
    /// The addresses of the nodes that are known, `host:port`.
    pub nodes: Vec<String>,
}

impl std::fmt::Debug for Enrolled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enrolled")
            .field("cluster", &self.cluster)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}
