//! The compose project that a command runs in: which two files, and where the relays' identities are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zdap_proto::identity::{Identity, IdentityError};
use zdap_proto::name::ResourceName;

use crate::compose::{self, Attached, ComposeError};
use crate::settings::{SettingsError, create_private};

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
    /// `.zdap` holds something else.
    #[error("{}: line {}: {source}", path.display(), source.line())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: serde_json::Error,
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
            Self::Content { .. } => Some("`zdap init` writes it anew".to_owned()),
            Self::Io { .. } => None,
            Self::Directory(error) => error.hint(),
            Self::Identity(error) => error.hint(),
        }
    }
}

impl Project {
    /// Finds the project of `directory`: by the `.zdap` there or in a parent, else by a compose file there.
    pub fn find(directory: &Path) -> Result<Self, ProjectError> {
        for parent in directory.ancestors() {
            let path = parent.join(PROJECT_FILE);
            match fs::read(&path) {
                Ok(text) => {
                    let file: ProjectFile = serde_json::from_slice(&text)
                        .map_err(|source| ProjectError::Content { path, source })?;
                    return Ok(Self::of(&file, parent));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(failed("read", &path)(source)),
            }
        }
        let compose = COMPOSE_FILES.iter().map(|name| directory.join(name));
        match compose.into_iter().find(|path| path.is_file()) {
            Some(compose) => Ok(Self {
                r#override: override_beside(&compose),
                compose,
            }),
            None => Err(ProjectError::None(directory.to_owned())),
        }
    }

    /// Writes `.zdap` in `directory` and an empty override, if there is none.
    pub fn create(directory: &Path, file: &ProjectFile) -> Result<Self, ProjectError> {
        let project = Self::of(file, directory);
        let path = directory.join(PROJECT_FILE);
        let text = serde_json::to_string(file).map_err(|error| failed("write", &path)(error.into()))?;
        match fs::File::create_new(&project.r#override) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
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
        let file = fs::read_to_string(self.directory().join(".env")).unwrap_or_default();
        move |name| {
            let in_file = || {
                let mut values = file.lines().rev().filter_map(|line| line.trim().split_once('='));
                let value = values.find(|(key, _)| key.trim() == name)?.1.trim();
                Some(value.trim_matches(['"', '\'']).to_owned())
            };
            std::env::var(name).ok().or_else(in_file)
        }
    }

    /// Returns where the relay's identity for `resource` is, as the override says it: relative to the project.
    pub fn identity_mount(resource: &ResourceName) -> String {
        format!("./{IDENTITIES}/{resource}")
    }

    /// Returns the relay's identity for `resource`, if there is a usable one.
    pub fn identity(&self, resource: &ResourceName) -> Option<Identity> {
        Identity::load(&self.identity_directory(resource)).ok()
    }

    /// Keeps the relay's identity for `resource` where only its owner can read it and git does not see it.
    pub fn keep_identity(&self, resource: &ResourceName, identity: &Identity) -> Result<(), ProjectError> {
        let parent = self.identities();
        create_private(&parent)?;
        let ignore = parent.join(IGNORE);
        if !ignore.exists() {
            fs::write(&ignore, "*\n").map_err(failed("write", &ignore))?;
        }
        if !self.r#override.exists() {
            let note = parent.join(NEW_OVERRIDE);
            fs::write(&note, "").map_err(failed("write", &note))?;
        }
        let directory = self.identity_directory(resource);
        create_private(&directory)?;
        Ok(identity.save(&directory)?)
    }

    /// Removes the relay's identity for `resource`; with the last one also their directory, and the override if attaching
    /// has made it and nobody has written anything else into it.
    pub fn remove_identity(&self, resource: &ResourceName) -> Result<(), ProjectError> {
        let directory = self.identity_directory(resource);
        match fs::remove_dir_all(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("remove", &directory)(source)),
        }
        let parent = self.identities();
        let Ok(entries) = fs::read_dir(&parent) else {
            return Ok(()); // gone already
        };
        let ours = [IGNORE, NEW_OVERRIDE];
        let mut names = entries.flatten().map(|entry| entry.file_name());
        if !names.all(|name| ours.iter().any(|our| name == *our)) {
            return Ok(());
        }
        let is_new = parent.join(NEW_OVERRIDE).exists();
        let is_empty = fs::metadata(&self.r#override).is_ok_and(|metadata| metadata.len() == 0);
        if is_new && is_empty {
            fs::remove_file(&self.r#override).map_err(failed("remove", &self.r#override))?;
        }
        for name in ours {
            let path = parent.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path)(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        // It fails when another attach has just put its own into it, and then it has to stay.
        let _ = fs::remove_dir(&parent);
        Ok(())
    }

    fn of(file: &ProjectFile, directory: &Path) -> Self {
        Self {
            compose: directory.join(&file.compose),
            r#override: directory.join(&file.r#override),
        }
    }

    /// What compose takes relative paths from: the directory of the first file.
    fn directory(&self) -> &Path {
        match self.compose.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        }
    }

    fn identities(&self) -> PathBuf {
        self.directory().join(IDENTITIES)
    }

    fn identity_directory(&self, resource: &ResourceName) -> PathBuf {
        self.identities().join(resource.as_str())
    }
}

impl ProjectFile {
    /// Chooses the files of a project in `directory`, as named or as compose itself would find them.
    pub fn choose(
        directory: &Path,
        compose: Option<PathBuf>,
        r#override: Option<PathBuf>,
    ) -> Result<Self, ProjectError> {
        let found = || COMPOSE_FILES.iter().find(|name| directory.join(name).is_file());
        let compose = match compose {
            Some(compose) => compose,
            None => found()
                .map(|name| Path::new(".").join(name))
                .ok_or_else(|| ProjectError::None(directory.to_owned()))?,
        };
        let path = directory.join(&compose);
        fs::metadata(&path).map_err(failed("read", &path))?;
        Ok(Self {
            r#override: r#override.unwrap_or_else(|| override_beside(&compose)),
            compose,
        })
    }
}

/// Compose looks for the override beside the file, under a name that goes with the file's.
fn override_beside(compose: &Path) -> PathBuf {
    let name = match compose.file_name().and_then(|name| name.to_str()) {
        Some("compose.yaml") => "compose.override.yaml",
        Some("compose.yml") => "compose.override.yml",
        Some("docker-compose.yaml") => "docker-compose.override.yaml",
        Some(_) | None => "docker-compose.override.yml",
    };
    compose.with_file_name(name)
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ProjectError + 'a {
    move |source| ProjectError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

const PROJECT_FILE: &str = ".zdap";
/// Beside the compose file, because compose takes relative paths from there.
const IDENTITIES: &str = ".zdap.d";
const IGNORE: &str = ".gitignore";
/// There while the override is one that attaching has made.
const NEW_OVERRIDE: &str = "new-override";
/// In the order in which compose itself looks for them.
const COMPOSE_FILES: [&str; 4] = [
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
];

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use chrono::Utc;
    use zdap_proto::identity::{ClusterCa, Subject};

    use super::*;

    fn identity() -> Identity {
        let now = Utc::now();
        let subject = Subject::User("ada".parse().unwrap());
        let lifetime = std::time::Duration::from_secs(60);
        ClusterCa::found(now)
            .unwrap()
            .identity(&subject, lifetime, now)
            .unwrap()
    }

    #[test]
    fn a_project_is_found_by_its_file_from_below() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("a/b");
        fs::create_dir_all(&below).unwrap();
        fs::write(
            directory.path().join(".zdap"),
            r#"{"compose": "./x.yml", "override": "o/x.yml"}"#,
        )
        .unwrap();
        let project = Project::find(&below).unwrap();
        assert_eq!(project.compose, directory.path().join("x.yml"));
        assert_eq!(project.r#override, directory.path().join("o/x.yml"));
    }

    #[test]
    fn a_project_without_a_file_is_found_by_its_compose_file() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(
            Project::find(directory.path()),
            Err(ProjectError::None(_))
        ));
        fs::write(directory.path().join("compose.yml"), "services: {}").unwrap();
        let project = Project::find(directory.path()).unwrap();
        assert_eq!(project.r#override, directory.path().join("compose.override.yml"));
    }

    #[test]
    fn a_project_file_that_is_not_json_is_named_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(".zdap"), "{\n\"compose\": 5}").unwrap();
        let error = Project::find(directory.path()).unwrap_err().to_string();
        assert!(error.contains("/.zdap: line 2:"), "{error}");
    }

    #[test]
    fn init_keeps_an_override_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let compose = directory.path().join("docker-compose.yml");
        fs::write(&compose, "services: {}").unwrap();
        let file = ProjectFile::choose(directory.path(), None, None).unwrap();
        let project = Project::create(directory.path(), &file).unwrap();
        assert_eq!(fs::read_to_string(&project.r#override).unwrap(), "");
        assert_eq!(
            fs::read_to_string(directory.path().join(".zdap")).unwrap(),
            "{\"compose\":\"./docker-compose.yml\",\"override\":\"./docker-compose.override.yml\"}\n"
        );
        fs::write(&project.r#override, "# mine").unwrap();
        Project::create(directory.path(), &file).unwrap();
        assert_eq!(fs::read_to_string(&project.r#override).unwrap(), "# mine");
    }

    #[test]
    fn identities_are_private_ignored_by_git_and_leave_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("compose.yml"), "").unwrap();
        let project = Project::find(directory.path()).unwrap();
        let (orders, users) = ("orders".parse().unwrap(), "users".parse().unwrap());
        project.keep_identity(&orders, &identity()).unwrap();
        project.keep_identity(&users, &identity()).unwrap();
        let root = directory.path().join(".zdap.d");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&root), 0o700);
        assert_eq!(mode(&root.join("orders")), 0o700);
        assert_eq!(mode(&root.join("orders/identity.pem")), 0o600);
        assert_eq!(fs::read_to_string(root.join(".gitignore")).unwrap(), "*\n");
        project.remove_identity(&orders).unwrap();
        assert!(project.identity(&users).is_some());
        fs::write(&project.r#override, "").unwrap();
        project.remove_identity(&users).unwrap();
        assert!(!root.exists());
        assert!(!project.r#override.exists(), "attaching had made it");
        project.remove_identity(&users).unwrap();
    }
}
