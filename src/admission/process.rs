//! How many connections the process serves, and what of its maximum is kept for single listeners.
//!
//! Owns the count. A [`Share`] is a listener's part in it: it may be promised some places, which nobody else gets even
//! while they are free. Both the maximum and the promises may change while connections come and go. Invariants: nobody
//! is let in beyond the maximum, and nobody without a promise while the connections of all listeners, each taken as at
//! least its reserve, are as many as that; so a reserve is always there. After a change there may be more of them than
//! the maximum: nobody is cut for that, and nobody new comes in until it fits, beginning with those that have a
//! reserve.

use super::{Pressure, Refusal};
use crate::metrics::{LimitMetrics, Metrics, Scope};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The limits of the whole process.
#[derive(Debug)]
pub struct Process {
    /// A [`Tally`] in one word, so that nobody sees one half of it without the other.
    tally: AtomicU64,
    /// The most connections at once since somebody asked.
    peak: AtomicUsize,
    max: AtomicUsize,
    /// Set while memory is short.
    pub pressure: Pressure,
    pub metrics: LimitMetrics,
}

/// What the process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tally {
    /// Of all listeners, the connections or the reserve, whichever is more.
    taken: u32,
    /// Of that, what is reserved and not used. Of a place that several take and give back just now, some see it used
    /// twice: then it is below zero for an instant.
    unused: i32,
}

impl Tally {
    fn of(word: u64) -> Self {
        Self { taken: word as u32, unused: (word >> 32) as i32 }
    }

    fn word(self) -> u64 {
        u64::from(self.unused as u32) << 32 | u64::from(self.taken)
    }

    fn plus(self, taken: i32, unused: i32) -> Self {
        Self { taken: self.taken.wrapping_add_signed(taken), unused: self.unused.wrapping_add(unused) }
    }

    fn active(self) -> usize {
        (i64::from(self.taken) - i64::from(self.unused)).max(0) as usize
    }
}

impl Process {
    #[must_use]
    pub fn new(max: usize, pressure: Pressure, metrics: &Arc<Metrics>) -> Self {
        let metrics = LimitMetrics::new(metrics, Scope::Process, "", true, false);
        let (tally, peak) = (AtomicU64::default(), AtomicUsize::default());
        Self { tally, peak, max: AtomicUsize::new(max), pressure, metrics }
    }

    /// Connections now.
    #[must_use]
    pub fn active(&self) -> usize {
        self.tally().active()
    }

    #[must_use]
    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Sets the maximum. If there are more connections than that, they stay, and nobody new comes in until it fits.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
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
        self.metrics.publish(self.active(), Some(self.max()), None);
    }

    fn tally(&self) -> Tally {
        Tally::of(self.tally.load(Ordering::Relaxed))
    }

    /// Adds to both, if `fits` says so of what there is.
    fn add_if(&self, taken: i32, unused: i32, fits: impl Fn(Tally, usize) -> bool) -> bool {
        let next = |word| {
            let tally = Tally::of(word);
            fits(tally, self.max()).then(|| tally.plus(taken, unused).word())
        };
        self.tally.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    fn add(&self, taken: i32, unused: i32) {
        self.add_if(taken, unused, |_, _| true);
    }

    /// One more connection, which takes a place that nobody has and nobody is promised. While a place in a reserve is
    /// given back and taken again, there is one more connection than the places tell.
    fn enter(&self) -> bool {
        self.add_if(1, 0, |tally, max| (tally.taken as usize) < max && tally.active() < max)
    }

    /// One more connection, in a place that is taken already.
    fn enter_reserved(&self) -> bool {
        self.add_if(0, -1, |tally, max| tally.active() < max)
    }

    fn note_peak(&self) {
        let active = self.active();
        if active > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(active, Ordering::Relaxed);
        }
    }
}

/// One listener's part of the process's connections; the same one for as long as there is that listener.
#[derive(Debug)]
pub struct Share {
    process: Arc<Process>,
    /// A [`Part`] in one word.
    part: AtomicU64,
}

/// What a listener has and may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    active: u32,
    reserved: u32,
}

/// One connection more in the word of a [`Part`].
const ONE: u64 = 1;

impl Part {
    fn of(word: u64) -> Self {
        Self { active: word as u32, reserved: (word >> 32) as u32 }
    }

    fn word(self) -> u64 {
        u64::from(self.reserved) << 32 | u64::from(self.active)
    }

    /// What of the process's places it takes.
    fn taken(self) -> u32 {
        self.active.max(self.reserved)
    }
}

impl Share {
    /// With so many places of its own.
    #[must_use]
    pub fn new(process: &Arc<Process>, reserved: usize) -> Self {
        let share = Self { process: Arc::clone(process), part: AtomicU64::new(0) };
        share.set_reserved(reserved);
        share
    }

    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Connections of this listener.
    #[must_use]
    pub fn active(&self) -> usize {
        self.part().active as usize
    }

    /// Promises it so many places from now on. Those of them that others have are its own as soon as they are free.
    pub fn set_reserved(&self, reserved: usize) {
        let reserved = u32::try_from(reserved).unwrap_or(u32::MAX);
        let mut part = self.part();
        loop {
            let next = Part { reserved, ..part };
            let more = next.taken().wrapping_sub(part.taken()) as i32;
            // Of two that are to agree, first the one by which nobody gets in who shouldn't.
            if more > 0 {
                self.process.add(more, more);
            }
            match self.part.compare_exchange_weak(part.word(), next.word(), Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) if more < 0 => return self.process.add(more, more),
                Ok(_) => return,
                Err(other) => {
                    if more > 0 {
                        self.process.add(-more, -more);
                    }
                    part = Part::of(other);
                }
            }
        }
    }

    /// One more connection, if there is a place; until [`leave`](Self::leave).
    #[must_use]
    pub fn enter(&self) -> bool {
        let mut part = self.part();
        // Which place it takes is known only once it is counted: until then a reserve may be used up by another one.
        while part.active < part.reserved {
            if !self.process.enter_reserved() {
                return false;
            }
            let next = Part { active: part.active + 1, ..part };
            match self.part.compare_exchange_weak(part.word(), next.word(), Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    self.process.note_peak();
                    return true;
                }
                Err(other) => {
                    self.process.add(0, 1);
                    part = Part::of(other);
                }
            }
        }
        if !self.process.enter() {
            return false;
        }
        let before = Part::of(self.part.fetch_add(ONE, Ordering::Relaxed));
        if before.active < before.reserved {
            // There has come room in the reserve meanwhile.
            self.process.add(-1, -1);
        }
        self.process.note_peak();
        true
    }

    pub fn leave(&self) {
        let before = Part::of(self.part.fetch_sub(ONE, Ordering::Relaxed));
        if before.active <= before.reserved {
            self.process.add(0, 1);
        } else {
            self.process.add(-1, 0);
        }
    }

    fn part(&self) -> Part {
        Part::of(self.part.load(Ordering::Relaxed))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set_reserved(0);
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

    #[test]
    fn after_a_lower_maximum_or_a_higher_reserve_nobody_new_comes_until_it_fits() {
        let process = process(10);
        let (kept, other) = (Share::new(&process, 0), Share::new(&process, 0));
        assert_eq!((0..20).filter(|_| other.enter()).count(), 10);
        // What is promised is in use by others, and there are more than may be.
        kept.set_reserved(3);
        process.set_max(8);
        assert_eq!(process.active(), 10, "nobody is cut");
        for left in [9, 8] {
            assert!(!kept.enter() && !other.enter(), "{left}");
            other.leave();
        }
        for _ in 0..3 {
            assert!(!kept.enter() && !other.enter());
            other.leave();
            assert!(!other.enter() && kept.enter(), "the reserve comes first");
        }
        assert_eq!((process.active(), kept.active(), other.active()), (8, 3, 5));
        assert!(!kept.enter() && !other.enter());
        process.set_max(9);
        assert!(other.enter() && !other.enter(), "at once one more");
        kept.set_reserved(0);
        kept.leave();
        assert!(other.enter(), "what nobody is promised any more may be anybody's");
    }

    #[test]
    fn a_share_that_goes_takes_its_reserve_along() {
        let process = process(3);
        let (kept, other) = (Share::new(&process, 2), Share::new(&process, 0));
        assert!(kept.enter() && other.enter() && !other.enter());
        kept.set_reserved(0);
        assert!(other.enter() && !kept.enter());
        kept.leave();
        drop(kept);
        assert!(other.enter());
        assert_eq!(process.tally(), Tally { taken: 3, unused: 0 });
    }

    /// What is done to the shares of one process.
    #[derive(Clone, Debug)]
    enum Step {
        Enter(usize),
        Leave(usize),
        Reserve(usize, usize),
        Max(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => any::<usize>().prop_map(Step::Enter),
            4 => any::<usize>().prop_map(Step::Leave),
            1 => (any::<usize>(), 0_usize..6).prop_map(|(at, reserved)| Step::Reserve(at, reserved)),
            1 => (0_usize..14).prop_map(Step::Max),
        ]
    }

    proptest! {
        /// Against the sum that the reserves are defined by.
        #[test]
        fn the_sum_of_connections_and_reserves_decides_through_all_changes(
            mut reserves in prop::collection::vec(0_usize..4, 1..4),
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let process = process(reserves.iter().sum::<usize>() + 3);
            let shares: Vec<Share> = reserves.iter().map(|&reserved| Share::new(&process, reserved)).collect();
            let mut active = vec![0; shares.len()];
            for step in steps {
                let sum = |reserves: &[usize], active: &[usize]| -> usize {
                    active.iter().zip(reserves).map(|(&a, &r)| a.max(r)).sum()
                };
                let before = sum(&reserves, &active);
                match step {
                    Step::Enter(at) => {
                        let at = at % shares.len();
                        let fits = if active[at] < reserves[at] {
                            active.iter().sum::<usize>() < process.max()
                        } else {
                            before < process.max()
                        };
                        prop_assert_eq!(shares[at].enter(), fits);
                        active[at] += usize::from(fits);
                        if fits && before <= process.max() {
                            prop_assert!(sum(&reserves, &active) <= process.max());
                        }
                    }
                    Step::Leave(at) => {
                        let at = at % shares.len();
                        if active[at] > 0 {
                            shares[at].leave();
                            active[at] -= 1;
                        }
                    }
                    Step::Reserve(at, reserved) => {
                        let at = at % shares.len();
                        shares[at].set_reserved(reserved);
                        reserves[at] = reserved;
                    }
                    Step::Max(max) => process.set_max(max),
                }
                prop_assert_eq!(process.active(), active.iter().sum::<usize>());
                prop_assert_eq!(process.tally().taken as usize, sum(&reserves, &active));
                for (share, &active) in shares.iter().zip(&active) {
                    prop_assert_eq!(share.active(), active);
                }
            }
            for (share, &active) in shares.iter().zip(&active) {
                (0..active).for_each(|_| share.leave());
            }
            drop(shares);
            prop_assert_eq!(process.tally(), Tally { taken: 0, unused: 0 });
        }
    }

    #[test]
    fn many_threads_and_changes_leave_every_count_at_rest_and_nobody_beyond_the_maximum() {
        const MOST: usize = 12;
        let process = process(MOST);
        let shares = [Share::new(&process, 4), Share::new(&process, 0), Share::new(&process, 1)];
        let entered = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (shares, process, entered) = (&shares, &process, &entered);
                scope.spawn(move || {
                    let (mut rng, mut held) = (Rng::from_seed(seed), Vec::new());
                    for _ in 0..20_000 {
                        let at = rng.index(3);
                        if seed == 0 && rng.below(4) == 0 {
                            shares[at].set_reserved(rng.index(5));
                            process.set_max(8 + rng.index(MOST - 7));
                        } else if rng.below(2) == 0 && shares[at].enter() {
                            // Counted after it has come in and before it goes, so at no time too often.
                            assert!(entered.fetch_add(1, Ordering::SeqCst) < MOST);
                            held.push(at);
                        } else if let Some(at) = held.pop() {
                            entered.fetch_sub(1, Ordering::SeqCst);
                            shares[at].leave();
                        }
                        assert!(process.active() <= MOST);
                    }
                    for at in held {
                        entered.fetch_sub(1, Ordering::SeqCst);
                        shares[at].leave();
                    }
                });
            }
        });
        assert_eq!(process.active(), 0);
        assert!(shares.iter().all(|share| share.active() == 0));
        for share in &shares {
            share.set_reserved(2);
        }
        assert_eq!(process.tally(), Tally { taken: 6, unused: 6 });
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
                        assert!(process.tally().taken <= 12);
                    }
                    for at in held {
                        shares[at].leave();
                    }
                });
            }
        });
        assert_eq!(process.active(), 0);
        assert_eq!((process.tally().taken, shares[0].active()), (4, 0));
    }
}
