//! What is remembered on this machine: who the user wants to be, where the nodes are, and the identities they gave.
//!
//! ```text
//! $ZDAP_HOME, else $XDG_CONFIG_HOME/zdap, else ~/.config/zdap      0700
//!   settings.json                      {"user": ..., "origins": [{"address": ..., "cluster": ...}], "clusters": [...]}
//!   clusters/<cluster>/identity.pem    0600
//! ```

mod known;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zdap_proto::identity::{Identity, IdentityError};
use zdap_proto::message::NodeView;
use zdap_proto::name::ClusterId;
use zdap_proto::refusal::chain;

use crate::error::Failure;

pub use self::known::{Forgotten, Learned, LearnedNode, Origin, Settings};

/// The directory that all of it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

/// Why settings cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The environment names no directory.
    #[error("neither ZDAP_HOME nor HOME is set")]
    Homeless,
    /// The file holds something else.
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
}

impl SettingsError {
    /// Returns the remedy, where there is one to name.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Homeless => Some("set ZDAP_HOME to a directory for zdap's settings".to_owned()),
            Self::Content { path, .. } => Some(format!(
                "correct the file, or remove it and add the origins again: `rm {}`",
                path.display()
            )),
            Self::Io { .. } => None,
        }
    }
}

impl Home {
    /// Finds the directory by the environment; it need not exist yet.
    pub fn find(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, SettingsError> {
        let path = |name| {
            variable(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        // The XDG rules say to ignore a relative path.
        let config = path("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
        path("ZDAP_HOME")
            .or_else(|| config.map(|config| config.join("zdap")))
            .or_else(|| path("HOME").map(|home| home.join(".config/zdap")))
            .map(Self)
            .ok_or(SettingsError::Homeless)
    }

    /// Returns what to warn of if others can look into it.
    pub fn warning(&self) -> Option<String> {
        let mode = fs::metadata(&self.0).ok()?.permissions().mode() & 0o777;
        let home = self.0.display();
        (mode & !PRIVATE != 0).then(|| {
            format!("others can look into {home}, its mode is {mode:o}; `chmod 700 '{home}'` ends that")
        })
    }

    /// Reads the settings; none is none.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        let path = self.file();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Settings::default()),
            Err(source) => return Err(failed("read", &path)(source)),
        };
        serde_json::from_slice(&text).map_err(|error| SettingsError::Content {
            path,
            line: error.line(),
            column: error.column(),
            message: without_place(&error),
        })
    }

    /// Changes the settings. Of several at once each sees what the one before it wrote; a reader sees the old or the new.
    pub fn change<T>(&self, change: impl FnOnce(&mut Settings) -> T) -> Result<T, SettingsError> {
        let _lock = self.lock()?;
        let mut settings = self.settings()?;
        let before = settings.clone();
        let result = change(&mut settings);
        if settings != before {
            self.write(&settings)?;
        }
        Ok(result)
    }

    /// Keeps what a cluster has told through `last`. Where it cannot be kept it is learned the next time.
    pub fn learn(&self, cluster: &ClusterId, last: &str, nodes: &[NodeView]) {
        let learn = |settings: &mut Settings| settings.learn(cluster, last, nodes);
        let learned = self.settings().and_then(|before| {
            let mut after = before.clone();
            learn(&mut after);
            match after == before {
                true => Ok(()), // without a lock, and where nothing may be written
                false => self.change(learn),
            }
        });
        if let Err(error) = learned {
            tracing::debug!("the nodes are not remembered: {}", chain(&error));
        }
    }

    /// Returns the identity that a cluster gave us.
    pub fn identity(&self, cluster: &ClusterId) -> Result<Identity, IdentityError> {
        Identity::load(&self.identity_directory(cluster))
    }

    /// Keeps the identity that its cluster gave us, in place of an earlier one.
    pub fn keep(&self, identity: &Identity) -> Result<(), Failure> {
        let _lock = self.lock()?;
        let directory = self.identity_directory(identity.cluster());
        create_private(&directory)?;
        Ok(identity.save(&directory)?)
    }

    /// Puts a renewed identity in the place of the same one that ends sooner, as long as that is still there.
    pub fn renew(&self, identity: &Identity) -> Result<(), Failure> {
        let _lock = self.lock()?;
        let there = self.identity(identity.cluster());
        let is_earlier = there
            .is_ok_and(|there| there.peer() == identity.peer() && there.expires_at() < identity.expires_at());
        if is_earlier {
            identity.save(&self.identity_directory(identity.cluster()))?;
        }
        Ok(())
    }

    /// Returns the identities that can be used, of all clusters.
    pub fn identities(&self) -> Result<Vec<Identity>, SettingsError> {
        let path = self.0.join("clusters");
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed("read", &path)(source)),
        };
        let mut identities = Vec::new();
        for entry in entries {
            let directory = entry.map_err(failed("read", &path))?.path();
            match Identity::load(&directory) {
                Ok(identity) => identities.push(identity),
                Err(error) => tracing::debug!(
                    directory = %directory.display(),
                    "no identity: {}", chain(&error)
                ),
            }
        }
        Ok(identities)
    }

    fn identity_directory(&self, cluster: &ClusterId) -> PathBuf {
        self.0.join("clusters").join(cluster.as_str())
    }

    fn file(&self) -> PathBuf {
        self.0.join("settings.json")
    }

    /// Waits for the right to change what is here, until it is dropped.
    fn lock(&self) -> Result<File, SettingsError> {
        create_private(&self.0)?;
        let path = self.0.join("settings.lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        lock.lock().map_err(failed("lock", &path))?;
        Ok(lock)
    }

    fn write(&self, settings: &Settings) -> Result<(), SettingsError> {
        let path = self.file();
        let text =
            serde_json::to_string_pretty(settings).map_err(|error| failed("write", &path)(error.into()))?;
        // Made 0600 by tempfile.
        let written = tempfile::NamedTempFile::new_in(&self.0).and_then(|mut file| {
            writeln!(file, "{text}")?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)
        });
        written.map(drop).map_err(failed("write", &path))
    }
}

/// Makes a directory that only its owner can look into. One that is there already stays as somebody has made it: the keys in
/// it are private by themselves, and of the home [`Home::warning`] tells.
pub fn create_private(directory: &Path) -> Result<(), SettingsError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE)
        .create(directory)
        .map_err(failed("create", directory))
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> SettingsError + 'a {
    move |source| SettingsError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// serde_json ends its message with the place, which is said in front already.
pub(crate) fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rsplit_once(" at line ") {
        Some((message, _)) => message.to_owned(),
        None => message,
    }
}

const PRIVATE: u32 = 0o700;

#[cfg(test)]
mod tests {
    use zdap_proto::identity::{ClusterCa, Subject};

    use super::*;

    fn home(directory: &tempfile::TempDir) -> Home {
        Home(directory.path().join("home"))
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_directory_is_found_by_the_environment_in_order() {
        let find = |variables: &[(&str, &str)]| {
            let variables: Vec<(String, OsString)> = variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), OsString::from(value)))
                .collect();
            Home::find(|name| {
                let found = variables.iter().find(|(known, _)| known == name);
                found.map(|(_, value)| value.clone())
            })
        };
        let (home, config, own) = (
            ("HOME", "/home/ada"),
            ("XDG_CONFIG_HOME", "/cfg"),
            ("ZDAP_HOME", "/own"),
        );
        assert_eq!(find(&[home, config, own]).unwrap().0, Path::new("/own"));
        assert_eq!(find(&[home, config]).unwrap().0, Path::new("/cfg/zdap"));
        assert_eq!(
            find(&[home, ("XDG_CONFIG_HOME", "cfg")]).unwrap().0,
            Path::new("/home/ada/.config/zdap")
        );
        assert!(matches!(find(&[]), Err(SettingsError::Homeless)));
    }

    #[test]
    fn settings_read_back_as_they_were_changed() {
        let directory = tempfile::tempdir().unwrap();
        let home = home(&directory);
        assert_eq!(home.settings().unwrap(), Settings::default());
        let cluster: ClusterId = "abc123".parse().unwrap();
        home.change(|settings| {
            settings.user = Some("ada@laptop".parse().unwrap());
            settings.remember("db1:43210", &cluster);
            settings.remember("db1:43210", &cluster);
        })
        .unwrap();
        assert_eq!(
            fs::read_to_string(home.file()).unwrap().replace([' ', '\n'], ""),
            r#"{"user":"ada@laptop","origins":[{"address":"db1:43210","cluster":"abc123"}]}"#
        );
        assert_eq!(home.settings().unwrap().origins.len(), 1);
    }

    #[test]
    fn a_renewed_identity_takes_the_place_of_one_that_ends_sooner_and_of_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let (home, now) = (home(&directory), chrono::Utc::now());
        let ca = ClusterCa::found(now).unwrap();
        let issue = |name: &str, hours: u64| {
            let subject = Subject::User(name.parse().unwrap());
            let life = std::time::Duration::from_secs(hours * 3600);
            ca.identity(&subject, life, now).unwrap()
        };
        let end = || home.identity(ca.cluster()).unwrap().expires_at();
        home.renew(&issue("ada", 1)).unwrap();
        assert!(home.identity(ca.cluster()).is_err(), "it was given up");
        let (first, longer) = (issue("ada", 2), issue("ada", 3));
        home.keep(&first).unwrap();
        home.renew(&issue("bob", 4)).unwrap();
        home.renew(&issue("ada", 1)).unwrap();
        assert_eq!(end(), first.expires_at());
        home.renew(&longer).unwrap();
        assert_eq!(end(), longer.expires_at());
    }

    #[test]
    fn nobody_else_can_read_them() {
        let directory = tempfile::tempdir().unwrap();
        let home = home(&directory);
        let set = |settings: &mut Settings| settings.user = Some("ada".parse().unwrap());
        home.change(set).unwrap();
        assert_eq!(mode(&home.0), 0o700);
        assert_eq!(mode(&home.file()), 0o600);
    }

    #[test]
    fn a_directory_that_is_there_already_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let home = home(&directory);
        fs::create_dir(&home.0).unwrap();
        fs::set_permissions(&home.0, fs::Permissions::from_mode(0o755)).unwrap();
        home.change(|settings| settings.user = Some("ada".parse().unwrap()))
            .unwrap();
        assert_eq!(mode(&home.0), 0o755);
        assert_eq!(mode(&home.file()), 0o600);
    }

    #[test]
    fn a_file_that_is_not_json_is_named_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let home = home(&directory);
        fs::create_dir(&home.0).unwrap();
        fs::write(home.file(), "{\n  \"user\": ada\n}\n").unwrap();
        let error = home.settings().unwrap_err().to_string();
        assert!(
            error.ends_with("settings.json: line 2, column 11: expected value"),
            "{error}"
        );
        assert!(home.change(|_| ()).is_err(), "and it is not written over");
    }

    #[test]
    fn a_user_name_that_cannot_be_is_refused_when_read() {
        let directory = tempfile::tempdir().unwrap();
        let home = home(&directory);
        fs::create_dir(&home.0).unwrap();
        fs::write(home.file(), r#"{"user": "a/b"}"#).unwrap();
        let error = home.settings().unwrap_err().to_string();
        assert!(error.contains("user name `a/b` holds '/'"), "{error}");
    }

    #[test]
    fn changes_at_once_do_not_lose_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let home = home(&directory);
        std::thread::scope(|scope| {
            for index in 0..8 {
                let home = &home;
                scope.spawn(move || {
                    let cluster = "abc123".parse().unwrap();
                    home.change(|settings| settings.remember(&format!("db{index}:43210"), &cluster))
                        .unwrap();
                });
            }
        });
        assert_eq!(home.settings().unwrap().origins.len(), 8);
    }
}
