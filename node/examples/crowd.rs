//! Many whole nodes in one process, over real QUIC on loopback, with storage and runtime in memory: what each costs, and
//! whether that grows. It judges nothing.
//!
//! `crowd 300 10` is 300 nodes for ten minutes. Each watches a directory, so it takes
//! `sysctl fs.inotify.max_user_instances=1024` and a few thousand open files.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    dead_code,
    reason = "a measurement, not a program"
)]

#[path = "../tests/cluster/world.rs"]
mod world;

use std::time::{Duration, Instant};

use zdap_node::faults::Faults;
use zdap_proto::message::{Answer, Invited, NodeState, Request};

use self::world::{Machine, Running};

#[tokio::main]
async fn main() {
    let mut asked = std::env::args().skip(1).filter_map(|text| text.parse().ok());
    let (nodes, minutes) = (asked.next().unwrap_or(300), asked.next().unwrap_or(10));
    let began = Instant::now();
    let crowd = start(nodes).await;
    println!("{nodes} nodes started in {:.1} s", began.elapsed().as_secs_f64());
    let settled = Instant::now();
    while !crowd.all_agree().await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!(
        "all of them know all of them {:.1} s later",
        settled.elapsed().as_secs_f64()
    );
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
            crowd.all_agree().await
        );
        before = cpu();
    }
}

struct Crowd {
    machines: Vec<Machine>,
    nodes: Vec<Running>,
}

async fn start(nodes: usize) -> Crowd {
    let machines: Vec<Machine> = (0..nodes)
        .map(|number| Machine::new(format!("n{number}").leak()))
        .collect();
    let first = machines[0].start_with(Faults::none(), 0, None).await.unwrap();
    let mut tokens = Vec::new();
    for _ in 1..nodes {
        tokens.push(first.token(Invited::Node).await);
    }
    let mut crowd = Crowd {
        machines,
        nodes: vec![first],
    };
    for (machine, token) in crowd.machines.iter().skip(1).zip(&tokens) {
        let node = machine.start_with(Faults::none(), 0, Some(token)).await.unwrap();
        crowd.nodes.push(node);
        // One after the other: each connects to all, and a few processors stand in for hundreds.
        while crowd.alive_at(crowd.nodes.len() - 1).await < crowd.nodes.len() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    crowd
}

impl Crowd {
    /// Asks a few, each of which has heard of all by ways of its own.
    async fn all_agree(&self) -> bool {
        for at in (0..self.nodes.len()).step_by(self.nodes.len().div_ceil(10)) {
            if self.alive_at(at).await != self.nodes.len() {
                return false;
            }
        }
        true
    }

    /// Returns how many nodes one of them holds for alive.
    async fn alive_at(&self, at: usize) -> usize {
        let answer = self.nodes[at].operator().await.ask(&Request::ListNodes).await;
        let Ok(Answer::Nodes(seen)) = answer else {
            return 0;
        };
        seen.iter().filter(|node| node.state == NodeState::Alive).count()
    }
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
