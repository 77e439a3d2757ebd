//! What another config would mean to a process that has one: what comes, what goes, what changes, what can't be had
//! without a new process, and how many live sessions each of these touches.
//!
//! Owns the words for the effects, and how severe a plan is; that the effects are so is the reload's to hold. Pure:
//! the numbers of sessions are handed in, and what becomes of that which operators have changed at run time. A session
//! never changes what it goes by, so that what is removed or changed serves those that it has to their end. Next:
//! `text` for how a plan is shown to people, `diff` for what differs.

mod adjusted;
mod binds;
mod text;

#[cfg(test)]
mod tests;

pub use adjusted::{Adjusted, Becomes};

use super::diff::{Changed, Diff, KeyChange, NEEDS_NEW_PROCESS, Thing, Things};
use super::{Config, Destination, Listener, Member, Pool, Route};
use crate::name::PoolName;
use binds::Binds;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};

/// What a reload would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub severity: Severity,
    /// Each in the order of the file: keys of the process, limits, listeners with their routes, pools with their
    /// backends.
    pub added: Vec<Entry>,
    pub removed: Vec<Entry>,
    pub changed: Vec<Entry>,
    /// Keys that a reload leaves as they are: an upgrade takes them over.
    pub restarted: Vec<Entry>,
    /// What operators have changed at run time, where that and the config make a difference to each other.
    #[serde(default)]
    pub adjustments: Vec<Adjusted>,
}

/// How much a plan is to its users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing would be otherwise.
    #[default]
    Nothing,
    Changes,
    /// An address isn't served any more or is bound anew, a pool loses all the backends that it had, or a key needs a
    /// new process.
    Disruptive,
}

/// One thing that a plan is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub kind: Kind,
    /// Of a backend its address, behind its name if it has one; of a key of the process the key.
    pub name: String,
    /// The pool of a backend, the listener of a route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// What it is or was, in a few words, where it comes or goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Change>,
    /// Live sessions that go by it now; they stay as they are. `None` where none do, or where nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u64>,
    /// Why its users will notice it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruptive: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A key of `runtime`, `admin` or `log`.
    Key,
    Limit,
    Listener,
    Route,
    Pool,
    Backend,
}

/// A key whose value is another one, as a config would have it; a secret is only said to be another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Live sessions, by the names that the config has for what they go by. Who isn't here has none.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    pub listeners: BTreeMap<String, u64>,
    pub pools: BTreeMap<String, u64>,
    /// By pool, then as [`backend_id`] calls them.
    pub backends: BTreeMap<String, BTreeMap<String, u64>>,
}

/// What a plan calls a backend of the config.
#[must_use]
pub fn backend_id(member: &Member) -> String {
    member.id().into_owned()
}

impl Severity {
    /// Of `tidegate plan`.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Changes => 2,
            Self::Disruptive => 3,
        }
    }
}

impl Plan {
    /// What a process with `from` would do if it were given `to`. Without sessions it is none that lives.
    #[must_use]
    pub fn of(from: &Config, to: &Config, sessions: Option<&Sessions>) -> Self {
        let diff = Diff::of(from, to);
        let mut plan = Self::default();
        plan.process(&diff);
        plan.things(Kind::Limit, None, &diff.limits, |_| String::new(), |_| None);
        plan.listeners(&diff, &Binds::of(from, to), sessions);
        plan.pools(&diff, from, sessions);
        plan.severity = plan.judged();
        plan
    }

    /// Takes in what the process was `started` with, if that isn't what it was compared with: a key that has that value
    /// again needs no new process.
    pub fn starts_from(&mut self, started: &Config, to: &Config) {
        let needed = Diff::of(started, to).needs_new_process();
        let restarted = std::mem::take(&mut self.restarted).into_iter();
        let (restarted, back): (_, Vec<_>) = restarted.partition(|entry| needed.contains(&entry.name.as_str()));
        self.restarted = restarted;
        self.changed.splice(0..0, back.into_iter().map(|entry| Entry { disruptive: None, ..entry }));
        self.severity = self.judged();
    }

    /// Takes in that the host name of a backend stands for other addresses than it did, which no config tells.
    pub fn resolves(&mut self, pool: &str, backend: &str, from: String, to: String, sessions: Option<u64>) {
        let change = Change { key: "addresses".to_owned(), from: Some(from), to: Some(to) };
        let is_same = |entry: &&mut Entry| {
            entry.kind == Kind::Backend && entry.name == backend && entry.of.as_deref() == Some(pool)
        };
        if let Some(entry) = self.changed.iter_mut().find(is_same) {
            entry.keys.push(change);
        } else {
            let entry = Entry::new(Kind::Backend, backend, Some(pool));
            self.changed.push(Entry { keys: vec![change], sessions, ..entry });
        }
        self.severity = self.judged();
    }

    fn judged(&self) -> Severity {
        let mut all = self.entries().peekable();
        if all.peek().is_none() {
            return Severity::Nothing;
        }
        let is_disruptive = !self.restarted.is_empty() || all.any(|(_, entry)| entry.disruptive.is_some());
        if is_disruptive { Severity::Disruptive } else { Severity::Changes }
    }

    fn process(&mut self, diff: &Diff) {
        for change in diff.process() {
            let entry = Entry { keys: vec![change.into()], ..Entry::new(Kind::Key, change.key, None) };
            if NEEDS_NEW_PROCESS.contains(&change.key) {
                let disruptive = Some("it needs a new process: tidegate upgrade".to_owned());
                self.restarted.push(Entry { disruptive, ..entry });
            } else {
                self.changed.push(entry);
            }
        }
    }

    /// The plain part, for every kind of things.
    fn things<T: Thing>(
        &mut self,
        kind: Kind,
        of: Option<&str>,
        things: &Things<T>,
        about: impl Fn(&T) -> String,
        sessions: impl Fn(&str) -> Option<u64>,
    ) {
        let entry = |thing: &T| Entry {
            about: Some(about(thing)).filter(|about| !about.is_empty()),
            ..Entry::new(kind, &thing.id(), of)
        };
        self.added.extend(things.added.iter().map(|thing| entry(thing)));
        self.removed
            .extend(things.removed.iter().map(|thing| Entry { sessions: sessions(&thing.id()), ..entry(thing) }));
        self.changed.extend(things.changed.iter().map(|changed: &Changed<T>| {
            let id = changed.to().id();
            let keys = changed.keys().iter().map(Change::from).collect();
            Entry { keys, sessions: sessions(&id), ..Entry::new(kind, &id, of) }
        }));
    }

    fn listeners(&mut self, diff: &Diff, binds: &Binds, sessions: Option<&Sessions>) {
        let sessions = |name: &str| Some(sessions?.listeners.get(name).copied().unwrap_or(0));
        let (removed, changed) = (self.removed.len(), self.changed.len());
        self.things(Kind::Listener, None, &diff.listeners, about_listener, sessions);
        for (entry, listener) in self.removed[removed..].iter_mut().zip(&diff.listeners.removed) {
            entry.disruptive = binds.disruptive(listener);
        }
        for (entry, listener) in self.changed[changed..].iter_mut().zip(&diff.listeners.changed) {
            entry.disruptive = binds.disruptive(listener.from);
        }
        for (listener, routes) in &diff.routes {
            self.things(Kind::Route, Some(listener), routes, about_route, |_| None);
            if routes.is_reordered {
                self.ordered(Kind::Listener, listener, "routes", sessions(listener));
            }
        }
    }

    fn pools(&mut self, diff: &Diff, from: &Config, sessions: Option<&Sessions>) {
        let of_pool = |name: &str| Some(sessions?.pools.get(name).copied().unwrap_or(0));
        let removed = self.removed.len();
        self.things(Kind::Pool, None, &diff.pools, about_pool, of_pool);
        let used: HashSet<&str> = from.listeners.iter().flat_map(Listener::pools).map(PoolName::as_str).collect();
        for (entry, pool) in self.removed[removed..].iter_mut().zip(&diff.pools.removed) {
            if used.contains(pool.name.as_str()) && !pool.members.is_empty() {
                entry.disruptive = Some("none of its backends gets new sessions by it".to_owned());
            }
        }
        for (pool, backends) in &diff.backends {
            let of_backend = |id: &str| {
                let backends = sessions?.backends.get(&**pool);
                Some(backends.and_then(|backends| backends.get(id)).copied().unwrap_or(0))
            };
            let removed = self.removed.len();
            self.things(Kind::Backend, Some(pool), backends, about_backend, of_backend);
            let before = from.pools.iter().find(|known| known.name.as_str() == &**pool);
            let had = before.map_or(0, |pool| pool.members.len());
            if had > 0 && backends.removed.len() == had {
                for entry in &mut self.removed[removed..] {
                    entry.disruptive = Some("the pool loses all the backends that it had".to_owned());
                }
            }
            if backends.is_reordered {
                self.ordered(Kind::Pool, pool, "backends", of_pool(pool));
            }
        }
    }

    /// The order of what a thing has is another one: a change of it like that of a key.
    fn ordered(&mut self, kind: Kind, name: &str, what: &str, sessions: Option<u64>) {
        let change = Change { key: format!("order of {what}"), from: None, to: None };
        match self.changed.iter_mut().find(|entry| entry.kind == kind && entry.name == name) {
            Some(entry) => entry.keys.push(change),
            None => self.changed.push(Entry { keys: vec![change], sessions, ..Entry::new(kind, name, None) }),
        }
    }
}

impl Entry {
    fn new(kind: Kind, name: &str, of: Option<&str>) -> Self {
        let (name, of) = (name.to_owned(), of.map(str::to_owned));
        Self { kind, name, of, about: None, keys: Vec::new(), sessions: None, disruptive: None }
    }
}

impl From<&KeyChange> for Change {
    fn from(change: &KeyChange) -> Self {
        Self { key: change.key.to_owned(), from: change.from.clone(), to: change.to.clone() }
    }
}

fn about_listener(listener: &Listener) -> String {
    let shown: Vec<_> = listener.bind.iter().take(3).map(ToString::to_string).collect();
    let more = if listener.bind.len() > 3 { format!(" and {} more", listener.bind.len() - 3) } else { String::new() };
    let to = listener.pool.as_ref().map(|pool| format!(" to pool {pool}")).unwrap_or_default();
    format!("on {}{more}{to}", shown.join(", "))
}

fn about_pool(pool: &Pool) -> String {
    let count = pool.members.len();
    let backends = format!("{count} backend{}", if count == 1 { "" } else { "s" });
    format!("{} over {backends}", pool.balance.as_str())
}

fn about_route(route: &Route) -> String {
    let pools: Vec<_> = route.to.pools().map(ToString::to_string).collect();
    match &route.to {
        Destination::Refuse => "refuses".to_owned(),
        Destination::Pool(_) => format!("to pool {}", pools.join(", ")),
        Destination::Pools(_) => format!("to pools {}", pools.join(", ")),
    }
}

fn about_backend(member: &Member) -> String {
    let weight = (member.weight != 1).then(|| format!("weight {}", member.weight));
    let tier = (member.tier != 0).then(|| format!("tier {}", member.tier));
    weight.into_iter().chain(tier).collect::<Vec<_>>().join(", ")
}
