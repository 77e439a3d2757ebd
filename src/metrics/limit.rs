//! The metrics of one limit: of the process, of a listener, or of several listeners together.
//!
//! Owns the words for what can be limited. A limit's series of refusals appear with the first one of each kind; from
//! then on counting takes neither lock nor look-up. The gauges are set when somebody looks, by those who own the
//! counts.

use super::family::{Family, Labels, Series};
use super::names;
use super::{Counter, Gauge, Metrics, Registry};
use prometheus::Error;
use std::sync::{Arc, OnceLock};

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Process,
    Listener,
    /// Of all listeners that name it.
    Shared,
}

impl Scope {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Listener => "listener",
            Self::Shared => "shared",
        }
    }
}

/// Which bound was reached: the config's word for it, where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Access,
    Connections,
    ConnectionsPerClient,
    Rate,
    RatePerClient,
    Memory,
}

impl Bound {
    const COUNT: usize = 6;

    /// The label of refusals.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Access => "denied",
            Self::Connections => "max_connections",
            Self::ConnectionsPerClient => "max_connections_per_client",
            Self::Rate => "accept_rate",
            Self::RatePerClient => "accept_rate_per_client",
            Self::Memory => "low_memory",
        }
    }
}

pub(super) struct Families {
    connections: Family<Gauge>,
    max_connections: Family<Gauge>,
    clients: Family<Gauge>,
    max_clients: Family<Gauge>,
    refusals: Family<Counter>,
    evictions: Family<Counter>,
    untracked: Family<Counter>,
}

impl Families {
    pub(super) fn register(registry: &mut Registry) -> Result<Self, Error> {
        Ok(Self {
            connections: registry.add(&names::LIMIT_CONNECTIONS)?,
            max_connections: registry.add(&names::LIMIT_MAX_CONNECTIONS)?,
            clients: registry.add(&names::LIMIT_CLIENTS)?,
            max_clients: registry.add(&names::LIMIT_MAX_CLIENTS)?,
            refusals: registry.add(&names::LIMIT_REFUSALS)?,
            evictions: registry.add(&names::LIMIT_EVICTIONS)?,
            untracked: registry.add(&names::LIMIT_UNTRACKED)?,
        })
    }
}

/// One limit's handles.
pub struct LimitMetrics {
    pub connections: Series<Gauge>,
    /// Where there is a maximum.
    pub max_connections: Option<Series<Gauge>>,
    /// Where clients are remembered.
    pub clients: Option<ClientMetrics>,
    /// Really refused, and in a dry run; by [`Bound`].
    refusals: [[OnceLock<Series<Counter>>; Bound::COUNT]; 2],
    /// The labels of either.
    labels: [Labels; 2],
    metrics: Arc<Metrics>,
}

/// The handles of a limit's table of clients.
pub struct ClientMetrics {
    pub clients: Series<Gauge>,
    pub max_clients: Series<Gauge>,
    pub evictions: Series<Counter>,
    pub untracked: Series<Counter>,
}

impl LimitMetrics {
    #[must_use]
    pub fn new(metrics: &Arc<Metrics>, scope: Scope, name: &str, has_maximum: bool, knows_clients: bool) -> Self {
        let labels = Labels::new(&[("scope", scope.as_str()), ("name", name)]);
        let families = &metrics.families.limits;
        Self {
            connections: families.connections.series(&labels),
            max_connections: has_maximum.then(|| families.max_connections.series(&labels)),
            clients: knows_clients.then(|| ClientMetrics {
                clients: families.clients.series(&labels),
                max_clients: families.max_clients.series(&labels),
                evictions: families.evictions.series(&labels),
                untracked: families.untracked.series(&labels),
            }),
            refusals: Default::default(),
            labels: ["false", "true"]
                .map(|dry| Labels::new(&[("scope", scope.as_str()), ("name", name), ("dry_run", dry)])),
            metrics: Arc::clone(metrics),
        }
    }

    /// Counts a client that was refused, or in a dry run would have been.
    pub fn refused(&self, bound: Bound, dry_run: bool) {
        let dry = usize::from(dry_run);
        let series = || self.metrics.families.limits.refusals.with(&self.labels[dry], bound.as_str());
        self.refusals[dry][bound as usize].get_or_init(series).inc();
    }

    /// How many were refused for whatever reason; or would have been.
    #[must_use]
    pub fn refusals(&self, dry_run: bool) -> u64 {
        let series = self.refusals[usize::from(dry_run)].iter().filter_map(OnceLock::get);
        series.map(|series| series.get()).sum()
    }
}

impl std::fmt::Debug for LimitMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LimitMetrics").field("labels", &self.labels[0]).finish_non_exhaustive()
    }
}
