//! Networks as people write them: an address and the length of its prefix.

use crate::config::findings::Complaint;
use crate::config::words;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network. An IPv4-mapped one is held as the IPv4 network that it means, as clients' addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// With nothing behind the prefix.
    pub address: IpAddr,
    /// In bits.
    pub prefix: u8,
}

/// Where the IPv4 part of an IPv4-mapped IPv6 address begins, in bits.
const MAPPED: u8 = 96;

impl Cidr {
    /// The network of `prefix` bits that `address` is in; as many bits as there are, if that is less.
    #[must_use]
    pub fn of(address: IpAddr, prefix: u8) -> Self {
        match address {
            IpAddr::V4(address) => {
                let prefix = prefix.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Self { address: Ipv4Addr::from_bits(address.to_bits() & mask).into(), prefix }
            }
            IpAddr::V6(address) => {
                let prefix = prefix.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Self { address: Ipv6Addr::from_bits(address.to_bits() & mask).into(), prefix }
            }
        }
    }

    /// Whether `address`, which is no IPv4-mapped one, is in it.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::of(address, self.prefix) == self
    }

    fn canonical(self) -> Self {
        match self.address {
            IpAddr::V6(address) if self.prefix >= MAPPED => match address.to_ipv4_mapped() {
                Some(address) => Self { address: address.into(), prefix: self.prefix - MAPPED },
                None => self,
            },
            _ => self,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// `"10.0.0.0/8"`, `"2001:db8::/32"`, or an address alone.
pub(super) fn parse(text: &str) -> Result<Cidr, Complaint> {
    let quoted = words::quoted(text);
    let not_one = || {
        Complaint::new(format!("{quoted} is not a network"), "write one such as \"10.0.0.0/8\" or \"2001:db8::/32\"")
    };
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| not_one())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => longest,
        Some(prefix) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => match prefix.parse::<u8>() {
            Ok(prefix) if prefix <= longest => prefix,
            _ => {
                let hint = format!("use /0 to /{longest}");
                return Err(Complaint::new(format!("the prefix of {quoted} is out of range"), hint));
            }
        },
        Some(_) => return Err(not_one()),
    };
    let cidr = Cidr::of(address, prefix);
    if cidr.address != address {
        let message = format!("{quoted} says something behind its prefix");
        return Err(Complaint::new(message, format!("write \"{cidr}\", or \"{address}\" for that address alone")));
    }
    if cidr.address.is_unspecified() && cidr.prefix == longest {
        let hint = format!("write \"{address}/0\" for everybody");
        return Err(Complaint::new(format!("{quoted} is the address of nobody"), hint));
    }
    Ok(cidr.canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_shown() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_network_is_told_the_way_out() {
        for (text, complaint) in [
            ("10.0.0.0/33", "the prefix of \"10.0.0.0/33\" is out of range; use /0 to /32"),
            ("::/129", "the prefix of \"::/129\" is out of range; use /0 to /128"),
            (
                "10.1.0.0/8",
                "\"10.1.0.0/8\" says something behind its prefix; write \"10.0.0.0/8\", or \"10.1.0.0\" for that \
                 address alone",
            ),
            ("0.0.0.0", "\"0.0.0.0\" is the address of nobody; write \"0.0.0.0/0\" for everybody"),
            ("::/128", "\"::/128\" is the address of nobody; write \"::/0\" for everybody"),
            ("10.0.0", "\"10.0.0\" is not a network; write one such as \"10.0.0.0/8\" or \"2001:db8::/32\""),
            ("10.0.0.0/+8", "\"10.0.0.0/+8\" is not a network; write one such as \"10.0.0.0/8\" or \"2001:db8::/32\""),
        ] {
            let Complaint { message, hint } = parse(text).unwrap_err();
            assert_eq!(format!("{message}; {hint}"), complaint);
        }
    }

    #[test]
    fn a_network_contains_what_begins_as_it_does() {
        let contains = |network: &str, address: &str| parse(network).unwrap().contains(address.parse().unwrap());
        assert!(contains("10.0.0.0/8", "10.255.0.1"));
        assert!(!contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("0.0.0.0/0", "255.255.255.255"));
        assert!(!contains("0.0.0.0/0", "::1"), "another family");
        assert!(contains("2001:db8::/33", "2001:db8:7fff::"));
        assert!(!contains("2001:db8::/33", "2001:db8:8000::"));
    }
}
