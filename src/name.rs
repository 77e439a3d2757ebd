//! The newtypes that cross layers: names of configured things, addresses of peers, and the two directions.
//!
//! Owns no behaviour beyond construction, comparison and display. An address of a client and one of a backend
//! are different types, so that they can't be swapped. Next: `config` for where the names come from.

use std::borrow::Borrow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            #[must_use]
            pub fn new(name: &str) -> Self {
                Self(name.into())
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

name! {
    /// The name of a `[listeners.NAME]` table.
    ListenerName
}

name! {
    /// The name of a `[pools.NAME]` table.
    PoolName
}

name! {
    /// The name of a `[limits.NAME]` table.
    LimitName
}

/// Where a stream socket is bound or connects to: a TCP address or the path of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Unix(Arc<Path>),
}

impl fmt::Display for Endpoint {
    /// Writes `10.0.0.1:80`, `[::1]:80` or `unix:/run/app.sock`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The address that a listener is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BindAddr(pub Endpoint);

impl BindAddr {
    /// Whether it is a unix socket.
    #[must_use]
    pub fn is_path(&self) -> bool {
        matches!(self.0, Endpoint::Unix(_))
    }
}

impl fmt::Display for BindAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The address that a backend is reached at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendAddr(pub Endpoint);

impl fmt::Display for BackendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The address of a client as accept(2) gave it; a v4-mapped IPv6 address is held as the IPv4 address it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientAddr {
    Tcp(SocketAddr),
    /// Clients of a unix socket have no address of their own.
    Unix,
}

impl ClientAddr {
    /// Canonicalises `::ffff:a.b.c.d` to `a.b.c.d`.
    #[must_use]
    pub fn tcp(address: SocketAddr) -> Self {
        match address.ip().to_canonical() {
            ip @ IpAddr::V4(_) => Self::Tcp(SocketAddr::new(ip, address.port())),
            IpAddr::V6(_) => Self::Tcp(address),
        }
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// Identifies one backend's state for the life of the process; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub u32);

/// Identifies one session for the life of the process: the worker in the upper 16 bits, a count below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl SessionId {
    #[must_use]
    pub fn new(worker: u16, count: u64) -> Self {
        Self(u64::from(worker) << 48 | count & 0xffff_ffff_ffff)
    }

    /// The worker that has it.
    #[must_use]
    pub fn worker(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

impl fmt::Display for SessionId {
    /// Writes `WORKER-COUNT`, for example `1-4711`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0 >> 48, self.0 & 0xffff_ffff_ffff)
    }
}

impl FromStr for SessionId {
    type Err = ();

    /// Reads what [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (worker, count) = text.split_once('-').ok_or(())?;
        if ![worker, count].iter().all(|text| text.bytes().all(|byte| byte.is_ascii_digit())) {
            return Err(());
        }
        let (worker, count) = (worker.parse().map_err(drop)?, count.parse::<u64>().map_err(drop)?);
        if count >> 48 == 0 { Ok(Self::new(worker, count)) } else { Err(()) }
    }
}

/// Which way bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    ToBackend,
    ToClient,
}

impl Direction {
    pub const BOTH: [Self; 2] = [Self::ToBackend, Self::ToClient];

    /// The side that bytes of this direction are read from.
    #[must_use]
    pub fn source(self) -> Side {
        match self {
            Self::ToBackend => Side::Client,
            Self::ToClient => Side::Backend,
        }
    }

    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::ToBackend => Self::ToClient,
            Self::ToClient => Self::ToBackend,
        }
    }

    /// The side that bytes of this direction are written to.
    #[must_use]
    pub fn sink(self) -> Side {
        self.source().other()
    }
}

/// One of the two peers of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Client,
    Backend,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Client, Self::Backend];

    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }

    /// The direction that reads from this side.
    #[must_use]
    pub fn outgoing(self) -> Direction {
        match self {
            Self::Client => Direction::ToBackend,
            Self::Backend => Direction::ToClient,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_client_is_an_ipv4_client() {
        let mapped = ClientAddr::tcp("[::ffff:192.0.2.7]:4711".parse().unwrap());
        assert_eq!(mapped.to_string(), "192.0.2.7:4711");
        let native = ClientAddr::tcp("[2001:db8::7]:4711".parse().unwrap());
        assert_eq!(native.to_string(), "[2001:db8::7]:4711");
    }

    #[test]
    fn session_ids_keep_worker_and_count_apart() {
        assert_eq!(SessionId::new(3, 4711).to_string(), "3-4711");
        assert_eq!(SessionId::new(3, 4711).worker(), 3);
        assert_eq!("3-4711".parse(), Ok(SessionId::new(3, 4711)));
        let last = SessionId::new(u16::MAX, 0xffff_ffff_ffff);
        assert_eq!(last.to_string().parse(), Ok(last));
        for text in ["", "3", "3-", "-3", "+3-1", "3-+1", "65536-1", "0-281474976710656", "0-1-2", " 0-1"] {
            assert_eq!(text.parse::<SessionId>(), Err(()), "{text}");
        }
    }
}
