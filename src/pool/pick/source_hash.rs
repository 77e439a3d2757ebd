//! Source hash: a client stays on its backend, by the Maglev table of all members and without any shared state.
//!
//! Owns what happens where a client's own backend can't be had: whoever is down, full, tried or too loaded is passed
//! over, and the next other one along the table from the client's place is taken. So a backend's clients are spread
//! over all others while it is away, nobody else's move, and they come back to it.
//!
//! A backend that starts slowly, or whose agent wants less for it, gets that share of its clients, always the same
//! ones: as the share grows, each of the rest comes back once.
//!
//! With a bound on the load (Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016), nobody
//! takes a connection that would bring it above `max_load` times its share of all connections, rounded up. Who has only
//! a few is never above that. Where all are above, which for a moment counts can say, the bound doesn't count.

use super::maglev::Maglev;
use super::{Backend, Candidates, Slot};
use crate::config;
use crate::pool::total::Total;
use std::sync::Arc;

/// Places passed over before it is worth looking whether anybody at all would do.
const PATIENCE: usize = 32;

/// So many connections are never too many: the few of one client stay together in an idle pool, and one that has just
/// ended and is still counted doesn't send its client elsewhere.
const FEW: u32 = 4;

pub(in crate::pool) struct SourceHash {
    table: Maglev,
    bound: Option<Bound>,
}

/// How much more than its share a backend may have.
struct Bound {
    max_load: f64,
    total: Arc<Total>,
}

impl SourceHash {
    pub fn new(config: &config::Hash, backends: &[Arc<Backend>], weights: &[u16], total: &Arc<Total>) -> Self {
        let identities: Vec<String> = backends.iter().map(|backend| backend.address.to_string()).collect();
        Self {
            table: Maglev::new(&identities, weights, config.table_size),
            bound: config.max_load.map(|max_load| Bound { max_load, total: Arc::clone(total) }),
        }
    }

    pub fn pick(&self, candidates: &Candidates<'_>) -> Option<Slot> {
        let mut slot = self.offer(candidates, |index| candidates.claim_by_key(index))?;
        if self.bound.is_some() {
            slot.count_in_total();
        }
        Some(slot)
    }

    /// Whether it goes by the weight and the count of all.
    pub fn is_bounded(&self) -> bool {
        self.bound.is_some()
    }

    /// Where a client belongs if nothing stands in the way.
    pub fn home(&self, key: u64) -> Option<usize> {
        self.table.from(key).next()
    }

    /// The most connections that a backend may have, if it has as many.
    pub fn too_loaded(&self, candidates: &Candidates<'_>, index: usize) -> Option<u32> {
        let bound = self.bound.as_ref()?;
        (!bound.has_room(candidates, index)).then(|| bound.most(candidates, index))
    }

    /// The first along the table that `take` gets, among those that aren't too loaded, else among all.
    pub fn offer<T>(&self, candidates: &Candidates<'_>, mut take: impl FnMut(usize) -> Option<T>) -> Option<T> {
        let bounded = self.bound.as_ref().and_then(|bound| self.walk(candidates, Some(bound), &mut take));
        bounded.or_else(|| self.walk(candidates, None, &mut take))
    }

    fn walk<T>(
        &self,
        candidates: &Candidates<'_>,
        bound: Option<&Bound>,
        mut take: impl FnMut(usize) -> Option<T>,
    ) -> Option<T> {
        let fits = |index: usize| bound.is_none_or(|bound| bound.has_room(candidates, index));
        for (passed_over, index) in self.table.from(candidates.key()).enumerate() {
            if passed_over == PATIENCE
                && !(0..candidates.len()).any(|index| candidates.accepts_key(index) && fits(index))
            {
                return None;
            }
            if fits(index)
                && let Some(taken) = take(index)
            {
                return Some(taken);
            }
        }
        // One that has no place in the table for its small weight is there all the same.
        candidates.around().filter(|&index| fits(index)).find_map(take)
    }
}

impl Bound {
    fn has_room(&self, candidates: &Candidates<'_>, index: usize) -> bool {
        candidates.backend(index).active() < self.most(candidates, index)
    }

    /// The most connections that the backend may have, with the one that is looking for a place.
    fn most(&self, candidates: &Candidates<'_>, index: usize) -> u32 {
        let all = self.total.weight();
        if all == 0 {
            return u32::MAX;
        }
        let share = candidates.weight(index) as f64 / all as f64;
        let most = self.max_load * (f64::from(self.total.active()) + 1.0) * share;
        (most.ceil() as u32).max(FEW)
    }
}
