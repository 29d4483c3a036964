//! The container's side of one `ports` entry, in every syntax that compose has.

use super::{
    ComposeError,
    document::{Document, Node, Value},
    project::Environment,
};

/// Returns the first container port of one entry; `None` if it is not a TCP port.
///
/// The host's side is not looked at: it may be a variable that nobody has set, which is for compose to say.
pub(super) fn container_port(
    document: &Document,
    entry: &Node,
    environment: Environment<'_>,
) -> Result<Option<u16>, ComposeError> {
    let text = match &entry.value {
        // `5433:22` without quotes is a text here and in compose, never a number to the base of 60.
        Value::Scalar { text, .. } => text,
        Value::Mapping { .. } => return long_syntax(document, entry, environment),
        Value::Sequence(_) | Value::Alias { .. } => {
            return Err(ComposeError::Shape {
                line: entry.line,
                what: "an entry of `ports`".to_owned(),
                found: entry.found(),
                expected: "a port or a mapping",
            });
        }
    };
    let mapping = interpolate(text, environment);
    let (ports, protocol) = mapping.split_once('/').unwrap_or((&mapping, "tcp"));
    // The container's side stands last; before it may come the host's, and before that an address of
    // either family.
    let container = ports.rsplit_once(':').map_or(ports, |(_, container)| container);
    first_port(container, text, entry.line).map(|port| is_tcp(protocol).then_some(port))
}

/// Replaces `$NAME` and `${NAME...}` as compose does; what is not set and has no default becomes nothing.
pub(super) fn interpolate(text: &str, environment: Environment<'_>) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        rest = if let Some(after) = after.strip_prefix('$') {
            result.push('$');
            after
        } else if let Some((inside, after)) = after.strip_prefix('{').and_then(split_at_closing_brace) {
            result.push_str(&substitute(inside, environment));
            after
        } else {
            let (name, after) = split_name(after);
            match name {
                "" => result.push('$'),
                name => result.push_str(&environment(name).unwrap_or_default()),
            }
            after
        };
    }
    result.push_str(rest);
    result
}

fn long_syntax(
    document: &Document,
    entry: &Node,
    environment: Environment<'_>,
) -> Result<Option<u16>, ComposeError> {
    let odd = |reason| ComposeError::Port {
        line: entry.line,
        value: "target".to_owned(),
        reason,
    };
    let target = document
        .get(entry, "target")
        .ok_or_else(|| odd("the entry has no `target`"))?;
    let text = target.text().ok_or_else(|| odd("`target` is not a number"))?;
    let port = first_port(&interpolate(text, environment), text, target.line)?;
    let protocol = document.get(entry, "protocol").and_then(Node::text);
    Ok(protocol
        .is_none_or(|protocol| is_tcp(&interpolate(protocol, environment)))
        .then_some(port))
}

/// Reads `5432` or the range `5432-5433`; `value` and `line` are what an error shows.
fn first_port(container: &str, value: &str, line: usize) -> Result<u16, ComposeError> {
    let odd = |reason| ComposeError::Port {
        line,
        value: value.to_owned(),
        reason,
    };
    let port = |text: &str| match text {
        "" if value.contains('$') => Err(odd("the container's port is a variable that is not set")),
        "" => Err(odd("the container's port is missing")),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => match digits.parse() {
            Ok(0) | Err(_) => Err(odd("the container's port is not between 1 and 65535")),
            Ok(port) => Ok(port),
        },
        _ => Err(odd("the container's port is not a number")),
    };
    let (first, last) = container.split_once('-').unwrap_or((container, container));
    let (first, last): (u16, u16) = (port(first)?, port(last)?);
    if last < first {
        return Err(odd("the range of ports ends before it begins"));
    }
    Ok(first)
}

fn is_tcp(protocol: &str) -> bool {
    protocol.is_empty() || protocol.eq_ignore_ascii_case("tcp")
}

/// Splits `NAME:-a${B}}rest` into `NAME:-a${B}` and `rest`.
fn split_at_closing_brace(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0;
    let mut previous = ' ';
    for (position, character) in text.char_indices() {
        match character {
            '{' if previous == '$' => depth += 1,
            '}' if depth == 0 => return Some((&text[..position], &text[position + 1..])),
            '}' => depth -= 1,
            _ => {}
        }
        previous = character;
    }
    None
}

/// Returns what `${...}` stands for: `NAME`, or `NAME` with one of `:-`, `-`, `:+`, `+`, `:?`, `?` and a text.
fn substitute(inside: &str, environment: Environment<'_>) -> String {
    let (name, rest) = split_name(inside);
    let (colon, rest) = rest.strip_prefix(':').map_or((false, rest), |rest| (true, rest));
    // With the colon, a variable that is empty counts as one that is not set.
    let set = environment(name).filter(|value| !(colon && value.is_empty()));
    match (rest.strip_prefix('-'), rest.strip_prefix('+')) {
        (Some(default), _) => set.unwrap_or_else(|| interpolate(default, environment)),
        (None, Some(replacement)) => set
            .map(|_| interpolate(replacement, environment))
            .unwrap_or_default(),
        (None, None) => set.unwrap_or_default(),
    }
}

fn split_name(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("6000".to_owned()),
            "EMPTY" => Some(String::new()),
            "PAIR" => Some("7000:7001".to_owned()),
            _ => None,
        }
    }

    fn port_of(entry: &str) -> Result<Option<u16>, ComposeError> {
        let document = Document::parse(entry).unwrap();
        container_port(&document, document.root().unwrap(), &environment)
    }

    #[test]
    fn the_container_port_is_found_in_every_syntax() {
        for (entry, expected) in [
            ("5432", 5432),
            ("\"5432\"", 5432),
            ("\"5433:5432\"", 5432),
            ("5433:22", 22),
            ("\"127.0.0.1:5433:5432\"", 5432),
            ("\"127.0.0.1::5432\"", 5432),
            ("\"[::1]:5433:5432\"", 5432),
            ("\"::1:5433:5432\"", 5432),
            ("\"5433:5432/tcp\"", 5432),
            ("\"5433:5432/TCP\"", 5432),
            ("\"5433-5434:5432-5433\"", 5432),
            ("\"5000-5010:5432\"", 5432),
            ("\"${PORT:-5433}:5432\"", 5432),
            ("\"${NOBODY}:5432\"", 5432),
            ("\"${NOBODY:?set it}:5432\"", 5432),
            ("\"${HOST:-127.0.0.1}:${PORT}:5432\"", 5432),
            ("\"5433:${PORT:-5432}\"", 6000),
            ("\"5433:$PORT\"", 6000),
            ("\"5433:${NOBODY:-5432}\"", 5432),
            ("\"5433:${NOBODY-${EMPTY:-5431}}\"", 5431),
            ("\"5433:${EMPTY:-5432}/tcp\"", 5432),
            ("\"5433:${PORT:+5430}\"", 5430),
            ("\"${PAIR}\"", 7001),
            ("{target: 5432, published: \"5433\", protocol: tcp}", 5432),
            ("{target: \"${PORT:-5432}\"}", 6000),
            (
                "{\"target\": 5432, \"host_ip\": \"127.0.0.1\", \"mode\": \"host\"}",
                5432,
            ),
        ] {
            assert_eq!(port_of(entry).unwrap(), Some(expected), "{entry}");
        }
    }

    #[test]
    fn other_protocols_are_passed_over() {
        for entry in ["\"5353:5353/udp\"", "\"1/sctp\"", "{target: 5353, protocol: udp}"] {
            assert_eq!(port_of(entry).unwrap(), None, "{entry}");
        }
    }

    #[test]
    fn odd_ports_are_errors_that_name_the_value_and_the_line() {
        for entry in [
            "\"5433:postgres\"",
            "\"5433:0\"",
            "70000",
            "\"5433:70000\"",
            "\"5433:\"",
            "\"\"",
            "-1",
            "5432.0",
            "\"5433:${NOBODY}\"",
            "\"5433:5434-5433\"",
            "{published: \"5433\"}",
            "{target: [1]}",
            "{target: x}",
        ] {
            let error = port_of(entry).unwrap_err().to_string();
            assert!(error.starts_with("line 1: port `"), "{entry}: {error}");
        }
        assert_eq!(
            port_of("\"5433:${NOBODY}\"").unwrap_err().to_string(),
            "line 1: port `5433:${NOBODY}`: the container's port is a variable that is not set"
        );
    }

    #[test]
    fn variables_are_replaced_as_compose_does() {
        for (text, expected) in [
            ("$$PORT", "$PORT"),
            ("a$PORT-b", "a6000-b"),
            ("${EMPTY-x}|${EMPTY:-x}", "|x"),
            ("${NOBODY+x}${PORT+y}", "y"),
            ("${unclosed", "${unclosed"),
            ("100$", "100$"),
        ] {
            assert_eq!(interpolate(text, &environment), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_host_side_leaves_the_container_port_alone(
            host in "(([0-9]{1,3}\\.){3}[0-9]{1,3}:|\\[[0-9a-f:]{2,10}\\]:|\\$\\{[A-Z]+(:-[0-9]*)?\\}:)?([0-9]{0,5}|\\$\\{[A-Z]+\\}):",
            port in 1..=u16::MAX,
            protocol in "(/tcp)?",
        ) {
            prop_assert_eq!(port_of(&format!("\"{host}{port}{protocol}\"")).unwrap(), Some(port));
        }

        #[test]
        fn no_text_is_too_odd_to_answer(text in "[-${}:/0-9a-zA-Z_+?\\[\\]. ]{0,40}") {
            let document = Document::parse(&format!("'{text}'")).unwrap();
            if let Some(entry) = document.root() {
                drop(container_port(&document, entry, &environment));
            }
        }
    }
}
