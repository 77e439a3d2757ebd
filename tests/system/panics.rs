//! A panic harms what it happened in, and nothing else. The binary panics on demand in debug builds only.

use crate::kit::{Backend, Config, End, Launch, Tidegate, eventually, http};

/// With one worker, whose sessions are numbered from 1.
fn start(hook: &str, config: &Config) -> Tidegate {
    let mut tidegate = Launch::new(config).env("TIDEGATE_TEST_PANIC", hook).start();
    tidegate.panics_wanted();
    tidegate
}

fn one_worker(backend: &Backend) -> Config {
    Config::over([backend]).only_runtime("workers = 1").log("access = \"$DIR/access.log\"\nformat = \"json\"")
}

#[test]
fn i04_f38_a_panic_while_connecting_resets_that_client_alone() {
    let backend = Backend::echo();
    let tidegate = start("connect:2", &one_worker(&backend));
    let mut before = tidegate.connect();
    before.send("one");
    before.expect("one");
    tidegate.connect().expect_end(End::Rst);
    let mut after = tidegate.connect();
    for client in [&mut before, &mut after] {
        client.send("two");
        client.expect("two");
    }
    assert!(tidegate.metrics().one("tidegate_panics_total", &[]) >= 1.0);
    drop((before, after));
    let reasons: Vec<String> = tidegate.records(3).iter().map(|record| record["reason"].to_string()).collect();
    assert_eq!(reasons.iter().filter(|reason| *reason == "\"panic\"").count(), 1, "{reasons:?}");
}

#[test]
fn i04_f38_a_panic_in_the_relay_resets_that_session_alone() {
    let backend = Backend::echo();
    let tidegate = start("relay:2", &one_worker(&backend));
    let mut before = tidegate.connect();
    before.send("one");
    before.expect("one");
    let mut hit = tidegate.connect();
    hit.send("two");
    hit.expect_end(End::Rst);
    let mut after = tidegate.connect();
    for client in [&mut before, &mut after] {
        client.send_pattern(0, 50_000);
        client.expect_pattern(0, 50_000);
    }
    assert!(tidegate.metrics().one("tidegate_panics_total", &[]) >= 1.0);
    drop((before, after));
    let reasons: Vec<String> = tidegate.records(3).iter().map(|record| record["reason"].to_string()).collect();
    assert_eq!(reasons.iter().filter(|reason| *reason == "\"panic\"").count(), 1, "{reasons:?}");
}

#[test]
fn i04_f38_a_checker_that_panics_is_started_again_and_never_a_ghost() {
    let backend = Backend::echo();
    let health = "interval = \"100ms\"\nfast_interval = \"100ms\"\ninitial = \"up\"";
    let tidegate = start("checker", &one_worker(&backend).health(health));
    eventually("the panic is counted", || tidegate.metrics().one("tidegate_panics_total", &[]) >= 1.0);
    assert!(tidegate.metrics().sum("tidegate_task_restarts_total", &[]) >= 1.0);
    let checks = || tidegate.metrics().sum("tidegate_backend_health_checks_total", &[("result", "success")]);
    let before = checks();
    eventually("probes go on", || checks() >= before + 3.0);
    let mut client = tidegate.connect();
    client.send("served");
    client.expect("served");
}

#[test]
fn i04_f38_a_panic_in_an_admin_handler_costs_one_request() {
    let backend = Backend::echo();
    let tidegate = start("admin", &one_worker(&backend));
    let mut conn = crate::kit::Conn::to(tidegate.admin());
    conn.send("GET /panic HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let rest = conn.rest();
    if !rest.bytes.is_empty() {
        assert_eq!(http::Answer::parse(&rest).status, 500);
    }
    assert!(tidegate.metrics().one("tidegate_panics_total", &[]) >= 1.0);
    let mut client = tidegate.connect();
    client.send("served");
    client.expect("served");
}
