//! The right to one connection on a backend, as a guard.
//!
//! Owns what must be given back: the place in the backend's count, and in the pool's where there is such a count, and
//! the trial of a half-open backend.

use super::backend::Backend;
use crate::clock::Millis;
use std::ops::Deref;
use std::sync::Arc;

/// The backend has as many connections as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The right to one connection on a backend, from before the connect until the session has ended.
#[must_use = "a slot that is dropped at once reserves nothing"]
pub struct Slot {
    backend: Arc<Backend>,
    /// The number of the trial, with [`ON_TRIAL`].
    trial: u16,
    /// What is to be given back beside the place: mostly nothing.
    also: u8,
    /// In ms.
    wait: u32,
}

/// Its connection decides whether a half-open backend comes back; given back undecided at the end.
const ON_TRIAL: u8 = 1;
/// It is in the count of the whole pool.
const IN_TOTAL: u8 = 2;

impl Slot {
    /// For a place that has been counted.
    pub(super) fn new(backend: Arc<Backend>) -> Self {
        Self { backend, trial: 0, also: 0, wait: 0 }
    }

    /// The backend itself, for whoever outlives the slot.
    #[must_use]
    pub fn backend(&self) -> Arc<Backend> {
        Arc::clone(&self.backend)
    }

    /// How long to wait with the connect, for the pace of the backend's connects.
    #[must_use]
    pub fn wait(&self) -> Millis {
        self.wait.into()
    }

    /// More than fits, some 50 days, is no wait that anybody has the patience for.
    pub(super) fn put_off(&mut self, wait: Millis) {
        self.wait = wait.try_into().unwrap_or(u32::MAX);
    }

    #[must_use]
    pub fn is_on_trial(&self) -> bool {
        self.also & ON_TRIAL != 0
    }

    pub(super) fn put_on_trial(&mut self, number: u16) {
        self.trial = number;
        self.also |= ON_TRIAL;
    }

    /// Counts it among those of the pool.
    pub(super) fn count_in_total(&mut self) {
        self.also |= IN_TOTAL;
        self.backend.total.add();
    }

    #[cold]
    fn give_back_the_rest(&self) {
        if self.also & IN_TOTAL != 0 {
            self.backend.total.sub();
        }
        if self.is_on_trial() {
            self.backend.end_trial(self.trial);
        }
    }
}

impl Deref for Slot {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.backend
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.backend.release();
        if self.also != 0 {
            self.give_back_the_rest();
        }
    }
}
