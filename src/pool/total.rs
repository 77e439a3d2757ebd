//! What the backends of a pool have together, for a policy that compares one with all.
//!
//! Owns a count that is written with each claim and release, and so has its cache lines to itself. Only slots that a
//! bounded policy has handed out are in it; where there is no such policy, nobody looks at it or writes to it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Shared by a pool, its backends, and those that follow them from table to table. Cache lines are fetched in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Total {
    active: AtomicU32,
    weight: AtomicU64,
}

impl Total {
    /// The slots that exist, also those of backends that aren't used any more.
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    pub fn add(&self) {
        self.active.fetch_add(1, Relaxed);
    }

    pub fn sub(&self) {
        self.active.fetch_sub(1, Relaxed);
    }

    /// The weight of the backends in use, in parts of [`WHOLE_SHARE`](super::WHOLE_SHARE), as the last review found it.
    pub fn weight(&self) -> u64 {
        self.weight.load(Relaxed)
    }

    pub fn set_weight(&self, weight: u64) {
        self.weight.store(weight, Relaxed);
    }
}
