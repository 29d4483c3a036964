//! Nodes, resources, snapshots and clones as they are listed and written down.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::name::{CloneId, NodeName, RequestId, ResourceName, SnapshotId, SnapshotTime, UserName};

/// A clone that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundClone {
    /// It.
    pub clone: CloneView,
    /// See [`CloneRecord::attempt`].
    pub attempt: u32,
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
    /// How many clones hang from it, of all owners; its own node alone knows.
    pub clones: Option<u32>,
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
