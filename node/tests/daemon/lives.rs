//! One resource file on every disk and engine; clones that outlive their node; ports that nobody else can reach.

use std::collections::BTreeSet;
use std::fs;

use crate::site::{Disk, Engine, Site, run};

#[tokio::test(flavor = "multi_thread")]
async fn the_example_restores_and_clones_on_zfs_with_docker() {
    let test = "the_example_restores_and_clones_on_zfs_with_docker";
    whole_life(test, Disk::Zfs, Engine::Docker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_restores_and_clones_in_a_directory_with_docker() {
    let test = "the_example_restores_and_clones_in_a_directory_with_docker";
    whole_life(test, Disk::Directory, Engine::Docker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_restores_and_clones_on_zfs_with_processes() {
    let test = "the_example_restores_and_clones_on_zfs_with_processes";
    whole_life(test, Disk::Zfs, Engine::Process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_restores_and_clones_in_a_directory_with_processes() {
    let test = "the_example_restores_and_clones_in_a_directory_with_processes";
    whole_life(test, Disk::Directory, Engine::Process).await;
}

async fn whole_life(test: &str, disk: Disk, engine: Engine) {
    let Some(mut site) = Site::new(test, disk, engine) else {
        return;
    };
    let open_before = reachable_from_outside();
    site.start();
    site.restore("orders");
    let (clone, other) = (site.clone_of("orders"), site.clone_of("orders"));
    let rows = "select count(*), min(amount) from orders";
    assert_eq!(site.query(&clone, rows).await, "5000|0.17");
    let unmasked = "select count(*) from customers where email like '%lovelace%'";
    assert_eq!(site.query(&clone, unmasked).await, "0");

    site.query(&clone, "delete from orders where id > 1").await;
    assert_eq!(site.query(&other, "select count(*) from orders").await, "5000");
    let opened: Vec<_> = reachable_from_outside()
        .difference(&open_before)
        .cloned()
        .collect();
    assert_eq!(
        opened,
        Vec::<String>::new(),
        "no database listens where others can reach it"
    );

    let began = "select pg_postmaster_start_time()";
    let first_start = site.query(&clone, began).await;
    site.terminate();
    site.start();
    assert_eq!(
        site.query(&clone, began).await,
        first_start,
        "the clone went on meanwhile"
    );
    assert_eq!(site.query(&clone, "select count(*) from orders").await, "1");
    site.nothing_is_orphaned();

    site.ask(&["destroy", "clone", other.as_str()]).unwrap();
    site.nothing_is_orphaned();
    site.ask(&["destroy", "all", "--yes"]).unwrap();
    site.nothing_is_orphaned();
    assert!(site.list("snaps").is_empty());
    site.terminate();
}

/// What `ss -lnt` shows on addresses other than loopback, with the program, for the programs that could be ours.
fn reachable_from_outside() -> BTreeSet<String> {
    let ours = |line: &&str| {
        ["postgres", "docker-proxy", "zdapd"]
            .iter()
            .any(|name| line.contains(name))
    };
    let outside = |line: &&str| {
        let address = line.split_whitespace().nth(3).unwrap_or_default();
        !(address.starts_with("127.") || address.starts_with("[::1]") || address.starts_with("[::ffff:127."))
    };
    run("ss", &["-Hlntp"])
        .lines()
        .filter(ours)
        .filter(outside)
        .map(str::to_owned)
        .collect()
}

/// On IPv4 and IPv6, TCP and UDP, the node's own port is the only one it opens.
#[test]
fn a_node_opens_one_port_and_it_is_for_quic() {
    let test = "a_node_opens_one_port_and_it_is_for_quic";
    let Some(mut site) = Site::new(test, Disk::Directory, Engine::Process) else {
        return;
    };
    site.start();
    site.restore("orders");
    site.clone_of("orders");
    let sockets: BTreeSet<_> = fs::read_dir(format!("/proc/{}/fd", site.pid()))
        .unwrap()
        .filter_map(|entry| {
            let link = fs::read_link(entry.ok()?.path()).ok()?;
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let mut open = Vec::new();
    for protocol in ["tcp", "tcp6", "udp", "udp6"] {
        let table = fs::read_to_string(format!("/proc/net/{protocol}")).unwrap_or_default();
        let rows = table
            .lines()
            .skip(1)
            .map(|row| row.split_whitespace().collect::<Vec<_>>());
        let ours = rows.filter(|row| row.get(9).is_some_and(|inode| sockets.contains(*inode)));
        open.extend(ours.map(|row| {
            let port = row[1].rsplit(':').next().unwrap_or_default();
            (
                protocol.trim_end_matches('6'),
                u16::from_str_radix(port, 16).unwrap(),
            )
        }));
    }
    let port: u16 = fs::read_to_string(site.state().join("port"))
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(open, [("udp", port)]);
}
