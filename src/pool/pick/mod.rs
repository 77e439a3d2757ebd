//! The policies: which of a pool's backends a session gets.
//!
//! Owns the choice among candidates, one file a policy. A picker is prepared when the set of backends or a weight
//! changes and never on the path; on the path it only offers indices to `Candidates::claim` until one is taken.
//! The laws that every policy obeys are one test, `laws`.
//!
//! To add a policy: a variant here (the compiler lists the places to touch), a file, a line in `laws`.

mod failover;
#[cfg(test)]
mod laws;
mod least_connections;
mod power_of_two;
mod random;
mod round_robin;

use super::candidates::Candidates;
use super::{Backend, Slot};
use crate::config::Balance;
use crate::rng::Rng;
use failover::Failover;
use power_of_two::{Measure, PowerOfTwo};
use random::Random;
use round_robin::RoundRobin;
use std::sync::Arc;

/// A policy, prepared for the backends of one view.
#[expect(clippy::large_enum_variant, reason = "one a view, in place: a box would be one more hop for each claim")]
pub(super) enum Picker {
    RoundRobin(RoundRobin),
    Random(Random),
    LeastConnections,
    PowerOfTwo(PowerOfTwo),
    Failover(Failover),
}

impl Picker {
    /// `previous` is the picker of the view before this one: a round-robin goes on where that one was.
    pub fn prepare(balance: &Balance, backends: &[Arc<Backend>], weights: &[u16], previous: Option<&Self>) -> Self {
        match balance {
            Balance::RoundRobin => {
                let start = match previous {
                    Some(Self::RoundRobin(picker)) => picker.tick(),
                    _ => 0,
                };
                Self::RoundRobin(RoundRobin::new(weights, start))
            }
            Balance::Random => Self::Random(Random::new(weights)),
            Balance::LeastConnections => Self::LeastConnections,
            Balance::PowerOfTwo => Self::PowerOfTwo(PowerOfTwo::new(weights, Measure::Active)),
            Balance::PeakEwma => Self::PowerOfTwo(PowerOfTwo::new(weights, Measure::PeakEwma)),
            Balance::Failover(group) => Self::Failover(Failover::new(group, backends)),
        }
    }

    pub fn pick(&self, candidates: &Candidates<'_>, rng: &mut Rng) -> Option<Slot> {
        match self {
            Self::RoundRobin(picker) => picker.pick(candidates, rng),
            Self::Random(picker) => picker.pick(candidates, rng),
            Self::LeastConnections => least_connections::pick(candidates, rng),
            Self::PowerOfTwo(picker) => picker.pick(candidates, rng),
            Self::Failover(picker) => picker.pick(candidates, rng),
        }
    }
}
