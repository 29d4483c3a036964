//! Requests and replies: plain data. `lib.rs` says which stream carries which.

mod entry;
mod offer;
mod view;

use serde::{Deserialize, Serialize};

pub use self::entry::{EnrolReply, EnrolRequest, Enrolled, TunnelHello, TunnelReply, Wanted};
pub use self::offer::{Bottleneck, Considered, Offered, Outcome};
pub use self::view::{
    CloneRecord, CloneState, CloneView, FoundClone, NodeState, NodeView, ResourceView, SnapshotView, Stages,
};
use crate::identity::Subject;
use crate::name::{CloneId, NodeName, RequestId, ResourceName, SnapshotTime, UserName};
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

/// A node that did not answer, so that what it has is not in the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentNode {
    /// Which.
    pub node: NodeName,
    /// Why not, in a line.
    pub reason: String,
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
