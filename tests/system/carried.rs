//! What survives a reload: the counts of limits, those that wait and are held, and what becomes of them when that which
//! they wait for goes away.

use crate::kit::{Backend, Config, Conn, End, Listening, Refusing, Tidegate, eventually, eventually_eq};
use crate::reload::reload;
use serde_json::Value;

fn refused(tidegate: &Tidegate) -> bool {
    tidegate.connect().rest().end == End::Rst
}

#[test]
fn a_limit_that_changes_counts_those_who_are_there() {
    let backend = Backend::echo();
    let with = |lines: &str| Config::over([&backend]).listener(lines);
    let tidegate = Tidegate::start(with(""));
    let mut held: Vec<Conn> = (0..3).map(|_| tidegate.echoed()).collect();
    let connections = |scope: &str| tidegate.metrics().one("tidegate_limit_connections", &[("scope", scope)]) as u64;
    // New, and below what is there: nobody is cut, and nobody new comes.
    reload(&tidegate, with("max_connections = 2"));
    assert_eq!(connections("listener"), 3);
    assert!(refused(&tidegate));
    held.iter_mut().for_each(Conn::speak);
    reload(&tidegate, with("max_connections = 4"));
    held.push(tidegate.echoed());
    assert!(refused(&tidegate));
    drop(held.drain(..2));
    eventually_eq("two have gone", &2, || connections("listener"));
    reload(&tidegate, with("max_connections = 2\nreserved_connections = 1"));
    assert!(refused(&tidegate));
    held.clear();
    eventually_eq("all have gone", &0, || connections("listener"));
    tidegate.echoed();
}

#[test]
fn the_maximum_of_the_process_changes_with_a_reload() {
    let backend = Backend::echo();
    let with = |most: usize, more: &str| {
        let runtime = format!("workers = 2\nmax_connections = {most}");
        Config::over([&backend]).only_runtime(&runtime).listener(more).listener("overload = \"reset\"")
    };
    let tidegate = Tidegate::start(with(2, "reserved_connections = 2"));
    let mut held = vec![tidegate.echoed(), tidegate.echoed()];
    assert!(refused(&tidegate));
    reload(&tidegate, with(4, ""));
    held.extend([tidegate.echoed(), tidegate.echoed()]);
    assert!(refused(&tidegate));
    reload(&tidegate, with(3, "reserved_connections = 1"));
    held.iter_mut().for_each(Conn::speak);
    assert!(refused(&tidegate));
    drop(held.pop());
    eventually("one has gone", || tidegate.sessions() == 3);
    assert!(refused(&tidegate), "it fits, and nobody more");
    drop(held.pop());
    eventually("another one has gone", || tidegate.sessions() == 2);
    held.push(tidegate.echoed());
    let max = [("scope", "process")];
    assert_eq!(tidegate.metrics().one("tidegate_limit_max_connections", &max) as u64, 3);
    assert_eq!(tidegate.metrics().one("tidegate_max_connections", &[]) as u64, 3);
}

/// A backend with room for one, which is taken, and a client that waits for it.
fn one_that_waits(backend: &Listening) -> (Tidegate, [Conn; 2], Conn) {
    let tidegate = Tidegate::start(full(&[backend], "max_wait = \"1h\""));
    let first = tidegate.connect();
    let served = backend.accept();
    let second = tidegate.connect();
    eventually_eq("it waits", &1, || tidegate.count("tidegate_pool_queue_waiting"));
    (tidegate, [first, served], second)
}

fn full(backends: &[&Listening], queue: &str) -> Config {
    Config::over(backends.iter().map(|backend| &backend.addr))
        .pool("backend_max_connections = 1")
        .more(&format!("[pools.web.queue]\n{queue}"))
}

/// With other members, another policy and another pool in its place, those that stay are who they were.
#[test]
fn what_is_known_of_backends_that_stay_is_known_after_a_reload_too() {
    let (good, slow, gone) = (Backend::echo(), Backend::echo(), Refusing::new());
    // Its probes, which say nothing, find nothing wrong.
    let bad = Backend::new(|mut conn| match conn.try_receive(4) {
        Some(_) => conn.reset(),
        None => drop(conn),
    });
    let names = [good.to_string(), bad.to_string(), gone.to_string(), slow.to_string()];
    let config = |weight: u32, line: &str| {
        let list: Vec<String> =
            names.iter().map(|name| format!("{{ address = \"{name}\", weight = {weight} }}")).collect();
        let lines = format!("slow_start = \"300s\"\nbackends = [{}]\n{line}", list.join(", "));
        let ejection = "consecutive_failures = 1\nbase_time = \"300s\"\nmax_ejected = \"100%\"";
        Config::with_pool(&lines).pool("panic_threshold = \"0%\"").ejection(ejection).health("interval = \"300ms\"")
    };
    let tidegate = Tidegate::start(config(1, ""));
    eventually("a client has found out", || {
        let mut client = tidegate.connect();
        // It is reset, or hears an echo.
        let _ = (client.try_send("ping"), client.try_receive(4));
        tidegate.state(&bad) == "ejected"
    });
    eventually("nobody is there", || {
        let status = tidegate.backend_status(&gone);
        status["state"] == "down" && status["last_error"]["text"].is_string()
    });
    for state in ["disabled", "enabled"] {
        let body = format!("{{\"state\": \"{state}\"}}");
        assert_eq!(tidegate.post(&format!("/pools/web/backends/{slow}"), &body).status, 200);
    }
    eventually("it has begun slowly", || tidegate.state(&slow) == "up" && tidegate.share(&slow) > 0.105);
    tidegate.until_idle();
    let _session = tidegate.echoed();

    let known = || {
        names.clone().map(|name| {
            let status = tidegate.backend_status(name);
            let found = [&status["state"], &status["ejection"]["times"], &status["last_error"]["text"]];
            [&found[..], &[&status["active"], &status["total"]]].concat().into_iter().cloned().collect::<Vec<Value>>()
        })
    };
    let (before, mut share) = (known(), tidegate.share(&slow));
    assert_eq!(before.clone().map(|known| known[0].clone()), ["up", "ejected", "down", "up"]);
    for (weight, line) in [(2, ""), (2, "balance = \"random\""), (3, "max_lifetime = \"1h\""), (1, "")] {
        reload(&tidegate, config(weight, line));
        assert_eq!(known(), before, "{line}");
        assert_eq!(tidegate.backend_status(&slow)["weight"], weight);
        let goes_on = tidegate.share(&slow);
        assert!((share..0.9).contains(&goes_on), "{share} before, then {goes_on}");
        share = goes_on;
    }
}

#[test]
fn who_waits_in_a_queue_gets_a_place_that_a_new_config_brings() {
    // Another member alone; and another member of a pool that is another one otherwise, too.
    for other in ["", "attempts = 5"] {
        let (old, new) = (Listening::new(), Listening::new());
        let (tidegate, _first, mut second) = one_that_waits(&old);
        reload(&tidegate, full(&[&old, &new], "max_wait = \"1h\"").connect(other));
        let mut served = new.accept();
        second.send("hello");
        served.expect("hello");
        served.send("bye");
        second.expect("bye");
        eventually_eq("nobody waits", &0, || tidegate.count("tidegate_pool_queue_waiting"));
    }
}

#[test]
fn who_waits_for_a_pool_that_goes_hears_it_at_once_and_keeps_its_place_where_only_the_queue_goes() {
    let (old, other) = (Listening::new(), Backend::echo());
    let (tidegate, [mut first, mut served], mut second) = one_that_waits(&old);
    let elsewhere = format!("[pools.other]\nbackends = [\"{other}\"]\nhealth.probe = \"none\"\n");
    let without = Config::over([&old.addr]).pool("backend_max_connections = 1");
    reload(&tidegate, without.connect("attempts = 5"));
    first.send("ping");
    served.expect("ping");
    drop((first, served));
    second.send("hello");
    let mut served = old.accept();
    served.expect("hello");
    drop((second, served));

    let (tidegate, _first, mut second) = one_that_waits(&old);
    let text = Config::over([&old.addr]).more(&elsewhere).to_string();
    let (listeners, pools) = text.split_once("[pools.web]").unwrap();
    let (_, elsewhere) = pools.split_once("[pools.other]").unwrap();
    reload(&tidegate, format!("{}[pools.other]{elsewhere}", listeners.replace("pool = \"web\"", "pool = \"other\"")));
    second.expect_end(End::Rst);
    eventually_eq("for that reason", &1, || tidegate.closed("no_backend"));
    tidegate.echoed();
}

#[test]
fn who_is_held_stays_so_and_is_let_go_where_nobody_is_held_any_more() {
    let (dead, living) = (Refusing::new(), Backend::echo());
    let hold = "[pools.web.hold]\nmax_wait = \"1h\"";
    let over = |address: String| Config::over([address]).connect("attempts = 1");
    let tidegate = Tidegate::start(Config::over([&dead.addr]).more(hold));
    let now_held = || tidegate.count("tidegate_pool_held");
    let mut clients: Vec<Conn> = (0..2).map(|_| tidegate.connect()).collect();
    for client in &mut clients {
        client.send("ping");
    }
    eventually_eq("they are held", &2, now_held);
    reload(&tidegate, over(dead.addr.to_string()).more(hold));
    assert_eq!(now_held(), 2);
    reload(&tidegate, over(living.to_string()).more(hold));
    for client in &mut clients {
        client.expect("ping");
    }
    drop(clients);

    reload(&tidegate, over(dead.addr.to_string()).more(hold));
    let mut client = tidegate.connect();
    eventually_eq("it is held", &1, now_held);
    reload(&tidegate, over(dead.addr.to_string()));
    client.expect_end(End::Rst);
    tidegate.until_idle();
}

/// Of a backend, and of a whole pool: a mistake, and the way back.
#[test]
fn what_a_rollback_brings_back_has_the_sessions_that_it_had() {
    let (one, two) = (Backend::echo(), Backend::named("two"));
    let with = |backend: &Backend, pool: &str| {
        let text = Config::over([backend]).pool("backend_max_connections = 1").to_string();
        text.replace("[pools.web", &format!("[pools.{pool}")).replace("pool = \"web\"", &format!("pool = \"{pool}\""))
    };
    for other in ["web", "another"] {
        let tidegate = Tidegate::start(with(&one, "web"));
        let mut client = tidegate.echoed();
        reload(&tidegate, with(&two, other));
        assert_eq!(tidegate.connect().line(), "two");
        let back = tidegate.post("/rollback", "");
        assert_eq!(back.status, 200, "{back:?}");
        assert_eq!(tidegate.backend_status(&one)["active"], 1, "{other}");
        assert_eq!(tidegate.connect().rest().end, End::Rst, "there is no second place on it");
        client.speak();
        let body = r#"{"state": "draining", "deadline": "1s"}"#;
        let drained = tidegate.post(&format!("/pools/web/backends/{one}"), body);
        assert_eq!(drained.status, 200, "{drained:?}");
        client.expect_cut();
        eventually("it is gone everywhere", || tidegate.backend_status(&one)["active"] == 0);
    }
}
