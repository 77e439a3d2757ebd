//! The hash of a client, for pools that go by one.
//!
//! Owns what is hashed, and the seed. The same facts have the same hash in every process of every version: what a
//! client finds behind it is `pool::pick::source_hash`'s.

use super::Facts;
use super::routes::known;
use crate::config::{Cidr, Hash, HashKey};
use crate::name::ClientAddr;
use crate::net::first_bytes::{Known, Protocol};
use std::net::IpAddr;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const SEED: u64 = 0;

/// The hash by which a pool with `config` finds the client's backend: XXH3 of 64 bits with seed 0 over the text of the
/// key, or, where the client has no such thing, over its address.
///
/// Of an address that is the 4 or 16 bytes, with nothing behind the prefix. A client without one has a number by chance
/// instead, 8 bytes with the highest first, and so is spread like any other. Never no; needs more as long as the key
/// may still come.
#[must_use]
pub fn hash_key(config: &Hash, facts: &Facts<'_>) -> Known<u64> {
    match hashed(config, facts) {
        Known::Yes(text) => Known::Yes(hash(text.as_bytes())),
        Known::No => Known::Yes(of_source(config, facts)),
        Known::NeedsMore => Known::NeedsMore,
    }
}

/// The text that is hashed; no where it is the client's address.
#[must_use]
pub fn hashed<'f>(config: &Hash, facts: &Facts<'f>) -> Known<&'f str> {
    let first = facts.first;
    match &config.key {
        HashKey::Source => Known::No,
        HashKey::Sni => match known(facts, Protocol::Tls, first.hello()) {
            Known::Yes(hello) => hello.server_name.as_deref().map_or(Known::No, Known::Yes),
            Known::No => Known::No,
            Known::NeedsMore => Known::NeedsMore,
        },
        HashKey::HttpHost => known(facts, Protocol::Http1, first.host()),
        HashKey::HttpPath => known(facts, Protocol::Http1, first.path()),
        HashKey::HttpHeader(name) => known(facts, Protocol::Http1, first.header(name)),
    }
}

/// The client's address as far as it counts; `None` if it has none.
#[must_use]
pub fn hashed_address(config: &Hash, client: ClientAddr) -> Option<Cidr> {
    let ClientAddr::Tcp(address) = client else { return None };
    let prefix = if address.is_ipv4() { config.prefix.ipv4 } else { config.prefix.ipv6 };
    Some(Cidr::of(address.ip(), prefix))
}

fn of_source(config: &Hash, facts: &Facts<'_>) -> u64 {
    hashed_address(config, facts.client).map_or_else(|| hash(&facts.chance.to_be_bytes()), |cidr| hash_ip(cidr.address))
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
    use crate::net::client_hello;
    use crate::net::first_bytes::FirstBytes;

    fn key_of(config: &Hash, client: &str, first: &FirstBytes) -> Known<u64> {
        let client = ClientAddr::tcp(client.parse().unwrap());
        hash_key(config, &Facts::new(&ListenerName::new("web"), client, first))
    }

    fn key(config: &Hash, client: &str) -> u64 {
        key_of(config, client, &FirstBytes::default()).yes().expect("an address is enough")
    }

    fn by(key: HashKey) -> Hash {
        Hash { key, ..Hash::default() }
    }

    fn sent(bytes: impl AsRef<[u8]>) -> FirstBytes {
        let mut first = FirstBytes::default();
        first.push(bytes.as_ref());
        first
    }

    /// As XXH3's own library has them: as long as these hold, a client finds its backend again after an upgrade.
    #[test]
    fn golden_vectors() {
        let config = Hash::default();
        assert_eq!(key(&config, "192.0.2.7:4711"), 0x54e8_211e_31db_05c1);
        assert_eq!(key(&config, "[::ffff:192.0.2.7]:1"), 0x54e8_211e_31db_05c1);
        assert_eq!(key(&config, "[2001:db8::1:2:3:4]:4711"), 0x118c_9914_f027_3685, "2001:db8::");
        let first = FirstBytes::default();
        let listener = ListenerName::new("web");
        let facts = Facts { chance: 0x1_0000_0000_1267, ..Facts::new(&listener, ClientAddr::Unix, &first) };
        assert_eq!(hash_key(&config, &facts), Known::Yes(0x7b3e_4425_a578_d466));
        let hello = sent(client_hello::write(Some("a.example.com"), &[]));
        assert_eq!(key_of(&by(HashKey::Sni), "192.0.2.7:1", &hello), Known::Yes(0xd80a_bf5a_5314_ffac));
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

    #[test]
    fn each_key_is_the_text_that_it_says() {
        let request = "GET /a/b?c=d HTTP/1.1\r\nHost: A.example.com:80\r\nX-Tenant: seven\r\n\r\n";
        let expected = |text: &str| Known::Yes(hash(text.as_bytes()));
        let header = |name: &str| HashKey::HttpHeader(name.into());
        for (kind, text) in [
            (HashKey::HttpHost, "a.example.com"),
            (HashKey::HttpPath, "/a/b"),
            (header("x-tenant"), "seven"),
            (header("X-Tenant"), "seven"),
        ] {
            assert_eq!(key_of(&by(kind.clone()), "192.0.2.7:1", &sent(request)), expected(text), "{kind:?}");
        }
    }

    #[test]
    fn without_that_fact_it_is_the_address_and_until_then_nothing() {
        let address = key(&Hash::default(), "192.0.2.7:1");
        let header = || by(HashKey::HttpHeader("x-tenant".into()));
        let hello = client_hello::write(None, &[]);
        let of = |config: &Hash, bytes: &[u8]| key_of(config, "192.0.2.7:1", &sent(bytes));
        for (config, bytes) in [
            (by(HashKey::Sni), b"SSH-2.0-x\r\n".as_slice()),
            (by(HashKey::Sni), &hello),
            (header(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (header(), &hello),
            (by(HashKey::HttpHost), b"GET / HTTP/1.0\r\n\r\n"),
        ] {
            assert_eq!(of(&config, bytes), Known::Yes(address), "{config:?}");
        }
        for (config, bytes) in [
            (by(HashKey::Sni), b"".as_slice()),
            (by(HashKey::Sni), &hello[..20]),
            (header(), b"GET / HTTP/1.1\r\nX-Ten"),
        ] {
            assert_eq!(of(&config, bytes), Known::NeedsMore, "{config:?}");
            let mut over = sent(bytes);
            over.finish();
            let over = key_of(&config, "192.0.2.7:1", &over);
            assert!(
                over == Known::Yes(address) || over == Known::NeedsMore && bytes.len() == 20,
                "{config:?}: {over:?}"
            );
        }
    }
}
