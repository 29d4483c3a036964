//! `kill -9` of the node at random moments of a whole `zdap attach`, from the first connection to the edited override.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::attaching::{finish, start};
use crate::node::{Node, await_until};
use crate::place::{Place, Runtime, Storage};
use crate::user::User;

#[test]
fn a_node_killed_during_an_attach_leaves_nothing_and_the_next_attach_works() {
    const TEST: &str = "a_node_killed_during_an_attach_leaves_nothing_and_the_next_attach_works";
    let Some(place) = Place::prepare(TEST, Storage::Zfs, Runtime::Docker) else {
        return;
    };
    let seed = number("ZDAP_TEST_SEED").unwrap_or_else(|| rand::rng().random());
    let kills = number("ZDAP_TEST_KILLS").unwrap_or(KILLS);
    eprintln!("{TEST}: ZDAP_TEST_SEED={seed} ZDAP_TEST_KILLS={kills}");
    let mut random = StdRng::seed_from_u64(seed);

    place.write_resource("orders");
    let mut node = Node::start(place, "db1", None);
    node.restore(&["orders"]);
    let user = User::of(&node, &["orders"]);
    let (things, files) = (node.things(), user.files());
    let whole = attach_and_detach(&user);
    for kill in 0..kills {
        let moment = whole.mul_f64(random.random_range(0.0..1.05));
        let attach = start(&user, &["attach", "orders"]);
        std::thread::sleep(moment); // the moment is what is tried
        node.kill();
        // Mostly it is back while the attach still asks; to see that it is not takes the attach many seconds.
        let said = if kill % STAYS_AWAY == 0 {
            let said = finish(attach);
            node.revive();
            said
        } else {
            node.revive();
            finish(attach)
        };
        eprintln!(
            "kill {kill} after {} ms of {}: the attach ended with {:?}",
            moment.as_millis(),
            whole.as_millis(),
            said.code
        );
        match said.code {
            Some(0) => drop(user.zdap(&["detach", "orders"]).done()),
            Some(1 | 3) => assert_eq!(user.files(), files, "{said:#?}"),
            _ => panic!("{said:#?}"),
        }
        await_until("a dataset and a container are there for each clone", || {
            (node.things().len() == things.len() + 2 * node.clones().len()).then_some(())
        });
        // A clone that was ready when the node died is there, and its owner's to give back.
        if !node.clones().is_empty() {
            user.zdap(&["destroy", "orders", "--all"]).done();
        }
        attach_and_detach(&user);
        assert_eq!(node.things(), things);
        assert_eq!(user.files(), files);
    }
}

/// Returns how long the attach has taken.
fn attach_and_detach(user: &User) -> Duration {
    let begun = Instant::now();
    user.zdap(&["attach", "orders"]).done();
    let taken = begun.elapsed();
    user.zdap(&["detach", "orders"]).done();
    taken
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// As many as of a restore.
const KILLS: u64 = 10;
const STAYS_AWAY: u64 = 5;
