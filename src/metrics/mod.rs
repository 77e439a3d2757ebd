//! What tidegate counts, and the handles through which it counts.
//!
//! Owns the registry, every family and the text that `/metrics` answers with. Each layer above resolves its
//! handles once ([`Metrics::listener`], [`Metrics::pool`], [`Metrics::backend`]) and then counts without a lock or
//! a look-up; when it drops them, their series go with the last handle (`family`). Names, helps, labels and
//! buckets are in [`names`].

mod family;
mod kernel;
pub mod names;

pub use family::Series;

use crate::name::{Direction, ListenerName, PoolName};
use family::{Family, Kind};
use names::Name;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Error, Histogram, IntCounter, IntGauge, Registry, TextEncoder};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// All metrics of the process: those that exist once as fields, the others by the handles that it gives out.
pub struct Metrics {
    registry: Registry,
    families: Families,
    pub generation: Series<IntGauge>,
    pub max_connections: Series<IntGauge>,
    pub panics: Series<IntCounter>,
    /// Pipes of all workers' pools, see `net::relay`.
    pub pipes_held: Series<IntGauge>,
    pub pipe_bytes_held: Series<IntGauge>,
    pub max_pipes: Series<IntGauge>,
    pub max_pipe_bytes: Series<IntGauge>,
    pub pipe_fallbacks: Series<IntCounter>,
    pub admin_refused: Series<IntCounter>,
    /// Indexed by [`LogKind`].
    log_dropped: [Series<IntCounter>; 2],
    /// Its only series stands for the life of the process.
    _build_info: Series<IntGauge>,
    /// The series of tasks that were restarted so far; once there, they stay.
    task_restarts: Seen,
}

struct Families {
    task_restarts: Family<IntCounter>,
    listener_up: Family<IntGauge>,
    listener_connections: Family<IntCounter>,
    listener_active: Family<IntGauge>,
    listener_accept_errors: Family<IntCounter>,
    connections_closed: Family<IntCounter>,
    connection_duration: Family<Histogram>,
    pool_failovers: Family<IntCounter>,
    pool_no_backend: Family<IntCounter>,
    pool_connect_wait: Family<Histogram>,
    backend_up: Family<IntGauge>,
    backend_state_changes: Family<IntCounter>,
    backend_connections: Family<IntCounter>,
    backend_active: Family<IntGauge>,
    backend_bytes: Family<IntCounter>,
    backend_connect_errors: Family<IntCounter>,
    backend_health_checks: Family<IntCounter>,
}

impl Metrics {
    /// Registers everything. Fails only if two families clash, which a test rules out.
    pub fn new() -> Result<Self, Error> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        registry.register(Box::new(kernel::ListenQueues::new()?))?;
        let build_info = family::<IntGauge>(&registry, &names::BUILD_INFO)?.series(&[env!("CARGO_PKG_VERSION")]);
        build_info.set(1);
        let log_dropped = family::<IntCounter>(&registry, &names::LOG_DROPPED)?;
        Ok(Self {
            generation: family(&registry, &names::CONFIG_GENERATION)?.series(&[]),
            max_connections: family(&registry, &names::MAX_CONNECTIONS)?.series(&[]),
            panics: family(&registry, &names::PANICS)?.series(&[]),
            pipes_held: family(&registry, &names::PIPES_HELD)?.series(&[]),
            pipe_bytes_held: family(&registry, &names::PIPE_BYTES_HELD)?.series(&[]),
            max_pipes: family(&registry, &names::MAX_PIPES)?.series(&[]),
            max_pipe_bytes: family(&registry, &names::MAX_PIPE_BYTES)?.series(&[]),
            pipe_fallbacks: family(&registry, &names::PIPE_FALLBACKS)?.series(&[]),
            admin_refused: family(&registry, &names::ADMIN_REFUSED)?.series(&[]),
            log_dropped: LogKind::BOTH.map(|kind| log_dropped.series(&[kind.as_str()])),
            _build_info: build_info,
            task_restarts: Seen::default(),
            families: Families::register(&registry)?,
            registry,
        })
    }

    /// The metrics of a listener; `reasons` are the labels of all ends that a session can have.
    #[must_use]
    pub fn listener(self: &Arc<Self>, name: &ListenerName, reasons: &'static [&'static str]) -> ListenerMetrics {
        let listener = name.as_str();
        let families = &self.families;
        ListenerMetrics {
            up: families.listener_up.series(&[listener]),
            connections_total: families.listener_connections.series(&[listener]),
            active: families.listener_active.series(&[listener]),
            duration: families.connection_duration.series(&[listener]),
            closed: reasons.iter().map(|reason| families.connections_closed.series(&[listener, reason])).collect(),
            name: name.clone(),
            metrics: Arc::clone(self),
            accept_errors: Seen::default(),
        }
    }

    #[must_use]
    pub fn pool(self: &Arc<Self>, name: &PoolName) -> PoolMetrics {
        let pool = name.as_str();
        let families = &self.families;
        PoolMetrics {
            failovers: families.pool_failovers.series(&[pool]),
            no_backend: families.pool_no_backend.series(&[pool]),
            connect_wait: families.pool_connect_wait.series(&[pool]),
        }
    }

    /// The metrics of a backend; `backend` is what it is called: its configured name, or its address.
    #[must_use]
    pub fn backend(self: &Arc<Self>, pool: &PoolName, backend: &str) -> BackendMetrics {
        let labels = [pool.as_str(), backend];
        let families = &self.families;
        BackendMetrics {
            up: families.backend_up.series(&labels),
            state_changes: families.backend_state_changes.series(&labels),
            connections_total: families.backend_connections.series(&labels),
            active: families.backend_active.series(&labels),
            bytes: Direction::BOTH.map(|direction| {
                let direction = match direction {
                    Direction::ToBackend => "to_backend",
                    Direction::ToClient => "to_client",
                };
                families.backend_bytes.series(&[pool.as_str(), backend, direction])
            }),
            connect_errors: [const { OnceLock::new() }; ConnectErrorReason::ALL.len()],
            health_checks: [const { OnceLock::new() }; CheckResult::ALL.len()],
            pool: pool.clone(),
            backend: backend.into(),
            metrics: Arc::clone(self),
        }
    }

    /// Lines that a log gave up.
    #[must_use]
    pub fn log_dropped(&self, log: LogKind) -> &IntCounter {
        &self.log_dropped[log as usize]
    }

    /// Counts that a task had to be started again. The names of tasks are constants of the code.
    pub fn task_restarted(&self, task: &'static str) {
        self.task_restarts.inc(task, || self.families.task_restarts.series(&[task]));
    }

    /// Everything in the text exposition format, version 0.0.4.
    pub fn encode(&self) -> Result<String, Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// A family that the registry knows.
fn family<M: Kind>(registry: &Registry, name: &'static Name) -> Result<Family<M>, Error> {
    let family = Family::new(name)?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

impl Families {
    fn register(registry: &Registry) -> Result<Self, Error> {
        Ok(Self {
            task_restarts: family(registry, &names::TASK_RESTARTS)?,
            listener_up: family(registry, &names::LISTENER_UP)?,
            listener_connections: family(registry, &names::LISTENER_CONNECTIONS)?,
            listener_active: family(registry, &names::LISTENER_ACTIVE)?,
            listener_accept_errors: family(registry, &names::LISTENER_ACCEPT_ERRORS)?,
            connections_closed: family(registry, &names::CONNECTIONS_CLOSED)?,
            connection_duration: family(registry, &names::CONNECTION_DURATION)?,
            pool_failovers: family(registry, &names::POOL_FAILOVERS)?,
            pool_no_backend: family(registry, &names::POOL_NO_BACKEND)?,
            pool_connect_wait: family(registry, &names::POOL_CONNECT_WAIT)?,
            backend_up: family(registry, &names::BACKEND_UP)?,
            backend_state_changes: family(registry, &names::BACKEND_STATE_CHANGES)?,
            backend_connections: family(registry, &names::BACKEND_CONNECTIONS)?,
            backend_active: family(registry, &names::BACKEND_ACTIVE)?,
            backend_bytes: family(registry, &names::BACKEND_BYTES)?,
            backend_connect_errors: family(registry, &names::BACKEND_CONNECT_ERRORS)?,
            backend_health_checks: family(registry, &names::BACKEND_HEALTH_CHECKS)?,
        })
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// One listener's handles.
pub struct ListenerMetrics {
    pub up: Series<IntGauge>,
    pub connections_total: Series<IntCounter>,
    pub active: Series<IntGauge>,
    pub duration: Series<Histogram>,
    /// Indexed by the position of the reason in what [`Metrics::listener`] was given.
    pub closed: Box<[Series<IntCounter>]>,
    name: ListenerName,
    metrics: Arc<Metrics>,
    accept_errors: Seen,
}

impl ListenerMetrics {
    /// Counts an error of accept(2) by its symbolic name, such as `EMFILE`. Takes a lock: not for the path.
    pub fn accept_error(&self, errno: &'static str) {
        let family = &self.metrics.families.listener_accept_errors;
        self.accept_errors.inc(errno, || family.series(&[self.name.as_str(), errno]));
    }
}

/// Series that appear with their first event, for labels that are constants of the code but too many to list.
#[derive(Default)]
struct Seen(Mutex<Vec<(&'static str, Series<IntCounter>)>>);

impl Seen {
    fn inc(&self, label: &'static str, series: impl FnOnce() -> Series<IntCounter>) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, series)) = seen.iter().find(|(known, _)| *known == label) {
            series.inc();
            return;
        }
        let series = series();
        series.inc();
        seen.push((label, series));
    }
}

/// One pool's handles.
pub struct PoolMetrics {
    pub failovers: Series<IntCounter>,
    pub no_backend: Series<IntCounter>,
    pub connect_wait: Series<Histogram>,
}

/// One backend's handles. The series of errors and probe results appear with the first of each: a large pool would
/// otherwise expose thousands of zeros.
pub struct BackendMetrics {
    pub up: Series<IntGauge>,
    pub state_changes: Series<IntCounter>,
    pub connections_total: Series<IntCounter>,
    pub active: Series<IntGauge>,
    /// Indexed by [`Direction`].
    pub bytes: [Series<IntCounter>; 2],
    connect_errors: [OnceLock<Series<IntCounter>>; ConnectErrorReason::ALL.len()],
    health_checks: [OnceLock<Series<IntCounter>>; CheckResult::ALL.len()],
    pool: PoolName,
    backend: Box<str>,
    metrics: Arc<Metrics>,
}

impl BackendMetrics {
    pub fn connect_error(&self, reason: ConnectErrorReason) {
        self.lazy(
            &self.connect_errors[reason as usize],
            &self.metrics.families.backend_connect_errors,
            reason.as_str(),
        );
    }

    pub fn health_check(&self, result: CheckResult) {
        self.lazy(&self.health_checks[result as usize], &self.metrics.families.backend_health_checks, result.as_str());
    }

    fn lazy(&self, series: &OnceLock<Series<IntCounter>>, family: &Family<IntCounter>, label: &str) {
        series.get_or_init(|| family.series(&[self.pool.as_str(), &self.backend, label])).inc();
    }
}

/// An enum of label values: `ALL` in the order of the discriminants, `as_str` the label.
macro_rules! labels {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $type {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The label's value, which is also the word for logs and `/status`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

labels! {
    /// Why a connect attempt failed.
    ConnectErrorReason {
        /// The peer said no: ECONNREFUSED, or a unix socket that isn't there.
        Refused = "refused",
        Timeout = "timeout",
        /// The host does not answer (EHOSTUNREACH, EHOSTDOWN).
        Unreachable = "unreachable",
        /// Established or nearly so, then reset.
        Reset = "reset",
        Other = "other",
        /// Our own shortage of file descriptors (EMFILE, ENFILE).
        NoFd = "no_fd",
        /// Our own shortage of local ports (EADDRNOTAVAIL).
        NoPort = "no_port",
        /// Our own shortage of kernel memory (ENOBUFS, ENOMEM).
        NoMemory = "no_memory",
        /// Our own host has no way there or forbids it (ENETUNREACH, ENETDOWN, EPERM, EACCES).
        NoRoute = "no_route",
    }
}

impl ConnectErrorReason {
    /// Whether the fault is ours, and so says nothing about the backend.
    #[must_use]
    pub fn is_ours(self) -> bool {
        match self {
            Self::NoFd | Self::NoPort | Self::NoMemory | Self::NoRoute => true,
            Self::Refused | Self::Timeout | Self::Unreachable | Self::Reset | Self::Other => false,
        }
    }
}

labels! {
    /// What a probe came to.
    CheckResult {
        Success = "success",
        Failure = "failure",
        Timeout = "timeout",
        /// The probe could not be made for a reason of our own; the verdict stays what it was.
        Frozen = "frozen",
    }
}

labels! {
    /// Which log.
    LogKind {
        Access = "access",
        /// The operational log.
        Ops = "ops",
    }
}

impl LogKind {
    const BOTH: [Self; 2] = [Self::Access, Self::Ops];
}

#[cfg(test)]
mod tests;
