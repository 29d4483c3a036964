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
use tokio::time::{Instant, sleep_until, timeout};

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
/// Of the variables that lead `psql` and its like to a database it sees those of `environment` only, none that zdapd
/// itself was started with. Both streams go to the log (at DEBUG: they may quote rows), and their last lines into the
/// error. At the deadline, or when this future is dropped, the script is killed with everything it started.
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

    tracing::info!(script = name, "a script begins");
    let begin = Instant::now();
    let mut output = LastLines::default();
    let ended = timeout(deadline, follow(&mut child, stdout, stderr, &name, &mut output)).await;
    if let Ok(Ok(status)) = &ended {
        tracing::info!(script = name, %status, took = ?begin.elapsed(), "a script ended");
    }
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
    let (mut stdout, mut stderr) = (Lines::of(stdout), Lines::of(stderr));
    let (mut out_open, mut err_open) = (true, true);
    let mut ended = None;
    loop {
        let until = ended.map_or_else(Instant::now, |(_, at)| at + LINGER);
        tokio::select! {
            // The end first: a child left behind may have something to say at every turn.
            biased;
            () = sleep_until(until), if ended.is_some() => (out_open, err_open) = (false, false),
            status = child.wait(), if ended.is_none() => ended = Some((status?, Instant::now())),
            line = stdout.next(), if out_open => match line? {
                Some(line) => output.push(&line, name, true),
                None => out_open = false,
            },
            line = stderr.next(), if err_open => match line? {
                Some(line) => output.push(&line, name, false),
                None => err_open = false,
            },
        }
        if let (Some((status, _)), false, false) = (ended, out_open, err_open) {
            return Ok(status);
        }
    }
}

/// The lines of a stream, none longer than [`LINE_KEPT`]: what is beyond is passed over.
struct Lines<R> {
    stream: BufReader<R>,
    /// What has been read of the line that has not ended yet.
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn of(stream: R) -> Self {
        Self {
            stream: BufReader::new(stream),
            line: Vec::new(),
        }
    }

    /// Returns the next line without its end; nothing after the last. Nothing is lost if the future is dropped.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let read = self.stream.fill_buf().await?;
            if read.is_empty() {
                return Ok((!self.line.is_empty()).then(|| std::mem::take(&mut self.line)));
            }
            let end = read.iter().position(|byte| *byte == b'\n');
            let piece = &read[..end.unwrap_or(read.len())];
            let room = LINE_KEPT - self.line.len();
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            let used = piece.len() + usize::from(end.is_some());
            self.stream.consume(used);
            if end.is_some() {
                return Ok(Some(std::mem::take(&mut self.line)));
            }
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
        tracing::debug!(target: "script", script, "{line}");
        if is_stdout {
            self.last_of_stdout = Some(line.clone());
        }
        if self.lines.len() == LINES_KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
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
/// Bytes of a line that are kept: a dump echoed by mistake fills neither the memory nor a reply.
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
                .args([
                    "--exact",
                    "script::tests::what_zdapd_inherited_leads_no_script_to_another_database",
                ])
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
    async fn of_a_line_without_end_only_the_beginning_is_kept() {
        let text = [&[b'x'; 1 << 20][..], b"\nshort\n\nlast"].concat();
        let mut lines = Lines::of(&text[..]);
        let long = lines.next().await.unwrap().unwrap();
        assert_eq!(long.len(), LINE_KEPT);
        assert!(long.capacity() <= 2 * LINE_KEPT, "{}", long.capacity());
        for expected in ["short", "", "last"] {
            assert_eq!(lines.next().await.unwrap().unwrap(), expected.as_bytes());
        }
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_child_left_behind_that_never_stops_talking_does_not_keep_a_script_running() {
        run_body("yes & exit 0", LONG).await.unwrap();
        run_body("(while :; do echo still; sleep 0.02; done) & exit 0", LONG)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_script_that_cannot_be_started_says_so() {
        let error = run(Path::new("/nowhere/restore.sh"), &[], &BTreeMap::new(), LONG)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "start `/nowhere/restore.sh`");
    }
}
