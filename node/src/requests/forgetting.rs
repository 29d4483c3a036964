//! A node that is gone for good.

use zdap_proto::name::NodeName;
use zdap_proto::refusal::{Refusal, RefusalKind};

use super::certificates::not_written;
use crate::cluster::ForgetError;
use crate::node::Node;

/// Has all nodes forget one that is down.
pub(super) fn node(node: &Node, name: &NodeName) -> Result<(), Refusal> {
    match node.cluster.forget(name) {
        Ok(()) => {
            tracing::info!(node = %name, "forgotten");
            Ok(())
        }
        Err(ForgetError::Unknown) => {
            let view = node.cluster.view();
            let names: Vec<&str> = view.members.keys().map(NodeName::as_str).collect();
            Err(Refusal::new(
                RefusalKind::NotFound,
                format!("there is no node `{name}`; there are {}", names.join(", ")),
            ))
        }
        Err(ForgetError::Itself) => Err(Refusal::new(
            RefusalKind::Conflict,
            format!("node `{name}` is this very node"),
        )
        .with_hint("stop it, and run the command on another node")),
        Err(ForgetError::NotDown) => Err(Refusal::new(
            RefusalKind::Conflict,
            format!("node `{name}` is not down"),
        )
        .with_hint("stop it first; one that has just died is known to be down within seconds")),
        Err(ForgetError::Unwritten(error)) => Err(not_written("that it is forgotten", &error)),
    }
}
