//! A developer's machine on the network, with as many compose projects as are wanted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::host::Host;
use super::network::{Machine, Network};
use crate::node::await_until;
use crate::program::{Said, run};

/// A developer who is enrolled.
#[derive(Debug)]
pub(crate) struct Developer {
    pub(crate) machine: Machine,
    programs: PathBuf,
    directory: TempDir,
}

impl Developer {
    /// Makes one who has added `origin`, and no other.
    pub(crate) fn of(network: &Network, origin: &Host) -> Self {
        let developer = Self {
            machine: network.machine(),
            programs: origin.programs().clone(),
            directory: tempfile::tempdir().unwrap(),
        };
        let token = origin.zdapd(&["token", "user", "ada@laptop"]).line();
        developer.zdap(&["add", "origin", &token]).done();
        developer
    }

    /// Waits until the node that answers knows of a snapshot on each of so many servers.
    pub(crate) fn await_snapshots(&self, servers: usize) {
        await_until("every snapshot is known", || {
            let snapshots = self.zdap(&["list", "snaps", "--all", "--json"]).json();
            (snapshots.as_array().map(Vec::len) == Some(servers)).then_some(())
        });
    }

    /// Runs zdap outside of any project.
    pub(crate) fn zdap(&self, arguments: &[&str]) -> Said {
        run(self.command("zdap", self.directory.path()).args(arguments))
    }

    /// Attaches `orders` in a new project; returns the clone and its node.
    #[track_caller]
    pub(crate) fn attach(&self, project: &str, arguments: &[&str]) -> (String, String) {
        let directory = self.project(project);
        fs::create_dir(&directory).unwrap();
        fs::write(
            directory.join("docker-compose.yml"),
            "services:\n  orders: {image: postgres:15, ports: [\"5432\"]}\n",
        )
        .unwrap();
        let attach = [&["attach", "orders"], arguments].concat();
        let line = run(self.command("zdap", &directory).args(attach)).line();
        // orders attached: CLONE on NODE
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[2].to_owned(), words[4].to_owned())
    }

    /// Returns the directory of a project.
    pub(crate) fn project(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs SQL in a clone's database through a port of this machine.
    pub(crate) fn psql(&self, port: u16, arguments: &[&str]) -> Said {
        run(self.psql_command(port).args(arguments))
    }

    /// Returns psql, for a port of this machine.
    pub(crate) fn psql_command(&self, port: u16) -> Command {
        let mut command = self.command("psql", self.directory.path());
        command
            .arg(format!(
                "postgres://postgres@127.0.0.1:{port}/orders?sslmode=disable"
            ))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .env("PGPASSWORD", "secret");
        command
    }

    /// Starts the relay that `attach` has put into a project, as `docker compose up` would, at this port.
    pub(crate) fn relay(&self, project: &str, port: u16) -> Relay {
        self.relay_through(project, port, None)
    }

    /// Starts it with these servers in the place of those that `attach` has written.
    pub(crate) fn relay_through(&self, project: &str, port: u16, servers: Option<&str>) -> Relay {
        let directory = self.project(project);
        let text = fs::read_to_string(directory.join("docker-compose.override.yml")).unwrap();
        let value = |key: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(key));
            let line = line.unwrap_or_else(|| panic!("no {key} in {text}"));
            let (_, value) = line.split_once(": ").unwrap();
            value.trim_matches('"').to_owned()
        };
        let mut command = self.command("zdap-proxyd", &directory);
        command
            .env("LISTEN_PORT", port.to_string())
            .env("ZDAP_CLONE", value("ZDAP_CLONE:"))
            .env(
                "ZDAP_SERVERS",
                servers.map_or_else(|| value("ZDAP_SERVERS:"), str::to_owned),
            )
            .env("ZDAP_IDENTITY", directory.join(".zdap.d/orders"))
            .stderr(Stdio::null());
        self.await_listener(command.spawn().unwrap(), port)
    }

    /// Starts `zdap connect` at this port.
    pub(crate) fn connect(&self, clone: &str, port: u16) -> Relay {
        let mut command = self.command("zdap", self.directory.path());
        command
            .args(["connect", clone, "--port", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.await_listener(command.spawn().unwrap(), port)
    }

    fn await_listener(&self, child: Child, port: u16) -> Relay {
        let mut relay = Relay(child);
        await_until("the relay listens and the database answers", || {
            if let Some(status) = relay.0.try_wait().unwrap() {
                panic!("it ended with {status}");
            }
            (self.psql(port, &["-c", "select 1"]).code == Some(0)).then_some(())
        });
        relay
    }

    fn command(&self, program: &str, directory: &Path) -> Command {
        let program = match program.starts_with("zdap") {
            true => self.programs.join(program),
            false => PathBuf::from(program),
        };
        let mut command = self.machine.command(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.directory.path())
            .env("ZDAP_HOME", self.directory.path().join("home"))
            .env("USER", "ada")
            .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
            .current_dir(directory);
        command
    }
}

/// A relay in the foreground; ends when dropped.
#[derive(Debug)]
pub(crate) struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
