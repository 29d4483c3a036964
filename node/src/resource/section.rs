//! The tree of a resource file, read by key: which keys there are, and what their values may look like.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};

use super::Position;
use super::yaml::{Entry, Fault, Node, Value};
use crate::quantity;

/// A map whose keys are all known. One that is absent reads as one without keys.
pub(super) struct Section<'tree> {
    name: &'static str,
    position: Position,
    entries: &'tree [Entry],
}

impl<'tree> Section<'tree> {
    pub(super) fn open(name: &'static str, position: Position, node: &'tree Node) -> Result<Self, Fault> {
        let section = |entries| Self {
            name,
            position,
            entries,
        };
        let entries = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => return Ok(section(&[])),
            Value::Text(_) | Value::List(_) => {
                let message = format!("must hold keys and values, not {}", kind(node));
                return Err(section(&[]).fault(message));
            }
        };
        match entries
            .iter()
            .find(|entry| !known_keys(name).contains(&entry.key.as_str()))
        {
            Some(unknown) => Err(Fault {
                position: Some(unknown.position),
                key: Some(path(name, &unknown.key)),
                message: format!(
                    "there is no such key; did you mean `{}`?",
                    meant(name, &unknown.key)
                ),
            }),
            None => Ok(section(entries)),
        }
    }

    pub(super) fn section(&self, name: &'static str) -> Result<Self, Fault> {
        match self.get(name) {
            Some(field) => Self::open(name, field.position, field.node),
            None => Ok(Self {
                name,
                position: self.position,
                entries: &[],
            }),
        }
    }

    pub(super) fn get(&self, key: &'static str) -> Option<Field<'tree>> {
        debug_assert!(
            known_keys(self.name).contains(&key),
            "`{key}` is read and so must be known"
        );
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        match entry.value.value {
            Value::Null => None,
            Value::Text(_) | Value::List(_) | Value::Map(_) => Some(Field {
                path: path(self.name, key),
                position: entry.position,
                node: &entry.value,
            }),
        }
    }

    pub(super) fn required(&self, key: &'static str) -> Result<Field<'tree>, Fault> {
        self.get(key).ok_or_else(|| Fault {
            position: Some(self.position),
            key: Some(path(self.name, key)),
            message: "is missing".to_owned(),
        })
    }

    pub(super) fn duration(&self, key: &'static str) -> Result<Option<Duration>, Fault> {
        self.get(key)
            .map(|field| field.parse(quantity::duration))
            .transpose()
    }

    pub(super) fn bytes(&self, key: &'static str) -> Result<Option<u64>, Fault> {
        let positive = |text: &str| match quantity::bytes(text) {
            Ok(0) => Err(format!("`{text}` leaves nothing")),
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(error.to_string()),
        };
        self.get(key).map(|field| field.parse(positive)).transpose()
    }

    pub(super) fn count(&self, key: &'static str, least: u64) -> Result<Option<u32>, Fault> {
        self.get(key)
            .map(|field| field.number(least, u32::MAX.into(), "a whole number"))
            .transpose()
    }

    /// Returns the entries of a list of texts, each as a field of its own.
    pub(super) fn items(&self, key: &'static str) -> Result<Vec<(&'tree str, Field<'tree>)>, Fault> {
        let Some(field) = self.get(key) else {
            return Ok(Vec::new());
        };
        let Value::List(nodes) = &field.node.value else {
            return Err(field.fault(format!("must be a list, not {}", kind(field.node))));
        };
        let item = |node: &'tree Node| {
            let item = Field {
                path: field.path.clone(),
                position: node.position,
                node,
            };
            item.text().map(|text| (text, item))
        };
        nodes.iter().map(item).collect()
    }

    pub(super) fn texts(&self, key: &'static str) -> Result<Vec<String>, Fault> {
        let items = self.items(key)?;
        Ok(items.into_iter().map(|(text, _)| text.to_owned()).collect())
    }

    pub(super) fn env(&self) -> Result<Vec<String>, Fault> {
        let pair = |(text, field): (&str, Field<'_>)| match text.split_once('=') {
            Some((name, _)) if !name.is_empty() && !text.contains('\0') => Ok(text.to_owned()),
            Some(_) | None => Err(field.fault(format!("`{text}` is not of the form NAME=value"))),
        };
        self.items("env")?.into_iter().map(pair).collect()
    }

    pub(super) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault {
            position: Some(self.position),
            key: (!self.name.is_empty()).then(|| self.name.to_owned()),
            message: message.into(),
        }
    }
}

/// A key that has a value.
pub(super) struct Field<'tree> {
    path: String,
    pub(super) position: Position,
    node: &'tree Node,
}

impl<'tree> Field<'tree> {
    pub(super) fn text(&self) -> Result<&'tree str, Fault> {
        match &self.node.value {
            Value::Text(text) => Ok(text),
            Value::Null | Value::List(_) | Value::Map(_) => {
                Err(self.fault(format!("must be text, not {}", kind(self.node))))
            }
        }
    }

    pub(super) fn parse<T, E: Display>(&self, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<T, Fault> {
        parse(self.text()?).map_err(|error| self.fault(error.to_string()))
    }

    pub(super) fn number<T: TryFrom<u64>>(&self, least: u64, most: u64, what: &str) -> Result<T, Fault> {
        self.parse(|text| {
            let number = text.parse::<u64>().ok();
            number
                .filter(|number| (least..=most).contains(number))
                .and_then(|number| T::try_from(number).ok())
                .ok_or_else(|| format!("`{text}` is not {what} from {least} to {most}"))
        })
    }

    pub(super) fn flag(&self) -> Result<bool, Fault> {
        self.parse(|text| match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Ok(true),
            "false" | "no" | "off" => Ok(false),
            _ => Err(format!("`{text}` is neither `true` nor `false`")),
        })
    }

    /// Returns the path of a script that is there and can be run.
    pub(super) fn script(&self, file: &Path) -> Result<PathBuf, Fault> {
        let text = self.text()?;
        let path: PathBuf = file
            .parent()
            .unwrap_or_else(|| Path::new(""))
            .join(text)
            .components()
            .collect();
        let shown = path.display();
        let metadata = fs::metadata(&path)
            .map_err(|error| self.fault(format!("the script {shown} cannot be used: {error}")))?;
        if !metadata.is_file() {
            return Err(self.fault(format!("{shown} is not a file")));
        }
        access(&path, Access::EXEC_OK).map_err(|_| {
            self.fault(format!(
                "{shown} is not executable; `chmod +x {shown}` makes it so"
            ))
        })?;
        Ok(path)
    }

    pub(super) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault {
            position: Some(self.position),
            key: Some(self.path.clone()),
            message: message.into(),
        }
    }
}

fn kind(node: &Node) -> &'static str {
    match &node.value {
        Value::Null => "nothing",
        Value::Text(_) => "text",
        Value::List(_) => "a list",
        Value::Map(_) => "keys and values",
    }
}

fn path(section: &str, key: &str) -> String {
    match section {
        "" => key.to_owned(),
        section => format!("{section}.{key}"),
    }
}

fn known_keys(section: &str) -> &'static [&'static str] {
    KEYS.iter()
        .find(|(name, _)| *name == section)
        .map_or(&[], |(_, keys)| keys)
}

/// Returns what somebody who wrote `key` probably meant: the same key where it belongs, else the most similar one here.
fn meant(section: &str, key: &str) -> String {
    if let Some((elsewhere, _)) = KEYS.iter().find(|(_, keys)| keys.contains(&key)) {
        return path(elsewhere, key);
    }
    let similarity = |known: &str| strsim::jaro_winkler(&key.to_lowercase(), known);
    let nearest = known_keys(section)
        .iter()
        .max_by(|one, other| similarity(one).total_cmp(&similarity(other)));
    path(section, nearest.copied().unwrap_or_default())
}

/// Every key there is, by its section.
const KEYS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "name",
            "alias",
            "retrieval",
            "creation",
            "masking",
            "cron",
            "docker",
            "clone_pool",
            "restore_params",
            "clone_params",
            "retention",
            "timeouts",
            "limits",
            "ttl",
            "idle_stop",
        ],
    ),
    (
        "docker",
        &[
            "image",
            "port",
            "env",
            "entrypoint",
            "cmd",
            "volume",
            "healthcheck",
            "shm",
        ],
    ),
    (
        "clone_pool",
        &[
            "min_clones",
            "max_clones",
            "reset_on_new_snap",
            "claim_max_timeout_seconds",
            "claim_default_timeout_seconds",
        ],
    ),
    ("restore_params", PARAMS),
    ("clone_params", PARAMS),
    ("retention", &["keep_snapshots", "keep_days"]),
    ("timeouts", &["ready", "retrieval", "creation"]),
    ("limits", &["cpus", "memory", "disk", "clones_per_user"]),
];
const PARAMS: &[&str] = &["env", "entrypoint", "cmd", "zfs"];
