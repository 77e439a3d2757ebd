//! A listener as sessions, admin and daemon see it: its config, where it is bound, how many sockets are broken.
//!
//! Owns no socket: acceptors hold those.

use crate::config;
use crate::metrics::ListenerMetrics;
use crate::name::{BindAddr, ListenerName};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub struct Listener {
    pub name: ListenerName,
    pub config: config::Listener,
    pub metrics: ListenerMetrics,
    /// The actual addresses, with the ports that the kernel picked.
    pub bound: Vec<BindAddr>,
    broken: AtomicUsize,
}

impl Listener {
    #[must_use]
    pub fn new(config: config::Listener, metrics: ListenerMetrics, bound: Vec<BindAddr>) -> Self {
        metrics.up.set(1);
        Self { name: config.name.clone(), config, metrics, bound, broken: AtomicUsize::new(0) }
    }

    /// Sockets that can't accept just now; they are being bound again.
    #[must_use]
    pub fn broken(&self) -> usize {
        self.broken.load(Relaxed)
    }

    /// Counts a socket as broken for as long as the guard lives.
    pub fn mark_broken(self: &Arc<Self>) -> BrokenSocket {
        self.broken.fetch_add(1, Relaxed);
        self.metrics.up.set(0);
        BrokenSocket { listener: Arc::clone(self) }
    }
}

/// One socket of a listener that can't accept.
#[must_use = "the socket counts as broken only while this lives"]
pub struct BrokenSocket {
    listener: Arc<Listener>,
}

impl Drop for BrokenSocket {
    fn drop(&mut self) {
        if self.listener.broken.fetch_sub(1, Relaxed) == 1 {
            self.listener.metrics.up.set(1);
        }
    }
}
