//! From a good config to bound sockets and a table, before any task runs.
//!
//! Owns the order. Whatever fails, fails before the first connection is accepted, and what was bound is closed.

use super::Failure;
use super::fds;
use super::gates::Announcement;
use super::pipes;
use super::sockets::{self, Severity};

use crate::admission::{Around, Gate, Pressure, Process, SharedLimits};
use crate::clock::Now;
use crate::config::{Address, Config, Mistake, Percent, RelayMode, Socket, limits};
use crate::every::Every;
use crate::log::{self, AccessLog, LogGuard};
use crate::metrics::Metrics;
use crate::name::BindAddr;
use crate::net::listen::{AtClose, ListenSocket, Options, SocketAccess, bind_all};
use crate::net::relay::PipeBounds;
use crate::net::resolve;
use crate::session::balance::{Seats, SharedSocket};
use crate::session::close::CloseReason;
use crate::table::{Listener, Resolution, RoutingTable};
use arc_swap::ArcSwap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// For all host names of a config together.
const RESOLVE_BOUND: Duration = Duration::from_secs(5);
/// A shortage of file descriptors is said at most this often.
const SHORTAGE_LOG: Duration = Duration::from_secs(10);

/// What workers and control tasks share.
#[derive(Clone)]
pub struct Shared {
    pub table: Arc<ArcSwap<RoutingTable>>,
    pub metrics: Arc<Metrics>,
    pub process: Arc<Process>,
    pub access: Option<AccessLog>,
    pub shortage: Arc<Every>,
    pub workers: usize,
    pub memory_high: Option<Percent>,
    /// Once there are workers.
    pub seats: Arc<OnceLock<Arc<Seats>>>,
}

/// One worker's share of the listening sockets.
pub type WorkerSockets = Vec<SharedSocket>;

/// All that a start has made, for the loop and the workers to take over.
pub struct Started {
    pub shared: Shared,
    /// One entry for each worker.
    pub sockets: Vec<WorkerSockets>,
    pub admin: Option<ListenSocket>,
    pub announcement: Announcement,
    /// Of each worker.
    pub pipes: PipeBounds,
    pub log: LogGuard,
}

/// Fails with what the system refuses, or with names that can't be resolved.
pub fn start(config: &Config) -> Result<Started, Failure> {
    let metrics = Metrics::new().map_err(|error| Failure::Internal(format!("metrics: {error}")))?;
    let metrics = Arc::new(metrics);
    let system = |what: &str, error: &dyn std::fmt::Display| Failure::System(format!("{what}: {error}"));
    let log = log::init(&config.log, &metrics).map_err(|error| system("can't start the log", &error))?;
    let access = AccessLog::open(&config.log, &metrics).map_err(|error| system("can't open the access log", &error))?;
    let resolution = resolve(config)?;
    check_sockets(config)?;
    let workers = config.runtime.workers.unwrap_or_else(cores);

    let limit = fds::raise_limit();
    let plan = fds::plan(config, workers, limit).map_err(Failure::System)?;
    let admin = bind_admin(config)?;
    warn_of_limits_out_of_reach(config, plan.max_sessions);
    let process = Arc::new(Process::new(plan.max_sessions, Pressure::default(), &metrics));
    let (sockets, listeners) = bind_listeners(config, workers, &metrics, &process)?;
    let announcement = Announcement::new(admin.as_ref().map(|socket| &socket.address), &listeners);

    let built = RoutingTable::build(config, &resolution, listeners, &metrics, None, Now::read());
    for warning in &built.warnings {
        tracing::warn!("{warning}");
    }
    metrics.generation.set(built.table.generation as i64);
    metrics.max_connections.set(plan.max_sessions as i64);
    let pipes = pipes::Host::read().share(plan.max_pipes, workers);
    metrics.max_pipes.set((pipes.count * workers) as i64);
    metrics.max_pipe_bytes.set((pipes.bytes * workers) as i64);
    if config.runtime.relay != RelayMode::Copy && pipes.allow_none() {
        tracing::warn!(
            "no room for pipes, so everything is copied; raise the limit on open files or lower max_connections, and look \
             at fs.pipe-user-pages-soft (relay = \"copy\" silences this)"
        );
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        workers,
        max_connections = plan.max_sessions,
        max_pipes = pipes.count * workers,
        max_pipe_bytes = pipes.bytes * workers,
        file_descriptors = limit,
        "starting"
    );
    Ok(Started {
        shared: Shared {
            table: Arc::new(ArcSwap::from_pointee(built.table)),
            metrics,
            process,
            access,
            shortage: Arc::new(Every::new(SHORTAGE_LOG, Instant::now())),
            workers,
            memory_high: config.runtime.memory_high,
            seats: Arc::default(),
        },
        sockets,
        admin,
        announcement,
        pipes,
        log,
    })
}

/// What this host can't give to the config's sockets is told; or ends the start.
fn check_sockets(config: &Config) -> Result<(), Failure> {
    let (warnings, refusals): (Vec<_>, Vec<_>) =
        sockets::lacks(config).into_iter().partition(|lack| lack.severity == Severity::Warning);
    for lack in warnings {
        tracing::warn!("{}", lack.text);
    }
    let texts: Vec<String> = refusals.into_iter().map(|lack| lack.text).collect();
    if texts.is_empty() { Ok(()) } else { Err(Failure::System(texts.join("\n"))) }
}

/// A limit that the process reaches first is hardly meant.
fn warn_of_limits_out_of_reach(config: &Config, max_sessions: usize) {
    for listener in &config.listeners {
        if let Some(own) = listener.admission.limits.max_connections.filter(|&own| own > max_sessions) {
            tracing::warn!(
                "listeners.{}: max_connections = {own} is never reached: the process serves {max_sessions} at most",
                listener.name
            );
        }
    }
}

/// Resolves every host name of the config; all that fail are named at once.
pub fn resolve(config: &Config) -> Result<Resolution, Failure> {
    let wanted = Resolution::wanted(config);
    let mut hosts: Vec<_> = wanted.iter().map(|(host, _)| Arc::clone(host)).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let answers = resolve::resolve(&hosts, RESOLVE_BOUND);
    let mut resolution = Resolution::default();
    for (host, port) in wanted {
        if let Ok(found) = &answers[&host] {
            resolution.insert(host, port, found.iter().map(|&ip| SocketAddr::new(ip, port)).collect());
        }
    }
    let members = config.pools.iter().flat_map(|pool| &pool.members);
    let mistakes: Vec<String> = members
        .filter_map(|member| {
            let Address::Host { host, .. } = &member.address else { return None };
            let error = answers[host].as_ref().err()?;
            let message = format!("the host name {host} can't be resolved: {error}");
            Some(Mistake::of_member(member, &message, "correct it, or use an address").first_line())
        })
        .collect();
    // Not the config's fault for certain: the resolver may be down, and a service manager should try again.
    if mistakes.is_empty() { Ok(resolution) } else { Err(Failure::System(mistakes.join("\n"))) }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(limits::MAX_WORKERS)
}

fn bind_admin(config: &Config) -> Result<Option<ListenSocket>, Failure> {
    let Some(address) = &config.admin.listen else { return Ok(None) };
    let (at_close, socket) = (AtClose::Finish, Socket::default());
    let options = Options { backlog: 128, at_close, socket, access: SocketAccess::OWNER };
    let mut bound = bind_all(address, &options, 1)
        .map_err(|error| Failure::System(format!("admin.listen: {error} (or turn it off: listen = \"off\")")))?;
    Ok(bound.pop())
}

type Bound = (Vec<WorkerSockets>, Vec<Arc<Listener>>);

fn bind_listeners(
    config: &Config,
    workers: usize,
    metrics: &Arc<Metrics>,
    process: &Arc<Process>,
) -> Result<Bound, Failure> {
    let shared = SharedLimits::new(config, metrics, None);
    let bounded_by_fds = config.runtime.max_connections.is_none();
    let around = Around { process, shared: &shared, metrics, bounded_by_fds };
    let mut by_worker: Vec<WorkerSockets> = (0..workers).map(|_| Vec::new()).collect();
    let mut listeners = Vec::new();
    let mut refused = Vec::new();
    for wanted in &config.listeners {
        let access = sockets::access(&wanted.socket).unwrap_or_else(|error| {
            refused.push(format!("listeners.{}.socket.{error}", wanted.name));
            SocketAccess::default()
        });
        let (at_close, socket) = (AtClose::Reset, wanted.socket.clone());
        let options = Options { backlog: wanted.backlog, at_close, socket, access };
        let mut bound = Vec::new();
        for address in &wanted.bind {
            match bind_all(address, &options, workers) {
                Ok(sockets) => bound.push(sockets),
                Err(error) => refused.push(format!("listeners.{}: {error}", wanted.name)),
            }
        }
        let addresses: Vec<BindAddr> = bound.iter().filter_map(|sockets| sockets.first()).map(address_of).collect();
        let handles = metrics.listener(&wanted.name, &CloseReason::LABELS);
        let gate = Gate::new(&wanted.name, &wanted.admission, around, None);
        let listener = Arc::new(Listener::new(wanted.clone(), handles, addresses, gate));
        for sockets in bound {
            for (socket, share) in sockets.into_iter().zip(&mut by_worker) {
                share.push(SharedSocket::new(socket, options.clone(), Arc::clone(&listener)));
            }
        }
        listeners.push(listener);
    }
    if refused.is_empty() { Ok((by_worker, listeners)) } else { Err(Failure::System(refused.join("\n"))) }
}

fn address_of(socket: &ListenSocket) -> BindAddr {
    socket.address.clone()
}
