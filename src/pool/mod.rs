//! Pools: a set of backends and the one policy by which a session gets one of them.
//!
//! Owns the claim of a slot, the set of backends that a pool has just now (`PoolView`, swapped whole) and the
//! list of those that a session has tried. Failover is nothing more than `Tried` and another claim, so each
//! policy has it for free. Does no I/O, reads no clock and throws no dice: time and generator are arguments.
//!
//! Invariants: nothing between claim and release allocates, nor locks but for the trial of a half-open backend; a slot
//! exists exactly while its backend's count includes it; a claim never yields a backend that is tried or taken out,
//! nor, outside of panic, one that isn't available or on trial; and it always yields one if there is an untried one
//! that stays available.
//!
//! Next: `candidates` for what a claim may have, `pick` for the policies, `backend` for the state of one backend,
//! `health` and `ejection` for the verdicts on it, `mode` for what the pool does as a whole, `hold` for the clients
//! that wait while nobody is up.

mod adjust;
mod backend;
mod candidates;
mod count;
mod ejection;
mod former;
pub mod health;
mod hedge;
pub mod hold;
mod latency;
mod load;
mod mode;
mod outlook;
mod pick;
pub mod queue;
mod shed;
mod slot;
mod succession;
mod sync;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_adjust;
#[cfg(test)]
mod tests_outlook;
#[cfg(test)]
mod tests_queue;
#[cfg(test)]
mod tests_state;
#[cfg(test)]
mod tests_succession;
mod total;
mod tried;
mod view;

pub use adjust::Adjusted;
pub use backend::{Backend, Known, LastError, Operator, WHOLE_SHARE, flag};
pub use ejection::{Ejected, Standing};
pub use former::FormerPool;
pub use health::Health;
pub use latency::Latency;
pub use mode::Mode;
pub use outlook::{How, Obstacle, Outlook};
pub use pick::Maglev;
pub use shed::Shed;
pub use slot::{Full, Slot};
pub use tried::Tried;
pub use view::{Members, PoolView, ResolvedMember};

use crate::clock::{Millis, Now};
use crate::config::{self, limits};
use crate::metrics::{Metrics, PoolMetrics, TrafficFailure};
use crate::name::PoolName;
use crate::net::origin::Origin;
use crate::rng::Rng;
use arc_swap::ArcSwap;
use candidates::{Candidates, Reach};
use former::Former;
use health::{AgentReport, Outcome};
use hedge::HedgeBudget;
use hold::Hold;
use mode::{Count, Judge};
use queue::{Terms, WaitingList};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use succession::{Last, Succession};
use total::Total;
use view::{Ask, Purpose, Shared};

/// A pool with more backends is not reviewed at each change of one, but by whoever does so now and then: when all of
/// them change together, as at a start, that would be the square of their number.
const REVIEWED_AT_ONCE: usize = 1_000;

/// What a session wants of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// What it has tried, and doesn't want again.
    pub tried: &'a Tried,
    /// The hash of what a pool with [`hash`](Pool::hash) goes by; elsewhere nobody looks at it.
    pub key: u64,
    /// The longest that it would wait for its turn on a backend whose connects are paced, in ms.
    pub patience: Millis,
    pub now: Millis,
}

/// Backends and the policy among them.
pub struct Pool {
    pub name: PoolName,
    pub connect: config::Connect,
    /// Where its connects come from. Only kept here, so that all workers share one: the pool itself opens nothing.
    pub origin: Arc<Origin>,
    /// The same for probes and agents.
    pub origin_of_probes: Arc<Origin>,
    pub protection: config::Protection,
    pub ejection: config::Ejection,
    pub health: config::Health,
    pub queue: Option<config::Queue>,
    /// Of a pool that goes by a hash: of what.
    pub hash: Option<config::Hash>,
    /// The PROXY header that backends get.
    pub send_proxy: Option<config::SendProxy>,
    pub metrics: Arc<PoolMetrics>,
    /// Empty without a queue.
    pub waiting: Arc<WaitingList>,
    /// Where clients wait while no backend is up, if the pool wants that.
    pub hold: Option<Arc<Hold>>,
    shed: Option<Arc<Shed>>,
    view: ArcSwap<PoolView>,
    /// A [`Mode`], as the last review found it.
    mode: AtomicU32,
    judge: Mutex<Judge>,
    hedges: Arc<HedgeBudget>,
    total: Arc<Total>,
    former: Arc<Former>,
    /// How often one of its backends went down.
    falls: Arc<AtomicU32>,
    succession: Succession,
}

impl Pool {
    /// A pool of `members`, which must differ from each other in address.
    ///
    /// A member that `previous` (the same pool in the table before) already holds keeps its backend, and with it
    /// health, counts and metrics. What the two pools as a whole have in common goes on as well; see `succession`.
    #[must_use]
    pub fn new(
        config: &config::Pool,
        members: &Members,
        metrics: &Arc<Metrics>,
        previous: Option<&Pool>,
        now: Now,
    ) -> Self {
        let (shared, last) = previous.map(|pool| (pool.shared(), pool.succession.last.clone())).unwrap_or_default();
        Self::with(config, members, metrics, previous, (&shared, last), now)
    }

    /// The same for one that returns after it had left the table.
    #[must_use]
    pub fn again(
        config: &config::Pool,
        members: &Members,
        metrics: &Arc<Metrics>,
        former: &FormerPool,
        now: Now,
    ) -> Self {
        Self::with(config, members, metrics, None, (&former.shared, former.last.clone()), now)
    }

    fn with(
        config: &config::Pool,
        members: &Members,
        metrics: &Arc<Metrics>,
        previous: Option<&Pool>,
        (shared, last): (&Shared, Last),
        now: Now,
    ) -> Self {
        let Shared { waiting, total, former } = shared.clone();
        waiting.renew(Terms::new(&config.queue.unwrap_or_default()));
        let (name, health, hash) = (&config.name, &config.health, config.hash.as_ref());
        let purpose = Purpose { name, health, hash, metrics, shared };
        let before = previous.map(Pool::view);
        let view = PoolView::new(purpose, members.clone(), &Adjusted::new(), before.as_deref(), now);
        let judge = previous.map_or_else(|| Judge::new(now.millis), |pool| pool.judge().clone());
        let before = previous.and_then(|pool| pool.hold.as_deref());
        let hold = config.hold.map(|hold| Arc::new(Hold::new(hold, || metrics.hold(&config.name), before)));
        let pool = Self {
            name: config.name.clone(),
            connect: config.connect,
            origin: Arc::new(Origin::new(&config.origin)),
            origin_of_probes: Arc::new(Origin::of_probes(&config.origin)),
            protection: config.protection,
            ejection: config.ejection,
            health: config.health.clone(),
            queue: config.queue,
            hash: config.hash.clone(),
            send_proxy: config.send_proxy.clone(),
            waiting,
            shed: config.shed.map(|shed| {
                let same = previous.and_then(|pool| pool.shed.as_ref()).filter(|known| known.config == shed);
                same.map_or_else(|| Arc::new(Shed::new(shed)), Arc::clone)
            }),
            metrics: previous.map_or_else(|| Arc::new(metrics.pool(&config.name)), |pool| pool.metrics.clone()),
            hold,
            view: ArcSwap::from_pointee(view),
            mode: AtomicU32::new(Mode::default().to_bits()),
            judge: Mutex::new(judge),
            hedges: previous.map_or_else(|| Arc::new(HedgeBudget::new()), |pool| Arc::clone(&pool.hedges)),
            total,
            former,
            falls: previous.map(|pool| Arc::clone(&pool.falls)).unwrap_or_default(),
            succession: Succession::new(config, last),
        };
        if let Some(queue) = pool.queue {
            pool.metrics.queue().max_waiting.set(queue.max_waiting as i64);
        }
        if pool.shed.is_some() {
            pool.metrics.shed();
        }
        pool.review(now.millis);
        pool
    }

    fn shared(&self) -> Shared {
        let (waiting, total, former) = (Arc::clone(&self.waiting), Arc::clone(&self.total), Arc::clone(&self.former));
        Shared { waiting, total, former }
    }

    /// A slot on a backend that has not been tried, by the pool's policy; `None` if there is none. Where connects are
    /// paced, one that can be had at once comes first, and none is waited for longer than the wish's patience.
    ///
    /// The first is an available one of the tiers in use, or, in panic, any enabled one of these. What follows after
    /// failures is any available one, of whatever tier, and in panic any enabled one after those. To wait for a turn
    /// among the better ones comes before going on to the others.
    #[must_use]
    pub fn claim_within(&self, wish: &Wish<'_>, rng: &mut Rng) -> Option<Slot> {
        let view = self.view.load();
        let mode = self.mode_over(&view);
        let ask = self.ask(wish);
        if !mode.panic {
            let slot = view.claim(&ask, Reach::Tiers(mode.tier), 0, rng);
            if slot.is_some() {
                return slot;
            }
        }
        view.claim_further(&ask, wish.patience, mode, rng).or_else(|| {
            // The last one may have gone a moment ago, and whoever saw to that is about to find that the pool panics.
            if self.is_panic_due(wish.tried, &view) {
                view.claim(&ask, Reach::Enabled(limits::MAX_TIER), 0, rng)
            } else {
                None
            }
        })
    }

    /// As [`claim_within`](Self::claim_within) all that a session may wait, for a client that might be any.
    #[must_use]
    pub fn claim(&self, tried: &Tried, now: Millis, rng: &mut Rng) -> Option<Slot> {
        let key = if self.hash.is_some() { rng.below(u64::MAX) } else { 0 };
        let patience = self.connect.budget.as_millis() as Millis;
        self.claim_within(&Wish { tried, key, patience, now }, rng)
    }

    fn ask<'a>(&self, wish: &Wish<'a>) -> Ask<'a> {
        let &Wish { tried, key, now, .. } = wish;
        Ask { tried, key, now, max_rate: self.connect.max_rate }
    }

    /// Whether a session that has found nothing to claim would find something if a backend that is full weren't: then
    /// it may wait for that. In a pool with a queue it may also wait for a turn that doesn't come within `patience`.
    #[must_use]
    pub fn is_worth_waiting(&self, tried: &Tried, patience: Millis, now: Millis) -> bool {
        let view = self.view.load();
        let mode = self.mode_over(&view);
        let ask = self.ask(&Wish { tried, key: 0, patience, now });
        let patience = if self.queue.is_some() { Millis::MAX } else { patience };
        let any = |reach| {
            Candidates { view: &view, ask: &ask, reach, patience, by_share: false, even_full: true }.any_usable()
        };
        any(Reach::Everywhere)
            || mode.panic && any(Reach::Enabled(mode.tier))
            || self.is_panic_due(tried, &view) && any(Reach::Enabled(limits::MAX_TIER))
    }

    /// Between the fall of the last backend and the review that finds that the pool panics.
    fn is_panic_due(&self, tried: &Tried, view: &PoolView) -> bool {
        let may_panic = self.hold.is_none() && !self.protection.panic_threshold.is_zero();
        tried.is_empty() && may_panic && !view.has_good()
    }

    /// The mode for a claim. Between the fall of the last backend and the review, a pool that holds its clients would
    /// still panic.
    fn mode_over(&self, view: &PoolView) -> Mode {
        let mut mode = self.mode();
        if mode.panic && self.hold.is_some() {
            mode.panic = view.has_good();
        }
        mode
    }

    /// What the last [`review`](Self::review) found.
    #[must_use]
    pub fn mode(&self) -> Mode {
        Mode::from_bits(self.mode.load(Relaxed))
    }

    /// Looks at every backend: ends ejections and slow starts that are over, finds out which tiers are in use and
    /// whether to panic, and lets held clients go if there is a backend for them. To be called now and then; what
    /// changes a backend's state calls it as well, unless the pool is large. One that was retired leaves all of it but
    /// its own mode to the one in its place.
    pub fn review(&self, now: Millis) -> Mode {
        let is_retired = self.is_retired();
        // Held while it counts, or the mode of an earlier moment could be stored last.
        let mut judge = self.judge();
        let view = self.view.load();
        let mut tiers = vec![Count::default(); usize::from(view.tiers.iter().max().map_or(0, |&tier| tier)) + 1];
        let (mut available, mut ejected) = (0, 0);
        for (backend, &tier) in view.backends.iter().zip(&view.tiers) {
            if !is_retired {
                backend.tick(&self.ejection, self.protection.slow_start, now);
            }
            let flags = backend.flags();
            let count = &mut tiers[usize::from(tier)];
            count.enabled += usize::from(flags & flag::OUT == 0);
            count.available += usize::from(flags & !flag::REDUCED == 0);
            available += i64::from(backend.available());
            ejected += i64::from(flags & (flag::EJECTED | flag::HALF_OPEN) != 0);
        }
        let mode = judge.judge(&tiers, &self.protection, self.hold.is_some(), now);
        self.mode.store(mode.to_bits(), Relaxed);
        drop(judge);
        if is_retired {
            if let Some(next) = self.successor() {
                next.review(now);
            }
            return mode;
        }
        if view.is_bounded() {
            self.total.set_weight(view.weight_in_use(mode));
        }
        let metrics = &self.metrics;
        metrics.available.set(available);
        metrics.ejected.set(ejected);
        metrics.panic.set(i64::from(mode.panic));
        metrics.tier.set(i64::from(mode.tier));
        if let Some(shed) = &self.shed {
            self.look_at_latency(shed, now);
        }
        // Whatever has changed, somebody may get a place now, or has none left to wait for.
        self.waiting.review(now);
        if let Some(hold) = &self.hold
            && hold.has_waiting()
            && view.has_good()
        {
            hold.release(now);
        }
        mode
    }

    /// Takes in what a probe of `backend` came to. `Some` if that changed the verdict.
    pub fn observe(&self, backend: &Backend, outcome: Outcome, now: Now) -> Option<Health> {
        let verdict = backend.observe(outcome, &self.health, self.protection.slow_start, now)?;
        if verdict == Health::Down {
            self.falls.fetch_add(1, Relaxed);
        }
        self.review_if_quick(now.millis);
        Some(verdict)
    }

    /// Takes in what the agent of `backend` says.
    pub fn set_agent(&self, backend: &Backend, report: &AgentReport, now: Now) {
        let (was_up, flags) = (backend.is_up(), backend.flags());
        backend.set_agent(report, self.protection.slow_start, now.millis);
        if was_up && !backend.is_up() {
            self.falls.fetch_add(1, Relaxed);
        }
        // A weight may change all the time, and changes nothing here.
        if backend.flags() & !flag::REDUCED != flags & !flag::REDUCED {
            self.review_if_quick(now.millis);
        }
    }

    /// After a change of one backend; see [`REVIEWED_AT_ONCE`].
    fn review_if_quick(&self, now: Millis) {
        if self.view.load().backends.len() <= REVIEWED_AT_ONCE {
            self.review(now);
        }
    }

    /// How often one of its backends went down: who has seen the number before knows whether it is worth looking again.
    #[must_use]
    pub fn falls(&self) -> u32 {
        self.falls.load(Relaxed)
    }

    /// Real traffic has failed on `backend`. `Some` if that ejects it: after enough failures in a row, or a failed
    /// trial, if there is room for one more.
    pub fn failed(&self, backend: &Backend, on_trial: bool, failure: TrafficFailure, now: Millis) -> Option<Ejected> {
        if let Some(judge) = self.judge_of(backend) {
            return judge.failed(backend, on_trial, failure, now);
        }
        backend.metrics.traffic_failure(failure);
        let failures = backend.count_failure();
        let enough = u32::from(self.ejection.consecutive_failures?);
        if failures < enough && !on_trial {
            return None;
        }
        // One at a time, so that none is ejected twice for the same, nor two of them into the last place.
        let judge = self.judge();
        let standing = backend.flags() & (flag::EJECTED | flag::HALF_OPEN);
        let is_ejected = match standing {
            // A trial that has been decided is a session as any other.
            0 => failures >= enough && self.has_room_for_ejected(),
            flag::HALF_OPEN => true,
            _ => false,
        };
        if !is_ejected {
            return None;
        }
        let ejected = backend.eject(&self.ejection, now);
        drop(judge);
        self.review(now);
        Some(ejected)
    }

    /// Real traffic has got an answer from `backend`, or has ended in order by the client's will. Whether that brings
    /// an ejected backend back.
    pub fn served(&self, backend: &Backend, on_trial: bool, now: Millis) -> bool {
        backend.forget_failures();
        if !on_trial || backend.flags() & flag::HALF_OPEN == 0 {
            return false;
        }
        let judge = self.judge_of(backend);
        let judge = judge.as_deref().unwrap_or(self);
        backend.restore(judge.protection.slow_start, now);
        judge.review(now);
        true
    }

    /// Counts a connection, of which a share may have a second attempt.
    pub fn count_for_hedging(&self) {
        self.hedges.earn(self.connect.hedge_share);
    }

    /// Whether a second attempt may begin now.
    #[must_use]
    pub fn may_hedge(&self) -> bool {
        !self.connect.hedge_share.is_zero() && self.hedges.spend()
    }

    /// The backends of this moment. For whoever inspects a pool; a session only claims.
    #[must_use]
    pub fn view(&self) -> Arc<PoolView> {
        self.view.load_full()
    }

    /// Whether there is a backend that a client could be given, or one whose trial it could be.
    #[must_use]
    pub fn has_good(&self) -> bool {
        self.view.load().has_good()
    }

    /// How many backends are available.
    #[must_use]
    pub fn available(&self) -> usize {
        self.view.load().backends.iter().filter(|backend| backend.available()).count()
    }

    /// One may always go, and as many as the config's share. Those that would be out anyway take nobody's place.
    fn has_room_for_ejected(&self) -> bool {
        let view = self.view.load();
        let out = |backend: &&Arc<Backend>| {
            let flags = backend.flags();
            let others = flag::DOWN | flag::AGENT_DOWN | flag::OUT;
            flags & (flag::EJECTED | flag::HALF_OPEN) != 0 && flags & others == 0
        };
        let ejected = view.backends.iter().filter(out).count();
        ejected < self.ejection.max_ejected.of(view.backends.len()).max(1)
    }

    fn judge(&self) -> MutexGuard<'_, Judge> {
        // It is whole at each instant.
        self.judge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
