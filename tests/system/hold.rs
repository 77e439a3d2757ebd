//! Hold: while every backend is lost, clients are kept, with what they send; and then they are delivered.

use crate::kit::backend::naming;
use crate::kit::{
    Addr, Backend, Config, Conn, End, Listening, PATIENCE, Refusing, Tidegate, eventually, eventually_eq, throughout,
};
use rustix::process::Signal;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Verdicts come soon.
pub const QUICK: &str = "interval = \"300ms\"\nfast_interval = \"100ms\"\ntimeout = \"300ms\"\nrise = 1\nfall = 1";
pub const NO_EJECTION: &str = "consecutive_failures = \"off\"";

/// Over these backends, with an access log and these lines in `[pools.web.hold]`.
pub fn holding<T: std::fmt::Display>(backends: impl IntoIterator<Item = T>, hold: &str) -> Config {
    Config::over(backends).logged().more(&format!("[pools.web.hold]\n{hold}"))
}

/// The same, with probes that find out soon who is up.
pub fn probed<T: std::fmt::Display>(backends: impl IntoIterator<Item = T>, hold: &str) -> Config {
    holding(backends, hold).health(QUICK).ejection(NO_EJECTION).pool("slow_start = \"0s\"")
}

pub fn held(tidegate: &Tidegate) -> u64 {
    tidegate.count("tidegate_pool_held")
}

pub fn held_bytes(tidegate: &Tidegate) -> u64 {
    tidegate.count("tidegate_pool_held_bytes")
}

pub fn outcome(tidegate: &Tidegate, outcome: &str) -> u64 {
    tidegate.metrics().sum("tidegate_pool_hold_outcomes_total", &[("outcome", outcome)]) as u64
}

pub fn until_held(tidegate: &Tidegate, count: u64) {
    eventually_eq("so many are held", &count, || held(tidegate));
}

/// Waits until so many sessions have ended for this reason.
pub fn until_closed(tidegate: &Tidegate, reason: &str, count: u64) {
    eventually_eq(reason, &count, || tidegate.closed(reason));
}

/// Nobody is held, nothing is kept, and the log says that it is over.
pub fn until_over(tidegate: &Tidegate) {
    eventually_eq("nobody is held", &0, || held(tidegate));
    eventually_eq("nothing is kept", &0, || held_bytes(tidegate));
    tidegate.logged(&["no client is held any more"]);
}

/// Waits until the probes have found so many backends up.
pub fn until_up(tidegate: &Tidegate, count: u64) {
    eventually_eq("so many are up", &count, || tidegate.count("tidegate_backend_up"));
}

/// What each connection of some backends has brought, to its end.
type Deliveries = Arc<Mutex<Vec<(Vec<u8>, End)>>>;

/// Keeps what comes, probes aside.
fn collecting(to: &Deliveries) -> impl Fn(Conn) + Send + Sync + 'static {
    let deliveries = Arc::clone(to);
    move |mut conn| {
        let rest = conn.rest();
        if !rest.bytes.is_empty() || rest.end == End::Fin {
            deliveries.lock().unwrap().push((rest.bytes, rest.end));
        }
    }
}

/// What producer `number` says: its number, and then as many lines as tell a part that is missing, doubled or out of
/// order.
fn message(number: usize) -> String {
    let lines = (0..20 + number % 30).map(|line| format!("producer {number} line {line}"));
    [number.to_string()].into_iter().chain(lines).collect::<Vec<_>>().join("\n")
}

/// The bodies that were delivered, by producer; what brought nothing was a probe.
fn by_producer(deliveries: &Deliveries) -> HashMap<usize, Vec<String>> {
    let mut found: HashMap<usize, Vec<String>> = HashMap::new();
    for (bytes, end) in deliveries.lock().unwrap().iter().filter(|(bytes, _)| !bytes.is_empty()) {
        assert_eq!(*end, End::Fin, "the producer's FIN is delivered as well");
        let text = String::from_utf8(bytes.clone()).unwrap();
        let number = text.lines().next().unwrap().parse().unwrap();
        found.entry(number).or_default().push(text);
    }
    found
}

/// Sends and closes, without waiting for anything.
fn produce(to: &Addr, number: usize) {
    let mut producer = Conn::to(to);
    producer.send(message(number));
    drop(producer);
}

#[test]
fn five_hundred_producers_send_and_close_while_all_backends_are_down_and_all_of_it_arrives() {
    const PRODUCERS: usize = 500;
    let deliveries = Deliveries::default();
    let backends: Vec<Backend> = (0..3).map(|_| Backend::new(collecting(&deliveries))).collect();
    let addresses: Vec<Addr> = backends.iter().map(|backend| backend.addr.clone()).collect();
    let hold = "max_wait = \"60s\"\nrelease_rate = \"500/s\"";
    let tidegate = Tidegate::start(probed(&addresses, hold));
    until_up(&tidegate, 3);
    for backend in backends {
        backend.die();
    }
    let lost = Instant::now();
    let to = tidegate.addr();
    std::thread::scope(|scope| {
        for first in 0..10 {
            let to = &to;
            scope.spawn(move || (first..PRODUCERS).step_by(10).for_each(|number| produce(to, number)));
        }
    });
    // The first ones may have come before the verdict: they are here all the same.
    until_held(&tidegate, PRODUCERS as u64);
    let sent: usize = (0..PRODUCERS).map(|number| message(number).len()).sum();
    eventually_eq("all that they sent is kept", &(sent as u64), || held_bytes(&tidegate));
    assert_eq!(tidegate.pool_status()["hold"]["held"], PRODUCERS);
    assert!(deliveries.lock().unwrap().is_empty() || by_producer(&deliveries).is_empty());
    while lost.elapsed() < Duration::from_secs(2) {
        assert_eq!(held(&tidegate), PRODUCERS as u64);
    }

    let _back: Vec<Backend> = addresses.iter().map(|address| Backend::at(address, collecting(&deliveries))).collect();
    eventually_eq("all are served", &(PRODUCERS as u64), || outcome(&tidegate, "served"));
    tidegate.until_idle();
    eventually_eq("all arrive", &PRODUCERS, || by_producer(&deliveries).len());
    for (number, texts) in by_producer(&deliveries) {
        assert_eq!(texts, [message(number)], "whole, in order, and once");
    }
    until_over(&tidegate);
    assert_eq!(tidegate.count_logged(&["clients are held"]), 1, "{}", tidegate.log());
    let metrics = tidegate.metrics();
    assert_eq!(metrics.sum("tidegate_pool_hold_wait_seconds_count", &[]) as usize, PRODUCERS);
    for record in tidegate.records(PRODUCERS) {
        assert_eq!((&record["reason"], &record["phase"]), (&"complete".into(), &"relay".into()), "{record}");
        assert!(record["wait"].as_f64().unwrap() > 0.0, "{record}");
    }
}

#[test]
fn with_one_of_three_lost_the_others_serve_and_nobody_is_held() {
    let mut backends: Vec<Backend> = ["a", "b", "c"].map(|name| Backend::new(naming(name))).into();
    let tidegate = Tidegate::start(probed(&backends, ""));
    until_up(&tidegate, 3);
    backends.remove(1).die();
    until_up(&tidegate, 2);
    let mut names: Vec<String> = (0..10).map(|_| tidegate.connect().line()).collect();
    names.sort_unstable();
    assert_eq!(names.join(""), "aaaaaccccc");
    assert_eq!((held(&tidegate), outcome(&tidegate, "served")), (0, 0));
    // All lost, and one of them back.
    let address = backends.remove(0).die();
    backends.remove(0).die();
    until_up(&tidegate, 0);
    let mut client = tidegate.connect();
    until_held(&tidegate, 1);
    let _back = Backend::at(&address, naming("a"));
    assert_eq!(client.line(), "a");
    until_over(&tidegate);
}

/// Over one backend at `address`, which is down.
pub fn all_down(hold: &str) -> (Refusing, Config) {
    let backend = Refusing::new();
    let config = probed([&backend.addr], hold);
    (backend, config)
}

/// The backend is back, and plays an echo.
pub fn recovered(backend: Refusing) -> Backend {
    let address = backend.addr.clone();
    drop(backend);
    Backend::at(&address, crate::kit::backend::echo)
}

#[test]
fn the_newest_is_reset_when_as_many_are_held_as_may_be() {
    let (down, config) = all_down("max_connections = 2\nmax_wait = \"60s\"");
    let tidegate = Tidegate::start(config);
    let mut held_ones = [tidegate.connect(), tidegate.connect()];
    until_held(&tidegate, 2);
    tidegate.connect().expect_end(End::Rst);
    until_closed(&tidegate, "hold_full", 1);
    assert_eq!((outcome(&tidegate, "overflow"), held(&tidegate)), (1, 2));
    let (metrics, status) = (tidegate.metrics(), tidegate.pool_status());
    let limit = |name: &str| metrics.one(&format!("tidegate_pool_hold_max_{name}"), &[("pool", "web")]) as u64;
    assert_eq!((limit("connections"), limit("bytes")), (2, 10 << 20));
    assert_eq!(status["hold"]["max_connections"], 2);
    assert_eq!((&status["hold"]["held"], &status["hold"]["overflow"]), (&2.into(), &1.into()));
    assert!(tidegate.get("/").body.contains("held: <span class=\"down\">2 of 2</span>"));
    let _back = recovered(down);
    held_ones.iter_mut().for_each(Conn::speak);
    drop(held_ones);
    until_over(&tidegate);
    let line = tidegate.logged(&["no client is held any more"]);
    assert!(line.contains("\"served\":2,\"expired\":0,\"overflow\":1,\"gone\":0"), "{line}");
}

#[test]
fn the_oldest_is_reset_where_the_config_says_so() {
    let (down, config) = all_down("max_connections = 2\nmax_wait = \"60s\"\noverflow = \"oldest\"");
    let tidegate = Tidegate::start(config);
    let mut oldest = tidegate.connect();
    oldest.send("in vain");
    until_held(&tidegate, 1);
    let mut second = tidegate.connect();
    until_held(&tidegate, 2);
    let mut third = tidegate.connect();
    oldest.expect_end(End::Rst);
    eventually_eq("its bytes are forgotten", &0, || held_bytes(&tidegate));
    until_closed(&tidegate, "hold_full", 1);
    assert_eq!((outcome(&tidegate, "overflow"), held(&tidegate)), (1, 2));
    let _back = recovered(down);
    second.speak();
    third.speak();
}

#[test]
fn who_waits_too_long_is_reset_and_the_record_says_how_long() {
    let (_down, config) = all_down("max_wait = \"1s\"");
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    client.send("a word");
    let begun = Instant::now();
    client.expect_end(End::Rst);
    assert!(begun.elapsed() < PATIENCE);
    until_over(&tidegate);
    until_closed(&tidegate, "hold_timeout", 1);
    assert_eq!(outcome(&tidegate, "expired"), 1);
    let record = tidegate.records(1).remove(0);
    assert_eq!((&record["reason"], &record["phase"]), (&"hold_timeout".into(), &"hold".into()), "{record}");
    assert_eq!((&record["ended_by"], &record["to_backend"]), (&"balancer".into(), &0.into()), "{record}");
    assert!(record["wait"].as_f64().unwrap() >= 0.999, "{record}");
}

#[test]
fn a_client_that_resets_leaves_at_once() {
    let (_down, config) = all_down("max_wait = \"60s\"\nmax_bytes_each = \"4KiB\"");
    let tidegate = Tidegate::start(config);
    for bytes in [0, 100, 4_096, 100_000] {
        let mut client = tidegate.connect();
        client.send(vec![7; bytes]);
        until_held(&tidegate, 1);
        eventually_eq("what it sent is kept", &(bytes.min(4_096) as u64), || held_bytes(&tidegate));
        client.reset();
        until_over(&tidegate);
    }
    // Also after its FIN.
    let client = tidegate.connect();
    client.finish();
    until_held(&tidegate, 1);
    client.reset();
    until_over(&tidegate);
    until_closed(&tidegate, "client_reset", 5);
    assert_eq!(outcome(&tidegate, "gone"), 5);
}

#[test]
fn who_sends_more_than_is_kept_is_throttled_and_then_served_whole() {
    const COUNT: u64 = 3 << 20;
    let (down, config) = all_down("max_wait = \"60s\"\nmax_bytes_each = \"16KiB\"\nmax_bytes = \"40KiB\"");
    let tidegate = Tidegate::start(config);
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..4_u64)
            .map(|number| {
                let client = tidegate.connect();
                let mut sender = client.twin();
                scope.spawn(move || {
                    // An odd beginning, so that no two are alike.
                    sender.send_pattern(number, COUNT);
                    sender.finish();
                });
                (number, client)
            })
            .collect();
        until_held(&tidegate, 4);
        eventually_eq("as much is kept as may be", &(40 << 10), || held_bytes(&tidegate));
        throughout("no more is", Duration::from_millis(300), || held_bytes(&tidegate) <= 40 << 10);
        let _back = recovered(down);
        for (number, mut client) in senders {
            let flood = client.rest_of_pattern(number);
            assert_eq!((flood.bytes, flood.end), (COUNT, End::Fin));
        }
    });
    until_over(&tidegate);
    assert_eq!(outcome(&tidegate, "served"), 4);
}

#[test]
fn half_close_is_kept_and_the_late_answer_comes() {
    let (down, config) = all_down("max_wait = \"60s\"");
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    client.send("question");
    client.finish();
    until_held(&tidegate, 1);
    eventually_eq("the question is kept", &8, || held_bytes(&tidegate));
    let address = down.addr.clone();
    drop(down);
    let backend = Listening::at(&address);
    let mut asked = loop {
        // Probes come as well, and say nothing.
        let mut conn = backend.accept();
        if conn.try_receive(8).is_some_and(|question| question == b"question") {
            break conn;
        }
    };
    asked.expect_end(End::Fin);
    asked.send("answer");
    drop(asked);
    client.expect("answer");
    client.expect_end(End::Fin);
    until_over(&tidegate);
}

#[test]
fn clients_of_a_unix_listener_are_held_as_well() {
    let down = Refusing::new();
    let config = probed([&down.addr], "max_wait = \"60s\"").bind("unix:$DIR/web.sock");
    let tidegate = Tidegate::start(config);
    let mut stays = tidegate.connect();
    stays.send("ping");
    produce(&tidegate.addr(), 1);
    drop(tidegate.connect());
    until_held(&tidegate, 3);
    eventually_eq("all is kept", &(4 + message(1).len() as u64), || held_bytes(&tidegate));
    let deliveries = Deliveries::default();
    let address = down.addr.clone();
    drop(down);
    let _back = Backend::at(&address, {
        let collect = collecting(&deliveries);
        move |mut conn| {
            let mut buffer = [0; 4];
            match conn.read(&mut buffer) {
                Ok(4) if buffer == *b"ping" => conn.send("pong"),
                Ok(count) if count > 0 => {
                    let rest = conn.rest();
                    assert_eq!(rest.end, End::Fin);
                    let text = [&buffer[..count], &rest.bytes].concat();
                    assert_eq!(String::from_utf8(text).unwrap(), message(1));
                    collect(conn);
                }
                _ => {}
            }
        }
    });
    stays.expect("pong");
    drop(stays);
    until_over(&tidegate);
    tidegate.until_idle();
    eventually("the producer's message came", || !deliveries.lock().unwrap().is_empty());
}

#[test]
fn a_stop_waits_for_those_who_are_held_until_the_deadline() {
    let (_down, config) = all_down("max_wait = \"60s\"");
    let mut tidegate = Tidegate::start(config.runtime("drain_timeout = \"1s\"\nlame_duck = \"0s\""));
    let mut client = tidegate.connect();
    client.send("a word");
    until_held(&tidegate, 1);
    tidegate.signal(Signal::TERM);
    client.expect_end(End::Rst);
    let exit = tidegate.wait();
    assert_eq!(exit.code, Some(0));
    let records = std::fs::read_to_string(tidegate.dir().join("access.log")).unwrap();
    let record: serde_json::Value = serde_json::from_str(records.trim()).unwrap();
    assert_eq!((&record["reason"], &record["phase"]), (&"drain_deadline".into(), &"hold".into()), "{record}");

    let (down, config) = all_down("max_wait = \"60s\"");
    let mut tidegate = Tidegate::start(config.runtime("drain_timeout = \"60s\"\nlame_duck = \"0s\""));
    let mut client = tidegate.connect();
    until_held(&tidegate, 1);
    tidegate.signal(Signal::TERM);
    eventually_eq("it stops", &"draining".to_owned(), || tidegate.status()["phase"].as_str().unwrap().to_owned());
    let _back = recovered(down);
    client.speak();
    client.finish();
    client.expect_end(End::Fin);
    assert_eq!(tidegate.wait().code, Some(0));
}

#[test]
fn without_the_table_nothing_is_held() {
    let down = Refusing::new();
    let tidegate = Tidegate::start(Config::over([&down.addr]).health(QUICK));
    tidegate.connect().expect_end(End::Rst);
    assert!(!tidegate.get("/metrics").body.contains("tidegate_pool_held{"));
    assert!(tidegate.pool_status()["hold"].is_null());
}
