//! Which protocol some first bytes are.
//!
//! Owns the signs by which each protocol is known. No two of them begin alike for long, and each says no as soon as a
//! byte doesn't fit: bytes are open only as long as they could still become one of the protocols. Sources beside each.

use super::{Known, Protocol};
use crate::net::client_hello;
use std::ops::RangeInclusive;

/// `searched` is how far the first line was searched for its end: kept from one call to the next. `No`: none of those
/// that have a name.
pub(super) fn protocol(bytes: &[u8], searched: &mut usize) -> Known<Protocol> {
    let tls = client_hello::is_tls(bytes).map_or(Known::NeedsMore, yes_if);
    let mut open = false;
    for (fit, protocol) in [
        (tls, Protocol::Tls),
        (starts_with(bytes, b"SSH-"), Protocol::Ssh),
        (starts_with(bytes, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Protocol::Http2),
        (http1(bytes, searched), Protocol::Http1),
        (postgres(bytes), Protocol::Postgres),
        (redis(bytes), Protocol::Redis),
    ] {
        match fit {
            Known::Yes(()) => return Known::Yes(protocol),
            Known::No => {}
            Known::NeedsMore => open = true,
        }
    }
    if open { Known::NeedsMore } else { Known::No }
}

fn yes_if(fits: bool) -> Known<()> {
    if fits { Known::Yes(()) } else { Known::No }
}

pub(super) fn starts_with(bytes: &[u8], prefix: &[u8]) -> Known<()> {
    if bytes.len() < prefix.len() && prefix.starts_with(bytes) {
        Known::NeedsMore
    } else {
        yes_if(bytes.starts_with(prefix))
    }
}

/// A request line (RFC 9112 section 3): decided at its end, by the version. Before that a line of another protocol is
/// known by a word that is no method, or by what is behind it.
pub(super) fn http1(bytes: &[u8], searched: &mut usize) -> Known<()> {
    /// The longest that IANA has registered is of 17 bytes.
    const MAX_METHOD: usize = 32;
    let method = bytes.iter().take(MAX_METHOD + 1).position(|byte| !is_token(*byte));
    let target = match method {
        None if bytes.len() <= MAX_METHOD => return Known::NeedsMore,
        Some(length) if length > 0 && bytes[length] == b' ' => &bytes[length + 1..],
        _ => return Known::No,
    };
    let begin = if bytes.starts_with(b"CONNECT ") { authority_begins(target) } else { target_begins(target) };
    if begin != Known::Yes(()) {
        return begin;
    }
    let Some(end) = bytes[*searched..].iter().position(|byte| *byte == b'\n') else {
        *searched = bytes.len();
        return Known::NeedsMore;
    };
    // Some readers overlook spaces at the end; `head` calls them malformed.
    let line = bytes[..*searched + end].trim_ascii_end();
    let version = line.rsplit(u8::is_ascii_whitespace).next().unwrap_or_default();
    yes_if(version.strip_prefix(b"HTTP/1.").is_some_and(|minor| minor.len() == 1 && minor[0].is_ascii_digit()))
}

/// A path, `*`, or a URI with a scheme of HTTP.
fn target_begins(target: &[u8]) -> Known<()> {
    match target.first() {
        None => Known::NeedsMore,
        Some(b'/' | b'*') => Known::Yes(()),
        Some(_) => {
            let scheme = target[..target.len().min(8)].to_ascii_lowercase();
            match (starts_with(&scheme, b"http://"), starts_with(&scheme, b"https://")) {
                (Known::Yes(()), _) | (_, Known::Yes(())) => Known::Yes(()),
                (Known::No, Known::No) => Known::No,
                _ => Known::NeedsMore,
            }
        }
    }
}

fn authority_begins(target: &[u8]) -> Known<()> {
    target.first().map_or(Known::NeedsMore, |byte| yes_if(byte.is_ascii_alphanumeric() || b"[_".contains(byte)))
}

/// A character of a token: a method, a header's name. Source: RFC 9110 section 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A length and a version, or a length and a code in its place.
///
/// Source: the PostgreSQL manual, "Message Formats"; lengths: `ProcessStartupPacket()` in its `backend_startup.c`.
fn postgres(bytes: &[u8]) -> Known<()> {
    /// The longest message that the server takes, in bytes.
    const MAX: u32 = 10_000;
    /// Of a request to cancel: its key is of 4 bytes, and of up to 256 since version 3.2.
    const CANCEL: RangeInclusive<u32> = 16..=12 + 256;
    const CODES: u32 = 1_234 << 16;
    let openings = [
        // Version 3 of any minor number.
        (9..=MAX, 3 << 16..=(3 << 16 | 0xffff)),
        (CANCEL, CODES + 5_678..=CODES + 5_678),
        // TLS and GSS encryption.
        (8..=8, CODES + 5_679..=CODES + 5_680),
    ];
    let mut answer = Known::No;
    for (lengths, codes) in openings {
        match word_within(bytes, &lengths) {
            Known::Yes(()) => match word_within(&bytes[4..], &codes) {
                Known::No => {}
                fit => answer = fit,
            },
            Known::No => {}
            Known::NeedsMore => answer = Known::NeedsMore,
        }
    }
    answer
}

/// Whether a number of 32 bits, of which the first bytes may be all that is there, is one of these.
fn word_within(bytes: &[u8], range: &RangeInclusive<u32>) -> Known<()> {
    let known = &bytes[..bytes.len().min(4)];
    let (mut least, mut most) = ([0; 4], [0xff; 4]);
    least[..known.len()].copy_from_slice(known);
    most[..known.len()].copy_from_slice(known);
    if u32::from_be_bytes(most) < *range.start() || u32::from_be_bytes(least) > *range.end() {
        Known::No
    } else if known.len() == 4 {
        Known::Yes(())
    } else {
        Known::NeedsMore
    }
}

/// An array of at least one string: `*2\r\n$`. Source: the Redis serialization protocol specification.
fn redis(bytes: &[u8]) -> Known<()> {
    /// The most digits that the server takes: its arrays have at most 1,048,576 entries.
    const MAX_DIGITS: usize = 7;
    let Some((star, rest)) = bytes.split_first() else { return Known::NeedsMore };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let first = rest.first().copied();
    if *star != b'*' || digits > MAX_DIGITS || first.is_some_and(|digit| !(b'1'..=b'9').contains(&digit)) {
        return Known::No;
    }
    match &rest[digits..] {
        [] => Known::NeedsMore,
        end => starts_with(end, b"\r\n$"),
    }
}
