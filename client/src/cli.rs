//! What can be typed: the tree of commands and their help. What it means is in `commands`.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;

use crate::complete;

/// A private copy of your team's database in your compose project, in a moment
#[derive(Debug, Parser)]
#[command(
    name = "zdap",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "\
Getting started:
  zdap add origin TOKEN        once, with the token that `zdapd token user` prints on a node
  zdap list resources --all    what there is
  zdap attach orders           in a compose project with a service `orders`
  docker compose up -d
  zdap detach orders           gives everything back

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 no origin reached"
)]
pub struct Cli {
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub global: Global,
    #[command(subcommand)]
    #[allow(missing_docs, reason = "the subcommand")]
    pub command: Command,
}

/// What goes with every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Print one JSON document on stdout
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Say nothing but errors and warnings
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "verbose",
        help_heading = "Global options"
    )]
    pub quiet: bool,
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Global options")]
    pub verbose: u8,
    /// Give up after so many seconds; what `connect` and `psql` have opened by then stays open
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds, help_heading = "Global options")]
    pub timeout: Option<std::time::Duration>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say who you are
    #[command(subcommand)]
    Set(Set),
    /// Make a node known
    #[command(subcommand)]
    Add(Add),
    /// Forget a node
    #[command(subcommand)]
    Remove(Remove),
    /// Show what there is
    #[command(subcommand)]
    List(List),
    /// Say which compose files a project uses
    #[command(after_help = "Example:\n  zdap init --compose deploy/compose.yml\n\n\
        Needed only where the files are not called as compose expects.")]
    Init(Init),
    /// Put a clone of a resource in the place of a compose service
    #[command(after_help = "Examples:\n  zdap attach orders\n  \
        zdap attach orders @db1                    on this node\n  \
        zdap attach orders 2026-11-22T04:00:00Z    of this snapshot\n  \
        zdap attach --new=false orders             the newest clone you have already\n  \
        zdap attach --new=false orders-k3v9x2mq    this one")]
    Attach(Attach),
    /// Give a service back to the compose project, and the clone to its node
    #[command(after_help = "Examples:\n  zdap detach orders users\n  \
        zdap detach --all\n  \
        zdap detach orders --destroy=false    keeps the clone for later")]
    Detach(Detach),
    /// Make a clone, attached to nothing
    #[command(after_help = "Examples:\n  zdap clone orders\n  zdap clone orders 2026-11-22T04:00:00Z @db1")]
    Clone(CloneArguments),
    /// Give clones back to their node
    #[command(after_help = "Examples:\n  zdap destroy orders-k3v9x2mq\n  \
        zdap destroy orders --all    every clone of it that is yours")]
    Destroy(Destroy),
    /// Open a clone on this machine until Ctrl-C, without Docker
    #[command(
        after_help = "Examples:\n  zdap connect orders              postgres://127.0.0.1:5432\n  \
        zdap connect orders --port 0     on any free port\n\n\
        User, password and database are those of the copied database; `zdap psql` fills them in."
    )]
    Connect(Connect),
    /// Run psql on a clone
    #[command(
        after_help = "Examples:\n  zdap psql orders\n  zdap psql orders -- -c 'select count(*) from customers'"
    )]
    Psql(Psql),
    /// Print the script that completes zdap's arguments in the shell
    #[command(
        after_help = "Examples:\n  echo 'source <(zdap auto-complete bash)' >> ~/.bashrc\n  \
        echo 'source <(zdap auto-complete zsh)' >> ~/.zshrc\n  \
        zdap auto-complete fish > ~/.config/fish/completions/zdap.fish"
    )]
    AutoComplete {
        /// For which shell
        shell: Shell,
    },
}

/// `zdap set`.
#[derive(Debug, Subcommand)]
pub enum Set {
    /// Set the name that clones are owned by, before adding the first origin
    #[command(after_help = "Example:\n  zdap set user ada@laptop")]
    User {
        /// Letters, digits and `._-@+`
        #[arg(value_name = "NAME@HOST")]
        name: String,
    },
}

/// `zdap add`.
#[derive(Debug, Subcommand)]
pub enum Add {
    /// Enrol with a token, or add another node of a cluster you are enrolled in
    #[command(after_help = "Examples:\n  zdap add origin zdap1-AVbk...\n  \
        zdap add origin db1.example.com:43210 --token zdap1-AVbk...\n  \
        zdap add origin db2.example.com\n\n\
        The administrator gets the token on a node: `zdapd token user`. Your key is made here and never sent.")]
    Origin {
        /// A node's address, or the token, which knows it
        #[arg(value_name = "HOST:PORT|TOKEN")]
        origin: String,
        /// The token, good once
        #[arg(long)]
        token: Option<String>,
    },
}

/// `zdap remove`.
#[derive(Debug, Subcommand)]
pub enum Remove {
    /// Forget an address that was added, and with the last one the cluster; the identity is kept
    #[command(after_help = "Example:\n  zdap remove origin db1.example.com:43210")]
    Origin {
        /// As `zdap list origins` shows it
        #[arg(value_name = "HOST:PORT", add = ArgValueCompleter::new(complete::origins))]
        address: String,
    },
}

/// `zdap list`.
#[derive(Debug, Subcommand)]
pub enum List {
    /// Show the addresses that are known and whether they answer
    #[command(after_help = "Example:\n  zdap list origins --verbose    with disk, memory and load")]
    Origins,
    /// Show the nodes of the cluster
    #[command(after_help = "Example:\n  zdap list nodes")]
    Nodes,
    /// Show what can be cloned
    #[command(after_help = "Example:\n  zdap list resources --all")]
    Resources(ListArguments),
    /// Show the snapshots
    #[command(after_help = "Example:\n  zdap list snaps orders")]
    Snaps(ListArguments),
    /// Show your clones; with `--all` an admin sees everybody's
    #[command(after_help = "Examples:\n  zdap list clones\n  \
        zdap list clones orders --format yaml    as compose services, to paste")]
    Clones(ListArguments),
}

/// What to show, and how.
#[derive(Debug, Args)]
pub struct ListArguments {
    /// Only this resource, `@node` for only this node
    #[arg(value_name = "RES", add = ArgValueCompleter::new(complete::resources))]
    pub words: Vec<String>,
    /// Also what the compose file has no service for
    #[arg(long)]
    pub all: bool,
    /// Only what is attached in this project
    #[arg(long)]
    pub attached: bool,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Tree)]
    pub format: Format,
}

/// How a list is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Tree,
    /// Clones as compose services, the rest as data
    Yaml,
    /// As with `--json`
    Json,
}

/// `zdap init`.
#[derive(Debug, Args)]
pub struct Init {
    /// The project's compose file; default: as compose finds it
    #[arg(long, value_name = "FILE")]
    pub compose: Option<PathBuf>,
    /// The override that zdap writes to; default: beside the compose file
    #[arg(long, value_name = "FILE")]
    pub r#override: Option<PathBuf>,
}

/// `zdap attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// The resource, which is also the compose service; a snapshot's time; `@node` or `@host:port`, in any order
    #[arg(required = true, num_args = 1..=3, value_names = ["RES", "TIME", "@NODE"], add = ArgValueCompleter::new(complete::words))]
    pub words: Vec<String>,
    /// With `--new=false`, use your newest clone, or the one of TIME, and make none
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true",
        require_equals = true, action = ArgAction::Set, hide_default_value = true)]
    pub new: bool,
    /// Publish the database at this port of this machine
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Also when the compose file has no such service, or the override has it already
    #[arg(long)]
    pub force: bool,
    /// Show which nodes were considered, and why this one
    #[arg(long)]
    pub explain: bool,
}

/// `zdap detach`.
#[derive(Debug, Args)]
pub struct Detach {
    /// The attached services
    #[arg(value_name = "RES", add = ArgValueCompleter::new(complete::attached))]
    pub resources: Vec<String>,
    /// All that is attached in this project
    #[arg(long, conflicts_with = "resources")]
    pub all: bool,
    /// With `--destroy=false`, keep the clone
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true",
        require_equals = true, action = ArgAction::Set, hide_default_value = true)]
    pub destroy: bool,
    /// Also when the clone's node cannot be reached: the clone stays there
    #[arg(long)]
    pub force: bool,
}

/// `zdap clone`.
#[derive(Debug, Args)]
pub struct CloneArguments {
    /// The resource, a snapshot's time, `@node` or `@host:port`, in any order
    #[arg(required = true, num_args = 1..=3, value_names = ["RES", "TIME", "@NODE"], add = ArgValueCompleter::new(complete::words))]
    pub words: Vec<String>,
    /// Show which nodes were considered, and why this one
    #[arg(long)]
    pub explain: bool,
}

/// `zdap destroy`.
#[derive(Debug, Args)]
pub struct Destroy {
    /// The clone's id, or its resource; when it or its snapshot was made; `@node`, in any order
    #[arg(required = true, num_args = 1..=3, value_names = ["RES|CLONE_ID", "TIME", "@NODE"], add = ArgValueCompleter::new(complete::clones))]
    pub words: Vec<String>,
    /// Every clone that fits
    #[arg(long)]
    pub all: bool,
}

/// `zdap connect`.
#[derive(Debug, Args)]
pub struct Connect {
    /// The clone's id, or its resource for your newest clone; `@node`
    #[arg(required = true, num_args = 1..=2, value_names = ["RES|CLONE_ID", "@NODE"], add = ArgValueCompleter::new(complete::clones))]
    pub words: Vec<String>,
    /// The port on 127.0.0.1; 0 picks a free one
    #[arg(long, default_value_t = 5432)]
    pub port: u16,
}

/// `zdap psql`.
#[derive(Debug, Args)]
pub struct Psql {
    /// The clone's id, or its resource for your newest clone; `@node`
    #[arg(required = true, num_args = 1..=2, value_names = ["RES|CLONE_ID", "@NODE"], add = ArgValueCompleter::new(complete::clones))]
    pub words: Vec<String>,
    /// Passed on to psql
    #[arg(last = true, value_name = "ARGS")]
    pub arguments: Vec<std::ffi::OsString>,
}

/// The shells that can be completed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "names of shells")]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match std::time::Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) | Err(_) => Err("not a positive number of seconds".to_owned()),
    }
}

#[cfg(test)]
mod tests;
