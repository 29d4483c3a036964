//! `zdapd`: flags, logging and signals around [`zdap_node::run`], and the commands that ask the running node.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use zdap_node::admin::{Refused, Running};
use zdap_node::cli::{Cli, Command, CreateCommand, DestroyCommand, Flags, ListCommand, TokenCommand};
use zdap_node::config::{self, Config, Machine};
use zdap_node::refuse;
use zdap_node::runtime::RuntimeError;
use zdap_node::storage::StorageError;
use zdap_proto::connect::ConnectError;
use zdap_proto::identity::IdentityError;
use zdap_proto::message::Invited;
use zdap_proto::token::Token;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let machine = Machine::observe();
    match cli.command {
        Command::Serve { join } => {
            let config = Config::new(&cli.flags, &machine).unwrap_or_else(|usage| usage.exit());
            log();
            report(serve(config, join))
        }
        Command::Token { .. }
        | Command::Create { .. }
        | Command::List { .. }
        | Command::Destroy { .. }
        | Command::Drain
        | Command::Undrain
        | Command::Revoke { .. }
        | Command::Forget { .. } => report(ask(&cli.flags, &machine, cli.command)),
    }
}

#[tokio::main]
async fn serve(config: Config, join: Option<String>) -> anyhow::Result<()> {
    let join: Option<Token> = join
        .map(|text| text.parse())
        .transpose()
        .context("read the --join token")?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    zdap_node::run(config, join, shutdown).await
}

#[tokio::main(flavor = "current_thread")]
async fn ask(flags: &Flags, machine: &Machine, command: Command) -> anyhow::Result<()> {
    let state_dir = config::state_dir(flags, machine).unwrap_or_else(|usage| usage.exit());
    let node = Running::connect(&state_dir).await?;
    let result = match command {
        Command::Serve { .. } => Ok(()),
        Command::Token {
            invited: TokenCommand::User { name, admin, ttl },
        } => node.token(Invited::User { name, admin }, ttl).await,
        Command::Token {
            invited: TokenCommand::Node { ttl },
        } => node.token(Invited::Node, ttl).await,
        Command::Create {
            what: CreateCommand::Snap {
                resources,
                use_existing,
            },
        } => node.create_snapshots(&resources, use_existing).await,
        Command::Create {
            what:
                CreateCommand::Clone {
                    resource,
                    from,
                    owner,
                },
        } => node.create_clone(resource, from, owner).await,
        Command::List {
            what: ListCommand::Resources(listed),
        } => node.list_resources(listed.resource.as_ref()).await,
        Command::List {
            what: ListCommand::Snaps(listed),
        } => node.list_snapshots(listed.resource).await,
        Command::List {
            what: ListCommand::Clones(listed),
        } => node.list_clones(listed.resource).await,
        Command::List {
            what: ListCommand::Nodes,
        } => node.list_nodes().await,
        Command::Drain => node.drain(true).await,
        Command::Undrain => node.drain(false).await,
        Command::Revoke { name } => node.revoke(name).await,
        Command::Forget { node: name } => node.forget(name).await,
        Command::Destroy {
            what: DestroyCommand::Clone { id },
        } => node.destroy_clone(id).await,
        Command::Destroy {
            what: DestroyCommand::Clones(consent),
        } => node.destroy_all(false, consent.yes).await,
        Command::Destroy {
            what: DestroyCommand::All(consent),
        } => node.destroy_all(true, consent.yes).await,
    };
    node.close().await;
    result
}

/// Logs to stderr, at `info` unless `RUST_LOG` says otherwise.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(terminal)
        .with_writer(std::io::stderr)
        .init();
}

/// Prints what went wrong with its causes and the remedy.
#[expect(clippy::print_stderr, reason = "this is where errors are shown")]
fn report(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {error:#}");
    if let Some(hint) = error.chain().find_map(hint) {
        eprintln!("\nhint: {hint}");
    }
    ExitCode::FAILURE
}

/// Returns the remedy that an error knows.
fn hint(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(Refused(refusal)) = error.downcast_ref() {
        return refusal.hint.clone();
    }
    if let Some(error) = error.downcast_ref::<StorageError>() {
        return refuse::storage(error).hint;
    }
    if let Some(error) = error.downcast_ref::<RuntimeError>() {
        return refuse::runtime(error).hint;
    }
    if let Some(error) = error.downcast_ref::<IdentityError>() {
        return error.hint();
    }
    error.downcast_ref::<ConnectError>().and_then(ConnectError::hint)
}
