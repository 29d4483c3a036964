//! The asking half of `zdap/1`: one request, its progress, its answer.

use quinn::{Connection, RecvStream, VarInt};

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
/// Dropped before the end, it tells the node that nobody waits any more: what was being made for this request is undone.
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
    let (mut send, receive) = connection.open_bi().await.map_err(CallError::Lost)?;
    let mut receive = Abandoned(Some(receive));
    let lost = |error: FrameError| match (connection.close_reason(), error) {
        (Some(reason), _) => CallError::Lost(reason),
        (None, error) => CallError::Misunderstood(error),
    };
    frame::write(&mut send, call, REQUEST_CAP).await.map_err(lost)?;
    // A stream that is finished already cannot be finished again; that is all that can go wrong.
    let _ = send.finish();
    while let Some(stream) = &mut receive.0 {
        match frame::read(stream, REPLY_CAP).await.map_err(lost)? {
            Reply::Progress(step) => progress(step),
            Reply::Refused(refusal) => return Err(CallError::Refused(refusal)),
            Reply::Done(answer) => match receive.0.take() {
                Some(stream) => return Ok((answer, stream)),
                None => break,
            },
        }
    }
    Err(CallError::Misunderstood(FrameError::Ended))
}

/// Tells the node, when dropped, that nobody waits for this answer.
struct Abandoned(Option<RecvStream>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(stream) = &mut self.0 {
            // It fails only if the stream has ended, and then there is nobody to tell.
            let _ = stream.stop(ABANDONED);
        }
    }
}

/// The code with which an asker stops an answer it no longer waits for.
pub const ABANDONED: VarInt = VarInt::from_u32(1);
