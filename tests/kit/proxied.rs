//! PROXY headers as tests make and read them: by hand, and by an implementation that isn't ours.

use super::conn::Conn;
use proxy_header::{ParseConfig, ProxyHeader};
use std::net::SocketAddr;

/// How a header of version 2 begins.
pub const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Of version 2: this command and family, these addresses, and the TLVs, each by type and value.
pub fn v2(command: u8, family: u8, addresses: &[u8], tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let mut rest = addresses.to_vec();
    for (kind, value) in tlvs {
        rest.push(*kind);
        rest.extend((value.len() as u16).to_be_bytes());
        rest.extend(*value);
    }
    let length = (rest.len() as u16).to_be_bytes();
    [SIGNATURE, &[command, family], &length, &rest].concat()
}

/// The addresses of two IPv4 sockets.
pub fn pair(source: &str, destination: &str) -> Vec<u8> {
    let (source, destination): (SocketAddr, SocketAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let octets = |address: SocketAddr| match address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    [octets(source), octets(destination), ports].concat()
}

/// Of a client that has connected to `destination` from `source`, both IPv4.
pub fn client(source: &str, destination: &str, tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    v2(0x21, 0x11, &pair(source, destination), tlvs)
}

/// What a backend has been told.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// Command and family; 0 in version 1.
    pub command: u8,
    pub family: u8,
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// All but the checksum, which has been checked.
    pub tlvs: Vec<(u8, Vec<u8>)>,
    pub checked: bool,
}

impl Told {
    pub fn source(&self) -> SocketAddr {
        self.addresses.unwrap_or_else(|| panic!("no addresses in {self:?}")).0
    }

    pub fn tlv(&self, kind: u8) -> Option<String> {
        let found = self.tlvs.iter().find(|(found, _)| *found == kind)?;
        Some(String::from_utf8_lossy(&found.1).into_owned())
    }
}

/// Takes a header of version 2 from a connection.
pub fn told(conn: &mut Conn) -> Told {
    let fixed = conn.receive(16);
    assert_eq!(fixed[..12], *SIGNATURE, "no header: {}", fixed.escape_ascii());
    let rest = conn.receive(u16::from_be_bytes([fixed[14], fixed[15]]).into());
    understood(&[fixed, rest].concat())
}

fn understood(bytes: &[u8]) -> Told {
    let length = match bytes[13] >> 4 {
        1 => 12,
        2 => 36,
        _ => 0,
    };
    let (mut at, mut tlvs, mut checked) = (16 + length, Vec::new(), false);
    while at < bytes.len() {
        let (kind, end) = (bytes[at], at + 3 + usize::from(u16::from_be_bytes([bytes[at + 1], bytes[at + 2]])));
        let value = bytes[at + 3..end].to_vec();
        if kind == 3 {
            assert_eq!(end, bytes.len(), "the checksum is the last");
            let mut zeroed = bytes.to_vec();
            zeroed[end - 4..].fill(0);
            assert_eq!(value, crc32c::crc32c(&zeroed).to_be_bytes(), "the checksum is wrong");
            checked = true;
        } else {
            tlvs.push((kind, value));
        }
        at = end;
    }
    let config = ParseConfig { include_tlvs: true, ..ParseConfig::default() };
    let (header, consumed) = ProxyHeader::parse(bytes, config).expect("a header that others understand");
    assert_eq!(consumed, bytes.len());
    let addresses = header.proxied_address().map(|address| (address.source, address.destination));
    Told { command: bytes[12], family: bytes[13], addresses, tlvs, checked }
}

/// Takes a line of version 1 from a connection.
pub fn told_v1(conn: &mut Conn) -> Told {
    let line = conn.line();
    let text = format!("{line}\n");
    let (header, consumed) =
        ProxyHeader::parse(text.as_bytes(), ParseConfig::default()).unwrap_or_else(|_| panic!("no header: {line:?}"));
    assert_eq!(consumed, text.len());
    let addresses = header.proxied_address().map(|address| (address.source, address.destination));
    Told { command: 0, family: 0, addresses, tlvs: Vec::new(), checked: false }
}
