//! The only error that crosses the wire, made on purpose: never by conversion from whatever went wrong inside.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a request was not done, in words for the person who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Whose move it is.
    pub kind: RefusalKind,
    /// What failed, with the values: one line, or several when a program's output belongs to it.
    pub message: String,
    /// The remedy, when there is one to name.
    pub hint: Option<String>,
}

/// Says whose move it is after a [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// The request itself makes no sense; asking again is no use.
    Invalid,
    /// There is no such thing, or it is not the asker's to see.
    NotFound,
    /// The asker may not do this.
    Forbidden,
    /// It contradicts what is there already, or there is as much of it as is allowed.
    Conflict,
    /// This node cannot do it now (starting, stopping, busy); another node or a later try may.
    Unavailable,
    /// No room: disk or memory.
    Full,
    /// It took longer than allowed.
    Timeout,
    /// It was tried and failed, e.g. a script or a container that exited.
    Failed,
}

impl RefusalKind {
    /// Returns whether the same request may succeed at another node or a little later.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::Unavailable | Self::Full | Self::Timeout => true,
            Self::Invalid | Self::NotFound | Self::Forbidden | Self::Conflict | Self::Failed => false,
        }
    }
}

impl Refusal {
    /// Refuses with a reason.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds the remedy.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Refusal {}

/// Returns an error with its causes in one line, `start container: connection refused`.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::CallError;
    use crate::frame::FrameError;

    #[test]
    fn an_error_is_told_with_all_its_causes_in_one_line() {
        let error = CallError::Misunderstood(FrameError::Ended);
        assert_eq!(
            chain(&error),
            format!("the node's answer could not be understood: {}", FrameError::Ended)
        );
    }
}
