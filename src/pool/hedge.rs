//! How many second attempts a pool may begin: a token bucket that its connections fill.
//!
//! Owns one atomic. A share of 10 % lets one connection in ten have a second attempt, and up to ten in a row after
//! quieter times.

use crate::config::Percent;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A hedge's price, in the unit of what a connection earns: millionths of a hedge.
const PRICE: u64 = 1_000_000;
/// What may be saved up.
const MOST: u64 = 10 * PRICE;

pub(super) struct HedgeBudget(AtomicU64);

impl HedgeBudget {
    /// With enough for one, so that a pool's first connection isn't without.
    pub fn new() -> Self {
        Self(AtomicU64::new(PRICE))
    }

    /// One connection more.
    pub fn earn(&self, share: Percent) {
        let earned = (share.ratio() * PRICE as f64) as u64;
        // It never fails: the closure always has an answer.
        let _ = self.0.fetch_update(Relaxed, Relaxed, |saved| Some((saved + earned).min(MOST)));
    }

    /// Whether there is enough for a hedge, which is then paid.
    pub fn spend(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |saved| saved.checked_sub(PRICE)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_connections_may_hedge() {
        let budget = HedgeBudget::new();
        assert!(budget.spend() && !budget.spend());
        let mut hedges = 0;
        for _ in 0..1_000 {
            budget.earn(Percent::whole(10));
            hedges += u32::from(budget.spend());
        }
        assert_eq!(hedges, 100);
        for _ in 0..1_000 {
            budget.earn(Percent::whole(10));
        }
        assert_eq!((0..1_000).filter(|_| budget.spend()).count(), 10, "what is saved up has a limit");
    }
}
