//! The keeper: looks at every pool four times a second, for what comes about by time alone.
//!
//! Owns the telling: a pool that begins or ceases to panic and a tier that joins or leaves are log lines. What is
//! decided is the pool's own (`Pool::review`): an ejection that is over, a slow start that goes on, a tier that has
//! been held for long enough. May panic and be run again: it remembers only what it has told.

use crate::clock;
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
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await.into_std();
        let table = table.load_full();
        told.retain(|name, _| table.pool(name).is_some());
        for pool in &table.pools {
            let mode = pool.review(clock::millis(now));
            if *first_round.borrow() {
                told.entry(pool.name.clone()).or_default().tell(pool, mode, now);
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
}
