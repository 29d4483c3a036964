//! A place for a node: its state, its data, its resources. Everything goes when the test ends, however it ends.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpListener;
use zdap_proto::identity::Identity;
use zdap_proto::name::CloneId;
use zdap_proto::transport;
use zdap_proto::tunnel::Tunnel;

use crate::lab;

/// Where data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    Zfs,
    Directory,
}

/// What runs the databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Docker,
    Process,
}

pub(crate) struct Site {
    pub(crate) directory: TempDir,
    pub(crate) dataset: Option<String>,
    engine: Engine,
    name: String,
    daemon: Option<Child>,
}

impl Site {
    /// Prepares a place, with the resource files that come with the project; skips `test` where a part is missing.
    pub(crate) fn new(test: &str, disk: Disk, engine: Engine) -> Option<Self> {
        let pool = match disk {
            Disk::Zfs => Some(lab::variable(test, "ZDAP_TEST_ZPOOL")?),
            Disk::Directory => None,
        };
        match engine {
            Engine::Docker => lab::variable(test, "ZDAP_TEST_IMAGE")?,
            Engine::Process => lab::variable(test, "ZDAP_TEST_POSTGRES_BIN")?,
        };
        let directory = tempfile::Builder::new().prefix("zdap-site-").tempdir().unwrap();
        // The unprivileged user of the process runtime walks through it.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let name = directory.path().file_name().unwrap().to_str().unwrap();
        let name = name.to_lowercase().replace('.', "-");
        let dataset = pool.map(|pool| {
            let dataset = format!("{pool}/{name}");
            run("zfs", &["create", &dataset]);
            dataset
        });
        let site = Self {
            directory,
            dataset,
            engine,
            name,
            daemon: None,
        };
        let resources = site.resources();
        fs::create_dir(&resources).unwrap();
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/resources.example");
        for entry in fs::read_dir(example).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), resources.join(entry.file_name())).unwrap();
        }
        Some(site)
    }

    pub(crate) fn resources(&self) -> PathBuf {
        self.directory.path().join("resources")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Adds a resource whose file and scripts are given.
    pub(crate) fn add_resource(&self, name: &str, yaml: &str, scripts: &[(&str, &str)]) {
        for (script, text) in scripts {
            let path = self.resources().join(script);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        }
        let file = self.resources().join(format!("{name}.resource.yml"));
        fs::write(file, format!("name: {name}\n{yaml}")).unwrap();
    }

    /// Returns the flags with which this place's node is started.
    pub(crate) fn flags(&self) -> Vec<String> {
        let directory = self.directory.path().display();
        let storage = match &self.dataset {
            Some(dataset) => format!("--zpool={dataset}"),
            None => format!("--data-dir={directory}/data"),
        };
        let runtime = match self.engine {
            Engine::Docker => "docker",
            Engine::Process => "process",
        };
        vec![
            storage,
            format!("--config-dir={directory}/resources"),
            format!("--state-dir={directory}/state"),
            format!("--node-name={}", self.name),
            format!("--runtime={runtime}"),
            "--network-address=127.0.0.1".to_owned(),
            "--api-port=0".to_owned(),
        ]
    }

    /// Starts the node and waits until it serves.
    pub(crate) fn start(&mut self) {
        let port = self.state().join("port");
        let _ = fs::remove_file(&port);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .unwrap();
        let mut daemon = zdapd(&self.flags()).arg("serve").stderr(log).spawn().unwrap();
        until("the node serves", || {
            if let Some(status) = daemon.try_wait().unwrap() {
                panic!("zdapd ended with {status}:\n{}", self.log());
            }
            port.exists()
        });
        self.daemon = Some(daemon);
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn terminate(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        run("kill", &["-TERM", &daemon.id().to_string()]);
        assert!(daemon.wait().unwrap().success(), "{}", self.log());
    }

    /// Begins a command of this machine.
    pub(crate) fn begin(&self, command: &[&str]) -> Child {
        zdapd(&[format!("--state-dir={}", self.state().display())])
            .args(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs a command of this machine; returns what it prints, or says.
    pub(crate) fn ask(&self, command: &[&str]) -> Result<String, String> {
        let output = self.begin(command).wait_with_output().unwrap();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    pub(crate) fn restore(&self, resource: &str) {
        self.ask(&["create", "snap", resource])
            .unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
    }

    pub(crate) fn clone_of(&self, resource: &str) -> CloneId {
        let id = self
            .ask(&["create", "clone", resource])
            .unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
        id.trim().parse().unwrap()
    }

    /// Lists the first words of each row: `clones` or `snaps`.
    pub(crate) fn list(&self, what: &str) -> Vec<Vec<String>> {
        let table = self.ask(&["list", what]).unwrap();
        let rows = table.lines().skip(1).filter(|row| !row.trim().is_empty());
        rows.map(|row| row.split_whitespace().map(str::to_owned).collect())
            .collect()
    }

    /// Runs SQL on a clone, by `psql` through the tunnel, as the node itself.
    pub(crate) async fn query(&self, clone: &CloneId, sql: &str) -> String {
        let identity = Identity::load(&self.state()).unwrap();
        let port = fs::read_to_string(self.state().join("port")).unwrap();
        let server = format!("127.0.0.1:{port}");
        let endpoint = transport::client_endpoint().unwrap();
        let tunnel = Tunnel::new(endpoint, identity, vec![server], clone.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap().port().to_string();
        let mut psql = tokio::process::Command::new("psql");
        psql.args(["-h", "127.0.0.1", "-p", &local, "-U", "postgres", "-d", "orders"])
            .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .env("PGPASSWORD", "secret");
        let output = tokio::select! {
            output = psql.output() => output.unwrap(),
            () = tunnel.serve(listener, std::future::pending()) => unreachable!("it serves until it is told to stop"),
        };
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    }

    /// Waits until the disk, the engine and the process table hold what the node lists, and nothing else. What a program
    /// that was still running for a killed node made after the next one's look is found by its next pass.
    pub(crate) fn nothing_is_orphaned(&self) {
        let began = Instant::now();
        loop {
            let (listed, found) = (self.listed(), self.found());
            if listed == found {
                return;
            }
            assert!(
                began.elapsed() < NEXT_PASS,
                "listed {listed:#?}, found {found:#?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What there should be, by what the node says.
    fn listed(&self) -> Found {
        let clones: BTreeSet<_> = self
            .list("clones")
            .into_iter()
            .map(|row| row[0].clone())
            .collect();
        Found {
            bases: self.list("snaps").len(),
            databases: clones.clone(),
            homes: match self.engine {
                Engine::Docker => BTreeSet::new(),
                Engine::Process => clones.clone(),
            },
            clones,
        }
    }

    /// What there is.
    fn found(&self) -> Found {
        let clones = match &self.dataset {
            Some(dataset) => datasets(&format!("{dataset}/zdap/clones")),
            None => entries(&self.directory.path().join("data/clones")),
        };
        let of_resource = |resource: &String| match &self.dataset {
            Some(dataset) => datasets(&format!("{dataset}/zdap/{resource}")).len(),
            None => entries(&self.directory.path().join("data").join(resource)).len(),
        };
        let folders = match &self.dataset {
            Some(dataset) => datasets(&format!("{dataset}/zdap")),
            None => entries(&self.directory.path().join("data")),
        };
        let resources = folders
            .iter()
            .filter(|name| *name != "clones" && !name.starts_with('.'));
        Found {
            bases: resources.map(of_resource).sum(),
            clones,
            databases: match self.engine {
                Engine::Docker => self.containers(),
                Engine::Process => self.servers(),
            },
            homes: instances(&entries(&self.state().join("instances"))),
        }
    }

    /// The containers of this node, by the instance they are for.
    fn containers(&self) -> BTreeSet<String> {
        let format = "{{.Names}} {{.Label \"zdap.node\"}}";
        let listed = run(
            "docker",
            &["ps", "--all", "--filter", "label=zdap.node", "--format", format],
        );
        let ours = format!("/{}", self.name);
        let names = listed.lines().filter_map(|line| line.split_once(' '));
        let ours = names.filter(|(_, node)| node.ends_with(&ours));
        instances(&ours.map(|(name, _)| name.to_owned()).collect())
    }

    /// The clones whose servers run as processes; a base is listed by its time.
    fn servers(&self) -> BTreeSet<String> {
        let name = |(_, data): (String, PathBuf)| match data.to_string_lossy().contains("/clones/") {
            true => clone_in(&data),
            false => data.display().to_string(),
        };
        self.server_processes().into_iter().map(name).collect()
    }

    /// The processes that work on this place's data: their ids, and on which.
    fn server_processes(&self) -> Vec<(String, PathBuf)> {
        let root = match &self.dataset {
            Some(dataset) => run("zfs", &["get", "-H", "-o", "value", "mountpoint", dataset]),
            None => self.directory.path().display().to_string(),
        };
        let of = |process: &Path| {
            let data = fs::read_link(process.join("cwd")).ok()?;
            let program = fs::read_to_string(process.join("comm")).ok()?;
            let id = process.file_name()?.to_str()?.to_owned();
            (program.trim() == "postgres" && data.starts_with(root.trim())).then_some((id, data))
        };
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| of(&entry.ok()?.path()))
            .collect()
    }

    fn clean_up(&mut self) {
        self.kill();
        if self.engine == Engine::Docker {
            let format = "{{.ID}} {{.Label \"zdap.node\"}}";
            let listed = run(
                "docker",
                &["ps", "--all", "--filter", "label=zdap.node", "--format", format],
            );
            let ours = format!("/{}", self.name);
            for line in listed.lines().filter(|line| line.ends_with(&ours)) {
                let id = line.split(' ').next().unwrap_or_default();
                run("docker", &["rm", "--force", "--volumes", id]);
            }
        } else {
            for (process, _) in self.server_processes() {
                let _ = Command::new("kill").args(["-KILL", &process]).output();
            }
        }
        if let Some(dataset) = &self.dataset {
            let began = Instant::now();
            while !succeeds("zfs", &["destroy", "-R", "-f", dataset]) && began.elapsed() < DEADLINE {
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.clean_up();
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Found {
    bases: usize,
    clones: BTreeSet<String>,
    databases: BTreeSet<String>,
    homes: BTreeSet<String>,
}

/// Runs `zdapd` for its exit code and what it says; one that does not end by itself is an error.
pub(crate) fn ends(flags: &[String], command: &[&str]) -> (Option<i32>, String) {
    let mut child = zdapd(flags)
        .args(command)
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("zdapd {flags:?} {command:?} goes on");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output: Output = child.wait_with_output().unwrap();
    (output.status.code(), text(&output.stderr))
}

/// A `zdapd` that knows nothing but its flags.
fn zdapd(flags: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zdapd"));
    for variable in [
        "ZPOOL",
        "ZDAP_DATA_DIR",
        "CONFIG_DIR",
        "NETWORK_ADDRESS",
        "API_PORT",
        "ZDAP_STATE_DIR",
        "ZDAP_NODE_NAME",
        "ZDAP_RUNTIME",
        "RUST_LOG",
    ] {
        command.env_remove(variable);
    }
    command.args(flags).stdin(Stdio::null());
    command
}

/// Runs a program that has to succeed, and returns what it prints.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    if !output.status.success() {
        let _ = writeln!(
            std::io::stderr(),
            "{program} {arguments:?}: {}",
            text(&output.stderr)
        );
    }
    text(&output.stdout)
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .output()
        .is_ok_and(|output| output.status.success())
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < DEADLINE, "{what} takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The names of the datasets right below `parent`.
fn datasets(parent: &str) -> BTreeSet<String> {
    let Ok(output) = Command::new("zfs")
        .args(["list", "-H", "-r", "-t", "filesystem", "-o", "name", parent])
        .output()
    else {
        return BTreeSet::new();
    };
    let prefix = format!("{parent}/");
    text(&output.stdout)
        .lines()
        .filter_map(|line| line.strip_prefix(&prefix))
        .filter(|name| !name.contains('/'))
        .map(str::to_owned)
        .collect()
}

fn entries(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// `zdap-<clone>` is the instance of a clone; a base's keeps its name.
fn instances(names: &BTreeSet<String>) -> BTreeSet<String> {
    names
        .iter()
        .map(|name| name.strip_prefix("zdap-").unwrap_or(name).to_owned())
        .collect()
}

fn clone_in(path: &Path) -> String {
    let mut parts = path.components().map(|part| part.as_os_str().to_string_lossy());
    parts.find(|part| part == "clones");
    parts.next().unwrap_or_default().into_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// The pass comes every minute.
const NEXT_PASS: Duration = Duration::from_secs(90);
