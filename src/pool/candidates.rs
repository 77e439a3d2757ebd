//! What a picker chooses among: the backends of a view that this claim may have.
//!
//! Owns the question "may it?", which a claim asks of one backend after the other. Invariant: a slot that is handed out
//! has its place in the backend's count, in its pace if there is one, and in its trial if it is half open.

use super::backend::{Backend, WHOLE_SHARE, flag};
use super::slot::Slot;
use super::view::{Ask, PoolView};
use crate::clock::Millis;
use crate::rng::Rng;
use std::sync::Arc;

/// Which backends a claim may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Available ones, up to this tier; and half-open ones, for their trial.
    Tiers(u8),
    /// The same, of every tier.
    Everywhere,
    /// All that are enabled, up to this tier, whatever their state.
    Enabled(u8),
}

#[derive(Clone, Copy)]
pub(super) struct Candidates<'a> {
    pub view: &'a PoolView,
    pub ask: &'a Ask<'a>,
    pub reach: Reach,
    /// The longest wait, in ms, for a backend whose connects are paced.
    pub patience: Millis,
    /// Whether a backend that starts slowly passes on most of its turns.
    pub by_share: bool,
    /// Whether those that are full count as well, for whoever asks what it would have if it waited.
    pub even_full: bool,
}

impl Candidates<'_> {
    pub fn len(&self) -> usize {
        self.view.backends.len()
    }

    pub fn tried(&self) -> &super::Tried {
        self.ask.tried
    }

    /// The hash of what its policy goes by; see [`Wish::key`](super::Wish::key).
    pub fn key(&self) -> u64 {
        self.ask.key
    }

    pub fn now(&self) -> Millis {
        self.ask.now
    }

    pub fn backend(&self, index: usize) -> &Backend {
        &self.view.backends[index]
    }

    pub fn usable(&self, index: usize) -> bool {
        self.may_have(index, self.view.backends[index].flags())
    }

    pub fn any_usable(&self) -> bool {
        (0..self.len()).any(|index| self.usable(index))
    }

    pub fn all_usable(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).filter(|&index| self.usable(index))
    }

    /// The share of its turns, from 0 to 1, that a backend doesn't pass on.
    pub fn kept(&self, index: usize) -> f64 {
        if self.by_share { f64::from(self.view.backends[index].share()) / f64::from(WHOLE_SHARE) } else { 1.0 }
    }

    /// The last tier that it may have, if there is a bound.
    pub fn last_tier(&self) -> Option<u8> {
        match self.reach {
            Reach::Tiers(last) | Reach::Enabled(last) => Some(last),
            Reach::Everywhere => None,
        }
    }

    /// Whether a backend may be had in spite of this flag.
    pub fn overlooks(&self, bit: u32) -> bool {
        matches!(self.reach, Reach::Enabled(_)) && bit & flag::OUT == 0
    }

    /// The backend's weight as it counts just now, in parts of [`WHOLE_SHARE`].
    pub fn weight(&self, index: usize) -> u64 {
        u64::from(self.view.weights[index]) * u64::from(self.view.backends[index].share())
    }

    pub fn configured_weight(&self, index: usize) -> u16 {
        self.view.weights[index]
    }

    /// Whether this claim may have the backend, which by chance passes its turn on if it starts slowly.
    pub fn accepts(&self, index: usize, rng: &mut Rng) -> bool {
        let flags = self.view.backends[index].flags();
        self.may_have(index, flags) && !self.passes_on(index, flags, rng)
    }

    /// `None` if this claim may not have the backend, or if it passes its turn on because it starts slowly.
    pub fn claim(&self, index: usize, rng: &mut Rng) -> Option<Slot> {
        let flags = self.view.backends[index].flags();
        if self.may_have(index, flags) && !self.passes_on(index, flags, rng) { self.grab(index, flags) } else { None }
    }

    /// As [`accepts`](Self::accepts), by the key instead of by chance.
    pub fn accepts_key(&self, index: usize) -> bool {
        let flags = self.view.backends[index].flags();
        self.may_have(index, flags) && !self.passes_key_on(index, flags)
    }

    /// As [`claim`](Self::claim), by the key instead of by chance.
    pub fn claim_by_key(&self, index: usize) -> Option<Slot> {
        let flags = self.view.backends[index].flags();
        if self.may_have(index, flags) && !self.passes_key_on(index, flags) { self.grab(index, flags) } else { None }
    }

    /// As [`claim`](Self::claim), for a policy that has weighed the shares itself.
    pub fn take(&self, index: usize) -> Option<Slot> {
        let flags = self.view.backends[index].flags();
        if self.may_have(index, flags) { self.grab(index, flags) } else { None }
    }

    fn passes_on(&self, index: usize, flags: u32, rng: &mut Rng) -> bool {
        flags & flag::REDUCED != 0
            && self.by_share
            && rng.below(WHOLE_SHARE.into()) >= u64::from(self.view.backends[index].share())
    }

    /// The same keys are passed on while the share stays, and fewer of them as it grows. The upper bits of a key have
    /// nothing to do with its place in a table.
    fn passes_key_on(&self, index: usize, flags: u32) -> bool {
        const _: () = assert!(WHOLE_SHARE == 1 << 10);
        flags & flag::REDUCED != 0 && self.by_share && self.key() >> 54 >= u64::from(self.view.backends[index].share())
    }

    /// A backend with these flags that this claim may have.
    fn grab(&self, index: usize, flags: u32) -> Option<Slot> {
        let backend: &Arc<Backend> = &self.view.backends[index];
        let mut slot = backend.claim().ok()?;
        if flags & flag::HALF_OPEN != 0 {
            // In panic others come beside the trial; without one, nobody could ever end the panic.
            if let Some(number) = backend.begin_trial(self.ask.now) {
                slot.put_on_trial(number);
            } else if !matches!(self.reach, Reach::Enabled(_)) {
                return None;
            }
        }
        if let Some(rate) = self.ask.max_rate {
            slot.put_off(backend.pace.take(rate, self.ask.now, self.patience)?);
        }
        Some(slot)
    }

    /// The first success of claiming each one in turn, from `start` on and around.
    pub fn claim_from(&self, start: usize, rng: &mut Rng) -> Option<Slot> {
        (start..self.len()).chain(0..start).find_map(|index| self.claim(index, rng))
    }

    /// All indices, from one on that follows from the key, and around.
    pub fn around(&self) -> impl Iterator<Item = usize> + use<> {
        let (len, start) = (self.len(), self.key() % self.len().max(1) as u64);
        (start as usize..len).chain(0..start as usize)
    }

    /// The same by [`take`](Self::take).
    pub fn take_from(&self, start: usize) -> Option<Slot> {
        (start..self.len()).chain(0..start).find_map(|index| self.take(index))
    }

    fn may_have(&self, index: usize, flags: u32) -> bool {
        let backend = &self.view.backends[index];
        // Mostly nothing stands in the way, nothing has been tried, and there is one tier.
        let within_reach = match self.reach {
            Reach::Tiers(last) => is_good(flags) && self.view.tiers[index] <= last,
            Reach::Everywhere => is_good(flags),
            Reach::Enabled(last) => flags & flag::OUT == 0 && self.view.tiers[index] <= last,
        };
        within_reach
            && (!backend.is_full() || self.even_full)
            && !self.ask.tried.contains(backend.id)
            && (self.ask.max_rate.is_none() || backend.pace.wait(self.ask.now) <= self.patience)
    }
}

/// Available but for its count, or half open and waiting for its trial.
pub(super) fn is_good(flags: u32) -> bool {
    let obstacles = flags & !flag::REDUCED;
    obstacles == 0 || obstacles == flag::HALF_OPEN
}
