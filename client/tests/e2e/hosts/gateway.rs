//! A developer who reaches one server only, and one whose address changes.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::cluster;
use super::developer::Developer;
use super::network::Network;

#[test]
fn a_clone_is_used_through_the_one_server_that_can_be_reached() {
    const TEST: &str = "a_clone_is_used_through_the_one_server_that_can_be_reached";
    let Some(network) = Network::lay(TEST) else { return };
    let Some(hosts) = cluster(TEST, &network, &[20, 20, 20]) else {
        return;
    };
    let ada = Developer::of(&network, &hosts[0]);
    ada.await_snapshots(hosts.len());
    let (clone, node) = ada.attach("shop", &["@db2"]);
    assert_eq!(node, "db2");
    // In turns, since the machine does other things as well.
    let (direct, through) = {
        let _direct = ada.relay_through("shop", 6001, Some(&hosts[2].address()));
        let _through = ada.relay_through("shop", 6002, Some(&hosts[0].address()));
        let mut best = [Duration::MAX; 2];
        for _ in 0..ROUNDS {
            for (best, port) in best.iter_mut().zip([6001, 6002]) {
                *best = (*best).min(read(&ada, port));
            }
        }
        let rate = |time: Duration| f64::from(KIBIBYTES) / 1024.0 / time.as_secs_f64();
        (rate(best[0]), rate(best[1]))
    };
    eprintln!(
        "{TEST}: {direct:.0} MiB/s directly, {through:.0} MiB/s through another node, ratio {:.2}",
        through / direct
    );

    // From home, with one open port.
    for host in &hosts[1..] {
        host.machine.cut_from(&ada.machine);
    }
    let began = Instant::now();
    let relay = ada.relay("shop", 6003);
    eprintln!("{TEST}: the relay is ready {:?} after its start", began.elapsed());
    ada.psql(6003, &["-c", "insert into item values ('from home')"])
        .done();
    let connect = ada.connect(&clone, 6004);
    let rows = ada
        .psql(
            6003,
            &["-c", "select count(*) from item where name = 'from home'"],
        )
        .line();
    assert_eq!(rows, "1");
    drop(connect);
    // An attach from home works, wherever the clone goes.
    let (_, node) = ada.attach("elsewhere", &["@db1"]);
    assert_eq!(node, "db1");
    let _elsewhere = ada.relay("elsewhere", 6005);

    for host in &hosts[1..] {
        host.machine.heal();
    }
    drop(relay);
}

#[test]
fn a_copy_goes_on_when_the_address_of_the_machine_changes() {
    const TEST: &str = "a_copy_goes_on_when_the_address_of_the_machine_changes";
    let Some(network) = Network::lay(TEST) else { return };
    let Some(hosts) = cluster(TEST, &network, &[20]) else {
        return;
    };
    let ada = Developer::of(&network, &hosts[0]);
    ada.await_snapshots(hosts.len());
    ada.attach("shop", &[]);
    let _relay = ada.relay("shop", 6001);
    ada.psql(6001, &["-c", "create table copied (line text)"]).done();
    let mut copy = ada.psql_command(6001);
    let mut copy = copy
        .args(["-c", "copy copied from stdin"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = copy.stdin.take().unwrap();
    for part in 0..PARTS {
        if part == PARTS / 2 {
            ada.machine.lose_address(ada.machine.address());
            ada.machine.take_address("10.77.0.200");
        }
        let lines: String = (0..LINES)
            .map(|line| format!("{part} {line} {}\n", "x".repeat(100)))
            .collect();
        stdin.write_all(lines.as_bytes()).unwrap();
    }
    drop(stdin);
    assert!(copy.wait().unwrap().success());

    let mut copy = ada.psql_command(6001);
    let mut copy = copy
        .args(["-c", "copy copied to stdout"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = copy.stdout.take().unwrap();
    let mut back = vec![0; 1 << 20];
    stdout.read_exact(&mut back).unwrap();
    ada.machine.lose_address("10.77.0.200");
    ada.machine.take_address("10.77.0.201");
    stdout.read_to_end(&mut back).unwrap();
    assert!(copy.wait().unwrap().success());
    let sent = (0..PARTS).flat_map(|part| (0..LINES).map(move |line| (part, line)));
    let mut lines = back.split(|byte| *byte == b'\n');
    for (part, line) in sent {
        let expected = format!("{part} {line} {}", "x".repeat(100));
        assert_eq!(lines.next(), Some(expected.as_bytes()));
    }
    assert_eq!(lines.next(), Some(&b""[..]));
    assert_eq!(lines.next(), None);
}

/// Returns how long it takes to read [`KIBIBYTES`] from the database.
fn read(ada: &Developer, port: u16) -> Duration {
    let sql = format!("copy (select repeat('x', 1023) from generate_series(1, {KIBIBYTES})) to stdout");
    let began = Instant::now();
    let mut command = ada.psql_command(port);
    let status = command.args(["-c", &sql]).stdout(Stdio::null()).status();
    assert!(status.unwrap().success());
    began.elapsed()
}

const ROUNDS: usize = 5;
const KIBIBYTES: u32 = 128 * 1024;
const PARTS: usize = 100;
const LINES: usize = 10_000;
