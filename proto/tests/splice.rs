//! A splice at each end of a real QUIC stream: every byte, every end and every failure gets through.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on panics"
)]

mod cluster;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use zdap_proto::connect::connect;
use zdap_proto::splice::{Side, SpliceError, Spliced, splice};
use zdap_proto::transport::{Accepted, Close, Purpose, bind_any, client_endpoint, remote};

use crate::cluster::{Cluster, soon};

/// Two TCP connections with a splice at each end of a QUIC stream between them.
struct Path {
    client: TcpStream,
    database: TcpStream,
    client_splice: JoinHandle<Result<Spliced, SpliceError>>,
    database_splice: JoinHandle<Result<Spliced, SpliceError>>,
    _ends: (Connection, Accepted, Endpoint, Endpoint),
}

async fn path() -> Path {
    let cluster = Cluster::found();
    let (server, address) = cluster.serve(&cluster.node());
    let endpoint = client_endpoint().unwrap();
    let user = cluster.user();
    let (connected, admitted) = tokio::join!(
        connect(&endpoint, &user, &address, Purpose::Tunnel),
        cluster.admit(&server)
    );
    let (connection, admitted) = (connected.unwrap(), admitted.unwrap());
    let (mut send, recv) = connection.open_bi().await.unwrap();
    send.write_all(b"!").await.unwrap(); // a stream is there for the other end once something comes
    let (other_send, mut other_recv) = admitted.connection.accept_bi().await.unwrap();
    let mut first = [0];
    other_recv.read_exact(&mut first).await.unwrap();
    let (client, client_splice) = tcp_spliced(send, recv).await;
    let (database, database_splice) = tcp_spliced(other_send, other_recv).await;
    Path {
        client,
        database,
        client_splice,
        database_splice,
        _ends: (connection, admitted, endpoint, server),
    }
}

async fn tcp_spliced(
    send: SendStream,
    recv: RecvStream,
) -> (TcpStream, JoinHandle<Result<Spliced, SpliceError>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (ours, accepted) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (
        ours.unwrap(),
        tokio::spawn(splice(accepted.unwrap().0, send, recv)),
    )
}

#[tokio::test]
async fn each_direction_ends_for_itself() {
    for client_first in [true, false] {
        let mut path = path().await;
        let (first, second) = match client_first {
            true => (&mut path.client, &mut path.database),
            false => (&mut path.database, &mut path.client),
        };
        first.write_all(b"question").await.unwrap();
        first.shutdown().await.unwrap();
        let mut heard = String::new();
        soon(second.read_to_string(&mut heard)).await.unwrap();
        assert_eq!(heard, "question");
        // The other way is still open.
        second.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        soon(first.read_exact(&mut answer)).await.unwrap();
        second.shutdown().await.unwrap();
        assert_eq!(soon(first.read(&mut answer)).await.unwrap(), 0);
        let (there, back) = (8, 6);
        let (to, from) = if client_first {
            (there, back)
        } else {
            (back, there)
        };
        let spliced = soon(path.client_splice).await.unwrap().unwrap();
        assert_eq!(
            spliced,
            Spliced {
                bytes_to_stream: to,
                bytes_from_stream: from
            }
        );
        soon(path.database_splice).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn megabytes_in_both_directions_at_once_are_exact() {
    let path = path().await;
    let (mut client_read, mut client_write) = path.client.into_split();
    let (mut database_read, mut database_write) = path.database.into_split();
    let (up, down) = (pattern(5_000_003, 1), pattern(7_000_001, 2));
    let (mut up_heard, mut down_heard) = (Vec::new(), Vec::new());
    let (sent_up, sent_down) = (up.clone(), down.clone());
    soon(async {
        tokio::join!(
            async move { client_write.write_all(&sent_up).await.unwrap() },
            async move { database_write.write_all(&sent_down).await.unwrap() },
            async { database_read.read_to_end(&mut up_heard).await.unwrap() },
            async { client_read.read_to_end(&mut down_heard).await.unwrap() },
        )
    })
    .await;
    assert!(up == up_heard && down == down_heard);
    soon(path.client_splice).await.unwrap().unwrap();
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed);
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

#[tokio::test]
async fn a_reset_at_one_end_is_a_reset_at_the_other() {
    for client_resets in [true, false] {
        let mut path = path().await;
        path.client.write_all(b"x").await.unwrap();
        let mut byte = [0];
        soon(path.database.read_exact(&mut byte)).await.unwrap();
        let (resetting, mut other, resetting_splice, other_splice) = match client_resets {
            true => (
                path.client,
                path.database,
                path.client_splice,
                path.database_splice,
            ),
            false => (
                path.database,
                path.client,
                path.database_splice,
                path.client_splice,
            ),
        };
        resetting.set_zero_linger().unwrap();
        drop(resetting);
        let error = soon(other.read(&mut byte)).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(
            soon(resetting_splice).await.unwrap().unwrap_err().side,
            Side::Local
        );
        assert_eq!(soon(other_splice).await.unwrap().unwrap_err().side, Side::Stream);
    }
}

#[tokio::test]
async fn last_words_arrive_although_the_speaker_listens_no_more() {
    let mut path = path().await;
    // As a server that refuses a client: it says why and closes, with things unread.
    path.client.write_all(&[7; 1000]).await.unwrap();
    path.database.readable().await.unwrap();
    path.database.write_all(b"FATAL: go away").await.unwrap();
    path.database.shutdown().await.unwrap();
    let mut heard = String::new();
    soon(path.client.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "FATAL: go away");
    drop(path.database); // unread bytes: this is a reset
    drop(path.client);
    let _ = soon(path.client_splice).await.unwrap();
    let _ = soon(path.database_splice).await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_connection_ends_the_splice() {
    let mut path = path().await;
    Close::Stopping.connection(&path._ends.0, "the end");
    let mut byte = [0];
    assert!(soon(path.client.read(&mut byte)).await.is_err());
    assert!(soon(path.database.read(&mut byte)).await.is_err());
    assert_eq!(
        soon(path.client_splice).await.unwrap().unwrap_err().side,
        Side::Stream
    );
}

#[tokio::test]
async fn a_connection_moves_along_when_the_address_changes() {
    let mut path = path().await;
    let (before, mut heard) = (remote(&path._ends.1.connection), [0; 4]);
    path._ends.2.rebind(bind_any(0).unwrap()).unwrap();
    path.client.write_all(b"ping").await.unwrap();
    soon(path.database.read_exact(&mut heard)).await.unwrap();
    path.database.write_all(&heard).await.unwrap();
    soon(path.client.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"ping");
    assert_ne!(remote(&path._ends.1.connection), before);
}
