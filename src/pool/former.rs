//! Backends that have left a pool, and of which sessions are left.
//!
//! Owns the way back: whoever returns, at the same address and by the same name, is the one that left. So its old
//! sessions count for its maximum, for the policy and for a drain, as all others do. What was known of its health
//! doesn't: nobody has asked since.

use super::Pool;
use super::backend::Backend;
use super::succession::Last;
use super::view::Shared;
use crate::name::PoolName;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Those of one pool.
#[derive(Debug, Default)]
pub(super) struct Former(Mutex<Vec<Weak<Backend>>>);

/// What is left of a pool that has gone.
#[derive(Clone)]
pub struct FormerPool {
    pub name: PoolName,
    pub(super) shared: Shared,
    pub(super) last: Last,
}

impl Former {
    /// Those that may return.
    pub fn living(&self) -> Vec<Arc<Backend>> {
        self.all().iter().filter_map(Weak::upgrade).collect()
    }

    /// These have left, and no others.
    pub fn set<'a>(&self, backends: impl Iterator<Item = &'a Arc<Backend>>) {
        *self.all() = backends.map(Arc::downgrade).collect();
    }

    fn has_sessions(&self) -> bool {
        self.all().iter().any(|backend| backend.strong_count() > 0)
    }

    fn all(&self) -> MutexGuard<'_, Vec<Weak<Backend>>> {
        // It is whole at each instant.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FormerPool {
    /// This one is in its place now. To be called once that is ready.
    pub fn return_as(&self, pool: &Arc<Pool>) {
        self.last.set(Some(pool));
    }

    /// Whether there is anything that would return with it.
    #[must_use]
    pub fn has_sessions(&self) -> bool {
        self.shared.former.has_sessions()
    }
}

impl Pool {
    /// What is to be kept of it for the case that it returns. For one that leaves the table.
    #[must_use]
    pub fn leave(&self) -> FormerPool {
        let shared = self.shared();
        shared.former.set(shared.former.living().iter().chain(&self.view().backends));
        FormerPool { name: self.name.clone(), shared, last: self.succession.last.clone() }
    }
}
