//! One backend's state: what health says, how many connections it has, what went wrong last.
//!
//! Owns the counts and the guard over them (`Slot`). Health and load are atomics that sessions on all workers
//! read on each claim; the rest is off that path. The state outlives the views it appears in: it moves from
//! table to table, and a retired backend lives on until its last session has ended.
//!
//! Invariant: `active` is the number of `Slot`s that exist, and never above the maximum. Next: `health`.

use super::health::{Damper, Outcome};
use crate::config;
use crate::metrics::{BackendMetrics, ConnectErrorReason};
use crate::name::{BackendAddr, BackendId};
use crate::rng::Rng;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A member of a pool, for which we keep state.
pub struct Backend {
    pub id: BackendId,
    pub address: BackendAddr,
    /// Its configured name, or its address.
    pub label: Arc<str>,
    pub metrics: BackendMetrics,
    /// Since when (Unix time in ms) in the upper 63 bits, 1 for up in the lowest: one word, so that a reader never
    /// sees a state with another state's time.
    health: AtomicU64,
    active: AtomicU32,
    /// The most connections at once; nothing configures one yet.
    max_active: u32,
    damper: Mutex<Damper>,
    last_error: Mutex<Option<LastError>>,
}

/// What a backend counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Up,
    Down,
}

impl Health {
    /// What a backend is before anything is known of it.
    #[must_use]
    pub fn initial(config: &config::Health) -> Self {
        match (config.probe, config.initial) {
            (config::Probe::None, _) | (_, config::Initial::Up) => Self::Up,
            (config::Probe::Tcp, config::Initial::Down) => Self::Down,
        }
    }

    /// The word in logs and `/status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// What went wrong most recently, be it in a probe or in a session's connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    pub text: String,
    pub at_unix_ms: u64,
}

/// The backend has as many connections as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Backend {
    #[must_use]
    pub fn new(
        address: &BackendAddr,
        label: &Arc<str>,
        metrics: BackendMetrics,
        health: Health,
        now_unix_ms: u64,
    ) -> Self {
        let backend = Self {
            id: next_id(),
            address: address.clone(),
            label: Arc::clone(label),
            metrics,
            health: AtomicU64::new(0),
            active: AtomicU32::new(0),
            max_active: u32::MAX,
            damper: Mutex::new(Damper::new(health)),
            last_error: Mutex::new(None),
        };
        backend.store_health(health, now_unix_ms);
        backend
    }

    #[must_use]
    pub fn is_up(&self) -> bool {
        self.health.load(Relaxed) & 1 == 1
    }

    /// Whether a session may be given this backend now.
    #[must_use]
    pub fn available(&self) -> bool {
        self.is_up() && self.active.load(Relaxed) < self.max_active
    }

    /// Sessions that hold a slot, connecting ones included.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// The verdict, and since when it stands (Unix time in ms).
    #[must_use]
    pub fn health(&self) -> (Health, u64) {
        let word = self.health.load(Relaxed);
        (if word & 1 == 1 { Health::Up } else { Health::Down }, word >> 1)
    }

    /// Sets the verdict without asking the damper, which starts anew from it.
    pub fn set_health(&self, health: Health, now_unix_ms: u64) {
        *lock(&self.damper) = Damper::new(health);
        self.store_health(health, now_unix_ms);
    }

    /// Takes in what a probe came to. `Some` if that changed the verdict, which the next claim sees.
    pub fn observe(&self, outcome: Outcome, config: &config::Health, now_unix_ms: u64) -> Option<Health> {
        let verdict = lock(&self.damper).observe(outcome, config)?;
        self.store_health(verdict, now_unix_ms);
        self.metrics.state_changes.inc();
        Some(verdict)
    }

    /// The time from one probe to the next.
    pub fn probe_delay(&self, config: &config::Health, rng: &mut Rng) -> Duration {
        lock(&self.damper).next_delay(config, rng)
    }

    #[must_use]
    pub fn last_error(&self) -> Option<LastError> {
        lock(&self.last_error).clone()
    }

    pub fn set_last_error(&self, text: &str, now_unix_ms: u64) {
        *lock(&self.last_error) = Some(LastError { text: text.to_owned(), at_unix_ms: now_unix_ms });
    }

    /// Counts a connection that a session has established.
    pub fn connect_succeeded(&self) {
        self.metrics.connections_total.inc();
    }

    /// Counts a connection that a session failed to establish. An error of our own is counted as such, but isn't
    /// held against the backend.
    pub fn connect_failed(&self, reason: ConnectErrorReason, text: &str, now_unix_ms: u64) {
        self.metrics.connect_error(reason);
        if !reason.is_ours() {
            self.set_last_error(text, now_unix_ms);
        }
    }

    /// The right to one connection, if there is one left.
    pub fn claim(self: &Arc<Self>) -> Result<Slot, Full> {
        self.active
            .fetch_update(Relaxed, Relaxed, |active| (active < self.max_active).then_some(active + 1))
            .map_err(|_| Full)?;
        self.metrics.active.inc();
        Ok(Slot { backend: Arc::clone(self) })
    }

    fn store_health(&self, health: Health, now_unix_ms: u64) {
        let up = health == Health::Up;
        self.health.store(now_unix_ms << 1 | u64::from(up), Relaxed);
        self.metrics.up.set(i64::from(up));
    }
}

/// The right to one connection on a backend, from before the connect until the session has ended.
#[must_use = "a slot that is dropped at once reserves nothing"]
pub struct Slot {
    backend: Arc<Backend>,
}

impl Slot {
    /// The backend itself, for whoever outlives the slot.
    #[must_use]
    pub fn backend(&self) -> Arc<Backend> {
        Arc::clone(&self.backend)
    }
}

impl Deref for Slot {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.backend
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.backend.metrics.active.dec();
        self.backend.active.fetch_sub(1, Relaxed);
    }
}

fn next_id() -> BackendId {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    BackendId(NEXT.fetch_add(1, Relaxed))
}

/// The values behind these locks are whole at each instant, so a holder's panic leaves nothing to distrust.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::name::{Endpoint, PoolName};

    fn backend(health: Health) -> Backend {
        let address = BackendAddr(Endpoint::Tcp("192.0.2.1:80".parse().unwrap()));
        let metrics = Arc::new(Metrics::new().unwrap()).backend(&PoolName::new("web"), "a");
        Backend::new(&address, &"a".into(), metrics, health, 5)
    }

    #[test]
    fn a_slot_counts_while_it_lives() {
        let backend = Arc::new(backend(Health::Up));
        let slots = [backend.claim().unwrap(), backend.claim().unwrap()];
        assert_eq!((backend.active(), backend.metrics.active.get()), (2, 2));
        drop(slots);
        assert_eq!((backend.active(), backend.metrics.active.get()), (0, 0));
        assert_eq!(backend.metrics.connections_total.get(), 0, "none was established");
    }

    #[test]
    fn slots_never_exceed_the_maximum() {
        let backend = Arc::new(Backend { max_active: 3, ..backend(Health::Up) });
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        let slot = backend.claim();
                        assert!(backend.active() <= 3);
                        drop(slot);
                    }
                });
            }
        });
        let slots: Vec<Slot> = (0..3).map(|_| backend.claim().unwrap()).collect();
        assert_eq!(backend.claim().err(), Some(Full));
        assert!(!backend.available());
        drop(slots);
        assert!(backend.available() && backend.active() == 0);
    }

    #[test]
    fn a_verdict_is_seen_with_its_time() {
        let backend = backend(Health::Down);
        let config = config::Health::default();
        assert_eq!((backend.health(), backend.metrics.up.get()), ((Health::Down, 5), 0));
        assert_eq!(backend.observe(Outcome::Success, &config, 6), Some(Health::Up));
        assert_eq!((backend.health(), backend.metrics.up.get()), ((Health::Up, 6), 1));
        assert_eq!(backend.observe(Outcome::Success, &config, 7), None);
        assert_eq!(backend.metrics.state_changes.get(), 1);
        assert_eq!(backend.health(), (Health::Up, 6), "since when it stands, not when it was last confirmed");
    }

    #[test]
    fn an_error_of_ours_is_not_the_backends() {
        let backend = backend(Health::Up);
        backend.connect_failed(ConnectErrorReason::NoPort, "no local port", 6);
        assert_eq!(backend.last_error(), None);
        backend.connect_failed(ConnectErrorReason::Refused, "refused", 7);
        assert_eq!(backend.last_error(), Some(LastError { text: "refused".into(), at_unix_ms: 7 }));
    }
}
