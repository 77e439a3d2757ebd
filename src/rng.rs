//! A small seedable generator, handed as an argument to whatever decides by chance.
//!
//! Owns the one type through which the crate throws dice; the pure layers take `&mut Rng` and never seed one
//! themselves. Not for secrets. Next: `pool::pick` and `backoff`, its users.

use std::time::Duration;

/// A fast generator of good statistical quality (wyrand); not cryptographic.
#[derive(Clone, Debug)]
pub struct Rng(fastrand::Rng);

impl Rng {
    /// The same seed gives the same sequence.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Seeded differently in each process and at each call.
    #[must_use]
    pub fn from_entropy() -> Self {
        Self(fastrand::Rng::new())
    }

    /// A number in `0..bound`, each with the same probability; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.0.u64(..bound) }
    }

    /// As [`below`](Self::below), for indices.
    pub fn index(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { self.0.usize(..bound) }
    }

    /// `span` scaled by a random factor from `1 - share` to `1 + share` (`share` from 0 to 1).
    pub fn jitter(&mut self, span: Duration, share: f64) -> Duration {
        span.mul_f64(1.0 + share * (2.0 * self.0.f64() - 1.0))
    }

    /// A duration from zero up to `span`.
    pub fn up_to(&mut self, span: Duration) -> Duration {
        span.mul_f64(self.0.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_sequence() {
        let (mut a, mut b) = (Rng::from_seed(7), Rng::from_seed(7));
        assert!((0..100).all(|_| a.below(1_000) == b.below(1_000)));
    }

    #[test]
    fn jitter_stays_within_its_share() {
        let mut rng = Rng::from_seed(1);
        let span = Duration::from_secs(10);
        for _ in 0..1_000 {
            let jittered = rng.jitter(span, 0.2);
            assert!(jittered >= Duration::from_secs(8) && jittered <= Duration::from_secs(12));
        }
    }
}
