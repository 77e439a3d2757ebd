//! From text to a TOML table with places, whatever the text is.
//!
//! Owns the syntax mistakes and the bound on nesting (the parser bounds lists and inline tables itself, but not
//! dotted keys, whose tables would overflow the stack when they are dropped). Knows no key of ours.
//!
//! A file with a syntax mistake should still show its other mistakes. So the lines with a syntax mistake are blanked
//! and the rest is parsed again: what is there can be judged, but nothing can be said to be missing. Next: `file`.

use super::findings::{Coverage, Findings};
use super::words;
use std::ops::Range;
use toml::de::{DeTable, Error};
use toml_parser::lexer::TokenKind;

/// Parts of a dotted key. Ours have four at most: `pools.NAME.connect.timeout`.
const MAX_KEY_PARTS: usize = 32;

/// Reports the syntax mistakes of the source, and has `judge` look at what could be understood of it.
pub(super) fn parse<T>(findings: &Findings, judge: impl FnOnce(&DeTable) -> T) -> T {
    let text = findings.source.text.as_str();
    let nothing = || {
        findings.coverage.set(Coverage::Partial);
        DeTable::new()
    };
    if let Some(span) = too_deep(text) {
        findings.mistake_at(span, "", format!("a key has more than {MAX_KEY_PARTS} parts"), "ours have four at most");
        return judge(&nothing());
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    let broken: Vec<Range<usize>> = errors.iter().filter_map(|error| report(findings, error)).collect();
    if broken.is_empty() {
        return judge(table.get_ref());
    }
    findings.coverage.set(Coverage::Partial);
    let rest = without_lines(findings, &broken);
    match rest.as_deref().map(DeTable::parse_recoverable) {
        Some((table, errors)) if errors.iter().all(is_duplicate) => judge(table.get_ref()),
        _ => judge(&nothing()),
    }
}

/// Where a dotted key has too many parts, in any place that the parser could take for one.
fn too_deep(text: &str) -> Option<Range<usize>> {
    let mut parts = 1;
    for token in toml_parser::Source::new(text).lex() {
        match token.kind() {
            TokenKind::Dot => parts += 1,
            TokenKind::Atom | TokenKind::Whitespace | TokenKind::BasicString | TokenKind::LiteralString => {}
            _ => parts = 1,
        }
        if parts > MAX_KEY_PARTS {
            return Some(token.span().start()..token.span().end());
        }
    }
    None
}

/// Reports one error of the parser. Returns its span if the text around it was not understood; a duplicate was.
fn report(findings: &Findings, error: &Error) -> Option<Range<usize>> {
    let text = &findings.source.text;
    let span = error.span().unwrap_or(text.len()..text.len());
    let at = text.get(span.clone()).unwrap_or("");
    if is_duplicate(error) {
        findings.mistake_at(span, "", format!("{} is defined twice", words::quoted(at)), "keep one of the two");
        return None;
    }
    let (message, hint) = sentence(error.message(), at);
    findings.mistake_at(span.clone(), "", message, hint);
    Some(span)
}

fn is_duplicate(error: &Error) -> bool {
    error.message() == "duplicate key"
}

/// The parser's words, as message and way out.
fn sentence(message: &str, at: &str) -> (String, String) {
    if message.starts_with("cannot recurse") {
        return ("lists and tables are nested too deeply".into(), "a config nests three levels".into());
    }
    let (what, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    let shown = at.trim_end();
    let what = words::escaped(what);
    let message =
        if shown.is_empty() || what.contains(shown) { what } else { format!("{what} at {}", words::quoted(shown)) };
    let hint = match expected {
        "" => String::new(),
        "nothing" => "nothing is expected here".into(),
        expected => format!("expected {}", words::escaped(expected)),
    };
    (message, hint)
}

/// The text with the lines of these spans blanked, every offset unchanged. `None` if a table's header is among them,
/// since what follows would then count to the table before.
fn without_lines(findings: &Findings, spans: &[Range<usize>]) -> Option<String> {
    let source = findings.source;
    let mut rest = source.text.clone().into_bytes();
    for span in spans {
        let lines = source.whole_lines(span.clone());
        if source.text[lines.clone()].lines().any(|line| line.trim_start().starts_with('[')) {
            return None;
        }
        for byte in &mut rest[lines] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    }
    String::from_utf8(rest).ok()
}
