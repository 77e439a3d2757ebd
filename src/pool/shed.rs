//! Shedding: a share of new connections is refused while a latency stays above its target.
//!
//! Owns the verdict, from the *lowest* latency of late: a burst makes some wait, but where even the luckiest waits,
//! there is a standing queue, and more work only makes it longer. Source: RFC 8289 (`CoDel`). When the lowest has
//! stayed above the target for a whole window, the share rises; from then on it follows the latency and its trend, four
//! times a window, as PIE does (RFC 8033, section 4.2), so that the wait settles near the target and no capacity lies
//! idle.
//!
//! Pure: time and dice are arguments. Samples are one atomic each. Invariants: one connection a second is let through
//! whatever the share; without samples the share falls.

use super::Latency;
use crate::clock::Millis;
use crate::config;
use crate::rng::Rng;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Duration;

/// How often in a window the share is looked at.
const LOOKS: u32 = 4;
/// What one look takes off the share that is let through (as the exponent of what is left of it) for each target that
/// the latency is above it, up to so many; where there is none, it gives back as much as for one. By what remains and
/// not by the whole, since the load that comes through is in proportion to it. More would let places lie idle when what
/// has piled up is gone, and with less that goes too slowly: found by simulation, see the tests.
const MOST_EXCESS: f64 = 3.0;
const BY_EXCESS: f64 = 0.15;
/// The same for each window by which the latency has grown since the last look.
const BY_GROWTH: f64 = 1.5;
/// The most for one look.
const STEP: f64 = 1.0;
/// What is left of the share after each look that follows a whole window without a sample.
const FADING: f64 = 0.8;
const MOST: f64 = 0.99;
/// Less than this is nothing.
const LEAST: f64 = 0.005;
/// However large the share, one comes through in so much time, in ms.
const TRIAL_EVERY: Millis = 1_000;
/// No sample.
const NONE: u64 = u64::MAX;

/// The shedding of one pool.
#[derive(Debug)]
pub struct Shed {
    pub config: config::Shed,
    /// In µs; [`NONE`] for what has none.
    targets: [u64; Latency::COUNT],
    /// The lowest since the last look, in µs.
    lowest: [AtomicU64; Latency::COUNT],
    /// The bits of an `f64`.
    share: AtomicU64,
    next_look: AtomicU64,
    /// When a connection was let through last.
    admitted: AtomicU64,
    controls: Mutex<[Control; Latency::COUNT]>,
}

/// What one latency asks for.
#[derive(Clone, Copy, Debug, Default)]
struct Control {
    share: f64,
    /// Looks in a row that were above the target; the first of them may have seen the end of a window only.
    above: u32,
    /// Looks in a row that had no sample.
    quiet: u32,
    /// At the last look, in windows.
    before: Option<f64>,
}

impl Shed {
    #[must_use]
    pub fn new(config: config::Shed) -> Self {
        let micros = |target: Option<Duration>| target.map_or(NONE, |target| target.as_micros() as u64);
        Self {
            config,
            targets: [config.connect_time, config.first_byte, config.queue_time].map(micros),
            lowest: [NONE; Latency::COUNT].map(AtomicU64::new),
            share: AtomicU64::new(0),
            next_look: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            controls: Mutex::default(),
        }
    }

    /// The share that is refused now, 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        f64::from_bits(self.share.load(Relaxed))
    }

    /// Takes in a sample.
    pub fn observe(&self, latency: Latency, took: Duration) {
        let index = latency as usize;
        let micros = took.as_micros() as u64;
        // Mostly it isn't the lowest, and then nothing is written.
        if self.targets[index] != NONE && micros < self.lowest[index].load(Relaxed) {
            self.lowest[index].fetch_min(micros, Relaxed);
        }
    }

    /// Takes in a time after which nobody waits any more for what hasn't come. A sample only if it is above the target:
    /// else it tells nothing, as what was waited for might have come at once or never.
    pub fn observe_at_least(&self, latency: Latency, took: Duration) {
        if took.as_micros() as u64 > self.targets[latency as usize] {
            self.observe(latency, took);
        }
    }

    /// Whether a look at the samples is due.
    #[must_use]
    pub fn is_due(&self, now: Millis) -> bool {
        now >= self.next_look.load(Relaxed)
    }

    /// Looks at the samples, if that is due and nobody else does. Who joins the queue now would wait for `expected`;
    /// what those have waited that are served now tells of the load as it was when they came, which is too late to
    /// steer by.
    pub fn look(&self, expected: Option<Duration>, now: Millis) {
        let mut controls = match self.controls.try_lock() {
            Ok(controls) => controls,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => return,
        };
        if !self.is_due(now) {
            return;
        }
        if let Some(expected) = expected {
            self.observe(Latency::Queue, expected);
        }
        let window = (self.config.window.as_micros() as f64).max(1.0);
        let span = (self.config.window / LOOKS).as_millis().max(1) as Millis;
        let late = self.next_look.swap(now + span, Relaxed).saturating_add(span * 2) < now;
        for ((control, lowest), &target) in controls.iter_mut().zip(&self.lowest).zip(&self.targets) {
            let sample = lowest.swap(NONE, Relaxed);
            if late {
                // The trend is that of one look to the next.
                control.before = None;
            }
            let sample = (sample != NONE).then_some(sample as f64 / window);
            control.look(sample, target as f64 / window);
        }
        let share = controls.iter().fold(0.0, |most, control| f64::max(most, control.share));
        self.share.store(share.to_bits(), Relaxed);
    }

    /// Whether a new connection may come.
    pub fn admits(&self, now: Millis, rng: &mut Rng) -> bool {
        let share = self.share();
        let last = self.admitted.load(Relaxed);
        let refused = share > 0.0
            && (rng.below(1 << 20) as f64) < share * f64::from(1 << 20)
            && now.saturating_sub(last) < TRIAL_EVERY;
        if !refused && share > 0.0 {
            self.admitted.store(now, Relaxed);
        }
        !refused
    }
}

impl Control {
    /// Sample and target are in windows.
    fn look(&mut self, sample: Option<f64>, target: f64) {
        let Some(sample) = sample else {
            self.quiet = self.quiet.saturating_add(1);
            if self.quiet > LOOKS {
                *self = Self { share: self.share * FADING, quiet: self.quiet, ..Self::default() };
                self.clear_if_small();
            }
            return;
        };
        self.quiet = 0;
        self.above = if sample > target { self.above.saturating_add(1) } else { 0 };
        let growth = self.before.replace(sample).map_or(0.0, |before| sample - before);
        if self.share > 0.0 || self.above > LOOKS {
            let excess = ((sample - target) / target).clamp(-1.0, MOST_EXCESS);
            let step = (BY_EXCESS * excess + BY_GROWTH * growth).clamp(-STEP, STEP);
            self.share = (1.0 - (1.0 - self.share) * (-step).exp()).clamp(0.0, MOST);
            self.clear_if_small();
        }
    }

    fn clear_if_small(&mut self) {
        if self.share < LEAST {
            self.share = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::ops::Range;

    const TARGET: Duration = Duration::from_millis(100);

    fn shed(target: Duration) -> Shed {
        Shed::new(config::Shed {
            connect_time: None,
            first_byte: None,
            queue_time: Some(target),
            window: Duration::from_millis(500),
            dry_run: false,
        })
    }

    /// What came of a run of a minute, after its beginning.
    #[derive(Debug)]
    struct Outcome {
        /// Of what could have been done.
        goodput: f64,
        median_wait: Millis,
        most_share: f64,
        longest_idle: Millis,
    }

    /// A queue before 20 servers that need 50 ms each (400 a second), with `load` times that coming; from the eleventh
    /// second on.
    fn run(load: f64, seed: u64) -> Outcome {
        run_in(10_000..60_000, load, 0, seed)
    }

    /// The same at another time; who is refused comes again, so many times, half a second to one and a half later.
    fn run_in(span: Range<Millis>, load: f64, retries: u8, seed: u64) -> Outcome {
        const SLOTS: usize = 20;
        const SERVICE: u64 = 50;
        const CAPACITY: f64 = 0.4;
        let (control, rng) = (shed(TARGET), &mut Rng::from_seed(seed));
        let (mut queue, mut busy) = (VecDeque::new(), Vec::<Millis>::new());
        let (mut owed, mut waits, mut most_share) = (0.0, Vec::new(), 0.0_f64);
        let (mut idle_since, mut longest_idle) = (1, 0);
        // At each moment, how often each of those that come again then may come after that.
        let mut returning = vec![Vec::new(); 62_000];
        for now in 1..span.end {
            busy.retain(|&end| end > now);
            owed += load * CAPACITY * 2.0 * rng.below(1_000) as f64 / 1_000.0;
            let mut coming = std::mem::take(&mut returning[now as usize]);
            while owed >= 1.0 {
                owed -= 1.0;
                coming.push(retries);
            }
            for retries in coming {
                if control.is_due(now) {
                    let expected = Duration::from_secs_f64(queue.len() as f64 / CAPACITY / 1_000.0);
                    control.look((!queue.is_empty()).then_some(expected), now);
                }
                if control.admits(now, rng) {
                    queue.push_back(now);
                } else if retries > 0 {
                    returning[(now + 500 + rng.below(1_000)) as usize].push(retries - 1);
                }
            }
            while busy.len() < SLOTS
                && let Some(since) = queue.pop_front()
            {
                busy.push(now + SERVICE - 5 + rng.below(11));
                if now == since {
                    control.observe(Latency::Queue, Duration::ZERO);
                }
                if span.contains(&now) {
                    waits.push(now - since);
                }
            }
            if !busy.is_empty() {
                idle_since = now;
            }
            if span.contains(&now) {
                most_share = most_share.max(control.share());
                longest_idle = longest_idle.max(now - idle_since);
            }
        }
        waits.sort_unstable();
        let goodput = waits.len() as f64 / ((span.end - span.start) as f64 * CAPACITY);
        Outcome { goodput, median_wait: waits[waits.len() / 2], most_share, longest_idle }
    }

    #[test]
    fn with_three_times_the_load_the_wait_settles_near_the_target_and_nothing_lies_idle() {
        for seed in 0..5 {
            let outcome = run(3.0, seed);
            assert!(outcome.goodput > 0.97, "{outcome:?}");
            assert!((50..=150).contains(&outcome.median_wait), "{outcome:?}");
            assert_eq!(outcome.longest_idle, 0, "{outcome:?}");
        }
    }

    #[test]
    fn also_with_a_little_too_much_and_with_far_too_much() {
        for (load, goodput) in [(1.2, 0.97), (10.0, 0.97)] {
            let outcome = run(load, 7);
            assert!(outcome.goodput > goodput, "{load}: {outcome:?}");
            assert!((20..=400).contains(&outcome.median_wait), "{load}: {outcome:?}");
        }
    }

    /// With all that come again, it is nine times the load.
    #[test]
    fn retries_are_borne_from_early_on() {
        const SEEDS: u64 = 50;
        // What piled up goes, and hardly a place lies idle after it. The least of these is 0.902, the mean 0.936; of
        // two hundred seeds the least is 0.862.
        let early: Vec<f64> = (0..SEEDS).map(|seed| run_in(3_000..6_000, 3.0, 2, seed).goodput).collect();
        assert!(early.iter().all(|&goodput| goodput > 0.9), "{early:?}");
        let mean = early.iter().sum::<f64>() / SEEDS as f64;
        assert!(mean > 0.935, "{mean}: {early:?}");
        for seed in 0..5 {
            let later = run_in(10_000..60_000, 3.0, 2, seed);
            assert!(later.goodput > 0.99 && (90..=110).contains(&later.median_wait), "{later:?}");
        }
    }

    #[test]
    fn nobody_is_refused_where_the_load_can_be_borne() {
        let outcome = run(0.8, 3);
        assert!(outcome.most_share.abs() < f64::EPSILON && outcome.median_wait < 50, "{outcome:?}");
    }

    /// Ten seconds above the target.
    fn overloaded() -> Shed {
        let shed = shed(TARGET);
        for now in 1..=10_000 {
            shed.observe(Latency::Queue, Duration::from_millis(100 + now));
            shed.look(None, now);
        }
        assert!(shed.share() > 0.9, "{}", shed.share());
        shed
    }

    #[test]
    fn one_low_value_in_a_window_is_enough_to_begin_with_nothing() {
        let shed = shed(TARGET);
        for now in 1..=60_000 {
            let took = if now % 400 == 0 { 99 } else { 2_000 };
            shed.observe(Latency::Queue, Duration::from_millis(took));
            shed.look(None, now);
            assert!(shed.share().abs() < f64::EPSILON, "at {now}: {}", shed.share());
        }
    }

    #[test]
    fn one_a_second_comes_through() {
        let (shed, rng) = (overloaded(), &mut Rng::from_seed(4));
        shed.share.store(1.0_f64.to_bits(), Relaxed);
        let let_through = (10_001..20_001).filter(|&now| shed.admits(now, rng)).count();
        assert_eq!(let_through, 10);
    }

    #[test]
    fn it_ends_with_the_overload_and_also_without_any_sample() {
        for sample in [None, Some(Duration::ZERO)] {
            let shed = overloaded();
            let end = (10_001..40_000).find(|&now| {
                if let Some(sample) = sample {
                    shed.observe(Latency::Queue, sample);
                }
                shed.look(None, now);
                shed.share() <= 0.0
            });
            assert!(end.is_some_and(|end| end < 16_000), "{sample:?}: {end:?}");
        }
    }

    #[test]
    fn what_never_came_counts_if_it_was_waited_for_beyond_the_target() {
        let after = |waited: Duration| {
            let shed = shed(TARGET);
            for now in 1..=10_000 {
                shed.observe_at_least(Latency::Queue, waited);
                shed.observe_at_least(Latency::Connect, waited);
                shed.look(None, now);
            }
            shed
        };
        assert!(after(TARGET).share().abs() < f64::EPSILON);
        let shed = after(TARGET * 2);
        assert!(shed.share() > 0.9, "{}", shed.share());
        // One that gave up sooner is no sign that it gets better, and takes no place of one that is.
        for now in 10_001..=10_500 {
            shed.observe_at_least(Latency::Queue, TARGET / 2);
            shed.observe_at_least(Latency::Queue, TARGET * 2);
            shed.look(None, now);
        }
        assert!(shed.share() > 0.9, "{}", shed.share());
    }

    #[test]
    fn a_latency_without_a_target_says_nothing() {
        let shed = shed(TARGET);
        for now in 1..=10_000 {
            shed.observe(Latency::Connect, Duration::from_secs(5));
            shed.look(None, now);
        }
        assert!(shed.share().abs() < f64::EPSILON);
    }
}
