//! Time as the pure layers are given it: in milliseconds of a clock that only goes forward, and the wall clock, for
//! people.
//!
//! Owns the one place that reads the wall clock for timestamps. What decides is handed a [`Millis`] or a [`Now`]; no
//! decision hangs on the wall clock, which may jump.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime};

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

    /// This moment of the monotonic clock, with the wall clock as it stands.
    #[must_use]
    pub fn at(moment: Instant) -> Self {
        Self { millis: millis(moment), unix_ms: unix_ms() }
    }
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A moment before the first call counts as 1.
#[must_use]
pub fn millis(moment: Instant) -> Millis {
    moment.saturating_duration_since(*START).as_millis() as Millis + 1
}

/// As [`millis`], for what happens more often than that. A moment before the first call counts as 1.
#[must_use]
pub fn nanos(moment: Instant) -> Nanos {
    moment.saturating_duration_since(*START).as_nanos() as Nanos + 1
}

/// Milliseconds since 1970 by the wall clock.
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
