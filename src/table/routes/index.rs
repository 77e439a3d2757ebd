//! Which rules a session may take, without asking the others.
//!
//! Owns the look-up: each rule stands in the list of its most telling condition (a name, a network, a port, a path) or,
//! without one, in the rest, which is asked one by one. Each list is in the order of the rules, and the first rule that
//! isn't ruled out in any of them is the first of all. While what a list goes by isn't known yet, its rules are asked
//! in their order; what was ruled out once isn't asked again.

use super::Facts;
use super::condition::{Answer, known, one_label_less, suffixes};
use crate::config::{Cidr, Conditions, NamePattern};
use crate::name::ClientAddr;
use crate::net::first_bytes::{Known, Protocol};
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// A list of ports that is longer tells too little.
const MAX_PORTS: usize = 64;

/// Rules, in ascending order.
type List = Vec<u32>;

#[derive(Default)]
pub struct Index {
    by_sni: ByName,
    by_host: ByName,
    by_source: BySource,
    by_port: HashMap<u16, List>,
    by_path: ByPath,
    rest: List,
}

impl Index {
    pub fn new<'c>(rules: impl IntoIterator<Item = &'c Conditions>) -> Self {
        let mut index = Self::default();
        for (rule, when) in rules.into_iter().enumerate() {
            index.add(rule as u32, when);
        }
        index
    }

    fn add(&mut self, rule: u32, when: &Conditions) {
        let tells = |names: &[NamePattern]| !names.is_empty() && !names.contains(&NamePattern::Any);
        let ports = || when.local_port.iter().map(ExactSizeIterator::len).sum::<usize>();
        if let Some(names) = when.sni.as_ref().filter(|names| tells(names)) {
            self.by_sni.add(rule, names);
        } else if tells(&when.http_host) {
            self.by_host.add(rule, &when.http_host);
        } else if !when.source.is_empty() {
            when.source.iter().for_each(|network| self.by_source.add(rule, *network));
        } else if !when.local_port.is_empty() && ports() <= MAX_PORTS {
            when.local_port.iter().cloned().flatten().for_each(|port| push(&mut self.by_port, port, rule));
        } else if !when.http_path.is_empty() {
            self.by_path.add(rule, &when.http_path);
        } else {
            self.rest.push(rule);
        }
    }

    /// The first rule, from `passed` on, that `judge` doesn't rule out, and what it says of it.
    pub fn first(&self, facts: &Facts<'_>, passed: u32, judge: impl Fn(u32) -> Answer) -> Option<(u32, Answer)> {
        let mut found: Option<(u32, Answer)> = None;
        let mut ask = |list: &List| {
            let from = if passed == 0 { 0 } else { list.partition_point(|&rule| rule < passed) };
            for &rule in &list[from..] {
                if found.is_some_and(|(first, _)| first <= rule) {
                    break;
                }
                let answer = judge(rule);
                if answer != Answer::No {
                    found = Some((rule, answer));
                    break;
                }
            }
        };
        ask(&self.rest);
        if let Some(list) = facts.local.and_then(|local| self.by_port.get(&local.port())) {
            ask(list);
        }
        self.by_source.lists(facts.client, &mut ask);
        if !self.by_sni.all.is_empty() {
            let name = match known(facts, Protocol::Tls, facts.first.hello()) {
                Known::Yes(hello) => hello.server_name.as_deref().map_or(Known::No, Known::Yes),
                Known::No => Known::No,
                Known::NeedsMore => Known::NeedsMore,
            };
            self.by_sni.lists(&name, &mut ask);
        }
        if !self.by_host.all.is_empty() {
            self.by_host.lists(&known(facts, Protocol::Http1, facts.first.host()), &mut ask);
        }
        if !self.by_path.all.is_empty() {
            self.by_path.lists(&known(facts, Protocol::Http1, facts.first.path()), &mut ask);
        }
        found
    }
}

fn push<K: Hash + Eq>(lists: &mut HashMap<K, List>, key: K, rule: u32) {
    let list = lists.entry(key).or_insert_with(|| Vec::with_capacity(1));
    if list.last() != Some(&rule) {
        list.push(rule);
    }
}

#[derive(Default)]
struct ByName {
    all: List,
    exact: HashMap<Box<str>, List>,
    one_label: HashMap<Box<str>, List>,
    labels: HashMap<Box<str>, List>,
    /// Of the longest key of `labels`, in labels.
    depth: usize,
}

impl ByName {
    fn add(&mut self, rule: u32, names: &[NamePattern]) {
        self.all.push(rule);
        for pattern in names {
            match pattern {
                NamePattern::Any => {}
                NamePattern::Exact(name) => push(&mut self.exact, name.clone(), rule),
                NamePattern::OneLabel(suffix) => push(&mut self.one_label, suffix.clone(), rule),
                NamePattern::Labels(suffix) => {
                    self.depth = self.depth.max(suffix.split('.').count());
                    push(&mut self.labels, suffix.clone(), rule);
                }
            }
        }
    }

    /// The lists in which the rules for `name` are.
    fn lists(&self, name: &Known<&str>, ask: &mut impl FnMut(&List)) {
        let name = match name {
            Known::No => return,
            Known::NeedsMore => return ask(&self.all),
            Known::Yes(name) => *name,
        };
        if let Some(list) = self.exact.get(name) {
            ask(list);
        }
        if !self.one_label.is_empty()
            && let Some(list) = one_label_less(name).and_then(|suffix| self.one_label.get(suffix))
        {
            ask(list);
        }
        for suffix in suffixes(name).take(self.depth) {
            if let Some(list) = self.labels.get(suffix) {
                ask(list);
            }
        }
    }
}

#[derive(Default)]
struct BySource {
    networks: HashMap<Cidr, List>,
    /// The lengths of prefixes that there are, of IPv4 and of IPv6.
    lengths: [BTreeSet<u8>; 2],
}

impl BySource {
    fn add(&mut self, rule: u32, network: Cidr) {
        self.lengths[usize::from(network.address.is_ipv6())].insert(network.prefix);
        push(&mut self.networks, network, rule);
    }

    fn lists(&self, client: ClientAddr, ask: &mut impl FnMut(&List)) {
        let ClientAddr::Tcp(address) = client else { return };
        for &prefix in &self.lengths[usize::from(address.is_ipv6())] {
            if let Some(list) = self.networks.get(&Cidr::of(address.ip(), prefix)) {
                ask(list);
            }
        }
    }
}

/// By the beginnings of paths, each without a slash at its end.
#[derive(Default)]
struct ByPath {
    all: List,
    below: HashMap<Box<str>, List>,
    /// Of the longest key, in bytes.
    longest: usize,
}

impl ByPath {
    fn add(&mut self, rule: u32, prefixes: &[Box<str>]) {
        self.all.push(rule);
        for prefix in prefixes {
            let key = prefix.strip_suffix('/').unwrap_or(prefix);
            self.longest = self.longest.max(key.len());
            push(&mut self.below, key.into(), rule);
        }
    }

    /// The lists in which the rules for `path` are: those of each beginning that ends before a slash, and of all of it.
    fn lists(&self, path: &Known<&str>, ask: &mut impl FnMut(&List)) {
        let path = match path {
            Known::No => return,
            Known::NeedsMore => return ask(&self.all),
            Known::Yes(path) => *path,
        };
        // No further than there is anything to find, however long the path is.
        let slashes = path.bytes().take(self.longest + 1).enumerate().filter(|(_, byte)| *byte == b'/');
        let whole = (path.len() <= self.longest).then_some(path);
        for beginning in slashes.map(|(at, _)| &path[..at]).chain(whole) {
            if let Some(list) = self.below.get(beginning) {
                ask(list);
            }
        }
    }
}
