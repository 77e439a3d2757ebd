//! Reads a `ClientHello`: the record layer as bytes come, then the message at once.
//!
//! Owns the walk over records and the message's grammar. Skips what no route asks about, once its lengths are found
//! to fit: ciphers, keys, unknown extensions, GREASE.

use super::{ClientHello, Offers, Outcome, host_name, is_tls};
use std::borrow::Cow;

/// The content type of records with handshake messages.
pub(super) const HANDSHAKE: u8 = 22;
/// The type of the message.
pub(super) const CLIENT_HELLO: u8 = 1;
/// The most bytes in a record that isn't encrypted. Source: RFC 8446 section 5.1.
pub(super) const MAX_RECORD: usize = 1 << 14;
/// The most that the first byte of such a record's length can be.
pub(super) const MAX_RECORD_HIGH: u8 = (MAX_RECORD >> 8) as u8;
/// Of a record: type, version, length.
const RECORD_HEADER: usize = 5;
/// Of a handshake message: type, length.
const MESSAGE_HEADER: usize = 4;
/// The most that the vectors of the message can hold, in bytes: version, random, session id, ciphers, compression
/// methods, extensions, each vector with its length. Source: RFC 8446 section 4.1.2.
const MAX_MESSAGE: usize = 2 + 32 + (1 + 32) + (2 + 65_534) + (1 + 255) + (2 + 65_535);

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// Handshake messages may not come in empty fragments.
pub(super) fn is_record_length(bytes: [u8; 2]) -> bool {
    (1..=MAX_RECORD).contains(&usize::from(u16::from_be_bytes(bytes)))
}

/// Where the reading of a `ClientHello` has come to.
#[derive(Clone, Debug, Default)]
pub struct Parser {
    /// Where the record begins that is read.
    record: usize,
    /// Of that record's content, how much was seen.
    seen: usize,
    /// Of the message, how much was seen.
    message: usize,
    /// The message's first bytes, as far as they were seen.
    header: [u8; MESSAGE_HEADER],
}

impl Parser {
    /// Goes on reading.
    ///
    /// `all` is everything that came, from the first byte, and may only have grown since the last call. After any
    /// answer but [`Outcome::NeedsMore`] there is nothing more to ask.
    pub fn read(&mut self, all: &[u8]) -> Outcome {
        match is_tls(all) {
            None => return Outcome::NeedsMore,
            Some(false) => return Outcome::NotTls,
            Some(true) => {}
        }
        match self.gather(all) {
            Ok(None) => Outcome::NeedsMore,
            Ok(Some(message)) => client_hello(&message).map_or_else(Outcome::Malformed, Outcome::Hello),
            Err(sentence) => Outcome::Malformed(sentence),
        }
    }

    /// The message without its header, once it is complete.
    fn gather<'a>(&mut self, all: &'a [u8]) -> Result<Option<Cow<'a, [u8]>>, &'static str> {
        while let Some((length, content)) = record(&all[self.record..])? {
            let content = &content[..content.len().min(length)];
            let begin = self.message - self.seen;
            while self.message < MESSAGE_HEADER && self.seen < content.len() {
                self.header[self.message] = content[self.seen];
                self.message += 1;
                self.seen += 1;
            }
            if self.message < MESSAGE_HEADER {
                if self.seen < length {
                    return Ok(None);
                }
            } else {
                let [_, length_high, length_middle, length_low] = self.header;
                let total = u32::from_be_bytes([0, length_high, length_middle, length_low]) as usize;
                if total > MAX_MESSAGE {
                    return Err("the ClientHello is longer than one can be");
                }
                let total = total + MESSAGE_HEADER;
                self.seen = content.len().min(total - begin);
                self.message = begin + self.seen;
                if self.message == total {
                    // Nobody sends more before the server has answered, except in records of its own.
                    return if self.seen < length {
                        Err("the record goes on behind the ClientHello")
                    } else {
                        Ok(Some(join(all, total)))
                    };
                }
                if self.seen < length {
                    return Ok(None);
                }
            }
            self.record += RECORD_HEADER + length;
            self.seen = 0;
        }
        Ok(None)
    }
}

/// The length of the content of the record that `bytes` begin with, and all that is there behind its header.
fn record(bytes: &[u8]) -> Result<Option<(usize, &[u8])>, &'static str> {
    if bytes.first().is_some_and(|kind| *kind != HANDSHAKE) {
        return Err("a record of another kind comes within the ClientHello");
    }
    if bytes.get(1).is_some_and(|major| *major != 3) {
        return Err("a record within the ClientHello is of no version of TLS");
    }
    let Some((header, content)) = bytes.split_at_checked(RECORD_HEADER) else { return Ok(None) };
    let length = [header[3], header[4]];
    if !is_record_length(length) {
        return Err("a record within the ClientHello is empty or longer than one can be");
    }
    Ok(Some((u16::from_be_bytes(length).into(), content)))
}

/// The message of `total` bytes, all of which are there, without its header: in place if one record holds it.
fn join(all: &[u8], total: usize) -> Cow<'_, [u8]> {
    let first = usize::from(u16::from_be_bytes([all[3], all[4]]));
    if first == total {
        return Cow::Borrowed(&all[RECORD_HEADER + MESSAGE_HEADER..RECORD_HEADER + total]);
    }
    let (mut message, mut rest) = (Vec::with_capacity(total), all);
    while message.len() < total {
        let length = usize::from(u16::from_be_bytes([rest[3], rest[4]]));
        message.extend_from_slice(&rest[RECORD_HEADER..RECORD_HEADER + length]);
        rest = &rest[RECORD_HEADER + length..];
    }
    message.drain(..MESSAGE_HEADER);
    Cow::Owned(message)
}

const SHORT: &str = "the ClientHello ends too early";

fn client_hello(message: &[u8]) -> Result<ClientHello, &'static str> {
    let mut rest = Reader(message);
    if rest.u16()? >> 8 != 3 {
        return Err("the ClientHello is of no version of TLS");
    }
    let _random = rest.take(32)?;
    if rest.short_vector()?.len() > 32 {
        return Err("the session id in the ClientHello is longer than 32 bytes");
    }
    let ciphers = rest.vector()?;
    if ciphers.is_empty() || ciphers.len() % 2 != 0 {
        return Err("the ClientHello has no list of ciphers");
    }
    if rest.short_vector()?.is_empty() {
        return Err("the ClientHello has no list of compression methods");
    }
    // Before TLS 1.3 there may be none.
    let mut extensions = Reader(if rest.is_empty() { &[] } else { rest.vector()? });
    rest.end()?;
    let (mut server_name, mut alpn) = (None, None);
    while !extensions.is_empty() {
        let (kind, content) = (extensions.u16()?, Reader(extensions.vector()?));
        let twice = match kind {
            SERVER_NAME => server_name.replace(one_name(content)?).is_some(),
            ALPN => alpn.replace(protocols(content)?).is_some(),
            _ => false,
        };
        if twice {
            return Err("the ClientHello has an extension twice");
        }
    }
    Ok(ClientHello { server_name, alpn: alpn.unwrap_or_default() })
}

/// A list of names of different kinds, of which only one kind was ever defined. Servers differ in what they make of a
/// list with anything else: some refuse it, some take the first name, some look no further.
fn one_name(mut content: Reader) -> Result<Box<str>, &'static str> {
    const HOST_NAME: u8 = 0;
    let mut list = Reader(content.vector()?);
    content.end()?;
    if list.is_empty() {
        return Err("the list of server names in the ClientHello is empty");
    }
    if list.u8()? != HOST_NAME {
        return Err("the ClientHello asks for a server by something that is no host's name");
    }
    let name = list.vector()?;
    if !list.is_empty() {
        return Err("the ClientHello asks for several servers at once");
    }
    host_name(name)
}

fn protocols(mut content: Reader) -> Result<Offers, &'static str> {
    let all = content.vector()?;
    content.end()?;
    let mut list = Reader(all);
    while !list.is_empty() {
        if list.short_vector()?.is_empty() {
            return Err("the ClientHello offers a protocol with an empty name");
        }
    }
    if all.is_empty() {
        return Err("the list of protocols in the ClientHello is empty");
    }
    Ok(Offers(all.into()))
}

/// What is still to be read.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    fn end(self) -> Result<(), &'static str> {
        if self.is_empty() { Ok(()) } else { Err("a length in the ClientHello is less than what it is about") }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, &'static str> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, &'static str> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector behind one byte with its length.
    fn short_vector(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.u8()?;
        self.take(length.into())
    }

    /// A vector behind two bytes with its length.
    fn vector(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.u16()?;
        self.take(length.into())
    }
}
