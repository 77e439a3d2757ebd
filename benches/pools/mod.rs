//! The pools that the benchmarks of picking claim from: each policy, with weights from 1 to 4.

use std::path::Path;
use std::sync::Arc;
use tidegate::clock::Now;
use tidegate::config::{self, Balance, Group, Initial};
use tidegate::metrics::Metrics;
use tidegate::name::{BackendAddr, Endpoint, PoolName};
use tidegate::pool::{Members, Pool, ResolvedMember};

pub const SIZES: [usize; 3] = [3, 100, 5_000];

/// A policy for a pool of so many backends.
type Policy = fn(usize) -> Balance;

/// The policies by name.
pub const POLICIES: [(&str, Policy); 7] = [
    ("round_robin", |_| Balance::RoundRobin),
    ("random", |_| Balance::Random),
    ("least_connections", |_| Balance::LeastConnections),
    ("power_of_two", |_| Balance::PowerOfTwo),
    ("peak_ewma", |_| Balance::PeakEwma),
    ("failover", failover),
    ("source_hash", |_| Balance::SourceHash),
];

/// Groups of ten.
fn failover(size: usize) -> Balance {
    let members: Vec<usize> = (0..size).collect();
    let groups = members.chunks(10).map(|chunk| Group::Any(chunk.iter().copied().map(Group::Member).collect()));
    Balance::Failover(Group::Any(groups.collect()))
}

/// A pool of `size` backends, all up.
pub fn pool(balance: Balance, size: usize) -> Pool {
    let list = (0..size)
        .map(|index| {
            let label = format!("b{index}");
            let address = BackendAddr(Endpoint::Unix(Path::new(&label).into()));
            ResolvedMember {
                address,
                weight: (index % 4 + 1) as u16,
                tier: 0,
                max_connections: None,
                label: label.into(),
            }
        })
        .collect();
    let config = config::Pool {
        health: config::Health { initial: Initial::Up, ..config::Health::default() },
        ..config::Pool::new(PoolName::new("bench"), balance.clone(), Vec::new())
    };
    let metrics = Arc::new(Metrics::new().expect("every family has a name of its own"));
    Pool::new(&config, &Members { list, balance }, &metrics, None, Now { millis: 1, unix_ms: 1 })
}
