//! What the tests need from the machine, named by environment variables; what is missing is skipped aloud.

// Each test file uses its own part of this.
#![allow(dead_code)]

use std::env;
use std::fs::OpenOptions;
use std::io::Write;

/// Returns the value of `variable`, or skips `test` with the reason in `<variable>_MISSING`, if any.
pub(crate) fn needed(variable: &str, test: &str) -> Option<String> {
    match env::var(variable) {
        Ok(value) if !value.is_empty() => Some(value),
        Ok(_) | Err(_) => {
            let reason = env::var(format!("{variable}_MISSING"));
            skip(test, &reason.unwrap_or_else(|_| format!("{variable} is not set")))
        }
    }
}

/// Says that `test` is skipped and why, also in the file named by `ZDAP_TEST_SKIP_LOG`; with `ZDAP_TEST_NO_SKIP=1` it is
/// a failure.
#[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
pub(crate) fn skip<T>(test: &str, reason: &str) -> Option<T> {
    let line = format!("SKIP {test}: {reason}");
    assert_ne!(env::var("ZDAP_TEST_NO_SKIP").as_deref(), Ok("1"), "{line}");
    eprintln!("{line}");
    if let Ok(log) = env::var("ZDAP_TEST_SKIP_LOG") {
        // One write of one line: several test processes append to the same file.
        let file = OpenOptions::new().create(true).append(true).open(&log);
        file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .unwrap_or_else(|error| panic!("cannot write {log}: {error}"));
    }
    None
}
