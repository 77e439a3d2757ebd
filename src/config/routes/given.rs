//! The keys of routes and of the preread, and of what type and range each value is.

use super::{PrereadFailed, Protocol};
use crate::config::findings::{At, Complaint, Findings, Given, Placed};
use crate::config::section::{self, Section, Value};
use crate::config::{Percent, limits, unit};
use std::time::Duration;
use toml::de::DeValue;

pub const ROUTE: &[&str] = &[
    "name",
    "source",
    "local_port",
    "local_address",
    "sni",
    "alpn",
    "alpn_all",
    "protocol",
    "http_host",
    "http_path",
    "http_method",
    "prefix",
    "share",
    "pool",
    "pools",
    "refuse",
];
pub const WEIGHTED: &[&str] = &["pool", "weight"];

/// One text or a list of them.
pub type Texts = Given<Vec<Placed<String>>>;

/// The keys of a listener that say how much is read before the route is known, and the routes.
pub struct Routing {
    pub timeout: Given<Duration>,
    pub bytes: Given<u64>,
    pub timeout_pool: Given<String>,
    pub failed: Given<PrereadFailed>,
    pub routes: Given<Vec<Route>>,
}

pub struct Route {
    /// The table itself.
    pub at: At,
    /// It has a key that nobody knows.
    pub is_strange: bool,
    pub name: Given<String>,
    pub source: Texts,
    /// Numbers and texts.
    pub local_port: Given<Vec<Placed<Port>>>,
    pub local_address: Texts,
    pub sni: Texts,
    pub alpn: Texts,
    pub alpn_all: Texts,
    pub protocol: Texts,
    pub http_host: Texts,
    pub http_path: Texts,
    pub http_method: Texts,
    pub prefix: Texts,
    pub share: Given<Percent>,
    pub pool: Given<String>,
    pub pools: Given<Vec<Weighted>>,
    pub refuse: Given<bool>,
}

/// A port, or a range of them.
pub enum Port {
    Number(i128),
    Text(String),
}

/// One of `pools`.
pub struct Weighted {
    pub at: At,
    pub pool: Given<String>,
    pub weight: Given<u16>,
}

impl Routing {
    pub fn read(findings: &Findings, listener: &Section) -> Self {
        Self {
            timeout: listener.duration("preread_timeout", &(limits::MIN_DURATION..=limits::MAX_DURATION)),
            bytes: listener.parsed("preread_bytes", |text| unit::bytes(text, &limits::PREREAD_BYTES)),
            timeout_pool: listener.text("preread_timeout_pool"),
            failed: listener.choice("preread_failed", &PrereadFailed::WORDS),
            routes: tables(findings, &listener.list("routes"), ROUTE, |at, section| Route::read(findings, at, section)),
        }
    }
}

/// The tables of a list; those that are none are reported and left out.
fn tables<T>(
    findings: &Findings,
    list: &Given<Vec<Placed<&Value<'_>>>>,
    keys: &'static [&'static str],
    read: impl Fn(At, &Section) -> T,
) -> Given<Vec<T>> {
    let Some(Placed { at, value }) = list.good() else {
        return if list.is_absent() { Given::Absent } else { Given::Bad };
    };
    let table = |entry: &Placed<&Value<'_>>| {
        let section = Section::of_value(findings, entry.value, entry.at.key.clone(), keys)?;
        Some(read(entry.at.clone(), &section))
    };
    let tables: Vec<T> = value.iter().filter_map(table).collect();
    if tables.len() == value.len() { Given::Good(Placed { at: at.clone(), value: tables }) } else { Given::Bad }
}

impl Route {
    fn read(findings: &Findings, at: At, section: &Section) -> Self {
        let local_port = section.one_or_more("local_port").map(|list| {
            let port = |entry: &Placed<&Value<'_>>| {
                let port = match entry.value.get_ref() {
                    DeValue::Integer(digits) => match i128::from_str_radix(digits.as_str(), digits.radix()) {
                        Ok(number) => Ok(Port::Number(number)),
                        Err(_) => Err(Complaint::new(format!("{digits} is out of range"), "use 1 to 65535")),
                    },
                    DeValue::String(text) => Ok(Port::Text(text.to_string())),
                    _ => Err(section::wrong_type(entry.value, "a port")),
                };
                section.judged(entry.at.clone(), port).into_good()
            };
            list.iter().filter_map(port).collect()
        });
        let weighted = |at, section: &Section| Weighted {
            at,
            pool: section.text("pool"),
            weight: section.integer("weight", &(1..=limits::MAX_WEIGHT)),
        };
        Self {
            at,
            is_strange: section.has_unknown(),
            name: section.text("name"),
            source: section.texts("source"),
            local_port,
            local_address: section.texts("local_address"),
            sni: section.texts("sni"),
            alpn: section.texts("alpn"),
            alpn_all: section.texts("alpn_all"),
            protocol: section.texts("protocol"),
            http_host: section.texts("http_host"),
            http_path: section.texts("http_path"),
            http_method: section.texts("http_method"),
            prefix: section.texts("prefix"),
            share: section.percent("share"),
            pool: section.text("pool"),
            pools: tables(findings, &section.list("pools"), WEIGHTED, weighted),
            refuse: section.boolean("refuse"),
        }
    }

    /// The names of the pools that it leads to; `None` if one of them isn't known.
    pub fn pools(&self) -> Option<Vec<&str>> {
        let text = |given: &'_ Given<String>| matches!(given, Given::Bad).then_some(());
        if matches!(self.pools, Given::Bad) || text(&self.pool).is_some() {
            return None;
        }
        let several = self.pools.good().map(|placed| placed.value.as_slice()).unwrap_or_default();
        let all = self.pool.good().into_iter().chain(several.iter().filter_map(|weighted| weighted.pool.good()));
        Some(all.map(|placed| placed.value.as_str()).collect())
    }
}

impl Protocol {
    /// The protocol that the file calls so.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::WORDS.into_iter().find(|(known, _)| *known == word).map(|(_, protocol)| protocol)
    }
}
