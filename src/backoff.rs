//! Jittered exponential backoff as a pure sequence of delays.
//!
//! Owns the arithmetic only; who waits, and on what clock, is the caller's business. Delays use "equal jitter":
//! half of the exponential step is kept, the other half is random, so that a herd spreads but nobody hurries.

use crate::rng::Rng;
use std::time::Duration;

/// Delays that double from `base` up to `max`.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    #[must_use]
    pub fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, next: base }
    }

    /// The next delay: between half of the current step and the whole of it.
    pub fn next_delay(&mut self, rng: &mut Rng) -> Duration {
        let step = self.next.min(self.max);
        self.next = step.saturating_mul(2).min(self.max);
        step / 2 + rng.up_to(step / 2)
    }

    /// Back to the first step, after a success.
    pub fn reset(&mut self) {
        self.next = self.base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum_and_reset() {
        let mut rng = Rng::from_seed(3);
        let (base, max) = (Duration::from_millis(100), Duration::from_millis(450));
        let mut backoff = Backoff::new(base, max);
        for step in [100, 200, 400, 450, 450].map(Duration::from_millis) {
            let delay = backoff.next_delay(&mut rng);
            assert!(delay >= step / 2 && delay <= step, "{delay:?} for a step of {step:?}");
        }
        backoff.reset();
        assert!(backoff.next_delay(&mut rng) <= base);
    }
}
