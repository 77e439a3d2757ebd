//! What each rule of a listener has to say of a session: for people who ask why it goes where it goes.
//!
//! Owns the words. Asks every rule in the order of the file, which the look-up needn't. Allocates as it likes.

use super::condition::{Answer, Condition, known};
use super::{Entry, Facts, Routes, Rule, To};
use crate::name::{ClientAddr, PoolName};
use crate::net::first_bytes::{Known, Protocol};
use crate::pool::Pool;
use std::fmt::Display;
use std::sync::Arc;

/// So many values of a list are shown.
const MAX_SHOWN: usize = 8;

/// One rule's say.
pub struct RuleSeen<'t> {
    pub rule: &'t Arc<Rule>,
    /// Whether all conditions hold. The first rule that says anything but no decides.
    pub answer: Answer,
    /// None for the listener's own pool, which is the last.
    pub conditions: Vec<ConditionSeen>,
    pub leads: Leads<'t>,
}

/// One condition's say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionSeen {
    /// The key of the file, such as `sni`.
    pub key: &'static str,
    pub answer: Answer,
    /// The values of the file, the first few of many.
    pub wanted: String,
    /// What the session has there; `None` if it has nothing of the kind, or not yet.
    pub seen: Option<String>,
}

/// Where a rule leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leads<'t> {
    /// At least one, each with its weight.
    To(Vec<(&'t PoolName, u64)>),
    Refuse,
}

impl<'t> Leads<'t> {
    pub(super) fn to(pool: &'t Pool) -> Self {
        Self::To(vec![(&pool.name, 1)])
    }
}

impl Entry {
    pub(super) fn leads(&self) -> Leads<'_> {
        match &self.to {
            To::Pool(pool) => Leads::to(pool),
            To::Pools(split) => Leads::To(split.iter().map(|(weight, pool)| (&pool.name, weight)).collect()),
            To::Refuse => Leads::Refuse,
        }
    }
}

impl Routes {
    #[must_use]
    pub fn explain(&self, facts: &Facts<'_>) -> Vec<RuleSeen<'_>> {
        let rule =
            |entry: &'_ Entry| entry.conditions.iter().map(|condition| condition.explain(facts)).collect::<Vec<_>>();
        let mut seen: Vec<RuleSeen<'_>> = self
            .rules
            .iter()
            .map(|entry| RuleSeen {
                rule: &entry.rule,
                answer: entry.judge(facts),
                conditions: rule(entry),
                leads: entry.leads(),
            })
            .collect();
        if let Some((rule, pool)) = &self.otherwise {
            seen.push(RuleSeen { rule, answer: Answer::Yes, conditions: Vec::new(), leads: Leads::to(pool) });
        }
        seen
    }
}

impl Condition {
    fn explain(&self, facts: &Facts<'_>) -> ConditionSeen {
        let first = facts.first;
        let hello = || match known(facts, Protocol::Tls, first.hello()) {
            Known::Yes(hello) => Some(hello),
            _ => None,
        };
        let text = |found: Known<&str>| match found {
            Known::Yes(text) => Some(text.to_owned()),
            _ => None,
        };
        let client = || match facts.client {
            ClientAddr::Tcp(address) => Some(address.ip().to_string()),
            ClientAddr::Unix => None,
        };
        let (key, wanted, seen) = match self {
            Self::Source(networks) => ("source", some(&networks.shown), client()),
            Self::LocalPort(ranges) => {
                let range = |range: &std::ops::RangeInclusive<u16>| match (range.start(), range.end()) {
                    (first, last) if first == last => first.to_string(),
                    (first, last) => format!("{first}-{last}"),
                };
                ("local_port", some(ranges.iter().map(range)), facts.local.map(|local| local.port().to_string()))
            }
            Self::LocalAddress(networks) => {
                ("local_address", some(&networks.shown), facts.local.map(|local| local.ip().to_string()))
            }
            Self::Share(share) => ("share", share.share.to_string(), client()),
            Self::Protocol(protocols) => {
                let seen = match first.protocol() {
                    Known::Yes(protocol) => Some(protocol.as_str().to_owned()),
                    _ => None,
                };
                ("protocol", some(protocols.iter().map(|protocol| protocol.as_str())), seen)
            }
            Self::Prefix(prefixes) => {
                let shown = first.bytes().iter().take(16).copied().collect::<Vec<u8>>();
                let seen = (!shown.is_empty()).then(|| shown.escape_ascii().to_string());
                ("prefix", some(prefixes), seen)
            }
            Self::Sni(names) => {
                let name = hello().and_then(|hello| hello.server_name.as_deref().map(str::to_owned));
                ("sni", if names.is_none() { "no name".to_owned() } else { some(names.patterns()) }, name)
            }
            Self::Alpn(wanted) => ("alpn", some(wanted.iter().map(|one| one.escape_ascii())), hello().map(offers)),
            Self::AlpnAll(wanted) => {
                ("alpn_all", some(wanted.iter().map(|one| one.escape_ascii())), hello().map(offers))
            }
            Self::HttpMethod(methods) => {
                ("http_method", some(methods), text(known(facts, Protocol::Http1, first.method())))
            }
            Self::HttpHost(names) => {
                ("http_host", some(names.patterns()), text(known(facts, Protocol::Http1, first.host())))
            }
            Self::HttpPath(paths) => ("http_path", some(paths), text(known(facts, Protocol::Http1, first.path()))),
        };
        ConditionSeen { key, answer: self.judge(facts), wanted, seen }
    }
}

fn offers(hello: &crate::net::client_hello::ClientHello) -> String {
    some(hello.alpn.iter().map(|offer| offer.escape_ascii()))
}

/// The first few of a list.
fn some<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    let mut values = values.into_iter();
    let shown: Vec<String> = values.by_ref().take(MAX_SHOWN).map(|value| value.to_string()).collect();
    let more = match values.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", shown.join(", "))
}
