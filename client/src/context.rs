//! What every command is given, and what ends it early: Ctrl-C, a signal, `--timeout`.

use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use quinn::Endpoint;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use zdap_proto::refusal::chain;
use zdap_proto::transport::{Close, client_endpoint};

use crate::cluster::Cluster;
use crate::error::{Failure, Kind};
use crate::origin::{Origins, Reached};
use crate::output::Output;
use crate::project::{Project, ProjectError};
use crate::settings::Home;

/// What every command is given.
#[derive(Debug)]
pub struct Context<'a> {
    /// Where settings are.
    pub home: Home,
    /// Where words go.
    pub output: &'a Output,
    /// There once a node is wanted.
    endpoint: OnceLock<Endpoint>,
    /// Whether any node has been reached, as soon as one has.
    is_any_reached: Arc<AtomicBool>,
    /// The clusters that were reached.
    reached: Mutex<Vec<Cluster>>,
    /// What is learned beside what the command does.
    learning: Mutex<JoinSet<()>>,
    /// The cluster that is making something for us, or has.
    maker: Mutex<Option<Cluster>>,
    signals: watch::Receiver<Option<Signal>>,
    deadline: Option<(Duration, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Interrupt,
    Terminate,
}

impl<'a> Context<'a> {
    /// Begins to listen for signals and to count the time. Inside a Tokio runtime.
    pub fn new(home: Home, output: &'a Output, timeout: Option<Duration>) -> Result<Self, Failure> {
        Ok(Self {
            home,
            output,
            endpoint: OnceLock::new(),
            is_any_reached: Arc::default(),
            reached: Mutex::default(),
            learning: Mutex::default(),
            maker: Mutex::default(),
            signals: listen()?,
            deadline: timeout.map(|timeout| (timeout, Instant::now() + timeout)),
        })
    }

    /// Returns the endpoint that all connections of this command start from.
    pub fn endpoint(&self) -> Result<Endpoint, Failure> {
        if let Some(endpoint) = self.endpoint.get() {
            return Ok(endpoint.clone());
        }
        let endpoint = client_endpoint()?;
        Ok(self.endpoint.get_or_init(|| endpoint).clone())
    }

    /// Returns the ways to the nodes.
    pub fn origins(&self) -> Result<Origins, Failure> {
        let noted = Arc::clone(&self.is_any_reached);
        Ok(Origins::new(self.endpoint()?, &self.home, noted)?)
    }

    /// Reaches one node of each cluster, and has it tell beside all else which nodes there are.
    pub async fn reach(&self) -> Result<Reached, Failure> {
        self.output.doing("reaching a node");
        let reached = self.origins()?.reach().await?;
        for silent in &reached.silent {
            self.output.warn(&silent.reason);
        }
        for cluster in &reached.clusters {
            self.learn_from(cluster);
        }
        Ok(reached)
    }

    /// Has a cluster that was reached tell which nodes it has, and remembers them.
    pub fn learn_from(&self, cluster: &Cluster) {
        let (home, learned) = (self.home.clone(), cluster.clone());
        let learn = async move {
            match learned.nodes().await {
                Ok(nodes) => home.learn(learned.id(), learned.node().await.address(), nodes),
                Err(error) => tracing::debug!("which nodes there are is not known: {}", chain(&error)),
            }
        };
        locked(&self.learning).spawn(learn);
        locked(&self.reached).push(cluster.clone());
    }

    /// Notes that a node was reached in another way than by the origins.
    pub fn note_reached(&self) {
        self.is_any_reached.store(true, Ordering::Relaxed);
    }

    /// Returns whether any node has answered.
    pub fn is_any_reached(&self) -> bool {
        self.is_any_reached.load(Ordering::Relaxed)
    }

    /// Returns the clusters that were reached.
    pub fn reached(&self) -> Vec<Cluster> {
        locked(&self.reached).clone()
    }

    /// Returns the directory the command runs in.
    pub fn directory(&self) -> Result<PathBuf, Failure> {
        std::env::current_dir().map_err(|error| Failure::caused("cannot tell the current directory", &error))
    }

    /// Returns the compose project that the command runs in.
    pub fn project(&self) -> Result<Project, Failure> {
        Ok(Project::find(&self.directory()?, |name| {
            std::env::var(name).ok()
        })?)
    }

    /// Returns the compose project that the command runs in, if there is one.
    pub fn project_if_any(&self) -> Result<Option<Project>, Failure> {
        match Project::find(&self.directory()?, |name| std::env::var(name).ok()) {
            Ok(project) => Ok(Some(project)),
            Err(ProjectError::None(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for Ctrl-C, a signal or the timeout.
    pub async fn stopped(&self) -> Failure {
        tokio::select! {
            failure = self.signalled() => failure,
            failure = self.timed_out() => failure,
        }
    }

    /// Waits for Ctrl-C or a signal: the timeout is for getting there, and does not end what serves.
    pub async fn signalled(&self) -> Failure {
        self.signalled_by(&[Signal::Interrupt, Signal::Terminate]).await
    }

    /// Does `work` unless Ctrl-C, a signal or the timeout comes first; then `work` is dropped, and what it asked of a node
    /// is undone there.
    pub async fn until_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            failure = self.stopped() => Err(failure),
            result = work => result,
        }
    }

    /// Does `work`, which is a program in the foreground, unless it is terminated first. Ctrl-C is that program's own, and the
    /// timeout was for getting there.
    pub async fn until_terminated<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            failure = self.signalled_by(&[Signal::Terminate]) => Err(failure),
            result = work => result,
        }
    }

    /// Notes the cluster that is about to make something for this command.
    pub fn note_maker(&self, cluster: &Cluster) {
        *locked(&self.maker) = Some(cluster.clone());
    }

    /// Ends what goes on beside the command, tells the nodes that we leave, and gives that a moment to be sent. After a
    /// failure, first waits until the node that was making something has heard that nobody wants it any more: closing the
    /// connection says nothing of the kind, since whoever has lost it comes back and asks again.
    pub async fn farewell(&self, is_success: bool) {
        let Some(endpoint) = self.endpoint.get() else {
            return;
        };
        let maker = locked(&self.maker).take();
        if let (false, Some(maker)) = (is_success, maker) {
            let _ = tokio::time::timeout(LAST_WORD, maker.last_word()).await;
        }
        let mut learning = std::mem::take(&mut *locked(&self.learning));
        let learned = async { while learning.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LEARNING, learned).await;
        endpoint.close((Close::Done as u32).into(), b"done");
        let _ = tokio::time::timeout(PARTING, endpoint.wait_idle()).await;
    }

    async fn signalled_by(&self, by: &[Signal]) -> Failure {
        let mut signals = self.signals.clone();
        let signalled = signals.wait_for(|signal| signal.is_some_and(|signal| by.contains(&signal)));
        match signalled.await.ok().and_then(|signal| *signal) {
            Some(Signal::Terminate) => Failure::new("terminated").of_kind(Kind::Terminated),
            Some(Signal::Interrupt) | None => Failure::new("interrupted").of_kind(Kind::Interrupted),
        }
    }

    async fn timed_out(&self) -> Failure {
        let Some((timeout, deadline)) = self.deadline else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(deadline).await;
        let is_any_wanted = self.endpoint.get().is_some();
        let is_unreached = is_any_wanted && !self.is_any_reached();
        let (what, kind) = match is_unreached {
            true => ("no origin was reached", Kind::Unreachable),
            false => ("not done", Kind::TimedOut),
        };
        let mut message = format!("{what} within {} s", timeout.as_secs_f64());
        let doing = self.output.waiting_for();
        if !doing.is_empty() {
            message = format!("{message}; it was: {doing}");
        }
        let hint = is_unreached.then(|| "`zdap list origins` shows which of them answer".to_owned());
        Failure::new(message).of_kind(kind).maybe_hinted(hint)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the task that waits for signals; it ends with the runtime.
fn listen() -> Result<watch::Receiver<Option<Signal>>, Failure> {
    let failed = |error: std::io::Error| Failure::caused("cannot listen for signals", &error);
    let mut interrupts = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminations = signal(SignalKind::terminate()).map_err(failed)?;
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let signal = tokio::select! {
                _ = interrupts.recv() => Signal::Interrupt,
                _ = terminations.recv() => Signal::Terminate,
            };
            if sender.send(Some(signal)).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// A round trip and then some; somebody has pressed Ctrl-C and waits.
const LAST_WORD: Duration = Duration::from_secs(1);
/// It was asked for when the command began; what is not there now is learned the next time.
const LEARNING: Duration = Duration::from_millis(200);
/// Enough to send a packet. A node that it does not reach finds out by itself.
const PARTING: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timeout_names_what_was_being_waited_for() {
        let output = Output::new(false, true, false);
        let home = Home::find(|_| Some("/nowhere".into())).unwrap();
        let context = Context::new(home, &output, Some(Duration::from_millis(20))).unwrap();
        let work = async {
            context.output.doing("connecting to db1:43210");
            std::future::pending::<Result<(), Failure>>().await
        };
        let failure = context.until_stopped(work).await.unwrap_err();
        assert_eq!(failure.kind, Kind::TimedOut);
        assert_eq!(
            failure.message,
            "not done within 0.02 s; it was: connecting to db1:43210"
        );
    }
}
