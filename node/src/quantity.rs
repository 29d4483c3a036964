//! Sizes, durations and numbers of processors, as people write them.
#![deny(clippy::disallowed_methods)]

use std::time::Duration;

/// A quantity that was not understood, with examples of what is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a size.
    #[error("`{0}` is not a size; write bytes, or `256m`, `1.5G`, `10GiB`")]
    Size(String),
    /// Not a duration.
    #[error("`{0}` is not a duration; write seconds, or `30s`, `5m`, `1h30m`, `2d`")]
    Duration(String),
    /// Zero, or beyond [`LONGEST`].
    #[error("`{0}` is out of range; a duration is at least a second and at most a hundred years")]
    DurationRange(String),
    /// Not a number of processors.
    #[error("`{0}` is not a number of processors such as `2` or `0.5`")]
    Processors(String),
}

/// Parses a size into bytes. `k`, `m`, `g` and `t`, with or without `b` or `ib` after them and in either case, are powers of
/// 1024, as `docker` has them.
pub fn bytes(text: &str) -> Result<u64, QuantityError> {
    let lower = text.trim().to_ascii_lowercase();
    let unit_at = lower
        .find(|letter: char| letter.is_ascii_alphabetic())
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(unit_at);
    let scale = match unit {
        "" | "b" => Some(1),
        "k" | "kb" | "ki" | "kib" => Some(1 << 10),
        "m" | "mb" | "mi" | "mib" => Some(1 << 20),
        "g" | "gb" | "gi" | "gib" => Some(1 << 30),
        "t" | "tb" | "ti" | "tib" => Some(1 << 40),
        _ => None,
    };
    scale
        .and_then(|scale| scaled(number.trim_end(), scale))
        .ok_or_else(|| QuantityError::Size(text.to_owned()))
}

/// Parses a duration: seconds, or whole numbers with the units `s`, `m`, `h`, `d` and `w`, largest first or not, `1h30m`.
pub fn duration(text: &str) -> Result<Duration, QuantityError> {
    let seconds = seconds(text.trim()).ok_or_else(|| QuantityError::Duration(text.to_owned()))?;
    match Duration::from_secs(seconds) {
        Duration::ZERO => Err(QuantityError::DurationRange(text.to_owned())),
        duration if duration > LONGEST => Err(QuantityError::DurationRange(text.to_owned())),
        duration => Ok(duration),
    }
}

/// Parses a number of processors into thousandths.
pub fn millicpus(text: &str) -> Result<u64, QuantityError> {
    scaled(text.trim(), 1000)
        .filter(|millicpus| *millicpus > 0)
        .ok_or_else(|| QuantityError::Processors(text.to_owned()))
}

/// Returns a decimal number times `scale`, what is left of a whole cut off.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| {
        (1..=MOST_DIGITS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let scale = u128::from(scale);
    let parts_of_one = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let whole = whole.parse::<u128>().ok()? * scale;
    let fraction = fraction.parse::<u128>().ok()? * scale / parts_of_one;
    // Container engines and file systems count in signed numbers.
    i64::try_from(whole + fraction).ok()?.try_into().ok()
}

fn seconds(text: &str) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(seconds);
    }
    let mut total = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let unit_at = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let (number, unit_and_rest) = rest.split_at(unit_at);
        let mut letters = unit_and_rest.chars();
        let unit = match letters.next()? {
            's' => 1,
            'm' => 60,
            'h' => 60 * 60,
            'd' => 24 * 60 * 60,
            'w' => 7 * 24 * 60 * 60,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = letters.as_str();
    }
    Some(total)
}

/// A hundred years: no sum of it and a date of our times leaves what the clock can tell.
pub const LONGEST: Duration = Duration::from_secs(36_525 * 24 * 60 * 60);
/// So many digits times a tebibyte stay far inside 128 bits.
const MOST_DIGITS: usize = 18;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_size_is_read_as_docker_reads_it() {
        for (text, size) in [
            ("268435456", 268_435_456),
            ("256m", 256 << 20),
            ("256MB", 256 << 20),
            ("1.5G", 3 << 29),
            ("10GiB", 10 << 30),
            ("10 GiB", 10 << 30),
            ("2Ti", 2 << 40),
            ("7b", 7),
            ("0.5k", 512),
        ] {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
    }

    #[test]
    fn a_size_that_is_none_is_refused() {
        for text in [
            "", "m", "-1", "1.m", "1..5g", "1x", "1e9", "ten", "8388608t", "5 5m", "1m5",
        ] {
            assert_eq!(bytes(text), Err(QuantityError::Size(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_duration_is_a_number_of_seconds_or_has_units() {
        for (text, seconds) in [
            ("90", 90),
            ("30s", 30),
            ("5m", 300),
            ("2h", 7200),
            ("1d", 86_400),
            ("1w", 604_800),
            ("1h30m", 5400),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn a_duration_that_is_none_is_refused() {
        for text in [
            "",
            "s",
            "0",
            "0s",
            "-5m",
            "5 m",
            "1.5h",
            "5x",
            "5m3",
            "99999999999d",
            "1000000d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn half_a_processor_is_500_thousandths() {
        assert_eq!(millicpus("0.5"), Ok(500));
        assert_eq!(millicpus("16"), Ok(16_000));
        assert!(millicpus("0").is_err());
        assert!(millicpus("two").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = (bytes(&text), duration(&text), millicpus(&text));
        }

        #[test]
        fn whole_units_are_exact(count in 0_u64..1 << 20) {
            prop_assert_eq!(bytes(&format!("{count}g")), Ok(count << 30));
        }
    }
}
