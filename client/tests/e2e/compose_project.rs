//! The main job: a database service with everything that could be in the way, replaced by a clone and given back.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

use crate::lab::variable;
use crate::node::Node;
use crate::place::{Place, Runtime, Storage};
use crate::program::{Said, run};
use crate::user::User;

#[test]
fn a_project_with_everything_in_the_way_gets_a_clone_and_gives_it_back() {
    const TEST: &str = "a_project_with_everything_in_the_way_gets_a_clone_and_gives_it_back";
    if variable(TEST, "ZDAP_TEST_COMPOSE").is_none() {
        return;
    }
    let Some(place) = Place::prepare(TEST, Storage::Zfs, Runtime::Docker) else {
        return;
    };
    place.write_resource("orders");
    let node = Node::start(place, "db1", None);
    node.restore(&["orders"]);
    let engine = Engine::locked();
    let port = free_port();
    let (compose, r#override) = (compose_file(port), OVERRIDE.replace("PORT", &port.to_string()));
    let project = Project::new(&node, &compose, &r#override);
    let (things_before, files_before) = (node.things(), project.user.files());

    // The image comes from the node once, and not again.
    engine.forget_relay();
    project.user.zdap(&["attach", "orders"]).done();
    let image = engine.relay();
    project.user.zdap(&["detach", "orders"]).done();
    let line = project.user.zdap(&["attach", "orders"]).line();
    assert_eq!(engine.relay(), image, "it was fetched a second time");
    let clones = node.clones();
    assert_eq!(line, format!("orders attached: {} on db1", clones.join(" ")));
    assert_ne!(project.user.read("docker-compose.override.yml"), r#override);

    assert_eq!(project.rows_by_app(), ["anvil", "bolt", "orders"]);
    project.psql(port, "insert into item values ('a nut of my own')");
    assert_eq!(
        project.rows_by_app(),
        ["a nut of my own", "anvil", "bolt", "orders"]
    );

    project.compose(&["down", "--volumes", "--timeout=2"]).done();
    let line = project.user.zdap(&["detach", "orders"]).line();
    assert_eq!(line, "orders detached");
    assert_eq!(project.user.read("docker-compose.yml"), compose);
    assert_eq!(project.user.read("docker-compose.override.yml"), r#override);
    assert_eq!(project.user.files(), files_before);
    assert_eq!(node.things(), things_before);
}

#[test]
fn an_override_that_was_not_there_is_not_there_afterwards() {
    const TEST: &str = "an_override_that_was_not_there_is_not_there_afterwards";
    let Some(node) = Node::embedded(TEST, &["orders"]) else {
        return;
    };
    let user = User::of(&node, &["orders"]);
    let (things, files) = (node.things(), user.files());
    user.zdap(&["attach", "orders"]).done();
    assert!(user.file("docker-compose.override.yml").exists());
    user.zdap(&["detach", "orders"]).done();
    assert_eq!(user.files(), files);
    assert_eq!(node.things(), things);
}

/// What makes it hard: none of this may reach the relay, and all of it has to be there again.
fn compose_file(port: u16) -> String {
    format!(
        r#"# The shop, as it was before zdap.
services:
  orders: # the database
    build: ./db
    command: ["postgres", "-c", "fsync=off"]
    volumes:
      - ./seed:/docker-entrypoint-initdb.d:ro
      - data:/var/lib/postgresql/data
    environment:
      POSTGRES_PASSWORD: other
      LISTEN_PORT: "1"
    env_file: [db.env]
    user: postgres
    shm_size: 256m
    healthcheck:
      test: ["CMD", "pg_isready"]
      interval: 10m
      retries: 99
    ports:
      - target: 5431
        published: "{port}"
        host_ip: 127.0.0.1
        protocol: tcp

  app:
    image: postgres:15
    command: ["psql", "-XAtq", "postgres://postgres:secret@orders:5431/orders", "-c", "select name from item order by name"]
    depends_on:
      orders: {{condition: service_healthy}}

volumes: {{data: {{}}}}
"#
    )
}

/// Somebody's own, to stay as it is to the byte.
const OVERRIDE: &str = "# mine\nx-app: &app\n    labels: {team: 'shop' }   # odd spaces\nservices:\n    app: \n        <<: *app\n\n\n";

/// The user's compose project, under a name of its own in the engine.
struct Project {
    user: User,
    name: String,
}

impl Project {
    fn new(node: &Node, compose: &str, r#override: &str) -> Self {
        let user = User::of(node, &[]).with_docker();
        user.write("docker-compose.yml", compose);
        user.write("docker-compose.override.yml", r#override);
        user.write("db.env", "ZDAP_CLONE=another\n");
        user.write("db/Dockerfile", "FROM nowhere/postgres:15\n");
        user.write("seed/seed.sql", "create table item (name text);\n");
        let name = format!("zdap-e2e-{}", std::process::id());
        Self { user, name }
    }

    fn compose(&self, arguments: &[&str]) -> Said {
        let mut docker = Command::new("docker");
        docker
            .args(["compose", "--project-name", &self.name])
            .args(arguments);
        run(docker.current_dir(self.user.project()))
    }

    /// Returns what the other service reads, once the database is healthy.
    fn rows_by_app(&self) -> Vec<String> {
        self.compose(&["rm", "--force", "--stop", "--volumes", "app"])
            .done();
        self.compose(&["up", "--detach"]).done();
        let app = format!("{}-app-1", self.name);
        let waited = run(Command::new("docker").args(["wait", &app])).line();
        let rows = run(Command::new("docker").args(["logs", &app])).line();
        assert_eq!(waited, "0", "{rows}");
        rows.lines().map(str::to_owned).collect()
    }

    /// Asks the database by the port that the project publishes.
    fn psql(&self, port: u16, sql: &str) {
        let url = format!("postgres://postgres:secret@127.0.0.1:{port}/orders");
        run(Command::new("psql").args(["-XAtq", &url, "-c", sql])).done();
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:#?}", self.compose(&["ps", "--all"]));
            eprintln!("{:#?}", self.compose(&["logs", "--no-color"]));
        }
        let _ = self.compose(&["down", "--volumes", "--timeout=1"]);
    }
}

/// The Docker engine while nobody else of these tests takes its relay image away.
struct Engine {
    _lock: File,
}

impl Engine {
    fn locked() -> Self {
        let path = std::env::temp_dir().join("zdap-e2e-relay-image.lock");
        let lock = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        lock.lock().unwrap();
        Self { _lock: lock }
    }

    fn forget_relay(&self) {
        // A failure means that it is not there.
        run(Command::new("docker").args(["image", "rm", "--force", &zdap::engine::relay_image()]));
        let inspected = run(Command::new("docker").args(["image", "inspect", &zdap::engine::relay_image()]));
        assert_ne!(inspected.code, Some(0), "{inspected:#?}");
    }

    fn relay(&self) -> String {
        let image = zdap::engine::relay_image();
        run(Command::new("docker").args(["image", "inspect", "--format", "{{.Id}}", &image])).line()
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}
