//! The state of the process at one moment, for people and programs: the one view behind `/status`, `/readyz` and
//! the page.
//!
//! Owns the names of the JSON's fields and the gates of readiness. Takes no lock that traffic takes, but for
//! that of a queue in which somebody waits.

use super::{ConfigStatus, Moment, Phase, State};
use crate::admission::{Limiter, Process};
use crate::clock::Now;
use crate::config::{self, Adjustments, AdminState, HealthOverride, SendProxy};
use crate::metrics::{HoldOutcome, QueueOutcome, Scope};
use crate::name::{Direction, PoolName};
use crate::pool::hold::Hold;
use crate::pool::{Backend, LastError, Pool, PoolView, Shed, Standing, WHOLE_SHARE};
use crate::table::{self, Counted, Leads, Routes, RoutingTable};
use serde::Serialize;
use std::time::SystemTime;

#[derive(Serialize)]
pub struct Status {
    pub version: &'static str,
    pub phase: &'static str,
    /// Whether traffic may come; the gates say why not.
    pub ready: bool,
    pub gates: Vec<String>,
    pub generation: u64,
    /// Keys that an upgrade would take over.
    pub needs_upgrade: Vec<&'static str>,
    pub config: ConfigStatus,
    pub pid: u32,
    pub workers: usize,
    pub started: Moment,
    pub now: Moment,
    pub listeners: Vec<Listener>,
    /// Of the process, then those of the listeners and what they share.
    pub limits: Vec<LimitStatus>,
    pub pools: Vec<PoolStatus>,
    /// What operators have changed on top of the config, also of what it doesn't have now.
    pub adjustments: Adjustments,
}

/// What a limit counts, and what it has refused.
#[derive(Serialize)]
pub struct LimitStatus {
    /// `process`, `listener` or `shared`.
    pub scope: &'static str,
    /// Of the listener, or of the limit that several share.
    pub name: String,
    pub connections: usize,
    pub max_connections: Option<usize>,
    /// How many clients are remembered, and how many may be; `None` where none are.
    pub clients: Option<usize>,
    pub max_clients: Option<usize>,
    pub refused: u64,
    /// Would have been, by dry runs.
    pub refused_dry_run: u64,
}

#[derive(Serialize)]
pub struct Listener {
    pub name: String,
    pub bind: Vec<String>,
    /// For what no route takes.
    pub pool: Option<String>,
    pub state: &'static str,
    pub sockets: usize,
    pub sockets_broken: usize,
    pub active: i64,
    pub total: u64,
    /// Of the process's connections, kept for this listener.
    pub reserved: usize,
    /// Whether PROXY headers are `required` or `optional` here; `None` where they are data like any other.
    pub proxy_headers: Option<&'static str>,
    /// In the order in which they are asked, the listener's own pools last; empty where it has none but its own pool.
    pub routes: Vec<RouteStatus>,
}

#[derive(Serialize)]
pub struct RouteStatus {
    /// What log and metrics call it.
    pub rule: String,
    /// Where it leads, with the weight of each; empty if it refuses, and for all those that are counted together.
    pub pools: Vec<WeightedPool>,
    pub refuse: bool,
    pub sessions: u64,
}

#[derive(Serialize)]
pub struct WeightedPool {
    pub pool: String,
    pub weight: u64,
}

#[derive(Serialize)]
pub struct PoolStatus {
    pub name: String,
    pub balance: &'static str,
    /// What a client's backend goes by, with `source_hash`: as in the config, for a header also which.
    pub hash_key: Option<String>,
    /// The version of the PROXY headers that the backends get, if they get any.
    pub send_proxy_protocol: Option<&'static str>,
    pub available: usize,
    /// Too few are available, so all enabled ones are used.
    pub panic: bool,
    /// The last tier in use.
    pub tier: u8,
    /// If it has one.
    pub queue: Option<QueueStatus>,
    /// If a latency has a target.
    pub shed: Option<ShedStatus>,
    /// Where the pool is told to hold clients while no backend is up.
    pub hold: Option<HoldStatus>,
    pub backends: Vec<BackendStatus>,
}

#[derive(Serialize)]
pub struct QueueStatus {
    pub waiting: usize,
    pub max_waiting: usize,
    /// How long the one that waits longest has waited.
    pub oldest_ms: Option<u64>,
    pub max_wait_ms: u64,
    /// What has become of clients since the start.
    pub served: u64,
    pub full: u64,
    pub hopeless: u64,
    pub timeout: u64,
    pub left: u64,
    pub gone: u64,
    pub no_backend: u64,
}

#[derive(Serialize)]
pub struct ShedStatus {
    /// The share of new connections that is refused because a latency is too high, 0 to 1; in a dry run, that would be.
    pub probability: f64,
    pub dry_run: bool,
    pub refused: u64,
    /// Would have been, by a dry run.
    pub refused_dry_run: u64,
}

#[derive(Serialize)]
pub struct HoldStatus {
    pub held: usize,
    pub max_connections: usize,
    pub bytes: u64,
    pub max_bytes: u64,
    /// What has become of clients since the start.
    pub served: u64,
    pub expired: u64,
    pub overflow: u64,
    pub gone: u64,
}

#[derive(Serialize)]
pub struct BackendStatus {
    /// Its configured name, or its address.
    pub name: String,
    pub address: String,
    /// In force.
    pub weight: u16,
    /// As the config has it, or as it was added with.
    pub weight_configured: u16,
    pub tier: u8,
    /// What an operator says of it.
    pub admin: AdminState,
    /// Whether its health is what an operator says, instead of what its probes and its agent say.
    pub health_override: HealthOverride,
    pub state: &'static str,
    /// What it gets of its weight just now: less than 1 while it starts slowly, or because its agent says so.
    pub share: f64,
    /// Since when it is in that state.
    pub since: Moment,
    pub active: u32,
    pub max_connections: Option<u32>,
    pub total: u64,
    pub bytes: Bytes,
    pub load: Load,
    /// What its agent holds against it, in the agent's words.
    pub agent: Option<String>,
    /// Unless it is in service and always was.
    pub ejection: Option<EjectionStatus>,
    pub last_error: Option<ErrorStatus>,
}

#[derive(Serialize)]
pub struct Load {
    pub active: u32,
    /// Moving averages; `None` before the first.
    pub connect_ms: Option<f64>,
    pub answer_ms: Option<f64>,
}

#[derive(Serialize)]
pub struct EjectionStatus {
    /// In a row.
    pub times: u32,
    /// Until then it gets nothing; `None` if it is in service again, or on trial.
    pub until: Option<Moment>,
}

#[derive(Serialize)]
pub struct Bytes {
    pub to_backend: u64,
    pub to_client: u64,
}

#[derive(Serialize)]
pub struct ErrorStatus {
    pub text: String,
    pub at: Moment,
}

impl Status {
    pub fn of(state: &State, now: SystemTime) -> Self {
        let table = state.table.load_full();
        let phase = *state.phase.borrow();
        let config = (**state.config.load()).clone();
        let clock = Now::read();
        let listeners: Vec<_> =
            table.listeners.iter().map(|listener| Listener::of(listener, &table, state.workers)).collect();
        let pools: Vec<_> = table.pools.iter().map(|pool| PoolStatus::of(pool, clock)).collect();
        let gates = gates(
            phase,
            listeners.iter().map(|listener| (listener.name.as_str(), listener.state)),
            pools.iter().map(|pool| (pool.name.as_str(), pool.available > 0)),
        );
        Self {
            version: env!("CARGO_PKG_VERSION"),
            phase: phase.as_str(),
            ready: gates.is_empty(),
            gates,
            generation: table.generation,
            needs_upgrade: config.needs_upgrade.clone(),
            config,
            pid: std::process::id(),
            workers: state.workers,
            started: Moment::of(state.started),
            now: Moment::of(now),
            listeners,
            limits: limits(&table),
            pools,
            adjustments: Adjustments::clone(&state.adjustments.load()),
        }
    }
}

/// Why no traffic should come, a line each; without a look at all the rest.
pub fn readiness(state: &State) -> Vec<String> {
    let table = state.table.load();
    let listeners =
        table.listeners.iter().map(|listener| (listener.name.as_str(), listener_state(listener, state.workers)));
    let is_available = |pool: &Pool| pool.view().backends.iter().any(|backend| backend.available());
    let pools = table.pools.iter().map(|pool| (pool.name.as_str(), is_available(pool)));
    gates(*state.phase.borrow(), listeners, pools)
}

/// From the state of each listener, and whether each pool has an available backend.
fn gates<'a>(
    phase: Phase,
    listeners: impl Iterator<Item = (&'a str, &'static str)>,
    pools: impl Iterator<Item = (&'a str, bool)>,
) -> Vec<String> {
    let phase = (phase != Phase::Ready).then(|| phase.as_str().to_owned());
    let pools = pools
        .filter(|(_, is_available)| !is_available)
        .map(|(name, _)| format!("pool {name} has no available backend"));
    let listeners = listeners.filter_map(|(name, state)| match state {
        "down" => Some(format!("listener {name} has no working socket")),
        "draining" | "disabled" => Some(format!("listener {name} is {state}")),
        _ => None,
    });
    phase.into_iter().chain(pools).chain(listeners).collect()
}

/// Each worker has a socket for each address.
fn listener_state(listener: &table::Listener, workers: usize) -> &'static str {
    let sockets = listener.bound.len() * workers;
    match (listener.admin(), listener.broken().min(sockets)) {
        (AdminState::Enabled, 0) => "up",
        (AdminState::Enabled, broken) if broken < sockets => "degraded",
        (AdminState::Enabled, _) => "down",
        (taken_out, _) => taken_out.as_str(),
    }
}

impl Listener {
    fn of(listener: &table::Listener, table: &RoutingTable, workers: usize) -> Self {
        let sockets = listener.bound.len() * workers;
        let broken = listener.broken().min(sockets);
        Self {
            name: listener.name.to_string(),
            bind: listener.shown(),
            pool: listener.config.pool.as_ref().map(ToString::to_string),
            state: listener_state(listener, workers),
            sockets,
            sockets_broken: broken,
            active: listener.metrics.active.get(),
            total: listener.metrics.connections_total.get(),
            reserved: listener.gate.reserved(),
            proxy_headers: listener
                .config
                .accept_proxy
                .as_ref()
                .map(|accept| if accept.required { "required" } else { "optional" }),
            routes: table.routes(&listener.name).into_iter().flat_map(Routes::counted).map(RouteStatus::of).collect(),
        }
    }
}

impl RouteStatus {
    fn of(counted: Counted<'_>) -> Self {
        let weighted = |(pool, weight): (&PoolName, u64)| WeightedPool { pool: pool.to_string(), weight };
        let (rule, sessions) = (counted.name.to_owned(), counted.sessions());
        let (pools, refuse) = match counted.leads {
            Some(Leads::To(pools)) => (pools.into_iter().map(weighted).collect(), false),
            Some(Leads::Refuse) => (Vec::new(), true),
            None => (Vec::new(), false),
        };
        Self { rule, pools, refuse, sessions }
    }
}

/// Each limit once, in the order of the listeners that have it.
fn limits(table: &RoutingTable) -> Vec<LimitStatus> {
    let process = table.listeners.first().map(|listener| LimitStatus::of_process(listener.gate.process()));
    let mut limits: Vec<LimitStatus> = process.into_iter().collect();
    for limiter in table.listeners.iter().flat_map(|listener| listener.gate.limiters()) {
        if !limits.iter().any(|known| known.scope == limiter.scope.as_str() && known.name == limiter.name) {
            limits.push(LimitStatus::of(limiter));
        }
    }
    limits
}

impl LimitStatus {
    fn of_process(process: &Process) -> Self {
        Self {
            scope: Scope::Process.as_str(),
            name: String::new(),
            connections: process.active(),
            max_connections: Some(process.max()),
            clients: None,
            max_clients: None,
            refused: process.metrics.refusals(false),
            refused_dry_run: 0,
        }
    }

    fn of(limiter: &Limiter) -> Self {
        let clients = limiter.clients();
        Self {
            scope: limiter.scope.as_str(),
            name: limiter.name.clone(),
            connections: limiter.connections(),
            max_connections: limiter.limits.max_connections,
            clients: clients.map(|(remembered, _)| remembered),
            max_clients: clients.map(|(_, most)| most),
            refused: limiter.metrics.refusals(false),
            refused_dry_run: limiter.metrics.refusals(true),
        }
    }
}

impl PoolStatus {
    fn of(pool: &Pool, now: Now) -> Self {
        let view = pool.view();
        let PoolView { backends, weights, members, balance, .. } = &*view;
        let mode = pool.mode();
        Self {
            name: pool.name.to_string(),
            balance,
            hash_key: pool.hash.as_ref().map(|hash| hash.key.describe()),
            send_proxy_protocol: pool.send_proxy.as_ref().map(SendProxy::word),
            available: backends.iter().filter(|backend| backend.available()).count(),
            panic: mode.panic,
            tier: mode.tier,
            queue: pool.queue.map(|queue| QueueStatus::of(&queue, pool, now)),
            shed: pool.shed().map(|shed| ShedStatus::of(shed, pool)),
            hold: pool.hold.as_deref().map(HoldStatus::of),
            backends: backends
                .iter()
                .zip(weights.iter().zip(&members.list))
                .map(|(backend, (&weight, member))| {
                    BackendStatus::of(backend, (weight, member.weight), member.tier, now)
                })
                .collect(),
        }
    }
}

impl QueueStatus {
    fn of(queue: &config::Queue, pool: &Pool, now: Now) -> Self {
        let count = |outcome| pool.metrics.queue().outcome(outcome).get();
        Self {
            waiting: pool.waiting.len(),
            max_waiting: queue.max_waiting,
            oldest_ms: pool.waiting.oldest().map(|since| now.millis.saturating_sub(since)),
            max_wait_ms: queue.max_wait.as_millis() as u64,
            served: count(QueueOutcome::Served),
            full: count(QueueOutcome::Full),
            hopeless: count(QueueOutcome::Hopeless),
            timeout: count(QueueOutcome::Timeout),
            left: count(QueueOutcome::Left),
            gone: count(QueueOutcome::Gone),
            no_backend: count(QueueOutcome::NoBackend),
        }
    }
}

impl ShedStatus {
    fn of(shed: &Shed, pool: &Pool) -> Self {
        let metrics = pool.metrics.shed();
        Self {
            probability: shed.share(),
            dry_run: shed.config.dry_run,
            refused: metrics.refused.get(),
            refused_dry_run: metrics.dry_run.get(),
        }
    }
}

impl HoldStatus {
    fn of(hold: &Hold) -> Self {
        Self {
            held: hold.held(),
            max_connections: hold.config.max_connections,
            bytes: hold.bytes(),
            max_bytes: hold.config.max_bytes,
            served: hold.count(HoldOutcome::Served),
            expired: hold.count(HoldOutcome::Expired),
            overflow: hold.count(HoldOutcome::Overflow),
            gone: hold.count(HoldOutcome::Gone),
        }
    }
}

impl BackendStatus {
    fn of(backend: &Backend, (weight, weight_configured): (u16, u16), tier: u8, now: Now) -> Self {
        let operator = backend.operator();
        let bytes = |direction| backend.metrics.bytes[direction as usize].get();
        Self {
            name: backend.label.to_string(),
            address: backend.address.to_string(),
            weight,
            weight_configured,
            tier,
            admin: operator.state,
            health_override: operator.health,
            state: backend.state(),
            share: f64::from(backend.share()) / f64::from(WHOLE_SHARE),
            since: Moment::of_unix_ms(backend.state_since(now)),
            active: backend.active(),
            max_connections: backend.max_active(),
            total: backend.metrics.connections_total.get(),
            bytes: Bytes { to_backend: bytes(Direction::ToBackend), to_client: bytes(Direction::ToClient) },
            load: Load {
                active: backend.active(),
                connect_ms: backend.connect_time.get(now.millis).map(rounded),
                answer_ms: backend.answer_time.get(now.millis).map(rounded),
            },
            agent: backend.agent().map(|report| report.to_string()),
            ejection: EjectionStatus::of(backend, now),
            last_error: backend.last_error().map(ErrorStatus::of),
        }
    }
}

impl EjectionStatus {
    fn of(backend: &Backend, now: Now) -> Option<Self> {
        let (times, standing) = backend.ejection();
        let until = match standing {
            Standing::Ejected { until } => Some(Moment::of_unix_ms((now.unix_ms + until).saturating_sub(now.millis))),
            Standing::HalfOpen | Standing::InService => None,
        };
        (times > 0).then_some(Self { times, until })
    }
}

/// To the microsecond.
fn rounded(ms: f32) -> f64 {
    (f64::from(ms) * 1_000.0).round() / 1_000.0
}

impl ErrorStatus {
    fn of(error: LastError) -> Self {
        Self { text: error.text, at: Moment::of_unix_ms(error.at_unix_ms) }
    }
}
