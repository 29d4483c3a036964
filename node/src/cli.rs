//! What can be typed: the flags and commands of `zdapd`. What they mean is [`crate::config`]'s to say.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use zdap_proto::name::{CloneId, NodeName, ResourceName, SnapshotTime, UserName};

use crate::config::{NetworkAddress, RuntimeKind, Size, ZfsPool};
use crate::quantity;

/// Makes private, writable copies of databases in a moment: one node of a zdap cluster.
#[derive(Debug, Parser)]
#[command(name = "zdapd", version, max_term_width = 100, subcommand_required = true)]
#[command(after_help = "Example:
  zdapd --data-dir /srv/zdap --config-dir /etc/zdap/resources serve")]
pub struct Cli {
    /// The flags that go with every command.
    #[command(flatten)]
    pub flags: Flags,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The flags that go with every command. An empty one counts as not given.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "This node")]
pub struct Flags {
    /// ZFS pool to use; datasets are made under POOL/zdap
    #[arg(long, global = true, env = "ZPOOL", value_name = "POOL")]
    pub zpool: Option<Given<ZfsPool>>,
    /// Directory to use instead of a pool; files are shared where the file system can (btrfs, xfs)
    #[arg(long, global = true, env = "ZDAP_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<Given<PathBuf>>,
    /// How much of the directory's disk to count as room, such as 200g [default: all of it]
    #[arg(long, global = true, env = "ZDAP_DATA_SIZE", value_name = "SIZE")]
    pub data_size: Option<Given<Size>>,
    /// Directory of the *.resource.yml files, re-read when it changes
    #[arg(long, global = true, env = "CONFIG_DIR", value_name = "DIR")]
    pub config_dir: Option<Given<PathBuf>>,
    /// Address that clients and other nodes connect to, an IP or a name [default: that of the default route]
    #[arg(long, global = true, env = "NETWORK_ADDRESS", value_name = "ADDRESS")]
    pub network_address: Option<Given<NetworkAddress>>,
    /// UDP port for clients and nodes [default: 43210]
    #[arg(long, global = true, env = "API_PORT", value_name = "PORT")]
    pub api_port: Option<Given<u16>>,
    /// Directory of this node's identity and what it knows of the cluster [default: /var/lib/zdapd for root, else
    /// ~/.local/state/zdapd]
    #[arg(long, global = true, env = "ZDAP_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<Given<PathBuf>>,
    /// Name of this node in the cluster [default: the host name]
    #[arg(long, global = true, env = "ZDAP_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<Given<NodeName>>,
    /// What runs the databases, docker or process [default: docker if its engine answers]
    #[arg(long, global = true, env = "ZDAP_RUNTIME", value_name = "RUNTIME")]
    pub runtime: Option<Given<RuntimeKind>>,
}

/// A value that may be empty, as variables of compose and unit files often are: then it is not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given<T>(pub Option<T>);

impl<T: FromStr> FromStr for Given<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        match text {
            "" => Ok(Self(None)),
            text => text.parse().map(|value| Self(Some(value))),
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run this node; its first start founds a cluster, or joins one
    #[command(after_help = "Examples:
  zdapd --zpool tank --config-dir /etc/zdap/resources serve
  zdapd --zpool tank --config-dir /etc/zdap/resources serve --join TOKEN")]
    Serve {
        /// Become a peer of the cluster that this token is for (`zdapd token node` prints one)
        #[arg(long, value_name = "TOKEN")]
        join: Option<String>,
    },
    /// Print a token, good once, that lets a user or a node in
    Token {
        /// Whom to let in.
        #[command(subcommand)]
        invited: TokenCommand,
    },
    /// Make a snapshot or a clone
    Create {
        /// What to make.
        #[command(subcommand)]
        what: CreateCommand,
    },
    /// List what is on this node, of all owners, or the nodes of the cluster
    List {
        /// What to list.
        #[command(subcommand)]
        what: ListCommand,
    },
    /// Destroy one clone, all clones, or everything on this node
    Destroy {
        /// What to destroy.
        #[command(subcommand)]
        what: DestroyCommand,
    },
    /// Place no new clones on this node, also after a restart; those that are there stay
    #[command(after_help = "Example:
  zdapd drain")]
    Drain,
    /// Place clones on this node again
    #[command(after_help = "Example:
  zdapd undrain")]
    Undrain,
    /// Let no certificate of a user in any more, at any node; the name is never good again
    #[command(after_help = "Example:
  zdapd revoke ada@laptop")]
    Revoke {
        /// The user's name, as `name` or `name@host`
        name: UserName,
    },
    /// Have all nodes forget one that is down for good, and the clones and snapshots it had
    #[command(
        long_about = "Have all nodes forget one that is down for good, and the clones and snapshots it had.

Nobody waits for it or warns of it any more, and its name can be given to another node. Should it come back all the
same, it is a member again, with what it has."
    )]
    #[command(after_help = "Example:
  zdapd forget db3")]
    Forget {
        /// The node's name, as `zdapd list nodes` shows it
        node: NodeName,
    },
}

/// Whom a token lets in.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a token for a user, to be given to `zdap add origin`
    #[command(after_help = "Example:
  zdapd token user ada@laptop --ttl 24h")]
    User {
        /// The user's name, as `name` or `name@host`; without it, the user chooses
        name: Option<UserName>,
        /// Let the user see and destroy everybody's clones
        #[arg(long)]
        admin: bool,
        /// How long the token is good
        #[arg(long, default_value = "24h", value_parser = token_ttl, value_name = "DURATION")]
        ttl: Duration,
    },
    /// Print a token for a node, to be given to `zdapd serve --join`
    #[command(after_help = "Example:
  zdapd token node --ttl 10m")]
    Node {
        /// How long the token is good
        #[arg(long, default_value = "1h", value_parser = token_ttl, value_name = "DURATION")]
        ttl: Duration,
    },
}

/// What to make.
#[derive(Debug, Subcommand)]
pub enum CreateCommand {
    /// Restore resources anew and snapshot them
    #[command(after_help = "Examples:
  zdapd create snap orders users
  zdapd create snap orders --use-existing")]
    Snap {
        /// The resources
        #[arg(required = true, value_name = "RESOURCE")]
        resources: Vec<ResourceName>,
        /// Restore nothing: snapshot the newest base as it is now
        #[arg(long)]
        use_existing: bool,
    },
    /// Make a clone of a resource and wait until it answers
    #[command(after_help = "Example:
  zdapd create clone orders --from 2026-11-22T04:45:00Z --owner ada")]
    Clone {
        /// The resource
        resource: ResourceName,
        /// Of the snapshot taken at this time (RFC 3339) instead of the newest
        #[arg(long, value_name = "TIME")]
        from: Option<SnapshotTime>,
        /// For this user instead of the node itself
        #[arg(long, value_name = "NAME")]
        owner: Option<UserName>,
    },
}

/// What to list.
#[derive(Debug, Subcommand)]
pub enum ListCommand {
    /// List the resources in service
    #[command(after_help = "Example:
  zdapd list resources")]
    Resources(Listed),
    /// List the snapshots
    #[command(after_help = "Example:
  zdapd list snaps orders")]
    Snaps(Listed),
    /// List the clones of all owners
    #[command(after_help = "Example:
  zdapd list clones orders")]
    Clones(Listed),
    /// List the nodes of the cluster
    #[command(after_help = "Example:
  zdapd list nodes")]
    Nodes,
}

/// What a list is narrowed to.
#[derive(Debug, Args)]
pub struct Listed {
    /// Only of this resource
    pub resource: Option<ResourceName>,
}

/// What to destroy.
#[derive(Debug, Subcommand)]
pub enum DestroyCommand {
    /// Destroy one clone
    #[command(after_help = "Example:
  zdapd destroy clone orders-k3v9x2mq")]
    Clone {
        /// Its id (`zdapd list clones` shows it)
        id: CloneId,
    },
    /// Destroy all clones of all owners on this node
    #[command(after_help = "Example:
  zdapd destroy clones --yes")]
    Clones(Consent),
    /// Destroy all clones, snapshots and bases on this node
    #[command(after_help = "Example:
  zdapd destroy all --yes")]
    All(Consent),
}

/// Whether to ask first.
#[derive(Debug, Args)]
pub struct Consent {
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// A token's life travels as whole seconds in 32 bits.
fn token_ttl(text: &str) -> Result<Duration, String> {
    let ttl = quantity::duration(text).map_err(|error| error.to_string())?;
    match u32::try_from(ttl.as_secs()) {
        Ok(_) => Ok(ttl),
        Err(_) => Err(format!("`{text}` is too long")),
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;
    use clap::{CommandFactory, FromArgMatches};

    use super::*;

    /// The command without this machine's environment.
    fn command() -> clap::Command {
        let without_environment = |arg: clap::Arg| arg.env(clap::builder::Resettable::Reset);
        Cli::command().mut_args(without_environment)
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let matches = command().try_get_matches_from(line.split(' '))?;
        Cli::from_arg_matches(&matches)
    }

    #[test]
    fn the_tree_of_commands_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_flag_has_the_variable_of_the_contract() {
        let command = Cli::command();
        let variables: Vec<_> = command
            .get_arguments()
            .filter_map(|arg| Some((arg.get_long()?, arg.get_env()?.to_str()?)))
            .collect();
        assert_eq!(
            variables,
            [
                ("zpool", "ZPOOL"),
                ("data-dir", "ZDAP_DATA_DIR"),
                ("data-size", "ZDAP_DATA_SIZE"),
                ("config-dir", "CONFIG_DIR"),
                ("network-address", "NETWORK_ADDRESS"),
                ("api-port", "API_PORT"),
                ("state-dir", "ZDAP_STATE_DIR"),
                ("node-name", "ZDAP_NODE_NAME"),
                ("runtime", "ZDAP_RUNTIME"),
            ]
        );
    }

    #[test]
    fn flags_may_stand_before_or_after_the_command() {
        for line in [
            "zdapd --zpool=tank --api-port=1 list clones orders",
            "zdapd list --zpool tank clones orders --api-port 1",
            "zdapd list clones --api-port 1 orders --zpool tank",
        ] {
            let cli = parse(line).unwrap();
            assert_eq!(
                cli.flags.zpool,
                Some(Given(Some("tank".parse().unwrap()))),
                "{line}"
            );
            assert_eq!(cli.flags.api_port, Some(Given(Some(1))), "{line}");
        }
    }

    #[test]
    fn a_flag_counts_for_more_than_its_variable_wherever_it_stands() {
        // A variable that is there in every test run.
        let command = || command().mut_arg("node_name", |arg| arg.env("CARGO_PKG_NAME"));
        let name = |line: &str| {
            let matches = command().try_get_matches_from(line.split(' ')).unwrap();
            let name = Cli::from_arg_matches(&matches).unwrap().flags.node_name;
            name.and_then(|given| given.0).unwrap().to_string()
        };
        assert_eq!(name("zdapd list clones"), env!("CARGO_PKG_NAME"));
        assert_eq!(name("zdapd --node-name a list clones"), "a");
        assert_eq!(name("zdapd list clones --node-name a"), "a");
    }

    #[test]
    fn an_empty_value_counts_as_not_given() {
        let cli = parse("zdapd --zpool= --api-port= --data-dir= serve").unwrap();
        assert_eq!(cli.flags.zpool, Some(Given(None)));
        assert_eq!(cli.flags.api_port, Some(Given(None)));
        assert_eq!(cli.flags.data_dir, Some(Given(None)));
    }

    #[test]
    fn the_commands_of_the_contract_are_understood() {
        for line in [
            "zdapd serve",
            "zdapd serve --join zdap-abc",
            "zdapd token user",
            "zdapd token user ada@laptop --admin --ttl 2d",
            "zdapd token node --ttl 1h",
            "zdapd create snap orders users --use-existing",
            "zdapd create clone orders --from 2026-11-22T04:45:00Z --owner ada",
            "zdapd list resources",
            "zdapd list snaps orders",
            "zdapd destroy clone orders-k3v9x2mq",
            "zdapd destroy clones --yes",
            "zdapd destroy all",
            "zdapd list nodes",
            "zdapd drain",
            "zdapd undrain",
            "zdapd revoke ada@laptop",
            "zdapd forget db3",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_bad_line_is_a_usage_error() {
        for line in [
            "zdapd",
            "zdapd token",
            "zdapd fly",
            "zdapd --api-port 65536 serve",
            "zdapd --api-port x serve",
            "zdapd --runtime podman serve",
            "zdapd --zpool -x serve",
            "zdapd --node-name a/b serve",
            "zdapd --network-address 10.0.0.1:43210 serve",
            "zdapd token user a/b",
            "zdapd token node --ttl 0",
            "zdapd token node --ttl 50000d",
            "zdapd create snap",
            "zdapd create clone ../etc",
            "zdapd create clone orders --from yesterday",
            "zdapd destroy clone orders",
            "zdapd list nodes orders",
            "zdapd revoke",
            "zdapd revoke a/b",
            "zdapd forget",
            "zdapd forget a/b",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn every_command_says_what_it_does_and_shows_an_example() {
        fn check(command: &clap::Command) {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name}");
            match command.has_subcommands() {
                true => command
                    .get_subcommands()
                    .filter(|sub| sub.get_name() != "help")
                    .for_each(check),
                false => {
                    let help = command
                        .get_after_help()
                        .map(ToString::to_string)
                        .unwrap_or_default();
                    assert!(help.starts_with("Example"), "{name}");
                }
            }
        }
        check(&Cli::command());
    }

    #[test]
    fn help_is_no_error() {
        assert_eq!(
            parse("zdapd serve --help").unwrap_err().kind(),
            ErrorKind::DisplayHelp
        );
    }

    #[test]
    fn every_example_in_the_help_is_one_that_parses() {
        fn examples(command: &clap::Command, found: &mut Vec<String>) {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            found.extend(help.lines().skip(1).map(|line| line.trim().to_owned()));
            command.get_subcommands().for_each(|sub| examples(sub, found));
        }
        let mut found = Vec::new();
        examples(&Cli::command(), &mut found);
        assert!(found.len() > 10);
        for line in found {
            assert!(parse(&line).is_ok(), "{line}");
        }
    }
}
