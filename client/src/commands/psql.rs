//! `zdap psql`: psql on a clone, with its account filled in.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use tokio::process::Command;
use tokio::sync::oneshot;
use zdap_proto::message::Account;

use super::connect::{listen, local_port, tunnel};
use super::newest_clone;
use crate::cli::Psql;
use crate::context::Context;
use crate::error::Failure;
use crate::words::Words;

/// Runs psql and ends as it ends.
pub(super) async fn run(context: &Context<'_>, arguments: &Psql) -> Result<ExitCode, Failure> {
    let words = Words::parse(&arguments.words)?;
    let prepare = async {
        let reached = context.reach().await?;
        let found = newest_clone(context, &reached, &words).await?;
        let account = found.cluster.account(&found.clone.id).await?;
        let listener = listen(0).await?;
        Ok((tunnel(context, &found).await?, account, listener))
    };
    let (tunnel, account, listener) = context.until_stopped(prepare).await?;
    context.output.rest();
    let mut psql = Command::new("psql");
    psql.args(&arguments.arguments).kill_on_drop(true);
    for (name, value) in environment(local_port(&listener)?, &account, |name| std::env::var_os(name)) {
        match value {
            Some(value) => psql.env(name, value),
            None => psql.env_remove(name),
        };
    }
    let (ended, end) = oneshot::channel::<()>();
    let run = async {
        let status = psql.status().await;
        drop(ended);
        status.map_err(|error| not_started(&error))
    };
    let serve = async {
        let end = async { end.await.unwrap_or(()) };
        tunnel.serve(listener, end).await;
        Ok(())
    };
    // Ctrl-C is for psql: it cancels a query.
    let both = async { tokio::try_join!(run, serve) };
    let (status, ()) = context.until_terminated(both).await?;
    Ok(ExitCode::from(exit_code(status)))
}

/// Where the clone is comes from us; who to be there from the resource, unless the user's own environment says.
fn environment(
    port: u16,
    account: &Account,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Vec<(&'static str, Option<OsString>)> {
    let mut environment: Vec<(&str, Option<OsString>)> = vec![
        ("PGHOST", Some("127.0.0.1".into())),
        ("PGPORT", Some(port.to_string().into())),
        ("PGHOSTADDR", None),
        ("PGSERVICE", None),
    ];
    let by_default = [
        ("PGUSER", Some(account.user.as_str())),
        ("PGPASSWORD", account.password.as_deref()),
        ("PGDATABASE", Some(account.database.as_str())),
        ("PGSSLMODE", Some("disable")), // the tunnel is encrypted
    ];
    for (name, value) in by_default {
        if let (None, Some(value)) = (variable(name), value) {
            environment.push((name, Some(value.into())));
        }
    }
    environment
}

fn not_started(error: &std::io::Error) -> Failure {
    match error.kind() == ErrorKind::NotFound {
        true => Failure::new("there is no `psql` on this machine").hinted(
            "install the Postgres client (Debian: `apt install postgresql-client`), \
             or use another with `zdap connect`",
        ),
        false => Failure::caused("cannot run `psql`", error),
    }
}

/// A program that a signal has ended has 128 and the signal's number, as shells have it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account {
            user: "postgres".to_owned(),
            password: Some("secret".to_owned()),
            database: "orders".to_owned(),
        }
    }

    fn value<'a>(environment: &'a [(&str, Option<OsString>)], name: &str) -> Option<&'a Option<OsString>> {
        let found = environment.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value)
    }

    #[test]
    fn the_account_is_filled_in_unless_the_user_has_set_another() {
        let plain = environment(6000, &account(), |_| None);
        assert_eq!(value(&plain, "PGPASSWORD"), Some(&Some("secret".into())));
        assert_eq!(value(&plain, "PGDATABASE"), Some(&Some("orders".into())));
        let own = environment(6000, &account(), |name| {
            (name == "PGDATABASE").then(|| "other".into())
        });
        assert_eq!(value(&own, "PGDATABASE"), None, "it stays the user's");
    }

    #[test]
    fn where_the_clone_is_cannot_be_overridden() {
        let environment = environment(6000, &account(), |_| Some("elsewhere".into()));
        assert_eq!(value(&environment, "PGHOST"), Some(&Some("127.0.0.1".into())));
        assert_eq!(value(&environment, "PGPORT"), Some(&Some("6000".into())));
        assert_eq!(value(&environment, "PGHOSTADDR"), Some(&None));
    }

    #[test]
    fn a_program_ended_by_a_signal_has_its_number() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }
}
