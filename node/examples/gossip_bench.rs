//! Measures the gossip on a virtual clock and prints each figure beside its target. It judges nothing: the tests do.
//!
//! `gossip_bench` measures all; `gossip_bench 10 100` only clusters of these sizes.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    dead_code,
    reason = "a measurement, not a program"
)]

#[path = "../tests/gossip/cluster.rs"]
mod cluster;
#[path = "../tests/gossip/measure.rs"]
mod measure;
#[path = "../tests/gossip/network.rs"]
mod network;

use std::time::Duration;

use comfy_table::Table;
use measure::Samples;

fn main() {
    let asked: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|text| text.parse().ok())
        .collect();
    let is_asked = |nodes: usize| asked.is_empty() || asked.contains(&nodes);
    let mut figures = Figures(Table::new());
    figures
        .0
        .set_header(["figure", "nodes", "samples", "measured (p95)", "target"]);
    for (nodes, target) in [(10, 125.0), (100, 220.0), (1000, 280.0)] {
        if is_asked(nodes) {
            let spread = measure::spread(nodes, 100, 1);
            figures.milliseconds("update to all nodes", nodes, &spread.to_all, target);
            let name = format!("bytes per update and node, digest of {} B", spread.digest_bytes);
            let target = if nodes == 100 { "2600 B" } else { "" };
            figures.row(&name, nodes, 100, format!("{:.0} B", spread.bytes), target);
        }
    }
    for (nodes, count, suspect, know) in [
        (10, 200, "1.6 s", "4.6 s"),
        (100, 60, "2.0 s", "8.1 s"),
        (1000, 60, "", ""),
    ] {
        if is_asked(nodes) {
            let crashes = measure::crashes(nodes, count, 2);
            figures.seconds("crash: first suspect", nodes, &crashes.first_suspect, suspect);
            figures.seconds("crash: all know", nodes, &crashes.all_know, know);
        }
    }
    for (nodes, count) in [(10, 20), (100, 20), (300, 20), (1000, 3)] {
        if is_asked(nodes) {
            let joins = measure::joins(nodes, count, 3);
            figures.milliseconds("joiner knows all", nodes, &joins.knows_all, 1000.0);
            figures.seconds("joiner known by all", nodes, &joins.known_by_all, "");
        }
    }
    for (nodes, hours) in [(10, 16), (100, 16)] {
        if is_asked(nodes) {
            let time = Duration::from_secs(hours * 3600 / nodes as u64);
            let downs = measure::false_downs(nodes, 0.2, time, 4);
            let name = format!("false downs in {hours} node-hours, 20 % loss");
            figures.row(&name, nodes, 1, downs.to_string(), "0");
        }
    }
    for (nodes, split, seeds, target) in [
        (2, 60, 0..20, "6 s"),
        (10, 120, 0..20, "1.5 s"),
        (100, 120, 0..10, "6 s"),
    ] {
        if is_asked(nodes) {
            let healed = measure::heal(nodes, Duration::from_secs(split), seeds);
            figures.seconds(
                &format!("heal after a split of {split} s"),
                nodes,
                &healed,
                target,
            );
        }
    }
    for nodes in [10, 100, 1000] {
        if is_asked(nodes) {
            let idle = measure::idle(nodes, Duration::from_secs(30), 5);
            let (packets, streams, rest) = (idle.packets, idle.streams, idle.acknowledgements);
            let said = format!("{packets:.0} + {streams:.0} = {:.0} B/s", packets + streams);
            figures.row("idle, packets + exchanges", nodes, 1, said, "500 B/s");
            figures.row(
                "idle, QUIC's acknowledgements on top",
                nodes,
                1,
                format!("{rest:.0} B/s"),
                "",
            );
        }
    }
    println!("{}", figures.0);
}

struct Figures(Table);

impl Figures {
    fn seconds(&mut self, name: &str, nodes: usize, samples: &Samples, target: &str) {
        let measured = format!("{:.2} s", samples.p95());
        self.row(
            name,
            nodes,
            samples.times.len() + samples.missed,
            measured,
            target,
        );
    }

    fn milliseconds(&mut self, name: &str, nodes: usize, samples: &Samples, target: f64) {
        let measured = format!("{:.1} ms", samples.p95() * 1000.0);
        let target = format!("{target:.0} ms");
        self.row(
            name,
            nodes,
            samples.times.len() + samples.missed,
            measured,
            &target,
        );
    }

    /// Adds a row, and prints it at once: the whole takes minutes.
    fn row(&mut self, name: &str, nodes: usize, samples: usize, measured: String, target: &str) {
        println!("{name}, {nodes} nodes: {measured}");
        self.0
            .add_row([name, &nodes.to_string(), &samples.to_string(), &measured, target]);
    }
}
