//! What went wrong inside -> what the asker is told. The one place where inner errors become [`Refusal`]s.

use zdap_proto::refusal::{Refusal, RefusalKind, chain};

use crate::peers::{PeerError, Trouble};
use crate::runtime::RuntimeError;
use crate::script::ScriptError;
use crate::storage::StorageError;

/// Says what a storage error means to the asker.
pub fn storage(error: &StorageError) -> Refusal {
    let message = chain(error);
    match error {
        StorageError::Missing(_) => Refusal::new(RefusalKind::NotFound, message),
        StorageError::Busy(_) => Refusal::new(RefusalKind::Unavailable, message)
            .with_hint("something still uses it; try again in a minute"),
        StorageError::HasClones(_) => Refusal::new(RefusalKind::Conflict, message)
            .with_hint("destroy its clones first; `zdapd list clones` on the node shows them"),
        StorageError::Full(_) => Refusal::new(RefusalKind::Full, message)
            .with_hint("free space by destroying clones that nobody uses; `zdap list clones` shows yours"),
        StorageError::Unusable { hint, .. } | StorageError::NotOurs { hint, .. } => {
            Refusal::new(RefusalKind::Unavailable, message).with_hint(hint)
        }
        StorageError::Command { .. } | StorageError::Io { .. } | StorageError::Unreadable(_) => {
            Refusal::new(RefusalKind::Failed, message)
        }
    }
}

/// Says what a runtime error means to the asker.
pub fn runtime(error: &RuntimeError) -> Refusal {
    let message = chain(error);
    match error {
        RuntimeError::ImageMissing(image) => Refusal::new(RefusalKind::Unavailable, message).with_hint(format!(
            "the node fetches it in the background where it can; else run `docker pull {image}` or `docker load` there"
        )),
        RuntimeError::Exited { .. } | RuntimeError::NotClean { .. } | RuntimeError::Failed { .. } => {
            Refusal::new(RefusalKind::Failed, message)
        }
        RuntimeError::NotReady { .. } => Refusal::new(RefusalKind::Timeout, message)
            .with_hint("`timeouts.ready` in the resource file says how long a database may take to answer"),
        RuntimeError::Unsupported { hint, .. } => Refusal::new(RefusalKind::Invalid, message).with_hint(hint),
    }
}

/// Says what a failed script means to the asker.
pub fn script(error: &ScriptError) -> Refusal {
    let message = chain(error);
    match error {
        ScriptError::Start { .. } => Refusal::new(RefusalKind::Failed, message)
            .with_hint("its first line must name an interpreter that is on the node, such as `#!/bin/sh`"),
        ScriptError::Failed { .. } => Refusal::new(RefusalKind::Failed, message),
        ScriptError::TimedOut { .. } => Refusal::new(RefusalKind::Timeout, message).with_hint(
            "`timeouts.retrieval` and `timeouts.creation` in the resource file say how long scripts may take",
        ),
    }
}

/// Says what the trouble with another node means to the asker. What that node itself refuses is passed on.
pub fn peer(error: &PeerError) -> Refusal {
    match &error.trouble {
        Trouble::Refused(refusal) => refusal.clone(),
        Trouble::Unknown => Refusal::new(
            RefusalKind::NotFound,
            format!("there is no node `{}`", error.node),
        )
        .with_hint(NODES),
        Trouble::Down
        | Trouble::Unreachable(_)
        | Trouble::Another { .. }
        | Trouble::Slow(_)
        | Trouble::Lost(_)
        | Trouble::Misunderstood(_)
        | Trouble::OddAnswer => Refusal::new(RefusalKind::Unavailable, chain(error)).with_hint(NODES),
    }
}

const NODES: &str = "`zdap list nodes` shows how the nodes are";
