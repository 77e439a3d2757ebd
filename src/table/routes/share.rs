//! A client's place among all clients: always the same by its address, and another one for each rule.
//!
//! Owns the formula, so that all nodes with the same config agree. The place is xxh3-64 of the address (the four bytes
//! of IPv4, the first eight of IPv6: its /64) with a seed that is xxh3-64, with seed 0, of the use ("share" or
//! "pools"), the listener's name and the rule's name, each after the other with a NUL byte between. The place divides
//! the range of 64 bits evenly: a share of p % takes the lowest p %, and pools share it in the order of the file, by
//! their weights. So a growing share keeps whom it has. A client without an address has a place by chance.

use super::Facts;
use crate::config::Percent;
use crate::name::{ClientAddr, ListenerName};
use std::net::IpAddr;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// What a place is for: a client that is among the first of a share is not among the first for the pools behind it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Share,
    Pools,
}

/// What makes the places of one rule differ from those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt(u64);

impl Salt {
    pub fn of(purpose: Use, listener: &ListenerName, rule: &str) -> Self {
        let word = match purpose {
            Use::Share => "share",
            Use::Pools => "pools",
        };
        Self(xxh3_64([word, listener.as_str(), rule].join("\0").as_bytes()))
    }

    fn place(self, facts: &Facts<'_>) -> u64 {
        match facts.client {
            ClientAddr::Tcp(address) => match address.ip() {
                IpAddr::V4(ip) => xxh3_64_with_seed(&ip.octets(), self.0),
                IpAddr::V6(ip) => xxh3_64_with_seed(&ip.octets()[..8], self.0),
            },
            ClientAddr::Unix => xxh3_64_with_seed(&facts.chance.to_be_bytes(), self.0),
        }
    }
}

/// `place` as one of 0 to `count` - 1.
fn part(place: u64, count: u64) -> u64 {
    ((u128::from(place) * u128::from(count)) >> 64) as u64
}

/// A share of all clients.
#[derive(Debug)]
pub struct Share {
    pub share: Percent,
    pub salt: Salt,
}

impl Share {
    pub fn takes(&self, facts: &Facts<'_>) -> bool {
        // All of it also takes the last place.
        part(self.salt.place(facts), Percent::WHOLE) < u64::from(self.share.in_hundredths())
    }
}

/// Several, of which each client has one, by their weights.
#[derive(Debug)]
pub struct Split<T> {
    /// Each with the sum of the weights up to and with it; at least one.
    ends: Box<[(u64, T)]>,
    salt: Salt,
}

impl<T> Split<T> {
    /// `None` of nothing.
    pub fn new(weighted: impl IntoIterator<Item = (u16, T)>, salt: Salt) -> Option<Self> {
        let mut sum = 0;
        let ends = weighted.into_iter().map(|(weight, one)| {
            sum += u64::from(weight);
            (sum, one)
        });
        let ends: Box<[_]> = ends.collect();
        (!ends.is_empty()).then_some(Self { ends, salt })
    }

    pub fn choose(&self, facts: &Facts<'_>) -> &T {
        let last = self.ends.len() - 1;
        let at = part(self.salt.place(facts), self.ends[last].0);
        &self.ends[self.ends.partition_point(|(end, _)| *end <= at).min(last)].1
    }

    /// Each with its weight.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let before = std::iter::once(0).chain(self.ends.iter().map(|(end, _)| *end));
        self.ends.iter().zip(before).map(|((end, one), before)| (end - before, one))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::first_bytes::FirstBytes;
    use std::net::{Ipv4Addr, SocketAddr};

    fn place(salt: Salt, client: &str) -> u64 {
        let (listener, first) = (ListenerName::new("web"), FirstBytes::default());
        let client = ClientAddr::tcp(SocketAddr::new(client.parse().unwrap(), 4_711));
        salt.place(&Facts::new(&listener, client, &first))
    }

    /// Another release must find the same clients in the same share.
    #[test]
    fn places_never_change() {
        let (share, pools) = (
            Salt::of(Use::Share, &ListenerName::new("web"), "canary"),
            Salt::of(Use::Pools, &ListenerName::new("web"), "canary"),
        );
        let found: Vec<u64> = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|client| place(share, client)).to_vec();
        assert_eq!(found, GOLDEN);
        assert_eq!(place(share, "2001:db8::1"), place(share, "2001:db8::ffff:1"), "of one /64");
        assert_ne!(place(share, "2001:db8::1"), place(share, "2001:db8:0:1::1"));
        assert_ne!(place(share, "192.0.2.1"), place(pools, "192.0.2.1"));
        assert_ne!(share, Salt::of(Use::Share, &ListenerName::new("web"), "other"));
        assert_ne!(share, Salt::of(Use::Share, &ListenerName::new("other"), "canary"));
    }

    const GOLDEN: [u64; 3] = [4_387_223_097_861_158_576, 3_694_670_070_386_642_935, 8_410_586_627_853_552_532];

    #[test]
    fn a_share_is_its_share_and_grows_by_newcomers_alone() {
        let (listener, first) = (ListenerName::new("web"), FirstBytes::default());
        let salt = Salt::of(Use::Share, &listener, "canary");
        let taken = |hundredths: u16| -> Vec<u32> {
            let share = Share { share: Percent::hundredths(hundredths), salt };
            let client = |bits| ClientAddr::tcp(SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + bits).into(), 1));
            (0..100_000).filter(|&bits| share.takes(&Facts::new(&listener, client(bits), &first))).collect()
        };
        assert_eq!((taken(0).len(), taken(10_000).len()), (0, 100_000));
        let (five, six) = (taken(500), taken(600));
        // Of 100,000 by chance; four times the standard deviation.
        assert!(five.len().abs_diff(5_000) < 280, "{}", five.len());
        assert!(six.len().abs_diff(6_000) < 300, "{}", six.len());
        assert!(five.iter().all(|client| six.contains(client)));
    }

    #[test]
    fn a_split_follows_its_weights() {
        let (listener, first) = (ListenerName::new("web"), FirstBytes::default());
        let split = Split::new([(9, "a"), (1, "b")], Salt::of(Use::Pools, &listener, "canary")).unwrap();
        assert_eq!(split.iter().collect::<Vec<_>>(), [(9, &"a"), (1, &"b")]);
        let client = |bits: u32| ClientAddr::tcp(SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + bits).into(), 1));
        let b = (0..100_000).filter(|&bits| *split.choose(&Facts::new(&listener, client(bits), &first)) == "b").count();
        assert!(b.abs_diff(10_000) < 400, "{b}");
        let by_chance = |chance| *split.choose(&Facts { chance, ..Facts::new(&listener, ClientAddr::Unix, &first) });
        assert!((0..100).any(|chance| by_chance(chance) == "a") && (0..100).any(|chance| by_chance(chance) == "b"));
    }
}
