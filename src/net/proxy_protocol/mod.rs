//! The PROXY protocol, versions 1 and 2: a header before the first byte of a connection that says whose it is.
//!
//! Owns the bytes: [`read()`] finds a header at the beginning of what was received, [`write_v1`] and [`V2`] make one.
//! Knows no socket: who may send a header, and what is done with what it says, is `session::proxy`'s. Source of the
//! formats: `doc/proxy-protocol.txt` of HAProxy, of 2020/03/05.
//!
//! Invariants: no bytes make it panic, and none make it allocate more than [`MAX_HEADER`]; what is decided of the first
//! bytes stays so with more of them; a header is given out only when all of it is there and all of it is right: each
//! TLV lies within it, and its checksum, if it has one, is that of its bytes. Mapped IPv6 addresses are held as the
//! IPv4 ones that they mean.

mod read;
#[cfg(test)]
mod tests;
mod tlv;
mod write;

pub use read::{Found, Invalid, read, version};
pub use tlv::{Tlvs, kind};
pub use write::{V2, write_local, write_v1};

use std::net::{IpAddr, SocketAddr};

/// The longest header that is read or written, in bytes. One of version 2 could have 65,551; it is meant to fit the
/// smallest segment, 536.
pub const MAX_HEADER: usize = 4 << 10;

/// How a header of version 1 begins, and one of version 2.
const BEGIN_V1: &[u8] = b"PROXY ";
const BEGIN_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1 with its end, in bytes: `UNKNOWN` with the longest addresses and ports.
const MAX_V1: usize = 107;
/// Of version 2: what comes before the addresses, a pair of these in each family, and the checksum's TLV.
const FIXED_V2: usize = 16;
const IPV4_PAIR: usize = 12;
const IPV6_PAIR: usize = 36;
const UNIX_PAIR: usize = 216;
const CHECKSUM: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary, with TLVs.
    V2,
}

/// A header that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: Version,
    pub subject: Subject,
    /// None in version 1, and none of a connection of the sender's own.
    pub tlvs: Tlvs,
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The sender's own, such as a health check. Only version 2 can say so.
    Local,
    /// Of a client of which the sender can say no more, or in a way that isn't supported.
    Unknown,
    /// Of a client at `source`, which has connected to `destination`.
    Tcp { source: SocketAddr, destination: SocketAddr },
    /// Of a client of a unix socket.
    Unix,
}

impl Subject {
    /// A TCP client; mapped addresses become the IPv4 ones that they mean.
    #[must_use]
    pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::Tcp { source: canonical(source), destination: canonical(destination) }
    }
}

/// Neither flow label nor scope: nobody else could use them, and no header carries them.
fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}
