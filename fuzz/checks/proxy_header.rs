//! What must hold of the reader of PROXY headers for any bytes: one answer however they are cut, the answer of another
//! implementation, and what it has read is what is written.
//!
//! Owns the comparison with proxy-header. It may refuse what ours takes: it knows no family beside its protocols, and
//! takes no LOCAL with a block that isn't its own. Where it takes what ours refuses, ours was stricter (checksums, TLVs
//! that don't end, a header of more than 4 KiB).

use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use tidegate::net::proxy_protocol::{Found, Header, MAX_HEADER, Subject, V2, Version, kind, read, version, write_v1};

/// # Panics
/// When something doesn't hold.
pub fn check(bytes: &[u8]) {
    let whole = read(bytes);
    for end in 0..bytes.len().min(2 * MAX_HEADER) {
        match (read(&bytes[..end]), &whole) {
            (Ok(Found::NeedsMore), whole) => {
                assert!(!matches!(whole, Ok(Found::Header(_, length)) if *length <= end), "more than it had wanted");
            }
            (Err(error), whole) => assert!(whole.is_err(), "{error} after {end} bytes, and then {whole:?}"),
            (Ok(found), whole) => assert_eq!(Ok(&found), whole.as_ref(), "after {end} bytes"),
        }
    }
    match &whole {
        Ok(Found::Header(header, length)) => {
            assert!(*length <= bytes.len() && *length <= MAX_HEADER);
            assert_eq!(version(bytes), Some(header.version));
            is_what_another_sees(bytes, header, *length);
            is_written_as_it_is_read(header);
        }
        Ok(Found::Nothing) => assert_eq!(version(bytes), None),
        Ok(Found::NeedsMore) => assert!(bytes.len() < MAX_HEADER),
        Err(error) => {
            assert!(version(bytes).is_some(), "what begins like nothing can't be broken");
            assert!(!error.to_string().is_empty());
        }
    }
}

fn is_what_another_sees(bytes: &[u8], header: &Header, length: usize) {
    let config = ParseConfig { include_tlvs: true, ..ParseConfig::default() };
    let Ok((theirs, consumed)) = ProxyHeader::parse(bytes, config) else {
        assert!(!matches!(header.subject, Subject::Tcp { .. }), "it sees no {:?}", header.subject);
        return;
    };
    assert_eq!(consumed, length);
    match theirs.proxied_address() {
        Some(address) if address.protocol == Protocol::Stream => {
            assert_eq!(header.subject, Subject::tcp(address.source, address.destination));
        }
        _ => assert!(!matches!(header.subject, Subject::Tcp { .. })),
    }
}

/// Mapped addresses are written as what they mean, and a unix socket's name not at all.
fn is_written_as_it_is_read(header: &Header) {
    let mut made = V2::new(&header.subject);
    let others = |header: &Header| -> Vec<(u8, Vec<u8>)> {
        let others = header.tlvs.iter().filter(|(kind, _)| *kind != kind::CRC32C);
        others.map(|(kind, value)| (kind, value.to_vec())).collect()
    };
    // The longest, of another family, may have no room for all.
    let all = others(header).iter().all(|(kind, value)| made.push(*kind, value));
    let bytes = made.finish(true);
    assert!(bytes.len() <= MAX_HEADER);
    let Ok(Found::Header(again, length)) = read(&bytes) else { panic!("what was written is none: {bytes:?}") };
    let subject = if header.subject == Subject::Unix { Subject::Unknown } else { header.subject };
    assert_eq!((again.version, again.subject, length), (Version::V2, subject, bytes.len()));
    if all && subject != Subject::Local {
        assert_eq!(others(&again), others(header));
    }
    let line = write_v1(&subject);
    assert!(matches!(read(&line), Ok(Found::Header(_, length)) if length == line.len()));
}
