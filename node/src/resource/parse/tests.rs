use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::testing::script;
use super::*;

/// A directory with `create.sh`, `fetch.sh` and `mask.sh`, which can be run, and `data.txt`, which cannot.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in ["create.sh", "fetch.sh", "mask.sh"] {
        script(&directory.path().join(name));
    }
    fs::write(directory.path().join("data.txt"), "").unwrap();
    directory
}

fn parse_in(directory: &TempDir, text: &str) -> Result<Resource, ResourceError> {
    let file = directory.path().join("x.resource.yml");
    parse(text, &file).map(|parsed| parsed.resource)
}

/// Returns the error without the path of the directory.
fn error(text: &str) -> String {
    let directory = directory();
    let error = parse_in(&directory, text).unwrap_err().to_string();
    error.replace(&format!("{}/", directory.path().display()), "")
}

/// Returns the error of a file that is good but for `lines`, which begin in line 3.
fn error_with(lines: &str) -> String {
    error(&format!("name: x\ncreation: create.sh\n{lines}\n"))
}

fn error_in_docker(lines: &str) -> String {
    error_with(&format!("docker:\n  image: postgres\n  {lines}"))
}

const LEAST: &str = "name: x\ncreation: create.sh\ndocker: {image: postgres}\n";

#[test]
fn the_originals_own_file_is_read_unchanged() {
    let directory = directory();
    for name in ["postgres-dbname.retrieval.sh", "postgres-dbname.creation.sh"] {
        script(&directory.path().join(name));
    }
    let text = include_str!("../../../testdata/resources/original.resource.yml");
    let resource = parse_in(&directory, text).unwrap();
    assert_eq!(resource.name.as_str(), "postgres-dbname");
    assert_eq!(resource.docker.image, "postgres:15.3-bullseye");
    assert_eq!(resource.docker.env, ["POSTGRES_PASSWORD=qwerty"]);
    assert_eq!(resource.cron.unwrap().to_string(), "45 4 * * *");
    assert_eq!(
        resource.docker.healthcheck.as_deref(),
        Some("echo SELECT 1 | psql -U postgres")
    );
    assert_eq!(
        resource.retrieval.unwrap(),
        directory.path().join("postgres-dbname.retrieval.sh")
    );
    let pool = resource.clone_pool.unwrap();
    assert_eq!(
        (pool.min_clones, pool.max_clones, pool.reset_on_new_snap),
        (8, 16, true)
    );
    assert_eq!(pool.claim_max_timeout, Duration::from_secs(300));
    assert_eq!(pool.claim_default_timeout, Duration::from_secs(300));
}

#[test]
fn every_key_is_read() {
    let directory = directory();
    let text = include_str!("../../../testdata/resources/every-key.resource.yml");
    let resource = parse_in(&directory, text).unwrap();
    let at = |name: &str| directory.path().join(name);
    let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        resource,
        Resource {
            name: "orders".parse().unwrap(),
            alias: Some("sales".to_owned()),
            file: at("x.resource.yml"),
            retrieval: Some(at("fetch.sh")),
            creation: at("create.sh"),
            masking: Some(at("mask.sh")),
            cron: Some("@daily".parse().unwrap()),
            docker: DockerSettings {
                image: "mysql:8".to_owned(),
                port: 3306,
                env: strings(&["A=b", "C=d=e", "F="]),
                entrypoint: strings(&["/bin/sh", "-c"]),
                cmd: strings(&["mysqld", "", "8"]),
                volume: "/var/lib/mysql".to_owned(),
                healthcheck: Some("mysqladmin ping".to_owned()),
                shm_bytes: Some(256 << 20),
            },
            restore_params: Params {
                env: strings(&["FAST=1"]),
                entrypoint: strings(&["/entry"]),
                cmd: strings(&["--no-sync"]),
                zfs: ZfsProperties::parse(["recordsize=16k", "compression=lz4"]).unwrap(),
            },
            clone_params: Params {
                cmd: strings(&["--sync"]),
                ..Params::default()
            },
            timeouts: Timeouts {
                ready: Duration::from_secs(30),
                retrieval: Duration::from_secs(7200),
                creation: Duration::from_secs(5400),
            },
            limits: Limits {
                millicpus: Some(500),
                memory_bytes: Some(1 << 30),
                disk_bytes: Some(10 << 30),
                clones_per_user: Some(4),
            },
            retention: Retention {
                keep_snapshots: 5,
                keep_days: Some(14),
            },
            clone_pool: Some(ClonePool {
                min_clones: 2,
                max_clones: 2,
                reset_on_new_snap: false,
                claim_max_timeout: Duration::from_secs(90_000),
                claim_default_timeout: Duration::from_secs(60),
            }),
            ttl: Some(Duration::from_secs(86_400)),
            idle_stop: Some(Duration::from_secs(5400)),
        }
    );
}

#[test]
fn the_least_there_can_be_has_the_documented_defaults() {
    let resource = parse_in(&directory(), LEAST).unwrap();
    assert_eq!(resource.docker.port, 5432);
    assert_eq!(resource.docker.volume, "/var/lib/postgresql/data");
    assert_eq!(resource.timeouts.ready, Duration::from_secs(120));
    assert_eq!(resource.timeouts.retrieval, Duration::from_secs(43_200));
    assert_eq!(resource.timeouts.creation, Duration::from_secs(43_200));
    assert_eq!(resource.retention.keep_snapshots, 3);
    assert_eq!(resource.retention.keep_days, None);
    assert_eq!(resource.limits, Limits::default());
    assert_eq!(resource.restore_params, Params::default());
    assert_eq!(
        (resource.clone_pool, resource.ttl, resource.idle_stop),
        (None, None, None)
    );
    assert_eq!(
        (resource.cron, resource.retrieval, resource.masking),
        (None, None, None)
    );
}

#[test]
fn a_key_without_a_value_is_as_good_as_absent() {
    let directory = directory();
    let text =
        format!("{LEAST}alias:\ncron: ~\nretrieval: null\nclone_params:\nretention: {{keep_days: }}\n");
    assert_eq!(parse_in(&directory, &text), parse_in(&directory, LEAST));
}

#[test]
fn a_number_may_be_quoted_and_a_text_may_look_like_a_number() {
    let text = "name: 42\ncreation: create.sh\ndocker: {image: 7, port: \"3306\", shm: \"268435456\", cmd: [1, true]}\n";
    let resource = parse_in(&directory(), text).unwrap();
    assert_eq!(resource.name.as_str(), "42");
    assert_eq!(
        (resource.docker.image.as_str(), resource.docker.port),
        ("7", 3306)
    );
    assert_eq!(resource.docker.shm_bytes, Some(256 << 20));
    assert_eq!(resource.docker.cmd, ["1", "true"]);
}

#[test]
fn anchors_and_merge_keys_serve_as_everywhere_in_yaml() {
    let text =
        format!("{LEAST}restore_params: &p {{env: [A=b], cmd: [x]}}\nclone_params: {{<<: *p, cmd: [y]}}\n");
    let resource = parse_in(&directory(), &text).unwrap();
    assert_eq!(resource.clone_params.env, ["A=b"]);
    assert_eq!(resource.clone_params.cmd, ["y"]);
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_known_one() {
    assert_eq!(
        error_with("docker: {image: postgres}\ncorn: 45 4 * * *"),
        "x.resource.yml:4:1: corn: there is no such key; did you mean `cron`?"
    );
    assert_eq!(
        error_in_docker("helthcheck: true"),
        "x.resource.yml:5:3: docker.helthcheck: there is no such key; did you mean `docker.healthcheck`?"
    );
    for (section, key, nearest) in [
        ("clone_pool", "minClones", "clone_pool.min_clones"),
        ("restore_params", "ENV", "restore_params.env"),
        ("clone_params", "zsf", "clone_params.zfs"),
        ("retention", "keep_day", "retention.keep_days"),
        ("timeouts", "readyness", "timeouts.ready"),
        ("limits", "mem", "limits.memory"),
        ("limits", "image", "docker.image"),
    ] {
        let error = error_with(&format!("docker: {{image: postgres}}\n{section}:\n  {key}: 1"));
        let wanted =
            format!("x.resource.yml:5:3: {section}.{key}: there is no such key; did you mean `{nearest}`?");
        assert_eq!(error, wanted);
    }
}

#[test]
fn a_key_of_a_section_at_the_top_is_told_where_it_belongs() {
    assert_eq!(
        error("name: x\nimage: postgres\n"),
        "x.resource.yml:2:1: image: there is no such key; did you mean `docker.image`?"
    );
}

#[test]
fn what_must_be_there_is_missed_by_name() {
    let docker = "docker: {image: postgres}\n";
    assert_eq!(
        error(&format!("creation: create.sh\n{docker}")),
        "x.resource.yml:1:1: name: is missing"
    );
    assert_eq!(
        error(&format!("name: x\n{docker}")),
        "x.resource.yml:1:1: creation: is missing"
    );
    assert_eq!(
        error_with("docker:\n  port: 5432"),
        "x.resource.yml:3:1: docker.image: is missing"
    );
    assert!(error_with("").ends_with(" docker.image: is missing"));
    assert!(error_with("docker:\n  image:").ends_with(" docker.image: is missing"));
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_what_is_wanted() {
    for (lines, wanted) in [
        (
            "docker: postgres",
            "x.resource.yml:3:1: docker: must hold keys and values, not text",
        ),
        (
            "docker: [image]",
            "x.resource.yml:3:1: docker: must hold keys and values, not a list",
        ),
        (
            "docker: {image: [a]}",
            "x.resource.yml:3:10: docker.image: must be text, not a list",
        ),
        (
            "docker: {image: a, env: {A: b}}",
            "x.resource.yml:3:20: docker.env: must be a list, not keys and values",
        ),
        (
            "docker: {image: a, cmd: x}",
            "x.resource.yml:3:20: docker.cmd: must be a list, not text",
        ),
        (
            "docker:\n  image: a\n  env:\n    - A: b",
            "x.resource.yml:6:7: docker.env: must be text, not keys and values",
        ),
        (
            "cron: [1]\ndocker: {image: a}",
            "x.resource.yml:3:1: cron: must be text, not a list",
        ),
        (
            "docker: {image: a}\nclone_pool: {reset_on_new_snap: 2}",
            "x.resource.yml:4:14: clone_pool.reset_on_new_snap: `2` is neither `true` nor `false`",
        ),
    ] {
        assert_eq!(error_with(lines), wanted);
    }
    assert_eq!(
        error("- name: x\n"),
        "x.resource.yml:1:1: must hold keys and values, not a list"
    );
    assert_eq!(
        error("just text\n"),
        "x.resource.yml:1:1: must hold keys and values, not text"
    );
}

#[test]
fn a_value_that_makes_no_sense_is_shown_with_its_line_and_key() {
    for (lines, wanted) in [
        ("port: 0", "docker.port: `0` is not a port from 1 to 65535"),
        (
            "port: 65536",
            "docker.port: `65536` is not a port from 1 to 65535",
        ),
        ("port: pg", "docker.port: `pg` is not a port from 1 to 65535"),
        (
            "shm: big",
            "docker.shm: `big` is not a size; write bytes, or `256m`, `1.5G`, `10GiB`",
        ),
        ("shm: 0", "docker.shm: `0` leaves nothing"),
        (
            "env: [A=b]\n  volume: data",
            "docker.volume: `data` is not an absolute path",
        ),
    ] {
        let error = error_in_docker(lines);
        assert!(
            error.starts_with("x.resource.yml:5:3: ") || error.starts_with("x.resource.yml:6:3: "),
            "{error}"
        );
        assert!(error.ends_with(wanted), "{error}");
    }
    assert_eq!(
        error_in_docker("env:\n    - A=b\n    - PASSWORD"),
        "x.resource.yml:7:7: docker.env: `PASSWORD` is not of the form NAME=value"
    );
    for (lines, wanted) in [
        ("cron: 45 25 * * *", "cron: `45 25 * * *` is not a schedule: "),
        (
            "cron: 45 4 * *",
            "cron: `45 4 * *` is not a schedule: five fields are needed",
        ),
        ("ttl: soon", "ttl: `soon` is not a duration"),
        ("idle_stop: 0", "idle_stop: `0` is out of range"),
        ("timeouts: {ready: 1x}", "timeouts.ready: `1x` is not a duration"),
        (
            "limits: {cpus: many}",
            "limits.cpus: `many` is not a number of processors",
        ),
        ("limits: {memory: -1}", "limits.memory: `-1` is not a size"),
        (
            "limits: {clones_per_user: 0}",
            "limits.clones_per_user: `0` is not a whole number from 1",
        ),
        (
            "retention: {keep_snapshots: -1}",
            "retention.keep_snapshots: `-1` is not a whole number from 0",
        ),
        (
            "clone_params: {zfs: [recordsize]}",
            "clone_params.zfs: `recordsize` is not of the form property=value",
        ),
        (
            "restore_params: {zfs: [mountpoint=/]}",
            "restore_params.zfs: the ZFS property `mountpoint` is zdap's own",
        ),
        (
            "clone_pool: {min_clones: 3, max_clones: 2}",
            "clone_pool.max_clones: 2 is fewer than the 3 of `min_clones`",
        ),
        (
            "clone_pool: {claim_max_timeout_seconds: 5, claim_default_timeout_seconds: 6}",
            "clone_pool.claim_default_timeout_seconds: 6 is longer than the 5 of `claim_max_timeout_seconds`",
        ),
    ] {
        let error = error_with(&format!("{lines}\ndocker: {{image: a}}"));
        let (place, rest) = error.split_once(": ").unwrap();
        assert!(place.starts_with("x.resource.yml:3:"), "{error}");
        assert!(rest.starts_with(wanted), "{error}");
    }
}

#[test]
fn a_name_that_could_leave_its_place_is_refused() {
    let long = "x".repeat(300);
    for name in ["a/b", "a@b", "../a", "'..'", "a b", "å", "''", long.as_str()] {
        let error = error(&format!(
            "name: {name}\ncreation: create.sh\ndocker: {{image: a}}\n"
        ));
        assert!(
            error.starts_with("x.resource.yml:1:1: name: resource name `"),
            "{error}"
        );
    }
}

#[test]
fn a_script_must_be_there_be_a_file_and_be_executable() {
    assert_eq!(
        error_with("docker: {image: a}\nretrieval: ./nowhere.sh"),
        "x.resource.yml:4:1: retrieval: the script nowhere.sh cannot be used: No such file or directory (os error 2)"
    );
    assert!(error_with("docker: {image: a}\nmasking: .").ends_with(" is not a file"));
    assert_eq!(
        error_with("docker: {image: a}\nmasking: data.txt"),
        "x.resource.yml:4:1: masking: data.txt is not executable; `chmod +x data.txt` makes it so"
    );
    let directory = directory();
    let path = directory.path().join("data.txt");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let text = format!("{LEAST}masking: {}\n", path.display());
    assert_eq!(parse_in(&directory, &text).unwrap().masking, Some(path));
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*", key in "(name|docker|env|cmd|<<|x)", value in "[-\\[\\]{}:&*a ,\n]{0,20}") {
        let file = Path::new("/nowhere/x.resource.yml");
        let _ = (parse(&text, file), parse(&format!("{key}: {value}\n"), file));
    }
}
