//! Looking at sessions without touching them, a few at a time, and giving an order to one.
//!
//! Owns nothing. Between two looks sessions come and go: each that is there all the time is seen once.

use super::flow::CHUNK;
use super::{Engine, Millis, Order, Owner};
use std::ops::Range;
use std::time::{Duration, Instant};

/// One session, as it is now.
pub struct Seen<'a, O> {
    /// Where it can be found again, as long as it lives.
    pub place: usize,
    pub owner: &'a O,
    pub last_moved: Instant,
    /// Its end is decided; what was read is still being delivered.
    pub is_closing: bool,
}

impl<O: Owner> Engine<O> {
    /// All places there are; those that are free included.
    #[must_use]
    pub fn places(&self) -> Range<usize> {
        0..self.entries.capacity()
    }

    /// Whoever is at this place.
    #[must_use]
    pub fn look_at(&self, place: usize) -> Option<Seen<'_, O>> {
        let entry = self.entries.get(place)?;
        let (last_moved, owner) = entry.last_moved_and_owner();
        let last_moved = self.started + Duration::from_millis(last_moved);
        Some(Seen { place, owner, last_moved, is_closing: entry.is_closing() })
    }

    /// Ends the session at this place, if there is one that isn't ending yet.
    pub fn order(&mut self, place: usize, order: Order, now: Instant) {
        let now = self.millis(now);
        if self.entries.get(place).is_some_and(|entry| !entry.is_closing()) {
            self.obey(place, order, now);
            self.woken.notify_one();
        }
    }

    /// Ends one that isn't ending yet. What its backend had said before the verdict may be here, and nobody have read
    /// it yet: it comes first, or its client would get neither an answer nor another backend.
    pub(super) fn obey(&mut self, key: usize, order: Order, now: Millis) {
        if order == Order::BackendDown
            && let Some(entry) = self.entries.get_mut(key)
        {
            entry.look_for_last_words();
            self.step(key, CHUNK, now);
        }
        if let Some(entry) = self.entries.get_mut(key).filter(|entry| !entry.is_closing()) {
            entry.obey(order, now);
            self.step(key, CHUNK, now);
        }
    }
}
