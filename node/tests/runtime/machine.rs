//! The machine's own programs, asked from outside: `psql`, `docker`, `pgrep`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use zdap_node::runtime::{Address, InstanceSpec, client_environment};
use zdap_proto::name::CloneId;

/// Runs `psql` as a script of a resource would.
pub(crate) fn psql(address: &Address, spec: &InstanceSpec, database: &str, sql: &str) -> Output {
    Command::new("psql")
        .args([
            "--no-psqlrc",
            "-v",
            "ON_ERROR_STOP=1",
            "-Atc",
            sql,
            "-d",
            database,
        ])
        .envs(client_environment(address, &spec.env))
        .output()
        .unwrap()
}

pub(crate) fn query(address: &Address, spec: &InstanceSpec, database: &str, sql: &str) -> String {
    let output = psql(address, spec, database, sql);
    assert!(
        output.status.success(),
        "{sql}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub(crate) fn began(address: &Address, spec: &InstanceSpec) -> String {
    query(address, spec, "postgres", "select pg_postmaster_start_time()")
}

pub(crate) fn control_data(data: &Path) -> String {
    let programs = std::env::var("ZDAP_TEST_POSTGRES_BIN").unwrap();
    let output = Command::new(Path::new(&programs).join("pg_controldata"))
        .arg(data)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A temporary directory that every user can enter, as a pool's mount point is.
pub(crate) fn shared_directory() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

pub(crate) fn new_directory(parent: &Path) -> PathBuf {
    let path = parent.join(CloneId::random(&"data".parse().unwrap()).as_str());
    std::fs::create_dir(&path).unwrap();
    path
}

/// Returns the ids of processes that name something below `directory` on their command line.
pub(crate) fn servers_on(directory: &Path) -> Vec<String> {
    let output = Command::new("pgrep")
        .args(["-f", "--", directory.to_str().unwrap()])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

pub(crate) fn kill_servers_on(directory: &Path) {
    let servers = servers_on(directory);
    assert!(!servers.is_empty());
    Command::new("kill").arg("-9").args(&servers).status().unwrap();
    while servers
        .iter()
        .any(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| !command.is_empty()))
    {
        std::thread::yield_now();
    }
}

pub(crate) fn docker(arguments: &[&str]) -> String {
    run("docker", arguments)
}

/// Runs a program that has to succeed, and returns all it prints.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}
