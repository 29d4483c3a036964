//! Where in an override a relay's lines can go, and what has to be done there first.

use super::{
    ComposeError,
    document::{Node, NodeId, Value},
    fence::{BEGIN, END, Override, SERVICES, SPLIT, marker, spaces},
};

/// Where a relay's lines can go, and what they have to look like there.
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) layout: Layout,
}

/// Indents are numbers of spaces.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) indent: usize,
    /// How much further each level goes in.
    pub(super) step: usize,
    /// Whether entries stand in braces, a comma after each.
    pub(super) flow: bool,
}

impl Layout {
    /// Returns the layout of what stands one level below a line with that indent.
    fn below(indent: usize, flow: bool) -> Self {
        Self {
            indent: indent + STEP,
            step: STEP,
            flow,
        }
    }
}

impl Override<'_> {
    /// Returns a place for a new entry of `services`, having made one if need be.
    pub(super) fn open_place(&mut self) -> Result<Place, ComposeError> {
        match self.opening()? {
            Opening::None(place) => Ok(place),
            Opening::Services { line, indent } => {
                let next = self.put_fence(
                    line,
                    SERVICES,
                    indent,
                    &[],
                    &[format!("{}services:", spaces(indent))],
                );
                Ok(Place {
                    line: next,
                    layout: Layout::below(indent, false),
                })
            }
            Opening::Null { line, null, indent } => {
                let aside = self.lines.remove(line);
                let live: String = aside.chars().take(null - self.starts[line]).collect();
                let next = self.put_fence(line, SERVICES, indent, &[aside], &[live.trim_end().to_owned()]);
                Ok(Place {
                    line: next,
                    layout: Layout::below(indent, false),
                })
            }
            Opening::Brace { brace, with_services } => {
                let mut place = self.open_brace(brace);
                if with_services {
                    let indent = place.layout.indent;
                    self.put_fence(
                        place.line,
                        SERVICES,
                        indent,
                        &[],
                        &[format!("{}}},", spaces(indent))],
                    );
                    let opening = [format!("{}services: {{", spaces(indent))];
                    place.line = self.put_fence(place.line, SERVICES, indent, &[], &opening);
                    place.layout.indent += STEP;
                }
                Ok(place)
            }
        }
    }

    /// Returns the lines of an entry of `services`, and how they are laid out.
    pub(super) fn entry_lines(&self, key: NodeId) -> Result<(std::ops::Range<usize>, Layout), ComposeError> {
        let no_room = |key: &Node| layout(key, "the entry shares its lines with others");
        let root = self
            .document
            .root()
            .and_then(|root| self.document.entry(root, "services"));
        let Some((name, services)) = root.map(|(name, services)| (name, self.document.node(services))) else {
            return Err(no_room(self.document.node(key)));
        };
        let Value::Mapping { entries, brace } = &services.value else {
            return Err(layout(services, "`services` is an alias of something elsewhere"));
        };
        let position = entries.iter().position(|(entry, _)| *entry == key);
        let next = position.and_then(|position| entries.get(position + 1));
        let end = next.map_or(services.end, |(next, _)| self.document.node(*next).start);
        let key = self.document.node(key);
        let begins_line = |index: usize| {
            let line = self.line_of(index);
            self.lines[line]
                .chars()
                .take(index - self.starts[line])
                .all(char::is_whitespace)
        };
        let first = self.line_of(key.start);
        let mut after = if end >= self.characters() {
            self.lines.len()
        } else {
            self.line_of(end)
        };
        let alone = if brace.is_some() {
            begins_line(key.start) && begins_line(end)
        } else {
            first != self.line_of(self.document.node(name).start)
                && !self.lines[first].trim_start().starts_with(':')
        };
        if !alone || after <= first {
            return Err(no_room(key));
        }
        // What stands above the next entry, or at the end of the file, is not this one's.
        while after > first + 1 && is_comment_or_blank(&self.lines[after - 1]) {
            after -= 1;
        }
        let range = self.starts[first]..self.starts.get(after).copied().unwrap_or(usize::MAX);
        if self.document.lends_an_anchor(range) {
            return Err(layout(
                key,
                "the entry sets an anchor that is used elsewhere in the file",
            ));
        }
        let breaks = |line: &String| {
            line.trim_end_matches('\r')
                .contains(['\r', '\u{85}', '\u{2028}', '\u{2029}'])
        };
        if self.lines[first..after].iter().any(breaks) {
            return Err(layout(
                key,
                "the entry has line breaks that are neither Unix's nor Windows'",
            ));
        }
        Ok((
            first..after,
            Layout {
                indent: self.indent_of(first),
                step: STEP,
                flow: brace.is_some(),
            },
        ))
    }

    fn opening(&self) -> Result<Opening, ComposeError> {
        let Some(root) = self.document.root() else {
            // Nothing but comments, or a `---`: `services:` comes last.
            let line = match self.lines.last() {
                _ if self.document.end < self.characters() => self.line_of(self.document.end),
                Some(last) if last.is_empty() => self.lines.len() - 1,
                Some(_) | None => self.lines.len(),
            };
            return Ok(Opening::Services { line, indent: 0 });
        };
        let Value::Mapping { entries, brace } = &root.expect_mapping("the override")?.value else {
            return Err(layout(root, "the override is not a mapping"));
        };
        let Some((key, services)) = self.document.entry(root, "services") else {
            let first = entries
                .first()
                .map_or(0, |(key, _)| self.line_of(self.document.node(*key).start));
            return Ok(match *brace {
                Some(brace) => Opening::Brace {
                    brace,
                    with_services: true,
                },
                None => Opening::Services {
                    line: self.above(first),
                    indent: self.indent_of(first),
                },
            });
        };
        let (key, services) = (self.document.node(key), self.document.node(services));
        let line = self.line_of(key.start);
        let indent = self.indent_of(line);
        if services.tag.as_deref() == Some("!reset") {
            return Err(layout(services, "`services` is cut off here by `!reset`"));
        }
        match &services.value {
            Value::Mapping {
                brace: Some(brace), ..
            } => Ok(Opening::Brace {
                brace: *brace,
                with_services: false,
            }),
            Value::Mapping { entries, .. } => {
                let first = entries
                    .first()
                    .map_or(line, |(key, _)| self.line_of(self.document.node(*key).start));
                if first == line || self.lines[first].trim_start().starts_with(':') {
                    return Err(layout(
                        services,
                        "the first service stands on the line of `services`",
                    ));
                }
                let inner = self.indent_of(first);
                let step = inner.saturating_sub(indent).clamp(1, MAX_STEP);
                let layout = Layout {
                    indent: inner,
                    step,
                    flow: false,
                };
                Ok(Opening::None(Place {
                    line: self.above(first),
                    layout,
                }))
            }
            Value::Scalar { .. } if brace.is_some() || self.lines[line].trim_start().starts_with('?') => Err(
                layout(services, "`services` is no mapping that lines can be added to"),
            ),
            Value::Scalar { .. } if services.is_absent() => Ok(Opening::None(Place {
                line: self.below(line + 1),
                layout: Layout::below(indent, false),
            })),
            Value::Scalar { .. } if services.is_null() && self.line_of(services.start) == line => {
                Ok(Opening::Null {
                    line,
                    null: services.start,
                    indent,
                })
            }
            Value::Alias { .. } => Err(layout(services, "`services` is an alias of something elsewhere")),
            Value::Scalar { .. } | Value::Sequence(_) => {
                services.expect_mapping("`services`")?;
                Err(layout(services, "`services` is not a mapping"))
            }
        }
    }

    /// Returns the place after a brace, having split the line there if need be.
    fn open_brace(&mut self, brace: usize) -> Place {
        let line = self.line_of(brace);
        let text = &self.lines[line];
        let layout = Layout::below(self.indent_of(line), true);
        let column = brace + 1 - self.starts[line];
        let after = text
            .char_indices()
            .nth(column)
            .map_or(text.len(), |(byte, _)| byte);
        let rest = text[after..].trim_start();
        if !rest.is_empty() && !rest.starts_with('#') {
            let tail = format!("{}{rest}", spaces(layout.indent));
            let head = format!("{}{}", &text[..text.len() - rest.len()], self.carriage_return());
            self.lines[line] = head;
            self.lines.insert(line + 1, tail);
            self.put_fence(line + 1, SPLIT, layout.indent, &[], &[]);
        }
        Place {
            line: self.below(line + 1),
            layout,
        }
    }

    /// Returns the line from which comments lead down to `line` without a gap: they are about what stands there.
    fn above(&self, line: usize) -> usize {
        let mut line = line;
        while line > 0 && self.lines[line - 1].trim_start().starts_with('#') {
            let comment = &self.lines[line - 1];
            if marker(comment, END).is_some() {
                break;
            }
            line -= 1;
            if marker(comment, BEGIN).is_some() {
                break;
            }
        }
        line
    }

    /// Returns the first line from `line` on that is not the end of the `services:` that zdap has written.
    fn below(&self, line: usize) -> usize {
        let is_end = |line: &String| marker(line, END) == Some(SERVICES);
        if self.lines.get(line).is_some_and(is_end) {
            line + 1
        } else {
            line
        }
    }
}

/// What has to be done to have a place.
enum Opening {
    None(Place),
    /// `services:` is to be written.
    Services {
        line: usize,
        indent: usize,
    },
    /// The null that `services` has is to be taken from its line, which is set aside.
    Null {
        line: usize,
        null: usize,
        indent: usize,
    },
    /// A flow mapping that begins at `brace` is to be split if anything follows there.
    Brace {
        brace: usize,
        with_services: bool,
    },
}

fn is_comment_or_blank(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

fn layout(node: &Node, what: &'static str) -> ComposeError {
    ComposeError::Layout {
        line: node.line,
        what,
    }
}

/// Where the file does not show how far its user indents.
const STEP: usize = 2;
const MAX_STEP: usize = 8;
