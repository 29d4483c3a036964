//! A YAML document as a tree that knows where each node stands.
//!
//! Positions count characters from 0, lines from 1, as the parser does.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};

use super::ComposeError;

/// One parsed document. Aliases stay aliases, so its size is that of the text.
#[derive(Debug, Default)]
pub(super) struct Document {
    nodes: Vec<Node>,
    root: Option<NodeId>,
    anchors: BTreeMap<usize, NodeId>,
    /// Where the content ends: at `...`, or at the end of the text.
    pub(super) end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(usize);

#[derive(Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    /// Such as `!reset`.
    pub(super) tag: Option<String>,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) line: usize,
    /// Whether an anchor is set on it.
    anchored: bool,
}

#[derive(Debug)]
pub(super) enum Value {
    Scalar {
        text: String,
        style: ScalarStyle,
    },
    Sequence(Vec<NodeId>),
    Mapping {
        entries: Vec<(NodeId, NodeId)>,
        /// Where its brace stands, if it is a flow mapping.
        brace: Option<usize>,
    },
    Alias {
        name: String,
        target: NodeId,
    },
}

impl Document {
    /// Parses `text`, which must not begin with a byte order mark.
    ///
    /// A scalar key that stands twice in one mapping is an error, as it is for compose.
    pub(super) fn parse(text: &str) -> Result<Self, ComposeError> {
        let mut builder = Builder {
            document: Self::default(),
            characters: text.chars().collect(),
            open: Vec::new(),
            documents: 0,
        };
        let mut parser = Parser::new_from_str(text);
        while let Some(next) = parser.next_event() {
            let (event, span) = next.map_err(|error| not_yaml(error.marker(), error.info()))?;
            builder.accept(event, span)?;
        }
        if builder.documents == 0 {
            builder.document.end = builder.characters.len();
        }
        Ok(builder.document)
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// Returns the document's node; `None` where there is nothing but comments, or no more than a null.
    pub(super) fn root(&self) -> Option<&Node> {
        self.root
            .map(|root| self.node(root))
            .filter(|root| !root.is_absent())
    }

    /// Follows an alias to what it stands for.
    pub(super) fn resolve(&self, id: NodeId) -> &Node {
        match self.node(id).value {
            Value::Alias { target, .. } => self.node(target),
            Value::Scalar { .. } | Value::Sequence(_) | Value::Mapping { .. } => self.node(id),
        }
    }

    /// Returns the key and the value of an entry that is written in the mapping itself.
    pub(super) fn entry(&self, mapping: &Node, key: &str) -> Option<(NodeId, NodeId)> {
        let Value::Mapping { entries, .. } = &mapping.value else {
            return None;
        };
        entries
            .iter()
            .copied()
            .find(|(name, _)| self.node(*name).text() == Some(key))
    }

    /// Returns the value of `key`, the mapping's own or else the first of those it merges by `<<`.
    pub(super) fn get<'a>(&'a self, mapping: &'a Node, key: &str) -> Option<&'a Node> {
        self.all_entries(mapping)
            .into_iter()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    /// Returns the entries of a mapping, its own before those it merges by `<<`.
    pub(super) fn all_entries<'a>(&'a self, mapping: &'a Node) -> Vec<(&'a str, &'a Node)> {
        let mut found: Vec<(&str, &Node)> = Vec::new();
        let mut seen: Vec<&Node> = Vec::new();
        let mut next = vec![mapping];
        while let Some(mapping) = next.pop() {
            let Value::Mapping { entries, .. } = &mapping.value else {
                continue;
            };
            // A mapping may merge itself, or the same one twice: that adds nothing.
            if seen.iter().any(|seen| std::ptr::eq(*seen, mapping)) {
                continue;
            }
            seen.push(mapping);
            let mut merged = Vec::new();
            for (key, value) in entries {
                let value = self.resolve(*value);
                match (self.resolve(*key).text(), &value.value) {
                    (Some("<<"), Value::Sequence(items)) => {
                        merged.extend(items.iter().map(|item| self.resolve(*item)));
                    }
                    (Some("<<"), _) => merged.push(value),
                    (Some(key), _) if !found.iter().any(|(name, _)| *name == key) => found.push((key, value)),
                    (Some(_) | None, _) => {}
                }
            }
            next.extend(merged.into_iter().rev());
        }
        found
    }

    /// Whether an anchor that is set inside `within` is used outside of it.
    pub(super) fn lends_an_anchor(&self, within: std::ops::Range<usize>) -> bool {
        self.nodes.iter().any(|node| match &node.value {
            Value::Alias { target, .. } => {
                let target = self.node(*target);
                target.anchored && within.contains(&target.start) && !within.contains(&node.start)
            }
            Value::Scalar { .. } | Value::Sequence(_) | Value::Mapping { .. } => false,
        })
    }

    /// Whether both say the same, but for the service `except`.
    ///
    /// No `services` and empty ones are the same here.
    pub(super) fn same_but_for(&self, other: &Self, except: &str) -> bool {
        self.other_entries(self.root(), "services")
            .same(other.other_entries(other.root(), "services"))
            && self
                .other_entries(self.services(), except)
                .same(other.other_entries(other.services(), except))
    }

    /// Returns the value of the top-level key `services`.
    pub(super) fn services(&self) -> Option<&Node> {
        let (_, services) = self.entry(self.root()?, "services")?;
        Some(self.resolve(services))
    }

    fn other_entries(&self, mapping: Option<&Node>, except: &str) -> Entries<'_> {
        let entries = match mapping.map(|mapping| &mapping.value) {
            Some(Value::Mapping { entries, .. }) => entries
                .iter()
                .copied()
                .filter(|(key, _)| self.node(*key).text() != Some(except))
                .collect(),
            Some(Value::Scalar { .. } | Value::Sequence(_) | Value::Alias { .. }) | None => Vec::new(),
        };
        Entries {
            document: self,
            entries,
        }
    }

    fn same(&self, one: NodeId, other: &Self, two: NodeId) -> bool {
        let (a, b) = (self.node(one), other.node(two));
        let all = |a: &[NodeId], b: &[NodeId]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.same(*a, other, *b))
        };
        a.tag == b.tag
            && match (&a.value, &b.value) {
                (
                    Value::Scalar { text: a, style },
                    Value::Scalar {
                        text: b,
                        style: other_style,
                    },
                ) => a == b && style == other_style,
                (Value::Sequence(a), Value::Sequence(b)) => all(a, b),
                (Value::Mapping { entries: a, .. }, Value::Mapping { entries: b, .. }) => {
                    let flat = |entries: &[(NodeId, NodeId)]| -> Vec<NodeId> {
                        entries.iter().flat_map(|(key, value)| [*key, *value]).collect()
                    };
                    all(&flat(a), &flat(b))
                }
                (Value::Alias { name: a, .. }, Value::Alias { name: b, .. }) => a == b,
                (
                    Value::Scalar { .. } | Value::Sequence(_) | Value::Mapping { .. } | Value::Alias { .. },
                    _,
                ) => false,
            }
    }
}

impl Node {
    /// Returns the text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            Value::Sequence(_) | Value::Mapping { .. } | Value::Alias { .. } => None,
        }
    }

    /// Whether this is a null: nothing at all, or a plain `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, style: ScalarStyle::Plain }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// Whether this is a null of which nothing is written.
    pub(super) fn is_absent(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, style: ScalarStyle::Plain } if text.is_empty())
    }

    /// Returns the kind of node for an error message.
    pub(super) fn found(&self) -> &'static str {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => "empty",
            Value::Scalar { .. } => "a single value",
            Value::Sequence(_) => "a list",
            Value::Mapping { .. } => "a mapping",
            Value::Alias { .. } => "an alias",
        }
    }

    /// Checks that this is a mapping; `what` names it in the error.
    pub(super) fn expect_mapping(&self, what: &str) -> Result<&Self, ComposeError> {
        match self.value {
            Value::Mapping { .. } => Ok(self),
            Value::Scalar { .. } | Value::Sequence(_) | Value::Alias { .. } => Err(ComposeError::Shape {
                line: self.line,
                what: what.to_owned(),
                found: self.found(),
                expected: "a mapping",
            }),
        }
    }
}

/// Some entries of a mapping, to be compared with those of another document.
struct Entries<'a> {
    document: &'a Document,
    entries: Vec<(NodeId, NodeId)>,
}

impl Entries<'_> {
    fn same(&self, other: Self) -> bool {
        self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(|(a, b)| {
                self.document.same(a.0, other.document, b.0) && self.document.same(a.1, other.document, b.1)
            })
    }
}

/// Puts the parser's events together.
struct Builder {
    document: Document,
    characters: Vec<char>,
    /// The collections that have begun, each mapping with the key whose value comes next.
    open: Vec<(NodeId, Option<NodeId>)>,
    documents: usize,
}

impl Builder {
    fn accept(&mut self, event: Event<'_>, span: Span) -> Result<(), ComposeError> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                match self.documents {
                    1 => Ok(()),
                    _ => Err(ComposeError::SeveralDocuments {
                        line: span.start.line(),
                    }),
                }
            }
            Event::DocumentEnd => {
                self.document.end = span.start.index();
                Ok(())
            }
            Event::Alias(anchor) => {
                let Some(target) = self.document.anchors.get(&anchor).copied() else {
                    return Err(not_yaml(&span.start, "alias of an anchor that is not set"));
                };
                let name = self
                    .characters
                    .get(span.start.index()..span.end.index())
                    .unwrap_or_default();
                let name = name.iter().collect();
                self.add(Value::Alias { name, target }, 0, None, span).map(drop)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = Value::Scalar {
                    text: text.into_owned(),
                    style,
                };
                self.add(value, anchor, tag.map(|tag| tag.to_string()), span)
                    .map(drop)
            }
            Event::SequenceStart(anchor, tag) => {
                let tag = tag.map(|tag| tag.to_string());
                let id = self.add(Value::Sequence(Vec::new()), anchor, tag, span)?;
                self.open(id, &span)
            }
            Event::MappingStart(anchor, tag) => {
                let value = Value::Mapping {
                    entries: Vec::new(),
                    brace: self.brace(&span),
                };
                let id = self.add(value, anchor, tag.map(|tag| tag.to_string()), span)?;
                self.open(id, &span)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some((id, _)) = self.open.pop() {
                    self.document.nodes[id.0].end = span.start.index();
                }
                Ok(())
            }
        }
    }

    /// Finds the brace in the span of a mapping's start, which is empty where there is none. An anchor or a
    /// tag may come before it and a comment in between; a brace can be part of the comment only.
    fn brace(&self, span: &Span) -> Option<usize> {
        let mut in_comment = false;
        (span.start.index()..span.end.index()).find(|position| {
            let character = self.characters.get(*position);
            in_comment = match character {
                Some('\r' | '\n') => false,
                Some('#') => true,
                Some(_) | None => in_comment,
            };
            !in_comment && character == Some(&'{')
        })
    }

    fn open(&mut self, id: NodeId, span: &Span) -> Result<(), ComposeError> {
        self.open.push((id, None));
        match self.open.len() {
            0..=MAX_DEPTH => Ok(()),
            _ => Err(not_yaml(&span.start, "nested too deeply")),
        }
    }

    fn add(
        &mut self,
        value: Value,
        anchor: usize,
        tag: Option<String>,
        span: Span,
    ) -> Result<NodeId, ComposeError> {
        let id = NodeId(self.document.nodes.len());
        let (start, end) = (span.start.index(), span.end.index());
        // The parser numbers anchors from 1; 0 is none.
        let anchored = anchor != 0;
        self.document.nodes.push(Node {
            value,
            tag,
            start,
            end,
            line: span.start.line(),
            anchored,
        });
        if anchored {
            self.document.anchors.insert(anchor, id);
        }
        let Some((parent, key)) = self.open.last_mut() else {
            self.document.root = Some(id);
            return Ok(id);
        };
        match (&mut self.document.nodes[parent.0].value, key.take()) {
            (Value::Sequence(items), _) => items.push(id),
            (Value::Mapping { entries, .. }, Some(key)) => entries.push((key, id)),
            (Value::Mapping { .. }, None) => {
                *key = Some(id);
                let parent = *parent;
                self.check_key(parent, id)?;
            }
            (Value::Scalar { .. } | Value::Alias { .. }, _) => {}
        }
        Ok(id)
    }

    fn check_key(&self, mapping: NodeId, key: NodeId) -> Result<(), ComposeError> {
        let key = self.document.node(key);
        let Some(text) = key.text() else { return Ok(()) };
        match self.document.entry(self.document.node(mapping), text) {
            None => Ok(()),
            Some((first, _)) => Err(ComposeError::DuplicateKey {
                line: key.line,
                key: text.to_owned(),
                first: self.document.node(first).line,
            }),
        }
    }
}

fn not_yaml(at: &Marker, message: &str) -> ComposeError {
    ComposeError::NotYaml {
        line: at.line(),
        column: at.col() + 1,
        message: message.to_owned(),
    }
}

/// Compose files nest some ten deep; the tree is compared by recursion, so a hostile one has to end somewhere.
const MAX_DEPTH: usize = 128;
