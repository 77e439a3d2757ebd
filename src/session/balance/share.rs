//! Which worker serves a fresh connection: arithmetic over the counts of all workers.
//!
//! Pure. A worker keeps what the kernel gave it up to its [`share`]; beyond that the worker with the fewest sessions
//! gets it. Invariant: as long as no session ends, the busiest worker has at most its share, which from 64 sessions
//! on up to 16 workers is less than 1.3 times the mean. Next: `mod`, which makes this hold for concurrent workers.

/// What one worker sees of another, or of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Now and lately.
    pub sessions: usize,
    /// Whether a connection may be handed to it.
    pub takes: bool,
}

/// Who serves, and the count of sessions that this was decided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub worker: usize,
    pub sessions: usize,
}

/// The most sessions that one of `workers` may have, of `total` together, before fresh ones go elsewhere.
///
/// A quarter above the mean, so that there is some room for chance; or the next whole number above the mean, where that
/// is more, as for few sessions. The latter is at most 1.3 times the mean from a mean of 10/3 on.
#[must_use]
pub fn share(total: usize, workers: usize) -> usize {
    (total / workers + 1).max(total * 5 / (workers * 4))
}

/// Who serves the fresh connection that `own` has accepted: itself within its share, else the one that has the fewest
/// sessions, fewer than itself, and takes connections.
///
/// # Panics
/// When `own` isn't one of `workers`.
#[must_use]
pub fn choose(own: usize, workers: impl ExactSizeIterator<Item = Seen>) -> Choice {
    let count = workers.len();
    let (mut total, mut mine, mut least) = (1, None, None::<Choice>);
    for (worker, seen) in workers.enumerate() {
        total += seen.sessions;
        let choice = Choice { worker, sessions: seen.sessions };
        if worker == own {
            mine = Some(choice);
        } else if seen.takes && least.is_none_or(|least| seen.sessions < least.sessions) {
            least = Some(choice);
        }
    }
    let mine = mine.expect("a worker is one of the workers");
    match least {
        Some(least) if mine.sessions >= share(total, count) && least.sessions < mine.sessions => least,
        _ => mine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(sessions: &[usize]) -> impl ExactSizeIterator<Item = Seen> {
        sessions.iter().map(|&sessions| Seen { sessions, takes: true })
    }

    #[test]
    fn a_worker_keeps_its_share_and_no_more() {
        for (sessions, own, expected) in [
            (&[0, 0][..], 1, 1),
            // Of two sessions both may be on one worker; of three no more than two.
            (&[1, 0], 0, 0),
            (&[2, 0], 0, 1),
            (&[40, 24], 0, 1),
            (&[39, 24], 0, 0),
            (&[9, 3, 2, 2], 0, 2),
            (&[7], 0, 0),
        ] {
            let choice = choose(own, seen(sessions));
            assert_eq!(choice, Choice { worker: expected, sessions: sessions[expected] }, "{sessions:?}");
        }
    }

    #[test]
    fn who_takes_nothing_is_given_nothing() {
        let of = |takes: [bool; 3]| {
            let workers = [9, 0, 1].into_iter().zip(takes).map(|(sessions, takes)| Seen { sessions, takes });
            choose(0, workers.collect::<Vec<_>>().into_iter()).worker
        };
        assert_eq!(of([true, true, true]), 1);
        assert_eq!(of([true, false, true]), 2);
        assert_eq!(of([true, false, false]), 0);
    }

    #[test]
    fn the_least_busy_of_those_that_work_keeps_what_it_has() {
        // A stuck worker has none; the others have more than their share of the mean, and don't swap for nothing.
        let workers = [(0, false), (50, true), (50, true)].map(|(sessions, takes)| Seen { sessions, takes });
        assert_eq!(choose(1, workers.into_iter()).worker, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_busiest_stays_within_1_3_times_the_mean(
            workers in 1_usize..=16,
            arrivals in prop::collection::vec(any::<prop::sample::Index>(), 64..600),
            // How many of the arrivals the kernel gives to one and the same worker.
            skew in 0_usize..=4,
        ) {
            let mut sessions = vec![0; workers];
            for (number, arrival) in arrivals.iter().enumerate() {
                let own = if number % 4 < skew { 0 } else { arrival.index(workers) };
                let chosen = choose(own, seen(&sessions)).worker;
                sessions[chosen] += 1;
                let (total, most) = (number + 1, sessions.iter().max().copied().unwrap_or_default());
                prop_assert!(most <= share(total, workers));
                if total >= 64 {
                    prop_assert!(most * workers * 10 <= total * 13, "{sessions:?}");
                }
                // And for few at most one above the mean, rounded down.
                if total <= 4 * workers {
                    prop_assert!(most <= total / workers + 1, "{sessions:?}");
                }
            }
        }
    }
}
