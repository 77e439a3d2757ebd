//! How many connections a backend has, and may have.
//!
//! Owns two atomics. Invariant: claims never bring the count above the maximum that holds at that moment; one that is
//! lowered takes nothing back.

use super::sync::{AtomicU32, Ordering, fence};

/// No maximum.
pub const UNLIMITED: u32 = u32::MAX;

#[derive(Debug)]
pub struct Count {
    active: AtomicU32,
    max: AtomicU32,
}

impl Count {
    pub fn new(max: u32) -> Self {
        Self { active: AtomicU32::new(0), max: AtomicU32::new(max) }
    }

    /// Whether there was room for one more, which is counted then.
    pub fn claim(&self) -> bool {
        let max = self.max();
        let below = |active| (active < max).then_some(active + 1);
        self.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).is_ok()
    }

    /// One less. Whether somebody may have waited for that, and has to be looked for.
    #[must_use]
    pub fn release(&self) -> bool {
        self.active.fetch_sub(1, Ordering::Relaxed);
        let bounded = self.max() != UNLIMITED;
        if bounded {
            // Whoever looks for waiting ones after this sees all that have looked at the count before it.
            fence(Ordering::SeqCst);
        }
        bounded
    }

    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    pub fn max(&self) -> u32 {
        self.max.load(Ordering::Relaxed)
    }

    pub fn is_full(&self) -> bool {
        self.active() >= self.max()
    }

    pub fn set_max(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
    }
}
