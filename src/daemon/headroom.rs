//! Sheds new connections before the kernel kills the process for want of memory.
//!
//! Owns the rule (pure, [`Watch`]) and the task that looks at the process's cgroup four times a second, sets the flag
//! that admission reads, shows both numbers as metrics, and says each change in the log. Without a cgroup, without a
//! limit in it, or with `memory_high = "off"` the flag stays down. May panic and be run again: the flag itself is what
//! it knows.

use super::cgroup::{Groups, Memory};
use crate::admission::Pressure;
use crate::config::Percent;
use crate::metrics::Metrics;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval};

/// How late a shortage may be seen.
const LOOK: Duration = Duration::from_millis(250);
/// The part of the mark by which the use must fall below it again.
const HYSTERESIS: f64 = 0.05;
/// Between two lines: memory that goes up and down must not flood the log. The last word is always told.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The rule, and what was said last.
struct Watch {
    high: Percent,
    /// What the log says.
    told: bool,
    told_at: Option<Instant>,
}

impl Watch {
    fn new(high: Percent, low: bool) -> Self {
        Self { high, told: low, told_at: None }
    }

    /// Whether memory is short, if it `was` before.
    fn is_low(&self, was: bool, memory: Option<Memory>) -> bool {
        let Some(Memory { used, limit }) = memory else { return false };
        let mark = limit as f64 * self.high.ratio();
        used as f64 >= if was { mark * (1.0 - HYSTERESIS) } else { mark }
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

/// Looks for ever.
pub async fn watch(high: Option<Percent>, pressure: Pressure, metrics: Arc<Metrics>) {
    let groups = Groups::of_this_process();
    let mut gauges = None;
    let mut watch = high.map(|high| Watch::new(high, pressure.is_low()));
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
        let Some(watch) = &mut watch else { continue };
        let low = watch.is_low(pressure.is_low(), memory);
        pressure.set(low);
        if watch.is_news(low, now) {
            let (used, limit) = memory.map_or((0, 0), |memory| (memory.used, memory.limit));
            if low {
                let high = watch.high;
                tracing::error!(used, limit, memory_high = %high, "memory is short: new connections are refused");
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
        let watch = Watch::new(Percent::whole(80), false);
        let mut low = false;
        let seen = [0, 799, 800, 999, 1_001, 799, 761, 759, 799, 800, 0].map(|used| {
            low = watch.is_low(low, Some(at(used)));
            low
        });
        assert_eq!(seen, [false, false, true, true, true, true, true, false, false, true, false]);
        assert!(!watch.is_low(true, None), "a limit that was lifted");
        // Also where the mark is very low it can end.
        let watch = Watch::new(Percent::whole(1), false);
        assert!(
            watch.is_low(false, Some(at(10))) && watch.is_low(true, Some(at(10))) && !watch.is_low(true, Some(at(9)))
        );
    }

    #[test]
    fn what_flaps_is_told_now_and_then_and_to_the_end() {
        let (mut watch, begun) = (Watch::new(Percent::whole(80), false), Instant::now());
        let mut lines = 0;
        for step in 0..100 {
            let low = step % 2 == 0 || step > 80;
            lines += u32::from(watch.is_news(low, begun + LOOK * step));
        }
        assert!((3..=7).contains(&lines), "{lines} lines in 25 s");
        assert!(watch.told);
        assert!(!Watch::new(Percent::whole(80), true).is_news(true, begun), "started again, it says nothing twice");
    }
}
