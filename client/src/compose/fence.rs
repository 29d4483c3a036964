//! zdap's lines in an override: between which markers they stand, how they come and how they go.

use super::{ComposeError, document::Document};

/// The override's lines, what they say, and what of them is zdap's.
pub(super) struct Override<'a> {
    byte_order_mark: &'a str,
    /// Without the line feeds between them, but with the carriage returns before those.
    pub(super) lines: Vec<String>,
    /// Where each line begins, in characters; of the text as it was parsed.
    pub(super) starts: Vec<usize>,
    pub(super) document: Document,
    pub(super) fences: Vec<Fence>,
}

/// The lines from one marker to the other, both included.
#[derive(Clone)]
pub(super) struct Fence {
    pub(super) name: String,
    pub(super) begin: usize,
    pub(super) end: usize,
}

impl<'a> Override<'a> {
    /// Reads the override's text.
    pub(super) fn parse(text: &'a str) -> Result<Self, ComposeError> {
        let body = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (byte_order_mark, _) = text.split_at(text.len() - body.len());
        let document = Document::parse(body)?;
        let lines: Vec<String> = body.split('\n').map(str::to_owned).collect();
        let starts = lines
            .iter()
            .scan(0, |next, line| {
                Some(std::mem::replace(next, *next + line.chars().count() + 1))
            })
            .collect();
        let mut file = Self {
            byte_order_mark,
            lines,
            starts,
            document,
            fences: Vec::new(),
        };
        file.fences = file.find_fences()?;
        Ok(file)
    }

    /// Puts the lines together again, if they still say the same of everything but `service`.
    pub(super) fn finish(self, service: &str) -> Result<String, ComposeError> {
        let body = self.lines.join("\n");
        match Document::parse(&body) {
            Ok(after) if self.document.same_but_for(&after, service) => {
                Ok(format!("{}{body}", self.byte_order_mark))
            }
            Ok(_) | Err(_) => Err(ComposeError::NotAlone {
                service: service.to_owned(),
            }),
        }
    }

    /// Puts lines between markers and returns the number of the line after them.
    pub(super) fn put_fence(
        &mut self,
        line: usize,
        name: &str,
        indent: usize,
        aside: &[String],
        live: &[String],
    ) -> usize {
        let (pad, end) = (spaces(indent), self.carriage_return());
        let mut lines = vec![format!("{pad}{BEGIN}{name}{end}")];
        // These have had their carriage returns all along.
        lines.extend(aside.iter().map(|aside| format!("{pad}{ASIDE} {aside}")));
        lines.extend(live.iter().map(|live| format!("{live}{end}")));
        lines.push(format!("{pad}{END}{name}{end}"));
        let next = line + lines.len();
        self.lines.splice(line..line, lines);
        // A carriage return alone at the very end would be a line break of its own.
        if next == self.lines.len()
            && let Some(last) = self.lines.last_mut()
        {
            last.truncate(last.trim_end().len());
        }
        next
    }

    /// Puts what a fence has set aside back into its place.
    pub(super) fn take_out(&mut self, fence: &Fence) {
        let aside: Vec<String> = self.lines[fence.begin..=fence.end]
            .iter()
            .filter_map(|line| line.trim_start().strip_prefix(ASIDE))
            .map(|aside| aside.strip_prefix(' ').unwrap_or(aside).to_owned())
            .collect();
        self.lines.splice(fence.begin..=fence.end, aside);
    }

    /// Takes out all fences, of which one is a relay's; or leaves the lines of the `services:` that zdap has
    /// written, without their markers.
    pub(super) fn take_out_last(&mut self, keep_services: bool) {
        let mut tail = None;
        for fence in std::mem::take(&mut self.fences).into_iter().rev() {
            if keep_services && fence.name == SERVICES {
                let kept: Vec<String> = self.lines[fence.begin + 1..fence.end]
                    .iter()
                    .filter(|line| !line.trim_start().starts_with(ASIDE))
                    .cloned()
                    .collect();
                self.lines.splice(fence.begin..=fence.end, kept);
                continue;
            }
            self.take_out(&fence);
            if fence.name == SPLIT {
                // Counted from the end, for the lines above have yet to go.
                tail = Some(self.lines.len() - fence.begin);
            }
        }
        if let Some(tail) = tail.and_then(|tail| self.lines.len().checked_sub(tail))
            && (1..self.lines.len()).contains(&tail)
        {
            let rest = self.lines.remove(tail);
            let head = &mut self.lines[tail - 1];
            head.truncate(head.trim_end_matches('\r').len());
            head.push_str(rest.trim_start());
        }
    }

    /// Returns the lines of one relay.
    pub(super) fn fence(&self, service: &str) -> Option<&Fence> {
        self.fences.iter().find(|fence| fence.name == service)
    }

    /// Returns the line, from 0, of a character of the text as it was parsed.
    pub(super) fn line_of(&self, index: usize) -> usize {
        self.starts
            .partition_point(|start| *start <= index)
            .saturating_sub(1)
    }

    /// Returns how far a line is indented.
    pub(super) fn indent_of(&self, line: usize) -> usize {
        self.lines[line]
            .chars()
            .take_while(|c| matches!(c, ' ' | '\t'))
            .count()
    }

    /// Returns the length of the text as it was parsed, in characters, as long as no line has changed.
    pub(super) fn characters(&self) -> usize {
        self.starts
            .last()
            .zip(self.lines.last())
            .map_or(0, |(start, line)| start + line.chars().count())
    }

    /// What the lines of this file have before their line feeds.
    pub(super) fn carriage_return(&self) -> &'static str {
        if self.lines.len() > 1 && self.lines[0].ends_with('\r') {
            "\r"
        } else {
            ""
        }
    }

    fn find_fences(&self) -> Result<Vec<Fence>, ComposeError> {
        // In a text of several lines a marker is text.
        let texts: Vec<_> = self
            .document
            .nodes()
            .filter(|node| node.text().is_some_and(|text| !text.is_empty()) && node.start < node.end)
            .map(|node| node.start..node.end)
            .collect();
        let mut fences: Vec<Fence> = Vec::new();
        let mut open: Option<(usize, &str)> = None;
        for (number, line) in self.lines.iter().enumerate() {
            let (begin, end) = (marker(line, BEGIN), marker(line, END));
            let hash = self.starts[number] + self.indent_of(number);
            if (begin, end) == (None, None) || texts.iter().any(|text| text.contains(&hash)) {
                continue;
            }
            let problem = |problem| ComposeError::Fence {
                line: number + 1,
                marker: line.trim().to_owned(),
                problem,
            };
            match (open, begin, end) {
                (None, Some(name), _)
                    if name != SERVICES && fences.iter().any(|fence| fence.name == name) =>
                {
                    return Err(problem("stands here a second time"));
                }
                (None, Some(name), _) => open = Some((number, name)),
                (Some((begin, name)), _, Some(end)) if name == end => {
                    fences.push(Fence {
                        name: name.to_owned(),
                        begin,
                        end: number,
                    });
                    open = None;
                }
                (Some(_), Some(_), _) => return Err(problem("begins before the one above it has ended")),
                (_, _, Some(_)) => return Err(problem("ends what has not begun")),
                (_, None, None) => {}
            }
        }
        match open {
            None => Ok(fences),
            Some((begin, _)) => Err(ComposeError::Fence {
                line: begin + 1,
                marker: self.lines[begin].trim().to_owned(),
                problem: "has no end",
            }),
        }
    }
}

impl Fence {
    /// Whether these are lines for all relays rather than for one.
    pub(super) fn is_shared(&self) -> bool {
        self.name == SERVICES || self.name == SPLIT
    }
}

/// Returns the name in a marker line of the given kind.
pub(super) fn marker<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    line.trim()
        .strip_prefix(kind)
        .filter(|name| !name.is_empty() && !name.contains(char::is_whitespace))
}

pub(super) fn spaces(count: usize) -> String {
    " ".repeat(count)
}

pub(super) const BEGIN: &str = "# >>> zdap ";
pub(super) const END: &str = "# <<< zdap ";
const ASIDE: &str = "#|";

/// Brackets cannot stand in the name of a service.
pub(super) const SERVICES: &str = "(services)";
pub(super) const SPLIT: &str = "(split)";
