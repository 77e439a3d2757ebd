//! What the workers of a process know of each other: a seat for each.
//!
//! Owns the counts, the beats, the inboxes, the way for orders, and the list of listening sockets where siblings find
//! them. Decides when a worker counts as stuck. Invariants: a count is held by a [`Place`] guard; a seat is looked
//! after by one sibling at most; a socket is in its seat's list from before the first client to after the last one.

use super::inbox::Inbox;
use super::share::Seen;
use super::socket::{Heir, SharedSocket};
use crate::drain::Stage;
use crate::metrics::{Metrics, WorkerMetrics};
use crate::session::orders::{self, Order};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Milliseconds since the seats were made.
type Millis = u64;

/// How often a worker shows that it lives.
pub const BEAT: Duration = Duration::from_millis(250);

/// Without a beat for longer than this, a worker counts as stuck. Four beats, so that a worker that is merely busy, on
/// a machine that is merely slow, hardly ever does. If one does, its siblings accept for it for a while: that costs
/// nothing but a line in the log.
const STUCK: Millis = 1_000;

/// All seats, in the order of the workers' indexes.
pub struct Seats {
    all: Box<[Arc<Seat>]>,
    since: Instant,
    /// Workers that still accept.
    accepting: watch::Sender<usize>,
}

/// One worker as its siblings see it.
///
/// Each has two cache lines to itself at least (some processors fetch lines by pairs), so that counting sessions
/// doesn't slow down the worker next to it.
#[repr(align(128))]
pub struct Seat {
    pub index: u16,
    pub inbox: Inbox,
    /// Those that are listened on, and those that are being emptied.
    sockets: watch::Sender<Vec<Arc<SharedSocket>>>,
    orders: mpsc::Sender<Order>,
    /// Until the worker takes it.
    receiver: Mutex<Option<mpsc::Receiver<Order>>>,
    pub metrics: WorkerMetrics,
    /// Sessions now, and those that ended in the last one to two beats.
    sessions: AtomicUsize,
    /// Of these, the ones that ended since the last beat, and those that ended in the one before it.
    ended: AtomicUsize,
    leaving: AtomicUsize,
    /// When it was last alive; 0 before the first time.
    beat: AtomicU64,
    /// The sibling that accepts for it, or [`NOBODY`].
    keeper: AtomicU16,
    retired: AtomicBool,
}

const NOBODY: u16 = u16::MAX;

/// One session's place in a worker's count, until one to two beats after it is dropped.
///
/// So the count is of what a worker has had to do lately. Short connections come in so great a number that they spread
/// well by themselves; handing them over because of the few that happen to live at one moment would be a waste.
pub struct Place(Arc<Seat>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl Seats {
    /// A seat for each worker's share of listening sockets, from which it is ordered to accept.
    #[must_use]
    pub fn new(shares: Vec<Vec<Arc<SharedSocket>>>, metrics: &Metrics, now: Instant) -> Self {
        let seat = |(index, sockets): (u16, Vec<Arc<SharedSocket>>)| {
            let (orders, receiver) = mpsc::channel(orders::ROOM);
            // There is room for the first one.
            let _ = orders.try_send(Order::Listen(sockets.clone()));
            Arc::new(Seat {
                index,
                inbox: Inbox::default(),
                sockets: watch::Sender::new(sockets),
                orders,
                receiver: Mutex::new(Some(receiver)),
                metrics: metrics.worker(index),
                sessions: AtomicUsize::new(0),
                ended: AtomicUsize::new(0),
                leaving: AtomicUsize::new(0),
                beat: AtomicU64::new(0),
                keeper: AtomicU16::new(NOBODY),
                retired: AtomicBool::new(false),
            })
        };
        let all: Box<[_]> = (0..).zip(shares).map(seat).collect();
        Self { accepting: watch::Sender::new(all.len()), all, since: now }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    #[must_use]
    pub fn of(&self, worker: usize) -> &Arc<Seat> {
        &self.all[worker]
    }

    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Seat>> {
        self.all.iter()
    }

    /// A worker that has been silent for too long, if there is one.
    #[must_use]
    pub fn stuck(&self, now: Instant) -> Option<u16> {
        let now = now.saturating_duration_since(self.since).as_millis() as Millis;
        self.all.iter().find(|seat| seat.is_stuck(now)).map(|seat| seat.index)
    }

    /// Shows that the worker at `seat` is alive, and lets it forget what ended a while ago. For that worker alone.
    pub fn beat(&self, seat: &Seat, now: Instant) {
        let now = now.saturating_duration_since(self.since).as_millis() as Millis;
        seat.beat.store(now.max(1), Ordering::Relaxed);
        let ended = seat.ended.swap(0, Ordering::Relaxed);
        seat.sessions.fetch_sub(seat.leaving.swap(ended, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The worker at this seat accepts no more, and nobody need do it in its place. Counts once.
    pub fn retire(&self, seat: &Seat) {
        if !seat.retired.swap(true, Ordering::AcqRel) {
            self.accepting.send_modify(|accepting| *accepting -= 1);
        }
    }

    /// Ends all listening sockets with the process.
    pub fn advance(&self, stage: Stage) {
        let end = |socket: &Arc<SharedSocket>| match stage {
            Stage::Serving => {}
            Stage::Draining => socket.retire(Heir::Nobody),
            Stage::Aborting => socket.advance(stage),
        };
        for seat in self.iter() {
            seat.sockets.borrow().iter().for_each(end);
        }
    }

    /// Waits until all seats are retired.
    pub async fn all_retired(&self) {
        // The sender is `self`: it can't be gone.
        let _ = self.accepting.subscribe().wait_for(|accepting| *accepting == 0).await;
    }
}

impl Seat {
    /// Its listening sockets just now.
    #[must_use]
    pub fn sockets(&self) -> Vec<Arc<SharedSocket>> {
        self.sockets.borrow().clone()
    }

    /// For whoever does something when these are others.
    #[must_use]
    pub fn watch_sockets(&self) -> watch::Receiver<Vec<Arc<SharedSocket>>> {
        self.sockets.subscribe()
    }

    /// Room for an order to the worker; `None` if it has too many that it hasn't looked at.
    #[must_use]
    pub fn reserve_order(&self) -> Option<mpsc::OwnedPermit<Order>> {
        self.orders.clone().try_reserve_owned().ok()
    }

    /// Where the worker finds its orders; for that worker alone, once.
    #[must_use]
    pub fn take_orders(&self) -> Option<mpsc::Receiver<Order>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Has the worker listen on more sockets; its siblings know of them from now on.
    pub fn listen(&self, sockets: Vec<Arc<SharedSocket>>, room: mpsc::OwnedPermit<Order>) {
        if !sockets.is_empty() {
            self.sockets.send_modify(|list| list.extend(sockets.iter().cloned()));
            room.send(Order::Listen(sockets));
        }
    }

    /// Closes a socket from which nobody accepts any more.
    pub fn close(&self, socket: &Arc<SharedSocket>) {
        socket.close();
        self.sockets.send_if_modified(|list| {
            let before = list.len();
            list.retain(|known| !Arc::ptr_eq(known, socket));
            list.len() < before
        });
    }

    /// Waits until it has no listening sockets.
    pub async fn all_closed(&self) {
        // The sender is `self`: it can't be gone.
        let _ = self.sockets.subscribe().wait_for(Vec::is_empty).await;
    }

    /// Sessions now and lately.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// When the worker was last alive.
    #[must_use]
    pub fn last_beat(&self) -> Millis {
        self.beat.load(Ordering::Relaxed)
    }

    /// How a worker whose own last beat was at `now` sees this one: no clock is read for it.
    #[must_use]
    pub fn seen(&self, now: Millis) -> Seen {
        let beat = self.last_beat();
        let fresh = beat > 0 && beat + STUCK >= now;
        Seen { sessions: self.sessions(), takes: fresh && self.inbox.has_room() }
    }

    /// Whether the worker has been silent for too long at `as_of`; a worker that hasn't begun, or no longer
    /// accepts, isn't stuck.
    #[must_use]
    pub fn is_stuck(&self, as_of: Millis) -> bool {
        let beat = self.last_beat();
        beat > 0 && beat + STUCK < as_of && !self.retired.load(Ordering::Acquire)
    }

    /// One more session, if there are still as many as `seen`.
    #[must_use]
    pub fn claim(self: &Arc<Self>, seen: usize) -> Option<Place> {
        let claimed = self.sessions.compare_exchange(seen, seen + 1, Ordering::Relaxed, Ordering::Relaxed);
        claimed.is_ok().then(|| Place(Arc::clone(self)))
    }

    /// One more session.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Place {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(self))
    }

    /// The sibling that looks after it.
    #[must_use]
    pub fn keeper(&self) -> Option<u16> {
        let keeper = self.keeper.load(Ordering::Acquire);
        (keeper != NOBODY).then_some(keeper)
    }

    /// Makes `to` the one that looks after it, if that is `from` until now.
    pub fn hand_keys(&self, from: Option<u16>, to: Option<u16>) -> bool {
        let (from, to) = (from.unwrap_or(NOBODY), to.unwrap_or(NOBODY));
        self.keeper.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}
