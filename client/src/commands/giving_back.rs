//! Clones back to their nodes, several at a time.

use futures_util::{StreamExt, stream};
use zdap_proto::name::CloneId;
use zdap_proto::refusal::chain;

use super::Found;
use crate::context::Context;
use crate::node::NodeError;

/// A clone, and whether it went back.
pub(super) struct Given<'a> {
    pub(super) clone: &'a CloneId,
    pub(super) result: Result<(), NodeError>,
}

/// Gives clones back and returns what came of each, in their order. One that cannot go back keeps no other from it.
pub(super) async fn give_back<'a>(context: &Context<'_>, clones: &'a [Found]) -> Vec<Given<'a>> {
    let progress = |done: usize| {
        context.output.doing(match clones {
            [Found { clone, .. }] => format!("destroying {} on {}", clone.id, clone.node),
            several => format!("destroyed {done} of {}", several.len()),
        });
    };
    if clones.is_empty() {
        return Vec::new();
    }
    progress(0);
    let destroying = stream::iter(clones.iter().enumerate()).map(async |(index, found)| {
        let result = found.cluster.destroy(&found.clone.id).await;
        let clone = &found.clone.id;
        (index, Given { clone, result })
    });
    let mut destroying = std::pin::pin!(destroying.buffer_unordered(AT_ONCE));
    let (mut given, mut destroyed) = (Vec::new(), 0);
    while let Some((index, one)) = destroying.next().await {
        destroyed += usize::from(one.result.is_ok());
        progress(destroyed);
        given.push((index, one));
    }
    given.sort_by_key(|(index, _)| *index);
    given.into_iter().map(|(_, one)| one).collect()
}

/// Returns a line for each clone: those that are destroyed, then those that are not and why, then `other` faults.
pub(super) fn outcomes(given: &[Given<'_>], other: &[String]) -> String {
    let destroyed = given.iter().filter(|one| one.result.is_ok());
    let destroyed = destroyed.map(|one| format!("\n  {} destroyed", one.clone));
    let failed = given.iter().filter_map(|one| {
        let error = one.result.as_ref().err()?;
        Some(format!("\n  {}: {}", one.clone, chain(error)))
    });
    let other = other.iter().map(|fault| format!("\n  {fault}"));
    destroyed.chain(failed).chain(other).collect()
}

/// Each takes its node a second or two; more at once would only wait for its disk.
const AT_ONCE: usize = 8;
