//! Least connections: the backend with the fewest active connections for its weight.
//!
//! Owns nothing: the counts are the backends' own, pending connects included. Ties, and so an idle pool, are decided by
//! chance in proportion to the weights. Looks at every backend: for pools of thousands, `power_of_two` is cheaper.

use super::{Candidates, Slot};
use crate::rng::Rng;

pub(in crate::pool) fn pick(candidates: &Candidates<'_>, rng: &mut Rng) -> Option<Slot> {
    // Another worker may take the last place of the chosen one; then the next best will do.
    (0..candidates.len()).find_map(|_| {
        let best = best(candidates, rng)?;
        candidates.take(best)
    })
}

/// Those with the fewest connections for their weight, of which chance takes one.
pub(in crate::pool) fn fewest(candidates: &Candidates<'_>) -> Vec<usize> {
    let load = |index: usize| f64::from(candidates.backend(index).active()) / candidates.weight(index).max(1) as f64;
    let least = candidates.all_usable().map(load).fold(f64::INFINITY, f64::min);
    candidates.all_usable().filter(|&index| load(index) <= least).collect()
}

fn best(candidates: &Candidates<'_>, rng: &mut Rng) -> Option<usize> {
    let mut best: Option<(usize, u64, u64)> = None;
    // The weight of all that are as good as the best.
    let mut tied = 0;
    for index in (0..candidates.len()).filter(|&index| candidates.usable(index)) {
        let (active, weight) = (u64::from(candidates.backend(index).active()), candidates.weight(index).max(1));
        let better = match best {
            None => true,
            Some((_, best_active, best_weight)) => match (active * best_weight).cmp(&(best_active * weight)) {
                std::cmp::Ordering::Less => true,
                std::cmp::Ordering::Equal => {
                    tied += weight;
                    if rng.below(tied) < weight {
                        best = Some((index, active, weight));
                    }
                    false
                }
                std::cmp::Ordering::Greater => false,
            },
        };
        if better {
            (best, tied) = (Some((index, active, weight)), weight);
        }
    }
    best.map(|(index, ..)| index)
}
