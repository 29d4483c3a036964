//! A node that is gone for good.

use zdap_proto::name::NodeName;
use zdap_proto::refusal::{Refusal, RefusalKind};

use super::certificates::not_written;
use crate::gossip::MemberState;
use crate::node::Node;

/// Has all nodes forget one that is down; once more does no harm.
pub(super) fn node(node: &Node, name: &NodeName) -> Result<(), Refusal> {
    let view = node.cluster.view();
    let conflict = |message: String| Refusal::new(RefusalKind::Conflict, message);
    match view.members.get(name).map(|seen| seen.state) {
        _ if *name == node.name => Err(conflict(format!("node `{name}` is this very node"))
            .with_hint("stop it, and run the command on another node")),
        Some(MemberState::Alive | MemberState::Suspect) => {
            Err(conflict(format!("node `{name}` is not down"))
                .with_hint("stop it first; one that has just died is known to be down within seconds"))
        }
        None if !node.cluster.has_forgotten(name) => {
            let names: Vec<&str> = view.members.keys().map(NodeName::as_str).collect();
            let message = format!("there is no node `{name}`; there are {}", names.join(", "));
            Err(Refusal::new(RefusalKind::NotFound, message))
        }
        None | Some(MemberState::Down) => {
            let written = node.cluster.forget(name);
            written.map_err(|error| not_written("that it is forgotten", &error))?;
            tracing::info!(node = %name, "forgotten");
            Ok(())
        }
    }
}
