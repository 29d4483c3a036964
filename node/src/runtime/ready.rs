//! When a database counts as ready: it answers.
//!
//! Postgres is asked in its own protocol: a `StartupMessage`, and any answer but "the database system is starting up"
//! (SQLSTATE 57P03) will do, a request for a password or a refusal as well. No login, so nothing to configure. Other
//! databases accept a connection and then pass the resource's healthcheck.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use super::{Address, InstanceSpec, variable};

/// How waiting for a database ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Readiness<D> {
    /// It is ready.
    Ready,
    /// The instance ended first.
    Died(D),
    /// The time is over.
    TimedOut,
}

/// Waits for `ready`, but no longer than `limit` and only while `died` has not happened.
pub async fn within<D>(
    limit: Duration,
    ready: impl Future<Output = ()>,
    died: impl Future<Output = D>,
) -> Readiness<D> {
    tokio::select! {
        biased;
        death = died => Readiness::Died(death),
        () = ready => Readiness::Ready,
        () = sleep(limit) => Readiness::TimedOut,
    }
}

/// Returns whether the readiness of an instance is asked for in the Postgres protocol.
///
/// It is, unless the resource has a healthcheck of its own and neither that nor the image's name is known to be
/// Postgres's.
pub fn is_postgres(spec: &InstanceSpec) -> bool {
    let Some(healthcheck) = &spec.healthcheck else {
        return true;
    };
    healthcheck.contains("pg_isready") || POSTGRES_IMAGES.iter().any(|name| spec.image.contains(name))
}

/// Returns once the Postgres at `address` answers; tries for ever.
pub async fn postgres(address: &Address, env: &[String]) {
    let user = variable(env, "POSTGRES_USER").unwrap_or("postgres");
    let startup = startup_message(user, variable(env, "POSTGRES_DB").unwrap_or(user));
    retry(ANSWER, || async {
        match address {
            Address::Tcp(address) => {
                asks(timeout(CONNECT, TcpStream::connect(address)).await??, &startup).await
            }
            Address::Unix(path) => asks(timeout(CONNECT, UnixStream::connect(path)).await??, &startup).await,
            Address::Memory(door) => asks(door.connect()?, &startup).await,
        }
    })
    .await;
}

/// Returns once something accepts connections at `address`; tries for ever.
pub async fn accepts(address: &Address) {
    retry(CONNECT, || async {
        match address {
            Address::Tcp(address) => TcpStream::connect(address).await.map(|_| true),
            Address::Unix(path) => UnixStream::connect(path).await.map(|_| true),
            Address::Memory(door) => door.connect().map(|_| true),
        }
    })
    .await;
}

/// Returns once `check` returns true; tries for ever. For checks that cost a program start.
pub async fn passes<F: Future<Output = bool>>(mut check: impl FnMut() -> F) {
    while !check().await {
        sleep(CHECK_PAUSE).await;
    }
}

/// Tries at once and then again after a fiftieth of the time already spent, within bounds: a database that is quick is
/// noticed at once, and one that takes long is not kept busy, nor its log filled, by being asked.
async fn retry<F: Future<Output = io::Result<bool>>>(limit: Duration, mut attempt: impl FnMut() -> F) {
    let begin = Instant::now();
    while !matches!(timeout(limit, attempt()).await, Ok(Ok(true))) {
        sleep((begin.elapsed() / 50).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
    }
}

/// Returns whether the server at the other end answers, rather than that it is starting up.
///
/// Leaves without a trace in the server's log: it has read all that was said, and takes leave only once let in.
async fn asks(mut stream: impl AsyncRead + AsyncWrite + Unpin, startup: &[u8]) -> io::Result<bool> {
    stream.write_all(startup).await?;
    let kind = stream.read_u8().await?;
    if kind != ERROR_RESPONSE && kind != AUTHENTICATION {
        return Ok(true);
    }
    let length = u64::from(stream.read_u32().await?.saturating_sub(4));
    let mut body = Vec::new();
    (&mut stream)
        .take(length.min(LONGEST_MESSAGE))
        .read_to_end(&mut body)
        .await?;
    if kind == ERROR_RESPONSE {
        return Ok(sqlstate(&body) != Some(CANNOT_CONNECT_NOW));
    }
    if body == AUTHENTICATION_OK {
        let leave = async {
            stream.write_all(TERMINATE).await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        };
        // It answers, however it takes our leaving.
        let _ = timeout(CONNECT, leave).await;
    }
    Ok(true)
}

/// A `StartupMessage` of protocol 3.0.
fn startup_message(user: &str, database: &str) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(PROTOCOL_3_0.to_be_bytes());
    for text in ["user", user, "database", database, "application_name", "zdapd"] {
        message.extend(text.bytes().filter(|byte| *byte != 0));
        message.push(0);
    }
    message.push(0);
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    message[..4].copy_from_slice(&length);
    message
}

/// Returns the `C` field of an `ErrorResponse`.
fn sqlstate(fields: &[u8]) -> Option<&[u8]> {
    fields
        .split(|byte| *byte == 0)
        .find_map(|field| field.strip_prefix(b"C"))
}

/// Parts of the names of images that hold Postgres.
const POSTGRES_IMAGES: &[&str] = &["postgres", "postgis", "timescale", "pgvector", "citus"];
const PROTOCOL_3_0: u32 = 3 << 16;
const ERROR_RESPONSE: u8 = b'E';
const AUTHENTICATION: u8 = b'R';
const AUTHENTICATION_OK: &[u8] = &[0; 4];
const TERMINATE: &[u8] = b"X\0\0\0\x04";
const CANNOT_CONNECT_NOW: &[u8] = b"57P03";
/// What is read here is a few hundred bytes; a peer that says more is not Postgres.
const LONGEST_MESSAGE: u64 = 64 * 1024;
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// Reached after 25 s.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A local peer accepts at once. A packet sent while a container's network is still being made is lost, and the kernel
/// would repeat it only after a second.
const CONNECT: Duration = Duration::from_millis(250);
/// For an answer; on a busy machine Postgres may take a while to fork.
const ANSWER: Duration = Duration::from_secs(3);
/// A healthcheck starts a program in the container.
const CHECK_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tests::spec;

    fn error(code: &str) -> Vec<u8> {
        let fields = format!("SFATAL\0VFATAL\0C{code}\0Mno\0\0");
        let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
        [b"E", &length[..], fields.as_bytes()].concat()
    }

    async fn answer(bytes: Vec<u8>) -> io::Result<bool> {
        let (client, mut server) = tokio::io::duplex(1024);
        server.write_all(&bytes).await?;
        server.shutdown().await?;
        asks(client, &startup_message("postgres", "orders")).await
    }

    #[tokio::test]
    async fn a_server_that_is_starting_up_is_not_ready() {
        assert!(!answer(error("57P03")).await.unwrap());
    }

    #[tokio::test]
    async fn a_request_for_a_password_and_a_refusal_are_answers() {
        for method in [0, 5, 10] {
            assert!(
                answer([b"R\0\0\0\x08\0\0\0", &[method][..]].concat())
                    .await
                    .unwrap()
            );
        }
        for code in ["28P01", "3D000", "53300"] {
            assert!(answer(error(code)).await.unwrap(), "{code}");
        }
    }

    #[tokio::test]
    async fn a_peer_that_hangs_up_is_not_ready() {
        assert!(answer(Vec::new()).await.is_err());
        assert!(answer(b"E\0\0".to_vec()).await.is_err());
    }

    #[test]
    fn a_startup_message_is_as_the_protocol_says() {
        let message = startup_message("ada", "orders");
        assert_eq!(
            message,
            b"\0\0\0\x39\0\x03\0\0user\0ada\0database\0orders\0application_name\0zdapd\0\0"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_death_is_noticed_at_once_and_waiting_ends_at_the_limit() {
        let limit = Duration::from_secs(60);
        let begin = Instant::now();
        let outcome = within(limit, std::future::pending(), std::future::ready(7)).await;
        assert_eq!((outcome, begin.elapsed()), (Readiness::Died(7), Duration::ZERO));
        let outcome = within(limit, std::future::pending(), std::future::pending::<i64>()).await;
        assert_eq!((outcome, begin.elapsed().as_secs()), (Readiness::TimedOut, 60));
    }

    #[test]
    fn a_healthcheck_is_run_only_for_databases_other_than_postgres() {
        let with = |image: &str, healthcheck: Option<&str>| {
            let mut spec = spec("orders-k3v9x2mq");
            spec.image = image.to_owned();
            spec.healthcheck = healthcheck.map(str::to_owned);
            is_postgres(&spec)
        };
        assert!(with("postgres:15", Some("select 1")));
        assert!(with("registry/team/orders:3", Some("pg_isready -U postgres")));
        assert!(with("registry/team/orders:3", None));
        assert!(!with("mysql:8", Some("mysqladmin ping")));
    }
}
