//! One client connection, from the moment it was accepted to the hand-over to the relay.
//!
//! Read it top to bottom and you have read the life of a session: `acceptor` accepts, `admission` admits, `balance`
//! may hand it to another worker while it is no more than an [`Arrival`], `proxy` reads whose connection it is,
//! [`Session::run`] routes and connects, `preread` reads what its route depends on, `hold` may keep it while no
//! backend is up, `replay` may wait for the first answer, the worker's relay engine moves the bytes, and `record`
//! ends it, once, whatever happened; `report` tells the pool what became of its backend, and `mover` ends what must
//! go elsewhere. `listing` tells which sessions there are, from the engine and from `pending`, where those are seen
//! that wait for something else. Owns no pool and no table; it asks them. Invariants: every count is held by a guard in
//! [`Session`] or in what it turns into, so that a cancelled task or a panic gives everything back; the client's stream
//! resets unless the relay closes it in order.

pub mod acceptor;
pub mod balance;
pub mod close;
mod connect;
mod hold;
mod hook;
pub mod listing;
mod mover;
pub mod orders;
mod pending;
mod preread;
mod proxy;
mod queue;
mod record;
mod replay;
mod report;
mod worker;

pub use worker::{Worker, WorkerSetup};

use crate::admission::Permit;
use crate::clock::{Millis, millis};
use crate::name::{ClientAddr, Direction, Side};
use crate::net::keepalive::{give_up_after, idle_before_probe};
use crate::net::relay::{self, Handover, RelayEnd, Terms, Timeouts};
use crate::net::stream::Stream;
use crate::pool::{Backend, Pool, Slot};
use crate::table::Listener;
use balance::Place;
use close::CloseReason;
use connect::Search;
use preread::{Early, Way};
use record::{Phase, Record};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// Without progress for this long, a peer that does not read forfeits what is left before a reset is passed on.
pub const LINGER: Duration = Duration::from_secs(10);

/// A client that has been admitted, before it is a session of some worker: dropped, it is reset and leaves no trace.
pub struct Arrival {
    pub client: Stream,
    pub address: ClientAddr,
    pub listener: Arc<Listener>,
    pub permit: Permit,
    /// In the count of the worker that is to serve it; `None` while that is open, and where there is one worker only.
    pub place: Option<Place>,
    pub accepted: Instant,
}

/// A client that has been admitted and has no backend yet.
pub struct Session {
    client: Stream,
    record: Box<Record>,
    worker: Rc<Worker>,
    /// What was read before there was a backend; `None` where nothing was.
    early: Option<Box<Early>>,
}

impl Session {
    pub fn new(arrival: Arrival, worker: &Rc<Worker>) -> Self {
        let Arrival { client, address, listener, permit, place, accepted } = arrival;
        let mut record = Box::new(Record::new(address, listener, accepted, worker));
        record.hold(permit, place);
        Self { client, record, worker: Rc::clone(worker), early: None }
    }

    /// The whole life up to the relay, unless it is called off before.
    pub async fn run(self) {
        let (worker, id) = (Rc::clone(&self.worker), self.record.id);
        let mut life = pin!(Some(self.live()));
        poll_fn(|context| {
            if worker.pending.is_called_off(id) {
                // Here and not later, so that its record knows why.
                life.set(None);
            }
            life.as_mut().as_pin_mut().map_or(Poll::Ready(()), |life| life.poll(context))
        })
        .await;
    }

    /// Ends the session itself where it goes no further.
    async fn live(mut self) {
        if self.client.take_error().is_err() {
            // Reset while it waited in the accept queue: no backend needs to hear of it.
            return self.close(CloseReason::ClientReset);
        }
        let is_proxied = self.record.listener.config.accept_proxy.is_some();
        if is_proxied {
            // Boxed, so that it takes no room where it isn't used.
            if let Err(stop) = Box::pin(proxy::receive(&mut self)).await {
                return stop.end(self);
            }
        }
        self.record.phase = Phase::Route;
        let (pool, key) = match preread::find(&self.client, &mut self.record, &self.worker) {
            Way::To(pool, key) => (pool, key),
            Way::Nowhere(reason) => return self.close(reason),
            Way::Open(question) => {
                // The time for a PROXY header is one of its own.
                let since = if is_proxied { Instant::now() } else { self.record.accepted };
                // Boxed, so that it takes no room where nothing is read.
                match Box::pin(preread::run(&mut self, question, since)).await {
                    Ok(found) => found,
                    Err(reason) => return self.close(reason),
                }
            }
        };
        if pool.sheds() && !pool.admits(millis(Instant::now()), &mut self.worker.rng.borrow_mut()) {
            self.record.pool = Some(pool);
            return self.close(CloseReason::Shed);
        }

        self.record.phase = Phase::Connect;
        let mut search = Search::new(pool, key);
        match connect::connect(&self.client, &mut search, &mut self.record, &self.worker).await {
            Ok((backend, slot)) => {
                let handover = self.early.take().map_or_else(Handover::default, |early| early.into_handover());
                self.begin(search, backend, slot, handover).await;
            }
            Err(reason) => match hold::of(&search.pool, reason, &self.record) {
                // Boxed, so that it takes no room where it isn't used.
                Some(hold) => Box::pin(hold::run(self, hold, reason, key)).await,
                None => self.close(reason),
            },
        }
    }

    /// Goes on with a backend that is connected; `handover` is what the client has sent already.
    async fn begin(self, search: Search, backend: Stream, slot: Slot, handover: Handover) {
        match search.pool.protection.replay {
            // Its verdict came while the connect was under way: nobody will look again.
            None if self.record.has_lost(&slot) => self.close(CloseReason::BackendDown),
            None => self.relay(backend, slot, handover),
            Some(limit) => Box::pin(replay::run(self, search, backend, slot, limit, handover)).await,
        }
    }

    /// Hands both sockets and all guards over to the engine, which ends the session from here on.
    fn relay(mut self, backend: Stream, slot: Slot, handover: Handover) {
        if let Some(at) = self.record.drain_deadline(Some(&slot))
            && !self.worker.may_stay_until(at)
        {
            return self.close(CloseReason::Drained);
        }
        self.record.phase = Phase::Relay;
        let listener = &self.record.listener.config;
        let timeouts = Timeouts {
            idle: listener.idle_timeout.as_millis() as u64,
            half_close: listener.half_close_timeout.as_millis() as u64,
            linger: LINGER.as_millis() as u64,
            keepalive: listener.keepalive.map_or(0, |keepalive| {
                let dice = self.worker.rng.borrow_mut().below(1_024) as u32;
                idle_before_probe(keepalive, dice).as_millis() as u64
            }),
            unanswered: listener.keepalive.map_or(0, |keepalive| give_up_after(keepalive).as_millis() as u64),
            lifetime: self.lifetime(),
        };
        let terms = Terms { timeouts, bandwidth: listener.bandwidth };
        let relayed = Relayed { record: self.record, slot: Some(slot) };
        self.worker.engine.borrow_mut().resume(self.client, backend, handover, terms, relayed, Instant::now());
    }

    /// What is left of the longest life, a random tenth less, so that sessions of one age don't all end at once.
    fn lifetime(&self) -> u64 {
        let longest = self.record.pool.as_ref().and_then(|pool| pool.protection.max_lifetime);
        longest.map_or(0, |longest| {
            let less = self.worker.rng.borrow_mut().up_to(longest / 10);
            longest.saturating_sub(less + self.record.age()).as_millis().max(1) as u64
        })
    }

    /// Resets the client; the guards and the record do the rest.
    fn close(self, reason: CloseReason) {
        drop(self.client);
        if let (CloseReason::NoBackend, Some(pool)) = (reason, &self.record.pool) {
            pool.metrics.no_backend.inc();
        }
        self.record.finish(reason);
    }
}

/// What travels with the sockets through the relay engine.
pub struct Relayed {
    record: Box<Record>,
    slot: Option<Slot>,
}

impl Relayed {
    /// Its backend, if that is one of `pool`'s.
    fn backend_in(&self, pool: &Pool) -> Option<&Backend> {
        let own = self.record.pool.as_ref()?;
        if own.name == pool.name { self.slot.as_deref() } else { None }
    }

    fn drain_deadline(&self) -> Option<Millis> {
        self.record.drain_deadline(self.slot.as_deref())
    }

    fn has_lost_its_backend(&self) -> bool {
        self.slot.as_ref().is_some_and(|slot| self.record.has_lost(slot))
    }
}

impl relay::Owner for Relayed {
    fn moved(&mut self, direction: Direction, bytes: usize) {
        self.record.moved(direction, bytes as u64);
    }

    fn ended_one_way(&mut self, direction: Direction) {
        report::ended_one_way(&mut self.record, direction);
    }

    fn closed(&mut self, side: Side) {
        if side == Side::Backend {
            self.slot = None;
        }
    }

    fn ended(self, end: RelayEnd) {
        report::ended(&self.record, end);
        drop(self.slot);
        self.record.finish(CloseReason::of_relay(end));
    }
}
