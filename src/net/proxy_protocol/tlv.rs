//! What a header of version 2 carries beside the addresses: values, each with its type and length.

/// The types of values that mean something here.
pub mod kind {
    /// The protocols that the client offers for what is within TLS.
    pub const ALPN: u8 = 0x01;
    /// The host that the client wants: the server name of TLS.
    pub const AUTHORITY: u8 = 0x02;
    /// The checksum of the header.
    pub const CRC32C: u8 = 0x03;
    /// Nothing: padding.
    pub const NOOP: u8 = 0x04;
    /// What identifies the connection, up to 128 bytes.
    pub const UNIQUE_ID: u8 = 0x05;
    /// What the sender knows of the TLS session that it has ended.
    pub const SSL: u8 = 0x20;
}

/// The TLVs of a header, each of them whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tlvs(Box<[u8]>);

impl Tlvs {
    /// `None` if one goes beyond the end of `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        while !rest.is_empty() {
            (_, _, rest) = split(rest)?;
        }
        Some(Self(bytes.into()))
    }

    /// Type and value of each, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (kind, value, behind) = split(rest)?;
            rest = behind;
            Some((kind, value))
        })
    }

    /// The first value of this type.
    #[must_use]
    pub fn get(&self, kind: u8) -> Option<&[u8]> {
        self.iter().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Type, value, and what is behind them.
fn split(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[kind, high, low], rest) = bytes.split_first_chunk::<3>()?;
    let (value, rest) = rest.split_at_checked(u16::from_be_bytes([high, low]).into())?;
    Some((kind, value, rest))
}
