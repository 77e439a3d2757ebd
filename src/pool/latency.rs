//! What a pool learns of how long things take, and the sessions that it refuses for that.
//!
//! Owns the way from a session's samples to [`Shed`], which decides; and the metrics of it.

use super::{Pool, Shed};
use crate::clock::Millis;
use crate::rng::Rng;
use std::time::Duration;

/// What of a session takes time, and may be the sign of too much work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// A connect that has succeeded.
    Connect,
    /// From the client's first byte to the first byte of the answer.
    FirstByte,
    /// In the queue; zero for whoever needn't.
    Queue,
}

impl Latency {
    pub(super) const COUNT: usize = 3;
}

impl Pool {
    /// Takes in how long something of a session took.
    pub fn took(&self, latency: Latency, took: Duration) {
        if let Some(shed) = &self.shed {
            shed.observe(latency, took);
        }
    }

    /// Takes in that it would have taken longer than `took`: so long it was waited for in vain.
    pub fn took_at_least(&self, latency: Latency, took: Duration) {
        if let Some(shed) = &self.shed {
            shed.observe_at_least(latency, took);
        }
    }

    /// Whether it may refuse new sessions for its latency at all: only then is it worth to ask
    /// [`admits`](Self::admits).
    #[must_use]
    pub fn sheds(&self) -> bool {
        self.shed.is_some()
    }

    /// Whether a new session may come, or is refused because the latency is too high.
    pub fn admits(&self, now: Millis, rng: &mut Rng) -> bool {
        self.shed.as_ref().is_none_or(|shed| {
            self.look_at_latency(shed, now);
            let admitted = shed.admits(now, rng);
            if !admitted {
                let metrics = self.metrics.shed();
                if shed.config.dry_run { metrics.dry_run.inc() } else { metrics.refused.inc() }
            }
            admitted || shed.config.dry_run
        })
    }

    pub(super) fn look_at_latency(&self, shed: &Shed, now: Millis) {
        if shed.is_due(now) && !self.is_retired() {
            shed.look(self.waiting.expected_wait(now), now);
            self.metrics.shed().probability.set(shed.share());
        }
    }

    /// What refuses a share of new sessions for that; `None` if no latency has a target.
    #[must_use]
    pub fn shed(&self) -> Option<&Shed> {
        self.shed.as_deref()
    }
}
