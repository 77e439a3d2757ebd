//! Those who may not: counted, told of in the log, and held to so many answers a second.
//!
//! Owns the rate of wrong tokens and of lines about refusals. Nobody is made to wait for an answer: a delay would cost
//! us a connection for each guess.

use super::who::Peer;
use crate::config::values::quoted;
use crate::every::Every;
use crate::metrics::{AdminDenial, Metrics};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong tokens, or none where one is wanted, that are answered as such in a second; further ones are too many.
pub const MOST: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

pub struct Refusals {
    second: Mutex<Second>,
    said: Every,
    unsaid: AtomicU64,
}

/// The second that counts now.
struct Second {
    begun: Instant,
    count: u32,
}

impl Refusals {
    pub fn new(now: Instant) -> Self {
        let second = Mutex::new(Second { begun: now, count: 0 });
        Self { second, said: Every::new(SECOND, now), unsaid: AtomicU64::new(0) }
    }

    /// Counts a wrong token; whether there were too many in this second.
    pub fn is_too_many(&self, now: Instant) -> bool {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(second.begun) >= SECOND {
            *second = Second { begun: now, count: 0 };
        }
        second.count = second.count.saturating_add(1);
        second.count > MOST
    }

    /// Counts a refusal, and has it in the log unless one was there in this second.
    pub fn tell(&self, reason: AdminDenial, peer: Peer, request: &str, metrics: &Metrics, now: Instant) {
        metrics.admin_denied(reason).inc();
        if self.said.is_due(now) {
            let unsaid = self.unsaid.swap(0, Relaxed);
            tracing::warn!(by = %peer, request = %quoted(request), %reason, unsaid, "refused");
        } else {
            self.unsaid.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f75_ten_wrong_tokens_a_second_are_answered_and_no_more() {
        let begun = Instant::now();
        let refusals = Refusals::new(begun);
        for second in 0..3 {
            let at = |ms| begun + Duration::from_millis(second * 1_000 + ms);
            let too_many = |ms| refusals.is_too_many(at(ms));
            assert!((0..u64::from(MOST)).all(|n| !too_many(n)), "second {second}");
            assert!((500..600).all(too_many), "second {second}");
        }
    }
}
