//! What it costs to claim and release a slot, by policy and size of the pool.
//!
//! `up` is the usual case. `one in ten up` is a pool in trouble: pickers pass over what they can't use. `contended`
//! is the claims of one thread while three others claim from the same pool.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tidegate::config::{self, Balance, Group, Initial};
use tidegate::metrics::Metrics;
use tidegate::name::{BackendAddr, Endpoint, PoolName};
use tidegate::pool::{Health, Members, Pool, ResolvedMember, Tried};
use tidegate::rng::Rng;

const SIZES: [usize; 3] = [3, 100, 5_000];

fn pool(balance: Balance, size: usize) -> Pool {
    let list = (0..size)
        .map(|index| {
            let label = format!("b{index}");
            let address = BackendAddr(Endpoint::Unix(Path::new(&label).into()));
            ResolvedMember { address, weight: (index % 4 + 1) as u16, label: label.into() }
        })
        .collect();
    let config = config::Pool {
        name: PoolName::new("bench"),
        balance: balance.clone(),
        members: Vec::new(),
        connect: config::Connect::default(),
        health: config::Health { initial: Initial::Up, ..config::Health::default() },
    };
    let metrics = Arc::new(Metrics::new().expect("a fresh registry takes every family"));
    Pool::new(&config, &Members { list, balance }, &metrics, None, 0)
}

/// Groups of ten.
fn failover(size: usize) -> Balance {
    let members: Vec<usize> = (0..size).collect();
    let groups = members.chunks(10).map(|chunk| Group::Any(chunk.iter().copied().map(Group::Member).collect()));
    Balance::Failover(Group::Any(groups.collect()))
}

fn claim(criterion: &mut Criterion) {
    for (name, balance) in [
        ("round_robin", (|_| Balance::RoundRobin) as fn(usize) -> Balance),
        ("random", |_| Balance::Random),
        ("failover", failover),
    ] {
        let mut group = criterion.benchmark_group(name);
        for size in SIZES {
            let pool = pool(balance(size), size);
            let (tried, mut rng) = (Tried::default(), Rng::from_seed(1));
            group.bench_function(BenchmarkId::new("up", size), |bencher| {
                bencher.iter(|| drop(black_box(pool.claim(&tried, &mut rng))));
            });
            contended(&pool, || {
                group.bench_function(BenchmarkId::new("contended", size), |bencher| {
                    bencher.iter(|| drop(black_box(pool.claim(&tried, &mut rng))));
                });
            });
            for (index, backend) in pool.view().backends.iter().enumerate() {
                backend.set_health(if index % 10 == 0 { Health::Up } else { Health::Down }, 0);
            }
            group.bench_function(BenchmarkId::new("one in ten up", size), |bencher| {
                bencher.iter(|| drop(black_box(pool.claim(&tried, &mut rng))));
            });
        }
        group.finish();
    }
}

/// Runs `measure` while three other threads claim.
fn contended(pool: &Pool, measure: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let done = &done;
            scope.spawn(move || {
                let mut rng = Rng::from_seed(seed);
                while !done.load(Relaxed) {
                    drop(black_box(pool.claim(&Tried::default(), &mut rng)));
                }
            });
        }
        measure();
        done.store(true, Relaxed);
    });
}

criterion_group!(benches, claim);
criterion_main!(benches);
