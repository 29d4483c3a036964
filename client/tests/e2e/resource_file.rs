//! The example's resource file, unchanged, on every storage and every runtime.

use std::path::PathBuf;
use std::process::Command;

use crate::node::Node;
use crate::place::{Place, Runtime, Storage};
use crate::program::run;
use crate::user::User;

#[test]
fn the_example_is_restored_and_cloned_on_zfs_and_docker() {
    const TEST: &str = "the_example_is_restored_and_cloned_on_zfs_and_docker";
    is_restored_and_cloned(TEST, Storage::Zfs, Runtime::Docker);
}

#[test]
fn the_example_is_restored_and_cloned_on_zfs_and_processes() {
    const TEST: &str = "the_example_is_restored_and_cloned_on_zfs_and_processes";
    is_restored_and_cloned(TEST, Storage::Zfs, Runtime::Process);
}

#[test]
fn the_example_is_restored_and_cloned_on_a_directory_and_docker() {
    const TEST: &str = "the_example_is_restored_and_cloned_on_a_directory_and_docker";
    is_restored_and_cloned(TEST, Storage::Directory, Runtime::Docker);
}

#[test]
fn the_example_is_restored_and_cloned_on_a_directory_and_processes() {
    const TEST: &str = "the_example_is_restored_and_cloned_on_a_directory_and_processes";
    is_restored_and_cloned(TEST, Storage::Directory, Runtime::Process);
}

fn is_restored_and_cloned(test: &str, storage: Storage, runtime: Runtime) {
    let Some(place) = Place::prepare(test, storage, runtime) else {
        return;
    };
    let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/resources.example/.");
    run(Command::new("cp")
        .arg("--recursive")
        .arg(example)
        .arg(place.resources()))
    .done();
    let node = Node::start(place, "db1", None);
    node.restore(&["orders"]);
    let user = User::of(&node, &["orders"]);
    let things = node.things();

    let (first, second) = (
        user.zdap(&["clone", "orders"]).line(),
        user.zdap(&["clone", "orders"]).line(),
    );
    let ask = |clone: &str, sql: &str| user.zdap(&["psql", clone, "--", "-XAtqc", sql]).line();
    assert_eq!(
        ask(&first, "select count(*), sum(amount) from orders"),
        "5000|2499975.00"
    );
    assert_eq!(
        ask(&first, "select email from customers where id = 7"),
        "customer.7@example.com"
    );
    ask(&first, "delete from orders");
    assert_eq!(ask(&first, "select count(*) from orders"), "0");
    assert_eq!(
        ask(&second, "select count(*) from orders"),
        "5000",
        "a clone is private"
    );
    // A dataset and an instance each.
    assert_eq!(node.things().len(), things.len() + 4, "{:#?}", node.things());

    user.zdap(&["destroy", "orders", "--all"]).done();
    assert_eq!(node.things(), things);
}
