//! Routes as the config describes them: conditions, what they lead to, and how long and how much is read for them.
//!
//! Owns plain data and defaults; which keys there are is `given`, what is wrong with them `judge`, and how the names,
//! paths and prefixes of a condition are written `text`. Invariant: a route that exists has exactly one destination,
//! and each of its lists that may not be empty isn't. Next: `table::routes`, which prepares them for the look-up.

pub(super) mod given;
pub(super) mod judge;
mod text;

pub use text::NamePattern;

use super::{Cidr, Listener, Percent};
use crate::name::PoolName;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// What log and metrics call the way to the listener's own pool; no route may be called so.
pub const DEFAULT_RULE: &str = "default";
/// What they call the way to `preread_timeout_pool`.
pub const TIMEOUT_RULE: &str = "preread_timeout";
/// What the metrics call all rules of a listener together that have no count of their own.
pub const OTHER_RULES: &str = "others";

/// One of `[[listeners.NAME.routes]]`: sessions for which all conditions hold go where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// As given, or `route-1`, `route-2` by its position.
    pub name: Arc<str>,
    pub when: Conditions,
    pub to: Destination,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Pool(PoolName),
    /// At least one, none of them twice.
    Pools(Vec<WeightedPool>),
    Refuse,
}

impl Destination {
    /// The pools that a session may go to.
    pub fn pools(&self) -> impl Iterator<Item = &PoolName> {
        let (one, several) = match self {
            Self::Pool(pool) => (Some(pool), [].as_slice()),
            Self::Pools(pools) => (None, pools.as_slice()),
            Self::Refuse => (None, [].as_slice()),
        };
        one.into_iter().chain(several.iter().map(|weighted| &weighted.pool))
    }
}

/// One of `pools`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedPool {
    pub pool: PoolName,
    /// 1 to [`limits::MAX_WEIGHT`](super::limits::MAX_WEIGHT).
    pub weight: u16,
}

/// What must be so for a route to be taken: within a list any of its values, between the keys all of them. A key that
/// isn't given asks nothing: `None`, or an empty list of those that may not be empty in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    pub source: Vec<Cidr>,
    pub local_port: Vec<RangeInclusive<u16>>,
    pub local_address: Vec<Cidr>,
    /// An empty list is TLS without a name.
    pub sni: Option<Vec<NamePattern>>,
    /// Any of what the client offers.
    pub alpn: Vec<Box<[u8]>>,
    /// Exactly what the client offers, in its order; an empty list is TLS without an offer.
    pub alpn_all: Option<Vec<Box<[u8]>>>,
    pub protocol: Vec<Protocol>,
    pub http_host: Vec<NamePattern>,
    pub http_path: Vec<Box<str>>,
    pub http_method: Vec<Box<str>>,
    pub prefix: Vec<Prefix>,
    pub share: Option<Percent>,
}

impl Conditions {
    /// Whether it takes everybody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it looks at what the client sends.
    #[must_use]
    pub fn reads_first_bytes(&self) -> bool {
        let Self { source: _, local_port: _, local_address: _, share: _, .. } = self;
        self.sni.is_some()
            || !self.alpn.is_empty()
            || self.alpn_all.is_some()
            || !self.protocol.is_empty()
            || !self.http_host.is_empty()
            || !self.http_path.is_empty()
            || !self.http_method.is_empty()
            || !self.prefix.is_empty()
    }
}

/// What a client speaks, by its first bytes. How each is known is `net::first_bytes::detect`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Begins with a `ClientHello` in records of SSL 3.0 or later.
    Tls,
    /// Begins with a request line that ends in `HTTP/1.0`, `HTTP/1.1` or the like.
    Http1,
    /// Begins with the whole preface of HTTP/2 (RFC 9113 section 3.4): HTTP/2 without TLS.
    Http2,
    /// Begins with `SSH-`.
    Ssh,
    /// Begins with a message that opens a PostgreSQL connection (version 3), asks for encryption, or cancels a query.
    Postgres,
    /// Begins with a command as a RESP array. Commands as lines of text look like anything.
    Redis,
    /// Something else, and not nothing.
    Other,
}

impl Protocol {
    /// The words of the file.
    pub const WORDS: [(&str, Self); 7] = [
        ("tls", Self::Tls),
        ("http1", Self::Http1),
        ("http2", Self::Http2),
        ("ssh", Self::Ssh),
        ("postgres", Self::Postgres),
        ("redis", Self::Redis),
        ("other", Self::Other),
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

/// The first bytes of a client, 1 to [`limits::MAX_PREFIX`](super::limits::MAX_PREFIX) of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub bytes: Box<[u8]>,
    /// As the file has it.
    pub text: Box<str>,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How long and how much of a client is read before its route is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preread {
    /// From the accept to the decision.
    pub timeout: Duration,
    /// 64 B to 1 MiB.
    pub bytes: usize,
    /// For a client that has sent nothing by then: its server may be the one that speaks first.
    pub timeout_pool: Option<PoolName>,
    pub failed: PrereadFailed,
}

impl Default for Preread {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), bytes: 16 << 10, timeout_pool: None, failed: PrereadFailed::default() }
    }
}

/// What becomes of a client whose first bytes can't be judged: too many, or malformed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrereadFailed {
    #[default]
    Reset,
    /// On to the routes, with nothing known of what it has sent.
    Pool,
}

impl PrereadFailed {
    pub(in crate::config) const WORDS: [(&str, Self); 2] = [("reset", Self::Reset), ("pool", Self::Pool)];
}

impl Listener {
    /// The pools that its sessions may go to, some of them several times.
    pub fn pools(&self) -> impl Iterator<Item = &PoolName> {
        let routed = self.routes.iter().flat_map(|route| route.to.pools());
        self.pool.iter().chain(&self.preread.timeout_pool).chain(routed)
    }

    /// Whether a route of it looks at what clients send.
    #[must_use]
    pub fn reads_first_bytes(&self) -> bool {
        self.routes.iter().any(|route| route.when.reads_first_bytes())
    }
}
