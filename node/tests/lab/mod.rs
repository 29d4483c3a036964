//! What the tests need from the machine, named by environment variables; what is missing is skipped aloud.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;

/// Returns the value of the variable `name`; skips `test` when it is not set, with the reason in `<name>_MISSING`, if any.
pub(crate) fn variable(test: &str, name: &str) -> Option<String> {
    match env::var(name) {
        Ok(value) if !value.is_empty() => Some(value),
        Ok(_) | Err(_) => match env::var(format!("{name}_MISSING")) {
            Ok(reason) => skip(test, &reason),
            Err(_) => skip(test, &format!("{name} is not set")),
        },
    }
}

/// Says that `test` is skipped and why, also in the file named by `ZDAP_TEST_SKIP_LOG`; panics if
/// `ZDAP_TEST_NO_SKIP=1`.
#[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
pub(crate) fn skip<T>(test: &str, reason: &str) -> Option<T> {
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
