//! What the real `docker compose config` makes of the overrides that zdap writes.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test may")]

use std::{fs, io::Write, process::Command};

use serde_json::{Value, json};
use zdap::compose::{RelayService, attach, detach, service};

/// Everything that a database's service may have, in compose's short syntaxes.
const SHORT: &str = r#"
x-base: &base
  restart: always
services:
  prepare:
    image: busybox
  orders:
    <<: *base
    build: ./db
    container_name: orders-db
    hostname: ordershost
    command: postgres -c fsync=off
    entrypoint: /docker-entrypoint.sh --fast
    volumes: ["./data:/var/lib/postgresql/data", "pg:/x"]
    env_file: not-there.env
    environment: [POSTGRES_PASSWORD=secret, LISTEN_PORT=1]
    healthcheck: {test: pg_isready, interval: 10m, retries: 99, start_period: 1h, timeout: 1h}
    user: postgres
    shm_size: 1g
    tmpfs: /tmp
    working_dir: /nowhere
    group_add: [postgres]
    cap_add: [SYS_NICE]
    cap_drop: [ALL]
    privileged: true
    security_opt: ["seccomp:not-there.json"]
    devices: ["/dev/null:/dev/null"]
    device_cgroup_rules: ["c 1:3 mr"]
    ulimits: {nofile: 100}
    sysctls: ["net.core.somaxconn=1"]
    storage_opt: {size: 1G}
    runtime: nvidia
    pid: host
    ipc: host
    platform: linux/s390x
    pull_policy: build
    stop_signal: SIGINT
    stop_grace_period: 10m
    secrets: [password]
    configs: [settings]
    depends_on: [prepare]
    links: [prepare]
    external_links: [elsewhere]
    volumes_from: [prepare]
    extra_hosts: ["printer:10.1.1.1"]
    deploy: {replicas: 1, resources: {limits: {memory: 1g}}}
    develop: {watch: [{path: ., action: rebuild}]}
    labels: [team=a]
    logging: {driver: json-file}
    networks: [inner]
    ports: ["127.0.0.1:5433:5431"]
    profiles: [all]
  app:
    image: busybox
    profiles: [all]
    depends_on: {orders: {condition: service_healthy}}
networks: {inner: {}}
volumes: {pg: {}}
secrets: {password: {file: ./password}}
configs: {settings: {file: ./settings}}
"#;

/// The same in long syntaxes, some of it by way of another service.
const LONG: &str = r#"
services:
  prepare:
    image: busybox
  common:
    image: postgres:15
    command: [postgres]
    environment: {POSTGRES_USER: a}
    user: postgres
  orders:
    extends: common
    build: {context: ./db, args: {A: b}}
    restart: always
    container_name: orders-db
    hostname: ordershost
    command: ["postgres", "-c", "fsync=off"]
    entrypoint: ["/docker-entrypoint.sh"]
    volumes:
      - {type: bind, source: ./data, target: /var/lib/postgresql/data}
      - {type: volume, source: pg, target: /identity}
      - {type: tmpfs, target: /tmp}
    env_file: [{path: not-there.env, required: true}]
    environment: {POSTGRES_PASSWORD: secret, ZDAP_CLONE: another}
    healthcheck: {disable: true}
    depends_on: {prepare: {condition: service_completed_successfully}}
    secrets: [{source: password, target: /run/p, mode: 0400}]
    configs: [{source: settings, target: /etc/s}]
    extra_hosts: {printer: 10.1.1.1}
    deploy: {replicas: 1, resources: {reservations: {devices: [{capabilities: [gpu]}]}}}
    labels: {team: a}
    logging: {driver: json-file}
    cap_drop: [ALL]
    networks: {inner: {aliases: [db]}}
    ports: [{target: 5431, published: "5433", host_ip: 127.0.0.1, protocol: tcp}]
    profiles: [all]
  app:
    image: busybox
    profiles: [all]
    depends_on: {orders: {condition: service_healthy}}
networks: {inner: {}}
volumes: {pg: {}}
secrets: {password: {file: ./password}}
configs: {settings: {file: ./settings}}
"#;

#[test]
fn nothing_of_the_database_is_left_in_the_relay_and_all_of_the_project_is() {
    if !compose_is_there("nothing_of_the_database_is_left_in_the_relay_and_all_of_the_project_is") {
        return;
    }
    let relay = RelayService {
        extra_hosts: vec!["node-a:10.0.0.1".to_owned()],
        ..relay()
    };
    for text in [SHORT, LONG] {
        let merged = config(text, &attach("", &relay, false).unwrap());
        let mut orders = merged["services"]["orders"].clone();
        let source = orders["volumes"][0]["source"].take();
        assert!(source.as_str().unwrap().ends_with("/.zdap.d/orders"), "{source}");
        // An alias only one of the two has.
        assert!(!orders["networks"].take().is_null());
        let expected = json!({
            "cap_drop": ["ALL"],
            "command": null,
            "container_name": "orders-db",
            "deploy": {"replicas": 1, "resources": {}, "placement": {}},
            "entrypoint": null,
            "environment": {
                "LISTEN_PORT": "5431",
                "ZDAP_CLONE": "7f3a",
                "ZDAP_SERVERS": "10.0.0.1:43210,10.0.0.2:43210",
                "ZDAP_IDENTITY": "/identity",
            },
            "extra_hosts": ["node-a=10.0.0.1", "printer=10.1.1.1"],
            "healthcheck": {
                "test": ["CMD", "/zdap-proxyd", "health"],
                "interval": "1s",
                "timeout": "5s",
                "retries": 5,
                "start_period": "30s",
            },
            "hostname": "ordershost",
            "image": "zdap/zdap-proxyd:0.1.0",
            "labels": {
                "team": "a",
                "zdap.resource": "orders",
                "zdap.clone": "7f3a",
                "zdap.node": "node-a",
                // So that it is one dollar when compose has read it.
                "zdap.owner": "ada $$HOME",
            },
            "logging": {"driver": "json-file"},
            "networks": null,
            "ports": [{
                "mode": "ingress",
                "host_ip": "127.0.0.1",
                "target": 5431,
                "published": "5433",
                "protocol": "tcp",
            }],
            "profiles": ["all"],
            "pull_policy": "never",
            "restart": "always",
            "volumes": [{
                "type": "bind",
                "source": null,
                "target": "/identity",
                "read_only": true,
                // Compose leaves out a `create_host_path` that is false.
                "bind": {},
            }],
        });
        assert_eq!(orders, expected, "found {orders:#}");
        assert_eq!(
            merged["services"]["app"]["depends_on"]["orders"]["condition"],
            "service_healthy"
        );
    }
}

#[test]
fn compose_reads_every_layout_of_the_override_as_zdap_means_it() {
    if !compose_is_there("compose_reads_every_layout_of_the_override_as_zdap_means_it") {
        return;
    }
    let compose = "services:\n  orders: {image: a, build: ., user: u, ports: [1:5431]}\n  web: {image: w}\n";
    for text in [
        "",
        "# nothing\n",
        "\u{feff}services:\r\n  web:\r\n    image: v\r\n",
        "services: {}",
        "services: {web: {image: v}}",
        "{\"services\": {\"web\": {\"image\": \"v\"}}}",
        "{\n  \"services\": {\n    \"web\": {\n      \"image\": \"v\"\n    }\n  }\n}\n",
        "{}",
        "x-v: &v {image: v}\nservices:\n    web:\n        <<: *v\n    orders:\n        command: |+\n            # mine\n\n\n",
        "services: &s\n web:\n  image: v\n  build: !reset null\n",
    ] {
        let without = config(compose, text);
        let relay = RelayService {
            user: Some("1000:1000".to_owned()),
            ..relay()
        };
        let with_relay = attach(text, &relay, true).unwrap();
        let with = config(compose, &with_relay);
        let orders = &with["services"]["orders"];
        assert_eq!(orders["image"], "zdap/zdap-proxyd:0.1.0", "{with_relay}");
        assert_eq!(
            (&orders["user"], &orders["build"]),
            (&json!("1000:1000"), &Value::Null),
            "{with_relay}"
        );
        assert_eq!(orders["environment"]["LISTEN_PORT"], "5431", "{with_relay}");
        assert_eq!(
            with["services"]["web"], without["services"]["web"],
            "{with_relay}"
        );
        assert_eq!(detach(&with_relay, "orders").unwrap(), text);
    }
}

#[test]
fn the_container_port_is_the_one_that_compose_finds() {
    if !compose_is_there("the_container_port_is_the_one_that_compose_finds") {
        return;
    }
    for ports in [
        "[5432]",
        "[\"5432\"]",
        "[5433:22]",
        "[\"127.0.0.1:5433:5432\"]",
        "[\"127.0.0.1::5432\"]",
        "[\"[::1]:5433:5432\"]",
        "[\"53:53/udp\", \"5433:5432/tcp\"]",
        "[\"5433-5434:5432-5433\"]",
        "[\"5433-5440:5432\"]",
        "[\"${ZDAP_TEST_PORT:-5433}:5432\"]",
        "[\"${ZDAP_TEST_HOST:-127.0.0.1}:${ZDAP_TEST_PORT}:5432\"]",
        "[\"1:${ZDAP_TEST_PORT-${ZDAP_TEST_OTHER:-77}}\"]",
        "[\"1:${ZDAP_TEST_SET}\"]",
        "[\"1:${ZDAP_TEST_SET:+88}\"]",
        "[{target: 5432, published: \"5433\", protocol: tcp}]",
        "[{target: 53, protocol: udp}, {target: \"${ZDAP_TEST_PORT:-5432}\"}]",
    ] {
        for text in [
            format!("services:\n  orders:\n    image: a\n    ports: {ports}\n"),
            format!("x-b: &b\n  ports: {ports}\nservices:\n  orders:\n    <<: *b\n    image: a\n"),
            format!(
                "services:\n  b:\n    image: b\n    ports: {ports}\n  orders:\n    extends: b\n    ports: [\"6:7\"]\n"
            ),
        ] {
            let merged = config(&text, "");
            let entries = merged["services"]["orders"]["ports"].as_array().unwrap();
            let first = entries.iter().find(|entry| entry["protocol"] != "udp").unwrap();
            let environment = |name: &str| (name == "ZDAP_TEST_SET").then(|| "99".to_owned());
            let found = service(&text, "orders", &environment).unwrap();
            assert_eq!(json!(found.container_port), first["target"], "{text}");
        }
    }
}

fn relay() -> RelayService {
    RelayService {
        service: "orders".to_owned(),
        image: "zdap/zdap-proxyd:0.1.0".to_owned(),
        listen_port: 5431,
        published_port: None,
        resource: "orders".to_owned(),
        clone: "7f3a".to_owned(),
        node: "node-a".to_owned(),
        owner: "ada $HOME".to_owned(),
        servers: vec!["10.0.0.1:43210".to_owned(), "10.0.0.2:43210".to_owned()],
        identity_dir: ".zdap.d/orders".to_owned(),
        user: None,
        extra_hosts: Vec::new(),
        start_interval: false,
    }
}

/// Returns what compose makes of a compose file and its override.
fn config(compose: &str, override_text: &str) -> Value {
    let project = tempfile::tempdir().unwrap();
    fs::write(project.path().join("docker-compose.yml"), compose).unwrap();
    fs::write(project.path().join("docker-compose.override.yml"), override_text).unwrap();
    let output = Command::new("docker")
        .args([
            "compose",
            "-f",
            "docker-compose.yml",
            "-f",
            "docker-compose.override.yml",
        ])
        .args(["--profile", "all", "config", "--format", "json"])
        .current_dir(project.path())
        .env("ZDAP_TEST_SET", "99")
        .output()
        .unwrap();
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{talk}\n{compose}\n{override_text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Says aloud that a test is skipped where there is no `docker compose`.
fn compose_is_there(name: &str) -> bool {
    let reason = match Command::new("docker").args(["compose", "version"]).output() {
        Ok(output) if output.status.success() => return true,
        Ok(_) => "docker has no compose plugin".to_owned(),
        Err(error) => format!("docker cannot be run: {error}"),
    };
    let skipping = std::env::var("ZDAP_TEST_NO_SKIP").as_deref() != Ok("1");
    assert!(skipping, "{name} may not be skipped: {reason}");
    let line = format!("SKIP {name}: {reason}");
    println!("{line}");
    if let Some(log) = std::env::var_os("ZDAP_TEST_SKIP_LOG") {
        let mut log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        writeln!(log, "{line}").unwrap();
    }
    false
}
