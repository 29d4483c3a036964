//! Instances that are `postgres` children: no container engine, no root needed, no TCP port.
//!
//! A server runs as an unprivileged user in a process group of its own, listens on a Unix socket in a private directory
//! and goes on when the node ends. The next node finds it by the note in its [`home`] and by looking for the process
//! that works on its data ([`live`]). The official image's variables mean the same as under Docker ([`data`]), so that
//! the same resource file serves both. Limits of processors and memory are not enforced. All servers share one user: they
//! are not kept from each other as containers are.

mod account;
mod data;
mod home;
mod installation;
mod limits;
mod live;
mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::Signal;
use tokio::time::{Instant, timeout};

use self::account::Account;
use self::home::{Home, Log, Note, failed};
use self::installation::Installations;
use self::limits::Unenforced;
use super::ready::{self, Readiness};
use super::{Address, InstanceId, InstanceSpec, Observed, Runtime, RuntimeError, Started};

/// Runs `postgres` children.
#[derive(Debug)]
pub struct Process {
    state_dir: PathBuf,
    installations: Installations,
    account: Account,
    limits: Unenforced,
}

impl Process {
    /// Looks for PostgreSQL on this machine and for a user to run it as. What is known of instances is kept below
    /// `state_dir`, in `instances` and `run`; one node at a time may have it open.
    pub fn open(state_dir: &Path) -> Result<Self, RuntimeError> {
        let state_dir = std::fs::create_dir_all(state_dir)
            .and_then(|()| state_dir.canonicalize())
            .map_err(|error| failed("make", state_dir, &error))?;
        for home in Home::all(&state_dir)? {
            // Its making or removal was cut short by the end of an earlier life: nothing runs from it.
            if home.note()?.is_none() {
                home.remove(None)?;
            }
        }
        let account = Account::choose()?;
        tracing::warn!("{}", account.what_it_lets_through());
        Ok(Self {
            state_dir,
            installations: Installations::find()?,
            account,
            limits: Unenforced::default(),
        })
    }

    fn home(&self, id: &InstanceId) -> Home {
        Home::of(&self.state_dir, &id.name())
    }

    /// Returns every process that works on `data`.
    async fn processes_on(&self, data: &Path) -> Result<Vec<live::Process>, RuntimeError> {
        let data = data.to_owned();
        self.processes(move |other| other == data).await
    }

    async fn processes(
        &self,
        ours: impl Fn(&Path) -> bool + Send + 'static,
    ) -> Result<Vec<live::Process>, RuntimeError> {
        let uid = self.account.uid;
        blocking(move || {
            live::processes(uid, ours)
                .map_err(|error| failed("list processes in", Path::new("/proc"), &error))
        })
        .await
    }

    async fn server_on(&self, data: &Path) -> Result<Option<live::Process>, RuntimeError> {
        let processes = self.processes_on(data).await?;
        Ok(processes.into_iter().find(|process| process.is_server))
    }

    /// Waits for a server that is running already.
    async fn join(
        &self,
        spec: &InstanceSpec,
        note: Note,
        server: live::Process,
    ) -> Result<Started, RuntimeError> {
        let begin = Instant::now();
        let address = Address::Unix(note.socket);
        let answers = ready::postgres(&address, &spec.env);
        let log = self.home(&spec.id).open_log()?;
        match ready::within(spec.ready_timeout, answers, server.ended()).await {
            Readiness::Ready => Ok(Started {
                address,
                start: Duration::ZERO,
                ready: begin.elapsed(),
            }),
            // Only a parent learns the status, and we may not be it.
            Readiness::Died(_) => Err(RuntimeError::Failed {
                doing: format!("wait for the database of {}", spec.id),
                reason: "its server ended".to_owned(),
            }),
            Readiness::TimedOut => Err(not_ready(spec, &log)),
        }
    }

    /// Starts a server on data that nobody works on.
    async fn launch(&self, spec: &InstanceSpec, data: PathBuf) -> Result<Started, RuntimeError> {
        let begin = Instant::now();
        let arguments = server::arguments(spec)?;
        let version = data::version(&data)?;
        let installation = self.installations.choose(&spec.image, version)?;
        let name = spec.id.name();
        let home = self.home(&spec.id);
        let socket = home::make_socket_directory(&self.state_dir, &name, spec.port, &self.account)?;
        home.write(&Note {
            id: spec.id.clone(),
            data: data.clone(),
            socket: socket.clone(),
        })?;
        let log = home.open_log()?;
        let private = socket.parent().unwrap_or(&self.state_dir);
        if version.is_none() {
            data::initialise(spec, &data, private, installation, &self.account, &log).await?;
        }
        data::forget_dead_server(&data)?;

        let program = installation.programs.join("postgres");
        let settings = server::settings(&data, private, spec.port);
        let spawn = || {
            let mut command = tokio::process::Command::from(server::command(&program, &self.account, &log)?);
            // Ours last: the last value counts.
            command
                .args(arguments)
                .args(settings)
                .envs(server::environment(spec));
            command.spawn()
        };
        let mut server = spawn().map_err(|error| failed("run", &program, &error))?;
        let start = begin.elapsed();
        let address = Address::Unix(socket);
        let answers = ready::postgres(&address, &spec.env);
        match ready::within(spec.ready_timeout, answers, server.wait()).await {
            Readiness::Ready => Ok(Started {
                address,
                start,
                ready: begin.elapsed().saturating_sub(start),
            }),
            Readiness::Died(status) => Err(RuntimeError::Exited {
                instance: name,
                status: status.map_or(-1, server::status_number),
                output: log.tail(),
            }),
            Readiness::TimedOut => Err(not_ready(spec, &log)),
        }
    }

    /// Ends every process on `data`: at once, but by the server's own hand if it can, since it then cleans up its shared
    /// memory.
    async fn kill(&self, data: &Path) -> Result<(), RuntimeError> {
        for signal in [Signal::QUIT, Signal::KILL, Signal::KILL] {
            let processes = self.processes_on(data).await?;
            if processes.is_empty() {
                return Ok(());
            }
            let ended = async {
                for process in &processes {
                    // A child is told by its server.
                    if process.is_server || signal == Signal::KILL {
                        process.signal(signal)?;
                    }
                }
                for process in &processes {
                    process.ended().await?;
                }
                Ok(())
            };
            match timeout(UNTIL_KILLED, ended).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => return Err(failed("end the server on", data, &error)),
            }
        }
        match self.processes_on(data).await?.is_empty() {
            true => Ok(()),
            false => Err(RuntimeError::Failed {
                doing: format!("end the server on {}", data.display()),
                reason: "it is still there after SIGKILL".to_owned(),
            }),
        }
    }
}

#[async_trait]
impl Runtime for Process {
    async fn start(&self, spec: &InstanceSpec) -> Result<Started, RuntimeError> {
        if !ready::is_postgres(spec) {
            return Err(RuntimeError::Unsupported {
                message: format!("`{}` is not Postgres", spec.image),
                hint: "the process runtime runs PostgreSQL only; use `--runtime docker`".to_owned(),
            });
        }
        self.limits.warn_of(spec);
        let (wanted, account) = (spec.clone(), self.account.clone());
        let data = blocking(move || data::own(&wanted, &account)).await?;
        match (self.home(&spec.id).note()?, self.server_on(&data).await?) {
            (Some(note), Some(server)) if note.data == data => self.join(spec, note, server).await,
            (Some(_) | None, Some(_)) => Err(RuntimeError::Failed {
                doing: format!("start {}", spec.id),
                reason: format!("another server runs on {}", data.display()),
            }),
            (Some(_) | None, None) => {
                // What an earlier life was preparing, or what a killed server left.
                self.kill(&data).await?;
                self.launch(spec, data).await
            }
        }
    }

    async fn stop(&self, instance: &InstanceId, grace: Duration) -> Result<(), RuntimeError> {
        let Some(note) = self.home(instance).note()? else {
            return Ok(());
        };
        if let Some(server) = self.server_on(&note.data).await? {
            // The fast shutdown: sessions are ended, then a checkpoint is written.
            let stopped = async {
                server.signal(Signal::INT)?;
                server.ended().await
            };
            match timeout(grace, stopped).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(failed("stop the server on", &note.data, &error)),
                Err(_) => {
                    self.kill(&note.data).await?;
                    return Err(RuntimeError::NotClean {
                        instance: instance.name(),
                        grace,
                    });
                }
            }
        }
        match data::is_clean(&note.data)? {
            true => Ok(()),
            false => Err(RuntimeError::Failed {
                doing: format!("stop {instance}"),
                reason: "its server had ended without shutting down".to_owned(),
            }),
        }
    }

    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        let home = self.home(instance);
        let note = home.note()?;
        if let Some(note) = &note {
            self.kill(&note.data).await?;
        }
        home.remove(note.as_ref())
    }

    async fn instances(&self) -> Result<Vec<Observed>, RuntimeError> {
        let mut notes = Vec::new();
        for home in Home::all(&self.state_dir)? {
            notes.extend(home.note()?);
        }
        let data: Vec<PathBuf> = notes.iter().map(|note| note.data.clone()).collect();
        let processes = self
            .processes(move |other| data.iter().any(|ours| ours == other))
            .await?;
        let runs = |note: &Note| {
            processes
                .iter()
                .any(|process| process.is_server && process.data == note.data)
        };
        Ok(notes
            .into_iter()
            .map(|note| Observed {
                running: runs(&note).then(|| Address::Unix(note.socket.clone())),
                id: note.id,
            })
            .collect())
    }

    async fn has_image(&self, image: &str) -> Result<bool, RuntimeError> {
        Ok(self.installations.choose(image, None).is_ok())
    }

    async fn fetch_image(
        &self,
        image: &str,
        _progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), RuntimeError> {
        self.installations.choose(image, None).map(|_| ())
    }
}

fn not_ready(spec: &InstanceSpec, log: &Log) -> RuntimeError {
    RuntimeError::NotReady {
        instance: spec.id.name(),
        waited: spec.ready_timeout,
        output: log.tail(),
    }
}

/// Runs what may take long off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(RuntimeError::Failed {
            doing: "work on files".to_owned(),
            reason: error.to_string(),
        })
    })
}

/// Postgres itself gives its children 5 s after SIGQUIT before it kills them.
const UNTIL_KILLED: Duration = Duration::from_secs(6);
