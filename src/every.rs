//! At most one of something in a span of time, over all threads: the limit on repeated log lines.
//!
//! Owns one atomic and the arithmetic; `now` is an argument.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lets one caller through in each `span`.
#[derive(Debug)]
pub struct Every {
    since: Instant,
    span: Duration,
    /// Milliseconds after `since` from which on the next one may go; 0 at first.
    next: AtomicU64,
}

impl Every {
    #[must_use]
    pub fn new(span: Duration, now: Instant) -> Self {
        Self { since: now, span, next: AtomicU64::new(0) }
    }

    /// Whether it is this caller's turn; then it is nobody's for the rest of the span.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.since).as_millis() as u64;
        let next = self.next.load(Ordering::Relaxed);
        let after = now + self.span.as_millis() as u64;
        now >= next && self.next.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_goes_through_in_each_span() {
        let begun = Instant::now();
        let every = Every::new(Duration::from_secs(10), begun);
        let due = [0, 1, 9, 10, 11, 19, 20].map(|second| every.is_due(begun + Duration::from_secs(second)));
        assert_eq!(due, [true, false, false, true, false, false, true]);
    }
}
