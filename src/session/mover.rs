//! Sessions that must move on: those of a backend that went down, those that stay longer than their backend or
//! listener may take to drain, and long ones that keep a pool out of balance.
//!
//! The same goes for all of them before the process goes, if they are not to go all at once.
//!
//! Owns what one worker remembers between two looks. An end by this hand is a reset of both sides; the client comes
//! again, and is served elsewhere. Costs nothing while no backend goes down, nothing drains and no pool rebalances:
//! then nobody looks at the sessions. Next: `net::relay`'s `Engine::review`.

use super::Relayed;
use super::close::CloseReason;
use super::pending::Pending;
use crate::clock::{Deadline, Millis, millis};
use crate::config::{OnDown, Percent};
use crate::drain::Spread;
use crate::name::{BackendId, PoolName};
use crate::net::relay::{Engine, Order};
use crate::pool::{Backend, Pool};
use crate::table::RoutingTable;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two steps of rebalancing.
const STEP: Duration = Duration::from_secs(1);
/// A backend with this much more than its share has too much, and with at least one session more.
const EXCESS: f64 = 1.1;

/// What a worker remembers of the pools.
#[derive(Debug, Default)]
pub struct Mover {
    /// How often a backend of each pool had gone down at the last look, and whether that has ever been to end sessions:
    /// some may have begun by an earlier config.
    falls: HashMap<PoolName, (u32, bool)>,
    /// Sessions that may be moved by now, in each pool that rebalances; mostly a fraction.
    credit: HashMap<PoolName, f64>,
    last_step: Option<Instant>,
    /// What [`Deadline::changes`] was at the last look at the deadlines of the sessions here.
    changes_seen: u32,
    /// The first of those deadlines.
    next_deadline: Option<Millis>,
    thinning: Thinning,
}

/// How far the sessions have gone that are to go before the process does.
#[derive(Debug, Default)]
struct Thinning {
    /// When some were last chosen.
    last: Option<Instant>,
    /// How many more should have been; a fraction.
    owed: f64,
}

impl Thinning {
    /// How many of those that are `left` go now, so that all go evenly.
    fn due(&mut self, spread: Spread, left: usize, now: Instant) -> usize {
        let elapsed = now.saturating_duration_since(self.last.replace(now).unwrap_or(spread.from));
        let (gone, rest) = (elapsed.as_secs_f64(), spread.until.saturating_duration_since(now).as_secs_f64());
        if gone > 0.0 {
            self.owed += left as f64 * gone / (gone + rest);
        }
        let count = self.owed.floor();
        self.owed -= count;
        (count as usize).min(left)
    }
}

/// Where a session is that may have to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Pending(usize),
    Engine(usize),
}

impl Mover {
    /// Whether a backend of any pool went down since the last call. Ends the sessions that must not outlive it.
    pub fn look(
        &mut self,
        table: &RoutingTable,
        engine: &mut Engine<Relayed>,
        pending: &Pending,
        now: Instant,
    ) -> bool {
        let mut fallen = false;
        let mut resets = false;
        for pool in &table.pools {
            let falls = pool.falls();
            let (seen, ends) = self.falls.entry(pool.name.clone()).or_default();
            *ends |= pool.protection.on_down == OnDown::Reset;
            if std::mem::replace(seen, falls) != falls {
                fallen = true;
                resets |= *ends;
            }
        }
        if self.falls.len() > table.pools.len() {
            self.falls.retain(|name, _| table.pool(name).is_some());
            self.credit.retain(|name, _| table.pool(name).is_some());
        }
        if resets {
            engine.review(now, |session, _| session.has_lost_its_backend().then_some(Order::BackendDown));
        }
        self.end_overdue(engine, pending, now);
        self.rebalance(table, engine, now);
        fallen
    }

    /// A session has come whose deadline nobody has looked at here.
    pub fn note_deadline(&mut self, at: Millis) {
        self.next_deadline = Some(self.next_deadline.map_or(at, |next| next.min(at)));
    }

    /// Ends the sessions whose backend or listener should be rid of them by now, be it in the table or not.
    fn end_overdue(&mut self, engine: &mut Engine<Relayed>, pending: &Pending, now: Instant) {
        let (changes, moment) = (Deadline::changes(), millis(now));
        if changes == self.changes_seen && self.next_deadline.is_none_or(|at| at > moment) {
            return;
        }
        (self.changes_seen, self.next_deadline) = (changes, None);
        // Those that have no relay yet look for themselves.
        pending.wake_all();
        engine.review(now, |session, _| {
            let at = session.drain_deadline()?;
            if at <= moment {
                return Some(Order::Drained);
            }
            self.note_deadline(at);
            None
        });
    }

    /// Ends so many of the sessions that are left as it takes for all of them to go evenly, the longest idle first.
    pub fn thin_out(&mut self, spread: Spread, engine: &mut Engine<Relayed>, pending: &Pending, now: Instant) {
        if now < spread.from {
            return;
        }
        let waiting = pending.places().filter_map(|place| Some((pending.look_at(place)?.last_moved, place)));
        let mut left: Vec<_> = waiting.map(|(idle_since, place)| (idle_since, Place::Pending(place))).collect();
        let relayed = engine.places().filter_map(|place| engine.look_at(place)).filter(|seen| !seen.is_closing);
        left.extend(relayed.map(|seen| (seen.last_moved, Place::Engine(seen.place))));
        let count = self.thinning.due(spread, left.len(), now);
        if count == 0 {
            return;
        }
        left.select_nth_unstable(count - 1);
        let going = &mut left[..count];
        going.sort_unstable();
        for (_, place) in going {
            match *place {
                Place::Pending(place) => pending.call_off_at(place, CloseReason::DrainDeadline),
                Place::Engine(place) => engine.order(place, Order::DrainDeadline, now),
            }
        }
    }

    /// Moves at most the share that each pool's config allows in a minute, the longest-lived first.
    fn rebalance(&mut self, table: &RoutingTable, engine: &mut Engine<Relayed>, now: Instant) {
        let elapsed = now - *self.last_step.get_or_insert(now);
        if elapsed < STEP {
            return;
        }
        // A worker that stood still has no herd to make up for.
        let elapsed = elapsed.min(2 * STEP);
        self.last_step = Some(now);
        for pool in &table.pools {
            let Some(share) = pool.protection.rebalance else { continue };
            let crowded = crowded(pool);
            // The ages of this pool's sessions on backends that have too many, and the count of all its sessions here.
            let (mut ages, mut sessions) = (Vec::new(), 0_usize);
            engine.review(now, |session, age| {
                let backend = session.backend_in(pool)?;
                sessions += 1;
                if crowded.contains(&backend.id) {
                    ages.push(age);
                }
                None
            });
            let moves = self.earn(pool, share, sessions, elapsed).min(ages.len());
            if moves == 0 {
                continue;
            }
            ages.sort_unstable_by(|a, b| b.cmp(a));
            let (oldest, left) = (ages[moves - 1], Cell::new(moves));
            let count = engine.review(now, |session, age| {
                let backend = session.backend_in(pool)?;
                let goes = left.get() > 0 && age >= oldest && crowded.contains(&backend.id);
                left.set(left.get() - usize::from(goes));
                goes.then_some(Order::Rebalance)
            });
            pool.metrics.rebalanced.inc_by(count as u64);
        }
    }

    /// How many whole sessions may move now.
    fn earn(&mut self, pool: &Pool, share: Percent, sessions: usize, elapsed: Duration) -> usize {
        let credit = self.credit.entry(pool.name.clone()).or_default();
        *credit += sessions as f64 * share.ratio() * elapsed.as_secs_f64() / 60.0;
        // What nobody was crowded enough to use is not saved up for a herd.
        let moves = credit.floor();
        *credit -= moves;
        moves as usize
    }
}

/// The available backends that have clearly more sessions than their share of all that available ones have.
fn crowded(pool: &Pool) -> HashSet<BackendId> {
    let view = pool.view();
    let usable: Vec<(&Arc<Backend>, f64)> = view
        .backends
        .iter()
        .zip(&view.weights)
        .filter(|(backend, _)| backend.available())
        .map(|(backend, &weight)| (backend, f64::from(weight) * f64::from(backend.share())))
        .collect();
    let active: f64 = usable.iter().map(|(backend, _)| f64::from(backend.active())).sum();
    let weight: f64 = usable.iter().map(|(_, weight)| weight).sum();
    let too_many = |backend: &Backend, own: f64| {
        let share = active * own / weight;
        f64::from(backend.active()) > (share * EXCESS).max(share.ceil())
    };
    usable.iter().filter(|(backend, own)| too_many(backend, *own)).map(|(backend, _)| backend.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;
    use crate::config::{self, Balance, Initial};
    use crate::metrics::Metrics;
    use crate::name::{BackendAddr, Endpoint};
    use crate::pool::{Members, ResolvedMember, Slot, Tried};
    use crate::rng::Rng;

    /// Backends `a`, `b`, … of one weight, all up.
    fn pool(backends: u8) -> Pool {
        let member = |index: u8| {
            let label = char::from(b'a' + index).to_string();
            let address = BackendAddr(Endpoint::Unix(std::path::Path::new(&label).into()));
            ResolvedMember { address, weight: 1, tier: 0, max_connections: None, label: label.into() }
        };
        let mut config = config::Pool::new(PoolName::new("web"), Balance::RoundRobin, Vec::new());
        config.health.initial = Initial::Up;
        let members = Members { list: (0..backends).map(member).collect(), balance: Balance::RoundRobin };
        Pool::new(&config, &members, &Arc::new(Metrics::new().unwrap()), None, Now { millis: 1, unix_ms: 1 })
    }

    /// So many sessions on each backend.
    fn sessions(pool: &Pool, counts: &[usize]) -> Vec<Slot> {
        let rng = &mut Rng::from_seed(1);
        let mut held = Vec::new();
        for (backend, &count) in pool.view().backends.iter().zip(counts) {
            let claims = std::iter::repeat_with(|| pool.claim(&Tried::default(), 1, rng).unwrap());
            held.extend(claims.filter(|slot| slot.id == backend.id).take(count));
        }
        held
    }

    /// Whether anybody ends by himself or not, and however seldom somebody looks, as many go in each part of the time,
    /// and nobody is left at its end.
    #[test]
    fn what_is_left_at_the_end_goes_evenly() {
        let from = Instant::now();
        let at = |tenths: u64| from + Duration::from_millis(100 * tenths);
        let spread = Spread { from, until: at(100) };
        for (sessions, step) in [(1_000, 1), (1_000, 7), (7, 1), (3, 20), (1, 3), (0, 1)] {
            let (mut thinning, mut left, mut seen) = (Thinning::default(), sessions, Vec::new());
            for tenths in (step..100).step_by(step as usize).chain([100]) {
                let count = thinning.due(spread, left, at(tenths));
                left -= count;
                seen.push(left);
                let expected = sessions as f64 * (100 - tenths) as f64 / 100.0;
                assert!((left as f64 - expected).abs() <= 1.0, "{left} of {sessions} after {tenths}: {seen:?}");
            }
            assert_eq!(left, 0, "{sessions} in steps of {step}");
        }
        // Half of them go by themselves after half of the time: the others still take all of it.
        let (mut thinning, mut left) = (Thinning::default(), 1_000);
        for tenths in 1..=100 {
            left -= thinning.due(spread, left, at(tenths));
            left /= if tenths == 50 { 2 } else { 1 };
            assert!(tenths != 75 || (124..=126).contains(&left), "{left}");
        }
        assert_eq!(left, 0);
    }

    #[test]
    fn one_that_has_its_share_to_the_next_whole_session_is_not_crowded() {
        for (counts, expected) in [
            (&[2, 1][..], 0),
            (&[3, 1], 1),
            (&[1, 0, 0], 0),
            (&[2, 1, 0], 1),
            (&[55, 45], 0),
            (&[57, 43], 1),
            (&[40, 40, 10], 2),
        ] {
            let pool = pool(counts.len() as u8);
            let held = sessions(&pool, counts);
            assert_eq!(crowded(&pool).len(), expected, "{counts:?}");
            drop(held);
        }
    }
}
