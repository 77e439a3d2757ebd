//! What a pool as a whole does about its backends' state: which tiers are in use, and whether it panics.
//!
//! Owns both decisions, as a pure state machine over the counts of each tier. A tier joins at once and leaves late;
//! panic is judged tier by tier, so that a healthy backup keeps a pool whose first tier is dead from using the dead.

use crate::clock::Millis;
use crate::config::{Protection, limits};

/// There can be so many.
const TIERS: usize = limits::MAX_TIER as usize + 1;

/// How a pool chooses just now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Tiers up to this one are in use.
    pub tier: u8,
    /// Too few are available: all enabled ones of those tiers are used.
    pub panic: bool,
}

impl Mode {
    /// For an atomic.
    #[must_use]
    pub fn to_bits(self) -> u32 {
        u32::from(self.tier) << 1 | u32::from(self.panic)
    }

    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self { tier: (bits >> 1) as u8, panic: bits & 1 == 1 }
    }
}

/// The backends of one tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Not taken out by an operator or their own agent.
    pub enabled: usize,
    pub available: usize,
}

/// Turns counts into modes.
#[derive(Clone, Debug)]
pub struct Judge {
    /// Since when it judges: early on nothing has to be held.
    began: Millis,
    tier: u8,
    /// Since when the tiers before each one have been enough without it.
    enough_since: [Option<Millis>; TIERS],
}

impl Judge {
    #[must_use]
    pub fn new(now: Millis) -> Self {
        Self { began: now, tier: 0, enough_since: [None; TIERS] }
    }

    /// The mode for these tiers, by their number. A pool that `holds` clients while no backend is up doesn't use the
    /// dead: it panics only as long as somebody is available.
    pub fn judge(&mut self, tiers: &[Count], config: &Protection, holds: bool, now: Millis) -> Mode {
        let (needed, last) = (needed(tiers, config.min_available.into()), tiers.len().saturating_sub(1) as u8);
        let span = config.tier_hold.as_millis() as u64;
        for (tier, since) in (0..).zip(&mut self.enough_since) {
            *since = if tier > needed { since.or(Some(now)) } else { None };
        }
        let early = now.saturating_sub(self.began) < span;
        let held = |since: Option<Millis>| !early && since.is_some_and(|since| now.saturating_sub(since) < span);
        // One that is gone can't be held.
        self.tier = self.tier.min(last).max(needed);
        while self.tier > needed && !held(self.enough_since[usize::from(self.tier)]) {
            self.tier -= 1;
        }
        let is_short = |count: Count| config.panic_threshold.exceeds(count.available, count.enabled);
        let whole = tiers.iter().fold(Count::default(), |sum, tier| Count {
            enabled: sum.enabled + tier.enabled,
            available: sum.available + tier.available,
        });
        let mut in_use = tiers.iter().take(usize::from(self.tier) + 1).filter(|tier| tier.enabled > 0);
        let panic = is_short(whole) && in_use.all(|tier| is_short(*tier)) && !(holds && whole.available == 0);
        Mode { tier: self.tier, panic }
    }
}

/// The first tier with which there are enough, or the last one.
fn needed(tiers: &[Count], enough: usize) -> u8 {
    let mut available = 0;
    let found = tiers.iter().position(|tier| {
        available += tier.available;
        available >= enough
    });
    found.unwrap_or(tiers.len().saturating_sub(1)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Percent;
    use std::time::Duration;

    const CONFIG: Protection = Protection {
        panic_threshold: Percent::whole(50),
        min_available: 2,
        tier_hold: Duration::from_secs(10),
        slow_start: Duration::ZERO,
        replay: None,
        on_down: crate::config::OnDown::Keep,
        max_lifetime: None,
        rebalance: None,
    };
    /// Long after the judge began.
    const LATER: Millis = 1_000_000;

    fn tiers<const N: usize>(counts: [(usize, usize); N]) -> [Count; N] {
        counts.map(|(available, enabled)| Count { enabled, available })
    }

    #[test]
    fn modes_survive_an_atomic() {
        for mode in [Mode::default(), Mode { tier: 15, panic: true }, Mode { tier: 3, panic: false }] {
            assert_eq!(Mode::from_bits(mode.to_bits()), mode);
        }
    }

    #[test]
    fn a_tier_joins_at_once_and_leaves_late() {
        let mut judge = Judge::new(0);
        let mut tier =
            |available, now| judge.judge(&tiers([(available, 3), (2, 2), (1, 1)]), &CONFIG, false, LATER + now).tier;
        assert_eq!(tier(3, 0), 0);
        assert_eq!(tier(1, 1), 1);
        assert_eq!(tier(2, 2), 1, "held");
        assert_eq!(tier(1, 9_000), 1, "it was needed again");
        assert_eq!(tier(2, 9_001), 1);
        assert_eq!(tier(3, 19_000), 1);
        assert_eq!(tier(2, 19_001), 0);
    }

    #[test]
    fn each_tier_is_held_for_itself() {
        let mut judge = Judge::new(0);
        let mut tier = |counts: [usize; 3], now| {
            judge.judge(&tiers(counts.map(|each| (each, 3))), &CONFIG, false, LATER + now).tier
        };
        assert_eq!(tier([0, 0, 2], 0), 2);
        assert_eq!(tier([0, 2, 2], 1_000), 2);
        assert_eq!(tier([2, 2, 2], 9_000), 2);
        assert_eq!(tier([2, 2, 2], 11_000), 1, "the first has been enough for two seconds");
        assert_eq!(tier([2, 2, 2], 18_999), 1);
        assert_eq!(tier([2, 2, 2], 19_000), 0);
    }

    #[test]
    fn at_the_start_nothing_is_held() {
        let mut judge = Judge::new(LATER);
        assert_eq!(judge.judge(&tiers([(0, 3), (2, 2)]), &CONFIG, false, LATER).tier, 1);
        assert_eq!(judge.judge(&tiers([(2, 3), (2, 2)]), &CONFIG, false, LATER + 1).tier, 0);
    }

    #[test]
    fn with_too_few_in_all_the_last_tier_is_in_use() {
        let mut judge = Judge::new(0);
        assert_eq!(judge.judge(&tiers([(0, 3), (1, 2), (0, 1)]), &CONFIG, false, LATER).tier, 2);
        assert_eq!(judge.judge(&[], &CONFIG, false, LATER), Mode::default(), "what is gone isn't held");
    }

    #[test]
    fn panic_is_a_matter_of_every_tier_in_use() {
        let panics = |counts: &[Count], config: &Protection| Judge::new(0).judge(counts, config, false, LATER).panic;
        for (counts, expected) in [
            (&tiers([(4, 8)])[..], false),
            (&tiers([(3, 8)]), true),
            (&tiers([(0, 1)]), true),
            (&tiers([(0, 0)]), false),
            (&tiers([(0, 3), (1, 1)]), false),
            (&tiers([(0, 3), (1, 3)]), true),
            // Two are enough, so that the second tier isn't in use; but half of the pool is well.
            (&tiers([(2, 8), (5, 5)]), false),
            (&tiers([(2, 8), (3, 3)]), true),
        ] {
            assert_eq!(panics(counts, &CONFIG), expected, "{counts:?}");
        }
        let holds = |counts: &[Count]| Judge::new(0).judge(counts, &CONFIG, true, LATER).panic;
        assert!(holds(&tiers([(3, 8)])) && !holds(&tiers([(0, 8)])) && !holds(&tiers([(0, 3), (0, 2)])));
        let never = Protection { panic_threshold: Percent::whole(0), ..CONFIG };
        assert!(!panics(&tiers([(0, 8)]), &never));
    }
}
