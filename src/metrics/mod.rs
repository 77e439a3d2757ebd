//! What tidegate counts, and the handles through which it counts.
//!
//! Owns every family and the text that `/metrics` answers with. Each layer above resolves its
//! handles once ([`Metrics::listener`], [`Metrics::pool`], [`Metrics::backend`]) and then counts without a lock or
//! a look-up; when it drops them, their series go with the last handle (`family`). Names, helps, labels and
//! buckets are in [`names`].

mod demand;
mod family;
mod handles;
mod hold;
mod kernel;
mod labels;
mod limit;
pub mod names;
mod value;

pub use demand::{QueueMetrics, ShedMetrics};
pub use family::Series;
pub use handles::{
    AcceptQueueMetrics, BackendMetrics, CgroupMemoryMetrics, ListenerMetrics, PoolMetrics, StateGauge, WorkerMetrics,
};
pub use hold::{HoldMetrics, HoldOutcome};
pub use labels::{
    AdminDenial, CheckResult, ConnectErrorReason, LogKind, ProxyResult, ProxyVersion, QueueOutcome, ReloadResult,
    TrafficFailure,
};
pub use limit::{Bound, LimitMetrics, Scope};
pub use value::{Counter, Gauge, Histogram, Ratio};

use crate::name::{Direction, ListenerName, PoolName};
use family::{Exposed, Family, Labels};
use handles::Seen;
use names::Name;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Error, TextEncoder};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use value::Kind;

/// All metrics of the process: those that exist once as fields, the others by the handles that it gives out.
pub struct Metrics {
    registry: Registry,
    /// Of the library: the process's own figures.
    process: ProcessCollector,
    families: Families,
    pub generation: Series<Gauge>,
    pub state_file_errors: Series<Counter>,
    /// 1 if the last reload wasn't refused.
    pub last_reload_success: Series<Gauge>,
    /// Unix time in seconds.
    pub last_reload_timestamp: Series<Gauge>,
    /// Indexed by [`ReloadResult`].
    reloads: Box<[Series<Counter>]>,
    pub max_connections: Series<Gauge>,
    pub panics: Series<Counter>,
    /// Pipes of all workers' pools, see `net::relay`.
    pub pipes_held: Series<Gauge>,
    pub pipe_bytes_held: Series<Gauge>,
    pub max_pipes: Series<Gauge>,
    pub max_pipe_bytes: Series<Gauge>,
    pub pipe_fallbacks: Series<Counter>,
    pub admin_refused: Series<Counter>,
    /// Indexed by [`AdminDenial`].
    admin_denied: Vec<Series<Counter>>,
    /// Indexed by [`LogKind`].
    log_dropped: [Series<Counter>; 2],
    /// Its only series stands for the life of the process.
    _build_info: Series<Gauge>,
    /// The series of tasks that were restarted so far; once there, they stay.
    task_restarts: Seen,
    /// Bytes of the last scrape's text, so that the next one need not grow its buffer.
    last_length: AtomicUsize,
}

/// What a scrape's text may grow by from one to the next without being moved.
const SPARE: usize = 4 << 10;

struct Families {
    config_info: Family<Gauge>,
    limits: limit::Families,
    task_restarts: Family<Counter>,
    cgroup_memory_used: Family<Gauge>,
    cgroup_memory_limit: Family<Gauge>,
    worker_sessions: Family<Gauge>,
    worker_handed_over: Family<Counter>,
    worker_stuck: Family<Gauge>,
    listener_up: Family<Gauge>,
    listener_connections: Family<Counter>,
    listener_active: Family<Gauge>,
    listener_accept_errors: Family<Counter>,
    listener_accept_queue_length: Family<Gauge>,
    listener_accept_queue_limit: Family<Gauge>,
    proxy_headers: Family<Counter>,
    connections_closed: Family<Counter>,
    connection_duration: Family<Histogram>,
    route_sessions: Family<Counter>,
    preread: Family<Histogram>,
    pool_failovers: Family<Counter>,
    pool_no_backend: Family<Counter>,
    pool_connect_wait: Family<Histogram>,
    pool_available: Family<Gauge>,
    pool_ejected: Family<Gauge>,
    pool_panic: Family<Gauge>,
    pool_tier: Family<Gauge>,
    pool_hedges: Family<Counter>,
    pool_hedges_won: Family<Counter>,
    pool_replays: Family<Counter>,
    pool_rebalanced: Family<Counter>,
    demand: demand::Families,
    backend_up: Family<Gauge>,
    backend_max_connections: Family<Gauge>,
    backend_state_changes: Family<Counter>,
    backend_connections: Family<Counter>,
    backend_active: Family<Gauge>,
    backend_bytes: Family<Counter>,
    backend_connect_errors: Family<Counter>,
    backend_health_checks: Family<Counter>,
    backend_ejections: Family<Counter>,
    backend_traffic_failures: Family<Counter>,
    hold: hold::Families,
}

impl Metrics {
    /// Registers everything. Fails only if two families clash, which a test rules out.
    pub fn new() -> Result<Self, Error> {
        let mut registry = Registry::default();
        let once = Labels::none();
        let build_info = registry.add::<Gauge>(&names::BUILD_INFO)?.with(&once, env!("CARGO_PKG_VERSION"));
        build_info.set(1);
        let log_dropped = registry.add::<Counter>(&names::LOG_DROPPED)?;
        let admin_denied = registry.add::<Counter>(&names::ADMIN_DENIED)?;
        Ok(Self {
            generation: registry.add(&names::CONFIG_GENERATION)?.series(&once),
            state_file_errors: registry.add(&names::STATE_FILE_ERRORS)?.series(&once),
            last_reload_success: registry.add(&names::CONFIG_LAST_RELOAD_SUCCESS)?.series(&once),
            last_reload_timestamp: registry.add(&names::CONFIG_LAST_RELOAD_TIMESTAMP)?.series(&once),
            reloads: {
                let reloads = registry.add(&names::CONFIG_RELOADS)?;
                ReloadResult::ALL.iter().map(|result| reloads.with(&once, result.as_str())).collect()
            },
            max_connections: registry.add(&names::MAX_CONNECTIONS)?.series(&once),
            panics: registry.add(&names::PANICS)?.series(&once),
            pipes_held: registry.add(&names::PIPES_HELD)?.series(&once),
            pipe_bytes_held: registry.add(&names::PIPE_BYTES_HELD)?.series(&once),
            max_pipes: registry.add(&names::MAX_PIPES)?.series(&once),
            max_pipe_bytes: registry.add(&names::MAX_PIPE_BYTES)?.series(&once),
            pipe_fallbacks: registry.add(&names::PIPE_FALLBACKS)?.series(&once),
            admin_refused: registry.add(&names::ADMIN_REFUSED)?.series(&once),
            admin_denied: AdminDenial::ALL.iter().map(|reason| admin_denied.with(&once, reason.as_str())).collect(),
            log_dropped: LogKind::BOTH.map(|kind| log_dropped.with(&once, kind.as_str())),
            _build_info: build_info,
            task_restarts: Seen::default(),
            last_length: AtomicUsize::new(0),
            families: Families::register(&mut registry)?,
            process: ProcessCollector::for_self(),
            registry,
        })
    }

    /// Says which config is in force, as long as it is held.
    #[must_use]
    pub fn config_info(&self, hash: &str) -> Series<Gauge> {
        let info = self.families.config_info.series(&Labels::new(&[("hash", hash)]));
        info.set(1);
        info
    }

    /// Configs that were asked for, with this result.
    #[must_use]
    pub fn reloads(&self, result: ReloadResult) -> &Series<Counter> {
        &self.reloads[result as usize]
    }

    #[must_use]
    pub fn worker(&self, index: u16) -> WorkerMetrics {
        let labels = Labels::new(&[("worker", &index.to_string())]);
        let families = &self.families;
        WorkerMetrics {
            sessions: families.worker_sessions.series(&labels),
            handed_over: families.worker_handed_over.series(&labels),
            stuck: families.worker_stuck.series(&labels),
        }
    }

    /// The memory of a cgroup that has a limit.
    #[must_use]
    pub fn cgroup_memory(&self) -> CgroupMemoryMetrics {
        let (once, families) = (Labels::none(), &self.families);
        let (used, limit) = (families.cgroup_memory_used.series(&once), families.cgroup_memory_limit.series(&once));
        CgroupMemoryMetrics { used, limit }
    }

    /// The accept queues of a listener that the kernel tells of.
    #[must_use]
    pub fn accept_queue(&self, listener: &ListenerName) -> AcceptQueueMetrics {
        let labels = Labels::new(&[("listener", listener.as_str())]);
        AcceptQueueMetrics {
            length: self.families.listener_accept_queue_length.series(&labels),
            limit: self.families.listener_accept_queue_limit.series(&labels),
        }
    }

    /// The metrics of a listener; `reasons` are the labels of all ends that a session can have.
    #[must_use]
    pub fn listener(self: &Arc<Self>, name: &ListenerName, reasons: &'static [&'static str]) -> ListenerMetrics {
        let labels = Labels::new(&[("listener", name.as_str())]);
        let families = &self.families;
        ListenerMetrics {
            up: StateGauge::new(families.listener_up.series(&labels)),
            connections_total: families.listener_connections.series(&labels),
            active: families.listener_active.series(&labels),
            duration: families.connection_duration.series(&labels),
            closed: reasons.iter().map(|reason| families.connections_closed.with(&labels, reason)).collect(),
            labels,
            metrics: Arc::clone(self),
            preread: OnceLock::new(),
            accept_errors: Seen::default(),
            proxy_headers: Default::default(),
        }
    }

    /// Sessions that took this rule of a listener.
    #[must_use]
    pub fn rule(&self, listener: &ListenerName, rule: &str) -> Series<Counter> {
        self.families.route_sessions.series(&Labels::new(&[("listener", listener.as_str()), ("rule", rule)]))
    }

    #[must_use]
    pub fn pool(self: &Arc<Self>, name: &PoolName) -> PoolMetrics {
        let labels = Labels::new(&[("pool", name.as_str())]);
        let families = &self.families;
        PoolMetrics {
            failovers: families.pool_failovers.series(&labels),
            no_backend: families.pool_no_backend.series(&labels),
            connect_wait: families.pool_connect_wait.series(&labels),
            available: StateGauge::new(families.pool_available.series(&labels)),
            ejected: StateGauge::new(families.pool_ejected.series(&labels)),
            panic: StateGauge::new(families.pool_panic.series(&labels)),
            tier: StateGauge::new(families.pool_tier.series(&labels)),
            hedges: families.pool_hedges.series(&labels),
            hedges_won: families.pool_hedges_won.series(&labels),
            replays: families.pool_replays.series(&labels),
            rebalanced: families.pool_rebalanced.series(&labels),
            queue: OnceLock::new(),
            shed: OnceLock::new(),
            labels,
            metrics: Arc::clone(self),
        }
    }

    /// The metrics of a backend; `backend` is what it is called: its configured name, or its address.
    #[must_use]
    pub fn backend(self: &Arc<Self>, pool: &PoolName, backend: &str) -> BackendMetrics {
        let labels = Labels::new(&[("pool", pool.as_str()), ("backend", backend)]);
        let families = &self.families;
        BackendMetrics {
            up: StateGauge::new(families.backend_up.series(&labels)),
            state_changes: families.backend_state_changes.series(&labels),
            connections_total: families.backend_connections.series(&labels),
            active: families.backend_active.series(&labels),
            bytes: Direction::BOTH.map(|direction| {
                let direction = match direction {
                    Direction::ToBackend => "to_backend",
                    Direction::ToClient => "to_client",
                };
                families.backend_bytes.with(&labels, direction)
            }),
            max_connections: Mutex::default(),
            connect_errors: Seen::default(),
            health_checks: Seen::default(),
            traffic: OnceLock::new(),
            labels,
            metrics: Arc::clone(self),
        }
    }

    /// Lines that a log gave up.
    #[must_use]
    pub fn log_dropped(&self, log: LogKind) -> &Series<Counter> {
        &self.log_dropped[log as usize]
    }

    /// Requests to the admin endpoint that were refused for this reason.
    #[must_use]
    pub fn admin_denied(&self, reason: AdminDenial) -> &Series<Counter> {
        &self.admin_denied[reason as usize]
    }

    /// Counts that a task had to be started again. The names of tasks are constants of the code.
    pub fn task_restarted(&self, task: &'static str) {
        self.task_restarts.inc(task, || self.families.task_restarts.with(&Labels::none(), task));
    }

    /// Everything in the text exposition format, version 0.0.4.
    pub fn encode(&self) -> Result<String, Error> {
        let mut text = String::with_capacity(self.last_length.load(Relaxed) + SPARE);
        for family in &self.registry.0 {
            family.write(&mut text);
        }
        kernel::write(&mut text);
        TextEncoder::new().encode_utf8(&self.process.collect(), &mut text)?;
        self.last_length.store(text.len(), Relaxed);
        Ok(text)
    }
}

/// All families, in the order in which a scrape shows them.
#[derive(Default)]
struct Registry(Vec<Box<dyn Exposed>>);

impl Registry {
    /// A family of this name. Fails if there is one already.
    fn add<M: Kind>(&mut self, name: &'static Name) -> Result<Family<M>, Error> {
        if self.0.iter().any(|family| family.name() == name.name) {
            return Err(Error::AlreadyReg);
        }
        let family = Family::new(name);
        self.0.push(Box::new(family.clone()));
        Ok(family)
    }
}

impl Families {
    fn register(registry: &mut Registry) -> Result<Self, Error> {
        Ok(Self {
            config_info: registry.add(&names::CONFIG_INFO)?,
            limits: limit::Families::register(registry)?,
            task_restarts: registry.add(&names::TASK_RESTARTS)?,
            cgroup_memory_used: registry.add(&names::CGROUP_MEMORY_USED)?,
            cgroup_memory_limit: registry.add(&names::CGROUP_MEMORY_LIMIT)?,
            worker_sessions: registry.add(&names::WORKER_SESSIONS)?,
            worker_handed_over: registry.add(&names::WORKER_HANDED_OVER)?,
            worker_stuck: registry.add(&names::WORKER_STUCK)?,
            listener_up: registry.add(&names::LISTENER_UP)?,
            listener_connections: registry.add(&names::LISTENER_CONNECTIONS)?,
            listener_active: registry.add(&names::LISTENER_ACTIVE)?,
            listener_accept_errors: registry.add(&names::LISTENER_ACCEPT_ERRORS)?,
            listener_accept_queue_length: registry.add(&names::LISTENER_ACCEPT_QUEUE_LENGTH)?,
            listener_accept_queue_limit: registry.add(&names::LISTENER_ACCEPT_QUEUE_LIMIT)?,
            proxy_headers: registry.add(&names::PROXY_HEADERS)?,
            connections_closed: registry.add(&names::CONNECTIONS_CLOSED)?,
            connection_duration: registry.add(&names::CONNECTION_DURATION)?,
            route_sessions: registry.add(&names::ROUTE_SESSIONS)?,
            preread: registry.add(&names::PREREAD)?,
            pool_failovers: registry.add(&names::POOL_FAILOVERS)?,
            pool_no_backend: registry.add(&names::POOL_NO_BACKEND)?,
            pool_connect_wait: registry.add(&names::POOL_CONNECT_WAIT)?,
            pool_available: registry.add(&names::POOL_AVAILABLE)?,
            pool_ejected: registry.add(&names::POOL_EJECTED)?,
            pool_panic: registry.add(&names::POOL_PANIC)?,
            pool_tier: registry.add(&names::POOL_TIER)?,
            pool_hedges: registry.add(&names::POOL_HEDGES)?,
            pool_hedges_won: registry.add(&names::POOL_HEDGES_WON)?,
            pool_replays: registry.add(&names::POOL_REPLAYS)?,
            pool_rebalanced: registry.add(&names::POOL_REBALANCED)?,
            demand: demand::Families::register(registry)?,
            backend_up: registry.add(&names::BACKEND_UP)?,
            backend_max_connections: registry.add(&names::BACKEND_MAX_CONNECTIONS)?,
            backend_state_changes: registry.add(&names::BACKEND_STATE_CHANGES)?,
            backend_connections: registry.add(&names::BACKEND_CONNECTIONS)?,
            backend_active: registry.add(&names::BACKEND_ACTIVE)?,
            backend_bytes: registry.add(&names::BACKEND_BYTES)?,
            backend_connect_errors: registry.add(&names::BACKEND_CONNECT_ERRORS)?,
            backend_health_checks: registry.add(&names::BACKEND_HEALTH_CHECKS)?,
            backend_ejections: registry.add(&names::BACKEND_EJECTIONS)?,
            backend_traffic_failures: registry.add(&names::BACKEND_TRAFFIC_FAILURES)?,
            hold: hold::Families::register(registry)?,
        })
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
