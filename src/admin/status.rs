//! The state of the process at one moment, for people and programs: the one view behind `/status`, `/readyz` and
//! the page.
//!
//! Owns the names of the JSON's fields and the gates of readiness. Takes no lock that traffic takes.

use super::{Phase, State};
use crate::name::Direction;
use crate::pool::{Backend, LastError, Pool, PoolView};
use crate::table;
use serde::{Serialize, Serializer};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Serialize)]
pub struct Status {
    pub version: &'static str,
    pub phase: &'static str,
    /// Whether traffic may come; the gates say why not.
    pub ready: bool,
    pub gates: Vec<String>,
    pub generation: u64,
    pub pid: u32,
    pub workers: usize,
    pub started: Moment,
    pub now: Moment,
    pub listeners: Vec<Listener>,
    pub pools: Vec<PoolStatus>,
}

#[derive(Serialize)]
pub struct Listener {
    pub name: String,
    pub bind: Vec<String>,
    pub pool: String,
    pub state: &'static str,
    pub sockets: usize,
    pub sockets_broken: usize,
    pub active: i64,
    pub total: u64,
}

#[derive(Serialize)]
pub struct PoolStatus {
    pub name: String,
    pub balance: &'static str,
    pub available: usize,
    pub backends: Vec<BackendStatus>,
}

#[derive(Serialize)]
pub struct BackendStatus {
    /// Its configured name, or its address.
    pub name: String,
    pub address: String,
    pub weight: u16,
    pub state: &'static str,
    pub since: Moment,
    pub active: u32,
    pub total: u64,
    pub bytes: Bytes,
    pub last_error: Option<ErrorStatus>,
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

/// A moment to the millisecond, in JSON as `2025-11-21T04:11:09.123Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(SystemTime);

impl Moment {
    fn of_unix_ms(ms: u64) -> Self {
        // Within what RFC 3339 can write, which is the year 9999.
        const LAST: u64 = 253_402_300_799_999;
        Self(UNIX_EPOCH + Duration::from_millis(ms.min(LAST)))
    }

    fn of(time: SystemTime) -> Self {
        Self::of_unix_ms(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
    }

    /// How long before `later`; nothing if the clock was set back between the two.
    pub fn until(self, later: Self) -> Duration {
        later.0.duration_since(self.0).unwrap_or_default()
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(self.0))
    }
}

impl Status {
    pub fn of(state: &State, now: SystemTime) -> Self {
        let table = state.table.load_full();
        let phase = *state.phase.borrow();
        let listeners: Vec<_> = table.listeners.iter().map(|listener| Listener::of(listener, state.workers)).collect();
        let pools: Vec<_> = table.pools.iter().map(|pool| PoolStatus::of(pool)).collect();
        let gates = gates(phase, &listeners, &pools);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            phase: phase.as_str(),
            ready: gates.is_empty(),
            gates,
            generation: table.generation,
            pid: std::process::id(),
            workers: state.workers,
            started: Moment::of(state.started),
            now: Moment::of(now),
            listeners,
            pools,
        }
    }
}

/// Why no traffic should come, a line each.
fn gates(phase: Phase, listeners: &[Listener], pools: &[PoolStatus]) -> Vec<String> {
    let phase = (phase != Phase::Ready).then(|| phase.as_str().to_owned());
    let pools = pools.iter().filter(|pool| pool.available == 0);
    let pools = pools.map(|pool| format!("pool {} has no available backend", pool.name));
    let listeners = listeners.iter().filter(|listener| listener.state == "down");
    let listeners = listeners.map(|listener| format!("listener {} has no working socket", listener.name));
    phase.into_iter().chain(pools).chain(listeners).collect()
}

impl Listener {
    fn of(listener: &table::Listener, workers: usize) -> Self {
        let sockets = listener.bound.len() * workers;
        let broken = listener.broken().min(sockets);
        let state = match broken {
            0 => "up",
            broken if broken < sockets => "degraded",
            _ => "down",
        };
        Self {
            name: listener.name.to_string(),
            bind: listener.bound.iter().map(ToString::to_string).collect(),
            pool: listener.config.pool.to_string(),
            state,
            sockets,
            sockets_broken: broken,
            active: listener.metrics.active.get(),
            total: listener.metrics.connections_total.get(),
        }
    }
}

impl PoolStatus {
    fn of(pool: &Pool) -> Self {
        let view = pool.view();
        let PoolView { backends, weights, balance, .. } = &*view;
        Self {
            name: pool.name.to_string(),
            balance,
            available: backends.iter().filter(|backend| backend.available()).count(),
            backends: backends
                .iter()
                .zip(weights)
                .map(|(backend, weight)| BackendStatus::of(backend, *weight))
                .collect(),
        }
    }
}

impl BackendStatus {
    fn of(backend: &Backend, weight: u16) -> Self {
        let (health, since) = backend.health();
        let bytes = |direction| backend.metrics.bytes[direction as usize].get();
        Self {
            name: backend.label.to_string(),
            address: backend.address.to_string(),
            weight,
            state: health.as_str(),
            since: Moment::of_unix_ms(since),
            active: backend.active(),
            total: backend.metrics.connections_total.get(),
            bytes: Bytes { to_backend: bytes(Direction::ToBackend), to_client: bytes(Direction::ToClient) },
            last_error: backend.last_error().map(ErrorStatus::of),
        }
    }
}

impl ErrorStatus {
    fn of(error: LastError) -> Self {
        Self { text: error.text, at: Moment::of_unix_ms(error.at_unix_ms) }
    }
}
