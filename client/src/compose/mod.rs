//! `zdap attach` and `zdap detach` on a compose project: text in, text out.
//!
//! * `project.rs`, `ports.rs`: what the project's compose file says of a service
//! * `dotenv.rs`: the variables of the project's `.env`
//! * `overlay.rs`: the override with and without the relays that stand in for its services
//! * `fence.rs`, `place.rs`: the lines of such a relay, and where there is room for them
//! * `relay.rs`: what is written for one relay
//! * `document.rs`: YAML with positions, what the above look things up in
//! * `file.rs`: reading, and replacing a file whole
//!
//! The override belongs to its user. What zdap adds stands between two comment lines and is taken out
//! again by lines, so that everything else stays byte for byte; YAML is only ever read, never written back.

mod document;
mod dotenv;
mod fence;
mod file;
mod overlay;
#[cfg(test)]
mod overlay_tests;
mod place;
mod ports;
mod project;
mod relay;

use std::{io, path::PathBuf};

use thiserror::Error;

pub use dotenv::variable;
pub use file::{edit, read};
pub use overlay::{Attached, attach, attached, detach};
pub use project::{ComposeService, Environment, service, services};
pub use relay::RelayService;

/// Why a compose file cannot be read or an override not be changed. Nothing has been written.
#[derive(Debug, Error)]
pub enum ComposeError {
    #[error("line {line}, column {column}: not valid YAML: {message}")]
    NotYaml {
        line: usize,
        column: usize,
        message: String,
    },
    #[error("line {line}: `{key}` stands here a second time, first on line {first}")]
    DuplicateKey { line: usize, key: String, first: usize },
    #[error("line {line}: a second YAML document begins; one is expected")]
    SeveralDocuments { line: usize },
    #[error("line {line}: {what} is {found}, expected {expected}")]
    Shape {
        line: usize,
        what: String,
        found: &'static str,
        expected: &'static str,
    },
    #[error("no service `{service}` in the compose file, {}", listed("which has", .known))]
    NoService {
        service: String,
        known: Vec<String>,
        nearest: Option<String>,
    },
    #[error("line {line}: service `{service}` extends itself")]
    ExtendsItself { line: usize, service: String },
    #[error("line {line}: port `{value}`: {reason}")]
    Port {
        line: usize,
        value: String,
        reason: &'static str,
    },
    #[error("`{name}` is not a compose service name")]
    ServiceName { name: String },
    #[error("`{service}` is attached already, to clone {clone}")]
    AlreadyAttached { service: String, clone: String },
    #[error("line {line}: `{service}` is already in the override")]
    InOverride { line: usize, service: String },
    #[error("`{service}` is not attached, {}", listed("attached are", .attached))]
    NotAttached { service: String, attached: Vec<String> },
    #[error("line {line}: the lines that zdap wrote for `{service}` have lost the label `{label}`")]
    LabelLost {
        line: usize,
        service: String,
        label: &'static str,
    },
    #[error("line {line}: `{marker}` {problem}")]
    Fence {
        line: usize,
        marker: String,
        problem: &'static str,
    },
    /// Valid YAML in a layout that lines cannot be added to.
    #[error("line {line}: {what}")]
    Layout { line: usize, what: &'static str },
    /// The last check before a new text is handed out: it does not say the same of everything else.
    #[error("changing `{service}` here would change other parts of the file too")]
    NotAlone { service: String },
    #[error("cannot use {}", .path.display())]
    InFile { path: PathBuf, source: Box<Self> },
    #[error("{} does not exist", .path.display())]
    Missing { path: PathBuf },
    #[error("{} is not UTF-8 text: byte {offset} is wrong", .path.display())]
    NotText { path: PathBuf, offset: usize },
    #[error("{} is read-only", .path.display())]
    ReadOnly { path: PathBuf },
    #[error("cannot {action} {}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl ComposeError {
    /// Returns what the user can do about it, as the text after `hint: `.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotYaml { .. } => Some("`docker compose config` shows what compose makes of the files".into()),
            Self::DuplicateKey { .. } => Some("compose refuses this too: keep one of the two".into()),
            Self::SeveralDocuments { .. } => Some("merge the documents into one".into()),
            Self::Shape { .. } | Self::ExtendsItself { .. } | Self::LabelLost { .. } => None,
            Self::NoService { nearest: Some(nearest), .. } => Some(format!("did you mean `{nearest}`?")),
            Self::NoService { nearest: None, .. } => {
                Some("the resource's name has to be the name of a service; files that `include` names are not read".into())
            }
            Self::Port { .. } => Some(
                "`ports` of the compose file name the container's port last, a number from 1 to 65535; variables come from the environment and `.env`"
                    .into(),
            ),
            Self::ServiceName { .. } => Some("letters, digits, `.`, `_` and `-` may be used".into()),
            Self::AlreadyAttached { service, .. } => {
                Some(format!("`zdap detach {service}` gives it back; `--force` replaces it"))
            }
            Self::InOverride { .. } => {
                Some("`--force` sets the entry aside until `zdap detach`, which puts it back as it is".into())
            }
            Self::NotAttached { .. } => Some("`zdap list clones --attached` shows what is".into()),
            Self::Fence { .. } => Some(
                "zdap's lines stand between `# >>> zdap NAME` and `# <<< zdap NAME`: restore the marker, or remove them by hand"
                    .into(),
            ),
            Self::Layout { .. } => Some("write the services one per line, indented under `services:`".into()),
            Self::NotAlone { .. } => {
                Some("move what is written around it, or between zdap's markers, out of the way".into())
            }
            Self::InFile { source, .. } => source.hint(),
            Self::Missing { .. } => Some("`zdap init` says which files a project uses".into()),
            Self::NotText { .. } => Some("save the file as UTF-8".into()),
            Self::ReadOnly { path } => {
                Some(format!("make the file and its directory writable: `chmod u+w {}`", path.display()))
            }
            Self::Io { .. } => None,
        }
    }
}

fn listed(introduction: &str, names: &[String]) -> String {
    match names {
        [] => format!("{introduction} none"),
        names => format!("{introduction} `{}`", names.join("`, `")),
    }
}
