//! Time as the pure layers are given it: in milliseconds of a clock that only goes forward, and the wall clock, for
//! people.
//!
//! Owns the one place that reads the wall clock for timestamps, and the [`Deadline`], which many threads may look at.
//! What decides is handed a [`Millis`] or a [`Now`]; no decision hangs on the wall clock, which may jump.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Milliseconds of the monotonic clock since about the start of the process; never 0.
pub type Millis = u64;

/// Nanoseconds of the same clock, for more than 500 years.
pub type Nanos = u64;

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub millis: Millis,
    /// Milliseconds since 1970, for logs and `/status`.
    pub unix_ms: u64,
}

impl Now {
    #[must_use]
    pub fn read() -> Self {
        Self::at(Instant::now())
    }

    /// As [`nanos`] would have it, with the grain of a millisecond.
    #[must_use]
    pub fn nanos(self) -> Nanos {
        self.millis.saturating_sub(1) * 1_000_000 + 1
    }

    /// This moment of the monotonic clock, with the wall clock as it stands.
    #[must_use]
    pub fn at(moment: Instant) -> Self {
        Self { millis: millis(moment), unix_ms: unix_ms() }
    }
}

static START: OnceLock<Instant> = OnceLock::new();

fn start() -> Instant {
    *START.get_or_init(Instant::now)
}

/// How long this clock runs, for [`go_on`] in another process.
#[must_use]
pub fn age() -> Duration {
    start().elapsed()
}

/// Makes this clock go on with one that runs for so long in another process, so that its moments mean the same here.
/// Without effect, and false, once anybody has asked what time it is.
#[must_use]
pub fn go_on(age: Duration) -> bool {
    Instant::now().checked_sub(age).is_some_and(|begun| START.set(begun).is_ok())
}

/// A moment before the first call counts as 1.
#[must_use]
pub fn millis(moment: Instant) -> Millis {
    moment.saturating_duration_since(start()).as_millis() as Millis + 1
}

/// As [`millis`], for what happens more often than that. A moment before the first call counts as 1.
#[must_use]
pub fn nanos(moment: Instant) -> Nanos {
    moment.saturating_duration_since(start()).as_nanos() as Nanos + 1
}

/// Milliseconds since 1970 by the wall clock.
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A moment at which something has to be over, in one word; by default there is none.
#[derive(Debug, Default)]
pub struct Deadline(AtomicU64);

/// How often any deadline was set.
static CHANGES: AtomicU32 = AtomicU32::new(0);

impl Deadline {
    /// Sets it, moves it, or takes it back.
    pub fn set(&self, at: Option<Millis>) {
        // 0 is no moment.
        self.0.store(at.map_or(0, |at| at.max(1)), Ordering::Relaxed);
        CHANGES.fetch_add(1, Ordering::Release);
    }

    #[must_use]
    pub fn get(&self) -> Option<Millis> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&at| at != 0)
    }

    /// How often any deadline of the process was set or taken back: who has seen the number before, and all deadlines
    /// then, needs no other look at them.
    #[must_use]
    pub fn changes() -> u32 {
        CHANGES.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_can_be_set_moved_and_taken_back_and_each_is_a_change() {
        let deadline = Deadline::default();
        assert_eq!(deadline.get(), None);
        for at in [Some(5), Some(1), Some(9), None] {
            let changes = Deadline::changes();
            deadline.set(at);
            assert_eq!(deadline.get(), at);
            assert_ne!(Deadline::changes(), changes);
        }
    }

    #[test]
    fn time_goes_forward_in_milliseconds() {
        assert!(millis(Instant::now()) >= 1);
        let first = Instant::now();
        let begun = millis(first);
        assert!(begun >= 1);
        assert_eq!(millis(first + Duration::from_millis(250)), begun + 250);
        assert_eq!(nanos(first + Duration::from_nanos(250)), nanos(first) + 250);
        assert_eq!(first.checked_sub(Duration::from_secs(3_600)).map_or(1, millis), 1);
    }
}
