//! What it costs to find the rule of a session among many: by exact names, wildcards, suffixes and networks, hit and
//! missed, and before the client has sent anything. Beside it, what it costs to read the name from a hello.
//!
//! The figures should hardly grow with the number of rules.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tidegate::admission::Gate;
use tidegate::clock::Now;
use tidegate::config::{self, Adjustments, Cidr, Conditions, Config, Destination, NamePattern, Route};
use tidegate::metrics::Metrics;
use tidegate::name::{ClientAddr, ListenerName};
use tidegate::net::client_hello;
use tidegate::net::first_bytes::FirstBytes;
use tidegate::table::{Facts, Listener, Resolution, RoutingTable, Verdict};

const COUNTS: [u32; 3] = [10, 1_000, 100_000];
const NOW: Now = Now { millis: 1, unix_ms: 1 };

/// What the rules are about, each with what a client that takes the last one asks for.
const KINDS: [Kind; 4] = [
    Kind { name: "exact names", when: |number| sni(NamePattern::Exact(tenant(number).into())), asks: tenant },
    Kind {
        name: "wildcards",
        when: |number| sni(NamePattern::OneLabel(tenant(number).into())),
        asks: |number| format!("www.{}", tenant(number)),
    },
    Kind {
        name: "suffixes",
        when: |number| sni(NamePattern::Labels(tenant(number).into())),
        asks: |number| format!("a.b.{}", tenant(number)),
    },
    Kind { name: "networks", when: network, asks: tenant },
];

struct Kind {
    name: &'static str,
    when: fn(u32) -> Conditions,
    asks: fn(u32) -> String,
}

fn tenant(number: u32) -> String {
    format!("tenant-{number}.customers.example.com")
}

fn sni(pattern: NamePattern) -> Conditions {
    Conditions { sni: Some(vec![pattern]), ..Conditions::default() }
}

/// Every other one a /24, the others addresses.
fn network(number: u32) -> Conditions {
    let address = Ipv4Addr::from_bits(0x0a00_0000 + (number << 8));
    let prefix = if number.is_multiple_of(2) { 32 } else { 24 };
    Conditions { source: vec![Cidr::of(address.into(), prefix)], ..Conditions::default() }
}

fn table(kind: &Kind, count: u32) -> RoutingTable {
    let metrics = Arc::new(Metrics::new().expect("every family has a name of its own"));
    let text = "[listeners.web]\nbind = \"127.0.0.1:1\"\npool = \"p\"\n[pools.p]\nbackends = [\"10.0.0.1:80\"]\n";
    let mut config = Config::parse("bench", text.as_bytes()).expect("a good config").config;
    let pool = config.pools[0].name.clone();
    let route = |number| Route {
        name: format!("rule-{number}").into(),
        when: (kind.when)(number),
        to: Destination::Pool(pool.clone()),
    };
    config.listeners[0].routes = (0..count).map(route).collect();
    let listener = |config: &config::Listener| {
        let gate = Gate::open(&config.name, usize::MAX, &metrics);
        Arc::new(Listener::new(config.clone(), metrics.listener(&config.name, &[]), Vec::new(), gate, None))
    };
    let listeners = config.listeners.iter().map(listener).collect();
    RoutingTable::build(&config, &Resolution::default(), &Adjustments::default(), listeners, &metrics, None, NOW).table
}

fn first(name: &str) -> FirstBytes {
    let mut first = FirstBytes::default();
    first.push(&client_hello::write(Some(name), &["h2", "http/1.1"]));
    first
}

fn find(criterion: &mut Criterion) {
    let listener = ListenerName::new("web");
    let stranger = ClientAddr::tcp(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7), 4_711)));
    for kind in &KINDS {
        let mut group = criterion.benchmark_group(kind.name);
        for count in COUNTS {
            let table = table(kind, count);
            // The last one of its kind: asked in order, it would come after all others.
            let last = count - 1;
            let known = Ipv4Addr::from_bits(0x0a00_0000 + (last << 8));
            let client = ClientAddr::tcp(SocketAddr::from((known, 4_711)));
            let (wanted, other, nothing) = (first(&(kind.asks)(last)), first("www.example.org"), FirstBytes::default());
            let route = |client, first| table.route(black_box(&Facts::new(&listener, client, first)));
            let rule = |verdict| match verdict {
                Verdict::To { rule, .. } => rule.name.to_string(),
                _ => "needs more".to_owned(),
            };
            assert_eq!(rule(route(client, &wanted)), format!("rule-{last}"), "{}", kind.name);
            assert_eq!(rule(route(stranger, &other)), "default", "{}", kind.name);
            group.bench_function(BenchmarkId::new("hit", count), |bencher| {
                bencher.iter(|| matches!(route(client, &wanted), Verdict::To { .. }));
            });
            group.bench_function(BenchmarkId::new("miss", count), |bencher| {
                bencher.iter(|| matches!(route(stranger, &other), Verdict::To { .. }));
            });
            group.bench_function(BenchmarkId::new("nothing read yet", count), |bencher| {
                bencher.iter(|| matches!(route(stranger, &nothing), Verdict::NeedsMore(_)));
            });
        }
        group.finish();
    }
}

fn read(criterion: &mut Criterion) {
    let hello = client_hello::write(Some(&tenant(4_711)), &["h2", "http/1.1"]);
    criterion.bench_function("read the name from a hello", |bencher| {
        bencher.iter_with_large_drop(|| {
            let mut first = FirstBytes::default();
            first.push(black_box(&hello));
            first
        });
    });
}

criterion_group!(benches, find, read);
criterion_main!(benches);
