//! What an outlook says against what claims then do.

use super::health::Outcome;
use super::tests::{pool, pool_of};
use super::*;
use crate::config::{Balance, Group, Percent};
use crate::rng::Rng;
use proptest::prelude::*;

fn wish(tried: &Tried, key: u64) -> Wish<'_> {
    Wish { tried, key, patience: 0, now: 1 }
}

fn all(size: usize) -> Vec<Balance> {
    let halves = (0..size).collect::<Vec<_>>();
    let halves = halves.chunks(size.div_ceil(2).max(1)).map(|half| half.iter().map(|&index| Group::Member(index)));
    let halves = halves.map(|half| Group::Any(half.collect())).collect();
    vec![
        Balance::RoundRobin,
        Balance::Random,
        Balance::LeastConnections,
        Balance::PowerOfTwo,
        Balance::PeakEwma,
        Balance::Failover(Group::Any(halves)),
        Balance::SourceHash,
    ]
}

fn index_of(pool: &Pool, slot: &Slot) -> usize {
    pool.view().backends.iter().position(|backend| backend.id == slot.id).unwrap()
}

/// Everything that a claim could change.
fn state(pool: &Pool) -> Vec<(u32, u32, Millis)> {
    pool.view().backends.iter().map(|one| (one.flags(), one.active(), one.pace.wait(1))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 150, ..ProptestConfig::default() })]

    /// In any state: it changes nothing; who has a chance has no obstacle and everybody else has one, or is passed over
    /// for another; and a claim gets one of those that have a chance, or nobody if there is none.
    #[test]
    fn an_outlook_is_what_a_claim_finds(
        which in 0_usize..7,
        backends in prop::collection::vec((0_u8..3, 0_u32..8, prop::option::of(0_u32..3)), 1..9),
        panic_threshold in prop::sample::select(vec![0_u16, 50, 100]),
        max_rate in prop::option::of(1_u32..20),
        key: u64,
        seed: u64,
    ) {
        let balance = all(backends.len())[which].clone();
        let tiers: Vec<u8> = backends.iter().map(|(tier, ..)| *tier).collect();
        let pool = pool_of(balance, &tiers, |config| {
            config.protection.panic_threshold = Percent::whole(panic_threshold);
            config.connect.max_rate = max_rate;
        });
        let rng = &mut Rng::from_seed(seed);
        let now = Now { millis: 1, unix_ms: 1 };
        for (backend, &(_, fate, room)) in pool.view().backends.iter().zip(&backends) {
            match fate {
                0 => backend.set_health(Health::Down, 1),
                1 => _ = backend.eject(&pool.ejection, 1),
                2 => {
                    for outcome in [Outcome::Failure, Outcome::Failure, Outcome::Failure, Outcome::Success, Outcome::Success] {
                        backend.observe(outcome, &pool.health, pool.protection.slow_start, now);
                    }
                }
                _ => {}
            }
            backend.set_max_active(room);
        }
        pool.review(1);
        let tried = Tried::default();
        let held: Vec<Slot> = (0..4).filter_map(|_| pool.claim_within(&wish(&tried, key), rng)).collect();
        let before = (state(&pool), pool.total.active());
        let outlook = pool.outlook(&wish(&tried, key));
        prop_assert_eq!((state(&pool), pool.total.active()), before);
        let total: f64 = outlook.odds.iter().map(|(_, likely)| likely).sum();
        prop_assert!(outlook.odds.is_empty() || (total - 1.0).abs() < 1e-9, "{total}");
        for &(index, _) in &outlook.odds {
            prop_assert_eq!(outlook.obstacles[index], None);
        }
        if outlook.odds.is_empty() {
            prop_assert!(outlook.obstacles.iter().all(Option::is_some), "{:?}", outlook.obstacles);
        }
        let slot = pool.claim_within(&wish(&tried, key), rng);
        let got = slot.as_ref().map(|slot| index_of(&pool, slot));
        let likely: Vec<usize> = outlook.odds.iter().map(|&(index, _)| index).collect();
        prop_assert!(got.map_or(likely.is_empty(), |got| likely.contains(&got)), "{got:?} of {likely:?}");
        drop(held);
    }
}

/// As often as the odds say, within six standard deviations; for the policies that throw dice.
#[test]
fn odds_are_what_chance_does() {
    const CLAIMS: usize = 20_000;
    let weights = [1, 2, 3, 10, 4];
    for balance in all(5) {
        if matches!(balance, Balance::RoundRobin | Balance::SourceHash) {
            continue;
        }
        let pool = pool(balance.clone(), &weights);
        pool.view().backends[1].set_health(Health::Down, 1);
        let rng = &mut Rng::from_seed(5);
        // Loads that differ, so that the better of two is another one each time.
        let _held: Vec<Slot> = (0..7).filter_map(|_| pool.claim(&Tried::default(), 1, rng)).collect();
        let odds = pool.outlook(&wish(&Tried::default(), 0)).odds;
        let mut got = [0_usize; 5];
        for _ in 0..CLAIMS {
            got[index_of(&pool, &pool.claim(&Tried::default(), 1, rng).unwrap())] += 1;
        }
        for (index, &got) in got.iter().enumerate() {
            let p = odds.iter().find(|(likely, _)| *likely == index).map_or(0.0, |(_, p)| *p);
            let deviation = (CLAIMS as f64 * p * (1.0 - p)).sqrt();
            let off = (got as f64 - CLAIMS as f64 * p).abs();
            assert!(
                off <= 6.0 * deviation + 1e-9,
                "{balance:?}: {index} has {got} of {CLAIMS}, expected {p}: {odds:?}"
            );
        }
    }
}

/// Where most are down, the second draw is often in vain, and then the busier of the two has the client.
#[test]
fn the_busier_of_two_has_a_chance_where_most_are_down() {
    const CLAIMS: u32 = 20_000;
    let pool = pool(Balance::PowerOfTwo, &[1; 7]);
    let view = pool.view();
    view.backends[1..6].iter().for_each(|backend| backend.set_health(Health::Down, 1));
    let rng = &mut Rng::from_seed(5);
    let held: Vec<Slot> = (0..40).map(|_| pool.claim(&Tried::default(), 1, rng).unwrap()).collect();
    let (busier, idler): (Vec<Slot>, Vec<Slot>) = held.into_iter().partition(|slot| index_of(&pool, slot) == 6);
    drop(idler);
    assert!(!busier.is_empty());
    let odds = pool.outlook(&wish(&Tried::default(), 0)).odds;
    let expected = odds.iter().find(|(index, _)| *index == 6).map_or(0.0, |(_, likely)| *likely);
    let got = (0..CLAIMS).filter(|_| index_of(&pool, &pool.claim(&Tried::default(), 1, rng).unwrap()) == 6).count();
    let off = (got as f64 - f64::from(CLAIMS) * expected).abs();
    let deviation = (f64::from(CLAIMS) * expected * (1.0 - expected)).sqrt();
    assert!(off <= 6.0 * deviation, "{got} of {CLAIMS}, expected {expected}");
}

#[test]
fn whose_turn_is_next_is_known() {
    let pool = pool(Balance::RoundRobin, &[3, 1, 2]);
    let rng = &mut Rng::from_seed(5);
    for _ in 0..12 {
        let outlook = pool.outlook(&wish(&Tried::default(), 0));
        let slot = pool.claim(&Tried::default(), 1, rng).unwrap();
        assert_eq!((outlook.how, outlook.odds), (How::Turn, vec![(index_of(&pool, &slot), 1.0)]));
    }
}

#[test]
fn what_stands_in_the_way_is_named() {
    let pool = pool_of(Balance::SourceHash, &[0, 0, 0, 0, 1], |_| ());
    let view = pool.view();
    view.backends[0].set_health(Health::Down, 1);
    view.backends[1].eject(&pool.ejection, 1);
    view.backends[2].set_max_active(Some(0));
    pool.review(1);
    let outlook = pool.outlook(&wish(&Tried::default(), 7));
    assert_eq!(outlook.odds, [(3, 1.0)]);
    assert_eq!(
        outlook.obstacles,
        [
            Some(Obstacle::Down),
            Some(Obstacle::Ejected),
            Some(Obstacle::Full { max: 0 }),
            None,
            Some(Obstacle::Tier { own: 1, last: 0 }),
        ]
    );
    assert!(outlook.home.is_some() && !outlook.waits);
    let all_out = pool_of(Balance::Random, &[0, 0], |config| config.queue = Some(config::Queue::default()));
    all_out.view().backends.iter().for_each(|backend| backend.set_max_active(Some(0)));
    let outlook = all_out.outlook(&wish(&Tried::default(), 7));
    assert!(outlook.odds.is_empty() && outlook.waits);
}

#[test]
fn a_bound_that_a_backend_has_reached_is_named() {
    let pool = pool(Balance::SourceHash, &[1; 4]);
    let rng = &mut Rng::from_seed(5);
    let tried = Tried::default();
    let held: Vec<Slot> = (0..40).map(|_| pool.claim_within(&wish(&tried, 4_711), rng).unwrap()).collect();
    let home = index_of(&pool, &held[0]);
    let outlook = pool.outlook(&wish(&tried, 4_711));
    assert_eq!(outlook.home, Some(home));
    assert_eq!(outlook.obstacles[home], Some(Obstacle::TooLoaded { most: 13 }), "1.25 times a quarter of 41");
    assert_eq!(outlook.odds.len(), 1);
}
