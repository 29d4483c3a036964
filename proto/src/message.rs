//! Requests and replies: plain data. `lib.rs` says which stream carries which.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::identity::Subject;
use crate::name::{
    CloneId, ClusterId, NodeName, RequestId, ResourceName, SnapshotId, SnapshotTime, UserName,
};
use crate::refusal::Refusal;

/// The first frame of a control stream: a request, and who answers it.
///
/// Without `on_behalf_of` it is the peer's own request and the node answers for the whole cluster. Nodes, and they alone,
/// may ask on behalf of somebody: then the rights are that one's, and the node answers for itself alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Whose request it is, when it is not the peer's own.
    pub on_behalf_of: Option<Subject>,
    /// What is asked.
    pub request: Request,
}

/// What can be asked of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Which resources are served? Answer: [`Answer::Resources`].
    ListResources,
    /// Which snapshots are there? Answer: [`Answer::Snapshots`].
    ListSnapshots {
        /// Only of this one.
        resource: Option<ResourceName>,
    },
    /// Which clones are there? Answer: [`Answer::Clones`].
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
        /// On this node; on the best one when absent.
        node: Option<NodeName>,
        /// For somebody else; only nodes and admins may say.
        owner: Option<UserName>,
        /// The same id again gives the same clone.
        request_id: RequestId,
        /// How many times this has been asked before, maybe of other nodes: if ever, what came of that is looked for first.
        /// Whoever asks heeds the answer to the last time only.
        attempt: u32,
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
    /// Which nodes are there, and how are they? Answer: [`Answer::Nodes`].
    ListNodes,
    /// Place no more clones here, or do so again; only nodes and admins may ask, and it is always this node alone.
    /// Answer: [`Answer::Drained`].
    Drain {
        /// Whether no more are to be placed.
        is_draining: bool,
    },
    /// Let no certificate of this user in any more, anywhere; only nodes and admins may ask. Answer: [`Answer::Revoked`].
    Revoke {
        /// Whose.
        user: UserName,
    },
    /// A fresh certificate for whom the peer's own is for. Answer: [`Answer::Certificate`].
    Renew {
        /// The public key (DER, SubjectPublicKeyInfo); the private key stays where it was made.
        public_key: Vec<u8>,
    },
    /// Is this clone here? Only nodes may ask, and it is always this node alone. Answer: [`Answer::Found`].
    Find(Sought),
    /// How loaded would you be with one more clone of this? Only nodes may ask, and it is always this node alone. Answer:
    /// [`Answer::Offered`].
    Offer {
        /// What the clone would be of.
        resource: ResourceName,
        /// Of which snapshot.
        snapshot: SnapshotTime,
    },
    /// Keep room for one more clone of this, for a while. Only nodes may ask, and it is always this node alone. Answer:
    /// [`Answer::Reserved`], or [`Answer::Offered`] with what it costs now if that is more than `at_most`. The
    /// [`Request::CreateClone`] of the same request id takes it.
    Reserve {
        /// What the clone will be of.
        resource: ResourceName,
        /// Of which snapshot.
        snapshot: SnapshotTime,
        /// The clone's request; the same again is the same reservation.
        request_id: RequestId,
        /// Do not when it costs more than this, as nodes compare places; at any cost when infinite.
        at_most: f64,
    },
    /// Wait no more for a node that is down for good; only nodes and admins may ask. Answer: [`Answer::Forgotten`].
    Forget {
        /// Which.
        node: NodeName,
    },
    /// Give a clone of this node back, unless it was the answer to a later attempt than this. Only nodes may ask. Answer:
    /// [`Answer::TakenBack`].
    TakeBack {
        /// Which.
        clone: CloneId,
        /// The last one that it was the answer to, as far as the asker knows.
        attempt: u32,
    },
}

/// A clone that is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sought {
    /// By its name.
    Clone(CloneId),
    /// By the request that made it.
    Made {
        /// Whose it is.
        owner: UserName,
        /// The request.
        request_id: RequestId,
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
    Resources(Vec<ResourceView>),
    Snapshots(Vec<SnapshotView>),
    Clones {
        clones: Vec<CloneView>,
        /// The nodes that could not be asked.
        silent: Vec<SilentNode>,
    },
    Snapshot(SnapshotView),
    Created {
        clone: CloneView,
        stages: Stages,
        /// The nodes that were considered, the chosen one first; none when nothing had to be chosen.
        considered: Vec<Considered>,
    },
    Destroyed,
    DestroyedAll {
        clones: u32,
        bases: u32,
    },
    Certificate(Certificate),
    Account(Account),
    Relay {
        version: String,
        bytes: u64,
    },
    Token(TokenText),
    Nodes(Vec<NodeView>),
    Drained,
    Revoked {
        /// Whether any node has ever heard of the user.
        is_known: bool,
    },
    Found(Option<FoundClone>),
    Offered {
        offered: Offered,
        /// How much one further clone would add to what nodes compare places by.
        per_clone: f64,
        /// How many clones it has, promised ones included.
        clones: u32,
    },
    Reserved,
    Forgotten,
    TakenBack {
        /// Whether it is gone; else it was asked for again.
        is_gone: bool,
    },
}

/// A clone that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundClone {
    /// It.
    pub clone: CloneView,
    /// See [`CloneRecord::attempt`].
    pub attempt: u32,
}

/// A node that did not answer, so that what it has is not in the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentNode {
    /// Which.
    pub node: NodeName,
    /// Why not, in a line.
    pub reason: String,
}

/// How loaded a node would be with one more clone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Offered {
    /// The largest share of what it has that would be taken: 1 is all of it.
    pub load: f64,
    /// What that is a share of.
    pub bottleneck: Bottleneck,
    /// The share of the clones alone, of as many as are sensible for its size: 1 is all of them. Nodes compare places by
    /// this, and by what `load` has above a half.
    pub clones: f64,
}

/// What a node would run out of first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bottleneck {
    /// Room in its pool.
    Pool,
    /// Memory.
    Memory,
    /// Processor.
    Processor,
    /// The number of clones that are sensible for its size.
    Clones,
}

/// A node that was considered for a clone, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Considered {
    /// Which.
    pub node: NodeName,
    /// How loaded it would be, as far as the asked node knew; none for one that was out of the question.
    pub expected: Option<Offered>,
    /// How loaded it would be, as it says itself; none for one that was not asked.
    pub offered: Option<Offered>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of considering a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The clone is there.
    Chosen,
    /// Another one was better.
    Passed,
    /// It cannot have it, for this reason.
    Refused(String),
}

/// A node as others know it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// Where clients and peers connect, `host:port`.
    pub address: String,
    /// Whether it answers.
    pub state: NodeState,
    /// Grows with each of its starts.
    pub generation: u64,
    /// How many clones, of all owners.
    pub clones: u32,
    /// How many snapshots.
    pub snapshots: u32,
    /// Room left for clones, in bytes.
    pub free_bytes: u64,
    /// Room altogether, in bytes.
    pub total_bytes: u64,
    /// Memory that programs can still get, in bytes.
    pub available_memory_bytes: u64,
    /// Memory altogether, in bytes.
    pub total_memory_bytes: u64,
    /// Load of the last minute as a share of its processors: 1 is all of them busy.
    pub load: f64,
    /// The names of the resources it serves.
    pub resources: Vec<ResourceName>,
    /// The version of its program; empty while it is not known.
    pub version: String,
}

/// How a node is, as far as others know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It answers.
    Alive,
    /// It answers, and no more clones are placed there.
    Draining,
    /// It did not answer just now.
    Suspect,
    /// It has left or is given up. What it holds stays.
    Down,
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
    /// The last of that request's attempts that it was an answer to. Of two clones of one request, as they come about where
    /// nodes are lost in the middle, the one with the higher number is the one that somebody has.
    #[serde(default)]
    pub attempt: u32,
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
