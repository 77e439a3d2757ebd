//! The queue of a pool: who waits for a place on a backend, and whose turn it is.
//!
//! Owns the waiting list and the order in it. It gives nobody a place: whoever sees one come free *nudges*, and the
//! first in order that isn't nudged yet tries to claim, as everybody claims. What can go wrong then is only that a
//! place is free while nobody tries, and one rule rules that out: as long as there may be one, there is a *baton*. A
//! nudge is a baton for one place, or for as many as there are (`more`). Who holds one tries; if it is served with
//! `more`, it hands the baton on. If it gets nothing and might have had any backend, there was nothing, and the baton
//! is gone; if it may not have every backend (it is *choosy*: it has failed on some), the next after it gets the baton.
//! Who leaves with a baton hands it on. A baton that finds everybody nudged makes one of them hand on what it leaves;
//! one that finds nobody, because the others are trying, makes the next who is served do that.
//!
//! Pure but for its lock: time is an argument, and a task is woken by its `Waker`, after the lock was given back.
//! Invariants: who is in the list is there once, and leaves it by its guard; nobody enters a list that is full.
//!
//! Next: `flow`, for who can't make it in time; `session/queue.rs`, for the waiting itself.

mod flow;

use super::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, fence};
use crate::clock::Millis;
use crate::config;
use flow::Flow;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

/// A place in the order of arrival: the lower, the earlier.
pub type Ticket = u64;

/// Who waits.
#[derive(Debug)]
pub struct WaitingList {
    /// How many wait: written with the lock held, read by everybody.
    waiting: AtomicUsize,
    state: Mutex<State>,
}

/// What a list goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub max_waiting: usize,
    pub max_wait: Millis,
    pub order: config::Order,
}

impl Terms {
    #[must_use]
    pub fn new(config: &config::Queue) -> Self {
        let max_wait = config.max_wait.as_millis() as Millis;
        Self { max_waiting: config.max_waiting, max_wait, order: config.order }
    }
}

/// Why somebody may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// As many wait as may.
    Full,
    /// As places come free, it would not get one in time.
    Hopeless,
}

/// What has happened to one that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It should try to claim.
    Try,
    /// It had to make room for a newer one, and waits no longer.
    Evicted,
}

#[derive(Debug)]
struct State {
    terms: Terms,
    next: Ticket,
    /// Those whose turn it isn't.
    resting: BTreeMap<Ticket, Entry>,
    /// Those that are about to try.
    nudged: BTreeMap<Ticket, (Entry, Baton)>,
    /// How many of both are not choosy.
    easy: usize,
    /// A baton has ended where all whom it could go to had none of what it told of, or try already.
    left: bool,
    flow: Flow,
    /// The latest moment that anybody has told of.
    now: Millis,
}

#[derive(Debug)]
struct Entry {
    since: Millis,
    choosy: bool,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug)]
struct Baton {
    /// There may be more than one place.
    more: bool,
    /// Which way it goes through the list.
    newest_first: bool,
    /// Who came later than it began has not been reckoned with.
    begun: Ticket,
}

impl WaitingList {
    #[must_use]
    pub fn new() -> Self {
        let terms = Terms::new(&config::Queue::default());
        let state = State {
            terms,
            next: 0,
            resting: BTreeMap::new(),
            nudged: BTreeMap::new(),
            easy: 0,
            left: false,
            flow: Flow::new(),
            now: 0,
        };
        Self { waiting: AtomicUsize::new(0), state: Mutex::new(state) }
    }

    /// Goes by other terms from now on. Those that wait may know another set of backends than those that will come, so
    /// that none of them speaks for all any more.
    pub fn renew(&self, terms: Terms) {
        let mut state = self.state();
        state.terms = terms;
        state.easy = 0;
        let State { resting, nudged, .. } = &mut *state;
        for entry in resting.values_mut().chain(nudged.values_mut().map(|(entry, _)| entry)) {
            entry.choosy = true;
        }
    }

    /// Whether nobody waits. One look at an atomic.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Since when the one that waits longest does so.
    #[must_use]
    pub fn oldest(&self) -> Option<Millis> {
        if self.is_empty() {
            return None;
        }
        let state = self.state();
        let (_, entry) = state.oldest()?;
        Some(entry.since)
    }

    /// How long one that joins the list now would wait, as places have come free of late; `None` if nobody waits.
    #[must_use]
    pub fn expected_wait(&self, now: Millis) -> Option<Duration> {
        if self.is_empty() {
            return None;
        }
        let mut state = self.state();
        state.advance(now);
        let waiting = state.len();
        (waiting > 0).then(|| state.flow.expected_wait(waiting))
    }

    /// Joins the end of the list; or `place`, for one that had that place before. Who is `choosy` may not have every
    /// backend.
    ///
    /// To be called by one that has found nothing to claim. Fails where it may not wait.
    pub fn enter(self: &Arc<Self>, place: Option<Ticket>, choosy: bool, now: Millis) -> Result<Waiter, Refused> {
        let mut state = self.state();
        state.advance(now);
        let wakers = state.make_room(place.is_some())?;
        let ticket = place.unwrap_or(state.next);
        state.next = state.next.max(ticket + 1);
        // Of one that might have had any backend it's known that there was nothing, or that it will try. Else somebody
        // has to look: a place may have come free just before this one is seen here.
        let somebody_must_try = state.easy == 0;
        state.easy += usize::from(!choosy);
        let entry = Entry { since: now, choosy, waker: None };
        let woken = if place.is_some() {
            // Those behind it may have been told of a place that it would have been told of.
            let baton = state.baton(true, false);
            state.nudged.insert(ticket, (entry, baton));
            None
        } else {
            state.resting.insert(ticket, entry);
            if somebody_must_try { state.nudge(true, None) } else { None }
        };
        self.count(&state);
        drop(state);
        // See `Count::release`.
        fence(Ordering::SeqCst);
        wakers.into_iter().flatten().chain(woken).for_each(Waker::wake);
        Ok(Waiter { list: Arc::clone(self), ticket, baton: None })
    }

    /// A place may have come free; or several, with `more`. To be called after that is visible.
    pub fn nudge(&self, more: bool) {
        fence(Ordering::SeqCst);
        self.nudge_seen(more);
    }

    /// The same for a place of which [`Count::release`](super::count::Count::release) has told.
    pub fn nudge_seen(&self, more: bool) {
        if !self.is_empty() {
            let woken = self.state().nudge(more, None);
            wake(woken);
        }
    }

    /// As [`nudge`](Self::nudge) with `more`, by somebody who knows what time it is.
    pub fn review(&self, now: Millis) {
        fence(Ordering::SeqCst);
        if !self.is_empty() {
            let woken = {
                let mut state = self.state();
                state.advance(now);
                state.nudge(true, None)
            };
            wake(woken);
        }
    }

    fn count(&self, state: &State) {
        self.waiting.store(state.len(), Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole at each instant, and nothing in here panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for WaitingList {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn len(&self) -> usize {
        self.resting.len() + self.nudged.len()
    }

    fn advance(&mut self, now: Millis) {
        self.now = self.now.max(now);
        let anybody = self.len() > 0;
        self.flow.advance(self.now, anybody, self.terms.max_wait);
    }

    fn oldest(&self) -> Option<(Ticket, &Entry)> {
        let resting = self.resting.first_key_value().map(|(&ticket, entry)| (ticket, entry));
        let nudged = self.nudged.first_key_value().map(|(&ticket, (entry, _))| (ticket, entry));
        resting.into_iter().chain(nudged).min_by_key(|(ticket, _)| *ticket)
    }

    fn newest_first(&self) -> bool {
        match self.terms.order {
            config::Order::Fifo => false,
            config::Order::Lifo => true,
            config::Order::Adaptive => {
                self.oldest().is_some_and(|(_, oldest)| self.now.saturating_sub(oldest.since) > self.terms.max_wait / 2)
            }
        }
    }

    /// Whether one more may wait; who is to be woken because it had to go for that, and who because of what that one
    /// leaves.
    fn make_room(&mut self, returns: bool) -> Result<[Option<Waker>; 2], Refused> {
        let waiting = self.len();
        let is_fifo = self.terms.order == config::Order::Fifo;
        if is_fifo && !returns && waiting > 0 && self.flow.is_hopeless(waiting, self.terms.max_wait) {
            return Err(Refused::Hopeless);
        }
        if waiting < self.terms.max_waiting {
            return Ok([None, None]);
        }
        match self.oldest() {
            Some((oldest, _)) if self.newest_first() => {
                let (evicted, baton) = self.remove(oldest);
                let next = baton.and_then(|baton| self.nudge(baton.more, None));
                Ok([evicted.and_then(|entry| entry.waker), next])
            }
            _ => Err(Refused::Full),
        }
    }

    fn remove(&mut self, ticket: Ticket) -> (Option<Entry>, Option<Baton>) {
        let (entry, baton) = match self.nudged.remove(&ticket) {
            Some((entry, baton)) => (Some(entry), Some(baton)),
            None => (self.resting.remove(&ticket), None),
        };
        self.easy -= usize::from(entry.as_ref().is_some_and(|entry| !entry.choosy));
        (entry, baton)
    }

    fn baton(&self, more: bool, newest_first: bool) -> Baton {
        Baton { more, newest_first, begun: self.next }
    }

    fn hand(&mut self, ticket: Ticket, baton: Baton) -> Option<Waker> {
        let mut entry = self.resting.remove(&ticket)?;
        let waker = entry.waker.take();
        self.nudged.insert(ticket, (entry, baton));
        waker
    }

    /// The turn of the first in order, or of the first after one that hands its baton on. Who is to be woken.
    fn nudge(&mut self, more: bool, from: Option<(Ticket, Baton)>) -> Option<Waker> {
        let baton = match from {
            None => self.baton(more, self.newest_first()),
            Some((_, baton)) => Baton { more, ..baton },
        };
        let next = match (from, baton.newest_first) {
            (None, false) => self.resting.first_key_value(),
            (None, true) => self.resting.last_key_value(),
            (Some((ticket, _)), false) => self.resting.range(ticket + 1..).next(),
            (Some((ticket, _)), true) => self.resting.range(..ticket).next_back(),
        };
        if let Some((&ticket, _)) = next {
            return self.hand(ticket, baton);
        }
        // It has come to the end; those that came meanwhile stand behind where it began.
        if let Some((&ticket, _)) = self.resting.range(baton.begun..).next() {
            let baton = self.baton(more, false);
            return self.hand(ticket, baton);
        }
        // All that could be told will try anyway, and one of them looks after what is left; or else whoever of those
        // that are trying already is served: by then, others may have come.
        match self.nudged.last_entry() {
            Some(mut nudged) => nudged.get_mut().1.more = true,
            None => self.left = !self.resting.is_empty(),
        }
        None
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// One that waits, until it is dropped.
#[derive(Debug)]
#[must_use = "a waiter that is dropped at once waits for nothing"]
pub struct Waiter {
    list: Arc<WaitingList>,
    ticket: Ticket,
    /// While it tries.
    baton: Option<Baton>,
}

impl Waiter {
    /// Its place, for one that may have to come back.
    #[must_use]
    pub fn place(&self) -> Ticket {
        self.ticket
    }

    /// Completes when there is something to do: to try, and then to say what came of it by [`served`](Self::served)
    /// or [`failed`](Self::failed).
    pub async fn turn(&mut self) -> Turn {
        poll_fn(|context| self.poll_turn(context.waker())).await
    }

    fn poll_turn(&mut self, waker: &Waker) -> Poll<Turn> {
        let mut state = self.list.state();
        if let Some((entry, baton)) = state.nudged.remove(&self.ticket) {
            // Back before it tries, so that what comes free meanwhile finds it again.
            state.resting.insert(self.ticket, entry);
            self.baton = Some(baton);
            return Poll::Ready(Turn::Try);
        }
        match state.resting.get_mut(&self.ticket) {
            Some(entry) => {
                if entry.waker.as_ref().is_none_or(|known| !known.will_wake(waker)) {
                    entry.waker = Some(waker.clone());
                }
                Poll::Pending
            }
            None => Poll::Ready(Turn::Evicted),
        }
    }

    /// It tried and got nothing.
    pub fn failed(&mut self) {
        let mut state = self.list.state();
        // One that was evicted meanwhile hands the baton on as it leaves.
        let Some(entry) = state.resting.get(&self.ticket).or_else(|| state.nudged.get(&self.ticket).map(|(e, _)| e))
        else {
            return;
        };
        let choosy = entry.choosy;
        if let Some(baton) = self.baton.take().filter(|_| choosy) {
            let woken = state.nudge(baton.more, Some((self.ticket, baton)));
            drop(state);
            wake(woken);
        }
    }

    /// It tried, and has its place now.
    pub fn served(mut self, now: Millis) {
        let woken = {
            let mut state = self.list.state();
            state.advance(now);
            state.flow.serve();
            // It may have been nudged once more while it tried.
            let (_, again) = state.remove(self.ticket);
            let rest = self.baton.take().is_some_and(|baton| baton.more) | std::mem::take(&mut state.left);
            self.list.count(&state);
            match again {
                Some(baton) => state.nudge(baton.more || rest, None),
                None if rest => state.nudge(true, None),
                None => None,
            }
        };
        wake(woken);
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let woken = {
            let mut state = self.list.state();
            let now = state.now;
            state.advance(now);
            let (_, again) = state.remove(self.ticket);
            self.list.count(&state);
            let left = self.baton.take();
            let more = [left, again].into_iter().flatten().fold(None, |more, baton| Some(more.is_some() || baton.more));
            more.and_then(|more| state.nudge(more, None))
        };
        wake(woken);
    }
}
