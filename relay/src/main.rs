//! `zdap-proxyd`: the relay, and with `health` the check whether it works.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use zdap_proto::refusal::chain;
use zdap_relay::config::{self, Config};
use zdap_relay::{RelayError, ask_health, listen, run};

/// Wrong usage or configuration: starting it again is no use.
const USAGE: u8 = 2;

#[derive(Debug, thiserror::Error)]
#[error("usage: zdap-proxyd [health | --version]; everything else is set by the environment")]
struct UsageError;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => serve(),
        ["health"] => health(),
        ["--version" | "-V"] => {
            say(concat!("zdap-proxyd ", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
        _ => wrong(&UsageError),
    }
}

fn serve() -> ExitCode {
    let config = match Config::read(variable) {
        Ok(config) => config,
        Err(error) => return wrong(&error),
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false)
        .init();
    // One thread: two processors' worth of database traffic costs more in hand-overs than it gains.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(serve_until_stopped(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ RelayError::Identity(_)) => wrong(&error),
        Err(error @ (RelayError::Listen { .. } | RelayError::Transport(_))) => failed(&error),
    }
}

async fn serve_until_stopped(config: Config) -> Result<(), RelayError> {
    let listeners = listen(config.listen_port)?;
    run(config, listeners, stopped()).await
}

async fn stopped() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals end the process by themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
}

fn health() -> ExitCode {
    match config::listen_port(variable) {
        Ok(port) => match ask_health(port) {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => {
                say(&reason); // `docker inspect` shows it
                ExitCode::FAILURE
            }
        },
        Err(error) => wrong(&error),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

fn wrong(error: &dyn std::error::Error) -> ExitCode {
    complain(error);
    ExitCode::from(USAGE)
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    complain(error);
    ExitCode::FAILURE
}

#[expect(
    clippy::print_stderr,
    reason = "the end of the program, for whoever started it"
)]
fn complain(error: &dyn std::error::Error) {
    eprintln!("error: {}", chain(error));
}

#[expect(clippy::print_stdout, reason = "what was asked for")]
fn say(line: &str) {
    println!("{line}");
}
