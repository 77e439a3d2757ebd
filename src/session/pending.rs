//! The sessions of a worker that wait for something and have no relay yet, where an operator can see and end them.
//!
//! Owns one entry for each: a copy of what is known of it, made when it begins to wait and gone with the wait. So a
//! session costs nothing here before it waits, nothing while its backend answers at once ([`Watch::is_late`]), and
//! nothing once it is relayed; those are found in the engine. Invariants: an entry lives no longer than the wait that
//! it tells of; a session that is called off is dropped where it waits, and its guards and its record do the rest.
//!
//! Next: `listing`, which shows them beside those of the engine.

use super::Worker;
use super::close::CloseReason;
use super::queue::Watch;
use super::record::{Phase, Record};
use crate::config::DEFAULT_RULE;
use crate::name::{BackendAddr, ClientAddr, ListenerName, PoolName, SessionId};
use crate::pool::Backend;
use slab::Slab;
use std::cell::{Ref, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// Room for so many entries is kept when the last one has gone.
const KEPT: usize = 256;

/// What is known of one session.
#[derive(Clone, Debug)]
pub struct Sight {
    pub id: SessionId,
    pub client: ClientAddr,
    pub listener: ListenerName,
    pub rule: Option<Arc<str>>,
    pub pool: Option<PoolName>,
    /// The one that it has, or tries.
    pub backend: Option<Arc<str>>,
    pub backend_address: Option<BackendAddr>,
    pub phase: Phase,
    pub accepted: Instant,
    pub last_moved: Instant,
    pub bytes: [u64; 2],
}

impl Sight {
    pub fn of(record: &Record, backend: Option<&Backend>, last_moved: Instant) -> Self {
        let rule = match &record.rule {
            Some(rule) => Some(Arc::clone(&rule.name)),
            None => record.listener.config.routes.is_empty().then(|| DEFAULT_RULE.into()),
        };
        Self {
            id: record.id,
            client: record.client,
            listener: record.listener.name.clone(),
            rule,
            pool: record.pool.as_ref().map(|pool| pool.name.clone()),
            backend: backend.map(|backend| Arc::clone(&backend.label)),
            backend_address: backend.map(|backend| backend.address.clone()),
            phase: record.phase,
            accepted: record.accepted,
            last_moved,
            bytes: record.bytes(),
        }
    }
}

/// All that wait.
#[derive(Debug, Default)]
pub struct Pending {
    entries: RefCell<Slab<Entry>>,
    /// Those that are to end when their task is looked at next, and why; the first reason counts.
    called_off: RefCell<HashMap<SessionId, CloseReason>>,
}

#[derive(Debug)]
struct Entry {
    sight: Sight,
    waker: Waker,
}

impl Pending {
    /// All places there are; those that are free included.
    pub fn places(&self) -> std::ops::Range<usize> {
        0..self.entries.borrow().capacity()
    }

    /// Whoever is at this place.
    pub fn look_at(&self, place: usize) -> Option<Ref<'_, Sight>> {
        Ref::filter_map(self.entries.borrow(), |entries| Some(&entries.get(place)?.sight)).ok()
    }

    /// Ends this session by an operator's word, and says whether that is new; `None` if it isn't here.
    pub fn call_off(&self, id: SessionId) -> Option<bool> {
        let entries = self.entries.borrow();
        let (_, entry) = entries.iter().find(|(_, entry)| entry.sight.id == id)?;
        let is_new = !self.is_called_off(id);
        self.mark(id, CloseReason::ClosedByOperator);
        entry.waker.wake_by_ref();
        Some(is_new)
    }

    /// Ends the session at this place for this reason, if there is one.
    pub fn call_off_at(&self, place: usize, reason: CloseReason) {
        if let Some(entry) = self.entries.borrow().get(place) {
            self.mark(entry.sight.id, reason);
            entry.waker.wake_by_ref();
        }
    }

    /// Has each of them look again until when it may stay.
    pub fn wake_all(&self) {
        self.entries.borrow().iter().for_each(|(_, entry)| entry.waker.wake_by_ref());
    }

    /// Whether this session is to end.
    pub fn is_called_off(&self, id: SessionId) -> bool {
        self.called_off.borrow().contains_key(&id)
    }

    /// Why, for the record of a session that was dropped: nobody asks again.
    pub fn take_called_off(&self, id: SessionId) -> Option<CloseReason> {
        self.called_off.borrow_mut().remove(&id)
    }

    fn mark(&self, id: SessionId, reason: CloseReason) {
        self.called_off.borrow_mut().entry(id).or_insert(reason);
    }

    fn enter(&self, sight: Sight, waker: Waker) -> usize {
        self.entries.borrow_mut().insert(Entry { sight, waker })
    }

    fn leave(&self, place: usize) {
        let mut entries = self.entries.borrow_mut();
        entries.remove(place);
        if entries.is_empty() && entries.capacity() > KEPT {
            *entries = Slab::new();
        }
    }
}

/// One wait of a session, beside whatever it waits for: never ready; while it is polled and not dropped, the session
/// is seen.
pub struct Shown<'a> {
    record: &'a Record,
    worker: &'a Worker,
    backend: Option<&'a Backend>,
    last_moved: Instant,
    /// It is seen only once this says that it takes long.
    watch: Option<&'a Watch>,
    place: Option<usize>,
}

impl<'a> Shown<'a> {
    /// Of a session that has moved nothing yet.
    pub fn new(record: &'a Record, worker: &'a Worker) -> Self {
        Self { record, worker, backend: None, last_moved: record.accepted, watch: None, place: None }
    }

    /// With the backend that it has or tries.
    pub fn backend(self, backend: &'a Backend) -> Self {
        Self { backend: Some(backend), ..self }
    }

    pub fn last_moved(self, last_moved: Instant) -> Self {
        Self { last_moved, ..self }
    }

    /// Not before `watch`, if there is one, says that it takes long.
    pub fn once_late(self, watch: Option<&'a Watch>) -> Self {
        Self { watch, ..self }
    }

    /// Waits for `work`.
    pub async fn during<F: Future>(self, work: F) -> F::Output {
        tokio::select! {
            biased;
            done = work => done,
            never = self => match never {},
        }
    }
}

impl Future for Shown<'_> {
    type Output = Infallible;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Infallible> {
        let pending = &self.worker.pending;
        let is_shown = self.place.is_some() || self.watch.is_none_or(Watch::is_late);
        if let Some(at) = self.record.drain_deadline(self.backend).filter(|_| is_shown)
            && !self.worker.may_stay_until(at)
        {
            pending.mark(self.record.id, CloseReason::Drained);
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        match self.place {
            Some(place) => {
                if let Some(entry) = pending.entries.borrow_mut().get_mut(place) {
                    entry.waker.clone_from(context.waker());
                }
            }
            None if is_shown => {
                let sight = Sight::of(self.record, self.backend, self.last_moved);
                self.place = Some(pending.enter(sight, context.waker().clone()));
            }
            None => {}
        }
        Poll::Pending
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.worker.pending.leave(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(id: SessionId) -> Sight {
        let now = Instant::now();
        Sight {
            id,
            client: ClientAddr::Unix,
            listener: ListenerName::new("web"),
            rule: None,
            pool: None,
            backend: None,
            backend_address: None,
            phase: Phase::Route,
            accepted: now,
            last_moved: now,
            bytes: [0, 0],
        }
    }

    /// Two operators, or one and a deadline, in one turn of the worker.
    #[test]
    fn a_session_that_is_called_off_twice_ends_by_the_first_word_and_leaves_nothing() {
        let (pending, id) = (Pending::default(), SessionId::new(0, 7));
        let place = pending.enter(sight(id), Waker::noop().clone());
        assert_eq!((pending.call_off(id), pending.call_off(id)), (Some(true), Some(false)));
        pending.call_off_at(place, CloseReason::DrainDeadline);
        assert!(pending.is_called_off(id) && !pending.is_called_off(SessionId::new(0, 8)));
        pending.leave(place);
        assert_eq!(pending.take_called_off(id), Some(CloseReason::ClosedByOperator));
        assert!(!pending.is_called_off(id), "nothing of it is kept");
        assert_eq!(pending.call_off(id), None);
    }
}
