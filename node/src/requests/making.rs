//! Snapshots and clones, on this node.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use zdap_proto::message::{Answer, Progress, SnapshotView};
use zdap_proto::name::{RequestId, ResourceName, SnapshotId, SnapshotTime, UserName};
use zdap_proto::refusal::{Refusal, RefusalKind};

use super::listing::snapshot_view;
use super::{Answered, Made, resource_named};
use crate::bases::{RestoreState, no_snapshot};
use crate::clones::Order;
use crate::node::Node;

/// The clone that is wanted.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) resource: ResourceName,
    /// Of this snapshot; the newest when absent.
    pub(super) snapshot: Option<SnapshotTime>,
    pub(super) owner: UserName,
    pub(super) request_id: RequestId,
    /// How many times it was asked before.
    pub(super) attempt: u32,
}

/// Restores and snapshots, or snapshots what is there.
pub(super) async fn snapshot(
    node: &Arc<Node>,
    name: &ResourceName,
    use_existing: bool,
    progress: &mpsc::Sender<Progress>,
) -> Result<SnapshotView, Refusal> {
    let resource = resource_named(node, name)?;
    let name = &resource.name;
    let snapshot = match use_existing {
        true => node.bases.snapshot_existing(name, node.clock.now()).await?,
        false => follow(node.bases.restore(&resource, node.clock.now()), progress).await?,
    };
    let bytes = node.bases.bytes(&snapshot);
    Ok(snapshot_view(
        &node.name,
        Some(&node.clones.list()),
        &snapshot,
        bytes.unwrap_or_default(),
    ))
}

/// Makes a clone, in the place that is reserved for it if there is one.
pub(super) async fn clone(node: &Arc<Node>, wanted: Wanted) -> Result<Answered, Refusal> {
    let resource = resource_named(node, &wanted.resource)?;
    let order = Order {
        snapshot: snapshot_of(node, &resource.name, wanted.snapshot)?,
        resource,
        owner: wanted.owner,
        request_id: wanted.request_id,
        attempt: wanted.attempt,
        now: node.clock.now(),
    };
    let attempt = order.attempt;
    let now = Instant::now().into_std();
    let _place = node.reservations.take(&order.request_id, now);
    let (record, stages) = node.clones.create(order).await?;
    let made = stages.is_some().then(|| Made {
        clone: record.id.clone(),
        node: node.name.clone(),
        attempt,
    });
    let answer = Answer::Created {
        clone: record.view(&node.name),
        stages: stages.unwrap_or_default(),
        considered: Vec::new(),
    };
    Ok(Answered {
        made,
        ..answer.into()
    })
}

/// Returns the snapshot of a time, or the newest.
pub(super) fn snapshot_of(
    node: &Node,
    name: &ResourceName,
    time: Option<SnapshotTime>,
) -> Result<SnapshotId, Refusal> {
    match time {
        None => node.bases.newest(name).ok_or_else(|| no_snapshot(name)),
        Some(time) => node.bases.find(name, time).ok_or_else(|| {
            Refusal::new(
                RefusalKind::NotFound,
                format!("`{name}` has no snapshot of {time}"),
            )
            .with_hint(format!("`zdap list snaps {name}` shows them"))
        }),
    }
}

/// Passes a restore's progress on until it ends.
async fn follow(
    mut restore: watch::Receiver<RestoreState>,
    progress: &mpsc::Sender<Progress>,
) -> Result<SnapshotId, Refusal> {
    loop {
        let state = restore.borrow_and_update().clone();
        match state {
            RestoreState::Ended(result) => return result,
            // Nobody listens any more when this fails; the restore goes on.
            RestoreState::Running(step) => {
                let _ = progress.try_send(step);
            }
        }
        if restore.changed().await.is_err() {
            return Err(Refusal::new(
                RefusalKind::Failed,
                "the restore ended without a result; the node's log says more",
            ));
        }
    }
}
