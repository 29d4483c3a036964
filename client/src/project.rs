//! The compose project that a command runs in: which two files.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zdap_proto::identity::IdentityError;

use crate::compose::{self, Attached, ComposeError};
use crate::settings::{SettingsError, without_place};

/// A compose project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// What the project is made of.
    pub compose: PathBuf,
    /// What zdap adds to it.
    pub r#override: PathBuf,
}

/// What `.zdap` holds: the two files, relative to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectFile {
    /// What the project is made of.
    pub compose: PathBuf,
    /// What zdap adds to it.
    pub r#override: PathBuf,
}

/// Why there is no project, or its files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// No `.zdap` and no compose file.
    #[error("no compose project in {}: neither `.zdap` nor a compose file", .0.display())]
    None(PathBuf),
    /// Compose is told to take other files than those it finds.
    #[error("COMPOSE_FILE in {place} names the project's files: `{files}`")]
    Elsewhere {
        /// Where it is set.
        place: String,
        /// Its value.
        files: String,
    },
    /// `.zdap` holds something else.
    #[error("{}: line {line}, column {column}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: usize,
        /// Where in the line, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// The file system said no.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The directory of the identities could not be made.
    #[error(transparent)]
    Directory(#[from] SettingsError),
    /// An identity could not be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl ProjectError {
    /// Returns the remedy, where there is one to name.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::None(_) => Some(
                "go to the project's directory, or name the files: `zdap init --compose FILE`".to_owned(),
            ),
            Self::Elsewhere { .. } => Some(
                "say which of them zdap reads and which it writes: `zdap init --compose FILE --override FILE`".to_owned(),
            ),
            Self::Content { .. } => Some("`zdap init` writes it anew".to_owned()),
            Self::Io { .. } => None,
            Self::Directory(error) => error.hint(),
            Self::Identity(error) => error.hint(),
        }
    }
}

impl Project {
    /// Finds the project of `directory`, there or in the nearest parent that has one: by its `.zdap`, else by a compose file
    /// as compose itself finds it. `variable` is the environment.
    pub fn find(directory: &Path, variable: impl Fn(&str) -> Option<String>) -> Result<Self, ProjectError> {
        for parent in directory.ancestors() {
            if let Some(file) = ProjectFile::read(parent)? {
                return Ok(Self::of(&file, parent));
            }
            if let Some(name) = compose_file_in(parent) {
                not_elsewhere(parent, &variable)?;
                let compose = parent.join(name);
                return Ok(Self {
                    r#override: override_beside(parent, &compose),
                    compose,
                });
            }
        }
        not_elsewhere(directory, &variable)?;
        Err(ProjectError::None(directory.to_owned()))
    }

    /// Writes `.zdap` in `directory` and an empty override, if there is none.
    pub fn create(directory: &Path, file: &ProjectFile) -> Result<Self, ProjectError> {
        let project = Self::of(file, directory);
        let path = directory.join(PROJECT_FILE);
        let text = serde_json::to_string(file).map_err(|error| failed("write", &path)(error.into()))?;
        match fs::File::create_new(&project.r#override) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(source) => return Err(failed("create", &project.r#override)(source)),
        }
        fs::write(&path, text + "\n").map_err(failed("write", &path))?;
        Ok(project)
    }

    /// Returns what is attached; an absent override has nothing.
    pub fn attached(&self) -> Result<Vec<Attached>, ComposeError> {
        let attached = compose::attached(&self.override_text()?);
        attached.map_err(|source| ComposeError::InFile {
            path: self.r#override.clone(),
            source: Box::new(source),
        })
    }

    /// Returns the names of the project's services.
    pub fn services(&self) -> Result<Vec<String>, ComposeError> {
        compose::services(&compose::read(&self.compose)?).map_err(|source| ComposeError::InFile {
            path: self.compose.clone(),
            source: Box::new(source),
        })
    }

    /// Returns the text of the override; an absent one is empty.
    pub fn override_text(&self) -> Result<String, ComposeError> {
        match compose::read(&self.r#override) {
            Err(ComposeError::Missing { .. }) => Ok(String::new()),
            result => result,
        }
    }

    /// Returns the variables that compose fills in: the process's own, then those of the project's `.env`.
    pub fn environment(&self) -> impl Fn(&str) -> Option<String> {
        let file = dotenv(self.directory());
        move |name| {
            std::env::var(name)
                .ok()
                .or_else(|| compose::variable(&file, name))
        }
    }

    /// Returns what starts the project, or what has changed in it: `docker compose up -d`, with the files where compose would
    /// not find them.
    pub fn command_to_start(&self) -> String {
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let is_found = |path: &Path, names: &[&str]| {
            path.parent() == self.compose.parent()
                && name(path).is_some_and(|name| names.contains(&name.as_str()))
        };
        match is_found(&self.compose, &COMPOSE_FILES) && is_found(&self.r#override, &OVERRIDES) {
            true => "docker compose up -d".to_owned(),
            false => format!(
                "docker compose -f {} -f {} up -d",
                self.compose.display(),
                self.r#override.display()
            ),
        }
    }

    /// Returns the project of a `.zdap` in `directory`.
    pub fn of(file: &ProjectFile, directory: &Path) -> Self {
        // Components leave out each `.` on the way, as there is in front of the names that `zdap init` writes.
        let path = |file: &Path| directory.join(file).components().collect();
        Self {
            compose: path(&file.compose),
            r#override: path(&file.r#override),
        }
    }

    /// What compose takes relative paths from: the directory of the first file.
    pub(crate) fn directory(&self) -> &Path {
        match self.compose.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        }
    }
}

impl ProjectFile {
    /// Chooses the files of a project in `directory`, as named or as compose itself would find them. `variable` is the
    /// environment.
    pub fn choose(
        directory: &Path,
        compose: Option<PathBuf>,
        r#override: Option<PathBuf>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ProjectError> {
        if compose.is_none() || r#override.is_none() {
            not_elsewhere(directory, &variable)?;
        }
        let compose = match compose {
            Some(compose) => compose,
            None => compose_file_in(directory)
                .map(|name| Path::new(".").join(name))
                .ok_or_else(|| ProjectError::None(directory.to_owned()))?,
        };
        let path = directory.join(&compose);
        fs::metadata(&path).map_err(failed("read", &path))?;
        Ok(Self {
            r#override: r#override.unwrap_or_else(|| override_beside(directory, &compose)),
            compose,
        })
    }

    /// Reads the `.zdap` in `directory`, if there is one.
    fn read(directory: &Path) -> Result<Option<Self>, ProjectError> {
        let path = directory.join(PROJECT_FILE);
        match fs::read(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(file) => Ok(Some(file)),
                Err(error) => Err(ProjectError::Content {
                    path,
                    line: error.line(),
                    column: error.column(),
                    message: without_place(&error),
                }),
            },
            // A directory of that name in somebody's home holds the settings of another program called zdap.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => Ok(None),
            Err(source) => Err(failed("read", &path)(source)),
        }
    }
}

fn compose_file_in(directory: &Path) -> Option<&'static str> {
    COMPOSE_FILES
        .into_iter()
        .find(|name| directory.join(name).is_file())
}

/// Makes sure that compose takes the files that it finds, not others that somebody has named.
fn not_elsewhere(directory: &Path, variable: &impl Fn(&str) -> Option<String>) -> Result<(), ProjectError> {
    let named = variable(COMPOSE_FILE).map(|files| ("the environment".to_owned(), files));
    let named = named.or_else(|| {
        let files = compose::variable(&dotenv(directory), COMPOSE_FILE)?;
        Some((directory.join(DOTENV).display().to_string(), files))
    });
    match named {
        Some((place, files)) if !files.is_empty() => Err(ProjectError::Elsewhere { place, files }),
        Some(_) | None => Ok(()),
    }
}

/// An absent or unreadable one is empty, as compose has it.
fn dotenv(directory: &Path) -> String {
    fs::read_to_string(directory.join(DOTENV)).unwrap_or_default()
}

/// Returns the override that compose takes together with that file: the first there is, else one under a name that goes with
/// the file's.
fn override_beside(directory: &Path, compose: &Path) -> PathBuf {
    let existing = OVERRIDES.map(|name| compose.with_file_name(name));
    let existing = existing.into_iter().find(|path| directory.join(path).is_file());
    let name = match compose.file_name().and_then(|name| name.to_str()) {
        Some("compose.yaml") => "compose.override.yaml",
        Some("compose.yml") => "compose.override.yml",
        Some("docker-compose.yaml") => "docker-compose.override.yaml",
        Some(_) | None => "docker-compose.override.yml",
    };
    existing.unwrap_or_else(|| compose.with_file_name(name))
}

pub(crate) fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ProjectError + 'a {
    move |source| ProjectError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

const PROJECT_FILE: &str = ".zdap";
const DOTENV: &str = ".env";
const COMPOSE_FILE: &str = "COMPOSE_FILE";
/// In the order in which compose itself looks for them.
const COMPOSE_FILES: [&str; 4] = [
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
];
/// In the order in which compose 2.26 takes one of them, whatever the other file is called.
const OVERRIDES: [&str; 4] = [
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];

#[cfg(test)]
mod tests;
