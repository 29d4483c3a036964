//! The override with relays in it, and without.
//!
//! What zdap adds are whole lines, between two markers that are comments to YAML:
//!
//! ```yaml
//! services:
//!   # >>> zdap orders
//!   orders:
//!     image: "zdap/zdap-proxyd:0.1.0"
//!   # <<< zdap orders
//!   web: ...
//! ```
//!
//! Taking the lines out again gives back the file. Where that is not enough:
//!
//! - An entry of the user's that has to give way (`--force`) stands between the markers, each line after `#| `.
//! - `services:`, if there was none, stands between markers of its own, `# >>> zdap (services)`. They go with
//!   the last relay. If the user has put services of their own below by then, the line is theirs from there on.
//! - A flow mapping that begins in the middle of a line (`services: {web: ...}`) is split after its brace. The
//!   markers `# >>> zdap (split)` say so, and the last relay's going joins the two halves again.
//!
//! Lines are what stands between line feeds. The last one has none after it; so a file that does not end in a
//! line feed gets lines that do not either, and nothing has to be remembered about it.

use super::{
    ComposeError,
    document::Node,
    fence::Override,
    place::Layout,
    relay::{LABELS, RelayService},
};

/// A service whose place a relay has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    pub service: String,
    pub resource: String,
    pub clone: String,
    pub node: String,
    pub owner: String,
}

/// Returns the override with the relay in it.
///
/// An entry that the service has there already is an error, or with `force` set aside until [`detach`]; with
/// `force` a relay that is there already is replaced.
pub fn attach(override_text: &str, relay: &RelayService, force: bool) -> Result<String, ComposeError> {
    relay.check()?;
    let service = relay.service.as_str();
    let mut file = Override::parse(override_text)?;
    if let Some(fence) = file.fence(service) {
        if !force {
            let clone = file
                .label(service, LABELS[1], fence.begin)
                .unwrap_or_else(|_| "unknown".to_owned());
            return Err(ComposeError::AlreadyAttached {
                service: service.to_owned(),
                clone,
            });
        }
        return attach(&detach(override_text, service)?, relay, force);
    }
    let entry = file
        .document
        .services()
        .and_then(|services| file.document.entry(services, service));
    match entry {
        None => {
            let place = file.open_place()?;
            file.put(place.line, relay, &place.layout, &[]);
        }
        Some((key, _)) if !force => {
            let line = file.document.node(key).line;
            return Err(ComposeError::InOverride {
                line,
                service: service.to_owned(),
            });
        }
        Some((key, _)) => {
            let (lines, layout) = file.entry_lines(key)?;
            let aside: Vec<String> = file.lines.drain(lines.clone()).collect();
            file.put(lines.start, relay, &layout, &aside);
        }
    }
    file.finish(service)
}

/// Returns the override as it was before the service was attached, with whatever else has changed since.
pub fn detach(override_text: &str, service: &str) -> Result<String, ComposeError> {
    let mut file = Override::parse(override_text)?;
    let Some(fence) = file.fence(service).cloned() else {
        let attached = file
            .fences
            .iter()
            .filter(|fence| !fence.is_shared())
            .map(|fence| fence.name.clone());
        return Err(ComposeError::NotAttached {
            service: service.to_owned(),
            attached: attached.collect(),
        });
    };
    if file.fences.iter().filter(|fence| !fence.is_shared()).count() > 1 {
        file.take_out(&fence);
        return file.finish(service);
    }
    file.take_out_last(false);
    file.finish(service).or_else(|_| {
        // The user's own services have come to need the `services:` that zdap has written.
        let mut file = Override::parse(override_text)?;
        file.take_out_last(true);
        file.finish(service)
    })
}

/// Returns what is attached, in the order of the override.
pub fn attached(override_text: &str) -> Result<Vec<Attached>, ComposeError> {
    let file = Override::parse(override_text)?;
    let relays = file.fences.iter().filter(|fence| !fence.is_shared());
    relays
        .map(|fence| {
            let label = |label| file.label(&fence.name, label, fence.begin);
            Ok(Attached {
                service: fence.name.clone(),
                resource: label(LABELS[0])?,
                clone: label(LABELS[1])?,
                node: label(LABELS[2])?,
                owner: label(LABELS[3])?,
            })
        })
        .collect()
}

impl Override<'_> {
    fn put(&mut self, line: usize, relay: &RelayService, layout: &Layout, aside: &[String]) {
        let live = match layout.flow {
            true => relay.flow(layout.indent, layout.step),
            false => relay.block(layout.indent, layout.step),
        };
        self.put_fence(line, &relay.service, layout.indent, aside, &live);
    }

    fn label(&self, service: &str, label: &'static str, line: usize) -> Result<String, ComposeError> {
        let of = |node: Option<_>, key| node.map(|node| self.document.get(node, key));
        let service_node = of(self.document.services(), service).flatten();
        let labels = of(service_node, "labels").flatten();
        match of(labels, label).flatten().and_then(Node::text) {
            Some(text) => Ok(text.replace("$$", "$")),
            None => Err(ComposeError::LabelLost {
                line: line + 1,
                service: service.to_owned(),
                label,
            }),
        }
    }
}
