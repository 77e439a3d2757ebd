//! Round-robin: each backend in its turn, exactly, over all workers together.
//!
//! Owns a schedule, one round of indices in which each backend stands as often as its weight says, spread evenly, and
//! the count of turns that all workers share. A turn of a backend that can't be used is passed over, not given to its
//! neighbour, so that the others stay exactly balanced among each other. One that starts slowly passes on most of its
//! turns, by chance.

use super::{Candidates, Slot};
use crate::rng::Rng;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The longest schedule. Weights whose round would be longer are scaled down, to 1 at least.
const MAX_ROUND: u64 = 1 << 18;

/// Turns passed over before it is worth looking whether anybody can be used at all.
const PATIENCE: usize = 32;

pub(in crate::pool) struct RoundRobin {
    schedule: Box<[u16]>,
    tick: Tick,
}

/// Every worker writes to it on every claim: it shares its cache lines (fetched in pairs) with nothing else.
#[repr(align(128))]
struct Tick(AtomicU64);

impl RoundRobin {
    pub fn new(weights: &[u16], start: u64) -> Self {
        Self { schedule: schedule(weights), tick: Tick(AtomicU64::new(start)) }
    }

    /// The number of the next turn.
    pub fn tick(&self) -> u64 {
        self.tick.0.load(Relaxed)
    }

    pub fn pick(&self, candidates: &Candidates<'_>, rng: &mut Rng) -> Option<Slot> {
        let mut turn = 0;
        for passed_over in 0..self.schedule.len() {
            if passed_over == PATIENCE && !candidates.any_usable() {
                return None;
            }
            turn = usize::from(self.take_turn());
            if let Some(slot) = candidates.claim(turn, rng) {
                return Some(slot);
            }
        }
        // Others took turns between ours, so ours need not have met everyone.
        candidates.claim_from(turn, rng)
    }

    /// Whose turn comes next, for a claim that takes none: one that starts slowly may pass it on.
    pub fn odds(&self, candidates: &Candidates<'_>) -> Vec<(usize, f64)> {
        let (tick, len) = (self.tick(), self.schedule.len() as u64);
        let (mut odds, mut left) = (Vec::new(), 1.0);
        for turn in (0..len).map(|ahead| usize::from(self.schedule[((tick % len + ahead) % len) as usize])) {
            if candidates.usable(turn) {
                let taken = left * candidates.kept(turn);
                match odds.iter_mut().find(|(index, _)| *index == turn) {
                    Some((_, likely)) => *likely += taken,
                    None => odds.push((turn, taken)),
                }
                left -= taken;
            }
            if left <= f64::EPSILON {
                break;
            }
        }
        odds
    }

    fn take_turn(&self) -> u16 {
        let tick = self.tick.0.fetch_add(1, Relaxed);
        self.schedule[(tick % self.schedule.len() as u64) as usize]
    }
}

/// One round: index `i` stands `weights[i] / gcd` times in it, as evenly spread as whole turns allow.
fn schedule(weights: &[u16]) -> Box<[u16]> {
    let turns = turns(weights);
    // Of its w turns in a round, backend i of n has its k-th at (k + (i + 1/2) / n) / w: evenly spaced, and begun at
    // a moment of its own, so that backends of the same weight alternate instead of standing side by side. Fractions
    // in units of 2^-24: with 65,535 backends of weight 256 the numerator still has bits to spare.
    let n = turns.len() as u64;
    let mut round: Vec<(u64, u16)> = (0..n)
        .zip(&turns)
        .flat_map(|(i, &w)| (0..w).map(move |k| (((2 * (k * n + i) + 1) << 24) / (2 * n * w), i as u16)))
        .collect();
    round.sort_unstable();
    round.into_iter().map(|(_, index)| index).collect()
}

/// How often each backend stands in a round.
fn turns(weights: &[u16]) -> Vec<u64> {
    let divisor = weights.iter().map(|&weight| u64::from(weight)).fold(0, gcd).max(1);
    let mut turns: Vec<u64> = weights.iter().map(|&weight| u64::from(weight) / divisor).collect();
    let total: u64 = turns.iter().sum();
    if total > MAX_ROUND {
        let room = MAX_ROUND.saturating_sub(turns.len() as u64);
        for turn in &mut turns {
            *turn = (*turn * room / total).max(1);
        }
    }
    turns
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_spreads_each_backends_turns_evenly() {
        for (weights, expected) in [
            (&[][..], &[][..]),
            (&[7], &[0]),
            (&[1, 1, 1], &[0, 1, 2]),
            (&[4, 4, 4], &[0, 1, 2]),
            (&[2, 1], &[0, 0, 1]),
            (&[2, 4], &[0, 1, 1]),
            (&[2, 2, 1], &[0, 1, 0, 1, 2]),
            (&[3, 1, 1], &[0, 0, 1, 0, 2]),
            (&[5, 1, 1], &[0, 0, 0, 1, 0, 0, 2]),
            (&[4, 2], &[0, 0, 1]),
        ] {
            assert_eq!(*schedule(weights), *expected, "weights {weights:?}");
        }
    }

    #[test]
    fn between_two_turns_of_a_backend_lies_its_share_of_the_round() {
        let weights = [5, 3, 2, 1, 1];
        let round = schedule(&weights);
        assert_eq!(round.len(), 12);
        let twice = [&round[..], &round[..]].concat();
        for (index, &weight) in weights.iter().enumerate() {
            let turns: Vec<usize> = (0..24).filter(|&at| usize::from(twice[at]) == index).collect();
            assert_eq!(turns.len(), 2 * usize::from(weight));
            let ideal = 12.0 / f64::from(weight);
            for pair in turns.windows(2) {
                let gap = (pair[1] - pair[0]) as f64;
                assert!(
                    (gap - ideal).abs() < weights.len() as f64 / 2.0,
                    "{index}: {gap} turns apart, ideally {ideal}"
                );
            }
        }
    }

    #[test]
    fn a_round_too_long_is_scaled_to_fit_and_forgets_nobody() {
        let mut weights = vec![256; 5_000];
        weights[17] = 1;
        let round = schedule(&weights);
        assert!(round.len() as u64 <= MAX_ROUND && round.len() as u64 > MAX_ROUND / 2, "{}", round.len());
        let mut counts = vec![0; weights.len()];
        round.iter().for_each(|&index| counts[usize::from(index)] += 1);
        assert_eq!(counts[17], 1);
        assert!(counts.iter().enumerate().all(|(index, &count)| index == 17 || count == counts[0]));
    }
}
