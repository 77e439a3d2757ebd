//! May this connection be served at all: the process-wide limit on sessions, as permits.
//!
//! Owns the count; what happens to a client over the limit is decided by the [`Overflow`] that the config implies.
//! Pure but for its atomics. Next: `acceptor`, which asks for permits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The limit on sessions of the whole process.
#[derive(Debug)]
pub struct Admission {
    active: AtomicUsize,
    /// The most sessions at once since somebody asked.
    peak: AtomicUsize,
    max: usize,
    overflow: Overflow,
}

/// What a client finds when the limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// A reset at once: the operator set `max_connections`.
    Refuse,
    /// The accept queue: the limit is what the file descriptors carry.
    Wait,
}

/// The right to one session, until it is dropped.
#[derive(Debug)]
pub struct Permit(Arc<Admission>);

impl Admission {
    #[must_use]
    pub fn new(max: usize, overflow: Overflow) -> Self {
        Self { active: AtomicUsize::new(0), peak: AtomicUsize::new(0), max, overflow }
    }

    /// A permit, or `None` at the limit.
    #[must_use]
    pub fn admit(self: &Arc<Self>) -> Option<Permit> {
        let below = |active| (active < self.max).then_some(active + 1);
        let before = self.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).ok()?;
        if before >= self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(before + 1, Ordering::Relaxed);
        }
        Some(Permit(Arc::clone(self)))
    }

    #[must_use]
    pub fn overflow(&self) -> Overflow {
        self.overflow
    }

    #[must_use]
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// The most sessions at once since the last call.
    #[must_use]
    pub fn take_peak(&self) -> usize {
        self.peak.swap(self.active(), Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_stop_at_the_limit_and_come_back() {
        let admission = Arc::new(Admission::new(2, Overflow::Wait));
        let (first, _second) = (admission.admit().unwrap(), admission.admit().unwrap());
        assert!(admission.admit().is_none());
        drop(first);
        assert_eq!(admission.active(), 1);
        assert!(admission.admit().is_some());
        assert_eq!((admission.take_peak(), admission.active()), (2, 1));
    }
}
