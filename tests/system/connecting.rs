//! Finding a backend: failover, time-outs and the budget, and the ends of a session before it has a backend.

use crate::kit::conn::Rest;
use crate::kit::wait::pace;
use crate::kit::{
    Backend, Config, End, Launch, Listening, PATIENCE, Refusing, Silent, Tidegate, eventually, eventually_eq, kernel,
};
use rustix::process::Signal;
use std::fs;
use std::time::{Duration, Instant};

const SYN_SENT: &[&str] = &["02"];

/// The attempts of an access-log record, as `ADDRESS OUTCOME`.
fn attempts(record: &serde_json::Value) -> Vec<String> {
    let text = record["attempts"].as_str().unwrap_or_else(|| panic!("no attempts in {record}"));
    text.split(", ").filter(|one| !one.is_empty()).map(|one| one.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

fn logged(config: Config) -> Config {
    config.log("access = \"$DIR/access.log\"\nformat = \"json\"")
}

#[test]
fn f08_a_server_that_speaks_first_is_heard_at_once() {
    let listening = Listening::new();
    let tidegate = Tidegate::start(Config::over([&listening]));
    let mut client = tidegate.connect();
    let mut backend = listening.accept();
    backend.send("220 welcome\r\n");
    client.expect("220 welcome\r\n");
    client.send("QUIT\r\n");
    backend.expect("QUIT\r\n");
    backend.send("221 bye\r\n");
    drop(backend);
    assert_eq!(client.rest(), Rest { bytes: b"221 bye\r\n".to_vec(), end: End::Fin });
}

#[test]
fn f18_a_refused_connect_goes_to_the_next_and_the_client_never_knows() {
    let (dead, alive) = (Refusing::new(), Backend::named("alive"));
    let tidegate = Tidegate::start(logged(Config::over([&dead.addr, &alive.addr])));
    for _ in 0..6 {
        assert_eq!(tidegate.connect().rest(), Rest { bytes: b"alive\n".to_vec(), end: End::Fin });
    }
    let records = tidegate.records(6);
    // Round-robin: each odd connection meets the dead one first.
    let failed_over = records.iter().filter(|record| attempts(record).len() == 2).count();
    assert!(failed_over >= 3, "{records:#?}");
    for record in records.iter().filter(|record| attempts(record).len() == 2) {
        assert_eq!(attempts(record), [format!("{dead} refused"), format!("{alive} connected")]);
    }
    let metrics = tidegate.metrics();
    assert_eq!(metrics.one("tidegate_pool_failovers_total", &[("pool", "web")]) as usize, failed_over);
    let labels = [("backend", &*dead.to_string()), ("reason", "refused")];
    assert_eq!(metrics.one("tidegate_backend_connect_errors_total", &labels) as usize, failed_over);
}

#[test]
fn f18_when_all_refuse_the_client_is_reset_long_before_any_time_out() {
    let dead = [Refusing::new(), Refusing::new()];
    let config = Config::over(&dead).connect("timeout = \"60s\"\nbudget = \"60s\"");
    let tidegate = Tidegate::start(logged(config));
    let begun = Instant::now();
    tidegate.connect().expect_end(End::Rst);
    assert!(begun.elapsed() < PATIENCE);
    let record = tidegate.records(1).remove(0);
    assert_eq!(record["reason"], "connect_failed");
    assert_eq!(attempts(&record).len(), 2);
    assert_eq!(record["phase"], "connect");
}

#[test]
fn f18_no_backend_is_tried_twice_and_attempts_are_bounded() {
    let dead: Vec<Refusing> = (0..5).map(|_| Refusing::new()).collect();
    let tidegate = Tidegate::start(logged(Config::over(&dead).connect("attempts = 3")));
    tidegate.connect().expect_end(End::Rst);
    let mut tried = attempts(&tidegate.records(1)[0]);
    assert_eq!(tried.len(), 3);
    tried.sort();
    tried.dedup();
    assert_eq!(tried.len(), 3, "each attempt is on another backend");
    assert_eq!(tidegate.metrics().one("tidegate_pool_failovers_total", &[]) as u64, 2);
}

#[test]
fn f19_a_connect_that_times_out_goes_to_the_next() {
    let (silent, alive) = (Silent::new(), Backend::named("alive"));
    let config = Config::over([&silent.addr, &alive.addr]).connect("timeout = \"300ms\"");
    let tidegate = Tidegate::start(logged(config));
    assert_eq!(tidegate.connect().rest().text(), "alive\n");
    let record = tidegate.records(1).remove(0);
    assert_eq!(attempts(&record), [format!("{silent} timeout"), format!("{alive} connected")]);
    eventually_eq("no connect is left behind", &0, || kernel::sockets_to(silent.addr.tcp().port(), SYN_SENT));
}

#[test]
fn f19_the_budget_bounds_all_attempts_together() {
    let silent = [Silent::new(), Silent::new(), Silent::new()];
    let config = Config::over(&silent).connect("timeout = \"3s\"\nattempts = 3\nbudget = \"5s\"");
    let tidegate = Tidegate::start(logged(config));
    tidegate.connect().expect_end(End::Rst);
    let record = tidegate.records(1).remove(0);
    assert_eq!(record["reason"], "connect_budget");
    // The second attempt gets what the first has left, and nothing remains for a third.
    assert_eq!(attempts(&record).len(), 2);
    let wait = record["connect"].as_f64().unwrap();
    assert!(wait >= 5.0, "{wait}");
    // Three full time-outs would be 9 s; the rest is what a busy machine may add.
    assert!(wait < 8.5, "{wait}");
}

/// What the budget leaves to the second attempt is too little to say anything of a backend, however long it took.
#[test]
fn f19_a_connect_that_was_cut_short_is_no_failure_though_this_process_stood_still() {
    const FAILURES: &str = "tidegate_backend_traffic_failures_total";
    let silent = [Silent::new(), Silent::new()];
    let config = Config::over(&silent).connect("timeout = \"2s\"\nattempts = 2\nbudget = \"2600ms\"");
    let launch = Launch::new(logged(config).only_runtime("workers = 1"));
    let stall = launch.dir().join("stall");
    let tidegate = launch.env("TIDEGATE_TEST_STALL", &format!("0:{}", stall.display())).start();
    let mut client = tidegate.connect();
    eventually("the first attempt has had its time", || tidegate.metrics().sum(FAILURES, &[]) as u64 == 1);
    fs::write(&stall, "").unwrap();
    eventually("the worker stands still", || stall.with_extension("begun").exists());
    // For more than half of a whole time-out.
    pace(Duration::from_millis(1_500));
    fs::remove_file(&stall).unwrap();
    client.expect_end(End::Rst);
    let record = tidegate.records(1).remove(0);
    assert_eq!(attempts(&record), silent.iter().map(|silent| format!("{silent} timeout")).collect::<Vec<_>>());
    assert_eq!(tidegate.metrics().sum(FAILURES, &[]) as u64, 1);
}

#[test]
fn end_a_fin_before_a_backend_is_connected_still_connects_and_delivers() {
    let silent = Silent::new();
    let config = Config::over([&silent]).connect("timeout = \"60s\"\nbudget = \"60s\"");
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    client.send("early");
    client.finish();
    let port = silent.addr.tcp().port();
    eventually("the connect is under way", || kernel::sockets_to(port, SYN_SENT) == 1);
    let mut backend = silent.wake().accept();
    assert_eq!(backend.rest(), Rest { bytes: b"early".to_vec(), end: End::Fin });
    backend.send("late");
    drop(backend);
    assert_eq!(client.rest(), Rest { bytes: b"late".to_vec(), end: End::Fin });
}

#[test]
fn end_a_reset_before_a_backend_is_connected_gives_up() {
    let silent = Silent::new();
    let config = Config::over([&silent]).connect("timeout = \"60s\"\nbudget = \"60s\"");
    let tidegate = Tidegate::start(logged(config));
    let port = silent.addr.tcp().port();
    for early in ["", "some bytes"] {
        let mut client = tidegate.connect();
        client.send(early);
        eventually("the connect is under way", || kernel::sockets_to(port, SYN_SENT) == 1);
        assert_eq!(tidegate.slots(), 1, "a slot is held from before the connect");
        client.reset();
        eventually_eq("the connect is given up", &0, || kernel::sockets_to(port, SYN_SENT));
        tidegate.until_idle();
    }
    for record in tidegate.records(2) {
        assert_eq!(record["reason"], "client_reset");
        assert_eq!(record["phase"], "connect");
    }
}

#[test]
fn end_a_reset_after_a_fin_before_a_backend_is_connected_gives_up() {
    let silent = Silent::new();
    let config = Config::over([&silent]).connect("timeout = \"60s\"\nbudget = \"60s\"");
    let tidegate = Tidegate::start(logged(config));
    let client = tidegate.connect();
    client.finish();
    let port = silent.addr.tcp().port();
    eventually("the connect is under way", || kernel::sockets_to(port, SYN_SENT) == 1);
    client.reset();
    eventually_eq("the connect is given up", &0, || kernel::sockets_to(port, SYN_SENT));
    assert_eq!(tidegate.records(1)[0]["reason"], "client_reset");
}

#[test]
fn end_without_an_available_backend_the_client_is_reset() {
    let tidegate = Tidegate::start(logged(Config::with_pool("backends = []")));
    for _ in 0..3 {
        tidegate.connect().expect_end(End::Rst);
    }
    assert!(tidegate.records(3).iter().all(|record| record["reason"] == "no_backend"));
    assert_eq!(tidegate.metrics().one("tidegate_pool_no_backend_total", &[("pool", "web")]) as u64, 3);
}

#[test]
fn end_a_client_that_is_refused_by_admission_is_reset_and_no_backend_is_touched() {
    let listening = Listening::new();
    let tidegate = Tidegate::start(logged(Config::over([&listening]).runtime("max_connections = 2")));
    let mut held: Vec<_> = (0..2).map(|_| (tidegate.connect(), listening.accept())).collect();
    for _ in 0..5 {
        tidegate.connect().expect_end(End::Rst);
    }
    assert!(listening.accept_now().is_none());
    assert_eq!(tidegate.sessions(), 2);
    eventually_eq("each refusal is counted", &5, || tidegate.closed("max_connections"));
    // The admin endpoint has a reserve of its own, and a place that comes free is given away again.
    assert_eq!(tidegate.get("/livez").status, 200);
    let (client, backend) = held.pop().unwrap();
    client.reset();
    drop(backend);
    eventually_eq("one place is free", &1, || tidegate.sessions());
    let mut client = tidegate.connect();
    client.send("served");
    listening.accept().expect("served");
}

#[test]
fn f05_a_reset_before_accept_is_counted_and_no_backend_hears_of_it() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    // A stopped process accepts nothing: the kernel completes the handshakes meanwhile.
    tidegate.signal(Signal::STOP);
    eventually("all threads have stopped", || kernel::is_stopped(tidegate.pid));
    for number in 0..20 {
        let mut client = tidegate.connect();
        if number % 2 == 0 {
            client.send("payload");
        }
        client.reset();
    }
    tidegate.signal(Signal::CONT);
    eventually_eq("each is counted", &20, || {
        let metrics = tidegate.metrics();
        let aborted = metrics.sum("tidegate_listener_accept_errors_total", &[("errno", "ECONNABORTED")]);
        (metrics.sum("tidegate_connections_closed_total", &[("reason", "client_reset")]) + aborted) as u64
    });
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn f16_connecting_and_closing_by_the_thousand_leaks_no_fd_and_no_port() {
    const EACH: usize = 600;
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    std::thread::scope(|scope| {
        for style in 0..4 {
            let tidegate = &tidegate;
            scope.spawn(move || {
                for _ in 0..EACH {
                    let mut client = tidegate.connect();
                    match style {
                        0 => drop(client),
                        1 => client.reset(),
                        2 => {
                            client.send("x");
                            client.reset();
                        }
                        _ => {
                            client.send("x");
                            client.expect("x");
                            client.finish();
                            client.expect_end(End::Fin);
                        }
                    }
                }
            });
        }
    });
    tidegate.until_idle();
    let metrics = tidegate.metrics();
    assert_eq!(metrics.one("tidegate_listener_connections_total", &[]) as usize, 4 * EACH);
    assert_eq!(metrics.sum("tidegate_connections_closed_total", &[]) as usize, 4 * EACH);
    assert_eq!(metrics.sum("tidegate_connections_closed_total", &[("reason", "connect_failed")]) as usize, 0);
    // TIME_WAIT belongs to the kernel; whatever else is left would be ours.
    let alive = &["01", "02", "04", "05", "08", "09"];
    eventually_eq("no connection to the backend is left", &0, || kernel::sockets_to(backend.addr.tcp().port(), alive));
}

#[test]
fn end_the_slot_is_held_while_a_session_lives_and_not_longer() {
    let listening = Listening::new();
    let tidegate = Tidegate::start(Config::over([&listening]));
    let mut held = Vec::new();
    for count in 1..=5 {
        held.push((tidegate.connect(), listening.accept()));
        eventually_eq("a slot each", &count, || tidegate.slots());
    }
    while let Some((client, backend)) = held.pop() {
        drop((client, backend));
        eventually_eq("freed with its session", &(held.len() as u64), || tidegate.slots());
    }
}
