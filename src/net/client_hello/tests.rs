//! The parser on hellos made here, byte by byte where it matters.
//!
//! With other parsers beside it: `tests/client_hello.rs`.

use super::*;

/// An extension.
fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &(content.len() as u16).to_be_bytes(), content].concat()
}

/// A vector behind two bytes with its length.
fn vector(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u16).to_be_bytes()[..], content].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    extension(0, &vector(&[&[0], &*vector(name)].concat()))
}

/// The body of a hello of TLS 1.2 with this behind its compression methods.
fn body(rest: &[u8]) -> Vec<u8> {
    [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 0x01], &[1, 0], rest].concat()
}

fn message(body: &[u8]) -> Vec<u8> {
    [&[1][..], &(body.len() as u32).to_be_bytes()[1..], body].concat()
}

fn record(content: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &vector(content)].concat()
}

fn with_extensions(extensions: &[Vec<u8>]) -> Vec<u8> {
    record(&message(&body(&vector(&extensions.concat()))))
}

fn parse(bytes: &[u8]) -> Outcome {
    Parser::default().read(bytes)
}

fn hello(name: Option<&str>, alpn: &[&str]) -> Outcome {
    let list: Vec<u8> = alpn.iter().flat_map(|offer| [&[offer.len() as u8], offer.as_bytes()].concat()).collect();
    Outcome::Hello(ClientHello { server_name: name.map(Into::into), alpn: Offers(list.into()) })
}

#[test]
fn thousands_of_protocols_take_no_more_room_than_in_the_message() {
    let offers: Vec<u8> = (0..8_000).flat_map(|number| [1, number as u8]).collect();
    let Outcome::Hello(hello) = parse(&with_extensions(&[extension(16, &vector(&offers))])) else { panic!("no hello") };
    assert_eq!((hello.alpn.as_list(), hello.alpn.iter().count()), (&*offers, 8_000));
    assert!(hello.alpn.iter().zip(0_usize..).all(|(offer, number)| *offer == [number as u8]));
}

/// One parser, shown every prefix that ends at one of `step` bytes more.
fn in_steps(bytes: &[u8], step: usize) -> Outcome {
    let mut parser = Parser::default();
    for end in (0..bytes.len()).step_by(step) {
        let outcome = parser.read(&bytes[..end]);
        if outcome != Outcome::NeedsMore {
            return outcome;
        }
    }
    parser.read(bytes)
}

#[track_caller]
fn is_malformed(bytes: &[u8], words: &str) {
    for outcome in [parse(bytes), in_steps(bytes, 1)] {
        let Outcome::Malformed(sentence) = outcome else { panic!("{outcome:?}, wanted: {words}") };
        assert!(sentence.contains(words), "{sentence:?}, wanted: {words}");
    }
}

#[test]
fn what_is_written_is_read() {
    assert_eq!(parse(&write(Some("a.example"), &["h2", "http/1.1"])), hello(Some("a.example"), &["h2", "http/1.1"]));
    assert_eq!(parse(&write(None, &[])), hello(None, &[]));
    assert_eq!(parse(&write(Some("A.Example."), &[])), hello(Some("a.example"), &[]));
}

#[test]
fn every_point_to_cut_at_gives_the_same() {
    let whole = write(Some("a.example"), &["h2"]);
    let expected = hello(Some("a.example"), &["h2"]);
    for cut in 0..whole.len() {
        let mut parser = Parser::default();
        assert_eq!(parser.read(&whole[..cut]), Outcome::NeedsMore, "{cut}");
        assert_eq!(parser.read(&whole), expected, "{cut}");
    }
    assert_eq!(in_steps(&whole, 1), expected);
}

#[test]
fn records_may_be_split_anywhere() {
    let whole = write(Some("a.example"), &["h2"]);
    let (content, expected) = (&whole[5..], hello(Some("a.example"), &["h2"]));
    for size in 1..=content.len() {
        let records: Vec<u8> = content.chunks(size).flat_map(record).collect();
        assert_eq!(parse(&records), expected, "{size}");
        assert_eq!(in_steps(&records, 1), expected, "{size}");
        assert_eq!(parse(&records[..records.len() - 1]), Outcome::NeedsMore, "{size}");
    }
    for cut in 1..content.len() {
        let records = [record(&content[..cut]), record(&content[cut..])].concat();
        assert_eq!(parse(&records), expected, "{cut}");
        assert_eq!(in_steps(&records, 3), expected, "{cut}");
    }
}

#[test]
fn what_follows_in_records_of_its_own_is_not_looked_at() {
    let whole = write(Some("a.example"), &[]);
    for behind in [&[0x14, 3, 3, 0, 1, 1][..], &[0x17, 3, 3, 0x40], b"whatever"] {
        assert_eq!(parse(&[&whole, behind].concat()), hello(Some("a.example"), &[]));
    }
}

#[test]
fn post_quantum_sizes_unknown_extensions_and_grease_are_skipped() {
    let hello_of = |share: usize| {
        with_extensions(&[
            extension(0x0a0a, &[]),
            extension(51, &vector(&[&[0x11, 0xec], &*vector(&vec![9; share])].concat())),
            server_name(b"pq.example"),
            extension(0x1234, b"unknown"),
            extension(16, &vector(b"\x02\x0a\x0a\x02h2")),
            extension(0xfafa, &[0]),
            extension(21, &[0; 300]),
        ])
    };
    let expected =
        ClientHello { server_name: Some("pq.example".into()), alpn: Offers((*b"\x02\x0a\x0a\x02h2").into()) };
    for share in [32, 1_216, 1_800, 12_000] {
        let bytes = hello_of(share);
        assert!(bytes.len() > share);
        assert_eq!(parse(&bytes), Outcome::Hello(expected.clone()), "{share}");
        assert_eq!(in_steps(&bytes, 7), Outcome::Hello(expected.clone()), "{share}");
    }
}

#[test]
fn the_largest_hello_there_can_be_is_read_and_a_larger_one_is_not() {
    let extensions = [server_name(b"a.example"), extension(0x4242, &vec![0; 65_000])];
    let rest = [&[3, 3][..], &[7; 32], &[32], &[1; 32], &vector(&vec![0x13; 65_534]), &[255], &[0; 255]].concat();
    let whole = message(&[rest, vector(&extensions.concat())].concat());
    let records: Vec<u8> = whole.chunks(1 << 14).flat_map(record).collect();
    assert_eq!(parse(&records), hello(Some("a.example"), &[]));
    assert_eq!(in_steps(&records, 1), hello(Some("a.example"), &[]));
    // Known from its header alone.
    is_malformed(&record(&[1, 2, 1, 0x45]), "longer than one can be");
    assert_eq!(parse(&record(&[1, 2, 1, 0x44])), Outcome::NeedsMore);
}

#[test]
fn a_hello_without_extensions_or_with_none_in_their_list_asks_for_nothing() {
    assert_eq!(parse(&record(&message(&body(&[])))), hello(None, &[]));
    assert_eq!(parse(&with_extensions(&[])), hello(None, &[]));
}

#[test]
fn what_does_not_begin_like_a_hello_is_not_tls_as_soon_as_that_is_seen() {
    for (bytes, at) in [
        (&b"GET / HTTP/1.1\r\n"[..], 1),
        // A hello in the style of SSL 2.0.
        (&[0x80, 0x2e, 1, 3, 1, 0, 0x15], 1),
        (&[22, 2, 0, 0, 40, 1], 2),
        (&[22, 3, 1, 0, 0, 1], 5),
        (&[22, 3, 1, 0x40, 1, 1], 5),
        (&[22, 3, 1, 0x41, 0, 1], 4),
        // Another message, another record.
        (&[22, 3, 1, 0, 40, 2], 6),
        (&[21, 3, 1, 0, 2, 2], 1),
    ] {
        assert_eq!(parse(&bytes[..at - 1]), Outcome::NeedsMore, "{bytes:?}");
        for end in at..=bytes.len() {
            assert_eq!(parse(&bytes[..end]), Outcome::NotTls, "{bytes:?}");
        }
    }
}

#[test]
fn names_are_read_as_names_are_compared() {
    let longest = format!("{}.a", "b".repeat(251));
    for (name, expected) in [
        ("a", "a"),
        ("WWW.Example.COM", "www.example.com"),
        ("a.example.", "a.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_dmarc.a_b.example", "_dmarc.a_b.example"),
        ("192.0.2.1", "192.0.2.1"),
        (longest.as_str(), longest.as_str()),
        (&format!("{longest}."), longest.as_str()),
    ] {
        assert_eq!(parse(&with_extensions(&[server_name(name.as_bytes())])), hello(Some(expected), &[]), "{name}");
    }
}

#[test]
fn odd_names_are_malformed() {
    let long = "a".repeat(254);
    for (name, words) in [
        (&b""[..], "empty"),
        (b".", "empty"),
        (b"..", "empty label"),
        (b"a.example..", "empty label"),
        (b".a.example", "empty label"),
        (b"a..example", "empty label"),
        (long.as_bytes(), "longer than 253"),
        (b"a.example\0", "character"),
        (b"a\0.example", "character"),
        (b"*.example", "character"),
        (b"a example", "character"),
        (b"a.example:443", "character"),
        (b"[::1]", "character"),
        (b"a/example", "character"),
        ("b\u{fc}cher.example".as_bytes(), "character"),
        (b"\xff.example", "not ASCII"),
    ] {
        is_malformed(&with_extensions(&[server_name(name)]), words);
    }
}

#[test]
fn a_list_of_names_has_one_host_name() {
    let list = |entries: &[&[u8]]| with_extensions(&[extension(0, &vector(&entries.concat()))]);
    let (a, b) = (&b"\0\0\x09a.example"[..], &b"\0\0\x09b.example"[..]);
    assert_eq!(parse(&list(&[a])), hello(Some("a.example"), &[]));
    is_malformed(&list(&[a, b]), "several servers");
    is_malformed(&list(&[a, a]), "several servers");
    is_malformed(&list(&[a, b"\x01\0\x01x"]), "several servers");
    is_malformed(&list(&[b"\x01\0\x01x", a]), "no host's name");
    is_malformed(&list(&[]), "empty");
    is_malformed(&with_extensions(&[extension(0, &[])]), "ends too early");
    is_malformed(&with_extensions(&[extension(0, &[&*vector(a), &[0]].concat())]), "less than");
}

#[test]
fn protocols_have_names() {
    let list = |content: &[u8]| with_extensions(&[extension(16, &vector(content))]);
    assert_eq!(parse(&list(b"\x02h2\x08http/1.1")), hello(None, &["h2", "http/1.1"]));
    is_malformed(&list(b""), "list of protocols");
    is_malformed(&list(b"\x02h2\0"), "empty name");
    is_malformed(&list(b"\x03h2"), "ends too early");
    is_malformed(&with_extensions(&[extension(16, b"\0\x03\x02h2\0")]), "less than");
}

#[test]
fn an_extension_that_matters_may_not_come_twice() {
    is_malformed(&with_extensions(&[server_name(b"a.example"), server_name(b"b.example")]), "twice");
    let h2 = extension(16, &vector(b"\x02h2"));
    is_malformed(&with_extensions(&[h2.clone(), server_name(b"a.example"), h2]), "twice");
}

#[test]
fn lengths_that_do_not_fit_are_malformed() {
    is_malformed(&record(&message(&[])), "ends too early");
    is_malformed(&record(&message(&body(&[])[..40])), "ends too early");
    is_malformed(&record(&message(&body(&[0]))), "ends too early");
    is_malformed(&record(&message(&body(&[0, 4, 0, 0, 0]))), "ends too early");
    is_malformed(&record(&message(&body(&[0, 0, 0]))), "less than");
    is_malformed(&with_extensions(&[vec![0, 23, 0]]), "ends too early");
    is_malformed(&with_extensions(&[vec![0, 23, 0, 2, 0]]), "ends too early");
    let short = |session: &[u8], ciphers: &[u8], methods: &[u8]| {
        record(&message(&[&[3, 3][..], &[7; 32], session, ciphers, methods].concat()))
    };
    is_malformed(&short(&[[33; 1], [0; 1]].concat(), &[0; 33], &[]), "session id");
    is_malformed(&short(&[0], &[0, 0], &[1, 0]), "ciphers");
    is_malformed(&short(&[0], &[0, 3, 1, 1, 1], &[1, 0]), "ciphers");
    is_malformed(&short(&[0], &[0, 2, 1, 1], &[0]), "compression");
    let mut old = body(&[]);
    old[0] = 2;
    is_malformed(&record(&message(&old)), "no version");
}

#[test]
fn within_the_hello_nothing_else_may_come() {
    let whole = write(Some("a.example"), &[]);
    let content = &whole[5..];
    let begin = record(&content[..20]);
    for (behind, words) in [
        (&[21, 3, 3, 0, 2, 1, 0][..], "another kind"),
        (&[23], "another kind"),
        (&[22, 2], "no version"),
        (&[22, 3, 3, 0, 0], "empty"),
        (&[22, 3, 3, 0x40, 1], "longer than one can be"),
    ] {
        is_malformed(&[&begin, behind].concat(), words);
    }
    is_malformed(&record(&[content, &[0]].concat()), "goes on behind");
    is_malformed(&[begin, record(&[&content[20..], content].concat())].concat(), "goes on behind");
}

#[test]
fn what_does_not_fit_is_written_malformed() {
    is_malformed(&write(Some(&"a".repeat(254)), &[]), "longer than 253");
    for (name, alpn) in [("a".repeat(70_000), "h2".to_owned()), ("a".to_owned(), "x".repeat(300))] {
        let _ = parse(&write(Some(&name), &[alpn.as_str(); 300]));
    }
    assert!(matches!(parse(&write(Some(&"a".repeat(70_000)), &[])), Outcome::Malformed(_)));
}
