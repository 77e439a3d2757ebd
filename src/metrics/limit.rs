//! The metrics of one limit: of the process, of a listener, or of several listeners together.
//!
//! Owns the words for what can be limited. A limit's series of refusals appear with the first one of each kind; from
//! then on counting takes neither lock nor look-up. The gauges are set when somebody looks, by those who own the
//! counts; a limit that is none any more shows no gauge, even if some still hold it. What was counted of refusals goes
//! on with the limit that follows another one.

use super::family::{Family, Labels, Series};
use super::names;
use super::{Counter, Gauge, Metrics, Registry};
use prometheus::Error;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

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
    /// `None` once it is no limit any more.
    gauges: Mutex<Option<Gauges>>,
    /// Where clients are remembered.
    pub clients: Option<ClientMetrics>,
    /// Really refused, and in a dry run; by [`Bound`].
    refusals: Arc<[[OnceLock<Series<Counter>>; Bound::COUNT]; 2]>,
    /// The labels of either.
    labels: [Labels; 2],
    metrics: Arc<Metrics>,
}

/// What is set when somebody looks.
struct Gauges {
    connections: Series<Gauge>,
    /// Where there is a maximum.
    max_connections: Option<Series<Gauge>>,
    /// Where clients are remembered: how many, and how many may be.
    clients: Option<[Series<Gauge>; 2]>,
}

/// What a limit's table of clients counts.
pub struct ClientMetrics {
    pub evictions: Series<Counter>,
    pub untracked: Series<Counter>,
}

impl LimitMetrics {
    #[must_use]
    pub fn new(metrics: &Arc<Metrics>, scope: Scope, name: &str, has_maximum: bool, knows_clients: bool) -> Self {
        let labels = Labels::new(&[("scope", scope.as_str()), ("name", name)]);
        let families = &metrics.families.limits;
        let gauges = Gauges {
            connections: families.connections.series(&labels),
            max_connections: has_maximum.then(|| families.max_connections.series(&labels)),
            clients: knows_clients.then(|| [&families.clients, &families.max_clients].map(|each| each.series(&labels))),
        };
        Self {
            gauges: Mutex::new(Some(gauges)),
            clients: knows_clients.then(|| ClientMetrics {
                evictions: families.evictions.series(&labels),
                untracked: families.untracked.series(&labels),
            }),
            refusals: Arc::default(),
            labels: ["false", "true"]
                .map(|dry| Labels::new(&[("scope", scope.as_str()), ("name", name), ("dry_run", dry)])),
            metrics: Arc::clone(metrics),
        }
    }

    /// The same for a limit that follows `previous`, which is of the same scope and name: its refusals are counted on.
    #[must_use]
    pub fn following(previous: &Self, scope: Scope, name: &str, has_maximum: bool, knows_clients: bool) -> Self {
        let refusals = Arc::clone(&previous.refusals);
        Self { refusals, ..Self::new(&previous.metrics, scope, name, has_maximum, knows_clients) }
    }

    /// Shows so many connections, how many may be, and of how many clients something is remembered and may be.
    pub fn publish(&self, connections: usize, max: Option<usize>, clients: Option<(usize, usize)>) {
        let gauges = self.gauges();
        let Some(gauges) = &*gauges else { return };
        gauges.connections.set(connections as i64);
        if let (Some(gauge), Some(max)) = (&gauges.max_connections, max) {
            gauge.set(max as i64);
        }
        if let (Some([known, most]), Some(clients)) = (&gauges.clients, clients) {
            known.set(clients.0 as i64);
            most.set(clients.1 as i64);
        }
    }

    /// Shows no gauge any more: it is no limit, or another one has its place.
    pub fn retire(&self) {
        *self.gauges() = None;
    }

    fn gauges(&self) -> MutexGuard<'_, Option<Gauges>> {
        // Whole at each instant.
        self.gauges.lock().unwrap_or_else(PoisonError::into_inner)
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
