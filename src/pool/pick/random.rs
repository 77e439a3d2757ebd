//! Weighted random: each claim falls on a usable backend with a probability in proportion to its weight.
//!
//! Owns an alias table over all backends, which answers in constant time. A draw that can't be used is drawn
//! again, which keeps the proportions among the usable ones; after a few tries in vain (most are down), one scan
//! settles it, in the same proportions.

use super::{Candidates, Slot};
use crate::rng::Rng;

/// Draws from the table before the scan: at least this many,
const DRAWS: usize = 8;
/// and one for so many backends, so that draws in vain cost a share of what the scan then costs.
const BACKENDS_A_DRAW: usize = 8;

pub(in crate::pool) struct Random {
    /// The sum of the weights: what each column of the table holds.
    total: u32,
    columns: Box<[Column]>,
}

/// One of n equally likely columns: `own` of its `total` parts are the column's own index, the rest `alias`.
#[derive(Clone, Copy, Debug)]
struct Column {
    own: u32,
    alias: u16,
}

impl Random {
    pub fn new(weights: &[u16]) -> Self {
        Self { total: sum(weights.iter()) as u32, columns: columns(weights) }
    }

    pub fn pick(&self, candidates: &Candidates<'_>, rng: &mut Rng) -> Option<Slot> {
        if self.columns.is_empty() {
            return None;
        }
        let draws = DRAWS.max(self.columns.len() / BACKENDS_A_DRAW);
        (0..draws)
            .find_map(|_| {
                let index = self.draw(rng);
                candidates.claim(index, rng)
            })
            .or_else(|| scan(candidates, rng))
    }

    pub fn draw(&self, rng: &mut Rng) -> usize {
        let index = rng.index(self.columns.len());
        let column = self.columns[index];
        if rng.below(self.total.into()) < column.own.into() { index } else { column.alias.into() }
    }

    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// The sum of the weights of all.
    pub fn total(&self) -> f64 {
        self.total.into()
    }
}

/// Weighs the usable ones first, then takes the one on which the draw falls.
pub fn scan(candidates: &Candidates<'_>, rng: &mut Rng) -> Option<Slot> {
    let usable = || (0..candidates.len()).filter(|&index| candidates.usable(index));
    let mut at = rng.below(usable().map(|index| candidates.weight(index)).sum());
    let drawn = usable().find(|&index| {
        let weight = candidates.weight(index);
        let found = at < weight;
        at = at.saturating_sub(weight);
        found
    });
    // What was usable a moment ago may not be any more; then its neighbour will do.
    candidates.take_from(drawn.unwrap_or(0))
}

fn sum<'a>(weights: impl Iterator<Item = &'a u16>) -> u64 {
    weights.map(|&weight| u64::from(weight)).sum()
}

/// Vose's alias method, in whole numbers and therefore exact: with n backends of total weight W, each of n columns
/// holds W parts, and index i owns `n * weights[i]` parts in all.
fn columns(weights: &[u16]) -> Box<[Column]> {
    let (n, total) = (weights.len() as u64, sum(weights.iter()));
    let mut parts: Vec<u64> = weights.iter().map(|&weight| n * u64::from(weight)).collect();
    let mut columns = vec![Column { own: total as u32, alias: 0 }; weights.len()];
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..weights.len()).partition(|&index| parts[index] < total);
    while let (Some(poor), Some(&rich)) = (small.pop(), large.last()) {
        columns[poor] = Column { own: parts[poor] as u32, alias: rich as u16 };
        parts[rich] -= total - parts[poor];
        if parts[rich] < total {
            large.pop();
            small.push(rich);
        }
    }
    columns.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_table_holds_exactly_the_weights(weights in prop::collection::vec(1_u16..=256, 1..50)) {
            let random = Random::new(&weights);
            let mut parts = vec![0; weights.len()];
            for (index, column) in random.columns.iter().enumerate() {
                parts[index] += u64::from(column.own);
                parts[usize::from(column.alias)] += u64::from(random.total - column.own);
            }
            let expected: Vec<u64> = weights.iter().map(|&weight| u64::from(weight) * weights.len() as u64).collect();
            prop_assert_eq!(parts, expected);
        }
    }
}
