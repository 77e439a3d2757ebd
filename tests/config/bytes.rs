//! Whatever the bytes are, the verdict is a config or a list of mistakes: no panic, no false word.

use super::EXAMPLE;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use tidegate::config::{Config, Mistakes, Severity};

/// Parses, and checks what holds for every verdict.
fn check_verdict(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Err(mistakes) = Config::parse("lb.toml", bytes) else { return Ok(()) };
    prop_assert!(mistakes.iter().any(|mistake| mistake.severity == Severity::Error), "refused for nothing: {mistakes}");
    let lines = bytes.split(|&byte| byte == b'\n').count();
    let mut last = None;
    for mistake in &mistakes {
        let position = mistake.place.position;
        prop_assert!(position >= last, "out of order: {mistakes}");
        prop_assert!(position.is_none_or(|position| (1..=lines).contains(&position.line) && position.column >= 1));
        last = position;
    }
    let shown = mistakes.to_string();
    prop_assert!(!shown.contains(|char: char| char.is_control() && char != '\n'), "{shown:?}");
    Ok(())
}

/// Pieces that the syntax is made of, so that random text gets somewhere.
const PIECES: &[&str] = &[
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ",",
    ".",
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "#",
    "\n",
    "\r\n",
    "\r",
    " ",
    "\t",
    "\\",
    "\u{9b}",
    "listeners",
    "pools",
    "web",
    "bind",
    "pool",
    "backends",
    "target",
    "health",
    "probe",
    "http",
    "exchange",
    "agent",
    "port",
    "connect",
    "timeout",
    "weight",
    "address",
    "\"10.0.0.1:80\"",
    "\"unix:/a\"",
    "\"failover:(tcp://a:1|tcp://b:2)\"",
    "\"[::]:80\"",
    "\"5s\"",
    "true",
    "1979-05-27T07:32:00Z",
    "0x1f",
    "1e9",
    "inf",
    "[listeners.web]\n",
    "[pools.web]\n",
    "[[pools.web]]\n",
    "failover:(",
    "|",
    ")",
    "tcp://",
];

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![8 => select(PIECES).prop_map(str::to_owned), 1 => any::<char>().prop_map(String::from)]
}

/// A change of a text at some place.
#[derive(Clone, Debug)]
enum Change {
    Insert(String),
    Remove(usize),
    Overwrite(Vec<u8>),
    Repeat(usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        piece().prop_map(Change::Insert),
        (1_usize..40).prop_map(Change::Remove),
        vec(any::<u8>(), 1..4).prop_map(Change::Overwrite),
        (1_usize..200).prop_map(Change::Repeat),
    ]
}

fn apply(bytes: &mut Vec<u8>, at: Index, change: &Change) {
    let at = at.index(bytes.len() + 1);
    let piece = |length: usize| at..(at + length).min(bytes.len());
    let (range, new) = match change {
        Change::Insert(text) => (at..at, text.clone().into_bytes()),
        Change::Remove(length) => (piece(*length), Vec::new()),
        Change::Overwrite(new) => (piece(new.len()), new.clone()),
        Change::Repeat(length) => (at..at, bytes[piece(*length)].to_vec()),
    };
    bytes.splice(range, new);
}

/// The example, its comments left out.
fn example() -> String {
    EXAMPLE.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_get_a_verdict(bytes in vec(any::<u8>(), 0..400)) {
        check_verdict(&bytes)?;
    }

    #[test]
    fn any_text_of_our_pieces_gets_a_verdict(pieces in vec(piece(), 0..60)) {
        check_verdict(pieces.concat().as_bytes())?;
    }

    #[test]
    fn any_change_of_a_good_config_gets_a_verdict(changes in vec((any::<Index>(), change()), 1..6)) {
        let mut bytes = example().into_bytes();
        for (at, change) in &changes {
            apply(&mut bytes, *at, change);
        }
        check_verdict(&bytes)?;
    }

    #[test]
    fn any_string_as_a_value_gets_a_verdict(
        text in prop_oneof!["\\PC{0,40}", vec(piece(), 0..9).prop_map(|pieces| pieces.concat())],
        key in select(&["bind", "pool", "keepalive"][..]),
    ) {
        let text = toml::Value::String(text).to_string();
        let pools = format!("pools.web.backends = [{text}]\npools.b.target = {text}");
        check_verdict(format!("listeners.web.{key} = {text}\n{pools}").as_bytes())?;
    }
}

/// Checks that a file with a syntax mistake is called wrong for nothing else.
fn assert_only_syntax(text: &str) {
    let is_syntax = |mistake: &tidegate::config::Mistake| mistake.place.key.is_empty();
    let all_or_none = |mistakes: &Mistakes| !mistakes.iter().any(is_syntax) || mistakes.iter().all(is_syntax);
    if let Err(mistakes) = Config::parse("lb.toml", text.as_bytes()) {
        assert!(all_or_none(&mistakes), "{mistakes}\nabout\n{text}");
    }
}

#[test]
fn a_file_that_is_cut_is_wrong_only_where_it_is_cut() {
    let example = example();
    for cut in (0..example.len()).filter(|&cut| example.is_char_boundary(cut)) {
        assert_only_syntax(&example[..cut]);
    }
}

#[test]
fn a_broken_line_makes_no_other_line_wrong() {
    let example = example();
    let good: Vec<&str> = example.lines().collect();
    // Whoever breaks a header beyond recognition gives its keys to the table before.
    for broken in (0..good.len()).filter(|&line| !good[line].starts_with('[')) {
        for junk in ["x = = \"", "pools.web", "\"", "}{", "backends = [", "\"\"\"", "key = \"\"\"", "]"] {
            let mut lines = good.clone();
            lines[broken] = junk;
            assert_only_syntax(&lines.join("\n"));
        }
    }
}
