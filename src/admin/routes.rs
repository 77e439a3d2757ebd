//! Which request gets which answer: the path, the method, who asks, and the body, in this order of refusals.
//!
//! A path is compared segment by segment with those of `shown` and `changes`, byte for byte, so that `..`, `%2e` and
//! `//` lead nowhere; only a part that is a name is decoded, once. Nothing of a body is read before it is known who
//! sends it.

use super::answer::Answer;
use super::body::{self, Announced};
use super::browser::{self, Target};
use super::changes::{Act, CHANGES, Change};
use super::refusals::Told;
use super::shown::{By, SHOWN, Shown};
use super::who::{Denied, Peer};
use super::{Carrying, State, connections, fields};
use crate::metrics::AdminDenial;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use std::error::Error;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// For a head that didn't come in time, when there is no request to answer.
pub const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// The method of every change.
const POST: &str = "POST";

/// What a path and a method lead to.
enum Route {
    Show(&'static Shown),
    /// With the parts of the path that are names.
    Change(&'static Change, Vec<String>),
    /// The path is there, but for these methods.
    OtherMethod(&'static str),
    Nowhere,
}

impl Route {
    fn of(method: &Method, path: &str) -> Self {
        if let Some(shown) = SHOWN.iter().find(|shown| shown.path == path) {
            return match *method {
                // The library leaves out the body of an answer to HEAD, and keeps its length.
                Method::GET | Method::HEAD => Self::Show(shown),
                _ => Self::OtherMethod("GET, HEAD"),
            };
        }
        let found = CHANGES.iter().find_map(|change| Some((change, names(change.path, path)?)));
        match found {
            Some((change, names)) if method == Method::POST => Self::Change(change, names),
            Some(_) => Self::OtherMethod(POST),
            None => Self::Nowhere,
        }
    }

    fn is_probe(&self) -> bool {
        matches!(self, Self::Show(Shown { by: By::Probe(_), .. }))
    }

    /// The largest body, in bytes.
    fn most(&self) -> u64 {
        if let Self::Change(change, _) = self { change.most } else { body::MAX }
    }
}

/// The parts of `path` that stand where `template` has braces, if all others are the same.
fn names(template: &str, path: &str) -> Option<Vec<String>> {
    let (mut wanted, mut given) = (template.split('/'), path.split('/'));
    let mut names = Vec::new();
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(names),
            (Some(name), Some(segment)) if name.starts_with('{') => names.push(decoded(segment)?),
            (Some(word), Some(segment)) if word == segment => {}
            _ => return None,
        }
    }
}

/// A name as a segment has it. What would be another path to others, or no text, is none.
fn decoded(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? << 4 | digit()?) as u8
            }
            byte => byte,
        });
    }
    let name = String::from_utf8(bytes).ok()?;
    let is_name = !matches!(name.as_str(), "" | "." | "..") && !name.chars().any(char::is_control);
    is_name.then_some(name)
}

pub async fn answer<B>(request: Request<B>, peer: Peer, state: &State, carrying: &Carrying) -> Response<Full<Bytes>>
where
    B: Body,
    B::Error: Display + Into<Box<dyn Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let asked = Asked { head: &head, announced: Announced::of(&head.headers), peer, state };
    let answer = match asked.begin() {
        Ok(Route::Show(Shown { by: By::Sessions, .. })) => asked.list().await,
        Ok(Route::Show(Shown { by: By::Look(show), .. })) => contained(|| show(state, head.uri.query())),
        Ok(Route::Show(Shown { by: By::Probe(show), .. })) => contained(|| show(state, asked.may_read().is_ok())),
        Ok(Route::Change(change, names)) => asked.change(change, &names, body, carrying).await,
        Ok(Route::OtherMethod(methods)) => {
            let text = format!("there is nothing but {methods} here");
            let is_for_change = methods == POST || asked.is_for_change();
            asked.tell_form(is_for_change, StatusCode::METHOD_NOT_ALLOWED);
            Answer { allow: Some(methods), ..asked.refusal(StatusCode::METHOD_NOT_ALLOWED, &text) }
        }
        Ok(Route::Nowhere) => contained(|| {
            #[cfg(debug_assertions)]
            hook::panic_if_asked(head.uri.path());
            asked.malformed(StatusCode::NOT_FOUND, "not found")
        }),
        Err(answer) => answer,
    };
    let mut response = answer.into_response();
    if asked.announced != Announced::None {
        // The guard has looked at heads only, so nobody knows where a next request would begin.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A bug in one answer costs that answer.
fn contained(answer: impl FnOnce() -> Answer) -> Answer {
    catch_unwind(AssertUnwindSafe(answer))
        .unwrap_or_else(|_| Answer::text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n"))
}

/// One request, but for its body.
struct Asked<'a> {
    head: &'a Parts,
    announced: Announced,
    peer: Peer,
    state: &'a State,
}

impl Asked<'_> {
    /// In the form in which whoever asks gets all answers: JSON where something is to be changed, text else.
    fn refusal(&self, status: StatusCode, text: &str) -> Answer {
        if self.head.method == Method::POST {
            Answer::refused(status, text)
        } else {
            Answer::text(status, format!("{text}\n"))
        }
    }

    /// Whether something is to be changed, as far as the method tells.
    fn is_for_change(&self) -> bool {
        !matches!(self.head.method, Method::GET | Method::HEAD)
    }

    /// A refusal that can be told from the head, of somebody of whom no more is known than where they are.
    fn malformed(&self, status: StatusCode, text: &str) -> Answer {
        self.tell_form(self.is_for_change(), status);
        self.refusal(status, text)
    }

    fn tell_form(&self, is_for_change: bool, status: StatusCode) {
        if is_for_change {
            self.tell(AdminDenial::Form, status, &self.peer);
        }
    }

    /// Where it leads; or the answer, if that can be told from the head alone.
    fn begin(&self) -> Result<Route, Answer> {
        let Parts { method, uri, version, headers, .. } = self.head;
        let access = self.state.who.access.load();
        match browser::target(self.peer, *version, uri, headers, &access.hosts) {
            Target::Ours => {}
            Target::Unclear => {
                let text = "one Host header is wanted, with a name or an address";
                return Err(self.malformed(StatusCode::BAD_REQUEST, text));
            }
            Target::Foreign => {
                self.tell(AdminDenial::Host, StatusCode::MISDIRECTED_REQUEST, &self.peer);
                let text = "that name isn't ours; ask by an address, or name it in admin.allowed_hosts";
                return Err(self.refusal(StatusCode::MISDIRECTED_REQUEST, text));
            }
        }
        let route = Route::of(method, uri.path());
        if let Some((status, text)) = self.announced.refused(route.most()) {
            return Err(self.malformed(status, &text));
        }
        match self.may_read() {
            // Whoever sends a wrong token is told, here too: nobody may try tokens at will.
            Err(denied) if !route.is_probe() || headers.contains_key(AUTHORIZATION) => {
                let (status, text) = self.deny(denied);
                Err(self.refusal(status, text))
            }
            _ => Ok(route),
        }
    }

    fn may_read(&self) -> Result<(), Denied> {
        self.state.who.access.load().may_read(self.peer, &self.head.headers)
    }

    async fn list(&self) -> Answer {
        match connections::query(self.head.uri.query().unwrap_or_default()) {
            Ok(query) => Answer::json(&self.state.sessions.list(query).await),
            Err(complaint) => Answer::text(StatusCode::BAD_REQUEST, format!("{complaint}\n")),
        }
    }

    /// A change that somebody wants: who it is, what it is, and what came of it.
    async fn change<B>(&self, change: &Change, names: &[String], body: B, carrying: &Carrying) -> Answer
    where
        B: Body,
        B::Error: Display + Into<Box<dyn Error + Send + Sync>>,
    {
        if browser::is_foreign(&self.head.headers) {
            self.tell(AdminDenial::Origin, StatusCode::FORBIDDEN, &self.peer);
            return Answer::refused(StatusCode::FORBIDDEN, "another site's page may not change anything here");
        }
        let by = self.state.who.access.load().may_change(self.peer, &self.head.headers);
        let by = match by {
            Ok(by) => by,
            Err(denied) => {
                let (status, text) = self.deny(denied);
                return Answer::refused(status, text);
            }
        };
        let malformed = |answer: Answer| {
            self.tell(AdminDenial::Form, answer.status, &by);
            answer
        };
        if !is_json(&self.head.headers, self.announced) {
            let text = "send Content-Type: application/json";
            return malformed(Answer::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
        let body = match self.state.who.room.read(self.announced, body).await {
            Ok(body) => body,
            Err(answer) => return malformed(answer),
        };
        let act = match fields::read(&body.bytes, change.fields) {
            Ok(given) => (change.act)(names, given).map_err(|text| (StatusCode::UNPROCESSABLE_ENTITY, text)),
            Err(refused) => Err(refused),
        };
        // From here on it is carried out whether or not anybody waits for the answer.
        let _carrying = carrying.begin();
        match act {
            Ok(Act::Command(command)) => Answer::of(self.state.commands.ask(command, by.clone()).await),
            Ok(Act::Close(id)) => Answer::of(self.state.sessions.close(id, by.clone()).await),
            Ok(Act::Nothing(text)) => malformed(Answer::refused(StatusCode::NOT_FOUND, &text)),
            Err((status, text)) => malformed(Answer::refused(status, &text)),
        }
    }

    fn deny(&self, denied: Denied) -> (StatusCode, &'static str) {
        if denied == Denied::Token && self.state.who.refusals.is_too_many(Instant::now()) {
            self.tell(AdminDenial::TooMany, StatusCode::TOO_MANY_REQUESTS, &self.peer);
            let text = "too many requests without the right token: try again in a second";
            return (StatusCode::TOO_MANY_REQUESTS, text);
        }
        let reason = if denied == Denied::Token { AdminDenial::Token } else { AdminDenial::User };
        self.tell(reason, denied.status(), &self.peer);
        (denied.status(), denied.text())
    }

    fn tell(&self, reason: AdminDenial, status: StatusCode, by: &dyn Display) {
        let request = format!("{} {}", self.head.method, self.head.uri.path());
        let told = Told { by, request: &request, reason, status };
        self.state.who.refusals.tell(&told, &self.state.metrics, Instant::now());
    }
}

/// Nothing at all, or JSON; without a body nobody need say which.
fn is_json(headers: &HeaderMap, announced: Announced) -> bool {
    let mut given = headers.get_all(CONTENT_TYPE).iter();
    match (given.next(), given.next()) {
        (None, _) => announced == Announced::None,
        (Some(value), None) => {
            let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
            essence.trim().eq_ignore_ascii_case("application/json")
        }
        _ => false,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_decoded_once_and_nothing_else_is() {
        let template = "/pools/{pool}/backends/{backend}";
        let found = |path| names(template, path);
        let both = |pool: &str, backend: &str| Some(vec![pool.to_owned(), backend.to_owned()]);
        assert_eq!(found("/pools/app/backends/10.0.0.1:80"), both("app", "10.0.0.1:80"));
        assert_eq!(found("/pools/a%70p/backends/unix:%2Frun%2fapp.sock"), both("app", "unix:/run/app.sock"));
        assert_eq!(found("/pools/app/backends/%2541+%20%3Cb%3E"), both("app", "%41+ <b>"));
        assert_eq!(found("/pools/app/backends/%C3%A9"), both("app", "é"));
        for path in [
            "/pools/app/backends",
            "/pools/app/backends/",
            "/pools/app/backends/a/",
            "/pools//backends/a",
            "//pools/app/backends/a",
            "/pools/app/backends/a/b",
            "/%70ools/app/backends/a",
            "/pools/app/back%65nds/a",
            "/pools/./backends/a",
            "/pools/../backends/a",
            "/pools/%2e/backends/a",
            "/pools/%2E%2e/backends/a",
            "/pools/.%2e/backends/a",
            "/pools/app/backends/%",
            "/pools/app/backends/%4",
            "/pools/app/backends/%zz",
            "/pools/app/backends/%+1",
            "/pools/app/backends/%ff",
            "/pools/app/backends/a%00",
            "/pools/app/backends/a%0a",
            "pools/app/backends/a",
            "*",
            "",
        ] {
            assert_eq!(found(path), None, "{path}");
        }
    }

    #[test]
    fn no_path_is_two_routes() {
        let paths: Vec<&str> =
            SHOWN.iter().map(|shown| shown.path).chain(CHANGES.iter().map(|change| change.path)).collect();
        for path in &paths {
            let sample = path.replace(['{', '}'], "");
            let matching = paths.iter().filter(|template| names(template, &sample).is_some()).count();
            assert_eq!(matching, 1, "{path}");
        }
    }
}
