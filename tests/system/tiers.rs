//! Tiers and backups: who joins when, who leaves when, and that a failover knows no borders.

use crate::kit::backend::naming;
use crate::kit::{Backend, Config, End, Refusing, Tidegate, eventually, eventually_eq};
use humantime::parse_rfc3339;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

const QUICK: &str = "interval = \"1s\"\nfast_interval = \"100ms\"\ntimeout = \"1s\"\nrise = 1\nfall = 1";

/// Backends with what stands behind their address in the config.
fn tiered<T: Display>(backends: &[(T, &str)]) -> Config {
    let entry = |(backend, more): &(T, &str)| format!("{{ address = \"{backend}\"{more} }}");
    let list: Vec<String> = backends.iter().map(entry).collect();
    Config::with_pool(&format!("backends = [{}]\nslow_start = \"0s\"", list.join(", "))).health(QUICK)
}

fn tier(tidegate: &Tidegate) -> u64 {
    tidegate.pool_status()["tier"].as_u64().unwrap()
}

fn names(tidegate: &Tidegate, count: usize) -> BTreeSet<String> {
    (0..count).map(|_| tidegate.connect().rest().text().trim_end().to_owned()).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn a_backup_serves_while_no_other_is_up_and_not_longer() {
    let (main, backup) = (Backend::named("main"), Backend::named("backup"));
    let (main_name, backup_name) = (main.to_string(), backup.to_string());
    let config = tiered(&[(&main, ""), (&backup, ", backup = true")]).pool("tier_hold = \"0s\"");
    let tidegate = Tidegate::start(config);
    eventually_eq("both are up", &2, || tidegate.count("tidegate_backend_up"));
    assert_eq!(names(&tidegate, 10), set(["main"]));
    assert_eq!(tier(&tidegate), 0);
    assert_eq!(tidegate.backend_status(&main_name)["tier"], 0);
    assert_eq!(tidegate.backend_status(&backup_name)["tier"], 1);

    let address = main.die();
    eventually_eq("it is down", &"down".to_owned(), || tidegate.state(&main_name));
    eventually_eq("the next tier has joined", &1, || tier(&tidegate));
    assert_eq!(tidegate.metrics().one("tidegate_pool_tier", &[("pool", "web")]) as u64, 1);
    assert_eq!(names(&tidegate, 6), set(["backup"]));
    assert!(!tidegate.pool_status()["panic"].as_bool().unwrap(), "one tier is well enough");

    let _main = Backend::at(&address, naming("main"));
    eventually_eq("it is back", &0, || tier(&tidegate));
    assert_eq!(names(&tidegate, 10), set(["main"]));
}

#[test]
fn a_tier_joins_when_fewer_than_min_available_are_left() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let (c, d) = (Backend::named("c"), Backend::named("d"));
    let backends = [(&a, ""), (&b, ", tier = 0"), (&c, ", tier = 1"), (&d, ", tier = 2")];
    let tidegate = Tidegate::start(tiered(&backends).pool("min_available = 2\ntier_hold = \"0s\""));
    eventually_eq("all are up", &4, || tidegate.count("tidegate_backend_up"));
    assert_eq!(names(&tidegate, 12), set(["a", "b"]));
    let b = b.die();
    eventually_eq("the next tier has joined", &1, || tier(&tidegate));
    assert_eq!(names(&tidegate, 12), set(["a", "c"]));
    let c = c.die();
    eventually_eq("and the next", &2, || tier(&tidegate));
    assert_eq!(names(&tidegate, 12), set(["a", "d"]));
    let _b = Backend::at(&b, naming("b"));
    eventually_eq("two are enough", &0, || tier(&tidegate));
    assert_eq!(names(&tidegate, 12), set(["a", "b"]));
    let _c = Backend::at(&c, naming("c"));
}

#[test]
fn f29_a_tier_that_has_joined_stays_for_a_while() {
    const HOLD: Duration = Duration::from_secs(3);
    let (main, backup) = (Backend::named("main"), Backend::named("backup"));
    let name = main.to_string();
    let config = tiered(&[(&main, ""), (&backup, ", backup = true")]).pool("tier_hold = \"3s\"");
    let tidegate = Tidegate::start(config);
    let moment = |value: &Value| parse_rfc3339(value.as_str().unwrap()).unwrap();
    // In the first three seconds of a process nothing has to be held.
    eventually("it has run for a while", || {
        let status = tidegate.status();
        moment(&status["now"]) > moment(&status["started"]) + HOLD + HOLD / 2
    });
    let address = main.die();
    eventually_eq("the next tier has joined", &1, || tier(&tidegate));
    let _main = Backend::at(&address, naming("main"));
    eventually_eq("it is back", &"up".to_owned(), || tidegate.state(&name));
    let since = moment(&tidegate.backend_status(&name)["since"]);
    eventually_eq("the backup has left", &0, || tier(&tidegate));
    let stayed = moment(&tidegate.status()["now"]).duration_since(since).unwrap();
    assert!(stayed + Duration::from_millis(10) >= HOLD, "only {stayed:?}");
    assert_eq!(names(&tidegate, 6), set(["main"]));
}

#[test]
fn f18_a_failover_goes_on_to_the_next_tier_before_any_verdict() {
    let dead = [Refusing::new(), Refusing::new()];
    let backup = Backend::named("backup");
    let [one, other] = dead.each_ref().map(ToString::to_string);
    let backends = [(one, ""), (other, ""), (backup.to_string(), ", backup = true")];
    let config = tiered(&backends).health("probe = \"none\"").ejection("consecutive_failures = \"off\"");
    let tidegate = Tidegate::start(config);
    for _ in 0..6 {
        assert_eq!(tidegate.connect().rest().text(), "backup\n");
    }
    assert_eq!(tier(&tidegate), 0, "nobody is believed to be down");
}

#[test]
fn an_ejected_backend_is_missing_in_its_tier() {
    let bad = Backend::new(|mut conn| {
        if conn.read(&mut [0; 64]).is_ok_and(|count| count > 0) {
            conn.reset();
        }
    });
    let backup = Backend::echo();
    let config = tiered(&[(&bad, ""), (&backup, ", backup = true")]);
    let tidegate = Tidegate::start(config.ejection("consecutive_failures = 2\nbase_time = \"300s\""));
    eventually_eq("both are up", &2, || tidegate.count("tidegate_backend_up"));
    for _ in 0..2 {
        let mut client = tidegate.connect();
        client.send("ping");
        client.expect_end(End::Rst);
    }
    eventually_eq("the next tier has joined", &1, || tier(&tidegate));
    let mut client = tidegate.connect();
    client.send("ping");
    client.expect("ping");
}
