//! What a backend, and a pool's mode, should be by the documented rules: worked out beside the real ones, in the
//! plainest way, from nothing but what happened.

use std::time::Duration;
use tidegate::clock::Millis;
use tidegate::config;
use tidegate::pool::health::{AgentAdmin, AgentReport, Outcome};
use tidegate::pool::{Ejected, Health, Standing};

/// One backend.
#[derive(Clone, Debug)]
pub struct Twin {
    pub up: bool,
    has_been_up: bool,
    streak: u16,
    pub agent: AgentReport,
    pub standing: Standing,
    pub times: u32,
    returned: Millis,
    failures: u32,
    ramp: Option<Millis>,
    /// Of the weight, as of the last look.
    pub share: f64,
    /// The attempt that tries it.
    pub trial: Option<u64>,
    pub trial_began: Millis,
    /// Its connections, by whose attempts.
    pub active: u32,
    /// When its next connect would be due if all had kept the rate, in ns.
    due: u128,
}

impl Twin {
    pub fn new(config: &config::Health) -> Self {
        let up = config.initial == config::Initial::Up;
        Self {
            up,
            has_been_up: up,
            streak: 0,
            agent: AgentReport::of_nobody(),
            standing: Standing::InService,
            times: 0,
            returned: 0,
            failures: 0,
            ramp: None,
            share: 1.0,
            trial: None,
            trial_began: 0,
            active: 0,
            due: 0,
        }
    }

    pub fn agent_down(&self) -> bool {
        self.agent.state == Some(Health::Down)
    }

    pub fn maint(&self) -> bool {
        self.agent.admin == Some(AgentAdmin::Maint)
    }

    pub fn draining(&self) -> bool {
        self.agent.admin == Some(AgentAdmin::Drain) || self.agent.weight == Some(0)
    }

    pub fn enabled(&self) -> bool {
        !self.maint() && !self.draining()
    }

    pub fn is_up(&self) -> bool {
        self.up && !self.agent_down()
    }

    pub fn available(&self) -> bool {
        self.enabled() && self.is_up() && self.standing == Standing::InService
    }

    /// Available, or to be tried by whoever comes.
    pub fn good(&self) -> bool {
        let may_try = self.standing == Standing::HalfOpen && self.trial.is_none();
        self.enabled() && self.is_up() && (self.standing == Standing::InService || may_try)
    }

    pub fn is_ramping(&self) -> bool {
        self.ramp.is_some()
    }

    pub fn state(&self) -> &'static str {
        match self.standing {
            _ if self.maint() => "maint",
            _ if self.draining() => "agent_draining",
            _ if !self.is_up() => "down",
            Standing::Ejected { .. } => "ejected",
            Standing::HalfOpen => "half_open",
            Standing::InService => "up",
        }
    }

    /// The new verdict, if there is one.
    pub fn observe(&mut self, outcome: Outcome, config: &config::Pool, now: Millis) -> Option<Health> {
        let speaks_for_up = match outcome {
            Outcome::Frozen => return None,
            Outcome::Success => true,
            Outcome::Failure => false,
        };
        self.streak = if speaks_for_up == self.up { 0 } else { self.streak + 1 };
        let needed = match (speaks_for_up, self.has_been_up) {
            (true, true) => config.health.rise,
            (true, false) => 1,
            (false, _) => config.health.fall,
        };
        if self.streak < needed {
            return None;
        }
        (self.up, self.streak) = (speaks_for_up, 0);
        if !self.up {
            return Some(Health::Down);
        }
        self.failures = 0;
        if self.has_been_up {
            self.start_slowly(config.protection.slow_start, now);
        }
        self.has_been_up = true;
        Some(Health::Up)
    }

    /// Whether it changes who may be given the backend.
    pub fn hear(&mut self, report: AgentReport, slow_start: Duration, now: Millis) -> bool {
        let before = self.clone();
        self.agent = self.agent.updated(&report);
        if self.agent == before.agent {
            return false;
        }
        self.share = self.share_at(now, slow_start);
        let was_out = before.agent_down() || before.maint();
        if was_out && self.enabled() && !self.agent_down() {
            self.start_slowly(slow_start, now);
        }
        let facts = |twin: &Self| (twin.agent_down(), twin.maint(), twin.draining());
        facts(&before) != facts(self)
    }

    /// Whether a failure of traffic ejects it, given whether there is room for one more.
    pub fn fail(&mut self, on_trial: bool, room: bool, config: &config::Ejection, now: Millis) -> Option<Ejected> {
        self.failures += 1;
        let enough = u32::from(config.consecutive_failures?);
        let on_trial = on_trial && self.standing == Standing::HalfOpen;
        let may = match self.standing {
            Standing::Ejected { .. } => false,
            Standing::HalfOpen => true,
            Standing::InService => room,
        };
        if !may || (self.failures < enough && !on_trial) {
            return None;
        }
        let base = config.base_time.as_millis() as u64;
        if self.standing == Standing::InService {
            let forgiven = ((now - self.returned) / base) as u32;
            self.times -= forgiven.min(self.times);
        }
        self.times += 1;
        self.failures = 0;
        let span = (base * u64::from(self.times)).min(config.max_time.as_millis() as u64);
        self.standing = Standing::Ejected { until: now + span };
        self.trial = None;
        Some(Ejected { times: self.times, span: Duration::from_millis(span) })
    }

    /// Whether an answer brings it back.
    pub fn answer(&mut self, on_trial: bool, slow_start: Duration, now: Millis) -> bool {
        self.failures = 0;
        if !on_trial || self.standing != Standing::HalfOpen {
            return false;
        }
        (self.standing, self.returned, self.trial) = (Standing::InService, now, None);
        self.start_slowly(slow_start, now);
        true
    }

    pub fn look(&mut self, base_time: Duration, slow_start: Duration, now: Millis) {
        if self.trial.is_some() && now - self.trial_began >= base_time.as_millis() as u64 {
            // Nobody has complained.
            self.answer(true, slow_start, now);
        }
        if matches!(self.standing, Standing::Ejected { until } if until <= now) {
            self.standing = Standing::HalfOpen;
        }
        self.share = self.share_at(now, slow_start);
    }

    /// How long the next connect has to wait, in ns.
    pub fn wait(&self, now: Millis) -> u128 {
        self.due.saturating_sub(u128::from(now) * 1_000_000 + 100_000_000)
    }

    pub fn take_turn(&mut self, rate: u32, now: Millis) {
        self.due = self.due.max(u128::from(now) * 1_000_000) + 1_000_000_000_u128.div_ceil(rate.into());
    }

    fn start_slowly(&mut self, slow_start: Duration, now: Millis) {
        if !slow_start.is_zero() {
            self.ramp = Some(now);
            self.share = self.share_at(now, slow_start);
        }
    }

    fn share_at(&mut self, now: Millis, slow_start: Duration) -> f64 {
        let whole = f64::from(self.agent.weight.unwrap_or(100)) / 100.0;
        let Some(begun) = self.ramp else { return whole };
        let elapsed = (now - begun) as f64 / slow_start.as_millis() as f64;
        if elapsed >= 1.0 {
            self.ramp = None;
            return whole;
        }
        whole * (0.1 + 0.9 * elapsed)
    }
}

/// One tier, counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tier {
    pub enabled: usize,
    pub available: usize,
}

/// The mode of a pool.
#[derive(Clone, Debug)]
pub struct ModeTwin {
    began: Millis,
    pub tier: usize,
    pub panic: bool,
    /// Since when the tiers before each one have been enough without it.
    enough_since: [Option<Millis>; 16],
}

impl ModeTwin {
    pub fn new(now: Millis) -> Self {
        Self { began: now, tier: 0, panic: false, enough_since: [None; 16] }
    }

    /// The tiers from the first one to the last that has members.
    pub fn look(&mut self, tiers: &[Tier], protection: &config::Protection, panic_threshold: u16, now: Millis) {
        let span = protection.tier_hold.as_millis() as u64;
        let before = |tier: usize| tiers.iter().take(tier).map(|each| each.available).sum::<usize>();
        let is_needed = |tier: usize| before(tier) < usize::from(protection.min_available);
        // No tier is needed beyond the last one.
        let needed = (0..tiers.len()).rev().find(|&tier| tier == 0 || is_needed(tier)).unwrap_or(0);
        let may_leave =
            |since: Option<Millis>| now < self.began + span || since.is_some_and(|since| now - since >= span);
        for (tier, since) in self.enough_since.iter_mut().enumerate() {
            *since = if tier < tiers.len() && is_needed(tier) { None } else { since.or(Some(now)) };
        }
        // One that has no members any more is not held.
        let last = self.tier.min(tiers.len() - 1);
        let held = (needed..=last).rev().find(|&tier| tier == needed || !may_leave(self.enough_since[tier]));
        self.tier = held.unwrap_or(needed);
        let in_use = tiers.iter().take(self.tier + 1).filter(|tier| tier.enabled > 0);
        let well = |tier: &Tier| tier.available * 10_000 >= tier.enabled * usize::from(panic_threshold);
        let whole = tiers.iter().fold(Tier::default(), |sum, tier| Tier {
            enabled: sum.enabled + tier.enabled,
            available: sum.available + tier.available,
        });
        self.panic = in_use.clone().count() > 0 && !in_use.clone().any(well) && !well(&whole);
    }
}
