//! A developer's machine: settings, a compose project, and `zdap` run in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::node::Node;
use crate::program::{Said, run};

/// A developer with a home and a compose project.
#[derive(Debug)]
pub(crate) struct User {
    directory: TempDir,
    programs: PathBuf,
    engine: Option<String>,
}

impl User {
    /// Makes one who has never used zdap.
    pub(crate) fn new(programs: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("project")).unwrap();
        Self {
            directory,
            programs: programs.to_owned(),
            // No Docker: what these tests try does not depend on what images the machine has.
            engine: Some("unix:///nonexistent/docker.sock".to_owned()),
        }
    }

    /// Makes one who is enrolled at `node`, with a project whose services are `services`.
    pub(crate) fn of(node: &Node, services: &[&str]) -> Self {
        let user = Self::new(node.programs());
        let services = services
            .iter()
            .map(|name| format!("  {name}: {{image: postgres:15, ports: [\"5432\"]}}\n"));
        user.write(
            "docker-compose.yml",
            &format!("services:\n{}", services.collect::<String>()),
        );
        user.zdap(&["add", "origin", &node.token("ada@laptop")]).done();
        user
    }

    /// Gives the user the Docker engine of this machine.
    pub(crate) fn with_docker(mut self) -> Self {
        self.engine = std::env::var("DOCKER_HOST").ok();
        self
    }

    /// Runs zdap in the project.
    pub(crate) fn zdap(&self, arguments: &[&str]) -> Said {
        run(self.command().args(arguments))
    }

    /// Returns zdap, to be run in the project.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.programs.join("zdap"));
        self.prepare(&mut command);
        command
    }

    /// Puts a command in the user's place: the project, the settings and nothing of this machine's.
    pub(crate) fn prepare(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.directory.path())
            .env("ZDAP_HOME", self.home())
            .env("USER", "ada")
            .envs(self.engine.iter().map(|engine| ("DOCKER_HOST", engine)))
            .current_dir(self.project());
    }

    /// Returns where the programs are.
    pub(crate) fn programs(&self) -> &Path {
        &self.programs
    }

    /// Returns where the user's settings are.
    pub(crate) fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// Returns where the user's project is.
    pub(crate) fn project(&self) -> PathBuf {
        self.directory.path().join("project")
    }

    /// Returns where the project's file `name` is.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.project().join(name)
    }

    /// Writes a file of the project.
    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.file(name).parent().unwrap()).unwrap();
        fs::write(self.file(name), text).unwrap();
    }

    /// Reads a file of the project.
    #[track_caller]
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    /// Returns every file and directory of the project and what the files hold.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut files = BTreeMap::new();
        let mut directories = vec![self.project()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path.clone());
                    files.insert(path, None);
                } else {
                    let content = fs::read(&path).unwrap();
                    files.insert(path, Some(content));
                }
            }
        }
        files
    }
}
