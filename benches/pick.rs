//! What it costs to claim and release a slot, by policy and size of the pool.
//!
//! `up` is the usual case. `one in ten up` is a pool in trouble: pickers pass over what they can't use. `contended`
//! is the claims of one thread while three others claim from the same pool.

mod pools;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pools::{POLICIES, SIZES, pool};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tidegate::pool::{Health, Pool, Tried};
use tidegate::rng::Rng;

fn claim(criterion: &mut Criterion) {
    for (name, balance) in POLICIES {
        let mut group = criterion.benchmark_group(name);
        for size in SIZES {
            let pool = pool(balance(size), size);
            let (tried, mut rng) = (Tried::default(), Rng::from_seed(1));
            group.bench_function(BenchmarkId::new("up", size), |bencher| {
                bencher.iter(|| drop(black_box(pool.claim(&tried, 1, &mut rng))));
            });
            contended(&pool, || {
                group.bench_function(BenchmarkId::new("contended", size), |bencher| {
                    bencher.iter(|| drop(black_box(pool.claim(&tried, 1, &mut rng))));
                });
            });
            for (index, backend) in pool.view().backends.iter().enumerate() {
                backend.set_health(if index % 10 == 0 { Health::Up } else { Health::Down }, 0);
            }
            group.bench_function(BenchmarkId::new("one in ten up", size), |bencher| {
                bencher.iter(|| drop(black_box(pool.claim(&tried, 1, &mut rng))));
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
                    drop(black_box(pool.claim(&Tried::default(), 1, &mut rng)));
                }
            });
        }
        measure();
        done.store(true, Relaxed);
    });
}

criterion_group!(benches, claim);
criterion_main!(benches);
