//! How often something may be said: a few times at once, then once in a while, with a count of what went unsaid.
//!
//! Owns the arithmetic (the generic cell rate algorithm: one instant is all the state); the caller says it.

use std::time::Duration;
use tokio::time::Instant;

/// The state of one limit.
#[derive(Clone, Debug)]
pub struct Limit {
    burst: u32,
    period: Duration,
    /// When all of the burst will be free again; `None` until the first event.
    full: Option<Instant>,
    unsaid: u64,
}

impl Limit {
    /// `burst` at once, and one more in each `period`.
    pub fn new(burst: u32, period: Duration) -> Self {
        Self { burst, period, full: None, unsaid: 0 }
    }

    /// Something happened. `Some` if it may be said, with the number of events before it that weren't.
    pub fn event(&mut self, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        Some(self.overdue(now)? - 1)
    }

    /// The number of events that weren't said, if there are any and their time has come: the last of a series of
    /// events must not stay unsaid for ever.
    pub fn overdue(&mut self, now: Instant) -> Option<u64> {
        let full = self.full.map_or(now, |full| full.max(now));
        if self.unsaid == 0 || full - now > self.period * (self.burst - 1) {
            return None;
        }
        self.full = Some(full + self.period);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_in_each_period_and_nothing_is_lost() {
        let start = Instant::now();
        let mut limit = Limit::new(3, Duration::from_secs(10));
        let said: Vec<(u64, u64)> = (0..60)
            .filter_map(|second| limit.event(start + Duration::from_secs(second)).map(|unsaid| (second, unsaid)))
            .collect();
        assert_eq!(said, [(0, 0), (1, 0), (2, 0), (10, 7), (20, 9), (30, 9), (40, 9), (50, 9)]);
        assert_eq!(limit.overdue(start + Duration::from_secs(59)), None);
        assert_eq!(limit.overdue(start + Duration::from_secs(60)), Some(9));
        assert_eq!(limit.overdue(start + Duration::from_secs(600)), None, "all is said");
        assert_eq!(limit.event(start + Duration::from_secs(600)), Some(0));
    }
}
