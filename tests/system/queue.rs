//! The queue before a pool whose backends are all full: who waits, who is next, who is refused, and what is told of it.

use crate::kit::{Config, Conn, End, Listening, Tidegate, eventually, eventually_eq};

/// One backend that the test plays itself, with room for so many.
fn config(backend: &Listening, room: u32, queue: &str) -> Config {
    Config::over([&backend.addr])
        .pool(&format!("backend_max_connections = {room}"))
        .more(&format!("[pools.web.queue]\n{queue}"))
        .logged()
}

fn waiting(tidegate: &Tidegate) -> u64 {
    tidegate.count("tidegate_pool_queue_waiting")
}

fn outcome(tidegate: &Tidegate, outcome: &str) -> u64 {
    let labels = [("pool", "web"), ("outcome", outcome)];
    tidegate.metrics().sum("tidegate_pool_queue_outcomes_total", &labels) as u64
}

/// The record of the one session that ended so.
fn record_of(tidegate: &Tidegate, count: usize, reason: &str) -> serde_json::Value {
    let records = tidegate.records(count);
    let found = records.iter().find(|record| record["reason"] == reason);
    found.unwrap_or_else(|| panic!("no session ended by {reason}: {records:?}")).clone()
}

/// Clients that wait one behind the other; each has said its number.
fn line_up(tidegate: &Tidegate, count: u8) -> Vec<Conn> {
    let before = waiting(tidegate);
    (0..count)
        .map(|number| {
            let mut client = tidegate.connect();
            client.send([b'0' + number]);
            eventually_eq("it waits", &(before + u64::from(number) + 1), || waiting(tidegate));
            client
        })
        .collect()
}

#[test]
fn who_waits_longest_is_next() {
    for (order, expected) in [("fifo", ["0", "1", "2"]), ("lifo", ["2", "1", "0"]), ("adaptive", ["0", "1", "2"])] {
        let backend = Listening::new();
        // Two workers may come to those that they have been told of in another order.
        let config = config(&backend, 1, &format!("max_wait = \"60s\"\norder = \"{order}\""));
        let tidegate = Tidegate::start(config.only_runtime("workers = 1"));
        let first = tidegate.connect();
        let mut served = backend.accept();
        let clients = line_up(&tidegate, 3);
        assert_eq!(tidegate.pool_status()["queue"]["waiting"], 3);
        assert_eq!(tidegate.backend_status(&backend)["max_connections"], 1);
        first.finish();
        let mut seen = Vec::new();
        for _ in 0..3 {
            assert!(backend.accept_now().is_none(), "one at a time");
            served.reset();
            served = backend.accept();
            seen.push(String::from_utf8(served.receive(1)).unwrap());
        }
        assert_eq!(seen, expected, "{order}");
        served.reset();
        drop(clients);
        tidegate.until_idle();
        assert_eq!((outcome(&tidegate, "served"), waiting(&tidegate)), (3, 0));
        let waits: Vec<f64> = tidegate.records(4).iter().map(|record| record["wait"].as_f64().unwrap()).collect();
        assert_eq!(waits.iter().filter(|wait| **wait > 0.0).count(), 3, "{waits:?}");
    }
}

#[test]
fn who_waits_too_long_is_reset() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(config(&backend, 1, "max_wait = \"300ms\""));
    let held = (tidegate.connect(), backend.accept());
    tidegate.connect().expect_end(End::Rst);
    drop(held);
    let record = record_of(&tidegate, 2, "queue_timeout");
    assert_eq!(record["phase"], "queue", "{record}");
    assert!(record["wait"].as_f64().unwrap() >= 0.3, "{record}");
    assert_eq!((outcome(&tidegate, "timeout"), tidegate.closed("queue_timeout")), (1, 1));
}

#[test]
fn no_more_wait_than_may() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(config(&backend, 1, "max_wait = \"60s\"\nmax_waiting = 2"));
    let held = (tidegate.connect(), backend.accept());
    let clients = line_up(&tidegate, 2);
    tidegate.connect().expect_end(End::Rst);
    clients.into_iter().for_each(Conn::reset);
    held.0.reset();
    let record = record_of(&tidegate, 4, "queue_full");
    assert_eq!(record["phase"], "queue", "{record}");
    assert_eq!(outcome(&tidegate, "full"), 1);
}

#[test]
fn without_a_queue_who_finds_no_room_is_reset() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(Config::over([&backend.addr]).pool("backend_max_connections = 1").logged());
    let held = (tidegate.connect(), backend.accept());
    tidegate.connect().expect_end(End::Rst);
    drop(held);
    assert_eq!(record_of(&tidegate, 2, "backends_full")["phase"], "connect");
    assert_eq!(tidegate.count("tidegate_pool_no_backend_total"), 0, "there is one");
}

/// Who asks `/readyz` would else take a balancer out for nothing but being busy.
#[test]
fn backends_that_are_full_are_well() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(Config::over([&backend.addr]).pool("backend_max_connections = 1").logged());
    let held = (tidegate.connect(), backend.accept());
    tidegate.connect().expect_end(End::Rst);
    assert_eq!(tidegate.get("/readyz").status, 200);
    assert_eq!(tidegate.pool_status()["available"], 1);
    tidegate.logged(&["clients are refused", "\"refused\":1", "backends_full=1"]);
    drop(held);
}

#[test]
fn who_hangs_up_leaves_at_once() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(config(&backend, 1, "max_wait = \"60s\""));
    let first = tidegate.connect();
    let served = backend.accept();
    let mut clients = line_up(&tidegate, 3);
    clients.remove(0).reset();
    eventually_eq("one less", &2, || waiting(&tidegate));
    eventually_eq("it has gone", &(1, 1), || (outcome(&tidegate, "gone"), tidegate.closed("client_reset")));
    // One that has said all waits for its answer.
    clients[0].finish();
    served.reset();
    let mut served = backend.accept();
    assert_eq!(served.rest().text(), "1");
    first.reset();
    clients.into_iter().for_each(Conn::reset);
    drop(served);
    // The others were reset as well, but when they had their backend.
    let records = tidegate.records(4);
    let in_queue = |record: &&serde_json::Value| record["reason"] == "client_reset" && record["phase"] == "queue";
    assert!(records.iter().any(|record| in_queue(&record)), "{records:?}");
}

#[test]
fn a_client_that_shuts_down_its_side_leaves_where_that_is_asked_for() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(config(&backend, 1, "max_wait = \"60s\"\nclient_fin = \"leave\""));
    let _first = tidegate.connect();
    let served = backend.accept();
    let mut clients = line_up(&tidegate, 2);
    clients[0].finish();
    clients[0].expect_end(End::Rst);
    eventually_eq("one less", &1, || waiting(&tidegate));
    eventually_eq("it has left", &(1, 1), || (outcome(&tidegate, "left"), tidegate.closed("client_left")));
    served.reset();
    assert_eq!(backend.accept().receive(1), b"1");
    eventually("the other is served", || outcome(&tidegate, "served") == 1);
}

#[test]
fn who_waits_after_its_backend_has_died_holds_up_nobody_who_waits_for_that_one() {
    for finishes in [false, true] {
        let backends = [Listening::new(), Listening::new()];
        let config = Config::over([&backends[0].addr, &backends[1].addr])
            .pool("replay = \"16KiB\"\nbackend_max_connections = 1")
            .ejection("consecutive_failures = \"off\"")
            .more("[pools.web.queue]\nmax_wait = \"60s\"")
            .logged();
        let tidegate = Tidegate::start(config);
        let clients = ["1", "2"].map(|word| {
            let mut client = tidegate.connect();
            client.send(word);
            client
        });
        let mut first = backends.each_ref().map(Listening::accept);
        let said = first.each_mut().map(|conn| conn.receive(1));
        // Neither has answered, and each has to go where the other was.
        let _kept = first.map(|conn| {
            if finishes {
                conn.finish();
                return Some(conn);
            }
            conn.reset();
            None
        });
        let mut second = backends.each_ref().map(Listening::accept);
        let again = second.each_mut().map(|conn| conn.receive(1));
        assert_eq!((&again[0], &again[1]), (&said[1], &said[0]));
        clients.into_iter().for_each(Conn::reset);
        second.into_iter().for_each(Conn::reset);
    }
}
