//! What is asked: which client, of which listener, and what it would send.
//!
//! Owns the names of the parameters, which are those of the command line as well, and the words for those that make no
//! sense.

use crate::name::ClientAddr;
use crate::net::client_hello;
use crate::net::first_bytes::{FirstBytes, Known, Protocol};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Each may be given once, but for `alpn` and `header`.
pub const PARAMETERS: [&str; 10] =
    ["listener", "from", "to", "sni", "alpn", "method", "host", "path", "header", "first_bytes"];

/// The longest piece of a value that a message repeats, in characters.
const MAX_SHOWN: usize = 100;

/// A client that there might be.
pub struct Question {
    pub listener: String,
    pub client: ClientAddr,
    pub local: Option<SocketAddr>,
    pub first: FirstBytes,
    /// What it sends, in words.
    pub sent: String,
}

/// What is wrong with a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    pub parameter: String,
    pub message: String,
    pub hint: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.parameter, self.message, self.hint)
    }
}

impl Complaint {
    pub fn new(parameter: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { parameter: parameter.to_owned(), message: message.into(), hint: hint.into() }
    }
}

/// A value with nothing in it that a terminal or log might act upon.
#[must_use]
pub fn quoted(value: &str) -> String {
    let shown: String = value.chars().take(MAX_SHOWN).collect();
    let more = if shown.len() < value.len() { "…" } else { "" };
    format!("\"{}{more}\"", shown.escape_debug())
}

/// Names and values of a query, in which blanks and unusual characters are escaped as forms do it. Fails where that
/// makes no text.
pub fn parameters(query: &str) -> Result<Vec<(String, String)>, Complaint> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let text = |escaped: &str| {
            unescaped(escaped).ok_or_else(|| {
                let message = format!("{} isn't text with %XX for special bytes", quoted(escaped));
                Complaint::new(&quoted(name), message, "write %25 for a % and %2B for a +, in UTF-8")
            })
        };
        Ok((text(name)?, text(value)?))
    };
    query.split('&').filter(|pair| !pair.is_empty()).map(pair).collect()
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? << 4 | digit()?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The parameters as they were given.
struct Given<'a>(&'a [(String, String)]);

impl<'a> Given<'a> {
    fn all(&self, name: &str) -> Vec<&'a str> {
        self.0.iter().filter(|(given, _)| given == name).map(|(_, value)| value.as_str()).collect()
    }

    fn one(&self, name: &str) -> Option<&'a str> {
        self.all(name).first().copied()
    }

    /// The first of these that is given.
    fn any(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().copied().find(|name| self.one(name).is_some())
    }

    fn check(&self) -> Result<(), Complaint> {
        for (position, (name, _)) in self.0.iter().enumerate() {
            if !PARAMETERS.contains(&name.as_str()) {
                let hint = format!("use {}", PARAMETERS.join(", "));
                return Err(Complaint::new(&quoted(name), "unknown parameter", hint));
            }
            let again = self.0[..position].iter().any(|(before, _)| before == name);
            if again && !["alpn", "header"].contains(&name.as_str()) {
                return Err(Complaint::new(name, "it is given twice", "give it once"));
            }
        }
        Ok(())
    }
}

impl Question {
    /// Reads names and values. Fails with the first that makes no sense.
    pub fn parse(given: &[(String, String)]) -> Result<Self, Complaint> {
        let given = Given(given);
        given.check()?;
        let listener = given.one("listener");
        let listener = listener.ok_or_else(|| Complaint::new("listener", "it is missing", "name a listener"))?;
        let missing = || Complaint::new("from", "it is missing", "write the client's address, such as 10.1.2.3");
        let client = client(given.one("from").ok_or_else(missing)?)?;
        let local = given.one("to").map(local).transpose()?;
        let (bytes, sent) = sent(&given)?;
        let mut first = FirstBytes::default();
        first.push(&bytes);
        Ok(Self { listener: listener.to_owned(), client, local, first, sent })
    }
}

fn client(text: &str) -> Result<ClientAddr, Complaint> {
    if text == "unix" {
        return Ok(ClientAddr::Unix);
    }
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0)).or_else(|_| text.parse());
    address.map(ClientAddr::tcp).map_err(|_| {
        let hint = "write one such as 10.1.2.3, 10.1.2.3:4711 or 2001:db8::1, or unix for a client of a unix socket";
        Complaint::new("from", format!("{} is no address", quoted(text)), hint)
    })
}

fn local(text: &str) -> Result<SocketAddr, Complaint> {
    let address = text.parse::<SocketAddr>().ok();
    let address = address.map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()));
    address.ok_or_else(|| {
        let message = format!("{} is no address with a port", quoted(text));
        Complaint::new("to", message, "write one such as 192.0.2.1:443 or [2001:db8::1]:443")
    })
}

/// The bytes that the client sends, and what they are.
fn sent(given: &Given<'_>) -> Result<(Vec<u8>, String), Complaint> {
    let tls = given.any(&["sni", "alpn"]);
    let http = given.any(&["method", "host", "path", "header"]);
    let bytes = given.any(&["first_bytes"]);
    if let [one, other, ..] = [tls, http, bytes].into_iter().flatten().collect::<Vec<_>>()[..] {
        let message = format!("a client that begins with this has no {one}");
        return Err(Complaint::new(other, message, "give one of the two"));
    }
    match (tls, http, given.one("first_bytes")) {
        (Some(_), ..) => hello(given),
        (_, Some(_), _) => request(given),
        (.., Some(text)) => first_bytes(text),
        _ => Ok((Vec::new(), "nothing so far".to_owned())),
    }
}

fn hello(given: &Given<'_>) -> Result<(Vec<u8>, String), Complaint> {
    let name = given.one("sni").filter(|name| !name.is_empty());
    let alpn = given.all("alpn");
    if let Some(offer) = alpn.iter().find(|offer| !(1..=255).contains(&offer.len())) {
        let message = format!("{} has {} bytes", quoted(offer), offer.len());
        return Err(Complaint::new("alpn", message, "write 1 to 255, such as h2 or http/1.1"));
    }
    let bytes = client_hello::write(name, &alpn);
    let mut read = FirstBytes::default();
    read.push(&bytes);
    if let Some(why) = read.malformed() {
        let message = format!("{} can't be a server's name ({why})", quoted(name.unwrap_or_default()));
        return Err(Complaint::new("sni", message, "use letters, digits, - and _ between dots"));
    }
    let name = name.map_or("that names no server".to_owned(), |name| format!("for {name}"));
    let offers = if alpn.is_empty() { String::new() } else { format!(", ALPN {}", alpn.join(", ").escape_debug()) };
    Ok((bytes, format!("a TLS ClientHello {name}{offers}")))
}

fn request(given: &Given<'_>) -> Result<(Vec<u8>, String), Complaint> {
    for name in ["method", "host", "path", "header"] {
        if let Some(value) = given.all(name).into_iter().find(|value| value.contains(['\r', '\n', '\0'])) {
            let message = format!("{} holds what would end the line", quoted(value));
            return Err(Complaint::new(name, message, "leave that out"));
        }
    }
    let (method, path) = (given.one("method").unwrap_or("GET"), given.one("path").unwrap_or("/"));
    if path.is_empty() || path.contains(' ') {
        let message = format!("{} is no path of a request", quoted(path));
        return Err(Complaint::new("path", message, "write one such as /api/users, with %20 for a blank"));
    }
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    if let Some(host) = given.one("host") {
        head.extend(["Host: ", host, "\r\n"]);
    }
    for header in given.all("header") {
        if header.split_once(':').is_none_or(|(name, _)| name.is_empty() || name.contains(' ')) {
            let message = format!("{} is no header", quoted(header));
            return Err(Complaint::new("header", message, "write one such as \"X-Tenant: seven\""));
        }
        head.extend([header, "\r\n"]);
    }
    head.push_str("\r\n");
    let mut read = FirstBytes::default();
    read.push(head.as_bytes());
    if read.protocol() != Known::Yes(Protocol::Http1) || read.malformed().is_some() {
        let why = read.malformed().unwrap_or("this is no request of HTTP/1");
        let (name, value) = match given.any(&["method", "host", "header"]) {
            Some(name) => (name, given.one(name).unwrap_or_default()),
            None => ("path", path),
        };
        return Err(Complaint::new(
            name,
            format!("{} makes no request ({why})", quoted(value)),
            "use one that a client sends",
        ));
    }
    let host = given.one("host").map_or_else(String::new, |host| format!(" of {}", host.escape_debug()));
    Ok((head.into_bytes(), format!("a request {} {}{host}", method.escape_debug(), path.escape_debug())))
}

fn first_bytes(text: &str) -> Result<(Vec<u8>, String), Complaint> {
    let bytes = match text.strip_prefix("hex:") {
        None => text.as_bytes().to_vec(),
        Some(digits) => hex(digits).ok_or_else(|| {
            let hint = "write pairs of hex digits, such as hex:160301, or text";
            Complaint::new("first_bytes", format!("{} isn't hex", quoted(text)), hint)
        })?,
    };
    let count = bytes.len();
    Ok((bytes, format!("{count} byte{}", if count == 1 { "" } else { "s" })))
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|char| *char != ' ')
        .map(|char| char.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Question, String> {
        let pairs: Vec<_> = pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Question::parse(&pairs).map_err(|complaint| complaint.to_string())
    }

    #[test]
    fn a_query_is_unescaped() {
        let read = |query: &str| parameters(query).map_err(|complaint| complaint.to_string());
        let expected = [("from", "::1"), ("header", "X-Tenant: 7+7%"), ("sni", "")];
        let expected: Vec<_> = expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(read("from=%3a%3A1&&header=X-Tenant:+7%2b7%25&sni").unwrap(), expected);
        assert_eq!(read("").unwrap(), []);
        for bad in ["sni=%", "sni=%f", "sni=%zz", "sni=%ff"] {
            let said = format!(
                "\"sni\": \"{}\" isn't text with %XX for special bytes; write %25 for a % and %2B for a +, in UTF-8",
                &bad[4..]
            );
            assert_eq!(read(bad).err(), Some(said));
        }
    }

    #[test]
    fn what_makes_sense_is_understood() {
        let base = [("listener", "web"), ("from", "::ffff:10.1.2.3")];
        let question = |more: &[(&str, &str)]| parse(&[&base[..], more].concat()).unwrap();
        let plain = question(&[]);
        assert_eq!((plain.listener.as_str(), plain.client.to_string()), ("web", "10.1.2.3:0".to_owned()));
        assert_eq!((plain.local, plain.first.bytes(), plain.sent.as_str()), (None, &b""[..], "nothing so far"));
        let hello =
            question(&[("sni", "A.example.com"), ("alpn", "h2"), ("alpn", "http/1.1"), ("to", "192.0.2.1:443")]);
        let read = hello.first.hello().yes().unwrap();
        assert_eq!((read.server_name.as_deref(), read.alpn.iter().count()), (Some("a.example.com"), 2));
        assert_eq!(hello.sent, "a TLS ClientHello for A.example.com, ALPN h2, http/1.1");
        assert_eq!(hello.local, Some("192.0.2.1:443".parse().unwrap()));
        let nameless = question(&[("sni", "")]);
        assert_eq!(nameless.first.hello().yes().unwrap().server_name, None);
        assert_eq!(nameless.sent, "a TLS ClientHello that names no server");
        let request =
            question(&[("path", "/a?b"), ("host", "b.example"), ("header", "X-Tenant: 7"), ("header", "A:b")]);
        assert_eq!(request.first.bytes(), b"GET /a?b HTTP/1.1\r\nHost: b.example\r\nX-Tenant: 7\r\nA:b\r\n\r\n");
        assert_eq!(request.sent, "a request GET /a?b of b.example");
        assert_eq!(question(&[("first_bytes", "hex:16 03 01")]).first.bytes(), [0x16, 3, 1]);
        assert_eq!(question(&[("first_bytes", "SSH-2.0")]).first.protocol(), Known::Yes(Protocol::Ssh));
        let unix = parse(&[("listener", "web"), ("from", "unix")]).unwrap();
        assert_eq!(unix.client, ClientAddr::Unix);
    }

    #[test]
    fn what_makes_none_is_named_with_a_way_out() {
        let base = [("listener", "web"), ("from", "10.1.2.3")];
        for (given, expected) in [
            (&[][..], "listener: it is missing; name a listener"),
            (&[("listener", "web")], "from: it is missing; write the client's address, such as 10.1.2.3"),
            (
                &[("listener", "web"), ("from", "10.1.2")],
                "from: \"10.1.2\" is no address; write one such as 10.1.2.3, 10.1.2.3:4711 or 2001:db8::1, or unix for a \
                 client of a unix socket",
            ),
            (
                &[("form", "10.1.2.3")],
                "\"form\": unknown parameter; use listener, from, to, sni, alpn, method, host, path, header, first_bytes",
            ),
            (&[("from", "::1"), ("from", "::1")], "from: it is given twice; give it once"),
        ] {
            assert_eq!(parse(given).err().as_deref(), Some(expected));
        }
        for (given, expected) in [
            (
                &[("to", "443")][..],
                "to: \"443\" is no address with a port; write one such as 192.0.2.1:443 or [2001:db8::1]:443",
            ),
            (&[("sni", "a"), ("path", "/")], "path: a client that begins with this has no sni; give one of the two"),
            (
                &[("first_bytes", "x"), ("alpn", "h2")],
                "first_bytes: a client that begins with this has no alpn; give one of the two",
            ),
            (&[("alpn", "")], "alpn: \"\" has 0 bytes; write 1 to 255, such as h2 or http/1.1"),
            (
                &[("path", "/a b")],
                "path: \"/a b\" is no path of a request; write one such as /api/users, with %20 for a blank",
            ),
            (&[("host", "a\r\nb")], "host: \"a\\r\\nb\" holds what would end the line; leave that out"),
            (&[("header", "X-Tenant")], "header: \"X-Tenant\" is no header; write one such as \"X-Tenant: seven\""),
            (
                &[("first_bytes", "hex:1")],
                "first_bytes: \"hex:1\" isn't hex; write pairs of hex digits, such as hex:160301, or text",
            ),
        ] {
            assert_eq!(parse(&[&base[..], given].concat()).err().as_deref(), Some(expected));
        }
        let named = parse(&[&base[..], &[("sni", "a b")]].concat()).err().unwrap();
        assert!(named.starts_with("sni: \"a b\" can't be a server's name ("), "{named}");
    }
}
