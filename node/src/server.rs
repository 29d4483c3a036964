//! Accepts connections; by ALPN to control, tunnel, gossip or enrolment. What a peer may hold open has a limit and a deadline.

mod limits;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use quinn::{Connection, Endpoint, ReadError, RecvStream, SendStream, VarInt};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use zdap_proto::control::ABANDONED;
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{Peer, Subject};
use zdap_proto::message::{Call, Progress, Reply};
use zdap_proto::refusal::{Refusal, RefusalKind};
use zdap_proto::transport::{self, Accepted, Close, Purpose};

use self::limits::Limits;
use crate::gossip::links::{Links, Opened};
use crate::node::Node;
use crate::requests::{self, Answered};
use crate::{enrol, tunnel};

/// Serves until `shutdown` becomes true; then takes no more requests, and lets those under way finish for a while. What
/// nodes tell each other, also over the connections that this one has opened, goes on until [`close`].
pub(crate) async fn serve(
    node: Arc<Node>,
    endpoint: Endpoint,
    links: Links,
    opened: Opened,
    mut shutdown: watch::Receiver<bool>,
) {
    let work = TaskTracker::new();
    let attending = attend_opened(Arc::clone(&node), opened);
    let accepting = accept(node, endpoint, links, work.clone(), shutdown.clone());
    let finished = async {
        crate::stopped(&mut shutdown).await;
        work.close();
        timeout(DRAIN, work.wait()).await
    };
    tokio::select! {
        biased; // so that a simulation is the same each time
        () = accepting => {}
        () = attending => {}
        finished = finished => if finished.is_err() {
            tracing::warn!(
                "requests were still running when the node stopped; the next start repairs what they left"
            );
        },
    }
}

/// Closes every connection.
pub async fn close(endpoint: &Endpoint) {
    Close::Stopping.endpoint(endpoint, STOPPING);
    // Bounded, since a peer that is gone does not confirm.
    let _ = timeout(CLOSING, endpoint.wait_idle()).await;
}

/// Accepts connections until the endpoint is closed.
async fn accept(
    node: Arc<Node>,
    endpoint: Endpoint,
    links: Links,
    work: TaskTracker,
    shutdown: watch::Receiver<bool>,
) {
    let limits = Arc::new(Limits::default());
    while let Some(connecting) = transport::accept(&endpoint).await {
        let (node, links, work, limits, shutdown) = (
            Arc::clone(&node),
            links.clone(),
            work.clone(),
            Arc::clone(&limits),
            shutdown.clone(),
        );
        tokio::spawn(async move {
            match transport::handshake(connecting, node.identity.cluster()).await {
                Ok(accepted) => connection(node, &links, accepted, &limits, work, shutdown).await,
                Err(error) => {
                    tracing::info!(error = zdap_proto::refusal::chain(&error), "connection refused")
                }
            }
        });
    }
}

/// Listens to the nodes that this one speaks to.
async fn attend_opened(node: Arc<Node>, mut opened: Opened) {
    while let Some(connection) = opened.recv().await {
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            let name = transport::peer(&connection).map(|peer| peer.subject);
            let valid_until = transport::valid_until(&connection);
            let (Some(Subject::Node(name)), Some(_)) = (name, valid_until) else {
                return Close::Forbidden.connection(&connection, "the certificate is not understood here");
            };
            node.cluster.attend(&connection, name, valid_until).await;
        });
    }
}

async fn connection(
    node: Arc<Node>,
    links: &Links,
    accepted: Accepted,
    limits: &Arc<Limits>,
    work: TaskTracker,
    shutdown: watch::Receiver<bool>,
) {
    let Accepted {
        connection,
        purpose,
        peer,
        valid_until,
    } = accepted;
    tracing::debug!(remote = %transport::remote(&connection), ?purpose, peer = ?peer.as_ref().map(|peer| &peer.subject), "connected");
    if *shutdown.borrow() && purpose != Purpose::Gossip {
        Close::Stopping.connection(&connection, STOPPING);
        return;
    }
    match (purpose, peer) {
        (Purpose::Control, Some(peer)) => {
            let Some(_place) = limits.admit(&connection, &peer.subject, purpose) else {
                return;
            };
            widen(&connection, &peer.subject, purpose);
            while let Some((send, receive)) = next_stream(&connection, valid_until).await {
                let asked = Asked {
                    node: Arc::clone(&node),
                    peer: peer.clone(),
                    send,
                    work: work.clone(),
                    shutdown: shutdown.clone(),
                };
                tokio::spawn(asked.serve(receive));
            }
        }
        (Purpose::Tunnel, Some(peer)) => {
            let Some(_place) = limits.admit(&connection, &peer.subject, purpose) else {
                return;
            };
            widen(&connection, &peer.subject, purpose);
            while let Some((send, receive)) = next_stream(&connection, valid_until).await {
                tokio::spawn(tunnel::serve(Arc::clone(&node), peer.clone(), send, receive));
            }
        }
        (Purpose::Enrol, _) => {
            let _place = limits.admit_newcomer(&connection);
            enrolment(&node, &connection).await;
        }
        (Purpose::Gossip, Some(peer)) => {
            let Some(_place) = limits.admit(&connection, &peer.subject, purpose) else {
                return;
            };
            match peer.subject {
                Subject::Node(name) => {
                    links.adopt(connection.clone());
                    node.cluster.attend(&connection, name, valid_until).await;
                }
                // The handshake has seen to it that nobody else comes here.
                Subject::User(_) | Subject::Admin(_) | Subject::Relay { .. } => {
                    Close::Forbidden.connection(&connection, "the cluster's gossip is for nodes only");
                }
            }
        }
        // The handshake has seen to it that only enrolment goes without a certificate.
        (Purpose::Control | Purpose::Tunnel | Purpose::Gossip, None) => {
            Close::Forbidden.connection(&connection, "a client certificate is required");
        }
    }
}

/// A node asks on behalf of everybody who is connected to it over one connection, and passes on the tunnels of each user over
/// one.
fn widen(connection: &Connection, subject: &Subject, purpose: Purpose) {
    if matches!(subject, Subject::Node(_)) {
        connection.set_max_concurrent_bi_streams(NODE_STREAMS);
        if purpose == Purpose::Tunnel {
            connection.set_receive_window(NODE_TUNNEL_WINDOW);
        }
    }
}

/// Waits for the peer's next stream. A certificate that was good when the connection was opened may have ended since.
pub(crate) async fn next_stream(
    connection: &Connection,
    valid_until: Option<DateTime<Utc>>,
) -> Option<(SendStream, RecvStream)> {
    let streams = connection.accept_bi().await.ok()?;
    is_still_valid(connection, valid_until).then_some(streams)
}

/// Closes the connection if the peer's certificate has ended; returns whether it has not.
pub(crate) fn is_still_valid(connection: &Connection, valid_until: Option<DateTime<Utc>>) -> bool {
    match valid_until {
        Some(end) if end <= Utc::now() => {
            Close::Forbidden.connection(
                connection,
                &format!("the certificate expired at {}", end.format("%FT%TZ")),
            );
            false
        }
        Some(_) | None => true,
    }
}

/// One stream is all that enrolment takes, and soon: anybody at all can hold such a connection.
async fn enrolment(node: &Node, connection: &Connection) {
    let one_stream = async {
        if let Ok((send, receive)) = connection.accept_bi().await {
            enrol::serve(node, send, receive).await;
        }
    };
    if timeout(ENROLMENT, one_stream).await.is_err() {
        tracing::debug!(remote = %transport::remote(connection), "enrolment took too long");
    }
    Close::Done.connection(connection, "enrolment is over");
}

/// One control stream.
struct Asked {
    node: Arc<Node>,
    peer: Peer,
    send: SendStream,
    work: TaskTracker,
    shutdown: watch::Receiver<bool>,
}

impl Asked {
    async fn serve(mut self, mut receive: RecvStream) {
        let call = match timeout(REQUEST, frame::read::<Call, _>(&mut receive, REQUEST_CAP)).await {
            Ok(Ok(call)) => call,
            Ok(Err(error)) => {
                let message = format!(
                    "the request could not be understood: {}",
                    zdap_proto::refusal::chain(&error)
                );
                return self
                    .reply(&Reply::Refused(Refusal::new(RefusalKind::Invalid, message)))
                    .await;
            }
            Err(_) => return,
        };
        // Under way until the answer has arrived: a node that stops waits for that too.
        let _under_way = self.work.token();
        if *self.shutdown.borrow() {
            return self
                .reply(&Reply::Refused(Refusal::new(RefusalKind::Unavailable, STOPPING)))
                .await;
        }
        tracing::debug!(peer = %self.peer.subject, ?call, "request");
        let mut made = None;
        match self.work(call).await {
            Some(Ok(answered)) => {
                let Answered { answer, body, .. } = answered;
                made = answered.made;
                self.reply(&Reply::Done(answer)).await;
                if let Some(mut file) = body {
                    // A client that goes away in the middle has its own error.
                    let _ = timeout(BODY, tokio::io::copy(&mut file, &mut self.send)).await;
                    let _ = self.send.shutdown().await;
                }
            }
            Some(Err(refusal)) => {
                tracing::info!(peer = %self.peer.subject, reason = %refusal, "refused");
                self.reply(&Reply::Refused(refusal)).await;
            }
            None => {}
        }
        let _ = self.send.finish();
        // A dropped stream is reset; wait until what was written has arrived, or is not wanted any more.
        let end = timeout(REQUEST, self.send.stopped()).await;
        if let Some(made) = made
            && (matches!(end, Ok(Ok(Some(code))) if code == ABANDONED) || is_given_up(&mut receive).await)
        {
            requests::undo(&self.node, &made).await;
        }
    }

    /// Does the work in a task of its own, passing progress on. The task goes on when the asker is gone; `None` if the
    /// asker said that it does not want the answer any more, and then what was made for it is undone.
    async fn work(&mut self, call: Call) -> Option<Result<Answered, Refusal>> {
        let (progress, mut steps) = mpsc::channel::<Progress>(STEPS);
        let (node, peer) = (Arc::clone(&self.node), self.peer.clone());
        let mut work = self
            .work
            .spawn(async move { requests::answer(&node, &peer, call, progress).await });
        let stopped = self.send.stopped();
        tokio::pin!(stopped);
        let mut listening = true;
        loop {
            tokio::select! {
                biased; // so that a simulation is the same each time
                Some(step) = steps.recv() => {
                    if listening {
                        self.reply(&Reply::Progress(step)).await;
                    }
                }
                reason = &mut stopped, if listening => {
                    listening = false;
                    if matches!(reason, Ok(Some(code)) if code == ABANDONED) {
                        let node = Arc::clone(&self.node);
                        self.work.spawn(async move {
                            if let Ok(Ok(answered)) = work.await
                                && let Some(made) = answered.made
                            {
                                requests::undo(&node, &made).await;
                            }
                        });
                        return None;
                    }
                }
                result = &mut work => {
                    return Some(result.unwrap_or_else(|error| {
                        tracing::error!(%error, "a request panicked");
                        Err(Refusal::new(RefusalKind::Failed, "the node failed on this request; its log says more"))
                    }));
                }
            }
        }
    }

    /// Writes a frame; a peer that is gone or does not read is nobody to tell.
    async fn reply(&mut self, reply: &Reply) {
        let _ = timeout(REQUEST, self.send.write_all(&framed(reply))).await;
    }
}

/// Waits until the asker has read the answer and says so by the end of the request; returns whether it gives it up instead,
/// as one may whose answer has arrived and was not read. One that is lost comes back and asks again.
async fn is_given_up(request: &mut RecvStream) -> bool {
    let end = timeout(REQUEST, request.read(&mut [0])).await;
    matches!(end, Ok(Err(ReadError::Reset(code))) if code == ABANDONED)
}

/// Returns a reply as a frame; in place of one that is too long, or cannot be one, a refusal that says so.
fn framed(reply: &Reply) -> Vec<u8> {
    let error = match frame::encode(reply, REPLY_CAP) {
        Ok(frame) => return frame,
        Err(error) => error,
    };
    tracing::error!(%error, "a reply cannot be sent");
    let refusal = Refusal::new(
        RefusalKind::Failed,
        format!(
            "the answer cannot be sent: {}",
            zdap_proto::refusal::chain(&error)
        ),
    )
    .with_hint("name a resource to ask for less");
    // Of a few hundred bytes.
    frame::encode(&Reply::Refused(refusal), REPLY_CAP).unwrap_or_default()
}

/// `spec.md`: SIGTERM lets running requests finish for 10 s.
const DRAIN: Duration = Duration::from_secs(10);
const STOPPING: &str = "the node is stopping";
const CLOSING: Duration = Duration::from_secs(1);
/// For a frame of a few kilobytes to come or go.
const REQUEST: Duration = Duration::from_secs(10);
/// For the few megabytes of the relay program, over a slow line.
const BODY: Duration = Duration::from_secs(300);
const ENROLMENT: Duration = Duration::from_secs(10);
/// As many as relays and users have between them.
const NODE_STREAMS: VarInt = VarInt::from_u32(16 * 1024);
/// Sixty-four uploads that their databases do not read.
const NODE_TUNNEL_WINDOW: VarInt = VarInt::from_u32(512 * 1024 * 1024);
/// Progress is news only for a moment.
const STEPS: usize = 8;

#[cfg(test)]
mod tests {
    use zdap_proto::message::{Answer, TokenText};

    use super::*;

    #[test]
    fn an_answer_that_is_too_long_is_refused_and_not_lost() {
        let answer = Reply::Done(Answer::Token(TokenText("x".repeat(REPLY_CAP))));
        let frame = framed(&answer);
        let reply: Reply = frame::decode(&frame[4..]).unwrap();
        let Reply::Refused(refusal) = reply else {
            panic!("{reply:?}")
        };
        assert!(refusal.message.contains("over the limit"), "{refusal}");
        assert!(refusal.hint.is_some_and(|hint| hint.contains("resource")));
    }
}
