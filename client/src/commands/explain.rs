//! `--explain`: which nodes were considered for a clone, and what came of it.

use zdap_proto::message::{Bottleneck, Considered, Offered, Outcome};

use super::table::table;

/// Returns a line for each node: the share of its clones with one more, of as many as are sensible there, and the largest share of
/// anything, both as it has offered them itself or else as they were expected; what it would run out of first; and what came of it.
pub(super) fn table_of(considered: &[Considered]) -> String {
    if considered.is_empty() {
        return "no node had to be chosen: the clone was there already".to_owned();
    }
    let rows = considered.iter().map(|considered| {
        let known = considered.offered.or(considered.expected);
        let share = |of: fn(&Offered) -> f64| {
            known.map_or_else(|| "-".to_owned(), |known| format!("{:.1} %", of(&known) * 100.0))
        };
        vec![
            considered.node.to_string(),
            share(|known| known.clones),
            share(|known| known.load),
            known.map_or("-", |known| name(known.bottleneck)).to_owned(),
            match &considered.outcome {
                Outcome::Chosen => "chosen".to_owned(),
                Outcome::Passed => "another was better".to_owned(),
                Outcome::Refused(reason) => format!("refused: {reason}"),
            },
        ]
    });
    table(&["NODE", "CLONES", "LOAD", "BOTTLENECK", "OUTCOME"], rows)
}

fn name(bottleneck: Bottleneck) -> &'static str {
    match bottleneck {
        Bottleneck::Pool => "pool",
        Bottleneck::Memory => "memory",
        Bottleneck::Processor => "processor",
        Bottleneck::Clones => "clones",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_its_numbers_and_what_came_of_it() {
        let offered = |load| {
            Some(Offered {
                load,
                bottleneck: Bottleneck::Memory,
                clones: 0.01,
            })
        };
        let node = |name: &str, expected, offered, outcome| Considered {
            node: name.parse().unwrap(),
            expected,
            offered,
            outcome,
        };
        let considered = [
            node("a", offered(0.25), offered(0.2), Outcome::Chosen),
            node("b", offered(0.5), None, Outcome::Passed),
            node("c", None, None, Outcome::Refused("is draining".to_owned())),
        ];
        let text = table_of(&considered);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "NODE CLONES LOAD BOTTLENECK OUTCOME",
                "a 1.0 % 20.0 % memory chosen",
                "b 1.0 % 50.0 % memory another was better",
                "c - - - refused: is draining",
            ]
        );
    }
}
