//! A request, and whether status and body are those of a backend that is well.
//!
//! Owns the request's headers and the words for an answer that is none. The head is bounded by hyper and by
//! [`MAX_HEAD`], the body by the spec. One request for one connection, which says so (`connection: close`).

use super::text::{contains, quoted};
use super::{ProbeError, Seen, shortage};
use crate::config::Http;
use crate::name::{BackendAddr, Endpoint};
use crate::net::async_stream::AsyncStream;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::error::Error;
use std::future::{pending, poll_fn};
use std::time::Duration;

/// The most that heads, and the frames of a chunked body, may take, in bytes.
pub const MAX_HEAD: usize = 64 << 10;
/// How long the rest of an answer that is decided is read, so that the backend can end in order.
const READ_ON: Duration = Duration::from_millis(100);

pub async fn ask(spec: &Http, to: &BackendAddr, stream: &mut AsyncStream, seen: &mut Seen) -> Result<(), ProbeError> {
    let what = format!("{} {}", spec.method, spec.path);
    let broken = |error: hyper::Error| {
        shortage(&error).unwrap_or_else(|| ProbeError::Wrong(format!("{what}: {}", in_words(&error))))
    };
    let mut client = http1::Builder::new();
    client.max_buf_size(MAX_HEAD / 2);
    let (mut sender, mut connection) = client.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let asking = async {
        let mut response = sender.send_request(request(spec, to)).await.map_err(broken)?;
        let status = response.status();
        let verdict = if spec.status.contains(status) {
            match &spec.body {
                Some(text) => {
                    let wanted = quoted(text.as_bytes());
                    *seen = Some(format!("{what} answered {}, but no {wanted} came", status.as_u16()));
                    body_has(&mut response, text, spec.max_bytes).await.map_err(|got| {
                        ProbeError::Wrong(format!("the answer to {what} should contain {wanted}, but is {got}"))
                    })
                }
                None => Ok(()),
            }
        } else {
            Err(ProbeError::Wrong(format!("{what} answered {}, wanted {}", status.as_u16(), spec.status)))
        };
        *seen = None;
        let rest = read_on(&mut response, spec.max_bytes);
        // Of no interest, but for the quiet.
        let _ = tokio::time::timeout(READ_ON, rest).await;
        verdict
    };
    let driving = async {
        // How it ends is told to whoever waits for the answer.
        let _ = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
        pending::<()>().await;
    };
    tokio::select! {
        verdict = asking => verdict,
        () = driving => Ok(()),
    }
}

fn request(spec: &Http, to: &BackendAddr) -> Request<Empty<Bytes>> {
    let host = spec.host.clone().or_else(|| match &to.0 {
        Endpoint::Tcp(address) => HeaderValue::from_str(&address.to_string()).ok(),
        Endpoint::Unix(_) => None,
    });
    let mut request = Request::new(Empty::new());
    *request.method_mut() = spec.method.clone();
    *request.uri_mut() = spec.path.clone().into();
    let headers = request.headers_mut();
    headers.insert(HOST, host.unwrap_or(HeaderValue::from_static("localhost")));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("tidegate/", env!("CARGO_PKG_VERSION"))));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    // Replaces those of the same name.
    headers.extend(spec.headers.clone());
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    request
}

/// Reads the body until it has the text. Fails with what it is instead.
async fn body_has(response: &mut Response<Incoming>, text: &str, most: usize) -> Result<(), String> {
    let mut body = Vec::new();
    while body.len() < most {
        let data = match response.frame().await {
            None => return Err(quoted(&body)),
            Some(Err(error)) => return Err(format!("{} and an error: {}", quoted(&body), in_words(&error))),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        let before = body.len();
        body.extend_from_slice(&data[..data.len().min(most - before)]);
        if contains(&body, text.as_bytes(), before.saturating_sub(text.len() - 1)) {
            return Ok(());
        }
    }
    Err(format!("{} in the first {most} bytes", quoted(&body)))
}

/// Reads to the end of the body, or of its bound.
async fn read_on(response: &mut Response<Incoming>, most: usize) {
    let mut left = most;
    while let Some(Ok(frame)) = response.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(less) => left = less,
            None => return,
        }
    }
}

/// What hyper says, with its cause.
fn in_words(error: &hyper::Error) -> String {
    if error.is_incomplete_message() {
        return "the connection was closed before an answer".into();
    }
    match error.source() {
        _ if error.is_parse() => format!("the answer is not HTTP/1 ({error})"),
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::kit::{Conn, Peer, ask, ends_in_order, given_up};
    use super::super::{Answer, ProbeError, Question};
    use super::*;
    use crate::config::StatusSet;
    use hyper::Method;
    use std::sync::Arc;

    const LIMIT: Duration = Duration::from_secs(10);

    fn question(spec: Http) -> Question {
        Question::Http(Arc::new(spec))
    }

    fn health() -> Http {
        Http { path: "/health?deep=1".parse().unwrap(), ..Http::default() }
    }

    fn answering(answer: &'static [u8]) -> Peer {
        Peer::new(move |mut conn: Conn| {
            conn.head();
            conn.send(answer);
            ends_in_order(conn)
        })
    }

    async fn reason(spec: Http, answer: &'static [u8]) -> String {
        let peer = answering(answer);
        let error = ask(&question(spec), &peer, LIMIT).await.unwrap_err();
        assert!(peer.outcome(), "after {error}, the connection was reset");
        assert!(matches!(error, ProbeError::Wrong(_)), "{error:?}");
        error.to_string()
    }

    #[tokio::test]
    async fn it_asks_as_it_is_told_and_ends_in_order() {
        let mut spec = Http { host: Some(HeaderValue::from_static("app.example")), ..health() };
        spec.headers.insert("x-probe", HeaderValue::from_static("1"));
        spec.headers.insert(USER_AGENT, HeaderValue::from_static("mine"));
        let peer = Peer::new(|mut conn| {
            let head = conn.head();
            let mut lines = head.lines();
            assert_eq!(lines.next(), Some("GET /health?deep=1 HTTP/1.1"));
            let mut lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
            lines.sort_unstable();
            let wanted = ["accept: */*", "connection: close", "host: app.example", "user-agent: mine", "x-probe: 1"];
            assert_eq!(lines, wanted);
            conn.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
            ends_in_order(conn)
        });
        assert_eq!(ask(&question(spec), &peer, LIMIT).await, Ok(Answer::Good));
        assert!(peer.outcome(), "the connection was reset");

        let peer = Peer::new(|mut conn| {
            let host = format!("host: {}\r\n", conn.0.local_addr().unwrap());
            let good = conn.head().contains(&host);
            conn.send(b"HTTP/1.0 302 Found\r\n\r\n");
            ends_in_order(conn) && good
        });
        assert_eq!(ask(&question(health()), &peer, LIMIT).await, Ok(Answer::Good));
        assert!(peer.outcome(), "by default the host is the backend's address");
    }

    #[tokio::test]
    async fn status_and_body_decide() {
        let busy = reason(health(), b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy").await;
        assert_eq!(busy, "GET /health?deep=1 answered 503, wanted 200-399");
        let only_204 = Http { status: StatusSet(vec![204..=204]), method: Method::HEAD, ..Http::default() };
        let ok = reason(only_204.clone(), b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n").await;
        assert_eq!(ok, "HEAD / answered 200, wanted 204");
        let peer = answering(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 None\r\n\r\n");
        assert_eq!(ask(&question(only_204), &peer, LIMIT).await, Ok(Answer::Good));

        let ready = || Http { body: Some("\"ready\"".into()), ..Http::default() };
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\n{\"re\r\n5\r\nady\"}\r\n0\r\n\r\n";
        assert_eq!(ask(&question(ready()), &answering(chunked), LIMIT).await, Ok(Answer::Good));
        let not_ready = reason(ready(), b"HTTP/1.1 200 OK\r\n\r\nnot yet\x1b[31m").await;
        let expected = r#"the answer to GET / should contain "\"ready\"", but is "not yet\x1b[31m""#;
        assert_eq!(not_ready, expected);
    }

    #[tokio::test]
    async fn what_is_no_http_is_told_so() {
        let garbage = reason(health(), b"\x00\x01\x02garbage\r\n\r\n").await;
        assert!(garbage.starts_with("GET /health?deep=1: the answer is not HTTP/1 ("), "{garbage}");
        let nothing = reason(health(), b"").await;
        assert_eq!(nothing, "GET /health?deep=1: the connection was closed before an answer");
    }

    #[tokio::test]
    async fn a_gigabyte_is_not_read() {
        for (head, pattern, begin) in [
            (&b"HTTP/1.1 200 OK\r\n\r\n"[..], &b"garbage "[..], "the answer to GET / should contain"),
            (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", "GET /: "),
            (b"HTTP/1.1 200 OK\r\nx: ", b"yyyyyyyy", "GET /: "),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n", "GET /: "),
        ] {
            let peer = Peer::new(move |mut conn| {
                conn.head();
                conn.send(head);
                conn.flood(pattern) < 64 << 20
            });
            let spec = Http { body: Some("ready".into()), ..Http::default() };
            let error = ask(&question(spec), &peer, LIMIT).await.unwrap_err();
            assert!(error.to_string().starts_with(begin), "{error}");
            assert!(peer.outcome(), "more than the socket buffers hold was taken: {error}");
        }
        // One that need not contain anything is good, however long it is.
        let peer = Peer::new(|mut conn| {
            conn.head();
            conn.send(b"HTTP/1.1 200 OK\r\n\r\n");
            conn.flood(b"garbage ") < 64 << 20
        });
        assert_eq!(ask(&question(health()), &peer, LIMIT).await, Ok(Answer::Good));
        assert!(peer.outcome());
    }

    #[tokio::test]
    async fn a_backend_that_hangs_is_given_up() {
        let limit = Duration::from_millis(300);
        assert_eq!(given_up(&question(health()), limit, Peer::until_the_end).await, ProbeError::TimedOut(limit));

        let slow = |mut conn: Conn| {
            conn.head();
            conn.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
            Peer::until_the_end(conn)
        };
        let spec = Http { body: Some("ready".into()), ..Http::default() };
        // The peer has to have said so much by then, also on a slow machine.
        let error = given_up(&question(spec), Duration::from_secs(3), slow).await;
        assert_eq!(error.to_string(), "GET / answered 200, but no \"ready\" came within 3s");
        let peer = Peer::new(slow);
        assert_eq!(ask(&question(Http::default()), &peer, LIMIT).await, Ok(Answer::Good), "the status is all it takes");
        peer.outcome();
    }
}
