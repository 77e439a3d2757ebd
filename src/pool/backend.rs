//! One backend's state: what health says, how many connections it has, what went wrong last.
//!
//! Owns the counts, and the flags that say what stands in its way. Flags and load are atomics that sessions on all
//! workers read on each claim; the rest is off that path, behind one lock. The state outlives the views it appears in:
//! it moves from table to table, and a retired backend lives on until its last session has ended.
//!
//! Invariant: `active` is the number of `Slot`s that exist, and never above the maximum. Next: `hands` for what its
//! agent and an operator say, `slot`, `health`, `ejection`.

mod hands;

pub use hands::Operator;

mod known;

pub use known::Known;

use super::count::{Count, UNLIMITED};
use super::ejection::{Ejected, Ejection, Standing};
use super::health::{AgentReport, Damper, Health, Outcome};
use super::load::{Pace, PeakEwma};
use super::queue::WaitingList;
use super::slot::{Full, Slot};
use super::total::Total;
use crate::clock::{Deadline, Millis, Now};
use crate::config::{self, HealthOverride};
use crate::metrics::{BackendMetrics, ConnectErrorReason};
use crate::name::{BackendAddr, BackendId};
use crate::rng::Rng;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What stands in a backend's way, as bits; none is plain good.
pub mod flag {
    /// Its probes say so.
    pub const DOWN: u32 = 1;
    /// Its agent says so.
    pub const AGENT_DOWN: u32 = 1 << 1;
    /// Real traffic failed on it.
    pub const EJECTED: u32 = 1 << 2;
    /// Its ejection is over, and a trial will decide.
    pub const HALF_OPEN: u32 = 1 << 3;
    /// That trial is under way.
    pub const ON_TRIAL: u32 = 1 << 4;
    /// Its agent says so: it finishes what it has and gets nothing new.
    pub const AGENT_DRAINING: u32 = 1 << 5;
    /// Its agent says so.
    pub const MAINT: u32 = 1 << 6;
    /// It gets less than its weight says; everything else is well.
    pub const REDUCED: u32 = 1 << 7;
    /// An operator says so: it finishes what it has and gets nothing new.
    pub const DRAINING: u32 = 1 << 8;
    /// An operator says so: the same, and nobody asks how it is.
    pub const DISABLED: u32 = 1 << 9;
    /// An operator says so, whatever its probes and its agent say. With the opposite word neither of [`DOWN`] and
    /// [`AGENT_DOWN`] is set.
    pub const FORCED_DOWN: u32 = 1 << 10;

    /// Taken out on purpose: not even panic uses it.
    pub const OUT: u32 = AGENT_DRAINING | MAINT | DRAINING | DISABLED | FORCED_DOWN;
    /// Somebody says that it is down.
    pub const ANY_DOWN: u32 = DOWN | AGENT_DOWN | FORCED_DOWN;
}

/// In the word of the flags, above them: one trial, in the count of those that have begun.
const TRIAL: u32 = 1 << 16;

/// A backend's share of its weight is counted in so many parts.
pub const WHOLE_SHARE: u32 = 1_024;
/// The share with which a backend comes back.
const FIRST_SHARE: f64 = 0.1;

/// A member of a pool, for which we keep state.
pub struct Backend {
    pub id: BackendId,
    pub address: BackendAddr,
    /// Its configured name, or its address.
    pub label: Arc<str>,
    pub metrics: BackendMetrics,
    /// Since when (Unix time in ms) in the upper 63 bits, 1 for up in the lowest: one word, so that a reader never
    /// sees a state with another state's time.
    health: AtomicU64,
    /// See [`flag`]; and the number of the last trial, in one word with them, so that only that trial's end takes it
    /// back.
    flags: AtomicU32,
    count: Count,
    /// Those that may wait for a place on it, be it on this or on another backend of its pool.
    waiting: Arc<WaitingList>,
    pub(super) total: Arc<Total>,
    /// Of [`WHOLE_SHARE`]; counts only with [`flag::REDUCED`].
    share: AtomicU32,
    /// Failures of real traffic in a row.
    failures: AtomicU32,
    /// How long connects take, in ms.
    pub connect_time: PeakEwma,
    /// How long the first answer byte takes from the client's first byte, in ms.
    pub answer_time: PeakEwma,
    pub(super) pace: Pace,
    /// Until when its sessions may stay.
    deadline: Deadline,
    /// Its verdict is more than what it began with.
    known: AtomicBool,
    /// Another process came to that.
    believed: AtomicBool,
    rest: Mutex<Rest>,
}

/// What is not on the path.
struct Rest {
    damper: Damper,
    ejection: Ejection,
    /// When the last trial began.
    trial_began: Millis,
    /// When a slow start began, unless it is over.
    ramp: Option<Millis>,
    /// All that its agent has said so far.
    agent: AgentReport,
    /// Since when that stands in its way, or doesn't any more; 0 if it never did.
    agent_since: Millis,
    /// What that says of its weight: of [`WHOLE_SHARE`].
    agent_share: u32,
    operator: Operator,
    /// Since when that stands; 0 if nobody ever said anything.
    operator_since: Millis,
    last_error: Option<LastError>,
}

impl Rest {
    fn new(health: Health) -> Self {
        Self {
            damper: Damper::new(health),
            ejection: Ejection::new(),
            trial_began: 0,
            ramp: None,
            agent: AgentReport::of_nobody(),
            agent_since: 0,
            agent_share: WHOLE_SHARE,
            operator: Operator::default(),
            operator_since: 0,
            last_error: None,
        }
    }
}

/// What went wrong most recently, be it in a probe or in a session's connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    pub text: String,
    pub at_unix_ms: u64,
}

impl Backend {
    #[must_use]
    pub fn new(
        address: &BackendAddr,
        label: &Arc<str>,
        metrics: BackendMetrics,
        (waiting, total): (Arc<WaitingList>, Arc<Total>),
        health: Health,
        now: Now,
    ) -> Self {
        let backend = Self {
            id: next_id(),
            address: address.clone(),
            label: Arc::clone(label),
            metrics,
            health: AtomicU64::new(0),
            flags: AtomicU32::new(0),
            count: Count::new(UNLIMITED),
            waiting,
            total,
            share: AtomicU32::new(WHOLE_SHARE),
            failures: AtomicU32::new(0),
            connect_time: PeakEwma::default(),
            answer_time: PeakEwma::default(),
            pace: Pace::default(),
            deadline: Deadline::default(),
            known: AtomicBool::new(false),
            believed: AtomicBool::new(false),
            rest: Mutex::new(Rest::new(health)),
        };
        backend.store_health(&backend.rest(), health, now.unix_ms);
        backend
    }

    /// It is a member again, and nobody knows more of it than of a new one. Its sessions count on, but for a trial.
    pub(super) fn begin_anew(&self, health: Health, now: Now) {
        self.metrics.show();
        let mut rest = self.rest();
        *rest = Rest::new(health);
        self.replace_flags(TRIAL - 1, 0);
        self.store_share(WHOLE_SHARE);
        self.failures.store(0, Relaxed);
        self.known.store(false, Relaxed);
        self.believed.store(false, Relaxed);
        self.deadline.set(None);
        self.store_health(&rest, health, now.unix_ms);
    }

    /// See [`flag`].
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.flags.load(Relaxed) & (TRIAL - 1)
    }

    /// Neither probes nor agent say that it is down, or an operator says that it isn't; and none says that it is.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.flags() & flag::ANY_DOWN == 0
    }

    /// Whether it is well: enabled, up, not ejected. One that is full is so, too: a service that is called unavailable
    /// for being busy loses the load that it bears.
    #[must_use]
    pub fn available(&self) -> bool {
        self.flags() & !flag::REDUCED == 0
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count.is_full()
    }

    /// Sessions that hold a slot, connecting ones included.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.count.active()
    }

    /// The most sessions at once, if there is a limit.
    #[must_use]
    pub fn max_active(&self) -> Option<u32> {
        Some(self.count.max()).filter(|max| *max != UNLIMITED)
    }

    /// Sets that limit. Those that it has already stay, also if they are more; those that wait have to be told.
    pub(super) fn set_max_active(&self, max: Option<u32>) {
        self.count.set_max(max.unwrap_or(UNLIMITED));
        self.metrics.set_max_connections(max);
    }

    /// Until when its sessions may stay: then those that are left are reset. Taken back by `None`.
    pub fn set_drain_deadline(&self, at: Option<Millis>) {
        self.deadline.set(at);
    }

    #[must_use]
    pub fn drain_deadline(&self) -> Option<Millis> {
        self.deadline.get()
    }

    /// What it gets of its weight just now, of [`WHOLE_SHARE`].
    #[must_use]
    pub fn share(&self) -> u32 {
        if self.flags() & flag::REDUCED == 0 { WHOLE_SHARE } else { self.share.load(Relaxed) }
    }

    /// The verdict of the probes, and since when it stands (Unix time in ms).
    #[must_use]
    pub fn health(&self) -> (Health, u64) {
        let word = self.health.load(Relaxed);
        (if word & 1 == 1 { Health::Up } else { Health::Down }, word >> 1)
    }

    /// Sets the verdict without asking the damper, which starts anew from it.
    pub fn set_health(&self, health: Health, now_unix_ms: u64) {
        let mut rest = self.rest();
        rest.damper = Damper::new(health);
        self.store_health(&rest, health, now_unix_ms);
    }

    /// Takes in what a probe came to. `Some` if that changed the verdict, which the next claim sees. A backend that
    /// comes back, rather than up for the first time, starts slowly.
    pub fn observe(&self, outcome: Outcome, health: &config::Health, slow_start: Duration, now: Now) -> Option<Health> {
        let mut rest = self.rest();
        let had_been_up = rest.damper.has_been_up();
        let verdict = rest.damper.observe(outcome, health)?;
        if verdict == Health::Up {
            self.failures.store(0, Relaxed);
            if had_been_up && rest.operator.health == HealthOverride::Auto {
                self.begin_ramp(&mut rest, slow_start, now.millis);
            }
        }
        self.store_health(&rest, verdict, now.unix_ms);
        drop(rest);
        self.metrics.state_changes.inc();
        Some(verdict)
    }

    /// The time from one probe to the next.
    pub fn probe_delay(&self, config: &config::Health, rng: &mut Rng) -> Duration {
        self.rest().damper.next_delay(config, rng)
    }

    #[must_use]
    pub fn last_error(&self) -> Option<LastError> {
        self.rest().last_error.clone()
    }

    pub fn set_last_error(&self, text: &str, now_unix_ms: u64) {
        self.rest().last_error = Some(LastError { text: text.to_owned(), at_unix_ms: now_unix_ms });
    }

    /// Counts a connection that a session has established.
    pub fn connect_succeeded(&self) {
        self.metrics.connections_total.inc();
    }

    /// Counts a connection that a session failed to establish. An error of our own is counted as such, but isn't
    /// held against the backend.
    pub fn connect_failed(&self, reason: ConnectErrorReason, text: &str, now_unix_ms: u64) {
        self.metrics.connect_error(reason);
        if !reason.is_ours() {
            self.set_last_error(text, now_unix_ms);
        }
    }

    /// The right to one connection, if there is one left.
    pub fn claim(self: &Arc<Self>) -> Result<Slot, Full> {
        if !self.count.claim() {
            return Err(Full);
        }
        self.metrics.active.inc();
        Ok(Slot::new(Arc::clone(self)))
    }

    pub(super) fn release(&self) {
        self.metrics.active.dec();
        if self.count.release() {
            self.waiting.nudge_seen(false);
        }
    }

    /// The number of the trial that this caller may make of a half-open backend, if nobody else makes one.
    pub(super) fn begin_trial(&self, now: Millis) -> Option<u16> {
        let mut rest = self.rest();
        let begun = self.flags.fetch_update(Relaxed, Relaxed, |word| {
            let may_begin = word & (flag::HALF_OPEN | flag::ON_TRIAL) == flag::HALF_OPEN;
            may_begin.then(|| word.wrapping_add(TRIAL) | flag::ON_TRIAL)
        });
        let before = begun.ok()?;
        rest.trial_began = now;
        Some((before.wrapping_add(TRIAL) / TRIAL) as u16)
    }

    /// Gives the trial back, unless it is decided and the backend has gone on to another one since.
    pub(super) fn end_trial(&self, number: u16) {
        let _ = self
            .flags
            .fetch_update(Relaxed, Relaxed, |word| ((word / TRIAL) as u16 == number).then_some(word & !flag::ON_TRIAL));
        // Another may try it now.
        self.waiting.nudge(false);
    }

    /// One more failure of real traffic; how many in a row there are now.
    pub(super) fn count_failure(&self) -> u32 {
        self.failures.fetch_add(1, Relaxed).saturating_add(1)
    }

    pub(super) fn forget_failures(&self) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
    }

    pub(super) fn eject(&self, config: &config::Ejection, now: Millis) -> Ejected {
        let mut rest = self.rest();
        let ejected = rest.ejection.eject(config, now);
        self.failures.store(0, Relaxed);
        self.replace_flags(flag::HALF_OPEN | flag::ON_TRIAL, flag::EJECTED);
        drop(rest);
        self.metrics.ejected();
        ejected
    }

    /// A trial went well: back into service, slowly.
    pub(super) fn restore(&self, slow_start: Duration, now: Millis) {
        self.restore_in(&mut self.rest(), slow_start, now);
    }

    fn restore_in(&self, rest: &mut Rest, slow_start: Duration, now: Millis) {
        rest.ejection.restore(now);
        self.failures.store(0, Relaxed);
        self.replace_flags(flag::EJECTED | flag::HALF_OPEN | flag::ON_TRIAL, 0);
        self.begin_ramp(rest, slow_start, now);
    }

    /// Ends what is over by now: an ejection becomes half open, a slow start goes on, and a trial that has lasted for
    /// `ejection.base_time` without failing has gone well: where nobody answers, nothing better will come.
    pub(super) fn tick(&self, ejection: &config::Ejection, slow_start: Duration, now: Millis) {
        if self.flags() & (flag::EJECTED | flag::ON_TRIAL | flag::REDUCED) == 0 {
            return;
        }
        let mut rest = self.rest();
        let flags = self.flags();
        if flags & flag::EJECTED != 0 && rest.ejection.expire(now) {
            self.replace_flags(flag::EJECTED, flag::HALF_OPEN);
        }
        let patience = ejection.base_time.as_millis() as Millis;
        if flags & flag::ON_TRIAL != 0 && now.saturating_sub(rest.trial_began) >= patience {
            self.restore_in(&mut rest, slow_start, now);
        }
        if let Some(begun) = rest.ramp {
            self.ramp(&mut rest, begun, slow_start, now);
        }
    }

    /// How often in a row it was ejected, and until when it is, if it is now.
    #[must_use]
    pub fn ejection(&self) -> (u32, Standing) {
        let rest = self.rest();
        (rest.ejection.times(), rest.ejection.standing())
    }

    fn begin_ramp(&self, rest: &mut Rest, slow_start: Duration, now: Millis) {
        if !slow_start.is_zero() {
            self.ramp(rest, now, slow_start, now);
        }
    }

    /// From a tenth to all of it, linearly.
    fn ramp(&self, rest: &mut Rest, begun: Millis, slow_start: Duration, now: Millis) {
        let elapsed = now.saturating_sub(begun) as f64 / (slow_start.as_secs_f64() * 1_000.0).max(1.0);
        rest.ramp = (elapsed < 1.0).then_some(begun);
        let ramped = FIRST_SHARE + (1.0 - FIRST_SHARE) * elapsed.min(1.0);
        self.store_share((f64::from(rest.agent_share) * ramped).round() as u32);
    }

    fn store_share(&self, share: u32) {
        self.share.store(share, Relaxed);
        self.replace_flags(flag::REDUCED, if share < WHOLE_SHARE { flag::REDUCED } else { 0 });
    }

    fn store_health(&self, rest: &Rest, health: Health, now_unix_ms: u64) {
        self.health.store(now_unix_ms << 1 | u64::from(health == Health::Up), Relaxed);
        self.flag_verdict(rest);
    }

    /// Makes the bits of `mask` be those of `bits`, whatever else changes meanwhile.
    fn replace_flags(&self, mask: u32, bits: u32) {
        // It never fails: the closure always has an answer.
        let _ = self.flags.fetch_update(Relaxed, Relaxed, |flags| Some(flags & !mask | bits));
    }

    /// The values behind this lock are whole at each instant, so a holder's panic leaves nothing to distrust.
    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn next_id() -> BackendId {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    BackendId(NEXT.fetch_add(1, Relaxed))
}

#[cfg(test)]
mod tests;
