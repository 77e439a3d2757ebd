//! The `ClientHello` parser beside rustls and tls-parser, on hellos of real clients and on what chance makes of them.
//!
//! Owns what the hellos in `fuzz/corpus/` ask for. Here the other parsers have to take what ours takes, so that the
//! comparison can't be about nothing; for any bytes, `fuzz/checks/` says what holds. Next: `tests/corpus.rs`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../fuzz/checks/client_hello.rs"]
mod client_hello;
#[path = "../fuzz/checks/first_bytes.rs"]
mod first_bytes;

use client_hello::{by_rustls, by_tls_parser, check};
use proptest::collection::vec;
use proptest::prelude::*;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion, version};
use std::path::Path;
use std::sync::Arc;
use tidegate::net::client_hello::{Outcome, Parser, write};

/// Ours and the two others, and that every law holds.
#[track_caller]
fn all_three_see(bytes: &[u8], name: Option<&str>, alpn: &[&str]) {
    check(bytes);
    let protocols = alpn.iter().map(|protocol| protocol.as_bytes());
    let Outcome::Hello(hello) = Parser::default().read(bytes) else { panic!("no hello") };
    assert_eq!(hello.server_name.as_deref(), name);
    assert!(hello.alpn.iter().eq(protocols.clone()), "{:?}", hello.alpn);
    let seen = Some((name.map(str::to_owned), protocols.map(<[u8]>::to_vec).collect()));
    assert_eq!(by_rustls(bytes), seen, "by rustls");
    assert_eq!(by_tls_parser(bytes), seen, "by tls-parser");
}

/// The same message in records of at most `size` bytes.
fn in_records_of(size: usize, bytes: &[u8]) -> Vec<u8> {
    let record = |content: &[u8]| [&[22, 3, 1][..], &(content.len() as u16).to_be_bytes(), content].concat();
    bytes[5..].chunks(size).flat_map(record).collect()
}

/// The hello that rustls sends, with these of its groups; the first one's key share is in it.
fn by_a_rustls_client(
    name: &str,
    alpn: &[&str],
    versions: &[&'static SupportedProtocolVersion],
    group: usize,
) -> Vec<u8> {
    let mut provider = ring::default_provider();
    provider.kx_groups.rotate_left(group);
    let config = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions).unwrap();
    let mut config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn hellos_of_rustls_are_read_with_every_kind_of_key_share() {
    let groups = ring::default_provider().kx_groups.len();
    assert!(groups >= 3);
    for versions in [&[&version::TLS13][..], &[&version::TLS12], &[&version::TLS12, &version::TLS13]] {
        for group in 0..groups {
            for alpn in [&[][..], &["h2"], &["h2", "http/1.1"]] {
                let bytes = by_a_rustls_client("WWW.a.example", alpn, versions, group);
                all_three_see(&bytes, Some("www.a.example"), alpn);
                for size in [1, 2, 3, 50, 100] {
                    all_three_see(&in_records_of(size, &bytes), Some("www.a.example"), alpn);
                }
                // An address is no name: none is sent.
                all_three_see(&by_a_rustls_client("192.0.2.1", alpn, versions, group), None, alpn);
            }
        }
    }
}

#[test]
fn what_we_write_is_a_hello_to_others() {
    for (name, alpn) in
        [(Some("a.example"), &["h2", "http/1.1"][..]), (None, &["h2"]), (Some("a.example"), &[]), (None, &[])]
    {
        all_three_see(&write(name, alpn), name, alpn);
    }
}

#[test]
fn hellos_of_curl_openssl_and_chromium_are_read() {
    const WEB: &[&str] = &["h2", "http/1.1"];
    for (file, name, alpn) in [
        ("curl-h2", Some("a.example.com"), WEB),
        ("curl-http1", Some("b.example.com"), &["http/1.1"]),
        ("curl-no-alpn", Some("b.example.com"), &[]),
        ("curl-tls12", Some("a.example.com"), WEB),
        ("curl-address", None, WEB),
        ("curl-trailing-dot", Some("a.example.com"), WEB),
        ("openssl-name", Some("a.example.com"), &[]),
        ("openssl-no-name", None, &[]),
        ("openssl-upper-case", Some("www.example.com"), &[]),
        ("openssl-alpn", Some("a.example.com"), &["h2", "http/1.1", "acme-tls/1"]),
        ("openssl-tls12", Some("a.example.com"), &[]),
        ("openssl-many-groups", Some("a.example.com"), &[]),
        ("chromium", Some("a.example.com"), WEB),
        ("chromium-long-name", Some("a-name-of-some-length-for-a-tenant.eu-central.shops.b.example.com"), WEB),
        ("chromium-address", None, WEB),
    ] {
        let bytes = captured(file);
        println!("{file}: {} bytes", bytes.len());
        all_three_see(&bytes, name, alpn);
        all_three_see(&in_records_of(7, &bytes), name, alpn);
    }
    // With a post-quantum key share it is longer than a segment.
    assert!(captured("chromium").len() > 1_460);
    // rustls refuses a client of TLS 1.0.
    let old = captured("openssl-tls10");
    check(&old);
    assert_eq!(by_tls_parser(&old), Some((Some("a.example.com".to_owned()), Vec::new())));
    assert!(matches!(Parser::default().read(&old), Outcome::Hello(hello) if hello.server_name.is_some()));
    let odd = Parser::default().read(&captured("openssl-odd-name"));
    assert!(matches!(odd, Outcome::Malformed(sentence) if sentence.contains("character")), "{odd:?}");
}

fn captured(file: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/client_hello").join(file)).unwrap()
}

fn name() -> impl Strategy<Value = Option<String>> {
    prop_oneof![Just(None), "[a-z0-9]{1,20}(\\.[a-z0-9_-]{0,9}[a-z]){0,4}".prop_map(Some)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_keep_the_laws(bytes in vec(any::<u8>(), 0..400)) {
        check(&bytes);
        first_bytes::check(&bytes);
    }

    #[test]
    fn a_hello_with_some_bytes_changed_keeps_the_laws(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        cut in any::<prop::sample::Index>(),
        size in 1_usize..600,
        real in prop::sample::select(&["curl-h2", "openssl-alpn", "openssl-tls10", "chromium", "made-sni-two-names"]),
    ) {
        let mut bytes = captured(real);
        for (at, byte) in changes {
            *at.get_mut(&mut bytes) = byte;
        }
        let mut bytes = in_records_of(size, &bytes);
        check(&bytes);
        first_bytes::check(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        check(&bytes);
        first_bytes::check(&bytes);
    }

    #[test]
    fn whatever_is_written_is_read(name in name(), alpn in vec("[a-z0-9/.]{1,12}", 0..6), size in 1_usize..300) {
        let alpn: Vec<&str> = alpn.iter().map(String::as_str).collect();
        let bytes = write(name.as_deref(), &alpn);
        for bytes in [in_records_of(size, &bytes), bytes] {
            check(&bytes);
            let Outcome::Hello(hello) = Parser::default().read(&bytes) else { panic!("no hello") };
            prop_assert_eq!(hello.server_name.as_deref(), name.as_deref());
            prop_assert!(hello.alpn.iter().eq(alpn.iter().map(|protocol| protocol.as_bytes())));
        }
    }

    #[test]
    fn a_request_made_of_odd_pieces_keeps_the_laws(pieces in vec(prop::sample::select(PIECES), 0..14)) {
        let request = [&b"GET /"[..], &pieces.concat(), b"\r\n\r\n"].concat();
        first_bytes::check(&request);
        first_bytes::check(&pieces.concat());
    }
}

/// What requests are made of, and what they should not be made of.
const PIECES: &[&[u8]] = &[
    b"GET ",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\n",
    b"/api",
    b"http://",
    b"a.example",
    b":80",
    b"?",
    b"%2e",
    b"..",
    b"//",
    b"\r\n",
    b"\n",
    b"\r",
    b"Host:",
    b"host: b\r\n",
    b"X-Tenant: blue\r\n",
    b"X-Tenant",
    b" ",
    b"\t",
    b"\0",
    b"\xff",
    b"[::1]",
];
