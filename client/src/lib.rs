//! `zdap`: a private copy of a database in a compose project, a moment after it is asked for.
//!
//! # Map
//! - [`cli`]: what can be typed; [`words`]: the words of a command, in any order
//! - [`commands`]: one function a command, each reads from top to bottom
//! - [`context`]: what every command is given, and what ends it early
//! - [`origin`]: the ways to the clusters; [`cluster`]: what one can be asked, through whichever [`node`] of it answers
//! - [`settings`]: what is remembered on this machine
//! - [`project`]: the compose project that a command runs in; [`compose`]: its files, text in and text out
//! - [`attachments`]: what is attached in it, changed under one lock
//! - [`engine`]: the Docker engine of this machine, for the relay's image; [`docker_context`]: which one that is
//! - [`output`]: all that is printed; [`error`]: how a command fails
//! - [`complete`]: completion in the shell, by asking the nodes

pub mod attachments;
pub mod cli;
pub mod cluster;
pub mod commands;
pub mod complete;
pub mod compose;
pub mod context;
pub mod docker_context;
pub mod engine;
pub mod error;
pub mod node;
pub mod origin;
pub mod output;
pub mod project;
pub mod settings;
pub mod words;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::cli::{Cli, Command};
use crate::context::Context;
use crate::error::{Failure, Kind};
use crate::output::Output;
use crate::settings::Home;

/// The version of this program, and of the relay that goes with it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the command that the program was called with.
pub fn main() -> ExitCode {
    clap_complete::CompleteEnv::with_factory(Cli::command).complete();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return wrong_usage(&error, &arguments),
    };
    log_to_stderr(&cli);
    let output = Output::new(cli.global.json, cli.global.quiet, cli.global.verbose > 0);
    match start(cli, &output) {
        Ok(code) => code,
        Err(failure) => output.failure(&failure),
    }
}

/// Help and the version come this way, too.
fn wrong_usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    // Where nobody reads it there is nobody to tell.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    let mut own = arguments.iter().take_while(|argument| *argument != "--");
    if own.any(|argument| argument == "--json") {
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default();
        let message = message.strip_prefix("error: ").unwrap_or(message);
        let failure = Failure::new(message).of_kind(Kind::Usage);
        let _ = Output::new(true, true, false).document(&output::ErrorDocument::of(&failure));
    }
    ExitCode::from(Kind::Usage.exit_code())
}

fn start(cli: Cli, output: &Output) -> Result<ExitCode, Failure> {
    let home = Home::find(|name| std::env::var_os(name))?;
    if let Some(warning) = home.warning() {
        output.warn(&warning);
    }
    // Two threads: one for the command, one that keeps the connections going beside it.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::caused("cannot start", &error))?;
    runtime.block_on(async {
        let context = Context::new(home, output, cli.global.timeout)?;
        let result = commands::run(&context, cli.command).await;
        context.farewell(result.is_ok()).await;
        result
    })
}

fn log_to_stderr(cli: &Cli) {
    // What goes wrong with a connection is in the error; only who serves for long has more to tell.
    let serves = matches!(cli.command, Command::Connect(_));
    let level = match (cli.global.quiet, cli.global.verbose) {
        (true, _) => "error",
        (false, 0) if !serves => "warn,zdap_proto=error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("ZDAP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false) // it would panic where stderr is closed
        .init();
}
