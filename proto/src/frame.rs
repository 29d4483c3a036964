//! Length-prefixed postcard with a size cap.
//!
//! A frame is a little-endian `u32`, the length of the body, then the body. The reader names the largest body it will
//! take, and takes no memory for a longer one: what a peer sends can make an error, never a panic or a large allocation.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest request: names, a public key, a reservation.
pub const REQUEST_CAP: usize = 16 * 1024;
/// The largest reply: a list of some ten thousand clones.
pub const REPLY_CAP: usize = 4 * 1024 * 1024;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended before a frame began: the peer has nothing more to say.
    #[error("the stream ended")]
    Ended,
    /// The stream failed, or ended inside a frame.
    #[error("the stream broke")]
    Io(#[source] io::Error),
    /// The length is over the cap; nothing after it was read.
    #[error("a frame of {length} bytes is over the limit of {cap}")]
    TooLong {
        /// The length that was announced or is to be sent.
        length: usize,
        /// The largest allowed.
        cap: usize,
    },
    /// The bytes are not the message that was expected.
    #[error("a frame does not hold the expected message")]
    Malformed(#[source] postcard::Error),
}

/// Encodes `message` as one frame.
pub fn encode<T: Serialize>(message: &T, cap: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = postcard::to_extend(message, vec![0; PREFIX]).map_err(FrameError::Malformed)?;
    let length = frame.len() - PREFIX;
    let too_long = FrameError::TooLong { length, cap };
    if length > cap {
        return Err(too_long);
    }
    let Ok(prefix) = u32::try_from(length) else {
        return Err(too_long);
    };
    frame[..PREFIX].copy_from_slice(&prefix.to_le_bytes());
    Ok(frame)
}

/// Decodes the body of a frame; bytes left over are an error.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body).map_err(FrameError::Malformed)? {
        (message, []) => Ok(message),
        (_, _) => Err(FrameError::Malformed(postcard::Error::DeserializeBadEncoding)),
    }
}

/// Writes `message` as one frame.
pub async fn write<T, W>(stream: &mut W, message: &T, cap: usize) -> Result<(), FrameError>
where
    T: Serialize,
    W: AsyncWrite + Unpin,
{
    stream
        .write_all(&encode(message, cap)?)
        .await
        .map_err(FrameError::Io)
}

/// Reads one frame of at most `cap` bytes. Not safe to cancel: a part that was read is lost.
pub async fn read<T, R>(stream: &mut R, cap: usize) -> Result<T, FrameError>
where
    T: DeserializeOwned,
    R: AsyncRead + Unpin,
{
    let mut prefix = [0; PREFIX];
    let first = stream.read(&mut prefix).await.map_err(FrameError::Io)?;
    if first == 0 {
        return Err(FrameError::Ended);
    }
    stream
        .read_exact(&mut prefix[first..])
        .await
        .map_err(FrameError::Io)?;
    let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if length > cap {
        return Err(FrameError::TooLong { length, cap });
    }
    let mut body = Vec::with_capacity(length.min(TRUSTED));
    // `take`, so that memory grows with what arrives and not with what was announced.
    let read = stream
        .take(length as u64)
        .read_to_end(&mut body)
        .await
        .map_err(FrameError::Io)?;
    if read < length {
        return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    decode(&body)
}

const PREFIX: usize = 4;
/// Taken at once for a frame, before any of it has arrived.
const TRUSTED: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{EnrolReply, EnrolRequest, Reply, Request, TunnelHello, TunnelReply};

    fn read_all<T: DeserializeOwned>(mut bytes: &[u8], cap: usize) -> Result<T, FrameError> {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(read(&mut bytes, cap))
    }

    #[test]
    fn a_length_over_the_cap_is_refused_before_the_body_is_read() {
        let bytes = u32::MAX.to_le_bytes();
        assert!(matches!(
            read_all::<Request>(&bytes, 100),
            Err(FrameError::TooLong { cap: 100, .. })
        ));
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_broken_and_one_that_ends_before_it_has_ended() {
        let frame = encode(&Request::ListResources, REQUEST_CAP).unwrap();
        assert!(matches!(
            read_all::<Request>(&frame[..2], 100),
            Err(FrameError::Io(_))
        ));
        assert!(matches!(
            read_all::<Request>(&frame[..4], 100),
            Err(FrameError::Io(_))
        ));
        assert!(matches!(read_all::<Request>(&[], 100), Err(FrameError::Ended)));
    }

    #[test]
    fn bytes_after_the_message_are_refused() {
        let mut frame = encode(&Request::ListResources, REQUEST_CAP).unwrap();
        frame.push(0);
        assert!(decode::<Request>(&frame[PREFIX..]).is_err());
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Reply>(&bytes);
            let _ = decode::<TunnelHello>(&bytes);
            let _ = decode::<TunnelReply>(&bytes);
            let _ = decode::<EnrolRequest>(&bytes);
            let _ = decode::<EnrolReply>(&bytes);
            let _ = read_all::<Reply>(&bytes, 1024);
        }
    }
}
