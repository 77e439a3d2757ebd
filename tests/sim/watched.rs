//! A pool that is watched: whatever is done to it is done to its twin too, and both must agree afterwards.
//!
//! Owns the invariants. They are asserted, with the moment and the backend in the message.

use crate::Tally;
use crate::scenario::Scenario;
use crate::twin::{ModeTwin, Tier, Twin};
use std::collections::HashMap;
use std::sync::Arc;
use tidegate::clock::{Millis, Now};
use tidegate::metrics::{Metrics, StateGauge, TrafficFailure};
use tidegate::name::BackendId;
use tidegate::pool::health::{AgentReport, Outcome};
use tidegate::pool::{Backend, Pool, PoolView, Slot, Standing, Tried, WHOLE_SHARE, flag};
use tidegate::rng::Rng;

/// By id: a backend outlives the pool.
pub type Twins = HashMap<BackendId, Twin>;

pub fn at(millis: Millis) -> Now {
    Now { millis, unix_ms: millis.saturating_add(1_700_000_000_000) }
}

pub struct Watched {
    pub pool: Arc<Pool>,
    pub view: Arc<PoolView>,
    mode: ModeTwin,
    config: tidegate::config::Pool,
    panic_threshold: u16,
    max_ejected: u16,
    /// It is in the table, so that its metrics count.
    pub is_current: bool,
}

impl Watched {
    pub fn new(
        scenario: &Scenario,
        metrics: &Arc<Metrics>,
        previous: Option<&Watched>,
        twins: &mut Twins,
        now: Millis,
        tally: &mut Tally,
    ) -> Self {
        let before = previous.map(|watched| &*watched.pool);
        let pool = Pool::new(&scenario.config, &scenario.members, metrics, before, at(now));
        let view = pool.view();
        for backend in &view.backends {
            twins.entry(backend.id).or_insert_with(|| Twin::new(&scenario.config.health));
        }
        let mut watched = Self {
            pool: Arc::new(pool),
            view,
            mode: previous.map_or_else(|| ModeTwin::new(now), |previous| previous.mode.clone()),
            config: scenario.config.clone(),
            panic_threshold: scenario.panic_threshold,
            max_ejected: scenario.max_ejected,
            is_current: true,
        };
        watched.look(twins, now, tally);
        watched
    }

    pub fn review(&mut self, twins: &mut Twins, now: Millis, tally: &mut Tally) {
        let mode = self.pool.review(now);
        assert_eq!(mode, self.pool.mode());
        self.look(twins, now, tally);
        if now.is_multiple_of(8) {
            assert_eq!(self.pool.review(now), mode, "{now}: a review twice");
        }
    }

    pub fn observe(&mut self, index: usize, outcome: Outcome, twins: &mut Twins, now: Millis, tally: &mut Tally) {
        let backend = Arc::clone(&self.view.backends[index]);
        let twin = twins.get_mut(&backend.id).expect("a twin");
        let expected = twin.observe(outcome, &self.config, now);
        let falls = self.pool.falls();
        let verdict = self.pool.observe(&backend, outcome, at(now));
        assert_eq!(verdict, expected, "{now}: the verdict on {}", backend.label);
        tally.verdicts += u64::from(verdict.is_some());
        let fell = verdict == Some(tidegate::pool::Health::Down);
        assert_eq!(self.pool.falls() - falls, u32::from(fell), "{now}: falls");
        if verdict.is_some() {
            self.look(twins, now, tally);
        }
    }

    pub fn hear(&mut self, index: usize, report: AgentReport, twins: &mut Twins, now: Millis, tally: &mut Tally) {
        let backend = Arc::clone(&self.view.backends[index]);
        let twin = twins.get_mut(&backend.id).expect("a twin");
        let matters = twin.hear(report, self.config.protection.slow_start, now);
        self.pool.set_agent(&backend, &report, at(now));
        if matters {
            tally.agents += 1;
            self.look(twins, now, tally);
        } else {
            check(&backend, &twins[&backend.id], now);
        }
    }

    pub fn failed(
        &mut self,
        backend: &Backend,
        on_trial: bool,
        failure: TrafficFailure,
        twins: &mut Twins,
        now: Millis,
        tally: &mut Tally,
    ) {
        let room = self.ejected(twins) < self.most_ejected();
        let twin = twins.get_mut(&backend.id).expect("a twin");
        let times = twin.times;
        let expected = twin.fail(on_trial, room, &self.config.ejection, now);
        let ejected = self.pool.failed(backend, on_trial, failure, now);
        assert_eq!(ejected, expected, "{now}: {} fails, room: {room}", backend.label);
        tally.failures += 1;
        if let Some(ejected) = ejected {
            tally.ejections += 1;
            tally.forgiven += u64::from(ejected.times <= times);
            tally.longest_row = tally.longest_row.max(ejected.times);
            assert!(ejected.span <= self.config.ejection.max_time, "{now}: {ejected:?}");
            self.look(twins, now, tally);
        }
    }

    pub fn served(&mut self, backend: &Backend, on_trial: bool, twins: &mut Twins, now: Millis, tally: &mut Tally) {
        let twin = twins.get_mut(&backend.id).expect("a twin");
        let expected = twin.answer(on_trial, self.config.protection.slow_start, now);
        let back = self.pool.served(backend, on_trial, now);
        assert_eq!(back, expected, "{now}: {} serves", backend.label);
        if back {
            tally.returns += 1;
            self.look(twins, now, tally);
        }
    }

    /// A claim, which must be of the right ones, and must not fail while there is one.
    pub fn claim(
        &mut self,
        tried: &Tried,
        attempt: u64,
        twins: &mut Twins,
        rng: &mut Rng,
        now: Millis,
        tally: &mut Tally,
    ) -> Option<Slot> {
        let slot = self.pool.claim(tried, now, rng);
        tally.claims += 1;
        let index = slot.as_ref().map(|slot| self.index_of(slot.id).expect("a backend of this pool"));
        self.check_claim(tried, index, twins, now, tally);
        let (Some(slot), Some(index)) = (slot, index) else {
            tally.unserved += 1;
            return None;
        };
        let twin = twins.get_mut(&slot.id).expect("a twin");
        let is_trial = twin.standing == Standing::HalfOpen && twin.trial.is_none();
        assert_eq!(slot.is_on_trial(), is_trial, "{now}: {} on trial, beside {:?}", slot.label, twin.trial);
        if is_trial {
            (twin.trial, twin.trial_began) = (Some(attempt), now);
            tally.trials += 1;
        }
        twin.active += 1;
        if let Some(rate) = self.config.connect.max_rate {
            let wait = twin.wait(now);
            twin.take_turn(rate, now);
            assert_eq!(u128::from(slot.wait()), wait.div_ceil(1_000_000), "{now}: the wait for {}", slot.label);
            let longest = self.config.connect.budget.as_millis();
            assert!(u128::from(slot.wait()) <= longest, "{now}: {} ms", slot.wait());
            tally.waits += u64::from(slot.wait() > 0);
        } else {
            assert_eq!(slot.wait(), 0);
        }
        tally.slow_claims += u64::from(twin.is_ramping());
        tally.panic_claims += u64::from(self.mode.panic);
        tally.backup_claims += u64::from(self.view.tiers[index] > 0);
        check(&slot, twin, now);
        Some(slot)
    }

    /// Whether the attempt may have got backend `chosen`, or nothing.
    fn check_claim(&self, tried: &Tried, chosen: Option<usize>, twins: &Twins, now: Millis, tally: &mut Tally) {
        let budget = self.config.connect.budget.as_nanos();
        let twin = |index: usize| &twins[&self.view.backends[index].id];
        let in_use = |index: usize| usize::from(self.view.tiers[index]) <= self.mode.tier;
        let untried = |index: usize| !tried.contains(self.view.backends[index].id);
        let in_time = |index: usize| self.config.connect.max_rate.is_none() || twin(index).wait(now) <= budget;
        let may = |index: usize| untried(index) && in_time(index);
        let in_tiers = |index: usize| may(index) && twin(index).good() && in_use(index);
        let anywhere = |index: usize| may(index) && twin(index).good();
        // Before the claim, that is: a half-open one has no trial yet.
        let enabled = |index: usize| may(index) && twin(index).enabled() && in_use(index);
        let order: [&dyn Fn(usize) -> bool; 2] = match (self.mode.panic, tried.is_empty()) {
            (false, _) => [&in_tiers, &anywhere],
            (true, true) => [&enabled, &anywhere],
            (true, false) => [&anywhere, &enabled],
        };
        let all = 0..self.view.backends.len();
        let wanted = order.iter().find(|admits| all.clone().any(admits));
        let state = || -> Vec<String> {
            let word = |index: usize| format!("{}/{}", self.view.tiers[index], twin(index).state());
            all.clone().map(word).collect()
        };
        match (wanted, chosen) {
            (None, None) => {}
            (Some(_), None) => panic!("{now}: {} left a client unserved: {:?}", self.view.balance, state()),
            (Some(admits), Some(index)) if admits(index) => {}
            (_, Some(index)) => panic!(
                "{now}: {} gave backend {index}, tried {}: {}, {:?}: {:?}",
                self.view.balance,
                tried.len(),
                twin(index).state(),
                self.mode,
                state()
            ),
        }
        tally.failovers += u64::from(chosen.is_some() && !tried.is_empty());
    }

    /// The twin's review, and whether all is as it should be after one.
    fn look(&mut self, twins: &mut Twins, now: Millis, tally: &mut Tally) {
        let last = self.view.tiers.iter().max().map_or(0, |&tier| usize::from(tier));
        let mut tiers = vec![Tier::default(); last + 1];
        let (mut available, mut ejected) = (0, 0);
        for (backend, &tier) in self.view.backends.iter().zip(&self.view.tiers) {
            let twin = twins.get_mut(&backend.id).expect("a twin");
            twin.look(self.config.ejection.base_time, self.config.protection.slow_start, now);
            check(backend, twin, now);
            tiers[usize::from(tier)].enabled += usize::from(twin.enabled());
            tiers[usize::from(tier)].available += usize::from(twin.available());
            available += usize::from(twin.available());
            ejected += usize::from(twin.standing != Standing::InService);
        }
        let before = (self.mode.tier, self.mode.panic);
        self.mode.look(&tiers, &self.config.protection, self.panic_threshold, now);
        let mode = self.pool.mode();
        let expected = (self.mode.tier, self.mode.panic);
        assert_eq!((usize::from(mode.tier), mode.panic), expected, "{now}: the mode after {before:?} with {tiers:?}");
        tally.tier_changes += u64::from(before.0 != self.mode.tier);
        tally.panics += u64::from(!before.1 && self.mode.panic);
        assert_eq!(self.pool.available(), available, "{now}: available");
        if self.is_current {
            let metrics = &self.pool.metrics;
            let gauges = [&metrics.available, &metrics.ejected, &metrics.panic, &metrics.tier].map(StateGauge::get);
            let expected = [available as i64, ejected as i64, i64::from(mode.panic), i64::from(mode.tier)].map(Some);
            assert_eq!(gauges, expected, "{now}: available, ejected, panic, tier");
        }
    }

    pub fn index_of(&self, id: BackendId) -> Option<usize> {
        self.view.backends.iter().position(|backend| backend.id == id)
    }

    /// Those that are out for their ejection alone.
    fn ejected(&self, twins: &Twins) -> usize {
        let alone = |twin: &Twin| twin.standing != Standing::InService && twin.enabled() && twin.is_up();
        self.view.backends.iter().filter(|backend| alone(&twins[&backend.id])).count()
    }

    fn most_ejected(&self) -> usize {
        (self.view.backends.len() * usize::from(self.max_ejected) / 10_000).max(1)
    }
}

/// Whether a backend is what its twin says.
pub fn check(backend: &Backend, twin: &Twin, now: Millis) {
    let label = &backend.label;
    assert_eq!(backend.state(), twin.state(), "{now}: the state of {label}");
    assert_eq!(backend.ejection(), (twin.times, twin.standing), "{now}: the ejection of {label}");
    assert_eq!(backend.is_up(), twin.is_up(), "{now}: {label} is up");
    assert_eq!(backend.available(), twin.available(), "{now}: {label} is available");
    let on_trial = backend.flags() & flag::ON_TRIAL != 0;
    assert_eq!(on_trial, twin.trial.is_some(), "{now}: {label} is on trial: {twin:?}");
    assert_eq!(backend.active(), twin.active, "{now}: connections of {label}");
    // A half may be rounded either way.
    let share = f64::from(backend.share());
    let expected = twin.share * f64::from(WHOLE_SHARE);
    let off = (share - expected).abs();
    assert!(off <= 1.0 || !twin.enabled(), "{now}: the share of {label} is {share}, expected {expected}: {twin:?}");
}

/// What the end of a slot gives back.
pub fn release(slot: Slot, attempt: u64, twins: &mut Twins, now: Millis) {
    let backend = slot.backend();
    let twin = twins.get_mut(&backend.id).expect("a twin");
    drop(slot);
    twin.active -= 1;
    if twin.trial == Some(attempt) {
        twin.trial = None;
    }
    check(&backend, twin, now);
}
