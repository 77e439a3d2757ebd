//! The places of the endpoint's connections: so many at once, and who makes room when one more comes.
//!
//! Owns that choice: of those for whom nothing is being done, whoever is so for longest. So nobody keeps others out by
//! holding connections, and no request is given up for another before its answer has been made.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

pub struct Places {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// Connections for which something is being done.
    busy: usize,
    /// The others, with the one that is so for longest first.
    idle: BTreeMap<u64, Arc<Notify>>,
    next: u64,
}

impl Taken {
    fn rest(&mut self, leave: &Arc<Notify>) -> u64 {
        self.next += 1;
        self.idle.insert(self.next, Arc::clone(leave));
        self.next
    }
}

/// The place of one connection, until it is dropped.
pub struct Place {
    places: Arc<Places>,
    /// Its key while nothing is being done.
    key: AtomicU64,
    leave: Arc<Notify>,
}

/// Something that is being done for a connection, until it is dropped.
pub struct Work<'a> {
    place: &'a Place,
    /// It had its place still.
    is_counted: bool,
}

impl Places {
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    /// A place for one more, and whether another is told to leave for it; `None` if something is being done for all.
    pub fn take(self: &Arc<Self>) -> Option<(Place, bool)> {
        let mut taken = self.lock();
        let is_full = taken.busy + taken.idle.len() >= self.most;
        if is_full {
            taken.idle.pop_first()?.1.notify_one();
        }
        let leave = Arc::new(Notify::new());
        let key = taken.rest(&leave).into();
        Some((Place { places: Arc::clone(self), key, leave }, is_full))
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// From here on it isn't asked to leave.
    pub fn work(&self) -> Work<'_> {
        let mut taken = self.places.lock();
        let is_counted = taken.idle.remove(&self.key.load(Relaxed)).is_some();
        taken.busy += usize::from(is_counted);
        Work { place: self, is_counted }
    }

    /// Completes when it is to make room for another.
    pub async fn leave(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if self.is_counted {
            let mut taken = self.place.places.lock();
            taken.busy -= 1;
            self.place.key.store(taken.rest(&self.place.leave), Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().idle.remove(&self.key.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn is_told(place: &Place) -> bool {
        pin!(place.leave()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn whoever_waits_for_nothing_for_longest_makes_room() {
        let places = Places::new(3);
        let take = || places.take().unwrap();
        let ((first, _), (second, _), (third, told)) = (take(), take(), take());
        assert!(!told);
        // It is the youngest now.
        drop(first.work());
        let (fourth, told) = take();
        assert!(told && is_told(&second) && ![&first, &third, &fourth].into_iter().any(is_told));
        drop(second);
        let (third_works, fourth_works) = (third.work(), fourth.work());
        let (fifth, told) = take();
        assert!(told && is_told(&first) && !is_told(&third));
        // Who was told and asks for something all the same is in nobody's way.
        drop(first.work());
        drop(first);
        let fifth_works = fifth.work();
        assert!(places.take().is_none(), "something is being done for all");
        drop((fourth_works, third_works, fifth_works));
        drop((third, fourth, fifth));
        let places = places.lock();
        assert_eq!((places.busy, places.idle.len()), (0, 0));
    }
}
