//! The first message of a TLS client: which server it asks for, and which protocols it would speak there.
//!
//! Owns what of a `ClientHello` decides a route: the server's name and the ALPN list. Decides nothing about versions,
//! ciphers and keys: the backend does. Sans-io: [`Parser`] is shown everything that came so far, as often as more has
//! come, and goes on where it stopped.
//!
//! Invariants: however the bytes are cut, into segments or into records, the answer is the same, and the work is
//! linear in them. Until the message is complete nothing is kept of it; then at most one copy is made, where it came
//! in several records. What two servers could read differently is malformed.
//!
//! Sources: RFC 8446 sections 4.1.2, 4.2 and 5.1, RFC 6066 section 3, RFC 7301 section 3.1. Next: `parse`, `write`.

mod parse;
#[cfg(test)]
mod tests;
mod write;

pub use parse::Parser;
pub use write::write;

/// What a `ClientHello` says that a route can ask about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// In lower case, without a dot at its end. `None`: the client asks for no server by name.
    pub server_name: Option<Box<str>>,
    /// What the client offers; empty if it offers nothing.
    pub alpn: Offers,
}

/// The protocols that a client offers by ALPN, in its order. As many as there are, they take no more room than in the
/// message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offers(Box<[u8]>);

impl Offers {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (&length, behind) = rest.split_first()?;
            let (offer, behind) = behind.split_at_checked(length.into())?;
            rest = behind;
            Some(offer)
        })
    }

    /// The list as it is in the message: each behind a byte with its length.
    #[must_use]
    pub fn as_list(&self) -> &[u8] {
        &self.0
    }
}

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    NeedsMore,
    NotTls,
    Hello(ClientHello),
    /// It began like a `ClientHello`; a sentence says what is wrong.
    Malformed(&'static str),
}

/// Whether these first bytes are those of a `ClientHello`: a record of handshake messages of SSL 3.0 or later, within
/// the size that a record may have, whose first message is of that type. `None` as long as they could be.
///
/// A hello in the style of SSL 2.0 is none.
#[must_use]
pub fn is_tls(bytes: &[u8]) -> Option<bool> {
    let fits = |at: usize, good: fn(u8) -> bool| bytes.get(at).map(|byte| good(*byte));
    // The second byte of the version is to be ignored.
    for fit in [fits(0, |b| b == parse::HANDSHAKE), fits(1, |b| b == 3), fits(3, |b| b <= parse::MAX_RECORD_HIGH)] {
        if fit != Some(true) {
            return fit;
        }
    }
    let length = [*bytes.get(3)?, *bytes.get(4)?];
    if !parse::is_record_length(length) {
        return Some(false);
    }
    fits(5, |byte| byte == parse::CLIENT_HELLO)
}

/// A host's name as names are compared here: in lower case, one dot at its end cut.
///
/// Malformed: an empty name or label, more than 253 bytes, anything but ASCII letters, digits, `-`, `_` and `.`.
pub(super) fn host_name(name: &[u8]) -> Result<Box<str>, &'static str> {
    /// RFC 1035 section 2.3.4: 255 bytes with the lengths of the labels, which is 253 as text.
    const MAX_NAME: usize = 253;
    let name = name.strip_suffix(b".").unwrap_or(name);
    if name.is_empty() {
        return Err("the host's name is empty");
    }
    if name.len() > MAX_NAME {
        return Err("the host's name is longer than 253 bytes");
    }
    if name.split(|byte| *byte == b'.').any(<[u8]>::is_empty) {
        return Err("the host's name has an empty label");
    }
    let name = std::str::from_utf8(name).map_err(|_| "the host's name is not ASCII")?;
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err("the host's name has a character that no host's name has");
    }
    Ok(name.to_ascii_lowercase().into())
}
