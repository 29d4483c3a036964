//! `zdap connect`: the relay in the foreground, without Docker.

use std::net::Ipv4Addr;

use serde::Serialize;
use tokio::net::TcpListener;
use zdap_proto::message::{Account, CloneView};
use zdap_proto::name::CloneId;
use zdap_proto::tunnel::Tunnel;

use super::{Found, newest_clone};
use crate::cli::Connect;
use crate::context::Context;
use crate::error::{Failure, Kind};
use crate::words::Words;
use zdap_proto::refusal::chain;

#[derive(Serialize)]
struct Document<'a> {
    url: &'a str,
    host: String,
    port: u16,
    clone: &'a CloneView,
}

/// Serves the clone on this machine until Ctrl-C.
pub(super) async fn run(context: &Context<'_>, arguments: &Connect) -> Result<(), Failure> {
    let words = Words::parse(&arguments.words)?;
    let (tunnel, listener) = context
        .until_stopped(open(context, &words, arguments.port))
        .await?;
    let check = async {
        if let Err(error) = tunnel.probe().await {
            context.output.warn(&chain(&error));
        }
        std::future::pending::<()>().await;
    };
    let mut end = None;
    let serving = tunnel.serve(listener, async { end = Some(context.signalled().await) });
    tokio::select! {
        () = serving => {}
        () = check => {}
    }
    match end {
        // This is how it ends.
        Some(failure) if matches!(failure.kind, Kind::Interrupted | Kind::Terminated) => Ok(()),
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

async fn open(context: &Context<'_>, words: &Words, port: u16) -> Result<(Tunnel, TcpListener), Failure> {
    let listener = listen(port).await?;
    let port = local_port(&listener)?;
    let reached = context.reach().await?;
    let found = newest_clone(context, &reached, words).await?;
    let account = found.cluster.account(&found.clone.id);
    let (tunnel, account) = tokio::join!(tunnel(context, &found), account);
    let tunnel = tunnel?;
    let url = format!("postgres://{}:{port}", Ipv4Addr::LOCALHOST);
    let document = Document {
        url: &url,
        host: Ipv4Addr::LOCALHOST.to_string(),
        port,
        clone: &found.clone,
    };
    context.output.data(&url, &document)?;
    context.output.say(&format!(
        "{} on {}; Ctrl-C ends it",
        found.clone.id, found.clone.node
    ));
    match account {
        Ok(account) => context.output.say(&account_line(&account, &found.clone.id)),
        Err(error) => {
            tracing::debug!("the account is not known: {}", chain(&error));
            context
                .output
                .say("user, password and database are those of the copied database");
        }
    }
    Ok((tunnel, listener))
}

/// Who to be there; the password is nobody's to read over a shoulder.
fn account_line(account: &Account, clone: &CloneId) -> String {
    let (user, database) = (&account.user, &account.database);
    let password = match account.password {
        Some(_) => "and the password of the copied database",
        None => "without a password",
    };
    format!("user `{user}`, database `{database}`, {password}; `zdap psql {clone}` fills them in")
}

/// Listens on 127.0.0.1.
pub(super) async fn listen(port: u16) -> Result<TcpListener, Failure> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .map_err(|error| {
            let failure = Failure::caused(&format!("cannot listen on 127.0.0.1:{port}"), &error);
            match error.kind() == std::io::ErrorKind::AddrInUse {
                true => failure.hinted("`--port 0` picks a free port"),
                false => failure,
            }
        })
}

pub(super) fn local_port(listener: &TcpListener) -> Result<u16, Failure> {
    let address = listener.local_addr();
    let address = address.map_err(|error| Failure::caused("cannot tell the port", &error))?;
    Ok(address.port())
}

/// Opens the way to a clone, at its own node or through another.
pub(super) async fn tunnel(context: &Context<'_>, found: &Found) -> Result<Tunnel, Failure> {
    Ok(Tunnel::new(
        context.endpoint()?,
        found.cluster.identity().clone(),
        found.cluster.servers(&found.clone.node).await,
        found.clone.id.clone(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_is_told_without_its_password() {
        let account = Account {
            user: "postgres".to_owned(),
            password: Some("secret".to_owned()),
            database: "orders".to_owned(),
        };
        assert_eq!(
            account_line(&account, &"orders-k3v9x2mq".parse().unwrap()),
            "user `postgres`, database `orders`, and the password of the copied database; \
             `zdap psql orders-k3v9x2mq` fills them in"
        );
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named_with_the_way_out() {
        let taken = listen(0).await.unwrap();
        let port = local_port(&taken).unwrap();
        let failure = listen(port).await.unwrap_err();
        assert!(
            failure
                .message
                .starts_with(&format!("cannot listen on 127.0.0.1:{port}: ")),
            "{}",
            failure.message
        );
        assert_eq!(failure.hint.as_deref(), Some("`--port 0` picks a free port"));
    }
}
