//! What real traffic, tiers and panic do to who is chosen.

use super::health::{AgentAdmin, AgentReport};
use super::tests::pool_of;
use super::*;
use crate::config::{Balance, Ejection, Percent, Protection};
use std::time::Duration;

const BASE: Millis = 30_000;

/// Who is chosen in 300 claims, sorted.
fn chosen(pool: &Pool) -> Vec<String> {
    let rng = &mut Rng::from_seed(1);
    let mut labels: Vec<String> =
        (0..300).filter_map(|_| pool.claim(&Tried::default(), 1, rng)).map(|slot| slot.label.to_string()).collect();
    labels.sort();
    labels.dedup();
    labels
}

fn slot_on(pool: &Pool, label: &str, now: Millis) -> Slot {
    let rng = &mut Rng::from_seed(1);
    let mut slots = (0..10_000).filter_map(|_| pool.claim(&Tried::default(), now, rng));
    slots.find(|slot| &*slot.label == label).expect("the backend is never chosen")
}

fn fail(pool: &Pool, label: &str, times: usize, now: Millis) -> Option<Ejected> {
    let mut last = None;
    for _ in 0..times {
        last = pool.failed(&slot_on(pool, label, now), false, TrafficFailure::Connect, now);
    }
    last
}

fn put_down(pool: &Pool, indices: &[usize]) {
    for &index in indices {
        pool.view().backends[index].set_health(Health::Down, 1);
    }
    pool.review(1);
}

#[test]
fn enough_failures_in_a_row_eject() {
    let pool = pool_of(Balance::RoundRobin, &[0; 3], |_| {});
    assert_eq!(fail(&pool, "b1", 4, 10), None);
    pool.served(&slot_on(&pool, "b1", 10), false, 10);
    assert_eq!(fail(&pool, "b1", 4, 10), None, "an answer in between begins the count anew");
    assert_eq!(fail(&pool, "b1", 1, 10), Some(Ejected { times: 1, span: Duration::from_millis(BASE) }));
    assert_eq!(chosen(&pool), ["b0", "b2"]);
    assert_eq!((pool.view().backends[1].state(), pool.metrics.ejected.get()), ("ejected", Some(1)));
}

#[test]
fn an_ejected_backend_comes_back_by_one_trial() {
    let pool = pool_of(Balance::RoundRobin, &[0; 3], |_| {});
    fail(&pool, "b1", 5, 10);
    pool.review(10 + BASE - 1);
    assert_eq!(chosen(&pool), ["b0", "b2"]);
    pool.review(10 + BASE);
    assert_eq!(pool.view().backends[1].state(), "half_open");

    let trial = slot_on(&pool, "b1", BASE + 20);
    assert!(trial.is_on_trial());
    assert_eq!(chosen(&pool), ["b0", "b2"], "one at a time");
    let again = pool.failed(&trial, true, TrafficFailure::Reset, BASE + 20);
    assert_eq!(again, Some(Ejected { times: 2, span: Duration::from_millis(2 * BASE) }));
    drop(trial);
    assert_eq!(chosen(&pool), ["b0", "b2"]);

    pool.review(10 * BASE);
    drop(slot_on(&pool, "b1", 10 * BASE));
    let trial = slot_on(&pool, "b1", 10 * BASE);
    assert!(trial.is_on_trial(), "the one before ended undecided");
    assert!(pool.served(&trial, true, 10 * BASE));
    assert_eq!(chosen(&pool), ["b0", "b1", "b2"]);
    assert!(pool.view().backends[1].share() < WHOLE_SHARE, "and slowly");
    assert_eq!(pool.metrics.ejected.get(), Some(0));
}

#[test]
fn no_more_than_the_share_is_ejected_but_one_may_always_go() {
    for (size, most) in [(1_usize, 1), (3, 1), (10, 3), (20, 6)] {
        let pool = pool_of(Balance::RoundRobin, &vec![0; size], |config| {
            config.ejection = Ejection { max_ejected: Percent::whole(30), ..Ejection::default() };
            config.protection.panic_threshold = Percent::whole(0);
        });
        let mut ejected = 0;
        for index in 0..=most {
            if index < size {
                ejected += usize::from(fail(&pool, &format!("b{index}"), 5, 10).is_some());
            }
        }
        assert_eq!(ejected, most, "of {size}");
    }
}

#[test]
fn without_a_number_nobody_is_ejected() {
    let pool = pool_of(Balance::RoundRobin, &[0; 3], |config| config.ejection.consecutive_failures = None);
    assert_eq!(fail(&pool, "b1", 100, 10), None);
    assert_eq!(chosen(&pool), ["b0", "b1", "b2"]);
}

#[test]
fn in_panic_everybody_is_used_and_failovers_prefer_the_good() {
    let pool = pool_of(Balance::Random, &[0; 5], |_| {});
    put_down(&pool, &[0, 1]);
    assert_eq!((chosen(&pool), pool.mode().panic), (vec!["b2".into(), "b3".into(), "b4".into()], false));
    put_down(&pool, &[2]);
    assert_eq!((pool.mode().panic, pool.metrics.panic.get()), (true, Some(1)));
    assert_eq!(chosen(&pool).len(), 5);
    let mut tried = Tried::default();
    tried.push(pool.view().backends[0].id);
    let rng = &mut Rng::from_seed(3);
    for _ in 0..4 {
        let slot = pool.claim(&tried, 1, rng).unwrap();
        tried.push(slot.id);
    }
    let good = [pool.view().backends[3].id, pool.view().backends[4].id];
    assert!(tried.as_slice()[1..3].iter().all(|id| good.contains(id)), "{tried:?}");
    assert!(pool.claim(&tried, 1, rng).is_none());
}

/// A trial that went well may last for hours, through the next ejection and into the next trial.
#[test]
fn the_end_of_a_trial_of_the_past_is_not_the_end_of_this_one() {
    let pool = pool_of(Balance::RoundRobin, &[0; 3], |_| {});
    fail(&pool, "b1", 5, 10);
    pool.review(10 + BASE);
    let first = slot_on(&pool, "b1", 10 + BASE);
    assert!(first.is_on_trial() && pool.served(&first, true, 10 + BASE));
    fail(&pool, "b1", 5, 20 + BASE);
    pool.review(20 + 10 * BASE);
    let second = slot_on(&pool, "b1", 20 + 10 * BASE);
    assert!(second.is_on_trial());
    drop(first);
    assert_eq!(chosen(&pool), ["b0", "b2"], "still one at a time");
    drop(second);
    assert_eq!(chosen(&pool), ["b0", "b1", "b2"]);
}

/// Where nobody ever answers, as with logs that are only sent, no answer can bring a backend back.
#[test]
fn a_trial_that_nobody_complains_of_has_gone_well_in_time() {
    let pool = pool_of(Balance::RoundRobin, &[0; 3], |_| {});
    fail(&pool, "b1", 5, 10);
    pool.review(10 + BASE);
    let trial = slot_on(&pool, "b1", 10 + BASE);
    pool.review(9 + 2 * BASE);
    assert_eq!(pool.view().backends[1].state(), "half_open");
    pool.review(10 + 2 * BASE);
    assert_eq!(pool.view().backends[1].state(), "up");
    assert_eq!(
        pool.failed(&trial, trial.is_on_trial(), TrafficFailure::Reset, 20 + 2 * BASE),
        None,
        "one of many by now"
    );
}

/// Which would be out anyway.
#[test]
fn those_that_are_down_take_no_place_among_the_ejected() {
    let pool = pool_of(Balance::RoundRobin, &[0; 4], |_| {});
    assert!(fail(&pool, "b1", 5, 10).is_some());
    assert_eq!(fail(&pool, "b2", 5, 10), None, "there is one place");
    put_down(&pool, &[1]);
    assert!(fail(&pool, "b2", 1, 10).is_some());
}

/// Between a change of the last backend and the look at the pool that follows it.
#[test]
fn nobody_is_turned_away_because_the_panic_has_not_been_seen_yet() {
    let pool = pool_of(Balance::RoundRobin, &[0; 2], |_| {});
    for backend in &pool.view().backends {
        backend.set_health(Health::Down, 1);
    }
    assert!(!pool.mode().panic);
    assert_eq!(chosen(&pool).len(), 2);
    let calm = pool_of(Balance::RoundRobin, &[0], |config| config.protection.panic_threshold = Percent::whole(0));
    calm.view().backends[0].set_health(Health::Down, 1);
    assert!(chosen(&calm).is_empty());
}

/// With a pool of one, nobody else could ever be tried.
#[test]
fn a_trial_in_panic_ends_it() {
    let pool = pool_of(Balance::RoundRobin, &[0], |_| {});
    fail(&pool, "b0", 5, 10);
    assert!(pool.mode().panic);
    assert!(!slot_on(&pool, "b0", 20).is_on_trial(), "it is used, but its time isn't over");
    pool.review(10 + BASE);
    let (trial, other) = (slot_on(&pool, "b0", 10 + BASE), slot_on(&pool, "b0", 10 + BASE));
    assert!(trial.is_on_trial() && !other.is_on_trial());
    assert!(!pool.served(&other, false, 10 + BASE));
    assert!(pool.served(&trial, true, 10 + BASE));
    assert_eq!((pool.mode().panic, pool.view().backends[0].state()), (false, "up"));
}

#[test]
fn nobody_panics_into_what_was_taken_out() {
    let pool = pool_of(Balance::Random, &[0; 3], |_| {});
    let now = Now { millis: 1, unix_ms: 1 };
    let maint = AgentReport { admin: Some(AgentAdmin::Maint), ..AgentReport::default() };
    pool.set_agent(&pool.view().backends[1], &maint, now);
    pool.set_agent(&pool.view().backends[2], &AgentReport { weight: Some(0), ..AgentReport::default() }, now);
    assert_eq!(pool.view().backends[2].state(), "agent_draining", "a share of nothing is a drain");
    put_down(&pool, &[0]);
    assert!(pool.mode().panic);
    assert_eq!(chosen(&pool), ["b0"]);
}

#[test]
fn the_next_tier_joins_when_the_first_is_too_small() {
    let pool = pool_of(Balance::RoundRobin, &[0, 0, 1, 2], |config| {
        config.protection = Protection { min_available: 2, panic_threshold: Percent::whole(0), ..config.protection };
    });
    assert_eq!(chosen(&pool), ["b0", "b1"]);
    put_down(&pool, &[0]);
    assert_eq!(chosen(&pool), ["b1", "b2"]);
    put_down(&pool, &[1, 2]);
    assert_eq!(chosen(&pool), ["b3"]);
    assert_eq!(pool.metrics.tier.get(), Some(2));
    // Long after the start, the tiers before must have been enough for a while.
    for index in 0..2 {
        pool.view().backends[index].set_health(Health::Up, 1);
    }
    pool.review(100_000);
    assert_eq!(chosen(&pool), ["b0", "b1", "b3"]);
    pool.review(110_000);
    assert_eq!(chosen(&pool), ["b0", "b1"]);
}

#[test]
fn a_session_that_has_failed_everywhere_in_its_tier_goes_on_to_the_next() {
    let pool = pool_of(Balance::RoundRobin, &[0, 0, 1], |_| {});
    let mut tried = Tried::default();
    let rng = &mut Rng::from_seed(3);
    let order: Vec<String> = std::iter::from_fn(|| {
        let slot = pool.claim(&tried, 1, rng)?;
        tried.push(slot.id);
        Some(slot.label.to_string())
    })
    .collect();
    assert_eq!(order, ["b0", "b1", "b2"]);
}

#[test]
fn connects_beyond_the_rate_go_to_others_and_then_wait() {
    let pool = pool_of(Balance::RoundRobin, &[0; 2], |config| config.connect.max_rate = Some(10));
    let rng = &mut Rng::from_seed(3);
    let waits: Vec<Millis> = (0..8).map(|_| pool.claim(&Tried::default(), 1_000, rng).unwrap().wait()).collect();
    assert_eq!(waits, [0, 0, 0, 0, 100, 100, 200, 200]);
    let mut last = 0;
    while let Some(slot) = pool.claim(&Tried::default(), 1_000, rng) {
        last = slot.wait();
    }
    assert_eq!(last, 10_000, "as long as the budget allows");
}

#[test]
fn who_must_wait_for_a_turn_waits_in_its_tier() {
    let pool = pool_of(Balance::RoundRobin, &[0, 1], |config| config.connect.max_rate = Some(10));
    let rng = &mut Rng::from_seed(3);
    let mut claim = || pool.claim(&Tried::default(), 1_000, rng).map(|slot| (slot.label.to_string(), slot.wait()));
    for wait in [0, 0].into_iter().chain((1..=100).map(|turn| turn * 100)) {
        assert_eq!(claim(), Some(("b0".into(), wait)));
    }
    assert_eq!(claim(), Some(("b1".into(), 0)), "there is no turn left within the budget");
}

#[test]
fn who_does_not_wait_gets_nobody_beyond_the_rate_and_takes_no_turn() {
    let pool = pool_of(Balance::RoundRobin, &[0], |config| config.connect.max_rate = Some(10));
    let rng = &mut Rng::from_seed(3);
    let mut wait = |patience| {
        pool.claim_within(&Wish { tried: &Tried::default(), key: 0, patience, now: 1_000 }, rng).map(|slot| slot.wait())
    };
    assert_eq!([wait(0), wait(0), wait(0), wait(99)], [Some(0), Some(0), None, None]);
    assert_eq!(wait(100), Some(100));
}

#[test]
fn a_turn_that_is_far_off_is_worth_waiting_for_where_there_is_a_queue() {
    for queues in [false, true] {
        let pool = pool_of(Balance::RoundRobin, &[0], |config| {
            config.connect.max_rate = Some(10);
            config.queue = queues.then(config::Queue::default);
        });
        let rng = &mut Rng::from_seed(3);
        let wish = Wish { tried: &Tried::default(), key: 0, patience: 500, now: 1_000 };
        while pool.claim_within(&wish, rng).is_some() {}
        assert_eq!(pool.is_worth_waiting(&Tried::default(), 500, 1_000), queues);
        assert!(pool.is_worth_waiting(&Tried::default(), 600, 1_000), "the next turn");
        let mut tried = Tried::default();
        tried.push(pool.view().backends[0].id);
        assert!(!pool.is_worth_waiting(&tried, 600, 1_000));
    }
}

#[test]
fn a_share_of_nothing_never_hedges() {
    for (share, may) in [(0, false), (1, true)] {
        let pool = pool_of(Balance::RoundRobin, &[0; 2], |config| config.connect.hedge_share = Percent::whole(share));
        pool.count_for_hedging();
        assert_eq!(pool.may_hedge(), may, "{share} %");
    }
}

#[test]
fn a_pool_built_anew_keeps_ejections_and_modes() {
    let before = pool_of(Balance::RoundRobin, &[0; 3], |_| {});
    fail(&before, "b1", 5, 10);
    let after = super::tests::successor(Balance::RoundRobin, &[1, 1, 1], Some(&before));
    assert_eq!(chosen(&after), ["b0", "b2"]);
    assert_eq!(after.view().backends[1].ejection(), (1, Standing::Ejected { until: 10 + BASE }));
    for _ in 0..config::Health::default().fall {
        after.observe(&after.view().backends[0], Outcome::Failure, Now { millis: 11, unix_ms: 11 });
    }
    let again = super::tests::successor(Balance::RoundRobin, &[1, 1, 1], Some(&after));
    assert_eq!((after.falls(), again.falls()), (1, 1), "or a fall soon after would go unseen");
}

#[test]
fn a_state_tells_since_when_whatever_brought_it_about() {
    let pool = pool_of(Balance::RoundRobin, &[0; 2], |_| {});
    let backend = Arc::clone(&pool.view().backends[0]);
    let now = |millis| Now { millis, unix_ms: 1_000_000 + millis };
    let since = || (backend.state(), backend.state_since(now(900_000)).saturating_sub(1_000_000));
    let agent = |admin, state, at| {
        pool.set_agent(&backend, &AgentReport { state, admin, weight: None }, now(at));
    };
    backend.set_health(Health::Up, 1_000_005);
    assert_eq!(since(), ("up", 5));
    agent(Some(AgentAdmin::Drain), None, 100);
    agent(Some(AgentAdmin::Drain), None, 200);
    assert_eq!(since(), ("agent_draining", 100));
    agent(Some(AgentAdmin::Ready), Some(Health::Down), 300);
    assert_eq!(since(), ("down", 300));
    agent(None, Some(Health::Up), 400);
    assert_eq!(since(), ("up", 400));
    fail(&pool, "b0", 5, 500);
    assert_eq!(since(), ("ejected", 500));
    pool.review(500 + BASE);
    assert_eq!(since(), ("half_open", 500 + BASE));
    backend.set_health(Health::Down, 1_000_000 + 600 + BASE);
    assert_eq!(since(), ("down", 600 + BASE));
}

#[test]
fn a_large_pool_is_reviewed_now_and_then_and_not_at_each_change() {
    for (size, at_once) in [(REVIEWED_AT_ONCE, true), (REVIEWED_AT_ONCE + 1, false)] {
        let pool = pool_of(Balance::Random, &vec![0; size], |_| {});
        let now = Now { millis: 1, unix_ms: 1 };
        for backend in &pool.view().backends {
            for _ in 0..3 {
                pool.observe(backend, Outcome::Failure, now);
            }
        }
        assert_eq!(pool.mode().panic, at_once, "{size} backends");
        assert!(pool.review(1).panic, "{size} backends");
    }
}
