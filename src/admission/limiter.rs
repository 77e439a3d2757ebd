//! The limits that one table of the config names: of one listener, or of all that share it.
//!
//! Owns their counts. What concerns no single client ([`Limiter::enter`]) can be asked before anybody is accepted; what
//! does ([`Limiter::enter_client`]) needs the address. Invariant: whoever enters leaves once, or gives back what a
//! client that was refused elsewhere has taken, so that one limit isn't used up by what another one refuses.

use super::clients::{Clients, Entered, Slot, TooMany};
use super::rate::{Bucket, Gcra};
use crate::clock::Nanos;
use crate::config::Limits;
use crate::metrics::{Bound, LimitMetrics, Metrics, Scope};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One table's limits and what counts towards them.
#[derive(Debug)]
pub struct Limiter {
    pub scope: Scope,
    pub name: String,
    pub limits: Limits,
    pub metrics: LimitMetrics,
    connections: AtomicUsize,
    rate: Option<Bucket>,
    clients: Option<Clients>,
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    pub bound: Bound,
    /// When it is worth to ask again, where that is known.
    pub retry_in: Option<Nanos>,
}

impl Limiter {
    #[must_use]
    pub fn new(scope: Scope, name: &str, limits: Limits, metrics: &Arc<Metrics>) -> Self {
        let knows_clients = limits.knows_clients();
        let clients = knows_clients.then(|| {
            let rate = limits.accept_rate_per_client.map(|rate| Gcra::new(rate, limits.burst_per_client));
            Clients::new(limits.client_prefix, limits.max_clients, limits.max_connections_per_client, rate)
        });
        Self {
            scope,
            name: name.to_owned(),
            limits,
            metrics: LimitMetrics::new(metrics, scope, name, limits.max_connections.is_some(), knows_clients),
            connections: AtomicUsize::new(0),
            rate: limits.accept_rate.map(|rate| Bucket::new(Gcra::new(rate, limits.burst))),
            clients,
        }
    }

    /// One more connection, whoever's it is.
    pub fn enter(&self, now: Nanos) -> Result<(), Reached> {
        if let Some(max) = self.limits.max_connections {
            let below = |connections| (connections < max).then_some(connections + 1);
            if self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).is_err() {
                return Err(Reached { bound: Bound::Connections, retry_in: None });
            }
        } else {
            self.connections.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(Err(wait)) = self.rate.as_ref().map(|rate| rate.take(now)) {
            self.leave();
            return Err(Reached { bound: Bound::Rate, retry_in: Some(wait) });
        }
        Ok(())
    }

    /// A connection is over.
    pub fn leave(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// A connection that has entered didn't come to be.
    pub fn give_back(&self) {
        self.leave();
        if let Some(rate) = &self.rate {
            rate.give_back();
        }
    }

    /// One more connection of this client; `None` if nobody counts it.
    pub fn enter_client(&self, address: IpAddr, now: Nanos) -> Result<Option<Slot>, Bound> {
        let Some(clients) = &self.clients else { return Ok(None) };
        match clients.enter(address, now) {
            Ok(Entered::Counted { slot, forgot_a_debt }) => {
                if let (true, Some(metrics)) = (forgot_a_debt, &self.metrics.clients) {
                    metrics.evictions.inc();
                }
                Ok(Some(slot))
            }
            Ok(Entered::Untracked) => {
                if let Some(metrics) = &self.metrics.clients {
                    metrics.untracked.inc();
                }
                Ok(None)
            }
            Err(TooMany::Connections) => Err(Bound::ConnectionsPerClient),
            Err(TooMany::Rate) => Err(Bound::RatePerClient),
        }
    }

    /// A client's connection is over.
    pub fn leave_client(&self, slot: &Slot) {
        if let Some(clients) = &self.clients {
            clients.leave(slot);
        }
    }

    /// A client's connection that has entered didn't come to be.
    pub fn give_back_client(&self, slot: &Slot) {
        if let Some(clients) = &self.clients {
            clients.give_back(slot);
        }
    }

    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many clients are remembered, and how many may be; `None` if none are.
    #[must_use]
    pub fn clients(&self) -> Option<(usize, usize)> {
        self.clients.as_ref().map(|clients| (clients.remembered(), clients.capacity()))
    }

    /// Shows in the metrics how things stand.
    pub fn publish(&self) {
        self.metrics.connections.set(self.connections() as i64);
        if let (Some(gauge), Some(max)) = (&self.metrics.max_connections, self.limits.max_connections) {
            gauge.set(max as i64);
        }
        if let (Some(metrics), Some((known, most))) = (&self.metrics.clients, self.clients()) {
            metrics.clients.set(known as i64);
            metrics.max_clients.set(most as i64);
        }
    }
}
