//! The PROXY protocol: from whom a listener takes headers, and what a pool's backends are sent.
//!
//! Owns the keys, their values and what is wrong with them; the bytes of a header are `net::proxy_protocol`'s.

use super::demand::{Cidr, given::networks};
use super::findings::{At, Complaint, Findings, Given, Placed};
use super::health::given::hex;
use super::section::Section;
use super::{limits, words};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// The keys of `accept_proxy_protocol`, and of `[pools.NAME.proxy_protocol]`.
pub(super) const ACCEPT: &[&str] = &["from", "required", "timeout"];
pub(super) const SEND: &[&str] = &["unique_id", "authority", "alpn", "pass", "ssl", "crc32c", "tlvs"];

/// The types that are for everybody to use. Source: section 2.2.8 of the protocol's specification.
const CUSTOM: RangeInclusive<u8> = 0xe0..=0xef;
const EXPERIMENTAL: RangeInclusive<u8> = 0xf0..=0xf7;

/// `accept_proxy_protocol`: connections to a listener begin with a header that says whose they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptProxy {
    /// Who is believed. Never empty.
    pub from: Arc<[Cidr]>,
    /// Without a header nobody is served.
    pub required: bool,
    /// From the accept to the end of the header.
    pub timeout: Duration,
}

impl AcceptProxy {
    /// The specification wants at least 3 s, for the sake of a lost segment.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
}

/// `send_proxy_protocol`: what a backend gets before the first byte of its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendProxy {
    V1,
    V2(Arc<Tlvs>),
}

impl SendProxy {
    /// The word of the config.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2(_) => "v2",
        }
    }
}

/// `[pools.NAME.proxy_protocol]`: what a header of version 2 says besides the addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of its own")]
pub struct Tlvs {
    /// The session's id, as the access log has it.
    pub unique_id: bool,
    /// The server name that the client has asked for.
    pub authority: bool,
    /// The protocols that the client has offered.
    pub alpn: bool,
    /// Whatever the client's own header carries.
    pub pass: bool,
    /// Of that, what is said of TLS.
    pub ssl: bool,
    pub crc32c: bool,
    /// Those of the file, by type.
    pub own: Vec<(u8, Box<[u8]>)>,
}

impl Default for Tlvs {
    fn default() -> Self {
        Self { unique_id: false, authority: false, alpn: false, pass: false, ssl: false, crc32c: true, own: Vec::new() }
    }
}

/// The word of `send_proxy_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Off,
    V1,
    V2,
}

pub(super) struct GivenAccept {
    at: At,
    from: Given<Vec<Placed<String>>>,
    required: Given<bool>,
    timeout: Given<Duration>,
}

impl GivenAccept {
    /// `None` if the table isn't there.
    pub fn read(listener: &Section) -> Option<Self> {
        let section = listener.section("accept_proxy_protocol", ACCEPT).given()?;
        Some(Self {
            from: section.texts("from"),
            required: section.boolean("required"),
            timeout: section.duration("timeout", &(limits::MIN_DURATION..=limits::MAX_DURATION)),
            at: section.at,
        })
    }

    pub fn judged(&self, findings: &Findings) -> AcceptProxy {
        let hint = "write from = [\"10.0.0.0/8\"], the networks of your proxies";
        if self.from.is_absent() {
            findings.missing(&self.at, "from is missing", hint);
        }
        if let Some(Placed { at, .. }) = self.from.good().filter(|list| list.value.is_empty()) {
            findings.mistake(
                at,
                "the list is empty, so that no proxy is believed",
                "name the networks of your proxies",
            );
        }
        let from = networks(&self.from, |text, complaint| findings.complaint(&text.at, complaint));
        for Placed { at, value } in from.iter().filter(|network| network.value.prefix == 0) {
            let message = format!("{value} is everybody, who may then claim to be anybody");
            findings.warning(at, message, "name the networks of your proxies");
        }
        AcceptProxy {
            from: from.into_iter().map(|network| network.value).collect(),
            required: self.required.or(true),
            timeout: self.timeout.or(AcceptProxy::DEFAULT_TIMEOUT),
        }
    }
}

pub(super) struct GivenSend {
    word: Given<Word>,
    /// Where the table is, if it is there.
    table: Option<At>,
    unique_id: Given<bool>,
    authority: Given<bool>,
    alpn: Given<bool>,
    pass: Given<bool>,
    ssl: Given<bool>,
    crc32c: Given<bool>,
    tlvs: Given<Vec<(Placed<String>, Placed<String>)>>,
}

impl GivenSend {
    pub fn read(pool: &Section) -> Self {
        let section = pool.section("proxy_protocol", SEND);
        Self {
            word: pool.choice("send_proxy_protocol", &[("off", Word::Off), ("v1", Word::V1), ("v2", Word::V2)]),
            unique_id: section.boolean("unique_id"),
            authority: section.boolean("authority"),
            alpn: section.boolean("alpn"),
            pass: section.boolean("pass"),
            ssl: section.boolean("ssl"),
            crc32c: section.boolean("crc32c"),
            tlvs: section.named_texts("tlvs"),
            table: section.given().map(|section| section.at),
        }
    }

    pub fn judged(&self, findings: &Findings) -> Option<SendProxy> {
        let default = Tlvs::default();
        let tlvs = Tlvs {
            unique_id: self.unique_id.or(default.unique_id),
            authority: self.authority.or(default.authority),
            alpn: self.alpn.or(default.alpn),
            pass: self.pass.or(default.pass),
            ssl: self.ssl.or(default.ssl),
            crc32c: self.crc32c.or(default.crc32c),
            own: self.own(findings),
        };
        let word = self.word.or(Word::Off);
        if let (Some(at), true) = (&self.table, word != Word::V2 && !matches!(self.word, Given::Bad)) {
            let message = "this has no effect without send_proxy_protocol = \"v2\"";
            let hint = match word {
                Word::V1 => "use \"v2\", or remove this: version 1 says nothing but the addresses",
                _ => "add it, or remove this",
            };
            findings.warning(at, message, hint);
        }
        if let (true, Some(Placed { at, .. })) = (tlvs.pass, self.ssl.good()) {
            findings.warning(at, "this has no effect beside pass = true, which passes it on", "remove one of the two");
        }
        match word {
            Word::Off => None,
            Word::V1 => Some(SendProxy::V1),
            Word::V2 => Some(SendProxy::V2(Arc::new(tlvs))),
        }
    }

    fn own(&self, findings: &Findings) -> Vec<(u8, Box<[u8]>)> {
        let Some(Placed { at, value: entries }) = self.tlvs.good() else { return Vec::new() };
        let mut own: Vec<(u8, Box<[u8]>)> = Vec::new();
        for (key, text) in entries {
            let kind = kind(&key.value).map_err(|complaint| findings.complaint(&key.at, complaint)).ok();
            let value = value(&text.value).map_err(|complaint| findings.complaint(&text.at, complaint)).ok();
            let (Some(kind), Some(value)) = (kind, value) else { continue };
            if own.iter().any(|(other, _)| *other == kind) {
                findings.mistake(&key.at, format!("type 0x{kind:02X} is here twice"), "remove one");
            }
            own.push((kind, value));
        }
        own.sort_by_key(|(kind, _)| *kind);
        let length: usize = own.iter().map(|(_, value)| 3 + value.len()).sum();
        if length > limits::MAX_TLVS {
            let message = format!("these make {length} bytes");
            findings.mistake(at, message, format!("a header has room for {} of them", limits::MAX_TLVS));
        }
        own
    }
}

/// `0xE0`.
fn kind(text: &str) -> Result<u8, Complaint> {
    let hint = "use 0xE0 to 0xEF, which are for everybody, or 0xF0 to 0xF7, for experiments";
    let digits = text.strip_prefix("0x").or(text.strip_prefix("0X")).unwrap_or_default();
    let number = if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None };
    match number {
        Some(kind) if CUSTOM.contains(&kind) || EXPERIMENTAL.contains(&kind) => Ok(kind),
        Some(_) => Err(Complaint::new(format!("type {} is not for everybody", words::escaped(text)), hint)),
        None => Err(Complaint::new(format!("{} is not the type of a TLV", words::quoted(text)), hint)),
    }
}

/// A text as it is, or what the digits behind `hex:` say.
fn value(text: &str) -> Result<Box<[u8]>, Complaint> {
    let Some(digits) = text.strip_prefix("hex:") else { return Ok(text.as_bytes().into()) };
    hex(digits).map(Into::into)
}
