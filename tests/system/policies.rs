//! The policies that look at load: least connections, two at random, and the times of connects and first bytes.

use crate::kit::{Backend, Config, Conn, Poison, Tidegate, Toxic, Way, eventually, eventually_eq};

fn pool(backends: &[(&Backend, u16)], policy: &str) -> Config {
    let entry = |(backend, weight): &(&Backend, u16)| format!("{{ address = \"{backend}\", weight = {weight} }}");
    let list: Vec<String> = backends.iter().map(entry).collect();
    Config::with_pool(&format!("backends = [{}]\nbalance = \"{policy}\"", list.join(", ")))
}

/// Sessions that stand.
fn held(tidegate: &Tidegate, count: usize) -> Vec<Conn> {
    let one = |_| {
        let mut client = tidegate.connect();
        client.send("ping");
        client.expect("ping");
        client
    };
    (0..count).map(one).collect()
}

fn active(tidegate: &Tidegate, backends: &[&Backend]) -> Vec<u64> {
    backends.iter().map(|backend| tidegate.backend_status(backend)["active"].as_u64().unwrap()).collect()
}

#[test]
fn least_connections_fills_up_who_has_fewer_by_weight() {
    let (a, b) = (Backend::echo(), Backend::echo());
    let tidegate = Tidegate::start(pool(&[(&a, 1), (&b, 1)], "least_connections"));
    let clients = held(&tidegate, 10);
    assert_eq!(active(&tidegate, &[&a, &b]), [5, 5]);
    drop(clients);
    tidegate.until_idle();
    drop(tidegate);

    let tidegate = Tidegate::start(pool(&[(&a, 3), (&b, 1)], "least_connections"));
    let _clients = held(&tidegate, 40);
    assert_eq!(active(&tidegate, &[&a, &b]), [30, 10]);
    assert_eq!(tidegate.pool_status()["balance"], "least_connections");
}

#[test]
fn least_connections_spreads_ties() {
    let backends = [Backend::echo(), Backend::echo(), Backend::echo()];
    let tidegate = Tidegate::start(pool(&backends.each_ref().map(|backend| (backend, 1)), "least_connections"));
    // One at a time: at each choice nobody has any.
    for _ in 0..60 {
        drop(held(&tidegate, 1));
        tidegate.until_idle();
    }
    let totals = backends.each_ref().map(|backend| tidegate.backend_status(backend)["total"].as_u64().unwrap());
    assert!(totals.iter().all(|total| *total >= 5), "{totals:?}");
}

#[test]
fn power_of_two_keeps_the_difference_small() {
    let backends = [Backend::echo(), Backend::echo(), Backend::echo(), Backend::echo()];
    let tidegate = Tidegate::start(pool(&backends.each_ref().map(|backend| (backend, 1)), "power_of_two"));
    let _clients = held(&tidegate, 80);
    let active = active(&tidegate, &backends.each_ref());
    // One at random alone would differ by 13 on average; two rarely by more than 3.
    assert!(active.iter().all(|count| (14..=26).contains(count)), "{active:?}");
}

#[test]
fn power_of_two_follows_the_weights() {
    let (a, b) = (Backend::echo(), Backend::echo());
    let tidegate = Tidegate::start(pool(&[(&a, 3), (&b, 1)], "power_of_two"));
    let _clients = held(&tidegate, 80);
    let active = active(&tidegate, &[&a, &b]);
    assert!((45..=70).contains(&active[0]), "{active:?}");
}

#[test]
fn peak_ewma_avoids_who_answers_late() {
    let (slow, fast) = (Backend::echo(), Backend::echo());
    let toxic = Toxic::before(&slow.addr);
    toxic.poison(Way::Back, Poison::Delay(std::time::Duration::from_millis(500)));
    let list = format!("backends = [\"{toxic}\", \"{fast}\"]\nbalance = \"peak_ewma\"");
    let tidegate = Tidegate::start(Config::with_pool(&list));
    for _ in 0..60 {
        drop(held(&tidegate, 1));
    }
    tidegate.until_idle();
    let total = |backend: &str| tidegate.backend_status(backend)["total"].as_u64().unwrap();
    let (slow_total, fast_total) = (total(&toxic.to_string()), total(&fast.to_string()));
    assert!(slow_total * 3 < fast_total, "{slow_total} to the slow one, {fast_total} to the other");
}

#[test]
fn the_status_shows_the_load_that_they_look_at() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(pool(&[(&backend, 1)], "peak_ewma"));
    let load = || tidegate.backend_status(&backend)["load"].clone();
    assert_eq!(load()["active"], 0);
    for time in ["connect_ms", "answer_ms"] {
        assert!(load()[time].is_null(), "nothing was measured yet: {}", load());
    }
    let clients = held(&tidegate, 3);
    eventually_eq("three", &3, || load()["active"].as_u64().unwrap());
    for time in ["connect_ms", "answer_ms"] {
        eventually("its times are known", || load()[time].as_f64().is_some_and(|ms| ms > 0.0));
    }
    drop(clients);
    eventually_eq("none", &0, || load()["active"].as_u64().unwrap());
}
