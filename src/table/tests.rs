//! Tables built from small configs: routes, the expansion of host names, and what is kept.

use super::{Built, Facts, Listener, Passed, Resolution, RoutingTable, Verdict, Warning};
use crate::admission::Gate;
use crate::clock::Now;
use crate::config::{self, Address, Adjustments, Balance, Cidr, Conditions, Config, Destination, Group, Initial};
use crate::metrics::Metrics;
use crate::name::{ClientAddr, Endpoint, ListenerName, PoolName};
use crate::net::first_bytes::FirstBytes;
use crate::pool::{Health, Pool, Tried};
use crate::rng::Rng;
use std::sync::Arc;

pub fn endpoint(address: &str) -> Address {
    Address::Endpoint(Endpoint::Tcp(address.parse().unwrap()))
}

pub fn host(host: &str) -> Address {
    Address::Host { host: host.into(), port: 80 }
}

pub fn member(address: Address, name: Option<&str>) -> config::Member {
    let place = format!("lb.toml: {address}");
    config::Member { name: name.map(str::to_owned), ..config::Member::new(address, place) }
}

pub fn pool(name: &str, balance: Balance, members: Vec<config::Member>) -> config::Pool {
    let health = config::Health { initial: Initial::Up, ..config::Health::default() };
    config::Pool { health, ..config::Pool::new(PoolName::new(name), balance, members) }
}

pub fn config(pools: Vec<config::Pool>) -> Config {
    Config {
        runtime: config::Runtime::default(),
        admin: config::Admin::default(),
        log: config::Log::default(),
        limits: Vec::new(),
        listeners: Vec::new(),
        pools,
    }
}

fn listener(name: &str, pool: &str) -> Arc<Listener> {
    let config = config::Listener::new(ListenerName::new(name), Vec::new(), PoolName::new(pool));
    let metrics = Arc::new(Metrics::new().unwrap());
    let gate = Gate::open(&config.name, 1, &metrics);
    let handles = metrics.listener(&config.name, &[]);
    Arc::new(Listener::new(config, handles, Vec::new(), gate, None))
}

/// `a` is one address, `b` is two, `none` is known to have none.
pub fn resolution() -> Resolution {
    let mut resolution = Resolution::default();
    resolution.insert("a".into(), 80, vec!["192.0.2.1:80".parse().unwrap()]);
    let two = ["192.0.2.3:80", "192.0.2.2:80", "192.0.2.3:80"];
    resolution.insert("b".into(), 80, two.iter().map(|address| address.parse().unwrap()).collect());
    resolution.insert("none".into(), 80, Vec::new());
    resolution
}

fn build(config: &Config, previous: Option<&RoutingTable>) -> Built {
    build_with(config, Vec::new(), previous)
}

fn build_with(config: &Config, listeners: Vec<Arc<Listener>>, previous: Option<&RoutingTable>) -> Built {
    let (metrics, now) = (Arc::new(Metrics::new().unwrap()), Now { millis: 1, unix_ms: 1 });
    RoutingTable::build(config, &resolution(), &Adjustments::default(), listeners, &metrics, previous, now)
}

/// The only pool of a table with `members`, and what was warned of.
fn built(balance: Balance, members: Vec<config::Member>) -> (Arc<Pool>, Vec<String>) {
    let built = build(&config(vec![pool("web", balance, members)]), None);
    (Arc::clone(&built.table.pools[0]), built.warnings.iter().map(Warning::to_string).collect())
}

pub fn labels(pool: &Pool) -> Vec<String> {
    pool.view().backends.iter().map(|backend| backend.label.to_string()).collect()
}

#[test]
fn each_listener_has_its_pool() {
    let config = config(vec![pool("api", Balance::Random, Vec::new()), pool("web", Balance::Random, Vec::new())]);
    let listeners = vec![listener("z", "web"), listener("m", "api"), listener("a", "web")];
    let table = build_with(&config, listeners, None).table;
    let route = |listener: &str| {
        let (listener, first) = (ListenerName::new(listener), FirstBytes::default());
        match table.route(&Facts::new(&listener, ClientAddr::Unix, &first)) {
            Verdict::To { pool, .. } => Some(pool.name.to_string()),
            Verdict::NoRoute => None,
            _ => panic!("it has a pool of its own"),
        }
    };
    assert_eq!(["z", "m", "a"].map(route), ["web", "api", "web"].map(|pool| Some(pool.to_owned())));
    assert_eq!(route("retired"), None);
    assert_eq!(table.pool(&PoolName::new("api")).map(|pool| pool.name.as_str()), Some("api"));
    assert!(table.pool(&PoolName::new("other")).is_none());
}

/// A client that is asked for more, be it for its backend alone, makes no work for the rules that are behind it.
#[test]
fn a_rule_that_was_ruled_out_is_not_asked_again() {
    let config = config(vec![pool("api", Balance::Random, Vec::new()), pool("web", Balance::Random, Vec::new())]);
    let route = |name: &str, address: [u8; 4], to: &str| config::Route {
        name: name.into(),
        when: Conditions { source: vec![Cidr::of(address.into(), 32)], ..Conditions::default() },
        to: Destination::Pool(PoolName::new(to)),
    };
    let mut wanted = config::Listener::new(ListenerName::new("a"), Vec::new(), PoolName::new("web"));
    wanted.routes = vec![route("one", [10, 0, 0, 1], "api"), route("two", [10, 0, 0, 2], "web")];
    let metrics = Arc::new(Metrics::new().unwrap());
    let (gate, handles) = (Gate::open(&wanted.name, 1, &metrics), metrics.listener(&wanted.name, &[]));
    let listeners = vec![Arc::new(Listener::new(wanted, handles, Vec::new(), gate, None))];
    let table = build_with(&config, listeners, None).table;
    let (listener, first) = (ListenerName::new("a"), FirstBytes::default());
    let facts = |last, passed| {
        let client = ClientAddr::tcp(([10, 0, 0, last], 1).into());
        Facts { passed, ..Facts::new(&listener, client, &first) }
    };
    let taken = |last, passed| match table.route(&facts(last, passed)) {
        Verdict::To { rule, passed, .. } => (rule.name.to_string(), passed),
        _ => panic!("it leads to a pool"),
    };
    let asked = |last, passed| taken(last, passed).0;
    let begin = Passed::default();
    assert_eq!([1, 2, 3].map(|last| asked(last, begin)), ["one", "two", config::DEFAULT_RULE]);
    let (second, none) = (taken(2, begin).1, taken(3, begin).1);
    assert_eq!([1, 2, 3].map(|last| asked(last, second)), [config::DEFAULT_RULE, "two", config::DEFAULT_RULE]);
    assert_eq!([1, 2, 3].map(|last| asked(last, none)), [config::DEFAULT_RULE; 3]);
}

#[test]
fn a_host_name_is_as_many_backends_as_it_has_addresses() {
    let members = vec![member(host("b"), None), member(endpoint("192.0.2.9:80"), None), member(host("a"), Some("one"))];
    let (pool, warnings) = built(Balance::RoundRobin, members);
    assert_eq!(labels(&pool), ["192.0.2.2:80", "192.0.2.3:80", "192.0.2.9:80", "one"]);
    assert!(warnings.is_empty());

    let (pool, _) = built(Balance::RoundRobin, vec![member(host("b"), Some("two"))]);
    assert_eq!(labels(&pool), ["two/192.0.2.2:80", "two/192.0.2.3:80"]);
}

#[test]
fn what_was_not_meant_is_left_out_and_said() {
    let members = vec![
        member(host("a"), None),
        member(endpoint("192.0.2.1:80"), None),
        member(host("none"), None),
        member(host("unknown"), None),
    ];
    let (pool, warnings) = built(Balance::RoundRobin, members);
    assert_eq!(labels(&pool), ["192.0.2.1:80"]);
    assert_eq!(
        warnings,
        [
            "lb.toml: 192.0.2.1:80: 192.0.2.1:80 is already in the pool, from a:80; it is left out here",
            "lb.toml: none:80: none:80 has no address; the pool goes without it",
            "lb.toml: unknown:80: unknown:80 has no address; the pool goes without it",
        ]
    );
}

#[test]
fn a_failover_host_with_several_addresses_is_a_group_of_its_own() {
    let group = Group::Any((0..4).map(Group::Member).collect());
    let members = vec![
        member(endpoint("192.0.2.8:80"), None),
        member(host("b"), None),
        member(host("none"), None),
        member(endpoint("192.0.2.9:80"), None),
    ];
    let (pool, _) = built(Balance::Failover(group), members);
    let view = pool.view();
    for seed in 0..20 {
        let (mut tried, mut order, rng) = (Tried::default(), Vec::new(), &mut Rng::from_seed(seed));
        while let Some(slot) = pool.claim(&tried, 1, rng) {
            tried.push(slot.id);
            order.push(view.backends.iter().position(|backend| backend.id == slot.id).unwrap());
        }
        let at = |index: usize| order.iter().position(|&other| other == index).unwrap();
        assert_eq!(order.len(), 4);
        assert_eq!(at(1).abs_diff(at(2)), 1, "the two of one name are tried one after the other: {order:?}");
    }
}

#[test]
fn a_failover_of_names_without_addresses_has_nobody() {
    let group = Group::Any(vec![Group::Any(vec![Group::Member(0)])]);
    let (pool, warnings) = built(Balance::Failover(group), vec![member(host("none"), None)]);
    assert!(pool.claim(&Tried::default(), 1, &mut Rng::from_seed(1)).is_none());
    assert_eq!(warnings.len(), 1);
}

#[test]
fn the_next_table_keeps_what_stays_in_its_pool() {
    let members = || vec![member(endpoint("192.0.2.1:80"), None), member(endpoint("192.0.2.2:80"), None)];
    let first = build(&config(vec![pool("web", Balance::RoundRobin, members())]), None).table;
    let before = first.pools[0].view();
    before.backends[0].set_health(Health::Down, 9);
    let mut moved = members();
    moved[1].address = endpoint("192.0.2.3:80");
    let pools = vec![pool("api", Balance::RoundRobin, members()), pool("web", Balance::Random, moved)];
    let second = build(&config(pools), Some(&first)).table;
    assert_eq!((first.generation, second.generation), (1, 2));
    let (api, web) = (second.pools[0].view(), second.pools[1].view());
    assert_eq!((web.backends[0].id, web.backends[0].health()), (before.backends[0].id, (Health::Down, 9)));
    assert_ne!(web.backends[1].id, before.backends[1].id);
    assert_ne!(api.backends[0].id, before.backends[0].id, "another pool, another backend");
    assert!(api.backends[0].is_up());
}

#[test]
fn names_are_wanted_once() {
    let members = || vec![member(host("b"), None), member(endpoint("192.0.2.1:80"), None), member(host("a"), None)];
    let config = config(vec![pool("web", Balance::Random, members()), pool("api", Balance::Random, members())]);
    let wanted = Resolution::wanted(&config);
    assert_eq!(wanted, [("b".into(), 80), ("a".into(), 80)]);
}

#[test]
fn a_listener_counts_its_broken_sockets() {
    let listener = listener("web", "web");
    let (one, two) = (listener.mark_broken(), listener.mark_broken());
    assert_eq!((listener.broken(), listener.metrics.up.get()), (2, Some(0)));
    drop(one);
    assert_eq!((listener.broken(), listener.metrics.up.get()), (1, Some(0)));
    drop(two);
    assert_eq!((listener.broken(), listener.metrics.up.get()), (0, Some(1)));
}

#[test]
fn a_pool_stays_the_same_one_unless_more_than_its_members_changes() {
    let members = |names: &[&str]| -> Vec<config::Member> {
        names.iter().map(|name| member(endpoint(&format!("192.0.2.9:{}", 80 + name.len())), Some(name))).collect()
    };
    let web = |names: &[&str]| pool("web", Balance::RoundRobin, members(names));
    let first = build(&config(vec![web(&["a", "bb"]), pool("api", Balance::Random, Vec::new())]), None).table;
    let web_pool = &first.pools[0];
    let backend = Arc::clone(&web_pool.view().backends[1]);
    backend.set_health(Health::Down, 77);
    let slot = backend.claim().unwrap();

    // The same config, and one that differs elsewhere: nothing moves.
    let same = build(&config(vec![web(&["a", "bb"]), pool("new", Balance::Random, Vec::new())]), Some(&first)).table;
    assert!(Arc::ptr_eq(&same.pools[0], web_pool) && Arc::ptr_eq(&same.pools[0].view(), &web_pool.view()));
    assert!(first.pools[1].is_retired() && first.pools[1].successor().is_none());

    // Another member, weight, tier and policy: the same pool, with another view.
    let mut moved = web(&["bb", "ccc"]);
    (moved.balance, moved.members[0].weight, moved.members[0].tier) = (Balance::LeastConnections, 7, 3);
    moved.members[0].max_connections = Some(5);
    let other = build(&config(vec![moved.clone()]), Some(&same)).table;
    assert!(Arc::ptr_eq(&other.pools[0], web_pool) && !web_pool.is_retired());
    assert_eq!(labels(web_pool), ["bb", "ccc"]);
    let view = web_pool.view();
    assert_eq!((view.backends[0].id, view.weights[0], view.tiers[0]), (backend.id, 7, 3));
    assert_eq!((backend.health(), backend.active(), backend.max_active()), ((Health::Down, 77), 1, Some(5)));

    // Another time-out: another pool, with the same backends.
    moved.connect.timeout *= 2;
    let last = build(&config(vec![moved]), Some(&other)).table;
    assert!(!Arc::ptr_eq(&last.pools[0], web_pool));
    assert!(web_pool.successor().is_some_and(|next| Arc::ptr_eq(&next, &last.pools[0])));
    assert_eq!(last.pools[0].view().backends[0].id, backend.id);
    assert_eq!((backend.health(), backend.active()), ((Health::Down, 77), 1));
    drop(slot);
    assert_eq!(backend.active(), 0);
}
