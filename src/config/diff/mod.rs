//! What is different between two configs: which things are added, removed or changed, and which keys of each.
//!
//! Owns how things are told apart (by name; a backend by address and name, as a table keeps its state) and which keys
//! need a new process. Invariants: the difference of a config and itself is empty, and a config with its difference
//! to another applied to it is that other one; only where a backend stands in the file is no part of either. Secrets
//! are never written out, neither before nor after. Next: `keys` for the keys and their values, `plan` for what a
//! difference means to a process.

mod keys;
mod show;

#[cfg(test)]
mod tests;

use super::{Config, Listener, Member, Pool, Route, SharedLimit};
use keys::Key;
use show::Text;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Keys that are read once, when a process starts: a reload that changes them leaves them as they are, and an upgrade
/// does it.
pub const NEEDS_NEW_PROCESS: &[&str] = &[
    "runtime.workers",
    "runtime.relay",
    "runtime.user",
    "runtime.group",
    "runtime.keep_capabilities",
    "runtime.landlock",
    "runtime.state_file",
    "log.format",
    "log.access",
];

/// From one config to another.
#[derive(Debug)]
pub struct Diff<'c> {
    /// Keys of `runtime`, `admin` and `log`, and the config to take them from.
    process: Keys<'c, Config>,
    pub limits: Things<'c, SharedLimit>,
    pub listeners: Things<'c, Listener>,
    /// By the name of the listener, of those that stay and whose routes differ.
    pub routes: BTreeMap<Cow<'c, str>, Things<'c, Route>>,
    pub pools: Things<'c, Pool>,
    /// By the name of the pool, of those that stay and whose backends differ.
    pub backends: BTreeMap<Cow<'c, str>, Things<'c, Member>>,
}

/// One kind of things.
#[derive(Debug)]
pub struct Things<'c, T: Thing> {
    /// In the order of the file, as those below.
    pub removed: Vec<&'c T>,
    pub added: Vec<&'c T>,
    pub changed: Vec<Changed<'c, T>>,
    /// Whether those that stay do so in another order.
    pub is_reordered: bool,
    /// Of all, where it isn't that of those that stay, and then those that come.
    order: Option<Vec<Cow<'c, str>>>,
}

/// A thing that both have, but not with the same keys.
#[derive(Debug)]
pub struct Changed<'c, T: Thing> {
    pub from: &'c T,
    keys: Keys<'c, T>,
}

/// The keys that differ.
#[derive(Debug)]
struct Keys<'c, T: 'static> {
    to: &'c T,
    differ: Vec<&'static Key<T>>,
    changes: Vec<KeyChange>,
}

/// A key whose value is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// Within its table: `connect.timeout`.
    pub key: &'static str,
    /// As a config would have it; `None` where the table that it is in wasn't there.
    pub from: Option<String>,
    /// The same, where the table isn't there any more.
    pub to: Option<String>,
}

/// What has a name among its like.
pub trait Thing: Clone + 'static {
    /// What tells it from others of its kind.
    fn id(&self) -> Cow<'_, str>;

    #[doc(hidden)]
    fn keys() -> &'static [Key<Self>];
}

impl<'c> Diff<'c> {
    /// What must be done to `from` for it to be `to`.
    #[must_use]
    pub fn of(from: &'c Config, to: &'c Config) -> Self {
        Self {
            process: Keys::between(from, to, keys::PROCESS),
            limits: Things::between(&from.limits, &to.limits),
            listeners: Things::between(&from.listeners, &to.listeners),
            routes: parts(&from.listeners, &to.listeners, |listener| &listener.routes),
            pools: Things::between(&from.pools, &to.pools),
            backends: parts(&from.pools, &to.pools, |pool| &pool.members),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.process.is_empty()
            && self.limits.is_empty()
            && self.listeners.is_empty()
            && self.routes.is_empty()
            && self.pools.is_empty()
            && self.backends.is_empty()
    }

    /// Keys of `runtime`, `admin` and `log`, with the name of their table.
    #[must_use]
    pub fn process(&self) -> &[KeyChange] {
        &self.process.changes
    }

    /// Those of [`NEEDS_NEW_PROCESS`] that differ.
    #[must_use]
    pub fn needs_new_process(&self) -> Vec<&'static str> {
        let changed = |key: &&&str| self.process.changes.iter().any(|change| change.key == **key);
        NEEDS_NEW_PROCESS.iter().filter(changed).copied().collect()
    }

    /// `config` with what differs taken over, and nothing else.
    #[must_use]
    pub fn apply(&self, config: &Config) -> Config {
        let mut config = config.clone();
        self.process.apply(&mut config);
        config.limits = self.limits.apply(&config.limits);
        config.listeners = self.listeners.apply(&config.listeners);
        for listener in &mut config.listeners {
            if let Some(routes) = self.routes.get(listener.name.as_str()) {
                listener.routes = routes.apply(&listener.routes);
            }
        }
        config.pools = self.pools.apply(&config.pools);
        for pool in &mut config.pools {
            if let Some(backends) = self.backends.get(pool.name.as_str()) {
                pool.members = backends.apply(&pool.members);
            }
        }
        config
    }
}

/// What differs of the parts of the things that both have.
fn parts<'c, T: Thing, P: Thing>(
    from: &'c [T],
    to: &'c [T],
    parts: impl Fn(&'c T) -> &'c [P],
) -> BTreeMap<Cow<'c, str>, Things<'c, P>> {
    let before: HashMap<_, _> = from.iter().map(|thing| (thing.id(), thing)).collect();
    let both = to.iter().filter_map(|thing| Some((*before.get(&thing.id())?, thing)));
    let differ = both.map(|(from, to)| (to.id(), Things::between(parts(from), parts(to))));
    differ.filter(|(_, things)| !things.is_empty()).collect()
}

impl<'c, T: Thing> Things<'c, T> {
    fn between(from: &'c [T], to: &'c [T]) -> Self {
        let before: HashMap<_, _> = from.iter().map(|thing| (thing.id(), thing)).collect();
        let after: HashSet<_> = to.iter().map(Thing::id).collect();
        let removed = from.iter().filter(|thing| !after.contains(&thing.id())).collect();
        let added = to.iter().filter(|thing| !before.contains_key(&thing.id())).collect();
        let pairs = to.iter().filter_map(|thing| Some((*before.get(&thing.id())?, thing)));
        let changed =
            pairs.map(|(from, to)| Changed::between(from, to)).filter(|changed| !changed.keys.is_empty()).collect();
        let stayed = || from.iter().map(Thing::id).filter(|id| after.contains(id));
        let stay = to.iter().map(Thing::id).filter(|id| before.contains_key(id));
        let is_reordered = !stayed().eq(stay);
        let come = to.iter().map(Thing::id).filter(|id| !before.contains_key(id));
        let is_in_order = stayed().chain(come).eq(to.iter().map(Thing::id));
        let order = (!is_in_order).then(|| to.iter().map(Thing::id).collect());
        Self { removed, added, changed, is_reordered, order }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty() && self.changed.is_empty() && self.order.is_none()
    }

    fn apply(&self, things: &[T]) -> Vec<T> {
        let removed: HashSet<_> = self.removed.iter().map(|thing| thing.id()).collect();
        let changed: HashMap<_, _> = self.changed.iter().map(|changed| (changed.from.id(), changed)).collect();
        let stay = things.iter().filter(|thing| !removed.contains(&thing.id()));
        let stay = stay.map(|thing| match changed.get(&thing.id()) {
            Some(changed) => changed.apply(thing),
            None => thing.clone(),
        });
        let mut things: Vec<T> = stay.chain(self.added.iter().map(|&thing| thing.clone())).collect();
        if let Some(order) = &self.order {
            let places: HashMap<&str, usize> = order.iter().enumerate().map(|(place, id)| (&**id, place)).collect();
            things.sort_by_key(|thing| places.get(&*thing.id()).copied());
        }
        things
    }
}

impl<'c, T: Thing> Changed<'c, T> {
    fn between(from: &'c T, to: &'c T) -> Self {
        Self { from, keys: Keys::between(from, to, T::keys()) }
    }

    /// As it will be.
    #[must_use]
    pub fn to(&self) -> &'c T {
        self.keys.to
    }

    #[must_use]
    pub fn keys(&self) -> &[KeyChange] {
        &self.keys.changes
    }

    fn apply(&self, thing: &T) -> T {
        let mut thing = thing.clone();
        self.keys.apply(&mut thing);
        thing
    }
}

impl<'c, T> Keys<'c, T> {
    fn between(from: &T, to: &'c T, keys: &'static [Key<T>]) -> Self {
        let differ: Vec<_> = keys.iter().filter(|key| (key.differs)(from, to)).collect();
        let changes = differ.iter().flat_map(|key| between(&(key.texts)(from), &(key.texts)(to))).collect();
        Self { to, differ, changes }
    }

    fn is_empty(&self) -> bool {
        self.differ.is_empty()
    }

    fn apply(&self, thing: &mut T) {
        for key in &self.differ {
            (key.take)(thing, self.to);
        }
    }
}

/// What differs of the value of a key, or of several keys if it is a table.
fn between(from: &[Text], to: &[Text]) -> Vec<KeyChange> {
    let mut changes = Vec::new();
    for text in to {
        match from.iter().find(|before| before.key == text.key) {
            Some(before) if before == text => {}
            before => changes.push(KeyChange {
                key: text.key,
                from: before.map(|before| before.value.clone()),
                to: Some(text.value.clone()),
            }),
        }
    }
    let gone = from.iter().filter(|before| to.iter().all(|text| text.key != before.key));
    changes.extend(gone.map(|text| KeyChange { key: text.key, from: Some(text.value.clone()), to: None }));
    changes
}

macro_rules! thing {
    ($type:ty, $keys:expr, |$it:ident| $id:expr) => {
        impl Thing for $type {
            fn id(&self) -> Cow<'_, str> {
                let $it = self;
                $id
            }

            fn keys() -> &'static [Key<Self>] {
                $keys
            }
        }
    };
}

thing!(SharedLimit, keys::LIMIT, |limit| limit.name.as_str().into());
thing!(Listener, keys::LISTENER, |listener| listener.name.as_str().into());
thing!(Route, keys::ROUTE, |route| (&*route.name).into());
thing!(Pool, keys::POOL, |pool| pool.name.as_str().into());
// As a table tells backends apart: what has another name is another one, which begins anew.
thing!(Member, keys::BACKEND, |member| match &member.name {
    Some(name) => format!("{name} ({})", member.address).into(),
    None => member.address.to_string().into(),
});
