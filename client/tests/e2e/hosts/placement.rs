//! Joining, and where clones go: also when a server dies.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use super::cluster;
use super::developer::Developer;
use super::host::{Host, states};
use super::network::Network;
use crate::node::await_until;

#[test]
fn three_servers_share_thirty_attaches_and_the_origin_that_dies_is_not_missed() {
    const TEST: &str = "three_servers_share_thirty_attaches_and_the_origin_that_dies_is_not_missed";
    thirty_attaches_and_a_kill(TEST, &[20, 20, 20], 0);
}

#[test]
fn five_servers_share_thirty_attaches_and_one_that_dies_is_not_missed() {
    const TEST: &str = "five_servers_share_thirty_attaches_and_one_that_dies_is_not_missed";
    thirty_attaches_and_a_kill(TEST, &[20, 20, 20, 20, 20], 2);
}

fn thirty_attaches_and_a_kill(test: &str, gibibytes: &[u32], victim: usize) {
    let Some(network) = Network::lay(test) else { return };
    let (first, others) = gibibytes.split_at(1);
    let Some(mut hosts) = cluster(test, &network, first) else {
        return;
    };
    let ada = Developer::of(&network, &hosts[0]);
    for (number, &size) in others.iter().enumerate() {
        let token = hosts[0].zdapd(&["token", "node"]).line();
        let name = format!("db{}", number + 1);
        let Some(host) = Host::start(test, &network, &name, size, Some(&token)) else {
            return;
        };
        let joined = Instant::now();
        hosts.push(host);
        await_until("the developer sees it", || {
            let nodes = states(&ada.zdap(&["list", "nodes", "--json"]).json());
            (nodes == all(&hosts, "alive")).then_some(())
        });
        let seen = joined.elapsed();
        eprintln!("{test}: {name} is seen {} ms after it serves", seen.as_millis());
        assert!(seen < Duration::from_secs(1), "{seen:?}");
        hosts.last().unwrap().restore();
    }
    ada.await_snapshots(hosts.len());

    let mut placed: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for number in 0..30 {
        let (clone, node) = ada.attach(&format!("project{number}"), &[]);
        placed.entry(node).or_default().push(clone);
    }
    let counts: BTreeMap<_, _> = placed.iter().map(|(node, clones)| (node, clones.len())).collect();
    eprintln!("{test}: 30 attaches went to {counts:?}");
    // The servers are alike, so each has its share, give or take what is decided by load.
    let share = 30.0 / hosts.len() as f64;
    for host in &hosts {
        let count = placed.get(host.name()).map_or(0, Vec::len) as f64;
        assert!((count - share).abs() <= share / 2.0, "{counts:?}");
    }

    let dead = hosts[victim].name().to_owned();
    hosts[victim].kill();
    let killed = Instant::now();
    let witnesses: Vec<_> = living(&hosts, victim).collect();
    let mut attaches = 0;
    let [doubted, given_up] = thread::scope(|scope| {
        // Beside the attaches, each of which takes its time.
        let watch = scope.spawn(|| {
            let doubts = |host: &&Host| state_of(host, &dead) != "alive";
            let gives_up = |host: &&Host| state_of(host, &dead) == "down";
            await_until("one doubts it", || witnesses.iter().any(doubts).then_some(()));
            let doubted = killed.elapsed();
            await_until("all give it up", || witnesses.iter().all(gives_up).then_some(()));
            [doubted, killed.elapsed()]
        });
        while !watch.is_finished() {
            let begun = killed.elapsed();
            let (_, node) = ada.attach(&format!("after{attaches}"), &[]);
            assert_ne!(node, dead, "{begun:?} after its death");
            attaches += 1;
        }
        watch.join().unwrap()
    });
    eprintln!(
        "{test}: suspected after {doubted:?}, down everywhere after {given_up:?}; {attaches} attaches meanwhile"
    );
    assert!(doubted < Duration::from_secs(2));
    assert!(given_up < Duration::from_secs(6));

    hosts[victim].revive();
    await_until("it is one of them again", || {
        let agreed = hosts.iter().all(|host| host.view() == all(&hosts, "alive"));
        agreed.then_some(())
    });
    let mut clones = hosts[victim].clones();
    clones.sort();
    let mut before = placed.remove(&dead).unwrap();
    before.sort();
    assert_eq!(clones, before, "its clones are there");
    let (clone, _) = ada.attach("again", &[&format!("@{dead}")]);
    let _relay = ada.connect(&clones[0], 6001);
    ada.psql(6001, &["-c", "insert into item values ('after')"])
        .done();
    assert!(hosts[victim].clones().contains(&clone));
}

fn all(hosts: &[Host], state: &str) -> Vec<(String, String)> {
    let states = hosts
        .iter()
        .map(|host| (host.name().to_owned(), state.to_owned()));
    states.collect()
}

fn living(hosts: &[Host], dead: usize) -> impl Iterator<Item = &Host> {
    hosts
        .iter()
        .enumerate()
        .filter(move |(number, _)| *number != dead)
        .map(|(_, host)| host)
}

fn state_of(host: &Host, name: &str) -> String {
    let view = host.view();
    let seen = view.into_iter().find(|(other, _)| other == name);
    seen.map(|(_, state)| state).unwrap_or_default()
}
