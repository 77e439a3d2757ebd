//! Sheds new connections before the kernel kills the process for want of memory.
//!
//! Owns the rule (pure, [`is_low`]) and the task that looks at the process's cgroup four times a second, sets the flag
//! that admission reads, shows both numbers as metrics, and says each change in the log. Without a cgroup, without a
//! limit in it, or with `memory_high = "off"` the flag stays down. May panic and be run again: the flag itself is what
//! it knows.

use super::cgroup::{Groups, Memory};
use crate::admission::Pressure;
use crate::config::{Config, Percent};
use crate::metrics::Metrics;
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval};

/// How late a shortage may be seen.
const LOOK: Duration = Duration::from_millis(250);
/// The part of the mark by which the use must fall below it again.
const HYSTERESIS: f64 = 0.05;
/// Between two lines: memory that goes up and down must not flood the log. The last word is always told.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What was said last.
struct Watch {
    /// What the log says.
    told: bool,
    told_at: Option<Instant>,
}

impl Watch {
    fn new(low: bool) -> Self {
        Self { told: low, told_at: None }
    }

    /// Whether the log has to have a line now.
    fn is_news(&mut self, low: bool, now: Instant) -> bool {
        let news = low != self.told && self.told_at.is_none_or(|at| now.duration_since(at) >= LINE_EVERY);
        if news {
            (self.told, self.told_at) = (low, Some(now));
        }
        news
    }
}

/// Whether memory is short, if it `was` before.
fn is_low(high: Percent, was: bool, memory: Option<Memory>) -> bool {
    let Some(Memory { used, limit }) = memory else { return false };
    let mark = limit as f64 * high.ratio();
    used as f64 >= if was { mark * (1.0 - HYSTERESIS) } else { mark }
}

/// Looks for ever.
pub async fn watch(config: Arc<ArcSwap<Config>>, pressure: Pressure, metrics: Arc<Metrics>) {
    let groups = Groups::of_this_process();
    let mut gauges = None;
    let mut watch = Watch::new(pressure.is_low());
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await.into_std();
        let memory = groups.as_ref().and_then(Groups::read);
        gauges = memory.map(|memory| {
            let gauges = gauges.take().unwrap_or_else(|| metrics.cgroup_memory());
            gauges.used.set(i64::try_from(memory.used).unwrap_or(i64::MAX));
            gauges.limit.set(i64::try_from(memory.limit).unwrap_or(i64::MAX));
            gauges
        });
        let high = config.load().runtime.memory_high;
        let low = high.is_some_and(|high| is_low(high, pressure.is_low(), memory));
        pressure.set(low);
        if watch.is_news(low, now) {
            let (used, limit) = memory.map_or((0, 0), |memory| (memory.used, memory.limit));
            if low {
                let high = high.map(|high| high.to_string()).unwrap_or_default();
                tracing::error!(used, limit, memory_high = high, "memory is short: new connections are refused");
            } else {
                tracing::warn!(used, limit, "memory is no longer short: new connections are served again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(used: u64) -> Memory {
        Memory { used, limit: 1_000 }
    }

    #[test]
    fn it_is_low_from_the_mark_on_until_it_is_clearly_below() {
        let high = Percent::whole(80);
        let mut low = false;
        let seen = [0, 799, 800, 999, 1_001, 799, 761, 759, 799, 800, 0].map(|used| {
            low = is_low(high, low, Some(at(used)));
            low
        });
        assert_eq!(seen, [false, false, true, true, true, true, true, false, false, true, false]);
        assert!(!is_low(high, true, None), "a limit that was lifted");
        // Also where the mark is very low it can end.
        let high = Percent::whole(1);
        assert!(is_low(high, false, Some(at(10))) && is_low(high, true, Some(at(10))));
        assert!(!is_low(high, true, Some(at(9))));
    }

    #[test]
    fn what_flaps_is_told_now_and_then_and_to_the_end() {
        let (mut watch, begun) = (Watch::new(false), Instant::now());
        let mut lines = 0;
        for step in 0..100 {
            let low = step % 2 == 0 || step > 80;
            lines += u32::from(watch.is_news(low, begun + LOOK * step));
        }
        assert!((3..=7).contains(&lines), "{lines} lines in 25 s");
        assert!(watch.told);
        assert!(!Watch::new(true).is_news(true, begun), "started again, it says nothing twice");
    }
}
