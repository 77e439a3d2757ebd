//! The operational log as it arrives at its target.

use super::*;
use std::io::Read;
use tracing::subscriber::with_default;

/// What a log of this config writes while `log` runs.
fn logged(config: &Log, log: impl FnOnce()) -> String {
    let (mut reader, writer) = io::pipe().unwrap();
    let metrics = Metrics::new().unwrap();
    let dropped = metrics.log_dropped(LogKind::Ops).clone();
    let (queue, writer) = Queue::new("log", LIMITS, Target::from_fd(writer.into()), dropped.clone(), |_| ());
    writer.start().unwrap();
    with_default(subscriber(config, queue.clone()).0, log);
    drop(LogGuard { queue, writer: None });
    assert_eq!(dropped.get(), 0);
    let mut all = String::new();
    reader.read_to_string(&mut all).unwrap();
    all
}

const EVIL: &str = "a\nFORGED\u{1b}[2J\u{9b}m";

#[test]
fn text_is_one_printable_line_an_event() {
    let text = logged(&Log::default(), || {
        tracing::info!(name = %EVIL, quoted = EVIL, "it broke: {EVIL}");
        tracing::debug!("too fine");
    });
    let (_time, rest) = text.split_once("  INFO ").unwrap();
    assert_eq!(
        rest,
        concat!(
            r#"it broke: a\nFORGED\u001b[2J\u009bm name="a\nFORGED\u001b[2J\u009bm" "#,
            r#"quoted="a\nFORGED\u001b[2J\u009bm""#,
            "\n"
        )
    );
}

/// What a reader of logfmt takes such pairs for: a value is in quotes as in JSON, or has nothing in it that could be
/// misread.
pub fn pairs(mut rest: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    while !rest.is_empty() {
        let (key, value) = rest.split_once('=').unwrap_or_else(|| panic!("no pair: {rest:?}"));
        assert!(key.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{key:?} in {rest:?}");
        let length = if value.starts_with('"') {
            let mut strings = serde_json::Deserializer::from_str(value).into_iter::<String>();
            let text = strings.next().unwrap().unwrap_or_else(|error| panic!("{error}: {value}"));
            pairs.push((key.to_owned(), text));
            strings.byte_offset()
        } else {
            let length = value.find(' ').unwrap_or(value.len());
            assert!(!value[..length].contains(['"', '=', '\\']), "{value:?}");
            pairs.push((key.to_owned(), value[..length].to_owned()));
            length
        };
        let after = &value[length..];
        rest = after.strip_prefix(' ').unwrap_or_else(|| {
            assert_eq!(after, "", "behind the value of {key}");
            after
        });
    }
    pairs
}

/// Values that break a careless reader or writer.
pub const ODD: [&str; 12] = [
    "uid 0",
    "a=b",
    "",
    "-",
    "x,y",
    "say \"hi\"",
    "back\\slash",
    "unix:/run/my app.sock",
    "a\nb by=root",
    "\u{1b}[2J",
    "é\u{202e}ü",
    "plain",
];

#[test]
fn every_field_of_an_event_can_be_read_back() {
    for odd in ODD {
        let path = std::path::Path::new(odd);
        let log = || {
            let (none, some) = (None::<u64>, Some(tracing::field::debug(std::time::Duration::from_secs(2))));
            let error = io::Error::other(odd);
            tracing::info!(by = %odd, command = odd, path = %path.display(), %error, count = 7, yes = true, none, some, "changed");
        };
        let text = logged(&Log::default(), log);
        let (_, fields) = text.trim_end_matches('\n').split_once(" changed ").unwrap();
        let read = pairs(fields);
        let read: Vec<(&str, &str)> = read.iter().map(|(key, value)| (&**key, &**value)).collect();
        let (command, count) = (("command", odd), [("count", "7"), ("yes", "true"), ("some", "2s")]);
        let expected = [&[("by", odd), command, ("path", odd), ("error", odd)][..], &count].concat();
        assert_eq!(read, expected, "{text}");
        let json = logged(&Log { format: Format::Json, ..Log::default() }, log);
        let event: serde_json::Value = serde_json::from_str(&json).unwrap();
        for key in ["by", "command", "path", "error"] {
            assert_eq!(event[key], odd, "{json}");
        }
    }
}

#[test]
fn json_is_one_object_an_event() {
    let config = Log { format: Format::Json, level: Level::Debug, ..Log::default() };
    let text = logged(&config, || tracing::debug!(name = %EVIL, count = 3, "it broke: {EVIL}"));
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
    let event: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(event["level"], "DEBUG");
    assert_eq!(event["message"], format!("it broke: {EVIL}"));
    assert_eq!(event["name"], EVIL);
    assert_eq!(event["count"], 3);
}

/// The whole of it, in a process of its own: the subscriber and the panic hook are there once a process.
#[test]
fn a_panic_is_logged_and_counted() {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["log::tests::child_that_panics", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(child.stderr).unwrap();
    assert!(child.status.success(), "{stderr}");
    let panic = stderr.lines().find(|line| line.contains("ERROR")).unwrap_or_else(|| panic!("none in {stderr}"));
    assert!(panic.contains(r#"ERROR panic panic="on\npurpose" location="src/log/tests.rs:"#), "{panic}");
    assert!(stderr.lines().all(|line| !line.starts_with("thread")), "{stderr}");
}

#[test]
#[ignore = "run by a_panic_is_logged_and_counted in a process of its own"]
fn child_that_panics() {
    let metrics = Arc::new(Metrics::new().unwrap());
    let log = init(&Log::default(), &metrics).unwrap();
    assert!(init(&Log::default(), &metrics).is_err());
    assert!(std::panic::catch_unwind(|| panic!("on\npurpose")).is_err());
    assert_eq!(metrics.panics.get(), 1);
    drop(log);
}

#[test]
fn a_level_can_be_changed_while_the_log_runs() {
    let (mut reader, writer) = io::pipe().unwrap();
    let metrics = Metrics::new().unwrap();
    let dropped = metrics.log_dropped(LogKind::Ops).clone();
    let (queue, writer) = Queue::new("log", LIMITS, Target::from_fd(writer.into()), dropped, |_| ());
    writer.start().unwrap();
    let (subscriber, filter) = subscriber(&Log::default(), queue.clone());
    with_default(subscriber, || {
        for (level, number) in [(Level::Info, 1), (Level::Debug, 2), (Level::Error, 3), (Level::Trace, 4)] {
            filter.reload(filter_of(level)).unwrap();
            tracing::error!(number, "error");
            tracing::info!(number, "info");
            tracing::debug!(number, "debug");
            tracing::trace!(number, "trace");
        }
    });
    drop(LogGuard { queue, writer: None });
    let mut all = String::new();
    reader.read_to_string(&mut all).unwrap();
    let said: Vec<(&str, &str)> = all
        .lines()
        .map(|line| line.split_once("number=").unwrap())
        .map(|(said, number)| (number, said.trim_end().rsplit(' ').next().unwrap()))
        .collect();
    let expected = [
        ("1", "error"),
        ("1", "info"),
        ("2", "error"),
        ("2", "info"),
        ("2", "debug"),
        ("3", "error"),
        ("4", "error"),
        ("4", "info"),
        ("4", "debug"),
        ("4", "trace"),
    ];
    assert_eq!(said, expected);
}
