//! One node that was reached, and what it can be asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{Connection, Endpoint};
use zdap_proto::connect::{ConnectError, connect, explain};
use zdap_proto::control::{self, CallError};
use zdap_proto::frame::FrameError;
use zdap_proto::identity::Identity;
use zdap_proto::message::{
    Account, Answer, Certificate, CloneView, NodeStatus, Progress, Request, ResourceView, SnapshotView,
    Stages,
};
use zdap_proto::name::{CloneId, RequestId, ResourceName, SnapshotTime};
use zdap_proto::refusal::Refusal;
use zdap_proto::transport::Purpose;

/// A node that was reached. Copies share the connection.
#[derive(Debug, Clone)]
pub struct Node {
    endpoint: Endpoint,
    identity: Arc<Identity>,
    address: String,
    connection: Connection,
}

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It was not reached, or the connection has ended.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It was reached and did not answer in time.
    #[error("no answer from {address} within {} s", after.as_secs())]
    Silent {
        /// The node.
        address: String,
        /// How long it was waited for.
        after: Duration,
    },
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
        source: quinn::ReadToEndError,
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

/// A clone that was made, and where the time went.
#[derive(Debug, Clone, PartialEq)]
pub struct Created {
    /// The clone.
    pub clone: CloneView,
    /// Where the time went.
    pub stages: Stages,
}

impl Node {
    /// Connects to the node at `address`.
    pub async fn connect(
        endpoint: &Endpoint,
        identity: &Arc<Identity>,
        address: &str,
    ) -> Result<Self, NodeError> {
        let begun = Instant::now();
        let connection = connect(endpoint, identity, address, Purpose::Control).await?;
        tracing::debug!(address, took = ?begun.elapsed(), "connected");
        Ok(Self {
            connection,
            endpoint: endpoint.clone(),
            identity: identity.clone(),
            address: address.to_owned(),
        })
    }

    /// Returns the address it was reached by.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns who we are to it.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Asks how it is.
    pub async fn status(&self) -> Result<NodeStatus, NodeError> {
        let Answer::Status(status) = self.ask(&Request::Status).await? else {
            return Err(self.other_answer());
        };
        Ok(status)
    }

    /// Asks which resources it serves.
    pub async fn resources(&self) -> Result<Vec<ResourceView>, NodeError> {
        let Answer::Resources(resources) = self.ask(&Request::ListResources).await? else {
            return Err(self.other_answer());
        };
        Ok(resources)
    }

    /// Asks which snapshots it has, of one resource or all.
    pub async fn snapshots(&self, resource: Option<ResourceName>) -> Result<Vec<SnapshotView>, NodeError> {
        let Answer::Snapshots(snapshots) = self.ask(&Request::ListSnapshots { resource }).await? else {
            return Err(self.other_answer());
        };
        Ok(snapshots)
    }

    /// Asks which clones we have there.
    pub async fn clones(&self) -> Result<Vec<CloneView>, NodeError> {
        let request = Request::ListClones {
            resource: None,
            all_owners: false,
        };
        let Answer::Clones(clones) = self.ask(&request).await? else {
            return Err(self.other_answer());
        };
        Ok(clones)
    }

    /// Has a clone made. When the connection is lost meanwhile, asks once more under the same request id, so that it is
    /// one clone whatever became of the first try. `asking` hears over which connection.
    pub async fn create_clone(
        &mut self,
        resource: &ResourceName,
        snapshot: Option<SnapshotTime>,
        asking: impl Fn(&Self),
        mut progress: impl FnMut(Progress),
    ) -> Result<Created, NodeError> {
        let request = Request::CreateClone {
            resource: resource.clone(),
            snapshot,
            owner: None,
            request_id: RequestId::random(),
        };
        asking(self);
        let answer = match self.ask_with(&request, &mut progress).await {
            Err(NodeError::Connect(error)) if !error.is_definite() => {
                tracing::debug!("asking again: {}", zdap_proto::refusal::chain(&error));
                *self = Self::connect(&self.endpoint, &self.identity, &self.address).await?;
                asking(self);
                self.ask_with(&request, &mut progress).await?
            }
            result => result?,
        };
        let Answer::Created { clone, stages } = answer else {
            return Err(self.other_answer());
        };
        Ok(Created { clone, stages })
    }

    /// Gives a clone back; one that is gone already is fine.
    pub async fn destroy(&self, clone: &CloneId) -> Result<(), NodeError> {
        let request = Request::DestroyClone { clone: clone.clone() };
        let Answer::Destroyed = self.ask(&request).await? else {
            return Err(self.other_answer());
        };
        Ok(())
    }

    /// Asks for a certificate that opens one clone and nothing else.
    pub async fn relay_certificate(
        &self,
        clone: &CloneId,
        public_key: Vec<u8>,
    ) -> Result<Certificate, NodeError> {
        let request = Request::IssueRelay {
            clone: clone.clone(),
            public_key,
        };
        let Answer::Certificate(certificate) = self.ask(&request).await? else {
            return Err(self.other_answer());
        };
        Ok(certificate)
    }

    /// Asks for the account of a clone's database.
    pub async fn account(&self, clone: &CloneId) -> Result<Account, NodeError> {
        let Answer::Account(account) = self.ask(&Request::Account { clone: clone.clone() }).await? else {
            return Err(self.other_answer());
        };
        Ok(account)
    }

    /// Fetches the relay program for an architecture (as `uname -m` calls it), which has to be of our version.
    pub async fn relay_program(&self, architecture: String) -> Result<Vec<u8>, NodeError> {
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
        let program = stream.read_to_end(LARGEST_RELAY).await;
        let program = program.map_err(|source| NodeError::Broken {
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

    async fn ask(&self, request: &Request) -> Result<Answer, NodeError> {
        self.ask_with(request, |_| {}).await
    }

    async fn ask_with(&self, request: &Request, progress: impl FnMut(Progress)) -> Result<Answer, NodeError> {
        let begun = Instant::now();
        let asked = control::call(&self.connection, request, progress).await;
        tracing::debug!(address = self.address, ?request, took = ?begun.elapsed(), "asked");
        asked.map_err(|error| self.explain(error))
    }

    fn explain(&self, error: CallError) -> NodeError {
        let address = self.address.clone();
        match error {
            CallError::Refused(refusal) => NodeError::Refused { address, refusal },
            CallError::Lost(reason) => explain(&address, reason).into(),
            CallError::Misunderstood(source) => NodeError::Misunderstood { address, source },
        }
    }

    fn other_answer(&self) -> NodeError {
        NodeError::OtherAnswer {
            address: self.address.clone(),
        }
    }
}

/// A static program is some 10 MB; what is much larger is something else.
const LARGEST_RELAY: usize = 256 * 1024 * 1024;
