//! What can be read: each path that takes a GET, and what it shows.
//!
//! Owns what of it those may see who may read nothing: that the process lives, and whether traffic may come. Whoever
//! sends that here (a kubelet, another balancer) can't carry a token. Pure but for reading what it shows; only
//! `/explain` and `/connections` look at the query.

use super::State;
use super::answer::{Answer, JSON, TEXT};
use super::explain::{self, Explanation, Question, Standpoint};
use super::status::{self, Status};
use super::{openapi, page};
use crate::clock::Now;
use crate::listing::MAX_LIMIT;
use hyper::StatusCode;
use std::time::SystemTime;

/// One path that takes a GET, and how what it shows is come by.
pub struct Shown {
    pub path: &'static str,
    pub says: &'static str,
    /// Of what it shows.
    pub content_type: &'static str,
    pub parameters: &'static [Parameter],
    pub by: By,
}

/// One key of the query.
pub struct Parameter {
    pub name: &'static str,
    pub kind: Type,
    pub is_required: bool,
    pub says: &'static str,
}

/// What a parameter's value is.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    Text,
    /// It may be given several times.
    Texts,
    Word(&'static [&'static str]),
    /// From and to.
    Number(u64, u64),
    Pattern(&'static str),
}

pub enum By {
    /// At once, from the state and the query.
    Look(fn(&State, Option<&str>) -> Answer),
    /// From the workers: the sessions that the query wants.
    Sessions,
    /// At once and for everybody; and whether whoever asks may see all of it.
    Probe(fn(&State, bool) -> Answer),
}

pub const SHOWN: &[Shown] = &[
    plain("/", "A page for people.", HTML, |state, _| show_page(state)),
    plain("/style.css", "Its style.", CSS, |_, _| show_style()),
    probe("/livez", "That the process lives.", |_, _| Answer::ok("alive\n")),
    probe("/readyz", "Whether traffic may come; else, for who may read, a line for each reason.", show_readiness),
    plain("/metrics", "Figures for Prometheus.", prometheus::TEXT_FORMAT, |state, _| show_metrics(state)),
    plain("/status", "Listeners, pools and backends as they are now.", JSON, |state, _| {
        Answer::json(&Status::of(state, SystemTime::now()))
    }),
    plain("/openapi.json", "This description.", JSON, |_, _| Answer::json(&openapi::describe())),
    Shown { parameters: EXPLAIN, ..plain("/explain", "Where a client would go, and why.", JSON, show_explanation) },
    Shown {
        path: "/connections",
        says: "Sessions, a page at a time.",
        content_type: JSON,
        parameters: CONNECTIONS,
        by: By::Sessions,
    },
];

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

const fn plain(
    path: &'static str,
    says: &'static str,
    content_type: &'static str,
    look: fn(&State, Option<&str>) -> Answer,
) -> Shown {
    Shown { path, says, content_type, parameters: &[], by: By::Look(look) }
}

const fn probe(path: &'static str, says: &'static str, look: fn(&State, bool) -> Answer) -> Shown {
    Shown { path, says, content_type: TEXT, parameters: &[], by: By::Probe(look) }
}

const EXPLAIN: &[Parameter] = &[
    Parameter { is_required: true, ..text("listener", "its name") },
    Parameter { is_required: true, ..text("from", "the client's address, or unix") },
    text("to", "the address and port that it connects to"),
    text("sni", "the server name in its TLS ClientHello"),
    Parameter { kind: Type::Texts, ..text("alpn", "a protocol that it offers") },
    text("method", "of its HTTP request"),
    text("host", "of its HTTP request"),
    text("path", "of its HTTP request"),
    Parameter { kind: Type::Texts, ..text("header", "a line of its HTTP request") },
    text("first_bytes", "what it sends first; hex: and pairs of digits, or text"),
];

const CONNECTIONS: &[Parameter] = &[
    text("pool", "only those of this pool"),
    text("backend", "only those of this backend"),
    text("listener", "only those of this listener"),
    Parameter {
        kind: Type::Word(&["age", "bytes", "idle"]),
        ..text("sort", "the oldest first (by default), those that have moved most, or those quiet for longest")
    },
    Parameter { kind: Type::Number(1, MAX_LIMIT as u64), ..text("limit", "on a page; by default 100") },
    Parameter { kind: Type::Pattern("^[0-9]+[.][0-9]+-[0-9]+$"), ..text("after", "the \"next\" of the page before") },
];

const fn text(name: &'static str, says: &'static str) -> Parameter {
    Parameter { name, kind: Type::Text, is_required: false, says }
}

fn show_page(state: &State) -> Answer {
    let page = page::render(&Status::of(state, SystemTime::now()));
    Answer { content_type: HTML, ..Answer::ok(page) }
}

fn show_style() -> Answer {
    Answer { content_type: CSS, ..Answer::ok(page::STYLE) }
}

fn show_readiness(state: &State, may_read: bool) -> Answer {
    match status::readiness(state).as_slice() {
        [] => Answer::ok("ready\n"),
        gates if may_read => Answer::text(StatusCode::SERVICE_UNAVAILABLE, gates.join("\n") + "\n"),
        _ => Answer::text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
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

/// What would become of the client that the query describes.
fn show_explanation(state: &State, query: Option<&str>) -> Answer {
    let found = explain::parameters(query.unwrap_or_default())
        .and_then(|parameters| Question::parse(&parameters))
        .and_then(|question| Explanation::of(&state.table.load(), &question, Standpoint::Live, Now::read()));
    match found {
        Ok(explanation) => Answer::json(&explanation),
        Err(complaint) => Answer::text(StatusCode::BAD_REQUEST, format!("{complaint}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{connections, explain};

    #[test]
    fn the_parameters_are_those_that_are_read() {
        let names = |parameters: &[Parameter]| parameters.iter().map(|one| one.name).collect::<Vec<_>>();
        assert_eq!(names(EXPLAIN), explain::PARAMETERS);
        assert_eq!(names(CONNECTIONS), connections::PARAMETERS);
    }
}
