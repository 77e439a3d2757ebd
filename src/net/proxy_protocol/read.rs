//! Reads a header. Version 1 is a line with two addresses and two ports; version 2 has 16 fixed bytes, a pair of
//! addresses by family, and TLVs.

use super::{
    BEGIN_V1, BEGIN_V2, CHECKSUM, FIXED_V2, Header, IPV4_PAIR, IPV6_PAIR, MAX_HEADER, MAX_V1, Subject, Tlvs, UNIX_PAIR,
    Version, kind,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// What is at the beginning of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A header of so many bytes; what is behind them is the client's.
    Header(Header, usize),
    /// Something else: no header begins like this.
    Nothing,
    /// What there is may be the beginning of a header.
    NeedsMore,
}

/// Why something that begins like a header is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("the line does not end within {MAX_V1} bytes")]
    NoEnd,
    #[error("the protocol is none of TCP4, TCP6 and UNKNOWN")]
    Protocol,
    #[error("the line is not two addresses and two ports, with one space between them")]
    Line,
    #[error("version {0} is not known")]
    Version(u8),
    #[error("command {0} is not known")]
    Command(u8),
    #[error("address family {0} is not known")]
    Family(u8),
    #[error("transport protocol {0} is not known")]
    Transport(u8),
    #[error("the header has {0} bytes, and {MAX_HEADER} are the most")]
    TooLong(usize),
    #[error("{0} bytes are too few for a pair of addresses")]
    TooShort(usize),
    #[error("a TLV goes beyond the end of the header")]
    Overrun,
    #[error("the checksum is not the one number that it should be")]
    ChecksumForm,
    #[error("the checksum is not that of the header")]
    Checksum,
    #[error("it ended in the middle of the header")]
    CutOff,
}

/// Finds a header at the beginning of `bytes`, of which more may come.
///
/// Fails if what begins like a header can't become one any more.
pub fn read(bytes: &[u8]) -> Result<Found, Invalid> {
    if bytes.starts_with(BEGIN_V1) {
        read_v1(bytes)
    } else if bytes.starts_with(BEGIN_V2) {
        read_v2(bytes)
    } else if BEGIN_V1.starts_with(bytes) || BEGIN_V2.starts_with(bytes) {
        Ok(Found::NeedsMore)
    } else {
        Ok(Found::Nothing)
    }
}

/// The version of which `bytes` begin like a header for certain.
#[must_use]
pub fn version(bytes: &[u8]) -> Option<Version> {
    if bytes.starts_with(BEGIN_V1) { Some(Version::V1) } else { bytes.starts_with(BEGIN_V2).then_some(Version::V2) }
}

fn read_v1(bytes: &[u8]) -> Result<Found, Invalid> {
    let most = &bytes[..bytes.len().min(MAX_V1)];
    let said = &most[BEGIN_V1.len()..];
    let Some(end) = said.windows(2).position(|pair| pair == b"\r\n") else {
        // As early as it is certain, so that the sender can notice.
        let begins = |word: &[u8]| said.starts_with(word) || word.starts_with(said);
        return match begins(b"UNKNOWN") || begins(b"TCP4 ") || begins(b"TCP6 ") {
            false => Err(Invalid::Protocol),
            true if most.len() == MAX_V1 => Err(Invalid::NoEnd),
            true => Ok(Found::NeedsMore),
        };
    };
    let line = &said[..end];
    let subject = match line.iter().position(|&byte| byte == b' ').map_or((line, &[][..]), |at| line.split_at(at)) {
        (b"TCP4", rest) => addresses::<Ipv4Addr>(rest).ok_or(Invalid::Line)?,
        (b"TCP6", rest) => addresses::<Ipv6Addr>(rest).ok_or(Invalid::Line)?,
        // Whatever else the line says is to be ignored.
        (b"UNKNOWN", _) => Subject::Unknown,
        _ => return Err(Invalid::Protocol),
    };
    let header = Header { version: Version::V1, subject, tlvs: Tlvs::default() };
    Ok(Found::Header(header, BEGIN_V1.len() + end + 2))
}

/// ` 192.0.2.1 192.0.2.2 56324 443`.
fn addresses<Ip: FromStr + Into<IpAddr>>(text: &[u8]) -> Option<Subject> {
    let mut words = std::str::from_utf8(text).ok()?.strip_prefix(' ')?.split(' ');
    let (source, destination) = (words.next()?.parse::<Ip>().ok()?.into(), words.next()?.parse::<Ip>().ok()?.into());
    let (from, to) = (port(words.next()?)?, port(words.next()?)?);
    if words.next().is_some() {
        return None;
    }
    Some(Subject::tcp(SocketAddr::new(source, from), SocketAddr::new(destination, to)))
}

/// A number without signs and without zeroes before it.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

fn read_v2(bytes: &[u8]) -> Result<Found, Invalid> {
    let Some(&command) = bytes.get(BEGIN_V2.len()) else { return Ok(Found::NeedsMore) };
    let local = match (command >> 4, command & 0xf) {
        (2, 0) => true,
        (2, 1) => false,
        (2, other) => return Err(Invalid::Command(other)),
        (other, _) => return Err(Invalid::Version(other)),
    };
    let Some(&family) = bytes.get(BEGIN_V2.len() + 1) else { return Ok(Found::NeedsMore) };
    let pair = match (family >> 4, family & 0xf) {
        (4.., _) if !local => return Err(Invalid::Family(family >> 4)),
        (_, 3..) if !local => return Err(Invalid::Transport(family & 0xf)),
        (1, _) => IPV4_PAIR,
        (2, _) => IPV6_PAIR,
        (3, _) => UNIX_PAIR,
        _ => 0,
    };
    let Some(&[high, low]) = bytes.get(FIXED_V2 - 2..FIXED_V2) else { return Ok(Found::NeedsMore) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if FIXED_V2 + length > MAX_HEADER {
        return Err(Invalid::TooLong(FIXED_V2 + length));
    }
    if length < pair && !local {
        return Err(Invalid::TooShort(length));
    }
    let Some(header) = bytes.get(..FIXED_V2 + length) else { return Ok(Found::NeedsMore) };
    let tlvs = header.get(FIXED_V2 + pair..).and_then(Tlvs::new);
    if let Some(tlvs) = &tlvs {
        check(header, FIXED_V2 + pair, tlvs)?;
    }
    let (subject, tlvs) = if local {
        // Its addresses and TLVs mean nothing, and may be anything.
        (Subject::Local, Tlvs::default())
    } else {
        (subject(family, &header[FIXED_V2..FIXED_V2 + pair]), tlvs.ok_or(Invalid::Overrun)?)
    };
    Ok(Found::Header(Header { version: Version::V2, subject, tlvs }, header.len()))
}

/// What a pair of addresses of this family and transport says. Datagrams don't come over a stream.
fn subject(family: u8, pair: &[u8]) -> Subject {
    let port = |at: usize| u16::from_be_bytes([pair[at], pair[at + 1]]);
    match family {
        0x11 => {
            let ip = |at: usize| Ipv4Addr::new(pair[at], pair[at + 1], pair[at + 2], pair[at + 3]).into();
            Subject::tcp(SocketAddr::new(ip(0), port(8)), SocketAddr::new(ip(4), port(10)))
        }
        0x21 => {
            let ip = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&pair[at..at + 16]);
                Ipv6Addr::from(octets).into()
            };
            Subject::tcp(SocketAddr::new(ip(0), port(32)), SocketAddr::new(ip(16), port(34)))
        }
        0x31 => Subject::Unix,
        _ => Subject::Unknown,
    }
}

/// Fails if a checksum among the TLVs, which begin at `at`, is not that of the header with zeroes in its place.
fn check(header: &[u8], at: usize, tlvs: &Tlvs) -> Result<(), Invalid> {
    let (mut behind, mut found) = (at, None);
    for (kind, value) in tlvs.iter() {
        behind += 3 + value.len();
        if kind == kind::CRC32C {
            if value.len() != CHECKSUM || found.is_some() {
                return Err(Invalid::ChecksumForm);
            }
            found = Some((behind - CHECKSUM, value));
        }
    }
    let Some((at, value)) = found else { return Ok(()) };
    let sum = crc32c::crc32c(&header[..at]);
    let sum = crc32c::crc32c_append(sum, &[0; CHECKSUM]);
    let sum = crc32c::crc32c_append(sum, &header[at + CHECKSUM..]);
    if sum.to_be_bytes() == value { Ok(()) } else { Err(Invalid::Checksum) }
}
