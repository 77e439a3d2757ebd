//! Memory: what a burst of sessions has left behind goes back to the kernel.
//!
//! Owns the decision when (pure, [`Ebb`]) and the task that looks. The allocator keeps what was freed for the next
//! allocations, of each thread apart, for ever: without this, a process keeps the size of its largest hour. Giving it
//! back costs milliseconds and the faults of the next burst, so it is done only when most of a large burst is over.

use crate::admission::Process;
use crate::sys;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// How often somebody looks; so this is also the shortest time from one giving back to the next.
const LOOK: Duration = Duration::from_secs(1);
/// Sessions that must have gone. They hold a few hundred KiB.
const BURST: usize = 500;
/// The part of the most sessions that may be left.
const LEFT: usize = 4;

/// The number of sessions as it rises and falls.
#[derive(Debug, Default)]
struct Ebb {
    peak: usize,
}

impl Ebb {
    /// Whether a burst has gone, now that there are so many sessions and were at most `peak` since the last look: most
    /// of it, and no more go. Each burst goes once.
    fn is_low(&mut self, sessions: usize, peak: usize) -> bool {
        self.peak = self.peak.max(peak).max(sessions);
        let falls = sessions < peak;
        let low = !falls && self.peak - sessions >= BURST && sessions <= self.peak / LEFT;
        if low {
            self.peak = sessions;
        }
        low
    }
}

/// Looks for ever. What reading the config has left behind goes first.
pub async fn keep_small(process: Arc<Process>) {
    let mut ebb = Ebb::default();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    sys::release_free_memory();
    loop {
        tick.tick().await;
        if ebb.is_low(process.active(), process.take_peak()) {
            sys::release_free_memory();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_large_burst_counts_and_only_once() {
        let mut ebb = Ebb::default();
        let mut last = 0;
        let low: Vec<usize> =
            [0, 400, 0, 0, 900, 8_000, 2_001, 2_001, 2_000, 1_000, 1_000, 500, 0, 0, 600, 99, 100, 700, 9]
                .into_iter()
                .enumerate()
                .filter_map(|(at, sessions)| {
                    let peak = sessions.max(std::mem::replace(&mut last, sessions));
                    ebb.is_low(sessions, peak).then_some(at)
                })
                .collect();
        // 8,000 have fallen to 1,000, these to none, and 600 to 100; 700 still fall.
        assert_eq!(low, [10, 13, 16]);
        // A burst between two looks.
        assert!(!ebb.is_low(0, 5_000));
        assert!(ebb.is_low(0, 0));
    }
}
