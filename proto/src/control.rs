//! The asking half of `zdap/1`: one request, its progress, its answer.

use quinn::{Connection, RecvStream, SendStream, VarInt};

use crate::frame::{self, FrameError, REPLY_CAP, REQUEST_CAP};
use crate::identity::Subject;
use crate::message::{Answer, Call, Progress, Reply, Request};
use crate::refusal::Refusal;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The node said no.
    #[error("{0}")]
    Refused(Refusal),
    /// The connection was lost; whether the request was carried out is not known.
    #[error("the connection was lost before the answer came")]
    Lost(#[source] quinn::ConnectionError),
    /// The node sent what is no answer: it speaks another version.
    #[error("the node's answer could not be understood")]
    Misunderstood(#[source] FrameError),
}

/// Asks and waits for the answer, passing on progress as it comes.
///
/// Dropped before the end, it tells the node that nobody waits any more: what was being made for this request is undone, also
/// when the answer has come and was not read.
pub async fn call(
    connection: &Connection,
    request: &Request,
    progress: impl FnMut(Progress),
) -> Result<Answer, CallError> {
    call_streaming(connection, request, progress)
        .await
        .map(|(answer, _)| answer)
}

/// Asks one node alone what `asker` asks; only nodes may. Else as [`call`].
pub async fn call_on_behalf_of(
    connection: &Connection,
    asker: &Subject,
    request: &Request,
    progress: impl FnMut(Progress),
) -> Result<Answer, CallError> {
    let call = Call {
        on_behalf_of: Some(asker.clone()),
        request: request.clone(),
    };
    exchange(connection, &call, progress)
        .await
        .map(|(answer, _)| answer)
}

/// Does what [`call`] does, and also gives the stream on which raw bytes follow the answer.
pub async fn call_streaming(
    connection: &Connection,
    request: &Request,
    progress: impl FnMut(Progress),
) -> Result<(Answer, RecvStream), CallError> {
    let call = Call {
        on_behalf_of: None,
        request: request.clone(),
    };
    exchange(connection, &call, progress).await
}

async fn exchange(
    connection: &Connection,
    call: &Call,
    mut progress: impl FnMut(Progress),
) -> Result<(Answer, RecvStream), CallError> {
    let streams = connection.open_bi().await.map_err(CallError::Lost)?;
    let mut streams = Abandoned(Some(streams));
    let lost = |error: FrameError| match (connection.close_reason(), error) {
        (Some(reason), _) => CallError::Lost(reason),
        (None, error) => CallError::Misunderstood(error),
    };
    if let Some((send, _)) = &mut streams.0 {
        frame::write(send, call, REQUEST_CAP).await.map_err(lost)?;
    }
    while let Some((_, receive)) = &mut streams.0 {
        match frame::read(receive, REPLY_CAP).await.map_err(lost)? {
            Reply::Progress(step) => progress(step),
            Reply::Refused(refusal) => return Err(CallError::Refused(refusal)),
            Reply::Done(answer) => match streams.0.take() {
                Some((mut send, receive)) => {
                    // The node hears by it that the answer was read. It fails only if the node does not want to hear more.
                    let _ = send.finish();
                    return Ok((answer, receive));
                }
                None => break,
            },
        }
    }
    Err(CallError::Misunderstood(FrameError::Ended))
}

/// Tells the node, when dropped, that nobody waits for this answer.
struct Abandoned(Option<(SendStream, RecvStream)>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some((send, receive)) = &mut self.0 {
            // The one stops an answer that is still to come, the other tells of one that has come and was not read. Each fails
            // only if there is nothing to tell that way.
            let _ = receive.stop(ABANDONED);
            let _ = send.reset(ABANDONED);
        }
    }
}

/// The code with which an asker stops an answer it no longer waits for, and resets the request.
pub const ABANDONED: VarInt = VarInt::from_u32(1);
