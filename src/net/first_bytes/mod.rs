//! What a client has sent before anybody answered, and what that says about it.
//!
//! Owns these bytes, and what routes and hash keys ask of them: the protocol, a TLS client's name and ALPN list, the
//! head of the first HTTP/1 request, a prefix. Decides when a question can be answered: every answer is yes, no, or
//! that more bytes are needed. Sans-io; how many bytes are worth waiting for, and for how long, others decide.
//!
//! Invariants: the answers depend on the bytes, not on how they were cut; the work is linear in them; nothing is
//! allocated before the first byte. What two readers could read differently is malformed: of that nothing is known but
//! its protocol and its bytes. Next: `detect` for the protocols, `head` for HTTP/1, [`super::client_hello`] for TLS.

mod detect;
mod head;
#[cfg(test)]
mod tests;

pub use crate::config::Protocol;

use super::client_hello::{self, ClientHello, Outcome};
use head::Head;

/// The answer to a question about something that is still coming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known<T> {
    Yes(T),
    /// Not so, and more bytes will not change it.
    No,
    /// The bytes so far leave it open.
    NeedsMore,
}

impl<T> Known<T> {
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Known<U> {
        match self {
            Self::Yes(value) => Known::Yes(change(value)),
            Self::No => Known::No,
            Self::NeedsMore => Known::NeedsMore,
        }
    }

    /// What is known to be there.
    pub fn yes(self) -> Option<T> {
        if let Self::Yes(value) = self { Some(value) } else { None }
    }
}

/// The first bytes of a client. See the module's page.
#[derive(Clone, Debug, Default)]
pub struct FirstBytes {
    bytes: Vec<u8>,
    finished: bool,
    reading: Reading,
}

#[derive(Clone, Debug)]
enum Reading {
    /// How far the first line was searched for its end.
    Undecided(usize),
    Tls(client_hello::Parser),
    Hello(ClientHello),
    /// Complete or not.
    Http1(Head),
    /// A protocol of which no more is asked than its name.
    Nameable(Protocol),
    Malformed(Protocol, &'static str),
}

impl Default for Reading {
    fn default() -> Self {
        Self::Undecided(0)
    }
}

impl FirstBytes {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if let Reading::Undecided(searched) = &mut self.reading {
            self.reading = match detect::protocol(&self.bytes, searched) {
                Known::NeedsMore => return,
                Known::Yes(Protocol::Tls) => Reading::Tls(client_hello::Parser::default()),
                Known::Yes(Protocol::Http1) => Reading::Http1(Head::default()),
                Known::Yes(protocol) => Reading::Nameable(protocol),
                Known::No => Reading::Nameable(Protocol::Other),
            };
        }
        match &mut self.reading {
            Reading::Tls(parser) => match parser.read(&self.bytes) {
                Outcome::NeedsMore => {}
                Outcome::Hello(hello) => self.reading = Reading::Hello(hello),
                Outcome::Malformed(sentence) => self.reading = Reading::Malformed(Protocol::Tls, sentence),
                Outcome::NotTls => self.reading = Reading::Nameable(Protocol::Other),
            },
            Reading::Http1(head) => {
                if let Err(sentence) = head.read(&self.bytes) {
                    self.reading = Reading::Malformed(Protocol::Http1, sentence);
                }
            }
            _ => {}
        }
    }

    /// No more bytes will come: what would need more is not so.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// What the client speaks. `No`: it has sent nothing, and will not.
    #[must_use]
    pub fn protocol(&self) -> Known<Protocol> {
        match &self.reading {
            Reading::Undecided(_) if self.finished && !self.bytes.is_empty() => Known::Yes(Protocol::Other),
            Reading::Undecided(_) => self.open(),
            Reading::Tls(_) | Reading::Hello(_) => Known::Yes(Protocol::Tls),
            Reading::Http1(_) => Known::Yes(Protocol::Http1),
            Reading::Nameable(protocol) | Reading::Malformed(protocol, _) => Known::Yes(*protocol),
        }
    }

    /// The `ClientHello`. `No`: the client speaks no TLS, or its hello is malformed.
    #[must_use]
    pub fn hello(&self) -> Known<&ClientHello> {
        match &self.reading {
            Reading::Undecided(_) if client_hello::is_tls(&self.bytes).is_none() => self.open(),
            Reading::Tls(_) => self.open(),
            Reading::Hello(hello) => Known::Yes(hello),
            _ => Known::No,
        }
    }

    /// The method of the HTTP/1 request, known once the request line is complete.
    #[must_use]
    pub fn method(&self) -> Known<&str> {
        self.head().map(Head::method)
    }

    /// The path of the HTTP/1 request without its query, in the form in which paths are compared: escapes of letters,
    /// digits and `-._~` resolved, several slashes in a row made one. Known once the request line is complete.
    ///
    /// `No` also for a CONNECT, which has none. A path with `.` or `..` as a segment is malformed: clients resolve
    /// these before they ask.
    #[must_use]
    pub fn path(&self) -> Known<&str> {
        match self.head() {
            Known::Yes(head) => head.path().map_or(Known::No, Known::Yes),
            Known::No => Known::No,
            Known::NeedsMore => Known::NeedsMore,
        }
    }

    /// The host that the HTTP/1 request is for, without port, in lower case, without a dot at its end; an IPv6 address
    /// in brackets and in its canonical form. Known once the whole head is there.
    #[must_use]
    pub fn host(&self) -> Known<&str> {
        self.in_complete_head(Head::host)
    }

    /// The value of the HTTP/1 request's header of this name, whatever its case. Known once the whole head is there.
    ///
    /// `No` also for a value that is empty or not UTF-8, and for a header that is there more than once.
    #[must_use]
    pub fn header(&self, name: &str) -> Known<&str> {
        self.in_complete_head(|head| head.header(&self.bytes, name))
    }

    /// Whether the bytes begin with these.
    #[must_use]
    pub fn starts_with(&self, prefix: &[u8]) -> Known<()> {
        match detect::starts_with(&self.bytes, prefix) {
            Known::NeedsMore => self.open(),
            known => known,
        }
    }

    /// What is wrong with a `ClientHello` or the head of an HTTP/1 request, as a sentence.
    ///
    /// The later headers of a request may turn out to be malformed when its method and path are known already.
    #[must_use]
    pub fn malformed(&self) -> Option<&'static str> {
        if let Reading::Malformed(_, sentence) = self.reading { Some(sentence) } else { None }
    }

    fn open<T>(&self) -> Known<T> {
        if self.finished { Known::No } else { Known::NeedsMore }
    }

    /// The head, once its first line is complete.
    fn head(&self) -> Known<&Head> {
        match &self.reading {
            Reading::Http1(head) => Known::Yes(head),
            Reading::Undecided(searched) if detect::http1(&self.bytes, &mut { *searched }) != Known::No => self.open(),
            _ => Known::No,
        }
    }

    fn in_complete_head<'a>(&'a self, ask: impl FnOnce(&'a Head) -> Option<&'a str>) -> Known<&'a str> {
        match self.head() {
            Known::Yes(head) if head.is_complete() => ask(head).map_or(Known::No, Known::Yes),
            Known::Yes(_) => self.open(),
            Known::No => Known::No,
            Known::NeedsMore => Known::NeedsMore,
        }
    }
}
