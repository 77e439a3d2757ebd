//! What chance would meet too seldom, or could only measure over a long time: one scenario each.

use crate::scenario::{Dice, member_of};
use crate::watched::at;
use std::sync::Arc;
use std::time::Duration;
use tidegate::clock::Millis;
use tidegate::config::{self, Balance, Group, Initial, Percent};
use tidegate::metrics::{Metrics, TrafficFailure};
use tidegate::name::PoolName;
use tidegate::pool::health::Outcome;
use tidegate::pool::{Members, Pool, Tried, WHOLE_SHARE};
use tidegate::rng::Rng;

/// Those that choose among all by chance and weight first.
fn policies(size: usize) -> [Balance; 7] {
    let failover = Balance::Failover(Group::Any((0..size).map(Group::Member).collect()));
    [
        Balance::RoundRobin,
        Balance::Random,
        Balance::LeastConnections,
        Balance::PowerOfTwo,
        Balance::PeakEwma,
        failover,
        Balance::SourceHash,
    ]
}

fn config(change: impl FnOnce(&mut config::Pool)) -> config::Pool {
    let mut config = config::Pool::new(PoolName::new("sim"), Balance::Random, Vec::new());
    config.health.initial = Initial::Up;
    change(&mut config);
    config
}

fn pool(config: &config::Pool, balance: &Balance, weights: &[u16], before: Option<&Pool>, now: Millis) -> Pool {
    let list = weights.iter().enumerate().map(|(index, &weight)| member_of(&format!("b{index}"), weight, 0)).collect();
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let hash = (*balance == Balance::SourceHash).then(config::Hash::default);
    let config = &config::Pool { hash, ..config.clone() };
    Pool::new(config, &Members { list, balance: balance.clone() }, &metrics, before, at(now))
}

/// It passes every probe and fails every client: out, but for a trial now and then; and the others aren't.
#[test]
fn a_backend_that_lies_is_out_nearly_all_of_the_time() {
    const LIAR: usize = 3;
    for balance in policies(8) {
        let config = config(|_| {});
        let pool = pool(&config, &balance, &[1; 8], None, 1);
        let (view, rng) = (pool.view(), &mut Rng::from_seed(8));
        let (mut fooled, mut clients, mut spans) = (0, 0, Vec::new());
        for now in (1_000..3_600_000).step_by(100) {
            pool.review(now);
            if now.is_multiple_of(2_000) {
                pool.observe(&view.backends[LIAR], Outcome::Success, at(now));
            }
            let slot = pool.claim(&Tried::default(), now, rng).expect("seven are well");
            clients += 1;
            if slot.id == view.backends[LIAR].id {
                fooled += 1;
                let ejected = pool.failed(&slot, slot.is_on_trial(), TrafficFailure::Reset, now);
                spans.extend(ejected.map(|ejected| ejected.span.as_secs()));
            } else {
                pool.served(&slot, slot.is_on_trial(), now);
            }
        }
        // Five failures, and then a trial after each span.
        assert_eq!(spans[..11], [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300], "{balance:?}");
        assert_eq!(fooled, 5 + spans.len() - 1, "{balance:?}: {fooled} of {clients}");
        assert!(spans.len() < 20, "{balance:?}: {spans:?}");
    }
}

/// Over the whole of a slow start, each gets what the weights say at each moment, within six standard deviations.
#[test]
fn a_slow_start_gives_each_its_share_of_the_moment() {
    const SLOW_START: Millis = 30_000;
    for (seed, balance) in (0..).zip(policies(5).into_iter().take(5)) {
        let mut dice = Dice::new(seed);
        let weights: Vec<u16> = (0..5).map(|_| dice.between(1, 20) as u16).collect();
        let config = config(|config| config.protection.slow_start = Duration::from_millis(SLOW_START));
        let pool = pool(&config, &balance, &weights, None, 1);
        let (view, begun) = (pool.view(), 10_000);
        let back = &view.backends[2];
        for outcome in [Outcome::Failure, Outcome::Failure, Outcome::Failure, Outcome::Success, Outcome::Success] {
            pool.observe(back, outcome, at(begun));
        }
        assert_eq!(back.share(), 102, "a tenth");
        let (mut got, mut expected, mut variance, mut last) = (0.0, 0.0, 0.0, 0);
        let others: f64 = weights.iter().map(|&weight| f64::from(weight)).sum::<f64>() - f64::from(weights[2]);
        for now in (begun..begun + SLOW_START).step_by(5) {
            if now.is_multiple_of(250) {
                pool.review(now);
            }
            let share = back.share();
            assert!((last..=WHOLE_SHARE).contains(&share), "{share} after {last}");
            last = share;
            let own = f64::from(weights[2]) * f64::from(share) / f64::from(WHOLE_SHARE);
            let p = own / (own + others);
            expected += p;
            variance += p * (1.0 - p);
            let slot = pool.claim(&Tried::default(), now, &mut dice.0).expect("all are up");
            got += f64::from(u8::from(slot.id == back.id));
        }
        assert!(last < WHOLE_SHARE);
        pool.review(begun + SLOW_START);
        assert_eq!((back.share(), back.flags()), (WHOLE_SHARE, 0), "over in time");
        let off: f64 = got - expected;
        assert!(off.abs() <= 6.0 * f64::sqrt(variance), "{balance:?}, {weights:?}: {got}, expected {expected}");
    }
}

/// The largest and the smallest pool, at the begin and at the end of time.
#[test]
fn extremes_do_no_harm() {
    let end = Millis::MAX;
    for size in [0, 1, 2, usize::from(u16::MAX)] {
        let mut before: Option<Pool> = None;
        for balance in policies(size) {
            let config = config(|config| {
                config.ejection.max_time = config::limits::MAX_DURATION;
                config.ejection.base_time = config::limits::MAX_DURATION;
                config.ejection.consecutive_failures = Some(1);
                config.protection.slow_start = config::limits::MAX_DURATION;
                config.protection.tier_hold = config::limits::MAX_DURATION;
                config.protection.panic_threshold = Percent::whole(100);
                config.connect.max_rate = Some(config::limits::MAX_RATE);
            });
            let mut weights = vec![config::limits::MAX_WEIGHT; size];
            // Without a divisor in common, their round would be the longest.
            weights.iter_mut().take(1).for_each(|weight| *weight -= 1);
            let pool = pool(&config, &balance, &weights, before.as_ref(), end - 5);
            let rng = &mut Rng::from_seed(1);
            let moments = [1, 2, end / 1_000_000, end / 1_000_000 + 1, end / 2, end - 1, end, end];
            for now in moments.into_iter().skip(if size > 2 { 5 } else { 0 }) {
                let Some(slot) = pool.claim(&Tried::default(), now, rng) else {
                    assert_eq!(size, 0, "{balance:?} at {now}");
                    continue;
                };
                for outcome in [Outcome::Failure, Outcome::Failure, Outcome::Failure, Outcome::Success] {
                    pool.observe(&slot, outcome, at(now));
                }
                slot.connect_time.observe(f32::MAX, now);
                pool.failed(&slot, slot.is_on_trial(), TrafficFailure::Connect, now);
                pool.served(&slot, true, now);
                pool.review(now);
            }
            assert!(pool.view().backends.iter().all(|backend| backend.active() == 0));
            // The large one is costly to make.
            before = Some(pool).filter(|_| size > 2);
        }
    }
}
