//! A tunnel stream that is passed on to another node: the way to a clone for whoever cannot reach its node.
//!
//! The two directions are joined each for itself, and what ends one of them at one side, its end, a reset or a stop, ends it
//! at the other in the same way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::time::timeout;
use zdap_proto::frame::{self, FrameError, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::Subject;
use zdap_proto::message::{TunnelHello, TunnelReply};
use zdap_proto::name::{CloneId, NodeName};
use zdap_proto::refusal::Refusal;

use crate::node::Node;
use crate::peers::{PeerError, Trouble, Way};
use crate::refuse;

/// The stream to the node that has the clone.
pub(super) struct Onward {
    send: SendStream,
    receive: RecvStream,
    connection: Arc<Connection>,
}

/// Opens a stream to the clone's node on behalf of `subject`, or says why that node refuses or cannot be reached.
pub(super) async fn open(
    node: &Arc<Node>,
    owner: &NodeName,
    subject: &Subject,
    clone: &CloneId,
) -> Result<Onward, Refusal> {
    let hello = TunnelHello {
        clone: clone.clone(),
        on_behalf_of: Some(subject.clone()),
    };
    let way = Way::tunnel(owner, subject.owner());
    let opened = match timeout(OPENED, open_again_if_lost(node, owner, &way, &hello)).await {
        Ok(opened) => opened,
        Err(_) => Err(Trouble::Slow(OPENED).of(owner)),
    };
    opened.map_err(|error| refuse::peer(&error))
}

async fn open_again_if_lost(
    node: &Arc<Node>,
    owner: &NodeName,
    way: &Way,
    hello: &TunnelHello,
) -> Result<Onward, PeerError> {
    loop {
        let (connection, is_fresh) = node.peers.connection(way).await?;
        let opened = async {
            let (mut send, mut receive) = connection.open_bi().await.map_err(Trouble::Lost)?;
            let lost = |error: FrameError| match connection.close_reason() {
                Some(reason) => Trouble::Lost(reason),
                None => Trouble::Misunderstood(error),
            };
            frame::write(&mut send, hello, REQUEST_CAP).await.map_err(lost)?;
            match frame::read(&mut receive, REPLY_CAP).await.map_err(lost)? {
                TunnelReply::Open => Ok(Onward {
                    send,
                    receive,
                    connection: Arc::clone(&connection),
                }),
                TunnelReply::Refused(refusal) => Err(Trouble::Refused(refusal)),
            }
        };
        match opened.await {
            Err(Trouble::Lost(_)) if !is_fresh => continue,
            result => return result.map_err(|trouble| trouble.of(owner)),
        }
    }
}

impl Onward {
    /// Passes bytes on both ways until both directions have ended.
    pub(super) async fn join(self, send: SendStream, receive: RecvStream) {
        tokio::join!(pass_on(receive, self.send), pass_on(self.receive, send));
        // The next stream may come soon.
        tokio::spawn(async move {
            tokio::time::sleep(LINGERS).await;
            drop(self.connection);
        });
    }
}

/// Passes on one direction to its end.
async fn pass_on(mut from: RecvStream, mut to: SendStream) {
    let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
    let stopped = to.stopped();
    tokio::pin!(stopped);
    loop {
        let read = tokio::select! {
            biased; // so that a simulation is the same each time
            read = from.read_chunks(&mut chunks) => read,
            // What nobody takes any more is not waited for.
            reason = &mut stopped => {
                let code = reason.ok().flatten().unwrap_or(ABORTED);
                let _ = from.stop(code);
                return;
            }
        };
        let written = match read {
            Ok(Some(filled)) => to.write_all_chunks(&mut chunks[..filled]).await,
            Ok(None) => {
                let _ = to.finish(); // fails only if nobody takes any more
                // A dropped stream is reset: until all has arrived, or is not wanted.
                let _ = stopped.await;
                return;
            }
            Err(ReadError::Reset(code)) => {
                let _ = to.reset(code);
                return;
            }
            // Nobody shall take half of the bytes for all of them.
            Err(_) => {
                let _ = to.reset(ABORTED);
                return;
            }
        };
        match written {
            Ok(()) => {}
            Err(WriteError::Stopped(code)) => {
                let _ = from.stop(code);
                return;
            }
            Err(_) => {
                let _ = from.stop(ABORTED);
                return;
            }
        }
    }
}

/// Whoever waits gives up after ten seconds; a node that is there answers within a few round trips.
const OPENED: Duration = Duration::from_secs(5);
/// A connection stays open for so long after its last stream.
const LINGERS: Duration = Duration::from_secs(10);
/// The code of a reset when the other side has failed.
const ABORTED: VarInt = VarInt::from_u32(1);
/// Packets that are taken from a stream at once.
const CHUNKS: usize = 32;
