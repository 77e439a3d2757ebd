//! The right to one connection on a backend, as a guard.
//!
//! Owns what must be given back: the place in the backend's count, and the trial of a half-open backend.

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
    /// The number of the trial, if its connection decides whether a half-open backend comes back; given back undecided
    /// at the end.
    trial: Option<u16>,
    /// In ms.
    wait: u32,
}

impl Slot {
    /// For a place that has been counted.
    pub(super) fn new(backend: Arc<Backend>) -> Self {
        Self { backend, trial: None, wait: 0 }
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
        self.trial.is_some()
    }

    pub(super) fn put_on_trial(&mut self, number: u16) {
        self.trial = Some(number);
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
        if let Some(number) = self.trial {
            self.backend.end_trial(number);
        }
    }
}
