//! The facts, with every point to cut at.

use super::*;

const PROTOCOLS: &[(&[u8], Protocol)] = &[
    (b"SSH-", Protocol::Ssh),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Protocol::Http2),
    (b"GET / HTTP/1.1\r\n", Protocol::Http1),
    (b"M-SEARCH * HTTP/1.1\r\n", Protocol::Http1),
    (b"get /a HTTP/1.0\n", Protocol::Http1),
    (b"GET hTTps://a.example HTTP/1.1\r\n", Protocol::Http1),
    (b"CONNECT a.example:443 HTTP/1.1\r\n", Protocol::Http1),
    (b"CONNECT [::1]:443 HTTP/1.1\r\n", Protocol::Http1),
    (b"PRI * HTTP/1.1\r\n", Protocol::Http1),
    (b"GET /a  b HTTP/1.9 \t\r\n", Protocol::Http1),
    (b"\0\0\0\x09\0\x03\0\0", Protocol::Postgres),
    (b"\0\0\x27\x10\0\x03\0\x02", Protocol::Postgres),
    (b"\0\0\0\x08\x04\xd2\x16\x2f", Protocol::Postgres),
    (b"\0\0\0\x08\x04\xd2\x16\x30", Protocol::Postgres),
    (b"\0\0\0\x10\x04\xd2\x16\x2e", Protocol::Postgres),
    (b"\0\0\x01\x0c\x04\xd2\x16\x2e", Protocol::Postgres),
    (b"*1\r\n$", Protocol::Redis),
    (b"*1048576\r\n$", Protocol::Redis),
    (b"\x16\x03\x01\x02\x00\x01", Protocol::Tls),
];

/// What is of no protocol that has a name, known at its last byte and not before.
const OTHERS: &[&[u8]] = &[
    b"SSH\r",
    b"EHLO m",
    b"GET \r",
    b"GET  ",
    b"GET HTTP/",
    b"GET http:/a",
    b"GET /\r\n",
    b"GET /key\r\n",
    b"GET / HTTP/2.0\r\n",
    b"GET / HTTP/1.10\r\n",
    b"GET / HTTP/1.\r\n",
    b"GET / http/1.1\r\n",
    b"DESCRIBE / RTSP/1.0\r\n",
    b"CONNECT /",
    b" ",
    b"\r",
    b"GET\r",
    b"PING\r",
    b"a\0",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG",
    b"PRI * HTTP/2.0\r\n\r\nSN",
    b"\x01",
    b"\0\x01",
    b"\0\0\x28",
    b"\0\0\x27\x11",
    b"\0\0\0\x07",
    b"\0\0\0\x08\0",
    b"\0\0\0\x08\x04\xd2\x16\x2e",
    b"\0\0\0\x09\0\x02",
    b"\0\0\0\x09\x04",
    b"\0\0\x01\x0d\x04",
    b"\0\0\0\x08\x04\xd2\x16\x31",
    b"*0\r",
    b"*-1\r",
    b"**\r",
    b"*1\n",
    b"*1\r\n:",
    b"*12345678\r",
    b"\x16\x02",
    b"\x16\x03\x01\0\0",
    b"\x16\x03\x01\0\x20\x02",
    b"\x80",
];

fn read(bytes: &[u8]) -> FirstBytes {
    let mut first = FirstBytes::default();
    first.push(bytes);
    first
}

fn in_steps(bytes: &[u8], step: usize) -> FirstBytes {
    let mut first = FirstBytes::default();
    bytes.chunks(step).for_each(|chunk| first.push(chunk));
    first
}

/// Everything that can be asked, as text.
fn all_of(first: &FirstBytes) -> String {
    let headers = ["host", "x-tenant", "Cookie", ""].map(|name| first.header(name));
    let http = (first.method(), first.path(), first.host(), headers);
    format!("{:?} {:?} {http:?} {:?}", first.protocol(), first.hello(), first.malformed())
}

#[test]
fn nothing_is_allocated_for_nothing() {
    let first = FirstBytes::default();
    assert_eq!(first.bytes.capacity(), 0);
    assert_eq!(first.protocol(), Known::NeedsMore);
    assert!(matches!(first.reading, Reading::Undecided(0)));
}

#[test]
fn protocols_are_known_by_their_last_byte() {
    for &(bytes, protocol) in PROTOCOLS {
        let mut first = FirstBytes::default();
        for &byte in bytes {
            assert_eq!(first.protocol(), Known::NeedsMore, "{}", first.bytes().escape_ascii());
            first.push(&[byte]);
        }
        assert_eq!(first.protocol(), Known::Yes(protocol), "{}", bytes.escape_ascii());
        assert_eq!(read(bytes).protocol(), Known::Yes(protocol));
        assert_eq!(read(&[bytes, b"whatever\r\n"].concat()).protocol(), Known::Yes(protocol));
    }
}

#[test]
fn other_protocols_are_known_by_the_first_byte_that_does_not_fit() {
    for &bytes in OTHERS {
        let mut first = FirstBytes::default();
        for &byte in bytes {
            assert_eq!(first.protocol(), Known::NeedsMore, "{}", first.bytes().escape_ascii());
            first.push(&[byte]);
        }
        assert_eq!(first.protocol(), Known::Yes(Protocol::Other), "{}", bytes.escape_ascii());
        assert_eq!(read(bytes).protocol(), Known::Yes(Protocol::Other));
        assert_eq!((first.hello(), first.method(), first.malformed()), (Known::No, Known::No, None));
    }
}

#[test]
fn after_the_end_nothing_is_open() {
    let mut nothing = FirstBytes::default();
    nothing.finish();
    assert_eq!((nothing.protocol(), nothing.hello(), nothing.starts_with(b"a")), (Known::No, Known::No, Known::No));
    assert_eq!(nothing.starts_with(b""), Known::Yes(()));
    let hello = client_hello::write(Some("a.example"), &[]);
    for (bytes, protocol) in [
        (&b"GET /a"[..], Protocol::Other),
        (b"GET / HTTP/1.1\r\nHost: a", Protocol::Http1),
        (b"SSH", Protocol::Other),
        (&hello[..5], Protocol::Other),
        (&hello[..60], Protocol::Tls),
    ] {
        let mut first = read(bytes);
        assert_eq!(first.host().yes(), None);
        first.finish();
        assert_eq!(first.protocol(), Known::Yes(protocol));
        assert_eq!((first.hello(), first.host(), first.header("host")), (Known::No, Known::No, Known::No));
        assert_eq!(first.malformed(), None);
        assert_eq!(first.bytes(), bytes);
        assert_eq!(first.into_bytes(), bytes);
    }
}

#[test]
fn a_hello_is_open_only_as_long_as_it_could_be_one() {
    let hello = client_hello::write(Some("a.example"), &["h2"]);
    let mut first = FirstBytes::default();
    for byte in &hello {
        assert_eq!(first.hello(), Known::NeedsMore);
        assert_eq!(first.path(), if first.bytes.is_empty() { Known::NeedsMore } else { Known::No });
        first.push(&[*byte]);
    }
    let known = first.hello().yes().unwrap();
    assert_eq!((known.server_name.as_deref(), known.alpn.as_list()), (Some("a.example"), &b"\x02h2"[..]));
    // A method may still come of it, a hello not.
    assert_eq!((read(b"G").hello(), read(b"G").method()), (Known::No, Known::NeedsMore));
    let broken = read(&client_hello::write(Some("a_\u{fc}.example"), &[]));
    assert_eq!((broken.hello(), broken.protocol()), (Known::No, Known::Yes(Protocol::Tls)));
    assert!(broken.malformed().unwrap().contains("character"));
}

#[test]
fn a_prefix_is_open_as_long_as_it_fits() {
    let mut first = FirstBytes::default();
    assert_eq!((first.starts_with(b""), first.starts_with(b"ab")), (Known::Yes(()), Known::NeedsMore));
    first.push(b"a");
    assert_eq!((first.starts_with(b"ab"), first.starts_with(b"ba")), (Known::NeedsMore, Known::No));
    first.push(b"bc");
    assert_eq!((first.starts_with(b"ab"), first.starts_with(b"abd")), (Known::Yes(()), Known::No));
    first.finish();
    assert_eq!((first.starts_with(b"abc"), first.starts_with(b"abcd")), (Known::Yes(()), Known::No));
}

#[test]
fn a_request_is_known_line_by_line() {
    let text = b"POST /api/x?y=/z HTTP/1.1\r\nX-Tenant:  blue \r\nhOST: A.Example.:8080\r\nEmpty:\r\n\r\nbody";
    let (line, head) = (text.iter().position(|b| *b == b'\n').unwrap() + 1, text.len() - b"body".len());
    let mut first = FirstBytes::default();
    for (at, byte) in text.iter().enumerate() {
        let known = (first.method(), first.path());
        let expected =
            if at < line { (Known::NeedsMore, Known::NeedsMore) } else { (Known::Yes("POST"), Known::Yes("/api/x")) };
        assert_eq!(known, expected, "{at}");
        let known = (first.host(), first.header("x-tenant"), first.header("empty"), first.header("none"));
        let expected = if at < head {
            (Known::NeedsMore, Known::NeedsMore, Known::NeedsMore, Known::NeedsMore)
        } else {
            (Known::Yes("a.example"), Known::Yes("blue"), Known::No, Known::No)
        };
        assert_eq!(known, expected, "{at}");
        first.push(&[*byte]);
    }
    assert_eq!(all_of(&first), all_of(&read(text)));
    assert_eq!(first.header("Host"), Known::Yes("A.Example.:8080"));
}

/// The host of a request with this target and these lines.
#[track_caller]
fn host(target: &str, lines: &str) -> Option<String> {
    let text = format!("GET {target} HTTP/1.1\r\n{lines}\r\n");
    let first = read(text.as_bytes());
    assert_eq!(first.malformed(), None, "{text:?}");
    assert_eq!(all_of(&first), all_of(&in_steps(text.as_bytes(), 1)));
    first.host().yes().map(str::to_owned)
}

#[track_caller]
fn is_malformed(text: &[u8], words: &str) {
    for first in [read(text), in_steps(text, 1), in_steps(text, 3)] {
        let sentence = first.malformed().unwrap_or_else(|| panic!("not malformed: {}", text.escape_ascii()));
        assert!(sentence.contains(words), "{}: {sentence:?}, wanted {words:?}", text.escape_ascii());
        assert_eq!(first.protocol(), Known::Yes(Protocol::Http1));
        assert_eq!((first.method(), first.path(), first.host()), (Known::No, Known::No, Known::No));
        assert_eq!((first.header("host"), first.bytes()), (Known::No, text));
    }
}

#[test]
fn hosts_are_read_as_they_are_compared() {
    for (value, expected) in [
        ("a.example", "a.example"),
        ("A.EXAMPLE", "a.example"),
        ("a.example.", "a.example"),
        ("a.example:8080", "a.example"),
        ("a.example:", "a.example"),
        (" \ta.example\t ", "a.example"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("[2001:DB8:0::1]", "[2001:db8::1]"),
        ("[::1]:8080", "[::1]"),
    ] {
        assert_eq!(host("/", &format!("Host:{value}\r\n")).as_deref(), Some(expected), "{value}");
        assert_eq!(host("/", &format!("A: b\r\nhost: {value}\r\nC: d\r\n")).as_deref(), Some(expected), "{value}");
        let uri = format!("http://{}/x", value.trim());
        assert_eq!(host(&uri, &format!("Host: {value}\r\n")).as_deref(), Some(expected), "{value}");
        assert_eq!(host(&uri, "").as_deref(), Some(expected), "{value}");
    }
    assert_eq!(host("HTTPS://a.example?x", "Host: A.example:443\r\n").as_deref(), Some("a.example"));
    assert_eq!(host("/", ""), None);
    assert_eq!(host("/", "Host:\r\n"), None);
}

#[test]
fn odd_hosts_are_malformed() {
    for (value, words) in [
        ("a b", "character"),
        ("a,b", "character"),
        ("user@a.example", "character"),
        ("a%2eexample", "character"),
        ("b\u{fc}cher.example", "character"),
        ("a..example", "empty label"),
        (":80", "empty"),
        (".", "empty"),
        ("a:b", "port"),
        ("a:80:81", "port"),
        ("a:123456", "port"),
        ("[::1", "bracket"),
        ("[::1]80", "port"),
        ("[]", "IPv6"),
        ("[::1%25eth0]", "IPv6"),
        ("[192.0.2.1]", "IPv6"),
        ("::1", "port"),
    ] {
        is_malformed(format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n").as_bytes(), words);
    }
}

#[test]
fn there_is_one_host() {
    let request = |target: &str, lines: &str| format!("GET {target} HTTP/1.1\r\n{lines}\r\n").into_bytes();
    is_malformed(&request("/", "Host: a\r\nHost: b\r\n"), "twice");
    is_malformed(&request("/", "Host: a\r\nX: y\r\nhost: a\r\n"), "twice");
    is_malformed(&request("/", "Host:\r\nHost: a\r\n"), "twice");
    is_malformed(&request("http://a/", "Host: b\r\n"), "two different hosts");
    is_malformed(&request("http://a/", "Host:\r\n"), "two different hosts");
    is_malformed(&request("http:///x", "Host: a\r\n"), "empty host");
    is_malformed(&request("http://a:b/", ""), "port");
    is_malformed(&request("http://a@b/", ""), "character");
    is_malformed(&request("http://a\\b/", ""), "character");
    is_malformed(b"CONNECT a.example:443 HTTP/1.1\r\nHost: b.example\r\n\r\n", "two different hosts");
    let connect = read(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert_eq!((connect.host(), connect.path()), (Known::Yes("a.example"), Known::No));
}

#[test]
fn paths_are_read_as_they_are_compared() {
    for (target, expected) in [
        ("/", "/"),
        ("/api", "/api"),
        ("/api?x=/../y", "/api"),
        ("/api/?", "/api/"),
        ("//api///x/", "/api/x/"),
        ("/%61pi/%7Ex%2d", "/api/~x-"),
        ("/a%2fb%3a", "/a%2Fb%3A"),
        ("/100%", "/100%"),
        ("/%zz%4", "/%zz%4"),
        ("/a.b/..c/d../...", "/a.b/..c/d../..."),
        ("/b\u{fc}cher", "/b\u{fc}cher"),
        ("*", "*"),
        ("http://a.example", "/"),
        ("http://a.example?x", "/"),
        ("http://a.example/api?x", "/api"),
    ] {
        let first = read(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes());
        assert_eq!(first.path(), Known::Yes(expected), "{target}: {:?}", first.malformed());
    }
    for target in
        ["/..", "/api/../x", "/api/./x", "/.", "/a/%2e%2E/b", "/a/.%2e", "/a%2f..%2fb", "/a/..;x/b", "/a\\..\\b"]
    {
        is_malformed(format!("GET {target} HTTP/1.1\r\n").as_bytes(), "read differently");
    }
    is_malformed(b"GET /a%00b HTTP/1.1\r\n", "read differently");
    is_malformed(b"GET /a#b HTTP/1.1\r\n", "fragment");
    is_malformed(b"GET *a HTTP/1.1\r\n", "neither a path");
}

#[test]
fn what_two_readers_could_read_differently_is_malformed() {
    for (text, words) in [
        (&b"GET / HTTP/1.1\n"[..], "without CR"),
        (b"GET / HTTP/1.1\r\nHost: a\n", "without CR"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\n", "without CR"),
        (b"GET / HTTP/1.1\r\nA: b\rHost: a\r\n", "control"),
        (b"GET / HTTP/1.1\r\r\n", "control"),
        (b"GET / HTTP/1.1\r\nHost: a\0\r\n", "control"),
        (b"GET /\x0b HTTP/1.1\r\n", "control"),
        (b"GET /a b HTTP/1.1\r\n", "three words"),
        (b"GET / HTTP/1.1 \r\n", "three words"),
        (b"GET /\tHTTP/1.1\r\n", "three words"),
        (b"GET /a\tb HTTP/1.1\r\n", "three words"),
        (b"GET /  HTTP/1.1\r\n", "three words"),
        (b"GET /\xff HTTP/1.1\r\n", "UTF-8"),
        (b"GET / HTTP/1.1\r\nA: b\r\n Host: a\r\n", "second line"),
        (b"GET / HTTP/1.1\r\n\tHost: a\r\n", "second line"),
        (b"GET / HTTP/1.1\r\nHost : a\r\n", "character"),
        (b"GET / HTTP/1.1\r\nHo st: a\r\n", "character"),
        (b"GET / HTTP/1.1\r\n: a\r\n", "character"),
        (b"GET / HTTP/1.1\r\nHost\r\n", "no header"),
        (b"GET / HTTP/1.1\r\nH\xc3\xb6st: a\r\n", "character"),
    ] {
        is_malformed(text, words);
    }
}

#[test]
fn a_header_that_is_there_twice_or_is_no_text_is_not_known() {
    let first = read(b"GET / HTTP/1.1\r\nX-Tenant: a\r\nx-tenant: b\r\nY: \xff\r\nZ: \xc3\xbc:\r\n\r\nX: body\r\n");
    assert_eq!((first.header("X-Tenant"), first.header("y"), first.header("x")), (Known::No, Known::No, Known::No));
    assert_eq!(first.header("z"), Known::Yes("\u{fc}:"));
}

#[test]
fn a_huge_head_is_read_however_it_comes() {
    let mut text = b"GET /big HTTP/1.1\r\nHost: a.example\r\n".to_vec();
    while text.len() < 200_000 {
        text.extend(format!("X-{}: {}\r\n", text.len(), "y".repeat(100)).bytes());
    }
    let open = in_steps(&text, 1);
    assert_eq!((open.path(), open.host()), (Known::Yes("/big"), Known::NeedsMore));
    text.extend(b"\r\n");
    assert_eq!(in_steps(&text, 1).host(), Known::Yes("a.example"));
    assert_eq!(read(&text).host(), Known::Yes("a.example"));
}
