//! Replay: until a backend has answered, what its client has sent is kept, and if it dies the next one gets the same.
//!
//! Owns a session between the connect and the first byte of the answer, in pools with `replay`; then, and as soon as
//! more was sent than is kept or the time is over, the engine takes over for good. Decides what a death is: a reset, a
//! loss, a FIN without a byte before it, or a verdict. Invariants: no backend gets a byte out of order or twice; after
//! the first byte of an answer nothing is sent again; an end that nobody replaces reaches the client as it came. The
//! answer itself is never read here, only looked at, so that the engine finds all of it.

#[cfg(test)]
mod tests;

use super::Session;
use super::close::CloseReason;
use super::connect::Search;
use super::pending::Shown;
use super::record::{self, Record};
use super::report;
use super::worker::Worker;
use crate::name::{Direction, Side};
use crate::net::relay::{Fin, Handover, RelayEnd};
use crate::net::stream::{Family, Stream};
use crate::pool::Slot;
use crate::sys;
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep_until;

/// What the access log says of a backend that was connected and died before it answered.
const UNANSWERED: &str = "unanswered";
/// The smallest and the largest read.
const READ: (usize, usize) = (4 << 10, 16 << 10);

/// Serves `session` on `backend`, and on what `search` finds when that dies, until the engine can have it. `handover`
/// is what the client has sent already.
pub async fn run(mut session: Session, search: Search, backend: Stream, slot: Slot, limit: u32, handover: Handover) {
    let limit = limit as usize;
    let worker = Rc::clone(&session.worker);
    let listener = &session.record.listener.config;
    let (idle, half_close) = (listener.idle_timeout, listener.half_close_timeout);
    let now = Instant::now();
    let outcome = match sys::watch(session.client.as_fd(), Interest::READABLE | Interest::ERROR) {
        Ok(client) if handover.pending.len() <= limit => {
            let budget = search.pool.connect.budget;
            let unanswered = Unanswered {
                client,
                record: &mut session.record,
                worker: &worker,
                kept: Kept { bytes: handover.pending.into(), fin: handover.client_fin, ..Kept::new(limit) },
                idle,
                half_close,
                budget,
                until: now + budget,
                last_moved: now,
            };
            unanswered.run(search, backend, slot).await
        }
        // What can't be watched can't be waited for, and of more than the limit nothing is sent again.
        _ => Outcome::Relay(backend, slot, handover),
    };
    match outcome {
        // Those that the engine has are told of their backend's end once, and this one would be late. One that has its
        // answer lives on.
        Outcome::Relay(backend, slot, _) if session.record.has_lost(&slot) && look(&backend).is_none() => {
            session.close(CloseReason::BackendDown);
        }
        Outcome::Relay(backend, slot, handover) => session.relay(backend, slot, handover),
        Outcome::Close(reason) => session.close(reason),
    }
}

/// How the phase ended.
enum Outcome {
    /// The engine goes on with this backend.
    Relay(Stream, Slot, Handover),
    Close(CloseReason),
}

/// Why there is nothing more to wait for with one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It has answered, or nothing may be sent again any more.
    Relay,
    /// The client's socket has this error.
    ClientFailed(Errno),
    /// It has sent something and then failed with this error; what it has sent is its answer.
    FailedAnswering(Errno),
    Died(Death),
}

/// How a backend came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// It has sent its FIN, and nothing before.
    Finished,
    Failed(Errno),
    /// Its probes say that it is down. The connection still stands.
    Condemned,
}

/// A session whose backend has not answered yet.
struct Unanswered<'a> {
    client: AsyncFd<BorrowedFd<'a>>,
    record: &'a mut Record,
    worker: &'a Worker,
    kept: Kept,
    idle: Duration,
    half_close: Duration,
    /// The time in which something may be sent again: from when the client began to wait for its answer, or from the
    /// connect while it has sent nothing.
    budget: Duration,
    until: Instant,
    last_moved: Instant,
}

impl Unanswered<'_> {
    async fn run(mut self, mut search: Search, mut backend: Stream, mut slot: Slot) -> Outcome {
        // Mostly the client has sent something by now, and to read it is cheaper than to be told. Then it waits for its
        // answer since the search began.
        let connect_wait = self.record.connect_wait();
        let since = self.last_moved.checked_sub(connect_wait);
        let mut stop = if self.kept.fin == Fin::Awaited { self.fetch(since) } else { None };
        loop {
            self.record.phase = record::Phase::Relay;
            let stopped = match stop.take() {
                Some(stop) => stop,
                None => self.serve(&backend, &slot).await,
            };
            let death = match stopped {
                Stop::Died(death) => death,
                stop => return self.hand_over(backend, slot, stop),
            };
            let (connected, traffic) = (self.record.connected.clone(), self.record.traffic.clone());
            let failure = match death {
                Death::Failed(error) => {
                    report::failed_unanswered(self.record, RelayEnd::of_error(Side::Backend, error))
                }
                Death::Finished => report::closed_unanswered(self.record),
                // That is its probes' business.
                Death::Condemned => None,
            };
            search.disappointed(&slot, UNANSWERED, failure, self.record);
            let noted = self.record.failed().len();
            self.record.phase = record::Phase::Connect;
            let waited = search.waited;
            // A connection that has failed is none, and its place is for whoever waits. Of one that still stands the
            // search disposes: two that waited for each other's places would wait in vain.
            search.former = Some((backend, slot)).filter(|_| !matches!(death, Death::Failed(_)));
            let next = tokio::select! {
                biased;
                next = search.next(self.record, self.worker, self.until, None) => next,
                _ = self.client.ready(Interest::ERROR) => Err(CloseReason::ClientReset),
            };
            self.until += search.waited.saturating_sub(waited);
            let former = search.former.take();
            match next {
                Ok(next) => {
                    search.pool.metrics.replays.inc();
                    (backend, slot) = next;
                    self.kept.begin_anew();
                    self.record.begin_anew();
                }
                Err(CloseReason::ClientReset) => return Outcome::Close(CloseReason::ClientReset),
                Err(reason) => {
                    let nobody_was_tried = self.record.failed().len() == noted;
                    if let Death::Failed(error) = death {
                        self.record.phase = record::Phase::Relay;
                        if nobody_was_tried {
                            // Then this was no try in vain but the session's backend.
                            self.record.failed_mut().pop();
                            self.record.connected = connected;
                        }
                        return Outcome::Close(CloseReason::of_relay(RelayEnd::of_error(Side::Backend, error)));
                    }
                    // Who has given it up for a place in the queue has nobody any more.
                    let Some((backend, slot)) = former else { return Outcome::Close(reason) };
                    self.record.phase = record::Phase::Relay;
                    if nobody_was_tried {
                        self.record.failed_mut().pop();
                    }
                    self.record.connected = connected;
                    // What was said against it already is not said again at the end.
                    self.record.traffic = traffic.filter(|_| failure.is_none());
                    if death == Death::Condemned && self.record.has_lost(&slot) {
                        // The workers have looked already, while the engine did not know of it.
                        return Outcome::Close(CloseReason::BackendDown);
                    }
                    return self.hand_over(backend, slot, Stop::Relay);
                }
            }
        }
    }

    fn hand_over(self, backend: Stream, slot: Slot, stop: Stop) -> Outcome {
        let (client_error, backend_error) = match stop {
            Stop::ClientFailed(error) => (Some(error), None),
            Stop::FailedAnswering(error) => (None, Some(error)),
            Stop::Relay | Stop::Died(_) => (None, None),
        };
        let client_fin = self.kept.fin;
        let pending = self.kept.into_owed();
        let last_moved = Some(self.last_moved);
        Outcome::Relay(backend, slot, Handover { pending, client_fin, client_error, backend_error, last_moved })
    }

    /// Gives the backend what is kept and what comes, until something ends that.
    async fn serve(&mut self, backend: &Stream, slot: &Slot) -> Stop {
        let Ok(watched) = sys::watch(backend.as_fd(), Interest::READABLE | Interest::WRITABLE) else {
            return Stop::Relay;
        };
        // In panic even one that is believed to be down gets its chance.
        let chosen_up = self.record.traffic.as_ref().is_some_and(|traffic| traffic.chosen_up);
        loop {
            if self.kept.is_too_much() {
                return Stop::Relay;
            }
            if let Err(error) = self.push(backend) {
                return after_failed_write(backend, error);
            }
            // Before the look at the verdict, so that none is missed.
            let fallen = self.worker.fallen.notified();
            if chosen_up && !slot.is_up() {
                // An answer that came meanwhile is an answer.
                return look(backend).unwrap_or(Stop::Died(Death::Condemned));
            }
            let owes = !self.kept.owed().is_empty();
            let listens = self.kept.fin == Fin::Awaited;
            // Cleared before the socket is used to the end, so that no edge is lost.
            let stop = tokio::select! {
                biased;
                ready = watched.readable() => match ready {
                    Ok(mut ready) => {
                        ready.clear_ready();
                        look(backend)
                    }
                    Err(_) => Some(Stop::Relay),
                },
                ready = watched.writable(), if owes => match ready {
                    Ok(mut ready) => {
                        ready.clear_ready();
                        None
                    }
                    Err(_) => Some(Stop::Relay),
                },
                ready = self.client.readable(), if listens => match ready {
                    Ok(mut ready) => {
                        ready.clear_ready();
                        self.fetch(None)
                    }
                    Err(_) => Some(Stop::Relay),
                },
                // After its FIN only a reset can come, which the engine will see as well.
                _ = self.client.ready(Interest::ERROR), if !listens => Some(Stop::Relay),
                () = sleep_until(self.deadline().into()) => Some(Stop::Relay),
                () = fallen => None,
                never = Shown::new(self.record, self.worker).backend(slot).last_moved(self.last_moved) => match never {},
            };
            if let Some(stop) = stop {
                return stop;
            }
        }
    }

    /// Reads what the client has sent, up to one read more than is kept. It waits for its answer since `waits_since`,
    /// or since now.
    fn fetch(&mut self, waits_since: Option<Instant>) -> Option<Stop> {
        loop {
            match self.kept.fetch(self.client.get_ref()) {
                Ok(0) | Err(Errno::AGAIN) => return None,
                Ok(count) => {
                    if count == self.kept.bytes.len() {
                        self.until = waits_since.unwrap_or_else(Instant::now) + self.budget;
                    }
                    if self.kept.is_too_much() {
                        return None;
                    }
                }
                Err(error) => return Some(Stop::ClientFailed(error)),
            }
        }
    }

    /// Gives the backend what it has not taken yet, and the client's FIN after all of it.
    fn push(&mut self, backend: &Stream) -> Result<(), Errno> {
        while !self.kept.owed().is_empty() {
            match send(backend, self.kept.owed(), SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.kept.taken += count;
                    self.last_moved = Instant::now();
                    self.record.moved(Direction::ToBackend, count as u64);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.kept.fin == Fin::Read {
            backend.send_fin()?;
            self.kept.fin = Fin::PassedOn;
            report::ended_one_way(self.record, Direction::ToBackend);
        }
        Ok(())
    }

    /// When the engine takes over although nothing has happened: also to end a session that was quiet for too long, or
    /// with the client's FIN, where that ends all of it.
    fn deadline(&self) -> Instant {
        let quiet = if self.kept.fin == Fin::PassedOn { self.half_close.min(self.idle) } else { self.idle };
        self.until.min(self.last_moved + quiet)
    }
}

/// What the client has sent, and how far the current backend has got with it.
struct Kept {
    bytes: Vec<u8>,
    /// So many of them the backend has taken.
    taken: usize,
    /// The client's FIN, on its way to this backend.
    fin: Fin,
    /// With more bytes than this, nothing is sent again.
    limit: usize,
}

impl Kept {
    fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), taken: 0, fin: Fin::Awaited, limit }
    }

    /// One read from the client. Nothing is its FIN.
    fn fetch<Fd: AsFd>(&mut self, client: Fd) -> Result<usize, Errno> {
        // As many as it has so far, so that few reads go through whatever is kept, and one byte more than may be.
        let room = self.bytes.len().clamp(READ.0, READ.1).min(self.limit + 1 - self.bytes.len());
        self.bytes.reserve_exact(room);
        let read = || recv(&client, spare_capacity(&mut self.bytes), RecvFlags::empty());
        let (count, _) = retry_on_intr(read)?;
        if count == 0 {
            self.fin = Fin::Read;
        }
        Ok(count)
    }

    fn is_too_much(&self) -> bool {
        self.bytes.len() > self.limit
    }

    /// What the backend has not taken yet.
    fn owed(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    fn into_owed(mut self) -> Box<[u8]> {
        self.bytes.drain(..self.taken);
        self.bytes.into()
    }

    /// For another backend, which has got nothing.
    fn begin_anew(&mut self) {
        self.taken = 0;
        if self.fin == Fin::PassedOn {
            self.fin = Fin::Read;
        }
    }
}

/// What the backend has to say; `None` if it's still silent. Of what it says nothing is taken, but for an error.
fn look(backend: &Stream) -> Option<Stop> {
    match retry_on_intr(|| recv(backend, &mut [0], RecvFlags::PEEK)) {
        Ok((0, _)) => Some(Stop::Died(Death::Finished)),
        Ok(_) => Some(Stop::Relay),
        Err(Errno::AGAIN) => None,
        Err(error) => Some(Stop::Died(Death::Failed(error))),
    }
}

/// The kernel has told of the end by refusing a write. What was sent before that end may still be there to be read.
fn after_failed_write(backend: &Stream, error: Errno) -> Stop {
    match look(backend) {
        // The end of file that a reset leaves behind, once it has been told.
        Some(Stop::Died(Death::Finished)) if backend.family() == Family::Tcp => Stop::Died(Death::Failed(error)),
        Some(Stop::Died(death)) => Stop::Died(death),
        Some(_) | None => Stop::FailedAnswering(error),
    }
}
