//! A table from a config alone, for whoever asks what would be without a process.
//!
//! Owns nothing that lasts: no socket is bound, nothing is probed. Every backend is up.

use super::Failure;
use super::start::resolve;
use crate::admission::{Around, Gate, Pressure, Process, SharedLimits};
use crate::clock::Now;
use crate::config::{Adjustments, Config, limits};
use crate::metrics::Metrics;
use crate::pool::Health;
use crate::session::close::CloseReason;
use crate::table::{Listener, RoutingTable};
use std::sync::Arc;

/// The table that a start with `config` would have once all backends were up. Fails where names can't be resolved.
pub fn table(config: &Config) -> Result<RoutingTable, Failure> {
    let metrics = Metrics::new().map_err(|error| Failure::Internal(format!("metrics: {error}")))?;
    let metrics = Arc::new(metrics);
    let resolution = resolve(config)?;
    let process = Arc::new(Process::new(limits::MAX_CONNECTIONS, Pressure::default(), &metrics));
    let shared = SharedLimits::new(config, &metrics, None);
    let around = Around { process: &process, shared: &shared, metrics: &metrics, bounded_by_fds: false };
    let listener = |wanted: &crate::config::Listener| {
        let handles = metrics.listener(&wanted.name, &CloseReason::LABELS);
        let gate = Gate::new(&wanted.name, &wanted.admission, around, None);
        Arc::new(Listener::new(wanted.clone(), handles, wanted.bind.clone(), gate, None))
    };
    let listeners = config.listeners.iter().map(listener).collect();
    let now = Now::read();
    let table = RoutingTable::build(config, &resolution, &Adjustments::default(), listeners, &metrics, None, now).table;
    for pool in &table.pools {
        pool.view().backends.iter().for_each(|backend| backend.set_health(Health::Up, now.unix_ms));
        pool.review(now.millis);
    }
    Ok(table)
}
