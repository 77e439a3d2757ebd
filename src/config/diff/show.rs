//! How values are written in a difference: as in a config, without its quotes where a word can stand alone.
//!
//! Owns what may not be written out, because it may be a secret: such a value is said to be another one, and no more.

#![expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "all that shows a value has one signature")]

use crate::config::{
    AcceptProxy, Access, Address, Ca, Capability, Cidr, Destination, Expect, Group, NamePattern, Owner, Percent, Pool,
    Prefix, Protocol, Rate, StateFile, WeightedPool, unit, words,
};
use crate::name::{BindAddr, LimitName, PoolName};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::Xxh3;

/// What stands for a value that is nobody's business.
pub const HIDDEN: &str = "(not shown)";

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub key: &'static str,
    pub value: String,
    /// Tells one value from another where it isn't written out.
    fingerprint: u64,
}

impl Text {
    pub fn new(key: &'static str, value: String) -> Self {
        Self { key, value, fingerprint: 0 }
    }

    /// Of a value that may be a secret, by what it holds: only whether there is one is told.
    pub fn secret<'b>(key: &'static str, parts: impl IntoIterator<Item = &'b [u8]>) -> Self {
        let (count, fingerprint) = fingerprint(parts);
        let value = if count == 0 { "none" } else { HIDDEN };
        Self { key, value: value.to_owned(), fingerprint }
    }
}

/// A value as a config has it. What has no value is `off`, and an empty list is `[]`.
pub trait Show {
    fn show(&self) -> String;
}

/// By their `Display`.
macro_rules! plain {
    ($($type:ty),+) => { $(impl Show for $type {
        fn show(&self) -> String {
            self.to_string()
        }
    })+ };
}

plain!(bool, u8, u16, u32, u64, usize, f64, Percent, Rate, Cidr, IpAddr);
plain!(PoolName, LimitName, hyper::Method);

/// By their `Display`, which holds what somebody has written.
macro_rules! written {
    ($($type:ty),+) => { $(impl Show for $type {
        fn show(&self) -> String {
            text(&self.to_string())
        }
    })+ };
}

written!(str, String, Arc<str>, Box<str>, BindAddr, Address, NamePattern, Prefix, hyper::http::uri::PathAndQuery);

/// A text: in quotes if it has anything but what makes names, addresses and paths.
fn text(text: &str) -> String {
    let is_word = |char: char| char.is_ascii_alphanumeric() || "_.-:/[]*@%+=?&".contains(char);
    if !text.is_empty() && text.chars().all(is_word) { words::escaped(text) } else { words::quoted(text) }
}

impl Show for Duration {
    fn show(&self) -> String {
        unit::show(*self)
    }
}

impl<T: Show> Show for Option<T> {
    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "off".to_owned(), Show::show)
    }
}

/// Of longer lists only the beginning is listed.
const MAX_LISTED: usize = 16;

impl<T: Show> Show for Vec<T> {
    fn show(&self) -> String {
        self.as_slice().show()
    }
}

impl<T: Show> Show for [T] {
    fn show(&self) -> String {
        let mut shown: Vec<_> = self.iter().take(MAX_LISTED).map(Show::show).collect();
        if self.len() > MAX_LISTED {
            let all: Vec<_> = self.iter().map(Show::show).collect();
            let (_, content) = fingerprint(all.iter().map(String::as_bytes));
            shown.push(format!("and {} more (content {:08x})", self.len() - MAX_LISTED, content >> 32));
        }
        format!("[{}]", shown.join(", "))
    }
}

impl Show for Box<[u8]> {
    fn show(&self) -> String {
        bytes(self)
    }
}

impl Show for SocketAddr {
    /// An address of this machine that connects come from: without its port of 0.
    fn show(&self) -> String {
        self.ip().to_string()
    }
}

impl Show for Access {
    fn show(&self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::Stdout => "stdout".to_owned(),
            Self::Stderr => "stderr".to_owned(),
            Self::File(path) => text(&path.display().to_string()),
        }
    }
}

impl Show for StateFile {
    fn show(&self) -> String {
        match self {
            Self::Given => "default".to_owned(),
            Self::Off => "off".to_owned(),
            Self::At(path) => text(&path.display().to_string()),
        }
    }
}

impl Show for PathBuf {
    fn show(&self) -> String {
        text(&self.display().to_string())
    }
}

/// Of the admin endpoint: one stands for itself, and none is `off`.
pub fn addresses(listen: &Vec<BindAddr>) -> String {
    match listen.as_slice() {
        [] => "off".to_owned(),
        [one] => one.show(),
        several => several.show(),
    }
}

impl Show for Owner {
    fn show(&self) -> String {
        match self {
            Self::Name(name) => name.show(),
            Self::Number(number) => number.show(),
        }
    }
}

impl Show for Capability {
    fn show(&self) -> String {
        self.word().to_owned()
    }
}

impl Show for RangeInclusive<u16> {
    fn show(&self) -> String {
        if self.start() == self.end() { self.start().to_string() } else { format!("{}-{}", self.start(), self.end()) }
    }
}

impl Show for Protocol {
    fn show(&self) -> String {
        self.as_str().to_owned()
    }
}

impl Show for WeightedPool {
    fn show(&self) -> String {
        format!("{}*{}", self.pool, self.weight)
    }
}

impl Show for Destination {
    fn show(&self) -> String {
        match self {
            Self::Pool(pool) => format!("pool {pool}"),
            Self::Pools(pools) => format!("pools {}", pools.show()),
            Self::Refuse => "refuse".to_owned(),
        }
    }
}

impl Show for AcceptProxy {
    fn show(&self) -> String {
        if self.required { "required".to_owned() } else { "optional".to_owned() }
    }
}

/// Bytes that somebody has written as text or in hexadecimal digits.
pub fn bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(readable) if !readable.contains(words::is_unsafe) => text(readable),
        _ => {
            use std::fmt::Write;
            let mut shown = "hex:".to_owned();
            for byte in bytes.iter().take(64) {
                let _ = write!(shown, "{byte:02x}");
            }
            if bytes.len() > 64 {
                shown.push('…');
            }
            shown
        }
    }
}

/// A size in bytes.
pub fn size<T: Copy + TryInto<u64>>(size: &T) -> String {
    (*size).try_into().map_or_else(|_| "?".to_owned(), unit::show_bytes)
}

pub fn size_or_off<T: Copy + TryInto<u64>>(bytes: &Option<T>) -> String {
    bytes.as_ref().map_or_else(|| "off".to_owned(), size)
}

/// Bytes a second.
pub fn byte_rate(rate: &Option<u64>) -> String {
    rate.map_or_else(|| "off".to_owned(), |rate| format!("{}/s", unit::show_bytes(rate)))
}

/// What is chosen where there is no value.
pub fn or_default<T: Show>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| "default".to_owned(), Show::show)
}

/// Where nothing is asked.
pub fn or_any<T: Show>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| "any".to_owned(), Show::show)
}

/// In octal digits.
pub fn mode(mode: &Option<u32>) -> String {
    mode.map_or_else(|| "default".to_owned(), |mode| format!("{mode:04o}"))
}

/// In seconds.
pub fn seconds(seconds: &Option<u32>) -> String {
    seconds.map(|seconds| Duration::from_secs(seconds.into())).show()
}

/// The file, and what its content is told by.
pub fn ca(ca: &Option<Ca>) -> String {
    let Some(ca) = ca else { return "any".to_owned() };
    let (_, content) = fingerprint(ca.certificates.iter().map(AsRef::as_ref));
    format!("{} (content {:08x})", text(&ca.path.display().to_string()), content >> 32)
}

/// How many parts there are, and what tells them from others.
fn fingerprint<'b>(parts: impl IntoIterator<Item = &'b [u8]>) -> (usize, u64) {
    let (mut hash, mut count) = (Xxh3::new(), 0);
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
        count += 1;
    }
    (count, hash.digest())
}

pub fn expect(expect: &Expect) -> String {
    match expect {
        Expect::Text(text) => bytes(text),
        Expect::Prefix(prefix) => format!("{} at its begin", bytes(prefix)),
    }
}

/// As in `target`.
pub fn target(pool: &Pool, group: &Group) -> String {
    match group {
        Group::Member(index) => pool.members.get(*index).map_or_else(String::new, |member| member.address.show()),
        Group::Any(groups) => {
            let groups: Vec<_> = groups.iter().map(|group| target(pool, group)).collect();
            format!("failover:({})", groups.join("|"))
        }
    }
}

/// The word of a value, from the words of its key.
pub fn word<T: PartialEq>(value: &T, words: &[(&'static str, T)]) -> String {
    words.iter().find(|(_, known)| known == value).map_or("?", |(word, _)| word).to_owned()
}
