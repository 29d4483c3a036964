//! A local connection and a QUIC stream, joined: what comes in at one side goes out at the other, in both directions.
//!
//! Each direction ends for itself: the end of one side's bytes becomes the end at the other side, while the opposite
//! direction goes on. A failure is passed on as a failure (reset), never as an end, so that nobody takes half of the
//! bytes for all of them.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use quinn::{RecvStream, SendStream, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

/// A local connection: one half to read from, one to write to.
pub trait Local {
    /// Where its bytes come from.
    type Reader: AsyncRead + Unpin + Send;
    /// Where its bytes go.
    type Writer: AsyncWrite + Unpin + Send;

    /// Takes it apart.
    fn into_halves(self) -> (Self::Reader, Self::Writer);

    /// Ends it so that the other end knows that something is missing.
    fn abort(reader: Self::Reader, writer: Self::Writer);
}

impl Local for TcpStream {
    type Reader = tcp::OwnedReadHalf;
    type Writer = tcp::OwnedWriteHalf;

    fn into_halves(self) -> (Self::Reader, Self::Writer) {
        self.into_split()
    }

    fn abort(reader: Self::Reader, writer: Self::Writer) {
        if let Ok(stream) = reader.reunite(writer) {
            let _ = stream.set_zero_linger(); // closing it sends a reset then
        }
    }
}

impl Local for UnixStream {
    type Reader = unix::OwnedReadHalf;
    type Writer = unix::OwnedWriteHalf;

    fn into_halves(self) -> (Self::Reader, Self::Writer) {
        self.into_split()
    }

    fn abort(reader: Self::Reader, writer: Self::Writer) {
        drop((reader, writer)); // a Unix socket has no reset
    }
}

/// A connection within this process.
impl Local for DuplexStream {
    type Reader = ReadHalf<Self>;
    type Writer = WriteHalf<Self>;

    fn into_halves(self) -> (Self::Reader, Self::Writer) {
        tokio::io::split(self)
    }

    fn abort(reader: Self::Reader, writer: Self::Writer) {
        drop((reader, writer)); // it has no reset either
    }
}

/// How much went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spliced {
    /// Read locally and written to the stream, in bytes.
    pub bytes_to_stream: u64,
    /// Read from the stream and written locally, in bytes.
    pub bytes_from_stream: u64,
}

/// Which side failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The local connection.
    Local,
    /// The QUIC stream, or who is at its other end.
    Stream,
}

/// Why the bytes stopped before both sides had ended.
#[derive(Debug, thiserror::Error)]
#[error("the {} failed", match side { Side::Local => "local connection", Side::Stream => "stream" })]
pub struct SpliceError {
    /// Which side.
    pub side: Side,
    /// How.
    #[source]
    pub source: io::Error,
}

/// Copies both ways until both have ended, or one fails: then both sides are reset. What was written to the stream has
/// arrived when this returns.
pub async fn splice<L: Local>(
    local: L,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<Spliced, SpliceError> {
    let (mut reader, mut writer) = local.into_halves();
    let mut spliced = Spliced::default();
    let (mut to_stream_open, mut from_stream_open) = (true, true);
    let result = {
        let mut to_stream = pin!(to_stream(&mut reader, &mut send, &mut spliced.bytes_to_stream));
        let mut from_stream = pin!(from_stream(
            &mut recv,
            &mut writer,
            &mut spliced.bytes_from_stream
        ));
        let mut deadline = None;
        loop {
            tokio::select! {
                biased; // so that a simulation is the same each time
                ended = &mut to_stream, if to_stream_open => match ended {
                    Ok(End::Finished) => to_stream_open = false,
                    // The other end has closed for good. Its last words may still be on their way here.
                    Ok(End::Stopped) => {
                        to_stream_open = false;
                        deadline = Some(tokio::time::Instant::now() + LAST_WORDS);
                    }
                    Err(error) => break Err(error),
                },
                ended = &mut from_stream, if from_stream_open => match ended {
                    Ok(()) => from_stream_open = false,
                    Err(error) => break Err(error),
                },
                () = tokio::time::sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                    break Err(stream_failed(io::ErrorKind::ConnectionReset.into()));
                }
            }
            if !to_stream_open && !from_stream_open {
                break Ok(());
            }
        }
    };
    match result {
        Ok(()) => {
            let _ = send.stopped().await; // all acknowledged, or nobody is there to read it
            Ok(spliced)
        }
        Err(error) => {
            // A direction that has ended well stays so: a reset would take back what is not yet delivered.
            if to_stream_open {
                let _ = send.reset(ABORTED);
            }
            let _ = recv.stop(ABORTED);
            if from_stream_open {
                L::abort(reader, writer);
            }
            Err(error)
        }
    }
}

enum End {
    Finished,
    Stopped,
}

async fn to_stream<R>(reader: &mut R, send: &mut SendStream, count: &mut u64) -> Result<End, SpliceError>
where
    R: AsyncRead + Unpin,
{
    let mut size = SMALL;
    loop {
        let bytes = read_some(reader, size).await.map_err(local_failed)?;
        if bytes.is_empty() {
            let _ = send.finish(); // fails only if the peer wants no more
            return Ok(End::Finished);
        }
        size = if bytes.len() == size { LARGE } else { SMALL };
        let length = bytes.len() as u64;
        match send.write_chunk(bytes).await {
            Ok(()) => *count += length,
            Err(WriteError::Stopped(_)) => return Ok(End::Stopped),
            Err(error) => return Err(stream_failed(error.into())),
        }
    }
}

/// Reads at most `size` bytes; none at the end. Holds no buffer while it waits: most connections are idle most of the time.
async fn read_some<R: AsyncRead + Unpin>(reader: &mut R, size: usize) -> io::Result<Bytes> {
    poll_fn(|context| {
        let mut buffer = BytesMut::with_capacity(size);
        let read = pin!(reader.read_buf(&mut buffer)).poll(context);
        match read {
            Poll::Ready(Ok(_)) => Poll::Ready(Ok(buffer.freeze())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn from_stream<W>(recv: &mut RecvStream, writer: &mut W, count: &mut u64) -> Result<(), SpliceError>
where
    W: AsyncWrite + Unpin,
{
    let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
    loop {
        match recv.read_chunks(&mut chunks).await {
            Ok(Some(filled)) => {
                *count += write_all(writer, &mut chunks[..filled])
                    .await
                    .map_err(local_failed)?
            }
            Ok(None) => break,
            Err(error) => return Err(stream_failed(error.into())),
        }
    }
    match writer.shutdown().await {
        // Already gone: whether that matters, the other direction knows.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result.map_err(local_failed),
    }
}

/// Writes `chunks` with as few calls as the writer takes, and lets go of each as soon as it is written.
async fn write_all<W: AsyncWrite + Unpin>(writer: &mut W, chunks: &mut [Bytes]) -> io::Result<u64> {
    let mut total = 0;
    let mut first = 0;
    while first < chunks.len() {
        let mut slices = [IoSlice::new(&[]); CHUNKS];
        let left = &chunks[first..];
        for (slice, chunk) in slices.iter_mut().zip(left) {
            *slice = IoSlice::new(chunk);
        }
        let mut written = writer.write_vectored(&slices[..left.len()]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        total += written as u64;
        while first < chunks.len() && written >= chunks[first].len() {
            written -= chunks[first].len();
            chunks[first] = Bytes::new();
            first += 1;
        }
        if written > 0 {
            chunks[first].advance(written);
        }
    }
    Ok(total)
}

fn local_failed(source: io::Error) -> SpliceError {
    SpliceError {
        side: Side::Local,
        source,
    }
}

fn stream_failed(source: io::Error) -> SpliceError {
    SpliceError {
        side: Side::Stream,
        source,
    }
}

/// The application error code of a reset: the other half of the splice has failed.
const ABORTED: VarInt = VarInt::from_u32(1);
/// How long the other end, after it has said that it takes no more, may still send.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Packets that are taken from a stream at once, and written with one call.
const CHUNKS: usize = 32;
/// A query fits in this.
const SMALL: usize = 8 * 1024;
/// Bulk: a read that fills its buffer is followed by one this large. A quarter of it costs a fifth of the throughput.
const LARGE: usize = 64 * 1024;
