//! The verdict on a backend: how many probes in a row it takes to change it, and how soon the next one is due.
//!
//! Owns the damping only, as a pure state machine; `crate::health` probes and keeps time. Next: `crate::health`.

use super::Health;
use crate::config;
use crate::rng::Rng;
use std::time::Duration;

/// The share by which the time between two probes varies, so that probes of many backends don't march in step.
const JITTER: f64 = 0.1;

/// What one probe came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure,
    /// We couldn't ask (no descriptor, no port, no route): says nothing about the backend.
    Frozen,
}

/// Turns outcomes into verdicts: `fall` failures in a row, or `rise` successes, change it.
#[derive(Clone, Debug)]
pub struct Damper {
    health: Health,
    /// Outcomes in a row that speak against `health`.
    streak: u16,
    /// A backend that starts down has had no chance to be up yet: its first success is enough.
    unproven: bool,
}

impl Damper {
    #[must_use]
    pub fn new(initial: Health) -> Self {
        Self { health: initial, streak: 0, unproven: initial == Health::Down }
    }

    /// Whether it has ever been up: one that comes up for the first time comes, but doesn't come back.
    #[must_use]
    pub fn has_been_up(&self) -> bool {
        !self.unproven
    }

    /// The new verdict, if this outcome changes it.
    pub fn observe(&mut self, outcome: Outcome, config: &config::Health) -> Option<Health> {
        let (spoken_for, needed) = match outcome {
            Outcome::Success => (Health::Up, if self.unproven { 1 } else { config.rise }),
            Outcome::Failure => (Health::Down, config.fall),
            Outcome::Frozen => return None,
        };
        if spoken_for == self.health {
            self.streak = 0;
            return None;
        }
        self.streak = self.streak.saturating_add(1);
        if self.streak < needed {
            return None;
        }
        *self = Self { health: spoken_for, streak: 0, unproven: false };
        Some(spoken_for)
    }

    /// The time until the next probe: short while a change of the verdict is pending.
    pub fn next_delay(&self, config: &config::Health, rng: &mut Rng) -> Duration {
        let pending = self.streak > 0;
        rng.jitter(if pending { config.fast_interval } else { config.interval }, JITTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{Failure, Frozen, Success};

    const RISE_2_FALL_3: config::Health = config::Health {
        probe: config::Probe::Tcp,
        interval: Duration::from_secs(2),
        fast_interval: Duration::from_millis(500),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
        initial: config::Initial::Down,
    };

    /// The verdicts that a sequence of outcomes leads to: `s`uccess, `f`ailure, fro`z`en become `U`p, `D`own, `.`
    fn verdicts(initial: Health, outcomes: &str) -> String {
        let mut damper = Damper::new(initial);
        let outcome = |letter| match letter {
            's' => Success,
            'f' => Failure,
            _ => Frozen,
        };
        let letter = |verdict| match verdict {
            Some(Health::Up) => 'U',
            Some(Health::Down) => 'D',
            None => '.',
        };
        outcomes.chars().map(|each| letter(damper.observe(outcome(each), &RISE_2_FALL_3))).collect()
    }

    #[test]
    fn verdicts_change_after_rise_or_fall_outcomes_in_a_row() {
        for (initial, outcomes, expected) in [
            (Health::Up, "ssss", "...."),
            (Health::Up, "ffff", "..D."),
            (Health::Up, "ffsffsfff", "........D"),
            (Health::Up, "fffss", "..D.U"),
            (Health::Up, "fffsfsfss", "..D.....U"),
            (Health::Down, "ffffff", "......"),
            (Health::Down, "sfff", "U..D"),
            (Health::Down, "ffffs", "....U"),
            // Once it has been up, one success is not enough any more.
            (Health::Down, "sfffsfss", "U..D...U"),
            // Frozen outcomes neither count nor break a row.
            (Health::Up, "fzfzzf", ".....D"),
            (Health::Up, "zzzzzz", "......"),
            (Health::Down, "zs", ".U"),
            (Health::Up, "fffszs", "..D..U"),
        ] {
            assert_eq!(verdicts(initial, outcomes), expected, "from {initial:?}: {outcomes}");
        }
    }

    #[test]
    fn flapping_at_every_probe_changes_nothing() {
        assert!(!verdicts(Health::Up, &"fs".repeat(500)).contains(['U', 'D']));
    }

    #[test]
    fn the_next_probe_is_soon_while_a_change_is_pending() {
        let mut rng = Rng::from_seed(5);
        let mut damper = Damper::new(Health::Up);
        for (outcome, expected) in [
            (Success, RISE_2_FALL_3.interval),
            (Failure, RISE_2_FALL_3.fast_interval),
            (Frozen, RISE_2_FALL_3.fast_interval),
            (Failure, RISE_2_FALL_3.fast_interval),
            (Failure, RISE_2_FALL_3.interval),
            (Success, RISE_2_FALL_3.fast_interval),
            (Success, RISE_2_FALL_3.interval),
        ] {
            damper.observe(outcome, &RISE_2_FALL_3);
            let delay = damper.next_delay(&RISE_2_FALL_3, &mut rng);
            let range = expected.mul_f64(0.9)..=expected.mul_f64(1.1);
            assert!(range.contains(&delay), "{delay:?} after {outcome:?}, expected about {expected:?}");
        }
    }
}
