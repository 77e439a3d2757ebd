//! What a pool's queue and its shedding are counted with; only pools that have them show these.

use super::family::{Family, Labels, Series};
use super::labels::QueueOutcome;
use super::value::{Counter, Gauge, Histogram, Ratio};
use super::{Registry, names};
use prometheus::Error;

pub(super) struct Families {
    waiting: Family<Gauge>,
    max_waiting: Family<Gauge>,
    wait: Family<Histogram>,
    outcomes: Family<Counter>,
    shed_probability: Family<Ratio>,
    shed: Family<Counter>,
}

impl Families {
    pub fn register(registry: &mut Registry) -> Result<Self, Error> {
        Ok(Self {
            waiting: registry.add(&names::POOL_QUEUE_WAITING)?,
            max_waiting: registry.add(&names::POOL_QUEUE_MAX_WAITING)?,
            wait: registry.add(&names::POOL_QUEUE_WAIT)?,
            outcomes: registry.add(&names::POOL_QUEUE_OUTCOMES)?,
            shed_probability: registry.add(&names::POOL_SHED_PROBABILITY)?,
            shed: registry.add(&names::POOL_SHED)?,
        })
    }

    pub fn queue(&self, labels: &Labels) -> QueueMetrics {
        QueueMetrics {
            waiting: self.waiting.series(labels),
            max_waiting: self.max_waiting.series(labels),
            wait: self.wait.series(labels),
            outcomes: QueueOutcome::ALL.iter().map(|outcome| self.outcomes.with(labels, outcome.as_str())).collect(),
        }
    }

    pub fn shed(&self, labels: &Labels) -> ShedMetrics {
        ShedMetrics {
            probability: self.shed_probability.series(labels),
            refused: self.shed.with(labels, "false"),
            dry_run: self.shed.with(labels, "true"),
        }
    }
}

/// The handles of one pool's queue.
pub struct QueueMetrics {
    pub waiting: Series<Gauge>,
    pub max_waiting: Series<Gauge>,
    /// Of those that were served.
    pub wait: Series<Histogram>,
    /// Indexed by [`QueueOutcome`].
    outcomes: Box<[Series<Counter>]>,
}

impl QueueMetrics {
    #[must_use]
    pub fn outcome(&self, outcome: QueueOutcome) -> &Series<Counter> {
        &self.outcomes[outcome as usize]
    }
}

/// The handles of one pool's shedding.
pub struct ShedMetrics {
    pub probability: Series<Ratio>,
    pub refused: Series<Counter>,
    /// Would have been refused.
    pub dry_run: Series<Counter>,
}
