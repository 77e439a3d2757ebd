//! What all sessions of one worker thread share.
//!
//! Owns no task: the daemon's worker thread drives the engine and runs the acceptors with this in hand.

use super::Relayed;
use super::admission::Admission;
use crate::config::RelayMode;
use crate::drain::Living;
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

/// What a worker is made from; built by the daemon, moved into the thread.
pub struct WorkerSetup {
    pub index: u16,
    pub table: Arc<ArcSwap<RoutingTable>>,
    pub admission: Arc<Admission>,
    pub access: Option<AccessLog>,
    pub pipes: PipeBounds,
    pub relay: RelayMode,
    /// Limits what is said about a shortage of file descriptors, over all workers together.
    pub shortage: Arc<Every>,
}

/// One worker's own state, and its handles to what all workers share.
pub struct Worker {
    pub table: Arc<ArcSwap<RoutingTable>>,
    pub admission: Arc<Admission>,
    pub engine: Rc<RefCell<Engine<Relayed>>>,
    pub rng: RefCell<Rng>,
    pub access: Option<RefCell<AccessWriter>>,
    pub shortage: Arc<Every>,
    /// Sessions of this worker that have not ended.
    pub living: Living,
    index: u16,
    sessions: Cell<u64>,
    /// The use of pipes that the metrics know of.
    pipes_seen: Cell<PipeUse>,
}

impl Worker {
    pub fn new(setup: WorkerSetup) -> io::Result<Self> {
        Ok(Self {
            table: setup.table,
            admission: setup.admission,
            engine: Rc::new(RefCell::new(Engine::new(setup.pipes, setup.relay, Instant::now())?)),
            rng: RefCell::new(Rng::from_entropy()),
            access: setup.access.map(|log| RefCell::new(log.writer())),
            shortage: setup.shortage,
            living: Living::default(),
            index: setup.index,
            sessions: Cell::new(0),
            pipes_seen: Cell::default(),
        })
    }

    /// Hands buffered log lines on, and adds what this worker has counted for itself to the metrics.
    pub fn housekeep(&self, metrics: &Metrics) {
        if let Some(access) = &self.access {
            access.borrow_mut().flush();
        }
        let used = self.engine.borrow_mut().pipe_use();
        let seen = self.pipes_seen.replace(used);
        metrics.pipes_held.add(used.open as i64 - seen.open as i64);
        metrics.pipe_bytes_held.add(used.bytes as i64 - seen.bytes as i64);
        metrics.pipe_fallbacks.inc_by(used.fallbacks);
    }

    pub(super) fn next_session(&self) -> SessionId {
        let count = self.sessions.get() + 1;
        self.sessions.set(count);
        SessionId::new(self.index, count)
    }
}
