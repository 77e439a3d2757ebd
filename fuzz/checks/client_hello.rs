//! What must hold of the `ClientHello` parser for any bytes: one answer however they are cut, and the answer of others.
//!
//! Owns the comparison with two other parsers, rustls's and tls-parser. They may refuse what ours takes (they look at
//! more of it); where they take it, they have to see the same name and the same protocols. Where they take what ours
//! refuses, ours was stricter, which it may be.

use rustls::pki_types::DnsName;
use rustls::server::Acceptor;
use tidegate::net::client_hello::{ClientHello, Outcome, Parser, is_tls, write};
use tls_parser::{TlsExtension, TlsMessage, TlsMessageHandshake};

/// # Panics
/// When something doesn't hold.
pub fn check(bytes: &[u8]) {
    let whole = Parser::default().read(bytes);
    for step in [1, 2, 5, 333] {
        assert_eq!(in_steps(bytes, step), whole, "in steps of {step}");
    }
    // A few points are enough for each of a great many inputs.
    for cut in (0..bytes.len()).step_by(bytes.len() / 16 + 1) {
        let mut parser = Parser::default();
        let first = parser.read(&bytes[..cut]);
        let answer = if first == Outcome::NeedsMore { parser.read(bytes) } else { first };
        assert_eq!(answer, whole, "cut at {cut}");
    }
    match (&whole, is_tls(bytes)) {
        (Outcome::NotTls, Some(false)) | (Outcome::NeedsMore, None | Some(true)) => {}
        (Outcome::Malformed(sentence), Some(true)) => assert!(!sentence.is_empty()),
        (Outcome::Hello(hello), Some(true)) => {
            is_in_form(hello);
            is_what_rustls_sees(bytes, hello);
            is_what_tls_parser_sees(bytes, hello);
            is_written_as_it_is_read(hello);
        }
        (outcome, tls) => panic!("{outcome:?}, but whether it is TLS: {tls:?}"),
    }
}

/// The first answer that isn't open, of one parser that is shown more and more. It must be the last one too.
fn in_steps(bytes: &[u8], step: usize) -> Outcome {
    let mut parser = Parser::default();
    let prefixes = (0..bytes.len()).step_by(step).map(|end| &bytes[..end]).chain([bytes]);
    prefixes
        .map(|prefix| parser.read(prefix))
        .find(|outcome| *outcome != Outcome::NeedsMore)
        .unwrap_or(Outcome::NeedsMore)
}

fn is_in_form(hello: &ClientHello) {
    if let Some(name) = &hello.server_name {
        assert!((1..=253).contains(&name.len()) && !name.starts_with('.') && !name.ends_with('.'), "{name:?}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b)), "{name:?}");
    }
    assert!(hello.alpn.iter().all(|protocol| (1..=255).contains(&protocol.len())));
}

/// What another parser sees: the name, and the protocols.
pub type Seen = (Option<String>, Vec<Vec<u8>>);

/// What rustls sees; nothing where it refuses the hello.
pub fn by_rustls(mut bytes: &[u8]) -> Option<Seen> {
    let mut acceptor = Acceptor::default();
    loop {
        let left = bytes.len();
        // An error is a hello longer than rustls reads.
        acceptor.read_tls(&mut bytes).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            let alpn = hello.alpn().map(|protocols| protocols.map(<[u8]>::to_vec).collect());
            return Some((hello.server_name().map(|name| in_form(name.as_bytes())), alpn.unwrap_or_default()));
        }
        assert!(left > bytes.len(), "rustls needs more");
    }
}

fn is_what_rustls_sees(bytes: &[u8], hello: &ClientHello) {
    let Some((name, alpn)) = by_rustls(bytes) else { return };
    // It knows names of the DNS only: no address, no label of 64 bytes, no label with a hyphen at its end.
    let known = hello.server_name.as_deref().filter(|name| DnsName::try_from(*name).is_ok());
    assert_eq!(name.as_deref(), known, "rustls sees another name");
    assert_eq!(alpn, protocols(hello), "rustls sees other protocols");
}

/// What tls-parser sees; nothing where it can't read all of the hello.
pub fn by_tls_parser(bytes: &[u8]) -> Option<Seen> {
    let message = joined(bytes);
    let (_, message) = tls_parser::parse_tls_message_handshake(&message).ok()?;
    let TlsMessage::Handshake(TlsMessageHandshake::ClientHello(contents)) = message else { return None };
    let extensions = contents.ext.unwrap_or_default();
    let (rest, extensions) = tls_parser::parse_tls_client_hello_extensions(extensions).ok()?;
    let (mut name, mut alpn) = (None, Vec::new());
    for extension in extensions {
        match extension {
            TlsExtension::SNI(names) => name = names.first().map(|(_, name)| in_form(name)),
            TlsExtension::ALPN(protocols) => alpn = protocols.into_iter().map(<[u8]>::to_vec).collect(),
            _ => {}
        }
    }
    rest.is_empty().then_some((name, alpn))
}

fn is_what_tls_parser_sees(bytes: &[u8], hello: &ClientHello) {
    let Some((name, alpn)) = by_tls_parser(bytes) else { return };
    assert_eq!(name.as_deref(), hello.server_name.as_deref(), "tls-parser sees another name");
    assert_eq!(alpn, protocols(hello), "tls-parser sees other protocols");
}

fn protocols(hello: &ClientHello) -> Vec<Vec<u8>> {
    hello.alpn.iter().map(<[u8]>::to_vec).collect()
}

/// The content of all records in a row.
fn joined(mut bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let [22, 3, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        message.extend_from_slice(&rest[..length]);
        bytes = &rest[length..];
    }
    message
}

fn in_form(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name).to_lowercase();
    name.strip_suffix('.').unwrap_or(&name).to_owned()
}

fn is_written_as_it_is_read(hello: &ClientHello) {
    let alpn: Option<Vec<_>> = hello.alpn.iter().map(|protocol| std::str::from_utf8(protocol).ok()).collect();
    if let Some(alpn) = alpn.filter(|alpn| alpn.len() < 200) {
        let written = write(hello.server_name.as_deref(), &alpn);
        assert_eq!(Parser::default().read(&written), Outcome::Hello(hello.clone()));
    }
}
