//! YAML text -> a tree in which everything knows its line, so that whatever is found wrong later can be pointed at.
//!
//! Anchors, aliases and merge keys (`<<`) are resolved; tags are passed over, since the reader of a key knows its type.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use super::Position;

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) value: Value,
}

/// A value. Numbers and booleans are text still.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Text(String),
    List(Vec<Node>),
    /// No key comes twice.
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) position: Position,
    pub(super) value: Node,
}

/// What is wrong, and where in the file.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) position: Option<Position>,
    pub(super) key: Option<String>,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn at(position: Position, message: impl Into<String>) -> Self {
        Self {
            position: Some(position),
            key: None,
            message: message.into(),
        }
    }
}

/// Parses the one document of a file.
pub(super) fn parse(text: &str) -> Result<Node, Fault> {
    let text = text.trim_start_matches('\u{feff}');
    let mut reader = Reader {
        text,
        events: Parser::new_from_str(text),
        anchors: BTreeMap::new(),
        nodes: 0,
    };
    let mut document = None;
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
            Event::DocumentStart(_) if document.is_some() => {
                let message = "a second document begins here; one file describes one resource";
                return Err(Fault::at(start(span), message));
            }
            Event::DocumentStart(_) => {
                let (event, span) = reader.next()?;
                document = Some(reader.node(event, span, 0)?);
            }
            Event::Alias(_)
            | Event::Scalar(..)
            | Event::SequenceStart(..)
            | Event::SequenceEnd
            | Event::MappingStart(..)
            | Event::MappingEnd => return Err(Fault::at(start(span), "stands outside of a document")),
        }
    }
    document
        .filter(|node| !matches!(node.value, Value::Null))
        .ok_or_else(|| Fault {
            position: None,
            key: None,
            message: "is empty; a resource has at least `name`, `creation` and `docker.image`".to_owned(),
        })
}

struct Reader<'text> {
    text: &'text str,
    events: Parser<'text, StrInput<'text>>,
    anchors: BTreeMap<usize, Node>,
    /// How many have been made, copies for aliases included.
    nodes: usize,
}

impl<'text> Reader<'text> {
    fn next(&mut self) -> Result<(Event<'text>, Span), Fault> {
        match self.events.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let position = Position {
                    line: error.marker().line(),
                    column: error.marker().col() + 1,
                };
                let line = self.text.lines().nth(position.line.saturating_sub(1));
                let letter = line.and_then(|line| line.chars().nth(error.marker().col()));
                // The usual trap: `cron: */5 * * * *` and `cron: @daily`.
                let hint = match letter {
                    Some('*' | '@' | '%' | '`' | '&' | '!') => "; put the text in quotes",
                    Some(_) | None => "",
                };
                Err(Fault::at(
                    position,
                    format!("is not YAML: {}{hint}", error.info()),
                ))
            }
            None => Err(Fault {
                position: None,
                key: None,
                message: "is not YAML: it ends too early".to_owned(),
            }),
        }
    }

    /// Reads the node that `event` begins.
    fn node(&mut self, event: Event<'text>, span: Span, depth: usize) -> Result<Node, Fault> {
        let position = start(span);
        if depth > DEEPEST {
            return Err(Fault::at(position, "is nested too deep"));
        }
        let (value, anchor) = match event {
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(Fault::at(position, "refers to itself"));
                };
                let value = node.value.clone();
                self.count(node_count(&value), position)?;
                return Ok(Node { position, value });
            }
            Event::Scalar(text, style, anchor, _) => {
                let null = style == ScalarStyle::Plain && NULLS.contains(&text.as_ref());
                let value = match null {
                    true => Value::Null,
                    false => Value::Text(text.into_owned()),
                };
                (value, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.map(depth)?, anchor),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return Err(Fault::at(position, "is not YAML: a value is missing")),
        };
        self.count(1, position)?;
        let node = Node { position, value };
        if anchor != NO_ANCHOR {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Value, Fault> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::List(items));
            }
            items.push(self.node(event, span, depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, Fault> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let key = self.node(event, span, depth + 1)?;
            let position = key.position;
            let Value::Text(key) = key.value else {
                return Err(Fault::at(position, "a key must be text"));
            };
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            if key == "<<" {
                merged.extend(merge(value)?);
            } else if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                let message = format!("`{key}` is there twice, first in line {}", first.position.line);
                return Err(Fault::at(position, message));
            } else {
                entries.push(Entry { key, position, value });
            }
        }
        for entry in merged {
            if !entries.iter().any(|own| own.key == entry.key) {
                entries.push(entry);
            }
        }
        Ok(Value::Map(entries))
    }

    fn count(&mut self, nodes: usize, position: Position) -> Result<(), Fault> {
        self.nodes += nodes;
        match self.nodes > MOST_NODES {
            true => Err(Fault::at(position, "holds too much")),
            false => Ok(()),
        }
    }
}

/// Returns what `<<: value` adds to a map.
fn merge(node: Node) -> Result<Vec<Entry>, Fault> {
    let fault = || Fault::at(node.position, "`<<` takes a map, or a list of maps");
    match node.value {
        Value::Map(entries) => Ok(entries),
        Value::List(nodes) => {
            let mut merged = Vec::new();
            for node in nodes {
                let Value::Map(entries) = node.value else {
                    return Err(fault());
                };
                merged.extend(entries);
            }
            Ok(merged)
        }
        Value::Null | Value::Text(_) => Err(fault()),
    }
}

fn node_count(value: &Value) -> usize {
    1 + match value {
        Value::Null | Value::Text(_) => 0,
        Value::List(nodes) => nodes.iter().map(|node| node_count(&node.value)).sum(),
        Value::Map(entries) => entries
            .iter()
            .map(|entry| 1 + node_count(&entry.value.value))
            .sum(),
    }
}

fn start(span: Span) -> Position {
    Position {
        line: span.start.line(),
        column: span.start.col() + 1,
    }
}

const NULLS: &[&str] = &["", "~", "null", "Null", "NULL"];
/// How the parser says that a node has no anchor.
const NO_ANCHOR: usize = 0;
/// A resource file is three levels deep; the bound keeps recursion off the end of the stack.
const DEEPEST: usize = 32;
/// Bounds what aliases of aliases can grow to.
const MOST_NODES: usize = 10_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fault(text: &str) -> String {
        let fault = parse(text).unwrap_err();
        let line = fault.position.map(|position| position.line);
        format!("{line:?} {}", fault.message)
    }

    fn texts(node: &Node) -> String {
        match &node.value {
            Value::Null => "-".to_owned(),
            Value::Text(text) => text.clone(),
            Value::List(nodes) => format!("[{}]", nodes.iter().map(texts).collect::<Vec<_>>().join(" ")),
            Value::Map(entries) => {
                let entry = |entry: &Entry| format!("{}={}", entry.key, texts(&entry.value));
                format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn a_tree_has_the_lines_and_columns_of_its_text() {
        let tree = parse("a: 1\nb:\n  - x\n  - 'y'\n").unwrap();
        assert_eq!(texts(&tree), "{a=1 b=[x y]}");
        let Value::Map(entries) = tree.value else {
            panic!("not a map")
        };
        assert_eq!(entries[1].position, Position { line: 2, column: 1 });
        let Value::List(items) = &entries[1].value.value else {
            panic!("not a list")
        };
        assert_eq!(items[1].position, Position { line: 4, column: 5 });
    }

    #[test]
    fn only_an_unquoted_null_is_null() {
        let tree = parse("a:\nb: ~\nc: null\nd: ''\ne: 'null'\n").unwrap();
        assert_eq!(texts(&tree), "{a=- b=- c=- d= e=null}");
    }

    #[test]
    fn aliases_and_merge_keys_are_resolved_and_own_keys_win() {
        let tree = parse("a: &p {x: 1, y: 2}\nb:\n  <<: *p\n  y: 3\nc: *p\nd: {<<: [*p, {z: 4}]}\n").unwrap();
        assert_eq!(
            texts(&tree),
            "{a={x=1 y=2} b={y=3 x=1} c={x=1 y=2} d={x=1 y=2 z=4}}"
        );
    }

    #[test]
    fn a_key_given_twice_names_both_lines() {
        assert_eq!(
            fault("a: 1\nb: 2\na: 3\n"),
            "Some(3) `a` is there twice, first in line 1"
        );
    }

    #[test]
    fn a_second_document_is_refused_where_it_begins() {
        assert_eq!(
            fault("a: 1\n---\nb: 2\n"),
            "Some(2) a second document begins here; one file describes one resource"
        );
    }

    #[test]
    fn an_empty_file_is_not_a_resource() {
        for text in ["", "\n\n", "# nothing\n", "---\n", "null\n"] {
            assert!(fault(text).contains("is empty"), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_yaml_is_refused_with_its_line() {
        for (text, line) in [
            ("a: 1\nb: [1,\n", 3),
            ("a:\n\tb: 2\n", 2),
            ("a: \"x\n", 1),
            ("a: 1\nb: c: d\n", 2),
            ("a: 1\nb: *nobody\n", 2),
        ] {
            let fault = parse(text).unwrap_err();
            assert!(
                fault.message.starts_with("is not YAML"),
                "{text:?}: {}",
                fault.message
            );
            assert_eq!(fault.position.unwrap().line, line, "{text:?}");
        }
    }

    #[test]
    fn a_schedule_that_needs_quotes_is_told_so() {
        for text in ["cron: * * * * *\n", "cron: */5 * * * *\n", "cron: @daily\n"] {
            assert!(
                fault(text).ends_with("; put the text in quotes"),
                "{}",
                fault(text)
            );
        }
    }

    #[test]
    fn aliases_of_aliases_do_not_fill_the_memory() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..20 {
            let alias = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", [alias.as_str(); 10].join(", "));
        }
        assert!(fault(&text).ends_with("holds too much"));
    }

    #[test]
    fn deep_nesting_does_not_exhaust_the_stack() {
        assert!(fault(&"- ".repeat(100_000)).ends_with("is nested too deep"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*", lines in "([a-c&*:{}\\[\\]<>|'\"!?,-]|[ \t\n]){0,60}") {
            let _ = (parse(&text), parse(&lines));
        }
    }
}
