//! The waiting list and the count of a backend, with every order in which several workers can touch them: `loom` runs
//! each test once for each of these, up to a bound on how often it switches.
//!
//! The two modules are compiled from the sources as they are, over loom's atomics and locks.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use loom::future::block_on;
use loom::model::Builder;
use loom::thread;
use queue::{Terms, Turn, Waiter, WaitingList};
use std::sync::Arc;
use sync::{AtomicU32, Ordering};
use tidegate::{clock, config};

#[path = "../../src/pool/count.rs"]
#[allow(dead_code, reason = "what one test of many doesn't use")]
mod count;
#[path = "../../src/pool/queue/mod.rs"]
#[allow(dead_code, reason = "what one test of many doesn't use")]
mod queue;

mod sync {
    pub use loom::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
    pub use loom::sync::{Mutex, MutexGuard};
}

/// One backend, and those that wait for it.
struct Pool {
    count: count::Count,
    waiting: Arc<WaitingList>,
    /// Connections that really are there.
    open: AtomicU32,
    most: u32,
}

impl Pool {
    fn new(most: u32) -> Arc<Self> {
        let waiting = Arc::new(WaitingList::new());
        waiting.renew(Terms { max_waiting: 10, max_wait: 1_000, order: config::Order::Fifo });
        Arc::new(Self { count: count::Count::new(most), waiting, open: AtomicU32::new(0), most })
    }

    fn claim(&self) -> bool {
        let claimed = self.count.claim();
        if claimed {
            let before = self.open.fetch_add(1, Ordering::Relaxed);
            assert!(before < self.most, "{} connections at once", before + 1);
        }
        claimed
    }

    fn release(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if self.count.release() {
            self.waiting.nudge_seen(false);
        }
    }

    /// As a session: at once if nobody waits, else by the queue. A wake-up that is lost is a deadlock, which loom
    /// reports.
    fn claim_or_wait(&self) {
        if self.waiting.is_empty() && self.claim() {
            return;
        }
        self.wait(self.waiting.enter(None, false, 1).unwrap());
    }

    fn wait(&self, mut waiter: Waiter) {
        block_on(async {
            loop {
                assert_eq!(waiter.turn().await, Turn::Try);
                if self.claim() {
                    break;
                }
                waiter.failed();
            }
        });
        waiter.served(1);
    }
}

fn check(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

#[test]
fn a_place_that_comes_free_finds_the_one_that_waits_for_it() {
    check(|| {
        let pool = Pool::new(1);
        assert!(pool.claim());
        let other = Arc::clone(&pool);
        let session = thread::spawn(move || {
            other.claim_or_wait();
            other.release();
        });
        pool.release();
        session.join().unwrap();
        assert_eq!((pool.count.active(), pool.waiting.len()), (0, 0));
    });
}

#[test]
fn two_that_wait_for_one_place_are_served_one_after_the_other() {
    check(|| {
        let pool = Pool::new(1);
        assert!(pool.claim());
        let sessions: Vec<_> = (0..2)
            .map(|_| {
                let pool = Arc::clone(&pool);
                thread::spawn(move || {
                    pool.claim_or_wait();
                    pool.release();
                })
            })
            .collect();
        pool.release();
        for session in sessions {
            session.join().unwrap();
        }
        assert_eq!((pool.count.active(), pool.waiting.len()), (0, 0));
    });
}

/// The one that leaves may have been told of the place already.
#[test]
fn one_that_leaves_takes_no_turn_with_it() {
    check(|| {
        let pool = Pool::new(1);
        assert!(pool.claim());
        let fickle = pool.waiting.enter(None, false, 1).unwrap();
        let other = Arc::clone(&pool);
        let session = thread::spawn(move || {
            other.claim_or_wait();
            other.release();
        });
        let leaves = thread::spawn(move || drop(fickle));
        pool.release();
        leaves.join().unwrap();
        session.join().unwrap();
        assert_eq!((pool.count.active(), pool.waiting.len()), (0, 0));
    });
}

#[test]
fn a_maximum_that_is_raised_lets_in_those_that_wait() {
    check(|| {
        let pool = Pool::new(2);
        pool.count.set_max(1);
        assert!(pool.claim());
        let other = Arc::clone(&pool);
        let session = thread::spawn(move || other.claim_or_wait());
        pool.count.set_max(2);
        pool.waiting.nudge(true);
        session.join().unwrap();
        assert_eq!((pool.count.active(), pool.waiting.len()), (2, 0));
    });
}

/// Each of the two places tells one of those that wait, and whoever is come to first may leave its turn to the other.
#[test]
fn two_places_that_come_free_are_had_by_the_two_that_wait() {
    check(|| {
        let pool = Pool::new(2);
        assert!(pool.claim() && pool.claim());
        let [first, second] = [(); 2].map(|()| pool.waiting.enter(None, false, 1).unwrap());
        let other = Arc::clone(&pool);
        let session = thread::spawn(move || other.wait(first));
        pool.release();
        pool.release();
        pool.wait(second);
        session.join().unwrap();
        assert_eq!((pool.count.active(), pool.waiting.len()), (2, 0));
    });
}
