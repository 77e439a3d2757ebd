//! One condition of a rule, prepared, and what it says of a session.
//!
//! Owns the judging. What is asked of first bytes that are broken needs more for ever: such a session is `preread`'s
//! to end, unless a rule before that one takes it.

use super::Facts;
use super::share::Share;
use crate::admission::AccessList;
use crate::config::{Cidr, NamePattern, Prefix};
use crate::name::ClientAddr;
use crate::net::first_bytes::{Known, Protocol};
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// What a condition, or a whole rule, says of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Yes,
    No,
    /// The client must have sent more before that can be said.
    NeedsMore,
}

impl Answer {
    fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// The texts that the file has for it stay with those that are shown by `explain`.
pub enum Condition {
    Source(Networks),
    LocalPort(Box<[RangeInclusive<u16>]>),
    LocalAddress(Networks),
    Share(Share),
    Protocol(Box<[Protocol]>),
    Prefix(Box<[Prefix]>),
    Sni(Names),
    Alpn(Box<[Box<[u8]>]>),
    AlpnAll(Box<[Box<[u8]>]>),
    HttpMethod(Box<[Box<str>]>),
    HttpHost(Names),
    HttpPath(Box<[Box<str>]>),
}

impl Condition {
    /// What it says of a session.
    pub fn judge(&self, facts: &Facts<'_>) -> Answer {
        let first = facts.first;
        match self {
            Self::Source(networks) => match facts.client {
                ClientAddr::Tcp(address) => Answer::of(networks.contain(address.ip())),
                ClientAddr::Unix => Answer::No,
            },
            Self::LocalAddress(networks) => Answer::of(facts.local.is_some_and(|local| networks.contain(local.ip()))),
            Self::LocalPort(ranges) => {
                let within = |port| ranges.iter().any(|range| range.contains(&port));
                Answer::of(facts.local.is_some_and(|local| within(local.port())))
            }
            Self::Share(share) => Answer::of(share.takes(facts)),
            Self::Protocol(protocols) => asked(first.protocol(), |found| protocols.contains(&found)),
            Self::Prefix(prefixes) => {
                let mut answer = Answer::No;
                for prefix in prefixes {
                    match first.starts_with(&prefix.bytes) {
                        Known::Yes(()) => return Answer::Yes,
                        Known::NeedsMore => answer = Answer::NeedsMore,
                        Known::No => {}
                    }
                }
                answer
            }
            Self::Sni(names) => of_tls(facts, first.hello(), |hello| match &hello.server_name {
                Some(name) => names.contain(name),
                None => names.is_none(),
            }),
            Self::Alpn(wanted) => of_tls(facts, first.hello(), |hello| {
                hello.alpn.iter().any(|offer| wanted.iter().any(|one| **one == *offer))
            }),
            Self::AlpnAll(wanted) => {
                of_tls(facts, first.hello(), |hello| hello.alpn.iter().eq(wanted.iter().map(|one| &**one)))
            }
            Self::HttpMethod(methods) => {
                of_http(facts, first.method(), |method| methods.iter().any(|wanted| **wanted == *method))
            }
            Self::HttpHost(names) => of_http(facts, first.host(), |host| names.contain(host)),
            Self::HttpPath(paths) => {
                of_http(facts, first.path(), |path| paths.iter().any(|prefix| is_below(prefix, path)))
            }
        }
    }
}

fn asked<T>(known: Known<T>, holds: impl FnOnce(T) -> bool) -> Answer {
    match known {
        Known::Yes(found) => Answer::of(holds(found)),
        Known::No => Answer::No,
        Known::NeedsMore => Answer::NeedsMore,
    }
}

/// What is not in a TLS hello, or in the head of a request, that is broken might have been there.
pub fn known<T>(facts: &Facts<'_>, of: Protocol, known: Known<T>) -> Known<T> {
    let is_broken = || facts.first.malformed().is_some() && facts.first.protocol() == Known::Yes(of);
    match known {
        Known::No if is_broken() => Known::NeedsMore,
        known => known,
    }
}

fn of_tls<T>(facts: &Facts<'_>, found: Known<T>, holds: impl FnOnce(T) -> bool) -> Answer {
    asked(known(facts, Protocol::Tls, found), holds)
}

fn of_http<T>(facts: &Facts<'_>, found: Known<T>, holds: impl FnOnce(T) -> bool) -> Answer {
    asked(known(facts, Protocol::Http1, found), holds)
}

/// Whether `path` begins with `prefix`, by whole segments; a query is no part of a segment.
fn is_below(prefix: &str, path: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || prefix.ends_with('/') || rest.starts_with(['/', '?', '#']),
        None => false,
    }
}

/// Names of servers, of any number: each list is sorted.
pub struct Names {
    any: bool,
    exact: Box<[Box<str>]>,
    /// Exactly one label more than these.
    one_label: Box<[Box<str>]>,
    /// At least one label more than these.
    labels: Box<[Box<str>]>,
}

impl Names {
    pub fn new(patterns: &[NamePattern]) -> Self {
        let (mut any, mut exact, mut one_label, mut labels) = (false, Vec::new(), Vec::new(), Vec::new());
        for pattern in patterns {
            match pattern {
                NamePattern::Any => any = true,
                NamePattern::Exact(name) => exact.push(name.clone()),
                NamePattern::OneLabel(suffix) => one_label.push(suffix.clone()),
                NamePattern::Labels(suffix) => labels.push(suffix.clone()),
            }
        }
        for list in [&mut exact, &mut one_label, &mut labels] {
            list.sort_unstable();
        }
        Self { any, exact: exact.into(), one_label: one_label.into(), labels: labels.into() }
    }

    /// Whether it is the empty list, which asks for a client that names nobody.
    pub fn is_none(&self) -> bool {
        !self.any && self.exact.is_empty() && self.one_label.is_empty() && self.labels.is_empty()
    }

    pub fn contain(&self, name: &str) -> bool {
        let has = |list: &[Box<str>], wanted: &str| list.binary_search_by(|one| (**one).cmp(wanted)).is_ok();
        self.any
            || has(&self.exact, name)
            || !self.one_label.is_empty() && one_label_less(name).is_some_and(|suffix| has(&self.one_label, suffix))
            || !self.labels.is_empty() && suffixes(name).any(|suffix| has(&self.labels, suffix))
    }

    /// As the file has them, in another order.
    pub fn patterns(&self) -> impl Iterator<Item = String> {
        let any = self.any.then(|| "*".to_owned());
        let one_label = self.one_label.iter().map(|suffix| format!("*.{suffix}"));
        let labels = self.labels.iter().map(|suffix| format!(".{suffix}"));
        any.into_iter().chain(self.exact.iter().map(ToString::to_string)).chain(one_label).chain(labels)
    }
}

/// What `*.` stands before, if `name` is one of these.
pub fn one_label_less(name: &str) -> Option<&str> {
    name.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, suffix)| suffix)
}

/// What remains of a name as one label after the other is taken from its left, the shortest first; never all of it.
pub fn suffixes(name: &str) -> impl Iterator<Item = &str> {
    name.rmatch_indices('.').filter(|(dot, _)| *dot > 0).map(|(dot, _)| &name[dot + 1..])
}

/// Networks, of any number: an address is looked up among them as among those of `allow`.
pub struct Networks {
    /// `None` without any network.
    list: Option<AccessList>,
    pub shown: Box<[Cidr]>,
}

impl Networks {
    pub fn new(networks: &[Cidr]) -> Self {
        Self { list: AccessList::new(networks, &[]), shown: networks.into() }
    }

    fn contain(&self, address: IpAddr) -> bool {
        self.list.as_ref().is_some_and(|list| list.allows(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_by_whole_segments() {
        for (prefix, below, others) in [
            ("/api", &["/api", "/api/", "/api/x", "/api?x", "/api#x"][..], &["/apix", "/ap", "/", "/x/api", ""][..]),
            ("/api/", &["/api/", "/api/x"], &["/api", "/api?x", "/apix"]),
            ("/", &["/", "/x", "/?x", "//"], &["*", "", "x"]),
        ] {
            assert!(below.iter().all(|path| is_below(prefix, path)), "{prefix}");
            assert!(!others.iter().any(|path| is_below(prefix, path)), "{prefix}");
        }
    }

    #[test]
    fn networks_inside_others_change_nothing() {
        let cidr = |text: &str| {
            let (address, prefix) = text.split_once('/').unwrap();
            Cidr { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
        };
        let networks = Networks::new(&["10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32", "2001:db8::/32"].map(cidr));
        let contains = |address: &str| networks.contain(address.parse().unwrap());
        assert!(["10.0.0.0", "10.255.255.255", "10.1.2.3", "192.0.2.1", "2001:db8::1"].into_iter().all(contains));
        assert!(!["9.255.255.255", "11.0.0.0", "192.0.2.2", "2001:db9::", "::1"].into_iter().any(contains));
        assert!(Networks::new(&[cidr("0.0.0.0/0")]).contain("255.255.255.255".parse().unwrap()));
        assert!(!Networks::new(&[cidr("0.0.0.0/0")]).contain("::1".parse().unwrap()));
    }

    #[test]
    fn suffixes_are_what_follows_each_label() {
        assert_eq!(suffixes("a.b.c").collect::<Vec<_>>(), ["c", "b.c"]);
        assert_eq!(suffixes(".b.c").collect::<Vec<_>>(), ["c"], "an empty label is none");
        assert_eq!((one_label_less("a.b.c"), one_label_less(".b"), one_label_less("a")), (Some("b.c"), None, None));
    }
}
