//! The part of a commit that can't fail: another config becomes the one that runs.
//!
//! Owns what is built for it and in which order: limits, listeners, the table, and then the sockets change hands.
//! Invariant: who is accepted by a socket finds the ways of its listener in the table.

use super::super::listening::{Bound, Opened};
use super::super::parking;
use super::super::start::Shared;
use super::{Live, forget_at};
use crate::admission::{Around, Gate, SharedLimits};
use crate::clock::Now;
use crate::config::{self, AdminState, Config};
use crate::log;
use crate::name::BindAddr;
use crate::net::listen::Options;
use crate::session::balance::SharedSocket;
use crate::session::close::CloseReason;
use crate::table::{Listener, RoutingTable};
use std::sync::Arc;

/// The sockets of one address that no worker has yet.
type Unserved = Vec<Arc<SharedSocket>>;

impl Live {
    /// Makes this config the one that runs, on these sockets; those that no worker has yet, and what is left out of it.
    pub(super) fn replace(
        &mut self,
        config: Arc<Config>,
        places: Vec<Vec<(Opened, Options)>>,
        before: Option<&[Bound]>,
    ) -> (Vec<Unserved>, Vec<String>) {
        let Shared { table, metrics, .. } = &self.shared;
        let previous = before.map(|_| table.load_full());
        let limits = SharedLimits::new(&config, metrics, before.map(|_| &self.shared_limits));
        let addresses = addresses(&places, before.unwrap_or_default());
        let listeners = self.listeners(&config, &limits, addresses, previous.as_deref());
        let mut built = RoutingTable::build(
            &config,
            &self.resolution,
            &self.adjustments,
            listeners.clone(),
            metrics,
            previous.as_deref(),
            Now::read(),
        );
        let warnings = built.warnings.iter().map(ToString::to_string).collect();
        if before.is_none() {
            built.table.generation = self.first_generation;
        }
        metrics.generation.set(built.table.generation as i64);
        self.forget_at = forget_at(&built.table);
        table.store(Arc::new(built.table));
        // The ways of all listeners are there, old and new.
        let new = self.hand_sockets(&config, &listeners, places, before.unwrap_or_default());
        (self.config, self.shared_limits) = (config, limits);
        self.shared.config.store(Arc::clone(&self.config));
        log::set_level(self.log_level());
        (new, warnings)
    }

    /// A listener for each of the config, at these addresses: the one of before, if nothing of it differs.
    fn listeners(
        &self,
        config: &Config,
        limits: &SharedLimits,
        addresses: Vec<Vec<BindAddr>>,
        previous: Option<&RoutingTable>,
    ) -> Vec<Arc<Listener>> {
        let Shared { metrics, process, .. } = &self.shared;
        let bounded_by_fds = config.runtime.max_connections.is_none();
        let around = Around { process, shared: limits, metrics, bounded_by_fds };
        let same_limits =
            self.config.limits == config.limits && self.config.runtime.max_connections.is_none() == bounded_by_fds;
        let listener = |(wanted, addresses): (&config::Listener, Vec<BindAddr>)| {
            let known = previous.and_then(|table| table.listener(&wanted.name));
            if let Some(same) = known.filter(|it| same_limits && it.config == *wanted && it.bound == addresses) {
                return Arc::clone(same);
            }
            let handles = metrics.listener(&wanted.name, &CloseReason::LABELS);
            let gate = Gate::new(&wanted.name, &wanted.admission, around, known.map(|listener| &*listener.gate));
            let listener = Listener::new(wanted.clone(), handles, addresses, gate, known.map(|listener| &**listener));
            let said = self.adjustments.listeners.get(wanted.name.as_str());
            listener.set_admin(said.copied().unwrap_or_default());
            Arc::new(listener)
        };
        config.listeners.iter().zip(addresses).map(listener).collect()
    }

    /// Gives each socket to its listener; those that no worker has yet.
    fn hand_sockets(
        &mut self,
        config: &Config,
        listeners: &[Arc<Listener>],
        places: Vec<Vec<(Opened, Options)>>,
        before: &[Bound],
    ) -> Vec<Unserved> {
        let mut new = Vec::new();
        for ((listener, wanted), own) in listeners.iter().zip(&config.listeners).zip(places) {
            for ((opened, options), address) in own.into_iter().zip(&wanted.bind) {
                let (name, wanted) = (listener.name.clone(), address.clone());
                let bound = match opened {
                    Opened::Kept(index) => {
                        let Some(bound) = before.get(index).cloned() else { continue };
                        bound.sockets.iter().for_each(|socket| socket.hand_to(Arc::clone(listener)));
                        Bound { listener: name, wanted, options, ..bound }
                    }
                    Opened::New { sockets, apart } => {
                        let Some(actual) = sockets.first().map(|socket| socket.address.clone()) else { continue };
                        let share = |socket| SharedSocket::new(Arc::new(socket), options.clone(), Arc::clone(listener));
                        let sockets: Unserved = sockets.into_iter().map(share).map(Arc::new).collect();
                        let parked = if listener.admin() == AdminState::Enabled {
                            new.push(sockets.clone());
                            Vec::new()
                        } else {
                            sockets.iter().map(|shared| parking::take(shared)).collect()
                        };
                        Bound { listener: name, wanted, actual, options, sockets, apart, parked }
                    }
                };
                self.bound.push(bound);
            }
        }
        new
    }
}

/// Where each listener is bound.
fn addresses(places: &[Vec<(Opened, Options)>], before: &[Bound]) -> Vec<Vec<BindAddr>> {
    let address = |(opened, _): &(Opened, Options)| match opened {
        Opened::Kept(index) => before.get(*index).map(|bound| bound.actual.clone()),
        Opened::New { sockets, .. } => sockets.first().map(|socket| socket.address.clone()),
    };
    places.iter().map(|own| own.iter().filter_map(address).collect()).collect()
}
