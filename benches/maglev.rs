//! Stickiness in figures: who moves when a member leaves or joins, how even the table is, what it costs to build and to
//! ask, and what a bound on the load does: `cargo bench --bench maglev`.
//!
//! All but the times is the same on each run: nothing here is by chance but from a fixed seed.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use tidegate::clock::Now;
use tidegate::config::{self, Balance};
use tidegate::metrics::Metrics;
use tidegate::name::{BackendAddr, Endpoint, PoolName};
use tidegate::pool::{Health, Maglev, Members, Pool, ResolvedMember, Slot, Tried, Wish};
use tidegate::rng::Rng;

/// The smallest size, the default, and the larger one of the paper (Eisenbud et al., NSDI 2016, section 5.3).
const TABLES: [u32; 3] = [4_093, 65_537, 655_373];
const MEMBERS: [usize; 4] = [3, 10, 100, 1_000];

fn main() {
    disruption();
    balance();
    build();
    look_up();
    bounded();
}

fn members(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("10.0.{}.{}:80", index / 250, index % 250 + 1)).collect()
}

/// The share of places whose owner is another one in the second table.
fn moved(before: (&Maglev, &[String]), after: (&Maglev, &[String])) -> f64 {
    let owner =
        |(table, members): (&Maglev, &[String]), place: usize| members[usize::from(table.places()[place])].clone();
    let places = before.0.places().len();
    (0..places).filter(|&place| owner(before, place) != owner(after, place)).count() as f64 / places as f64
}

/// Over as many of the members as make a stable mean.
fn disruption() {
    println!("Clients that move, in per cent (mean over up to 20 members)\n");
    println!(
        "{:<9}{:>9}{:>11}{:>11}{:>11}{:>11}{:>11}",
        "members", "places", "ideal 1/N", "down", "leaves", "joins", "1/(N+1)"
    );
    for members_now in MEMBERS {
        for size in TABLES {
            let list = members(members_now);
            let table = Maglev::new(&list, &vec![1; members_now], size);
            let (mut leaves, mut down) = (0.0, 0.0);
            let samples = members_now.min(20);
            for sample in 0..samples {
                let gone = sample * members_now / samples;
                let mut rest = list.clone();
                rest.remove(gone);
                let after = Maglev::new(&rest, &vec![1; rest.len()], size);
                leaves += moved((&table, &list), (&after, &rest)) / samples as f64;
                // One that is down keeps its places: only what is asked for there goes elsewhere.
                let own = table.places().iter().filter(|&&member| usize::from(member) == gone).count();
                down += own as f64 / f64::from(size) / samples as f64;
            }
            let more = members(members_now + 1);
            let joined = Maglev::new(&more, &vec![1; more.len()], size);
            let joins = moved((&table, &list), (&joined, &more));
            println!(
                "{members_now:<9}{size:>9}{:>11.3}{:>11.3}{:>11.3}{:>11.3}{:>11.3}",
                100.0 / members_now as f64,
                100.0 * down,
                100.0 * leaves,
                100.0 * joins,
                100.0 / (members_now + 1) as f64,
            );
        }
    }
}

fn balance() {
    println!(
        "\nShares of the table: largest / mean, smallest / mean\n\n{:<9}{:>9}{:>10}{:>10}",
        "members", "places", "largest", "smallest"
    );
    for count in MEMBERS {
        for size in TABLES {
            let table = Maglev::new(&members(count), &vec![1; count], size);
            let mut places = vec![0_u32; count];
            table.places().iter().for_each(|&member| places[usize::from(member)] += 1);
            let mean = f64::from(size) / count as f64;
            let of_mean = |places: Option<&u32>| f64::from(*places.expect("a member")) / mean;
            println!("{count:<9}{size:>9}{:>10.4}{:>10.4}", of_mean(places.iter().max()), of_mean(places.iter().min()));
        }
    }
}

fn build() {
    println!(
        "\nBuilding the table, one thread, median of 21\n\n{:<9}{:>9}{:>10}{:>12}",
        "members", "places", "weights", "ms"
    );
    for count in [100, 1_000, 5_000] {
        for size in TABLES {
            let list = members(count);
            let even = vec![1; count];
            let mixed: Vec<u16> = (0..count).map(|index| (index * 37 % 256 + 1) as u16).collect();
            for (name, weights) in [("equal", &even), ("1-256", &mixed)] {
                let mut times: Vec<f64> = (0..21)
                    .map(|_| {
                        let begun = Instant::now();
                        black_box(Maglev::new(black_box(&list), weights, size));
                        begun.elapsed().as_secs_f64() * 1e3
                    })
                    .collect();
                times.sort_by(f64::total_cmp);
                println!("{count:<9}{size:>9}{name:>10}{:>12.2}", times[times.len() / 2]);
            }
        }
    }
}

/// A pool of equal backends, all up; one that goes by a hash has this bound.
fn pool(balance: Balance, size: usize, max_load: Option<f64>) -> Pool {
    let member = |address: &String| ResolvedMember {
        address: BackendAddr(Endpoint::Tcp(address.parse().expect("an address"))),
        weight: 1,
        tier: 0,
        max_connections: None,
        label: address.as_str().into(),
    };
    let mut config = config::Pool::new(PoolName::new("bench"), balance.clone(), Vec::new());
    config.health.initial = config::Initial::Up;
    if let Some(hash) = &mut config.hash {
        hash.max_load = max_load;
    }
    let metrics = Arc::new(Metrics::new().expect("every family has a name of its own"));
    let list = members(size).iter().map(member).collect();
    Pool::new(&config, &Members { list, balance }, &metrics, None, Now { millis: 1, unix_ms: 1 })
}

fn claim(pool: &Pool, key: u64, rng: &mut Rng) -> Slot {
    let wish = Wish { tried: &Tried::default(), key, patience: 0, now: 1 };
    pool.claim_within(&wish, rng).expect("a backend that is up")
}

fn keys(count: usize) -> Vec<u64> {
    let mut rng = Rng::from_seed(1);
    (0..count).map(|_| rng.below(u64::MAX)).collect()
}

/// A claim and its release, beside round robin in the same pool.
fn look_up() {
    println!("\nA claim and its release, ns (median of 21 times 20,000, by so many different clients)\n");
    println!(
        "{:<9}{:>12}{:>22}{:>12}{:>22}",
        "members", "round_robin", "source_hash, no bound", "max_load", "max_load, 1 in 10 up"
    );
    let keys = keys(20_000);
    for count in [3, 100, 1_000] {
        let measured = |pool: &Pool| {
            let mut rng = Rng::from_seed(1);
            let mut times: Vec<f64> = (0..21)
                .map(|_| {
                    let begun = Instant::now();
                    for &key in &keys {
                        drop(black_box(claim(pool, key, &mut rng)));
                    }
                    begun.elapsed().as_secs_f64() * 1e9 / keys.len() as f64
                })
                .collect();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let bounded = pool(Balance::SourceHash, count, Some(1.25));
        let usual = measured(&bounded);
        for (index, backend) in bounded.view().backends.iter().enumerate() {
            backend.set_health(if index % 10 == 0 { Health::Up } else { Health::Down }, 0);
        }
        bounded.review(1);
        println!(
            "{count:<9}{:>12.0}{:>22.0}{usual:>12.0}{:>22.0}",
            measured(&pool(Balance::RoundRobin, count, None)),
            measured(&pool(Balance::SourceHash, count, None)),
            measured(&bounded),
        );
    }
}

/// Clients that come back by Zipf's law: the k-th of them k^-s as often as the first.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(clients: usize, s: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=clients).map(|k| {
            sum += (k as f64).powf(-s);
            sum
        });
        Self(sums.collect())
    }

    fn draw(&self, rng: &mut Rng) -> usize {
        let all = self.0.last().copied().unwrap_or_default();
        let at = rng.below(1 << 53) as f64 / (1_u64 << 53) as f64 * all;
        self.0.partition_point(|&sum| sum <= at).min(self.0.len() - 1)
    }
}

/// 10,000 connections that last equally long, of clients by Zipf's law.
fn bounded() {
    const CONNECTIONS: usize = 10_000;
    println!("\n{CONNECTIONS} connections of 20,000 clients by Zipf's law with exponent s, ten times over\n");
    println!("{:<9}{:>6}{:>10}{:>16}{:>18}", "members", "s", "max_load", "largest / mean", "not at home, %");
    let keys = keys(20_000);
    for count in [10, 100] {
        for s in [0.8, 1.0, 1.2] {
            for max_load in [None, Some(2.0), Some(1.25), Some(1.1)] {
                let (bound, free) =
                    (pool(Balance::SourceHash, count, max_load), pool(Balance::SourceHash, count, None));
                let (zipf, mut rng) = (Zipf::new(keys.len(), s), Rng::from_seed(7));
                let mut held: Vec<Slot> = Vec::with_capacity(CONNECTIONS);
                let (mut away, mut largest) = (0, 0.0_f64);
                for arrival in 0..11 * CONNECTIONS {
                    let key = keys[zipf.draw(&mut rng)];
                    let ends = rng.index(CONNECTIONS);
                    if held.len() == CONNECTIONS {
                        drop(held.swap_remove(ends));
                    }
                    let slot = claim(&bound, key, &mut rng);
                    let home = claim(&free, key, &mut rng);
                    if arrival >= CONNECTIONS {
                        away += usize::from(slot.address != home.address);
                    }
                    held.push(slot);
                    if arrival >= CONNECTIONS && arrival % 1_000 == 0 {
                        let most =
                            bound.view().backends.iter().map(|backend| backend.active()).max().unwrap_or_default();
                        largest = largest.max(f64::from(most) * count as f64 / CONNECTIONS as f64);
                    }
                }
                let max_load = max_load.map_or("off".to_owned(), |load| load.to_string());
                let away = 100.0 * away as f64 / (10 * CONNECTIONS) as f64;
                println!("{count:<9}{s:>6}{max_load:>10}{largest:>16.2}{away:>18.1}");
            }
        }
    }
}
