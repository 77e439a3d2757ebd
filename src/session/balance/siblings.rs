//! What a worker does for siblings that are stuck: it accepts for them.
//!
//! Owns the look at the other workers' beats, and the pace at which a stuck one's accept queues are emptied. One
//! sibling is the keeper of a stuck worker; if that one gets stuck too, another takes its place. Invariants: to be
//! mistaken harms nothing, since two workers may accept from one socket; after a stop, and of a socket that is retired,
//! nobody's accept queue is left behind, also that of a worker that doesn't hear of it; sessions that a stuck worker
//! has stay with it.

use super::seat::{BEAT, Seat};
use super::socket::SharedSocket;
use crate::drain::{Drain, Stage};
use crate::session::Worker;
use crate::session::acceptor::Acceptor;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How often the queues of a stuck worker are looked at. By the clock and not by readiness, since this is a rare
/// emergency: a client waits some milliseconds longer, and there is nothing to register and to take back.
const PACE: Duration = Duration::from_millis(5);

/// Looks after the siblings until none of them, nor this worker, accepts any more.
pub async fn look_after(worker: &Rc<Worker>, drain: &Drain) {
    let (seats, own) = (&worker.seats, &worker.seat);
    if seats.len() == 1 {
        return seats.all_retired().await;
    }
    let mut kept: Vec<Kept> = Vec::new();
    // A look judges by the beat that this worker had at the look before. So a pause of the whole process (SIGSTOP, a
    // frozen machine), after which all beats are old, makes nobody look stuck.
    let mut as_of = own.last_beat();
    let mut next_look = Instant::now() + BEAT;
    loop {
        let wake = if kept.is_empty() { next_look } else { next_look.min(Instant::now() + PACE) };
        tokio::select! {
            () = seats.all_retired() => return,
            () = sleep_until(wake) => {}
        }
        if Instant::now() >= next_look {
            kept.retain(|kept| kept.goes_on(worker));
            let stuck = seats.iter().filter(|seat| seat.index != own.index && seat.is_stuck(as_of));
            kept.extend(stuck.filter_map(|seat| Kept::take(seat, as_of, worker)));
            as_of = own.last_beat();
            next_look = Instant::now() + BEAT;
        }
        for kept in &mut kept {
            kept.serve(worker, drain).await;
        }
    }
}

/// A stuck worker that this one looks after.
struct Kept {
    seat: Arc<Seat>,
    /// Its last beat: any other one means that it is back.
    beat: u64,
    sockets: watch::Receiver<Vec<Arc<SharedSocket>>>,
    /// For each of its sockets.
    acceptors: Vec<(Arc<SharedSocket>, Acceptor)>,
    since: Instant,
    /// Whether the log has a line about it, which then gets its counterpart.
    said: bool,
}

impl Kept {
    /// Becomes the keeper of a stuck worker, unless there is one that works.
    fn take(seat: &Arc<Seat>, as_of: u64, worker: &Rc<Worker>) -> Option<Self> {
        let keeper = seat.keeper();
        let in_charge = keeper.is_some_and(|keeper| !worker.seats.of(keeper.into()).is_stuck(as_of));
        if in_charge || !seat.hand_keys(keeper, Some(worker.seat.index)) {
            return None;
        }
        let beat = seat.last_beat();
        seat.metrics.stuck.set(1);
        let said = worker.stuck.is_due(Instant::now().into_std());
        if said {
            tracing::warn!(
                worker = seat.index,
                silent_ms = as_of.saturating_sub(beat),
                "a worker is stuck: its sessions stand still; worker {} accepts in its place; restart the \
                 process if it does not come back",
                worker.seat.index
            );
        }
        let mut sockets = seat.watch_sockets();
        sockets.mark_changed();
        Some(Self { seat: Arc::clone(seat), beat, sockets, acceptors: Vec::new(), since: Instant::now(), said })
    }

    /// Whether it is still stuck and still ours.
    fn goes_on(&self, worker: &Worker) -> bool {
        let own = Some(worker.seat.index);
        if self.seat.keeper() != own {
            // This worker was stuck as well, and another one has taken over.
            return false;
        }
        if self.seat.last_beat() == self.beat {
            return true;
        }
        if self.said {
            let after = self.since.elapsed();
            tracing::info!(worker = self.seat.index, ?after, "a worker that was stuck is back");
        }
        self.seat.hand_keys(own, None);
        false
    }

    /// Takes what waits for the stuck worker; after the stop, ends its listening.
    async fn serve(&mut self, worker: &Rc<Worker>, drain: &Drain) {
        let stopping = drain.stage() > Stage::Serving;
        let waiting = if stopping { self.seat.inbox.close() } else { self.seat.inbox.take() };
        for arrival in waiting {
            // Its place was with the stuck worker.
            worker.place(arrival);
        }
        self.follow_sockets(worker);
        let mut all_closed = true;
        for (shared, acceptor) in &mut self.acceptors {
            let empty = match shared.get() {
                Some(socket) => acceptor.take_queue(&socket).await,
                None => true,
            };
            if shared.is_retired() && empty {
                self.seat.close(shared);
            } else {
                all_closed = false;
            }
        }
        if stopping && all_closed {
            worker.seats.retire(&self.seat);
        }
    }

    /// Accepts from what the stuck worker is to listen on by now.
    fn follow_sockets(&mut self, worker: &Rc<Worker>) {
        // The seat, which has the other end, is here.
        if !self.sockets.has_changed().unwrap_or_default() {
            return;
        }
        let mut before = std::mem::take(&mut self.acceptors);
        let acceptor = |socket: &Arc<SharedSocket>| {
            let known = before.iter().position(|(known, _)| Arc::ptr_eq(known, socket));
            let new = || (Arc::clone(socket), Acceptor::new(Arc::clone(socket), Rc::clone(worker)));
            known.map_or_else(new, |at| before.swap_remove(at))
        };
        self.acceptors = self.sockets.borrow_and_update().iter().map(acceptor).collect();
    }
}
