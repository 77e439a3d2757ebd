//! The keeper: looks at every pool four times a second, for what comes about by time alone.
//!
//! Owns the telling: a pool that begins or ceases to panic, a tier that joins or leaves, and a pool that begins or has
//! stopped to hold its clients are log lines. What is decided is the pool's own (`Pool::review`): an ejection that is
//! over, a slow start that goes on, a tier that has been held for long enough. May panic and be run again: it remembers
//! only what it has told.

use crate::clock;
use crate::metrics::HoldOutcome;
use crate::name::PoolName;
use crate::pool::{Mode, Pool};
use crate::table::RoutingTable;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// How late what comes about by time may be seen.
const EVERY: Duration = Duration::from_millis(250);
/// Between two lines about one pool: one that flaps must not flood the log. The last word is always told.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Looks without end, and tells of it once every backend has been asked: before that, nothing is known.
pub async fn keep(table: Arc<ArcSwap<RoutingTable>>, first_round: watch::Receiver<bool>) {
    let mut told: HashMap<PoolName, Told> = HashMap::new();
    let mut holding: HashMap<PoolName, Holding> = HashMap::new();
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await.into_std();
        let table = table.load_full();
        told.retain(|name, _| table.pool(name).is_some());
        holding.retain(|name, _| table.pool(name).is_some());
        for pool in &table.pools {
            let mode = pool.review(clock::millis(now));
            if *first_round.borrow() {
                told.entry(pool.name.clone()).or_default().tell(pool, mode, now);
            }
            if let Some(hold) = &pool.hold {
                let outcomes = HoldOutcome::ALL.map(|outcome| hold.count(outcome));
                let line = holding.entry(pool.name.clone()).or_default().look(hold.held(), outcomes, now);
                if let Some(line) = line {
                    line.write(&pool.name);
                }
            }
        }
    }
}

/// What has been said of a pool.
#[derive(Debug, Default)]
struct Told {
    mode: Mode,
    at: Option<Instant>,
}

impl Told {
    fn tell(&mut self, pool: &Pool, mode: Mode, now: Instant) {
        if mode == self.mode || self.at.is_some_and(|at| now.duration_since(at) < LINE_EVERY) {
            return;
        }
        let (name, available) = (&pool.name, pool.available());
        let backends = pool.view().backends.len();
        if mode.panic != self.mode.panic {
            let threshold = pool.protection.panic_threshold;
            if mode.panic {
                tracing::error!(
                    pool = %name, available, backends, %threshold,
                    "panic: too few backends are available, so all enabled ones are used"
                );
            } else {
                tracing::warn!(pool = %name, available, backends, "the panic is over: only available backends are used");
            }
        }
        if mode.tier > self.mode.tier {
            tracing::warn!(pool = %name, tier = mode.tier, available, "too few backends: the tiers up to this one are in use");
        } else if mode.tier < self.mode.tier {
            tracing::info!(pool = %name, tier = mode.tier, available, "enough backends: only the tiers up to this one are in use");
        }
        (self.mode, self.at) = (mode, Some(now));
    }
}

/// What has been said of the clients that a pool holds.
#[derive(Debug, Default)]
struct Holding {
    /// The beginning was told, and the end not yet.
    is_open: bool,
    /// When a beginning was told last.
    begun: Option<Instant>,
    /// What had become of clients when an end was told last, as [`HoldOutcome::ALL`].
    outcomes: [u64; 4],
}

/// What there is to say.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Holds {
        held: usize,
    },
    /// What has become of those that were held, and of those for whom there was no room.
    HoldsNoMore {
        outcomes: [u64; 4],
    },
}

impl Holding {
    fn look(&mut self, held: usize, outcomes: [u64; 4], now: Instant) -> Option<Line> {
        if self.is_open {
            if held > 0 {
                return None;
            }
            let before = std::mem::replace(&mut self.outcomes, outcomes);
            self.is_open = false;
            return Some(Line::HoldsNoMore { outcomes: std::array::from_fn(|index| outcomes[index] - before[index]) });
        }
        let is_due = self.begun.is_none_or(|begun| now.duration_since(begun) >= LINE_EVERY);
        if !is_due || (held == 0 && outcomes == self.outcomes) {
            return None;
        }
        (self.is_open, self.begun) = (true, Some(now));
        Some(Line::Holds { held })
    }
}

impl Line {
    fn write(&self, pool: &PoolName) {
        match self {
            Self::Holds { held } => {
                tracing::warn!(%pool, held, "clients are held: no backend can be connected to");
            }
            Self::HoldsNoMore { outcomes: [served, expired, overflow, gone] } => {
                tracing::info!(%pool, served, expired, overflow, gone, "no client is held any more");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;
    use crate::config::{self, Balance};
    use crate::metrics::Metrics;
    use crate::pool::Members;

    #[test]
    fn a_pool_that_flaps_is_told_of_now_and_then_and_to_the_end() {
        let config = config::Pool::new(PoolName::new("web"), Balance::Random, Vec::new());
        let members = Members { list: Vec::new(), balance: Balance::Random };
        let metrics = Arc::new(Metrics::new().unwrap());
        let pool = Pool::new(&config, &members, &metrics, None, Now { millis: 1, unix_ms: 1 });
        let (mut told, begun) = (Told::default(), Instant::now());
        let mut lines = 0;
        for step in 0..100 {
            let before = told.mode;
            let mode = Mode { tier: 0, panic: step % 2 == 0 || step > 80 };
            told.tell(&pool, mode, begun + EVERY * step);
            lines += u32::from(told.mode != before);
        }
        assert!((3..=7).contains(&lines), "{lines} lines in 25 s");
        assert!(told.mode.panic);
    }

    #[test]
    fn a_pool_that_holds_is_told_of_once_and_how_it_ended() {
        let (mut holding, begun) = (Holding::default(), Instant::now());
        let mut look =
            |ticks: u32, held, served, expired| holding.look(held, [served, expired, 0, 0], begun + EVERY * ticks);
        assert_eq!(look(0, 0, 0, 0), None);
        assert_eq!(look(1, 7, 0, 0), Some(Line::Holds { held: 7 }));
        assert_eq!(look(2, 9, 0, 1), None);
        assert_eq!(look(3, 3, 5, 1), None);
        assert_eq!(look(4, 0, 8, 1), Some(Line::HoldsNoMore { outcomes: [8, 1, 0, 0] }));
        assert_eq!(look(5, 0, 8, 1), None);
        // Soon after, it is told of later, and whole.
        assert_eq!(look(6, 2, 8, 1), None);
        assert_eq!(look(7, 0, 10, 1), None);
        assert_eq!(look(22, 0, 10, 1), Some(Line::Holds { held: 0 }));
        assert_eq!(look(23, 0, 10, 1), Some(Line::HoldsNoMore { outcomes: [2, 0, 0, 0] }));
    }
}
