//! The project's `.env`: `NAME=value` lines, as compose reads them.

/// Returns the last value that `text` gives to `name`.
pub fn variable(text: &str, name: &str) -> Option<String> {
    let assigned = text.lines().rev().find_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (key, value) = line.split_once('=')?;
        (key.trim() == name).then_some(value)
    });
    assigned.map(value)
}

/// Quotes keep all that is between them. Without them, a comment begins at a `#` after a blank.
fn value(text: &str) -> String {
    let text = text.trim();
    let quoted = |quote: char| text.strip_prefix(quote)?.split_once(quote);
    if let Some((value, _)) = quoted('"').or_else(|| quoted('\'')) {
        return value.to_owned();
    }
    let comment = text
        .match_indices('#')
        .find(|(at, _)| text[..*at].chars().next_back().is_none_or(char::is_whitespace));
    let end = comment.map_or(text.len(), |(at, _)| at);
    text[..end].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_what_compose_makes_of_its_line() {
        for (text, expected) in [
            ("A=1", "1"),
            ("  export A=1\r\n", "1"),
            ("export A = 1 ", "1"),
            ("A=1\nA=2\nB=3", "2"),
            ("A=two # comment", "two"),
            ("A=two\t# comment", "two"),
            ("A=a#b", "a#b"),
            ("A=\"x # y\" # comment", "x # y"),
            ("A='x # y'", "x # y"),
            ("A=# nothing", ""),
            ("A=", ""),
        ] {
            assert_eq!(variable(text, "A").as_deref(), Some(expected), "{text:?}");
        }
        for text in ["", "# A=1", "AB=1", "A"] {
            assert_eq!(variable(text, "A"), None, "{text:?}");
        }
    }
}
