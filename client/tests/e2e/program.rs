//! Running a program to its end, and what it said.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use crate::lab::variable;

/// Returns the directory of zdap's programs; skips `test` when it is not known.
pub(crate) fn programs(test: &str) -> Option<PathBuf> {
    variable(test, "ZDAP_TEST_PROGRAMS").map(PathBuf::from)
}

/// What a program said, and how it ended.
#[derive(Debug)]
#[allow(dead_code, reason = "shown when a test fails")]
pub(crate) struct Said {
    command: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the program to its end.
pub(crate) fn run(command: &mut Command) -> Said {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    Said::of(&format!("{command:?}"), &output)
}

impl Said {
    pub(crate) fn of(command: &str, output: &Output) -> Self {
        Self {
            command: command.to_owned(),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Makes sure that it did what it was asked.
    #[track_caller]
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Returns what it printed, without the end of the last line.
    #[track_caller]
    pub(crate) fn line(self) -> String {
        self.done().stdout.trim_end().to_owned()
    }

    /// Returns the one JSON document it printed.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let said = self.done();
        serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("not JSON: {error}; {said:#?}"))
    }

    /// Makes sure that it failed with this code, an `error: ` line that holds all of `words`, and nothing on stdout.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert_eq!(self.stdout, "", "{self:#?}");
        let error = self.error();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in the error: {self:#?}");
        }
        self
    }

    /// Makes sure that a hint with these words stands after the error and a blank line.
    #[track_caller]
    pub(crate) fn hints(self, words: &str) -> Self {
        let (_, hint) = self.stderr.split_once("\n\nhint: ").unwrap_or_default();
        assert!(
            !hint.is_empty() && hint.contains(words),
            "no hint {words:?}: {self:#?}"
        );
        self
    }

    #[track_caller]
    fn error(&self) -> &str {
        let at = match self.stderr.starts_with("error: ") {
            true => Some(0),
            false => self.stderr.find("\nerror: ").map(|at| at + 1), // after warnings
        };
        let at = at.unwrap_or_else(|| panic!("no `error: ` line: {self:#?}"));
        &self.stderr[at..]
    }
}

/// Makes sure that a JSON object has these keys (with blanks between) and no others.
#[track_caller]
pub(crate) fn has_keys(value: &Value, keys: &str) {
    let object = value
        .as_object()
        .unwrap_or_else(|| panic!("not an object: {value}"));
    let found: BTreeSet<&str> = object.keys().map(String::as_str).collect();
    assert_eq!(found, keys.split(' ').collect::<BTreeSet<_>>());
}
