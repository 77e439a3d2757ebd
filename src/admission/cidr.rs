//! Who may connect, by address: lists of networks, of which the one with the longest prefix that holds an address
//! decides.
//!
//! Owns the lists as a search needs them: cut into ranges that don't overlap, so that an answer is one binary search
//! however long the lists are. IPv4 and IPv6 are two worlds: `::/0` says nothing of IPv4. Next: `mod`, which asks.

use crate::config::Cidr;
use std::net::IpAddr;

/// What `allow` and `deny` say of every address.
#[derive(Debug)]
pub struct AccessList {
    ipv4: Ranges,
    ipv6: Ranges,
}

/// Each range from its first address up to the next one's, in order; the first begins at zero.
type Ranges = Box<[(u128, Verdict)]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allow,
    Deny,
}

/// One network of either list: the first and the last address in it.
#[derive(Clone, Copy)]
struct Network {
    first: u128,
    last: u128,
    verdict: Verdict,
}

impl AccessList {
    /// `None` if both lists are empty: everybody may connect. With anything in `allow`, whoever is in neither list may
    /// not; of the same network in both, `deny` counts.
    #[must_use]
    pub fn new(allow: &[Cidr], deny: &[Cidr]) -> Option<Self> {
        if allow.is_empty() && deny.is_empty() {
            return None;
        }
        let otherwise = if allow.is_empty() { Verdict::Allow } else { Verdict::Deny };
        let ranges = |is_ipv4: bool| {
            let side = |list: &[Cidr], verdict| {
                let own = list.iter().filter(|network| network.address.is_ipv4() == is_ipv4);
                own.map(|network| Network::of(network, verdict)).collect::<Vec<_>>()
            };
            flatten([side(deny, Verdict::Deny), side(allow, Verdict::Allow)].concat(), otherwise)
        };
        Some(Self { ipv4: ranges(true), ipv6: ranges(false) })
    }

    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        let ranges = if address.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        let (number, _) = number_of(address);
        // The first range begins at zero: one always begins at or before the address.
        ranges[ranges.partition_point(|(first, _)| *first <= number) - 1].1 == Verdict::Allow
    }
}

impl Network {
    fn of(cidr: &Cidr, verdict: Verdict) -> Self {
        let (number, bits) = number_of(cidr.address);
        let host = bits.saturating_sub(u32::from(cidr.prefix));
        let hosts = 1_u128.checked_shl(host).map_or(u128::MAX, |size| size - 1);
        Self { first: number & !hosts, last: number | hosts, verdict }
    }
}

/// An address as a number, and its bits.
fn number_of(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (address.to_bits().into(), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    }
}

/// Networks either hold one another or have nothing in common; so, in order of their beginnings and the wider ones
/// first, those that hold the present address are a stack, and the one on top is the narrowest.
fn flatten(mut networks: Vec<Network>, otherwise: Verdict) -> Ranges {
    // Stable, so that of two equal ones the first stays first.
    networks.sort_by_key(|network| (network.first, std::cmp::Reverse(network.last)));
    networks.dedup_by_key(|network| (network.first, network.last));
    let mut ranges = vec![(0, otherwise)];
    let mut within: Vec<Network> = Vec::new();
    let begin = |ranges: &mut Vec<(u128, Verdict)>, first, verdict| {
        if ranges.last().is_some_and(|(last, _)| *last == first) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|(_, before)| *before != verdict) {
            ranges.push((first, verdict));
        }
    };
    let end = |ranges: &mut Vec<(u128, Verdict)>, within: &mut Vec<Network>, before: Option<u128>| {
        while let Some(inner) = within.last().copied().filter(|inner| before.is_none_or(|first| inner.last < first)) {
            within.pop();
            if let Some(after) = inner.last.checked_add(1) {
                begin(ranges, after, within.last().map_or(otherwise, |outer| outer.verdict));
            }
        }
    };
    for network in networks {
        end(&mut ranges, &mut within, Some(network.first));
        begin(&mut ranges, network.first, network.verdict);
        within.push(network);
    }
    end(&mut ranges, &mut within, None);
    ranges.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn cidr(text: &str) -> Cidr {
        let (address, prefix) = text.split_once('/').unwrap();
        Cidr { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
    }

    fn list(allow: &[&str], deny: &[&str]) -> AccessList {
        let all = |texts: &[&str]| texts.iter().map(|text| cidr(text)).collect::<Vec<_>>();
        AccessList::new(&all(allow), &all(deny)).unwrap()
    }

    #[track_caller]
    fn check(list: &AccessList, allowed: &[&str], denied: &[&str]) {
        for (addresses, expected) in [(allowed, true), (denied, false)] {
            for address in addresses {
                assert_eq!(list.allows(address.parse().unwrap()), expected, "{address}: {list:?}");
            }
        }
    }

    #[test]
    fn without_lists_there_is_nothing_to_ask() {
        assert!(AccessList::new(&[], &[]).is_none());
    }

    #[test]
    fn deny_alone_lets_all_others_in() {
        let list = list(&[], &["10.0.0.0/8", "2001:db8::/32"]);
        check(
            &list,
            &["9.255.255.255", "11.0.0.0", "2001:db9::", "::1"],
            &["10.0.0.0", "10.255.255.255", "2001:db8::1"],
        );
    }

    #[test]
    fn allow_alone_keeps_all_others_out_in_both_families() {
        check(&list(&["10.0.0.0/8"], &[]), &["10.1.2.3"], &["11.0.0.0", "0.0.0.0", "255.255.255.255", "::1"]);
        check(&list(&["::/0"], &[]), &["::", "ffff::"], &["10.0.0.1"]);
    }

    #[test]
    fn the_longest_prefix_decides() {
        let list = list(&["10.0.0.0/8", "10.1.1.0/24", "10.1.1.9/32"], &["10.1.0.0/16", "10.1.1.8/29", "10.1.1.9/32"]);
        check(
            &list,
            &["10.0.255.255", "10.2.0.0", "10.1.1.7", "10.1.1.16"],
            &["10.1.0.255", "10.1.2.0", "10.1.1.8", "10.1.1.15", "10.1.1.9", "9.0.0.0"],
        );
    }

    #[test]
    fn the_whole_world_and_its_edges_fit() {
        let list = list(&["255.255.255.255/32", "::/0"], &["0.0.0.0/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"]);
        check(&list, &["255.255.255.255", "::"], &["0.0.0.0", "255.255.255.254"]);
        assert!(!list.allows(Ipv6Addr::from(u128::MAX).into()));
    }

    /// Networks near each other, so that many are nested or equal.
    fn network() -> impl Strategy<Value = Cidr> {
        (0_u32..64, 24_u8..=32)
            .prop_map(|(low, prefix)| Cidr::of(Ipv4Addr::from(0x0a00_0000 | (low << 2)).into(), prefix))
    }

    proptest! {
        #[test]
        fn it_is_the_search_through_all_networks(
            allow in prop::collection::vec(network(), 0..20),
            deny in prop::collection::vec(network(), 0..20),
        ) {
            let Some(list) = AccessList::new(&allow, &deny) else { return Ok(()) };
            for low in 0..=300 {
                let bits = 0x0a00_0000_u32 - 20 + low;
                let address = IpAddr::from(Ipv4Addr::from(bits));
                let longest = |list: &[Cidr]| {
                    list.iter().filter(|network| network.contains(address)).map(|network| network.prefix).max()
                };
                let expected = match (longest(&allow), longest(&deny)) {
                    (None, None) => allow.is_empty(),
                    (allowed, denied) => allowed > denied,
                };
                prop_assert_eq!(list.allows(address), expected, "{:#x}", bits);
            }
        }
    }
}
