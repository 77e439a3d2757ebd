//! The routing table: which pool a session goes to. Immutable; a new config is a new table, swapped whole.
//!
//! Owns the pools, the listeners and the rules between them, and their number, the generation. Health, load and
//! membership change within it without another table. Finding a route does no I/O and allocates nothing.
//!
//! Invariant: each route leads to a pool of the same table. Next: `build` for how a table comes to be, `pool` for
//! what happens at the end of a route.

mod build;
mod hash;
mod listener;
#[cfg(test)]
mod tests;

pub use build::{Built, Resolution, Warning};
pub use hash::hash_key;
pub use listener::{BrokenSocket, Listener};

use crate::name::{ClientAddr, ListenerName, PoolName};
use crate::pool::Pool;
use std::sync::Arc;

/// Everything that decides where a session goes.
pub struct RoutingTable {
    /// 1 for the first table of the process, then one more for each.
    pub generation: u64,
    /// In the order of the config.
    pub listeners: Vec<Arc<Listener>>,
    /// In the order of the config.
    pub pools: Vec<Arc<Pool>>,
    /// Sorted by listener.
    routes: Vec<(ListenerName, Arc<Pool>)>,
}

/// What is known of a session before it is routed.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub listener: &'a ListenerName,
    pub client: ClientAddr,
}

impl RoutingTable {
    /// `None` if this table has no such listener, as for a session of one that was retired.
    #[must_use]
    pub fn route(&self, facts: &Facts<'_>) -> Option<&Arc<Pool>> {
        let found = self.routes.binary_search_by(|(listener, _)| listener.cmp(facts.listener)).ok()?;
        Some(&self.routes[found].1)
    }

    #[must_use]
    pub fn pool(&self, name: &PoolName) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| pool.name == *name)
    }
}
