//! The routing table: which pool a session goes to. Immutable; a new config is a new table, swapped whole.
//!
//! Owns the pools, the listeners and the rules between them, and their number, the generation. Health, load and
//! membership change within it without another table. Finding a route does no I/O and allocates nothing.
//!
//! A listener that is no longer in the config leaves its ways behind for a while: its last clients have been accepted
//! already, and wait for a place, a header or their first bytes.
//!
//! Invariant: each route leads to a pool of the same table, or of one before it if its listener was retired. Next:
//! `build` for how a table comes to be, `pool` for what happens at the end of a route, `routes` for how one is found.

mod build;
mod hash;
mod listener;
mod routes;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_adjust;

pub use build::{Built, Resolution, Warning, members, settled};
pub use hash::{hash_key, hashed, hashed_address};
pub use listener::{BrokenSocket, Listener};
pub use routes::{Answer, ConditionSeen, Counted, Facts, Leads, Passed, Routes, Rule, RuleSeen, Verdict};

use crate::clock::Millis;
use crate::name::{ListenerName, PoolName};
use crate::pool::{FormerPool, Pool};
use std::sync::Arc;

/// Everything that decides where a session goes.
#[derive(Clone)]
pub struct RoutingTable {
    /// 1 for the first table of the process, then one more for each.
    pub generation: u64,
    /// In the order of the config.
    pub listeners: Vec<Arc<Listener>>,
    /// In the order of the config.
    pub pools: Vec<Arc<Pool>>,
    /// That may return while they have sessions.
    former: Vec<FormerPool>,
    /// Of any listener.
    wants_local: bool,
    /// Sorted by listener.
    ways: Vec<Ways>,
}

/// The ways of one listener.
#[derive(Clone)]
struct Ways {
    routes: Arc<Routes>,
    /// Of a retired listener: for how long they are kept.
    until: Option<Millis>,
}

impl Ways {
    fn is_wanted(&self, now: Millis) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl RoutingTable {
    /// Without listeners and pools, for a process that has no config yet.
    #[must_use]
    pub fn empty() -> Self {
        let (listeners, pools, former, ways) = Default::default();
        Self { generation: 0, listeners, pools, former, wants_local: false, ways }
    }

    /// Where a session goes, as far as that is known; counts nothing.
    #[must_use]
    pub fn route(&self, facts: &Facts<'_>) -> Verdict<'_> {
        self.routes(facts.listener).map_or(Verdict::NoRoute, |routes| routes.decide(facts, self.generation))
    }

    /// Where a session goes that has sent nothing in time; `None` if its listener says nothing of such.
    #[must_use]
    pub fn on_silence(&self, listener: &ListenerName) -> Option<(&Arc<Rule>, &Arc<Pool>)> {
        self.routes(listener)?.on_silence()
    }

    /// Whether a rule of the listener asks for the address that the client has connected to.
    #[must_use]
    pub fn wants_local(&self, listener: &ListenerName) -> bool {
        self.wants_local && self.routes(listener).is_some_and(|routes| routes.wants_local)
    }

    /// What each rule of the listener has to say, in the order in which they are asked; the listener's own pool last.
    #[must_use]
    pub fn explain_routes(&self, facts: &Facts<'_>) -> Vec<RuleSeen<'_>> {
        self.routes(facts.listener).map_or_else(Vec::new, |routes| routes.explain(facts))
    }

    /// The ways of a listener; `None` if this table has none of that name, as for one that was retired long ago.
    #[must_use]
    pub fn routes(&self, listener: &ListenerName) -> Option<&Routes> {
        let found = self.ways.binary_search_by(|ways| ways.routes.listener.cmp(listener)).ok()?;
        Some(&self.ways[found].routes)
    }

    /// When the ways of the first retired listener can be forgotten; `None` if there are none.
    #[must_use]
    pub fn forgets_at(&self) -> Option<Millis> {
        self.ways.iter().filter_map(|ways| ways.until).min()
    }

    /// The same table without the ways of listeners that were retired long enough ago.
    #[must_use]
    pub fn without_old_ways(&self, now: Millis) -> Self {
        let mut table = self.clone();
        table.ways.retain(|ways| ways.is_wanted(now));
        table
    }

    #[must_use]
    pub fn listener(&self, name: &ListenerName) -> Option<&Arc<Listener>> {
        self.listeners.iter().find(|listener| listener.name == *name)
    }

    #[must_use]
    pub fn pool(&self, name: &PoolName) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| pool.name == *name)
    }
}
