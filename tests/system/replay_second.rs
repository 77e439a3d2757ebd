//! Replay: a backend that dies before it has answered is replaced, and the next one gets the same bytes; when it never is.

use crate::kit::conn::Rest;
use crate::kit::{
    Backend, Config, Conn, End, Listening, Poison, Tidegate, Toxic, Way, eventually, eventually_eq, outcomes,
};
use std::time::Duration;

const REPLAYS: &str = "tidegate_pool_replays_total";

/// Over these backends in their order, without ejections, which would change it.
fn config<T: std::fmt::Display>(backends: impl IntoIterator<Item = T>) -> Config {
    let config = Config::over(backends).pool("replay = \"16KiB\"").logged();
    config.ejection("consecutive_failures = \"off\"")
}

fn two() -> ([Listening; 2], Tidegate) {
    let backends = [Listening::new(), Listening::new()];
    let tidegate = Tidegate::start(config(&backends));
    (backends, tidegate)
}

/// A client's request as the first backend got it.
fn asked(tidegate: &Tidegate, backend: &Listening, request: &str) -> (Conn, Conn) {
    let mut client = tidegate.connect();
    client.send(request);
    let mut first = backend.accept();
    first.expect(request);
    (client, first)
}

#[test]
fn the_next_backend_gets_the_same_bytes_and_the_client_cannot_tell() {
    for by_reset in [true, false] {
        let ([a, b], tidegate) = two();
        let (mut client, first) = asked(&tidegate, &a, "request");
        if by_reset {
            first.reset();
        } else {
            drop(first);
        }
        let mut second = b.accept();
        second.expect("request");
        second.send("answer");
        client.expect("answer");
        // From here on it is a session like any other.
        client.send("more");
        second.expect("more");
        client.finish();
        second.expect_end(End::Fin);
        second.send("end");
        drop(second);
        assert_eq!(client.rest(), Rest { bytes: b"end".to_vec(), end: End::Fin });
        let record = tidegate.records(1).remove(0);
        assert_eq!(outcomes(&record), [format!("{a} unanswered"), format!("{b} connected")]);
        assert_eq!(record["reason"], "complete");
        assert_eq!(record["backend"], b.to_string());
        assert_eq!(tidegate.count(REPLAYS), 1);
        assert_eq!(tidegate.count_of("tidegate_backend_traffic_failures_total", &a), 1);
    }
}

#[test]
fn several_may_die_and_the_one_after_them_answers() {
    let backends = [Listening::new(), Listening::new(), Listening::new(), Listening::new()];
    let tidegate = Tidegate::start(config(&backends).connect("attempts = 4"));
    let mut client = tidegate.connect();
    client.send("request");
    for backend in &backends[..3] {
        let mut conn = backend.accept();
        conn.expect("request");
        conn.reset();
    }
    let mut last = backends[3].accept();
    last.expect("request");
    last.send("answer");
    client.expect("answer");
    assert_eq!(tidegate.count(REPLAYS), 3);
}

#[test]
fn a_client_that_has_shut_down_its_side_is_answered_by_the_next() {
    let ([a, b], tidegate) = two();
    let mut client = tidegate.connect();
    client.send("request");
    client.finish();
    let mut first = a.accept();
    assert_eq!(first.rest(), Rest { bytes: b"request".to_vec(), end: End::Fin });
    first.reset();
    let mut second = b.accept();
    assert_eq!(second.rest(), Rest { bytes: b"request".to_vec(), end: End::Fin });
    second.send("answer");
    drop(second);
    assert_eq!(client.rest(), Rest { bytes: b"answer".to_vec(), end: End::Fin });
    assert_eq!(tidegate.records(1)[0]["reason"], "complete");
}

#[test]
fn what_the_client_sends_meanwhile_comes_after_what_is_sent_again() {
    let ([a, b], tidegate) = two();
    let mut client = tidegate.connect();
    client.send_pattern(0, 5_000);
    let mut first = a.accept();
    first.expect_pattern(0, 3_000);
    first.reset();
    client.send_pattern(5_000, 5_000);
    let mut second = b.accept();
    client.send_pattern(10_000, 2_000);
    second.expect_pattern(0, 12_000);
    second.send("all");
    client.expect("all");
    // Nothing is kept after the answer: what follows may be as long as it likes.
    crate::kit::conn::transfer(&mut client, &mut second, 12_000, 1_000_000);
    crate::kit::conn::transfer(&mut second, &mut client, 0, 1_000_000);
}

#[test]
fn beyond_the_size_never() {
    let backends = [Listening::new(), Listening::new()];
    let tidegate = Tidegate::start(config(&backends).pool("on_down = \"keep\""));
    for (size, replayed) in [(16 << 10, true), ((16 << 10) + 1, false)] {
        // In turn: this one's first backend is the one that the last session did not end with.
        let mut client = tidegate.connect();
        client.send_pattern(0, size);
        let (mut first, other) = eventually_first(&backends);
        first.expect_pattern(0, size);
        first.reset();
        if replayed {
            let mut second = other.accept();
            second.expect_pattern(0, size);
            second.send("answer");
            client.expect("answer");
        } else {
            client.expect_end(End::Rst);
            assert!(other.accept_now().is_none());
        }
    }
    assert_eq!(tidegate.count(REPLAYS), 1);
}

/// The connection that comes to one of two backends, and the other backend.
fn eventually_first(backends: &[Listening; 2]) -> (Conn, &Listening) {
    crate::kit::eventually_some("a connection", || {
        let [a, b] = backends;
        a.accept_now().map(|conn| (conn, b)).or_else(|| b.accept_now().map(|conn| (conn, a)))
    })
}

#[test]
fn after_the_first_answer_byte_never() {
    let ([a, b], tidegate) = two();
    let (mut client, mut first) = asked(&tidegate, &a, "request");
    first.send("a");
    client.expect("a");
    first.reset();
    client.expect_end(End::Rst);
    assert!(b.accept_now().is_none());
    assert_eq!(tidegate.records(1)[0]["reason"], "backend_reset");
    assert_eq!(tidegate.count(REPLAYS), 0);
}

#[test]
fn without_the_key_never() {
    let backends = [Listening::new(), Listening::new()];
    let tidegate = Tidegate::start(Config::over(&backends).logged());
    let (mut client, first) = asked(&tidegate, &backends[0], "request");
    first.reset();
    client.expect_end(End::Rst);
    assert!(backends[1].accept_now().is_none());
    assert_eq!(tidegate.records(1)[0]["reason"], "backend_reset");
}

#[test]
fn a_backend_that_should_speak_first_and_dies_is_replaced_too() {
    let ([a, b], tidegate) = two();
    let mut client = tidegate.connect();
    drop(a.accept());
    let mut second = b.accept();
    second.send("220 welcome\r\n");
    client.expect("220 welcome\r\n");
    client.send("QUIT\r\n");
    second.expect("QUIT\r\n");
    assert_eq!(tidegate.count(REPLAYS), 1);
}

#[test]
fn a_backend_that_answers_a_clients_fin_with_its_own_has_answered() {
    let ([a, b], tidegate) = two();
    let mut client = tidegate.connect();
    client.send("only a notice");
    client.finish();
    let mut first = a.accept();
    assert_eq!(first.rest(), Rest { bytes: b"only a notice".to_vec(), end: End::Fin });
    drop(first);
    client.expect_end(End::Fin);
    assert!(b.accept_now().is_none());
    assert_eq!(tidegate.records(1)[0]["reason"], "complete");
    assert_eq!(tidegate.count(REPLAYS), 0);
}

#[test]
fn when_all_have_died_the_client_is_reset() {
    let ([a, b], tidegate) = two();
    let (mut client, first) = asked(&tidegate, &a, "request");
    first.reset();
    let mut second = b.accept();
    second.expect("request");
    second.reset();
    client.expect_end(End::Rst);
    let record = tidegate.records(1).remove(0);
    let seen = outcomes(&record);
    assert_eq!(seen[0], format!("{a} unanswered"));
    assert!(seen[1].starts_with(&b.to_string()), "{seen:?}");
    assert_ne!(record["reason"], "complete");
}

#[test]
fn a_client_that_resets_while_its_request_is_sent_again_frees_everything() {
    let (a, silent) = (Listening::new(), crate::kit::Silent::new());
    let tidegate = Tidegate::start(config([&a.addr, &silent.addr]).connect("timeout = \"10s\""));
    let (client, first) = asked(&tidegate, &a, "request");
    first.reset();
    let port = silent.addr.tcp().port();
    eventually("the next connect is under way", || crate::kit::kernel::sockets_to(port, &["02"]) == 1);
    client.reset();
    eventually_eq("it is given up", &0, || crate::kit::kernel::sockets_to(port, &["02"]));
    assert_eq!(tidegate.records(1)[0]["reason"], "client_reset");
}

#[test]
fn beyond_the_budget_never() {
    let backends = [Listening::new(), Listening::new()];
    let tidegate = Tidegate::start(config(&backends).connect("budget = \"300ms\""));
    let (mut client, mut first) = asked(&tidegate, &backends[0], "request");
    // Longer than the budget.
    first.read_timeout(Duration::from_millis(400));
    assert!(first.read(&mut [0; 1]).is_err());
    first.reset();
    client.expect_end(End::Rst);
    assert!(backends[1].accept_now().is_none());
    assert_eq!(tidegate.count(REPLAYS), 0);
}

#[test]
fn f23_a_verdict_is_a_death_for_whoever_waits_for_a_first_answer() {
    let (echo, other) = (Backend::echo(), Backend::echo());
    let (toxic, well) = (Toxic::before(&echo.addr), Toxic::before(&other.addr));
    let health = "probe = \"exchange\"\nexchange = { send = \"ping\", expect = \"ping\" }\ninterval = \"200ms\"\n\
                  fast_interval = \"100ms\"\ntimeout = \"200ms\"\nfall = 2";
    let config = Config::over([&toxic, &well]).pool("replay = \"1KiB\"").health(health).logged();
    let tidegate = Tidegate::start(config.connect("timeout = \"10s\"\nbudget = \"20s\""));
    eventually_eq("both are up", &2, || tidegate.count("tidegate_backend_up"));
    // From now on it takes connections, and says nothing.
    toxic.poison(Way::Back, Poison::Stall);
    let mut clients: Vec<Conn> = (0..2).map(|_| tidegate.connect()).collect();
    for client in &mut clients {
        client.send("request");
    }
    for client in &mut clients {
        client.expect("request");
    }
    drop(clients);
    let records = tidegate.records(2);
    let waited = records.iter().filter(|record| outcomes(record).len() == 2).count();
    assert_eq!(waited, 1, "{records:#?}");
    assert_eq!(tidegate.count(REPLAYS), 1);
    toxic.cure();
    eventually_eq("it is back", &2, || tidegate.count("tidegate_backend_up"));
}
