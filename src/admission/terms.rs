//! What permits are given on: the share of the process and the limits in which they count until they are dropped.
//!
//! Owns the step from one config to the next. A permit keeps the terms on which it was given. A limit that stays has
//! its counts under both, so that a permit is given back where it was counted, and counts with those that are given by
//! the new numbers. A limit that is new to a listener counts those who are there already as well: they are *adopted*,
//! as a number, since nobody holds a list of them; of whoever leaves on the old terms, one adopted is given back. What
//! a client alone is allowed isn't known of those who came before anybody asked.
//!
//! Invariant: with the last permit given on some terms, all that they have adopted is given back.

use super::cidr::AccessList;
use super::limiter::Limiter;
use super::process::Share;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Each permit holds these, and else only their gate does: so the number of its holders tells that of the permits.
#[derive(Debug)]
pub struct Terms {
    /// Whether their gate is still there.
    has_gate: AtomicBool,
    pub share: Arc<Share>,
    /// `None` where only the process has limits.
    pub own: Option<Box<Own>>,
    /// Permits that hold nothing of the limits because these are a dry run.
    unheld: AtomicUsize,
    /// Whether there is anything in the next one: then each permit that is dropped has to look.
    has_adopted: AtomicBool,
    adopted: Mutex<Vec<Adopted>>,
}

/// The limits of a listener, its own and those that it shares.
#[derive(Debug)]
pub struct Own {
    pub access: Option<AccessList>,
    /// The listener's own first.
    pub limiters: Box<[Arc<Limiter>]>,
    pub dry_run: bool,
}

/// Permits that are counted by a limit under which they weren't given.
#[derive(Debug)]
struct Adopted {
    by: Arc<Limiter>,
    count: usize,
    /// Only of those permits that hold nothing of the limits.
    unheld_only: bool,
}

impl Terms {
    pub fn new(share: Arc<Share>, own: Option<Box<Own>>) -> Self {
        Self {
            has_gate: AtomicBool::new(true),
            share,
            own,
            unheld: AtomicUsize::new(0),
            has_adopted: AtomicBool::new(false),
            adopted: Mutex::default(),
        }
    }

    pub fn limiters(&self) -> &[Arc<Limiter>] {
        self.own.as_ref().map_or(&[], |own| &own.limiters)
    }

    fn is_dry_run(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.dry_run)
    }

    /// Their gate goes.
    pub fn outlive(&self) {
        self.has_gate.store(false, Ordering::Relaxed);
    }

    /// Those that are given on these terms; asked by somebody who holds these himself.
    fn permits(self: &Arc<Self>) -> usize {
        Arc::strong_count(self).saturating_sub(1 + usize::from(self.has_gate.load(Ordering::Relaxed)))
    }

    /// A permit that holds nothing of limits that there are.
    pub fn count_unheld(&self) {
        self.unheld.fetch_add(1, Ordering::Relaxed);
    }

    /// A permit goes; `held` says whether it holds its part of the limits, which is given back elsewhere.
    pub fn leave(&self, held: bool) {
        self.share.leave();
        if !held && self.own.is_some() {
            self.unheld.fetch_sub(1, Ordering::Relaxed);
        }
        if self.has_adopted.load(Ordering::Relaxed) {
            self.give_one_back(held);
        }
    }

    #[cold]
    fn give_one_back(&self, held: bool) {
        for adopted in self.adopted().iter_mut().filter(|adopted| !(held && adopted.unheld_only)) {
            if adopted.count > 0 {
                adopted.count -= 1;
                adopted.by.leave();
            }
        }
    }

    /// The limits of `next`, which follows these, count whom they would count had they been there before.
    fn be_adopted(self: &Arc<Self>, next: &Self) {
        for by in next.limiters() {
            let holds = self.limiters().iter().any(|own| own.counts_with(by));
            let mut adopted = self.adopted();
            if adopted.iter().any(|adopted| adopted.by.counts_with(by)) {
                continue;
            }
            let count = match (holds, self.is_dry_run()) {
                (false, _) => self.permits(),
                (true, true) if !next.is_dry_run() => self.unheld.load(Ordering::Relaxed),
                (true, _) => 0,
            };
            if count > 0 {
                by.adopt(count);
                adopted.push(Adopted { by: Arc::clone(by), count, unheld_only: holds });
                self.has_adopted.store(true, Ordering::Relaxed);
            }
        }
    }

    fn adopted(&self) -> MutexGuard<'_, Vec<Adopted>> {
        // Whole at each instant.
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Terms {
    fn drop(&mut self) {
        // Of permits that went just as they were adopted.
        for Adopted { by, count, .. } in self.adopted().drain(..) {
            (0..count).for_each(|_| by.leave());
        }
    }
}

/// The terms that came before a listener's present ones, as long as somebody holds a permit on them.
#[derive(Clone, Debug, Default)]
pub struct Before(Vec<Weak<Terms>>);

impl Before {
    /// Those that come before whatever follows `last`.
    pub fn with(&self, last: &Arc<Terms>) -> Self {
        let living = self.0.iter().filter(|terms| terms.strong_count() > 0).cloned();
        Self(living.chain([Arc::downgrade(last)]).collect())
    }

    /// See [`Terms::be_adopted`].
    pub fn be_adopted(&self, next: &Terms) {
        self.0.iter().filter_map(Weak::upgrade).for_each(|terms| terms.be_adopted(next));
    }
}
