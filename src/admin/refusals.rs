//! Those who may not, and requests for changes that make no sense: counted, told of in the log, and held to so many
//! answers a second.
//!
//! Owns the rate of wrong tokens and of lines about refusals. Nobody is made to wait for an answer: a delay would cost
//! us a connection for each guess. Of a request its method and path are told, and nothing that its body says.

use crate::every::Every;
use crate::metrics::{AdminDenial, Metrics};
use hyper::StatusCode;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong tokens, or none where one is wanted, that are answered as such in a second; further ones are too many.
pub const MOST: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// Of a method and a path, so many characters are told.
const TOLD: usize = 256;

pub struct Refusals {
    second: Mutex<Second>,
    /// Of those who may not; and, beside them so that nobody hides behind those who mistype, of forms that are wrong.
    denied: Lines,
    malformed: Lines,
}

/// At most one line a second, which says how many there were not.
struct Lines {
    said: Every,
    unsaid: AtomicU64,
}

impl Lines {
    fn new(now: Instant) -> Self {
        Self { said: Every::new(SECOND, now), unsaid: AtomicU64::new(0) }
    }

    /// Whether it is told, and how many were not before it.
    fn next(&self, now: Instant) -> Option<u64> {
        if self.said.is_due(now) {
            return Some(self.unsaid.swap(0, Relaxed));
        }
        self.unsaid.fetch_add(1, Relaxed);
        None
    }
}

/// The second that counts now.
struct Second {
    begun: Instant,
    count: u32,
}

impl Refusals {
    pub fn new(now: Instant) -> Self {
        let second = Mutex::new(Second { begun: now, count: 0 });
        Self { second, denied: Lines::new(now), malformed: Lines::new(now) }
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
    pub fn tell(&self, told: &Told<'_>, metrics: &Metrics, now: Instant) {
        let Told { by, request, reason, status } = told;
        metrics.admin_denied(*reason).inc();
        let lines = if *reason == AdminDenial::Form { &self.malformed } else { &self.denied };
        if let Some(unsaid) = lines.next(now) {
            let request = cut(request);
            let status = status.as_u16();
            tracing::warn!(%by, request, %reason, status, unsaid, "refused");
        }
    }
}

/// What is told of a refusal.
pub struct Told<'a> {
    pub by: &'a dyn Display,
    /// Its method and path.
    pub request: &'a str,
    pub reason: AdminDenial,
    pub status: StatusCode,
}

fn cut(request: &str) -> String {
    let mut told: String = request.chars().take(TOLD).collect();
    if told.len() < request.len() {
        told.push('…');
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_request_is_bounded_and_one_line_a_second() {
        assert_eq!(cut("POST /reload"), "POST /reload");
        assert_eq!(cut(&"é".repeat(9_999)), "é".repeat(TOLD) + "…");
        let begun = Instant::now();
        let lines = Lines::new(begun);
        let told = [0, 1, 999, 1_000, 2_500].map(|ms| lines.next(begun + Duration::from_millis(ms)));
        assert_eq!(told, [Some(0), None, None, Some(2), Some(0)]);
    }

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
