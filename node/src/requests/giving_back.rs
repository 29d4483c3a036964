//! The end of clones: one, or everything on this node.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use zdap_proto::message::Answer;
use zdap_proto::name::CloneId;
use zdap_proto::refusal::{Refusal, RefusalKind};

use super::asker::Asker;
use super::count;
use crate::node::Node;
use crate::storage::DatasetId;

/// Destroys a clone of this node, if it is there.
pub(super) async fn clone(node: &Node, asker: &Asker, clone: &CloneId) -> Result<(), Refusal> {
    if let Some(record) = node.clones.find(clone) {
        asker.must_reach(&record)?;
        node.clones.destroy(clone).await;
    }
    Ok(())
}

/// Destroys every clone of this node, and with `bases` its bases and snapshots too.
pub(super) async fn everything(node: &Arc<Node>, bases: bool) -> Result<Answer, Refusal> {
    let clones = node.clones.list();
    join_all(clones.iter().map(|clone| node.clones.destroy(&clone.id))).await;
    let left = node
        .clones
        .list()
        .into_iter()
        .filter(|clone| clones.iter().any(|other| other.id == clone.id))
        .count();
    if left > 0 {
        return Err(Refusal::new(
            RefusalKind::Unavailable,
            format!("{left} of {} clones are still busy", clones.len()),
        )
        .with_hint("they are marked and go as soon as nothing uses them"));
    }
    let mut removed = 0;
    if bases {
        let all: BTreeSet<_> = node
            .bases
            .list()
            .into_iter()
            .map(|(snapshot, _)| snapshot.base)
            .collect();
        for base in all {
            node.bases.remove(&DatasetId::Base(base)).await?;
            removed += 1;
        }
    }
    Ok(Answer::DestroyedAll {
        clones: count(clones.len()),
        bases: removed,
    })
}
