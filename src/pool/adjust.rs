//! What an operator changes of a living pool: who its members are and what they weigh, and what he says of each.
//!
//! Owns the order: what is said of a backend stands before a view that has it is seen. A state or a health is a flag of
//! the backend; a weight, and members that come or go, are another view. Nobody else is touched: who stays keeps its
//! sessions, health, counts, slow start and ejection, and each picker its turn. A claim sees the one view or the other,
//! whole.

use super::backend::{Backend, Operator};
use super::view::{Members, PoolView, Purpose};
use super::{Pool, flag};
use crate::clock::Now;
use crate::config::Adjustment;
use crate::metrics::Metrics;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// By what `/status` calls each backend; who isn't in it is as the config has it.
pub type Adjusted = BTreeMap<String, Adjustment>;

impl Pool {
    /// Has these members from now on, and no others.
    ///
    /// A member that the pool already holds keeps its backend. One that is gone lives on until its last session has
    /// ended; see `former` for one that returns before that.
    pub fn set_members(&self, members: Members, adjusted: &Adjusted, metrics: &Arc<Metrics>, now: Now) {
        let shared = self.shared();
        let (name, health, hash) = (&self.name, &self.health, self.hash.as_ref());
        let purpose = Purpose { name, health, hash, metrics, shared: &shared };
        let before = self.view();
        let view = Arc::new(PoolView::new(purpose, members, adjusted, Some(&before), now));
        self.say(&view, adjusted, self.protection.slow_start, now);
        self.view.store(Arc::clone(&view));
        before.withdraw_but(Some(&view));
        self.review(now.millis);
    }

    /// Says of every backend what an operator says of it, and of nobody else anything any more. Whoever comes back by
    /// that starts slowly, unless `at_start` of the process.
    pub fn adjust(&self, adjusted: &Adjusted, metrics: &Arc<Metrics>, at_start: bool, now: Now) {
        let view = self.view();
        let slow_start = if at_start { Duration::ZERO } else { self.protection.slow_start };
        let changed = self.say(&view, adjusted, slow_start, now);
        if view.members.weights(adjusted) != view.weights {
            self.set_members(view.members.clone(), adjusted, metrics, now);
        } else if changed {
            self.review(now.millis);
        }
    }

    /// Whether that has changed anything.
    fn say(&self, view: &PoolView, adjusted: &Adjusted, slow_start: Duration, now: Now) -> bool {
        let mut changed = false;
        for backend in &view.backends {
            let said = adjusted.get(&*backend.label).copied().unwrap_or_default();
            changed |= self.say_of(backend, said, slow_start, now);
        }
        changed
    }

    fn say_of(&self, backend: &Backend, said: Adjustment, slow_start: Duration, now: Now) -> bool {
        let said = Operator { state: said.state.unwrap_or_default(), health: said.health.unwrap_or_default() };
        let was_up = backend.is_up();
        let changed = backend.set_operator(said, slow_start, now.millis);
        if was_up && !backend.is_up() {
            self.falls.fetch_add(1, Relaxed);
        }
        changed
    }

    /// Whether no backend is left but those that are taken out on purpose.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.view().backends.iter().all(|backend| backend.flags() & flag::OUT != 0)
    }
}
