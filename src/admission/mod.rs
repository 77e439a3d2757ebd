//! May this connection be served at all: the limits of the process, of a listener, of several listeners together and
//! of each client.
//!
//! A listener has a [`Gate`]. It asks the networks (`cidr`), then each set of limits (`limiter`, with `rate` and
//! `clients`), then the process (`process`). Pure but for atomics and small locks: the time is handed in, and what a
//! client finds that is refused is the acceptor's business. Where clients are to wait instead, what needs no address is
//! asked before one is accepted: [`Gate::before_accept`].
//!
//! A new config is new gates, each of which follows the one of its listener: [`succeed`] is the moment at which these
//! hold. What was let in stays, and counts by the new numbers; see `terms`.
//!
//! Invariants: a [`Permit`] holds every count until it is dropped; what is refused by one limit is not held against
//! anybody by another; a dry run changes nobody's fate, and counts as if those that it would have refused weren't
//! there. Without limits of its own, a gate costs one branch. Next: `session::acceptor`, which asks.

mod cidr;
mod clients;
mod limiter;
mod pressure;
mod process;
mod rate;
mod terms;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_reload;

pub use cidr::AccessList;
pub use limiter::Limiter;
pub use pressure::Pressure;
pub use process::{Process, Share};

use crate::clock::{Deadline, Nanos};
use crate::config::{self, Config, Overload};
use crate::metrics::{Bound, Metrics, Scope};
use crate::name::{ClientAddr, LimitName, ListenerName};
use clients::Slot;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use terms::{Before, Own, Terms};

/// What is asked for each connection of one listener.
#[derive(Debug)]
pub struct Gate {
    terms: Arc<Terms>,
    /// What came before these, for a listener that had another gate.
    before: Before,
    reserved: usize,
    /// What was configured.
    overload: Option<Overload>,
    /// Whether clients wait where the process has no place.
    process_waits: bool,
    bounded_by_fds: bool,
    /// How often clients were found waiting for each of [`WAITED_FOR`].
    delays: Arc<[AtomicU64; WAITED_FOR.len()]>,
    /// Until when those may stay that it has let in; one for all gates of a listener that follow each other.
    pub deadline: Arc<Deadline>,
}

/// Why a client isn't served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub scope: Scope,
    pub bound: Bound,
}

/// Why nobody is accepted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    pub why: Refusal,
    /// When it is worth to ask again, where that is known.
    pub retry_in: Option<Nanos>,
}

/// All limits that listeners share, by name.
#[derive(Debug, Default)]
pub struct SharedLimits(Vec<(LimitName, Arc<Limiter>)>);

impl SharedLimits {
    /// Keeps the counts of the limits of `previous` with the same names. Until [`succeed`] all is as it was.
    #[must_use]
    pub fn new(config: &Config, metrics: &Arc<Metrics>, previous: Option<&Self>) -> Self {
        let limiter = |wanted: &config::SharedLimit| {
            let known = previous.and_then(|previous| previous.get(&wanted.name));
            let new = || Arc::new(Limiter::new(Scope::Shared, wanted.name.as_str(), wanted.limits, metrics));
            (wanted.name.clone(), known.map_or_else(new, |known| follow(known, wanted.limits)))
        };
        Self(config.limits.iter().map(limiter).collect())
    }

    fn get(&self, name: &LimitName) -> Option<&Arc<Limiter>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, limiter)| limiter)
    }
}

/// The limiter itself, if it has these limits, or one that follows it.
fn follow(known: &Arc<Limiter>, limits: config::Limits) -> Arc<Limiter> {
    if known.limits == limits { Arc::clone(known) } else { Arc::new(Limiter::following(known, limits)) }
}

/// The moment at which the gates of a new config hold in place of those before it: to be called once that is certain,
/// and before the first client is let in by them. What has changed no more is done again.
pub fn succeed<'a>(before: impl Iterator<Item = &'a Gate> + Clone, after: &[&Gate], now: Nanos) {
    for gate in after {
        gate.limiters().iter().for_each(|limiter| limiter.take_over(now));
        gate.before.be_adopted(&gate.terms);
        gate.terms.share.set_reserved(gate.reserved);
    }
    for gate in
        before.clone().filter(|gate| !after.iter().any(|kept| Arc::ptr_eq(&kept.terms.share, &gate.terms.share)))
    {
        // Of a listener that isn't there any more: what it has let in stays, without a reserve.
        gate.terms.share.set_reserved(0);
    }
    let is_asked = |limiter: &&Arc<Limiter>| {
        after.iter().flat_map(|gate| gate.limiters()).any(|asked| Arc::ptr_eq(asked, limiter))
    };
    before.flat_map(Gate::limiters).filter(|limiter| !is_asked(limiter)).for_each(|limiter| limiter.metrics.retire());
}

/// What gates are made from, besides their listener.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    pub process: &'a Arc<Process>,
    pub shared: &'a SharedLimits,
    pub metrics: &'a Arc<Metrics>,
    /// Whether nothing but the file descriptors bounds the process: clients wait for these.
    pub bounded_by_fds: bool,
}

impl Gate {
    /// Goes on with the counts of `previous`, the gate that the listener had before. Until [`succeed`] all is as it
    /// was.
    #[must_use]
    pub fn new(name: &ListenerName, wanted: &config::Admission, around: Around<'_>, previous: Option<&Self>) -> Self {
        let Around { process, shared, metrics, bounded_by_fds } = around;
        let access = AccessList::new(&wanted.allow, &wanted.deny);
        let has_limits = access.is_some() || !wanted.shared.is_empty() || !wanted.limits.bounds_nothing();
        let own = has_limits.then(|| {
            let known = previous.and_then(|gate| gate.limiters().first());
            let new = || Arc::new(Limiter::new(Scope::Listener, name.as_str(), wanted.limits, metrics));
            let listener = known.map_or_else(new, |known| follow(known, wanted.limits));
            let shared = wanted.shared.iter().filter_map(|name| shared.get(name).cloned());
            let limiters = std::iter::once(listener).chain(shared).collect();
            Box::new(Own { access, limiters, dry_run: wanted.dry_run })
        });
        let reserved = wanted.reserved_connections;
        let new = || Arc::new(Share::new(process, reserved));
        let share = previous.map_or_else(new, |gate| Arc::clone(&gate.terms.share));
        Self {
            terms: Arc::new(Terms::new(share, own)),
            before: previous.map(|gate| gate.before.with(&gate.terms)).unwrap_or_default(),
            reserved,
            overload: wanted.overload,
            process_waits: wanted.overload.map_or(bounded_by_fds, |overload| overload == Overload::Wait),
            bounded_by_fds,
            delays: previous.map(|gate| Arc::clone(&gate.delays)).unwrap_or_default(),
            deadline: previous.map(|gate| Arc::clone(&gate.deadline)).unwrap_or_default(),
        }
    }

    /// Of a listener without limits, alone in a process that takes so many connections and refuses others.
    #[must_use]
    pub fn open(name: &ListenerName, max: usize, metrics: &Arc<Metrics>) -> Self {
        let process = &Arc::new(Process::new(max, Pressure::default(), metrics));
        let around = Around { process, shared: &SharedLimits::default(), metrics, bounded_by_fds: false };
        Self::new(name, &config::Admission::default(), around, None)
    }

    /// What is asked before a client is accepted: all that makes clients wait. The answer holds what was asked for
    /// until it is used; a client that waits is not refused, and not counted as such.
    pub fn before_accept(self: &Arc<Self>, now: Nanos) -> Result<Early<'_>, Full> {
        let mut early = Early { gate: self, process: false, limits: false, entries: Vec::new() };
        if self.overload == Some(Overload::Wait) {
            if self.process().pressure.is_low() {
                return Err(Full { why: LOW_MEMORY, retry_in: None });
            }
            if let Some(own) = self.terms.own.as_ref().filter(|own| !own.dry_run) {
                own.enter(now).map_err(|no| Full { why: no.refusal, retry_in: no.retry_in })?;
                early.limits = true;
            }
        }
        if self.process_waits {
            early.process = self.terms.share.enter();
            if !early.process {
                return Err(Full { why: PROCESS_FULL, retry_in: None });
            }
        }
        Ok(early)
    }

    /// Whether a client that is refused gets a FIN instead of a reset.
    #[must_use]
    pub fn refuses_by_fin(&self) -> bool {
        self.overload == Some(Overload::Close)
    }

    /// Whether [`before_accept`](Self::before_accept) needs to know the time.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.overload == Some(Overload::Wait)
    }

    /// Whether clients wait for this because there are too few file descriptors, and not by the operator's word.
    #[must_use]
    pub fn waits_for_descriptors(&self, why: Refusal) -> bool {
        self.bounded_by_fds && why == PROCESS_FULL
    }

    /// Clients were found waiting for this.
    pub fn delay(&self, why: Refusal) {
        if let Some(at) = WAITED_FOR.iter().position(|known| *known == why) {
            self.delays[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often clients were found waiting for each limit. No number of clients: one that waits long is found often.
    pub fn delays(&self) -> impl Iterator<Item = (Refusal, u64)> {
        WAITED_FOR.into_iter().zip(self.delays.iter().map(|delays| delays.load(Ordering::Relaxed)))
    }

    #[must_use]
    pub fn process(&self) -> &Process {
        self.terms.share.process()
    }

    #[must_use]
    pub fn reserved(&self) -> usize {
        self.reserved
    }

    /// What `allow` and `deny` say of a client, whether or not that is a dry run; `None` where there is neither. Those
    /// without an address may come in.
    #[must_use]
    pub fn allows(&self, client: ClientAddr) -> Option<bool> {
        let access = self.terms.own.as_ref()?.access.as_ref()?;
        Some(match client {
            ClientAddr::Tcp(address) => access.allows(address.ip()),
            ClientAddr::Unix => true,
        })
    }

    /// The listener's own limits, then those that it shares.
    #[must_use]
    pub fn limiters(&self) -> &[Arc<Limiter>] {
        self.terms.limiters()
    }

    /// Shows in the metrics how things stand.
    pub fn publish(&self) {
        self.process().publish();
        self.limiters().iter().for_each(|limiter| limiter.publish());
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.terms.outlive();
    }
}

const PROCESS_FULL: Refusal = Refusal { scope: Scope::Process, bound: Bound::Connections };
const LOW_MEMORY: Refusal = Refusal { scope: Scope::Process, bound: Bound::Memory };

/// All that [`Gate::before_accept`] lets clients wait for.
const WAITED_FOR: [Refusal; 6] = [
    PROCESS_FULL,
    LOW_MEMORY,
    Refusal { scope: Scope::Listener, bound: Bound::Connections },
    Refusal { scope: Scope::Listener, bound: Bound::Rate },
    Refusal { scope: Scope::Shared, bound: Bound::Connections },
    Refusal { scope: Scope::Shared, bound: Bound::Rate },
];

/// What a limiter of a listener says no to.
struct No {
    /// Which limiter's refusal it is.
    at: usize,
    refusal: Refusal,
    retry_in: Option<Nanos>,
}

impl Own {
    fn no(&self, at: usize, bound: Bound, retry_in: Option<Nanos>) -> No {
        No { at, refusal: Refusal { scope: self.limiters[at].scope, bound }, retry_in }
    }

    /// What concerns no single client.
    fn enter(&self, now: Nanos) -> Result<(), No> {
        for (at, limiter) in self.limiters.iter().enumerate() {
            if let Err(reached) = limiter.enter(now) {
                self.limiters[..at].iter().for_each(|entered| entered.give_back());
                return Err(self.no(at, reached.bound, reached.retry_in));
            }
        }
        Ok(())
    }

    /// What concerns this client. Whatever it has entered is in `slots`, also if it is refused after all.
    fn enter_client(&self, address: IpAddr, now: Nanos, slots: &mut Vec<Entry>) -> Result<(), No> {
        if self.access.as_ref().is_some_and(|access| !access.allows(address)) {
            return Err(self.no(0, Bound::Access, None));
        }
        for (at, limiter) in self.limiters.iter().enumerate() {
            match limiter.enter_client(address, now) {
                Ok(slot) => slots.extend(slot.map(|slot| Entry { at, slot })),
                Err(bound) => return Err(self.no(at, bound, None)),
            }
        }
        Ok(())
    }
}

/// A client's connection in the table of one limiter.
#[derive(Debug)]
struct Entry {
    at: usize,
    slot: Slot,
}

/// What a client has taken that may yet come to nothing: dropped, all of it is given back.
#[derive(Debug)]
pub struct Early<'a> {
    gate: &'a Arc<Gate>,
    process: bool,
    limits: bool,
    entries: Vec<Entry>,
}

impl Early<'_> {
    /// The right to a session for a client that was accepted, or why there is none.
    pub fn admit(self, client: ClientAddr, now: Nanos) -> Result<Permit, Refusal> {
        self.admit_some(Some(client), now)
    }

    /// The same for a client whose address isn't known yet: of the limits, those that concern no single client. The
    /// others are asked by [`Permit::identify`].
    pub fn admit_unknown(self, now: Nanos) -> Result<Permit, Refusal> {
        self.admit_some(None, now)
    }

    fn admit_some(mut self, client: Option<ClientAddr>, now: Nanos) -> Result<Permit, Refusal> {
        let gate = self.gate;
        if let Some(own) = &gate.terms.own {
            self.enter(own, client, now)?;
        }
        if gate.process().pressure.is_low() {
            return Err(gate.process().refuse(LOW_MEMORY));
        }
        if !self.process && !gate.terms.share.enter() {
            return Err(gate.process().refuse(PROCESS_FULL));
        }
        let entries = std::mem::take(&mut self.entries);
        let held: Option<Box<[Entry]>> = std::mem::take(&mut self.limits).then(|| entries.into());
        self.process = false;
        if held.is_none() && gate.terms.own.is_some() {
            gate.terms.count_unheld();
        }
        Ok(Permit { terms: Arc::clone(&gate.terms), held })
    }

    /// Asks the listener's limits; all of them say yes, or nothing is held of any.
    fn enter(&mut self, own: &Own, client: Option<ClientAddr>, now: Nanos) -> Result<(), Refusal> {
        let answer = match client {
            Some(ClientAddr::Tcp(address)) => own.enter_client(address.ip(), now, &mut self.entries),
            // It has no address: its permission is that of the socket's file. Or nobody knows it yet.
            Some(ClientAddr::Unix) | None => Ok(()),
        };
        let answer = answer.and_then(|()| if self.limits { Ok(()) } else { own.enter(now) });
        match answer {
            Ok(()) => {
                self.limits = true;
                Ok(())
            }
            Err(no) => {
                own.limiters[no.at].metrics.refused(no.refusal.bound, own.dry_run);
                self.give_back_entries();
                if own.dry_run { Ok(()) } else { Err(no.refusal) }
            }
        }
    }

    fn give_back_entries(&mut self) {
        for Entry { at, slot } in self.entries.drain(..) {
            self.gate.limiters()[at].give_back_client(&slot);
        }
    }
}

impl Drop for Early<'_> {
    fn drop(&mut self) {
        self.give_back_entries();
        if self.limits {
            self.gate.limiters().iter().for_each(|limiter| limiter.give_back());
        }
        if self.process {
            self.gate.terms.share.leave();
        }
    }
}

/// The right to one session, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    terms: Arc<Terms>,
    /// If it holds a connection of each limiter: those of its client, in some of their tables.
    held: Option<Box<[Entry]>>,
}

impl Permit {
    /// Asks what concerns a single client, once its address is known, for a permit from [`Early::admit_unknown`]. Who
    /// is refused holds nothing any more but the place in the process.
    pub fn identify(&mut self, client: ClientAddr, now: Nanos) -> Result<(), Refusal> {
        // One that holds nothing would have been refused already, in a dry run.
        let (Some(own), Some(held), ClientAddr::Tcp(address)) = (&self.terms.own, &mut self.held, client) else {
            return Ok(());
        };
        let mut entries = Vec::new();
        let Err(no) = own.enter_client(address.ip(), now, &mut entries) else {
            *held = entries.into();
            return Ok(());
        };
        let limiters = &own.limiters;
        limiters[no.at].metrics.refused(no.refusal.bound, own.dry_run);
        for Entry { at, slot } in &entries {
            limiters[*at].give_back_client(slot);
        }
        limiters.iter().for_each(|limiter| limiter.give_back());
        self.held = None;
        self.terms.count_unheld();
        if own.dry_run { Ok(()) } else { Err(no.refusal) }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.terms.leave(self.held.is_some());
        let Some(entries) = &self.held else { return };
        let limiters = self.terms.limiters();
        entries.iter().for_each(|Entry { at, slot }| limiters[*at].leave_client(slot));
        for limiter in limiters {
            limiter.leave();
        }
    }
}
