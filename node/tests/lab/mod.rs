//! What the tests need from the machine, named by environment variables; what is missing is skipped aloud.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;

/// Returns the value of `variable`. When it is not set, says so (with the reason in `<variable>_MISSING`, if any), adds a
/// line to the file named by `ZDAP_TEST_SKIP_LOG`, and returns `None`; with `ZDAP_TEST_NO_SKIP=1` it panics instead.
#[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
pub(crate) fn needed(variable: &str, test: &str) -> Option<String> {
    if let Some(value) = env::var(variable).ok().filter(|value| !value.is_empty()) {
        return Some(value);
    }
    let reason = env::var(format!("{variable}_MISSING")).unwrap_or_else(|_| format!("{variable} is not set"));
    let line = format!("SKIP {test}: {reason}");
    assert_ne!(env::var("ZDAP_TEST_NO_SKIP").as_deref(), Ok("1"), "{line}");
    eprintln!("{line}");
    if let Ok(log) = env::var("ZDAP_TEST_SKIP_LOG") {
        // One write of one line: several test processes append to the same file.
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .unwrap_or_else(|error| panic!("cannot write {log}: {error}"));
    }
    None
}
