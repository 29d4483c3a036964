//! Whole nodes in one thread, on a paused clock, over a network in memory, with everything that can go wrong drawn from one
//! seed. `just sim SEED` lives through one and prints what happened.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod invariants;
mod network;
mod packets;
mod people;
mod plan;
mod story;
mod world;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Lives through seeds, and says of each that broke something how to see it again.
fn hold(seeds: Range<u64>) {
    let report: String = seeds.map(|seed| story::live(seed).report()).collect();
    assert!(
        report.is_empty(),
        "invariants are broken; see each again by\n{report}"
    );
}

macro_rules! seeds {
    ($($name:ident: $seeds:expr;)*) => {
        $(
            #[test]
            fn $name() {
                hold($seeds);
            }
        )*
    };
}

// Apart, so that they run side by side.
seeds! {
    seeds_0_to_24_hold: 0..25;
    seeds_25_to_49_hold: 25..50;
    seeds_50_to_74_hold: 50..75;
    seeds_75_to_99_hold: 75..100;
    seeds_100_to_124_hold: 100..125;
    seeds_125_to_149_hold: 125..150;
    seeds_150_to_174_hold: 150..175;
    seeds_175_to_199_hold: 175..200;
}

#[test]
fn a_seed_is_the_same_story_each_time() {
    for seed in [7, 8, 73, 99] {
        let (first, second) = (story::live(seed), story::live(seed));
        assert_eq!(first.log, second.log, "seed {seed}");
        assert_eq!(first.trace, second.trace, "seed {seed}");
    }
}

/// For a run by hand: as many seeds as `ZDAP_SIM_COUNT` says, from `ZDAP_SIM_START` on, on all processors; one alone is told
/// in full, with the nodes' own log if `RUST_LOG` asks for it.
#[test]
#[ignore = "by hand: `just sim`"]
fn the_seeds_that_are_asked_for_hold() {
    let number = |name: &str, otherwise| std::env::var(name).map_or(otherwise, |text| text.parse().unwrap());
    let (start, count) = (number("ZDAP_SIM_START", 0), number("ZDAP_SIM_COUNT", 1));
    if count == 1 {
        tell_all();
        let ending = story::live(start);
        println!("{}\n{ending}\n{}", ending.log.join("\n"), ending.report());
        return assert!(ending.broken.is_empty());
    }
    let (next, broken) = (AtomicU64::new(start), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= start + count {
                        return;
                    }
                    if seed > start && (seed - start).is_multiple_of(1000) {
                        println!("{} seeds so far", seed - start);
                    }
                    let report = story::live(seed).report();
                    if !report.is_empty() {
                        print!("{report}");
                        broken.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let broken = broken.into_inner();
    println!("{count} seeds from {start} on: {broken} broke an invariant");
    assert_eq!(broken, 0);
}

/// Has the log printed, with the time of the simulation.
fn tell_all() {
    struct Simulated(std::sync::OnceLock<tokio::time::Instant>);

    impl FormatTime for Simulated {
        fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
            let now = tokio::time::Instant::now();
            let began = *self.0.get_or_init(|| now);
            write!(writer, "{:9.3}", (now - began).as_secs_f64())
        }
    }

    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_default_env())
        .with_timer(Simulated(std::sync::OnceLock::new()))
        .with_ansi(false)
        .with_test_writer();
    log.init();
}
