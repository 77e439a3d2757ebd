//! What a backend says of itself: HAProxy's agent-check, one line on a port of its own.
//!
//! Owns the line's words and how it is fetched; what follows from a report is `pool`'s. Words are separated by blanks,
//! tabs and commas, in any order and case; what isn't said stays as it is. An agent that can't be reached, or says
//! nothing, changes nothing. Source: `agent-check` in HAProxy's configuration manual.

use super::probe::{ProbeError, quoted, shortage};
use crate::config;
use crate::net::async_stream::AsyncStream;
use crate::pool::Health;
use crate::pool::health::{AgentAdmin, AgentReport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The longest line, in bytes.
pub const MAX_LINE: usize = 1 << 10;

/// A line that was understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statement {
    pub report: AgentReport,
    /// What stood behind a `#`, in quotes; empty if nothing did.
    pub reason: String,
    /// The first word that isn't known, in quotes.
    pub unknown: Option<String>,
}

/// Fetches the line and takes it apart.
pub async fn ask(spec: &config::Agent, stream: &mut AsyncStream) -> Result<Statement, ProbeError> {
    // An agent that has hung up already may have spoken before; what there is to read tells.
    let _ = stream.write_all(&spec.send).await;
    let mut line = [0; MAX_LINE];
    let mut length = 0;
    loop {
        if let Some(end) = line[..length].iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
            return Ok(Statement::of(&line[..end]));
        }
        if length == MAX_LINE {
            return Err(ProbeError::Wrong(format!("the agent's line is longer than {MAX_LINE} bytes")));
        }
        match stream.read(&mut line[length..]).await {
            Ok(0) if length == 0 => return Err(ProbeError::Wrong("the agent said nothing".into())),
            Ok(0) => return Ok(Statement::of(&line[..length])),
            Ok(count) => length += count,
            Err(error) => {
                let wrong = ProbeError::Wrong(format!("the agent's line broke off: {error}"));
                return Err(shortage(&error).unwrap_or(wrong));
            }
        }
    }
}

impl Statement {
    /// Of two words about the same, the later one counts.
    pub fn of(line: &[u8]) -> Self {
        let (words, reason) = match line.iter().position(|byte| *byte == b'#') {
            Some(at) => (&line[..at], line[at + 1..].trim_ascii()),
            None => (line, &line[..0]),
        };
        let mut statement = Self::default();
        if !reason.is_empty() {
            statement.reason = quoted(reason);
        }
        let report = &mut statement.report;
        for word in words.split(|byte| matches!(byte, b' ' | b'\t' | b',')).filter(|word| !word.is_empty()) {
            match word.to_ascii_lowercase().as_slice() {
                b"up" => report.state = Some(Health::Up),
                b"down" | b"fail" | b"failed" | b"stopped" => report.state = Some(Health::Down),
                b"ready" => report.admin = Some(AgentAdmin::Ready),
                b"drain" => report.admin = Some(AgentAdmin::Drain),
                b"maint" => report.admin = Some(AgentAdmin::Maint),
                other => match percentage(other) {
                    Some(weight) => report.weight = Some(weight),
                    None => statement.unknown = statement.unknown.take().or_else(|| Some(quoted(word))),
                },
            }
        }
        statement
    }
}

/// `75%`; more than the whole weight is the whole.
fn percentage(word: &[u8]) -> Option<u8> {
    let digits = word.strip_suffix(b"%")?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number =
        digits.iter().fold(0_u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    Some(number.min(100) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::probe::kit::{Conn, Peer, ask, ends_in_order, given_up};
    use crate::health::probe::{Answer, Question};
    use std::sync::Arc;
    use std::time::Duration;

    const LIMIT: Duration = Duration::from_secs(10);

    fn report(state: Option<Health>, admin: Option<AgentAdmin>, weight: Option<u8>) -> AgentReport {
        AgentReport { state, admin, weight }
    }

    #[test]
    fn each_word_says_one_thing_and_the_rest_stays() {
        use AgentAdmin::{Drain, Maint, Ready};
        let (up, down) = (Some(Health::Up), Some(Health::Down));
        for (line, expected) in [
            ("up", report(up, None, None)),
            ("down", report(down, None, None)),
            ("failed", report(down, None, None)),
            ("fail", report(down, None, None)),
            ("stopped", report(down, None, None)),
            ("ready", report(None, Some(Ready), None)),
            ("drain", report(None, Some(Drain), None)),
            ("maint", report(None, Some(Maint), None)),
            ("75%", report(None, None, Some(75))),
            ("0%", report(None, None, Some(0))),
            ("250%", report(None, None, Some(100))),
            ("99999999999999999999999999%", report(None, None, Some(100))),
            ("UP 99%", report(up, None, Some(99))),
            ("50%,ready\tup", report(up, Some(Ready), Some(50))),
            ("drain ready", report(None, Some(Ready), None)),
            ("", report(None, None, None)),
            (" ,\t", report(None, None, None)),
        ] {
            assert_eq!(
                Statement::of(line.as_bytes()),
                Statement { report: expected, ..Statement::default() },
                "{line}"
            );
        }
    }

    #[test]
    fn a_reason_ends_the_words() {
        for line in ["down # disk full, 99% up\x1b", "down#disk full, 99% up\x1b"] {
            let statement = Statement::of(line.as_bytes());
            assert_eq!(statement.report, report(Some(Health::Down), None, None));
            assert_eq!((statement.reason.as_str(), statement.unknown), (r#""disk full, 99% up\x1b""#, None));
        }
    }

    #[test]
    fn unknown_words_are_told_and_harm_nothing() {
        for (line, unknown) in [
            ("up maxconn:30 xyz", "\"maxconn:30\""),
            ("up %", "\"%\""),
            ("up -5%", "\"-5%\""),
            ("up 1.5%", "\"1.5%\""),
            ("upp up", "\"upp\""),
            ("up \u{1b}[1m", r#""\x1b[1m""#),
        ] {
            let statement = Statement::of(line.as_bytes());
            assert_eq!(statement.report, report(Some(Health::Up), None, None), "{line}");
            assert_eq!(statement.unknown.as_deref(), Some(unknown));
        }
    }

    fn question(send: &str) -> Question {
        Question::Agent(Arc::new(config::Agent { port: 1, interval: LIMIT, send: send.into() }))
    }

    #[tokio::test]
    async fn the_line_is_fetched_with_or_without_its_end() {
        for answer in ["drain 10%\n", "drain 10%\r\nup\n", "drain 10%"] {
            let peer = Peer::new(move |mut conn| {
                conn.expect(b"web/a\n");
                conn.send(answer.as_bytes());
                ends_in_order(conn)
            });
            let expected = report(None, Some(AgentAdmin::Drain), Some(10));
            let statement = Statement { report: expected, ..Statement::default() };
            assert_eq!(ask(&question("web/a\n"), &peer, LIMIT).await, Ok(Answer::Agent(statement)));
            assert!(peer.outcome(), "the connection was reset");
        }
    }

    #[tokio::test]
    async fn what_is_no_line_is_an_error_and_bounded() {
        let peer = Peer::new(ends_in_order);
        let error = ask(&question(""), &peer, LIMIT).await.unwrap_err();
        assert_eq!(error.to_string(), "the agent said nothing");
        peer.outcome();

        let peer = Peer::new(|mut conn| conn.flood(b"up ready") < 64 << 20);
        let error = ask(&question(""), &peer, LIMIT).await.unwrap_err();
        assert_eq!(error.to_string(), "the agent's line is longer than 1024 bytes");
        assert!(peer.outcome(), "more than the socket buffers hold was taken");

        let limit = Duration::from_millis(200);
        let begins = |mut conn: Conn| {
            conn.send(b"up");
            Peer::until_the_end(conn)
        };
        assert_eq!(given_up(&question(""), limit, begins).await, ProbeError::TimedOut(limit));
    }
}
