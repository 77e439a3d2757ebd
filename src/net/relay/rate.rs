//! Bandwidth: how many bytes a session may read in each direction, and when it may read on.
//!
//! Owns the token buckets of one limited session ([`Rates`], one pointer in its entry, nothing for the others) and the
//! engine's list of those that wait for tokens ([`Waiting`]). Pure: time is the engine's. A direction reads no more
//! than its tokens; with none left it sleeps until there are enough for a piece worth a system call, and events don't
//! wake it before. Invariants: a direction reads at most its burst, and its rate times the time since it began; what
//! was read is delivered without regard to tokens; a session that waits is on the list, once.

use super::Millis;
use crate::config::Bandwidth;
use crate::name::Direction;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A direction that has used up its tokens waits until there are enough for a piece of so many bytes, or for a whole
/// burst if that is less: to move a few bytes costs as many calls as to move many.
const PIECE: u64 = 64 * 1024;
/// But not for longer than this, so that a slow stream flows rather than drips.
const LONGEST: Millis = 100;
/// Those that wait are woken on this grid, so that many of them cost one turn.
const GRID: Millis = 2;
/// While a direction sleeps its tokens may exceed the burst: that it is woken late must not cost it bytes. So late at
/// most, for a worker that stood still must not let go of all at once.
const CATCH_UP: Millis = 1_000;
/// Tokens are counted in thousandths of a byte, which is what a byte a second gives in a millisecond.
const BYTE: i64 = 1_000;
/// No rate is counted as higher, so that no arithmetic overflows: 1 TiB/s.
const HIGHEST: u64 = 1 << 40;

/// The token bucket of one direction.
#[derive(Debug)]
struct Bucket {
    /// Bytes a second; as tokens, in a millisecond.
    rate: i64,
    /// Tokens that may be saved up.
    burst: i64,
    /// Below zero where more was taken than there was.
    tokens: i64,
    /// When `tokens` was right.
    at: Millis,
    /// It has run out, and sleeps until then.
    until: Option<Millis>,
}

impl Bucket {
    fn new(rate: u64, burst: u64, now: Millis) -> Self {
        let burst = burst.clamp(1, HIGHEST) as i64 * BYTE;
        Self { rate: rate.clamp(1, HIGHEST) as i64, burst, tokens: burst, at: now, until: None }
    }

    /// Bytes that may be read now: none before it wakes.
    fn allowance(&mut self, now: Millis) -> usize {
        if self.until.is_some_and(|until| now < until) {
            return 0;
        }
        let (span, most) = match self.until.take() {
            Some(until) => (now.min(until + CATCH_UP) - self.at, i64::MAX),
            None => (now - self.at, self.burst.max(self.tokens)),
        };
        let given = (span as i64).saturating_mul(self.rate);
        self.tokens = self.tokens.saturating_add(given).min(most);
        self.at = now;
        (self.tokens / BYTE).max(0) as usize
    }

    fn take(&mut self, bytes: usize) {
        self.tokens = self.tokens.saturating_sub((bytes as i64).saturating_mul(BYTE));
    }

    /// There is more to read than there are tokens. When it is worth to read on.
    fn sleep(&mut self, now: Millis) -> Millis {
        let reaches = |tokens: i64| {
            let missing = (tokens - self.tokens).max(0) as u64;
            now + missing.div_ceil(self.rate as u64)
        };
        let worth_it = reaches((PIECE as i64 * BYTE).min(self.burst)).min(now + LONGEST);
        let until = worth_it.max(reaches(BYTE)).max(now + 1).next_multiple_of(GRID);
        *self.until.get_or_insert(until)
    }
}

/// The buckets of one session.
#[derive(Debug)]
pub struct Rates {
    /// Indexed by [`Direction`].
    buckets: [Option<Bucket>; 2],
    /// For when it is on the engine's list.
    listed: Option<Millis>,
}

impl Rates {
    /// `None` if neither direction has a limit.
    pub fn new(bandwidth: &Bandwidth, now: Millis) -> Option<Box<Self>> {
        if bandwidth.to_client.is_none() && bandwidth.to_backend.is_none() {
            return None;
        }
        let bucket = |rate: Option<u64>| rate.map(|rate| Bucket::new(rate, bandwidth.burst, now));
        let buckets = Direction::BOTH.map(|direction| match direction {
            Direction::ToBackend => bucket(bandwidth.to_backend),
            Direction::ToClient => bucket(bandwidth.to_client),
        });
        Some(Box::new(Self { buckets, listed: None }))
    }

    /// Bytes that may be read in this direction now.
    pub fn allowance(&mut self, direction: Direction, now: Millis) -> usize {
        self.of(direction).map_or(usize::MAX, |bucket| bucket.allowance(now))
    }

    /// So many were read.
    pub fn take(&mut self, direction: Direction, bytes: usize) {
        if let Some(bucket) = self.of(direction) {
            bucket.take(bytes);
        }
    }

    /// There is more to read in this direction than it has tokens for.
    pub fn sleep(&mut self, direction: Direction, now: Millis) {
        if let Some(bucket) = self.of(direction) {
            bucket.sleep(now);
        }
    }

    /// Until when it sleeps in a direction; the later one of both. Bytes wait until then, so it isn't quiet before.
    pub fn sleeps_until(&self) -> Option<Millis> {
        self.buckets.iter().flatten().filter_map(|bucket| bucket.until).max()
    }

    /// When it has to be woken, unless it is on the list for that already.
    fn next_place(&mut self) -> Option<Millis> {
        let until = self.buckets.iter().flatten().filter_map(|bucket| bucket.until).min()?;
        if self.listed.is_some_and(|listed| listed <= until) {
            return None;
        }
        self.listed = Some(until);
        Some(until)
    }

    /// Whether this place on the list is still its own; it has left it then.
    fn leaves(&mut self, at: Millis) -> bool {
        let own = self.listed == Some(at);
        if own {
            self.listed = None;
        }
        own
    }

    fn of(&mut self, direction: Direction) -> Option<&mut Bucket> {
        self.buckets[direction as usize].as_mut()
    }
}

/// The sessions of an engine that wait for tokens, by the time at which they have some.
#[derive(Debug, Default)]
pub struct Waiting(BinaryHeap<Reverse<(Millis, usize)>>);

impl Waiting {
    /// Puts the session of this key on the list, if it sleeps and isn't there.
    pub fn note(&mut self, key: usize, rates: &mut Rates) {
        if let Some(at) = rates.next_place() {
            self.0.push(Reverse((at, key)));
        }
    }

    /// The key of one whose time has come, and what it was listed for.
    pub fn pop(&mut self, now: Millis) -> Option<(Millis, usize)> {
        let &Reverse((at, _)) = self.0.peek()?;
        if at > now {
            return None;
        }
        self.0.pop().map(|Reverse(place)| place)
    }

    /// When somebody wants to be woken; [`Millis::MAX`] if nobody does.
    pub fn next(&self) -> Millis {
        self.0.peek().map_or(Millis::MAX, |&Reverse((at, _))| at)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the place that was popped belongs to a session that still waits, and not to one before it.
    pub fn is_due(rates: Option<&mut Box<Rates>>, at: Millis) -> bool {
        rates.is_some_and(|rates| rates.leaves(at))
    }

    /// Gives the room of a crowd back once it has gone.
    pub fn shrink(&mut self) {
        self.0 = BinaryHeap::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads whatever it may, as often as it wakes up and at most `late` after that, up to `end`; the bytes.
    fn greedy(bucket: &mut Bucket, late: impl Fn(Millis) -> Millis, end: Millis) -> u64 {
        let (mut now, mut bytes) = (0, 0);
        while now <= end {
            let allowed = bucket.allowance(now);
            bucket.take(allowed);
            bytes += allowed as u64;
            now = bucket.sleep(now) + late(now);
        }
        bytes
    }

    #[test]
    fn a_greedy_direction_gets_its_burst_and_its_rate_and_not_a_byte_more() {
        for rate in [1, 10, 1_000, 100 << 10, 1 << 20, 125 << 20, 10 << 30] {
            for burst in [1, 1_500, 64 << 10, 10 << 20] {
                let bytes = greedy(&mut Bucket::new(rate, burst, 0), |_| 0, 60_000);
                let most = burst + 60 * rate;
                // What it still waits for, at the end.
                let least = most - (rate * (LONGEST + GRID) / 1_000 + 1);
                assert!((least..=most).contains(&bytes), "{bytes} of {most} at {rate} B/s, burst {burst}");
            }
        }
    }

    #[test]
    fn to_be_woken_late_costs_nothing_within_a_second_and_is_no_licence_beyond() {
        let (rate, burst) = (1 << 20, 4_096);
        let late = greedy(&mut Bucket::new(rate, burst, 0), |now| now % 700, 60_000);
        assert!(late >= 58 * rate && late <= burst + 61 * rate, "{late}");
        let mut bucket = Bucket::new(rate, burst, 0);
        bucket.take(burst as usize);
        bucket.sleep(0);
        assert!(bucket.allowance(3_600_000) as u64 <= rate * (CATCH_UP + LONGEST) / 1_000);
    }

    #[test]
    fn what_is_not_used_is_saved_up_to_the_burst() {
        let mut bucket = Bucket::new(1_000, 5_000, 0);
        assert_eq!(bucket.allowance(0), 5_000);
        bucket.take(5_000);
        assert_eq!(bucket.allowance(1_000), 1_000);
        assert_eq!([3_000, 5_000, 6_000, 60_000].map(|now| bucket.allowance(now)), [3_000, 5_000, 5_000, 5_000]);
    }

    #[test]
    fn events_dont_wake_who_sleeps() {
        let mut bucket = Bucket::new(1 << 20, 64 << 10, 0);
        bucket.take(64 << 10);
        let until = bucket.sleep(0);
        assert!((60..70).contains(&until), "{until} ms for 64 KiB at 1 MiB/s");
        for now in 0..until {
            assert_eq!(bucket.allowance(now), 0);
            assert_eq!(bucket.sleep(now), until, "asked again, it sleeps no longer");
        }
        assert!(bucket.allowance(until) >= 60 << 10);
    }

    #[test]
    fn more_than_there_was_is_paid_back() {
        let mut bucket = Bucket::new(1_000, 1_000, 0);
        bucket.take(3_000);
        assert_eq!(bucket.allowance(0), 0);
        assert_eq!(bucket.sleep(0), 2_002, "two seconds of debt, and one byte");
        assert_eq!(bucket.allowance(2_002), 2);
    }

    #[test]
    fn a_session_is_listed_once_and_a_stale_place_is_nobodys() {
        let limits = Bandwidth { to_client: Some(1_000), to_backend: Some(100), burst: 100 };
        let mut rates = Rates::new(&limits, 0).unwrap();
        let mut waiting = Waiting::default();
        waiting.note(7, &mut rates);
        assert_eq!(waiting.next(), Millis::MAX, "nobody sleeps");
        for direction in Direction::BOTH {
            rates.take(direction, 100);
        }
        rates.sleep(Direction::ToBackend, 0);
        waiting.note(7, &mut rates);
        waiting.note(7, &mut rates);
        assert_eq!((waiting.next(), waiting.0.len()), (100, 1));
        // The other direction will be ready sooner: the first place is stale from here on.
        rates.take(Direction::ToClient, 0);
        rates.sleep(Direction::ToClient, 0);
        rates.buckets[Direction::ToClient as usize].as_mut().unwrap().until = Some(50);
        waiting.note(7, &mut rates);
        assert_eq!((waiting.next(), waiting.pop(49), rates.sleeps_until()), (50, None, Some(100)));
        let mut session = Some(rates);
        let (at, key) = waiting.pop(200).unwrap();
        assert_eq!((at, key, Waiting::is_due(session.as_mut(), at)), (50, 7, true));
        let (at, _) = waiting.pop(200).unwrap();
        assert!(!Waiting::is_due(session.as_mut(), at));
        assert!(!Waiting::is_due(None, at), "a session without limits that has got the key meanwhile");
        assert_eq!(waiting.pop(Millis::MAX), None);
    }

    #[test]
    fn without_a_limit_there_is_nothing() {
        assert!(Rates::new(&Bandwidth { to_client: None, to_backend: None, burst: 65_536 }, 0).is_none());
        let mut rates = Rates::new(&Bandwidth { to_client: Some(1), to_backend: None, burst: 1 }, 0).unwrap();
        assert_eq!(rates.allowance(Direction::ToBackend, 0), usize::MAX);
        rates.sleep(Direction::ToBackend, 0);
        assert_eq!(rates.sleeps_until(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However it asks, and whenever it is woken: never more than the burst and what the time has given.
        #[test]
        fn no_span_gets_more_than_its_due(
            rate in 1_u64..(1 << 32),
            burst in 1_u64..(1 << 24),
            steps in prop::collection::vec((0_u64..300, 0_u64..=100, any::<bool>()), 1..100),
        ) {
            let mut bucket = Bucket::new(rate, burst, 0);
            let (mut now, mut bytes) = (0, 0);
            for (pause, share, sleeps) in steps {
                now += pause;
                let allowed = bucket.allowance(now);
                let used = (allowed as u64 * share / 100) as usize;
                bucket.take(used);
                bytes += used as u64;
                if sleeps {
                    prop_assert!(bucket.sleep(now) > now);
                }
                prop_assert!(bytes <= burst + rate * now / 1_000, "{} by {}", bytes, now);
            }
        }
    }
}
