//! Runs a resource's scripts: their output as it comes, a deadline, and nothing left running after it.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Why a script did not do its work; each carries the last lines it printed.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// It could not be started.
    #[error("start `{script}`")]
    Start {
        /// Which.
        script: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with an error.
    #[error("`{script}` failed with {status}; its last output:\n{output}")]
    Failed {
        /// Which.
        script: String,
        /// How it ended: `exit status: 3`, `signal: 9 (SIGKILL)`.
        status: String,
        /// The last lines it printed.
        output: String,
    },
    /// It took too long, and was killed with all its children.
    #[error("`{script}` was killed after {waited:?}; its last output:\n{output}")]
    TimedOut {
        /// Which.
        script: String,
        /// How long it was given.
        waited: Duration,
        /// The last lines it printed.
        output: String,
    },
}

/// Runs `script` in its own directory and returns the last line it wrote to standard output that is not blank.
///
/// Both streams go to the log, and their last lines into the error. At the deadline, or when this future is dropped, the
/// script is killed with everything it started.
pub async fn run(
    script: &Path,
    arguments: &[OsString],
    environment: &BTreeMap<String, String>,
    deadline: Duration,
) -> Result<Option<String>, ScriptError> {
    let name = script.display().to_string();
    let start = |source| ScriptError::Start {
        script: name.clone(),
        source,
    };
    let mut command = Command::new(script);
    // `PGHOSTADDR` or `PGSERVICE` would win over our `PGHOST`, and the script would change another database.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
    let mut child = command
        .args(arguments)
        .envs(environment)
        .current_dir(script.parent().unwrap_or_else(|| Path::new("/")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(start)?;
    let _group = Group::of(&child);
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(start(io::ErrorKind::BrokenPipe.into()));
    };

    let mut output = LastLines::default();
    let ended = timeout(deadline, follow(&mut child, stdout, stderr, &name, &mut output)).await;
    match ended {
        Err(_) => Err(ScriptError::TimedOut {
            script: name,
            waited: deadline,
            output: output.text(),
        }),
        Ok(Err(source)) => Err(start(source)),
        Ok(Ok(status)) if !status.success() => Err(ScriptError::Failed {
            script: name,
            status: status.to_string(),
            output: output.text(),
        }),
        Ok(Ok(_)) => Ok(output.last_of_stdout),
    }
}

/// Reads both streams until the script has ended. A child that it left behind may hold them open: the end counts.
async fn follow(
    child: &mut Child,
    stdout: impl AsyncRead + Unpin,
    stderr: impl AsyncRead + Unpin,
    name: &str,
    output: &mut LastLines,
) -> io::Result<std::process::ExitStatus> {
    let mut stdout = BufReader::new(stdout).split(b'\n');
    let mut stderr = BufReader::new(stderr).split(b'\n');
    let (mut out_open, mut err_open) = (true, true);
    let mut status = None;
    loop {
        tokio::select! {
            biased;
            line = stdout.next_segment(), if out_open => match line? {
                Some(line) => output.push(&line, name, true),
                None => out_open = false,
            },
            line = stderr.next_segment(), if err_open => match line? {
                Some(line) => output.push(&line, name, false),
                None => err_open = false,
            },
            ended = child.wait(), if status.is_none() => status = Some(ended?),
            () = tokio::time::sleep(LINGER), if status.is_some() => (out_open, err_open) = (false, false),
        }
        if let (Some(status), false, false) = (status, out_open, err_open) {
            return Ok(status);
        }
    }
}

#[derive(Default)]
struct LastLines {
    lines: VecDeque<String>,
    last_of_stdout: Option<String>,
}

impl LastLines {
    fn push(&mut self, line: &[u8], script: &str, is_stdout: bool) {
        let line = String::from_utf8_lossy(line).trim_end().to_owned();
        if line.is_empty() {
            return;
        }
        tracing::info!(target: "script", script, "{line}");
        if is_stdout {
            self.last_of_stdout = Some(line.clone());
        }
        if self.lines.len() == LINES_KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line.chars().take(LINE_KEPT).collect());
    }

    fn text(&self) -> String {
        match self.lines.is_empty() {
            true => "(none)".to_owned(),
            false => self
                .lines
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join("\n"),
        }
    }
}

/// Kills the script's process group when dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(id.cast_signed())))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // There is nobody left to kill if the script and its children have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// `spec.md`: the last 50 lines of a script's output are in the error.
const LINES_KEPT: usize = 50;
/// A line is cut in the error, so that a dump echoed by mistake does not fill a reply.
const LINE_KEPT: usize = 2000;
/// How long output that is still in the pipe may take to arrive after the script itself has ended.
const LINGER: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(directory: &Path, body: &str) -> std::path::PathBuf {
        let path = directory.join("script.sh");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    async fn run_body(body: &str, deadline: Duration) -> Result<Option<String>, ScriptError> {
        let directory = tempfile::tempdir().unwrap();
        let path = script(directory.path(), body);
        let environment = BTreeMap::from([("PGHOST".to_owned(), "here".to_owned())]);
        run(&path, &["one".into(), "two words".into()], &environment, deadline).await
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn the_last_line_of_standard_output_is_the_result() {
        let last = run_body("echo first; echo \"$PGHOST $1 $2\"; echo; echo noise >&2", LONG)
            .await
            .unwrap();
        assert_eq!(last.as_deref(), Some("here one two words"));
    }

    #[tokio::test]
    async fn a_script_that_prints_nothing_has_no_result() {
        assert_eq!(run_body("true", LONG).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_failure_shows_the_last_fifty_lines_and_the_status() {
        let error = run_body("seq 1 200; echo broken >&2; exit 3", LONG)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(
            error.contains("broken") && error.contains("\n200\n") && !error.contains("\n100\n"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_script_over_its_time_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let path = script(
            directory.path(),
            &format!("sleep 1000 & echo $! > {}\nwait", pid_file.display()),
        );
        let error = run(&path, &[], &BTreeMap::new(), Duration::from_millis(500))
            .await
            .unwrap_err();
        assert!(matches!(error, ScriptError::TimedOut { .. }), "{error}");
        let child: i32 = std::fs::read_to_string(&pid_file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        // A killed child is a zombie (state Z) until it is reaped, or gone.
        let gone = || match std::fs::read_to_string(format!("/proc/{child}/stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        while !gone() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_zdapd_inherited_leads_no_script_to_another_database() {
        if std::env::var_os("PGSERVICE").is_none() {
            // Only a child's environment can be chosen.
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "script::tests::what_zdapd_inherited_leads_no_script_to_another_database"])
                .env("PGSERVICE", "production")
                .env("PGHOSTADDR", "192.0.2.1")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&child.stdout);
            assert!(child.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let last = run_body("echo $(env | grep ^PG)", LONG).await.unwrap();
        assert_eq!(last.as_deref(), Some("PGHOST=here"));
    }

    #[tokio::test]
    async fn a_script_that_cannot_be_started_says_so() {
        let error = run(Path::new("/nowhere/restore.sh"), &[], &BTreeMap::new(), LONG)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "start `/nowhere/restore.sh`");
    }
}
