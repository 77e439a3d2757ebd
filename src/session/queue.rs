//! Waiting for a place on a backend, in pools with a queue.
//!
//! Owns the wait of one session: how long it may take, what the client does meanwhile, and what became of it. Whose
//! turn it is, is decided in `pool::queue`; a place is claimed as any other. Invariants: a session waits for no longer
//! than `max_wait` in all; while it waits it holds no place; a wait that ends, however it does, is counted once.

use super::close::CloseReason;
use super::connect::{Attempt, Followed, Search};
use super::pending::Shown;
use super::record::{Phase, Record};
use super::worker::Worker;
use crate::clock::millis;
use crate::config::ClientFin;
use crate::metrics::QueueOutcome;
use crate::net::stream::Stream;
use crate::pool::Pool;
use crate::pool::queue::{Refused, Turn, Waiter};
use crate::sys;
use std::cell::Cell;
use std::future::pending;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{Interest, Ready};
use tokio::sync::Notify;
use tokio::time::sleep_until;

/// A search that takes longer than this is worth watching the client for a reset meanwhile.
const WATCH_CLIENT_AFTER: Duration = Duration::from_millis(20);

impl Search {
    /// A backend for a session that may not have one just now, as soon as it is its turn; one that is paced by no more
    /// than `patience`. The reason, if it may not wait or has waited in vain.
    pub(super) async fn queue(
        &mut self,
        record: &mut Record,
        worker: &Worker,
        patience: Duration,
        watch: Option<&Watch>,
    ) -> Result<Attempt, CloseReason> {
        let begun = Instant::now();
        let pool = Arc::clone(&self.pool);
        let waits = self.is_worth_waiting(begun, patience);
        let Some(config) = pool.queue else {
            return Err(if waits && self.has_tried_none() { CloseReason::BackendsFull } else { self.verdict });
        };
        if !waits {
            return Err(self.verdict);
        }
        record.phase = Phase::Queue;
        let left = config.max_wait.saturating_sub(self.waited);
        let mut waiter = self.line_up(&pool, begun, left)?;
        let mut stay = Stay::begin(&pool, record, begun);
        let mut deadline = pin!(sleep_until((begun + left).into()));
        let mut shown = Shown::new(stay.record, worker);
        let ended = loop {
            tokio::select! {
                biased;
                turn = waiter.turn() => if turn == Turn::Evicted {
                    break Err((QueueOutcome::Full, CloseReason::QueueFull));
                },
                () = has_left(watch) => break Err((QueueOutcome::Left, CloseReason::ClientLeft)),
                () = &mut deadline => break Err((QueueOutcome::Timeout, CloseReason::QueueTimeout)),
                never = &mut shown => match never {},
            }
            if worker.is_aborting() {
                // The place is one of those that a stop has just cut, and nobody is let in after them.
                pending::<()>().await;
            }
            if self.follow() == Some(Followed::Nowhere) {
                break Err((QueueOutcome::NoBackend, self.verdict));
            }
            let now = Instant::now();
            if let Some(attempt) = self.claim(worker, now, patience) {
                waiter.served(millis(now));
                break Ok(attempt);
            }
            if !self.is_worth_waiting(now, patience) {
                break Err((QueueOutcome::NoBackend, self.verdict));
            }
            waiter.failed();
        };
        drop(shown);
        self.waited += begun.elapsed();
        if !Arc::ptr_eq(&pool, &self.pool) {
            stay.record.pool = Some(Arc::clone(&self.pool));
        }
        match ended {
            Ok(attempt) => {
                stay.outcome = QueueOutcome::Served;
                stay.record.phase = Phase::Connect;
                Ok(attempt)
            }
            Err((outcome, reason)) => {
                stay.outcome = outcome;
                Err(reason)
            }
        }
    }

    /// A place in the queue, for what is left of the longest wait; the reason, if there is none to be had.
    fn line_up(&mut self, pool: &Pool, now: Instant, left: Duration) -> Result<Waiter, CloseReason> {
        let refused = |outcome, reason| {
            pool.metrics.queue().outcome(outcome).inc();
            Err(reason)
        };
        if left.is_zero() {
            return refused(QueueOutcome::Timeout, CloseReason::QueueTimeout);
        }
        let waiter = match pool.waiting.enter(self.place, !self.has_tried_none(), millis(now)) {
            Ok(waiter) => waiter,
            Err(Refused::Full) => return refused(QueueOutcome::Full, CloseReason::QueueFull),
            Err(Refused::Hopeless) => return refused(QueueOutcome::Hopeless, CloseReason::QueueHopeless),
        };
        self.place = Some(waiter.place());
        // After it has entered: who is refused keeps what it has.
        self.former = None;
        Ok(waiter)
    }
}

/// One wait, from its beginning until it is dropped.
struct Stay<'a> {
    pool: &'a Pool,
    record: &'a mut Record,
    begun: Instant,
    /// Gone, unless somebody says otherwise.
    outcome: QueueOutcome,
}

impl<'a> Stay<'a> {
    fn begin(pool: &'a Pool, record: &'a mut Record, begun: Instant) -> Self {
        pool.metrics.queue().waiting.inc();
        Self { pool, record, begun, outcome: QueueOutcome::Gone }
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        self.record.add_wait(took);
        let metrics = self.pool.metrics.queue();
        metrics.waiting.dec();
        metrics.outcome(self.outcome).inc();
        if self.outcome == QueueOutcome::Served {
            metrics.wait.observe(took.as_secs_f64());
        }
    }
}

/// What a client does while its session looks for a backend.
pub struct Watch {
    /// Its FIN means that it has left.
    fin_leaves: bool,
    left: Cell<bool>,
    late: Cell<bool>,
    told: Notify,
}

impl Watch {
    /// Of a client that `was_held` or not.
    pub fn new(pool: &Pool, was_held: bool) -> Self {
        let fin_leaves = !was_held && pool.queue.is_some_and(|queue| queue.client_fin == ClientFin::Leave);
        Self { fin_leaves, left: Cell::new(false), late: Cell::new(false), told: Notify::new() }
    }

    /// Whether the search takes so long that it is worth being seen.
    pub fn is_late(&self) -> bool {
        self.late.get()
    }

    /// Completes when the client has reset the connection. Its FIN is noted, where it means something; nothing is read.
    pub async fn is_reset(&self, client: &Stream) {
        tokio::time::sleep(WATCH_CLIENT_AFTER).await;
        self.late.set(true);
        // So that the search, which is asked first, sees it.
        tokio::task::yield_now().await;
        let mut interest = Interest::ERROR;
        if self.fin_leaves {
            interest |= Interest::READABLE;
        }
        if let Ok(watched) = sys::watch(client.as_fd(), interest) {
            while let Ok(mut ready) = watched.ready(interest).await {
                let state = ready.ready();
                if state.is_error() {
                    return;
                }
                if state.is_read_closed() {
                    self.left.set(true);
                    self.told.notify_waiters();
                    interest = Interest::ERROR;
                }
                ready.clear_ready_matching(Ready::READABLE);
            }
        }
        // Without a watch the search's own limits still hold.
        pending::<()>().await;
    }
}

/// Completes when the client has left; never where nobody watches for that.
async fn has_left(watch: Option<&Watch>) {
    match watch {
        Some(watch) => {
            while !watch.left.get() {
                watch.told.notified().await;
            }
        }
        None => pending().await,
    }
}
