//! Tables for people: columns as wide as what is in them, and numbers as short as they can be read.
//!
//! Owns no terminal. Invariant: what a process has sent can't act upon the terminal: nothing but letters and line ends
//! goes out.

use std::borrow::Cow;

/// Where the text of a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// Rows beneath a line of titles.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A title that begins with `>` is that of a column of numbers.
    pub(super) fn new(titles: &[&'static str]) -> Self {
        let column = |title: &&'static str| match title.strip_prefix('>') {
            Some(title) => (title, Side::Right),
            None => (*title, Side::Left),
        };
        Self { columns: titles.iter().map(column).collect(), rows: Vec::new() }
    }

    /// A row has a cell for each column.
    pub(super) fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.iter().map(|cell| clean(if cell.is_empty() { "-" } else { cell }).into_owned()).collect());
    }

    /// Each line ends with a line end, and begins with `indent`.
    pub(super) fn text(&self, indent: &str) -> String {
        let titles = || self.columns.iter().map(|(title, _)| *title);
        let width = |(index, title): (usize, &str)| {
            let cells = self.rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(title.len())
        };
        let widths: Vec<usize> = titles().enumerate().map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = indent.to_owned();
            for (cell, (width, (_, side))) in cells.zip(widths.iter().zip(&self.columns)) {
                let width = *width;
                let padded = match side {
                    Side::Left => format!("{cell:<width$}  "),
                    Side::Right => format!("{cell:>width$}  "),
                };
                line.push_str(&padded);
            }
            line.truncate(line.trim_end().len());
            line + "\n"
        };
        let mut text = line(&mut titles());
        for row in &self.rows {
            text += &line(&mut row.iter().map(String::as_str));
        }
        text
    }
}

/// One line, without what a terminal might act upon.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        Cow::Owned(text.chars().map(|c| if c.is_control() { '?' } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// The same for several lines.
pub(super) fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

/// `512`, `1.5K`, `23M`: powers of 1,024, in three digits or fewer.
pub(super) fn bytes(count: u64) -> String {
    shortened(count, 1_024.0, &["", "K", "M", "G", "T", "P", "E"])
}

/// `980`, `1.2k`, `45M`: powers of 1,000.
pub(super) fn count(count: u64) -> String {
    shortened(count, 1_000.0, &["", "k", "M", "G", "T", "P", "E"])
}

fn shortened(count: u64, base: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (count as f64, 0);
    // What would be shown as 1000 goes on to the next unit.
    while unit + 1 < units.len() && value.round() >= 1_000.0 {
        value /= base;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 9.95);
    format!("{value:.digits$}{}", units[unit])
}

/// `0.4s`, `59s`, `3m12s`, `2h5m`, `4d3h`.
pub(super) fn span(millis: u64) -> String {
    let seconds = millis / 1_000;
    match seconds {
        0..10 => format!("{}.{}s", seconds, millis % 1_000 / 100),
        10..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut table = Table::new(&["NAME", ">TOTAL", "STATE"]);
        table.row(&["a".to_owned(), "1200".to_owned(), "up".to_owned()]);
        table.row(&["höher".to_owned(), "7".to_owned(), String::new()]);
        assert_eq!(table.text("  "), "  NAME   TOTAL  STATE\n  a       1200  up\n  höher      7  -\n");
    }

    #[test]
    fn nothing_acts_upon_the_terminal() {
        assert_eq!(clean("\x1b[2Ja\u{9b}b\nc"), "?[2Ja?b?c");
        assert_eq!(clean_lines("a\r\nb\x07\n"), "a\nb?");
    }

    #[test]
    fn numbers_are_short() {
        for (number, expected) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1.0K"),
            (1_536, "1.5K"),
            (10_240, "10K"),
            (1_048_575, "1.0M"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(bytes(number), expected);
        }
        for (number, expected) in [(999, "999"), (1_000, "1.0k"), (9_949, "9.9k"), (9_950, "10k"), (999_600, "1.0M")] {
            assert_eq!(count(number), expected);
        }
        for (millis, expected) in [
            (0, "0.0s"),
            (9_999, "9.9s"),
            (59_999, "59s"),
            (60_000, "1m0s"),
            (7_500_000, "2h5m"),
            (356_400_000, "4d3h"),
        ] {
            assert_eq!(span(millis), expected);
        }
    }
}
