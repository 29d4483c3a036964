//! One node that was reached: a connection, and how a question over it can fail.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use quinn::{Connection, Endpoint};
use tokio::io::AsyncReadExt;
use zdap_proto::connect::{ConnectError, connect_to_any, explain, node_at};
use zdap_proto::control::{self, CallError};
use zdap_proto::frame::FrameError;
use zdap_proto::identity::Identity;
use zdap_proto::message::{Answer, Progress, Request};
use zdap_proto::name::NodeName;
use zdap_proto::refusal::{Refusal, RefusalKind};
use zdap_proto::transport::{Close, Purpose};

/// A node that was reached. Copies share the connection.
#[derive(Debug, Clone)]
pub struct Node {
    address: String,
    connection: Connection,
}

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It was not reached, or the connection has ended.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It said no.
    #[error("{refusal}")]
    Refused {
        /// The node.
        address: String,
        /// What it says.
        refusal: Refusal,
    },
    /// It says what is not understood.
    #[error("the answer of {address} is not understood")]
    Misunderstood {
        /// The node.
        address: String,
        /// Why not.
        #[source]
        source: FrameError,
    },
    /// It answers another question.
    #[error("{address} answers something else than it was asked")]
    OtherAnswer {
        /// The node.
        address: String,
    },
    /// What it sent is not all there.
    #[error("{address} sent {got} bytes of the relay program; {expected} were announced")]
    Cut {
        /// The node.
        address: String,
        /// What arrived.
        got: u64,
        /// What was announced.
        expected: u64,
    },
    /// What it was sending has stopped.
    #[error("{address} did not send the relay program to its end")]
    Broken {
        /// The node.
        address: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Its relay is of another version.
    #[error(
        "the relay program of {address} is version {theirs}, this is zdap {}",
        crate::VERSION
    )]
    OtherRelay {
        /// The node.
        address: String,
        /// Its version.
        theirs: String,
    },
}

impl NodeError {
    /// Returns whether another node may do what this one did not.
    pub fn is_its_own(&self) -> bool {
        match self {
            Self::Connect(error) => !error.is_definite(),
            Self::Refused { refusal, .. } => refusal.kind == RefusalKind::Unavailable,
            Self::Misunderstood { .. }
            | Self::OtherAnswer { .. }
            | Self::Cut { .. }
            | Self::Broken { .. }
            | Self::OtherRelay { .. } => false,
        }
    }
}

impl Node {
    /// Connects to whichever of `addresses` answers first, the earlier ones with a head start, or says why each does not.
    pub async fn reach(
        endpoint: &Endpoint,
        identity: &Identity,
        addresses: &[String],
    ) -> Result<Self, Vec<(String, ConnectError)>> {
        let begun = Instant::now();
        let reached = connect_to_any(endpoint, identity, addresses, Purpose::Control).await;
        let (connection, address) = reached?;
        tracing::debug!(address, took = ?begun.elapsed(), "connected");
        Ok(Self { address, connection })
    }

    /// Returns the address it was reached by.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns which node it is.
    pub fn name(&self) -> Option<NodeName> {
        node_at(&self.connection)
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Returns whether `other` is the same connection.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.connection.stable_id() == other.connection.stable_id()
    }

    /// Asks, and gives up on a node that has fallen silent.
    pub(crate) async fn ask(
        &self,
        request: &Request,
        progress: impl FnMut(Progress),
    ) -> Result<Answer, NodeError> {
        let begun = Instant::now();
        let asked = tokio::select! {
            asked = control::call(&self.connection, request, progress) => asked,
            never = self.close_when_deaf() => match never {},
        };
        tracing::debug!(address = self.address, ?request, took = ?begun.elapsed(), "asked");
        asked.map_err(|error| self.explain(error))
    }

    /// Fetches the relay program for an architecture (as `uname -m` calls it), which has to be of our version.
    pub(crate) async fn relay_program(&self, architecture: String) -> Result<Vec<u8>, NodeError> {
        let request = Request::FetchRelay { architecture };
        let asked = control::call_streaming(&self.connection, &request, |_| {}).await;
        let (answer, mut stream) = asked.map_err(|error| self.explain(error))?;
        let Answer::Relay {
            version: theirs,
            bytes: expected,
        } = answer
        else {
            return Err(self.other_answer());
        };
        if theirs != crate::VERSION {
            return Err(NodeError::OtherRelay {
                address: self.address.clone(),
                theirs,
            });
        }
        // Not by quinn's own `read_to_end`, which miscounts a stream whose beginning was read in order.
        let mut program = Vec::new();
        let read = AsyncReadExt::take(&mut stream, LARGEST_RELAY)
            .read_to_end(&mut program)
            .await;
        read.map_err(|source| NodeError::Broken {
            address: self.address.clone(),
            source,
        })?;
        match program.len() as u64 {
            got if got == expected => Ok(program),
            got => Err(NodeError::Cut {
                address: self.address.clone(),
                got,
                expected,
            }),
        }
    }

    pub(crate) fn other_answer(&self) -> NodeError {
        NodeError::OtherAnswer {
            address: self.address.clone(),
        }
    }

    /// Closes the connection once nothing at all comes back, which ends what is asked over it. QUIC would wait half a minute.
    async fn close_when_deaf(&self) -> Infallible {
        loop {
            tokio::time::sleep(PATIENCE).await;
            let heard = self.connection.stats().udp_rx.datagrams;
            // Whatever is sent is acknowledged, if by nothing else.
            let question = control::call(&self.connection, &Request::ListNodes, |_| {});
            let _ = tokio::time::timeout(DEAF + 2 * self.connection.rtt(), question).await;
            if self.connection.stats().udp_rx.datagrams == heard {
                tracing::debug!(address = self.address, "nothing comes back");
                Close::Done.connection(&self.connection, "nothing comes back");
                return std::future::pending().await;
            }
        }
    }

    fn explain(&self, error: CallError) -> NodeError {
        let address = self.address.clone();
        match error {
            CallError::Refused(refusal) => NodeError::Refused { address, refusal },
            CallError::Lost(reason) => explain(&address, reason).into(),
            CallError::Misunderstood(source) => NodeError::Misunderstood { address, source },
        }
    }
}

/// Most answers are there by then.
const PATIENCE: Duration = Duration::from_secs(1);
/// An acknowledgement takes a round trip and some milliseconds; so many lost packets in a row are no accident.
const DEAF: Duration = Duration::from_secs(2);
/// A static program is some 10 MB; what is much larger is something else.
const LARGEST_RELAY: u64 = 256 * 1024 * 1024;
