//! Headers as they are read and written: the examples of the specification, every way in which one is broken, any bytes
//! at all, and another implementation's word for it.

use super::*;
use proptest::prelude::*;
use proxy_header::{ParseConfig, ProxyHeader};

fn tcp(source: &str, destination: &str) -> Subject {
    Subject::tcp(source.parse().unwrap(), destination.parse().unwrap())
}

/// Of version 2, with this command, family, and whatever comes after the length.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = BEGIN_V2.to_vec();
    bytes.extend([command, family]);
    bytes.extend((rest.len() as u16).to_be_bytes());
    bytes.extend(rest);
    bytes
}

const PAIR: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 0x04, 0x01, 0xbb];

/// With these bytes behind the addresses.
fn with_tlvs(tlvs: &[u8]) -> Vec<u8> {
    v2(0x21, 0x11, &[&PAIR, tlvs].concat())
}

#[track_caller]
fn header(bytes: &[u8]) -> Header {
    match read(bytes) {
        Ok(Found::Header(header, length)) => {
            assert_eq!(length, bytes.len(), "of {}", bytes.escape_ascii());
            header
        }
        other => panic!("{other:?} in {}", bytes.escape_ascii()),
    }
}

#[test]
fn a_line_is_read() {
    let longest =
        "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535";
    assert_eq!(longest.len() + 2, MAX_V1);
    for (line, subject) in [
        ("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443", tcp("192.168.0.1:56324", "192.168.0.11:443")),
        ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 0", tcp("255.255.255.255:65535", "255.255.255.255:0")),
        ("PROXY TCP6 2001:db8::1 2001:DB8::2 1 2", tcp("[2001:db8::1]:1", "[2001:db8::2]:2")),
        ("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:202 1 2", tcp("192.0.2.1:1", "192.0.2.2:2")),
        ("PROXY UNKNOWN", Subject::Unknown),
        ("PROXY UNKNOWN whatever \n there is", Subject::Unknown),
        (longest, Subject::Unknown),
    ] {
        let read = header(format!("{line}\r\n").as_bytes());
        assert_eq!(read, Header { version: Version::V1, subject, tlvs: Tlvs::default() }, "{line}");
    }
}

#[test]
fn a_line_that_is_not_as_it_must_be_is_none() {
    for (line, error) in [
        ("PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", Invalid::Line),
        ("PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n", Invalid::Line),
        ("PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n", Invalid::Line),
        ("PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", Invalid::Line),
        ("PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n", Invalid::Line),
        ("PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", Invalid::Line),
        ("PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n", Invalid::Line),
        ("PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n", Invalid::Line),
        ("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n\r\n", Invalid::Line),
        ("PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n", Invalid::Line),
        ("PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n", Invalid::Line),
        ("PROXY TCP6 fe80::1%lo ::2 1 2\r\n", Invalid::Line),
        ("PROXY TCP4\r\n", Invalid::Line),
        ("PROXY UNKNOWNS\r\n", Invalid::Protocol),
        ("PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", Invalid::Protocol),
        ("PROXY \r\n", Invalid::Protocol),
        ("PROXY U4", Invalid::Protocol),
    ] {
        assert_eq!(read(line.as_bytes()), Err(error), "{line:?}");
    }
    let endless = format!("PROXY UNKNOWN {}", "x".repeat(MAX_V1 - 14));
    assert_eq!(read(endless.as_bytes()), Err(Invalid::NoEnd));
    assert_eq!(read(format!("{endless}\r\n").as_bytes()), Err(Invalid::NoEnd), "it ends too late");
    assert_eq!(read(&endless.as_bytes()[..MAX_V1 - 1]), Ok(Found::NeedsMore));
}

#[test]
fn what_is_no_header_is_none_from_the_byte_on_that_tells() {
    for data in ["GET / HTTP/1.1\r\n", "PROXX", "PROXY\r\n", "\r\n\r\nGET", "\r\n\r\n\0\r\nQUIT\r", "\x16\x03\x01"] {
        assert_eq!(read(data.as_bytes()), Ok(Found::Nothing), "{data:?}");
        assert_eq!(version(data.as_bytes()), None);
    }
    for beginning in ["", "P", "PROXY", "PROXY ", "PROXY TCP", "\r", "\r\n\r\n\0\r\nQUIT", "\r\n\r\n\0\r\nQUIT\n\x21"] {
        assert_eq!(read(beginning.as_bytes()), Ok(Found::NeedsMore), "{beginning:?}");
    }
    assert_eq!(version(b"PROXY "), Some(Version::V1));
    assert_eq!(version(BEGIN_V2), Some(Version::V2));
}

#[test]
fn a_binary_header_is_read() {
    let read = header(&with_tlvs(&[kind::NOOP, 0, 0, 0xe0, 0, 2, b'h', b'i', 0xe0, 0, 0]));
    assert_eq!(read.version, Version::V2);
    assert_eq!(read.subject, tcp("192.0.2.1:56324", "192.0.2.2:443"));
    let tlvs: Vec<_> = read.tlvs.iter().collect();
    assert_eq!(tlvs, [(kind::NOOP, &b""[..]), (0xe0, b"hi"), (0xe0, b"")]);
    assert_eq!((read.tlvs.get(0xe0), read.tlvs.get(0xe1)), (Some(&b"hi"[..]), None));

    let mut pair = [0; 36];
    pair[15] = 1;
    // A mapped one.
    pair[26..32].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 2]);
    pair[33] = 7;
    assert_eq!(header(&v2(0x21, 0x21, &pair)).subject, tcp("[::1]:7", "192.0.2.2:0"));
}

#[test]
fn what_says_nothing_of_a_client_is_told_apart() {
    let tlv = [0xe0, 0, 1, 7];
    for (bytes, subject, tlvs) in [
        // Of the sender's own, whatever family and block it has.
        (v2(0x20, 0, &[]), Subject::Local, 0),
        (v2(0x20, 0x11, &PAIR), Subject::Local, 0),
        (v2(0x20, 0x11, &[]), Subject::Local, 0),
        (v2(0x20, 0xff, b"anything at all"), Subject::Local, 0),
        (v2(0x20, 0, &tlv), Subject::Local, 0),
        // Of a client of whom nothing is said that is understood here.
        (v2(0x21, 0, &[]), Subject::Unknown, 0),
        (v2(0x21, 0, &tlv), Subject::Unknown, 1),
        (v2(0x21, 0x10, &[&PAIR[..], &tlv].concat()), Subject::Unknown, 1),
        (v2(0x21, 0x12, &PAIR), Subject::Unknown, 0),
        (v2(0x21, 0x22, &[0; 36]), Subject::Unknown, 0),
        (v2(0x21, 0x32, &[0; 216]), Subject::Unknown, 0),
        (v2(0x21, 0x31, &[&[0; 216][..], &tlv].concat()), Subject::Unix, 1),
    ] {
        let read = header(&bytes);
        assert_eq!((read.subject, read.tlvs.iter().count()), (subject, tlvs), "{}", bytes.escape_ascii());
    }
}

#[test]
fn a_binary_header_that_is_not_as_it_must_be_is_none() {
    let long = |length: u16| [BEGIN_V2, &[0x21, 0x11], &length.to_be_bytes()].concat();
    for (bytes, error) in [
        (v2(0x11, 0x11, &PAIR), Invalid::Version(1)),
        (v2(0x31, 0x11, &PAIR), Invalid::Version(3)),
        (v2(0x22, 0x11, &PAIR), Invalid::Command(2)),
        (v2(0x21, 0x41, &PAIR), Invalid::Family(4)),
        (v2(0x21, 0xf0, &PAIR), Invalid::Family(15)),
        (v2(0x21, 0x13, &PAIR), Invalid::Transport(3)),
        (v2(0x21, 0x11, &PAIR[..11]), Invalid::TooShort(11)),
        (v2(0x21, 0x21, &[0; 35]), Invalid::TooShort(35)),
        (v2(0x21, 0x31, &[0; 215]), Invalid::TooShort(215)),
        // As soon as the length is there.
        (long(u16::MAX), Invalid::TooLong(65_551)),
        (long(4_081), Invalid::TooLong(4_097)),
        (with_tlvs(&[0xe0]), Invalid::Overrun),
        (with_tlvs(&[0xe0, 0]), Invalid::Overrun),
        (with_tlvs(&[0xe0, 0, 1]), Invalid::Overrun),
        (with_tlvs(&[0xe0, 0, 1, 7, 0xe0, 0xff, 0xff, 7]), Invalid::Overrun),
        (v2(0x21, 0, &[7]), Invalid::Overrun),
        (with_tlvs(&[kind::CRC32C, 0, 4, 1, 2, 3, 4]), Invalid::Checksum),
        (with_tlvs(&[kind::CRC32C, 0, 3, 1, 2, 3]), Invalid::ChecksumForm),
        (with_tlvs(&[kind::CRC32C, 0, 4, 0, 0, 0, 0, kind::CRC32C, 0, 4, 0, 0, 0, 0]), Invalid::ChecksumForm),
        (v2(0x20, 0, &[kind::CRC32C, 0, 4, 1, 2, 3, 4]), Invalid::Checksum),
    ] {
        assert_eq!(read(&bytes), Err(error), "{}", bytes.escape_ascii());
    }
    assert_eq!(read(&long(4_080)), Ok(Found::NeedsMore), "the longest");
}

#[test]
fn the_checksum_is_that_of_the_whole_header_wherever_it_stands() {
    // Computed bit by bit from the polynomial: RFC 4960, appendix B.
    let mut bytes = with_tlvs(&[0xe0, 0, 1, 7, kind::CRC32C, 0, 4, 0, 0, 0, 0, 0xe1, 0, 0]);
    let mut sum = u32::MAX;
    for byte in &bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
        }
    }
    let at = 16 + 12 + 4 + 3;
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    assert_eq!(header(&bytes).tlvs.iter().count(), 3);
    for bit in 0..bytes.len() * 8 {
        let mut wrong = bytes.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        assert!(
            !matches!(read(&wrong), Ok(Found::Header(Header { subject: Subject::Tcp { .. }, ref tlvs, .. }, _)) if tlvs.get(kind::CRC32C).is_some())
        );
    }
}

#[test]
fn a_line_is_written() {
    for (subject, line) in [
        (tcp("192.0.2.1:1", "192.0.2.2:2"), "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
        (tcp("[2001:db8::1]:1", "[::]:2"), "PROXY TCP6 2001:db8::1 :: 1 2\r\n"),
        (tcp("[2001:db8::1]:1", "192.0.2.2:2"), "PROXY UNKNOWN\r\n"),
        (Subject::Unix, "PROXY UNKNOWN\r\n"),
        (Subject::Unknown, "PROXY UNKNOWN\r\n"),
    ] {
        assert_eq!(String::from_utf8(write_v1(&subject)).unwrap(), line);
    }
}

#[test]
fn a_binary_header_is_written() {
    let bytes = V2::new(&tcp("192.0.2.1:56324", "192.0.2.2:443")).finish(false);
    assert_eq!(bytes, v2(0x21, 0x11, &PAIR));
    // Two families fit into one.
    let mixed = V2::new(&tcp("192.0.2.1:1", "[2001:db8::1]:2")).finish(false);
    assert_eq!((mixed[13], mixed.len()), (0x21, 52));
    assert_eq!(header(&mixed).subject, tcp("192.0.2.1:1", "[2001:db8::1]:2"));
    for subject in [Subject::Unix, Subject::Unknown] {
        assert_eq!(V2::new(&subject).finish(false), v2(0x21, 0, &[]));
    }
}

#[test]
fn a_connection_of_our_own_is_introduced_as_such() {
    let addresses = Some(("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap()));
    assert_eq!(write_local(Version::V2, addresses), v2(0x20, 0, &[]));
    assert_eq!(write_local(Version::V1, addresses), b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
    assert_eq!(write_local(Version::V1, None), b"PROXY UNKNOWN\r\n");
}

#[test]
fn a_header_grows_no_longer_than_one_that_is_read() {
    let mut made = V2::new(&tcp("192.0.2.1:1", "192.0.2.2:2"));
    let room = MAX_HEADER - 28 - 7;
    assert!(!made.push(0xe0, &vec![0; room - 2]));
    assert!(made.push(0xe0, &vec![0; room - 3]));
    assert!(!made.push(0xe1, b""));
    let bytes = made.finish(true);
    assert_eq!(bytes.len(), MAX_HEADER);
    assert_eq!(header(&bytes).tlvs.iter().count(), 2);
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    let v4 = any::<([u8; 4], u16)>().prop_map(|(ip, port)| (ip, port).into());
    let v6 = any::<([u16; 8], u16)>().prop_map(|(ip, port)| (ip, port).into());
    let mapped = any::<([u8; 4], u16)>()
        .prop_map(|(ip, port)| SocketAddr::new(std::net::Ipv4Addr::from(ip).to_ipv6_mapped().into(), port));
    prop_oneof![v4, v6, mapped]
}

fn any_subject() -> impl Strategy<Value = Subject> {
    let tcp = (any_address(), any_address()).prop_map(|(source, destination)| Subject::tcp(source, destination));
    prop_oneof![8 => tcp, 1 => Just(Subject::Unknown), 1 => Just(Subject::Local)]
}

type Made = (Subject, Vec<(u8, Vec<u8>)>, bool);

fn any_made() -> impl Strategy<Value = Made> {
    let kinds = any::<u8>().prop_filter("the checksum is not pushed", |kind| *kind != kind::CRC32C);
    let tlvs = prop::collection::vec((kinds, prop::collection::vec(any::<u8>(), 0..300)), 0..5);
    (any_subject(), tlvs, any::<bool>())
}

fn make((subject, tlvs, crc32c): &Made) -> Vec<u8> {
    let mut header = V2::new(subject);
    for (kind, value) in tlvs {
        assert!(header.push(*kind, value));
    }
    header.finish(*crc32c)
}

/// Bytes that are a header, nearly one, or nothing of the kind.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let line = any_subject().prop_map(|subject| write_v1(&subject));
    let binary = any_made().prop_map(|made| make(&made));
    let headers = prop_oneof![line, binary];
    let behind = prop::collection::vec(any::<u8>(), 0..20);
    let whole = (headers, behind).prop_map(|(header, behind)| [header, behind].concat());
    let broken = (whole.clone(), any::<(prop::sample::Index, u8)>()).prop_map(|(mut bytes, (at, byte))| {
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes
    });
    let words =
        prop::sample::select(vec!["PROXY ", "TCP4 ", "TCP6 ", "UNKNOWN", " ", "\r\n", "\n", "1.2.3.4", "::1", "80"]);
    let lines = prop::collection::vec(words, 0..10).prop_map(|words| format!("PROXY {}", words.concat()).into_bytes());
    let fixed = (any::<[u8; 4]>(), prop::collection::vec(any::<u8>(), 0..60))
        .prop_map(|(fixed, rest)| [BEGIN_V2, &fixed, &rest].concat());
    prop_oneof![whole, broken, lines, fixed, prop::collection::vec(any::<u8>(), 0..30)]
}

proptest! {
    #[test]
    fn what_is_decided_stays_decided_however_the_bytes_are_cut(bytes in any_bytes()) {
        let whole = read(&bytes);
        if let Ok(Found::Header(_, length)) = &whole {
            prop_assert!(*length <= bytes.len() && *length <= MAX_HEADER);
        }
        for end in 0..bytes.len() {
            match (read(&bytes[..end]), &whole) {
                (Ok(Found::NeedsMore), whole) => {
                    prop_assert!(!matches!(whole, Ok(Found::Header(_, length)) if *length <= end));
                }
                (Err(_), whole) => prop_assert!(whole.is_err()),
                (Ok(found), whole) => prop_assert_eq!(Ok(&found), whole.as_ref()),
            }
        }
    }

    #[test]
    fn what_is_written_is_read(made in any_made(), behind in prop::collection::vec(any::<u8>(), 0..50)) {
        let bytes = make(&made);
        let Ok(Found::Header(header, length)) = read(&[&bytes[..], &behind].concat()) else { panic!("no header") };
        let (subject, tlvs, crc32c) = made;
        prop_assert_eq!((header.subject, length), (subject, bytes.len()));
        let mut read: Vec<_> = header.tlvs.iter().map(|(kind, value)| (kind, value.to_vec())).collect();
        if subject == Subject::Local {
            prop_assert!(read.is_empty());
        } else {
            prop_assert_eq!(read.pop_if(|(kind, _)| crc32c && *kind == kind::CRC32C).is_some(), crc32c);
            prop_assert_eq!(read, tlvs);
        }
        let line = write_v1(&subject);
        let Ok(Found::Header(header, length)) = super::read(&[&line[..], &behind].concat()) else { panic!("no line") };
        prop_assert_eq!(length, line.len());
        match subject {
            Subject::Tcp { source, destination } if source.is_ipv4() == destination.is_ipv4() => {
                prop_assert_eq!(header.subject, subject);
            }
            _ => prop_assert_eq!(header.subject, Subject::Unknown),
        }
    }

    /// What another implementation takes to be a header of a client is one here too, with the same content, and what
    /// it refuses of ours is nothing.
    #[test]
    fn another_implementation_reads_the_same(bytes in any_bytes()) {
        let config = ParseConfig { include_tlvs: true, ..ParseConfig::default() };
        let Ok((theirs, consumed)) = ProxyHeader::parse(&bytes, config) else {
            // It takes no LOCAL with another family's block, and none of families without protocols.
            let ours = read(&bytes);
            prop_assert!(!matches!(ours, Ok(Found::Header(Header { subject: Subject::Tcp { .. }, .. }, _))), "{ours:?}");
            return Ok(());
        };
        let Ok(Found::Header(ours, length)) = read(&bytes) else { return Ok(()) };
        prop_assert_eq!(length, consumed);
        let theirs = theirs.proxied_address().map(|address| (address.protocol, address.source, address.destination));
        match theirs {
            Some((proxy_header::Protocol::Stream, source, destination)) => {
                prop_assert_eq!(ours.subject, Subject::tcp(source, destination));
            }
            _ => prop_assert!(!matches!(ours.subject, Subject::Tcp { .. }), "{:?}", ours.subject),
        }
    }
}
