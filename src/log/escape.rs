//! Which characters may stand in a log as they are, and what stands for the others.
//!
//! A line must stay one line, and reading it in a terminal must not do anything to the terminal. The escapes are
//! those of JSON, so that they are also right inside a JSON string.

use std::fmt::Write;

/// Control characters (of which C1 is honoured by some terminals even in UTF-8), separators of lines that aren't
/// control characters, and those that change the direction of the text around them.
fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a value needs no quotes in a text line.
pub fn is_bare(text: &str) -> bool {
    let risky = |c| matches!(c, ' ' | '"' | '=' | '\\' | ',') || is_harmful(c);
    // The dash alone is the sign for "none".
    !matches!(text, "" | "-") && !text.chars().any(risky)
}

/// Appends a text with every harmful character escaped.
pub fn push_printable(out: &mut String, text: &str) {
    for c in text.chars() {
        if is_harmful(c) {
            push_escape(out, c);
        } else {
            out.push(c);
        }
    }
}

/// Appends a text in quotes, as JSON writes strings.
pub fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if is_harmful(c) => push_escape(out, c),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn push_escape(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        // Four digits do: all harmful characters are below U+10000. Writing to a string can't fail.
        c => _ = write!(out, "\\u{:04x}", u32::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NASTY: &str = "a\r\nb\t\u{1b}[31m \u{9b}2J \"q\" \\ \u{202e}txt\u{2028}\u{7f}\0é";

    #[test]
    fn nothing_harmful_is_left() {
        let mut out = String::new();
        push_printable(&mut out, NASTY);
        assert_eq!(out, r#"a\r\nb\t\u001b[31m \u009b2J "q" \ \u202etxt\u2028\u007f\u0000é"#);
    }

    #[test]
    fn quoted_text_is_json() {
        let mut out = String::new();
        push_quoted(&mut out, NASTY);
        assert!(!out.chars().any(is_harmful), "{out:?}");
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), NASTY);
    }

    #[test]
    fn what_could_be_misread_is_not_bare() {
        for text in ["", "-", "a b", "a=b", "a\"", "a\\", "a,b", "a\nb", "\u{202e}"] {
            assert!(!is_bare(text), "{text:?}");
        }
        for text in ["10.0.0.1:80", "[::1]:80", "unix:/run/app.sock", "é", "a-b"] {
            assert!(is_bare(text), "{text:?}");
        }
    }
}
