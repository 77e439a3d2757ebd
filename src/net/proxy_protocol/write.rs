//! Makes a header.

use super::{
    BEGIN_V1, BEGIN_V2, CHECKSUM, FIXED_V2, IPV4_PAIR, IPV6_PAIR, MAX_HEADER, Subject, Version, canonical, kind,
};
use std::net::{IpAddr, SocketAddr};

/// The command and the version; of a connection of the sender's own, and of a client's.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// The line of version 1. It can't say of a connection that it is the sender's own, nor has it room for addresses of
/// two families: both are `UNKNOWN`.
#[must_use]
pub fn write_v1(subject: &Subject) -> Vec<u8> {
    let begin = String::from_utf8_lossy(BEGIN_V1);
    match *subject {
        Subject::Tcp { source, destination } if source.is_ipv4() == destination.is_ipv4() => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            format!("{begin}{family} {from} {to} {} {}\r\n", source.port(), destination.port()).into()
        }
        _ => format!("{begin}UNKNOWN\r\n").into(),
    }
}

/// A header of version 2 in the making.
#[derive(Clone, Debug)]
pub struct V2(Vec<u8>);

impl V2 {
    /// With its addresses. Of two families, the IPv4 one is written as a mapped IPv6 one; a client of a unix socket,
    /// whose name would be the one of the socket, is one of whom nothing is known.
    #[must_use]
    pub fn new(subject: &Subject) -> Self {
        let mut bytes = Vec::with_capacity(FIXED_V2 + IPV6_PAIR + 3 + CHECKSUM);
        bytes.extend_from_slice(BEGIN_V2);
        let mut put = |command: u8, family: u8, length: usize| {
            bytes.extend_from_slice(&[command, family]);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        };
        match *subject {
            Subject::Local => put(LOCAL, 0, 0),
            Subject::Unknown | Subject::Unix => put(PROXY, 0, 0),
            Subject::Tcp { source, destination } => {
                match (source.ip(), destination.ip()) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => {
                        put(PROXY, 0x11, IPV4_PAIR);
                        bytes.extend_from_slice(&from.octets());
                        bytes.extend_from_slice(&to.octets());
                    }
                    (from, to) => {
                        put(PROXY, 0x21, IPV6_PAIR);
                        bytes.extend_from_slice(&octets(from));
                        bytes.extend_from_slice(&octets(to));
                    }
                }
                bytes.extend_from_slice(&source.port().to_be_bytes());
                bytes.extend_from_slice(&destination.port().to_be_bytes());
            }
        }
        Self(bytes)
    }

    /// Adds a value of this type, unless the header would be longer than [`MAX_HEADER`] with it and the checksum: then
    /// it goes without it, and says so.
    pub fn push(&mut self, kind: u8, value: &[u8]) -> bool {
        let room = (MAX_HEADER - 3 - CHECKSUM).saturating_sub(self.0.len());
        let fits = value.len() + 3 <= room;
        if fits {
            self.0.push(kind);
            self.0.extend_from_slice(&(value.len() as u16).to_be_bytes());
            self.0.extend_from_slice(value);
        }
        fits
    }

    /// The header, with its checksum as the last value if there is to be one.
    #[must_use]
    pub fn finish(self, crc32c: bool) -> Vec<u8> {
        let mut bytes = self.0;
        if crc32c {
            bytes.extend_from_slice(&[kind::CRC32C, 0, CHECKSUM as u8, 0, 0, 0, 0]);
        }
        let length = (bytes.len() - FIXED_V2) as u16;
        bytes[FIXED_V2 - 2..FIXED_V2].copy_from_slice(&length.to_be_bytes());
        if crc32c {
            let sum = crc32c::crc32c(&bytes);
            let at = bytes.len() - CHECKSUM;
            bytes[at..].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// The header of a connection of our own, such as a probe's: from where to where it goes, as far as it has addresses.
/// Version 1 has no word for that; receivers may refuse `UNKNOWN`, and so it says what a client's would: these.
#[must_use]
pub fn write_local(version: Version, addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    match (version, addresses) {
        (Version::V2, _) => V2::new(&Subject::Local).finish(false),
        (Version::V1, Some((own, peer))) => {
            write_v1(&Subject::Tcp { source: canonical(own), destination: canonical(peer) })
        }
        (Version::V1, None) => write_v1(&Subject::Unknown),
    }
}
