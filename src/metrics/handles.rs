//! The handles through which each layer counts, resolved once and then used without a look-up.
//!
//! Owns what a worker, a listener, a pool and a backend have of their own; `Metrics` gives them out.

use super::Metrics;
use super::demand::{QueueMetrics, ShedMetrics};
use super::family::{Labels, Series};
use super::labels::{CheckResult, ConnectErrorReason, ProxyResult, ProxyVersion, TrafficFailure};
use super::value::{Counter, Gauge, Histogram};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A gauge that says how something is, until that leaves the config: its counters go on with its last sessions, but
/// nobody shall take it for well, nor for broken.
#[derive(Debug)]
pub struct StateGauge(Mutex<Option<Series<Gauge>>>);

impl StateGauge {
    pub(super) fn new(series: Series<Gauge>) -> Self {
        Self(Mutex::new(Some(series)))
    }

    /// Nothing, once it is withdrawn.
    pub fn set(&self, value: i64) {
        if let Some(series) = &*self.lock() {
            series.set(value);
        }
    }

    /// `None` once it is withdrawn.
    #[must_use]
    pub fn get(&self) -> Option<i64> {
        self.lock().as_ref().map(|series| series.get())
    }

    /// It doesn't show any more.
    pub fn withdraw(&self) {
        *self.lock() = None;
    }

    fn show(&self, series: impl FnOnce() -> Series<Gauge>) {
        self.lock().get_or_insert_with(series);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Series<Gauge>>> {
        // It is whole at each instant.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One worker's handles.
pub struct WorkerMetrics {
    pub sessions: Series<Gauge>,
    pub handed_over: Series<Counter>,
    pub stuck: Series<Gauge>,
}

/// What the process's cgroup has used of its memory, and may use.
pub struct CgroupMemoryMetrics {
    pub used: Series<Gauge>,
    pub limit: Series<Gauge>,
}

/// The accept queues of one listener.
pub struct AcceptQueueMetrics {
    pub length: Series<Gauge>,
    pub limit: Series<Gauge>,
}

/// One listener's handles.
pub struct ListenerMetrics {
    pub up: StateGauge,
    pub connections_total: Series<Counter>,
    pub active: Series<Gauge>,
    pub duration: Series<Histogram>,
    /// Indexed by the position of the reason in what [`Metrics::listener`] was given.
    pub closed: Box<[Series<Counter>]>,
    pub(super) preread: OnceLock<Series<Histogram>>,
    pub(super) labels: Labels,
    pub(super) metrics: Arc<Metrics>,
    pub(super) accept_errors: Seen,
    /// By version and result; each shows from its first event on.
    pub(super) proxy_headers: [[OnceLock<Series<Counter>>; ProxyResult::ALL.len()]; ProxyVersion::ALL.len()],
}

impl ListenerMetrics {
    /// Of a listener that reads first bytes; it shows from the first call on.
    pub fn preread(&self) -> &Series<Histogram> {
        self.preread.get_or_init(|| self.metrics.families.preread.series(&self.labels))
    }

    /// Counts an error of accept(2) by its symbolic name, such as `EMFILE`. Takes a lock: not for the path.
    pub fn accept_error(&self, errno: &'static str) {
        let family = &self.metrics.families.listener_accept_errors;
        self.accept_errors.inc(errno, || family.with(&self.labels, errno));
    }

    /// Counts what was found of a PROXY header.
    pub fn proxy_header(&self, version: ProxyVersion, result: ProxyResult) {
        let series = &self.proxy_headers[version as usize][result as usize];
        let new = || {
            let labels = self.labels.and("version", version.as_str());
            self.metrics.families.proxy_headers.with(&labels, result.as_str())
        };
        series.get_or_init(new).inc();
    }
}

/// Series that appear with their first event, for labels that are constants of the code but too many to list.
#[derive(Default)]
pub(super) struct Seen(Mutex<Vec<(&'static str, Series<Counter>)>>);

impl Seen {
    pub fn inc(&self, label: &'static str, series: impl FnOnce() -> Series<Counter>) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, series)) = seen.iter().find(|(known, _)| *known == label) {
            series.inc();
            return;
        }
        let series = series();
        series.inc();
        // Mostly the only one of its kind, thousands of times over.
        seen.reserve_exact(1);
        seen.push((label, series));
    }
}

/// One pool's handles.
pub struct PoolMetrics {
    pub failovers: Series<Counter>,
    pub no_backend: Series<Counter>,
    pub connect_wait: Series<Histogram>,
    pub available: StateGauge,
    pub ejected: StateGauge,
    pub panic: StateGauge,
    pub tier: StateGauge,
    pub hedges: Series<Counter>,
    pub hedges_won: Series<Counter>,
    pub replays: Series<Counter>,
    pub rebalanced: Series<Counter>,
    pub(super) queue: OnceLock<QueueMetrics>,
    pub(super) shed: OnceLock<ShedMetrics>,
    pub(super) labels: Labels,
    pub(super) metrics: Arc<Metrics>,
}

impl PoolMetrics {
    /// It has left the table: only what its sessions do shows on.
    pub fn withdraw(&self) {
        for standing in [&self.available, &self.ejected, &self.panic, &self.tier] {
            standing.withdraw();
        }
    }

    /// Of the pool's queue; they show from the first call on.
    pub fn queue(&self) -> &QueueMetrics {
        self.queue.get_or_init(|| self.metrics.families.demand.queue(&self.labels))
    }

    /// Of the pool's shedding; they show from the first call on.
    pub fn shed(&self) -> &ShedMetrics {
        self.shed.get_or_init(|| self.metrics.families.demand.shed(&self.labels))
    }
}

/// One backend's handles. The series of errors and probe results appear with the first of each: a large pool would
/// otherwise expose thousands of zeros.
pub struct BackendMetrics {
    pub up: StateGauge,
    pub state_changes: Series<Counter>,
    pub connections_total: Series<Counter>,
    pub active: Series<Gauge>,
    /// Indexed by [`Direction`](crate::name::Direction).
    pub bytes: [Series<Counter>; 2],
    /// Only where there is a maximum.
    pub(super) max_connections: Mutex<Option<Series<Gauge>>>,
    pub(super) connect_errors: Seen,
    pub(super) health_checks: Seen,
    /// Made with the first failure of real traffic.
    pub(super) traffic: OnceLock<Box<Traffic>>,
    pub(super) labels: Labels,
    pub(super) metrics: Arc<Metrics>,
}

impl BackendMetrics {
    /// It has left its pool: only what its sessions do shows on.
    pub fn withdraw(&self) {
        self.up.withdraw();
        self.set_max_connections(None);
    }

    /// It is in its pool again.
    pub fn show(&self) {
        self.up.show(|| self.metrics.families.backend_up.series(&self.labels));
    }

    /// Shows the most connections at once, or that there is no such limit.
    pub fn set_max_connections(&self, max: Option<u32>) {
        let mut shown = self.max_connections.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = max.map(|max| {
            let family = &self.metrics.families.backend_max_connections;
            let series = shown.take().unwrap_or_else(|| family.series(&self.labels));
            series.set(max.into());
            series
        });
    }

    /// Takes a lock, as does the next: not for a connect that succeeds.
    pub fn connect_error(&self, reason: ConnectErrorReason) {
        let (label, family) = (reason.as_str(), &self.metrics.families.backend_connect_errors);
        self.connect_errors.inc(label, || family.with(&self.labels, label));
    }

    pub fn health_check(&self, result: CheckResult) {
        let (label, family) = (result.as_str(), &self.metrics.families.backend_health_checks);
        self.health_checks.inc(label, || family.with(&self.labels, label));
    }
}

/// What a backend's failures of real traffic are counted with.
pub(super) struct Traffic {
    ejections: Series<Counter>,
    failures: Seen,
}

impl BackendMetrics {
    /// Counts a failure of real traffic.
    pub fn traffic_failure(&self, failure: TrafficFailure) {
        let (label, family) = (failure.as_str(), &self.metrics.families.backend_traffic_failures);
        self.traffic().failures.inc(label, || family.with(&self.labels, label));
    }

    /// Counts that real traffic has set the backend aside.
    pub fn ejected(&self) {
        self.traffic().ejections.inc();
    }

    fn traffic(&self) -> &Traffic {
        self.traffic.get_or_init(|| {
            let ejections = self.metrics.families.backend_ejections.series(&self.labels);
            Box::new(Traffic { ejections, failures: Seen::default() })
        })
    }
}
