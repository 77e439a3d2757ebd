//! The end of the process: signals, the lame duck, the drain, its deadline, and the exit codes.

use crate::kit::conn::transfer;
use crate::kit::{Addr, Backend, Config, Conn, End, Listening, Tidegate, eventually, throughout};
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn echoes(client: &mut Conn) {
    client.send("ping");
    client.expect("ping");
}

/// True once connects are refused.
pub fn refuses(address: &Addr) -> bool {
    match Conn::try_to(address) {
        Ok(conn) => {
            conn.reset();
            false
        }
        Err(_) => true,
    }
}

#[test]
fn f53_sigterm_and_sigint_end_an_idle_process_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let backend = Backend::echo();
        let mut tidegate = Tidegate::start(Config::over([&backend]));
        tidegate.signal(signal);
        let exit = tidegate.wait();
        assert_eq!((exit.code, exit.signal), (Some(0), None), "{exit:?}");
    }
}

#[test]
fn f52_sessions_that_end_within_the_drain_are_not_cut() {
    let listening = Listening::new();
    let config = Config::over([&listening]).runtime("drain_timeout = \"60s\"");
    let mut tidegate = Tidegate::start(config.log("access = \"$DIR/access.log\"\nformat = \"json\""));
    let (mut client, mut backend) = (tidegate.connect(), listening.accept());
    transfer(&mut client, &mut backend, 0, 1_000_000);
    tidegate.signal(Signal::TERM);
    eventually("connects are refused", || refuses(&tidegate.addr()));
    // Both directions go on, and so does the admin endpoint, which says why it isn't ready.
    transfer(&mut client, &mut backend, 1_000_000, 1_000_000);
    transfer(&mut backend, &mut client, 0, 1_000_000);
    assert!(tidegate.lives());
    let answer = tidegate.get("/readyz");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("drain") || answer.body.contains("stop"), "{}", answer.body);
    assert_eq!(tidegate.get("/livez").status, 200);
    client.finish();
    backend.expect_end(End::Fin);
    backend.send("goodbye");
    backend.finish();
    client.expect("goodbye");
    client.expect_end(End::Fin);
    assert_eq!(tidegate.wait().code, Some(0));
    let log = std::fs::read_to_string(tidegate.dir().join("access.log")).unwrap();
    assert!(log.contains("\"reason\":\"complete\""), "the last line was flushed: {log}");
}

#[test]
fn f52_under_load_no_connect_fails_before_the_listener_closes_and_nobody_is_cut() {
    let backend = Backend::echo();
    let config = Config::over([&backend]).runtime("drain_timeout = \"60s\"");
    let mut tidegate = Tidegate::start(config);
    let address = tidegate.addr();
    let mut held: Vec<Conn> = (0..20).map(|_| tidegate.connect()).collect();
    held.iter_mut().for_each(echoes);
    let (served, stopping) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let asked_to_stop = stopping.load(Ordering::SeqCst);
                    let Ok(mut client) = Conn::try_to(&address) else {
                        assert!(stopping.load(Ordering::SeqCst), "refused before the stop");
                        return;
                    };
                    if client.try_send("ping").is_err() || client.try_receive(4).as_deref() != Some(b"ping") {
                        // The kernel completed this handshake between the last accept and the close of the socket.
                        assert!(asked_to_stop || stopping.load(Ordering::SeqCst), "cut before the stop");
                        // Each worker closes its own socket of the listener, one just after the other.
                        eventually("the listener is closed", || refuses(&address));
                        return;
                    }
                    client.finish();
                    client.expect_end(End::Fin);
                    served.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        eventually("load is on", || served.load(Ordering::SeqCst) > 200);
        stopping.store(true, Ordering::SeqCst);
        tidegate.signal(Signal::TERM);
    });
    // Sessions that stood before are served on, until they end by themselves.
    held.iter_mut().for_each(echoes);
    assert!(tidegate.lives());
    for client in &mut held {
        client.finish();
        client.expect_end(End::Fin);
    }
    assert_eq!(tidegate.wait().code, Some(0));
    assert_eq!(tidegate.count_logged(&["deadline"]), 0, "{}", tidegate.log());
}

#[test]
fn end_f52_at_the_drain_deadline_the_rest_is_reset_and_their_number_logged() {
    let listening = Listening::new();
    let config = Config::over([&listening]).runtime("drain_timeout = \"500ms\"");
    let mut tidegate = Tidegate::start(config.log("access = \"$DIR/access.log\"\nformat = \"json\""));
    let mut held: Vec<_> = (0..7).map(|_| (tidegate.connect(), listening.accept())).collect();
    for (client, backend) in &mut held {
        transfer(client, backend, 0, 200_000);
    }
    tidegate.signal(Signal::TERM);
    for (client, backend) in &mut held {
        client.expect_end(End::Rst);
        backend.expect_end(End::Rst);
    }
    let exit = tidegate.wait();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    let line = exit.stderr.lines().find(|line| line.contains("\"sessions\":7"));
    assert!(line.is_some(), "a line with the number of sessions that were cut: {}", exit.stderr);
    let log = std::fs::read_to_string(tidegate.dir().join("access.log")).unwrap();
    assert_eq!(log.matches("\"reason\":\"drain_deadline\"").count(), 7, "{log}");
}

#[test]
fn end_f52_a_session_without_a_backend_yet_is_reset_at_the_drain_deadline_too() {
    let silent = crate::kit::Silent::new();
    let config = Config::over([&silent]).connect("timeout = \"60s\"\nbudget = \"60s\"");
    let mut tidegate = Tidegate::start(config.runtime("drain_timeout = \"500ms\""));
    let mut client = tidegate.connect();
    eventually("it is being connected", || tidegate.slots() == 1);
    tidegate.signal(Signal::TERM);
    client.expect_end(End::Rst);
    assert_eq!(tidegate.wait().code, Some(0));
}

#[test]
fn f53_a_second_signal_ends_it_now() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::INT), (Signal::TERM, Signal::INT)] {
        let listening = Listening::new();
        let config = Config::over([&listening]).runtime("drain_timeout = \"10m\"");
        let mut tidegate = Tidegate::start(config);
        let (mut client, mut backend) = (tidegate.connect(), listening.accept());
        transfer(&mut client, &mut backend, 0, 1_000);
        tidegate.signal(first);
        eventually("it drains", || refuses(&tidegate.addr()));
        assert!(tidegate.lives());
        tidegate.signal(second);
        client.expect_end(End::Rst);
        backend.expect_end(End::Rst);
        let exit = tidegate.wait();
        assert_eq!(exit.signal, None, "it ends itself: {exit:?}");
        assert_eq!(exit.code, Some(0), "{exit:?}");
    }
}

#[test]
fn f53_a_second_signal_cuts_the_lame_duck_short() {
    let backend = Backend::echo();
    let config = Config::over([&backend]).runtime("lame_duck = \"10m\"\ndrain_timeout = \"10m\"");
    let mut tidegate = Tidegate::start(config);
    tidegate.signal(Signal::TERM);
    eventually("it is not ready", || tidegate.get("/readyz").status == 503);
    tidegate.signal(Signal::TERM);
    assert_eq!(tidegate.wait().code, Some(0));
}

#[test]
fn f53_sigpipe_sighup_and_the_user_signals_do_not_kill() {
    let backend = Backend::echo();
    let mut tidegate = Tidegate::start(Config::over([&backend]));
    for signal in [Signal::PIPE, Signal::HUP] {
        for _ in 0..20 {
            tidegate.signal(signal);
        }
    }
    let mut client = tidegate.connect();
    throughout("it serves on", Duration::from_millis(300), || {
        echoes(&mut client);
        tidegate.lives()
    });
}

#[test]
fn the_lame_duck_is_not_ready_but_accepts_until_its_time_is_over() {
    let backend = Backend::echo();
    let config = Config::over([&backend]).runtime("lame_duck = \"1500ms\"");
    let mut tidegate = Tidegate::start(config);
    let begun = Instant::now();
    tidegate.signal(Signal::TERM);
    eventually("it is not ready", || tidegate.get("/readyz").status == 503);
    // Only a refusal after the whole time is right; each connect before it is served.
    loop {
        let Ok(mut client) = Conn::try_to(&tidegate.addr()) else { break };
        if client.try_send("ping").is_err() || client.try_receive(4).is_none() {
            break;
        }
    }
    assert!(begun.elapsed() >= Duration::from_millis(1_400), "closed after {:?}", begun.elapsed());
    assert_eq!(tidegate.wait().code, Some(0));
}

#[test]
fn f52_clients_that_wait_in_the_accept_queue_are_still_served() {
    let backend = Backend::echo();
    let mut tidegate = Tidegate::start(Config::over([&backend]).runtime("drain_timeout = \"60s\""));
    tidegate.signal(Signal::STOP);
    let mut waiting: Vec<Conn> = (0..50).map(|_| tidegate.connect()).collect();
    tidegate.signal(Signal::TERM);
    tidegate.signal(Signal::CONT);
    for client in &mut waiting {
        echoes(client);
        client.finish();
        client.expect_end(End::Fin);
    }
    assert_eq!(tidegate.wait().code, Some(0));
}

#[test]
fn the_log_tells_start_and_stop() {
    let backend = Backend::echo();
    let mut tidegate = Tidegate::start(Config::over([&backend]));
    let address = tidegate.addr().to_string();
    tidegate.logged(&["ready"]);
    assert!(tidegate.log().contains(&address), "where it listens: {}", tidegate.log());
    tidegate.signal(Signal::TERM);
    let exit = tidegate.wait();
    assert!(exit.stderr.contains("SIGTERM"), "{}", exit.stderr);
}

#[test]
fn the_json_log_is_json_line_by_line() {
    let backend = Backend::echo();
    let mut tidegate = Tidegate::start(Config::over([&backend]).log("format = \"json\"\nlevel = \"debug\""));
    echoes(&mut tidegate.connect());
    tidegate.signal(Signal::TERM);
    let exit = tidegate.wait();
    assert!(exit.stderr.lines().count() >= 2, "{}", exit.stderr);
    for line in exit.stderr.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        assert!(value.is_object());
    }
}

/// The kernel would end the sockets of a dead process with a FIN.
#[test]
fn i01_a_process_that_is_killed_leaves_resets_and_no_false_end() {
    let listening = Listening::new();
    let mut tidegate = Tidegate::start(Config::over([&listening]));
    tidegate.leaks_not_asked();
    let (mut client, mut backend) = (tidegate.connect(), listening.accept());
    transfer(&mut client, &mut backend, 0, 50_000);
    transfer(&mut backend, &mut client, 0, 1_500_000);
    tidegate.signal(Signal::KILL);
    tidegate.wait();
    client.expect_end(End::Rst);
    backend.expect_end(End::Rst);
}

#[test]
fn a_limit_for_which_clients_wait_delays_no_stop_and_lets_nobody_in_who_comes_after_it() {
    let backend = Backend::echo();
    let dir = tempfile::tempdir().unwrap();
    let unix = Addr::Unix(dir.path().join("web.sock"));
    for bind in [Addr::parse("127.0.0.1:0"), unix] {
        // Used up by the first one, for an hour.
        let config = Config::over([&backend]).bind(&bind).listener("overload = \"wait\"\naccept_rate = \"1/h\"");
        let mut tidegate = Tidegate::start(config.runtime("drain_timeout = \"1h\""));
        tidegate.echoed().finish();
        tidegate.until_idle();
        tidegate.signal(Signal::TERM);
        assert_eq!(tidegate.wait().code, Some(0), "{bind}");
    }

    let config = Config::over([&backend]).listener("overload = \"wait\"\nmax_connections = 1");
    let mut tidegate = Tidegate::start(config.only_runtime("workers = 1\ndrain_timeout = \"1h\""));
    let first = tidegate.echoed();
    // The kernel has connected it before the stop: it has its turn.
    let mut second = tidegate.connect();
    second.send("hello");
    eventually("it waits", || tidegate.metrics().sum("tidegate_listener_accept_queue_length", &[]) as u64 == 1);
    tidegate.signal(Signal::TERM);
    tidegate.logged(&["stopping"]);
    drop(first);
    second.expect("hello");
    eventually("who comes later is refused", || refuses(&tidegate.addr()));
    drop(second);
    assert_eq!(tidegate.wait().code, Some(0));
}

/// The answer comes first, and then all that a signal brings about.
#[test]
fn an_operator_can_begin_the_stop_and_hears_of_it_before_it_begins() {
    let backend = Backend::echo();
    let mut tidegate = Tidegate::start(Config::over([&backend]).runtime("drain_timeout = \"1h\""));
    let mut client = tidegate.echoed();
    let answer = tidegate.post("/drain", "");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let said = answer.json();
    assert_eq!((&said["ok"], &said["changed"]), (&true.into(), &true.into()), "{said}");
    assert!(said["summary"].as_str().unwrap().starts_with("draining: "), "{said}");
    assert_eq!(said["details"]["drain_timeout_ms"], 3_600_000);
    tidegate.logged(&["changed", "command=\"drain\"", "by=\"token"]);
    eventually("connects are refused", || refuses(&tidegate.addr()));
    assert_eq!(tidegate.get("/readyz").status, 503);
    echoes(&mut client);
    let again = tidegate.post("/drain", "");
    assert_eq!((again.status, &again.json()["error"]), (409, &"the process is stopping".into()));
    client.finish();
    client.expect_end(End::Fin);
    assert_eq!(tidegate.wait().code, Some(0));
}

/// With nothing to wait for it is gone at once, and still it has answered.
#[test]
fn an_idle_process_answers_who_asks_it_to_stop_and_a_lame_duck_serves_on() {
    let backend = Backend::echo();
    for _ in 0..5 {
        let mut tidegate = Tidegate::start(Config::over([&backend]));
        assert_eq!(tidegate.post("/drain", "").status, 200);
        assert_eq!(tidegate.wait().code, Some(0));
    }
    let mut tidegate = Tidegate::start(Config::over([&backend]).runtime("lame_duck = \"1h\""));
    let said = tidegate.post("/drain", "").json();
    assert_eq!(said["details"]["lame_duck_ms"], 3_600_000, "{said}");
    eventually("it is not ready", || tidegate.get("/readyz").status == 503);
    echoes(&mut tidegate.connect());
    // As after a first signal.
    tidegate.signal(Signal::TERM);
    assert_eq!(tidegate.wait().code, Some(0));
}
