//! `[pools.NAME.health]`: how a backend is asked whether it is well, how often, and what counts as an answer.
//!
//! Owns the data and the defaults. What the file may say is `given`, what of that is wrong is `judge`. Specs of a
//! probe stand behind an `Arc`, since each probe under way holds its own. Next: `crate::health`, which asks.

pub(super) mod given;
pub(super) mod judge;

use super::Percent;
use crate::name::{BackendAddr, Endpoint};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, StatusCode};
use rustls::pki_types::{CertificateDer, ServerName};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// `[pools.NAME.health]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    pub probe: Probe,
    /// From one probe to the next, jittered.
    pub interval: Duration,
    /// Instead of `interval` while a change of state is pending.
    pub fast_interval: Duration,
    /// Instead of `interval` while the backend is down and nothing is pending.
    pub down_interval: Duration,
    /// The share by which the time between two probes varies, so that those of many backends don't march in step.
    pub jitter: Percent,
    /// For a whole probe, and for a whole conversation with the agent.
    pub timeout: Duration,
    /// Successes in a row that bring a backend up.
    pub rise: u16,
    /// Failures in a row that take it down.
    pub fall: u16,
    pub initial: Initial,
    /// The port that is probed, instead of the backend's.
    pub port: Option<u16>,
    /// The address that is probed, instead of the backend's.
    pub address: Option<IpAddr>,
    pub agent: Option<Arc<Agent>>,
}

/// What a backend is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Probe {
    /// A TCP (or unix) connect that succeeds.
    Tcp,
    /// A request that is answered as expected.
    Http(Arc<Http>),
    /// A TLS handshake, and a certificate that is good.
    Tls(Arc<Tls>),
    /// Some bytes for some bytes.
    Exchange(Arc<Exchange>),
    /// Backends count as up without being asked.
    None,
}

/// What a backend counts as before its first probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// Down until one success.
    Down,
    Up,
}

impl Initial {
    pub(in crate::config) const WORDS: [(&str, Self); 2] = [("down", Self::Down), ("up", Self::Up)];
}

/// `http = { … }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    pub method: Method,
    pub path: PathAndQuery,
    /// `None` is the backend's address.
    pub host: Option<HeaderValue>,
    pub headers: HeaderMap,
    pub status: StatusSet,
    /// What the body must contain.
    pub body: Option<String>,
    /// The most of the body that is read, in bytes.
    pub max_bytes: usize,
}

/// The statuses that are good answers; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusSet(pub Vec<RangeInclusive<u16>>);

/// `tls = { … }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// The name that is asked for (SNI) and that the certificate must carry; `None` asks for none and takes any.
    pub name: Option<ServerName<'static>>,
    /// Who must have issued the certificate; `None` takes any issuer.
    pub ca: Option<Ca>,
    /// A certificate that ends within this is worth a warning.
    pub expiry_warning: Duration,
}

/// Certificates from a PEM file: of issuers, or of backends themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct Ca {
    pub path: PathBuf,
    /// At least one.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// `exchange = { … }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Nothing, where the backend speaks first.
    pub send: Vec<u8>,
    pub expect: Expect,
    /// The most of the answer that is read, in bytes.
    pub max_bytes: usize,
}

/// What makes an answer a good one; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Somewhere in it.
    Text(Vec<u8>),
    /// At its begin.
    Prefix(Vec<u8>),
}

/// `agent = { … }`: where a backend says its own state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// At the backend's own address.
    pub port: u16,
    pub interval: Duration,
    pub send: Vec<u8>,
}

impl Health {
    /// Where the probe of a backend goes.
    #[must_use]
    pub fn target(&self, backend: &BackendAddr) -> BackendAddr {
        moved(backend, self.address, self.port)
    }
}

impl Agent {
    /// Where the agent of a backend is.
    #[must_use]
    pub fn target(&self, backend: &BackendAddr) -> BackendAddr {
        moved(backend, None, Some(self.port))
    }
}

/// A unix socket stays where it is; for it, the overrides are a mistake.
fn moved(backend: &BackendAddr, address: Option<IpAddr>, port: Option<u16>) -> BackendAddr {
    let Endpoint::Tcp(own) = &backend.0 else { return backend.clone() };
    let mut moved = *own;
    if let Some(ip) = address {
        moved = SocketAddr::new(ip, own.port());
    }
    if let Some(port) = port {
        moved.set_port(port);
    }
    BackendAddr(Endpoint::Tcp(moved))
}

impl StatusSet {
    #[must_use]
    pub fn contains(&self, status: StatusCode) -> bool {
        self.0.iter().any(|range| range.contains(&status.as_u16()))
    }
}

impl fmt::Display for StatusSet {
    /// Writes `200-399`, or `200, 300-399`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { ", " })?;
            write!(f, "{}", range.start())?;
            if range.end() > range.start() {
                write!(f, "-{}", range.end())?;
            }
        }
        Ok(())
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            probe: Probe::Tcp,
            interval: Duration::from_secs(2),
            fast_interval: Duration::from_millis(500),
            down_interval: Duration::from_secs(2),
            jitter: Percent::whole(10),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            initial: Initial::Down,
            port: None,
            address: None,
            agent: None,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            method: Method::GET,
            path: PathAndQuery::from_static("/"),
            host: None,
            headers: HeaderMap::new(),
            status: StatusSet(vec![200..=399]),
            body: None,
            max_bytes: 64 << 10,
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self { name: None, ca: None, expiry_warning: Duration::from_secs(14 * 24 * 3_600) }
    }
}

impl Exchange {
    pub const DEFAULT_MAX_BYTES: usize = 4 << 10;
}

impl Agent {
    pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_goes_where_it_is_told_and_an_agent_to_the_backend() {
        let tcp = |text: &str| BackendAddr(Endpoint::Tcp(text.parse().unwrap()));
        let web = tcp("10.0.0.1:80");
        let health = |address: Option<&str>, port| Health {
            address: address.map(|ip| ip.parse().unwrap()),
            port,
            ..Health::default()
        };
        for (health, expected) in [
            (health(None, None), "10.0.0.1:80"),
            (health(None, Some(81)), "10.0.0.1:81"),
            (health(Some("10.9.9.9"), None), "10.9.9.9:80"),
            (health(Some("::1"), Some(81)), "[::1]:81"),
        ] {
            assert_eq!(health.target(&web), tcp(expected));
        }
        let agent = Agent { port: 9_999, interval: Agent::DEFAULT_INTERVAL, send: Vec::new() };
        assert_eq!(agent.target(&tcp("[2001:db8::1]:80")), tcp("[2001:db8::1]:9999"));
        let unix = BackendAddr(Endpoint::Unix(std::path::Path::new("/run/a.sock").into()));
        assert_eq!(health(None, Some(81)).target(&unix), unix);
    }

    #[test]
    fn statuses_are_single_ones_and_ranges() {
        let set = StatusSet(vec![200..=200, 300..=399]);
        assert_eq!(set.to_string(), "200, 300-399");
        assert!(set.contains(StatusCode::OK) && set.contains(StatusCode::FOUND));
        assert!(!set.contains(StatusCode::CREATED) && !set.contains(StatusCode::BAD_REQUEST));
    }
}
