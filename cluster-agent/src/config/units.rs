//! Durations and sizes as people write them: `"250ms"`, `"64KiB"`. A number without a unit is an error.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, de::Visitor};

/// A text that must carry a unit; read by [`duration`] or [`size`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WithUnit(pub String);

impl<'de> Deserialize<'de> for WithUnit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = WithUnit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text with a unit, such as \"250ms\" or \"64KiB\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<WithUnit, E> {
                Ok(WithUnit(text.to_owned()))
            }
        }
        // `deserialize_any`, so that a bare number is refused with the words above.
        deserializer.deserialize_any(Text)
    }
}

/// A text is no duration or size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No digits, or something other than digits before the unit.
    #[error("\"{0}\" does not begin with a whole number")]
    NoNumber(String),
    /// No unit, or an unknown one.
    #[error("\"{text}\" needs one of the units {units}")]
    Unit {
        /// What was written.
        text: String,
        /// What is known.
        units: &'static str,
    },
    /// Larger than can be counted.
    #[error("\"{0}\" is too large")]
    TooLarge(String),
}

/// Parses a duration: `us`, `ms`, `s`, `m`, `h`.
///
/// # Errors
/// [`UnitError`].
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    const UNITS: [(&str, u64); 5] = [
        ("us", 1),
        ("ms", 1_000),
        ("s", 1_000_000),
        ("m", 60_000_000),
        ("h", 3_600_000_000),
    ];
    parse(text, &UNITS, "us, ms, s, m, h").map(Duration::from_micros)
}

/// Parses a size in bytes: `B`, `KiB`, `MiB`, `GiB`.
///
/// # Errors
/// [`UnitError`].
pub fn size(text: &str) -> Result<u64, UnitError> {
    const UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    parse(text, &UNITS, "B, KiB, MiB, GiB")
}

fn parse(text: &str, units: &[(&str, u64)], names: &'static str) -> Result<u64, UnitError> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.is_empty() {
        return Err(UnitError::NoNumber(text.to_owned()));
    }
    let unit = unit.trim_start();
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let factor = factor.ok_or_else(|| UnitError::Unit {
        text: text.to_owned(),
        units: names,
    })?;
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| UnitError::TooLarge(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_a_wrong_one_is_named_with_those_that_are_known() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2 s"), Ok(Duration::from_secs(2)));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(
            duration("250").unwrap_err().to_string(),
            "\"250\" needs one of the units us, ms, s, m, h"
        );
        assert_eq!(
            size("64kb").unwrap_err().to_string(),
            "\"64kb\" needs one of the units B, KiB, MiB, GiB"
        );
        assert!(matches!(duration("ms"), Err(UnitError::NoNumber(_))));
        assert!(matches!(duration("-1s"), Err(UnitError::NoNumber(_))));
        assert!(matches!(size("99999999999GiB"), Err(UnitError::TooLarge(_))));
    }
}
