//! Requests and replies: plain data. `lib.rs` says which stream carries which.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::name::{
    CloneId, ClusterId, NodeName, RequestId, ResourceName, SnapshotId, SnapshotTime, UserName,
};
use crate::refusal::Refusal;

/// What can be asked of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// How is this node? Answer: [`Answer::Status`].
    Status,
    /// Which resources are served here? Answer: [`Answer::Resources`].
    ListResources,
    /// Which snapshots are here? Answer: [`Answer::Snapshots`].
    ListSnapshots {
        /// Only of this one.
        resource: Option<ResourceName>,
    },
    /// Which clones are here? Answer: [`Answer::Clones`].
    ListClones {
        /// Only of this resource.
        resource: Option<ResourceName>,
        /// Everybody's; only nodes and admins may ask.
        all_owners: bool,
    },
    /// Restore and snapshot. Answers: progress, then [`Answer::Snapshot`]. The restore goes on if the asker leaves.
    CreateSnapshot {
        /// What to restore.
        resource: ResourceName,
        /// Snapshot the newest base as it is now instead.
        use_existing: bool,
    },
    /// Make a clone that answers. Answers: progress, then [`Answer::Created`].
    CreateClone {
        /// Of what.
        resource: ResourceName,
        /// Of this snapshot; the newest when absent.
        snapshot: Option<SnapshotTime>,
        /// For somebody else; only nodes and admins may say.
        owner: Option<UserName>,
        /// The same id again gives the same clone.
        request_id: RequestId,
    },
    /// Give a clone back. Answer: [`Answer::Destroyed`], also when it is gone already.
    DestroyClone {
        /// Which.
        clone: CloneId,
    },
    /// Give back everything of every owner on this node; only nodes and admins may. Answer: [`Answer::DestroyedAll`].
    DestroyAll {
        /// The bases and snapshots too.
        bases: bool,
    },
    /// A certificate that opens this one clone. Answer: [`Answer::Certificate`].
    IssueRelay {
        /// Which clone.
        clone: CloneId,
        /// The relay's public key (DER, SubjectPublicKeyInfo); the private key stays where it was made.
        public_key: Vec<u8>,
    },
    /// The account inside the clone's database. Answer: [`Answer::Account`].
    Account {
        /// Which clone.
        clone: CloneId,
    },
    /// The relay program. Answer: [`Answer::Relay`], then its bytes until the end of the stream.
    FetchRelay {
        /// The machine it is for, as `uname -m` calls it: `x86_64`, `aarch64`.
        architecture: String,
    },
    /// An invite. Answer: [`Answer::Token`]. Only nodes and admins may ask; only nodes for [`Invited::Node`].
    IssueToken {
        /// Whom it lets in.
        invited: Invited,
        /// How long it is good, in seconds.
        ttl_seconds: u32,
    },
}

/// Whom a token lets in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Invited {
    /// A user.
    User {
        /// Under this name; absent: under a new name of their own choice.
        name: Option<UserName>,
        /// With an admin's rights.
        admin: bool,
    },
    /// A peer, which is given the CA.
    Node,
}

/// One frame back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Still at it; more frames follow.
    Progress(Progress),
    /// Done; the last frame.
    Done(Answer),
    /// Not done; the last frame.
    Refused(Refusal),
}

/// How far a long request has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done, for a person: `running creation script`.
    pub stage: String,
    /// Since the work began, in milliseconds.
    pub elapsed_ms: u64,
    /// On disk so far, in bytes, where that means something.
    pub bytes: Option<u64>,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is the answer to the request of its name")]
pub enum Answer {
    Status(NodeStatus),
    Resources(Vec<ResourceView>),
    Snapshots(Vec<SnapshotView>),
    Clones(Vec<CloneView>),
    Snapshot(SnapshotView),
    Created { clone: CloneView, stages: Stages },
    Destroyed,
    DestroyedAll { clones: u32, bases: u32 },
    Certificate(Certificate),
    Account(Account),
    Relay { version: String, bytes: u64 },
    Token(TokenText),
}

/// A [`crate::token::Token`] as the line of text that people pass on. Never logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenText(pub String);

impl std::fmt::Debug for TokenText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenText").finish_non_exhaustive()
    }
}

/// A certificate and what it hangs from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// The cluster's CA certificate, DER.
    pub ca: Vec<u8>,
}

/// The account of a clone's database, as its resource file gives it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// `POSTGRES_USER`, or `postgres`.
    pub user: String,
    /// `POSTGRES_PASSWORD`, if there is one. Never logged.
    pub password: Option<String>,
    /// `POSTGRES_DB`, or the user's name.
    pub database: String,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("user", &self.user)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

/// How a node is, in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: NodeName,
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Where clients and peers connect, `host:port`.
    pub address: String,
    /// The version of its program.
    pub version: String,
    /// The names of the resources it serves.
    pub resources: Vec<ResourceName>,
    /// How many snapshots it has.
    pub snapshots: u32,
    /// How many clones, of all owners.
    pub clones: u32,
    /// Room left for clones, in bytes.
    pub free_bytes: u64,
    /// Room altogether, in bytes.
    pub total_bytes: u64,
    /// Memory that programs can still get, in bytes.
    pub available_memory_bytes: u64,
    /// Memory altogether, in bytes.
    pub total_memory_bytes: u64,
    /// Load averages of the last 1, 5 and 15 minutes.
    pub load: [f32; 3],
}

/// A resource as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceView {
    /// Its name.
    pub name: ResourceName,
    /// A second name for people.
    pub alias: Option<String>,
    /// The container image of its database.
    pub image: String,
    /// The node that serves it.
    pub node: NodeName,
    /// Its snapshots there, newest first.
    pub snapshots: Vec<SnapshotTime>,
}

/// A snapshot as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotView {
    /// What it is a snapshot of.
    pub resource: ResourceName,
    /// When it was taken.
    pub taken_at: SnapshotTime,
    /// The node that has it.
    pub node: NodeName,
    /// How many clones hang from it, of all owners.
    pub clones: u32,
    /// The data it refers to, in bytes.
    pub size_bytes: u64,
}

/// What a node must remember of a clone: the value of `zdap:record` on its dataset, as JSON of under 1 KiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRecord {
    /// Its name.
    pub id: CloneId,
    /// The request that made it.
    pub request_id: RequestId,
    /// Whose it is.
    pub owner: UserName,
    /// What it was made from; names the resource too.
    pub snapshot: SnapshotId,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// How far it has come.
    pub state: CloneState,
    /// Made for nobody yet, to be given to whoever asks first.
    pub pooled: bool,
    /// When it may be taken away; never, when absent.
    pub expires_at: Option<DateTime<Utc>>,
}

impl CloneRecord {
    /// Returns the resource it is a clone of.
    pub fn resource(&self) -> &ResourceName {
        &self.snapshot.base.resource
    }

    /// Returns it as clients see it.
    pub fn view(&self, node: &NodeName) -> CloneView {
        CloneView {
            id: self.id.clone(),
            resource: self.resource().clone(),
            node: node.clone(),
            owner: self.owner.clone(),
            snapshot: self.snapshot.taken_at,
            created_at: self.created_at,
            state: self.state,
            pooled: self.pooled,
            expires_at: self.expires_at,
        }
    }
}

/// The life of a clone: `creating -> ready -> destroying -> gone`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CloneState {
    /// The dataset is there; the database does not answer yet.
    Creating,
    /// The database has answered.
    Ready,
    /// On its way out.
    Destroying,
}

/// A clone as clients see it; its JSON is part of the contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneView {
    /// Its name.
    pub id: CloneId,
    /// What it is a clone of.
    pub resource: ResourceName,
    /// The node it lives on.
    pub node: NodeName,
    /// Whose it is.
    pub owner: UserName,
    /// The snapshot it was made from.
    pub snapshot: SnapshotTime,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// How far it has come.
    pub state: CloneState,
    /// Made for nobody yet.
    pub pooled: bool,
    /// When it may be taken away.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Where the time of making a clone went, in milliseconds; part of the contract.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Stages {
    /// Choosing a node.
    pub place_ms: f64,
    /// Reserving room there.
    pub reserve_ms: f64,
    /// Making the dataset.
    pub storage_ms: f64,
    /// Starting the instance.
    pub start_ms: f64,
    /// From started to answering.
    pub ready_ms: f64,
    /// All of it, at the node.
    pub total_ms: f64,
}

/// The first frame of a tunnel stream: which clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelHello {
    /// The clone whose database is wanted.
    pub clone: CloneId,
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
