//! Pure. Sizes, ages and durations as people write and read them.

use std::fmt::Write as _;

const UNITS: [(&str, u64); 5] =
    [("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// The largest unit that fits, with one decimal where it is not whole: `1.5GiB`.
pub fn size(bytes: u64) -> String {
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{}{name}", bytes / unit),
        Some((name, unit)) => format!("{:.1}{name}", bytes as f64 / *unit as f64),
        None => format!("{bytes}B"),
    }
}

/// Reads `512MiB`, `512M`, `1.5G`, `10GB` (decimal) or plain bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad =
        || format!("'{text}' is not a size: write a number with a unit, such as 512MiB or 20GiB");
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.trim().to_ascii_uppercase();
    let scale = match unit.as_str() {
        "" | "B" => 1,
        unit => {
            let letter = unit.chars().next().ok_or_else(bad)?;
            let power = "KMGTP".find(letter).ok_or_else(bad)? as u32 + 1;
            match &unit[letter.len_utf8()..] {
                "" | "I" | "IB" => 1024u64.pow(power),
                "B" => 1000u64.pow(power),
                _ => return Err(bad()),
            }
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u128 = whole.parse().map_err(|_| bad())?;
    if fraction.is_empty() || fraction.len() > 9 {
        return Err(bad());
    }
    let parts: u128 = fraction.parse().map_err(|_| bad())?;
    let fraction = parts * u128::from(scale) / 10u128.pow(fraction.len() as u32);
    whole
        .checked_mul(u128::from(scale))
        .and_then(|n| u64::try_from(n + fraction).ok())
        .ok_or_else(|| format!("'{text}' is larger than any size"))
}

const SPANS: [(char, u64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// Reads `90`, `90s`, `5m`, `1h30m` or `30d` as seconds.
pub fn parse_seconds(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is not a duration: write it as 90s, 5m, 1h30m or 30d");
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let (mut total, mut rest) = (0u64, text);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = rest[..end].parse().map_err(|_| bad())?;
        let letter = rest[end..].chars().next().ok_or_else(bad)?;
        let (_, span) = SPANS.iter().find(|(l, _)| *l == letter).ok_or_else(bad)?;
        total = number.checked_mul(*span).and_then(|n| total.checked_add(n)).ok_or_else(bad)?;
        rest = &rest[end + letter.len_utf8()..];
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

/// A short time, such as `50ms` or `2s`, in milliseconds.
pub fn parse_milliseconds(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is not a short time: write it as 50ms or 2s");
    let (number, scale) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').ok_or_else(bad)?, 1000),
    };
    let number: u64 = number.trim().parse().map_err(|_| bad())?;
    number.checked_mul(scale).ok_or_else(bad)
}

/// A duration in its largest unit, with the next one where it tells something: `3h12m`.
pub fn seconds(total: u64) -> String {
    let Some(i) = SPANS.iter().position(|(_, span)| total >= *span) else {
        return "0s".to_owned();
    };
    let (letter, span) = SPANS[i];
    let mut text = format!("{}{letter}", total / span);
    if let Some((letter, next)) = SPANS.get(i + 1)
        && total / span < 10
        && total % span / next > 0
    {
        let _ = write!(text, "{}{letter}", total % span / next);
    }
    text
}

/// How long ago a time of the API was.
pub fn age(now: jiff::Timestamp, time: &str) -> String {
    match time.parse::<jiff::Timestamp>() {
        // Two machines' clocks differ a little.
        Ok(then) => seconds((now.as_second() - then.as_second()).max(0).unsigned_abs()),
        Err(_) => "?".to_owned(),
    }
}

/// Text on one line that cannot steer a terminal: guests and images choose some of it.
pub fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// As [`clean`], but line breaks stay.
pub fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read() {
        let check = |text: &str, expect: u64| assert_eq!(parse_size(text), Ok(expect), "{text}");
        check("4096", 4096);
        check("4096B", 4096);
        check("512MiB", 512 << 20);
        check("512m", 512 << 20);
        check("2Gi", 2 << 30);
        check(" 20 GiB ", 20 << 30);
        check("1.5G", 3 << 29);
        check("10GB", 10_000_000_000);
        check("0.1KiB", 102);
        check("16383PiB", 16383 << 50);
    }

    #[test]
    fn sizes_refused() {
        for text in [
            "",
            "G",
            "-1",
            "1.G",
            "1.2.3G",
            "2X",
            "2GiBB",
            "2GG",
            "1e3",
            "16384PiB",
            "9ö",
            "99999999999999999999999999999999999999999",
        ] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn sizes_shown_are_read_again() {
        let check = |bytes: u64, expect: &str| {
            assert_eq!(size(bytes), expect);
            if !expect.contains('.') {
                assert_eq!(parse_size(expect), Ok(bytes));
            }
        };
        check(0, "0B");
        check(1023, "1023B");
        check(20 << 30, "20GiB");
        check(3 << 29, "1.5GiB");
        check(u64::MAX, "16384.0PiB");
    }

    #[test]
    fn durations() {
        let check = |text: &str, expect: u64| assert_eq!(parse_seconds(text), Ok(expect));
        check("90", 90);
        check("90s", 90);
        check("1h30m", 5400);
        check("30d", 2_592_000);
        for text in ["", "s", "5", "5x", "1h30", "-1s", "99999999999999999999d", "1ö"] {
            assert_eq!(parse_seconds(text).is_err(), text != "5", "{text:?}");
        }
        let check = |total: u64, expect: &str| assert_eq!(seconds(total), expect);
        check(0, "0s");
        check(59, "59s");
        check(60, "1m");
        check(200, "3m20s");
        check(11_530, "3h12m");
        check(86_400 * 12 + 3_600, "12d");
    }

    #[test]
    fn ages() {
        let now = "2026-01-02T00:00:00Z".parse().expect("a time");
        let check = |time: &str, expect: &str| assert_eq!(age(now, time), expect);
        check("2026-01-01T00:00:00Z", "1d");
        check("2026-01-01T23:59:30.5Z", "30s");
        check("2026-01-02T00:00:05Z", "0s");
        check("yesterday", "?");
    }

    #[test]
    fn guests_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}]0;x\u{7}b\nc\u{9b}"), "a\\u{1b}]0;x\\u{7}b\\nc\\u{9b}");
        assert_eq!(clean("größer"), "größer");
    }
}
