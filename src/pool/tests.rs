//! Pools for the tests of this folder, and the tests of what a pool keeps when it is built anew.

use super::*;
use crate::config::{Balance, Group, Initial};
use crate::name::BackendAddr;
use crate::name::{BackendId, Endpoint};

/// A pool of backends `b0`, `b1`, … with these weights, all up.
pub fn pool(balance: Balance, weights: &[u16]) -> Pool {
    successor(balance, weights, None)
}

pub fn successor(balance: Balance, weights: &[u16], previous: Option<&Pool>) -> Pool {
    let labels: Vec<String> = (0..weights.len()).map(|index| format!("b{index}")).collect();
    let members = labels.iter().zip(weights).map(|(label, &weight)| member(label, label, weight)).collect();
    rebuilt(balance, members, previous)
}

/// A pool of backends `b0`, `b1`, … in these tiers, all up, with a config changed so.
pub fn pool_of(balance: Balance, tiers: &[u8], change: impl FnOnce(&mut config::Pool)) -> Pool {
    let list = tiers
        .iter()
        .enumerate()
        .map(|(index, &tier)| {
            let label = format!("b{index}");
            ResolvedMember { tier, ..member(&label, &label, 1) }
        })
        .collect();
    let mut config = config::Pool::new(PoolName::new("web"), balance.clone(), Vec::new());
    config.health.initial = Initial::Up;
    change(&mut config);
    let metrics = Arc::new(Metrics::new().unwrap());
    Pool::new(&config, &Members { list, balance }, &metrics, None, Now { millis: 1, unix_ms: 1 })
}

fn rebuilt(balance: Balance, list: Vec<ResolvedMember>, previous: Option<&Pool>) -> Pool {
    let config = config::Pool {
        health: config::Health { initial: Initial::Up, ..config::Health::default() },
        // What a calm pool does is what most tests are about.
        protection: config::Protection { panic_threshold: config::Percent::whole(0), ..config::Protection::default() },
        ..config::Pool::new(PoolName::new("web"), balance.clone(), Vec::new())
    };
    let metrics = Arc::new(Metrics::new().unwrap());
    Pool::new(&config, &Members { list, balance }, &metrics, previous, Now { millis: 1, unix_ms: 1 })
}

pub fn member(path: &str, label: &str, weight: u16) -> ResolvedMember {
    let address = BackendAddr(Endpoint::Unix(std::path::Path::new(path).into()));
    ResolvedMember { address, weight, tier: 0, max_connections: None, label: label.into() }
}

/// Claims once and lets go; the label of what was claimed.
fn next(pool: &Pool) -> String {
    let slot = pool.claim(&Tried::default(), 1, &mut Rng::from_seed(1)).unwrap();
    slot.label.to_string()
}

#[test]
fn backends_that_stay_keep_their_state() {
    let before = successor(Balance::RoundRobin, &[1, 1], None);
    let slot = before.claim(&Tried::default(), 1, &mut Rng::from_seed(1)).unwrap();
    before.view().backends[1].set_health(Health::Down, 7);

    let members = vec![member("b1", "b1", 5), member("b0", "renamed", 1), member("b9", "b9", 1)];
    let after = rebuilt(Balance::RoundRobin, members, Some(&before));
    let (old, new) = (before.view(), after.view());
    assert_eq!(new.backends[0].id, old.backends[1].id);
    assert_eq!(new.backends[0].health(), (Health::Down, 7));
    assert_eq!(*new.weights, [5, 1, 1]);
    assert_ne!(new.backends[1].id, slot.id, "a renamed backend is a new one");
    assert_eq!((slot.active(), new.backends[1].active()), (1, 0));
    assert!(!new.backends[2].label.is_empty() && new.backends[2].is_up());
}

#[test]
fn a_round_robin_goes_on_where_the_pool_before_it_was() {
    let first = pool(Balance::RoundRobin, &[1, 1, 1]);
    assert_eq!(next(&first), "b0");
    let second = successor(Balance::RoundRobin, &[1, 1, 1], Some(&first));
    assert_eq!(next(&second), "b1");
    assert_eq!(next(&second), "b2");
}

#[test]
fn a_session_goes_on_after_what_it_tried_last_though_the_tree_has_changed() {
    let group = |n| Balance::Failover(Group::Any((0..n).map(Group::Member).collect()));
    let before = pool(group(3), &[1, 1, 1]);
    let mut tried = Tried::default();
    tried.push(before.view().backends[1].id);
    tried.push(before.view().backends[2].id);
    let members = vec![member("b0", "b0", 1), member("b1", "b1", 1), member("b9", "b9", 1), member("b8", "b8", 1)];
    let after = rebuilt(group(4), members, Some(&before));
    for seed in 0..20 {
        let slot = after.claim(&tried, 1, &mut Rng::from_seed(seed)).unwrap();
        assert_eq!(&*slot.label, "b9", "b2 has gone: the next one after b1");
    }
}

#[test]
fn available_counts_what_a_claim_could_get() {
    let pool = pool(Balance::Random, &[1, 2, 3]);
    assert_eq!(pool.available(), 3);
    pool.view().backends.iter().for_each(|backend| backend.set_health(Health::Down, 2));
    assert_eq!(pool.available(), 0);
    pool.view().backends[2].set_health(Health::Up, 3);
    assert_eq!(pool.available(), 1);
}

#[test]
fn what_was_tried_is_remembered_in_order_up_to_the_limit() {
    let mut tried = Tried::default();
    assert_eq!((tried.last(), tried.is_empty()), (None, true));
    assert!(!tried.contains(BackendId(0)), "the empty places hold no backend");
    for id in 0..Tried::MAX as u32 {
        tried.push(BackendId(id));
        assert_eq!((tried.last(), tried.len()), (Some(BackendId(id)), id as usize + 1));
    }
    assert!(tried.contains(BackendId(0)) && tried.contains(BackendId(15)) && !tried.contains(BackendId(16)));
}
