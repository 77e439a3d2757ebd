//! Each kind of adjustment beside configs that make a difference to it, and beside such as make none.

use super::*;
use crate::config::{AdminState, Level};
use std::collections::BTreeMap;

/// A config of one pool `p` over these backends, and what else it has.
fn config(backends: &str, more: &str) -> Config {
    let text = format!(
        "{more}\n[listeners.web]\nbind = \"127.0.0.1:21500\"\npool = \"p\"\n[pools.p]\nbackends = [{backends}]\n"
    );
    Config::parse("c.toml", text.as_bytes()).unwrap_or_else(|wrong| panic!("{wrong}")).config
}

const ONE: &str = "\"10.0.0.1:80\"";

fn of_pool(own: PoolAdjustments) -> Adjustments {
    Adjustments { pools: BTreeMap::from([("p".to_owned(), own)]), ..Adjustments::default() }
}

fn said(label: &str, said: Adjustment) -> Adjustments {
    of_pool(PoolAdjustments { backends: BTreeMap::from([(label.to_owned(), said)]), ..PoolAdjustments::default() })
}

fn added(address: &str, name: Option<&str>, weight: u16) -> AddedBackend {
    AddedBackend { address: address.to_owned(), name: name.map(str::to_owned), weight, tier: 0 }
}

/// What is told, as `becomes name: says`.
fn told(from: &Config, to: &Config, adjustments: &Adjustments) -> Vec<(Becomes, String)> {
    let none = Resolution::default();
    let all = adjusted((from, &none), (to, &none), adjustments);
    all.into_iter().map(|told| (told.becomes, format!("{}: {}", told.name, told.says))).collect()
}

fn one(from: &Config, to: &Config, adjustments: &Adjustments) -> (Becomes, String) {
    let mut all = told(from, to, adjustments);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(told(from, from, adjustments), [], "without another config nothing becomes of it");
    all.remove(0)
}

fn weight(weight: u16) -> Adjustment {
    Adjustment { weight: Some(weight), ..Adjustment::default() }
}

#[test]
fn a_weight_that_was_set_hides_the_one_of_the_config() {
    let heavier = config("{ address = \"10.0.0.1:80\", weight = 3 }", "");
    let (becomes, says) = one(&config(ONE, ""), &heavier, &said("10.0.0.1:80", weight(5)));
    assert_eq!(becomes, Becomes::Stays);
    assert_eq!(says, "10.0.0.1:80: weight 5 was set at run time and stays, whatever the config says");
    let drained = Adjustment { state: Some(AdminState::Draining), ..Adjustment::default() };
    assert_eq!(told(&config(ONE, ""), &heavier, &said("10.0.0.1:80", drained)), [], "it hides nothing");
}

#[test]
fn what_was_said_of_a_backend_that_goes_is_kept_and_counts_when_it_is_back() {
    let (with, without) = (config(&format!("{ONE}, \"10.0.0.2:80\""), ""), config(ONE, ""));
    let adjustments = said("10.0.0.2:80", Adjustment { state: Some(AdminState::Disabled), ..weight(2) });
    let (becomes, says) = one(&with, &without, &adjustments);
    assert_eq!((becomes, says.contains("disabled, weight 2 is kept")), (Becomes::Rests, true), "{says}");
    assert_eq!(one(&without, &with, &adjustments).0, Becomes::Applies);
    let moved = |port: u16| config(&format!("{{ name = \"a\", address = \"10.0.0.2:{port}\" }}"), "");
    let (becomes, says) = one(&moved(80), &moved(81), &said("a", weight(2)));
    assert_eq!((becomes, says.contains("counts for the one at 10.0.0.2:81")), (Becomes::Applies, true), "{says}");
    let named = config("{ name = \"a\", address = \"10.0.0.1:80\" }", "");
    assert_eq!(one(&without, &named, &said("10.0.0.1:80", weight(2))).0, Becomes::Rests, "it is called otherwise");
}

#[test]
fn of_an_added_backend_it_is_told_that_the_config_has_it_or_can_not() {
    let plain = config(ONE, "");
    let own = |one: AddedBackend| of_pool(PoolAdjustments { added: vec![one], ..PoolAdjustments::default() });
    let has = config(&format!("{ONE}, {{ name = \"b\", address = \"10.0.0.2:80\", weight = 7 }}"), "");
    let (becomes, says) = one(&plain, &has, &own(added("10.0.0.2:80", None, 4)));
    assert_eq!(becomes, Becomes::TakenOver);
    assert_eq!(says, "10.0.0.2:80: was added at run time with weight 4: the config has it, as b with weight 7");
    let (becomes, says) = one(&plain, &has, &own(added("10.0.0.9:80", Some("b"), 1)));
    assert_eq!(becomes, Becomes::LeftOut);
    assert!(says.ends_with("left out: there is another backend called \"b\" in the pool"), "{says}");
    assert_eq!(one(&has, &plain, &own(added("10.0.0.9:80", Some("b"), 1))).0, Becomes::Applies);
    assert_eq!(told(&plain, &config(&format!("{ONE}, \"10.0.0.3:80\""), ""), &own(added("10.0.0.2:80", None, 4))), []);
    // What was said of it goes on under the name that it has in the config.
    let mut both = own(added("10.0.0.2:80", None, 4));
    both.pools.get_mut("p").unwrap().backends.insert("10.0.0.2:80".to_owned(), weight(9));
    let (becomes, says) = one(&plain, &has, &both);
    assert_eq!(
        (becomes, says.ends_with("weight 7, and weight 9, as was said at run time")),
        (Becomes::TakenOver, true)
    );
}

#[test]
fn what_was_removed_stays_out() {
    let two = config(&format!("{ONE}, \"10.0.0.2:80\""), "");
    let removed = of_pool(PoolAdjustments { removed: vec!["10.0.0.2:80".to_owned()], ..PoolAdjustments::default() });
    assert_eq!(one(&two, &config(ONE, ""), &removed).0, Becomes::Rests);
    let (becomes, says) = one(&config(ONE, ""), &two, &removed);
    assert_eq!(becomes, Becomes::Applies);
    assert!(says.ends_with("stays out: tidegate add p 10.0.0.2:80 brings it back"), "{says}");
    let heavy = config(&format!("{ONE}, {{ address = \"10.0.0.2:80\", weight = 9 }}"), "");
    assert_eq!(one(&two, &heavy, &removed).0, Becomes::Stays);
}

#[test]
fn the_line_that_brings_a_backend_back_has_it_as_the_config_has_it() {
    let path = "unix:/run/my app.sock";
    let more = config(&format!("{ONE}, {{ name = \"b\", address = \"{path}\", weight = 3, tier = 1 }}"), "");
    let removed = of_pool(PoolAdjustments { removed: vec!["b".to_owned()], ..PoolAdjustments::default() });
    let (_, says) = one(&config(ONE, ""), &more, &removed);
    assert!(says.ends_with(": tidegate add p 'unix:/run/my app.sock' --weight 3 --tier 1 brings it back"), "{says}");
}

#[test]
fn of_a_pool_or_a_listener_that_goes_all_is_kept() {
    let plain = config(ONE, "");
    let more = "[listeners.x]\nbind = \"127.0.0.1:21501\"\npool = \"x\"\n[pools.x]\nbackends = [\"10.0.0.7:80\"]\n";
    let both = config(ONE, more);
    let mut adjustments = Adjustments::default();
    let own = PoolAdjustments {
        backends: BTreeMap::from([("10.0.0.7:80".to_owned(), weight(3))]),
        added: vec![added("10.0.0.8:80", None, 1)],
        removed: Vec::new(),
    };
    adjustments.pools.insert("x".to_owned(), own);
    adjustments.listeners.insert("x".to_owned(), AdminState::Draining);
    let becomes = |from, to| told(from, to, &adjustments).into_iter().map(|(becomes, _)| becomes).collect::<Vec<_>>();
    assert_eq!(becomes(&both, &plain), [Becomes::Rests; 3]);
    assert_eq!(becomes(&plain, &both), [Becomes::Applies; 3]);
    assert_eq!(becomes(&both, &both), []);
    let moved = config(ONE, &more.replace("21501", "21502"));
    assert_eq!(becomes(&both, &moved), [Becomes::Stays]);
    let level = Adjustments { log_level: Some(Level::Debug), ..Adjustments::default() };
    let (becomes, says) = one(&plain, &config(ONE, "[log]\nlevel = \"warn\""), &level);
    assert_eq!((becomes, says.starts_with("log.level: debug was set")), (Becomes::Stays, true), "{says}");
}
