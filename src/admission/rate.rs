//! How often: a rate limit with a burst, in one word.
//!
//! Owns the arithmetic (GCRA) and one bucket that many threads share. The state of a limit is the *theoretical arrival
//! time*: when the next connection would be due if they came evenly spaced. One that comes before that by more than
//! the burst allows doesn't conform, and changes nothing. Source: ITU-T I.371 (2004), annex A, the virtual scheduling
//! algorithm. A limit of one bucket in one word can't lose its balance to a crash or a race.

use crate::clock::Nanos;
use crate::config::Rate;
use std::sync::atomic::{AtomicU64, Ordering};

/// A rate and its burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gcra {
    /// From one connection to the next, at the full rate.
    interval: Nanos,
    /// How much earlier than due one may come.
    tolerance: Nanos,
}

impl Gcra {
    /// With so many that may come at once after a while without any; `None` is the rate's own default.
    #[must_use]
    pub fn new(rate: Rate, burst: Option<u32>) -> Self {
        let interval = rate.interval_nanos().max(1);
        let burst = u64::from(burst.unwrap_or_else(|| rate.default_burst()).max(1));
        Self { interval, tolerance: interval.saturating_mul(burst - 1) }
    }

    /// The state after one more connection at `now`; or, if it doesn't conform, how long until one will.
    pub fn take(self, due: Nanos, now: Nanos) -> Result<Nanos, Nanos> {
        let earliest = due.saturating_sub(self.tolerance);
        if earliest > now {
            return Err(earliest - now);
        }
        Ok(due.max(now).saturating_add(self.interval))
    }

    /// The state of a limit with this rate as that of one `after` it: what has come too early by so many connections
    /// has come too early by as many.
    #[must_use]
    pub fn converted(self, due: Nanos, after: Self, now: Nanos) -> Nanos {
        let early = u128::from(due.saturating_sub(now));
        let early = early * u128::from(after.interval) / u128::from(self.interval);
        // What is over needs no more than to be over.
        if early == 0 { due.min(now) } else { now.saturating_add(early.try_into().unwrap_or(Nanos::MAX)) }
    }

    /// The state without a connection that was taken a moment ago and didn't come to be.
    #[must_use]
    pub fn give_back(self, due: Nanos) -> Nanos {
        due.saturating_sub(self.interval)
    }
}

/// One limit that all connections share.
#[derive(Debug)]
pub struct Bucket {
    gcra: Gcra,
    due: AtomicU64,
}

impl Bucket {
    #[must_use]
    pub fn new(gcra: Gcra) -> Self {
        Self { gcra, due: AtomicU64::new(0) }
    }

    /// Goes on from where `previous` is.
    pub fn follow(&self, previous: &Self, now: Nanos) {
        let due = previous.gcra.converted(previous.due.load(Ordering::Relaxed), self.gcra, now);
        self.due.store(due, Ordering::Relaxed);
    }

    /// Counts a connection; or, if it doesn't conform, how long until one will.
    pub fn take(&self, now: Nanos) -> Result<(), Nanos> {
        let mut due = self.due.load(Ordering::Relaxed);
        loop {
            let next = self.gcra.take(due, now)?;
            match self.due.compare_exchange_weak(due, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => due = other,
            }
        }
    }

    /// Takes back what [`take`](Self::take) has counted.
    pub fn give_back(&self) {
        let back = |due| Some(self.gcra.give_back(due));
        // The closure never refuses.
        let _ = self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const SECOND: Nanos = 1_000_000_000;

    fn gcra(count: u32, burst: Option<u32>) -> Gcra {
        Gcra::new(Rate { count, per: Duration::from_secs(1) }, burst)
    }

    #[test]
    fn the_burst_comes_at_once_and_then_the_rate() {
        let bucket = Bucket::new(gcra(10, Some(3)));
        let begin = 5 * SECOND;
        let taken = |now| (0..100).take_while(|_| bucket.take(now).is_ok()).count();
        assert_eq!(taken(begin), 3);
        assert_eq!(bucket.take(begin), Err(SECOND / 10), "and then in a tenth of a second");
        assert_eq!(taken(begin + SECOND / 10 - 1), 0);
        assert_eq!(taken(begin + SECOND / 10), 1);
        assert_eq!(taken(begin + SECOND), 3, "no more than the burst, however long nobody came");
    }

    #[test]
    fn a_burst_is_a_tenth_of_a_second_by_default_and_never_none() {
        assert_eq!(gcra(1_000, None), gcra(1_000, Some(100)));
        assert_eq!(gcra(5, None), gcra(5, Some(1)));
    }

    #[test]
    fn what_did_not_come_to_be_is_given_back() {
        let bucket = Bucket::new(gcra(1, Some(1)));
        bucket.take(SECOND).unwrap();
        bucket.give_back();
        bucket.take(SECOND).unwrap();
        assert!(bucket.take(SECOND).is_err());
    }

    #[test]
    fn a_bucket_that_follows_another_goes_on_with_as_many_connections_too_early() {
        let now = 5 * SECOND;
        let slow = Bucket::new(gcra(1, Some(10)));
        assert_eq!((0..100).take_while(|_| slow.take(now).is_ok()).count(), 10);
        // Seven seconds later there are seven again; and so there are at another rate, of which eight were the burst.
        let now = now + 7 * SECOND;
        let fast = Bucket::new(gcra(100, Some(8)));
        fast.follow(&slow, now);
        assert_eq!((0..100).take_while(|_| fast.take(now).is_ok()).count(), 5, "three of the eight are still owed");
        assert_eq!(fast.take(now), Err(SECOND / 100));
        // Whoever owes nothing gets the whole burst.
        let rested = Bucket::new(gcra(1, Some(3)));
        rested.follow(&slow, now + 100 * SECOND);
        assert_eq!((0..100).take_while(|_| rested.take(now + 100 * SECOND).is_ok()).count(), 3);
    }

    #[test]
    fn many_threads_get_as_many_as_one() {
        let bucket = Bucket::new(gcra(1, Some(1_000)));
        let take = || (0..1_000).filter(|_| bucket.take(SECOND).is_ok()).count();
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1_000);
    }

    proptest! {
        /// A bucket of `burst` tokens that fills by one each interval gives the same answers.
        #[test]
        fn it_is_a_token_bucket(
            count in 1_u32..2_000,
            burst in 1_u32..50,
            gaps in prop::collection::vec(0..SECOND / 10, 1..200),
        ) {
            let limit = gcra(count, Some(burst));
            let full = u64::from(burst) * limit.interval;
            let (mut due, mut tokens, mut now) = (0, full, SECOND);
            for gap in gaps {
                now += gap;
                tokens = (tokens + gap).min(full);
                let expected = tokens >= limit.interval;
                match limit.take(due, now) {
                    Ok(next) => {
                        prop_assert!(expected);
                        due = next;
                        tokens -= limit.interval;
                    }
                    Err(wait) => {
                        prop_assert!(!expected);
                        prop_assert_eq!(wait, limit.interval - tokens);
                    }
                }
            }
        }
    }
}
