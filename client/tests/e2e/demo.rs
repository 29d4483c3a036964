//! `deploy/demo.sh --once`, as root and as anybody.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::lab::{skip, variable};
use crate::place::{names, servers_below};
use crate::program::{programs, run};

#[test]
fn the_demo_shows_its_rows_and_leaves_nothing_twice() {
    const TEST: &str = "the_demo_shows_its_rows_and_leaves_nothing_twice";
    if let Some(demo) = Demo::open(TEST) {
        demo.plays(&[]);
        demo.plays(&[]);
    }
}

#[test]
fn the_demo_needs_no_root() {
    const TEST: &str = "the_demo_needs_no_root";
    let Some(demo) = Demo::open(TEST) else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        skip::<()>(TEST, "the other test of the demo tries it without root here");
        return;
    }
    let user = [
        "setpriv",
        "--reuid=postgres",
        "--regid=postgres",
        "--init-groups",
        "--inh-caps=-all",
    ];
    demo.plays(&user);
    demo.plays(&user);
}

/// A copy of what the demo needs of the repository, which anybody can read.
struct Demo {
    root: TempDir,
}

impl Demo {
    fn open(test: &str) -> Option<Self> {
        let programs = programs(test)?;
        variable(test, "ZDAP_TEST_POSTGRES_BIN")?;
        let root = tempfile::tempdir().unwrap();
        let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
        let copy = |from: PathBuf| {
            run(Command::new("cp").arg("--recursive").arg(from).arg(root.path())).done();
        };
        copy(repository.join("deploy"));
        for program in ["zdapd", "zdap", "zdap-proxyd"] {
            copy(programs.join(program));
        }
        run(Command::new("chmod")
            .args(["--recursive", "a+rX"])
            .arg(root.path()))
        .done();
        std::fs::create_dir(root.path().join("tmp")).unwrap();
        run(Command::new("chmod").arg("1777").arg(root.path().join("tmp"))).done();
        Some(Self { root })
    }

    /// Plays it by way of `wrapper`.
    fn plays(&self, wrapper: &[&str]) {
        let root = self.root.path();
        let mut words = wrapper.iter().map(PathBuf::from).collect::<Vec<_>>();
        words.push(root.join("deploy/demo.sh"));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("--once").env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .env("HOME", root.join("tmp"))
            .env("TMPDIR", root.join("tmp"));
        command
            .env("ZDAP_PROGRAMS", root)
            .env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
        let said = run(&mut command);
        assert_eq!(said.code, Some(0), "{said:#?}");
        for row in [
            " new      |  1250 | ",
            " paid     |  1250 | ",
            " returned |  1250 | ",
            " sent     |  1250 | ",
            "(4 rows)",
        ] {
            assert!(said.stdout.contains(row), "{row:?} is missing: {said:#?}");
        }
        assert_eq!(names(&root.join("tmp")), [] as [&str; 0]);
        assert_eq!(servers_below(root), []);
        let left = processes_of(&root.display().to_string());
        assert_eq!(left, [] as [&str; 0]);
    }
}

/// Returns the command lines that name `place`.
fn processes_of(place: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(place)).collect()
}
