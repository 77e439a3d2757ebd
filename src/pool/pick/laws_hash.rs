//! The laws of source hash: who stays, who moves, and how loaded a backend may get.

use crate::clock::Now;
use crate::config::{Balance, Percent};
use crate::pool::health::Outcome;
use crate::pool::tests::{pool, pool_of, successor};
use crate::pool::{Health, Pool, Slot, Tried, Wish};
use crate::rng::Rng;
use std::sync::Arc;

/// A pool of so many equal backends that goes by a hash, without a bound on the load.
fn unbounded(backends: usize) -> Pool {
    pool_of(Balance::SourceHash, &vec![0; backends], |config| {
        config.hash.as_mut().unwrap().max_load = None;
        config.protection.panic_threshold = Percent::whole(0);
    })
}

fn bounded(weights: &[u16]) -> Pool {
    let pool = pool(Balance::SourceHash, weights);
    assert_eq!(pool.hash.as_ref().unwrap().max_load, Some(1.25));
    pool
}

fn claim_beside(pool: &Pool, key: u64, tried: &Tried) -> Option<Slot> {
    // Chance must have no say in it.
    let chance = &mut Rng::from_entropy();
    pool.claim_within(&Wish { tried, key, patience: 0, now: 1 }, chance)
}

fn claim(pool: &Pool, key: u64) -> Option<Slot> {
    claim_beside(pool, key, &Tried::default())
}

fn index_of(pool: &Pool, slot: &Slot) -> usize {
    pool.view().backends.iter().position(|backend| backend.id == slot.id).unwrap()
}

/// Where each of the keys goes.
fn homes(pool: &Pool, keys: &[u64]) -> Vec<usize> {
    keys.iter().map(|&key| index_of(pool, &claim(pool, key).unwrap())).collect()
}

fn keys(count: usize) -> Vec<u64> {
    let mut rng = Rng::from_seed(27);
    (0..count).map(|_| rng.below(u64::MAX)).collect()
}

fn active(pool: &Pool) -> Vec<u32> {
    pool.view().backends.iter().map(|backend| backend.active()).collect()
}

fn fall(pool: &Pool, index: usize) {
    observe(pool, index, &[Outcome::Failure; 3], 1_000);
}

fn observe(pool: &Pool, index: usize, outcomes: &[Outcome], millis: u64) {
    let backend = Arc::clone(&pool.view().backends[index]);
    for &outcome in outcomes {
        pool.observe(&backend, outcome, Now { millis, unix_ms: 1 });
    }
}

/// Catalogue 27: of a thousand backends one flaps.
#[test]
fn f27_one_of_a_thousand_that_flaps_moves_its_own_clients_and_nobody_else() {
    const CLIENTS: usize = 50_000;
    let pool = unbounded(1_000);
    let keys = keys(CLIENTS);
    let before = homes(&pool, &keys);
    let own = before.iter().filter(|&&home| home == 500).count();
    assert!((20..=90).contains(&own), "{own} of {CLIENTS} clients are its own, ideally 50");
    for _ in 0..3 {
        pool.view().backends[500].set_health(Health::Down, 1);
        let away = homes(&pool, &keys);
        let (moved, others): (Vec<_>, Vec<_>) = (0..CLIENTS).partition(|&client| before[client] == 500);
        assert!(moved.iter().all(|&client| away[client] != 500));
        assert!(others.iter().all(|&client| away[client] == before[client]), "nobody else moves");
        let mut hosts: Vec<usize> = moved.iter().map(|&client| away[client]).collect();
        hosts.sort_unstable();
        hosts.dedup();
        assert!(hosts.len() * 10 >= own * 8, "they are spread: {own} clients over {} backends", hosts.len());
        pool.view().backends[500].set_health(Health::Up, 1);
        assert_eq!(homes(&pool, &keys), before, "and come back");
    }
}

/// What a node doesn't share with another: the order of its members, and what was before.
#[test]
fn f27_two_nodes_and_a_rebuilt_pool_agree() {
    let one = unbounded(5);
    let keys = keys(2_000);
    let label = |pool: &Pool, key: u64| claim(pool, key).unwrap().label.to_string();
    let labels = |pool: &Pool| keys.iter().map(|&key| label(pool, key)).collect::<Vec<_>>();
    let rebuilt = successor(Balance::SourceHash, &[1; 5], Some(&one));
    assert_eq!(labels(&one), labels(&unbounded(5)));
    assert_eq!(labels(&one), labels(&rebuilt));
}

/// Each key's walk over all backends is its own, and always the same.
#[test]
fn whoever_fails_everywhere_goes_the_same_way_each_time() {
    let pool = bounded(&[1, 2, 3, 1, 1]);
    let walk = |key| {
        let (mut tried, mut walked) = (Tried::default(), Vec::new());
        while let Some(slot) = claim_beside(&pool, key, &tried) {
            tried.push(slot.id);
            walked.push(index_of(&pool, &slot));
        }
        walked
    };
    let mut ways: Vec<Vec<usize>> = keys(500).into_iter().map(walk).collect();
    assert_eq!(ways, keys(500).into_iter().map(walk).collect::<Vec<_>>());
    assert!(ways.iter().all(|way| way.len() == 5));
    ways.sort_unstable();
    ways.dedup();
    assert!(ways.len() > 100, "{} of 120 ways", ways.len());
}

#[test]
fn clients_are_spread_by_weight_and_those_of_a_lost_one_too() {
    let pool = bounded(&[1, 2, 3, 4]);
    let keys = keys(40_000);
    let share = |homes: &[usize], index: usize| homes.iter().filter(|&&home| home == index).count();
    let before = homes(&pool, &keys);
    for (index, ideal) in [4_000_usize, 8_000, 12_000, 16_000].into_iter().enumerate() {
        assert!(share(&before, index).abs_diff(ideal) < ideal / 10, "{index}: {}", share(&before, index));
    }
    fall(&pool, 3);
    let away = homes(&pool, &keys);
    for (index, ideal) in [40_000 / 6, 40_000 / 3, 40_000 / 2].into_iter().enumerate() {
        assert!(share(&away, index).abs_diff(ideal) < ideal / 10, "{index}: {}", share(&away, index));
    }
}

/// As its share grows, clients come back one after the other, each once; the others never move.
#[test]
fn who_starts_slowly_gets_its_clients_back_one_by_one() {
    let pool = pool_of(Balance::SourceHash, &[0; 3], |_| ());
    let keys = keys(9_000);
    let before = homes(&pool, &keys);
    fall(&pool, 1);
    let away = homes(&pool, &keys);
    observe(&pool, 1, &[Outcome::Success; 2], 1_000);
    let own = before.iter().filter(|&&home| home == 1).count() as f64;
    let mut back = vec![false; keys.len()];
    for (elapsed, share) in [(0, 0.1), (7_500, 0.325), (15_000, 0.55), (22_500, 0.775), (30_000, 1.0)] {
        pool.review(1_000 + elapsed);
        let now = homes(&pool, &keys);
        assert_eq!(now, homes(&pool, &keys), "chance has no say");
        for client in 0..keys.len() {
            let is_back = now[client] == before[client];
            assert!(is_back || now[client] == away[client], "home, or where it was meanwhile");
            assert!(is_back || !back[client], "who has come back stays");
            back[client] = is_back;
        }
        let returned = now.iter().filter(|&&home| home == 1).count() as f64 / own;
        assert!((returned - share).abs() < 0.05, "{returned} at {elapsed} ms instead of {share}");
    }
    assert_eq!(homes(&pool, &keys), before);
}

/// Nobody else is there to take what is passed on.
#[test]
fn who_starts_slowly_and_alone_gets_all_clients() {
    let pool = pool_of(Balance::SourceHash, &[0; 2], |config| config.protection.panic_threshold = Percent::whole(0));
    fall(&pool, 0);
    fall(&pool, 1);
    assert!(claim(&pool, 7).is_none());
    observe(&pool, 1, &[Outcome::Success; 2], 1_000);
    assert_eq!(pool.view().backends[1].share(), 102);
    assert_eq!(homes(&pool, &keys(100)), [1; 100]);
}

#[test]
fn the_clients_of_a_full_one_go_to_the_next_and_come_back() {
    let pool = unbounded(3);
    let key = keys(1)[0];
    let home = index_of(&pool, &claim(&pool, key).unwrap());
    pool.view().backends[home].set_max_active(Some(1));
    let held = claim(&pool, key).unwrap();
    let next = index_of(&pool, &claim(&pool, key).unwrap());
    assert_ne!(next, home);
    assert_eq!(index_of(&pool, &claim(&pool, key).unwrap()), next);
    drop(held);
    assert_eq!(index_of(&pool, &claim(&pool, key).unwrap()), home);
}

/// Tier 1 has places in the table as well, but no clients while tier 0 is in use.
#[test]
fn tiers_and_panic_hold() {
    let pool = pool_of(Balance::SourceHash, &[0, 0, 1], |_| ());
    let keys = keys(300);
    assert!(homes(&pool, &keys).into_iter().all(|home| home < 2));
    let at_home = homes(&pool, &keys);
    fall(&pool, 0);
    fall(&pool, 1);
    assert_eq!(homes(&pool, &keys), [2; 300]);
    fall(&pool, 2);
    assert!(pool.mode().panic);
    let in_panic = homes(&pool, &keys);
    assert!((0..300).all(|client| in_panic[client] == at_home[client] || in_panic[client] == 2));
    assert!((0..3).all(|index| in_panic.contains(&index)), "all enabled ones are used");
}

/// The most connections that each may have, of `all` with the last one.
fn most(all: usize, weights: &[u16]) -> Vec<u32> {
    let total: u16 = weights.iter().sum();
    let share = |weight: u16| (1.25 * all as f64 * f64::from(weight) / f64::from(total)).ceil() as u32;
    weights.iter().map(|&weight| share(weight).max(4)).collect()
}

/// One client with many connections, as behind a large NAT.
#[test]
fn no_backend_has_more_than_max_load_times_its_share() {
    for weights in [&[1; 10][..], &[1, 2, 4, 1], &[5, 1]] {
        let pool = bounded(weights);
        let mut held = Vec::new();
        for all in 1..=400 {
            held.push(claim(&pool, 4_711).unwrap());
            assert_eq!(pool.total.active(), all as u32);
            let now = active(&pool);
            for (index, most) in most(all, weights).into_iter().enumerate() {
                // What an earlier claim was allowed stays, but that was less.
                assert!(now[index] <= most, "{now:?} of {all}, at most {most}");
            }
        }
        let used = active(&pool).iter().filter(|&&active| active > 0).count();
        assert_eq!(used, if weights == [5, 1] { 1 } else { (weights.len() * 4).div_ceil(5) }, "{:?}", active(&pool));
        drop(held);
        assert_eq!((pool.total.active(), active(&pool).iter().sum::<u32>()), (0, 0));
    }
}

/// Clients of a backend that isn't too loaded stay where they are, whatever others do.
#[test]
fn whose_backend_is_not_too_loaded_stays() {
    let pool = bounded(&[1; 10]);
    let keys = keys(200);
    let before = homes(&pool, &keys);
    let hot: Vec<Slot> = (0..200).map(|_| claim(&pool, 4_711).unwrap()).collect();
    let most = most(201, &[1; 10]);
    for (client, &key) in keys.iter().enumerate() {
        let (home, now) = (before[client], index_of(&pool, &claim(&pool, key).unwrap()));
        assert_eq!(now == home, active(&pool)[home] < most[home], "{client}");
    }
    drop(hot);
    assert_eq!(homes(&pool, &keys), before);
}

/// In an idle pool the share of a connection or two rounds up to 1.
#[test]
fn the_few_connections_of_one_client_stay_together() {
    let pool = bounded(&[1; 100]);
    let held: Vec<Slot> = (0..4).map(|_| claim(&pool, 4_711).unwrap()).collect();
    assert!(held.iter().all(|slot| slot.id == held[0].id));
    assert_ne!(claim(&pool, 4_711).unwrap().id, held[0].id);
}

/// The bound is of what is in use: with fewer backends each one's share is larger.
#[test]
fn the_share_of_those_that_are_down_goes_to_the_others() {
    let pool = bounded(&[1; 4]);
    assert_eq!(pool.total.weight(), 4 * 1_024);
    fall(&pool, 0);
    fall(&pool, 1);
    assert_eq!(pool.total.weight(), 2 * 1_024);
    let held: Vec<Slot> = (0..100).map(|_| claim(&pool, 4_711).unwrap()).collect();
    let mut now = active(&pool);
    now.sort_unstable();
    assert_eq!(now, [0, 0, 37, 63], "ceil(1.25 * 100 / 2) and the rest");
    drop(held);
}

/// A bound that nobody can keep is none: its counts are of a moment ago.
#[test]
fn where_all_are_above_their_share_one_is_found_all_the_same() {
    let pool = bounded(&[1; 3]);
    let held: Vec<Slot> = (0..30).map(|_| claim(&pool, 4_711).unwrap()).collect();
    pool.total.set_weight(u64::MAX);
    let home = index_of(&pool, &held[0]);
    assert_eq!(index_of(&pool, &claim(&pool, 4_711).unwrap()), home, "as if there were no bound");
}

#[test]
fn only_a_bounded_policy_counts_all_connections() {
    for pool in [pool(Balance::RoundRobin, &[1; 3]), unbounded(3)] {
        let slot = claim(&pool, 1).unwrap();
        assert_eq!((pool.total.active(), pool.total.weight()), (0, 0));
        drop(slot);
        assert_eq!(pool.total.active(), 0);
    }
}

/// A slot is given back as it was taken, whatever the pool goes by meanwhile.
#[test]
fn counts_return_to_zero_over_a_change_of_the_policy() {
    let first = bounded(&[1; 3]);
    let counted: Vec<Slot> = (0..5).map(|key| claim(&first, key).unwrap()).collect();
    let second = successor(Balance::RoundRobin, &[1; 3], Some(&first));
    let plain: Vec<Slot> = (0..5).map(|key| claim(&second, key).unwrap()).collect();
    let third = successor(Balance::SourceHash, &[1; 3], Some(&second));
    assert_eq!((third.total.active(), active(&third).iter().sum::<u32>()), (5, 10));
    drop(counted);
    assert_eq!(third.total.active(), 0);
    drop(plain);
    assert_eq!((third.total.active(), active(&third)), (0, vec![0; 3]));
}

#[test]
fn when_all_are_down_no_table_is_walked_in_vain() {
    let pool = unbounded(5_000);
    pool.view().backends.iter().for_each(|backend| backend.set_health(Health::Down, 1));
    assert!(claim(&pool, 4_711).is_none());
    pool.view().backends[4_321].set_health(Health::Up, 1);
    assert_eq!(homes(&pool, &keys(50)), [4_321; 50]);
}

/// A member without a place in the table takes what nobody else can.
#[test]
fn one_without_a_place_is_found_when_it_is_the_last() {
    let mut weights = vec![256; 1_000];
    weights[17] = 1;
    let pool = pool(Balance::SourceHash, &weights);
    let keys = keys(20);
    for (index, backend) in pool.view().backends.iter().enumerate() {
        backend.set_health(if index == 17 { Health::Up } else { Health::Down }, 1);
    }
    pool.review(1);
    assert_eq!(homes(&pool, &keys), [17; 20]);
}
