//! Moments as the JSON of the endpoint has them.

use serde::{Serialize, Serializer};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment to the millisecond, in JSON as `2025-11-21T04:11:09.123Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(SystemTime);

impl Default for Moment {
    fn default() -> Self {
        Self(UNIX_EPOCH)
    }
}

impl Moment {
    #[must_use]
    pub fn of_unix_ms(ms: u64) -> Self {
        // Within what RFC 3339 can write, which is the year 9999.
        const LAST: u64 = 253_402_300_799_999;
        Self(UNIX_EPOCH + Duration::from_millis(ms.min(LAST)))
    }

    #[must_use]
    pub fn of(time: SystemTime) -> Self {
        Self::of_unix_ms(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
    }

    /// Whole seconds since 1970.
    #[must_use]
    pub fn unix_seconds(self) -> u64 {
        self.unix_ms() / 1_000
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn unix_ms(self) -> u64 {
        self.0.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    /// How long before `later`; nothing if the clock was set back between the two.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        later.0.duration_since(self.0).unwrap_or_default()
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(self.0).fmt(f)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
