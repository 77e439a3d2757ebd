//! How many connections the process serves, and what of its maximum is kept for single listeners.
//!
//! Owns the count. A [`Share`] is a listener's part in it: it may be promised some places, which nobody else gets even
//! while they are free. Invariants: the process never has more connections than its maximum; the connections of all
//! listeners, each taken as at least its reserve, are never more than the maximum, so that a reserve is always there.

use super::{Pressure, Refusal};
use crate::metrics::{LimitMetrics, Metrics, Scope};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The limits of the whole process.
#[derive(Debug)]
pub struct Process {
    /// Of all listeners, the connections or the reserve, whichever is more.
    taken: AtomicUsize,
    /// Of that, what is reserved and not used.
    unused: AtomicUsize,
    /// The most connections at once since somebody asked.
    peak: AtomicUsize,
    max: usize,
    /// Set while memory is short.
    pub pressure: Pressure,
    pub metrics: LimitMetrics,
}

impl Process {
    #[must_use]
    pub fn new(max: usize, pressure: Pressure, metrics: &Arc<Metrics>) -> Self {
        let zero = AtomicUsize::default;
        let metrics = LimitMetrics::new(metrics, Scope::Process, "", true, false);
        Self { taken: zero(), unused: zero(), peak: zero(), max, pressure, metrics }
    }

    /// Connections now.
    #[must_use]
    pub fn active(&self) -> usize {
        // Of reserves that are taken and given back just now, `unused` may be one below zero for an instant.
        let unused = self.unused.load(Ordering::Relaxed);
        let active = self.taken.load(Ordering::Relaxed).wrapping_sub(unused);
        if active > isize::MAX as usize { 0 } else { active }
    }

    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// The most connections at once since the last call.
    #[must_use]
    pub fn take_peak(&self) -> usize {
        self.peak.swap(self.active(), Ordering::Relaxed)
    }

    /// Counts a refusal, which it gives back.
    pub(super) fn refuse(&self, refusal: Refusal) -> Refusal {
        self.metrics.refused(refusal.bound, false);
        refusal
    }

    /// Shows in the metrics how things stand.
    pub(super) fn publish(&self) {
        self.metrics.connections.set(self.active() as i64);
        if let Some(max) = &self.metrics.max_connections {
            max.set(self.max as i64);
        }
    }

    fn enter(&self) -> bool {
        let below = |taken| (taken < self.max).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).is_ok()
    }

    fn leave(&self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }

    fn note_peak(&self) {
        let active = self.active();
        if active > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(active, Ordering::Relaxed);
        }
    }
}

/// One listener's part of the process's connections.
#[derive(Debug)]
pub struct Share {
    process: Arc<Process>,
    reserved: usize,
    /// Counted only where something is reserved.
    active: AtomicUsize,
}

impl Share {
    /// With so many places of its own, which must be free.
    #[must_use]
    pub fn new(process: &Arc<Process>, reserved: usize) -> Self {
        process.taken.fetch_add(reserved, Ordering::Relaxed);
        process.unused.fetch_add(reserved, Ordering::Relaxed);
        Self { process: Arc::clone(process), reserved, active: AtomicUsize::new(0) }
    }

    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    #[must_use]
    pub fn reserved(&self) -> usize {
        self.reserved
    }

    /// One more connection, if there is a place; until [`leave`](Self::leave).
    #[must_use]
    pub fn enter(&self) -> bool {
        let entered = if self.reserved == 0 { self.process.enter() } else { self.enter_reserved() };
        if entered {
            self.process.note_peak();
        }
        entered
    }

    fn enter_reserved(&self) -> bool {
        let mut active = self.active.load(Ordering::Relaxed);
        let mut beyond = false;
        loop {
            if active >= self.reserved && !beyond {
                beyond = self.process.enter();
                if !beyond {
                    return false;
                }
            }
            match self.active.compare_exchange_weak(active, active + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(other) => active = other,
            }
        }
        if active < self.reserved {
            self.process.unused.fetch_sub(1, Ordering::Relaxed);
            if beyond {
                // Another one left meanwhile, and made room in the reserve.
                self.process.leave();
            }
        }
        true
    }

    pub fn leave(&self) {
        if self.reserved > 0 && self.active.fetch_sub(1, Ordering::Relaxed) <= self.reserved {
            self.process.unused.fetch_add(1, Ordering::Relaxed);
        } else {
            self.process.leave();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.process.taken.fetch_sub(self.reserved, Ordering::Relaxed);
        self.process.unused.fetch_sub(self.reserved, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::*;

    fn process(max: usize) -> Arc<Process> {
        Arc::new(Process::new(max, Pressure::default(), &Arc::new(Metrics::new().unwrap())))
    }

    #[test]
    fn places_end_at_the_maximum_and_come_back() {
        let process = process(2);
        let share = Share::new(&process, 0);
        assert!(share.enter() && share.enter() && !share.enter());
        share.leave();
        assert_eq!(process.active(), 1);
        assert!(share.enter());
        assert_eq!((process.take_peak(), process.active()), (2, 2));
        share.leave();
        assert_eq!((process.take_peak(), process.take_peak()), (2, 1));
    }

    #[test]
    fn a_reserve_is_there_while_all_others_are_refused() {
        let process = process(10);
        let (kept, other) = (Share::new(&process, 3), Share::new(&process, 0));
        assert_eq!((0..20).filter(|_| other.enter()).count(), 7);
        assert_eq!((0..20).filter(|_| kept.enter()).count(), 3);
        assert_eq!((process.active(), process.take_peak()), (10, 10));
        // What others leave may be taken by anybody; the reserve comes back to its listener alone.
        other.leave();
        assert!(kept.enter() && !other.enter());
        kept.leave();
        assert!(other.enter());
        kept.leave();
        assert!(!other.enter() && kept.enter());
        drop(kept);
    }

    proptest! {
        /// Against the sum that the reserves are defined by.
        #[test]
        fn the_sum_of_connections_and_reserves_stays_within_the_maximum(
            reserves in prop::collection::vec(0_usize..4, 1..4),
            steps in prop::collection::vec((any::<usize>(), any::<bool>()), 1..200),
        ) {
            let process = process(reserves.iter().sum::<usize>() + 3);
            let shares: Vec<Share> = reserves.iter().map(|&reserved| Share::new(&process, reserved)).collect();
            let mut active = vec![0; shares.len()];
            let sum = |active: &[usize]| active.iter().zip(&reserves).map(|(&a, &r)| a.max(r)).sum::<usize>();
            for (at, enters) in steps {
                let at = at % shares.len();
                if enters {
                    active[at] += 1;
                    let fits = sum(&active) <= process.max();
                    prop_assert_eq!(shares[at].enter(), fits);
                    active[at] -= usize::from(!fits);
                } else if active[at] > 0 {
                    shares[at].leave();
                    active[at] -= 1;
                }
                prop_assert_eq!(process.active(), active.iter().sum::<usize>());
                prop_assert_eq!(process.taken.load(Ordering::Relaxed), sum(&active));
            }
        }
    }

    #[test]
    fn many_threads_leave_every_count_at_rest() {
        let process = process(12);
        let shares = [Share::new(&process, 4), Share::new(&process, 0)];
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (shares, process) = (&shares, &process);
                scope.spawn(move || {
                    let (mut rng, mut held) = (Rng::from_seed(seed), Vec::new());
                    for _ in 0..20_000 {
                        let at = rng.index(2);
                        if rng.below(2) == 0 && shares[at].enter() {
                            held.push(at);
                        } else if let Some(at) = held.pop() {
                            shares[at].leave();
                        }
                        assert!(process.taken.load(Ordering::Relaxed) <= 12);
                    }
                    for at in held {
                        shares[at].leave();
                    }
                });
            }
        });
        assert_eq!(process.active(), 0);
        assert_eq!((process.taken.load(Ordering::Relaxed), shares[0].active.load(Ordering::Relaxed)), (4, 0));
    }
}
