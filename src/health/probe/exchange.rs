//! Some bytes for some bytes: enough for Redis, PostgreSQL, SMTP and whatever else answers in a word.
//!
//! Owns when an answer is decided: as soon as it can't become right any more, or is.

use super::text::{contains, quoted};
use super::{ProbeError, Seen, shortage};
use crate::config::{Exchange, Expect};
use crate::net::async_stream::AsyncStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub async fn ask(spec: &Exchange, stream: &mut AsyncStream, seen: &mut Seen) -> Result<(), ProbeError> {
    // A backend that has closed already may have said why; what there is to read tells.
    let _ = stream.write_all(&spec.send).await;
    let (Expect::Text(wanted) | Expect::Prefix(wanted)) = &spec.expect;
    let wanted = quoted(wanted);
    let mut answer = Vec::new();
    let mut piece = [0; 4 << 10];
    loop {
        let room = piece.len().min(spec.max_bytes - answer.len());
        if room == 0 {
            let (got, count) = (quoted(&answer), answer.len());
            return Err(ProbeError::Wrong(format!("expected {wanted}, got {got} in the first {count} bytes")));
        }
        let before = answer.len();
        match stream.read(&mut piece[..room]).await {
            Ok(0) if answer.is_empty() => {
                return Err(ProbeError::Wrong(format!("expected {wanted}, got the end of the connection")));
            }
            Ok(0) => {
                let got = quoted(&answer);
                return Err(ProbeError::Wrong(format!("expected {wanted}, got {got} and the end of the connection")));
            }
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) => {
                let got = if answer.is_empty() { String::new() } else { format!("{} and ", quoted(&answer)) };
                let wrong = ProbeError::Wrong(format!("expected {wanted}, got {got}an error: {error}"));
                return Err(shortage(&error).unwrap_or(wrong));
            }
        }
        match verdict(&spec.expect, &answer, before) {
            Some(true) => return Ok(()),
            Some(false) => return Err(ProbeError::Wrong(format!("expected {wanted}, got {}", quoted(&answer)))),
            None => *seen = Some(format!("expected {wanted}, got {}", quoted(&answer))),
        }
    }
}

/// Whether the answer is right, if what has come of it decides that; `before` bytes of it have been judged already.
fn verdict(expect: &Expect, answer: &[u8], before: usize) -> Option<bool> {
    match expect {
        Expect::Prefix(prefix) if answer.len() >= prefix.len() => Some(answer.starts_with(prefix)),
        Expect::Prefix(prefix) => (!prefix.starts_with(answer)).then_some(false),
        Expect::Text(text) => contains(answer, text, before.saturating_sub(text.len() - 1)).then_some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::super::kit::{Conn, Peer, ask, ends_in_order, given_up};
    use super::super::{Answer, ProbeError, Question};
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    const LIMIT: Duration = Duration::from_secs(10);

    fn question(send: &str, expect: Expect) -> Question {
        Question::Exchange(Arc::new(Exchange { send: send.into(), expect, max_bytes: 4 << 10 }))
    }

    fn wrong(text: &str) -> Result<Answer, ProbeError> {
        Err(ProbeError::Wrong(text.into()))
    }

    #[tokio::test]
    async fn a_right_answer_is_good_and_the_end_is_quiet() {
        let redis = question("PING\r\n", Expect::Prefix(b"+PONG".into()));
        let peer = Peer::new(|mut conn| {
            conn.expect(b"PING\r\n");
            // In pieces, and with more behind it.
            conn.send(b"+PO");
            conn.send(b"NG\r\n");
            ends_in_order(conn)
        });
        assert_eq!(ask(&redis, &peer, LIMIT).await, Ok(Answer::Good));
        assert!(peer.outcome(), "the connection was reset");

        // Nothing is sent: the backend speaks first.
        let smtp = question("", Expect::Text(b"ESMTP".into()));
        let peer = Peer::new(|mut conn| {
            conn.send(b"220 mail.example ES");
            conn.send(b"MTP ready\r\n");
            ends_in_order(conn)
        });
        assert_eq!(ask(&smtp, &peer, LIMIT).await, Ok(Answer::Good));
        assert!(peer.outcome(), "the connection was reset");
    }

    #[tokio::test]
    async fn wrong_answers_are_told_in_words() {
        let pong = || Expect::Prefix(b"+PONG".into());
        for (answer, expect, reason) in [
            (&b"-LOADING Redis is loading\r\n"[..], pong(), r#"expected "+PONG", got "-LOADING Redis is loading\r\n""#),
            (b"+PO", pong(), r#"expected "+PONG", got "+PO" and the end of the connection"#),
            (b"", pong(), r#"expected "+PONG", got the end of the connection"#),
            (
                b"x\x00\xff",
                Expect::Text(b"ok".into()),
                r#"expected "ok", got "x\x00\xff" and the end of the connection"#,
            ),
        ] {
            let peer = Peer::new(move |mut conn| {
                conn.expect(b"PING\r\n");
                conn.send(answer);
                conn.finish();
                ends_in_order(conn)
            });
            assert_eq!(ask(&question("PING\r\n", expect), &peer, LIMIT).await, wrong(reason));
            assert!(peer.outcome(), "the connection was reset");
        }
    }

    #[tokio::test]
    async fn a_gigabyte_is_not_read() {
        let peer = Peer::new(|mut conn| conn.flood(b"garbage ") < 64 << 20);
        let answer = ask(&question("", Expect::Text(b"ok".into())), &peer, LIMIT).await;
        let Err(ProbeError::Wrong(reason)) = answer else { panic!("{answer:?}") };
        assert!(reason.starts_with("expected \"ok\", got \"garbage garbage"), "{reason}");
        assert!(reason.ends_with("…\" in the first 4096 bytes"), "{reason}");
        assert!(peer.outcome(), "more than the socket buffers hold was taken");
    }

    #[tokio::test]
    async fn a_backend_that_hangs_is_given_up_and_what_it_said_is_told() {
        let limit = Duration::from_millis(200);
        let pong = question("PING\r\n", Expect::Prefix(b"+PONG".into()));
        assert_eq!(given_up(&pong, limit, Peer::until_the_end).await, ProbeError::TimedOut(limit));

        let begins = |mut conn: Conn| {
            conn.send(b"+PO");
            Peer::until_the_end(conn)
        };
        // The peer has to have said so much by then, also on a slow machine.
        let error = given_up(&pong, Duration::from_secs(3), begins).await;
        assert_eq!(error.to_string(), r#"expected "+PONG", got "+PO" within 3s"#);
    }
}
