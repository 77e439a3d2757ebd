//! What is counted of the clients that a pool holds while no backend is up.
//!
//! Owns the handles. Only a pool that is told to hold has these series. Next: `pool::hold`, which moves them.

use super::family::{Family, Labels};
use super::value::{Counter, Gauge, Histogram};
use super::{Metrics, Registry, Series, names};
use crate::name::PoolName;
use prometheus::Error;

/// What became of a client that was held, or that was to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldOutcome {
    /// It was connected to a backend.
    Served,
    /// It was there for `hold.max_wait`.
    Expired,
    /// There was one more than `hold.max_connections`.
    Overflow,
    /// It hung up, or was ended for a reason that has nothing to do with the hold.
    Gone,
}

impl HoldOutcome {
    pub const ALL: [Self; 4] = [Self::Served, Self::Expired, Self::Overflow, Self::Gone];

    /// The label's value, and the word for `/status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Expired => "expired",
            Self::Overflow => "overflow",
            Self::Gone => "gone",
        }
    }
}

pub(super) struct Families {
    held: Family<Gauge>,
    bytes: Family<Gauge>,
    max_connections: Family<Gauge>,
    max_bytes: Family<Gauge>,
    wait: Family<Histogram>,
    outcomes: Family<Counter>,
}

impl Families {
    pub fn register(registry: &mut Registry) -> Result<Self, Error> {
        Ok(Self {
            held: registry.add(&names::POOL_HELD)?,
            bytes: registry.add(&names::POOL_HELD_BYTES)?,
            max_connections: registry.add(&names::POOL_HOLD_MAX_CONNECTIONS)?,
            max_bytes: registry.add(&names::POOL_HOLD_MAX_BYTES)?,
            wait: registry.add(&names::POOL_HOLD_WAIT)?,
            outcomes: registry.add(&names::POOL_HOLD_OUTCOMES)?,
        })
    }
}

/// One pool's handles.
pub struct HoldMetrics {
    pub held: Series<Gauge>,
    pub bytes: Series<Gauge>,
    pub max_connections: Series<Gauge>,
    pub max_bytes: Series<Gauge>,
    pub wait: Series<Histogram>,
    /// Indexed by [`HoldOutcome`].
    pub outcomes: [Series<Counter>; 4],
}

impl Metrics {
    /// The metrics of a pool that holds clients.
    #[must_use]
    pub fn hold(&self, pool: &PoolName) -> HoldMetrics {
        let labels = Labels::new(&[("pool", pool.as_str())]);
        let families = &self.families.hold;
        HoldMetrics {
            held: families.held.series(&labels),
            bytes: families.bytes.series(&labels),
            max_connections: families.max_connections.series(&labels),
            max_bytes: families.max_bytes.series(&labels),
            wait: families.wait.series(&labels),
            outcomes: HoldOutcome::ALL.map(|outcome| families.outcomes.with(&labels, outcome.as_str())),
        }
    }
}
