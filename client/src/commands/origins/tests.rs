use super::*;
use crate::cluster::tests::node_view;

fn visit(name: &str, answers: bool) -> Visit {
    let address = format!("{name}.example.com:43210");
    let nodes = ["db1", "db2"].map(|name| node_view(name, NodeState::Alive));
    Visit {
        result: match answers {
            true => Ok((Some(name.parse().unwrap()), nodes.to_vec())),
            false => Err(Silent {
                node: None,
                reason: format!("no answer from {address}"),
                hint: None,
            }),
        },
        address,
        cluster: "abc".parse().unwrap(),
    }
}

#[test]
fn the_json_of_an_origin_says_whether_it_answers_and_why_not() {
    let (visits, settings) = ([visit("db3", false)], Settings::default());
    assert_eq!(
        serde_json::to_string(&document(&visits[0], &visits, &settings)).unwrap(),
        r#"{"address":"db3.example.com:43210","cluster":"abc","connected":false,"added":false,"error":"no answer from db3.example.com:43210","node":null}"#
    );
}

#[test]
fn the_json_of_an_origins_node_is_that_of_a_node() {
    let (visits, settings) = ([visit("db1", true)], Settings::default());
    let origin = serde_json::to_value(document(&visits[0], &visits, &settings)).unwrap();
    let node = node_view("db1", NodeState::Alive);
    let node = serde_json::to_value(nodes::document(&node)).unwrap();
    assert_eq!(origin["node"], node);
    assert_eq!(origin["node"].as_object().map(serde_json::Map::len), Some(9));
}

#[test]
fn a_table_says_more_when_asked() {
    let (visits, settings) = ([visit("db1", true)], Settings::default());
    let documents = [document(&visits[0], &visits, &settings)];
    let words = |verbose| {
        let table = as_table(&documents, verbose);
        table.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        words(false),
        "ADDRESS NODE STATE KNOWN db1.example.com:43210 db1 alive learned"
    );
    assert!(
        words(true).ends_with("alive learned 1 2 3 1.00 GiB of 4.00 GiB 1.00 GiB of 2.00 GiB 50 % 0.1.0"),
        "{}",
        words(true)
    );
}

#[test]
fn an_address_that_does_not_answer_is_named_by_what_the_others_know() {
    let (visits, settings) = ([visit("db1", true), visit("db2", false)], Settings::default());
    let silent = document(&visits[1], &visits, &settings);
    assert_eq!(silent.name, Some("db2".parse().unwrap()));
    assert_eq!(
        row(&silent, false),
        ["db2.example.com:43210", "db2", "could not connect", "learned"]
    );
    assert_eq!(row(&silent, true)[2], "no answer from db2.example.com:43210");
}

#[test]
fn a_token_is_told_from_an_address_even_when_mistyped() {
    for token in ["zdap1-AVbk", "zdap2-AVbk", "zdap1-AVbk...", "zdap1-AV.bk"] {
        assert!(looks_like_a_token(token), "{token}");
    }
    for address in [
        "zdap1-db:43210",
        "zdap1-db.example.com:43210",
        "zdap-db",
        "zdapx-db",
        "db1",
    ] {
        assert!(!looks_like_a_token(address), "{address}");
    }
    let hint = read_token("zdap1-db.example.com").unwrap_err().hint;
    assert!(hint.is_some_and(|hint| hint.contains("zdap1-db.example.com:43210")));
}

#[test]
fn the_address_that_was_typed_is_tried_first_and_all_are_remembered_once() {
    let token = Token::new(vec!["a:1".to_owned(), "b:1".to_owned()], [0; 32], false);
    let token = with_address(token, "b:1".to_owned());
    assert_eq!(token.addresses, ["b:1", "a:1"]);
}
