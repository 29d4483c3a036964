//! A node of a test's own: the real `zdapd`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::place::{Place, Runtime, Storage};
use crate::program::{Said, run};

/// A running node.
#[derive(Debug)]
pub(crate) struct Node {
    process: Child,
    flags: Vec<String>,
    pub(crate) port: u16,
    place: Place, // the last to go
}

impl Node {
    /// Starts a node that needs no more than Postgres, and restores `resources` there; skips `test` where it cannot be had.
    pub(crate) fn embedded(test: &str, resources: &[&str]) -> Option<Self> {
        Self::joining(test, "db1", resources, None)
    }

    /// Does the same under a name, as a peer of the cluster that `token` is for.
    pub(crate) fn joining(test: &str, name: &str, resources: &[&str], token: Option<&str>) -> Option<Self> {
        let place = Place::prepare(test, Storage::Directory, Runtime::Process)?;
        for resource in resources {
            place.write_resource(resource);
        }
        let node = Self::start(place, name, token);
        node.restore(resources);
        Some(node)
    }

    /// Starts a node where everything is prepared for it.
    pub(crate) fn start(place: Place, name: &str, token: Option<&str>) -> Self {
        let mut flags = place.flags();
        flags.push(format!("--node-name={name}"));
        let mut node = Self {
            process: serve(&place, &flags, 0, token),
            flags,
            port: 0,
            place,
        };
        node.port = node.published_port();
        node
    }

    /// Returns what it has said so far.
    pub(crate) fn logged(&self) -> String {
        self.place.logged()
    }

    /// Restores resources and makes a snapshot of each.
    pub(crate) fn restore(&self, resources: &[&str]) {
        if !resources.is_empty() {
            self.zdapd(&[&["create", "snap"], resources].concat()).done();
        }
    }

    /// Runs a command of this machine's administrator.
    pub(crate) fn zdapd(&self, arguments: &[&str]) -> Said {
        run(daemon(self.programs(), &self.flags).args(arguments))
    }

    /// Returns a token for a user of this name.
    pub(crate) fn token(&self, user: &str) -> String {
        self.zdapd(&["token", "user", user]).line()
    }

    /// Returns the address that users reach it by.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns where its identity and its CA are.
    pub(crate) fn state(&self) -> PathBuf {
        self.place.state()
    }

    /// Returns the programs that it is one of.
    pub(crate) fn programs(&self) -> &Path {
        self.place.programs()
    }

    /// Returns the ids of all clones, of every owner, that the node knows of.
    pub(crate) fn clones(&self) -> Vec<String> {
        let table = self.zdapd(&["list", "clones"]).line();
        let rows = table.lines().skip(1);
        rows.filter_map(|row| row.split_whitespace().next())
            .map(str::to_owned)
            .collect()
    }

    /// Returns everything that there is of this node: datasets or directories of clones, containers, servers.
    pub(crate) fn things(&self) -> Vec<String> {
        self.place.things()
    }

    /// Kills it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again at the same port.
    pub(crate) fn revive(&mut self) {
        fs::remove_file(self.state().join("port")).unwrap();
        self.process = serve(&self.place, &self.flags, self.port, None);
        self.published_port();
    }

    fn published_port(&mut self) -> u16 {
        let path = self.state().join("port");
        await_until("the node serves", || {
            if let Ok(Some(status)) = self.process.try_wait() {
                panic!("zdapd ended with {status}: {}", self.place.logged());
            }
            fs::read_to_string(&path).ok()?.parse().ok()
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the node's log:\n{}", self.place.logged());
        }
        if let Ok(None) = self.process.try_wait() {
            let destroyed = self.zdapd(&["destroy", "all", "--yes"]);
            let _ = kill_process(pid(&self.process), Signal::TERM);
            let _ = self.process.wait();
            if destroyed.code != Some(0) {
                eprintln!("what the node has made could not be destroyed: {destroyed:#?}");
            }
        }
    }
}

/// Asks again until there is an answer.
#[track_caller]
pub(crate) fn await_until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited too long until {what}");
        std::thread::sleep(MOMENT);
    }
}

/// Returns the process's id.
pub(crate) fn pid(process: &Child) -> Pid {
    Pid::from_child(process)
}

fn serve(place: &Place, flags: &[String], port: u16, token: Option<&str>) -> Child {
    let log = File::options().create(true).append(true).open(place.log());
    let mut command = daemon(place.programs(), flags);
    command.args([&format!("--api-port={port}"), "serve"]);
    command.args(token.map(|token| format!("--join={token}")));
    command.stderr(log.unwrap()).spawn().unwrap()
}

fn daemon(programs: &Path, flags: &[String]) -> Command {
    let mut command = Command::new(programs.join("zdapd"));
    command
        .args(flags)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(std::env::var_os("DOCKER_HOST").map(|host| ("DOCKER_HOST", host)))
        .current_dir("/");
    command
}

/// Far more than anything here takes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_millis(10);
