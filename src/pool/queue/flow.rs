//! How fast places come free while somebody waits, and who can't make it by that.
//!
//! Owns a moving average, pure: so many were served in so much time, both fading with age.

use crate::clock::Millis;
use std::time::Duration;

/// The average forgets all but 1/e in `max_wait`, but in no less and no more than this, in ms.
const MEMORY: std::ops::RangeInclusive<Millis> = 1_000..=10_000;
/// Before somebody has waited for this share of that time, too little is known to send anybody away.
const EVIDENCE: f64 = 0.25;
/// Who would wait for more than this share of `max_wait` by the average would too often wait in vain: the average is
/// one, and half of all are worse.
const MARGIN: f64 = 0.9;

#[derive(Debug)]
pub struct Flow {
    served: f64,
    /// Time in which somebody waited, in ms.
    busy: f64,
    at: Millis,
    memory: f64,
}

impl Flow {
    pub fn new() -> Self {
        Self { served: 0.0, busy: 0.0, at: 0, memory: *MEMORY.start() as f64 }
    }

    /// Time has gone on to `now`; `anybody` has waited since the last call.
    pub fn advance(&mut self, now: Millis, anybody: bool, max_wait: Millis) {
        self.memory = max_wait.clamp(*MEMORY.start(), *MEMORY.end()) as f64;
        let passed = now.saturating_sub(self.at);
        if passed == 0 {
            return;
        }
        self.at = now;
        let kept = (-(passed as f64) / self.memory).exp();
        self.served *= kept;
        self.busy *= kept;
        if anybody {
            self.busy += self.memory * (1.0 - kept);
        }
    }

    /// One more has got its place.
    pub fn serve(&mut self) {
        self.served += 1.0;
    }

    /// Whether one behind so many others would not get a place within `max_wait`.
    pub fn is_hopeless(&self, ahead: usize, max_wait: Millis) -> bool {
        if self.busy < self.memory * EVIDENCE {
            return false;
        }
        (ahead + 1) as f64 > self.rate() * max_wait as f64 * MARGIN
    }

    /// How long the last of so many waits, as far as is known.
    pub fn expected_wait(&self, waiting: usize) -> Duration {
        Duration::from_millis((waiting as f64 / self.rate()) as Millis)
    }

    /// Places that come free in a millisecond in which somebody waits.
    fn rate(&self) -> f64 {
        // The next one may be about to come free.
        (self.served + 1.0) / self.busy.max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flow after `seconds` in which somebody always waited and one was served each `every` ms.
    fn after(seconds: u64, every: Millis, max_wait: Millis) -> Flow {
        let mut flow = Flow::new();
        flow.advance(1, false, max_wait);
        for now in 1..=seconds * 1_000 {
            flow.advance(1 + now, true, max_wait);
            if now % every == 0 {
                flow.serve();
            }
        }
        flow
    }

    /// How many may wait.
    fn room(flow: &Flow, max_wait: Millis) -> usize {
        (1..1_000_000).find(|&ahead| flow.is_hopeless(ahead, max_wait)).unwrap()
    }

    #[test]
    fn as_many_may_wait_as_can_make_it() {
        for (every, expected) in [(1, 4_500), (10, 450), (100, 45), (1_000, 5)] {
            let room = room(&after(30, every, 5_000), 5_000);
            let close = expected * 95 / 100..=expected * 105 / 100 + 1;
            assert!(close.contains(&room), "one each {every} ms: {room} may wait, about {expected} can make it");
        }
    }

    #[test]
    fn nobody_is_sent_away_before_something_is_known() {
        assert!(!after(1, 10_000, 5_000).is_hopeless(1_000_000, 5_000));
        assert!(after(2, 10_000, 5_000).is_hopeless(1_000_000, 5_000));
    }

    #[test]
    fn where_nothing_comes_free_hardly_anybody_waits() {
        assert_eq!(room(&after(60, 1_000_000, 5_000), 5_000), 1);
    }

    #[test]
    fn what_was_long_ago_says_nothing() {
        let mut flow = after(30, 1_000, 5_000);
        assert!(flow.is_hopeless(100, 5_000));
        flow.advance(31_000 + 20_000, false, 5_000);
        assert!(!flow.is_hopeless(100, 5_000), "nobody has waited for a while");
    }

    #[test]
    fn a_burst_that_is_soon_over_is_no_evidence() {
        let mut flow = Flow::new();
        for now in 1..10_000 {
            flow.advance(now, now % 100 == 0, 5_000);
        }
        assert!(!flow.is_hopeless(1_000, 5_000));
    }
}
