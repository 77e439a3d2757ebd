//! Keeps the workers level: fresh connections go to another worker where the kernel's spread is uneven.
//!
//! With `SO_REUSEPORT` the kernel spreads connections by a hash, so that a few long ones can all land on one worker.
//! Before a session begins, the worker that accepted it may hand the connection to the sibling with the fewest
//! sessions (`share` decides, `inbox` carries); sessions that have just ended count as well, so that a stream of short
//! ones stays where the kernel put it. What a worker is to the others is its [`Seat`]; what they do for one
//! that is stuck is in `siblings`. A process with one worker has none of this. Invariants: an established session
//! never moves; a connection is in the hands of exactly one worker, or in one inbox; no hand-over is lost at a stop,
//! because inboxes close under their lock.

mod inbox;
mod seat;
mod share;
mod siblings;
mod socket;

pub use seat::{BEAT, Place, Seat, Seats};
pub use siblings::look_after;
pub use socket::{Heir, SharedSocket};

use super::{Arrival, Worker};
use crate::drain::{Drain, Stage};
use share::{Choice, choose};
use std::rc::Rc;
use std::sync::Arc;

/// Tries to get a place before the counts have changed; then the worker keeps the connection.
const TRIES: usize = 4;

/// Hands the arrival to a sibling, or gives it back, with a place, to be served by `own`.
#[must_use]
pub fn settle(seats: &Seats, own: &Arc<Seat>, mut arrival: Arrival) -> Option<Arrival> {
    let (worker, place) = find_place(seats, own);
    arrival.place = Some(place);
    if worker == usize::from(own.index) {
        return Some(arrival);
    }
    match seats.of(worker).inbox.push(arrival) {
        Ok(()) => {
            own.metrics.handed_over.inc();
            None
        }
        Err(mut back) => {
            back.place = Some(own.enter());
            Some(back)
        }
    }
}

/// A place, and at which worker.
///
/// The counts can only have grown since they were read, or the claim fails; so the invariant of `share` holds for
/// concurrent workers as well, but for one that has failed too often.
fn find_place(seats: &Seats, own: &Arc<Seat>) -> (usize, Place) {
    for _ in 0..TRIES {
        let Choice { worker, sessions } = choice(seats, own);
        if let Some(place) = seats.of(worker).claim(sessions) {
            return (worker, place);
        }
    }
    (usize::from(own.index), own.enter())
}

fn choice(seats: &Seats, own: &Seat) -> Choice {
    let now = own.last_beat();
    choose(usize::from(own.index), seats.iter().map(|seat| seat.seen(now)))
}

/// Serves what siblings hand over, until the stop.
pub async fn serve_inbox(worker: Rc<Worker>, mut drain: Drain) {
    let inbox = &worker.seat.inbox;
    while drain.stage() == Stage::Serving {
        tokio::select! {
            () = drain.reached(Stage::Draining) => {}
            () = inbox.arrived() => inbox.take().into_iter().for_each(|arrival| worker.serve(arrival)),
        }
    }
    inbox.close().into_iter().for_each(|arrival| worker.serve(arrival));
}

#[cfg(test)]
mod tests;
