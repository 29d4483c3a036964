//! The little of Postgres's own protocol that a tunnel speaks: to tell a client why it gets no connection, and to ask a
//! server whether it answers.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Reads what a Postgres client opens with and answers with `FATAL: message`. Somebody who is not a Postgres client is
/// told nothing.
pub(crate) async fn refuse<S>(client: &mut S, message: &str, hint: Option<&str>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // A client may ask for TLS and for GSSAPI encryption before it says who it is.
    for _ in 0..3 {
        let length = client.read_u32().await?;
        let code = client.read_u32().await?;
        match (length, code) {
            (8, SSL_REQUEST | GSS_REQUEST) => client.write_all(b"N").await?,
            (8..=STARTUP_LIMIT, _) if code >> 16 == PROTOCOL_3 >> 16 => {
                let rest = u64::from(length - 8);
                tokio::io::copy(&mut client.take(rest), &mut tokio::io::sink()).await?;
                client.write_all(&error_response(message, hint)).await?;
                return client.shutdown().await;
            }
            (_, _) => return Ok(()),
        }
    }
    Ok(())
}

/// What a server says to a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// It takes connections.
    Ready,
    /// It is there and takes none yet, or no more: why.
    NotReady(String),
}

/// Opens as a client would and hears the first answer, as `pg_isready` does: a server that starts, stops or recovers
/// says so, and anything else, a refusal of the made-up user too, comes from one that works. Sends nothing that a server
/// writes into its log as an error of its own.
pub(crate) async fn greet<W, R>(to: &mut W, from: &mut R) -> io::Result<Greeting>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    to.write_all(&startup(&[
        ("user", "postgres"),
        ("application_name", "zdap health"),
    ]))
    .await?;
    let kind = match from.read_u8().await {
        Ok(kind) => kind,
        // Closed without a word: not Postgres, and it was there to be connected to.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Greeting::Ready),
        Err(error) => return Err(error),
    };
    if kind != b'E' {
        return Ok(Greeting::Ready);
    }
    let length = from.read_u32().await?.saturating_sub(4).min(STARTUP_LIMIT);
    let mut body = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut body).await?;
    Ok(match field(&body, b'C') {
        Some(code) if code == CANNOT_CONNECT_NOW => {
            Greeting::NotReady(field(&body, b'M').unwrap_or_else(|| code.clone()))
        }
        Some(_) | None => Greeting::Ready,
    })
}

fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = PROTOCOL_3.to_be_bytes().to_vec();
    for (name, value) in parameters {
        for text in [name, value] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    with_length(body)
}

fn error_response(message: &str, hint: Option<&str>) -> Vec<u8> {
    let mut body = Vec::new();
    let fields = [
        (b'S', Some("FATAL")),
        (b'V', Some("FATAL")),
        (b'C', Some(CANNOT_REACH)),
        (b'M', Some(message)),
        (b'H', hint),
    ];
    for (kind, text) in fields {
        if let Some(text) = text {
            body.push(kind);
            body.extend(text.bytes().filter(|byte| *byte != 0));
            body.push(0);
        }
    }
    body.push(0);
    let mut response = vec![b'E'];
    response.extend(with_length(body));
    response
}

fn with_length(body: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    let mut message = length.to_be_bytes().to_vec();
    message.extend(body);
    message
}

/// Returns one field of an ErrorResponse: a letter, text, a zero byte; one after another.
fn field(body: &[u8], wanted: u8) -> Option<String> {
    body.split(|byte| *byte == 0)
        .find_map(|field| match field.split_first() {
            Some((kind, text)) if *kind == wanted => Some(String::from_utf8_lossy(text).into_owned()),
            Some(_) | None => None,
        })
}

const PROTOCOL_3: u32 = 3 << 16;
const SSL_REQUEST: u32 = (1234 << 16) | 5679;
const GSS_REQUEST: u32 = (1234 << 16) | 5680;
/// Postgres's own limit for a startup packet, in bytes.
const STARTUP_LIMIT: u32 = 10_000;
/// SQLSTATE of a server that starts, stops or recovers.
const CANNOT_CONNECT_NOW: &str = "57P03";
/// SQLSTATE `sqlclient_unable_to_establish_sqlconnection`, which no server sends.
const CANNOT_REACH: &str = "08001";

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(opening: &[u8]) -> Vec<u8> {
        let (mut client, mut server) = tokio::io::duplex(4096);
        client.write_all(opening).await.unwrap();
        client.shutdown().await.unwrap();
        let _ = refuse(&mut server, "no such clone", Some("attach again")).await;
        drop(server);
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        heard
    }

    async fn greeted(answer: &[u8]) -> Greeting {
        let mut answer = answer;
        greet(&mut tokio::io::sink(), &mut answer).await.unwrap()
    }

    #[tokio::test]
    async fn a_client_that_asks_for_tls_first_is_told_the_reason() {
        let mut opening = with_length(SSL_REQUEST.to_be_bytes().to_vec());
        opening.extend(startup(&[("user", "ada")]));
        let heard = refused(&opening).await;
        assert_eq!(heard[..2], *b"NE");
        assert_eq!(field(&heard[6..], b'M').as_deref(), Some("no such clone"));
        assert_eq!(field(&heard[6..], b'H').as_deref(), Some("attach again"));
        let length = u32::from_be_bytes(heard[2..6].try_into().unwrap());
        assert_eq!(length as usize, heard.len() - 2);
    }

    #[tokio::test]
    async fn what_is_not_a_postgres_client_is_told_nothing() {
        assert!(refused(b"GET / HTTP/1.1\r\n\r\n").await.is_empty());
        assert!(refused(b"").await.is_empty());
        assert!(refused(&[0xFF; 64]).await.is_empty());
    }

    #[tokio::test]
    async fn only_a_server_that_says_it_takes_nobody_is_not_ready() {
        let starting = b"E\0\0\0\x22SFATAL\0C57P03\0Mstarting up\0\0\0\0\0\0";
        assert_eq!(
            greeted(starting).await,
            Greeting::NotReady("starting up".to_owned())
        );
        assert_eq!(greeted(b"E\0\0\0\x14SFATAL\0C28000\0\0\0").await, Greeting::Ready);
        assert_eq!(greeted(b"R\0\0\0\x08\0\0\0\0").await, Greeting::Ready);
        assert_eq!(greeted(b"").await, Greeting::Ready);
    }
}
