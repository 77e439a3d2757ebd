//! The end of a scenario: every backend is well from now on, and the pool must come to see it.
//!
//! Owns what holds only then: who is well is back in service, counts are back at zero, turns are exact.

use crate::run::{Event, REVIEW_EVERY, Run};
use crate::watched::{Twins, release};
use crate::world::Nature;
use std::cmp::Reverse;
use std::sync::Arc;
use tidegate::config::Balance;
use tidegate::pool::health::AgentReport;
use tidegate::pool::{Health, Tried};

impl Run<'_> {
    /// All are well from now on, and at the end all that matters is as at the begin.
    pub fn calm_down(&mut self) {
        self.calm = true;
        self.natures.values_mut().for_each(|nature| *nature = Nature::Good);
        let pool = self.pools.len() - 1;
        let well = AgentReport::of_nobody();
        for index in 0..self.pools[pool].view.backends.len() {
            self.pools[pool].hear(index, well, &mut self.twins, self.now, self.tally);
        }
        // The longest of: an ejection that began just now, a silent trial, a rise after the longest interval.
        let healing = self.scenario.config.ejection.max_time.as_millis() as u64 + 35_000;
        self.run_until(self.now + healing);
        self.events.retain(|Reverse((_, _, event))| matches!(event, Event::Review | Event::Probe(_)));
        for session in 0..self.sessions.len() {
            self.close(session);
        }
        assert!(self.backends.iter().all(|backend| backend.active() == 0), "{}: connections are left", self.now);
        assert!(self.twins.values().all(|twin| twin.trial.is_none() && twin.active == 0));
        let reached = self.try_all();
        let protection = self.scenario.config.protection;
        let settling = protection.slow_start.max(protection.tier_hold).as_millis() as u64 + 2 * REVIEW_EVERY;
        self.run_until(self.now + settling);
        if reached {
            self.all_is_well();
        }
        self.check_pace();
    }

    /// Many clients, whose connections are short and go well. Whether chance can't have left out anybody.
    fn try_all(&mut self) -> bool {
        const CLAIMS: u64 = 3_000;
        let pool = self.pools.len() - 1;
        let view = Arc::clone(&self.pools[pool].view);
        let total: f64 = view.weights.iter().map(|&weight| f64::from(weight)).sum();
        let least = view.weights.iter().min().copied().map_or(1.0, f64::from) / total;
        let least = if matches!(self.scenario.members.balance, Balance::Failover(_)) { 0.01 } else { least };
        let first_tier_is_up = |twins: &Twins| {
            let tiers = view.backends.iter().zip(&view.tiers);
            tiers.filter(|(_, tier)| **tier == 0).all(|(backend, _)| twins[&backend.id].available())
        };
        // What `peak_ewma` remembers of a bad one takes a minute or two to fade.
        let pause = if self.scenario.members.balance == Balance::PeakEwma { 100 } else { 20 };
        for _ in 0..CLAIMS {
            if first_tier_is_up(&self.twins) {
                return true;
            }
            self.run_until(self.now + pause);
            let id = self.id();
            let watched = &mut self.pools[pool];
            let (now, twins) = (self.now, &mut self.twins);
            let Some(slot) = watched.claim(&Tried::default(), id, twins, &mut self.rng, now, self.tally) else {
                continue;
            };
            self.begun.entry(slot.id).or_default().push(now + slot.wait());
            watched.served(&slot, slot.is_on_trial(), twins, now, self.tally);
            release(slot, id, twins, now);
        }
        // With less, some client in 10^9 scenarios might not have come.
        let is_certain = least * CLAIMS as f64 > 20.0 && self.scenario.config.connect.max_rate.is_none();
        let state: Vec<_> = view.backends.iter().zip(&view.tiers).map(|(each, tier)| (tier, each.state())).collect();
        let (now, balance) = (self.now, view.balance);
        assert!(!is_certain, "{now}: who is well again isn't back in service: {balance}, {state:?}");
        false
    }

    fn all_is_well(&mut self) {
        let pool = self.pools.len() - 1;
        let (view, now) = (Arc::clone(&self.pools[pool].view), self.now);
        let in_first: Vec<usize> = (0..view.backends.len()).filter(|&index| view.tiers[index] == 0).collect();
        for &index in &in_first {
            let backend = &view.backends[index];
            assert_eq!((backend.state(), backend.flags()), ("up", 0), "{now}: {} is well again", backend.label);
            assert_eq!(backend.health().0, Health::Up);
        }
        let enough = usize::from(self.scenario.config.protection.min_available);
        let mode = self.pools[pool].pool.mode();
        if in_first.len() >= enough {
            assert_eq!((mode.tier, mode.panic), (0, false), "{now}: all are well");
            self.tally.well += 1;
        }
        if self.scenario.members.balance != Balance::RoundRobin
            || in_first.len() < enough
            || self.scenario.config.connect.max_rate.is_some()
        {
            return;
        }
        let divisor = view.weights.iter().fold(0, |a, &b| gcd(a, u64::from(b)));
        let turns: Vec<u64> = in_first.iter().map(|&index| u64::from(view.weights[index]) / divisor).collect();
        let round: u64 = turns.iter().sum();
        if round > 2_000 {
            return;
        }
        let mut got = vec![0; in_first.len()];
        for _ in 0..2 * round {
            let slot = self.pools[pool].pool.claim(&Tried::default(), now, &mut self.rng).expect("all are well");
            let index = in_first.iter().position(|&index| view.backends[index].id == slot.id);
            got[index.expect("one of the first tier")] += 1;
        }
        let expected: Vec<u64> = turns.iter().map(|turns| 2 * turns).collect();
        assert_eq!(got, expected, "{now}: two rounds of {turns:?}");
        self.tally.exact_rounds += 1;
    }

    /// No backend got more connects in any time than its rate, a tenth of a second's worth and one.
    fn check_pace(&self) {
        let Some(rate) = self.scenario.config.connect.max_rate.map(f64::from) else { return };
        for (id, begun) in &self.begun {
            let mut least = f64::MAX;
            for (count, &at) in begun.iter().enumerate() {
                let ahead = count as f64 - rate * at as f64 / 1_000.0;
                least = least.min(ahead);
                // Turns are told in whole ms.
                let most = rate * 0.101 + 1e-3;
                assert!(ahead - least <= most, "{at}: {id:?} is {} ahead of its rate", ahead - least);
            }
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
