//! Tests of the real binary with system calls that fail: `cargo test --test inject`. They need strace and the right to
//! trace.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../kit/mod.rs"]
mod kit;
mod strace;

use kit::conn::transfer;
use kit::{Backend, Config, End, Launch, Listening, Tidegate, eventually, eventually_eq, throughout};
use std::time::Duration;
use strace::Fault;

/// One worker, so that each call of a kind is counted in one thread.
fn one_worker(backends: &[&Backend]) -> Config {
    let config = Config::over(backends.iter().map(ToString::to_string));
    config.only_runtime("workers = 1").log("access = \"$DIR/access.log\"\nformat = \"json\"")
}

fn echoes(tidegate: &Tidegate) {
    let mut client = tidegate.connect();
    client.send("ping");
    client.expect("ping");
}

fn accept_errors(tidegate: &Tidegate, errno: &str) -> u64 {
    tidegate.metrics().sum("tidegate_listener_accept_errors_total", &[("errno", errno)]) as u64
}

#[test]
fn i03_f02_a_shortage_pauses_accepting_by_a_timer_and_it_recovers_alone() {
    let backend = Backend::echo();
    for errno in ["ENFILE", "ENOBUFS", "ENOMEM", "EMFILE"] {
        let tidegate = Tidegate::start(one_worker(&[&backend]));
        let mut running = tidegate.connect();
        running.send("before");
        running.expect("before");
        let fault = Fault::on(&tidegate, &[&format!("accept4:error={errno}")]);
        let mut waiting = tidegate.connect();
        waiting.send("patience");
        throughout("a running session goes on", Duration::from_secs(2), || {
            running.send("x");
            running.receive(1) == b"x"
        });
        let times: Vec<f64> = fault.hits().iter().map(|(time, _)| *time).collect();
        // A pause of 10 to 100 ms between two tries: 20 to 200 of them in two seconds, fewer on a busy machine.
        assert!((2..=210).contains(&times.len()), "{errno}: {} tries in 2 s", times.len());
        assert!(fault.end() > 0);
        waiting.expect("patience");
        assert!(accept_errors(&tidegate, errno) >= 2, "{errno}");
        assert_eq!(tidegate.count_logged(&["can't accept"]), 1, "one line in ten seconds:\n{}", tidegate.log());
    }
}

#[test]
fn i03_f03_a_storm_of_lost_connections_costs_no_sleep() {
    const STORM: usize = 1_000;
    let backend = Backend::echo();
    for errno in ["ECONNABORTED", "EPROTO"] {
        let tidegate = Tidegate::start(one_worker(&[&backend]));
        let fault = Fault::beside(&tidegate, &[&format!("accept4:error={errno}:when=1..{STORM}")], "/^epoll_p?wait");
        echoes(&tidegate);
        let (hits, looks) = fault.end_beside();
        assert_eq!(hits, STORM);
        // After each pause the worker would have to look what there is to do, and after some it does so anyway.
        assert!(looks <= STORM / 4, "{errno}: {looks} looks");
        assert_eq!(accept_errors(&tidegate, errno), STORM as u64);
    }
}

#[test]
fn i03_every_other_error_of_accept_is_counted_and_survived() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(one_worker(&[&backend]));
    for errno in [
        "EINTR",
        "ENETDOWN",
        "ENETUNREACH",
        "EHOSTUNREACH",
        "EHOSTDOWN",
        "ENONET",
        "ENOPROTOOPT",
        "EOPNOTSUPP",
        "EPERM",
    ] {
        let fault = Fault::on(&tidegate, &[&format!("accept4:error={errno}:when=1..3")]);
        echoes(&tidegate);
        assert_eq!(fault.end(), 3, "{errno}");
        assert_eq!(accept_errors(&tidegate, errno), 3, "{errno}");
    }
    assert_eq!(tidegate.metrics().one("tidegate_listener_up", &[("listener", "web")]) as u64, 1);
}

#[test]
fn i03_f04_a_broken_listener_goes_down_alone_and_is_bound_again() {
    let backend = Backend::echo();
    let config = one_worker(&[&backend]).more("[listeners.other]\nbind = \"127.0.0.1:0\"\npool = \"web\"");
    for errno in ["EINVAL", "EBADF", "ENOTSOCK"] {
        let tidegate = Tidegate::start(&config);
        let up = |listener: &str| tidegate.metrics().one("tidegate_listener_up", &[("listener", listener)]) as u64;
        // To bind it again fails for as long as the fault lasts, so that it can be seen down.
        let accept = format!("accept4:error={errno}:when=1");
        let fault = Fault::on(&tidegate, &[&accept, "bind:error=EADDRINUSE"]);
        // Its accept queue goes with the socket.
        let client = tidegate.connect();
        eventually_eq("it is shown as down", &0, || up("web"));
        assert_eq!(up("other"), 1);
        client.expect_cut();
        let mut other = kit::Conn::to(&tidegate.addr_of("other", 0));
        other.send("ping");
        other.expect("ping");
        // The injector counts in each thread: the admin endpoint's accept may get one as well, and survives it.
        eventually("it has tried three times", || {
            fault.hits().iter().filter(|(_, line)| line.contains("bind(")).count() >= 3
        });
        assert_eq!(up("web"), 0);
        assert!(fault.end() >= 4, "{errno}");
        eventually_eq("it is up again", &1, || up("web"));
        assert_eq!(accept_errors(&tidegate, errno), 1, "{errno}");
        echoes(&tidegate);
        assert!(tidegate.count_logged(&["web", "broke"]) == 1, "{}", tidegate.log());
    }
}

#[test]
fn f06_no_socket_for_the_backend_resets_the_client_and_blames_nobody() {
    let backend = Backend::echo();
    for (errno, reason) in [("EMFILE", "no_fd"), ("ENFILE", "no_fd"), ("ENOBUFS", "no_memory"), ("ENOMEM", "no_memory")]
    {
        let tidegate = Tidegate::start(one_worker(&[&backend]));
        let fault = Fault::on(&tidegate, &[&format!("socket:error={errno}:when=1")]);
        tidegate.connect().expect_end(End::Rst);
        echoes(&tidegate);
        assert_eq!(fault.end(), 1);
        let metrics = tidegate.metrics();
        assert_eq!(metrics.one("tidegate_backend_connect_errors_total", &[("reason", reason)]) as u64, 1, "{errno}");
        assert_eq!(metrics.one("tidegate_backend_up", &[]) as u64, 1);
        assert_eq!(tidegate.closed("no_resources"), 1);
    }
}

#[test]
fn f06_without_pipes_bytes_are_copied() {
    let listening = Listening::new();
    for fault in ["pipe2:error=EMFILE", "pipe2:error=ENFILE", "fcntl:error=EPERM"] {
        let tidegate = Tidegate::start(Config::over([&listening]).only_runtime("workers = 1"));
        let (mut client, mut backend) = (tidegate.connect(), listening.accept());
        transfer(&mut client, &mut backend, 0, 10);
        let fault = Fault::on(&tidegate, &[fault]);
        transfer(&mut client, &mut backend, 10, 3_000_000);
        transfer(&mut backend, &mut client, 0, 3_000_000);
        assert!(fault.end() > 0);
        client.finish();
        backend.expect_end(End::Fin);
        backend.finish();
        client.expect_end(End::Fin);
        eventually_eq("in order", &1, || tidegate.closed("complete"));
    }
}

#[test]
fn f24_without_a_local_port_it_has_a_metric_of_its_own_and_no_health_failure() {
    let (one, two) = (Backend::named("x"), Backend::named("x"));
    let tidegate = Tidegate::start(one_worker(&[&one, &two]));
    let fault = Fault::on(&tidegate, &["connect:error=EADDRNOTAVAIL:when=1"]);
    assert_eq!(tidegate.connect().rest().text(), "x\n", "a port may be free towards another backend");
    assert_eq!(fault.end(), 1);
    let metrics = tidegate.metrics();
    assert_eq!(metrics.one("tidegate_backend_connect_errors_total", &[("reason", "no_port")]) as u64, 1);
    assert_eq!(metrics.sum("tidegate_backend_up", &[]) as u64, 2);

    let fault = Fault::on(&tidegate, &["connect:error=EADDRNOTAVAIL"]);
    tidegate.connect().expect_end(End::Rst);
    assert_eq!(fault.end(), 2);
    eventually_eq("with a reason of its own", &1, || tidegate.closed("no_resources"));
}

#[test]
fn f34_our_own_shortages_eject_nobody() {
    let backends = [Backend::echo(), Backend::echo()];
    for fault in [
        "socket:error=EMFILE",
        "socket:error=ENFILE",
        "socket:error=ENOMEM",
        "connect:error=EADDRNOTAVAIL",
        "connect:error=ENETUNREACH",
        "connect:error=ENOBUFS",
    ] {
        let config = one_worker(&backends.each_ref()).pool("replay = \"16KiB\"");
        let tidegate = Tidegate::start(config.ejection("consecutive_failures = 1\nmax_ejected = \"100%\""));
        let injected = Fault::on(&tidegate, &[fault]);
        for _ in 0..5 {
            tidegate.connect().expect_end(End::Rst);
        }
        assert!(injected.end() >= 5, "{fault}");
        eventually_eq("each for that reason", &5, || tidegate.closed("no_resources"));
        for metric in ["tidegate_backend_ejections_total", "tidegate_backend_traffic_failures_total"] {
            assert_eq!(tidegate.count(metric), 0, "{fault}: {metric}");
        }
        for backend in &backends {
            assert_eq!(tidegate.state(backend), "up", "{fault}");
        }
        echoes(&tidegate);
    }
}

#[test]
fn f24_f34_probes_that_fail_by_our_own_fault_freeze_the_verdict() {
    let backend = Backend::echo();
    let health = "interval = \"50ms\"\nfast_interval = \"50ms\"\nrise = 1\nfall = 1";
    for fault in [
        "socket:error=EMFILE",
        "socket:error=ENFILE",
        "socket:error=ENOMEM",
        "connect:error=EADDRNOTAVAIL",
        "connect:error=ENETUNREACH",
        "connect:error=ENOBUFS",
    ] {
        let tidegate = Tidegate::start(one_worker(&[&backend]).health(health));
        let up = || tidegate.metrics().one("tidegate_backend_up", &[]) as u64;
        eventually_eq("it is up", &1, up);
        let injected = Fault::on(&tidegate, &[fault]);
        let frozen = || tidegate.metrics().sum("tidegate_backend_health_checks_total", &[("result", "frozen")]) as u64;
        eventually("some probes could not be made", || frozen() >= 5);
        assert_eq!(up(), 1, "{fault}");
        assert!(injected.end() >= 5);
        let metrics = tidegate.metrics();
        for result in ["failure", "timeout"] {
            let failed = metrics.sum("tidegate_backend_health_checks_total", &[("result", result)]) as u64;
            assert_eq!(failed, 0, "{fault}: {result}");
        }
        assert_eq!(tidegate.count_logged(&["down"]), 0, "{}", tidegate.log());
        echoes(&tidegate);
    }
}

#[test]
fn interrupted_calls_are_repeated() {
    let listening = Listening::new();
    let tidegate = Tidegate::start(Config::over([&listening]).only_runtime("workers = 1"));
    let faults = ["recvfrom:error=EINTR:when=1+3", "sendto:error=EINTR:when=1+3", "splice:error=EINTR:when=1+3"];
    let fault = Fault::on(&tidegate, &faults);
    let (mut client, mut backend) = (tidegate.connect(), listening.accept());
    transfer(&mut client, &mut backend, 0, 1_000_000);
    transfer(&mut backend, &mut client, 0, 1_000_000);
    client.finish();
    backend.expect_end(End::Fin);
    backend.finish();
    client.expect_end(End::Fin);
    assert!(fault.end() > 0);
}

/// As it is where a process was stopped and goes on.
#[test]
fn f55_a_successor_that_is_interrupted_while_it_hears_what_is_known_takes_over() {
    let backend = Backend::echo();
    let mut tidegate = Launch::new(one_worker(&[&backend])).linked().start();
    let (path, binary) = (tidegate.dir().join("script"), env!("CARGO_BIN_EXE_tidegate"));
    // Which stays the child, as the tracer is a process beside it.
    let strace = "strace -D -qq -o /dev/null -e trace=recvmsg -e inject=recvmsg:error=EINTR:when=1..2";
    kit::files::script(&path, &format!("exec {strace} \"{binary}\" \"$@\""));
    tidegate.replace_binary(&path);
    tidegate.signal(rustix::process::Signal::USR2);
    tidegate.follow_alone();
    echoes(&tidegate);
}
