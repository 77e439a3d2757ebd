//! Pools: a set of backends and the one policy by which a session gets one of them.
//!
//! Owns the claim of a slot, the set of backends that a pool has just now (`PoolView`, swapped whole) and the
//! list of those that a session has tried. Failover is nothing more than `Tried` and another claim, so each
//! policy has it for free. Does no I/O, reads no clock and throws no dice: time and generator are arguments.
//!
//! Invariants: nothing between claim and release allocates or locks; a slot exists exactly while its backend's
//! count includes it; a claim never yields a backend that is tried or not available, and always yields one if
//! there is an untried one that stays available.
//!
//! Next: `pick` for the policies, `backend` for the state of one backend, `health` for the verdict on it.

mod backend;
pub mod health;
mod pick;
#[cfg(test)]
mod tests;

pub use backend::{Backend, Full, Health, LastError, Slot};

use crate::config;
use crate::metrics::{Metrics, PoolMetrics};
use crate::name::{BackendAddr, BackendId, PoolName};
use crate::rng::Rng;
use arc_swap::ArcSwap;
use pick::Picker;
use std::collections::HashMap;
use std::sync::Arc;

/// Backends and the policy among them.
pub struct Pool {
    pub name: PoolName,
    pub connect: config::Connect,
    pub health: config::Health,
    pub metrics: Arc<PoolMetrics>,
    view: ArcSwap<PoolView>,
}

impl Pool {
    /// A pool of `members`, which must differ from each other in address.
    ///
    /// A member that `previous` (the same pool in the table before) already holds keeps its backend, and with it
    /// health, counts and metrics. `now_unix_ms` is since when the new backends are what they are.
    #[must_use]
    pub fn new(
        config: &config::Pool,
        members: &Members,
        metrics: &Arc<Metrics>,
        previous: Option<&Pool>,
        now_unix_ms: u64,
    ) -> Self {
        let view = PoolView::new(config, members, metrics, previous.map(Pool::view).as_deref(), now_unix_ms);
        Self {
            name: config.name.clone(),
            connect: config.connect,
            health: config.health,
            metrics: previous.map_or_else(|| Arc::new(metrics.pool(&config.name)), |pool| pool.metrics.clone()),
            view: ArcSwap::from_pointee(view),
        }
    }

    /// A slot on an available backend that is not in `tried`, by the pool's policy; `None` if there is none.
    #[must_use]
    pub fn claim(&self, tried: &Tried, rng: &mut Rng) -> Option<Slot> {
        self.view.load().claim(tried, rng)
    }

    /// The backends of this moment. For whoever inspects a pool; a session only claims.
    #[must_use]
    pub fn view(&self) -> Arc<PoolView> {
        self.view.load_full()
    }

    /// How many backends are available.
    #[must_use]
    pub fn available(&self) -> usize {
        self.view.load().backends.iter().filter(|backend| backend.available()).count()
    }

    /// Whether a claim with nothing tried would succeed.
    #[must_use]
    pub fn has_available(&self) -> bool {
        self.view.load().backends.iter().any(|backend| backend.available())
    }
}

/// What a pool is built from: a config's members with every host name resolved, and the policy over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    pub list: Vec<ResolvedMember>,
    /// The indices in a failover group are those of `list`. A group may be empty here.
    pub balance: config::Balance,
}

/// One backend that should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedMember {
    pub address: BackendAddr,
    pub weight: u16,
    /// What logs, metrics and `/status` call it.
    pub label: Arc<str>,
}

/// The backends of a pool at one moment, with the chooser prepared for exactly these.
pub struct PoolView {
    pub backends: Box<[Arc<Backend>]>,
    /// The weight of each backend, by index. Not the backend's own: it may change while the backend stays.
    pub weights: Box<[u16]>,
    /// The name of the policy.
    pub balance: &'static str,
    picker: Picker,
}

impl PoolView {
    fn new(
        config: &config::Pool,
        members: &Members,
        metrics: &Arc<Metrics>,
        previous: Option<&PoolView>,
        now_unix_ms: u64,
    ) -> Self {
        let kept: HashMap<&BackendAddr, &Arc<Backend>> =
            previous.iter().flat_map(|view| &view.backends).map(|backend| (&backend.address, backend)).collect();
        let backends: Box<[_]> = members
            .list
            .iter()
            .map(|member| match kept.get(&member.address) {
                // Another label is another metrics series: a renamed backend is a new one.
                Some(backend) if backend.label == member.label => Arc::clone(backend),
                _ => Arc::new(Backend::new(
                    &member.address,
                    &member.label,
                    metrics.backend(&config.name, &member.label),
                    Health::initial(&config.health),
                    now_unix_ms,
                )),
            })
            .collect();
        let weights: Box<[_]> = members.list.iter().map(|member| member.weight).collect();
        let picker = Picker::prepare(&members.balance, &backends, &weights, previous.map(|view| &view.picker));
        Self { backends, weights, balance: members.balance.as_str(), picker }
    }

    fn claim(&self, tried: &Tried, rng: &mut Rng) -> Option<Slot> {
        self.picker.pick(&Candidates { backends: &self.backends, tried }, rng)
    }
}

/// What a picker chooses among: the backends of the view without those that the session has tried.
struct Candidates<'a> {
    backends: &'a [Arc<Backend>],
    tried: &'a Tried,
}

impl Candidates<'_> {
    fn len(&self) -> usize {
        self.backends.len()
    }

    fn usable(&self, index: usize) -> bool {
        let backend = &self.backends[index];
        backend.available() && !self.tried.contains(backend.id)
    }

    fn any_usable(&self) -> bool {
        (0..self.len()).any(|index| self.usable(index))
    }

    /// `None` if the backend is tried, not available, or has just become full.
    fn claim(&self, index: usize) -> Option<Slot> {
        if self.usable(index) { self.backends[index].claim().ok() } else { None }
    }

    /// The first success of claiming each one in turn, from `start` on and around.
    fn claim_from(&self, start: usize) -> Option<Slot> {
        (start..self.len()).chain(0..start).find_map(|index| self.claim(index))
    }
}

/// The backends that one session has tried, in order, held inline.
#[derive(Clone, Debug)]
pub struct Tried {
    ids: [BackendId; Self::MAX],
    len: u8,
}

impl Tried {
    /// As many as a session may make attempts.
    pub const MAX: usize = config::limits::MAX_ATTEMPTS as usize;

    /// Pushing more than [`MAX`](Self::MAX) is a mistake of the caller; what exceeds is not remembered.
    pub fn push(&mut self, id: BackendId) {
        debug_assert!(self.len() < Self::MAX, "more attempts than the limit");
        if let Some(place) = self.ids.get_mut(usize::from(self.len)) {
            *place = id;
            self.len += 1;
        }
    }

    #[must_use]
    pub fn contains(&self, id: BackendId) -> bool {
        self.as_slice().contains(&id)
    }

    #[must_use]
    pub fn last(&self) -> Option<BackendId> {
        self.as_slice().last().copied()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[must_use]
    pub fn as_slice(&self) -> &[BackendId] {
        &self.ids[..self.len()]
    }
}

impl Default for Tried {
    fn default() -> Self {
        Self { ids: [BackendId(0); Self::MAX], len: 0 }
    }
}
