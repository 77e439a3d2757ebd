//! From a good config to bound sockets and a table, before any task runs.
//!
//! Owns the order. Whatever fails, fails before the first connection is accepted, and what was bound is closed. Next:
//! `live`, which does the same for a config that takes the place of another one.

use super::Failure;
use super::fds;
use super::gates::Announcement;
use super::inherit::Inherited;
use super::live::{Base, ConfigSource, Live, prepare};
use super::pipes;
use super::privileges::{self, Identity};
use super::state_file::Keeper;
use super::upgrade::{Heir, Program};
use crate::admin::{self, ConfigStatus};
use crate::admission::{Pressure, Process};
use crate::config::{Address, Adjustments, Config, Mistake, RelayMode, limits};
use crate::every::Every;
use crate::log::{self, AccessLog, LogGuard, Writer};
use crate::metrics::Metrics;
use crate::net::relay::PipeBounds;
use crate::net::resolve;
use crate::session::balance::Seats;
use crate::table::{Resolution, RoutingTable};
use arc_swap::ArcSwap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// For all host names of a config together.
const RESOLVE_BOUND: Duration = Duration::from_secs(5);
/// A shortage of file descriptors is said at most this often.
const SHORTAGE_LOG: Duration = Duration::from_secs(10);

/// What the loop, workers and control tasks share.
#[derive(Clone)]
pub struct Shared {
    /// The one that runs now.
    pub config: Arc<ArcSwap<Config>>,
    /// What is told of it, and of those before it.
    pub config_status: Arc<ArcSwap<ConfigStatus>>,
    /// What operators have changed on top of it.
    pub adjustments: Arc<ArcSwap<Adjustments>>,
    pub table: Arc<ArcSwap<RoutingTable>>,
    /// Notified after each swap of the table.
    pub table_changed: Arc<Notify>,
    pub metrics: Arc<Metrics>,
    pub process: Arc<Process>,
    pub access: Option<AccessLog>,
    pub shortage: Arc<Every>,
    pub workers: usize,
    /// Once there are workers.
    pub seats: Arc<OnceLock<Arc<Seats>>>,
    /// Who may do what at the admin endpoint.
    pub who: Arc<admin::Who>,
}

/// All that a start has made, for the loop and the workers to take over.
pub struct Started {
    pub live: Live,
    pub announcement: Announcement,
    /// Of each worker.
    pub pipes: PipeBounds,
    pub log: LogGuard,
    /// What runs, for an upgrade.
    pub program: Option<Program>,
    pub inheritance: Option<Inheritance>,
}

/// What a predecessor has left, and what of it is in use.
pub struct Inheritance {
    pub heir: Heir,
    pub taken: Vec<usize>,
}

/// Fails with what the system refuses, or with names that can't be resolved.
pub fn start(source: ConfigSource) -> Result<Started, Failure> {
    let program = Program::own();
    let limit = fds::raise_limit();
    let mut heir = Heir::from_environment()?;
    let (path, mut loaded) = source.into_parts();
    // Who has read the file has told of them.
    loaded.warnings.clear();
    let metrics = Metrics::new().map_err(|error| Failure::Internal(format!("metrics: {error}")))?;
    let metrics = Arc::new(metrics);
    let system = |what: &str, error: &dyn std::fmt::Display| Failure::System(format!("{what}: {error}"));
    let mut log = log::init(&loaded.config.log, &metrics).map_err(|error| system("can't start the log", &error))?;
    let access =
        AccessLog::open(&loaded.config.log, &metrics).map_err(|error| system("can't open the access log", &error))?;
    let workers = loaded.config.runtime.workers.unwrap_or_else(cores);
    let identity = Identity::of(&loaded.config.runtime.privileges).map_err(Failure::System)?;
    let mut inherited = match &mut heir {
        Some(heir) => Inherited::from_predecessor(&loaded.config, heir.candidates()),
        None => Inherited::from_service_manager(&loaded.config),
    };
    let base = Base::of_start(workers, limit, identity.clone(), inherited.beside.clone());
    let candidate = prepare(&base, loaded, &mut inherited)?;
    let (config, plan) = (Arc::clone(&candidate.config), candidate.plan);
    if let (Some(identity), Some((_, writer))) = (&identity, &access) {
        let given = writer.give_to(identity.user, identity.group);
        given.map_err(|error| system("can't give the access log to runtime.user", &error))?;
    }
    let (access, access_writer) = access.unzip();
    let shared = Shared {
        config: Arc::new(ArcSwap::new(Arc::clone(&config))),
        config_status: Arc::default(),
        adjustments: Arc::default(),
        table: Arc::new(ArcSwap::from_pointee(RoutingTable::empty())),
        table_changed: Arc::new(Notify::new()),
        process: Arc::new(Process::new(plan.max_sessions, Pressure::default(), &metrics)),
        metrics: Arc::clone(&metrics),
        access,
        shortage: Arc::new(Every::new(SHORTAGE_LOG, Instant::now())),
        workers,
        seats: Arc::default(),
        who: Arc::new(admin::Who::new(admin::Access::default())),
    };
    let handover = heir.as_ref().map(|heir| &heir.handover);
    let mut live = Live::first(candidate, path, base, shared, handover)?;
    if let Some(identity) = identity.as_ref().filter(|identity| !identity.is_ours())
        && let Err(error) = live.give_to(identity.user)
    {
        tracing::warn!(
            "can't give the sockets to runtime.user, so that no reload can bind others beside them: {error}"
        );
    }
    privileges::drop_to(identity.as_ref(), &config, live.path.as_deref()).map_err(Failure::System)?;
    // From here on there may be threads, which inherit what the process may do.
    log.start().map_err(|error| system("can't start the log", &error))?;
    if heir.is_none() {
        // Else it is the predecessor's file until that has handed over.
        live.keeper.iter_mut().for_each(Keeper::start);
    }
    access_writer.map_or(Ok(()), Writer::start).map_err(|error| system("can't start the access log", &error))?;
    let announcement =
        Announcement::new(live.endpoint.sockets().map(|(_, it)| &it.address), &live.shared.table.load().listeners);
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
    let inheritance = heir.map(|heir| Inheritance { heir, taken: inherited.taken });
    Ok(Started { live, announcement, pipes, log, program, inheritance })
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
