//! Why a node was not reached, in words for the person who wanted it.

use std::io;
use std::time::Duration;

use quinn::ConnectionError;
use rustls::AlertDescription;

use super::CONNECT_DEADLINE;
use crate::identity::IdentityError;
use crate::transport::Close;

/// Why a node was not reached, or the connection to it has ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not an address.
    #[error("`{0}` is not an address such as `db1.example.com:43210`")]
    Address(String),
    /// The name has no address.
    #[error("cannot resolve `{address}`")]
    Unresolved {
        /// The address as given.
        address: String,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("no answer from {address} within {} s (UDP)", after.as_secs())]
    NoAnswer {
        /// The address as given.
        address: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// Somebody of another cluster answers.
    #[error("{0} is not a node of this cluster: its certificate is of another CA")]
    OtherCluster(String),
    /// Somebody of this cluster answers who is not a node.
    #[error("{0} is not a node: its certificate is of another kind")]
    NotANode(String),
    /// The node's certificate is not valid by this machine's clock.
    #[error("the certificate of {address} {which} {bound}; this machine's clock says {now}")]
    Dates {
        /// The address as given.
        address: String,
        /// `expired at` or `is not valid before`.
        which: &'static str,
        /// The certificate's date, RFC 3339.
        bound: String,
        /// What the clock says.
        now: String,
    },
    /// This process has no valid certificate to show.
    #[error("cannot prove who we are")]
    Identity(#[source] IdentityError),
    /// The node does not take our certificate.
    #[error("{address} does not accept our certificate: {reason}")]
    Refused {
        /// The address as given.
        address: String,
        /// What the node says.
        reason: String,
    },
    /// The node closed the connection on purpose.
    #[error("{address} closed the connection: {reason}")]
    Closed {
        /// The address as given.
        address: String,
        /// What the node says.
        reason: String,
        /// Whether another try is no use.
        forbidden: bool,
    },
    /// The node is of another version.
    #[error("{0} does not speak this version of the protocol")]
    OtherVersion(String),
    /// The connection is lost.
    #[error("the connection to {address} is lost")]
    Lost {
        /// The address as given.
        address: String,
        /// How.
        #[source]
        source: ConnectionError,
    },
    /// This process cannot open connections.
    #[error("cannot open a connection to {address}: {reason}")]
    Local {
        /// The address as given.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// There is no address to try.
    #[error("there is no address to connect to")]
    NoAddress,
}

impl ConnectError {
    /// Returns whether another try would end the same way.
    pub fn is_definite(&self) -> bool {
        match self {
            Self::Address(_)
            | Self::OtherCluster(_)
            | Self::NotANode(_)
            | Self::Dates { .. }
            | Self::Identity(_)
            | Self::Refused { .. }
            | Self::OtherVersion(_)
            | Self::NoAddress => true,
            Self::Closed { forbidden, .. } => *forbidden,
            Self::Unresolved { .. } | Self::NoAnswer { .. } | Self::Lost { .. } | Self::Local { .. } => false,
        }
    }

    /// Returns the remedy, where there is one to name.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoAnswer { .. } => {
                Some("check that zdapd runs there and that UDP passes the firewalls between".to_owned())
            }
            Self::Dates { .. } => {
                Some("one of the two clocks is wrong, or the node's certificate is over".to_owned())
            }
            Self::Identity(source) => source.hint(),
            Self::Refused { .. } => Some("enrol again with a new token".to_owned()),
            Self::OtherVersion(_) => Some("use the same version of zdap on both sides".to_owned()),
            Self::Address(_)
            | Self::Unresolved { .. }
            | Self::OtherCluster(_)
            | Self::NotANode(_)
            | Self::Closed { .. }
            | Self::Lost { .. }
            | Self::Local { .. }
            | Self::NoAddress => None,
        }
    }
}

/// Says what the end of a connection to the node at `address` means.
pub fn explain(address: &str, error: ConnectionError) -> ConnectError {
    let address = address.to_owned();
    match &error {
        ConnectionError::ApplicationClosed(close) => ConnectError::Closed {
            address,
            reason: String::from_utf8_lossy(&close.reason).into_owned(),
            forbidden: close.error_code.into_inner() == Close::Forbidden as u64,
        },
        ConnectionError::ConnectionClosed(close) => match alert(u64::from(close.error_code)) {
            Some(AlertDescription::NoApplicationProtocol) => ConnectError::OtherVersion(address),
            Some(alert) => ConnectError::Refused {
                address,
                reason: refusal(alert),
            },
            None => ConnectError::Lost {
                address,
                source: error,
            },
        },
        ConnectionError::TransportError(local) => match alert(u64::from(local.code)) {
            Some(AlertDescription::NoApplicationProtocol) => ConnectError::OtherVersion(address),
            Some(_) | None => ConnectError::Lost {
                address,
                source: error,
            },
        },
        ConnectionError::VersionMismatch => ConnectError::OtherVersion(address),
        ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => ConnectError::Lost {
            address,
            source: error,
        },
    }
}

/// Returns the error that says most about why none of several nodes was reached, one error for each. It is definite only if
/// all are: another try may well reach the node whose error is not.
pub fn most_telling(errors: Vec<ConnectError>) -> ConnectError {
    let (definite, temporary): (Vec<_>, Vec<_>) = errors.into_iter().partition(ConnectError::is_definite);
    let silent = temporary.iter().map(|error| {
        let ConnectError::NoAnswer { address, .. } = error else {
            return None;
        };
        Some(address.as_str())
    });
    match silent.collect::<Option<Vec<_>>>() {
        Some(silent) if silent.len() > 1 => ConnectError::NoAnswer {
            address: silent.join(", "),
            after: CONNECT_DEADLINE,
        },
        Some(_) | None => first(temporary.into_iter().chain(definite)),
    }
}

/// Returns a definite error if there is one: of the IP addresses of one node, what one of them says for good the others would
/// say, too.
pub(super) fn definite_first(errors: Vec<ConnectError>) -> ConnectError {
    let (definite, temporary): (Vec<_>, Vec<_>) = errors.into_iter().partition(ConnectError::is_definite);
    first(definite.into_iter().chain(temporary))
}

fn first(mut errors: impl Iterator<Item = ConnectError>) -> ConnectError {
    errors.next().unwrap_or(ConnectError::NoAddress)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the enum is rustls's and open")]
fn refusal(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => {
            "by the node's clock it is expired or not valid yet; one of the two clocks may be wrong"
                .to_owned()
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => "it is of another cluster".to_owned(),
        AlertDescription::CertificateRevoked => "it is revoked".to_owned(),
        other => format!("TLS alert {other:?}"),
    }
}

/// Returns the TLS alert in a QUIC error code (RFC 9001, section 4.8).
fn alert(code: u64) -> Option<AlertDescription> {
    let alert = code.checked_sub(0x100)?;
    u8::try_from(alert).ok().map(AlertDescription::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_answer(address: &str) -> ConnectError {
        ConnectError::NoAnswer {
            address: address.to_owned(),
            after: CONNECT_DEADLINE,
        }
    }

    #[test]
    fn of_several_nodes_one_that_may_answer_later_counts_for_more_than_one_that_never_will() {
        let other = || ConnectError::OtherCluster("db1:43210".to_owned());
        let error = most_telling(vec![other(), no_answer("db2:43210")]);
        assert!(!error.is_definite(), "{error}");
        assert_eq!(
            error.to_string(),
            "no answer from db2:43210 within 5 s (UDP)",
            "the one that has answered is not named"
        );
        assert!(most_telling(vec![other(), other()]).is_definite());
        assert!(matches!(most_telling(Vec::new()), ConnectError::NoAddress));
    }

    #[test]
    fn nodes_that_are_all_silent_are_named_together() {
        let error = most_telling(vec![no_answer("db1:43210"), no_answer("db2:43210")]);
        assert_eq!(
            error.to_string(),
            "no answer from db1:43210, db2:43210 within 5 s (UDP)"
        );
    }

    #[test]
    fn of_one_node_the_address_that_answers_counts_for_more_than_one_that_cannot_be_reached() {
        let refused = ConnectError::Refused {
            address: "db1:43210".to_owned(),
            reason: "it is revoked".to_owned(),
        };
        let local = ConnectError::Local {
            address: "db1:43210".to_owned(),
            reason: "network unreachable".to_owned(),
        };
        assert!(definite_first(vec![local, refused]).is_definite());
    }
}
