//! The verdict on a backend: how many probes in a row it takes to change it, and how soon the next one is due.
//!
//! Owns the damping, as a pure state machine, and the words for what a backend says of itself; `crate::health` probes
//! and keeps time. Next: `crate::health`.

use crate::config;
use crate::rng::Rng;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What a backend counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    Up,
    Down,
}

impl Health {
    /// What a backend is before anything is known of it.
    #[must_use]
    pub fn initial(config: &config::Health) -> Self {
        match (&config.probe, config.initial) {
            (config::Probe::None, _) | (_, config::Initial::Up) => Self::Up,
            (_, config::Initial::Down) => Self::Down,
        }
    }

    /// The word in logs and `/status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// What one probe came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure,
    /// We couldn't ask (no descriptor, no port, no route): says nothing about the backend.
    Frozen,
}

/// What a backend's agent says of it; what it doesn't speak of stays as it is. Source: HAProxy's agent-check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentReport {
    /// `down` takes the backend out whatever its probes say; `up` leaves it to them again.
    pub state: Option<Health>,
    pub admin: Option<AgentAdmin>,
    /// Of the configured weight, in per cent: 0 to 100.
    pub weight: Option<u8>,
}

impl AgentReport {
    /// This report with what a later one says of the same.
    #[must_use]
    pub fn updated(self, later: &Self) -> Self {
        Self {
            state: later.state.or(self.state),
            admin: later.admin.or(self.admin),
            weight: later.weight.or(self.weight),
        }
    }

    /// What holds where no agent speaks.
    #[must_use]
    pub fn of_nobody() -> Self {
        Self { state: Some(Health::Up), admin: Some(AgentAdmin::Ready), weight: Some(100) }
    }
}

impl fmt::Display for AgentReport {
    /// Writes the words that the agent might have used, such as `up drain 50%`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [self.state.map(Health::as_str), self.admin.map(AgentAdmin::as_str)];
        let weight = self.weight.map(|weight| format!("{weight}%"));
        let words: Vec<&str> = words.into_iter().flatten().chain(weight.as_deref()).collect();
        f.write_str(if words.is_empty() { "nothing" } else { "" })?;
        f.write_str(&words.join(" "))
    }
}

/// The part of an agent's report that an operator might have said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentAdmin {
    /// Takes back the other two.
    Ready,
    /// No new sessions; those that stand go on.
    Drain,
    /// As `Drain`, and what the probes say doesn't matter.
    Maint,
}

impl AgentAdmin {
    /// The agent's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

/// Turns outcomes into verdicts: `fall` failures in a row, or `rise` successes, change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

    #[must_use]
    pub fn verdict(&self) -> Health {
        self.health
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

    /// The time until the next probe: short while a change of the verdict is pending, and another one while the
    /// backend is down for good.
    pub fn next_delay(&self, config: &config::Health, rng: &mut Rng) -> Duration {
        let interval = match self.health {
            _ if self.streak > 0 => config.fast_interval,
            Health::Up => config.interval,
            Health::Down => config.down_interval,
        };
        rng.jitter(interval, config.jitter.ratio())
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
        down_interval: Duration::from_secs(10),
        jitter: config::Percent::whole(10),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
        initial: config::Initial::Down,
        port: None,
        address: None,
        agent: None,
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
            (Failure, RISE_2_FALL_3.down_interval),
            (Failure, RISE_2_FALL_3.down_interval),
            (Success, RISE_2_FALL_3.fast_interval),
            (Success, RISE_2_FALL_3.interval),
        ] {
            damper.observe(outcome, &RISE_2_FALL_3);
            let delay = damper.next_delay(&RISE_2_FALL_3, &mut rng);
            let range = expected.mul_f64(0.9)..=expected.mul_f64(1.1);
            assert!(range.contains(&delay), "{delay:?} after {outcome:?}, expected about {expected:?}");
        }
    }

    #[test]
    fn the_time_between_probes_varies_by_the_jitter() {
        let mut rng = Rng::from_seed(6);
        let damper = Damper::new(Health::Up);
        let mut delays = |percent| {
            let config = config::Health { jitter: config::Percent::whole(percent), ..RISE_2_FALL_3 };
            (0..1_000).map(|_| damper.next_delay(&config, &mut rng).as_secs_f64()).collect::<Vec<_>>()
        };
        assert!(delays(0).iter().all(|delay| (delay - 2.0).abs() < 1e-9));
        let half = delays(50);
        assert!(half.iter().all(|delay| (1.0..=3.0).contains(delay)));
        let beyond = |limit: f64| half.iter().filter(|delay| (**delay - 2.0).abs() > limit).count();
        assert!(beyond(0.5) > 400, "{} of 1000 are in the outer half", beyond(0.5));
    }
}
