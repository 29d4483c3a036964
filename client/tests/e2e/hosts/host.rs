//! A server: a machine with its room on ZFS, a real `zdapd`, and Postgres as its children.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::network::{Machine, Network};
use crate::lab::variable;
use crate::node::{await_until, pid};
use crate::place::{servers_below, write_resource};
use crate::program::{Said, programs, run};

/// A server with a running node.
#[derive(Debug)]
pub(crate) struct Host {
    process: Child,
    name: String,
    programs: PathBuf,
    pub(crate) machine: Machine,
    pool: Pool,
    root: TempDir,
}

impl Host {
    /// Starts a server whose pool, if it has one of its own, has so many GiB; it founds a cluster, or joins the one of `token`.
    pub(crate) fn start(
        test: &str,
        network: &Network,
        name: &str,
        gibibytes: u32,
        token: Option<&str>,
    ) -> Option<Self> {
        let programs = programs(test)?;
        let shared = variable(test, "ZDAP_TEST_ZPOOL")?;
        variable(test, "ZDAP_TEST_POSTGRES_BIN")?;
        let root = tempfile::tempdir_in(POOLS).unwrap();
        // The user that databases run as has to get through.
        fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(root.path().join("resources")).unwrap();
        write_resource(&root.path().join("resources"), "orders");
        let pool = Pool::create(&root, gibibytes, &shared);
        let machine = network.machine();
        let mut host = Self {
            process: serve(&machine, &programs, &root, &pool, name, token),
            name: name.to_owned(),
            programs,
            machine,
            pool,
            root,
        };
        host.await_port();
        Some(host)
    }

    /// Restores the resource and makes a snapshot of it.
    pub(crate) fn restore(&self) {
        self.zdapd(&["create", "snap", "orders"]).done();
    }

    /// Runs a command of the server's administrator.
    pub(crate) fn zdapd(&self, arguments: &[&str]) -> Said {
        let mut command = self.machine.command(self.programs.join("zdapd"));
        run(command
            .arg(format!("--state-dir={}", self.state().display()))
            .args(arguments))
    }

    /// Returns the node's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the address that users and other nodes reach it by.
    pub(crate) fn address(&self) -> String {
        format!("{}:{PORT}", self.machine.address())
    }

    /// Returns the programs that run here.
    pub(crate) fn programs(&self) -> &PathBuf {
        &self.programs
    }

    /// Returns the ids of all clones, of every owner, that are here.
    pub(crate) fn clones(&self) -> Vec<String> {
        let table = self.zdapd(&["list", "clones"]).line();
        let rows = table.lines().skip(1);
        rows.filter_map(|row| row.split_whitespace().next())
            .map(str::to_owned)
            .collect()
    }

    /// Returns the states of all nodes as this one sees them, by name.
    pub(crate) fn view(&self) -> Vec<(String, String)> {
        let table = self.zdapd(&["list", "nodes"]).line();
        let states = table.lines().skip(1).map(|row| {
            // NAME ADDRESS STATE ...
            let words: Vec<&str> = row.split_whitespace().collect();
            (words[0].to_owned(), words[2].to_owned())
        });
        states.collect()
    }

    /// Kills the node as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again.
    pub(crate) fn revive(&mut self) {
        fs::remove_file(self.state().join("port")).unwrap();
        self.process = serve(
            &self.machine,
            &self.programs,
            &self.root,
            &self.pool,
            &self.name,
            None,
        );
        self.await_port();
    }

    fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    fn await_port(&mut self) {
        let (port, log) = (self.state().join("port"), self.root.path().join("log"));
        await_until("the node serves", || {
            if let Ok(Some(status)) = self.process.try_wait() {
                panic!("zdapd ended with {status}: {}", fs::read_to_string(&log).unwrap());
            }
            port.exists().then_some(())
        });
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.root.path().join("log"));
            eprintln!("the log of {}:\n{}", self.name, log.unwrap_or_default());
        }
        let _ = kill_process(pid(&self.process), Signal::TERM);
        let _ = self.process.wait();
        for (server, _) in servers_below(&self.pool.mountpoint) {
            let _ = kill_process(server, Signal::KILL);
        }
    }
}

/// Returns the states of all nodes in a document of `list nodes`, by name.
pub(crate) fn states(nodes: &Value) -> Vec<(String, String)> {
    let text = |node: &Value, key: &str| node[key].as_str().unwrap().to_owned();
    let mut states: Vec<_> = nodes
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (text(node, "name"), text(node, "state")))
        .collect();
    states.sort();
    states
}

/// Where a server keeps its data: a dataset of the lab's pool, or, with `ZDAP_TEST_OWN_POOLS=1`, a pool of its own in a file.
/// That is closer to life, but zfs-fuse may hang for good while pools come and go beside others at work.
#[derive(Debug)]
struct Pool {
    name: String,
    mountpoint: PathBuf,
    is_own: bool,
}

impl Pool {
    fn create(root: &TempDir, gibibytes: u32, shared: &str) -> Self {
        let unique = root.path().file_name().unwrap().to_string_lossy();
        let unique = unique.trim_start_matches('.');
        let mountpoint = root.path().join("pool");
        let is_own = std::env::var("ZDAP_TEST_OWN_POOLS").as_deref() == Ok("1");
        let name = if is_own {
            let name = format!("zdap-host{unique}");
            let file = root.path().join("pool.img");
            File::create(&file)
                .and_then(|file| file.set_len(u64::from(gibibytes) << 30))
                .unwrap();
            let mut create = Command::new("zpool");
            run(create
                .args(["create", "-m"])
                .arg(&mountpoint)
                .arg(&name)
                .arg(&file))
            .done();
            name
        } else {
            let name = format!("{shared}/host{unique}");
            let at = format!("mountpoint={}", mountpoint.display());
            run(Command::new("zfs").args(["create", "-o", &at, &name])).done();
            name
        };
        fs::set_permissions(&mountpoint, Permissions::from_mode(0o755)).unwrap();
        Self {
            name,
            mountpoint,
            is_own,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // It is busy for a while after the last process has left it.
        let end = Instant::now() + BUSY;
        let (program, options) = match self.is_own {
            true => ("zpool", ["destroy", "-f"]),
            false => ("zfs", ["destroy", "-r"]),
        };
        loop {
            let said = run(Command::new(program).args(options).arg(&self.name));
            match said.code {
                Some(0) => return,
                _ if Instant::now() > end => return eprintln!("{} stays: {said:#?}", self.name),
                _ => std::thread::sleep(MOMENT),
            }
        }
    }
}

fn serve(
    machine: &Machine,
    programs: &Path,
    root: &TempDir,
    pool: &Pool,
    name: &str,
    token: Option<&str>,
) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(root.path().join("log"))
        .unwrap();
    let mut command = machine.command(programs.join("zdapd"));
    command
        .arg(format!("--zpool={}", pool.name))
        .arg(format!("--state-dir={}", root.path().join("state").display()))
        .arg(format!(
            "--config-dir={}",
            root.path().join("resources").display()
        ))
        .args([
            "--runtime=process",
            &format!("--network-address={}", machine.address()),
            &format!("--api-port={PORT}"),
            &format!("--node-name={name}"),
            "serve",
        ])
        .args(token.map(|token| format!("--join={token}")))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .current_dir("/")
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Every machine has its own, so all use the same.
const PORT: u16 = 43210;
/// On a disk, where the files of pools may have holes.
const POOLS: &str = "/var/tmp";
/// Longer than zfs has ever been seen to be busy.
const BUSY: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_millis(50);
