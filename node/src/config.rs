//! What the flags mean: every default is here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf, absolute};
use std::str::FromStr;

use clap::CommandFactory;
use clap::error::ErrorKind;
use zdap_proto::name::NodeName;

use crate::cli::{Cli, Flags, Given};
use crate::quantity::{self, QuantityError};

/// What `serve` is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where data lies.
    pub storage: StorageChoice,
    /// The directory of the resource files.
    pub config_dir: PathBuf,
    /// Where clients and other nodes connect.
    pub network_address: NetworkAddress,
    /// The port to serve, of UDP and TCP.
    pub api_port: u16,
    /// Identity, CA, generation and known members.
    pub state_dir: PathBuf,
    /// This node's name.
    pub node_name: NodeName,
    /// What runs databases; to be found out when absent.
    pub runtime: Option<RuntimeKind>,
}

impl Config {
    /// Works out what the flags mean on this machine. An error is one of usage, to be printed and to exit with 2.
    pub fn new(flags: &Flags, machine: &Machine) -> Result<Self, clap::Error> {
        let storage = match (given(&flags.zpool), given(&flags.data_dir)) {
            (Some(pool), None) => StorageChoice::Zfs(pool),
            (None, Some(directory)) => StorageChoice::Directory {
                path: from_here(&directory)?,
                size: given(&flags.data_size).map(|size| size.0),
            },
            (None, None) => {
                return Err(usage(
                    ErrorKind::MissingRequiredArgument,
                    "where is the data to lie? Give a ZFS pool (--zpool or ZPOOL), \
                     or a directory (--data-dir or ZDAP_DATA_DIR)",
                ));
            }
            (Some(pool), Some(directory)) => {
                let directory = directory.display();
                return Err(usage(
                    ErrorKind::ArgumentConflict,
                    format!(
                        "the data can lie in the pool `{pool}` (--zpool or ZPOOL) \
                         or in {directory} (--data-dir or ZDAP_DATA_DIR), not in both"
                    ),
                ));
            }
        };
        let Some(config_dir) = given(&flags.config_dir) else {
            return Err(usage(
                ErrorKind::MissingRequiredArgument,
                "where are the resource files? Give their directory (--config-dir or CONFIG_DIR)",
            ));
        };
        Ok(Self {
            storage,
            config_dir: from_here(&config_dir)?,
            network_address: given(&flags.network_address).unwrap_or_else(|| machine.address.into()),
            api_port: api_port(flags),
            state_dir: state_dir(flags, machine)?,
            node_name: given(&flags.node_name).unwrap_or_else(|| machine.node_name.clone()),
            runtime: given(&flags.runtime),
        })
    }
}

/// Returns the port of the node on this machine.
pub fn api_port(flags: &Flags) -> u16 {
    given(&flags.api_port).unwrap_or(API_PORT)
}

/// Returns the directory of this node's identity, which every command needs. An error is one of usage.
pub fn state_dir(flags: &Flags, machine: &Machine) -> Result<PathBuf, clap::Error> {
    match (given(&flags.state_dir), &machine.state_dir) {
        (Some(directory), _) => from_here(&directory),
        (None, Some(directory)) => Ok(directory.clone()),
        (None, None) => Err(usage(
            ErrorKind::MissingRequiredArgument,
            "HOME is not set; say where this node's identity lies (--state-dir or ZDAP_STATE_DIR)",
        )),
    }
}

/// What the defaults depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The state directory of the user who runs this; unknown without a home.
    pub state_dir: Option<PathBuf>,
    /// The host's name, made fit for a node.
    pub node_name: NodeName,
    /// The address of the default route; loopback without one.
    pub address: IpAddr,
}

impl Machine {
    /// Looks at this machine.
    pub fn observe() -> Self {
        let directory = |variable| std::env::var_os(variable).map(PathBuf::from);
        Self {
            state_dir: default_state_dir(
                rustix::process::geteuid().is_root(),
                directory("XDG_STATE_HOME").as_deref(),
                directory("HOME").as_deref(),
            ),
            node_name: node_name(&gethostname::gethostname().to_string_lossy()),
            address: route_address(),
        }
    }
}

/// Where data lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageChoice {
    /// In a ZFS pool.
    Zfs(ZfsPool),
    /// In a directory.
    Directory {
        /// Where it is.
        path: PathBuf,
        /// What it may take of the disk, in bytes; all there is when absent.
        size: Option<u64>,
    },
}

/// A size in bytes, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        quantity::bytes(text).map(Self)
    }
}

/// A ZFS pool by its name, or a dataset in one, `tank/databases`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZfsPool(String);

impl ZfsPool {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ZfsPool {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || "_-.:".contains(letter);
        let is_part = |part: &str| !part.is_empty() && part.chars().all(allowed);
        match text.starts_with(|first: char| first.is_ascii_alphabetic()) && text.split('/').all(is_part) {
            true => Ok(Self(text.to_owned())),
            false => Err("not the name of a ZFS pool; `zpool list` shows those there are".to_owned()),
        }
    }
}

impl std::fmt::Display for ZfsPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What runs databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeKind {
    /// Containers.
    Docker,
    /// Child processes.
    Process,
}

impl FromStr for RuntimeKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "docker" => Ok(Self::Docker),
            "process" => Ok(Self::Process),
            _ => Err("neither `docker` nor `process`".to_owned()),
        }
    }
}

/// An address that others can connect to, without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkAddress {
    /// Any but the unspecified one.
    Ip(IpAddr),
    /// A host name.
    Name(String),
}

impl NetworkAddress {
    /// Returns the address with a port, as clients are told it: `10.0.0.1:43210`, `[fd00::1]:43210`, `db1:43210`.
    pub fn with_port(&self, port: u16) -> String {
        match self {
            Self::Ip(ip) => SocketAddr::new(*ip, port).to_string(),
            Self::Name(name) => format!("{name}:{port}"),
        }
    }
}

impl From<IpAddr> for NetworkAddress {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip)
    }
}

impl FromStr for NetworkAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return match ip.is_unspecified() {
                true => Err("nobody can connect to this; give an address of this machine".to_owned()),
                false => Ok(Self::Ip(ip)),
            };
        }
        let label = |label: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            (1..=63).contains(&label.len()) && !label.starts_with('-') && label.bytes().all(allowed)
        };
        let all_digits = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        match text.len() <= 253 && !all_digits && text.trim_end_matches('.').split('.').all(label) {
            true => Ok(Self::Name(text.to_owned())),
            false => Err("not an IP address or host name; the port is given by --api-port".to_owned()),
        }
    }
}

fn given<T: Clone>(flag: &Option<Given<T>>) -> Option<T> {
    flag.as_ref().and_then(|given| given.0.clone())
}

/// Makes a path independent of the directory this was started in.
fn from_here(path: &Path) -> Result<PathBuf, clap::Error> {
    absolute(path).map_err(|error| {
        let path = path.display();
        usage(ErrorKind::Io, format!("the path {path} cannot be used: {error}"))
    })
}

fn usage(kind: ErrorKind, message: impl std::fmt::Display) -> clap::Error {
    Cli::command().error(kind, message)
}

/// Returns where state lies: a relative `XDG_STATE_HOME` is to be ignored, as its specification says.
fn default_state_dir(is_root: bool, state_home: Option<&Path>, home: Option<&Path>) -> Option<PathBuf> {
    if is_root {
        return Some(ROOT_STATE_DIR.into());
    }
    let state_home = state_home.filter(|path| path.is_absolute()).map(Path::to_owned);
    let home = home.filter(|path| path.is_absolute());
    state_home
        .or_else(|| home.map(|home| home.join(".local/state")))
        .map(|directory| directory.join("zdapd"))
}

/// Makes a node name of a host name, which may hold anything.
fn node_name(host_name: &str) -> NodeName {
    let mut name = String::new();
    for letter in host_name.chars() {
        let letter = match letter.is_ascii_alphanumeric() || "._-".contains(letter) {
            true => letter,
            false => '-',
        };
        if !(letter == '.' && name.ends_with('.')) {
            name.push(letter);
        }
    }
    let edge = |letter: char| !letter.is_ascii_alphanumeric();
    let name = name.trim_start_matches(edge);
    let name = &name[..name.len().min(LONGEST_NODE_NAME)];
    let fallback = || NodeName::from_str("node").expect("is a node name");
    name.trim_end_matches(edge).parse().unwrap_or_else(|_| fallback())
}

/// Returns the address that packets to the world leave from. Connecting a UDP socket asks for the route and sends nothing.
fn route_address() -> IpAddr {
    let unspecified: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let local_address = |(from, to): (IpAddr, IpAddr)| {
        let socket = UdpSocket::bind((from, 0)).ok()?;
        socket.connect((to, DISCARD_PORT)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_unspecified())
    };
    unspecified
        .into_iter()
        .zip(SOMEWHERE)
        .find_map(local_address)
        .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

const API_PORT: u16 = 43210;
const ROOT_STATE_DIR: &str = "/var/lib/zdapd";
/// Node names have at most so many letters.
const LONGEST_NODE_NAME: usize = 63;
/// A root name server: far away from everybody, and where it is for good.
const SOMEWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30)),
];
const DISCARD_PORT: u16 = 9;

#[cfg(test)]
mod tests;
