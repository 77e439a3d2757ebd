//! Ejection: a backend that real traffic fails on is set aside for a while, and comes back by one trial.
//!
//! Owns the arithmetic of one backend, as a pure state machine: in service, ejected until a moment, half open (a
//! single connection may try it). Whether there is room for one more ejected backend is the pool's decision.

use crate::clock::Millis;
use crate::config;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Where a backend stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    InService,
    Ejected {
        until: Millis,
    },
    /// The time is over; the next connection decides.
    HalfOpen,
}

/// An ejection that has just begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejected {
    /// Ejections in a row, this one included.
    pub times: u32,
    pub span: Duration,
}

/// One backend's ejections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ejection {
    standing: Standing,
    /// Ejections in a row; good time takes them off again.
    times: u32,
    /// Since when it stands there; 0 if it was never ejected.
    since: Millis,
}

impl Ejection {
    #[must_use]
    pub fn new() -> Self {
        Self { standing: Standing::InService, times: 0, since: 0 }
    }

    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    #[must_use]
    pub fn times(&self) -> u32 {
        self.times
    }

    /// Since when it stands where it does; 0 if it was never ejected.
    #[must_use]
    pub fn since(&self) -> Millis {
        self.since
    }

    /// Begins an ejection of `base_time` times the number of ejections in a row, up to `max_time`.
    ///
    /// Each `base_time` in service since the last return takes one off that number.
    pub fn eject(&mut self, config: &config::Ejection, now: Millis) -> Ejected {
        if self.standing == Standing::InService {
            let good = now.saturating_sub(self.since) / (config.base_time.as_millis() as u64).max(1);
            self.times = self.times.saturating_sub(good.min(u64::from(u32::MAX)) as u32);
        }
        self.times = self.times.saturating_add(1);
        let span = config.base_time.saturating_mul(self.times).min(config.max_time);
        self.since = now;
        self.standing = Standing::Ejected { until: now.saturating_add(span.as_millis() as u64) };
        Ejected { times: self.times, span }
    }

    /// Whether its time is over now, which makes it half open.
    pub fn expire(&mut self, now: Millis) -> bool {
        let over = matches!(self.standing, Standing::Ejected { until } if until <= now);
        if over {
            (self.standing, self.since) = (Standing::HalfOpen, now);
        }
        over
    }

    /// The trial went well.
    pub fn restore(&mut self, now: Millis) {
        self.standing = Standing::InService;
        self.since = now;
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: config::Ejection = config::Ejection {
        consecutive_failures: Some(5),
        base_time: Duration::from_secs(30),
        max_time: Duration::from_secs(70),
        max_ejected: config::Percent::whole(10),
        slow_connect: None,
    };

    fn seconds(seconds: u64) -> Millis {
        seconds * 1_000
    }

    #[test]
    fn each_ejection_in_a_row_is_longer_up_to_the_most() {
        let mut ejection = Ejection::new();
        let mut now = seconds(1);
        for (times, span) in [(1, 30), (2, 60), (3, 70), (4, 70)] {
            assert_eq!(ejection.eject(&CONFIG, now), Ejected { times, span: Duration::from_secs(span) });
            assert!(!ejection.expire(now + seconds(span) - 1));
            now += seconds(span);
            assert!(ejection.expire(now) && !ejection.expire(now));
            assert_eq!(ejection.standing(), Standing::HalfOpen);
        }
        ejection.restore(now);
        assert_eq!(ejection.standing(), Standing::InService);
    }

    #[test]
    fn good_time_is_counted_off() {
        let mut ejection = Ejection::new();
        for _ in 0..3 {
            ejection.eject(&CONFIG, 0);
            ejection.expire(seconds(70));
        }
        ejection.restore(seconds(100));
        assert_eq!(ejection.eject(&CONFIG, seconds(100 + 65)).times, 2, "two of three are forgiven");
        ejection.expire(seconds(300));
        ejection.restore(seconds(300));
        assert_eq!(ejection.eject(&CONFIG, seconds(100_000)).times, 1);
    }
}
