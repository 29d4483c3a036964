//! A clone from nodes that may be lost while they make it: asked for until it is known what has become of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use zdap_proto::message::{Answer, CloneView, Considered, Progress, Request, Stages};
use zdap_proto::name::{NodeName, RequestId, ResourceName, SnapshotTime};
use zdap_proto::refusal::{RefusalKind, chain};

use super::Cluster;
use crate::node::{Node, NodeError};

/// A clone that was made, where the time went, and what else it could have been made on.
#[derive(Debug, Clone, PartialEq)]
pub struct Created {
    /// The clone.
    pub clone: CloneView,
    /// Where the time went.
    pub stages: Stages,
    /// The chosen node first; none when nothing had to be chosen.
    pub considered: Vec<Considered>,
}

impl Cluster {
    /// Has a clone made, on `pinned` or on the best node. Under one request id, so that it is one clone whatever became of
    /// the first try. `doubt` is true for as long as a clone may have been made that nobody has told us of: also after a
    /// failure, and when this is dropped.
    pub async fn create_clone(
        &self,
        resource: &ResourceName,
        snapshot: Option<SnapshotTime>,
        pinned: Option<NodeName>,
        doubt: &AtomicBool,
        mut progress: impl FnMut(Progress),
    ) -> Result<Created, NodeError> {
        let request = Request::CreateClone {
            resource: resource.clone(),
            snapshot,
            node: pinned,
            owner: None,
            request_id: RequestId::random(),
            attempt: 0,
        };
        let (answer, node) = self.ask_until_known(request, doubt, &mut progress).await?;
        let Answer::Created {
            clone,
            stages,
            considered,
        } = answer
        else {
            return Err(node.other_answer());
        };
        Ok(Created {
            clone,
            stages,
            considered,
        })
    }

    /// Asks, and another node once more when the first cannot do it now. A node that is lost may be making the clone, which
    /// others cannot tell while they do not reach it either: then whichever answers is asked until one can.
    async fn ask_until_known(
        &self,
        mut request: Request,
        doubt: &AtomicBool,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(Answer, Node), NodeError> {
        let mut doubted_until = None;
        let mut tries = 0;
        let mut node = self.node().await;
        loop {
            let mut error = match node.ask(&request, &mut *progress).await {
                Ok(answer) => {
                    doubt.store(false, Ordering::Relaxed);
                    return Ok((answer, node));
                }
                Err(error) => error,
            };
            match &error {
                NodeError::Connect(lost) if !lost.is_definite() => {
                    doubt.store(true, Ordering::Relaxed);
                    doubted_until.get_or_insert_with(|| Instant::now() + DOUBT_DEADLINE);
                }
                // Whoever says no otherwise has looked for it.
                NodeError::Refused { refusal, .. } if refusal.kind != RefusalKind::Unavailable => {
                    doubt.store(false, Ordering::Relaxed);
                }
                NodeError::Connect(_)
                | NodeError::Refused { .. }
                | NodeError::Misunderstood { .. }
                | NodeError::OtherAnswer { .. }
                | NodeError::Cut { .. }
                | NodeError::Broken { .. }
                | NodeError::OtherRelay { .. } => {}
            }
            node = loop {
                let is_time = match doubted_until {
                    Some(until) => Instant::now() < until,
                    None => tries == 0 && self.0.addresses.len() > 1,
                };
                if !error.is_its_own() || !is_time {
                    return Err(error);
                }
                tracing::debug!("asking again: {}", chain(&error));
                if tries > 0 {
                    tokio::time::sleep(PAUSE).await;
                }
                tries += 1;
                match self.another(&node).await {
                    Ok(node) => break node,
                    Err(unreached) => error = unreached,
                }
            };
            if let Request::CreateClone { attempt, .. } = &mut request {
                *attempt += 1;
            }
        }
    }
}

/// A node that has crashed is back by then, or is taken for dead by the others, who then take back what it has made.
const DOUBT_DEADLINE: Duration = Duration::from_secs(30);
/// Between two questions about the same clone.
const PAUSE: Duration = Duration::from_millis(500);
