//! Who asks the nodes, and what is asked.

use quinn::{Connection, Endpoint};
use zdap_proto::connect::connect;
use zdap_proto::control::{CallError, call};
use zdap_proto::identity::{Identity, Keypair};
use zdap_proto::message::{Answer, Call, CloneView, Request};
use zdap_proto::name::{CloneId, RequestId};
use zdap_proto::refusal::Refusal;
use zdap_proto::transport::Purpose;

/// Somebody with a certificate, connected for requests.
pub(crate) struct Client {
    pub(crate) identity: Identity,
    pub(crate) connection: Connection,
    pub(crate) endpoint: Endpoint,
}

impl Client {
    pub(crate) async fn ask(&self, request: &Request) -> Result<Answer, Refusal> {
        call(&self.connection, request, |_| {})
            .await
            .map_err(|error| match error {
                CallError::Refused(refusal) => refusal,
                other @ (CallError::Lost(_) | CallError::Misunderstood(_)) => panic!("{other:?}"),
            })
    }

    pub(crate) async fn create(&self) -> CloneView {
        created(self.ask(&order(&RequestId::random())).await.unwrap())
    }

    /// Makes a clone on a node of its choice.
    pub(crate) async fn create_at(&self, node: &str) -> CloneView {
        created(self.ask(&order_at(node, &RequestId::random())).await.unwrap())
    }

    pub(crate) async fn restore(&self) {
        let request = Request::CreateSnapshot {
            resource: "orders".parse().unwrap(),
            use_existing: false,
        };
        self.ask(&request).await.unwrap();
    }

    /// Enrols a relay for one of this client's clones.
    pub(crate) async fn relay(&self, clone: &CloneId) -> Identity {
        let keypair = Keypair::generate().unwrap();
        let request = Request::IssueRelay {
            clone: clone.clone(),
            public_key: keypair.public_key(),
        };
        let answer = self.ask(&request).await.unwrap();
        let Answer::Certificate(certificate) = answer else {
            panic!("{answer:?}")
        };
        Identity::new(keypair, &certificate).unwrap()
    }

    /// A second connection of the same person.
    pub(crate) async fn again(&self) -> Connection {
        let address = self.connection.remote_address().to_string();
        connect(&self.endpoint, &self.identity, &address, Purpose::Control)
            .await
            .unwrap()
    }
}

pub(crate) fn order(request_id: &RequestId) -> Request {
    Request::CreateClone {
        resource: "orders".parse().unwrap(),
        snapshot: None,
        node: None,
        owner: None,
        request_id: request_id.clone(),
        attempt: 0,
    }
}

pub(crate) fn order_at(node: &str, request_id: &RequestId) -> Request {
    let mut request = order(request_id);
    if let Request::CreateClone { node: pinned, .. } = &mut request {
        *pinned = Some(node.parse().unwrap());
    }
    request
}

/// The same request once more, maybe of another node.
pub(crate) fn retry(mut request: Request) -> Request {
    if let Request::CreateClone { attempt, .. } = &mut request {
        *attempt += 1;
    }
    request
}

/// A request of one's own, as the first frame of a stream.
pub(crate) fn bare(request: Request) -> Call {
    Call {
        on_behalf_of: None,
        request,
    }
}

pub(crate) fn created(answer: Answer) -> CloneView {
    let Answer::Created { clone, .. } = answer else {
        panic!("{answer:?}")
    };
    clone
}
