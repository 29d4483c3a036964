//! What the machine offers to tests, by environment variables. What is missing is skipped aloud.

use std::io::Write;

/// Returns the value of `name`, or skips `test` if it is not set.
pub fn variable(test: &str, name: &str) -> Option<String> {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => Some(value),
        Ok(_) | Err(_) => skip(test, &format!("{name} is not set")),
    }
}

/// Says that `test` is skipped and why; with `ZDAP_TEST_NO_SKIP=1` that is a failure.
pub fn skip<T>(test: &str, reason: &str) -> Option<T> {
    let line = format!("SKIP {test}: {reason}");
    assert!(std::env::var("ZDAP_TEST_NO_SKIP").as_deref() != Ok("1"), "{line}");
    println!("{line}");
    if let Ok(path) = std::env::var("ZDAP_TEST_SKIP_LOG") {
        let mut log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        writeln!(log, "{line}").unwrap();
    }
    None
}
