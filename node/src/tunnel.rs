//! A tunnel stream: may this identity reach this clone? Here: dial its database and splice. Elsewhere: pass it on to the
//! node that has the clone, which decides for itself.

mod gateway;

use std::sync::Arc;
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tokio::io::DuplexStream;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{Peer, Subject};
use zdap_proto::message::{CloneRecord, CloneState, TunnelHello, TunnelReply};
use zdap_proto::name::CloneId;
use zdap_proto::refusal::{Refusal, RefusalKind};
use zdap_proto::splice::splice;

use self::gateway::Onward;
use crate::node::Node;
use crate::requests::{elsewhere, not_revoked, on_whose_behalf};
use crate::runtime::Address;

/// Serves one tunnel stream to its end.
pub async fn serve(node: Arc<Node>, peer: Peer, mut send: SendStream, mut receive: RecvStream) {
    let Ok(Ok(hello)) = timeout(HELLO, frame::read::<TunnelHello, _>(&mut receive, REQUEST_CAP)).await else {
        // It said nothing that could be answered.
        return;
    };
    let clone = hello.clone.clone();
    let opened = open(&node, &peer, hello).await;
    let reply = match &opened {
        Ok(_) => TunnelReply::Open,
        Err(refusal) => TunnelReply::Refused(refusal.clone()),
    };
    // A peer that takes no bytes does not hold a database connection open.
    let Ok(said) = timeout(HELLO, frame::write(&mut send, &reply, REPLY_CAP)).await else {
        return;
    };
    match (opened, said) {
        (Ok(End::Tcp(stream)), Ok(())) => {
            let ended = splice(stream, send, receive).await;
            tracing::debug!(%clone, ?ended, "tunnel stream ended");
        }
        (Ok(End::Unix(stream)), Ok(())) => {
            let ended = splice(stream, send, receive).await;
            tracing::debug!(%clone, ?ended, "tunnel stream ended");
        }
        (Ok(End::Memory(stream)), Ok(())) => {
            let ended = splice(stream, send, receive).await;
            tracing::debug!(%clone, ?ended, "tunnel stream ended");
        }
        (Ok(End::Onward(onward)), Ok(())) => {
            onward.join(send, receive).await;
            tracing::debug!(%clone, "tunnel stream that was passed on ended");
        }
        (Err(refusal), Ok(())) => {
            tracing::info!(%clone, peer = %peer.subject, reason = %refusal, "tunnel refused");
            // The reply is delivered even though the stream is dropped: it is finished first.
            let _ = send.finish();
            let _ = timeout(HELLO, send.stopped()).await;
        }
        (_, Err(_)) => {}
    }
}

/// Says whether `subject` may reach the database of a clone: its owner, the relay made for it, admins and nodes.
pub fn may_reach(subject: &Subject, record: &CloneRecord) -> bool {
    match subject {
        Subject::Node(_) | Subject::Admin(_) => true,
        Subject::User(user) => user == &record.owner,
        Subject::Relay { owner, clone } => clone == &record.id && owner == &record.owner,
    }
}

async fn open(node: &Arc<Node>, peer: &Peer, hello: TunnelHello) -> Result<End, Refusal> {
    let (subject, is_passed_on) = on_whose_behalf(peer, hello.on_behalf_of)?;
    not_revoked(node, &subject)?;
    let id = &hello.clone;
    // Nobody goes looking for the clone of another on behalf of a relay.
    if matches!(&subject, Subject::Relay { clone, .. } if clone != id) {
        return Err(not_yours(&subject, id));
    }
    if !is_passed_on && let Some(owner) = elsewhere(node, id).await? {
        return gateway::open(node, &owner, &subject, id).await.map(End::Onward);
    }
    open_here(node, &subject, id).await
}

async fn open_here(node: &Node, subject: &Subject, id: &CloneId) -> Result<End, Refusal> {
    // Whether a clone exists is told to those only who may reach it.
    let record = match node.clones.find(id) {
        Some(record) if may_reach(subject, &record) => record,
        None if subject.is_admin() || owns_by_name(subject, id) => return Err(gone(id)),
        Some(_) | None => return Err(not_yours(subject, id)),
    };
    match (record.state, node.clones.address(id)) {
        (CloneState::Ready, Some(address)) => dial(&address, id).await,
        (CloneState::Ready | CloneState::Creating, _) => Err(Refusal::new(
            RefusalKind::Unavailable,
            format!("the database of `{id}` is being started"),
        )),
        (CloneState::Destroying, _) => Err(gone(id)),
    }
}

/// A relay's certificate names its clone, so it may know that the clone is gone.
fn owns_by_name(subject: &Subject, id: &CloneId) -> bool {
    matches!(subject, Subject::Relay { clone, .. } if clone == id)
}

async fn dial(address: &Address, id: &CloneId) -> Result<End, Refusal> {
    let connected = timeout(DIAL, async {
        match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(End::Tcp(stream))
            }
            Address::Unix(path) => UnixStream::connect(path).await.map(End::Unix),
            Address::Memory(door) => door.connect().map(End::Memory),
        }
    });
    match connected.await {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(error)) => Err(Refusal::new(
            RefusalKind::Unavailable,
            format!("the database of `{id}` cannot be reached: {error}"),
        )),
        Err(_) => Err(Refusal::new(
            RefusalKind::Timeout,
            format!("the database of `{id}` does not accept connections"),
        )),
    }
}

fn gone(id: &CloneId) -> Refusal {
    Refusal::new(
        RefusalKind::NotFound,
        format!("there is no clone `{id}` any more"),
    )
    .with_hint("`zdap list clones` shows yours")
}

/// Refuses what belongs to somebody else, or to nobody, in the same words.
pub fn not_yours(subject: &Subject, id: &CloneId) -> Refusal {
    Refusal::new(RefusalKind::Forbidden, format!("{subject} has no clone `{id}`"))
        .with_hint("`zdap list clones` shows yours")
}

/// Where a tunnel stream goes on.
enum End {
    Tcp(TcpStream),
    Unix(UnixStream),
    Memory(DuplexStream),
    Onward(Onward),
}

/// The hello is sent with the stream's first packet.
const HELLO: Duration = Duration::from_secs(10);
/// The database is on this machine.
const DIAL: Duration = Duration::from_secs(5);
