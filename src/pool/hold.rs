//! Hold: while no backend is up, a bounded number of a pool's clients stays and waits for one.
//!
//! Owns who may come in, what they may bring along, and whose turn it is when a backend is back: in order of arrival,
//! no faster than `release_rate`. Knows no socket and no clock: `now` is an argument, and a session is called by the
//! waker that it left here. All workers share one.
//!
//! The release needs no task of its own. The first in line keeps the time: it is told when its turn comes, and asks
//! again then; whoever asks lets all go whose turn it is, and calls the next to be first. A review of the pool does the
//! same, so that neither a backend that comes back is missed, nor a first in line whose worker is stuck waited for.
//!
//! Invariants: no more clients than `max_connections` are here, those that are just being connected included, and no
//! more bytes than `max_bytes`; a place is a guard, and the bytes are another, which outlives it until a backend has
//! taken them; who comes back from a backend that failed has its old place and its old deadline.

#[cfg(test)]
mod tests;

use crate::clock::Millis;
use crate::config::{self, Overflow};
use crate::metrics::{HoldMetrics, HoldOutcome};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

/// After a release that failed, nobody is released for so long: as the keeper looks at the pools.
const PAUSE: Millis = 250;
/// What a release that is late may catch up with: timers have a millisecond of grain, and a rate may be higher.
const CATCH_UP: Nanos = 10 * NANOS;
/// In a millisecond.
const NANOS: Nanos = 1_000_000;

type Nanos = u64;
/// In order of arrival.
type Ticket = u64;

/// The clients that one pool holds, and by which rules.
pub struct Hold {
    pub config: config::Hold,
    metrics: Arc<HoldMetrics>,
    line: Arc<Mutex<Line>>,
}

/// As many are held as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What a client that is held has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Search for a backend.
    Search,
    /// Wait until it is called, or until then; and then ask again.
    Wait { until: Millis },
    /// It has waited for `max_wait`.
    Expired,
    /// It had to give its place to one that came later.
    Displaced,
}

#[derive(Default)]
struct Line {
    /// Everybody who counts.
    places: BTreeMap<Ticket, Place>,
    /// Those of them that are not being connected just now.
    waiting: BTreeSet<Ticket>,
    next_ticket: Ticket,
    /// Nobody is released before.
    next_release: Nanos,
    /// When the last pause began.
    paused: Millis,
    bytes: u64,
    /// Nobody is held any more.
    dissolved: bool,
}

struct Place {
    /// Unless it waits: when it was released.
    released: Option<Millis>,
    /// Something has happened that it should ask about.
    called: bool,
    waker: Option<Waker>,
}

impl Place {
    fn call(&mut self) -> Option<Waker> {
        self.called = true;
        self.waker.take()
    }
}

impl Hold {
    /// Those whom `previous` (of the same pool in the table before) holds are held here as well, by the new rules.
    #[must_use]
    pub fn new(config: config::Hold, metrics: impl FnOnce() -> HoldMetrics, previous: Option<&Self>) -> Self {
        let metrics = previous.map_or_else(|| Arc::new(metrics()), |previous| Arc::clone(&previous.metrics));
        metrics.max_connections.set(config.max_connections as i64);
        metrics.max_bytes.set(config.max_bytes as i64);
        let line = previous.map(|previous| Arc::clone(&previous.line)).unwrap_or_default();
        Self { config, metrics, line }
    }

    /// A place for a client that came now. It may be there because no backend was available, or because all that it
    /// tried have failed (`refused`): then the next release waits a moment, if there isn't one under way already.
    pub fn enter(self: &Arc<Self>, refused: bool, now: Millis) -> Result<Held, Full> {
        let mut line = self.line();
        let mut displaced = None;
        if line.places.len() >= self.config.max_connections {
            self.metrics.outcomes[HoldOutcome::Overflow as usize].inc();
            let oldest = match self.config.overflow {
                Overflow::Newest => None,
                Overflow::Oldest => line.waiting.pop_first(),
            };
            displaced = Some(oldest.and_then(|oldest| line.places.remove(&oldest)).ok_or(Full)?);
        } else {
            self.metrics.held.inc();
        }
        if line.waiting.is_empty() {
            line.next_release = line.next_release.max(now * NANOS);
            if refused {
                line.pause(now);
            }
        }
        let ticket = line.next_ticket;
        line.next_ticket += 1;
        line.places.insert(ticket, Place { released: None, called: false, waker: None });
        line.waiting.insert(ticket);
        let next = if displaced.is_some() { line.call_first() } else { None };
        drop(line);
        let displaced = displaced.and_then(|mut place| place.call());
        wake(displaced.into_iter().chain(next));
        let deadline = now.saturating_add(self.config.max_wait.as_millis() as Millis);
        Ok(Held { hold: Arc::clone(self), ticket, deadline })
    }

    /// Room for what one client sends, of which nothing is taken yet.
    #[must_use]
    pub fn room(self: &Arc<Self>) -> HeldBytes {
        HeldBytes { hold: Arc::clone(self), count: 0 }
    }

    /// Lets all go whose turn it is; to be called whenever a backend may have become available, and now and then while
    /// there is one.
    pub fn release(&self, now: Millis) {
        let mut line = self.line();
        let mut called = line.release(self.config.release_rate, now);
        called.extend(line.call_first());
        drop(line);
        wake(called);
    }

    /// The pool holds nobody any more: all that are here may search at once, and as often as they come.
    pub fn dissolve(&self) {
        let mut line = self.line();
        line.dissolved = true;
        let called: Vec<Waker> = line.places.values_mut().filter_map(Place::call).collect();
        drop(line);
        wake(called);
    }

    /// Whether that has been said.
    #[must_use]
    pub fn is_dissolved(&self) -> bool {
        self.line().dissolved
    }

    /// Whether anybody waits to be released.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.line().waiting.is_empty()
    }

    /// How many clients are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.line().places.len()
    }

    /// How many bytes of theirs are kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.line().bytes
    }

    /// How often this has become of one, since the process began.
    #[must_use]
    pub fn count(&self, outcome: HoldOutcome) -> u64 {
        self.metrics.outcomes[outcome as usize].get()
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // It is whole at each instant.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// The generic cell rate algorithm of ITU-T I.371, in its virtual-scheduling form, with the whole line behind it.
    fn release(&mut self, rate: config::Rate, now: Millis) -> Vec<Waker> {
        let mut called = Vec::new();
        let time = now * NANOS;
        let mut any = false;
        while self.next_release <= time
            && let Some(ticket) = self.waiting.pop_first()
        {
            self.next_release = self.next_release.max(time.saturating_sub(CATCH_UP)) + rate.interval_nanos();
            any = true;
            if let Some(place) = self.places.get_mut(&ticket) {
                place.released = Some(now);
                called.extend(place.call());
            }
        }
        if any {
            called.extend(self.call_first());
        }
        called
    }

    fn call_first(&mut self) -> Option<Waker> {
        let first = self.waiting.first()?;
        self.places.get_mut(first)?.call()
    }

    fn pause(&mut self, now: Millis) {
        self.paused = now;
        self.next_release = self.next_release.max((now + PAUSE) * NANOS);
    }
}

fn wake(called: impl IntoIterator<Item = Waker>) {
    called.into_iter().for_each(Waker::wake);
}

/// A client's place in the hold. Dropped, it is free.
#[must_use = "the place is free once this is dropped"]
pub struct Held {
    hold: Arc<Hold>,
    ticket: Ticket,
    deadline: Millis,
}

impl Held {
    /// What to do now; `open` says whether the pool has a backend to give.
    #[must_use]
    pub fn ask(&self, open: bool, now: Millis) -> Turn {
        let mut guard = self.hold.line();
        let line = &mut *guard;
        let called = if open { line.release(self.hold.config.release_rate, now) } else { Vec::new() };
        let is_first = line.waiting.first() == Some(&self.ticket);
        let (next_release, dissolved) = (line.next_release.div_ceil(NANOS), line.dissolved);
        // Somebody who came sooner was released as well, and is back already: it is that one's turn again.
        let overtakes = !dissolved && line.waiting.first().is_some_and(|first| *first < self.ticket);
        let turn = match line.places.get_mut(&self.ticket) {
            None => Turn::Displaced,
            Some(place) if overtakes && place.released.is_some() && now < self.deadline => {
                (place.called, place.released) = (false, None);
                line.waiting.insert(self.ticket);
                Turn::Wait { until: self.deadline }
            }
            Some(place) => {
                place.called = false;
                match place.released {
                    Some(_) => Turn::Search,
                    None if dissolved => Turn::Search,
                    None if now >= self.deadline => Turn::Expired,
                    None if open && is_first => Turn::Wait { until: next_release.min(self.deadline) },
                    None => Turn::Wait { until: self.deadline },
                }
            }
        };
        drop(guard);
        wake(called);
        turn
    }

    /// Whether something has happened since it last asked; if not, `waker` is told when it does.
    pub fn poll_called(&self, waker: &Waker) -> Poll<()> {
        let mut line = self.hold.line();
        match line.places.get_mut(&self.ticket) {
            Some(place) if !place.called => {
                place.waker = Some(waker.clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// The search found no backend that could be connected to. Back to its place; and nobody else is released for a
    /// moment, unless the search began before that was known anyway.
    pub fn come_back(&self, now: Millis) {
        let mut line = self.hold.line();
        let Some(place) = line.places.get_mut(&self.ticket) else { return };
        if let Some(released) = place.released.take() {
            line.waiting.insert(self.ticket);
            if released > line.paused {
                line.pause(now);
            }
        }
    }

    /// It is connected, after so much time in here.
    pub fn serve(self, waited: Duration) {
        self.hold.metrics.wait.observe(waited.as_secs_f64());
        self.end(HoldOutcome::Served);
    }

    /// It waited for too long.
    pub fn expire(self) {
        self.end(HoldOutcome::Expired);
    }

    /// Frees the place, unless that is done.
    fn end(&self, outcome: HoldOutcome) {
        let mut line = self.hold.line();
        if line.places.remove(&self.ticket).is_none() {
            return;
        }
        let was_first = line.waiting.first() == Some(&self.ticket);
        line.waiting.remove(&self.ticket);
        let next = if was_first { line.call_first() } else { None };
        drop(line);
        self.hold.metrics.held.dec();
        self.hold.metrics.outcomes[outcome as usize].inc();
        wake(next);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end(HoldOutcome::Gone);
    }
}

/// Bytes of a client that count as kept, also when its place is free and no backend has them yet. Dropped, they count
/// no more.
pub struct HeldBytes {
    hold: Arc<Hold>,
    count: u64,
}

impl HeldBytes {
    /// Room for `wanted` bytes more, or for as many as the bounds allow.
    #[must_use = "there is no more room than that"]
    pub fn grow(&mut self, wanted: usize) -> usize {
        let config = &self.hold.config;
        let mut line = self.hold.line();
        let each = config.max_bytes_each.saturating_sub(self.count);
        let more = each.min(config.max_bytes.saturating_sub(line.bytes)).min(wanted as u64);
        line.bytes += more;
        drop(line);
        self.hold.metrics.bytes.add(more as i64);
        self.count += more;
        more as usize
    }

    /// So many bytes more, which are there already; whether they are within the bounds.
    pub fn add(&mut self, more: usize) -> bool {
        let within = self.grow(more);
        let beyond = (more - within) as u64;
        self.hold.line().bytes += beyond;
        self.hold.metrics.bytes.add(beyond as i64);
        self.count += beyond;
        beyond == 0
    }

    /// So many bytes fewer, or all.
    pub fn shrink(&mut self, fewer: usize) {
        let fewer = self.count.min(fewer as u64);
        self.count -= fewer;
        self.hold.line().bytes -= fewer;
        self.hold.metrics.bytes.add(-(fewer as i64));
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.shrink(self.count as usize);
    }
}
