//! From one table to the next: the pool that stays, the one that follows another, and the one that is gone.
//!
//! Owns the bond between pools that follow each other. A pool of which only the members change stays the same one
//! ([`Pool::is_as`]), and nothing moves. Else there is a new one in its place, which goes on with what both have in
//! common: backends that stay, those that wait and are held, what was learned of latency, hedges that were saved up.
//! The old one is *retired*: its sessions keep it, and it goes on by its own config, but says nothing in the metrics
//! any more, and what they find out about a backend is for the pool that has it now to judge. Who still waits for a
//! backend goes on with that pool, too. Of one that left the table without another, those that are held or wait are
//! told at once that there is nothing to wait for.
//!
//! Invariant: of the pools that follow each other, all know the last one, and no more than that of each other.

use super::{Backend, Pool};
use crate::config;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A pool's place among those that follow each other.
pub(super) struct Succession {
    /// All that it was made from but its members and the policy among them.
    config: config::Pool,
    retired: AtomicBool,
    pub last: Last,
}

/// The one of the present table, if there is one; shared by all that follow each other.
#[derive(Clone, Default)]
pub(super) struct Last(Arc<Mutex<Weak<Pool>>>);

impl Last {
    pub fn set(&self, pool: Option<&Arc<Pool>>) {
        *self.lock() = pool.map(Arc::downgrade).unwrap_or_default();
    }

    fn get(&self) -> Option<Arc<Pool>> {
        self.lock().upgrade()
    }

    fn lock(&self) -> MutexGuard<'_, Weak<Pool>> {
        // It is whole at each instant.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Succession {
    pub fn new(config: &config::Pool, last: Last) -> Self {
        Self { config: without_members(config), retired: AtomicBool::new(false), last }
    }
}

/// What has to be the same for a pool to be the same.
fn without_members(config: &config::Pool) -> config::Pool {
    config::Pool {
        members: Vec::new(),
        balance: config::Balance::RoundRobin,
        backend_max_connections: None,
        ..config.clone()
    }
}

impl Pool {
    /// Whether a pool of this config differs from this one by no more than its members, their order of preference and
    /// what each of them may have: then this one can have these.
    #[must_use]
    pub fn is_as(&self, config: &config::Pool) -> bool {
        self.succession.config == without_members(config)
    }

    /// It is not in the table any more; `successor` is in its place, if there is one. To be called once that one is
    /// ready.
    pub fn retire(&self, successor: Option<&Arc<Self>>) {
        self.succession.last.set(successor);
        self.succession.retired.store(true, Relaxed);
        let metrics = &self.metrics;
        self.view.load().withdraw_but(successor.map(|next| next.view()).as_deref());
        if successor.is_none() {
            metrics.withdraw();
        }
        if self.queue.is_some() && successor.is_none_or(|next| next.queue.is_none()) {
            metrics.queue().max_waiting.set(0);
        }
        if self.shed.is_some() && successor.is_none_or(|next| next.shed.is_none()) {
            metrics.shed().probability.set(0.0);
        }
        if let Some(hold) = self.hold.as_ref().filter(|_| successor.is_none_or(|next| next.hold.is_none())) {
            hold.dissolve();
        }
        // Whoever waits finds that there is another pool, or none.
        self.waiting.nudge(true);
    }

    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.succession.retired.load(Relaxed)
    }

    /// The pool in the place of one that was retired, if there is one.
    #[must_use]
    pub fn successor(&self) -> Option<Arc<Self>> {
        if !self.is_retired() {
            return None;
        }
        self.succession.last.get().filter(|last| !last.is_retired())
    }

    /// Whose it is to judge a backend, if that isn't this pool's.
    pub(super) fn judge_of(&self, backend: &Backend) -> Option<Arc<Self>> {
        let next = self.successor()?;
        let has_it = next.view.load().backends.iter().any(|known| known.id == backend.id);
        has_it.then_some(next)
    }
}
