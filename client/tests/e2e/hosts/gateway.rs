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
    let (clone, node) = ada.attach("shop", &["@db2"]);
    assert_eq!(node, "db2");
    let direct = {
        let _relay = ada.relay("shop", 6001);
        throughput(&ada, 6001)
    };

    // From home, with one open port.
    for host in &hosts[1..] {
        host.machine.cut_from(&ada.machine);
    }
    let began = Instant::now();
    let relay = ada.relay("shop", 6002);
    eprintln!("{TEST}: the relay is ready {:?} after its start", began.elapsed());
    let through = throughput(&ada, 6002);
    eprintln!(
        "{TEST}: {direct:.0} MiB/s directly, {through:.0} MiB/s through another node, ratio {:.2}",
        through / direct
    );
    ada.psql(6002, &["-c", "insert into item values ('from home')"])
        .done();
    let connect = ada.connect(&clone, 6003);
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
    let _elsewhere = ada.relay("elsewhere", 6004);

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

/// Returns MiB/s of reading from the database.
fn throughput(ada: &Developer, port: u16) -> f64 {
    let sql = format!("copy (select repeat('x', 1023) from generate_series(1, {KIBIBYTES})) to stdout");
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let began = Instant::now();
        let mut command = ada.psql_command(port);
        let status = command.args(["-c", &sql]).stdout(Stdio::null()).status();
        best = best.min(began.elapsed());
        assert!(status.unwrap().success());
    }
    f64::from(KIBIBYTES) / 1024.0 / best.as_secs_f64()
}

const KIBIBYTES: u32 = 64 * 1024;
const PARTS: usize = 100;
const LINES: usize = 10_000;
