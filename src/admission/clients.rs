//! What is remembered of each client: how many connections it has, and what its rate limit holds against it. Bounded,
//! also under a flood of a million addresses.
//!
//! Owns the table. A client is an address cut to a prefix ([`Key`]). The table is in shards, each with a lock of its
//! own, and found by a keyed hash, so that nobody can choose addresses that meet in one place. Who goes when it is
//! full: of those without connections the one that came longest ago, and among the first few of these rather one that
//! its limit holds nothing against.
//!
//! The numbers may change while connections come and go: what is counted and owed goes on ([`Clients::renew`]).
//!
//! Invariants: no more entries than the maximum, ever, but for clients that had connections when it was lowered; one
//! with connections is never forgotten, so that its count is right; a newcomer that finds only such ones is let in
//! unseen, and both that and the loss of a debt are told to the caller, to be counted. Memory: about a hundred bytes
//! for each client remembered, taken as they come.

use super::rate::Gcra;
use crate::clock::Nanos;
use crate::config::ClientPrefix;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Shards of a table that is large enough for them.
const SHARDS: usize = 16;
/// With fewer entries than this in each, shards would fill too unevenly.
const LEAST_PER_SHARD: usize = 256;
/// How many of the longest unseen are looked at for one without a debt.
const LOOKS: usize = 8;
/// The end of a list of slots.
const NONE: u32 = u32::MAX;

/// A client as limits see it: its address, cut to a prefix. IPv4 ones are kept apart by the prefix `::ffff:0:0/96`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u64; 2]);

impl Key {
    #[must_use]
    pub fn of(address: IpAddr, prefix: ClientPrefix) -> Self {
        let (number, host) = match address {
            IpAddr::V4(address) => (address.to_ipv6_mapped().to_bits(), 32 - u32::from(prefix.ipv4.min(32))),
            IpAddr::V6(address) => (address.to_bits(), 128 - u32::from(prefix.ipv6.min(128))),
        };
        let cut = u128::MAX.checked_shl(host).unwrap_or(0) & number;
        Self([(cut >> 64) as u64, cut as u64])
    }
}

/// The limits of each client, and who they are.
#[derive(Debug)]
pub struct Clients {
    shards: Box<[Mutex<Shard>]>,
    hash: RandomState,
    pub prefix: ClientPrefix,
}

/// The numbers that a table goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Remembered at once; at least one.
    pub max_clients: usize,
    /// Of each.
    pub max_connections: Option<u32>,
    pub rate: Option<Gcra>,
}

/// Why a client is refused for its own sake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooMany {
    Connections,
    /// Too many connections in too short a time.
    Rate,
}

/// What became of a client that is let in.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered {
    /// Counted, until [`Clients::leave`].
    Counted { slot: Slot, forgot_a_debt: bool },
    /// There is no room for it: all that are remembered have connections.
    Untracked,
}

/// One connection of a client in the table. Not `Clone`: it leaves once.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    shard: u32,
    index: u32,
}

impl Clients {
    #[must_use]
    pub fn new(prefix: ClientPrefix, rules: Rules) -> Self {
        let shards = if rules.max_clients >= SHARDS * LEAST_PER_SHARD { SHARDS } else { 1 };
        let shard = || Mutex::new(Shard::new(rules.of_each(shards)));
        Self { shards: (0..shards).map(|_| shard()).collect(), hash: RandomState::new(), prefix }
    }

    /// Goes by other numbers from now on. Who has more connections than it may have now keeps them; who has come more
    /// often than it may owes for as many connections as before, at the new rate. The shards stay as many as they are:
    /// each remembers at least one client.
    pub fn renew(&self, rules: Rules, now: Nanos) {
        for shard in &self.shards {
            lock(shard).renew(rules.of_each(self.shards.len()), now);
        }
    }

    /// One more connection of the client at this address; or why not.
    pub fn enter(&self, address: IpAddr, now: Nanos) -> Result<Entered, TooMany> {
        let key = Key::of(address, self.prefix);
        let at = if self.shards.len() == 1 { 0 } else { self.hash.hash_one(key) as usize % self.shards.len() };
        let shard = &mut *lock(&self.shards[at]);
        let (index, forgot_a_debt) = match shard.index.get(&key) {
            Some(&index) => (index, false),
            None => match shard.make_room(now) {
                Some(forgot_a_debt) => (shard.insert(key), forgot_a_debt),
                None => return Ok(Entered::Untracked),
            },
        };
        let entry = &mut shard.entries[index as usize];
        if entry.connections >= shard.max_connections {
            return Err(TooMany::Connections);
        }
        if let Some(rate) = shard.rate {
            let Ok(due) = rate.take(entry.due, now) else {
                if entry.connections == 0 {
                    shard.unlink(index);
                    shard.link_last(index);
                }
                return Err(TooMany::Rate);
            };
            entry.due = due;
        }
        entry.connections += 1;
        if entry.connections == 1 {
            shard.unlink(index);
        }
        Ok(Entered::Counted { slot: Slot { shard: at as u32, index }, forgot_a_debt })
    }

    /// The connection is over.
    pub fn leave(&self, slot: &Slot) {
        self.end(slot, |_, due| due);
    }

    /// The connection didn't come to be: its client owes nothing for it.
    pub fn give_back(&self, slot: &Slot) {
        self.end(slot, Gcra::give_back);
    }

    fn end(&self, slot: &Slot, settle: impl FnOnce(Gcra, Nanos) -> Nanos) {
        let shard = &mut *lock(&self.shards[slot.shard as usize]);
        let entry = &mut shard.entries[slot.index as usize];
        entry.connections -= 1;
        if let Some(rate) = shard.rate {
            entry.due = settle(rate, entry.due);
        }
        if entry.connections == 0 {
            shard.link_last(slot.index);
            // Without a rate, it's nothing worth remembering.
            if shard.rate.is_none() || shard.index.len() > shard.capacity {
                shard.forget(slot.index);
            }
        }
    }

    /// How many clients are remembered now.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).index.len()).sum()
    }

    /// How many may be remembered.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).capacity).sum()
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // Nothing under the lock can leave the shard half changed.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rules {
    /// For one of so many shards, which share the maximum among them.
    fn of_each(self, shards: usize) -> Self {
        // A slot's number is less than `NONE`.
        Self { max_clients: (self.max_clients / shards).clamp(1, NONE as usize - 1), ..self }
    }
}

/// A part of the table: where each client's entry is, and those without connections in the order of their last visit.
#[derive(Debug)]
struct Shard {
    /// How many clients it may remember.
    capacity: usize,
    /// Of each of them.
    max_connections: u32,
    rate: Option<Gcra>,
    index: HashMap<Key, u32>,
    entries: Vec<Entry>,
    /// Entries that are nobody's, linked by `next`.
    free: u32,
    first: u32,
    last: u32,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    /// Of the rate limit.
    due: Nanos,
    connections: u32,
    /// Neighbours among those without connections.
    previous: u32,
    next: u32,
}

impl Shard {
    fn new(rules: Rules) -> Self {
        let Rules { max_clients, max_connections, rate } = rules;
        let max_connections = max_connections.unwrap_or(u32::MAX);
        let (index, entries) = (HashMap::new(), Vec::new());
        Self { capacity: max_clients, max_connections, rate, index, entries, free: NONE, first: NONE, last: NONE }
    }

    fn renew(&mut self, rules: Rules, now: Nanos) {
        let before = self.rate;
        self.capacity = rules.max_clients;
        self.max_connections = rules.max_connections.unwrap_or(u32::MAX);
        self.rate = rules.rate;
        if before != rules.rate {
            for &index in self.index.values() {
                let entry = &mut self.entries[index as usize];
                entry.due = match (before, rules.rate) {
                    (Some(before), Some(after)) => before.converted(entry.due, after, now),
                    _ => 0,
                };
            }
        }
        // Of those without connections, whom nobody needs to remember, and for whom there is no room.
        while self.first != NONE && (self.rate.is_none() || self.index.len() > self.capacity) {
            self.forget(self.first);
        }
    }

    /// Makes sure that one more fits; whether somebody with a debt had to go. `None` if nobody can go.
    fn make_room(&mut self, now: Nanos) -> Option<bool> {
        if self.index.len() < self.capacity {
            return Some(false);
        }
        let mut least = (self.first != NONE).then_some(self.first)?;
        for _ in 0..LOOKS {
            let looked_at = self.first;
            let due = self.entries[looked_at as usize].due;
            if due <= now {
                self.forget(looked_at);
                return Some(false);
            }
            if due < self.entries[least as usize].due {
                least = looked_at;
            }
            // The next newcomer looks at others.
            self.unlink(looked_at);
            self.link_last(looked_at);
        }
        self.forget(least);
        Some(true)
    }

    /// A new entry, as one without connections.
    fn insert(&mut self, key: Key) -> u32 {
        let entry = Entry { key, due: 0, connections: 0, previous: NONE, next: NONE };
        let index = if self.free == NONE {
            self.entries.push(entry);
            (self.entries.len() - 1) as u32
        } else {
            let index = self.free;
            self.free = std::mem::replace(&mut self.entries[index as usize], entry).next;
            index
        };
        self.index.insert(key, index);
        self.link_last(index);
        index
    }

    /// Drops an entry without connections.
    fn forget(&mut self, index: u32) {
        self.unlink(index);
        let entry = &mut self.entries[index as usize];
        entry.next = self.free;
        self.free = index;
        self.index.remove(&entry.key);
    }

    fn link_last(&mut self, index: u32) {
        let before = std::mem::replace(&mut self.last, index);
        match before {
            NONE => self.first = index,
            before => self.entries[before as usize].next = index,
        }
        let entry = &mut self.entries[index as usize];
        (entry.previous, entry.next) = (before, NONE);
    }

    fn unlink(&mut self, index: u32) {
        let Entry { previous, next, .. } = self.entries[index as usize];
        match previous {
            NONE => self.first = next,
            previous => self.entries[previous as usize].next = next,
        }
        match next {
            NONE => self.last = previous,
            next => self.entries[next as usize].previous = previous,
        }
    }
}

#[cfg(test)]
mod tests;
