//! The wall clock and random bytes of this machine, in one place.

use common::ids::BlockTime;

use crate::exit::{Exit, Failure, Outcome};

/// Microseconds since the Unix epoch; 0 on a machine whose clock is before it.
#[must_use]
pub fn wall() -> BlockTime {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    BlockTime(since.as_micros() as u64)
}

/// Random bytes from the system, fit for keys and serial numbers.
///
/// # Errors
/// If the system gives none.
pub fn random<const N: usize>() -> Outcome<[u8; N]> {
    use rand::TryRng;
    let mut bytes = [0; N];
    rand::rngs::SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|e| Failure::new(Exit::Failed, format!("no random bytes from the system: {e}")))?;
    Ok(bytes)
}

/// Parses `250ms`, `10s`, `5m`, `2h`, `1d`.
///
/// # Errors
/// A phrase for the command line.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .ok_or("needs a unit: ms, s, m, h or d")?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} does not begin with a number"))?;
    let ms_per = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        other => return Err(format!("{other:?} is no unit: use ms, s, m, h or d")),
    };
    let ms = number
        .checked_mul(ms_per)
        .filter(|ms| *ms < 1 << 50)
        .ok_or("is too long")?;
    Ok(std::time::Duration::from_millis(ms))
}

/// Parses `2026-05-01T12:00:00Z` (RFC 3339 in UTC, with up to six decimals of the second).
///
/// # Errors
/// A phrase for the command line.
pub fn parse_time(text: &str) -> Result<BlockTime, String> {
    let error = || format!("{text:?} is not a time like 2026-05-01T12:00:00Z");
    let (date, time) = text
        .strip_suffix('Z')
        .and_then(|t| t.split_once('T'))
        .ok_or_else(error)?;
    let numbers = |part: &str, separator: char, widths: [usize; 3]| -> Option<[i64; 3]> {
        let parts: Vec<&str> = part.split(separator).collect();
        let is_plain = parts.len() == 3
            && parts
                .iter()
                .zip(widths)
                .all(|(p, w)| p.len() == w && p.bytes().all(|b| b.is_ascii_digit()));
        is_plain.then(|| [0, 1, 2].map(|at| parts[at].parse().unwrap_or(0)))
    };
    let (whole, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-', [4, 2, 2]).ok_or_else(error)?;
    let [hour, minute, second] = numbers(whole, ':', [2, 2, 2]).ok_or_else(error)?;
    let is_fraction = (1..=6).contains(&fraction.len()) && fraction.bytes().all(|b| b.is_ascii_digit());
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    if !is_fraction || year < 1970 || day < 1 || day > month_days || hour > 23 || minute > 59 || second > 59 {
        return Err(error());
    }
    let us: u64 = format!("{fraction:0<6}").parse().map_err(|_| error())?;
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Ok(BlockTime(seconds as u64 * 1_000_000 + us))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March put the leap day last (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Writes a time as RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn format_time(time: BlockTime) -> String {
    let (days, ms) = ((time.0 / 86_400_000_000) as i64, time.0 / 1_000 % 86_400_000);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z", ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_in_utc() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2023-11-14T22:13:20Z", 1_700_000_000),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ] {
            assert_eq!(parse_time(text), Ok(BlockTime(seconds * 1_000_000)), "{text}");
            assert_eq!(format_time(BlockTime(seconds * 1_000_000)), text.replace('Z', ".000Z"));
        }
        assert_eq!(parse_time("1970-01-01T00:00:00.25Z"), Ok(BlockTime(250_000)));
        for bad in [
            "",
            "2023-11-14",
            "2023-02-29T00:00:00Z",
            "2023-13-01T00:00:00Z",
            "2023-11-14T24:00:00Z",
            "2023-11-14T22:13:20+01:00",
            "+023-11-14T22:13:20Z",
        ] {
            assert!(parse_time(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn duration_needs_its_unit() {
        assert_eq!(parse_duration("250ms").unwrap().as_millis(), 250);
        assert_eq!(parse_duration("2h").unwrap().as_secs(), 7_200);
        for bad in ["10", "", "s", "10 s", "-1s", "99999999999999999d", "1w"] {
            assert!(parse_duration(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
