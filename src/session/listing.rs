//! Which sessions there are, answered by each worker for its own, and one of them ended.
//!
//! Owns the look at what waits (`pending`) and at what is relayed (the engine). Invariants: a look goes in steps of
//! [`STEP`] sessions, between which everything else of the worker has its turn; it remembers no more sessions than are
//! asked for; it changes nothing. A session that begins its relay between two steps may be missed.

use super::balance::{Seat, Seats};
use super::pending::Sight;
use super::{Relayed, Worker, orders};
use crate::clock::{Millis, millis};
use crate::listing::{Answer, Bytes, Cursor, Page, Query, Row};
use crate::name::{PoolName, SessionId};
use crate::net::relay::{self, Order};
use std::collections::BinaryHeap;
use std::ops::Range;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::time::{timeout, timeout_at};

/// Sessions looked at in one go: each costs some 100 ns where none of it is in a cache, so that a step takes a
/// fraction of a millisecond.
const STEP: usize = 2_048;

/// How long a session whose backend is about to answer is in neither place, and a little more: see `queue::Watch`.
const BLIND: Duration = Duration::from_millis(50);

/// How long a worker may take. Longer than it takes to look at all sessions that a worker can have; one that is stuck
/// is left out.
const PATIENCE: Duration = Duration::from_millis(500);

/// What came of the wish to end a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    Done,
    /// Its end was decided already, and what was read for it is still being delivered.
    Already,
    /// There is none of that number.
    Unknown,
    /// Its worker has not answered in time.
    Silent,
}

/// Asks all workers at once, and merges what those say that answer in time.
pub async fn ask(seats: &Seats, query: Query) -> Page {
    let limit = query.limit;
    let asked: Vec<_> =
        seats.iter().map(|seat| (seat.index, order(seat, |reply| orders::Order::List(query.clone(), reply)))).collect();
    let until = tokio::time::Instant::now() + PATIENCE;
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    for (worker, asked) in asked {
        let answer = match asked {
            Some(reply) => timeout_at(until, reply).await.ok().and_then(Result::ok),
            None => None,
        };
        match answer {
            Some(answer) => answers.push(answer),
            None => silent.push(worker),
        }
    }
    Page::merge(answers, silent, limit)
}

/// Has the worker that has it end a session.
pub async fn end(seats: &Seats, id: SessionId) -> Closed {
    let Some(seat) = seats.iter().find(|seat| seat.index == id.worker()) else { return Closed::Unknown };
    let Some(reply) = order(seat, |reply| orders::Order::Close(id, reply)) else { return Closed::Silent };
    match timeout(PATIENCE, reply).await {
        Ok(Ok(closed)) => closed,
        Ok(Err(_)) | Err(_) => Closed::Silent,
    }
}

/// Gives a worker an order; `None` if it has too many that it hasn't looked at.
fn order<T>(seat: &Seat, order: impl FnOnce(oneshot::Sender<T>) -> orders::Order) -> Option<oneshot::Receiver<T>> {
    let (reply, answer) = oneshot::channel();
    seat.reserve_order()?.send(order(reply));
    Some(answer)
}

/// Where a session was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Spot {
    Pending(usize),
    Engine(usize),
}

/// One that may be on the page; the greatest is the first to go.
type Candidate = (Cursor, Spot);

/// The first of this worker's sessions in the order that is asked for.
pub async fn answer(worker: &Worker, query: &Query) -> Answer {
    let mut best = Best { query, found: BinaryHeap::new(), has_more: false };
    let places = worker.pending.places();
    for step in places.clone().step_by(STEP) {
        for place in step..places.end.min(step + STEP) {
            if let Some(sight) = worker.pending.look_at(place)
                && wanted(
                    query,
                    sight.pool.as_ref().map(PoolName::as_str),
                    sight.backend.as_deref(),
                    sight.listener.as_str(),
                )
            {
                best.offer(cursor(query, &sight), Spot::Pending(place));
            }
        }
        tokio::task::yield_now().await;
    }
    let places = worker.engine.borrow().places();
    for step in places.clone().step_by(STEP) {
        look_at_engine(worker, step..places.end.min(step + STEP), &mut best);
        tokio::task::yield_now().await;
    }
    best.answer(worker)
}

fn look_at_engine(worker: &Worker, places: Range<usize>, best: &mut Best<'_>) {
    let engine = worker.engine.borrow();
    for seen in places.filter_map(|place| engine.look_at(place)) {
        let record = &seen.owner.record;
        let pool = record.pool.as_ref().map(|pool| pool.name.as_str());
        let backend = record.connected.as_ref().map(|(backend, _)| &*backend.label);
        if wanted(best.query, pool, backend, record.listener.name.as_str()) {
            let rank = best.query.sort.rank(millis(record.accepted), millis(seen.last_moved), record.bytes());
            best.offer(Cursor { rank, id: record.id }, Spot::Engine(seen.place));
        }
    }
}

/// Ends a session of this worker, if it has one of that number.
pub async fn close(worker: &Worker, id: SessionId) -> Closed {
    for pause in [BLIND, Duration::ZERO] {
        let is_new = match worker.pending.call_off(id) {
            None => end_relayed(worker, id).await,
            is_new => is_new,
        };
        match is_new {
            Some(true) => return Closed::Done,
            Some(false) => return Closed::Already,
            None => tokio::time::sleep(pause).await,
        }
    }
    Closed::Unknown
}

/// Whether that is new; `None` if it isn't here.
async fn end_relayed(worker: &Worker, id: SessionId) -> Option<bool> {
    let places = worker.engine.borrow().places();
    for step in places.clone().step_by(STEP) {
        {
            let mut engine = worker.engine.borrow_mut();
            let is_it = |&place: &usize| engine.look_at(place).is_some_and(|seen| seen.owner.record.id == id);
            if let Some(place) = (step..places.end.min(step + STEP)).find(is_it) {
                let is_new = engine.look_at(place).is_some_and(|seen| !seen.is_closing);
                engine.order(place, Order::Operator, Instant::now());
                return Some(is_new);
            }
        }
        tokio::task::yield_now().await;
    }
    None
}

fn wanted(query: &Query, pool: Option<&str>, backend: Option<&str>, listener: &str) -> bool {
    let is = |wanted: &Option<String>, given: Option<&str>| wanted.as_deref().is_none_or(|name| given == Some(name));
    is(&query.pool, pool) && is(&query.backend, backend) && is(&query.listener, Some(listener))
}

fn cursor(query: &Query, sight: &Sight) -> Cursor {
    Cursor { rank: query.sort.rank(millis(sight.accepted), millis(sight.last_moved), sight.bytes), id: sight.id }
}

/// The first ones in the order, of those that were offered.
struct Best<'a> {
    query: &'a Query,
    /// No more than the limit.
    found: BinaryHeap<Candidate>,
    /// There are others behind them.
    has_more: bool,
}

impl Best<'_> {
    fn offer(&mut self, cursor: Cursor, spot: Spot) {
        if self.query.after.is_some_and(|after| cursor <= after) {
            return;
        }
        if self.found.len() < self.query.limit {
            self.found.push((cursor, spot));
            return;
        }
        self.has_more = true;
        if let Some(mut last) = self.found.peek_mut()
            && cursor < last.0
        {
            *last = (cursor, spot);
        }
    }

    /// As they are now; those that have ended meanwhile are left out.
    fn answer(self, worker: &Worker) -> Answer {
        let now = Instant::now();
        let up_to = self.found.peek().filter(|_| self.has_more).map(|(last, _)| *last);
        let engine = worker.engine.borrow();
        let mut rows: Vec<Row> = Vec::with_capacity(self.found.len());
        for (place, spot) in self.found.into_sorted_vec() {
            let row = match spot {
                Spot::Pending(at) => worker.pending.look_at(at).map(|sight| row(&sight, false, place, now)),
                Spot::Engine(at) => engine.look_at(at).map(|seen| relayed(&seen, place, now)),
            };
            rows.extend(row.filter(|row| row.id == place.id));
        }
        Answer { rows, up_to }
    }
}

fn relayed(seen: &relay::Seen<'_, Relayed>, place: Cursor, now: Instant) -> Row {
    let record = &seen.owner.record;
    let backend = record.connected.as_ref().map(|(backend, _)| &**backend);
    row(&Sight::of(record, backend, seen.last_moved), seen.is_closing, place, now)
}

fn row(sight: &Sight, is_closing: bool, place: Cursor, now: Instant) -> Row {
    let since = |moment: Instant| now.saturating_duration_since(moment).as_millis() as Millis;
    let [to_backend, to_client] = sight.bytes;
    Row {
        place,
        id: sight.id,
        client: sight.client,
        listener: sight.listener.clone(),
        rule: sight.rule.clone(),
        pool: sight.pool.clone(),
        backend: sight.backend.clone(),
        backend_address: sight.backend_address.clone(),
        phase: if is_closing { "closing" } else { sight.phase.as_str() },
        age_ms: since(sight.accepted),
        // The clocks of the two are not read at one moment.
        idle_ms: since(sight.last_moved).min(since(sight.accepted)),
        bytes: Bytes { to_backend, to_client },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The places of what is kept of so many sessions, offered in an order that isn't theirs.
    fn best(query: &Query, ranks: &[u64]) -> (Vec<u64>, bool) {
        let mut best = Best { query, found: BinaryHeap::new(), has_more: false };
        for &rank in ranks {
            best.offer(Cursor { rank, id: SessionId::new(0, rank) }, Spot::Engine(rank as usize));
        }
        let kept = best.found.into_sorted_vec().into_iter().map(|(place, _)| place.rank).collect();
        (kept, best.has_more)
    }

    #[test]
    fn the_first_ones_are_kept_and_no_more() {
        let query = Query { limit: 3, ..Query::default() };
        assert_eq!(best(&query, &[7, 2, 9, 4, 1]), (vec![1, 2, 4], true));
        assert_eq!(best(&query, &[7, 2, 9]), (vec![2, 7, 9], false));
        let after = Some(Cursor { rank: 2, id: SessionId::new(0, 2) });
        assert_eq!(best(&Query { after, ..query }, &[7, 2, 9, 1, 3]), (vec![3, 7, 9], false));
    }

    #[test]
    fn a_query_asks_for_what_it_names_alone() {
        let name = |name: &str| Some(name.to_owned());
        let all = Query::default();
        assert!(wanted(&all, None, None, "web"));
        let one = Query { pool: name("app"), backend: name("a"), listener: name("web"), ..all.clone() };
        assert!(wanted(&one, Some("app"), Some("a"), "web"));
        for (pool, backend, listener) in [
            (None, Some("a"), "web"),
            (Some("app"), None, "web"),
            (Some("app"), Some("b"), "web"),
            (Some("app"), Some("a"), "x"),
        ] {
            assert!(!wanted(&one, pool, backend, listener), "{pool:?} {backend:?} {listener}");
        }
    }
}
