//! What must hold of the first bytes for any bytes: the same answers however they are cut, and none that is taken back.
//!
//! Owns the comparison with another parser of HTTP/1 heads, httparse: what ours knows of a whole head, it sees too.

use tidegate::net::client_hello::ClientHello;
use tidegate::net::first_bytes::{FirstBytes, Known, Protocol};

/// # Panics
/// When something doesn't hold.
pub fn check(bytes: &[u8]) {
    let mut whole = FirstBytes::default();
    whole.push(bytes);
    assert_eq!(whole.bytes(), bytes);
    for step in [1, 3, 100] {
        let cut = in_steps(bytes, step);
        assert_eq!(Answers::of(&cut), Answers::of(&whole), "in steps of {step}");
        assert_eq!(cut.bytes(), bytes);
    }
    // A few points are enough for each of a great many inputs.
    for cut in (0..bytes.len()).step_by(bytes.len() / 16 + 1) {
        let mut first = FirstBytes::default();
        first.push(&bytes[..cut]);
        first.push(&bytes[cut..]);
        assert_eq!(Answers::of(&first), Answers::of(&whole), "cut at {cut}");
    }
    if whole.malformed().is_some() {
        assert!(matches!(whole.protocol(), Known::Yes(Protocol::Tls | Protocol::Http1)));
        assert_eq!((whole.hello(), whole.method(), whole.path()), (Known::No, Known::No, Known::No));
        assert_eq!((whole.host(), whole.header("host")), (Known::No, Known::No));
    }
    if let (Known::Yes(method), Known::Yes(())) = (whole.method(), head_is_complete(&whole)) {
        is_what_httparse_sees(bytes, method, &whole);
    }
    let before = Answers::of(&whole).protocol;
    whole.finish();
    let after = Answers::of(&whole);
    assert!(!after.is_open(), "{after:?}");
    assert!(before == Known::NeedsMore || before == after.protocol);
    assert_eq!(after.protocol == Known::No, bytes.is_empty());
    assert_eq!(whole.into_bytes(), bytes);
}

/// All that can be asked.
#[derive(Debug, PartialEq)]
struct Answers<'a> {
    protocol: Known<Protocol>,
    hello: Known<&'a ClientHello>,
    http: [Known<&'a str>; 4],
    prefixes: [Known<()>; 3],
    malformed: Option<&'static str>,
}

impl<'a> Answers<'a> {
    fn of(first: &'a FirstBytes) -> Self {
        Self {
            protocol: first.protocol(),
            hello: first.hello(),
            http: [first.method(), first.path(), first.host(), first.header("X-Tenant")],
            prefixes: [&b"SSH-"[..], b"GET /", &[22, 3, 1]].map(|prefix| first.starts_with(prefix)),
            malformed: first.malformed(),
        }
    }

    fn is_open(&self) -> bool {
        self.protocol == Known::NeedsMore
            || self.hello == Known::NeedsMore
            || self.http.contains(&Known::NeedsMore)
            || self.prefixes.contains(&Known::NeedsMore)
    }

    /// Nothing that was known has become something else, but for a request that has turned out to be malformed.
    fn is_kept_by(&self, later: &Self) {
        fn kept<T: PartialEq + std::fmt::Debug>(now: &Known<T>, later: &Known<T>) {
            assert!(*now == Known::NeedsMore || now == later, "{now:?} became {later:?}");
        }
        kept(&self.protocol, &later.protocol);
        kept(&self.hello, &later.hello);
        self.prefixes.iter().zip(&later.prefixes).for_each(|(now, later)| kept(now, later));
        if later.malformed.is_none() {
            self.http.iter().zip(&later.http).for_each(|(now, later)| kept(now, later));
        }
        assert!(self.malformed.is_none() || self.malformed == later.malformed);
    }
}

fn in_steps(bytes: &[u8], step: usize) -> FirstBytes {
    let mut first = FirstBytes::default();
    for chunk in bytes.chunks(step) {
        // As often as a copy can be paid.
        let before = (bytes.len() < 200 || step == 100).then(|| first.clone());
        first.push(chunk);
        if let Some(before) = before {
            Answers::of(&before).is_kept_by(&Answers::of(&first));
        }
    }
    first
}

/// A header that can't be there is known not to be.
fn head_is_complete(first: &FirstBytes) -> Known<()> {
    match first.header(":") {
        Known::No => Known::Yes(()),
        Known::Yes(value) => panic!("a header without a name: {value:?}"),
        Known::NeedsMore => Known::NeedsMore,
    }
}

fn is_what_httparse_sees(bytes: &[u8], method: &str, first: &FirstBytes) {
    let lines = bytes.split(|byte| *byte == b'\n').count();
    let mut headers = vec![httparse::EMPTY_HEADER; lines];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(status) => assert!(status.is_complete(), "httparse needs more"),
        // Ours leaves the minor version to the backend.
        Err(httparse::Error::Version) => return,
        Err(error) => panic!("httparse: {error}"),
    }
    assert_eq!(request.method, Some(method));
    let target = request.path.unwrap_or_default();
    if let (Known::Yes(path), true) = (first.path(), target.starts_with('/')) {
        let comparable = !target.contains("//") && !target.contains('%');
        assert!(!comparable || target.split('?').next() == Some(path), "{target:?} as {path:?}");
    }
    let of = |name: &str| -> Vec<&[u8]> {
        let named = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value).collect()
    };
    let tenant = of("x-tenant");
    if let Known::Yes(value) = first.header("X-Tenant") {
        assert_eq!(tenant, [value.as_bytes()]);
    } else {
        let unusable = |value: &&[u8]| value.is_empty() || std::str::from_utf8(value).is_err();
        assert!(tenant.len() != 1 || tenant.iter().all(unusable), "{tenant:?}");
    }
    let hosts = of("host");
    match (first.host(), &*hosts) {
        (Known::Yes(host), [value]) => {
            let value = String::from_utf8_lossy(value).to_lowercase();
            // An IPv6 address has more than one form.
            assert!(
                host.starts_with('[') && value.starts_with('[') || value.starts_with(host),
                "{value:?} as {host:?}"
            );
        }
        (Known::Yes(_), []) => assert!(!target.starts_with(['/', '*']), "a host out of nothing"),
        (Known::No, [] | [[]]) => {}
        (host, hosts) => panic!("{hosts:?} as {host:?}"),
    }
}
