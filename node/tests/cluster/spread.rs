//! How evenly a burst spreads over nodes of different size.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use zdap_proto::message::{Answer, Request};
use zdap_proto::name::RequestId;

use crate::client::order;
use crate::together::Together;
use crate::world::Machine;

const WEIGHTS: [u64; 10] = [1, 1, 1, 1, 1, 2, 2, 2, 4, 4];
/// Clones a weight that are there before. On empty nodes a single clone too many on a small one is a seventh too much.
const PRELOAD: u64 = 8;
const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];

#[tokio::test]
async fn a_hundred_requests_within_20_ms_at_all_nodes_spread_by_the_size_of_the_nodes() {
    let machines = NAMES
        .into_iter()
        .zip(WEIGHTS)
        .map(|(name, weight)| Machine::of_weight(name, weight));
    let together = Together::start_on(machines.collect()).await;
    let mut clients = Vec::new();
    for node in &together.nodes {
        clients.push(node.user("ada").await);
    }
    // The nodes have talked to each other before.
    for client in &clients {
        let request = Request::ListClones {
            resource: None,
            all_owners: false,
        };
        client.ask(&request).await.unwrap();
    }
    let preload = NAMES.iter().zip(WEIGHTS).flat_map(|(name, weight)| {
        let client = &clients[0];
        (0..weight * PRELOAD).map(move |_| client.create_at(name))
    });
    join_all(preload).await;
    let before = together.clones().await;
    let began = Instant::now();
    let asks = (0..100).map(|number| {
        let client = &clients[number % clients.len()];
        async move {
            tokio::time::sleep(Duration::from_micros(200) * u32::try_from(number).unwrap()).await;
            client.ask(&order(&RequestId::random())).await.unwrap()
        }
    });
    let answers = join_all(asks).await;
    let took = began.elapsed();
    let clones = together.clones().await;
    let total: usize = clones.iter().sum();
    let mean = total as f64 / WEIGHTS.iter().sum::<u64>() as f64;
    let per_weight = clones
        .iter()
        .zip(WEIGHTS)
        .map(|(count, weight)| *count as f64 / weight as f64);
    let most = per_weight.fold(0.0, f64::max);
    let mut placing: Vec<f64> = answers
        .iter()
        .map(|answer| {
            let Answer::Created { stages, .. } = answer else {
                panic!("{answer:?}")
            };
            stages.place_ms + stages.reserve_ms
        })
        .collect();
    placing.sort_by(f64::total_cmp);
    println!(
        "{before:?} -> {clones:?} in {took:?}: max/mean {:.3}; placing median {} ms, worst {} ms",
        most / mean,
        placing[50],
        placing[99]
    );
    let preload = WEIGHTS.iter().sum::<u64>() * PRELOAD;
    assert_eq!(total as u64, preload + 100);
    assert!(most / mean <= 1.10, "{:.3}", most / mean);
}
