//! `[pools.NAME.health]` and the tables in it, key for key.
//!
//! Owns the lists of their keys, as `file` owns the others, and the syntax of single values: statuses, headers, hex
//! digits. What takes two keys to be wrong is `judge`'s.

use super::super::findings::{At, Complaint, Given, Placed};
use super::super::section::{self, Section, Value};
use super::super::{Percent, limits, unit, words};
use super::{Initial, StatusSet};
use hyper::Method;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;
use toml::de::DeValue;

pub(in crate::config) const HEALTH: &[&str] = &[
    "probe",
    "interval",
    "fast_interval",
    "down_interval",
    "jitter",
    "timeout",
    "rise",
    "fall",
    "initial",
    "port",
    "address",
    "http",
    "tls",
    "exchange",
    "agent",
];
pub(in crate::config) const HTTP: &[&str] = &["method", "path", "host", "headers", "status", "body", "max_bytes"];
pub(in crate::config) const TLS: &[&str] = &["name", "ca", "expiry_warning"];
pub(in crate::config) const EXCHANGE: &[&str] =
    &["send", "send_hex", "expect", "expect_prefix", "expect_prefix_hex", "max_bytes"];
pub(in crate::config) const AGENT: &[&str] = &["port", "interval", "send"];

/// The word for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Kind {
    Tcp,
    Http,
    Tls,
    Exchange,
    None,
}

impl Kind {
    pub const WORDS: [(&str, Self); 5] = [
        ("tcp", Self::Tcp),
        ("http", Self::Http),
        ("tls", Self::Tls),
        ("exchange", Self::Exchange),
        ("none", Self::None),
    ];

    pub fn word(self) -> &'static str {
        Self::WORDS.into_iter().find(|(_, kind)| *kind == self).map_or("", |(word, _)| word)
    }
}

pub(in crate::config) struct Health {
    /// The table itself.
    pub at: At,
    pub probe: Given<Kind>,
    pub interval: Given<Duration>,
    pub fast_interval: Given<Duration>,
    pub down_interval: Given<Duration>,
    pub jitter: Given<Percent>,
    pub timeout: Given<Duration>,
    pub rise: Given<u16>,
    pub fall: Given<u16>,
    pub initial: Given<Initial>,
    pub port: Given<u16>,
    pub address: Given<IpAddr>,
    /// `None` if the table isn't there, as with the next three.
    pub http: Option<Http>,
    pub tls: Option<Tls>,
    pub exchange: Option<Exchange>,
    pub agent: Option<Agent>,
}

pub(in crate::config) struct Http {
    pub at: At,
    pub method: Given<Method>,
    pub path: Given<PathAndQuery>,
    pub host: Given<HeaderValue>,
    pub headers: Given<HeaderMap>,
    pub status: Given<StatusSet>,
    pub body: Given<String>,
    pub max_bytes: Given<u64>,
}

pub(in crate::config) struct Tls {
    pub at: At,
    pub name: Given<String>,
    pub ca: Given<String>,
    pub expiry_warning: Given<Duration>,
}

pub(in crate::config) struct Exchange {
    pub at: At,
    pub send: Given<String>,
    pub send_hex: Given<Vec<u8>>,
    pub expect: Given<String>,
    pub expect_prefix: Given<String>,
    pub expect_prefix_hex: Given<Vec<u8>>,
    pub max_bytes: Given<u64>,
}

pub(in crate::config) struct Agent {
    pub at: At,
    pub port: Given<u16>,
    pub interval: Given<Duration>,
    pub send: Given<String>,
}

impl Health {
    pub fn read(section: &Section) -> Self {
        let above_zero = limits::MIN_DURATION..=limits::MAX_DURATION;
        let streak = 1..=limits::MAX_STREAK;
        let has = |key| section.has(key);
        Self {
            at: section.at.clone(),
            probe: section.choice("probe", &Kind::WORDS),
            interval: section.duration("interval", &above_zero),
            fast_interval: section.duration("fast_interval", &above_zero),
            down_interval: section.duration("down_interval", &above_zero),
            jitter: section.percent("jitter"),
            timeout: section.duration("timeout", &above_zero),
            rise: section.integer("rise", &streak),
            fall: section.integer("fall", &streak),
            initial: section.choice("initial", &Initial::WORDS),
            port: section.integer("port", &(1..=u16::MAX)),
            address: section.parsed("address", address),
            http: has("http").then(|| Http::read(&section.section("http", HTTP))),
            tls: has("tls").then(|| Tls::read(&section.section("tls", TLS))),
            exchange: has("exchange").then(|| Exchange::read(&section.section("exchange", EXCHANGE))),
            agent: section.section("agent", AGENT).given().map(|section| Agent::read(&section)),
        }
    }
}

impl Http {
    fn read(section: &Section) -> Self {
        let methods =
            [("GET", &Method::GET), ("HEAD", &Method::HEAD), ("OPTIONS", &Method::OPTIONS), ("POST", &Method::POST)];
        Self {
            at: section.at.clone(),
            method: section.choice("method", &methods).map(Method::clone),
            path: section.parsed("path", path),
            host: section.parsed("host", host),
            headers: headers(section),
            status: status(section),
            body: section.parsed("body", not_empty),
            max_bytes: section.parsed("max_bytes", max_bytes),
        }
    }
}

impl Tls {
    fn read(section: &Section) -> Self {
        Self {
            at: section.at.clone(),
            name: section.text("name"),
            ca: section.text("ca"),
            expiry_warning: section.duration("expiry_warning", &(Duration::ZERO..=limits::MAX_DURATION)),
        }
    }
}

impl Exchange {
    fn read(section: &Section) -> Self {
        Self {
            at: section.at.clone(),
            send: section.parsed("send", sent),
            send_hex: section.parsed("send_hex", hex),
            expect: section.parsed("expect", not_empty),
            expect_prefix: section.parsed("expect_prefix", not_empty),
            expect_prefix_hex: section.parsed("expect_prefix_hex", hex),
            max_bytes: section.parsed("max_bytes", max_bytes),
        }
    }
}

impl Agent {
    fn read(section: &Section) -> Self {
        Self {
            at: section.at.clone(),
            port: section.integer("port", &(1..=u16::MAX)),
            interval: section.duration("interval", &(limits::MIN_DURATION..=limits::MAX_DURATION)),
            send: section.parsed("send", sent),
        }
    }
}

fn max_bytes(text: &str) -> Result<u64, Complaint> {
    unit::bytes(text, &(1..=limits::MAX_PROBE_BYTES))
}

fn address(text: &str) -> Result<IpAddr, Complaint> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    match bare.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
            Err(Complaint::new(format!("{ip} is no address of one machine"), "name one to connect to"))
        }
        Ok(ip) => Ok(ip.to_canonical()),
        Err(_) => {
            let hint = "write it as in \"10.0.0.9\", and a port, if need be, as port";
            Err(Complaint::new(format!("{} is not an IP address", words::quoted(text)), hint))
        }
    }
}

fn path(text: &str) -> Result<PathAndQuery, Complaint> {
    let not_one = |hint: &str| Err(Complaint::new(format!("{} is not a path", words::quoted(text)), hint));
    if !text.starts_with('/') {
        return not_one("begin it with \"/\"");
    }
    match PathAndQuery::try_from(text) {
        Ok(path) if !text.contains('#') => Ok(path),
        _ => not_one("use letters, digits and the signs of a URL; write others as %20"),
    }
}

fn sent(text: &str) -> Result<String, Complaint> {
    match text.len() {
        length if length > limits::MAX_PROBE_SEND => Err(too_long(length)),
        _ => Ok(text.to_owned()),
    }
}

fn too_long(length: usize) -> Complaint {
    Complaint::new(format!("these are {length} bytes"), format!("use up to {}", limits::MAX_PROBE_SEND))
}

fn not_empty(text: &str) -> Result<String, Complaint> {
    match text.len() {
        0 => Err(Complaint::new("the text is empty", "every answer has that; write what a good one has")),
        _ => sent(text),
    }
}

/// `"00 00 00 08"`: pairs of digits, with white space where one likes.
pub(in crate::config) fn hex(text: &str) -> Result<Vec<u8>, Complaint> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .filter(|char| !char.is_ascii_whitespace())
        .map(|char| char.to_digit(16).map(|digit| digit as u8))
        .collect();
    match digits {
        Some(digits) if !digits.is_empty() && digits.len().is_multiple_of(2) => {
            let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
            if bytes.len() > limits::MAX_PROBE_SEND { Err(too_long(bytes.len())) } else { Ok(bytes) }
        }
        _ => {
            let message = format!("{} is not made of pairs of hex digits", words::quoted(text));
            Err(Complaint::new(message, "write it as in \"00 00 00 08 04 d2 16 2f\""))
        }
    }
}

fn header_value(text: &str) -> Result<HeaderValue, Complaint> {
    HeaderValue::from_str(text).map_err(|_| {
        let message = format!("{} can't stand in a header", words::quoted(text));
        Complaint::new(message, "use text without control characters")
    })
}

fn host(text: &str) -> Result<HeaderValue, Complaint> {
    if text.is_empty() {
        return Err(Complaint::new("the text is empty", "leave the key out"));
    }
    header_value(text)
}

/// Those that a probe sets itself, and what to do instead.
const OWN_HEADERS: [(HeaderName, &str); 4] = [
    (header::HOST, "use host instead"),
    (header::CONNECTION, "it is always \"close\""),
    (header::CONTENT_LENGTH, "a probe sends no body"),
    (header::TRANSFER_ENCODING, "a probe sends no body"),
];

fn headers(section: &Section) -> Given<HeaderMap> {
    let Given::Good(Placed { at, value: texts }) = section.named_texts("headers") else {
        return if section.has("headers") { Given::Bad } else { Given::Absent };
    };
    let mut headers = HeaderMap::new();
    for (name, text) in texts {
        let parsed = HeaderName::from_bytes(name.value.as_bytes()).map_err(|_| {
            let message = format!("{} is not a header's name", words::quoted(&name.value));
            Complaint::new(message, "use letters, digits and -")
        });
        let parsed = parsed.and_then(|parsed| match OWN_HEADERS.iter().find(|(own, _)| *own == parsed) {
            Some((own, hint)) => Err(Complaint::new(format!("the header {own} is set by itself"), *hint)),
            None => Ok(parsed),
        });
        let (name, value) = (section.judged(name.at, parsed), section.judged(text.at, header_value(&text.value)));
        if let (Given::Good(name), Given::Good(value)) = (name, value) {
            headers.append(name.value, value.value);
        }
    }
    Given::Good(Placed { at, value: headers })
}

fn status(section: &Section) -> Given<StatusSet> {
    let Given::Good(Placed { at, value: values }) = section.one_or_more("status") else { return Given::Absent };
    let judged = values.iter().map(|Placed { at, value }| section.judged(at.clone(), statuses(value)));
    let ranges: Vec<_> = judged.filter_map(Given::into_good).map(|placed| placed.value).collect();
    match ranges.len() {
        0 if values.is_empty() => {
            let complaint = Complaint::new("the list is empty", "name a status, such as 200 or \"200-399\"");
            section.judged(at, Err(complaint))
        }
        0 => Given::Bad,
        _ => Given::Good(Placed { at, value: StatusSet(ranges) }),
    }
}

/// `200`, `"200"` or `"200-399"`.
fn statuses(value: &Value) -> Result<RangeInclusive<u16>, Complaint> {
    let text = match value.get_ref() {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(digits) if digits.radix() == 10 => digits.as_str().to_owned(),
        _ => return Err(section::wrong_type(value, "a status")),
    };
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    let status = |text: &str| text.trim().parse().ok().filter(|status| (100..=599).contains(status));
    match (status(first), status(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => {
            let message = format!("{} is not a status", words::quoted(&text));
            Err(Complaint::new(message, "use 100 to 599, or two of them as in \"200-399\""))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_digits_come_in_pairs() {
        assert_eq!(hex("00 00 0008 04d2 16 2F"), Ok(vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]));
        for bad in ["", " ", "0", "0x00", "zz", "é0"] {
            assert!(hex(bad).is_err(), "{bad:?}");
        }
        assert!(hex(&"00".repeat(limits::MAX_PROBE_SEND + 1)).is_err());
    }

    #[test]
    fn paths_begin_with_a_slash_and_keep_their_query() {
        assert_eq!(path("/health?deep=1").unwrap().as_str(), "/health?deep=1");
        for bad in ["", "health", "http://a/", "/a b", "/a#b", "/\r\nX: y", "*"] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_address_has_no_port_and_is_one_machine() {
        assert_eq!(address("[::ffff:10.0.0.9]"), Ok(IpAddr::from([10, 0, 0, 9])));
        for bad in ["", "10.0.0.9:80", "host", "0.0.0.0", "::", "224.0.0.1"] {
            assert!(address(bad).is_err(), "{bad:?}");
        }
    }
}
