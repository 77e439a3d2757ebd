//! A listener as sessions, admin and daemon see it: its config, where it is bound, how many sockets are broken.
//!
//! Owns no socket: acceptors hold those.

use crate::admission::Gate;
use crate::config;
use crate::metrics::ListenerMetrics;
use crate::name::{BindAddr, ListenerName};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A configured listener that is bound.
pub struct Listener {
    pub name: ListenerName,
    pub config: config::Listener,
    pub metrics: ListenerMetrics,
    /// The actual addresses, with the ports that the kernel picked.
    pub bound: Vec<BindAddr>,
    /// Who may come in.
    pub gate: Arc<Gate>,
    /// A lock and not an atomic, so that the metric always agrees with it.
    broken: Mutex<usize>,
}

impl Listener {
    #[must_use]
    pub fn new(config: config::Listener, metrics: ListenerMetrics, bound: Vec<BindAddr>, gate: Gate) -> Self {
        metrics.up.set(1);
        Self { name: config.name.clone(), config, metrics, bound, gate: Arc::new(gate), broken: Mutex::new(0) }
    }

    /// Sockets that can't accept just now; they are being bound again.
    #[must_use]
    pub fn broken(&self) -> usize {
        *self.lock()
    }

    /// Counts a socket as broken for as long as the guard lives.
    pub fn mark_broken(self: &Arc<Self>) -> BrokenSocket {
        let mut broken = self.lock();
        *broken += 1;
        self.metrics.up.set(0);
        BrokenSocket { listener: Arc::clone(self) }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One socket of a listener that can't accept.
#[must_use = "the socket counts as broken only while this lives"]
pub struct BrokenSocket {
    listener: Arc<Listener>,
}

impl Drop for BrokenSocket {
    fn drop(&mut self) {
        let mut broken = self.listener.lock();
        *broken -= 1;
        self.listener.metrics.up.set(i64::from(*broken == 0));
    }
}
