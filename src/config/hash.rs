//! `[pools.NAME.hash]`: what a pool with `balance = "source_hash"` goes by, and how firmly.
//!
//! Owns the keys of that table, their defaults, and what is wrong with them. What is done with them is
//! `pool::pick::source_hash`; the hash itself is taken in `table::hash_key`.

use super::findings::{self, Complaint, Findings, Placed};
use super::section::Section;
use super::{Balance, ClientPrefix, Member, Percent, limits, words};
use std::ops::RangeBounds;
use std::sync::Arc;

pub const KEYS: &[&str] = &["key", "header", "prefix_ipv4", "prefix_ipv6", "table_size", "max_load"];

/// With fewer places a member's share of them is rough: one place is a tenth of it.
const FEW_PLACES: u32 = 10;
/// As in `key`.
const HTTP_HEADER: &str = "http_header";

/// By what a client finds its backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Hash {
    pub key: HashKey,
    /// How much of a client's address counts.
    pub prefix: ClientPrefix,
    /// Places in the table; a prime within [`limits::TABLE_SIZE`].
    pub table_size: u32,
    /// Times its share of all connections a backend may have before its clients go to the next one; within
    /// [`limits::MAX_LOAD`]. `None` never sends them elsewhere for that.
    pub max_load: Option<f64>,
}

/// What is hashed. Where it isn't known, it is the client's address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HashKey {
    /// The client's address, cut to the prefix.
    #[default]
    Source,
    /// The server name of a TLS `ClientHello`.
    Sni,
    /// Of the first HTTP/1 request of a connection: its host,
    HttpHost,
    /// its path without the query,
    HttpPath,
    /// or a header with this name.
    HttpHeader(Arc<str>),
}

impl Default for Hash {
    /// A table of 65,537 places is the paper's smaller one (Eisenbud et al., NSDI 2016, section 5.3); bounds of 1.25
    /// are the usual ones where loads are bounded.
    fn default() -> Self {
        Self {
            key: HashKey::default(),
            prefix: ClientPrefix::default(),
            table_size: limits::DEFAULT_TABLE_SIZE,
            max_load: Some(1.25),
        }
    }
}

impl HashKey {
    /// The word of the config.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Sni => "sni",
            Self::HttpHost => "http_host",
            Self::HttpPath => "http_path",
            Self::HttpHeader(_) => HTTP_HEADER,
        }
    }

    /// The word of the config; for a header also which.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::HttpHeader(name) => format!("{HTTP_HEADER} {name}"),
            other => other.word().to_owned(),
        }
    }
}

/// The words of `key`; a header has its name beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Source,
    Sni,
    HttpHost,
    HttpPath,
    HttpHeader,
}

const KINDS: [(&str, Kind); 5] = [
    ("source", Kind::Source),
    ("sni", Kind::Sni),
    ("http_host", Kind::HttpHost),
    ("http_path", Kind::HttpPath),
    (HTTP_HEADER, Kind::HttpHeader),
];

/// What the file says.
pub(super) struct Given {
    /// Where the table is, or would be; `true` if it is there.
    at: (findings::At, bool),
    key: findings::Given<Kind>,
    header: findings::Given<String>,
    prefix_ipv4: findings::Given<u8>,
    prefix_ipv6: findings::Given<u8>,
    table_size: findings::Given<u32>,
    max_load: findings::Given<Option<f64>>,
}

impl Given {
    pub fn read(pool: &Section) -> Self {
        let section = pool.section("hash", KEYS);
        let out_of_range = "use more than 1, up to 10, or \"off\"";
        Self {
            at: (section.at.clone(), pool.has("hash")),
            key: section.choice("key", &KINDS),
            header: section.parsed("header", header),
            prefix_ipv4: section.integer("prefix_ipv4", &(1..=32)),
            prefix_ipv6: section.integer("prefix_ipv6", &(1..=128)),
            table_size: section.integer("table_size", &limits::TABLE_SIZE),
            max_load: section.number_or_off("max_load", |load| limits::MAX_LOAD.contains(&load), out_of_range),
        }
    }
}

/// The name of a header: a token of RFC 9110.
fn header(text: &str) -> Result<String, Complaint> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !text.is_empty() && text.len() <= limits::MAX_NAME && text.bytes().all(is_token) {
        return Ok(text.to_owned());
    }
    let hint = "use letters, digits and -, as in \"X-Tenant\"";
    Err(Complaint::new(format!("{} is no name of a header", words::quoted(text)), hint))
}

/// What the pool goes by, if its policy does so. `balance` is `None` if what the file says of it is no policy.
pub(super) fn judged(
    findings: &Findings,
    given: &Given,
    balance: Option<&Balance>,
    members: &[Member],
) -> Option<Hash> {
    let key = key(findings, given);
    let default = Hash::default();
    let table_size = given.table_size.or(default.table_size);
    if let Some(Placed { at, value }) = given.table_size.good().filter(|size| !is_prime(size.value)) {
        let (below, above) = nearest_primes(*value);
        findings.mistake(at, format!("{value} is no prime"), format!("use {below} or {above}"));
    }
    match balance {
        Some(Balance::SourceHash) => check_places(findings, given, table_size, members),
        Some(other) if given.at.1 => {
            let message = format!("this has no effect with {}", policy(other));
            findings.warning(&given.at.0, message, "write balance = \"source_hash\", or remove this");
        }
        _ => {}
    }
    (balance == Some(&Balance::SourceHash)).then(|| Hash {
        key,
        prefix: ClientPrefix {
            ipv4: given.prefix_ipv4.or(default.prefix.ipv4),
            ipv6: given.prefix_ipv6.or(default.prefix.ipv6),
        },
        table_size,
        max_load: given.max_load.or(default.max_load),
    })
}

fn policy(balance: &Balance) -> String {
    match balance {
        Balance::Failover(_) => "a target".to_owned(),
        other => format!("balance = \"{}\"", other.as_str()),
    }
}

fn key(findings: &Findings, given: &Given) -> HashKey {
    let kind = given.key.or(Kind::Source);
    let header = given.header.good();
    if let (Some(Placed { at, .. }), true) =
        (header, kind != Kind::HttpHeader && !matches!(given.key, findings::Given::Bad))
    {
        findings.warning(at, "this has no effect without key = \"http_header\"", "write that, or remove this");
    }
    match kind {
        Kind::Source => HashKey::Source,
        Kind::Sni => HashKey::Sni,
        Kind::HttpHost => HashKey::HttpHost,
        Kind::HttpPath => HashKey::HttpPath,
        Kind::HttpHeader => {
            if let (Some(Placed { at, .. }), true) = (given.key.good(), given.header.is_absent()) {
                findings.missing(at, "nothing says which header", "write header = \"X-Tenant\"");
            }
            HashKey::HttpHeader(header.map_or("", |name| name.value.as_str()).into())
        }
    }
}

/// Whether there are enough places for the members, as far as they are known here.
fn check_places(findings: &Findings, given: &Given, size: u32, members: &[Member]) {
    let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    let Some(least) = members.iter().map(|member| u64::from(member.weight)).min() else { return };
    let wanted = (u64::from(FEW_PLACES) * total).div_ceil(least);
    let at = given.table_size.good().map_or(&given.at.0, |placed| &placed.at);
    if wanted <= u64::from(size) || matches!(given.table_size, findings::Given::Bad) {
        return;
    }
    let hint = match u32::try_from(wanted).ok().filter(|wanted| *wanted <= *limits::TABLE_SIZE.end()) {
        Some(wanted) => format!("use a table_size of {} or more", nearest_primes(wanted).1),
        None => "use fewer backends, or weights that differ less".to_owned(),
    };
    let places = u64::from(size) as f64 * least as f64 / total as f64;
    let message =
        format!("{size} places give a backend of weight {least} only {places:.1}, so that its share is rough");
    findings.warning(at, message, hint);
}

/// To end the sessions of a backend with too many moves nobody: each client comes back to it.
pub(super) fn check_rebalance(findings: &Findings, balance: &Balance, rebalance: Option<&Placed<Option<Percent>>>) {
    if let (Balance::SourceHash, Some(Placed { at, value: Some(_) })) = (balance, rebalance) {
        let message = "clients that are ended come back to the same backend with balance = \"source_hash\"";
        findings.warning(at, message, "remove this; hash.max_load keeps a backend from having too many");
    }
}

/// The next primes at or below and at or above `number`, within [`limits::TABLE_SIZE`].
fn nearest_primes(number: u32) -> (u32, u32) {
    let (least, most) = (*limits::TABLE_SIZE.start(), *limits::TABLE_SIZE.end());
    let below = (least..=number).rev().find(|&number| is_prime(number)).unwrap_or(least);
    let above = (number..=most).find(|&number| is_prime(number)).unwrap_or(most);
    (below, above)
}

fn is_prime(number: u32) -> bool {
    number >= 2 && (2..=number.isqrt()).all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_and_the_default_of_a_table_are_primes() {
        let (least, most) = (*limits::TABLE_SIZE.start(), *limits::TABLE_SIZE.end());
        assert!([least, most, limits::DEFAULT_TABLE_SIZE].into_iter().all(is_prime));
        assert_eq!(nearest_primes(65_536), (65_521, 65_537));
        assert_eq!((nearest_primes(252).0, nearest_primes(most - 1).1), (least, most));
        assert_eq!(nearest_primes(65_537), (65_537, 65_537));
        assert!(![0, 1, 4, 9, 65_535, 251 * 251].into_iter().any(is_prime));
    }
}
