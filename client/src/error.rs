//! How a command fails: what went wrong in one text, the remedy, and the exit code that goes with it.

use std::error::Error;

use zdap_proto::connect::ConnectError;
use zdap_proto::identity::IdentityError;
use zdap_proto::name::NameError;
use zdap_proto::refusal::{Refusal, RefusalKind, chain};
use zdap_proto::token::TokenError;
use zdap_proto::transport::TransportError;
use zdap_proto::tunnel::TunnelError;

use crate::compose::ComposeError;
use crate::engine::EngineError;
use crate::node::NodeError;
use crate::origin::OriginError;
use crate::project::ProjectError;
use crate::settings::SettingsError;
use crate::words::WordsError;

/// The end of a command that did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of end.
    pub kind: Kind,
    /// What went wrong, with the values; several lines where a list belongs to it.
    pub message: String,
    /// The remedy, where there is one to name.
    pub hint: Option<String>,
}

/// What kind of end a command has come to: its exit code, and its name in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something on this machine is not as it has to be.
    Failed,
    /// A node said no.
    Refused(RefusalKind),
    /// What was typed makes no sense.
    Usage,
    /// No node was reached.
    Unreachable,
    /// It took longer than `--timeout` allows.
    TimedOut,
    /// Ctrl-C.
    Interrupted,
    /// Asked to end by SIGTERM.
    Terminated,
    /// Nobody reads our output any more, and that is all right.
    BrokenPipe,
}

impl Kind {
    /// Returns the exit code; the contract is in the help.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::BrokenPipe => 0,
            Self::Failed | Self::Refused(_) | Self::TimedOut => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Interrupted => 130, // 128 and the number of the signal, as shells have it
            Self::Terminated => 143,
        }
    }

    /// Returns its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Failed | Self::Refused(RefusalKind::Failed) => "failed",
            Self::Refused(RefusalKind::Invalid) => "invalid",
            Self::Refused(RefusalKind::NotFound) => "not_found",
            Self::Refused(RefusalKind::Forbidden) => "forbidden",
            Self::Refused(RefusalKind::Conflict) => "conflict",
            Self::Refused(RefusalKind::Unavailable) => "unavailable",
            Self::Refused(RefusalKind::Full) => "full",
            Self::Refused(RefusalKind::Timeout) | Self::TimedOut => "timeout",
            Self::Usage => "usage",
            Self::Unreachable => "unreachable",
            Self::Interrupted => "interrupted",
            Self::Terminated => "terminated",
            Self::BrokenPipe => "broken_pipe",
        }
    }
}

impl Failure {
    /// Fails for a reason on this machine.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Failed,
            message: message.into(),
            hint: None,
        }
    }

    /// Fails because there is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(message).of_kind(Kind::Refused(RefusalKind::NotFound))
    }

    /// Fails for a reason that something else gives.
    pub fn caused(message: &str, cause: &dyn Error) -> Self {
        Self::new(format!("{message}: {}", chain(cause)))
    }

    /// Says what kind of end it is.
    #[must_use]
    pub fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Adds the remedy.
    #[must_use]
    pub fn hinted(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the remedy, if there is one.
    #[must_use]
    pub fn maybe_hinted(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self {
            kind: Kind::Refused(refusal.kind),
            message: refusal.message,
            hint: refusal.hint,
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::new(chain(&error))
            .of_kind(Kind::Unreachable)
            .maybe_hinted(error.hint())
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Refused { refusal, .. } => refusal.into(),
            NodeError::Connect(error) => error.into(),
            NodeError::Misunderstood { .. }
            | NodeError::OtherAnswer { .. }
            | NodeError::OtherRelay { .. } => {
                Self::new(chain(&error)).hinted("use the same version of zdap here and on the node")
            }
            NodeError::Cut { .. } | NodeError::Broken { .. } => Self::new(chain(&error)),
        }
    }
}

impl From<OriginError> for Failure {
    fn from(error: OriginError) -> Self {
        let hint = error.hint();
        let kind = match error {
            OriginError::NoneSet | OriginError::NoneReached { .. } => Kind::Unreachable,
            OriginError::NoSuchNode { .. } => Kind::Refused(RefusalKind::NotFound),
            OriginError::Node(error) => return error.into(),
            OriginError::Settings(error) => return error.into(),
        };
        Self::new(chain(&error)).of_kind(kind).maybe_hinted(hint)
    }
}

impl From<WordsError> for Failure {
    fn from(error: WordsError) -> Self {
        Self::new(chain(&error))
            .of_kind(Kind::Usage)
            .maybe_hinted(error.hint())
    }
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Self {
        Self::new(chain(&error)).of_kind(Kind::Usage)
    }
}

macro_rules! failed {
    ($($type:ty: $hint:expr),* $(,)?) => {
        $(impl From<$type> for Failure {
            fn from(error: $type) -> Self {
                let hint: fn(&$type) -> Option<String> = $hint;
                Self::new(chain(&error)).maybe_hinted(hint(&error))
            }
        })*
    };
}

failed! {
    SettingsError: SettingsError::hint,
    ProjectError: ProjectError::hint,
    EngineError: |_| None,
    ComposeError: ComposeError::hint,
    IdentityError: IdentityError::hint,
    TokenError: |_| Some("copy the whole line that `zdapd token user` printed".to_owned()),
    TransportError: |_| None,
    TunnelError: TunnelError::hint,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        assert_eq!(Kind::Failed.exit_code(), 1);
        assert_eq!(Kind::Refused(RefusalKind::Full).exit_code(), 1);
        assert_eq!(Kind::Usage.exit_code(), 2);
        assert_eq!(Kind::Unreachable.exit_code(), 3);
        assert_eq!(Kind::BrokenPipe.exit_code(), 0);
    }

    #[test]
    fn a_refusal_keeps_its_words_and_its_hint() {
        let refusal = Refusal::new(RefusalKind::Full, "no room for `orders`").with_hint("destroy a clone");
        let failure = Failure::from(refusal);
        assert_eq!(failure.message, "no room for `orders`");
        assert_eq!(failure.hint.as_deref(), Some("destroy a clone"));
        assert_eq!(failure.kind.name(), "full");
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        let error = SettingsError::Io {
            action: "read",
            path: "settings.json".into(),
            source: std::io::ErrorKind::PermissionDenied.into(),
        };
        assert_eq!(chain(&error), "cannot read settings.json: permission denied");
    }
}
