//! `kill -9` at random moments.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::site::{Disk, Engine, Site};

#[test]
fn a_node_killed_while_it_makes_a_clone_leaves_nothing_on_zfs_and_docker() {
    let test = "a_node_killed_while_it_makes_a_clone_leaves_nothing_on_zfs_and_docker";
    killed_again_and_again(test, Disk::Zfs, Engine::Docker, &["create", "clone", "orders"]);
}

#[test]
fn a_node_killed_while_it_restores_leaves_nothing_on_zfs_and_docker() {
    let test = "a_node_killed_while_it_restores_leaves_nothing_on_zfs_and_docker";
    killed_again_and_again(test, Disk::Zfs, Engine::Docker, &["create", "snap", "orders"]);
}

#[test]
fn a_node_killed_while_it_makes_a_clone_leaves_nothing_in_a_directory_with_processes() {
    let test = "a_node_killed_while_it_makes_a_clone_leaves_nothing_in_a_directory_with_processes";
    killed_again_and_again(
        test,
        Disk::Directory,
        Engine::Process,
        &["create", "clone", "orders"],
    );
}

#[test]
fn a_node_killed_while_it_restores_leaves_nothing_in_a_directory_with_processes() {
    let test = "a_node_killed_while_it_restores_leaves_nothing_in_a_directory_with_processes";
    killed_again_and_again(
        test,
        Disk::Directory,
        Engine::Process,
        &["create", "snap", "orders"],
    );
}

#[expect(clippy::print_stderr, reason = "the seed repeats a failure")]
fn killed_again_and_again(test: &str, disk: Disk, engine: Engine, command: &[&str]) {
    let Some(mut site) = Site::new(test, disk, engine) else {
        return;
    };
    let seed = number("ZDAP_TEST_SEED").unwrap_or_else(|| rand::rng().random());
    let times = number("ZDAP_TEST_KILLS").unwrap_or(match engine {
        Engine::Docker => TIMES,
        Engine::Process => TIMES_ELSEWHERE,
    });
    eprintln!("{test}: ZDAP_TEST_SEED={seed} ZDAP_TEST_KILLS={times}");
    let mut random = StdRng::seed_from_u64(seed);

    site.start();
    site.restore("orders");
    let before = Instant::now();
    site.ask(command).unwrap();
    let whole = before.elapsed();
    for time in 0..times {
        let moment = whole.mul_f64(random.random_range(0.0..1.05));
        let mut asked = site.begin(command);
        std::thread::sleep(moment);
        site.kill();
        asked.kill().unwrap();
        asked.wait().unwrap();
        let context = format!(
            "kill {time} after {} ms of {}",
            moment.as_millis(),
            whole.as_millis()
        );
        let down = Instant::now();
        site.start();
        site.nothing_is_orphaned();
        eprintln!(
            "{context}: in order again after {} ms",
            down.elapsed().as_millis()
        );
        let clone = site.clone_of("orders");
        site.ask(&["destroy", "clone", clone.as_str()]).unwrap();
        site.nothing_is_orphaned();
    }
    site.restore("orders");
    site.ask(&["destroy", "all", "--yes"]).unwrap();
    site.nothing_is_orphaned();
    assert!(site.list("snaps").is_empty());
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Both tests on ZFS and Docker together: twenty.
const TIMES: u64 = 10;
const TIMES_ELSEWHERE: u64 = 3;
