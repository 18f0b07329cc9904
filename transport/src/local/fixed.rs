//! Decimal text to fixed point and back, by integers only: a coordinate is the same on every machine.

/// Why a text is no number for its field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FixedError {
    /// NaN, infinity, a word, an empty text.
    #[error("{0} is not a decimal number")]
    NotANumber(String),
    /// Outside of the range of the field.
    #[error("{got} is outside of {min} to {max}")]
    OutOfRange {
        /// As written.
        got: String,
        /// Smallest value allowed.
        min: String,
        /// Largest value allowed.
        max: String,
    },
}

/// Digits beyond which no exponent or fraction of a sensible number reaches.
const DIGITS_MAX: i64 = 64;

/// Parses `text` (the grammar of a JSON number) as a count of `10^-decimals`.
///
/// Digits beyond the resolution are rounded to the nearest count, halves away from zero.
///
/// # Errors
/// [`FixedError`]: not a number, or a count outside of `min..=max`.
pub fn parse_fixed(text: &str, decimals: u32, min: i64, max: i64) -> Result<i64, FixedError> {
    let not_a_number = || FixedError::NotANumber(shortened(text));
    let out_of_range = || FixedError::OutOfRange {
        got: shortened(text),
        min: format_fixed(min, decimals),
        max: format_fixed(max, decimals),
    };
    let (is_negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, parse_exponent(exponent).ok_or_else(not_a_number)?),
        None => (unsigned, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let has_point = mantissa.contains('.');
    let is_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || (has_point && fraction.is_empty()) || !is_digits(whole) || !is_digits(fraction) {
        return Err(not_a_number());
    }
    // value = digits x 10^(exponent - fraction.len()); the count is that times 10^decimals.
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').collect();
    if digits.iter().all(|digit| *digit == 0) {
        return in_range(0, min, max).ok_or_else(out_of_range);
    }
    let first = digits.iter().position(|digit| *digit != 0).unwrap_or(0);
    let shift = exponent - fraction.len() as i64 + i64::from(decimals);
    let kept_len = digits.len() as i64 + shift;
    if kept_len - first as i64 > DIGITS_MAX {
        return Err(out_of_range());
    }
    let digit_at = |at: i64| {
        usize::try_from(at)
            .ok()
            .and_then(|at| digits.get(at))
            .copied()
            .unwrap_or(0)
    };
    let mut count: i128 = 0;
    for at in (first as i64)..kept_len {
        count = count
            .checked_mul(10)
            .and_then(|c| c.checked_add(i128::from(digit_at(at))))
            .ok_or_else(out_of_range)?;
    }
    if kept_len >= first as i64 && digit_at(kept_len) >= 5 {
        count += 1;
    }
    if is_negative {
        count = -count;
    }
    i64::try_from(count)
        .ok()
        .and_then(|count| in_range(count, min, max))
        .ok_or_else(out_of_range)
}

fn in_range(count: i64, min: i64, max: i64) -> Option<i64> {
    (min..=max).contains(&count).then_some(count)
}

fn parse_exponent(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || digits.len() > 6 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: i64 = digits.parse().ok()?;
    Some(if text.starts_with('-') { -value } else { value })
}

fn shortened(text: &str) -> String {
    if text.is_empty() {
        return "an empty text".into();
    }
    text.chars().take(40).filter(|c| !c.is_control()).collect()
}

/// Writes a count of `10^-decimals` as a decimal number without superfluous zeros.
#[must_use]
pub fn format_fixed(count: i64, decimals: u32) -> String {
    let magnitude = count.unsigned_abs().to_string();
    let width = decimals as usize + 1;
    let padded = format!("{magnitude:0>width$}");
    let (whole, fraction) = padded.split_at(padded.len() - decimals as usize);
    let fraction = fraction.trim_end_matches('0');
    let sign = if count < 0 { "-" } else { "" };
    if fraction.is_empty() {
        format!("{sign}{whole}")
    } else {
        format!("{sign}{whole}.{fraction}")
    }
}

/// Puts bare `NaN`, `Infinity` and `-Infinity` (which some programs write into JSON) in quotes, so that
/// the field that holds one can be named instead of a column of the file.
#[must_use]
pub fn quote_non_numbers(json: &str) -> String {
    let mut out = String::with_capacity(json.len() + 16);
    let (mut in_string, mut is_escaped) = (false, false);
    let mut rest = json;
    while let Some(c) = rest.chars().next() {
        if !in_string
            && let Some(word) = ["-Infinity", "Infinity", "NaN"]
                .iter()
                .find(|word| rest.starts_with(**word))
        {
            out.push('"');
            out.push_str(word);
            out.push('"');
            rest = &rest[word.len()..];
            continue;
        }
        if in_string {
            in_string = is_escaped || c != '"';
            is_escaped = c == '\\' && !is_escaped;
        } else if c == '"' {
            in_string = true;
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn e7(text: &str) -> Result<i64, FixedError> {
        parse_fixed(text, 7, -1_800_000_000, 1_800_000_000)
    }

    #[test]
    fn decimal_is_exact_where_a_float_would_not_be() {
        assert_eq!(e7("52.1234567"), Ok(521_234_567));
        assert_eq!(e7("-0.0000001"), Ok(-1));
        assert_eq!(e7("179.9999999"), Ok(1_799_999_999));
        assert_eq!(parse_fixed("1.42789", 6, 0, i64::MAX), Ok(1_427_890));
        assert_eq!(e7("1e2"), Ok(1_000_000_000));
        assert_eq!(e7("15E-1"), Ok(15_000_000));
        assert_eq!(e7("0.000e9"), Ok(0));
    }

    #[test]
    fn digits_beyond_the_resolution_are_rounded_halves_away_from_zero() {
        assert_eq!(e7("0.00000005"), Ok(1));
        assert_eq!(e7("-0.00000005"), Ok(-1));
        assert_eq!(e7("0.000000049999999999999"), Ok(0));
        assert_eq!(e7("0.0000000000000000000000001"), Ok(0));
        assert_eq!(parse_fixed("2.5", 0, 0, 9), Ok(3));
    }

    #[test]
    fn what_is_no_number_or_out_of_range_is_refused() {
        for bad in [
            "NaN",
            "\"NaN\"",
            "",
            "-",
            ".5",
            "5.",
            "1e",
            "1e+",
            "0x10",
            "1_000",
            "inf",
            "1.2.3",
            "--1",
            "1e9999999",
        ] {
            assert!(
                matches!(e7(bad), Err(FixedError::NotANumber(_))),
                "{bad:?} was accepted"
            );
        }
        for far in [
            "180.0000001",
            "-181",
            "1e300",
            "1e999999",
            "99999999999999999999999999999999999999999999",
        ] {
            assert!(
                matches!(e7(far), Err(FixedError::OutOfRange { .. })),
                "{far} was accepted"
            );
        }
        assert_eq!(e7("1e-999999"), Ok(0));
    }

    #[test]
    fn written_number_is_read_back() {
        for count in [0, 1, -1, 521_234_567, -900_000_000, 1_800_000_000, 10_000_000] {
            assert_eq!(e7(&format_fixed(count, 7)), Ok(count));
        }
        assert_eq!(format_fixed(-1_500, 3), "-1.5");
        assert_eq!(format_fixed(7, 0), "7");
    }

    #[test]
    fn bare_nan_is_quoted_and_text_is_left_alone() {
        assert_eq!(
            quote_non_numbers(r#"{"a":NaN,"b":-Infinity}"#),
            r#"{"a":"NaN","b":"-Infinity"}"#
        );
        let text = r#"{"NaN":"a \" NaN Infinity"}"#;
        assert_eq!(quote_non_numbers(text), text);
    }
}
