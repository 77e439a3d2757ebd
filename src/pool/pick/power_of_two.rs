//! The better of two: two backends are drawn by weight, and the one with less to do is taken.
//!
//! Owns the drawing; what "less to do" means is a [`Measure`]. Drawing two instead of one brings the longest queue from
//! log n / log log n down to log log n. Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"
//! (1996). Equally good ones go to the first drawn, so that an idle pool is shared by weight.

use super::random::{self, Random};
use super::{Candidates, Slot};
use crate::clock::Millis;
use crate::pool::backend::{Backend, flag};
use crate::rng::Rng;

/// Draws in vain before all are looked at.
const DRAWS: usize = 8;

/// In a larger pool nobody reckons what comes of each pair.
const MAX_COMPARED: usize = 1_000;

/// What a backend that has answered nothing yet is taken to cost, in ms: as one on this host.
const UNKNOWN_COST: f64 = 0.1;
/// Costs that differ by less than this share are taken to be the same.
const SAME: f64 = 0.1;

/// By what two backends are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Measure {
    /// Active connections for the weight.
    Active,
    /// The same, times the moving average of how long connects and first answer bytes take of late.
    PeakEwma,
}

pub(in crate::pool) struct PowerOfTwo {
    random: Random,
    mean_weight: f64,
    measure: Measure,
}

impl PowerOfTwo {
    pub fn new(weights: &[u16], measure: Measure) -> Self {
        let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        Self { random: Random::new(weights), mean_weight: sum / weights.len().max(1) as f64, measure }
    }

    pub fn pick(&self, candidates: &Candidates<'_>, rng: &mut Rng) -> Option<Slot> {
        if self.random.is_empty() {
            return None;
        }
        let Some(first) = self.draw(candidates, rng) else { return random::scan(candidates, rng) };
        // Without a second one the first is as good as any.
        let second = self.draw_beside(first, candidates, rng).unwrap_or(first);
        let is_better = self.load(candidates, second) < self.load(candidates, first) * (1.0 - SAME);
        let (chosen, other) = if is_better { (second, first) } else { (first, second) };
        candidates.take(chosen).or_else(|| candidates.take(other)).or_else(|| random::scan(candidates, rng))
    }

    /// One that can be used. One that starts slowly passes on most of its draws.
    fn draw(&self, candidates: &Candidates<'_>, rng: &mut Rng) -> Option<usize> {
        (0..DRAWS).find_map(|_| {
            let index = self.random.draw(rng);
            candidates.accepts(index, rng).then_some(index)
        })
    }

    /// Another one that can be used, unless it passes on: to draw again until it doesn't would give one that starts
    /// slowly far more than its share where there are few others.
    fn draw_beside(&self, first: usize, candidates: &Candidates<'_>, rng: &mut Rng) -> Option<usize> {
        let drawn = (0..DRAWS).map(|_| self.random.draw(rng)).find(|&index| index != first && candidates.usable(index));
        drawn.filter(|&index| candidates.accepts(index, rng))
    }

    /// How likely each is: of any two that may be drawn, the better one, and the only one where a second isn't found or
    /// the first isn't. In a large pool, how likely to be drawn first.
    pub fn odds(&self, candidates: &Candidates<'_>) -> Vec<(usize, f64)> {
        let usable: Vec<usize> = candidates.all_usable().collect();
        let firsts: Vec<f64> = usable.iter().map(|&index| candidates.weight(index).max(1) as f64).collect();
        let mut odds: Vec<(usize, f64)> = usable.iter().copied().zip(firsts.iter().copied()).collect();
        if usable.len() > MAX_COMPARED {
            return odds;
        }
        let drawn: Vec<f64> = usable.iter().map(|&index| f64::from(candidates.configured_weight(index))).collect();
        let loads: Vec<f64> = usable.iter().map(|&index| self.load(candidates, index)).collect();
        let (all_firsts, all_drawn): (f64, f64) = (firsts.iter().sum(), drawn.iter().sum());
        // Most of the pool may be of no use to this claim, and all draws fall there.
        let found = |drawn: f64| 1.0 - (1.0 - drawn / self.random.total()).max(0.0).powi(DRAWS as i32);
        let kept = usable.iter().zip(&drawn).map(|(&index, drawn)| drawn * candidates.kept(index)).sum();
        for (index, (_, likely)) in odds.iter_mut().enumerate() {
            *likely = (1.0 - found(kept)) * firsts[index] / all_firsts;
        }
        for first in 0..usable.len() {
            let begins = found(kept) * firsts[first] / all_firsts;
            let others = all_drawn - drawn[first];
            let mut stays = 1.0;
            for second in (0..usable.len()).filter(|&second| second != first) {
                if loads[second] < loads[first] * (1.0 - SAME) {
                    let comes = found(others) * drawn[second] / others * candidates.kept(usable[second]);
                    odds[second].1 += begins * comes;
                    stays -= comes;
                }
            }
            odds[first].1 += begins * stays;
        }
        odds
    }

    fn load(&self, candidates: &Candidates<'_>, index: usize) -> f64 {
        let backend = candidates.backend(index);
        if backend.flags() & flag::HALF_OPEN != 0 {
            // Its trial comes first: what is known of it is from before.
            return 0.0;
        }
        let connections = f64::from(backend.active()) / f64::from(candidates.configured_weight(index));
        match self.measure {
            Measure::Active => connections,
            // An idle backend costs as well, or the slowest would be as good as any other.
            Measure::PeakEwma => cost(backend, candidates.now()) * (connections + 1.0 / self.mean_weight),
        }
    }
}

/// How long a session waits for its connection and the first byte, in ms, as of late.
pub(in crate::pool) fn cost(backend: &Backend, now: Millis) -> f64 {
    let times = [&backend.connect_time, &backend.answer_time].map(|time| time.get(now).map_or(0.0, f64::from));
    (times[0] + times[1]).max(UNKNOWN_COST)
}
