//! The last part of a stop: what is left goes evenly and the longest idle first, whatever else comes in meanwhile.

use crate::kit::conn::transfer;
use crate::kit::wait::pace;
use crate::kit::{Backend, Config, Conn, End, Listening, Refusing, Silent, Tidegate, eventually, throughout};
use crate::stop::refuses;
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn f53_a_storm_of_other_signals_neither_hastens_a_stop_nor_keeps_it_from_its_end() {
    let listening = Listening::new();
    let config = Config::over([&listening]).runtime("lame_duck = \"300ms\"\ndrain_timeout = \"60s\"").logged();
    let mut tidegate = Tidegate::start(config);
    let (mut client, mut backend) = (tidegate.connect(), listening.accept());
    let over = AtomicBool::new(false);
    let storm = || {
        for signal in [Signal::HUP, Signal::PIPE].into_iter().cycle() {
            if over.load(Ordering::SeqCst) {
                return;
            }
            tidegate.signal(signal);
            pace(Duration::from_micros(200));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(storm);
        for round in 0..10 {
            transfer(&mut client, &mut backend, round * 100_000, 100_000);
        }
        tidegate.signal(Signal::TERM);
        tidegate.logged(&["stopping"]);
        eventually("connects are refused", || refuses(&tidegate.addr()));
        // It was begun before, and isn't cut.
        for round in 10..20 {
            transfer(&mut client, &mut backend, round * 100_000, 100_000);
        }
        over.store(true, Ordering::SeqCst);
    });
    client.finish();
    backend.expect_end(End::Fin);
    backend.finish();
    client.expect_end(End::Fin);
    let exit = tidegate.wait();
    assert_eq!((exit.code, exit.signal), (Some(0), None), "{exit:?}");
    assert!(!exit.stderr.contains("had not finished"), "{}", exit.stderr);
    let log = std::fs::read_to_string(tidegate.dir().join("access.log")).unwrap();
    assert!(log.contains("\"reason\":\"complete\""), "{log}");
}

/// With one worker, whose order is that of all.
#[test]
fn f52_what_is_left_goes_one_after_the_other_the_longest_idle_first() {
    const SESSIONS: usize = 240;
    let backend = Backend::echo();
    let runtime = "workers = 1\ndrain_timeout = \"60s\"\ndrain_spread = \"60s\"";
    let mut tidegate = Tidegate::start(Config::over([&backend]).only_runtime(runtime).logged());
    let mut clients: Vec<Conn> = (0..SESSIONS).map(|_| tidegate.connect()).collect();
    // Idle in another order than that of their beginning.
    for client in clients.iter_mut().rev() {
        client.speak();
        pace(Duration::from_millis(2));
    }
    let expected: Vec<String> = clients.iter().rev().map(|client| client.local().to_string()).collect();
    tidegate.signal(Signal::TERM);
    // Some four a second: when several have gone, most are still served.
    let cut = || std::fs::read_to_string(tidegate.dir().join("access.log")).map_or(0, |log| log.lines().count());
    eventually("several have gone", || cut() >= 8);
    clients[SESSIONS - 1].expect_end(End::Rst);
    clients[0].speak();
    assert!(cut() < SESSIONS / 2 && tidegate.sessions() > 0);
    tidegate.signal(Signal::TERM);
    let exit = tidegate.wait();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(exit.stderr.contains("\"sessions\":240"), "all that were cut, sooner or later: {}", exit.stderr);
    let log = std::fs::read_to_string(tidegate.dir().join("access.log")).unwrap();
    let records: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), SESSIONS);
    assert!(records.iter().all(|record| record["reason"] == "drain_deadline"), "{log}");
    let first: Vec<&str> = records.iter().take(8).map(|record| record["client"].as_str().unwrap()).collect();
    assert_eq!(first, expected[..8], "in the order in which they had fallen silent");
}

/// Also those that have no backend yet, on each of two workers; and nobody is left for the deadline.
#[test]
fn f52_with_a_short_time_all_have_gone_by_its_end_also_those_that_are_held() {
    let dead = Refusing::new();
    let config = Config::over([&dead])
        .more("[pools.web.hold]\nmax_wait = \"1h\"")
        .runtime("drain_timeout = \"2s\"\ndrain_spread = \"1500ms\"")
        .logged();
    let mut tidegate = Tidegate::start(config);
    let mut clients: Vec<Conn> = (0..20).map(|_| tidegate.connect()).collect();
    eventually("they are held", || tidegate.count("tidegate_pool_held") == 20);
    tidegate.signal(Signal::TERM);
    for client in &mut clients {
        client.expect_end(End::Rst);
    }
    let exit = tidegate.wait();
    assert!(exit.code == Some(0) && exit.stderr.contains("\"sessions\":20"), "{exit:?}");
    let log = std::fs::read_to_string(tidegate.dir().join("access.log")).unwrap();
    assert_eq!(log.matches("\"reason\":\"drain_deadline\"").count(), 20, "{log}");
}

fn post(tidegate: &Tidegate, path: &str, body: &str) {
    let answer = tidegate.post(path, body);
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// Relayed, waiting for a place, and waiting for an answer to the connect.
#[test]
fn a_backend_that_drains_is_rid_of_its_sessions_at_its_deadline_and_nobody_else_is_touched() {
    let (leaving, staying, silent) = (Backend::echo(), Backend::echo(), Silent::new());
    let config = Config::over([leaving.to_string(), staying.to_string()])
        .more(&format!(
            "[listeners.slow]\nbind = \"127.0.0.1:0\"\npool = \"slow\"\n[pools.slow]\nbackends = [\"{silent}\"]\n\
             health.probe = \"none\"\nconnect.timeout = \"1h\"\nconnect.budget = \"1h\""
        ))
        .logged();
    let tidegate = Tidegate::start(config);
    let mut clients: Vec<Conn> = (0..8).map(|_| tidegate.echoed()).collect();
    let mut connecting = Conn::to(&tidegate.addr_of("slow", 0));
    eventually("it is being connected", || tidegate.slots() == 9);
    let drain =
        |pool: &str, backend: &str, body: &str| post(&tidegate, &format!("/pools/{pool}/backends/{backend}"), body);
    drain("web", &leaving.to_string(), "{\"state\": \"draining\", \"deadline\": \"1h\"}");
    clients.iter_mut().for_each(Conn::speak);
    drain("web", &leaving.to_string(), "{\"state\": \"draining\", \"deadline\": \"100ms\"}");
    drain("slow", &silent.to_string(), "{\"state\": \"draining\", \"deadline\": \"100ms\"}");
    connecting.expect_end(End::Rst);
    eventually("four have gone", || tidegate.closed("drained") == 5);
    eventually("four are left", || tidegate.sessions() == 4);
    let mut served = 0;
    for client in &mut clients {
        if client.try_send("ping").is_ok() && client.try_receive(4).as_deref() == Some(b"ping") {
            served += 1;
        }
    }
    assert_eq!(served, 4);
    // Who is back has no deadline any more.
    drain("web", &leaving.to_string(), "{\"state\": \"enabled\"}");
    let mut more: Vec<Conn> = (0..4).map(|_| tidegate.echoed()).collect();
    throughout("nobody is reset", Duration::from_millis(600), || {
        more.iter_mut().for_each(Conn::speak);
        tidegate.closed("drained") == 5
    });
}

#[test]
fn a_listener_that_drains_says_so_in_readyz_and_is_rid_of_its_sessions_at_its_deadline() {
    let backend = Backend::echo();
    let other = "[listeners.other]\nbind = \"127.0.0.1:0\"\npool = \"web\"";
    let tidegate = Tidegate::start(Config::over([&backend]).more(other));
    let clients: Vec<Conn> = (0..4).map(|_| tidegate.echoed()).collect();
    let mut stays = Conn::to(&tidegate.addr_of("other", 0));
    stays.speak();
    post(&tidegate, "/listeners/web", "{\"state\": \"draining\", \"deadline\": \"200ms\"}");
    eventually("its own have gone", || tidegate.closed("drained") == 4);
    stays.speak();
    let answer = tidegate.get("/readyz");
    assert_eq!((answer.status, answer.body.as_str()), (503, "listener web is draining\n"));
    assert!(refuses(&tidegate.addr()));
    post(&tidegate, "/listeners/web", "{\"state\": \"enabled\"}");
    eventually("it is ready again", || tidegate.get("/readyz").status == 200);
    let mut again = tidegate.echoed();
    throughout("nobody is reset", Duration::from_millis(600), || {
        again.speak();
        tidegate.closed("drained") == 4
    });
    drop(clients);
}

/// Also one that is removed, and isn't in the table any more.
#[test]
fn a_backend_that_is_removed_is_rid_of_its_sessions_at_its_deadline() {
    let (leaving, staying) = (Backend::echo(), Backend::echo());
    let tidegate = Tidegate::start(Config::over([leaving.to_string(), staying.to_string()]));
    let clients: Vec<Conn> = (0..4).map(|_| tidegate.echoed()).collect();
    post(&tidegate, &format!("/pools/web/backends/{leaving}/remove"), "{\"deadline\": \"200ms\"}");
    eventually("two have gone", || tidegate.closed("drained") == 2);
    eventually("two are left", || tidegate.sessions() == 2);
    drop(clients);
}
