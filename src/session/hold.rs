//! A client that is held: what it sends is kept up to the bounds, until the pool has a backend for it again.
//!
//! Owns a session from a search that found nobody, or nobody that could be connected to, to the next search that finds
//! somebody, or to its end. When its turn comes is `pool::hold`'s decision. Invariants: nothing has been sent to any
//! backend, so that what is kept goes to the first one alone; what is beyond the bounds isn't read, so that the client
//! is throttled and not cut; a FIN is kept like the bytes before it; a reset gives the place up at once.
//!
//! Next: `connect` for the search, `replay` and `net::relay` for what becomes of the bytes.

#[cfg(test)]
mod tests;

use super::Session;
use super::close::CloseReason;
use super::connect::{self, Search};
use super::pending::Shown;
use super::preread::Early;
use super::record::{Phase, Record};
use super::worker::Worker;
use crate::clock::millis;
use crate::name::{PoolName, Side};
use crate::net::relay::{Fin, Handover, RelayEnd};
use crate::net::stream::Stream;
use crate::pool::Pool;
use crate::pool::hold::{Held, HeldBytes, Hold, Turn};
use crate::sys;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, recv};
use std::future::{pending, poll_fn};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The largest read.
const READ: usize = 16 << 10;
/// What is kept is allocated in multiples of this: a client that sends byte by byte costs few moves, and none more
/// memory than this beyond what is counted.
const STEP: usize = 1 << 10;

/// Where a session goes whose search has ended with `reason`, if it may be held.
pub fn of(pool: &Pool, reason: CloseReason, record: &Record) -> Option<Arc<Hold>> {
    let hold = pool.hold.as_ref()?;
    let may_enter = match reason {
        CloseReason::NoBackend | CloseReason::ConnectFailed => true,
        // It may have waited for its turn all that time, and that is no failure of a backend.
        CloseReason::ConnectBudget => !record.failed().is_empty(),
        _ => false,
    };
    may_enter.then(|| Arc::clone(hold))
}

/// Holds `session`, whose search by `key` has ended with `reason`, and serves it as soon as somebody can.
pub async fn run(mut session: Session, hold: Arc<Hold>, reason: CloseReason, key: u64) {
    let Some(name) = session.record.pool.as_ref().map(|pool| pool.name.clone()) else { return session.close(reason) };
    session.record.phase = Phase::Hold;
    let refused = reason != CloseReason::NoBackend;
    let Ok(place) = hold.enter(refused, millis(Instant::now())) else { return session.close(CloseReason::HoldFull) };
    let worker = Rc::clone(&session.worker);
    let mut kept = Kept::of(session.early.take(), hold.room());
    // Of what it has tried in vain, the record shows the first search and the last one.
    let noted = session.record.failed().len();
    let mut waited = Duration::ZERO;
    loop {
        let begun = Instant::now();
        let seen = Shown::new(&session.record, &worker);
        let stop = seen.during(wait(&session.client, &place, &mut kept, &worker, &name)).await;
        let took = begun.elapsed();
        waited += took;
        session.record.add_wait(took);
        match stop {
            Stop::Search => {}
            Stop::Expired => {
                place.expire();
                return session.close(CloseReason::HoldTimeout);
            }
            Stop::Displaced => return session.close(CloseReason::HoldFull),
            Stop::ClientFailed(error) => {
                return session.close(CloseReason::of_relay(RelayEnd::of_error(Side::Client, error)));
            }
        }
        // The table may be another one by now.
        let Some(pool) = worker.table.load().pool(&name).cloned() else { return session.close(reason) };
        let mut search = Search::new(pool, key);
        search.was_held = true;
        session.record.failed_mut().truncate(noted);
        session.record.phase = Phase::Connect;
        match connect::connect(&session.client, &mut search, &mut session.record, &worker).await {
            Ok((backend, slot)) => {
                place.serve(waited);
                let handover = session.record.hand_over(kept);
                return session.begin(search, backend, slot, handover).await;
            }
            // Where nobody is held any more, there is nothing to come back to.
            Err(reason) if may_wait_on(reason) && !hold.is_dissolved() => place.come_back(millis(Instant::now())),
            Err(reason) => return session.close(reason),
        }
        session.record.phase = Phase::Hold;
    }
}

/// Whether a client that was released goes back to its place after a search that ended with `reason`. One that came too
/// late for the last free connection of a backend does as well.
fn may_wait_on(reason: CloseReason) -> bool {
    matches!(
        reason,
        CloseReason::NoBackend | CloseReason::ConnectFailed | CloseReason::ConnectBudget | CloseReason::BackendsFull
    )
}

/// Why a client waits no more.
enum Stop {
    Search,
    Expired,
    Displaced,
    /// Its socket has this error.
    ClientFailed(Errno),
}

/// Waits for the client's turn, and keeps what it sends meanwhile.
async fn wait(client: &Stream, place: &Held, kept: &mut Kept, worker: &Worker, name: &PoolName) -> Stop {
    // Without a watch it is still held, and what it sends waits in the kernel.
    let watched = sys::watch(client.as_fd(), Interest::READABLE | Interest::ERROR).ok();
    loop {
        let now = millis(Instant::now());
        let open = worker.table.load().pool(name).is_some_and(|pool| pool.has_good());
        let until = match place.ask(open, now) {
            Turn::Wait { until } => until,
            // Its turn is that of one whom a stop has just cut, and nobody is let in after them.
            Turn::Search if worker.is_aborting() => return pending().await,
            Turn::Search => return Stop::Search,
            Turn::Expired => return Stop::Expired,
            Turn::Displaced => return Stop::Displaced,
        };
        tokio::select! {
            biased;
            error = listen(watched.as_ref(), kept) => return Stop::ClientFailed(error),
            () = poll_fn(|context| place.poll_called(context.waker())) => {}
            () = tokio::time::sleep(Duration::from_millis(until.saturating_sub(now))) => {}
        }
    }
}

/// Keeps what the client sends, within the bounds, until its socket has an error.
async fn listen(client: Option<&AsyncFd<BorrowedFd<'_>>>, kept: &mut Kept) -> Errno {
    let Some(client) = client else { return pending().await };
    while kept.takes_more() {
        let Ok(mut ready) = client.readable().await else { return pending().await };
        match kept.fetch(client.get_ref()) {
            Ok(()) => {}
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(error) => return error,
        }
    }
    match client.ready(Interest::ERROR).await {
        Ok(_) => {
            rustix::net::sockopt::socket_error(client.get_ref()).ok().and_then(Result::err).unwrap_or(Errno::CONNRESET)
        }
        Err(_) => pending().await,
    }
}

/// What a client has sent, and no backend has got.
pub struct Kept {
    bytes: Vec<u8>,
    fin: Fin,
    room: HeldBytes,
    /// There was no room for more.
    full: bool,
}

impl Kept {
    fn new(room: HeldBytes) -> Self {
        Self { bytes: Vec::new(), fin: Fin::Awaited, room, full: false }
    }

    /// What was read before counts as well, also where it is more than may be kept: then no more is read.
    fn of(early: Option<Box<Early>>, mut room: HeldBytes) -> Self {
        let Some(early) = early else { return Self::new(room) };
        let full = !room.add(early.bytes.len());
        Self { bytes: early.bytes, fin: early.fin, room, full }
    }

    fn takes_more(&self) -> bool {
        self.fin == Fin::Awaited && !self.full
    }

    /// One read, if there is room for it.
    fn fetch<Fd: AsFd>(&mut self, client: Fd) -> Result<(), Errno> {
        let room = self.room.grow(READ);
        if room == 0 {
            self.full = true;
            return Ok(());
        }
        let mut buffer = [0; READ];
        let read = retry_on_intr(|| recv(&client, &mut buffer[..room], RecvFlags::empty())).map(|(count, _)| count);
        let count = read.unwrap_or(0);
        self.room.shrink(room - count);
        if read? == 0 {
            self.fin = Fin::Read;
        }
        if self.bytes.capacity() - self.bytes.len() < count {
            let more = (self.bytes.len() + count).next_multiple_of(STEP) - self.bytes.len();
            self.bytes.reserve_exact(more);
        }
        self.bytes.extend_from_slice(&buffer[..count]);
        Ok(())
    }

    /// For whoever gives it to a backend; and the count of it, as long as it is there.
    pub fn into_handover(self) -> (Handover, HeldBytes) {
        let handover = Handover { pending: self.bytes.into(), client_fin: self.fin, ..Handover::default() };
        (handover, self.room)
    }
}
