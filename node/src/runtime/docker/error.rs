//! What the engine says when it refuses.

use bollard::errors::Error;

use crate::runtime::RuntimeError;

/// No such container, image or network.
pub(super) const NOT_FOUND: u16 = 404;
/// The name is taken, or the container is being removed.
pub(super) const CONFLICT: u16 = 409;

/// Says what could not be done to which container, image or network.
pub(super) fn failed(verb: &str, name: &str, error: &Error) -> RuntimeError {
    let said = message(error);
    RuntimeError::Failed {
        doing: format!("{verb} {name}"),
        reason: if said.is_empty() {
            chain(error)
        } else {
            said.to_owned()
        },
    }
}

/// Returns the HTTP status that the engine answered with, if it answered.
pub(super) fn status(error: &Error) -> Option<u16> {
    let Error::DockerResponseServerError { status_code, .. } = error else {
        return None;
    };
    Some(*status_code)
}

/// Returns what the engine said, if it answered.
pub(super) fn message(error: &Error) -> &str {
    let Error::DockerResponseServerError { message, .. } = error else {
        return "";
    };
    message
}

/// Tells an error with its causes, which the connection's errors do not show by themselves.
pub(super) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
