//! What a short connection begins with: bytes of nothing in particular, a TLS hello, or a PROXY header before them.
//!
//! The backends take PROXY headers off (`server.rs`) and send everything else back, a hello as well.

use serde::{Deserialize, Serialize};

use crate::server::PROXY_SIGNATURE;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum First {
    #[default]
    Message,
    /// A `ClientHello` for `HELLO_NAME`, with which a route by the server's name can be found.
    Hello,
    /// A PROXY header of version 2, in one segment with the message.
    Proxied,
}

/// What the hello asks for.
const HELLO_NAME: &str = "shop.example.com";

/// A hello is padded to this, about what clients without post-quantum keys send.
const HELLO_BYTES: usize = 517;

impl First {
    /// What goes, and how many bytes of it come back.
    pub fn request(self, bytes: usize) -> (Vec<u8>, usize) {
        let message = vec![b'e'; bytes];
        match self {
            Self::Message => (message, bytes),
            Self::Hello => (hello(), HELLO_BYTES),
            Self::Proxied => ([proxy_header(), message].concat(), bytes),
        }
    }
}

/// TCP over IPv4, from 192.0.2.1:40000 to 192.0.2.2:443.
pub fn proxy_header() -> Vec<u8> {
    let addresses = [192, 0, 2, 1, 192, 0, 2, 2, 0x9c, 0x40, 0x01, 0xbb];
    [&PROXY_SIGNATURE[..], &[0x21, 0x11, 0, addresses.len() as u8], &addresses].concat()
}

/// RFC 8446, section 4.1.2, padded by RFC 7685.
fn hello() -> Vec<u8> {
    let with_length = |content: &[u8]| [&(content.len() as u16).to_be_bytes()[..], content].concat();
    let extension = |kind: u16, content: &[u8]| [kind.to_be_bytes().to_vec(), with_length(content)].concat();
    let name = [&[0], &with_length(HELLO_NAME.as_bytes())[..]].concat();
    let mut extensions = [
        extension(0, &with_length(&name)),
        extension(10, &with_length(&[0, 0x1d])),
        extension(13, &with_length(&[4, 3, 8, 4, 4, 1])),
        extension(16, &with_length(b"\x02h2\x08http/1.1")),
        extension(43, &[2, 3, 4]),
        extension(51, &with_length(&[])),
    ]
    .concat();
    // Version, random, no session, one cipher, no compression.
    let fixed = [&[3, 3][..], &[0x5a; 32], &[0], &[0, 2, 0x13, 0x01], &[1, 0]].concat();
    // Before the extensions: the record's header, the message's, `fixed`, and the length of the extensions.
    let before = 5 + 4 + fixed.len() + 2;
    let padding = HELLO_BYTES - before - extensions.len() - 4;
    extensions.extend(extension(21, &vec![0; padding]));
    let body = [fixed, with_length(&extensions)].concat();
    let message = [&[1, 0][..], &with_length(&body)].concat();
    [&[22, 3, 1][..], &with_length(&message)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_has_its_length_and_its_name() {
        let (hello, answer) = First::Hello.request(64);
        assert_eq!((hello.len(), answer), (HELLO_BYTES, HELLO_BYTES));
        assert_eq!(usize::from(u16::from_be_bytes([hello[3], hello[4]])), HELLO_BYTES - 5);
        assert!(hello.windows(HELLO_NAME.len()).any(|part| part == HELLO_NAME.as_bytes()));
    }
}
