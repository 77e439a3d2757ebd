//! The policies: which of a pool's backends a session gets.
//!
//! Owns the choice among candidates, one file a policy. A picker is prepared when the set of backends or a weight
//! changes and never on the path; on the path it only offers indices to `Candidates::claim` until one is taken.
//! The laws that every policy obeys are one test, `laws`; `laws_hash` has those of the one that goes by a hash.
//!
//! To add a policy: a variant here (the compiler lists the places to touch), a file, a line in `laws`.

mod failover;
#[cfg(test)]
mod laws;
#[cfg(test)]
mod laws_hash;
mod least_connections;
mod maglev;
mod power_of_two;
mod random;
mod round_robin;
mod source_hash;

pub(super) use least_connections::fewest;
pub use maglev::Maglev;

use super::candidates::Candidates;
use super::total::Total;
use super::{Backend, Slot};
use crate::config::{Balance, Hash};
use crate::rng::Rng;
use failover::Failover;
use power_of_two::{Measure, PowerOfTwo};
use random::Random;
use round_robin::RoundRobin;
use source_hash::SourceHash;
use std::sync::Arc;

/// A policy, prepared for the backends of one view.
#[expect(clippy::large_enum_variant, reason = "one a view, in place: a box would be one more hop for each claim")]
pub(super) enum Picker {
    RoundRobin(RoundRobin),
    Random(Random),
    LeastConnections,
    PowerOfTwo(PowerOfTwo),
    Failover(Failover),
    SourceHash(SourceHash),
}

/// What a policy is prepared for.
pub(super) struct Among<'a> {
    pub backends: &'a [Arc<Backend>],
    pub weights: &'a [u16],
    /// Of a pool that goes by a hash.
    pub hash: Option<&'a Hash>,
    pub total: &'a Arc<Total>,
}

impl Picker {
    /// `previous` is the picker of the view before this one: a round-robin goes on where that one was.
    pub fn prepare(balance: &Balance, among: &Among<'_>, previous: Option<&Self>) -> Self {
        let (backends, weights) = (among.backends, among.weights);
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
            Balance::SourceHash => {
                let config = among.hash.cloned().unwrap_or_default();
                Self::SourceHash(SourceHash::new(&config, backends, weights, among.total))
            }
        }
    }

    pub fn pick(&self, candidates: &Candidates<'_>, rng: &mut Rng) -> Option<Slot> {
        match self {
            Self::RoundRobin(picker) => picker.pick(candidates, rng),
            Self::Random(picker) => picker.pick(candidates, rng),
            Self::LeastConnections => least_connections::pick(candidates, rng),
            Self::PowerOfTwo(picker) => picker.pick(candidates, rng),
            Self::Failover(picker) => picker.pick(candidates, rng),
            Self::SourceHash(picker) => picker.pick(candidates),
        }
    }

    /// Whether it goes by what all backends have together.
    pub fn is_bounded(&self) -> bool {
        matches!(self, Self::SourceHash(picker) if picker.is_bounded())
    }
}
