//! Finding a backend for one session: attempts, failover, hedges, and the bound on all of it.
//!
//! Owns the loop "claim, connect, else claim again with what was tried". Which backend comes next is the pool's
//! decision, whose fault a failure is the one of `net::connect`. Invariants: no backend is tried twice; the attempts
//! together take no longer than the pool's budget, and at most two of them run at once; an error of ours never counts
//! against a backend; a client that resets gives up its place, one that only shuts down its side is still served.
//!
//! Next: `report`, for what a failure does to the backend.

use super::close::CloseReason;
use super::pending::Shown;
use super::proxy;
use super::queue::Watch;
use super::record::{FailedAttempt, Record};
use super::report::{self, Traffic};
use super::worker::Worker;
use crate::clock::{millis, unix_ms};
use crate::metrics::{ConnectErrorReason, TrafficFailure};
use crate::net::connect::{self as net, ConnectError};
use crate::net::origin::Behalf;
use crate::net::send::send_all;
use crate::net::stream::Stream;
use crate::pool::queue::Ticket;
use crate::pool::{Latency, Pool, Slot, Tried, Wish};
use rustix::io::Errno;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the access log says of an attempt that another one has overtaken.
const SLOWER: &str = "slower";

/// The first connected backend and the slot it occupies, or why there is none.
pub async fn connect(
    client: &Stream,
    search: &mut Search,
    record: &mut Record,
    worker: &Worker,
) -> Result<(Stream, Slot), CloseReason> {
    super::hook::connect(record.id);
    record.pool = Some(Arc::clone(&search.pool));
    let (started, waited) = (Instant::now(), record.waited());
    let deadline = started + search.pool.connect.budget;
    if let (Some(send), None) = (&search.pool.send_proxy, &search.preface) {
        search.preface = Some(proxy::preface(send, client, record));
    }
    let watch = Watch::new(&search.pool, search.was_held);
    let connected = tokio::select! {
        biased;
        connected = search.next(record, worker, deadline, Some(&watch)) => connected,
        () = watch.is_reset(client) => Err(CloseReason::ClientReset),
    };
    let wait = started.elapsed().saturating_sub(record.waited().saturating_sub(waited));
    record.set_connect_wait(wait);
    if connected.is_ok() {
        search.pool.metrics.connect_wait.observe(wait.as_secs_f64());
    }
    connected
}

/// One session's search for a backend: which were tried, and how many attempts are left.
pub struct Search {
    pub pool: Arc<Pool>,
    tried: Tried,
    /// What a pool with a hash goes by.
    key: u64,
    attempts_left: u8,
    /// An attempt has failed.
    failing: bool,
    /// Nor could any other backend be connected to.
    hopeless: bool,
    /// The end of a search that has no backend left.
    pub(super) verdict: CloseReason,
    /// In the pool's queue, so far.
    pub waited: Duration,
    /// The place in that queue that it had last.
    pub(super) place: Option<Ticket>,
    /// The backend of a session that looks for another one. Given up when it has to wait for that, so that nobody
    /// waits who has a place.
    pub former: Option<(Stream, Slot)>,
    /// The client comes from the hold, where its FIN has meant that it has sent its all.
    pub was_held: bool,
    /// What each backend gets before anything else: the PROXY header.
    preface: Option<Arc<[u8]>>,
}

/// What has become of the pool in which a session searches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Followed {
    /// Another one is in its place.
    Another,
    /// It has left the table.
    Nowhere,
}

/// One connect try.
pub(super) struct Attempt {
    slot: Slot,
    begun: Instant,
    /// The time that its connect may take.
    granted: Duration,
    /// It was believed to be up.
    chosen_up: bool,
}

type Connecting = Result<Stream, ConnectError>;

impl Search {
    /// `key` is what a pool with a hash goes by.
    pub fn new(pool: Arc<Pool>, key: u64) -> Self {
        let attempts_left = pool.connect.attempts;
        if pool.connect.hedge_after.is_some() {
            pool.count_for_hedging();
        }
        Self {
            pool,
            tried: Tried::default(),
            key,
            attempts_left,
            failing: false,
            hopeless: false,
            verdict: CloseReason::NoBackend,
            waited: Duration::ZERO,
            place: None,
            former: None,
            was_held: false,
            preface: None,
        }
    }

    /// The next connected backend; every attempt that came to nothing goes into the record. `deadline` is without the
    /// time in the queue, of which the client's FIN is watched for in `watch`.
    pub async fn next(
        &mut self,
        record: &mut Record,
        worker: &Worker,
        mut deadline: Instant,
        watch: Option<&Watch>,
    ) -> Result<(Stream, Slot), CloseReason> {
        while self.attempts_left > 0 {
            if self.follow() == Some(Followed::Another) {
                record.pool = Some(Arc::clone(&self.pool));
            }
            let begun = Instant::now();
            let left = deadline.saturating_duration_since(begun);
            if left.is_zero() {
                return Err(CloseReason::ConnectBudget);
            }
            // Who may queue for its turn needn't spend the budget on that: it is for the connect then.
            let patience = if self.pool.queue.is_some() { left / 2 } else { left };
            let mut attempt = if let Some(attempt) = self.claim_at_once(worker, begun, patience) {
                attempt
            } else {
                let before = self.waited;
                // Boxed, so that it takes no room where nobody waits.
                let attempt = Box::pin(self.queue(record, worker, patience, watch)).await?;
                deadline += self.waited.saturating_sub(before);
                attempt
            };
            if attempt.slot.wait() > 0 {
                let wait = Duration::from_millis(attempt.slot.wait());
                if wait >= left {
                    return Err(CloseReason::ConnectBudget);
                }
                shown(record, worker, &attempt, watch).during(tokio::time::sleep(wait)).await;
                attempt.begun = Instant::now();
            }
            if self.failing {
                self.pool.metrics.failovers.inc();
            }
            if let Some((attempt, stream)) = self.race(attempt, record, worker, deadline, watch).await {
                return Ok((stream, self.succeed(attempt, record)));
            }
            if self.hopeless {
                return Err(self.verdict);
            }
        }
        if Instant::now() >= deadline { Err(CloseReason::ConnectBudget) } else { Err(self.verdict) }
    }

    /// A connected backend came to nothing before it answered: in the record as `outcome`, and a failure of it, unless
    /// traffic says nothing against it.
    pub fn disappointed(
        &mut self,
        slot: &Slot,
        outcome: &'static str,
        failure: Option<TrafficFailure>,
        record: &mut Record,
    ) {
        let (connected, traffic) = (record.connected.take(), record.traffic.take());
        let connect = connected.map_or(Duration::ZERO, |(_, took)| took);
        let took = connect + traffic.as_ref().map_or(Duration::ZERO, Traffic::age);
        if let Some(traffic) = &traffic {
            report::in_vain(&self.pool, traffic);
        }
        record.failed_mut().push(FailedAttempt { backend: Arc::clone(&slot.label), outcome, took });
        if let Some(failure) = failure {
            report::failed(&self.pool, slot, slot.is_on_trial(), failure);
        }
        self.failing = true;
        self.verdict = CloseReason::ConnectFailed;
    }

    /// A backend for the next attempt, unless others wait for one.
    fn claim_at_once(&mut self, worker: &Worker, begun: Instant, patience: Duration) -> Option<Attempt> {
        let queues = self.pool.queue.is_some();
        if queues && !self.pool.waiting.is_empty() {
            return None;
        }
        let attempt = self.claim(worker, begun, patience);
        if queues && attempt.is_some() {
            self.pool.took(Latency::Queue, Duration::ZERO);
        }
        attempt
    }

    /// Who has no backend yet goes by the table that holds now, as far as the same is asked of its client and told to
    /// its backend; `None` if nothing has changed.
    pub(super) fn follow(&mut self) -> Option<Followed> {
        if !self.pool.is_retired() {
            return None;
        }
        let Some(next) = self.pool.successor() else { return Some(Followed::Nowhere) };
        if next.send_proxy != self.pool.send_proxy || next.hash != self.pool.hash {
            return None;
        }
        self.pool = next;
        Some(Followed::Another)
    }

    /// See [`Pool::is_worth_waiting`].
    pub(super) fn is_worth_waiting(&self, now: Instant, patience: Duration) -> bool {
        self.pool.is_worth_waiting(&self.tried, patience.as_millis() as u64, millis(now))
    }

    pub(super) fn has_tried_none(&self) -> bool {
        self.tried.is_empty()
    }

    /// A backend for the next attempt, whose turn comes within `patience`.
    pub(super) fn claim(&mut self, worker: &Worker, begun: Instant, patience: Duration) -> Option<Attempt> {
        let patience = patience.as_millis() as u64;
        let wish = Wish { tried: &self.tried, key: self.key, patience, now: millis(begun) };
        let slot = self.pool.claim_within(&wish, &mut worker.rng.borrow_mut())?;
        self.tried.push(slot.id);
        self.attempts_left -= 1;
        let chosen_up = slot.is_up();
        Some(Attempt { slot, begun, granted: Duration::ZERO, chosen_up })
    }

    /// One attempt, and a second one beside it if the first takes its time and the pool allows it. `None` if all that
    /// ran have failed.
    async fn race(
        &mut self,
        mut first: Attempt,
        record: &mut Record,
        worker: &Worker,
        deadline: Instant,
        watch: Option<&Watch>,
    ) -> Option<(Attempt, Stream)> {
        let behalf = self.behalf(record, worker);
        let mut one = pin!(self.connecting(&mut first, behalf, deadline));
        let patience = self.pool.connect.hedge_after.filter(|_| self.attempts_left > 0);
        let Some(patience) = patience else {
            let result = shown(record, worker, &first, watch).during(one).await;
            return self.settle(first, result, record);
        };
        let first_part = tokio::time::timeout(patience, &mut one);
        if let Ok(result) = shown(record, worker, &first, watch).during(first_part).await {
            return self.settle(first, result, record);
        }
        let Some(mut second) = self.hedge(worker) else {
            let result = shown(record, worker, &first, watch).during(one).await;
            return self.settle(first, result, record);
        };
        let mut two = pin!(self.connecting(&mut second, behalf, deadline));
        let (first_ended, result) = tokio::select! {
            biased;
            result = &mut one => (true, result),
            result = &mut two => (false, result),
            never = shown(record, worker, &first, watch) => match never {},
        };
        let (ended, other) = if first_ended { (first, second) } else { (second, first) };
        if result.is_ok() {
            if ended.begun > other.begun {
                self.pool.metrics.hedges_won.inc();
            }
            overtaken(&other, record);
            return self.settle(ended, result, record);
        }
        let first_goes_on = other.begun < ended.begun;
        self.settle(ended, result, record);
        let seen = shown(record, worker, &other, watch);
        let result = if first_goes_on { seen.during(one).await } else { seen.during(two).await };
        self.settle(other, result, record)
    }

    /// The second attempt, if there may be one.
    fn hedge(&mut self, worker: &Worker) -> Option<Attempt> {
        // Those that wait come first.
        if !self.pool.waiting.is_empty() || !self.pool.may_hedge() {
            return None;
        }
        // One that would have to wait for its turn is no help.
        let second = self.claim(worker, Instant::now(), Duration::ZERO)?;
        self.pool.metrics.hedges.inc();
        Some(second)
    }

    /// For whom it connects; the dice choose among source addresses, if there are any.
    fn behalf(&self, record: &Record, worker: &Worker) -> Behalf {
        let dice = if self.pool.origin.is_plain() { 0 } else { worker.rng.borrow_mut().below(1 << 32) as u32 };
        Behalf::Client(record.client, dice)
    }

    fn connecting(
        &self,
        attempt: &mut Attempt,
        behalf: Behalf,
        deadline: Instant,
    ) -> impl Future<Output = Connecting> + use<> {
        let left = deadline.saturating_duration_since(attempt.begun);
        let (address, limit) = (attempt.slot.address.clone(), self.pool.connect.timeout.min(left));
        attempt.granted = limit;
        let (origin, preface) = (Arc::clone(&self.pool.origin), self.preface.clone());
        async move {
            let connecting = async {
                let stream = net::connect(&address, &origin, behalf).await?;
                if let Some(preface) = preface {
                    send_all(&stream, &preface).await?;
                }
                Ok(stream)
            };
            let connected = tokio::time::timeout(limit, connecting).await;
            connected.unwrap_or(Err(ConnectError(Errno::TIMEDOUT)))
        }
    }

    fn settle(&mut self, attempt: Attempt, result: Connecting, record: &mut Record) -> Option<(Attempt, Stream)> {
        match result {
            Ok(stream) => Some((attempt, stream)),
            Err(error) => {
                self.fail(&attempt, error, record);
                None
            }
        }
    }

    fn succeed(&self, Attempt { slot, begun, chosen_up, .. }: Attempt, record: &mut Record) -> Slot {
        let now = Instant::now();
        let took = now - begun;
        slot.connect_succeeded();
        slot.connect_time.observe(took.as_secs_f32() * 1_000.0, millis(now));
        self.pool.took(Latency::Connect, took);
        let slow = self.pool.ejection.slow_connect.is_some_and(|bound| took > bound);
        if slow {
            report::failed(&self.pool, &slot, slot.is_on_trial(), TrafficFailure::SlowConnect);
        }
        record.connected = Some((slot.backend(), took));
        record.traffic = Some(Traffic::new(now, slot.is_on_trial(), chosen_up, slow));
        slot
    }

    fn fail(&mut self, Attempt { slot, begun, granted, .. }: &Attempt, error: ConnectError, record: &mut Record) {
        let (outcome, took) = (error.reason().as_str(), begun.elapsed());
        record.failed_mut().push(FailedAttempt { backend: Arc::clone(&slot.label), outcome, took });
        slot.connect_failed(error.reason(), &error.to_string(), unix_ms());
        if error.reason() == ConnectErrorReason::Timeout {
            self.pool.took_at_least(Latency::Connect, took);
        }
        if let Some(why) = self.pool.origin.complaint(error, Behalf::Client(record.client, 0), Instant::now()) {
            tracing::warn!(pool = %self.pool.name, backend = &*slot.label, "can't connect: {why}");
        }
        // An attempt that the budget has cut to less than half of its time proves nothing, also where it took longer
        // because this process stood still.
        let had_time = *granted * 2 >= self.pool.connect.timeout.min(self.pool.connect.budget);
        if !error.is_ours() && (had_time || error.reason() != ConnectErrorReason::Timeout) {
            report::failed(&self.pool, slot, slot.is_on_trial(), TrafficFailure::Connect);
            // Whoever refuses is quick about it, which must not look like being near.
            slot.connect_time.observe(self.pool.connect.timeout.as_secs_f32() * 1_000.0, millis(Instant::now()));
        }
        self.failing = true;
        self.verdict = if error.is_ours() { CloseReason::NoResources } else { CloseReason::ConnectFailed };
        self.hopeless |= error.affects_all_backends();
    }
}

/// A session that waits for this attempt, where an operator sees it once that takes long.
fn shown<'a>(record: &'a Record, worker: &'a Worker, attempt: &'a Attempt, watch: Option<&'a Watch>) -> Shown<'a> {
    Shown::new(record, worker).backend(&attempt.slot).once_late(watch)
}

/// The other attempt has connected before this one.
fn overtaken(Attempt { slot, begun, .. }: &Attempt, record: &mut Record) {
    let took = begun.elapsed();
    // At least as long as this it would have taken.
    slot.connect_time.observe(took.as_secs_f32() * 1_000.0, millis(Instant::now()));
    record.failed_mut().push(FailedAttempt { backend: Arc::clone(&slot.label), outcome: SLOWER, took });
}
