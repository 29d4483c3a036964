//! What holds of attach and detach whatever the override and the history.

use proptest::prelude::*;
use serde_yaml::Value;

use super::super::services;
use super::{ComposeError, SHAPES, WITH_ORDERS, attach, attached, detach, others, relay, service_of};

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Attach(usize),
    Detach(usize),
}

const NAMES: [&str; 4] = ["orders", "users", "stock", "9to5"];

/// Pieces that put together make an override with any of the names' own entries, or none.
fn override_text() -> impl Strategy<Value = String> {
    let service = (0..6usize, 0..4usize, any::<bool>()).prop_map(|(name, body, gap)| {
        let name = ["web", "db", "orders", "users", "cache", "mail"][name];
        let body = [
            ":\n    image: a\n    command: |\n      one\n      # two\n\n",
            ": {image: b, build: !reset null}\n",
            ":\n    # why\n    ports: !override [\"1:2\"]\n    labels: {a: 'b'}\n",
            ":\n    environment:\n      A: \"x\n        y\"\n",
        ][body];
        let gap = if gap { "\n  # about it\n" } else { "" };
        (name, format!("{gap}  {name}{body}"))
    });
    let ends = ["", "\n\n# end", "volumes: {data: {}}\n", "x-a: [1,\n  2]\n\n"];
    let starts = [
        "",
        "# start\n",
        "---\n",
        "x-b: &b {a: 1}\n\n",
        "%YAML 1.2\n---\n# start\n\n",
    ];
    let block = (
        prop::collection::vec(service, 0..5),
        0..starts.len(),
        0..ends.len(),
        1..5usize,
    )
        .prop_map(move |(services, start, end, width)| {
            let mut seen = std::collections::BTreeSet::new();
            let services: String = services
                .into_iter()
                .filter(|(name, _)| seen.insert(*name))
                .map(|(_, text)| text)
                .collect();
            let text = format!("{}services:\n{services}{}", starts[start], ends[end]);
            text.replace("  ", &" ".repeat(width))
        });
    let shape = prop::sample::select([SHAPES, WITH_ORDERS].concat()).prop_map(str::to_owned);
    (
        prop_oneof![block, shape],
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(text, crlf, mark, cut)| {
            let text = if crlf && !text.contains('\r') {
                text.replace('\n', "\r\n")
            } else {
                text
            };
            let text = if cut {
                text.trim_end_matches(['\r', '\n']).to_owned()
            } else {
                text
            };
            if mark && !text.starts_with('\u{feff}') {
                format!("\u{feff}{text}")
            } else {
                text
            }
        })
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let step = (any::<bool>(), 0..NAMES.len()).prop_map(|(attach, name)| {
        if attach {
            Step::Attach(name)
        } else {
            Step::Detach(name)
        }
    });
    prop::collection::vec(step, 1..12)
}

proptest! {
    #[test]
    fn any_history_ends_in_the_original_bytes(original in override_text(), history in history()) {
        let mut text = original.clone();
        let mut there: Vec<&str> = Vec::new();
        let check = |text: &str, there: &[&str]| {
            let mut listed: Vec<String> = attached(text).unwrap().into_iter().map(|found| found.service).collect();
            listed.sort();
            let mut expected = there.to_vec();
            expected.sort_unstable();
            prop_assert_eq!(listed, expected);
            prop_assert_eq!(others(text, &NAMES), others(&original, &NAMES), "{}", text);
            for name in there {
                prop_assert_eq!(&service_of(text, name)["labels"]["zdap.resource"], &Value::from(*name));
            }
            Ok(())
        };
        for step in history {
            match step {
                Step::Attach(name) => {
                    let name = NAMES[name];
                    text = attach(&text, &relay(name), true).unwrap();
                    there.retain(|other| *other != name);
                    there.push(name);
                }
                Step::Detach(name) => {
                    let name = NAMES[name];
                    match there.iter().position(|other| *other == name) {
                        Some(position) => {
                            text = detach(&text, name).unwrap();
                            there.remove(position);
                        }
                        None => {
                            let refused = matches!(detach(&text, name), Err(ComposeError::NotAttached { .. }));
                            prop_assert!(refused);
                        }
                    }
                }
            }
            check(&text, &there)?;
        }
        for name in there {
            text = detach(&text, name).unwrap();
        }
        prop_assert_eq!(text, original);
    }

    #[test]
    fn any_text_is_answered_and_what_was_attached_can_be_detached(
        parts in prop::collection::vec(prop::sample::select(vec![
            "services", ":", " ", "  ", "\n", "\r\n", "{", "}", "[", "]", ",", "#", "- ", "? ", "a", "orders",
            "&x", "*x", "!reset", "|", ">", "\"", "'", "~", "---\n", "...\n", "# >>> zdap orders\n",
            "# <<< zdap orders\n", "#| a\n", "\t", "é", "\u{feff}", "%", "services:\n  ", "\r", "\u{2028}",
        ]), 0..14),
        force in any::<bool>(),
    ) {
        let text = parts.concat();
        // A fence that is there from the start keeps what the fences share.
        let fenced = text.contains(">>> zdap");
        if let Ok(with) = attach(&text, &relay("users"), force) {
            let without = detach(&with, "users").unwrap();
            prop_assert!(fenced || without == text, "{:?} became {:?}", text, without);
        }
        drop(detach(&text, "orders"));
        drop(attached(&text));
        drop(services(&text));
    }
}
