//! The laws that every policy obeys, and those of each one.

use crate::clock::Now;
use crate::config::{Balance, Group};
use crate::pool::health::Outcome;
use crate::pool::tests::pool;
use crate::pool::{Health, Pool, Slot, Tried};
use crate::rng::Rng;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The index of a claimed backend.
fn index_of(pool: &Pool, slot: &Slot) -> usize {
    pool.view().backends.iter().position(|backend| backend.id == slot.id).unwrap()
}

/// Sets up what is `true` and down what is not.
fn set_health(pool: &Pool, up: &[bool]) {
    for (backend, &up) in pool.view().backends.iter().zip(up) {
        backend.set_health(if up { Health::Up } else { Health::Down }, 1);
    }
}

/// One session that fails everywhere: what it is offered until nothing is left.
fn walk(pool: &Pool, rng: &mut Rng) -> Vec<usize> {
    let mut tried = Tried::default();
    let mut walked = Vec::new();
    while let Some(slot) = pool.claim(&tried, 1, rng) {
        tried.push(slot.id);
        walked.push(index_of(pool, &slot));
    }
    walked
}

/// How many of `claims` each backend gets.
fn shares(pool: &Pool, claims: usize, rng: &mut Rng) -> Vec<usize> {
    let mut shares = vec![0; pool.view().backends.len()];
    for _ in 0..claims {
        shares[index_of(pool, &pool.claim(&Tried::default(), 1, rng).unwrap())] += 1;
    }
    shares
}

/// Those that choose among all by weight.
fn policies() -> [Balance; 5] {
    [Balance::RoundRobin, Balance::Random, Balance::LeastConnections, Balance::PowerOfTwo, Balance::PeakEwma]
}

/// A tree of groups with its members numbered from left to right.
fn tree() -> impl Strategy<Value = Group> {
    let leaf = Just(Group::Member(0));
    let shape =
        leaf.prop_recursive(4, Tried::MAX as u32, 4, |inner| prop::collection::vec(inner, 1..5).prop_map(Group::Any));
    shape.prop_map(|mut shape| {
        number(&mut shape, &mut 0);
        shape
    })
}

fn number(group: &mut Group, next: &mut usize) {
    match group {
        Group::Member(index) => {
            *index = *next;
            *next += 1;
        }
        Group::Any(groups) => groups.iter_mut().for_each(|group| number(group, next)),
    }
}

fn leaves(group: &Group) -> Vec<usize> {
    match group {
        Group::Member(index) => vec![*index],
        Group::Any(groups) => groups.iter().flat_map(leaves).collect(),
    }
}

fn balance_and_size() -> impl Strategy<Value = (Balance, usize)> {
    let failover =
        tree().prop_filter("as many as a session can try", |tree| leaves(tree).len() <= Tried::MAX).prop_map(|tree| {
            let size = leaves(&tree).len();
            (Balance::Failover(tree), size)
        });
    prop_oneof![
        (0..=Tried::MAX).prop_map(|size| (Balance::RoundRobin, size)),
        (0..=Tried::MAX).prop_map(|size| (Balance::Random, size)),
        (0..=Tried::MAX).prop_map(|size| (Balance::LeastConnections, size)),
        (0..=Tried::MAX).prop_map(|size| (Balance::PowerOfTwo, size)),
        (0..=Tried::MAX).prop_map(|size| (Balance::PeakEwma, size)),
        (0..=Tried::MAX).prop_map(|size| (Balance::SourceHash, size)),
        failover,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Tried plus claim again visits each available backend once and no other; so nothing tried or unavailable is
    /// ever given, and something is whenever there is something. At the end no count is left.
    #[test]
    fn a_session_that_fails_everywhere_has_been_everywhere(
        (balance, size) in balance_and_size(),
        weights in prop::collection::vec(1_u16..=256, Tried::MAX),
        up in prop::collection::vec(any::<bool>(), Tried::MAX),
        seed: u64,
    ) {
        let pool = pool(balance, &weights[..size]);
        set_health(&pool, &up[..size]);
        let mut rng = Rng::from_seed(seed);
        for _ in 0..3 {
            let walked = walk(&pool, &mut rng);
            let expected: Vec<usize> = (0..size).filter(|&index| up[index]).collect();
            let mut sorted = walked.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, expected, "walked {:?}", walked);
        }
        prop_assert!(pool.view().backends.iter().all(|backend| backend.active() == 0));
    }

    /// Over whole rounds, each available backend has exactly its share, whoever else is down.
    #[test]
    fn round_robin_is_exact(
        members in prop::collection::vec((1_u16..=20, prop::bool::weighted(0.8)), 1..12),
        rounds in 1_usize..4,
    ) {
        let (weights, up): (Vec<u16>, Vec<bool>) = members.into_iter().unzip();
        let pool = pool(Balance::RoundRobin, &weights);
        set_health(&pool, &up);
        // Weights with a common divisor have shorter rounds: these are whole numbers of them in any case.
        let expected: Vec<usize> =
            weights.iter().zip(&up).map(|(&weight, &up)| if up { usize::from(weight) * rounds } else { 0 }).collect();
        let claims = expected.iter().sum();
        prop_assert_eq!(shares(&pool, claims, &mut Rng::from_seed(0)), expected);
    }

    /// A group that has been entered is left only when it is exhausted, and its children follow in sequence, around
    /// from where it was entered.
    #[test]
    fn failover_follows_the_sequence_of_each_group(
        tree in tree().prop_filter("as many as a session can try", |tree| leaves(tree).len() <= Tried::MAX),
        up in prop::collection::vec(prop::bool::weighted(0.8), Tried::MAX),
        seed: u64,
    ) {
        let size = leaves(&tree).len();
        let pool = pool(Balance::Failover(tree.clone()), &vec![1; size]);
        set_health(&pool, &up[..size]);
        let walked = walk(&pool, &mut Rng::from_seed(seed));
        assert_in_sequence(&tree, &walked);
    }
}

fn assert_in_sequence(group: &Group, walked: &[usize]) {
    let Group::Any(children) = group else { return };
    let members: Vec<BTreeSet<usize>> = children.iter().map(|child| leaves(child).into_iter().collect()).collect();
    let child_of = |leaf: &usize| members.iter().position(|child| child.contains(leaf));
    // Which children the walk was in, `None` where it was outside of this group.
    let mut visits: Vec<Option<usize>> = walked.iter().map(child_of).collect();
    visits.dedup();
    let outside = |visit: &Option<usize>| visit.is_none();
    let inside: Vec<usize> = visits.iter().flatten().copied().collect();
    let runs = visits.split(outside).filter(|run| !run.is_empty()).count();
    assert!(runs <= 1, "the walk {walked:?} left {group:?} and came back");
    let wraps = inside.windows(2).filter(|pair| pair[1] <= pair[0]).count();
    let around = inside.len() < 2 || wraps == 0 || (wraps == 1 && inside.last() < inside.first());
    assert!(around, "the walk {walked:?} went through {group:?} as {inside:?}");
    for child in children {
        assert_in_sequence(child, walked);
    }
}

#[test]
fn three_backends_take_turns() {
    let pool = pool(Balance::RoundRobin, &[1, 1, 1]);
    let rng = &mut Rng::from_seed(0);
    let order: Vec<usize> = (0..9).map(|_| index_of(&pool, &pool.claim(&Tried::default(), 1, rng).unwrap())).collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
}

#[test]
fn round_robin_is_exact_over_threads() {
    const THREADS: usize = 4;
    const CLAIMS: usize = 6_000;
    let pool = pool(Balance::RoundRobin, &[3, 2, 1]);
    let shares: Vec<Vec<usize>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|seed| {
                scope.spawn({
                    let pool = &pool;
                    move || shares(pool, CLAIMS, &mut Rng::from_seed(seed as u64))
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let total: Vec<usize> = (0..3).map(|index| shares.iter().map(|worker| worker[index]).sum()).collect();
    assert_eq!(total, [THREADS * CLAIMS / 2, THREADS * CLAIMS / 3, THREADS * CLAIMS / 6]);
    assert!(pool.view().backends.iter().all(|backend| backend.active() == 0));
}

/// A thread whose turns all fall on those that are down, because others took the turns between, still finds the one
/// that is up.
#[test]
fn whoever_claims_from_many_threads_gets_the_one_that_is_up() {
    for balance in policies().into_iter().chain([Balance::SourceHash]) {
        let pool = pool(balance, &[1, 1]);
        set_health(&pool, &[true, false]);
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let pool = &pool;
                scope.spawn(move || shares(pool, 20_000, &mut Rng::from_seed(seed)));
            }
        });
    }
}

/// Each share within six standard deviations of what is expected: chance misses that once in 10^8.
fn assert_likely(shares: &[usize], weights: &[u16], up: &[bool]) {
    let weight = |index: usize| if up[index] { f64::from(weights[index]) } else { 0.0 };
    let total: f64 = (0..weights.len()).map(weight).sum();
    let claims = shares.iter().sum::<usize>() as f64;
    for (index, &share) in shares.iter().enumerate() {
        let p = weight(index) / total;
        let deviation = (claims * p * (1.0 - p)).sqrt();
        let off = (share as f64 - claims * p).abs();
        assert!(off <= 6.0 * deviation, "{index} has {share} of {claims}, expected {}; all: {shares:?}", claims * p);
    }
}

/// An idle pool is shared by weight, whatever the policy.
#[test]
fn shares_follow_the_weights_of_those_that_are_up() {
    let weights = [1, 2, 3, 10, 50, 256];
    for balance in policies() {
        for up in [[true; 6], [true, true, false, true, true, false], [true, true, false, false, false, false]] {
            let pool = pool(balance.clone(), &weights);
            set_health(&pool, &up);
            assert_likely(&shares(&pool, 50_000, &mut Rng::from_seed(11)), &weights, &up);
        }
    }
}

/// A backend that comes back has a tenth of its share at first, half-way something over half, and in the end all of it;
/// and all that there is if it is alone.
#[test]
fn who_comes_back_gets_its_share_slowly_under_every_policy() {
    const SLOW_START: u64 = 30_000;
    let failover = Balance::Failover(Group::Any((0..3).map(Group::Member).collect()));
    for balance in policies().into_iter().chain([failover]) {
        let is_failover = matches!(balance, Balance::Failover(_));
        let pool = pool(balance.clone(), &[1, 1, 1]);
        let backend = Arc::clone(&pool.view().backends[2]);
        let mut now = Now { millis: 1_000, unix_ms: 1 };
        for outcome in [Outcome::Failure, Outcome::Failure, Outcome::Failure, Outcome::Success, Outcome::Success] {
            pool.observe(&backend, outcome, now);
        }
        assert_eq!(backend.share(), 102, "a tenth of 1,024");
        for (elapsed, share) in [(0, 102), (SLOW_START / 2, 563), (SLOW_START, 1_024)] {
            now.millis = 1_000 + elapsed;
            pool.review(now.millis);
            assert_eq!(backend.share(), share);
            if !is_failover {
                // Where it stands in a group says who follows; elsewhere the proportions are exact.
                let got = shares(&pool, 30_000, &mut Rng::from_seed(11));
                assert_likely(&got, &[1_024, 1_024, share as u16], &[true; 3]);
            }
        }
        let again = [Outcome::Failure, Outcome::Failure, Outcome::Failure, Outcome::Success, Outcome::Success];
        for outcome in again {
            pool.observe(&backend, outcome, now);
        }
        set_health(&pool, &[false, false, true]);
        assert_eq!(shares(&pool, 100, &mut Rng::from_seed(3)), [0, 0, 100], "{balance:?}: alone it takes them all");
    }
}

#[test]
fn connections_that_stay_are_spread_by_weight() {
    for balance in [Balance::LeastConnections, Balance::PowerOfTwo, Balance::PeakEwma] {
        let pool = pool(balance.clone(), &[1, 2, 4, 1]);
        let rng = &mut Rng::from_seed(7);
        let slots: Vec<Slot> = (0..800).map(|_| pool.claim(&Tried::default(), 1, rng).unwrap()).collect();
        let active = |pool: &Pool| pool.view().backends.iter().map(|each| each.active()).collect::<Vec<_>>();
        for (active, fair) in active(&pool).into_iter().zip([100_u32, 200, 400, 100]) {
            let most = if balance == Balance::LeastConnections { 1 } else { fair / 4 };
            assert!(active.abs_diff(fair) <= most, "{balance:?}: {active} instead of {fair}");
        }
        drop(slots);
        assert_eq!(active(&pool), [0; 4]);
    }
}

#[test]
fn least_connections_finds_the_one_that_has_become_free() {
    let pool = pool(Balance::LeastConnections, &[1; 5]);
    let rng = &mut Rng::from_seed(7);
    let mut slots: Vec<Slot> = (0..50).map(|_| pool.claim(&Tried::default(), 1, rng).unwrap()).collect();
    let freed = slots.swap_remove(17);
    let index = index_of(&pool, &freed);
    drop(freed);
    assert_eq!(index_of(&pool, &pool.claim(&Tried::default(), 1, rng).unwrap()), index);
}

/// One in ten draws of two from five meets the slow one twice never; only chance can give it something.
#[test]
fn peak_ewma_avoids_who_answers_late() {
    let pool = pool(Balance::PeakEwma, &[1; 5]);
    for (index, backend) in pool.view().backends.iter().enumerate() {
        backend.connect_time.observe(0.2, 1);
        backend.answer_time.observe(if index == 3 { 80.0 } else { 4.0 }, 1);
    }
    let got = shares(&pool, 5_000, &mut Rng::from_seed(5));
    assert_eq!(got[3], 0, "{got:?}");
    // What is known of it fades, so that it is tried again.
    let rng = &mut Rng::from_seed(5);
    let later = 120_000;
    let mut found = false;
    for _ in 0..5_000 {
        found |= index_of(&pool, &pool.claim(&Tried::default(), later, rng).unwrap()) == 3;
    }
    assert!(found);
}

#[test]
fn random_among_a_few_of_many_goes_by_the_scan_and_is_as_fair() {
    let weights: Vec<u16> = (0..500).map(|index| index % 7 + 1).collect();
    let up: Vec<bool> = (0..500).map(|index| index == 3 || index == 333).collect();
    let pool = pool(Balance::Random, &weights);
    set_health(&pool, &up);
    assert_likely(&shares(&pool, 20_000, &mut Rng::from_seed(12)), &weights, &up);
}

#[test]
fn a_failover_starts_anywhere() {
    let tree = Group::Any(vec![Group::Member(0), Group::Any(vec![Group::Member(1), Group::Member(2)])]);
    let pool = pool(Balance::Failover(tree), &[1, 1, 1]);
    // One half for the first child; the other half is shared by the two in the group.
    assert_likely(&shares(&pool, 20_000, &mut Rng::from_seed(13)), &[2, 1, 1], &[true; 3]);
}

#[test]
fn a_failover_goes_through_nested_groups_and_then_on() {
    let tree = Group::Any(vec![
        Group::Member(0),
        Group::Any(vec![Group::Member(1), Group::Member(2), Group::Member(3)]),
        Group::Member(4),
    ]);
    let pool = pool(Balance::Failover(tree), &[1; 5]);
    let mut tried = Tried::default();
    tried.push(pool.view().backends[2].id);
    let rng = &mut Rng::from_seed(0);
    let mut order = Vec::new();
    while let Some(slot) = pool.claim(&tried, 1, rng) {
        tried.push(slot.id);
        order.push(index_of(&pool, &slot));
    }
    assert_eq!(order, [3, 1, 4, 0]);
}

#[test]
fn when_all_are_down_no_round_is_wasted() {
    let pool = pool(Balance::RoundRobin, &[1; 5_000]);
    set_health(&pool, &[false; 5_000]);
    let rng = &mut Rng::from_seed(0);
    assert!(pool.claim(&Tried::default(), 1, rng).is_none());
    set_health(&pool, &[true; 5_000]);
    let slot = pool.claim(&Tried::default(), 1, rng).unwrap();
    assert!(index_of(&pool, &slot) < 100);
}

/// With a tenth of its share, the idler one of two is compared as seldom as it is drawn.
#[test]
fn power_of_two_does_not_flood_the_idle_one_that_starts_slowly() {
    for balance in [Balance::PowerOfTwo, Balance::PeakEwma] {
        let pool = pool(balance.clone(), &[1; 2]);
        let rng = &mut Rng::from_seed(5);
        let held: Vec<Slot> = (0..200).map(|_| pool.claim(&Tried::default(), 1, rng).unwrap()).collect();
        let back = Arc::clone(&pool.view().backends[0]);
        let busy = held.into_iter().filter(|slot| slot.id != back.id).collect::<Vec<_>>();
        set_health(&pool, &[true; 2]);
        let now = Now { millis: 1_000, unix_ms: 1_000 };
        for outcome in [Outcome::Failure, Outcome::Failure, Outcome::Failure, Outcome::Success, Outcome::Success] {
            pool.observe(&back, outcome, now);
        }
        assert_eq!((back.share(), back.active()), (102, 0));
        // Drawn first 1 time in 11, else second 1 time in 10: 18 %.
        let got = shares(&pool, 5_000, rng)[0];
        assert!((800..1_000).contains(&got), "{balance:?}: {got} of 5000");
        drop(busy);
    }
}

/// A pool of `balance` in which each backend may have so many connections at once.
fn bounded(balance: Balance, weights: &[u16], rooms: &[u32]) -> Pool {
    let pool = pool(balance, weights);
    for (backend, &room) in pool.view().backends.iter().zip(rooms) {
        backend.set_max_active(Some(room));
    }
    pool
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes and goes: none ever has more than it may, and who asks gets something exactly while there is one
    /// that is up, untried and not full.
    #[test]
    fn a_full_backend_is_never_chosen_and_one_that_is_not_always_found(
        (balance, size) in balance_and_size(),
        rooms in prop::collection::vec(0_u32..4, Tried::MAX),
        up in prop::collection::vec(prop::bool::weighted(0.8), Tried::MAX),
        ends in prop::collection::vec(prop::option::weighted(0.3, any::<prop::sample::Index>()), 1..100),
        seed: u64,
    ) {
        let pool = bounded(balance, &vec![1; size], &rooms[..size]);
        set_health(&pool, &up[..size]);
        let mut rng = Rng::from_seed(seed);
        let mut held: Vec<Slot> = Vec::new();
        for end in ends {
            if let Some(index) = end.filter(|_| !held.is_empty()) {
                drop(held.swap_remove(index.index(held.len())));
                continue;
            }
            let active: Vec<u32> = pool.view().backends.iter().map(|backend| backend.active()).collect();
            let free = (0..size).filter(|&index| up[index] && active[index] < rooms[index]).count();
            prop_assert_eq!(walk(&pool, &mut rng).len(), free);
            let slot = pool.claim(&Tried::default(), 1, &mut rng);
            prop_assert_eq!(slot.is_some(), free > 0);
            held.extend(slot);
            for (backend, &room) in pool.view().backends.iter().zip(&rooms) {
                prop_assert!(backend.active() <= room);
            }
            let any_up = (0..size).any(|index| up[index]);
            prop_assert_eq!(pool.is_worth_waiting(&Tried::default(), 0, 1), any_up);
        }
    }
}

/// The others share by weight what a full one does not get.
#[test]
fn shares_follow_the_weights_of_those_that_are_not_full() {
    let (weights, rest) = ([1, 2, 3, 10, 50, 256], [true, true, true, true, false, false]);
    for balance in policies() {
        let pool = bounded(balance, &weights, &[u32::MAX, u32::MAX, u32::MAX, u32::MAX, 0, 0]);
        assert_likely(&shares(&pool, 50_000, &mut Rng::from_seed(11)), &weights, &rest);
    }
}

#[test]
fn many_threads_never_bring_a_backend_above_its_maximum() {
    for balance in policies().into_iter().chain([Balance::SourceHash]) {
        let pool = bounded(balance, &[1, 1], &[3, 2]);
        let claimed: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|seed| {
                    scope.spawn({
                        let pool = &pool;
                        move || {
                            let mut rng = Rng::from_seed(seed);
                            let mut claimed = 0;
                            for _ in 0..5_000 {
                                let held = [(); 2].map(|()| pool.claim(&Tried::default(), 1, &mut rng));
                                claimed += held.iter().flatten().count();
                                for (backend, room) in pool.view().backends.iter().zip([3, 2]) {
                                    assert!(backend.active() <= room);
                                }
                            }
                            claimed
                        }
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert!(claimed > 0);
        assert!(pool.view().backends.iter().all(|backend| backend.active() == 0));
    }
}
