//! The names of things, parsed once at the door and trusted after.
//!
//! Every name becomes part of a dataset name, a container name, a file name or a certificate, so each type admits only
//! what is harmless in all of them. A value of one of these types cannot be wrong.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDateTime, SubsecRound, Utc};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// A name that was not accepted, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{value}` {reason}")]
pub struct NameError {
    /// What the name was for, e.g. `resource name`.
    pub what: &'static str,
    /// The value as given, shortened for display.
    pub value: String,
    /// What is wrong with it, as the end of a sentence.
    pub reason: String,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> Result<(), String> = $check;
                match check(text) {
                    Ok(()) => Ok(Self(text.to_owned())),
                    Err(reason) => Err(NameError { what: $what, value: shortened(text), reason }),
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A database that can be cloned: the `name` of a resource file and, usually, of a compose service.
    ResourceName, "resource name", |text| plain(text, 63, "._-")
);
name!(
    /// A server of the cluster.
    NodeName, "node name", |text| plain(text, 63, "._-")
);
name!(
    /// Who owns a clone: `name` or `name@host`.
    UserName, "user name", |text| plain(text, 128, "._-@+")
);
name!(
    /// A cluster, by the random name it is founded with; the trust domain of its certificates.
    ClusterId, "cluster id", |text| {
        plain(text, 32, "")?;
        match text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            true => Ok(()),
            false => Err("may only hold lower case letters and digits".to_owned()),
        }
    }
);
name!(
    /// One clone, anywhere in the cluster: its resource's name and eight random letters, `orders-k3v9x2mq`.
    CloneId, "clone id", |text| {
        plain(text, 63 + 1 + CLONE_SUFFIX, "._-")?;
        match text.rsplit_once('-') {
            Some((resource, suffix))
                if suffix.len() == CLONE_SUFFIX && suffix.bytes().all(|byte| SUFFIX_LETTERS.contains(&byte)) =>
            {
                plain(resource, 63, "._-")
            }
            Some(_) | None => Err("does not look like `orders-k3v9x2mq`".to_owned()),
        }
    }
);
name!(
    /// What makes a retry harmless: 32 hexadecimal digits chosen by the client, one per thing wanted.
    RequestId, "request id", |text| {
        match text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
            true => Ok(()),
            false => Err("must be 32 hexadecimal digits".to_owned()),
        }
    }
);

impl ClusterId {
    /// Makes up a name for a new cluster.
    pub fn random() -> Self {
        Self(random_letters(12, &mut rand::rng()))
    }
}

impl CloneId {
    /// Makes up an id for a new clone of `resource`.
    pub fn random(resource: &ResourceName) -> Self {
        Self::drawn(resource, &mut rand::rng())
    }

    /// Makes up an id for a new clone of `resource` by this chance.
    pub fn drawn(resource: &ResourceName, chance: &mut impl Rng) -> Self {
        Self(format!("{resource}-{}", random_letters(CLONE_SUFFIX, chance)))
    }
}

impl RequestId {
    /// Makes up an id for a new request.
    pub fn random() -> Self {
        Self(format!("{:032x}", rand::rng().random::<u128>()))
    }
}

/// A restored database on disk: its resource and when the restore began, to the second.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BaseId {
    /// The resource that was restored.
    pub resource: ResourceName,
    /// When the restore began.
    pub created_at: SnapshotTime,
}

impl fmt::Display for BaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.resource, self.created_at.dashed())
    }
}

/// A state of a base that clones are made from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotId {
    /// The base it is a state of.
    pub base: BaseId,
    /// When it was taken; for the snapshot that ends a restore, when the restore began.
    pub taken_at: SnapshotTime,
}

impl SnapshotId {
    /// Returns the snapshot that ends the restore of `base`.
    pub fn of_restore(base: BaseId) -> Self {
        let taken_at = base.created_at;
        Self { base, taken_at }
    }

    /// Returns the part after the `@` of the dataset's name.
    pub fn label(&self) -> String {
        match self.taken_at == self.base.created_at {
            true => "base".to_owned(),
            false => self.taken_at.dashed(),
        }
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.base, self.label())
    }
}

/// A time in whole seconds: what snapshots and bases are told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotTime(DateTime<Utc>);

impl SnapshotTime {
    /// Cuts `time` to the second.
    pub fn new(time: DateTime<Utc>) -> Self {
        Self(time.trunc_subsecs(0))
    }

    /// Returns the time.
    pub fn time(self) -> DateTime<Utc> {
        self.0
    }

    /// Returns the form without colons that names datasets and containers, `2026-11-22T13.39.25Z`.
    pub fn dashed(self) -> String {
        self.0.format(DASHED).to_string()
    }

    /// Parses what [`Self::dashed`] returns.
    pub fn parse_dashed(text: &str) -> Result<Self, NameError> {
        NaiveDateTime::parse_from_str(text, DASHED)
            .map(|time| Self(time.and_utc()))
            .map_err(|_| not_a_time(text))
    }
}

impl fmt::Display for SnapshotTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.format("%Y-%m-%dT%H:%M:%SZ").to_string())
    }
}

impl FromStr for SnapshotTime {
    type Err = NameError;

    /// Parses RFC 3339, in any time zone.
    fn from_str(text: &str) -> Result<Self, NameError> {
        DateTime::parse_from_rfc3339(text)
            .map(|time| Self::new(time.with_timezone(&Utc)))
            .map_err(|_| not_a_time(text))
    }
}

impl TryFrom<String> for SnapshotTime {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<SnapshotTime> for String {
    fn from(time: SnapshotTime) -> Self {
        time.to_string()
    }
}

/// Letters, digits and the `extra` characters, at most `longest` bytes; the first and last a letter or digit, no `..`.
fn plain(text: &str, longest: usize, extra: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if text.len() > longest {
        return Err(format!(
            "is {} bytes long; at most {longest} are allowed",
            text.len()
        ));
    }
    let odd = |letter: &char| !letter.is_ascii_alphanumeric() && !extra.contains(*letter);
    if let Some(letter) = text.chars().find(odd) {
        return Err(match extra {
            "" => format!("holds {letter:?}; only letters and digits are allowed"),
            extra => format!("holds {letter:?}; only letters, digits and `{extra}` are allowed"),
        });
    }
    let edges = [text.chars().next(), text.chars().next_back()];
    if edges
        .iter()
        .flatten()
        .any(|letter| !letter.is_ascii_alphanumeric())
    {
        return Err("must begin and end with a letter or digit".to_owned());
    }
    if text.contains("..") {
        return Err("holds `..`".to_owned());
    }
    Ok(())
}

fn not_a_time(text: &str) -> NameError {
    NameError {
        what: "time",
        value: shortened(text),
        reason: "is not an RFC 3339 time such as 2026-11-22T13:39:25Z".to_owned(),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn random_letters(count: usize, chance: &mut impl Rng) -> String {
    (0..count)
        .map(|_| char::from(SUFFIX_LETTERS[chance.random_range(0..SUFFIX_LETTERS.len())]))
        .collect()
}

/// 32^8 = 2^40 ids a resource: a clash takes a million clones of one resource before it is likely.
const CLONE_SUFFIX: usize = 8;
/// No vowels and no look-alikes, so that an id spells nothing and can be read aloud.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjkmnpqrstvwxz0123456789ly";
/// Enough of a refused name to recognise it by.
const SHOWN: usize = 80;
const DASHED: &str = "%Y-%m-%dT%H.%M.%SZ";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_that_could_leave_its_directory_is_refused() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a@b",
            "a..b",
            "-a",
            "a-",
            " a",
            "a b",
            "é",
            "a\0b",
            "a\nb",
            &"x".repeat(300),
        ] {
            assert!(name.parse::<ResourceName>().is_err(), "{name:?}");
            assert!(name.parse::<NodeName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_refused_name_says_which_character_is_wrong() {
        let error = "or/ders".parse::<ResourceName>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "resource name `or/ders` holds '/'; only letters, digits and `._-` are allowed"
        );
    }

    #[test]
    fn a_long_name_is_not_repeated_whole() {
        let error = "x".repeat(300).parse::<ResourceName>().unwrap_err();
        assert!(error.to_string().len() < 200);
    }

    #[test]
    fn a_user_may_be_named_at_a_host() {
        assert_eq!(
            "ada@laptop.local".parse::<UserName>().unwrap().as_str(),
            "ada@laptop.local"
        );
    }

    #[test]
    fn a_snapshot_of_a_restore_is_labelled_base_and_a_later_one_by_its_time() {
        let base = BaseId {
            resource: "orders".parse().unwrap(),
            created_at: "2026-11-22T13:39:25Z".parse().unwrap(),
        };
        let first = SnapshotId::of_restore(base.clone());
        let later = SnapshotId {
            base,
            taken_at: "2026-11-23T00:00:00Z".parse().unwrap(),
        };
        assert_eq!(first.to_string(), "orders/2026-11-22T13.39.25Z@base");
        assert_eq!(
            later.to_string(),
            "orders/2026-11-22T13.39.25Z@2026-11-23T00.00.00Z"
        );
    }

    #[test]
    fn a_time_in_another_zone_is_the_same_snapshot() {
        let here: SnapshotTime = "2026-11-22T15:39:25+02:00".parse().unwrap();
        assert_eq!(here.to_string(), "2026-11-22T13:39:25Z");
    }

    proptest! {
        #[test]
        fn a_clone_id_made_up_is_one_that_parses(resource in "[a-z][a-z0-9-]{0,60}[a-z0-9]") {
            let id = CloneId::random(&resource.parse().unwrap());
            prop_assert_eq!(id.as_str().parse::<CloneId>().unwrap(), id);
        }

        #[test]
        fn no_input_panics_a_parser(text in "\\PC*") {
            let _ = (text.parse::<ResourceName>(), text.parse::<UserName>(), text.parse::<CloneId>());
            let _ = (text.parse::<RequestId>(), text.parse::<SnapshotTime>(), SnapshotTime::parse_dashed(&text));
        }

        #[test]
        fn a_dashed_time_reads_back(seconds in 0i64..4_000_000_000) {
            let time = SnapshotTime::new(DateTime::from_timestamp(seconds, 5).unwrap());
            prop_assert_eq!(SnapshotTime::parse_dashed(&time.dashed()).unwrap(), time);
            prop_assert_eq!(time.to_string().parse::<SnapshotTime>().unwrap(), time);
        }
    }
}
