//! What is answered to which request: the paths, the methods, the status codes and the headers.
//!
//! Pure but for reading what it shows. A path is one of those below as it stands, byte for byte: nothing is decoded
//! and nothing is normalised, so `..`, `%2e` and `//` lead nowhere. Only `/explain` looks at the query.

use super::State;
use super::explain::{self, Explanation, Question, Standpoint};
use super::page;
use super::status::Status;
use crate::clock::Now;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue, REFERRER_POLICY, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

/// The largest body that a request may announce. No route reads one yet.
const MAX_BODY: u64 = 64 << 10;

/// For a head that didn't come in time, when there is no request to answer.
pub const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

const TEXT: &str = "text/plain; charset=utf-8";

/// Of every answer: what a browser may do with it is nothing but show it, with our style.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

pub fn answer<B>(request: &Request<B>, state: &State) -> Response<Full<Bytes>> {
    let body = AnnouncedBody::of(request.headers());
    let answer = match body {
        AnnouncedBody::Length(length) if length > MAX_BODY => {
            Answer::text(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have {MAX_BODY} bytes at most\n"))
        }
        AnnouncedBody::Unknown => Answer::text(StatusCode::LENGTH_REQUIRED, "send the body with a Content-Length\n"),
        AnnouncedBody::None | AnnouncedBody::Length(_) => {
            // A bug in one answer costs that answer.
            catch_unwind(AssertUnwindSafe(|| route(request.method(), request.uri(), state)))
                .unwrap_or_else(|_| Answer::text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n"))
        }
    };
    let mut response = answer.into_response();
    if body != AnnouncedBody::None {
        // Nobody reads the body, so nobody knows where a next request would begin.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What a request's head says of its body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AnnouncedBody {
    None,
    Length(u64),
    /// It comes in chunks, and ends where it ends.
    Unknown,
}

impl AnnouncedBody {
    fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(TRANSFER_ENCODING) {
            return Self::Unknown;
        }
        // A length that isn't a number was refused by the parser.
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        length.filter(|&length| length > 0).map_or(Self::None, Self::Length)
    }
}

fn route(method: &Method, uri: &Uri, state: &State) -> Answer {
    let path = uri.path();
    #[cfg(debug_assertions)]
    hook::panic_if_asked(path);
    let show: fn(&State, Option<&str>) -> Answer = match path {
        "/" => |state, _| show_page(state),
        "/style.css" => |_, _| Answer { content_type: "text/css; charset=utf-8", ..Answer::ok(page::STYLE) },
        "/livez" => |_, _| Answer::ok("alive\n"),
        "/readyz" => |state, _| show_readiness(state),
        "/metrics" => |state, _| show_metrics(state),
        "/status" => |state, _| show_status(state),
        "/explain" => show_explanation,
        _ => return Answer::text(StatusCode::NOT_FOUND, "not found\n"),
    };
    match *method {
        // The library leaves out the body of an answer to HEAD, and keeps its length.
        Method::GET | Method::HEAD => show(state, uri.query()),
        _ => Answer::text(StatusCode::METHOD_NOT_ALLOWED, "this can only be read, by GET or HEAD\n"),
    }
}

fn show_page(state: &State) -> Answer {
    let page = page::render(&Status::of(state, SystemTime::now()));
    Answer { content_type: "text/html; charset=utf-8", ..Answer::ok(page) }
}

fn show_readiness(state: &State) -> Answer {
    match Status::of(state, SystemTime::now()).gates.as_slice() {
        [] => Answer::ok("ready\n"),
        gates => Answer::text(StatusCode::SERVICE_UNAVAILABLE, gates.join("\n") + "\n"),
    }
}

fn show_metrics(state: &State) -> Answer {
    state.table.load().listeners.iter().for_each(|listener| listener.gate.publish());
    (state.refresh)();
    match state.metrics.encode() {
        Ok(text) => Answer { content_type: prometheus::TEXT_FORMAT, ..Answer::ok(text) },
        Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn show_status(state: &State) -> Answer {
    match serde_json::to_string_pretty(&Status::of(state, SystemTime::now())) {
        Ok(json) => Answer { content_type: "application/json", ..Answer::ok(json + "\n") },
        Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// What would become of the client that the query describes.
fn show_explanation(state: &State, query: Option<&str>) -> Answer {
    let found = explain::parameters(query.unwrap_or_default())
        .and_then(|parameters| Question::parse(&parameters))
        .and_then(|question| Explanation::of(&state.table.load(), &question, Standpoint::Live, Now::read()));
    match found.map(|explanation| serde_json::to_string_pretty(&explanation)) {
        Ok(Ok(json)) => Answer { content_type: "application/json", ..Answer::ok(json + "\n") },
        Ok(Err(error)) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        Err(complaint) => Answer::text(StatusCode::BAD_REQUEST, format!("{complaint}\n")),
    }
}

struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
}

impl Answer {
    fn ok(body: impl Into<Bytes>) -> Self {
        Self::text(StatusCode::OK, body)
    }

    fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { status, content_type: TEXT, body: body.into() }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let length = self.body.len();
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.extend(HEADERS);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

/// A fault that a test of the real binary asks for; not there in a release build.
#[cfg(debug_assertions)]
mod hook {
    /// `TIDEGATE_TEST_PANIC=admin` makes `/panic` do what it says.
    pub fn panic_if_asked(path: &str) {
        if path == "/panic" {
            assert!(
                std::env::var_os("TIDEGATE_TEST_PANIC").is_none_or(|wanted| wanted != "admin"),
                "a test asked for it"
            );
        }
    }
}
