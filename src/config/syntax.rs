//! From text to a TOML table with places, whatever the text is.
//!
//! Owns the syntax mistakes, and the bounds within which the parser is let at a text: on the length of keys, since the
//! parser bounds that and the depth of tables but not their product, which would overflow the stack of a thread when
//! the tables are dropped; and on memory. Knows no key of ours.
//!
//! A file with a syntax mistake should still show its other mistakes. So the lines with a syntax mistake are blanked
//! and the rest is parsed again: what is there can be judged, but nothing can be said to be missing. Next: `file`.

use super::findings::{Coverage, Findings};
use super::words;
use std::ops::Range;
use toml::de::{DeTable, Error};
use toml_parser::lexer::TokenKind;

/// Parts of a dotted key. Ours have four at most: `pools.NAME.connect.timeout`.
const MAX_KEY_PARTS: usize = 8;
/// Keys, values, signs and runs of white space in a file. The parser keeps them all, at some 50 bytes each.
const MAX_TOKENS: usize = 4_000_000;
/// Of a larger file, only the first syntax mistake is looked for: each costs the parser some 200 bytes, and there can
/// be one in each byte or two.
const MAX_RECOVERED: usize = 1 << 20;

/// Reports the syntax mistakes of the source, and has `judge` look at what could be understood of it.
pub(super) fn parse<T>(findings: &Findings, judge: impl FnOnce(&DeTable) -> T) -> T {
    let text = findings.source.text.as_str();
    if is_bearable(findings, text) {
        let first = match DeTable::parse(text) {
            Ok(table) => return judge(table.get_ref()),
            Err(first) => first,
        };
        if text.len() <= MAX_RECOVERED {
            return recover(findings, text, judge);
        }
        report(findings, &first);
    }
    findings.coverage.set(Coverage::Partial);
    judge(&DeTable::new())
}

/// Has `judge` look at whatever the parser makes of the source, which may be in another table than is meant: for those
/// who look for a hint and not for a verdict.
pub(super) fn guess<T>(findings: &Findings, judge: impl FnOnce(&DeTable) -> T) -> T {
    let text = findings.source.text.as_str();
    if text.len() > MAX_RECOVERED {
        return parse(findings, judge);
    }
    if !is_bearable(findings, text) {
        return judge(&DeTable::new());
    }
    let (_, errors) = DeTable::parse_recoverable(text);
    let broken: Vec<Range<usize>> = errors.iter().filter_map(|error| report(findings, error)).collect();
    let lines = lines_of(findings, &broken);
    judge(DeTable::parse_recoverable(&blanked(text, &lines)).0.get_ref())
}

/// Reports all syntax mistakes, and has the rest judged.
fn recover<T>(findings: &Findings, text: &str, judge: impl FnOnce(&DeTable) -> T) -> T {
    let (table, errors) = DeTable::parse_recoverable(text);
    let broken: Vec<Range<usize>> = errors.iter().filter_map(|error| report(findings, error)).collect();
    if broken.is_empty() {
        return judge(table.get_ref());
    }
    findings.coverage.set(Coverage::Partial);
    let rest = without_lines(findings, &broken);
    match rest.as_deref().map(DeTable::parse_recoverable) {
        Some((table, errors)) if errors.iter().all(is_duplicate) => {
            // The first time, the parser may not have come that far.
            for error in &errors {
                report(findings, error);
            }
            judge(table.get_ref())
        }
        _ => judge(&DeTable::new()),
    }
}

/// Whether the parser can be let at the text without harm. Reports if not.
fn is_bearable(findings: &Findings, text: &str) -> bool {
    let (mut tokens, mut parts) = (0, 1);
    for token in toml_parser::Source::new(text).lex() {
        tokens += 1;
        match token.kind() {
            TokenKind::Dot => parts += 1,
            TokenKind::Atom | TokenKind::Whitespace | TokenKind::BasicString | TokenKind::LiteralString => {}
            _ => parts = 1,
        }
        let span = token.span().start()..token.span().end();
        if parts > MAX_KEY_PARTS {
            findings.mistake_at(
                span,
                "",
                format!("a key has more than {MAX_KEY_PARTS} parts"),
                "ours have four at most",
            );
            return false;
        }
        if tokens > MAX_TOKENS {
            findings.mistake_at(span, "", format!("the file has more than {MAX_TOKENS} words and signs"), "split it");
            return false;
        }
    }
    true
}

/// Reports one error of the parser. Returns its span if the text around it was not understood; a duplicate was.
fn report(findings: &Findings, error: &Error) -> Option<Range<usize>> {
    let text = findings.source.text.as_str();
    let span = error.span().unwrap_or(text.len()..text.len());
    let at = text.get(span.clone()).unwrap_or_default().trim_end();
    if findings.is_full() {
        findings.mistake_at(span.clone(), "", "", "");
        return (!is_duplicate(error)).then_some(span);
    }
    if is_duplicate(error) {
        findings.mistake_at(span, "", format!("{} is defined twice", words::quoted(at)), "keep one of the two");
        return None;
    }
    if let Some(word) = unquoted(text, span.start, error) {
        let value = &text[word.clone()];
        findings.mistake_at(
            word.clone(),
            "",
            format!("{} is not a value", words::escaped(value)),
            format!("write {}", words::quoted(value)),
        );
        return Some(word);
    }
    let (message, hint) = sentence(error.message(), at);
    findings.mistake_at(span.clone(), "", message, hint);
    Some(span)
}

fn is_duplicate(error: &Error) -> bool {
    error.message() == "duplicate key"
}

/// The word without quotes that the parser tried to understand as a number or a date and gave up on.
fn unquoted(text: &str, at: usize, error: &Error) -> Option<Range<usize>> {
    let what = error.message().split(", expected ").next()?;
    let is_scalar = ["float", "integer", "boolean", "date", "time", "mantissa", "exponent"];
    let is_value = what == "string values must be quoted" || is_scalar.iter().any(|kind| what.contains(kind));
    if !is_value {
        return None;
    }
    let is_end = |char: char| char.is_whitespace() || "=,[]{}#\"'".contains(char);
    let start = at - text.get(..at)?.rsplit(is_end).next()?.len();
    let end = at + text[at..].split(is_end).next()?.len();
    let word = &text[start..end];
    let is_number =
        word.bytes().all(|byte| byte.is_ascii_digit() || b"+-_.eE".contains(&byte)) && word.matches('.').count() < 2;
    (!is_number).then_some(start..end)
}

/// The parser's words, as message and way out.
fn sentence(message: &str, at: &str) -> (String, String) {
    let (what, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    if what.starts_with("cannot recurse") {
        return ("lists and tables are nested too deeply".into(), "a config nests three levels".into());
    }
    if what == "string values must be quoted" && at.is_empty() {
        return ("the value is missing".into(), "write it behind the =".into());
    }
    if what.starts_with("invalid") && what.ends_with("string") && matches!(expected, "`\"`" | "`'`") {
        return ("the string is not closed".into(), "put the missing quotes".into());
    }
    let what = words::escaped(what);
    let is_told = at.is_empty() || what.contains(at);
    let message = if is_told { what } else { format!("{what} at {}", words::quoted(at)) };
    let hint = match expected {
        "" => String::new(),
        "nothing" => "remove it".into(),
        expected => format!("expected {}", words::escaped(expected)),
    };
    (message, hint)
}

/// The text with the lines of these spans blanked. `None` if one of them may have been a table's header, since what
/// follows would then count to the table before.
fn without_lines(findings: &Findings, spans: &[Range<usize>]) -> Option<String> {
    let text = findings.source.text.as_str();
    let lines = lines_of(findings, spans);
    let is_header = lines.iter().any(|lines| text[lines.clone()].lines().any(may_be_header));
    (!is_header).then(|| blanked(text, &lines))
}

/// The whole lines that these spans are in, each once.
fn lines_of(findings: &Findings, spans: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut lines: Vec<_> = spans.iter().map(|span| findings.source.whole_lines(span.clone())).collect();
    lines.sort_by_key(|lines| (lines.start, lines.end));
    lines.dedup();
    lines
}

/// The text with spaces in the place of these lines, every offset unchanged.
fn blanked(text: &str, lines: &[Range<usize>]) -> String {
    let mut bytes = text.to_owned().into_bytes();
    for lines in lines {
        for byte in &mut bytes[lines.clone()] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    }
    // Whole lines have whole characters.
    String::from_utf8(bytes).unwrap_or_default()
}

fn may_be_header(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with('[') || line.starts_with(|char: char| char.is_alphanumeric()) && !line.contains('=')
}
