//! Instances that are containers of the Docker engine on this machine.
//!
//! A clone's start is three calls: create, start, inspect (for the address). Nothing is pulled on that way. Containers
//! are in a bridge network of ours in which they cannot reach each other, and publish no port: the node dials their
//! addresses. Labels say whose they are. They are not restarted by the engine: the node knows which ought to run.

mod container;
mod creating;
mod ends;
mod error;
mod image;
mod network;

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker as Engine;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, StopContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::time::{Instant, timeout};

use self::creating::Creating;
use self::error::{CONFLICT, NOT_FOUND, chain, failed, message, status};
use super::ready::{self, Readiness};
use super::{Address, InstanceId, InstanceSpec, Observed, Runtime, RuntimeError, Started, last_lines};

/// Runs containers.
#[derive(Debug)]
pub struct Docker {
    engine: Engine,
    node: String,
    creating: Creating,
}

impl Docker {
    /// Connects to the engine that `DOCKER_HOST` names, else the one at the default socket, and makes our network in it.
    ///
    /// `node`, as `<cluster>/<node>`, tells this node's containers from those of others on the same engine.
    pub async fn connect(node: &str) -> Result<Self, RuntimeError> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| DEFAULT_HOST.to_owned());
        let refused = |reason: String| RuntimeError::Failed {
            doing: format!("connect to the Docker engine at {host}"),
            reason,
        };
        let engine = match Engine::connect_with_host(&host) {
            Err(Error::UnsupportedURISchemeError { .. }) => {
                return Err(refused(
                    "it has to be on this machine, where the data is: `unix:///path/to/docker.sock`"
                        .to_owned(),
                ));
            }
            engine => engine.map_err(|error| refused(error.to_string()))?,
        };
        let engine = timeout(UNTIL_CONNECTED, engine.negotiate_version())
            .await
            .map_err(|_| refused(format!("it did not answer within {UNTIL_CONNECTED:?}")))?
            .map_err(|error| refused(chain(&error)))?;
        network::ensure(&engine).await?;
        Ok(Self {
            engine,
            node: node.to_owned(),
            creating: Creating::default(),
        })
    }

    /// Returns a container of that name, if there is one and it is this node's.
    async fn find(
        &self,
        name: &str,
        id: &InstanceId,
    ) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        let found = match self.engine.inspect_container(name, None).await {
            Err(error) if status(&error) == Some(NOT_FOUND) => return Ok(None),
            found => found.map_err(|error| failed("inspect", name, &error))?,
        };
        let labels = found.config.as_ref().and_then(|config| config.labels.as_ref());
        match container::belongs_to(labels, &self.node, id) {
            true => Ok(Some(found)),
            false => Err(RuntimeError::Failed {
                doing: format!("use the container {name}"),
                reason: "a container of that name is there already and is not this node's".to_owned(),
            }),
        }
    }

    /// Creates the container unless it is there.
    ///
    /// The engine goes on with what it was asked even if we stop listening, so the asking is a task of its own, which
    /// `remove` can wait for.
    async fn create(&self, name: &str, spec: &InstanceSpec) -> Result<(), RuntimeError> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let body = container::body(&self.node, spec);
        let (engine, creation) = (self.engine.clone(), self.creating.begin(name));
        let task = tokio::spawn(async move {
            let created = engine.create_container(Some(options), body).await;
            drop(creation);
            created
        });
        let created = task.await.map_err(|error| RuntimeError::Failed {
            doing: format!("create {name}"),
            reason: error.to_string(),
        })?;
        match created {
            Ok(created) => {
                for warning in created.warnings {
                    tracing::warn!(instance = name, "the engine says: {warning}");
                }
                Ok(())
            }
            Err(error) if status(&error) == Some(CONFLICT) => match self.find(name, &spec.id).await? {
                Some(_) => Ok(()),
                None => Err(failed("create", name, &error)),
            },
            Err(error) if status(&error) == Some(NOT_FOUND) && message(&error).contains("o such image") => {
                Err(RuntimeError::ImageMissing(spec.image.clone()))
            }
            Err(error) => Err(failed("create", name, &error)),
        }
    }

    async fn run(&self, name: &str) -> Result<(), RuntimeError> {
        match self.engine.start_container(name, None).await {
            // An engine's clean-up removes networks that are empty for the moment.
            Err(error)
                if message(&error).contains(network::NAME) && message(&error).contains("not found") =>
            {
                network::ensure(&self.engine).await?;
                self.engine.start_container(name, None).await
            }
            result => result,
        }
        .map_err(|error| failed("start", name, &error))
    }

    /// Returns once the container has ended, with its status.
    async fn ended(&self, name: &str) -> i64 {
        let options = WaitContainerOptionsBuilder::default()
            .condition("not-running")
            .build();
        let mut answers = Box::pin(self.engine.wait_container(name, Some(options)));
        match answers.next().await {
            Some(Ok(answer)) => answer.status_code,
            Some(Err(Error::DockerContainerWaitError { code, .. })) => code,
            // The engine cannot say: then only the time limit ends the waiting.
            Some(Err(_)) | None => std::future::pending().await,
        }
    }

    /// Returns once the database answers.
    async fn ready(&self, name: &str, spec: &InstanceSpec, address: &Address) {
        if ready::is_postgres(spec) {
            return ready::postgres(address, &spec.env).await;
        }
        ready::accepts(address).await;
        if let Some(healthcheck) = &spec.healthcheck {
            ready::passes(|| self.succeeds(name, healthcheck)).await;
        }
    }

    /// Runs a shell command in the container and returns whether it succeeded.
    async fn succeeds(&self, name: &str, command: &str) -> bool {
        let run = async {
            let exec = CreateExecOptions {
                cmd: Some(vec!["sh", "-c", command]),
                attach_stdout: Some(true),
                attach_stderr: Some(true),
                ..Default::default()
            };
            let exec = self.engine.create_exec(name, exec).await?;
            let begun = self.engine.start_exec(&exec.id, None::<StartExecOptions>).await?;
            if let StartExecResults::Attached { mut output, .. } = begun {
                while output.next().await.transpose()?.is_some() {}
            }
            self.engine.inspect_exec(&exec.id).await
        };
        match run.await {
            Ok(ended) => ended.exit_code == Some(0),
            Err(error) => {
                tracing::debug!(instance = name, "cannot run the healthcheck: {}", chain(&error));
                false
            }
        }
    }

    /// Returns the last lines that the container printed.
    async fn output(&self, name: &str) -> String {
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .tail(READ_LINES)
            .build();
        let mut lines = Box::pin(self.engine.logs(name, Some(options)));
        let mut text = Vec::new();
        while let Some(Ok(line)) = lines.next().await {
            text.extend(LogOutput::into_bytes(line));
        }
        last_lines(&String::from_utf8_lossy(&text))
    }
}

#[async_trait]
impl Runtime for Docker {
    async fn start(&self, spec: &InstanceSpec) -> Result<Started, RuntimeError> {
        let begin = Instant::now();
        let name = self.instance_name(&spec.id);
        self.create(&name, spec).await?;
        self.run(&name).await?;
        let start = begin.elapsed();

        let inspected = self.engine.inspect_container(&name, None).await;
        let inspected = inspected.map_err(|error| failed("inspect", &name, &error))?;
        let networks = inspected.network_settings.and_then(|settings| settings.networks);
        let ready = async {
            match container::address(networks.as_ref(), spec.port) {
                Some(address) => {
                    self.ready(&name, spec, &address).await;
                    Some(address)
                }
                // It has ended already, as `ended` is about to say.
                None => std::future::pending().await,
            }
        };
        let mut address = None;
        let ready = async { address = ready.await };
        match ready::within(spec.ready_timeout, ready, self.ended(&name)).await {
            Readiness::Ready => {}
            Readiness::Died(status) => {
                return Err(RuntimeError::Exited {
                    output: self.output(&name).await,
                    instance: name,
                    status,
                });
            }
            Readiness::TimedOut => {
                return Err(RuntimeError::NotReady {
                    output: self.output(&name).await,
                    instance: name,
                    waited: spec.ready_timeout,
                });
            }
        }
        address
            .map(|address| Started {
                address,
                start,
                ready: begin.elapsed().saturating_sub(start),
            })
            .ok_or_else(|| RuntimeError::Failed {
                doing: format!("start {}", spec.id),
                reason: "it has no address".to_owned(),
            })
    }

    async fn stop(&self, instance: &InstanceId, grace: Duration) -> Result<(), RuntimeError> {
        let name = self.instance_name(instance);
        let Some(before) = self.find(&name, instance).await? else {
            return Ok(());
        };
        if before.state.as_ref().and_then(|state| state.running) != Some(true) {
            return match container::exit_status(&before) {
                Some(status) if !CLEAN.contains(&status) => Err(RuntimeError::Failed {
                    doing: format!("stop {name}"),
                    reason: format!("it had ended with status {status}"),
                }),
                Some(_) | None => Ok(()),
            };
        }
        let seconds = grace.as_secs().max(1);
        let options = StopContainerOptionsBuilder::default()
            .t(i32::try_from(seconds).unwrap_or(i32::MAX))
            .build();
        let patient = self
            .engine
            .clone()
            .with_timeout(Duration::from_secs(seconds) + MARGIN);
        match patient.stop_container(&name, Some(options)).await {
            Err(error) if status(&error) == Some(NOT_FOUND) => return Ok(()),
            result => result.map_err(|error| failed("stop", &name, &error))?,
        }
        let after = self.find(&name, instance).await?;
        match after.as_ref().and_then(container::exit_status) {
            Some(KILLED) => Err(RuntimeError::NotClean {
                instance: name,
                grace,
            }),
            Some(status) if !CLEAN.contains(&status) => Err(RuntimeError::Failed {
                doing: format!("stop {name}"),
                reason: format!("it ended with status {status}"),
            }),
            Some(_) | None => Ok(()),
        }
    }

    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        let name = self.instance_name(instance);
        // What is being created cannot be found yet.
        self.creating.ended(&name).await;
        if self.find(&name, instance).await?.is_none() {
            return Ok(());
        }
        // Anonymous volumes of the image go with it; the data is none.
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        match self.engine.remove_container(&name, Some(options)).await {
            Err(error) if status(&error) == Some(NOT_FOUND) => Ok(()),
            // Somebody is removing it already.
            Err(error) if status(&error) == Some(CONFLICT) => {
                let options = WaitContainerOptionsBuilder::default()
                    .condition("removed")
                    .build();
                let mut gone = Box::pin(self.engine.wait_container(&name, Some(options)));
                let _ = timeout(MARGIN, gone.next()).await;
                match self.find(&name, instance).await? {
                    None => Ok(()),
                    Some(_) => Err(failed("remove", &name, &error)),
                }
            }
            result => result.map_err(|error| failed("remove", &name, &error)),
        }
    }

    async fn instances(&self) -> Result<Vec<Observed>, RuntimeError> {
        let label = format!("{}={}", container::NODE_LABEL, self.node);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&HashMap::from([("label", vec![label])]))
            .build();
        let containers = self
            .engine
            .list_containers(Some(options))
            .await
            .map_err(|error| failed("list", "the containers", &error))?;
        Ok(containers.iter().filter_map(container::observe).collect())
    }

    fn instance_name(&self, instance: &InstanceId) -> String {
        container::name(&self.node, instance)
    }

    fn ends(&self) -> BoxStream<'_, InstanceId> {
        ends::of(&self.engine, &self.node)
    }

    async fn has_image(&self, image: &str) -> Result<bool, RuntimeError> {
        match self.engine.inspect_image(image).await {
            Ok(_) => Ok(true),
            Err(error) if status(&error) == Some(NOT_FOUND) => Ok(false),
            Err(error) => Err(failed("inspect the image", image, &error)),
        }
    }

    async fn fetch_image(
        &self,
        image: &str,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), RuntimeError> {
        image::fetch(&self.engine, image, progress).await
    }
}

/// Far more lines than are shown: many may be left out.
const READ_LINES: &str = "5000";
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// An engine on this machine answers in milliseconds.
const UNTIL_CONNECTED: Duration = Duration::from_secs(5);
/// For the engine itself, beyond what the container is given.
const MARGIN: Duration = Duration::from_secs(30);
/// 128 + SIGKILL.
const KILLED: i64 = 137;
/// Ended by itself, or as programs do that do not catch SIGINT (130) or SIGTERM (143).
const CLEAN: [i64; 3] = [0, 130, 143];

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerState, ContainerStateStatusEnum};

    use super::*;

    #[test]
    fn an_engine_elsewhere_is_refused_because_the_data_is_here() {
        let error = Engine::connect_with_host("tcp://10.0.0.1:2375").unwrap_err();
        assert!(matches!(error, Error::UnsupportedURISchemeError { .. }));
    }

    #[test]
    fn a_container_that_never_ran_has_no_exit_status() {
        let mut inspected = ContainerInspectResponse::default();
        assert_eq!(container::exit_status(&inspected), None);
        inspected.state = Some(ContainerState {
            status: Some(ContainerStateStatusEnum::CREATED),
            exit_code: Some(0),
            ..Default::default()
        });
        assert_eq!(container::exit_status(&inspected), None);
    }
}
