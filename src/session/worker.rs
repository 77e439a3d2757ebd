//! What all sessions of one worker thread share.
//!
//! Owns no task: the daemon's worker thread drives the engine and runs the acceptors with this in hand.

use super::balance::{self, Seat, Seats};
use super::mover::Mover;
use super::pending::Pending;
use super::{Arrival, Relayed, Session, hook};
use crate::clock::{Millis, millis};
use crate::config::RelayMode;
use crate::drain::{Drain, Living, Stage, run_local};
use crate::every::Every;
use crate::log::{AccessLog, AccessWriter};
use crate::metrics::Metrics;
use crate::name::SessionId;
use crate::net::relay::{Engine, PipeBounds, PipeUse};
use crate::rng::Rng;
use crate::table::RoutingTable;
use arc_swap::ArcSwap;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;

/// What a worker is made from; built by the daemon, moved into the thread.
pub struct WorkerSetup {
    pub index: u16,
    pub seats: Arc<Seats>,
    pub table: Arc<ArcSwap<RoutingTable>>,
    pub access: Option<AccessLog>,
    pub pipes: PipeBounds,
    pub relay: RelayMode,
    pub drain: Drain,
    /// Limits what is said about a shortage of file descriptors, over all workers together.
    pub shortage: Arc<Every>,
    /// Limits what is said about workers that are stuck.
    pub stuck: Arc<Every>,
}

/// One worker's own state, and its handles to what all workers share.
pub struct Worker {
    pub seats: Arc<Seats>,
    /// This worker's own.
    pub seat: Arc<Seat>,
    pub table: Arc<ArcSwap<RoutingTable>>,
    pub engine: Rc<RefCell<Engine<Relayed>>>,
    pub rng: RefCell<Rng>,
    pub access: Option<RefCell<AccessWriter>>,
    pub shortage: Arc<Every>,
    pub stuck: Arc<Every>,
    drain: Drain,
    /// Sessions of this worker that have not ended.
    pub living: Living,
    /// Tells whoever waits for a backend's answer that some backend's verdict has gone down.
    pub fallen: Notify,
    /// Those of them that wait and are not in the engine.
    pub(super) pending: Pending,
    mover: RefCell<Mover>,
    sessions: Cell<u64>,
    /// Sessions that the end of the process has cut.
    cut: Cell<usize>,
    /// The use of pipes that the metrics know of.
    pipes_seen: Cell<PipeUse>,
}

impl Worker {
    pub fn new(setup: WorkerSetup) -> io::Result<Self> {
        let seat = Arc::clone(setup.seats.of(setup.index.into()));
        setup.seats.beat(&seat, Instant::now());
        Ok(Self {
            seat,
            seats: setup.seats,
            table: setup.table,
            engine: Rc::new(RefCell::new(Engine::new(setup.pipes, setup.relay, Instant::now())?)),
            rng: RefCell::new(Rng::from_entropy()),
            access: setup.access.map(|log| RefCell::new(log.writer())),
            shortage: setup.shortage,
            stuck: setup.stuck,
            drain: setup.drain,
            living: Living::default(),
            fallen: Notify::new(),
            pending: Pending::default(),
            mover: RefCell::default(),
            sessions: Cell::new(0),
            cut: Cell::new(0),
            pipes_seen: Cell::default(),
        })
    }

    /// Finds a worker for a client that has been admitted: this one, unless another has clearly fewer sessions.
    pub fn place(self: &Rc<Self>, arrival: Arrival) {
        if self.seats.len() == 1 {
            return self.serve(arrival);
        }
        if let Some(arrival) = balance::settle(&self.seats, &self.seat, arrival) {
            self.serve(arrival);
        }
    }

    /// Begins a session.
    pub fn serve(self: &Rc<Self>, arrival: Arrival) {
        let session = Session::new(arrival, self);
        // Nobody waits for this task; what it must give back is held by guards, and `living` counts it.
        run_local(session.run());
    }

    /// Whether what is left is reset now, here and by the siblings. Whoever sees something come free asks this before
    /// it takes it: it may come of just that.
    pub(super) fn is_aborting(&self) -> bool {
        self.drain.stage() >= Stage::Aborting
    }

    /// Shows the siblings that this worker lives, hands buffered log lines on, and adds what it has counted for itself
    /// to the metrics.
    pub fn housekeep(&self, metrics: &Metrics) {
        hook::stall(self.seat.index);
        self.seats.beat(&self.seat, Instant::now());
        self.seat.metrics.stuck.set(0);
        self.seat.metrics.sessions.set(self.living.count() as i64);
        if let Some(access) = &self.access {
            access.borrow_mut().flush();
        }
        let now = Instant::now();
        {
            let (mut mover, mut engine) = (self.mover.borrow_mut(), self.engine.borrow_mut());
            if mover.look(&self.table.load(), &mut engine, &self.pending, now) {
                self.fallen.notify_waiters();
            }
            if let Some(spread) = self.drain.spread() {
                mover.thin_out(spread, &mut engine, &self.pending, now);
            }
        }
        let used = self.engine.borrow_mut().pipe_use();
        let seen = self.pipes_seen.replace(used);
        metrics.pipes_held.add(used.open as i64 - seen.open as i64);
        metrics.pipe_bytes_held.add(used.bytes as i64 - seen.bytes as i64);
        metrics.pipe_fallbacks.inc_by(used.fallbacks);
    }

    /// Whether that time hasn't come yet, for a session that is to end then. It is looked at again when it has.
    pub(super) fn may_stay_until(&self, at: Millis) -> bool {
        self.mover.borrow_mut().note_deadline(at);
        at > millis(Instant::now())
    }

    /// How many sessions the end of the process has cut here so far.
    #[must_use]
    pub fn cut(&self) -> usize {
        self.cut.get()
    }

    pub(super) fn count_cut(&self) {
        self.cut.set(self.cut.get() + 1);
    }

    pub(super) fn next_session(&self) -> SessionId {
        let count = self.sessions.get() + 1;
        self.sessions.set(count);
        SessionId::new(self.seat.index, count)
    }
}
