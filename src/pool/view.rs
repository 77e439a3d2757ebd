//! The backends that a pool has just now, with the chooser prepared for exactly these.
//!
//! Owns the set and the order in which a claim asks for what it may have. Immutable: other members are another view.
//! Next: `candidates` for what a claim may have, `pick` for the policies.

use super::adjust::Adjusted;
use super::backend::Backend;
use super::candidates::{Candidates, Reach, is_good};
use super::former::Former;
use super::health::Health;
use super::mode::Mode;
use super::pick::{Among, Picker};
use super::queue::WaitingList;
use super::slot::Slot;
use super::total::Total;
use super::tried::Tried;
use crate::clock::{Millis, Now};
use crate::config;
use crate::metrics::Metrics;
use crate::name::{BackendAddr, BackendId, PoolName};
use crate::rng::Rng;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What a session asks a pool for.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub tried: &'a Tried,
    pub key: u64,
    pub now: Millis,
    pub max_rate: Option<u32>,
}

/// What the views of one pool share, from table to table.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared {
    pub waiting: Arc<WaitingList>,
    pub total: Arc<Total>,
    pub former: Arc<Former>,
}

/// What a pool is built from: a config's members with every host name resolved, and the policy over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    pub list: Vec<ResolvedMember>,
    /// The indices in a failover group are those of `list`. A group may be empty here.
    pub balance: config::Balance,
}

impl Members {
    /// Those in force, by index.
    pub(super) fn weights(&self, adjusted: &Adjusted) -> Box<[u16]> {
        let adjusted = |member: &ResolvedMember| adjusted.get(&*member.label).and_then(|own| own.weight);
        self.list.iter().map(|member| adjusted(member).unwrap_or(member.weight)).collect()
    }
}

/// One backend that should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedMember {
    pub address: BackendAddr,
    /// As the config has it.
    pub weight: u16,
    pub tier: u8,
    /// Connections at once; `None` is without a limit.
    pub max_connections: Option<u32>,
    /// What logs, metrics and `/status` call it.
    pub label: Arc<str>,
}

/// The backends of a pool at one moment, with the chooser prepared for exactly these.
pub struct PoolView {
    pub backends: Box<[Arc<Backend>]>,
    /// The weight in force of each backend, by index. Not the backend's own: it may change while the backend stays.
    pub weights: Box<[u16]>,
    /// The tier of each backend, by index.
    pub tiers: Box<[u8]>,
    /// The name of the policy.
    pub balance: &'static str,
    /// What it was made from.
    pub members: Members,
    picker: Picker,
}

/// What a view is made for: of the pool, what its backends and its policy depend on.
#[derive(Clone, Copy)]
pub(super) struct Purpose<'a> {
    pub name: &'a PoolName,
    pub health: &'a config::Health,
    pub hash: Option<&'a config::Hash>,
    pub metrics: &'a Arc<Metrics>,
    pub shared: &'a Shared,
}

impl PoolView {
    /// Weights are those of `adjusted` where it has one.
    pub(super) fn new(
        Purpose { name, health, hash, metrics, shared }: Purpose<'_>,
        members: Members,
        adjusted: &Adjusted,
        previous: Option<&PoolView>,
        now: Now,
    ) -> Self {
        let kept: HashMap<&BackendAddr, &Arc<Backend>> =
            previous.iter().flat_map(|view| &view.backends).map(|backend| (&backend.address, backend)).collect();
        let former = shared.former.living();
        let returning: HashMap<(&BackendAddr, &str), &Arc<Backend>> =
            former.iter().map(|backend| ((&backend.address, &*backend.label), backend)).collect();
        let backends: Box<[Arc<Backend>]> = members
            .list
            .iter()
            .map(|member| match kept.get(&member.address) {
                // Another label is another metrics series: a renamed backend is a new one.
                Some(backend) if backend.label == member.label => Arc::clone(backend),
                _ => match returning.get(&(&member.address, &*member.label)) {
                    Some(backend) => {
                        backend.begin_anew(Health::initial(health), now);
                        Arc::clone(backend)
                    }
                    None => Arc::new(Backend::new(
                        &member.address,
                        &member.label,
                        metrics.backend(name, &member.label),
                        (Arc::clone(&shared.waiting), Arc::clone(&shared.total)),
                        Health::initial(health),
                        now,
                    )),
                },
            })
            .collect();
        let stay: HashSet<BackendId> = backends.iter().map(|backend| backend.id).collect();
        let before = previous.iter().flat_map(|view| &view.backends).chain(&former);
        shared.former.set(before.filter(|backend| !stay.contains(&backend.id)));
        for (backend, member) in backends.iter().zip(&members.list) {
            backend.set_max_active(member.max_connections);
        }
        let weights = members.weights(adjusted);
        let among = Among { backends: &backends, weights: &weights, hash, total: &shared.total };
        let picker = Picker::prepare(&members.balance, &among, previous.map(|view| &view.picker));
        let tiers = members.list.iter().map(|member| member.tier).collect();
        Self { backends, weights, tiers, balance: members.balance.as_str(), members, picker }
    }

    /// Those that aren't in the view that follows are members no more, and the metrics don't say how they are.
    pub(super) fn withdraw_but(&self, next: Option<&Self>) {
        let stay: HashSet<BackendId> = next.iter().flat_map(|view| &view.backends).map(|backend| backend.id).collect();
        let gone = self.backends.iter().filter(|backend| !stay.contains(&backend.id));
        gone.for_each(|backend| backend.metrics.withdraw());
    }

    /// Whether its policy goes by what all backends have together.
    pub(super) fn is_bounded(&self) -> bool {
        self.picker.is_bounded()
    }

    /// Of the backends that a claim may have at first, as they count just now.
    pub(super) fn weight_in_use(&self, mode: Mode) -> u64 {
        let ask = Ask { tried: &Tried::default(), key: 0, now: 0, max_rate: None };
        let reach = if mode.panic { Reach::Enabled(mode.tier) } else { Reach::Tiers(mode.tier) };
        let all = Candidates { view: self, ask: &ask, reach, patience: 0, by_share: false, even_full: true };
        (0..all.len()).filter(|&index| all.usable(index)).map(|index| all.weight(index)).sum()
    }

    /// Whether there is any that a calm pool would use.
    pub(super) fn has_good(&self) -> bool {
        self.backends.iter().any(|backend| is_good(backend.flags()))
    }

    /// What a claim asks for, one after the other: how far it reaches, and how long it would wait.
    pub(super) fn attempts(ask: &Ask<'_>, patience: Millis, mode: Mode) -> Vec<(Reach, Millis)> {
        let usual = (!mode.panic).then_some((Reach::Tiers(mode.tier), 0));
        usual.into_iter().chain(Self::further(ask, patience, mode)).collect()
    }

    pub(super) fn picker(&self) -> &Picker {
        &self.picker
    }

    /// What follows when the usual has nothing: other tiers, whoever is enabled, whoever has to be waited for.
    #[cold]
    pub(super) fn claim_further(&self, ask: &Ask<'_>, patience: Millis, mode: Mode, rng: &mut Rng) -> Option<Slot> {
        Self::further(ask, patience, mode).find_map(|(reach, patience)| self.claim(ask, reach, patience, rng))
    }

    fn further(ask: &Ask<'_>, patience: Millis, mode: Mode) -> impl Iterator<Item = (Reach, Millis)> + use<> {
        let (in_use, everywhere, all) = (Reach::Tiers(mode.tier), Reach::Everywhere, Reach::Enabled(mode.tier));
        let order = match (mode.panic, ask.tried.is_empty()) {
            (false, _) => [in_use, everywhere],
            (true, true) => [all, everywhere],
            (true, false) => [everywhere, all],
        };
        let waits = if ask.max_rate.is_some() && patience > 0 { 2 } else { 1 };
        order.into_iter().flat_map(move |reach| [(reach, 0), (reach, patience)].into_iter().take(waits))
    }

    pub(super) fn claim(&self, ask: &Ask<'_>, reach: Reach, patience: Millis, rng: &mut Rng) -> Option<Slot> {
        let candidates = Candidates { view: self, ask, reach, patience, by_share: true, even_full: false };
        self.picker.pick(&candidates, rng).or_else(|| {
            // Whoever starts slowly may pass its turn on, but not to nobody.
            let candidates = Candidates { by_share: false, ..candidates };
            if candidates.any_usable() { self.picker.pick(&candidates, rng) } else { None }
        })
    }
}
