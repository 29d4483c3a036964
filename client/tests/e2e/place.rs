//! What a node stands on, of a test's own and gone with it: programs, resources, room for data, what it leaves when killed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use zdap_proto::identity::Identity;

use crate::lab::variable;
use crate::program::{programs, run};

/// Where a node keeps its data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Storage {
    Zfs,
    Directory,
}

/// What runs its databases.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Runtime {
    Docker,
    Process,
}

/// What a node stands on.
#[derive(Debug)]
pub(crate) struct Place {
    programs: PathBuf,
    runtime: Runtime,
    dataset: Option<Dataset>,
    root: TempDir,
}

impl Place {
    /// Makes sure that all parts are there; skips `test` where one is not.
    pub(crate) fn prepare(test: &str, storage: Storage, runtime: Runtime) -> Option<Self> {
        let programs = programs(test)?;
        match runtime {
            Runtime::Docker => {
                variable(test, "ZDAP_TEST_DOCKER")?;
                variable(test, "ZDAP_TEST_IMAGE")?
            }
            Runtime::Process => variable(test, "ZDAP_TEST_POSTGRES_BIN")?,
        };
        let root = tempfile::tempdir().unwrap();
        // The user that databases run as has to get through.
        fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(root.path().join("resources")).unwrap();
        let dataset = match storage {
            Storage::Zfs => Some(Dataset::create(&variable(test, "ZDAP_TEST_ZPOOL")?, root.path())),
            Storage::Directory => None,
        };
        Some(Self {
            programs,
            runtime,
            dataset,
            root,
        })
    }

    pub(crate) fn programs(&self) -> &Path {
        &self.programs
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    pub(crate) fn resources(&self) -> PathBuf {
        self.root.path().join("resources")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.path().join("log")
    }

    pub(crate) fn logged(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        match &self.dataset {
            Some(dataset) => dataset.mountpoint.clone(),
            None => self.root.path().join("data"),
        }
    }

    /// Returns the flags of a node that stands here.
    pub(crate) fn flags(&self) -> Vec<String> {
        let storage = match &self.dataset {
            Some(dataset) => format!("--zpool={}", dataset.name),
            None => format!("--data-dir={}", self.data().display()),
        };
        let runtime = match self.runtime {
            Runtime::Docker => "--runtime=docker",
            Runtime::Process => "--runtime=process",
        };
        vec![
            storage,
            runtime.to_owned(),
            format!("--state-dir={}", self.state().display()),
            format!("--config-dir={}", self.resources().display()),
            "--network-address=127.0.0.1".to_owned(),
        ]
    }

    /// Writes a resource with one small table, whose database is named as it is.
    pub(crate) fn write_resource(&self, name: &str) {
        write_resource(&self.resources(), name);
    }

    /// Returns everything that there is here of a node: datasets or directories of clones, containers, servers.
    pub(crate) fn things(&self) -> Vec<String> {
        let mut things = match &self.dataset {
            Some(dataset) => dataset.list(),
            None => names(&self.data().join("clones")),
        };
        things.extend(self.containers());
        let servers = self.servers().into_iter();
        things.extend(servers.map(|(_, place)| place.display().to_string()));
        things.sort();
        things
    }

    fn containers(&self) -> Vec<String> {
        let (Runtime::Docker, Ok(identity)) = (self.runtime, Identity::load(&self.state())) else {
            return Vec::new();
        };
        // Of whatever name in the cluster; every test founds its own.
        let list = ["ps", "--all", "--format", "{{.Names}} {{.Label \"zdap.node\"}}"];
        let list = run(Command::new("docker").args(list)).line();
        let ours = format!(" {}/", identity.cluster());
        let ours = list
            .lines()
            .filter_map(|line| Some(line.split_at(line.find(&ours)?).0));
        ours.map(str::to_owned).collect()
    }

    fn servers(&self) -> Vec<(Pid, PathBuf)> {
        servers_below(&self.data())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for container in self.containers() {
            let mut remove = Command::new("docker");
            run(remove.args(["rm", "--force", "--volumes", &container]));
        }
        for (server, _) in self.servers() {
            let _ = kill_process(server, Signal::KILL);
        }
    }
}

/// A dataset in the lab's pool.
#[derive(Debug)]
struct Dataset {
    name: String,
    mountpoint: PathBuf,
}

impl Dataset {
    /// Makes one that is called as the directory `root` is.
    fn create(pool: &str, root: &Path) -> Self {
        let unique = root.file_name().unwrap().to_string_lossy();
        let name = format!("{pool}/e2e{unique}");
        run(Command::new("zfs").args(["create", &name])).done();
        let get = ["get", "-H", "-o", "value", "mountpoint", &name];
        Self {
            mountpoint: run(Command::new("zfs").args(get)).line().into(),
            name,
        }
    }

    fn list(&self) -> Vec<String> {
        let list = ["list", "-H", "-r", "-t", "all", "-o", "name", &self.name];
        let list = run(Command::new("zfs").args(list)).line();
        list.lines().map(str::to_owned).collect()
    }
}

impl Drop for Dataset {
    fn drop(&mut self) {
        // It is busy for a while after the last process has left it.
        let end = Instant::now() + BUSY;
        loop {
            let said = run(Command::new("zfs").args(["destroy", "-r", &self.name]));
            match said.code {
                Some(0) => return,
                _ if Instant::now() > end => return eprintln!("{} stays: {said:#?}", self.name),
                _ => std::thread::sleep(MOMENT),
            }
        }
    }
}

/// Writes a resource with one small table, whose database is named as it is.
pub(crate) fn write_resource(directory: &Path, name: &str) {
    let resource = format!(
        "name: {name}\nretrieval: ./retrieval.sh\ncreation: ./creation.sh\ndocker:\n  image: postgres:15\n  \
         port: 5432\n  env: [POSTGRES_PASSWORD=secret, POSTGRES_DB={name}]\n  volume: /var/lib/postgresql/data\n"
    );
    fs::write(directory.join(format!("{name}.resource.yml")), resource).unwrap();
    write_script(&directory.join("retrieval.sh"), "echo /dev/null");
    let creation = "psql -X -q -v ON_ERROR_STOP=1 -d \"$ZDAP_RESOURCE\" -c \
        \"create table item (name text); insert into item values ('anvil'), ('bolt'), ('$ZDAP_RESOURCE')\"";
    write_script(&directory.join("creation.sh"), creation);
}

/// Returns the servers that work in a directory below `root`, and where: every Postgres works in its data.
pub(crate) fn servers_below(root: &Path) -> Vec<(Pid, PathBuf)> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let below = processes.filter_map(|entry| {
        let id: i32 = entry.file_name().to_str()?.parse().ok()?;
        let place = fs::read_link(entry.path().join("cwd")).ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name stands in brackets and may hold anything; the parent is the second word behind it.
        let parent: i32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        place.starts_with(root).then_some((id, parent, place))
    });
    let below: Vec<_> = below.collect();
    let is_worker = |parent: &i32| below.iter().any(|(id, _, _)| id == parent);
    let servers = below.iter().filter(|(_, parent, _)| !is_worker(parent));
    servers
        .filter_map(|(id, _, place)| Some((Pid::from_raw(*id)?, place.clone())))
        .collect()
}

/// Returns the names in a directory; an absent one has none.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn write_script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\nset -e\n{text}\n")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

/// Longer than zfs has ever been seen to be busy.
const BUSY: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_millis(50);
