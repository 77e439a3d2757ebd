//! The limits that one table of the config names: of one listener, or of all that share it.
//!
//! Owns their counts, which go on when the numbers change. What concerns no single client ([`Limiter::enter`]) can be
//! asked before anybody is accepted; what does ([`Limiter::enter_client`]) needs the address. Invariant: whoever enters
//! leaves once, or gives back what a client that was refused elsewhere has taken, so that one limit isn't used up by
//! what another one refuses.

use super::clients::{Clients, Entered, Rules, Slot, TooMany};
use super::rate::{Bucket, Gcra};
use crate::clock::Nanos;
use crate::config::Limits;
use crate::metrics::{Bound, LimitMetrics, Metrics, Scope};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// One table's limits and what counts towards them.
#[derive(Debug)]
pub struct Limiter {
    pub scope: Scope,
    pub name: String,
    pub limits: Limits,
    pub metrics: LimitMetrics,
    /// Shared with those before it and after it that have other numbers.
    connections: Arc<AtomicUsize>,
    rate: Option<Bucket>,
    /// As the connections, unless clients are cut to another prefix.
    clients: Option<Arc<Clients>>,
    /// What it goes on from, until it does.
    before: Mutex<Option<Arc<Self>>>,
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    pub bound: Bound,
    /// When it is worth to ask again, where that is known.
    pub retry_in: Option<Nanos>,
}

/// The numbers for the table of clients.
fn rules(limits: &Limits) -> Rules {
    Rules {
        max_clients: limits.max_clients,
        max_connections: limits.max_connections_per_client,
        rate: limits.accept_rate_per_client.map(|rate| Gcra::new(rate, limits.burst_per_client)),
    }
}

impl Limiter {
    #[must_use]
    pub fn new(scope: Scope, name: &str, limits: Limits, metrics: &Arc<Metrics>) -> Self {
        let metrics = LimitMetrics::new(metrics, scope, name, limits.max_connections.is_some(), limits.knows_clients());
        Self::with(scope, name, limits, metrics, None)
    }

    /// The same with other numbers, in the place of `previous`, whose counts are its own from the beginning. What is
    /// owed goes over with [`take_over`](Self::take_over).
    #[must_use]
    pub fn following(previous: &Arc<Self>, limits: Limits) -> Self {
        let (scope, name) = (previous.scope, &previous.name);
        let (has_maximum, knows_clients) = (limits.max_connections.is_some(), limits.knows_clients());
        let metrics = LimitMetrics::following(&previous.metrics, scope, name, has_maximum, knows_clients);
        Self::with(scope, name, limits, metrics, Some(Arc::clone(previous)))
    }

    fn with(scope: Scope, name: &str, limits: Limits, metrics: LimitMetrics, before: Option<Arc<Self>>) -> Self {
        let clients = limits.knows_clients().then(|| {
            let kept = before.as_ref().and_then(|before| before.clients.as_ref());
            let kept = kept.filter(|kept| kept.prefix == limits.client_prefix);
            kept.map_or_else(|| Arc::new(Clients::new(limits.client_prefix, rules(&limits))), Arc::clone)
        });
        Self {
            scope,
            name: name.to_owned(),
            limits,
            metrics,
            connections: before.as_ref().map(|before| Arc::clone(&before.connections)).unwrap_or_default(),
            rate: limits.accept_rate.map(|rate| Bucket::new(Gcra::new(rate, limits.burst))),
            clients,
            before: Mutex::new(before),
        }
    }

    /// From now on it is asked, and what it follows isn't any more. Only the first call does anything.
    pub fn take_over(&self, now: Nanos) {
        let Some(before) = self.before.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        if let (Some(rate), Some(previous)) = (&self.rate, &before.rate) {
            rate.follow(previous, now);
        }
        if let Some(clients) = &self.clients {
            clients.renew(rules(&self.limits), now);
        }
    }

    /// Whether both count the same connections.
    #[must_use]
    pub fn counts_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.connections, &other.connections)
    }

    /// Counts connections that are there already. Each leaves as any other.
    pub fn adopt(&self, count: usize) {
        self.connections.fetch_add(count, Ordering::Relaxed);
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
        self.metrics.publish(self.connections(), self.limits.max_connections, self.clients());
    }
}
