//! How full the kernel's accept queues are, asked at each scrape.
//!
//! Owns the sums over a listener's TCP sockets, of which each worker has one. The kernel tells of no other kind: a
//! listener on unix sockets alone has no such metric.

use crate::metrics::{AcceptQueueMetrics, Metrics};
use crate::name::ListenerName;
use crate::session::balance::Seats;
use crate::sys::{self, AcceptQueue};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What is shown, for as long as somebody listens.
pub struct AcceptQueues {
    seats: Arc<OnceLock<Arc<Seats>>>,
    metrics: Arc<Metrics>,
    shown: Mutex<BTreeMap<ListenerName, AcceptQueueMetrics>>,
}

impl AcceptQueues {
    pub fn new(seats: Arc<OnceLock<Arc<Seats>>>, metrics: Arc<Metrics>) -> Self {
        Self { seats, metrics, shown: Mutex::default() }
    }

    /// Brings the gauges up to date.
    pub fn refresh(&self) {
        let sums = self.seats.get().map(|seats| sums(seats)).unwrap_or_default();
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.retain(|name, _| sums.contains_key(name));
        for (name, AcceptQueue { length, limit }) in sums {
            let gauges = shown.entry(name).or_insert_with_key(|name| self.metrics.accept_queue(name));
            gauges.length.set(length.into());
            gauges.limit.set(limit.into());
        }
    }
}

fn sums(seats: &Seats) -> BTreeMap<ListenerName, AcceptQueue> {
    let mut sums: BTreeMap<ListenerName, AcceptQueue> = BTreeMap::new();
    for shared in seats.iter().flat_map(|seat| seat.sockets()) {
        if let Some(queue) = shared.get().and_then(|socket| sys::accept_queue(&*socket)) {
            let sum = sums.entry(shared.listener().name.clone()).or_default();
            sum.length = sum.length.saturating_add(queue.length);
            sum.limit = sum.limit.saturating_add(queue.limit);
        }
    }
    sums
}
