//! The hash of a client, for pools that go by one.
//!
//! Owns what is hashed, and the seed. The same facts have the same hash in every process of every version: what a
//! client finds behind it is `pool::pick::source_hash`'s.

use super::Facts;
use crate::config::{Cidr, Hash};
use crate::name::{ClientAddr, SessionId};
use std::net::IpAddr;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const SEED: u64 = 0;

/// The hash by which a pool with `config` finds the client's backend.
///
/// XXH3 of 64 bits with seed 0, over the 4 or 16 bytes of the client's address with nothing behind the prefix. A client
/// without an address has the hash of its `session`, 8 bytes with the highest first, and so is spread like any other.
#[must_use]
pub fn hash_key(config: &Hash, facts: &Facts<'_>, session: SessionId) -> u64 {
    source(config, facts.client, session)
}

fn source(config: &Hash, client: ClientAddr, session: SessionId) -> u64 {
    let ClientAddr::Tcp(address) = client else { return hash(&session.0.to_be_bytes()) };
    match address.ip() {
        ip @ IpAddr::V4(_) => hash_ip(Cidr::of(ip, config.prefix.ipv4).address),
        ip @ IpAddr::V6(_) => hash_ip(Cidr::of(ip, config.prefix.ipv6).address),
    }
}

fn hash_ip(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => hash(&address.octets()),
        IpAddr::V6(address) => hash(&address.octets()),
    }
}

fn hash(bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, SEED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ListenerName;
    use crate::net::first_bytes::FirstBytes;

    fn key(config: &Hash, client: &str) -> u64 {
        let client = ClientAddr::tcp(client.parse().unwrap());
        hash_key(config, &Facts::new(&ListenerName::new("web"), client, &FirstBytes::default()), SessionId(1))
    }

    /// As XXH3's own library has them: as long as these hold, a client finds its backend again after an upgrade.
    #[test]
    fn golden_vectors() {
        let config = Hash::default();
        assert_eq!(key(&config, "192.0.2.7:4711"), 0x54e8_211e_31db_05c1);
        assert_eq!(key(&config, "[::ffff:192.0.2.7]:1"), 0x54e8_211e_31db_05c1);
        assert_eq!(key(&config, "[2001:db8::1:2:3:4]:4711"), 0x118c_9914_f027_3685, "2001:db8::");
        let (listener, first) = (ListenerName::new("web"), FirstBytes::default());
        let facts = Facts::new(&listener, ClientAddr::Unix, &first);
        assert_eq!(hash_key(&config, &facts, SessionId::new(1, 4_711)), 0x7b3e_4425_a578_d466);
    }

    #[test]
    fn what_is_behind_the_prefix_does_not_count() {
        let mut config = Hash::default();
        config.prefix.ipv4 = 24;
        assert_eq!(key(&config, "10.1.2.3:4711"), 0xe82b_d3ab_a0c0_edbd, "10.1.2.0");
        assert_eq!(key(&config, "10.1.2.3:4711"), key(&config, "10.1.2.250:1"));
        assert_ne!(key(&config, "10.1.2.3:4711"), key(&config, "10.1.3.3:4711"));
        config.prefix.ipv6 = 128;
        assert_ne!(key(&config, "[2001:db8::1]:1"), key(&config, "[2001:db8::2]:1"));
    }
}
