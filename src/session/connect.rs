//! Finding a backend for one session: attempts, failover, and the bound on all of it.
//!
//! Owns the loop "claim, connect, else claim again with what was tried". Which backend comes next is the pool's
//! decision, whose fault a failure is the one of `net::connect`. Invariants: no backend is tried twice; the attempts
//! together take no longer than the pool's budget; an error of ours never counts against a backend; a client that
//! resets gives up its place, one that only shuts down its side is still served.

use super::close::CloseReason;
use super::record::{FailedAttempt, Record};
use super::worker::Worker;
use crate::clock::{self, unix_ms};
use crate::net::connect::{self as net, ConnectError};
use crate::net::stream::Stream;
use crate::pool::{Pool, Slot, Tried};
use crate::sys;
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;

/// A connect that takes longer than this is worth watching the client for a reset meanwhile.
const WATCH_CLIENT_AFTER: Duration = Duration::from_millis(20);

/// A connected backend and the slot it occupies, or why there is none.
pub async fn connect(
    client: &Stream,
    pool: &Arc<Pool>,
    record: &mut Record,
    worker: &Worker,
) -> Result<(Stream, Slot), CloseReason> {
    super::hook::connect(record.id);
    record.pool = Some(Arc::clone(pool));
    let started = Instant::now();
    let connected = tokio::select! {
        biased;
        connected = try_backends(pool, record, worker, started) => connected,
        () = is_reset(client) => Err(CloseReason::ClientReset),
    };
    let wait = started.elapsed();
    record.connect_wait = Some(wait);
    if connected.is_ok() {
        pool.metrics.connect_wait.observe(wait.as_secs_f64());
    }
    connected
}

async fn try_backends(
    pool: &Arc<Pool>,
    record: &mut Record,
    worker: &Worker,
    started: Instant,
) -> Result<(Stream, Slot), CloseReason> {
    let limits = &pool.connect;
    let mut tried = Tried::default();
    let mut verdict = CloseReason::NoBackend;
    for attempt in 0..limits.attempts {
        let begun = if attempt == 0 { started } else { Instant::now() };
        let left = limits.budget.saturating_sub(begun - started);
        if left.is_zero() {
            return Err(CloseReason::ConnectBudget);
        }
        let claimed = pool.claim(&tried, clock::millis(begun), &mut worker.rng.borrow_mut());
        let Some(slot) = claimed else {
            if attempt == 0 {
                pool.metrics.no_backend.inc();
            }
            return Err(verdict);
        };
        if attempt > 0 {
            pool.metrics.failovers.inc();
        }
        let limit = limits.timeout.min(left);
        let result = tokio::time::timeout(limit, net::connect(&slot.address))
            .await
            .unwrap_or(Err(ConnectError(Errno::TIMEDOUT)));
        let took = begun.elapsed();
        match result {
            Ok(stream) => {
                slot.connect_succeeded();
                record.connected = Some((slot.backend(), took));
                return Ok((stream, slot));
            }
            Err(error) => {
                let outcome = error.reason().as_str();
                record.failed.push(FailedAttempt { backend: Arc::clone(&slot.label), outcome, took });
                slot.connect_failed(error.reason(), &error.to_string(), unix_ms());
                tried.push(slot.id);
                verdict = if error.is_ours() { CloseReason::NoResources } else { CloseReason::ConnectFailed };
                if error.affects_all_backends() {
                    return Err(verdict);
                }
            }
        }
    }
    if started.elapsed() >= limits.budget { Err(CloseReason::ConnectBudget) } else { Err(verdict) }
}

/// Completes when the client has reset the connection; its FIN alone says nothing.
async fn is_reset(client: &Stream) {
    tokio::time::sleep(WATCH_CLIENT_AFTER).await;
    if let Ok(watched) = sys::watch(client.as_fd(), Interest::ERROR)
        && let Ok(mut ready) = watched.ready(Interest::ERROR).await
    {
        ready.retain_ready();
    } else {
        // Without a watch the connect's own limits still hold.
        std::future::pending::<()>().await;
    }
}
