//! What real traffic says of a backend: the pool judges, and this is what it is told.
//!
//! Owns the verdict on one session: did its backend answer, and if not, whose doing was that? Only a backend that ends
//! a session before the first byte of its answer has failed; whatever the client or this process brings about says
//! nothing. Next: `pool::ejection` for what follows.

use super::record::Record;
use crate::clock::millis;
use crate::metrics::TrafficFailure;
use crate::name::{Direction, Side};
use crate::net::relay::RelayEnd;
use crate::pool::{Backend, Latency, Pool};
use std::time::{Duration, Instant};

/// A backend that ends a connection within this time, without a word and without having been asked anything, does not
/// serve. Later it may be tired of waiting, which is its right.
const AT_ONCE: Duration = Duration::from_secs(2);

/// What has happened so far between a client and its backend.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one fact, and all combine freely")]
pub struct Traffic {
    /// The connection decides whether its backend comes back.
    pub on_trial: bool,
    /// Its backend was believed to be up when it was chosen; in panic that need not be.
    pub chosen_up: bool,
    connected: Instant,
    /// The connect took too long: an answer is no credit to the backend, nor is its lack another failure.
    slow: bool,
    /// When the backend got the first byte.
    asked: Option<Instant>,
    answered: bool,
    client_fin: bool,
    /// It had ended its side before it answered, and before the client had.
    walked_out: bool,
}

impl Traffic {
    pub fn new(connected: Instant, on_trial: bool, chosen_up: bool, slow: bool) -> Self {
        Self {
            on_trial,
            chosen_up,
            connected,
            slow,
            asked: None,
            answered: false,
            client_fin: false,
            walked_out: false,
        }
    }

    /// Since the connect.
    pub fn age(&self) -> Duration {
        self.connected.elapsed()
    }

    /// Whether it is a failure that the backend ends its side now, before its answer and before the client's end.
    fn is_owed_more(&self) -> bool {
        self.asked.is_some() || self.age() < AT_ONCE
    }

    /// Whether it is a failure that the backend's socket fails so now, before its answer. One that was asked nothing
    /// may reset a client that is silent for long, or that has ended its side.
    fn is_failed_by(&self, end: RelayEnd) -> bool {
        match end {
            RelayEnd::Lost(Side::Backend, _) => true,
            RelayEnd::Reset(Side::Backend) => self.is_owed_more() && (self.asked.is_some() || !self.client_fin),
            _ => false,
        }
    }
}

/// Bytes of `direction` have reached their sink.
pub fn moved(record: &mut Record, direction: Direction) {
    let Some(traffic) = &mut record.traffic else { return };
    match direction {
        Direction::ToBackend => {
            traffic.asked.get_or_insert_with(Instant::now);
        }
        Direction::ToClient if !traffic.answered => {
            traffic.answered = true;
            let now = Instant::now();
            let (on_trial, asked) = (traffic.on_trial, traffic.asked);
            if let (Some(pool), Some((backend, _))) = (&record.pool, &record.connected) {
                if let Some(asked) = asked {
                    let took = now - asked;
                    backend.answer_time.observe(took.as_secs_f32() * 1_000.0, millis(now));
                    pool.took(Latency::FirstByte, took);
                }
                if !traffic.slow {
                    served(pool, backend, on_trial, now);
                }
            }
        }
        Direction::ToClient => {}
    }
}

/// The source of `direction` has sent its FIN.
pub fn ended_one_way(record: &mut Record, direction: Direction) {
    let Some(traffic) = &mut record.traffic else { return };
    match direction {
        Direction::ToBackend => traffic.client_fin = true,
        Direction::ToClient => traffic.walked_out = !traffic.answered && !traffic.client_fin,
    }
}

/// What it says of the backend that its socket fails so, without an answer.
pub fn failed_unanswered(record: &Record, end: RelayEnd) -> Option<TrafficFailure> {
    let fails = record.traffic.as_ref().is_some_and(|traffic| traffic.is_failed_by(end));
    fails.then_some(TrafficFailure::Reset)
}

/// What it says of the backend that it ends its side now, without an answer.
pub fn closed_unanswered(record: &Record) -> Option<TrafficFailure> {
    let owes = record.traffic.as_ref().is_some_and(|traffic| !traffic.client_fin && traffic.is_owed_more());
    owes.then_some(TrafficFailure::Closed)
}

/// The session is over.
pub fn ended(record: &Record, end: RelayEnd) {
    let (Some(traffic), Some(pool), Some((backend, _))) = (&record.traffic, &record.pool, &record.connected) else {
        return;
    };
    // The client has said all that it had to say, and no answer was owed.
    let owes_nothing = end == RelayEnd::Complete && traffic.client_fin && !traffic.walked_out;
    if !owes_nothing {
        in_vain(pool, traffic);
    }
    if traffic.answered || traffic.slow {
        return;
    }
    match end {
        _ if traffic.is_failed_by(end) => failed(pool, backend, traffic.on_trial, TrafficFailure::Reset),
        _ if traffic.walked_out && traffic.is_owed_more() => {
            failed(pool, backend, traffic.on_trial, TrafficFailure::Closed);
        }
        _ if owes_nothing => served(pool, backend, traffic.on_trial, Instant::now()),
        _ => {}
    }
}

/// Nobody waits any more for the answer, if there is none yet.
pub fn in_vain(pool: &Pool, traffic: &Traffic) {
    if let Some(asked) = traffic.asked.filter(|_| !traffic.answered) {
        pool.took_at_least(Latency::FirstByte, asked.elapsed());
    }
}

/// A failure of a backend.
pub fn failed(pool: &Pool, backend: &Backend, on_trial: bool, failure: TrafficFailure) {
    if let Some(ejected) = pool.failed(backend, on_trial, failure, millis(Instant::now())) {
        let (name, label) = (&pool.name, &*backend.label);
        tracing::warn!(
            pool = %name, backend = label, reason = %failure, times = ejected.times, span = ?ejected.span,
            "backend is ejected: real traffic fails on it"
        );
    }
}

fn served(pool: &Pool, backend: &Backend, on_trial: bool, now: Instant) {
    if pool.served(backend, on_trial, millis(now)) {
        tracing::info!(pool = %pool.name, backend = &*backend.label, "backend is back in service: its trial went well");
    }
}
