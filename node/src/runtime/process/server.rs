//! How a program of Postgres is run, and with which arguments and environment.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::geteuid;

use super::account::Account;
use super::home::Log;
use crate::runtime::{InstanceSpec, RuntimeError};

/// A program of Postgres as it is to run: as its user, in a process group of its own so that a Ctrl-C meant for the node
/// does not reach it, with nothing of our environment, its output in the log.
pub(super) fn command(program: &Path, account: &Account, log: &Log) -> std::io::Result<Command> {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LANG", "C.UTF-8")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.file.try_clone()?)
        .stderr(log.file.try_clone()?);
    if geteuid().is_root() {
        command.uid(account.uid).gid(account.gid);
    }
    Ok(command)
}

/// Settings that are ours to make.
pub(super) fn settings(data: &Path, socket_directory: &Path, port: u16) -> Vec<OsString> {
    let mut directory = OsString::from("unix_socket_directories=");
    directory.push(socket_directory);
    let port = format!("port={port}");
    let mut settings = vec!["-D".into(), data.into()];
    for setting in [directory, port.into(), "listen_addresses=".into()] {
        settings.extend(["-c".into(), setting]);
    }
    settings
}

/// Returns the server's arguments among what the image would be given as its command.
pub(super) fn arguments(spec: &InstanceSpec) -> Result<Vec<String>, RuntimeError> {
    if !spec.entrypoint.is_empty() {
        return Err(not_a_container("entrypoint", &spec.entrypoint));
    }
    match spec.cmd.first().map(String::as_str) {
        None => Ok(Vec::new()),
        Some("postgres") => Ok(spec.cmd[1..].to_vec()),
        Some(first) if first.starts_with('-') => Ok(spec.cmd.clone()),
        Some(_) => Err(not_a_container("cmd", &spec.cmd)),
    }
}

fn not_a_container(key: &str, value: &[String]) -> RuntimeError {
    RuntimeError::Unsupported {
        message: format!("`{key}` is {value:?}, but no container is started here"),
        hint: "the process runtime takes options of postgres as `cmd`; use `--runtime docker` for the rest"
            .to_owned(),
    }
}

/// Returns what of the image's environment means something to the server itself: not what initialisation reads, and no
/// password.
pub(super) fn environment(spec: &InstanceSpec) -> impl Iterator<Item = (&str, &str)> {
    spec.env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .filter(|(name, _)| !name.starts_with("POSTGRES_") && *name != "PGDATA")
}

/// Returns a status as a shell shows it: that of the program, or 128 and the signal that ended it.
pub(super) fn status_number(status: ExitStatus) -> i64 {
    let signal = || status.signal().map_or(-1, |signal| 128 + i64::from(signal));
    status.code().map_or_else(signal, i64::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tests::spec;

    #[test]
    fn options_of_postgres_are_passed_through_and_other_commands_are_refused_by_value() {
        let taken = |cmd: &[&str]| {
            let mut spec = spec("orders-k3v9x2mq");
            spec.cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
            arguments(&spec)
        };
        assert_eq!(taken(&[]).unwrap(), Vec::<String>::new());
        assert_eq!(taken(&["postgres", "-c", "x=y"]).unwrap(), ["-c", "x=y"]);
        assert_eq!(taken(&["-c", "x=y"]).unwrap(), ["-c", "x=y"]);
        let error = taken(&["sh", "-c", "true"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "`cmd` is [\"sh\", \"-c\", \"true\"], but no container is started here"
        );
    }

    #[test]
    fn the_password_is_not_in_the_environment_of_the_server() {
        let mut spec = spec("orders-k3v9x2mq");
        spec.env.push("TZ=UTC".to_owned());
        let names: Vec<&str> = environment(&spec).map(|(name, _)| name).collect();
        assert_eq!(names, ["TZ"]);
    }
}
