//! When each backend's turn to be asked is, by a probe or for what its agent says.
//!
//! Owns the due times and which probes are under way; pure, `now` and the generator come in. New backends are asked
//! at once, though spread a little; after that their turns lie evenly over the interval, so that ten thousand of
//! them are a constant rate. Turns that were missed are not made up for.

use crate::name::BackendId;
use crate::rng::Rng;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// The first probes of many new backends are spread over this much time at most,
const FIRST_SPREAD: Duration = Duration::from_millis(500);
/// and of few over this much for each.
const FIRST_STEP: Duration = Duration::from_millis(1);

/// What a turn is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Probe,
    Agent,
}

/// A target: each kind of question to a backend has its turns.
pub type Key = (BackendId, Kind);

/// Every target's next turn.
#[derive(Default)]
pub struct Schedule {
    targets: HashMap<Key, Turn>,
    /// Each target once, unless a probe of it is under way; and what has gone, see [`Schedule::next_due`].
    due: BinaryHeap<Reverse<(Instant, Key)>>,
    /// Targets of which no probe has ended yet.
    unasked: usize,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    due: Instant,
    asked: bool,
    /// A probe of it is under way.
    running: bool,
}

impl Schedule {
    /// Makes `wanted` the targets. Those that were there before keep their turn; the others have theirs now.
    pub fn update(&mut self, wanted: impl IntoIterator<Item = Key>, now: Instant) {
        let mut before = std::mem::take(&mut self.targets);
        let mut fresh = Vec::new();
        for id in wanted {
            match before.remove(&id) {
                Some(turn) => drop(self.targets.insert(id, turn)),
                None => fresh.push(id),
            }
        }
        let count = fresh.len().max(1) as u32;
        let step = (FIRST_SPREAD / count).min(FIRST_STEP);
        for (place, id) in (0..).zip(fresh) {
            self.set(id, Turn { due: now + step * place, asked: false, running: false });
        }
        self.unasked = self.targets.values().filter(|turn| !turn.asked).count();
    }

    /// Counts a target as asked that has not been, since its answer is known already; its turn is some time within
    /// `interval`.
    pub fn count_as_asked(&mut self, id: Key, interval: Duration, now: Instant, rng: &mut Rng) {
        if self.targets.get(&id).is_some_and(|turn| !turn.asked) {
            self.unasked -= 1;
            self.set(id, Turn { due: now + rng.up_to(interval), asked: true, running: false });
        }
    }

    /// The next turn of all.
    pub fn next_due(&mut self) -> Option<Instant> {
        while let Some(&Reverse((due, id))) = self.due.peek() {
            if self.targets.get(&id).is_some_and(|turn| turn.due == due) {
                return Some(due);
            }
            self.due.pop();
        }
        None
    }

    /// Somebody whose turn it is, if it is anybody's.
    pub fn start(&mut self, now: Instant) -> Option<Key> {
        self.next_due().filter(|due| *due <= now)?;
        let Reverse((_, id)) = self.due.pop()?;
        if let Some(turn) = self.targets.get_mut(&id) {
            turn.running = true;
        }
        Some(id)
    }

    /// The target is asked more often from now on, or something else: its next turn is within `delay`. One that is
    /// being asked just now has its next turn as ever.
    pub fn hasten(&mut self, id: Key, delay: Duration, now: Instant, rng: &mut Rng) {
        let Some(&turn) = self.targets.get(&id) else { return };
        if !turn.running && turn.due > now + delay {
            self.set(id, Turn { due: now + rng.up_to(delay), ..turn });
        }
    }

    /// A probe has ended; the next one is `delay` after this one's turn. Ignored if the target has gone.
    pub fn finish(&mut self, id: Key, delay: Duration, now: Instant, rng: &mut Rng) {
        let Some(&turn) = self.targets.get(&id) else { return };
        // After the first round, turns are thrown all over the interval: its crowd shall not stay one.
        let delay = if turn.asked { delay } else { rng.up_to(delay) };
        let regular = turn.due + delay;
        // The same holds after a time in which nothing was probed and all are late.
        let due = if regular > now { regular } else { now + rng.up_to(delay) };
        self.unasked -= usize::from(!turn.asked);
        self.set(id, Turn { due, asked: true, running: false });
    }

    /// Whether every target has been asked once.
    pub fn first_round_is_over(&self) -> bool {
        self.unasked == 0
    }

    fn set(&mut self, id: Key, turn: Turn) {
        self.targets.insert(id, turn);
        self.due.push(Reverse((turn.due, id)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    fn key(id: u32) -> Key {
        (BackendId(id), Kind::Probe)
    }

    fn ids(count: u32) -> impl Iterator<Item = Key> {
        (0..count).map(key)
    }

    /// Lets probes that take no time happen until `end`; when each one was.
    fn simulate(schedule: &mut Schedule, end: Instant, rng: &mut Rng) -> Vec<(Instant, Key)> {
        let mut probes = Vec::new();
        while let Some(now) = schedule.next_due().filter(|due| *due < end) {
            let id = schedule.start(now).unwrap();
            probes.push((now, id));
            let delay = rng.jitter(INTERVAL, 0.1);
            schedule.finish(id, delay, now, rng);
        }
        probes
    }

    #[test]
    fn the_first_round_is_quick_and_spread() {
        for (count, expected) in [(1, Duration::ZERO), (10, 9 * FIRST_STEP), (10_000, FIRST_SPREAD)] {
            let (mut schedule, start) = (Schedule::default(), Instant::now());
            schedule.update(ids(count), start);
            let mut starts = Vec::new();
            while let Some(due) = schedule.next_due() {
                starts.push(due - start);
                assert!(schedule.start(due).is_some());
            }
            assert_eq!(starts.len(), count as usize);
            assert!(starts.is_sorted());
            let last = *starts.last().unwrap();
            assert!(last <= expected && last >= expected.mul_f64(0.99), "{last:?} for {count}");
            let middle = starts[starts.len() / 2];
            assert!(middle.abs_diff(expected / 2) <= FIRST_STEP, "{middle:?} for {count}");
        }
    }

    #[test]
    fn the_first_round_is_over_when_all_were_asked_or_have_gone() {
        let (mut schedule, now, rng) = (Schedule::default(), Instant::now(), &mut Rng::from_seed(1));
        assert!(schedule.first_round_is_over());
        schedule.update(ids(3), now);
        for id in ids(2) {
            assert!(!schedule.first_round_is_over());
            schedule.start(now + FIRST_SPREAD).unwrap();
            schedule.finish(id, INTERVAL, now, rng);
        }
        assert!(!schedule.first_round_is_over());
        schedule.update(ids(2), now);
        assert!(schedule.first_round_is_over());
    }

    #[test]
    fn whoever_is_known_is_not_asked_in_the_first_round() {
        let (mut schedule, now, rng) = (Schedule::default(), Instant::now(), &mut Rng::from_seed(6));
        schedule.update(ids(3), now);
        for id in ids(2) {
            schedule.count_as_asked(id, INTERVAL, now, rng);
            schedule.count_as_asked(id, INTERVAL, now, rng);
        }
        assert!(!schedule.first_round_is_over());
        assert_eq!(schedule.start(now + FIRST_SPREAD), Some(key(2)));
        schedule.finish(key(2), INTERVAL, now, rng);
        assert!(schedule.first_round_is_over());
        let probes = simulate(&mut schedule, now + 2 * INTERVAL, rng);
        assert!(ids(3).all(|id| probes.iter().any(|probe| probe.1 == id)), "all have their turn: {probes:?}");
    }

    #[test]
    fn many_targets_are_a_constant_rate() {
        const BUCKET: Duration = Duration::from_millis(100);
        let (mut schedule, start, rng) = (Schedule::default(), Instant::now(), &mut Rng::from_seed(2));
        schedule.update(ids(10_000), start);
        let probes = simulate(&mut schedule, start + 10 * INTERVAL, rng);
        let mut buckets = vec![0; 200];
        for (at, _) in probes {
            buckets[((at - start).as_millis() / BUCKET.as_millis()) as usize] += 1;
        }
        // The first interval holds the first round; from then on, a twentieth of the targets in each bucket.
        for (bucket, &count) in buckets.iter().enumerate().skip(20) {
            assert!((380..620).contains(&count), "{count} probes in bucket {bucket}");
        }
    }

    #[test]
    fn targets_that_stay_keep_their_turn_and_those_that_go_have_none() {
        let (mut schedule, start, rng) = (Schedule::default(), Instant::now(), &mut Rng::from_seed(3));
        schedule.update(ids(3), start);
        simulate(&mut schedule, start + INTERVAL, rng);
        let turn = schedule.targets[&key(1)].due;
        let now = start + INTERVAL;
        schedule.update([key(1), key(7)], now);
        let probes = simulate(&mut schedule, now + 3 * INTERVAL, rng);
        assert_eq!(probes[0], (now, key(7)));
        let first_of_1 = probes.iter().find(|(_, id)| *id == key(1));
        assert_eq!(first_of_1, Some(&(turn, key(1))));
        assert!(!probes.iter().any(|(_, id)| [key(0), key(2)].contains(id)));
    }

    #[test]
    fn a_turn_that_is_far_away_comes_sooner_when_it_should() {
        let (mut schedule, start, rng) = (Schedule::default(), Instant::now(), &mut Rng::from_seed(8));
        schedule.update(ids(3), start);
        for _ in 0..3 {
            let id = schedule.start(start + FIRST_SPREAD).unwrap();
            schedule.finish(id, 3_600 * INTERVAL, start + FIRST_SPREAD, rng);
        }
        let now = start + INTERVAL;
        let turns: Vec<Instant> = (0..3).map(|id| schedule.targets[&key(id)].due).collect();
        schedule.hasten(key(0), INTERVAL, now, rng);
        schedule.hasten(key(1), 7_200 * INTERVAL, now, rng);
        assert!(schedule.next_due().is_some_and(|due| due >= now && due <= now + INTERVAL));
        assert_eq!(schedule.start(now + INTERVAL), Some(key(0)));
        assert_eq!(schedule.targets[&key(1)].due, turns[1], "it is soon enough");
        // It is being asked: once.
        schedule.hasten(key(0), Duration::ZERO, now, rng);
        assert_eq!(schedule.start(now + INTERVAL), None);
        schedule.finish(key(0), INTERVAL, now, rng);
        assert_eq!(simulate(&mut schedule, now + 3 * INTERVAL, rng).iter().filter(|(_, id)| *id != key(0)).count(), 0);
    }

    #[test]
    fn a_probe_under_way_is_not_started_again_and_its_end_is_ignored_once_it_has_gone() {
        let (mut schedule, now, rng) = (Schedule::default(), Instant::now(), &mut Rng::from_seed(4));
        schedule.update(ids(1), now);
        assert_eq!(schedule.start(now), Some(key(0)));
        schedule.update(ids(1), now);
        assert_eq!((schedule.next_due(), schedule.start(now + INTERVAL)), (None, None));
        schedule.update(ids(0), now);
        schedule.finish(key(0), INTERVAL, now, rng);
        assert_eq!(schedule.next_due(), None);
    }

    #[test]
    fn a_target_that_comes_back_has_one_turn() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        for (count, after) in [(1, 0), (0, 1), (1, 2)] {
            schedule.update(ids(count), start + INTERVAL * after);
        }
        let now = start + 2 * INTERVAL;
        assert_eq!((schedule.next_due(), schedule.start(now), schedule.start(now)), (Some(now), Some(key(0)), None));
    }

    #[test]
    fn a_minute_without_probes_is_not_made_up_for() {
        let (mut schedule, start, rng) = (Schedule::default(), Instant::now(), &mut Rng::from_seed(5));
        schedule.update(ids(1_000), start);
        simulate(&mut schedule, start + 3 * INTERVAL, rng);
        let later = start + Duration::from_secs(60);
        let mut late = Vec::new();
        while let Some(id) = schedule.start(later) {
            late.push(id);
        }
        assert_eq!(late.len(), 1_000);
        for id in late {
            schedule.finish(id, INTERVAL, later, rng);
        }
        let probes = simulate(&mut schedule, later + INTERVAL / 2, rng);
        assert!((400..600).contains(&probes.len()), "{} of 1000 in half of the interval", probes.len());
    }
}
