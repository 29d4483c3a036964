//! A server that is cut off for a while.

use std::time::{Duration, Instant};

use super::cluster;
use super::developer::Developer;
use super::network::Network;
use crate::node::await_until;

#[test]
fn a_server_that_is_cut_off_for_a_minute_comes_back_and_no_clone_is_lost() {
    const TEST: &str = "a_server_that_is_cut_off_for_a_minute_comes_back_and_no_clone_is_lost";
    cut_and_heal(TEST, &[20, 20, 20]);
}

#[test]
fn two_servers_that_lose_each_other_for_a_minute_meet_again_and_no_clone_is_lost() {
    const TEST: &str = "two_servers_that_lose_each_other_for_a_minute_meet_again_and_no_clone_is_lost";
    cut_and_heal(TEST, &[20, 20]);
}

fn cut_and_heal(test: &str, gibibytes: &[u32]) {
    let Some(network) = Network::lay(test) else { return };
    let Some(hosts) = cluster(test, &network, gibibytes) else {
        return;
    };
    let ada = Developer::of(&network, &hosts[0]);
    ada.await_snapshots(hosts.len());
    let everybody_alive = || {
        let agreed = hosts.iter().all(|host| {
            host.view().len() == hosts.len() && host.view().iter().all(|(_, state)| state == "alive")
        });
        agreed.then_some(())
    };
    await_until("all know all", everybody_alive);
    for (number, host) in hosts.iter().enumerate() {
        ada.attach(&format!("project{number}"), &[&format!("@{}", host.name())]);
    }
    let clones: Vec<_> = hosts.iter().map(|host| host.clones()).collect();

    let last = hosts.last().unwrap();
    last.machine.cut();
    let cut = Instant::now();
    await_until("both sides have given each other up", || {
        let is_down = |(name, state): &(String, String)| name == last.name() && state == "down";
        let others = &hosts[..hosts.len() - 1];
        let given_up = others.iter().all(|host| host.view().iter().any(is_down))
            && last.view().iter().filter(|(_, state)| state == "down").count() == others.len();
        given_up.then_some(())
    });
    eprintln!("{test}: given up on both sides after {:?}", cut.elapsed());
    // The other side goes on meanwhile.
    ada.attach("meanwhile", &[]);
    std::thread::sleep(CUT.saturating_sub(cut.elapsed())); // the length of the cut is what is tried
    last.machine.heal();
    let healed = Instant::now();
    await_until("the views agree", everybody_alive);
    let taken = healed.elapsed();
    eprintln!(
        "{test}: the views agree {taken:?} after the end of a cut of {:?}",
        cut.elapsed()
    );
    assert!(taken < Duration::from_secs(6), "{taken:?}");
    for (host, before) in hosts.iter().zip(&clones) {
        let now = host.clones();
        assert!(
            before.iter().all(|clone| now.contains(clone)),
            "{before:?} {now:?}"
        );
    }
    let _relay = ada.connect(&clones[hosts.len() - 1][0], 6001);
    ada.psql(6001, &["-c", "select 1"]).done();
}

/// As long as the views may need to part for good, and then some.
const CUT: Duration = Duration::from_secs(60);
