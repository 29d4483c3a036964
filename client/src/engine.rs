//! The Docker engine of this machine, which needs the relay's image before compose can start a relay.
//!
//! The image is had without a registry: the node has the program, and the program is all there is in the image.

use std::time::Duration;

use bollard::query_parameters::CreateImageOptionsBuilder;
use bollard::{ClientVersion, Docker, body_full};
use futures_util::TryStreamExt;

use crate::docker_context::{self, ContextError};

/// An engine that answers.
#[derive(Debug)]
pub struct Engine(Docker);

/// Whose the users in an engine's containers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// The machine's.
    Same,
    /// Of a rootless engine: its root is whoever started it, which is us.
    Rootless,
    /// Of an engine with `userns-remap`: nobody in a container is any user of the machine.
    Remapped,
}

impl Users {
    fn of(security_options: &[String]) -> Self {
        let has = |name: &str| {
            let mut names = security_options.iter().flat_map(|option| option.split(','));
            names.any(|option| option.strip_prefix("name=") == Some(name))
        };
        match (has("rootless"), has("userns")) {
            (true, _) => Self::Rootless,
            (false, true) => Self::Remapped,
            (false, false) => Self::Same,
        }
    }
}

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Docker is set to use one that it does not know.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// There is none, or it does not answer.
    #[error("no Docker engine answers")]
    None(#[source] bollard::errors::Error),
    /// It is there and does not answer.
    #[error("the Docker engine does not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// It failed.
    #[error("the Docker engine cannot {action}")]
    Failed {
        /// What was asked of it, as a verb.
        action: String,
        /// What it says.
        #[source]
        source: bollard::errors::Error,
    },
    /// Its machine is one that there is no relay for.
    #[error("the Docker engine runs on `{0}`; the relay is there for amd64 and arm64")]
    Architecture(String),
    /// The image could not be put together.
    #[error("cannot put the image together")]
    Archive(#[source] std::io::Error),
}

impl Engine {
    /// Finds the engine as docker itself does, by `DOCKER_HOST`, its context, or at the usual socket.
    pub async fn find() -> Result<Self, EngineError> {
        let docker = match docker_context::host(|name| std::env::var(name).ok())? {
            Some(host) => Docker::connect_with_host(&host),
            None => Docker::connect_with_defaults(),
        };
        let docker = docker.map_err(EngineError::None)?;
        match tokio::time::timeout(ANSWER_DEADLINE, docker.negotiate_version()).await {
            Ok(Ok(docker)) => Ok(Self(docker)),
            Ok(Err(error)) => Err(EngineError::None(error)),
            Err(_) => Err(EngineError::Silent(ANSWER_DEADLINE)),
        }
    }

    /// Returns whether a healthcheck can have a `start_interval`.
    pub fn knows_start_interval(&self) -> bool {
        let since = ClientVersion {
            major_version: 1,
            minor_version: 44,
        };
        self.0.client_version() >= since
    }

    /// Returns whether the image is there.
    pub async fn has(&self, image: &str) -> Result<bool, EngineError> {
        match self.0.inspect_image(image).await {
            Ok(_) => Ok(true),
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(false),
            Err(source) => Err(failed(format!("look for {image}"), source)),
        }
    }

    /// Returns whose the users in its containers are.
    pub async fn users(&self) -> Result<Users, EngineError> {
        let info = self.0.info().await;
        let info = info.map_err(|source| failed("say how it is set up".to_owned(), source))?;
        Ok(Users::of(&info.security_options.unwrap_or_default()))
    }

    /// Returns the architecture of its machine, as `uname -m` calls it.
    pub async fn architecture(&self) -> Result<String, EngineError> {
        let version = self.0.version().await;
        let version = version.map_err(|source| failed("tell its version".to_owned(), source))?;
        match version.arch.unwrap_or_default().as_str() {
            "amd64" => Ok("x86_64".to_owned()),
            "arm64" => Ok("aarch64".to_owned()),
            other => Err(EngineError::Architecture(other.to_owned())),
        }
    }

    /// Makes the image `zdap/zdap-proxyd:<tag>` of the relay program and nothing else, as `deploy/Dockerfile.relay` does.
    pub async fn import_relay(&self, tag: &str, program: &[u8]) -> Result<(), EngineError> {
        let layer = layer(program).map_err(EngineError::Archive)?;
        let changes = IMAGE.iter().map(|&line| line.to_owned()).collect();
        let options = CreateImageOptionsBuilder::default()
            .from_src("-")
            .repo(REPOSITORY)
            .tag(tag)
            .changes(changes)
            .build();
        self.0
            .create_image(Some(options), Some(body_full(layer.into())), None)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await
            .map_err(|source| failed(format!("import {REPOSITORY}:{tag}"), source))
    }

    /// Pulls the image `zdap/zdap-proxyd:<tag>`.
    pub async fn pull_relay(&self, tag: &str) -> Result<(), EngineError> {
        let options = CreateImageOptionsBuilder::default()
            .from_image(REPOSITORY)
            .tag(tag)
            .build();
        self.0
            .create_image(Some(options), None, None)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await
            .map_err(|source| failed(format!("pull {REPOSITORY}:{tag}"), source))
    }
}

/// Returns the name of the relay's image that goes with this version.
pub fn relay_image() -> String {
    format!("{REPOSITORY}:{}", crate::VERSION)
}

/// A file system with one file in it.
fn layer(program: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    header.set_entry_type(tar::EntryType::Regular);
    let mut archive = tar::Builder::new(Vec::with_capacity(program.len() + 4096));
    archive.append_data(&mut header, "zdap-proxyd", program)?;
    archive.into_inner()
}

fn failed(action: String, source: bollard::errors::Error) -> EngineError {
    EngineError::Failed { action, source }
}

const REPOSITORY: &str = "zdap/zdap-proxyd";
/// What `deploy/Dockerfile.relay` says after its `COPY`.
const IMAGE: [&str; 3] = ["USER 65534:65534", "EXPOSE 5432", "ENTRYPOINT [\"/zdap-proxyd\"]"];
/// It is on this machine.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn whose_the_users_are_is_read_from_the_security_options() {
        let users = |options: &[&str]| {
            Users::of(
                &options
                    .iter()
                    .map(|&option| option.to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(
            users(&["name=seccomp,profile=builtin", "name=cgroupns"]),
            Users::Same
        );
        assert_eq!(
            users(&["name=seccomp,profile=builtin", "name=rootless"]),
            Users::Rootless
        );
        assert_eq!(users(&["name=userns"]), Users::Remapped);
    }

    #[test]
    fn the_image_holds_the_program_executable_and_nothing_else() {
        let layer = layer(b"\x7fELF").unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let mut files = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let path = entry.path().unwrap().into_owned();
            (path, entry.header().mode().unwrap(), content)
        });
        assert_eq!(
            files.next(),
            Some(("zdap-proxyd".into(), 0o755, b"\x7fELF".to_vec()))
        );
        assert_eq!(files.next(), None);
    }
}
