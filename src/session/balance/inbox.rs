//! Where a worker finds the connections that its siblings hand over.
//!
//! Owns a bounded queue and the wake-up. Invariants: what is in it belongs to exactly one taker; once it is closed it
//! is empty and stays so, so that a hand-over that comes too late goes back to the one who tried; what is dropped with
//! it is reset, and its permit and place are free.

use crate::session::Arrival;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The most that may wait in an inbox. A worker takes it empty with each wake-up: more than this would mean that it
/// doesn't keep up, and then it is better not to be given more.
const ROOM: usize = 256;

#[derive(Default)]
pub struct Inbox {
    state: Mutex<State>,
    /// The length of the queue, to look at without the lock.
    waiting: AtomicUsize,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Arrival>,
    closed: bool,
}

impl Inbox {
    /// Puts a connection in, or gives it back if the inbox is full or closed.
    pub fn push(&self, arrival: Arrival) -> Result<(), Arrival> {
        let mut state = self.lock();
        if state.closed || state.queue.len() >= ROOM {
            return Err(arrival);
        }
        state.queue.push_back(arrival);
        let waiting = state.queue.len();
        self.waiting.store(waiting, Ordering::Relaxed);
        drop(state);
        if waiting == 1 {
            // For those after the first one the taker has been woken already, and it takes all.
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Whether there is room just now; only a hint.
    pub fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < ROOM
    }

    /// Waits until there may be something to take.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// All that is in it.
    pub fn take(&self) -> VecDeque<Arrival> {
        self.take_from(&mut self.lock())
    }

    /// All that is in it; nothing comes in any more.
    pub fn close(&self) -> VecDeque<Arrival> {
        let mut state = self.lock();
        state.closed = true;
        self.take_from(&mut state)
    }

    fn take_from(&self, state: &mut State) -> VecDeque<Arrival> {
        self.waiting.store(0, Ordering::Relaxed);
        std::mem::take(&mut state.queue)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can leave the queue half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::balance::tests::Bench;

    #[tokio::test(flavor = "current_thread")]
    async fn whoever_waits_is_woken_once_for_all_that_came() {
        let (bench, inbox) = (Bench::new(1), Inbox::default());
        for _ in 0..3 {
            assert!(inbox.push(bench.arrival().0).is_ok());
        }
        inbox.arrived().await;
        assert_eq!(inbox.take().len(), 3);
        assert!(inbox.push(bench.arrival().0).is_ok());
        inbox.arrived().await;
        assert_eq!(inbox.take().len(), 1);
    }

    #[test]
    fn it_is_bounded_and_gives_back_what_it_has_no_room_for() {
        let (bench, inbox) = (Bench::new(1), Inbox::default());
        for _ in 0..ROOM {
            assert!(inbox.has_room());
            assert!(inbox.push(bench.arrival().0).is_ok());
        }
        assert!(!inbox.has_room());
        assert!(inbox.push(bench.arrival().0).is_err());
        assert_eq!(inbox.take().len(), ROOM);
        assert!(inbox.has_room());
    }

    #[test]
    fn what_comes_after_the_close_goes_back_and_what_is_dropped_is_reset() {
        use std::io::{ErrorKind, Read};
        let (bench, inbox) = (Bench::new(1), Inbox::default());
        let (arrival, mut client) = bench.arrival();
        assert!(inbox.push(arrival).is_ok());
        let left = inbox.close();
        assert_eq!(left.len(), 1);
        assert!(inbox.push(bench.arrival().0).is_err());
        assert!(inbox.take().is_empty());
        drop(left);
        assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(bench.process().active(), 0);
    }
}
