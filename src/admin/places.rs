//! The places of the endpoint's connections: so many at once, and who makes room when one more comes.
//!
//! Owns that choice: of those that ask for nothing, whoever is so for longest; where there is none, of those whose
//! answer is made and that take their time to read it. Those have no more than three quarters of the places, and make
//! room among themselves beyond that: else, with all of them, the next one who comes would be the only one to ask for
//! nothing yet, and would go for the one after it before it has said a word. So nobody keeps others out by holding
//! connections, nobody loses an answer to one who only came as long as few read slowly, and no request is given up for
//! another before its answer has been made.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

pub struct Places {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// Connections for which something is being done.
    busy: usize,
    /// Those that have not taken all of an answer, with the one that is so for longest first.
    reading: BTreeMap<u64, Arc<Notify>>,
    /// The others, in the same order.
    idle: BTreeMap<u64, Arc<Notify>>,
    next: u64,
}

impl Taken {
    fn key(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn count(&self) -> usize {
        self.busy + self.reading.len() + self.idle.len()
    }

    fn remove(&mut self, key: u64) -> Option<Arc<Notify>> {
        self.idle.remove(&key).or_else(|| self.reading.remove(&key))
    }
}

/// The place of one connection, until it is dropped.
pub struct Place {
    places: Arc<Places>,
    /// Its key while nothing is being done.
    key: AtomicU64,
    leave: Arc<Notify>,
}

/// Something that is being done for a connection, until it is dropped: then there is an answer to be written.
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
        let is_full = taken.count() >= self.most;
        if is_full {
            let too_many_read = taken.reading.len() > self.most - self.most / 4;
            let idle = if too_many_read { None } else { taken.idle.pop_first() };
            let leaves = idle.or_else(|| taken.reading.pop_first());
            leaves?.1.notify_one();
        }
        let (key, leave) = (taken.key(), Arc::new(Notify::new()));
        taken.idle.insert(key, Arc::clone(&leave));
        Some((Place { places: Arc::clone(self), key: key.into(), leave }, is_full))
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// From here on it isn't asked to leave.
    pub fn work(&self) -> Work<'_> {
        let mut taken = self.places.lock();
        let is_counted = taken.remove(self.key.load(Relaxed)).is_some();
        taken.busy += usize::from(is_counted);
        Work { place: self, is_counted }
    }

    /// All that there was to be written has been.
    fn written(&self) {
        let mut taken = self.places.lock();
        if let Some(leave) = taken.reading.remove(&self.key.load(Relaxed)) {
            let key = taken.key();
            taken.idle.insert(key, leave);
            self.key.store(key, Relaxed);
        }
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
            let key = taken.key();
            taken.reading.insert(key, Arc::clone(&self.place.leave));
            self.place.key.store(key, Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().remove(self.key.load(Relaxed));
    }
}

/// A connection's stream, which tells its place when an answer has been written: the library flushes it when it has
/// nothing more to write.
pub struct Written<'p, S> {
    pub stream: S,
    pub place: &'p Place,
}

impl<S: AsyncRead + Unpin> AsyncRead for Written<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Written<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.place.written();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
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
        first.written();
        let (fourth, told) = take();
        assert!(told && is_told(&second) && ![&first, &third, &fourth].into_iter().any(is_told));
        drop(second);
        let (third_works, fourth_works) = (third.work(), fourth.work());
        let (fifth, told) = take();
        assert!(told && is_told(&first) && !is_told(&third));
        // Those that read an answer come last.
        drop((third_works, fourth_works));
        let (sixth, told) = take();
        assert!(told && is_told(&fifth) && ![&third, &fourth, &sixth].into_iter().any(is_told));
        let sixth_works = sixth.work();
        let (seventh, told) = take();
        assert!(told && is_told(&third) && ![&fourth, &sixth, &seventh].into_iter().any(is_told));
        let (fourth_works, seventh_works) = (fourth.work(), seventh.work());
        // Who was told and asks for something all the same is in nobody's way.
        drop(first.work());
        drop(first);
        assert!(places.take().is_none(), "something is being done for all");
        drop((fourth_works, sixth_works, seventh_works));
        drop((third, fourth, fifth, sixth, seventh));
        assert_eq!(places.lock().count(), 0);
    }

    #[test]
    fn those_who_read_slowly_leave_a_quarter_of_the_places_to_others() {
        let places = Places::new(8);
        let take = || places.take().unwrap().0;
        let readers: Vec<Place> = (0..8).map(|_| take()).collect();
        for reader in &readers {
            drop(reader.work());
        }
        // Neither goes before it has asked for anything, though nobody but they asks for nothing.
        let (first, second) = (take(), take());
        let told = |all: &[Place]| all.iter().filter(|place| is_told(place)).count();
        assert_eq!((told(&readers[..2]), told(&readers[2..])), (2, 0));
        assert!(!is_told(&first) && !is_told(&second));
        // Six may read in peace.
        let third = take();
        assert!(is_told(&first) && !is_told(&second) && !is_told(&third));
        assert_eq!(told(&readers[2..]), 0);
        // Who has been answered, and takes the answer, is one of those that ask for nothing again.
        drop(second.work());
        second.written();
        let fourth = take();
        assert!(is_told(&third) && !is_told(&second) && !is_told(&fourth));
    }
}
