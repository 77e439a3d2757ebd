//! Pools that follow each other: what goes on, who judges, and what becomes of those that wait.

use super::hold::{Held, Turn};
use super::queue;
use super::tests::member;
use super::*;
use crate::config::{Balance, Initial, Percent};
use crate::metrics::StateGauge;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const NOW: Now = Now { millis: 1_000, unix_ms: 1_000_000 };

fn config(change: impl FnOnce(&mut config::Pool)) -> config::Pool {
    let mut config = config::Pool::new(PoolName::new("web"), Balance::RoundRobin, Vec::new());
    config.health.initial = Initial::Up;
    config.protection.panic_threshold = Percent::whole(0);
    change(&mut config);
    config
}

fn members(labels: &[&str]) -> Members {
    Members { list: labels.iter().map(|label| member(label, label, 1)).collect(), balance: Balance::RoundRobin }
}

/// One table's pool after another, with the same metrics.
struct Pools {
    metrics: Arc<Metrics>,
    pool: Arc<Pool>,
}

impl Pools {
    fn new(labels: &[&str], change: impl FnOnce(&mut config::Pool)) -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        let pool = Arc::new(Pool::new(&config(change), &members(labels), &metrics, None, NOW));
        Self { metrics, pool }
    }

    /// The one before, which is retired.
    fn succeed(&mut self, labels: &[&str], change: impl FnOnce(&mut config::Pool)) -> Arc<Pool> {
        let next = Arc::new(Pool::new(&config(change), &members(labels), &self.metrics, Some(&self.pool), NOW));
        self.pool.retire(Some(&next));
        std::mem::replace(&mut self.pool, next)
    }

    /// Available, ejected, panic and tier, as the metrics have them.
    fn gauges(&self) -> [Option<i64>; 4] {
        let metrics = &self.pool.metrics;
        [&metrics.available, &metrics.ejected, &metrics.panic, &metrics.tier].map(StateGauge::get)
    }
}

fn claim(pool: &Pool) -> Option<Slot> {
    pool.claim(&Tried::default(), NOW.millis, &mut Rng::from_seed(1))
}

#[test]
fn only_members_may_differ_in_what_is_the_same_pool() {
    let pool = Pools::new(&["a"], |_| {}).pool;
    let with_members = |config: &mut config::Pool| {
        config.balance = Balance::Random;
        config.backend_max_connections = Some(7);
    };
    assert!(pool.is_as(&config(|_| {})) && pool.is_as(&config(with_members)));
    assert!(!pool.is_as(&config(|config| config.health.rise = 9)));
    assert!(!pool.is_as(&config(|config| config.connect.attempts = 9)));
    assert!(!pool.is_as(&config(|config| config.queue = Some(config::Queue::default()))));
}

#[test]
fn a_retired_pool_says_nothing_in_the_metrics_and_its_findings_are_the_next_ones() {
    let mut pools = Pools::new(&["a", "b"], |_| {});
    let slot = claim(&pools.pool).unwrap();
    let old = pools.succeed(&["a", "b", "c"], |config| config.ejection.consecutive_failures = Some(2));
    assert_eq!(pools.gauges(), [3, 0, 0, 0].map(Some));
    assert!(old.is_retired() && old.successor().is_some_and(|next| Arc::ptr_eq(&next, &pools.pool)));
    old.review(NOW.millis);
    assert_eq!(pools.gauges(), [3, 0, 0, 0].map(Some));
    // Five in a row were the old one's rule.
    assert!(old.failed(&slot, false, TrafficFailure::Connect, NOW.millis).is_none());
    assert!(old.failed(&slot, false, TrafficFailure::Connect, NOW.millis).is_some());
    assert_eq!((pools.gauges(), slot.state()), ([2, 1, 0, 0].map(Some), "ejected"));
    pools.pool.review(NOW.millis + 3_600_000);
    assert_eq!(slot.state(), "half_open");
    assert!(old.served(&slot, true, NOW.millis + 3_600_000));
    assert_eq!((pools.gauges(), slot.state()), ([3, 0, 0, 0].map(Some), "up"));
    // Its own mode goes on, for its own sessions.
    let verdict = |pool: &Pool, health| {
        pool.view().backends.iter().for_each(|backend| backend.set_health(health, 1));
        pool.review(NOW.millis).panic
    };
    let second = pools.succeed(&["a", "b", "c"], |config| config.protection.panic_threshold = Percent::whole(50));
    assert!(!verdict(&old, Health::Down) && !verdict(&second, Health::Down) && pools.pool.mode().panic);
}

#[test]
fn of_a_backend_that_is_gone_nobody_judges_any_more() {
    let mut pools = Pools::new(&["a", "b"], |config| config.ejection.consecutive_failures = Some(1));
    let slot = claim(&pools.pool).unwrap();
    assert_eq!(&*slot.label, "a");
    let old = pools.succeed(&["b"], |config| config.connect.attempts = 1);
    assert_eq!(old.view().backends.len(), 2, "its sessions keep it as it is");
    old.failed(&slot, false, TrafficFailure::Connect, NOW.millis);
    old.failed(&slot, false, TrafficFailure::Connect, NOW.millis);
    assert_eq!(pools.gauges(), [1, 0, 0, 0].map(Some));
    pools.pool.retire(None);
    assert_eq!(pools.gauges(), [None; 4]);
    assert!(old.successor().is_none() && pools.pool.successor().is_none());
    pools.pool.review(NOW.millis);
    old.review(NOW.millis);
    assert_eq!(pools.gauges(), [None; 4]);
}

#[test]
fn latency_hedges_and_falls_go_on() {
    let shed = config::Shed {
        connect_time: Some(Duration::from_millis(10)),
        first_byte: None,
        queue_time: None,
        window: Duration::from_millis(500),
        dry_run: false,
    };
    let mut pools = Pools::new(&["a"], |config| {
        config.shed = Some(shed);
        config.connect.hedge_share = Percent::whole(10);
        (config.health.rise, config.health.fall) = (1, 1);
    });
    for now in 1..=10_000 {
        pools.pool.took(Latency::Connect, Duration::from_millis(100 + now));
        pools.pool.review(now);
    }
    let share = pools.pool.shed().unwrap().share();
    assert!(share > 0.9 && pools.pool.may_hedge() && !pools.pool.may_hedge(), "{share}");
    let backend = Arc::clone(&pools.pool.view().backends[0]);
    pools.pool.observe(&backend, health::Outcome::Failure, NOW);
    let with_shed = |settings: config::Shed| {
        move |config: &mut config::Pool| {
            config.shed = Some(settings);
            config.connect.hedge_share = Percent::whole(10);
            config.connect.attempts = 9;
        }
    };
    let old = pools.succeed(&["a"], with_shed(shed));
    assert!((pools.pool.shed().unwrap().share() - share).abs() < f64::EPSILON && !pools.pool.may_hedge());
    assert_eq!((pools.pool.falls(), old.falls()), (1, 1));
    old.observe(&backend, health::Outcome::Failure, NOW);
    old.observe(&backend, health::Outcome::Success, NOW);
    old.observe(&backend, health::Outcome::Failure, NOW);
    assert_eq!(pools.pool.falls(), 2, "whoever is told of it, all know");
    // Other settings begin anew.
    pools.succeed(&["a"], with_shed(config::Shed { window: Duration::from_millis(900), ..shed }));
    assert!(pools.pool.shed().unwrap().share().abs() < f64::EPSILON);
}

/// What has happened to one that waits.
fn turn(waiter: &mut queue::Waiter) -> Option<queue::Turn> {
    match pin!(waiter.turn()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(turn) => Some(turn),
        Poll::Pending => None,
    }
}

#[test]
fn those_that_wait_have_their_turn_when_the_pool_changes_or_goes() {
    let queued = |config: &mut config::Pool| config.queue = Some(config::Queue::default());
    for (wants_queue, stays) in [(true, true), (false, true), (false, false)] {
        let mut pools = Pools::new(&["a"], queued);
        let mut waiters: Vec<_> = (0..3).map(|_| pools.pool.waiting.enter(None, false, 5).unwrap()).collect();
        for waiter in &mut waiters {
            while turn(waiter).is_some() {
                waiter.failed();
            }
        }
        let max_waiting = pools.pool.metrics.queue().max_waiting.get();
        assert!(max_waiting > 0);
        if stays {
            pools.succeed(&["a", "b"], |config| {
                config.connect.attempts = 9;
                if wants_queue {
                    queued(config);
                }
            });
        } else {
            pools.pool.retire(None);
        }
        // One after the other, each of them: whoever leaves hands it on.
        for mut waiter in waiters {
            assert_eq!(turn(&mut waiter), Some(queue::Turn::Try), "queue: {wants_queue}, pool: {stays}");
        }
        let expected = if wants_queue { max_waiting } else { 0 };
        assert_eq!(pools.pool.metrics.queue().max_waiting.get(), expected);
        assert!(pools.pool.waiting.is_empty());
    }
}

#[test]
fn those_that_are_held_stay_so_or_may_go_at_once() {
    let down = |config: &mut config::Pool| {
        config.health.initial = Initial::Down;
        config.connect.attempts = 9;
    };
    let holds = |config: &mut config::Pool| {
        config.health.initial = Initial::Down;
        config.hold = Some(config::Hold::default());
    };
    let ask = |held: &Held| held.ask(false, 10);
    for (wants_hold, stays) in [(true, true), (false, true), (false, false)] {
        let mut pools = Pools::new(&["a"], holds);
        let hold = Arc::clone(pools.pool.hold.as_ref().unwrap());
        let places: Vec<_> = (0..3).map(|_| hold.enter(false, 5).unwrap()).collect();
        assert!(places.iter().all(|place| matches!(ask(place), Turn::Wait { .. })));
        if stays {
            pools.succeed(&["a"], |config| {
                down(config);
                if wants_hold {
                    holds(config);
                }
            });
        } else {
            pools.pool.retire(None);
        }
        assert_eq!(hold.is_dissolved(), !wants_hold);
        let goes = |place: &Held| place.poll_called(Waker::noop()).is_ready() && ask(place) == Turn::Search;
        assert!(places.iter().all(|place| goes(place) != wants_hold), "hold: {wants_hold}, pool: {stays}");
        // One that comes too late to know of it.
        assert_eq!(ask(&hold.enter(false, 11).unwrap()) == Turn::Search, !wants_hold);
        if wants_hold {
            assert_eq!(pools.pool.hold.as_ref().unwrap().held(), 3);
        }
        drop(places);
        assert_eq!(hold.held(), 0);
    }
}

/// At most one session each.
fn members_of_one(labels: &[&str]) -> Members {
    let mut members = members(labels);
    members.list.iter_mut().for_each(|member| member.max_connections = Some(1));
    members
}

#[test]
fn who_returns_while_it_has_sessions_is_the_one_that_left_and_as_unknown_as_a_new_one() {
    let pools = Pools::new(&["a"], |_| {});
    let (pool, metrics) = (&pools.pool, &pools.metrics);
    let set = |labels: &[&str]| pool.set_members(members_of_one(labels), &Adjusted::new(), metrics, NOW);
    set(&["a"]);
    let session = claim(pool).unwrap();
    let a = Arc::clone(&pool.view().backends[0]);
    a.set_health(Health::Down, NOW.unix_ms);
    a.set_drain_deadline(Some(5_000));
    set(&["b"]);
    set(&["b", "a"]);
    assert_eq!(pool.view().backends[1].id, a.id);
    assert!(a.available() && !a.is_known() && a.drain_deadline().is_none());
    assert!(a.is_full());
    let other = claim(pool).unwrap();
    assert_eq!(&*other.label, "b");
    assert!(claim(pool).is_none(), "its old session has the only place");
    drop(session);
    assert_eq!(claim(pool).unwrap().backend().id, a.id);

    // Nothing is kept of one without sessions.
    let id = a.id;
    drop(a);
    set(&["b"]);
    set(&["b", "a"]);
    assert_ne!(pool.view().backends[1].id, id);
}

#[test]
fn a_pool_that_returns_has_its_sessions_back() {
    let pools = Pools::new(&["a"], |_| {});
    let (_session, a) = (claim(&pools.pool).unwrap(), Arc::clone(&pools.pool.view().backends[0]));
    let former = pools.pool.leave();
    pools.pool.retire(None);
    assert!(former.has_sessions());
    let again = Arc::new(Pool::again(&config(|_| {}), &members_of_one(&["a"]), &pools.metrics, &former, NOW));
    former.return_as(&again);
    assert!(pools.pool.judge_of(&a).is_some_and(|judge| Arc::ptr_eq(&judge, &again)));
    assert_eq!((again.view().backends[0].id, a.active()), (a.id, 1));
    assert!(claim(&again).is_none());
}
