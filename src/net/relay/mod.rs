//! The relay engine of a worker: bytes both ways for tens of thousands of sessions, on the worker's own thread.
//!
//! A session comes here once its backend is connected, and is from then on one small slab entry: no task, no
//! timer entry, and while idle no buffer and no pipe. Both sockets are registered once, edge-triggered, in an
//! epoll of the engine's own, whose descriptor the worker's runtime watches (`drive`). Owns fairness (a turn is
//! bounded in events, a session's part of it in bytes), the limits in time, and the honest end of each session
//! (`entry`). Knows no pool and no log: an [`Owner`] travels with each session and is told of its end.
//!
//! Read next: [`Engine::turn`], then `entry` (one session), `flow` (one direction), `pipe`.

mod drive;
mod entry;
mod flow;
mod pipe;
mod rate;
mod survey;
mod terms;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_limits;
#[cfg(test)]
mod tests_pace;
#[cfg(test)]
mod tests_rate;
#[cfg(test)]
mod tests_resume;

pub use drive::drive;
pub use pipe::PipeBounds;
pub use survey::Seen;
pub use terms::{Terms, Timeouts};

use crate::config::RelayMode;
use crate::name::{Direction, Side};
use crate::net::stream::Stream;
use entry::{Entry, Step};
use flow::{CHUNK, Shared};
use pipe::Pipes;
use rate::Waiting;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A point in time, as milliseconds since the engine began; or a span of so many.
pub type Millis = u64;

/// Events taken in one turn.
const EVENTS: usize = 256;
/// How long an event of a session without a large transfer is remembered: as long as such events keep coming, the
/// large transfers take smaller steps.
const LIGHT_MEMORY: Millis = 5;
/// Room for so many sessions is kept when the last one has ended.
const ENTRIES_KEPT: usize = 1_024;
/// The shortest time between two looks at every session for its quiet-time limit.
const SWEEP: Millis = 100;
/// For so many sessions the time between two looks grows by a millisecond: a look at one costs some 50 ns, so that all
/// of them cost less than one part in a thousand of a core.
const SESSIONS_PER_MILLI: usize = 16;

/// What has happened in a session before it came to the engine. By default nothing: both sockets are fresh.
#[derive(Debug, Default)]
pub struct Handover {
    /// What was read from the client and the backend has not taken yet.
    pub pending: Box<[u8]>,
    pub client_fin: Fin,
    /// What a read from the client has failed with: the kernel says so only once. What came before is still delivered.
    pub client_error: Option<Errno>,
    /// What a write to the backend has failed with. What the backend had sent before is still delivered.
    pub backend_error: Option<Errno>,
    /// When the last byte was moved; by default now.
    pub last_moved: Option<Instant>,
}

/// How far a side's FIN has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fin {
    #[default]
    Awaited,
    /// It was read; what came before it may still be on its way.
    Read,
    /// The other side has got it, after everything before it.
    PassedOn,
}

/// Why the owner wants a session to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The backend is believed to be down: it is reset at once, the client after what was read for it.
    BackendDown,
    /// The session has been chosen to move elsewhere.
    Rebalance,
    /// An operator wants it to end.
    Operator,
    /// The time in which it could have finished is over, for its backend or its listener.
    Drained,
    /// The same for the process.
    DrainDeadline,
}

/// How the relay of a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayEnd {
    /// Both sides have sent their FIN, and both were passed on.
    Complete,
    /// This side has reset the connection.
    Reset(Side),
    /// This side answers nothing any more, or can't be reached.
    Lost(Side, Errno),
    /// This host could not watch the sockets.
    NoResources,
    IdleTimeout,
    HalfCloseTimeout,
    /// This side's FIN ended the session, as a half-close time-out of zero asks for.
    HalfClosed(Side),
    /// The session has been in the engine for as long as it may.
    Lifetime,
    /// Its owner wanted it so, see [`Engine::review`].
    Ordered(Order),
    /// The process is stopping and the drain deadline has passed.
    Aborted,
    /// A bug of ours; the session was reset.
    Panicked,
}

impl RelayEnd {
    /// What it means that this side's socket has this error.
    #[must_use]
    pub fn of_error(side: Side, error: Errno) -> Self {
        match error {
            // ENOTCONN is what shutdown(2) says of a socket that a reset has torn down.
            Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN => Self::Reset(side),
            error => Self::Lost(side, error),
        }
    }

    /// Whether a slow but living reader of what is left may take its time.
    fn waits_for_progress(self) -> bool {
        !matches!(self, Self::Reset(Side::Client) | Self::Lost(Side::Client, _))
    }
}

/// What travels with a session through the engine: its guards and its record.
pub trait Owner {
    /// The sink of `direction` has taken so many bytes more.
    fn moved(&mut self, direction: Direction, bytes: usize);
    /// The source of `direction` has sent its FIN, and it was passed on: once for each direction, whatever ends the
    /// session later.
    fn ended_one_way(&mut self, direction: Direction);
    /// This side's socket is closed although the session still delivers something to the other.
    fn closed(&mut self, side: Side);
    /// The session is over and its sockets are closed.
    fn ended(self, end: RelayEnd);
}

/// What an engine's pipes take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipeUse {
    /// Pipes that exist, idle ones included.
    pub open: usize,
    /// Bytes that they could hold.
    pub bytes: usize,
    /// Times that a flow wanted a pipe and got none.
    pub fallbacks: u64,
}

/// What a turn has left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There may be more to do at once.
    Busy,
    /// Nothing until the next event or [`Engine::next_look`].
    Idle,
}

/// The bytes that large transfers may move.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// In one direction of one session at a time.
    step: usize,
    /// In all sessions together before events are looked at again: at least one step is taken.
    turn: usize,
}

/// While other sessions have events. Smaller steps serve these sooner and cost the large transfers more; the measured
/// trade is in docs/performance.md.
const BESIDE_OTHERS: Pace = Pace { step: 384 * 1024, turn: 3 * 384 * 1024 };
/// While there are large transfers alone: long pieces cost half of what short ones do, and nobody else waits.
const ALONE: Pace = Pace { step: 1024 * 1024, turn: 1024 * 1024 };

/// The sessions of one worker, and the epoll that watches their sockets.
pub struct Engine<O> {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    entries: Slab<Entry<O>>,
    /// Sessions with work left: in the middle of a large transfer, or with their budget spent.
    ready: VecDeque<usize>,
    /// Sessions whose end is decided but not yet delivered.
    closing: Vec<usize>,
    shared: Shared,
    started: Instant,
    /// Sessions that have bytes to read and no tokens for them.
    waiting: Waiting,
    next_sweep: Millis,
    next_closing: Millis,
    /// When a session without a large transfer had an event for the last time.
    last_light: Millis,
    /// Tells [`drive()`] of work that no socket tells of.
    woken: Rc<Notify>,
}

impl<O: Owner> Engine<O> {
    /// An engine whose pipes stay within `bounds`.
    pub fn new(bounds: PipeBounds, mode: RelayMode, now: Instant) -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS),
            entries: Slab::new(),
            ready: VecDeque::new(),
            closing: Vec::new(),
            shared: Shared::new(Pipes::new(bounds), mode),
            started: now,
            waiting: Waiting::default(),
            next_sweep: Millis::MAX,
            next_closing: Millis::MAX,
            last_light: 0,
            woken: Rc::default(),
        })
    }

    /// Takes over a session whose two sockets are connected and registered nowhere else.
    ///
    /// If the kernel refuses to watch them, the session ends at once.
    pub fn add(&mut self, client: Stream, backend: Stream, terms: impl Into<Terms>, owner: O, now: Instant) {
        self.resume(client, backend, Handover::default(), terms, owner, now);
    }

    /// As [`Self::add`], for a session in which something has happened already.
    pub fn resume(
        &mut self,
        client: Stream,
        backend: Stream,
        handover: Handover,
        terms: impl Into<Terms>,
        owner: O,
        now: Instant,
    ) {
        let last_moved = self.millis(handover.last_moved.unwrap_or(now));
        let now = self.millis(now);
        let key = self.entries.vacant_key();
        let watched = {
            let slot = self.entries.vacant_entry();
            let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::PRI | EventFlags::ET;
            let watch = |stream, side| epoll::add(&self.epoll, stream, token(slot.key(), side), interest);
            let watched = watch(&client, Side::Client).and_then(|()| watch(&backend, Side::Backend));
            let key = slot.key();
            let entry = slot.insert(Entry::new(client, backend, terms.into(), owner, now));
            entry.resume(handover, last_moved, now);
            watched.map_err(|_| key)
        };
        match watched {
            // No event need ever come of it: one socket may be closed by now and the other one full.
            Ok(()) if self.entries[key].is_closing() => {
                self.step(key, CHUNK, now);
                self.woken.notify_one();
            }
            Ok(()) => self.next_sweep = self.next_sweep.min(self.entries[key].deadline()),
            Err(key) => self.finish(key, RelayEnd::NoResources),
        }
    }

    /// What the pipes take now, and how often there was none to be had since the last call.
    pub fn pipe_use(&mut self) -> PipeUse {
        let Shared { pipes, fallbacks, .. } = &mut self.shared;
        PipeUse { open: pipes.open(), bytes: pipes.bytes(), fallbacks: std::mem::take(fallbacks) }
    }

    /// One bounded turn: what epoll tells of, then a share of the large transfers, then what is due.
    pub fn turn(&mut self, now: Instant) -> io::Result<Turn> {
        let now = self.millis(now);
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&rustix::event::Timespec::default()),
        )?;
        for event in &events {
            let (key, side) = untoken(event.data);
            let Some(entry) = self.entries.get_mut(key) else { continue };
            entry.notice(side, event.flags, now);
            if entry.is_bulk() {
                enqueue(&mut self.ready, key, entry);
            } else {
                // Who exchanges small messages waits for each of them: these go first.
                self.last_light = now;
                self.step(key, CHUNK, now);
            }
        }
        self.wake(now);
        self.carry_on(now);
        self.look_at_closing(now);
        self.sweep(now);
        // With room left for more, epoll has told all; what comes from now on makes the inner epoll ready anew.
        let busy = events.len() >= EVENTS || !self.ready.is_empty();
        self.events = events;
        Ok(if busy { Turn::Busy } else { Turn::Idle })
    }

    /// Sessions that have tokens again have work left.
    fn wake(&mut self, now: Millis) {
        while let Some((at, key)) = self.waiting.pop(now) {
            if let Some(entry) = self.entries.get_mut(key)
                && Waiting::is_due(entry.rates.as_mut(), at)
            {
                enqueue(&mut self.ready, key, entry);
            }
        }
    }

    /// Serves the sessions that have work left, in turn, each at most once.
    fn carry_on(&mut self, now: Millis) {
        let pace = if now < self.last_light + LIGHT_MEMORY { BESIDE_OTHERS } else { ALONE };
        self.shared.moved = 0;
        for _ in 0..self.ready.len() {
            if self.shared.moved >= pace.turn {
                break;
            }
            let Some(key) = self.ready.pop_front() else { break };
            if let Some(entry) = self.entries.get_mut(key)
                && std::mem::take(&mut entry.queued)
            {
                self.step(key, pace.step, now);
            }
        }
    }

    /// When the engine wants a turn even if nothing happens.
    #[must_use]
    pub fn next_look(&self) -> Option<Instant> {
        match self.next_sweep.min(self.next_closing).min(self.waiting.next()) {
            Millis::MAX => None,
            at => Some(self.started + Duration::from_millis(at)),
        }
    }

    /// Resets every session; how many there were.
    pub fn abort_all(&mut self) -> usize {
        let keys: Vec<usize> = self.entries.iter().map(|(key, _)| key).collect();
        for &key in &keys {
            self.finish(key, RelayEnd::Aborted);
        }
        keys.len()
    }

    /// Shows `judge` the owner and the age of every session that isn't ending; those for which it gives an order end
    /// with it. How many they are.
    pub fn review(&mut self, now: Instant, mut judge: impl FnMut(&O, Millis) -> Option<Order>) -> usize {
        let now = self.millis(now);
        let mut ordered = Vec::new();
        for (key, entry) in self.entries.iter().filter(|(_, entry)| !entry.is_closing()) {
            let (age, owner) = entry.age_and_owner(now);
            ordered.extend(judge(owner, age).map(|order| (key, order)));
        }
        for &(key, order) in &ordered {
            self.obey(key, order, now);
        }
        if self.next_closing < Millis::MAX {
            self.woken.notify_one();
        }
        ordered.len()
    }

    fn step(&mut self, key: usize, budget: usize, now: Millis) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        // One session harms one session: a bug that panics here resets this connection and no other.
        let step = catch_unwind(AssertUnwindSafe(|| entry.step(&mut self.shared, budget, now)))
            .unwrap_or(Step::End(RelayEnd::Panicked));
        match step {
            Step::Wait => {}
            Step::Again => enqueue(&mut self.ready, key, entry),
            Step::End(end) => return self.finish(key, end),
        }
        if let Some(rates) = &mut entry.rates {
            self.waiting.note(key, rates);
        }
        let deadline = entry.deadline();
        if entry.is_closing() {
            self.next_closing = self.next_closing.min(deadline);
            if !std::mem::replace(&mut entry.listed, true) {
                self.closing.push(key);
            }
        } else {
            // Moves the sweep forward only for a session that has just become half-closed.
            self.next_sweep = self.next_sweep.min(deadline);
        }
    }

    fn look_at_closing(&mut self, now: Millis) {
        if now < self.next_closing {
            return;
        }
        self.next_closing = Millis::MAX;
        for key in std::mem::take(&mut self.closing) {
            match self.entries.get_mut(key) {
                Some(entry) if entry.is_closing() => {
                    if entry.deadline() <= now {
                        self.step(key, CHUNK, now);
                    }
                }
                // It has ended, and its key may belong to another session by now.
                _ => continue,
            }
            if let Some(entry) = self.entries.get(key) {
                self.next_closing = self.next_closing.min(entry.deadline());
                self.closing.push(key);
            }
        }
    }

    /// Ends the sessions that were quiet for too long. Every session is looked at, but not more often than their
    /// deadlines and [`Self::sweep_pause`] ask for, so that no session needs a timer of its own.
    fn sweep(&mut self, now: Millis) {
        if now < self.next_sweep {
            return;
        }
        let mut next = Millis::MAX;
        let mut expired = Vec::new();
        for (key, entry) in self.entries.iter_mut().filter(|(_, entry)| !entry.is_closing()) {
            match if entry.deadline() <= now { entry.expired(now) } else { Step::Wait } {
                Step::Wait => next = next.min(entry.deadline()),
                over => expired.push((key, over)),
            }
        }
        for (key, over) in expired {
            match over {
                Step::End(end) => self.finish(key, end),
                Step::Wait | Step::Again => self.step(key, CHUNK, now),
            }
        }
        self.next_sweep = if next == Millis::MAX { next } else { next.max(now + self.sweep_pause()) };
    }

    fn sweep_pause(&self) -> Millis {
        SWEEP.max((self.entries.len() / SESSIONS_PER_MILLI) as Millis)
    }

    fn finish(&mut self, key: usize, end: RelayEnd) {
        let entry = self.entries.remove(key);
        // Guards and record are the owner's code; a bug in it must not take the worker down.
        let _ = catch_unwind(AssertUnwindSafe(|| entry.finish(end)));
        if self.entries.is_empty() {
            self.shared.pipes.trim();
            if self.entries.capacity() > ENTRIES_KEPT {
                self.entries = Slab::new();
                self.waiting.shrink();
            }
        }
    }

    fn millis(&self, now: Instant) -> Millis {
        now.saturating_duration_since(self.started).as_millis() as Millis
    }
}

/// Puts a session on the list of those that have work left, unless it is there already.
fn enqueue<O>(ready: &mut VecDeque<usize>, key: usize, entry: &mut Entry<O>) {
    if !std::mem::replace(&mut entry.queued, true) {
        ready.push_back(key);
    }
}

fn token(key: usize, side: Side) -> EventData {
    EventData::new_u64((key as u64) << 1 | side as u64)
}

fn untoken(data: EventData) -> (usize, Side) {
    let token = data.u64();
    ((token >> 1) as usize, if token & 1 == 0 { Side::Client } else { Side::Backend })
}
