//! What it costs to build a routing table, from nothing and as a reload does from the table before, and to find a
//! session's pool in it.

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tidegate::admission::Gate;
use tidegate::clock::Now;
use tidegate::config::{self, Address, Adjustments, Balance, Config, Group};
use tidegate::metrics::Metrics;
use tidegate::name::{ClientAddr, Endpoint, PoolName};
use tidegate::net::first_bytes::FirstBytes;
use tidegate::table::{Facts, Listener, Resolution, RoutingTable, Verdict};

const NOW: Now = Now { millis: 1, unix_ms: 1 };

const BACKENDS: u32 = 5_000;

fn config(balance: Balance) -> Config {
    let members = (0..BACKENDS)
        .map(|index| {
            let address = SocketAddr::from((Ipv4Addr::from_bits(0x0a00_0000 + index), 80));
            let member = config::Member::new(Address::Endpoint(Endpoint::Tcp(address)), String::new());
            config::Member { weight: (index % 16 + 1) as u16, ..member }
        })
        .collect();
    let pool = config::Pool::new(PoolName::new("bench"), balance, members);
    Config {
        runtime: config::Runtime::default(),
        admin: config::Admin::default(),
        log: config::Log::default(),
        limits: Vec::new(),
        listeners: Vec::new(),
        pools: vec![pool],
    }
}

fn build(criterion: &mut Criterion) {
    let metrics = Arc::new(Metrics::new().expect("every family has a name of its own"));
    let resolution = Resolution::default();
    let all = Group::Any((0..BACKENDS as usize).map(Group::Member).collect());
    for balance in [Balance::RoundRobin, Balance::Random, Balance::Failover(all)] {
        let name = balance.as_str();
        let config = config(balance);
        let build = |previous: Option<&RoutingTable>| {
            RoutingTable::build(
                black_box(&config),
                &resolution,
                &Adjustments::default(),
                Vec::new(),
                &metrics,
                previous,
                NOW,
            )
            .table
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

/// Listeners that each have their pool of one backend.
fn many_listeners(count: usize) -> Config {
    let section = |index: usize| {
        let listener = format!("[listeners.l{index}]\nbind = \"127.0.0.1:{}\"\npool = \"p{index}\"\n", index + 1);
        format!("{listener}[pools.p{index}]\nbackends = [\"10.0.0.1:80\"]\n")
    };
    let text: String = (0..count).map(section).collect();
    Config::parse("bench", text.as_bytes()).expect("a good config").config
}

fn route(criterion: &mut Criterion) {
    let metrics = Arc::new(Metrics::new().expect("every family has a name of its own"));
    for count in [1, 100, 5_000] {
        let config = many_listeners(count);
        let listener = |config: &config::Listener| {
            let handles = metrics.listener(&config.name, &[]);
            let gate = Gate::open(&config.name, usize::MAX, &metrics);
            Arc::new(Listener::new(config.clone(), handles, Vec::new(), gate, None))
        };
        let listeners = config.listeners.iter().map(listener).collect();
        let table = RoutingTable::build(
            &config,
            &Resolution::default(),
            &Adjustments::default(),
            listeners,
            &metrics,
            None,
            NOW,
        )
        .table;
        let client = ClientAddr::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        let name = table.listeners[count / 2].name.clone();
        let first = FirstBytes::default();
        criterion.bench_function(&format!("route, {count} listeners"), |bencher| {
            bencher.iter(|| matches!(table.route(&Facts::new(black_box(&name), client, &first)), Verdict::To { .. }));
        });
    }
}

criterion_group!(benches, build, route);
criterion_main!(benches);
