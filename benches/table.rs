//! What it costs to build a routing table: from nothing, and as a reload does from the table before.

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tidegate::config::{self, Address, Balance, Config, Group};
use tidegate::metrics::Metrics;
use tidegate::name::{Endpoint, PoolName};
use tidegate::table::{Resolution, RoutingTable};

const BACKENDS: u32 = 5_000;

fn config(balance: Balance) -> Config {
    let members = (0..BACKENDS)
        .map(|index| {
            let address = SocketAddr::from((Ipv4Addr::from_bits(0x0a00_0000 + index), 80));
            config::Member {
                address: Address::Endpoint(Endpoint::Tcp(address)),
                weight: (index % 16 + 1) as u16,
                name: None,
                place: String::new(),
            }
        })
        .collect();
    let pool = config::Pool {
        name: PoolName::new("bench"),
        balance,
        members,
        connect: config::Connect::default(),
        health: config::Health::default(),
    };
    Config {
        runtime: config::Runtime::default(),
        admin: config::Admin { listen: None },
        log: config::Log::default(),
        listeners: Vec::new(),
        pools: vec![pool],
    }
}

fn build(criterion: &mut Criterion) {
    let metrics = Arc::new(Metrics::new().expect("a fresh registry takes every family"));
    let resolution = Resolution::default();
    let all = Group::Any((0..BACKENDS as usize).map(Group::Member).collect());
    for balance in [Balance::RoundRobin, Balance::Random, Balance::Failover(all)] {
        let name = balance.as_str();
        let config = config(balance);
        let build = |previous: Option<&RoutingTable>| {
            RoutingTable::build(black_box(&config), &resolution, Vec::new(), &metrics, previous, 0).table
        };
        criterion.bench_function(&format!("{name}, {BACKENDS} backends, new"), |bencher| {
            bencher.iter_with_large_drop(|| build(None));
        });
        let previous = build(None);
        criterion.bench_function(&format!("{name}, {BACKENDS} backends, all kept"), |bencher| {
            bencher.iter_with_large_drop(|| build(Some(&previous)));
        });
    }
}

criterion_group!(benches, build);
criterion_main!(benches);
