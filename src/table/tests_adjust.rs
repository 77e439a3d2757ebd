//! What an operator has changed, on top of configs that change beneath it.

use super::tests::{config, endpoint, host, labels, member, pool, resolution};
use super::{Resolution, RoutingTable, Warning, settled};
use crate::clock::Now;
use crate::config::{
    AddedBackend, Adjustment, Adjustments, AdminState, Balance, Config, Group, HealthOverride, Member, PoolAdjustments,
};
use crate::metrics::Metrics;
use crate::pool::Pool;
use std::sync::Arc;

fn build(config: &Config, adjustments: &Adjustments, previous: Option<&RoutingTable>) -> (RoutingTable, Vec<String>) {
    let (metrics, now) = (Arc::new(Metrics::new().unwrap()), Now { millis: 1, unix_ms: 1 });
    let built = RoutingTable::build(config, &resolution(), adjustments, Vec::new(), &metrics, previous, now);
    (built.table, built.warnings.iter().map(Warning::to_string).collect())
}

fn of_web(own: PoolAdjustments) -> Adjustments {
    Adjustments { pools: [("web".to_owned(), own)].into(), ..Adjustments::default() }
}

fn added(address: &str, name: Option<&str>, weight: u16) -> AddedBackend {
    AddedBackend { address: address.to_owned(), name: name.map(str::to_owned), weight, tier: 0 }
}

fn web(balance: Balance, members: &[(&str, &str)]) -> Config {
    let members = members.iter().map(|(address, name)| member(endpoint(address), Some(name)));
    config(vec![pool("web", balance, members.collect())])
}

fn states(pool: &Pool) -> Vec<String> {
    let view = pool.view();
    let one = |index: usize| {
        format!("{} {} {}", view.backends[index].label, view.weights[index], view.backends[index].state())
    };
    (0..view.backends.len()).map(one).collect()
}

const A: (&str, &str) = ("192.0.2.10:80", "a");
const B: (&str, &str) = ("192.0.2.11:80", "b");
const C: (&str, &str) = ("192.0.2.12:80", "c");

#[test]
fn what_was_changed_stands_on_top_of_every_config_that_follows() {
    let said = |state, weight, health| Adjustment { state, weight, health };
    let adjustments = of_web(PoolAdjustments {
        backends: [
            ("a".to_owned(), said(Some(AdminState::Draining), Some(7), None)),
            ("c".to_owned(), said(None, Some(9), Some(HealthOverride::Down))),
            ("d".to_owned(), said(Some(AdminState::Disabled), None, None)),
        ]
        .into(),
        added: vec![added("192.0.2.13:80", Some("d"), 4)],
        removed: vec!["b".to_owned()],
    });
    let (first, warnings) = build(&web(Balance::RoundRobin, &[A, B]), &adjustments, None);
    assert_eq!(states(&first.pools[0]), ["a 7 draining", "d 4 disabled"]);
    assert!(warnings.is_empty(), "{warnings:?}");
    // Names that the config doesn't have count once it has them.
    let id = |table: &RoutingTable, at: usize| table.pools[0].view().backends[at].id;
    let before = (id(&first, 0), id(&first, 1));
    let (second, _) = build(&web(Balance::RoundRobin, &[C, A]), &adjustments, Some(&first));
    assert_eq!(states(&second.pools[0]), ["c 9 forced_down", "a 7 draining", "d 4 disabled"]);
    assert_eq!(before, (id(&second, 1), id(&second, 2)), "who stays, stays who it is");
    let (third, _) = build(&web(Balance::RoundRobin, &[B, C]), &Adjustments::default(), Some(&second));
    assert_eq!(states(&third.pools[0]), ["b 1 up", "c 1 up"]);
}

#[test]
fn one_of_several_addresses_of_a_name_can_be_left_out() {
    let config = config(vec![pool("web", Balance::RoundRobin, vec![member(host("b"), Some("many"))])]);
    let removed = vec!["many/192.0.2.2:80".to_owned()];
    let (table, _) = build(&config, &of_web(PoolAdjustments { removed, ..PoolAdjustments::default() }), None);
    assert_eq!(labels(&table.pools[0]), ["many/192.0.2.3:80"]);
}

#[test]
fn an_added_backend_stands_beside_the_groups_of_a_target() {
    let group = Group::Any(vec![Group::Any(vec![Group::Member(0), Group::Member(1)]), Group::Member(2)]);
    let own = PoolAdjustments {
        added: vec![added("192.0.2.20:80", None, 1)],
        removed: vec!["b".to_owned()],
        ..PoolAdjustments::default()
    };
    let (table, _) = build(&web(Balance::Failover(group), &[A, B, C]), &of_web(own), None);
    let (left, one) = (Group::Any(vec![Group::Member(0), Group::Any(vec![])]), Group::Member);
    let expected = Balance::Failover(Group::Any(vec![left, one(1), one(2)]));
    assert_eq!(table.pools[0].view().members.balance, expected);
    assert_eq!(labels(&table.pools[0]), ["a", "c", "192.0.2.20:80"]);
}

#[test]
fn what_can_not_stand_beside_the_config_is_left_out_and_told() {
    let own = PoolAdjustments {
        added: vec![
            added("192.0.2.30:80", Some("a"), 1),
            added("example.com:80", None, 1),
            added("192.0.2.31:0", None, 1),
            added("192.0.2.32:80", None, 0),
            added("192.0.2.33:80", Some("good"), 1),
            added("192.0.2.33:80", Some("again"), 1),
        ],
        ..PoolAdjustments::default()
    };
    let (table, warnings) = build(&web(Balance::RoundRobin, &[A]), &of_web(own), None);
    assert_eq!(labels(&table.pools[0]), ["a", "good"]);
    assert_eq!(warnings.len(), 4, "{warnings:#?}");
    assert!(warnings[0].contains("192.0.2.30:80") && warnings[0].contains("called \"a\""), "{}", warnings[0]);
    assert!(warnings[1].contains("host name") && warnings[2].contains("port 0") && warnings[3].contains("weight 0"));
}

#[test]
fn what_the_file_has_taken_over_is_the_files() {
    let weighs = Adjustment { weight: Some(5), ..Adjustment::default() };
    let own = PoolAdjustments {
        backends: [("192.0.2.11:80".to_owned(), weighs), ("gone".to_owned(), weighs)].into(),
        added: vec![added(B.0, None, 3), added(C.0, Some("c"), 3), added(A.0, Some("a"), 2)],
        removed: vec!["a".to_owned()],
    };
    let adjustments = of_web(own.clone());
    let config = web(Balance::RoundRobin, &[A, B]);
    let after = settled(&config, &Resolution::default(), &adjustments);
    let expected = PoolAdjustments {
        backends: [("b".to_owned(), weighs), ("gone".to_owned(), weighs)].into(),
        added: vec![added(C.0, Some("c"), 3), added(A.0, Some("a"), 2)],
        removed: own.removed.clone(),
    };
    assert_eq!(after, of_web(expected), "b is in the file, a is removed from it, and c is nowhere else");
    let (table, warnings) = build(&config, &after, None);
    assert_eq!(states(&table.pools[0]), ["b 5 up", "c 3 up", "a 2 up"]);
    assert!(warnings.is_empty(), "{warnings:?}");
    // A pool that isn't there keeps what was said of it.
    let other = self::config(vec![pool("api", Balance::Random, Vec::<Member>::new())]);
    assert_eq!(settled(&other, &Resolution::default(), &adjustments), adjustments);
}
