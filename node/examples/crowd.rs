//! Many whole nodes in one process, over real QUIC on loopback, with storage and runtime in memory: what each costs, and
//! whether that grows. It judges nothing. As in a process of its own each has its own threads.
//!
//! `crowd 300 10` is 300 nodes for ten minutes, `crowd 300 10 8` the same with all of them stopped for 8 s after the second
//! minute: a machine that stands still is no reason to take anybody for dead. Each watches a directory, so it takes
//! `sysctl fs.inotify.max_user_instances=1024` and a few thousand open files.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    dead_code,
    reason = "a measurement, not a program"
)]

#[path = "../tests/cluster/client.rs"]
mod client;
#[path = "../tests/cluster/world.rs"]
mod world;

use std::process::Command;
use std::time::{Duration, Instant};

use zdap_node::cluster::{Seen, View};
use zdap_node::gossip::MemberState;
use zdap_proto::message::Invited;

use self::world::{Apart, Machine};

#[tokio::main]
async fn main() {
    let mut asked = std::env::args().skip(1).filter_map(|text| text.parse().ok());
    let (nodes, minutes) = (asked.next().unwrap_or(300), asked.next().unwrap_or(10));
    let held_up = asked.next();
    let began = Instant::now();
    let crowd = start(nodes).await;
    println!("{nodes} nodes started in {:.1} s", began.elapsed().as_secs_f64());
    println!("minute  CPU ms/s a node  resident KiB a node  all agree");
    let mut before = cpu();
    for minute in 1..=minutes {
        let start = Instant::now();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let now = cpu();
        let each_second = (now - before).as_secs_f64() * 1000.0 / start.elapsed().as_secs_f64();
        println!(
            "{minute:<7} {:<16.2} {:<20} {}",
            each_second / nodes as f64,
            resident_kib() / nodes as u64,
            crowd.all_agree()
        );
        if let Some(seconds) = held_up.filter(|_| minute == 2) {
            hold_up(seconds);
        }
        before = cpu();
    }
}

/// Has this process stopped for a while.
fn hold_up(seconds: usize) {
    let me = std::process::id();
    let script = format!("kill -STOP {me}; sleep {seconds}; kill -CONT {me}");
    Command::new("sh").args(["-c", &script]).status().unwrap();
    println!("all were stopped for {seconds} s");
}

struct Crowd {
    machines: Vec<Machine>,
    nodes: Vec<Apart>,
}

/// Starts the nodes one after the other: each connects to all, and a few processors stand in for hundreds.
async fn start(nodes: usize) -> Crowd {
    let machine = |number| Machine::new(format!("n{number}").leak());
    let machines: Vec<Machine> = (0..nodes).map(machine).collect();
    let mut crowd = Crowd {
        nodes: vec![machines[0].start_apart(0, None).await.unwrap()],
        machines,
    };
    let began = Instant::now();
    for at in 1..nodes {
        let token = crowd.nodes[0].token(Invited::Node).await;
        let node = crowd.machines[at].start_apart(0, Some(&token)).await;
        crowd.nodes.push(node.unwrap());
        crowd.agrees().await;
        if crowd.nodes.len().is_multiple_of(50) {
            let seconds = began.elapsed().as_secs_f64();
            println!("{} nodes after {seconds:.1} s", crowd.nodes.len());
        }
    }
    crowd
}

impl Crowd {
    /// Waits until each knows all there is to know of all.
    async fn agrees(&self) {
        while !self.all_agree() {
            for node in &self.nodes {
                let mut views = node.views.clone();
                views.wait_for(|view| self.is_all_of(view)).await.unwrap();
            }
        }
    }

    fn all_agree(&self) -> bool {
        self.nodes.iter().all(|node| self.is_all_of(&node.views.borrow()))
    }

    fn is_all_of(&self, view: &View) -> bool {
        let known = view.members.values();
        known.filter(|seen| is_known(seen)).count() == self.nodes.len()
    }
}

/// Whether it is there, and its newest catalog is held.
fn is_known(seen: &Seen) -> bool {
    let wanted = seen.digest.as_ref().map(|heard| heard.digest.report.catalog_hash);
    let held = seen.catalog.as_ref().map(|catalog| catalog.hash);
    seen.state == MemberState::Alive && wanted.is_some() && wanted == held
}

/// Returns the processor time that this process has taken.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name stands in brackets and may hold anything; user and system time are the 12th and 13th word behind it.
    let words: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = words[11..13]
        .iter()
        .map(|word| word.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10) // Linux counts in hundredths of a second towards programs
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.and_then(|kib| kib.parse().ok()).unwrap_or_default()
}
