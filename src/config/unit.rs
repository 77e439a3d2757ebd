//! Durations, sizes, shares and rates as people write them: a number and its unit, never the number alone.
//!
//! Owns the bounds on what the parser is given, and the words for what they refuse. Next: `section`.

use super::findings::Complaint;
use super::{Percent, Rate, limits, words};
use bytesize::ByteSize;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Longer text is no duration, and with fewer digits the parser's sums can't overflow.
const MAX_TEXT: usize = 64;
const MAX_DIGITS: usize = 10;

/// `"5s"`, `"1m 30s"`, `"250ms"`; within `range`.
pub(super) fn duration(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, Complaint> {
    let not_one = || {
        let message = format!("{} is not a duration", words::quoted(text));
        Err(Complaint::new(message, "write a number and a unit, such as \"250ms\", \"5s\", \"10m\" or \"1h\""))
    };
    let plain = text.trim();
    if !plain.is_empty() && plain.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(Complaint::new(format!("{} has no unit", words::quoted(text)), format!("write \"{plain}s\"")));
    }
    if !is_bounded(text) {
        return not_one();
    }
    if has_unit(text, "M") {
        let message = format!("the unit M of {} means months", words::quoted(text));
        return Err(Complaint::new(message, format!("write {} for minutes", words::quoted(&text.replace('M', "m")))));
    }
    let Ok(duration) = humantime::parse_duration(text) else { return not_one() };
    if range.contains(&duration) {
        return Ok(duration);
    }
    let hint = format!("use {} to {}", show(*range.start()), show(*range.end()));
    Err(Complaint::new(format!("{} is out of range", words::quoted(text)), hint))
}

/// `"16KiB"`, `"512B"`, `"1MiB"`; within `range`, in bytes.
pub(super) fn bytes(text: &str, range: &RangeInclusive<u64>) -> Result<u64, Complaint> {
    sized(text, "", range)
}

/// `"1MiB/s"`; in bytes a second.
pub(super) fn byte_rate(text: &str) -> Result<u64, Complaint> {
    if let Some(size) = text.trim().strip_suffix("/s") {
        return sized(size, "/s", &limits::BYTE_RATE);
    }
    let plain = text.trim();
    let is_number = !plain.is_empty() && plain.bytes().all(|byte| byte.is_ascii_digit());
    let hint = match sized(text, "", &(0..=u64::MAX)) {
        Ok(_) => format!("write \"{plain}/s\""),
        Err(_) if is_number => format!("write \"{plain}B/s\""),
        Err(_) => "write one such as \"1MiB/s\"".to_owned(),
    };
    Err(Complaint::new(format!("{} is no number of bytes a second", words::quoted(text)), hint))
}

/// A size that is followed by `per`.
fn sized(text: &str, per: &str, range: &RangeInclusive<u64>) -> Result<u64, Complaint> {
    let (plain, whole) = (text.trim(), words::quoted(&format!("{text}{per}")));
    if !plain.is_empty() && plain.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(Complaint::new(format!("{whole} has no unit"), format!("write \"{plain}B{per}\"")));
    }
    let size = if is_bounded(text) { plain.parse::<ByteSize>().ok() } else { None };
    let Some(size) = size else {
        let hint = format!("write a number and a unit, such as \"512B{per}\", \"16KiB{per}\" or \"1MiB{per}\"");
        return Err(Complaint::new(format!("{whole} is not a size"), hint));
    };
    if range.contains(&size.as_u64()) {
        return Ok(size.as_u64());
    }
    let hint = format!("use {}{per} to {}{per}", show_bytes(*range.start()), show_bytes(*range.end()));
    Err(Complaint::new(format!("{whole} is out of range"), hint))
}

/// A size in the words of the config.
pub(super) fn show_bytes(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string().replace(".0 ", "").replace(' ', "")
}

/// `"10%"`, `"2.5%"`; 0 to 100 %, in steps of a hundredth.
pub(super) fn percent(text: &str) -> Result<Percent, Complaint> {
    let plain = text.trim();
    let Some(number) = plain.strip_suffix('%') else {
        let is_number = !plain.is_empty() && plain.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let hint = if is_number { format!("write \"{plain}%\"") } else { "write a share such as \"10%\"".to_owned() };
        return Err(Complaint::new(format!("{} is not a share", words::quoted(text)), hint));
    };
    let number = number.trim_end();
    let digits = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match number.parse::<f64>() {
        Ok(share) if digits && is_bounded(text) && (0.0..=100.0).contains(&share) => {
            let hundredths = (share * 100.0).round() as u16;
            let (nobody, everybody) = (hundredths == 0, Percent::hundredths(hundredths) == Percent::whole(100));
            // What was meant is neither.
            if nobody && share > 0.0 || everybody && share < 100.0 {
                let message = format!("{} is finer than a hundredth of a per cent", words::quoted(text));
                return Err(Complaint::new(message, "use 0%, 0.01% to 99.99%, or 100%"));
            }
            Ok(Percent::hundredths(hundredths))
        }
        Ok(_) if digits => Err(Complaint::new(format!("{} is out of range", words::quoted(text)), "use 0% to 100%")),
        _ => Err(Complaint::new(format!("{} is not a share", words::quoted(text)), "write a share such as \"10%\"")),
    }
}

/// `"100/s"`, `"30/m"`, `"10/h"`: so many in a second, a minute or an hour.
pub(super) fn rate(text: &str) -> Result<Rate, Complaint> {
    let way_out = "write a number and a span, such as \"100/s\", \"30/m\" or \"10/h\"";
    let plain = text.trim();
    if !plain.is_empty() && plain.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Complaint::new(format!("{} has no span", words::quoted(text)), format!("write \"{plain}/s\"")));
    }
    let parts = plain.split_once('/').and_then(|(count, unit)| {
        let is_count = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
        let (_, per) = Rate::UNITS.into_iter().find(|(name, _)| *name == unit)?;
        is_count.then_some((count, per))
    });
    let Some((count, per)) = parts else {
        return Err(Complaint::new(format!("{} is not a rate", words::quoted(text)), way_out));
    };
    if let Ok(count @ 1..=limits::MAX_RATE) = count.parse() {
        return Ok(Rate { count, per });
    }
    let hint = format!("use 1 to {} in a span", limits::MAX_RATE);
    Err(Complaint::new(format!("{} is out of range", words::quoted(text)), hint))
}

/// A duration in the words of the config.
pub(super) fn show(duration: Duration) -> String {
    const DAY: u64 = 24 * 3_600;
    match duration.as_secs() {
        days if days > DAY && days % DAY == 0 => format!("{}d", days / DAY),
        _ => humantime::format_duration(duration).to_string(),
    }
}

fn is_bounded(text: &str) -> bool {
    text.len() <= MAX_TEXT && text.split(|char: char| !char.is_ascii_digit()).all(|digits| digits.len() <= MAX_DIGITS)
}

fn has_unit(text: &str, unit: &str) -> bool {
    text.split(|char: char| !char.is_alphabetic()).any(|word| word == unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(complaint: &Complaint) -> String {
        format!("{}; {}", complaint.message, complaint.hint)
    }

    #[test]
    fn durations_carry_a_unit() {
        let any = Duration::ZERO..=Duration::from_secs(366 * 24 * 3_600);
        let good = [("5s", 5_000), ("1m 30s", 90_000), ("250ms", 250), ("0s", 0), ("1.5s", 1_500), ("1h", 3_600_000)];
        for (text, millis) in good {
            assert_eq!(duration(text, &any), Ok(Duration::from_millis(millis)), "{text}");
        }
        let way_out = "write a number and a unit, such as \"250ms\", \"5s\", \"10m\" or \"1h\"";
        let bad = [
            ("5", "\"5\" has no unit; write \"5s\"".to_owned()),
            ("0", "\"0\" has no unit; write \"0s\"".to_owned()),
            ("", format!("\"\" is not a duration; {way_out}")),
            ("soon", format!("\"soon\" is not a duration; {way_out}")),
            ("-1s", format!("\"-1s\" is not a duration; {way_out}")),
            ("5 fortnights", format!("\"5 fortnights\" is not a duration; {way_out}")),
            ("10M", "the unit M of \"10M\" means months; write \"10m\" for minutes".to_owned()),
            ("400d", "\"400d\" is out of range; use 0s to 366d".to_owned()),
        ];
        for (text, expected) in bad {
            assert_eq!(words(&duration(text, &any).unwrap_err()), expected);
        }
    }

    #[test]
    fn sizes_carry_a_unit() {
        let any = 1..=1 << 20;
        for (text, size) in [("1B", 1), ("16KiB", 16 << 10), ("16 KiB", 16 << 10), ("1MiB", 1 << 20), ("2kB", 2_000)] {
            assert_eq!(bytes(text, &any), Ok(size), "{text}");
        }
        let way_out = "write a number and a unit, such as \"512B\", \"16KiB\" or \"1MiB\"";
        for (text, expected) in [
            ("16", "\"16\" has no unit; write \"16B\"".to_owned()),
            ("", format!("\"\" is not a size; {way_out}")),
            ("much", format!("\"much\" is not a size; {way_out}")),
            ("-1KiB", format!("\"-1KiB\" is not a size; {way_out}")),
            ("0B", "\"0B\" is out of range; use 1B to 1MiB".to_owned()),
            ("2MiB", "\"2MiB\" is out of range; use 1B to 1MiB".to_owned()),
        ] {
            assert_eq!(words(&bytes(text, &any).unwrap_err()), expected);
        }
    }

    #[test]
    fn shares_carry_their_sign() {
        for (text, hundredths) in
            [("0%", 0), ("10%", 1_000), ("2.5%", 250), ("100 %", 10_000), ("0.01%", 1), ("33.333%", 3_333)]
        {
            assert_eq!(percent(text), Ok(Percent::hundredths(hundredths)), "{text}");
        }
        for (text, expected) in [
            ("10", "\"10\" is not a share; write \"10%\""),
            ("", "\"\" is not a share; write a share such as \"10%\""),
            ("half", "\"half\" is not a share; write a share such as \"10%\""),
            ("x%", "\"x%\" is not a share; write a share such as \"10%\""),
            ("-1%", "\"-1%\" is not a share; write a share such as \"10%\""),
            ("inf%", "\"inf%\" is not a share; write a share such as \"10%\""),
            ("101%", "\"101%\" is out of range; use 0% to 100%"),
            ("0.004%", "\"0.004%\" is finer than a hundredth of a per cent; use 0%, 0.01% to 99.99%, or 100%"),
            ("99.996%", "\"99.996%\" is finer than a hundredth of a per cent; use 0%, 0.01% to 99.99%, or 100%"),
        ] {
            assert_eq!(words(&percent(text).unwrap_err()), expected);
        }
    }

    #[test]
    fn no_sum_of_units_overflows() {
        let any = Duration::ZERO..=Duration::MAX;
        for text in ["18446744073709551615s 1000000000ns", &"9999999999y".repeat(5), &"9".repeat(100_000)] {
            let _ = duration(text, &any);
        }
    }
}
