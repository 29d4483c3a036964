//! What is asked for when a clone is made, and the record that it becomes.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use rand::rngs::StdRng;
use zdap_proto::message::{CloneRecord, CloneState};
use zdap_proto::name::{CloneId, RequestId, SnapshotId, UserName};

use crate::resource::Resource;

/// What is wanted of [`Clones::create`](super::Clones::create).
#[derive(Debug, Clone)]
pub struct Order {
    /// What it is a clone of.
    pub resource: Arc<Resource>,
    /// From which state.
    pub snapshot: SnapshotId,
    /// For whom.
    pub owner: UserName,
    /// The same id from the same owner again gives the same clone.
    pub request_id: RequestId,
    /// How many times it was asked before, anywhere.
    pub attempt: u32,
    /// Now.
    pub now: DateTime<Utc>,
}

impl Order {
    pub(super) fn record(&self, names: &mut StdRng) -> CloneRecord {
        CloneRecord {
            id: CloneId::drawn(&self.resource.name, names),
            request_id: self.request_id.clone(),
            attempt: self.attempt,
            owner: self.owner.clone(),
            snapshot: self.snapshot.clone(),
            created_at: self.now,
            state: CloneState::Creating,
            pooled: false,
            expires_at: self
                .resource
                .ttl
                .and_then(|ttl| self.now.checked_add_signed(TimeDelta::from_std(ttl).ok()?)),
        }
    }
}
