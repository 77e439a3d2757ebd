//! What choosing knows of a backend's answers and of its connects of late: moving averages and the pace of connects.
//!
//! Owns the arithmetic over two kinds of atomics. Races between workers lose a sample now and then, never more.

use crate::clock::Millis;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The time over which an average forgets all but 1/e of what it knew, in ms. Source: Finagle's `PeakEwma`, 10 s.
const MEMORY: f64 = 10_000.0;

/// A peak-sensitive, exponentially weighted moving average: it jumps up to a worse sample and comes down slowly.
///
/// Source: Finagle's `PeakEwma` load metric.
#[derive(Debug, Default)]
pub struct PeakEwma(
    /// The average in ms as the bits of an `f32`, and the time of the last sample, modulo 2^32 ms.
    AtomicU64,
);

impl PeakEwma {
    /// Takes in a sample, in milliseconds.
    pub fn observe(&self, sample: f32, now: Millis) {
        let old = self.0.load(Relaxed);
        let average = if old == 0 {
            sample
        } else {
            let (before, age) = unpack(old, now);
            if sample >= before {
                sample
            } else {
                let kept = (-age / MEMORY).exp() as f32;
                before * kept + sample * (1.0 - kept)
            }
        };
        self.0.store(pack(average, now), Relaxed);
    }

    /// The average in milliseconds, fading while there are no samples; `None` before the first.
    #[must_use]
    pub fn get(&self, now: Millis) -> Option<f32> {
        let word = self.0.load(Relaxed);
        if word == 0 {
            return None;
        }
        let (average, age) = unpack(word, now);
        Some(if age > 0.0 { average * (-age / MEMORY).exp() as f32 } else { average })
    }
}

/// Never 0: the time is never all zeros together with the average.
fn pack(average: f32, now: Millis) -> u64 {
    u64::from(average.max(f32::MIN_POSITIVE).to_bits()) << 32 | now & 0xffff_ffff
}

/// The average, and the milliseconds since.
fn unpack(word: u64, now: Millis) -> (f32, f64) {
    let age = (now as u32).wrapping_sub(word as u32);
    // A sample of another worker may be a moment younger than this `now`.
    let age = if age > u32::MAX / 2 { 0 } else { age };
    (f32::from_bits((word >> 32) as u32), f64::from(age))
}

/// How far connects may run ahead of their rate, in ns: a tenth of a second's worth may come at once.
const AHEAD: u64 = 100_000_000;

/// Paces connects by the generic cell rate algorithm (ITU-T I.371).
#[derive(Debug, Default)]
pub struct Pace(
    /// When the next connect would be due if all had kept the rate, in ns.
    AtomicU64,
);

impl Pace {
    /// How long the next connect would have to wait, in ms.
    #[must_use]
    pub fn wait(&self, now: Millis) -> Millis {
        wait_of(self.0.load(Relaxed), now)
    }

    /// Takes the next place if it is at most `patience` ms off; how long to wait for it.
    pub fn take(&self, rate: u32, now: Millis, patience: Millis) -> Option<Millis> {
        // Rounded up, or the highest rates would be exceeded.
        let step = 1_000_000_000_u64.div_ceil(rate.max(1).into());
        let taken = self.0.fetch_update(Relaxed, Relaxed, |due| {
            (wait_of(due, now) <= patience).then(|| due.max(nanos(now)).saturating_add(step))
        });
        taken.ok().map(|due| wait_of(due, now))
    }
}

fn wait_of(due: u64, now: Millis) -> Millis {
    due.saturating_sub(nanos(now).saturating_add(AHEAD)).div_ceil(1_000_000)
}

/// Far enough for five centuries.
fn nanos(now: Millis) -> u64 {
    now.saturating_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_jumps_up_and_comes_down_slowly() {
        let average = PeakEwma::default();
        assert_eq!(average.get(5), None);
        average.observe(2.0, 1_000);
        average.observe(50.0, 1_010);
        assert_eq!(average.get(1_010), Some(50.0));
        average.observe(2.0, 1_010);
        assert_eq!(average.get(1_010), Some(50.0), "no time has passed");
        average.observe(2.0, 11_010);
        let after = average.get(11_010).unwrap();
        assert!((after - (50.0 + 2.0 * (std::f32::consts::E - 1.0)) / std::f32::consts::E).abs() < 0.01, "{after}");
        assert!(average.get(21_010).unwrap() < after / 2.0, "it fades without samples");
        assert_eq!(average.get(11_000), Some(after), "a clock read a moment earlier does no harm");
    }

    #[test]
    fn connects_keep_the_rate_after_the_first_few() {
        let pace = Pace::default();
        let mut at = Vec::new();
        for _ in 0..120 {
            at.push(pace.take(100, 5_000, 60_000).unwrap());
        }
        assert_eq!(at.iter().filter(|&&wait| wait == 0).count(), 11);
        assert_eq!(at[119], (119 - 10) * 10);
        assert_eq!(pace.wait(5_000), 1_100);
        assert_eq!(pace.take(100, 5_000, 1_099), None);
        assert_eq!(pace.wait(5_000), 1_100, "a place that wasn't taken costs nothing");
        assert_eq!(pace.take(100, 7_000, 0), Some(0));
    }

    #[test]
    fn rates_that_divide_no_second_are_not_exceeded() {
        for rate in [3, 7_000, 300_000, 700_000, 1_000_000] {
            let pace = Pace::default();
            // A second's worth beyond those that come at once.
            let at_once = rate / 10 + 1;
            for _ in 0..at_once + rate {
                pace.take(rate, 1_000, Millis::MAX).unwrap();
            }
            let wait = pace.wait(1_000);
            assert!((1_000..=1_001 + 1_000 / u64::from(rate)).contains(&wait), "{rate}: {wait} ms");
        }
    }

    #[test]
    fn the_end_of_time_does_no_harm() {
        let pace = Pace::default();
        assert_eq!(pace.take(1, Millis::MAX, 0), Some(0));
        assert_eq!(pace.wait(Millis::MAX - 1), 0);
    }
}
