//! Writes a minimal `ClientHello`: for those who ask what would become of one, and for tests.
//!
//! Owns the choice of what is minimal: what TLS 1.3 demands of every client, with one cipher and one group, and no
//! share of a key yet, for which a server would ask. Next: `parse`, which reads it.

use super::parse::{CLIENT_HELLO, HANDSHAKE, MAX_RECORD};

/// A `ClientHello` that asks for this server and offers these protocols, in as many records as it needs.
///
/// What no `ClientHello` can hold (a name of 64 KiB) is cut at the end, which leaves a malformed one.
#[must_use]
pub fn write(server_name: Option<&str>, alpn: &[&str]) -> Vec<u8> {
    let mut extensions = Vec::new();
    if let Some(name) = server_name {
        let mut entry = vec![0];
        vector(&mut entry, name.as_bytes());
        extension(&mut extensions, 0, &entry);
    }
    if !alpn.is_empty() {
        let mut list = Vec::new();
        for protocol in alpn {
            short_vector(&mut list, protocol.as_bytes());
        }
        extension(&mut extensions, 16, &list);
    }
    // supported_groups: x25519.
    extension(&mut extensions, 10, &[0x00, 0x1d]);
    // signature_algorithms: ecdsa_secp256r1_sha256, rsa_pss_rsae_sha256, rsa_pkcs1_sha256, ed25519.
    extension(&mut extensions, 13, &[0x04, 0x03, 0x08, 0x04, 0x04, 0x01, 0x08, 0x07]);
    // supported_versions: TLS 1.3. Its list is one with a short length.
    extensions.extend([0x00, 0x2b, 0x00, 0x03, 0x02, 0x03, 0x04]);
    // key_share: none.
    extension(&mut extensions, 51, &[]);

    let mut body = vec![0x03, 0x03];
    body.extend([0x5a; 32]);
    short_vector(&mut body, &[]);
    // TLS_AES_128_GCM_SHA256.
    vector(&mut body, &[0x13, 0x01]);
    short_vector(&mut body, &[0]);
    vector(&mut body, &extensions);

    // Its vectors bound it far below what three bytes can say.
    let [_, high, middle, low] = (body.len() as u32).to_be_bytes();
    let mut message = vec![CLIENT_HELLO, high, middle, low];
    message.extend(body);
    let mut records = Vec::with_capacity(message.len() + 5);
    for content in message.chunks(MAX_RECORD) {
        records.extend([HANDSHAKE, 0x03, 0x01]);
        vector(&mut records, content);
    }
    records
}

/// An extension whose content is one list.
fn extension(out: &mut Vec<u8>, kind: u16, list: &[u8]) {
    let mut content = Vec::new();
    vector(&mut content, list);
    out.extend(kind.to_be_bytes());
    vector(out, &content);
}

fn vector(out: &mut Vec<u8>, content: &[u8]) {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    out.extend(length.to_be_bytes());
    out.extend(&content[..length.into()]);
}

fn short_vector(out: &mut Vec<u8>, content: &[u8]) {
    let length = u8::try_from(content.len()).unwrap_or(u8::MAX);
    out.push(length);
    out.extend(&content[..length.into()]);
}
