//! One line of the access log while it is being written: `key=value` pairs, or one JSON object.
//!
//! Keys are constants of the code and stand for themselves; values are escaped, quoted where they could be
//! misread, and bounded. In text, `-` is a value that there isn't; in JSON it is `null`.

use super::escape;
use crate::config::Format;
use std::fmt::{Display, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most bytes of one text value that a line takes; what is longer ends in `…`. Names, addresses and reasons
/// are far below; it is for error texts and what clients say about themselves.
const MAX_VALUE: usize = 1_024;

/// The last second that RFC 3339 can write, at the end of the year 9999.
const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);

/// A line to which fields are added. [`AccessWriter::line`](super::AccessWriter::line) begins and ends it.
pub struct Line<'a> {
    out: &'a mut String,
    format: Format,
    fields: usize,
}

impl<'a> Line<'a> {
    pub(super) fn begin(out: &'a mut String, format: Format) -> Self {
        if format == Format::Json {
            out.push('{');
        }
        Self { out, format, fields: 0 }
    }

    pub(super) fn end(self) {
        self.out.push_str(match self.format {
            Format::Text => "\n",
            Format::Json => "}\n",
        });
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        let start = self.out.len();
        self.out.push_str(value);
        self.finish_text(start);
    }

    pub fn display(&mut self, key: &str, value: &dyn Display) {
        self.key(key);
        let start = self.out.len();
        self.push(value);
        self.finish_text(start);
    }

    pub fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        self.push(&value);
    }

    /// Seconds as a decimal number with six places.
    pub fn seconds(&mut self, key: &str, value: Duration) {
        self.key(key);
        self.push(&format_args!("{}.{:06}", value.as_secs(), value.subsec_micros()));
    }

    /// A moment in UTC, such as `2025-11-21T04:11:09.123Z`.
    pub fn time(&mut self, key: &str, value: SystemTime) {
        self.key(key);
        // A clock that is wrong by thousands of years gets the nearest moment that can be written.
        let since_epoch = value.duration_since(UNIX_EPOCH).unwrap_or_default().min(LAST_SECOND);
        let start = self.out.len();
        self.push(&humantime::format_rfc3339_millis(UNIX_EPOCH + since_epoch));
        self.finish_text(start);
    }

    /// A field that this line has no value for, so that every line has the same keys.
    pub fn none(&mut self, key: &str) {
        self.key(key);
        self.out.push_str(match self.format {
            Format::Text => "-",
            Format::Json => "null",
        });
    }

    fn key(&mut self, key: &str) {
        debug_assert!(escape::is_bare(key), "{key:?}");
        if self.fields > 0 {
            self.out.push(match self.format {
                Format::Text => ' ',
                Format::Json => ',',
            });
        }
        self.fields += 1;
        match self.format {
            Format::Text => self.out.extend([key, "="]),
            Format::Json => self.out.extend(["\"", key, "\":"]),
        }
    }

    fn push(&mut self, value: &dyn Display) {
        // Writing to a string can't fail; what a `Display` that fails has written so far is what there is to say.
        _ = write!(self.out, "{value}");
    }

    /// Makes what was written since `start` a value: bounded, escaped, in quotes if need be. The usual text value
    /// stays where it is.
    fn finish_text(&mut self, start: usize) {
        if self.out.len() - start > MAX_VALUE {
            let mut end = start + MAX_VALUE;
            while !self.out.is_char_boundary(end) {
                end -= 1;
            }
            self.out.truncate(end);
            self.out.push('…');
        }
        if self.format == Format::Json || !escape::is_bare(&self.out[start..]) {
            let value = self.out.split_off(start);
            escape::push_quoted(self.out, &value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: Format, write: impl FnOnce(&mut Line<'_>)) -> String {
        let mut out = String::new();
        let mut line = Line::begin(&mut out, format);
        write(&mut line);
        line.end();
        out
    }

    fn sample(line: &mut Line<'_>) {
        line.time("time", UNIX_EPOCH + Duration::from_millis(1_700_000_000_123));
        line.text("listener", "web");
        line.display("backend", &"a b");
        line.number("bytes", 7);
        line.seconds("connect", Duration::from_micros(1_000_042));
        line.text("reason", "evil\"\n\u{1b}[2Jfake=1");
        line.none("rule");
    }

    #[test]
    fn text_is_pairs_that_cannot_be_forged() {
        assert_eq!(
            line(Format::Text, sample),
            concat!(
                "time=2023-11-14T22:13:20.123Z listener=web backend=\"a b\" bytes=7 connect=1.000042 ",
                r#"reason="evil\"\n\u001b[2Jfake=1" rule=-"#,
                "\n"
            )
        );
    }

    #[test]
    fn every_value_can_be_read_back() {
        for odd in crate::log::tests::ODD {
            let write = |line: &mut Line<'_>| {
                line.text("pool", odd);
                line.display("backend", &odd);
                line.none("rule");
            };
            let text = line(Format::Text, write);
            let own = |key: &str, value: &str| (key.to_owned(), value.to_owned());
            let expected = [own("pool", odd), own("backend", odd), own("rule", "-")];
            assert_eq!(crate::log::tests::pairs(text.trim_end_matches('\n')), expected, "{text}");
            let json: serde_json::Value = serde_json::from_str(&line(Format::Json, write)).unwrap();
            assert_eq!(json, serde_json::json!({ "pool": odd, "backend": odd, "rule": null }));
        }
    }

    #[test]
    fn json_is_an_object_a_line() {
        let text = line(Format::Json, sample);
        assert_eq!(text.matches('\n').count(), 1);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            serde_json::json!({
                "time": "2023-11-14T22:13:20.123Z", "listener": "web", "backend": "a b", "bytes": 7,
                "connect": 1.000_042, "reason": "evil\"\n\u{1b}[2Jfake=1", "rule": null,
            })
        );
        assert_eq!(line(Format::Json, |_| ()), "{}\n");
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let text = line(Format::Text, |line| line.text("sni", &"é".repeat(MAX_VALUE)));
        assert_eq!(text, format!("sni={}…\n", "é".repeat(MAX_VALUE / 2)));
        let odd = format!("x{}", "é".repeat(MAX_VALUE));
        let text = line(Format::Json, |line| line.text("sni", &odd));
        assert_eq!(text, format!("{{\"sni\":\"x{}…\"}}\n", "é".repeat(MAX_VALUE / 2 - 1)));
    }

    #[test]
    fn a_clock_far_off_still_gives_a_line() {
        let far = UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(line(Format::Text, |line| line.time("time", far)), "time=9999-12-31T23:59:59.000Z\n");
        let before = UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(line(Format::Text, |line| line.time("time", before)), "time=1970-01-01T00:00:00.000Z\n");
    }
}
