//! A node of a test's own: the real `zdapd`, with all it makes below one directory, and gone with it.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use zdap_proto::identity::Identity;

use crate::lab::variable;
use crate::program::{Said, programs, run};

/// A running node.
#[derive(Debug)]
pub(crate) struct Node {
    root: TempDir,
    programs: PathBuf,
    process: Child,
    flags: Vec<String>,
    dataset: Option<Dataset>,
    pub(crate) port: u16,
}

impl Node {
    /// Starts a node that needs no more than Postgres, and restores `resources` there; skips `test` where it cannot be had.
    pub(crate) fn embedded(test: &str, resources: &[&str]) -> Option<Self> {
        let node = Self::joining(test, "db1", resources, None)?;
        Some(node)
    }

    /// Does the same under a name, as a peer of the cluster that `token` is for.
    pub(crate) fn joining(test: &str, name: &str, resources: &[&str], token: Option<&str>) -> Option<Self> {
        let programs = programs(test)?;
        variable(test, "ZDAP_TEST_POSTGRES_BIN")?;
        let root = root();
        let data = root.path().join("data").display().to_string();
        let storage = [
            "--data-dir".to_owned(),
            data,
            "--runtime".to_owned(),
            "process".to_owned(),
        ];
        Some(Self::start(
            root,
            programs,
            name,
            storage.to_vec(),
            None,
            resources,
            token,
        ))
    }

    /// Starts a node on ZFS and Docker.
    pub(crate) fn on_zfs_and_docker(test: &str, resources: &[&str]) -> Option<Self> {
        let programs = programs(test)?;
        let pool = variable(test, "ZDAP_TEST_ZPOOL")?;
        variable(test, "ZDAP_TEST_DOCKER")?;
        variable(test, "ZDAP_TEST_IMAGE")?;
        let dataset = Dataset::create(&pool);
        let storage = ["--zpool", &dataset.0, "--runtime", "docker"].map(str::to_owned);
        Some(Self::start(
            root(),
            programs,
            "db1",
            storage.to_vec(),
            Some(dataset),
            resources,
            None,
        ))
    }

    fn start(
        root: TempDir,
        programs: PathBuf,
        name: &str,
        storage: Vec<String>,
        dataset: Option<Dataset>,
        resources: &[&str],
        token: Option<&str>,
    ) -> Self {
        for resource in resources {
            write_resource(root.path(), resource);
        }
        let mut flags = storage;
        let directory = root.path().display();
        flags.extend([
            format!("--state-dir={directory}/state"),
            format!("--config-dir={directory}/resources"),
        ]);
        flags.extend([
            format!("--node-name={name}"),
            "--network-address=127.0.0.1".to_owned(),
        ]);
        let log = File::create(root.path().join("log")).unwrap();
        let process = daemon(&programs, &flags)
            .args(["--api-port=0", "serve"])
            .args(token.map(|token| format!("--join={token}")))
            .stderr(log)
            .spawn()
            .unwrap();
        let mut node = Self {
            root,
            programs,
            process,
            flags,
            dataset,
            port: 0,
        };
        node.port = node.published_port();
        if !resources.is_empty() {
            node.zdapd(&[&["create", "snap"], resources].concat()).done();
        }
        node
    }

    /// Runs a command of this machine's administrator.
    pub(crate) fn zdapd(&self, arguments: &[&str]) -> Said {
        run(daemon(&self.programs, &self.flags).args(arguments))
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
        self.root.path().join("state")
    }

    /// Returns the programs that it is one of.
    pub(crate) fn programs(&self) -> &Path {
        &self.programs
    }

    /// Returns the ids of all clones, of every owner, that the node knows of.
    pub(crate) fn clones(&self) -> Vec<String> {
        let table = self.zdapd(&["list", "clones"]).line();
        let rows = table.lines().skip(1);
        rows.filter_map(|row| row.split_whitespace().next())
            .map(str::to_owned)
            .collect()
    }

    /// Returns everything that there is of this node on the disk and in the engine: datasets or directories of clones and
    /// bases, containers, servers.
    pub(crate) fn things(&self) -> Vec<String> {
        let mut things = match &self.dataset {
            Some(dataset) => dataset.list(),
            None => names(&self.root.path().join("data/clones")),
        };
        if self.dataset.is_some() {
            things.extend(self.containers());
        }
        things.extend(
            servers_below(self.root.path())
                .iter()
                .map(|(_, place)| place.display().to_string()),
        );
        things.sort();
        things
    }

    fn containers(&self) -> Vec<String> {
        let Ok(identity) = Identity::load(&self.state()) else {
            return Vec::new(); // it has never served
        };
        let filter = format!("label=zdap.node={}/db1", identity.cluster());
        let list =
            run(Command::new("docker").args(["ps", "--all", "--format", "{{.Names}}", "--filter", &filter]));
        list.line().lines().map(str::to_owned).collect()
    }

    /// Kills it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn published_port(&mut self) -> u16 {
        let path = self.state().join("port");
        await_until("the node serves", || {
            if let Ok(Some(status)) = self.process.try_wait() {
                panic!("zdapd ended with {status}: {}", self.log());
            }
            fs::read_to_string(&path).ok()?.parse().ok()
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the node's log:\n{}", self.log());
        }
        let clones = self
            .dataset
            .as_ref()
            .map(|_| self.containers())
            .unwrap_or_default();
        if let Ok(None) = self.process.try_wait() {
            let destroyed = self.zdapd(&["destroy", "all", "--yes"]);
            let _ = kill_process(pid(&self.process), Signal::TERM);
            let _ = self.process.wait();
            if destroyed.code != Some(0) {
                eprintln!("what the node has made could not be destroyed: {destroyed:#?}");
            }
        }
        // Whatever a node that was killed has left.
        for container in clones {
            let _ = Command::new("docker")
                .args(["rm", "--force", "--volumes", &container])
                .output();
        }
        for (server, _) in servers_below(self.root.path()) {
            let _ = kill_process(server, Signal::KILL);
        }
    }
}

/// A dataset of a test's own in the lab's pool.
#[derive(Debug)]
struct Dataset(String);

impl Dataset {
    fn create(pool: &str) -> Self {
        let dataset = format!("{pool}/e2e-{}", std::process::id());
        run(Command::new("zfs").args(["create", &dataset])).done();
        Self(dataset)
    }

    fn list(&self) -> Vec<String> {
        let arguments = ["list", "-H", "-r", "-t", "all", "-o", "name", &self.0];
        let list = run(Command::new("zfs").args(arguments)).line();
        list.lines().map(str::to_owned).collect()
    }
}

impl Drop for Dataset {
    fn drop(&mut self) {
        // It is busy for a while after the last process has left it.
        let end = Instant::now() + DEADLINE;
        loop {
            let said = run(Command::new("zfs").args(["destroy", "-r", &self.0]));
            match said.code {
                Some(0) => return,
                _ if Instant::now() > end => return eprintln!("{} stays: {said:#?}", self.0),
                _ => std::thread::sleep(MOMENT),
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

/// Returns the processes that work in a directory below `root`, and where: every Postgres works in its data.
pub(crate) fn servers_below(root: &Path) -> Vec<(Pid, PathBuf)> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let below = processes.filter_map(|entry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let place = fs::read_link(entry.path().join("cwd")).ok()?;
        place.starts_with(root).then_some((Pid::from_raw(id)?, place))
    });
    // A server and its workers are one.
    let mut below: Vec<_> = below.collect();
    below.sort_by(|a, b| a.1.cmp(&b.1));
    below.dedup_by(|a, b| a.1 == b.1);
    below
}

/// Returns the names in a directory; an absent one has none.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// A directory that the user databases run as can get through.
fn root() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(root.path().join("resources")).unwrap();
    root
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

/// A database with one small table, named as its resource.
fn write_resource(root: &Path, name: &str) {
    let directory = root.join("resources");
    let resource = format!(
        "name: {name}\nretrieval: ./retrieval.sh\ncreation: ./creation.sh\ndocker:\n  image: postgres:15\n  port: 5432\n  \
         env: [POSTGRES_PASSWORD=secret, POSTGRES_DB={name}]\n  volume: /var/lib/postgresql/data\n"
    );
    fs::write(directory.join(format!("{name}.resource.yml")), resource).unwrap();
    write_script(&directory.join("retrieval.sh"), "echo /dev/null");
    let creation = "psql -X -q -v ON_ERROR_STOP=1 -d \"$ZDAP_RESOURCE\" -c \
        \"create table item (name text); insert into item values ('anvil'), ('bolt'), ('$ZDAP_RESOURCE')\"";
    write_script(&directory.join("creation.sh"), creation);
}

fn write_script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\nset -e\n{text}\n")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

/// Far more than anything here takes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_millis(10);
