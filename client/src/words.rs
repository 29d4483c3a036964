//! The words of a command, in any order: `@node` pins a node, an RFC 3339 time picks a snapshot or clone, the other word is
//! the resource (or clone).

use std::str::FromStr;

use chrono::NaiveDate;
use zdap_proto::name::{NameError, SnapshotTime};

/// What the words of one command mean.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words {
    /// The resource, or the clone's id.
    pub subject: Option<String>,
    /// The snapshot, or when the clone was made.
    pub time: Option<SnapshotTime>,
    /// The node that is wanted and no other.
    pub pin: Option<Pin>,
}

/// A node that is wanted and no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pin {
    /// `@db1`: by its name, or the host part of its address.
    Name(String),
    /// `@db1:43210`: by its address.
    Address(String),
}

/// Why words make no sense together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// Two words for one place.
    #[error("two {what}, `{first}` and `{second}`; one is expected")]
    Twice {
        /// What they both are.
        what: &'static str,
        /// The one that came first.
        first: String,
        /// The other.
        second: String,
    },
    /// An `@` with nothing after it.
    #[error("`@` names no node")]
    EmptyPin,
    /// It begins like a time and is none.
    #[error(transparent)]
    Time(NameError),
    /// It is no address.
    #[error("`{0}` is not an address such as `db1.example.com:43210`")]
    Address(String),
    /// Words but no resource.
    #[error("a resource is missing")]
    NoSubject,
}

impl WordsError {
    /// Returns the remedy, where there is one to name.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::EmptyPin => Some("`@node` or `@host:port`".to_owned()),
            Self::NoSubject => Some("`zdap list resources --all` shows them".to_owned()),
            // Whichever of the two is no resource was meant as something else.
            Self::Twice { what: "resources", .. } | Self::Time(_) => Some(
                "a time is written as in 2026-11-22T13:39:25Z (`zdap list snaps` shows them), a node as in @db1".to_owned(),
            ),
            Self::Twice { .. } | Self::Address(_) => None,
        }
    }
}

impl Words {
    /// Sorts out what each word is.
    pub fn parse(words: &[String]) -> Result<Self, WordsError> {
        let mut parsed = Self::default();
        for word in words {
            if let Some(pin) = word.strip_prefix('@') {
                put(&mut parsed.pin, Pin::parse(pin)?, "nodes", |pin| pin.to_string())?;
            } else if looks_like_a_time(word) {
                let time = word.parse().map_err(WordsError::Time)?;
                put(&mut parsed.time, time, "times", |time| time.to_string())?;
            } else {
                put(&mut parsed.subject, word.clone(), "resources", String::clone).map_err(date_first)?;
            }
        }
        Ok(parsed)
    }

    /// Returns the resource or clone, which has to be there.
    pub fn subject(&self) -> Result<&str, WordsError> {
        self.subject.as_deref().ok_or(WordsError::NoSubject)
    }
}

/// As they could have been typed.
impl std::fmt::Display for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = self.time.map(|time| time.to_string());
        let pin = self.pin.as_ref().map(ToString::to_string);
        let words = [self.subject.clone(), time, pin];
        f.write_str(&words.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }
}

impl Pin {
    fn parse(text: &str) -> Result<Self, WordsError> {
        match text {
            "" => Err(WordsError::EmptyPin),
            text if text.contains(':') => address(text).map(Self::Address),
            text => Ok(Self::Name(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) | Self::Address(name) => write!(f, "@{name}"),
        }
    }
}

/// Reads `HOST`, `HOST:PORT`, `[IPV6]:PORT` or a bare IPv6 address, and returns it with its port.
pub fn address(text: &str) -> Result<String, WordsError> {
    let wrong = || WordsError::Address(text.to_owned());
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Ok(ip) = bare.unwrap_or(text).parse::<std::net::Ipv6Addr>() {
        return Ok(format!("[{ip}]:{DEFAULT_PORT}"));
    }
    if let Ok(socket) = text.parse::<std::net::SocketAddrV6>() {
        return Ok(socket.to_string());
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().map_err(|_| wrong())?),
        None => (text, DEFAULT_PORT),
    };
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_');
    match !host.is_empty() && host.len() <= LONGEST_HOST && host.chars().all(allowed) && port != 0 {
        true => Ok(format!("{host}:{port}")),
        false => Err(wrong()),
    }
}

fn put<T>(
    place: &mut Option<T>,
    value: T,
    what: &'static str,
    show: fn(&T) -> String,
) -> Result<(), WordsError> {
    match place {
        Some(first) => Err(WordsError::Twice {
            what,
            first: show(first),
            second: show(&value),
        }),
        None => {
            *place = Some(value);
            Ok(())
        }
    }
}

/// A date alone may be a resource's name, but not beside another.
fn date_first(error: WordsError) -> WordsError {
    let WordsError::Twice { first, second, .. } = &error else {
        return error;
    };
    let date = [second, first]
        .into_iter()
        .find(|word| NaiveDate::from_str(word).is_ok());
    match date.map(|date| date.parse::<SnapshotTime>()) {
        Some(Err(not_a_time)) => WordsError::Time(not_a_time),
        Some(Ok(_)) | None => error,
    }
}

/// `2026-11-22T` and whatever follows: a mistyped time is named as one.
fn looks_like_a_time(word: &str) -> bool {
    let pattern = |(index, byte): (usize, u8)| match index {
        4 | 7 => byte == b'-',
        10 => matches!(byte, b'T' | b't' | b' '),
        _ => byte.is_ascii_digit(),
    };
    word.len() > 10 && word.bytes().take(11).enumerate().all(pattern)
}

/// Where nodes listen unless they are told otherwise.
const DEFAULT_PORT: u16 = 43210;
/// RFC 1035.
const LONGEST_HOST: usize = 253;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(words: &[&str]) -> Result<Words, WordsError> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        Words::parse(&words)
    }

    #[test]
    fn words_mean_the_same_in_any_order() {
        let expected = Words {
            subject: Some("orders".to_owned()),
            time: Some("2026-11-22T13:39:25Z".parse().unwrap()),
            pin: Some(Pin::Name("db1".to_owned())),
        };
        let words = ["orders", "2026-11-22T13:39:25Z", "@db1"];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            assert_eq!(parse(&order.map(|index| words[index])).unwrap(), expected);
        }
        assert_eq!(expected.to_string(), words.join(" "));
    }

    #[test]
    fn a_time_may_be_in_any_zone() {
        let words = parse(&["2026-11-22T15:39:25+02:00"]).unwrap();
        assert_eq!(words.time.unwrap().to_string(), "2026-11-22T13:39:25Z");
    }

    #[test]
    fn a_mistyped_time_is_named_and_not_taken_for_a_resource() {
        let error = parse(&["orders", "2026-11-22T25:39:25Z"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "time `2026-11-22T25:39:25Z` is not an RFC 3339 time such as 2026-11-22T13:39:25Z"
        );
    }

    #[test]
    fn a_date_is_a_name_alone_and_a_mistyped_time_beside_one() {
        let alone = parse(&["2026-11-22"]).unwrap();
        assert_eq!(alone.subject.as_deref(), Some("2026-11-22"));
        for words in [["orders", "2026-11-22"], ["2026-11-22", "orders"]] {
            assert_eq!(
                parse(&words).unwrap_err().to_string(),
                "time `2026-11-22` is not an RFC 3339 time such as 2026-11-22T13:39:25Z"
            );
        }
    }

    #[test]
    fn a_second_resource_time_or_node_is_refused_by_name() {
        assert_eq!(
            parse(&["orders", "users"]).unwrap_err().to_string(),
            "two resources, `orders` and `users`; one is expected"
        );
        let yesterday = parse(&["orders", "yesterday"]).unwrap_err();
        assert!(
            yesterday
                .hint()
                .is_some_and(|hint| hint.contains("2026-11-22T13:39:25Z"))
        );
        assert!(parse(&["@a", "@b"]).is_err());
        assert!(parse(&["2026-11-22T13:39:25Z", "2026-11-22T13:39:26Z"]).is_err());
    }

    #[test]
    fn a_node_is_pinned_by_name_or_by_address() {
        assert_eq!(parse(&["@db1"]).unwrap().pin, Some(Pin::Name("db1".to_owned())));
        assert_eq!(
            parse(&["@10.0.0.1:4000"]).unwrap().pin,
            Some(Pin::Address("10.0.0.1:4000".to_owned()))
        );
        assert_eq!(parse(&["@"]).unwrap_err(), WordsError::EmptyPin);
        assert!(parse(&["@db1:port"]).is_err());
    }

    #[test]
    fn an_address_has_a_port_of_its_own_or_the_usual_one() {
        for (text, expected) in [
            ("db1", "db1:43210"),
            ("db1.example.com:4000", "db1.example.com:4000"),
            ("10.0.0.1", "10.0.0.1:43210"),
            ("::1", "[::1]:43210"),
            ("[::1]", "[::1]:43210"),
            ("[fd00::1]:4000", "[fd00::1]:4000"),
        ] {
            assert_eq!(address(text).unwrap(), expected);
        }
        for wrong in [
            "",
            ":43210",
            "db1:",
            "db1:0",
            "db1:70000",
            "db 1",
            "a/b",
            "db1:1:2",
            "http://db1",
            "dé1",
        ] {
            assert!(address(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_words_panic_the_parser(words in proptest::collection::vec("\\PC*", 0..4)) {
            let _ = Words::parse(&words);
            for word in &words {
                let _ = address(word);
            }
        }
    }
}
