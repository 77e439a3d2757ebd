//! File descriptors run out: at start, while accepting, for a backend's socket, for a pipe, for a probe.

use crate::kit::conn::transfer;
use crate::kit::{
    Backend, Config, Conn, End, Launch, Listening, Tidegate, eventually, eventually_eq, kernel, throughout,
};
use std::time::Duration;

/// With this as the limit, every number that a new fd could get is beyond it: the three standard streams have the
/// others.
const NO_MORE: u64 = 3;

pub fn hard_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

#[test]
fn f07_a_config_that_needs_more_fds_than_the_limit_is_refused_with_both_numbers() {
    let config = Config::over(["127.0.0.1:1"]).runtime("max_connections = 50000");
    let exit = Launch::new(config).nofile(1_024).run_to_end();
    assert_eq!(exit.code, Some(71), "{exit:?}");
    let numbers: Vec<u64> =
        exit.stderr.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect();
    assert!(numbers.contains(&1_024), "the limit: {}", exit.stderr);
    assert!(numbers.iter().any(|number| (100_000..1_000_000).contains(number)), "the need: {}", exit.stderr);
    assert!(exit.stderr.contains("LimitNOFILE") || exit.stderr.contains("ulimit"), "the way out: {}", exit.stderr);
}

#[test]
fn f07_the_soft_limit_is_raised_by_itself() {
    let backend = Backend::named("x");
    let config = Config::over([&backend]).runtime("max_connections = 100");
    let limits = ["prlimit".to_owned(), format!("--nofile=128:{}", hard_limit())];
    let tidegate = Launch::new(config).wrapped(limits).start();
    assert_eq!(tidegate.connect().rest().text(), "x\n");
}

#[test]
fn i03_f01_with_64_fds_200_clients_are_served_one_after_the_other() {
    const CLIENTS: usize = 200;
    let backend = Backend::echo();
    let tidegate = Launch::new(Config::over([&backend])).nofile(64).start();
    let mut running = tidegate.connect();
    running.send("first");
    running.expect("first");
    // The kernel completes these handshakes; the clients wait in the accept queue for their turn.
    let mut clients: Vec<Conn> = (0..CLIENTS).map(|_| tidegate.connect()).collect();
    for client in &mut clients {
        client.send("hello");
    }
    eventually("as many are served as fds carry", || tidegate.sessions() >= 10);
    let log = ["raise the limit"];
    eventually_eq("the shortage is said", &1, || tidegate.count_logged(&log));

    let span = Duration::from_secs(2);
    let before = kernel::cpu(tidegate.pid);
    throughout("a running session goes on", span, || {
        running.send("ping");
        running.receive(4) == b"ping"
    });
    let used = kernel::cpu(tidegate.pid).saturating_sub(before);
    // 5 % of a core, and as much again for the some 400 round trips that the loop above makes.
    assert!(used < span / 10, "{used:?} of CPU in {span:?}");

    // As fds come free, each of the waiting ones is served; in which order is up to the kernel.
    std::thread::scope(|scope| {
        for mut client in clients {
            scope.spawn(move || {
                client.expect("hello");
                client.finish();
                client.expect_end(End::Fin);
            });
        }
    });
    running.send("last");
    running.expect("last");
    assert!(tidegate.count_logged(&log) <= 2, "one line in ten seconds:\n{}", tidegate.log());
    assert_eq!(tidegate.metrics().sum("tidegate_connections_closed_total", &[("reason", "no_resources")]) as u64, 0);
}

#[test]
fn f06_without_an_fd_for_the_backend_the_client_is_reset_and_the_backend_not_blamed() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]).log("access = \"$DIR/access.log\"\nformat = \"json\""));
    // Enough for the client's socket, none for the backend's.
    tidegate.limit_fds(kernel::lowest_free_fd(tidegate.pid) + 1);
    tidegate.connect().expect_end(End::Rst);
    tidegate.limit_fds(hard_limit());
    let record = tidegate.records(1).remove(0);
    assert_eq!(record["reason"], "no_resources");
    assert_eq!(record["ended_by"], "balancer");
    let metrics = tidegate.metrics();
    let name = backend.to_string();
    assert_eq!(metrics.one("tidegate_backend_up", &[("backend", &name)]) as u64, 1);
    let labels = [("backend", &*name), ("reason", "no_fd")];
    assert_eq!(metrics.one("tidegate_backend_connect_errors_total", &labels) as u64, 1);
    // It recovers alone.
    let mut client = tidegate.connect();
    client.send("again");
    client.expect("again");
}

#[test]
fn f06_without_an_fd_for_a_pipe_bytes_are_copied() {
    let listening = Listening::new();
    let tidegate = Tidegate::start(Config::over([&listening]));
    let (mut client, mut backend) = (tidegate.connect(), listening.accept());
    transfer(&mut client, &mut backend, 0, 10);
    transfer(&mut backend, &mut client, 0, 10);
    tidegate.limit_fds(NO_MORE);
    transfer(&mut client, &mut backend, 10, 5_000_000);
    transfer(&mut backend, &mut client, 10, 5_000_000);
    tidegate.limit_fds(hard_limit());
    client.finish();
    backend.expect_end(End::Fin);
    backend.finish();
    client.expect_end(End::Fin);
    eventually("it was counted", || tidegate.metrics().one("tidegate_pipe_fallbacks_total", &[]) >= 1.0);
    eventually_eq("it ended in order", &1, || tidegate.closed("complete"));
}

#[test]
fn i03_f01_accepting_recovers_from_a_limit_that_was_lowered_meanwhile() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    tidegate.limit_fds(NO_MORE);
    let mut client = tidegate.connect();
    client.send("patience");
    eventually("accept has failed", || tidegate.count_logged(&["can't accept"]) > 0);
    tidegate.limit_fds(hard_limit());
    client.expect("patience");
    let errors = tidegate.metrics().one("tidegate_listener_accept_errors_total", &[("errno", "EMFILE")]);
    assert!(errors >= 1.0);
}

#[test]
fn f34_probes_that_we_cannot_make_freeze_the_verdict() {
    let backend = Backend::echo();
    let health = "interval = \"50ms\"\nfast_interval = \"50ms\"\nrise = 1\nfall = 1";
    let tidegate = Tidegate::start(Config::over([&backend]).health(health));
    let name = backend.to_string();
    let checks = |result: &str| {
        let labels = [("backend", &*name), ("result", result)];
        tidegate.metrics().sum("tidegate_backend_health_checks_total", &labels) as u64
    };
    eventually("it is up", || tidegate.metrics().sum("tidegate_backend_up", &[]) as u64 == 1);
    // Meanwhile nobody can ask it.
    eventually("some probes could not be made", || {
        tidegate.limit_fds(NO_MORE);
        throughout("it lives on", Duration::from_millis(250), || true);
        tidegate.limit_fds(hard_limit());
        checks("frozen") >= 2
    });
    assert_eq!(checks("failure") + checks("timeout"), 0);
    assert_eq!(tidegate.metrics().one("tidegate_backend_up", &[("backend", &name)]) as u64, 1);
    assert_eq!(tidegate.count_logged(&["down"]), 0, "{}", tidegate.log());
}

#[test]
fn below_the_maximum_nobody_is_refused_whoever_else_looks_for_clients() {
    let backend = Backend::echo();
    let config = Config::over([&backend]).only_runtime("workers = 4\nmax_connections = 1").bind("unix:$DIR/l.sock");
    let tidegate = Tidegate::start(config);
    // A unix socket wakes all workers for one client: each looks for it.
    for _ in 0..1_000 {
        let mut client = tidegate.connect();
        client.send("hello");
        client.expect("hello");
        client.finish();
        client.expect_end(End::Fin);
        tidegate.until_idle();
    }
    assert_eq!(tidegate.closed("max_connections"), 0);
}
