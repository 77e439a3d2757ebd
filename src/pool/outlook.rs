//! What a claim would find, for whoever asks without wanting a slot.
//!
//! Owns the words for why a backend would not be given. Asks the same questions in the same order as a claim, but
//! claims nothing, takes no turn and throws no dice: what is left to chance has its odds. Invariant: nothing in the
//! pool changes. Next: `candidates` for what a claim may have, `pick` for what each policy would do with that.

use super::backend::{Backend, flag};
use super::candidates::Candidates;
use super::mode::Mode;
use super::pick::Picker;
use super::view::PoolView;
use super::{Pool, Wish};
use crate::clock::Millis;
use std::sync::Arc;

/// What a claim would find at this moment.
pub struct Outlook {
    pub view: Arc<PoolView>,
    pub mode: Mode,
    /// The backends that it may get, by index, and how likely each is: together 1. Empty if there is nobody.
    pub odds: Vec<(usize, f64)>,
    pub how: How,
    /// Why each backend would not be given, by index; `None` for those that might be.
    pub obstacles: Vec<Option<Obstacle>>,
    /// Where a pool that goes by a hash would send the client if nothing stood in the way.
    pub home: Option<usize>,
    /// One that finds nobody, or comes while others wait, may wait for a place.
    pub waits: bool,
}

/// How the pool makes up its mind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By the hash: the same one as long as nothing changes.
    Hash,
    /// Whose turn is next.
    Turn,
    /// Who has the fewest connections for its weight.
    FewestConnections,
    ByChance,
}

/// Why a backend is not given to a client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Obstacle {
    /// An operator says so.
    Disabled,
    /// An operator says so.
    Draining,
    /// An operator says so.
    ForcedDown,
    /// Its agent says so.
    Maint,
    /// Its agent says so.
    AgentDraining,
    /// Its probes say so.
    Down,
    /// Its agent says so.
    AgentDown,
    Ejected,
    /// Half open, and somebody else is on trial.
    OnTrial,
    /// The tiers in use end before its own.
    Tier {
        own: u8,
        last: u8,
    },
    Full {
        max: u32,
    },
    /// Its next connect would have to wait, in ms.
    Paced {
        wait: Millis,
    },
    /// It would have more than `hash.max_load` allows, which is so many now.
    TooLoaded {
        most: u32,
    },
    /// It starts slowly, and this client isn't among those that it has back; its share in 1,024ths.
    StartsSlowly {
        share: u32,
    },
}

impl Pool {
    /// What [`claim_within`](Self::claim_within) would find.
    #[must_use]
    pub fn outlook(&self, wish: &Wish<'_>) -> Outlook {
        let view = self.view();
        let mode = self.mode_over(&view);
        let ask = self.ask(wish);
        let mut odds = Vec::new();
        // What most claims may have is also what the obstacles are told of, if nothing is found.
        let mut reached = PoolView::attempts(&ask, wish.patience, mode);
        if self.is_panic_due(wish.tried, &view) {
            reached.push((super::Reach::Enabled(super::limits::MAX_TIER), 0));
        }
        let usual = reached[0];
        let among = |(reach, patience), by_share| Candidates {
            view: &view,
            ask: &ask,
            reach,
            patience,
            by_share,
            even_full: false,
        };
        let mut found = among(usual, true);
        'found: for at in reached {
            for by_share in [true, false] {
                let candidates = among(at, by_share);
                odds = view.picker().odds(&candidates);
                if !odds.is_empty() {
                    found = candidates;
                    break 'found;
                }
            }
        }
        let mut likely = vec![false; view.backends.len()];
        for &(index, _) in &odds {
            likely[index] = true;
        }
        let obstacle = |index: usize| {
            if likely[index] { None } else { found.obstacle(index).or_else(|| view.picker().obstacle(&found, index)) }
        };
        let obstacles = (0..view.backends.len()).map(obstacle).collect();
        let waits = match self.queue {
            Some(_) if !self.waiting.is_empty() => true,
            Some(_) => odds.is_empty() && self.is_worth_waiting(wish.tried, wish.patience, wish.now),
            None => false,
        };
        Outlook { mode, odds, how: view.picker().how(), obstacles, home: view.picker().home(&found), waits, view }
    }
}

impl Candidates<'_> {
    /// What keeps this claim from having the backend, the most deliberate cause first.
    fn obstacle(&self, index: usize) -> Option<Obstacle> {
        if self.usable(index) {
            return None;
        }
        let backend = self.backend(index);
        let flags = backend.flags();
        let told = [
            (flag::DISABLED, Obstacle::Disabled),
            (flag::DRAINING, Obstacle::Draining),
            (flag::FORCED_DOWN, Obstacle::ForcedDown),
            (flag::MAINT, Obstacle::Maint),
            (flag::AGENT_DRAINING, Obstacle::AgentDraining),
            (flag::DOWN, Obstacle::Down),
            (flag::AGENT_DOWN, Obstacle::AgentDown),
            (flag::EJECTED, Obstacle::Ejected),
            (flag::ON_TRIAL, Obstacle::OnTrial),
        ];
        let by_flags = told.into_iter().find(|(bit, _)| flags & bit != 0 && !self.overlooks(*bit));
        by_flags.map(|(_, obstacle)| obstacle).or_else(|| self.obstacle_of_load(index, backend))
    }

    fn obstacle_of_load(&self, index: usize, backend: &Backend) -> Option<Obstacle> {
        let own = self.view.tiers[index];
        if let Some(last) = self.last_tier().filter(|&last| own > last) {
            return Some(Obstacle::Tier { own, last });
        }
        if let Some(max) = backend.max_active().filter(|_| backend.is_full()) {
            return Some(Obstacle::Full { max });
        }
        let wait = backend.pace.wait(self.now());
        (wait > self.patience).then_some(Obstacle::Paced { wait })
    }
}

impl Picker {
    /// The backends that it might give, and how likely each is; nothing is taken. What stands in the way of a backend
    /// for a moment only, such as that another worker is faster, isn't in it.
    fn odds(&self, candidates: &Candidates<'_>) -> Vec<(usize, f64)> {
        if !candidates.any_usable() {
            return Vec::new();
        }
        let mut odds = match self {
            Self::RoundRobin(picker) => picker.odds(candidates),
            Self::Random(_) => by_weight(candidates, candidates.all_usable()),
            Self::LeastConnections => by_weight(candidates, super::pick::fewest(candidates)),
            Self::PowerOfTwo(picker) => picker.odds(candidates),
            Self::Failover(picker) => picker.odds(candidates),
            Self::SourceHash(picker) => picker
                .offer(candidates, |index| candidates.accepts_key(index).then_some((index, 1.0)))
                .into_iter()
                .collect(),
        };
        odds.retain(|&(_, likely)| likely > 0.0);
        let all: f64 = odds.iter().map(|&(_, likely)| likely).sum();
        odds.into_iter().map(|(index, likely)| (index, likely / all)).collect()
    }

    fn how(&self) -> How {
        match self {
            Self::SourceHash(_) => How::Hash,
            Self::RoundRobin(_) => How::Turn,
            Self::LeastConnections => How::FewestConnections,
            Self::Random(_) | Self::PowerOfTwo(_) | Self::Failover(_) => How::ByChance,
        }
    }

    fn home(&self, candidates: &Candidates<'_>) -> Option<usize> {
        if let Self::SourceHash(picker) = self { picker.home(candidates.key()) } else { None }
    }

    /// What this policy has against a backend that the claim might have.
    fn obstacle(&self, candidates: &Candidates<'_>, index: usize) -> Option<Obstacle> {
        let Self::SourceHash(picker) = self else { return None };
        if let Some(most) = picker.too_loaded(candidates, index) {
            return Some(Obstacle::TooLoaded { most });
        }
        let share = candidates.backend(index).share();
        (!candidates.accepts_key(index)).then_some(Obstacle::StartsSlowly { share })
    }
}

/// Each of these in proportion to what its weight counts just now.
pub(super) fn by_weight(candidates: &Candidates<'_>, among: impl IntoIterator<Item = usize>) -> Vec<(usize, f64)> {
    among.into_iter().map(|index| (index, candidates.weight(index).max(1) as f64)).collect()
}
