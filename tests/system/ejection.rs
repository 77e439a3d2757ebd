//! Ejection: real traffic decides, whatever the probes say; how many may go, how they come back, and what never counts.

use crate::kit::{
    Backend, Config, Conn, End, Listening, PATIENCE, Poison, Refusing, Silent, Tidegate, Toxic, Way, eventually,
    eventually_eq, eventually_some, kernel,
};
use std::time::Duration;

const QUICK: &str = "interval = \"300ms\"\nfast_interval = \"100ms\"\ntimeout = \"300ms\"\nrise = 2\nfall = 2";
const EJECTIONS: &str = "tidegate_backend_ejections_total";
const FAILURES: &str = "tidegate_backend_traffic_failures_total";

/// Takes a connection and ends it at once.
fn closing() -> Backend {
    Backend::new(drop)
}

/// Reads a request and resets.
fn resetting() -> Backend {
    Backend::new(|mut conn| {
        if conn.read(&mut [0; 64]).is_ok_and(|count| count > 0) {
            conn.reset();
        }
    })
}

/// One request of a client; true if it was answered by an echo.
fn is_answered(tidegate: &Tidegate) -> bool {
    let mut client = tidegate.connect();
    client.try_send("ping").is_ok() && client.try_receive(4).is_some_and(|answer| answer == b"ping")
}

/// Sends clients until the backend is ejected.
fn until_ejected(tidegate: &Tidegate, backend: &str) {
    eventually("traffic has set it aside", || {
        is_answered(tidegate);
        tidegate.count_of(EJECTIONS, backend) > 0
    });
    assert_eq!(tidegate.state(backend), "ejected");
}

fn answered(tidegate: &Tidegate, times: usize) {
    for _ in 0..times {
        assert!(is_answered(tidegate));
    }
}

#[test]
fn f21_f33_a_backend_that_closes_at_once_passes_its_probe_and_is_ejected() {
    let (bad, good) = (closing(), Backend::echo());
    let name = bad.to_string();
    let config = Config::over([&bad, &good]).health(QUICK).ejection("consecutive_failures = 3\nbase_time = \"300s\"");
    let tidegate = Tidegate::start(config);
    eventually_eq("its probe finds it up", &2, || tidegate.count("tidegate_backend_up"));
    until_ejected(&tidegate, &name);
    assert_eq!(tidegate.count_of(EJECTIONS, &name), 1);
    assert!(tidegate.count_of(FAILURES, &name) >= 3);
    let before = bad.accepted();
    answered(&tidegate, 10);
    // Probes go on, and pass; what they say doesn't bring it back.
    eventually("it is probed", || bad.accepted() >= before + 3);
    assert_eq!(tidegate.state(&name), "ejected");
    assert_eq!(tidegate.count("tidegate_pool_ejected"), 1);
    assert_eq!(tidegate.count("tidegate_pool_available"), 1);
    let ejection = &tidegate.backend_status(&name)["ejection"];
    assert_eq!(ejection["times"], 1);
    assert!(ejection["until"].as_str().unwrap() > tidegate.status()["now"].as_str().unwrap(), "{ejection}");
    assert_eq!(tidegate.count_logged(&[&name, "eject"]), 1, "{}", tidegate.log());
}

#[test]
fn f33_ends_before_the_first_answer_byte_eject_however_they_come() {
    for bad in [resetting(), closing(), Backend::new(|mut conn| drop(conn.read(&mut [0; 64])))] {
        let good = Backend::echo();
        let config = Config::over([&bad, &good]).ejection("consecutive_failures = 2\nbase_time = \"300s\"");
        let tidegate = Tidegate::start(config);
        until_ejected(&tidegate, &bad.to_string());
        answered(&tidegate, 6);
    }
}

#[test]
fn f18_f33_connects_that_fail_eject_and_then_nobody_tries_any_more() {
    let (dead, good) = (Refusing::new(), Backend::echo());
    let name = dead.to_string();
    let config = Config::over([&dead.addr, &good.addr]).ejection("consecutive_failures = 5\nbase_time = \"300s\"");
    let tidegate = Tidegate::start(config);
    answered(&tidegate, 40);
    assert_eq!(tidegate.state(&name), "ejected");
    assert_eq!(tidegate.count_of("tidegate_backend_connect_errors_total", &name), 5);
}

#[test]
fn f33_no_more_than_the_share_is_ejected_and_one_always_may() {
    for (share, most) in [("50%", 2), ("10%", 1), ("0%", 1)] {
        let bad = [closing(), closing(), closing()];
        let good = Backend::echo();
        let backends = bad.iter().chain([&good]);
        let ejection = format!("consecutive_failures = 2\nbase_time = \"300s\"\nmax_ejected = \"{share}\"");
        let config = Config::over(backends).pool("replay = \"1KiB\"").ejection(&ejection);
        let tidegate = Tidegate::start(config.connect("attempts = 4"));
        let ejected = || tidegate.count("tidegate_pool_ejected");
        // Those who may not be ejected cost an attempt each time, but no client.
        answered(&tidegate, 60);
        assert_eq!(ejected(), most, "{share}");
        assert_eq!(tidegate.count(EJECTIONS), most, "{share}");
    }
}

#[test]
fn f33_an_ejected_backend_comes_back_through_one_connection() {
    let (trial, good) = (Listening::new(), Backend::echo());
    let name = trial.to_string();
    let config = Config::over([&trial.addr, &good.addr]).pool("slow_start = \"0s\"");
    let tidegate = Tidegate::start(config.ejection("consecutive_failures = 1\nbase_time = \"1s\""));
    // Round-robin: the first client goes to the first backend.
    let mut client = tidegate.connect();
    client.send("ping");
    let mut backend = trial.accept();
    backend.expect("ping");
    backend.reset();
    client.expect_end(End::Rst);
    eventually_eq("it is set aside", &1, || tidegate.count_of(EJECTIONS, &name));
    eventually_eq("its time is over", &"half_open".to_owned(), || tidegate.state(&name));

    // One client tries it; nobody else is sent there until that one has an answer.
    let mut others = 0;
    let (mut client, mut backend) = loop {
        let mut client = tidegate.connect();
        client.send("ping");
        client.read_timeout(Duration::from_millis(10));
        let backend = eventually_some("one of the two gets it", || match trial.accept_now() {
            Some(backend) => Some(Some(backend)),
            None => client.try_receive(4).map(|_| None),
        });
        if let Some(backend) = backend {
            client.read_timeout(PATIENCE);
            break (client, backend);
        }
        others += 1;
        assert!(others < 1_000, "nobody is sent to it");
    };
    answered(&tidegate, 10);
    assert!(trial.accept_now().is_none());
    assert_eq!(tidegate.state(&name), "half_open");
    backend.expect("ping");
    backend.send("pong");
    client.expect("pong");
    eventually_eq("it is back", &"up".to_owned(), || tidegate.state(&name));
    assert!(tidegate.backend_status(&name)["ejection"]["until"].is_null());
    assert_eq!(tidegate.count("tidegate_pool_ejected"), 0);
    let (mut one, mut other) = (tidegate.connect(), tidegate.connect());
    for client in [&mut one, &mut other] {
        client.send("ping");
    }
    trial.accept().expect("ping");
}

#[test]
fn f33_a_trial_that_fails_ejects_again_and_the_times_are_counted() {
    let (bad, good) = (resetting(), Backend::echo());
    let name = bad.to_string();
    let config = Config::over([&bad, &good]).pool("replay = \"1KiB\"");
    let ejection = "consecutive_failures = 3\nbase_time = \"100ms\"\nmax_time = \"300ms\"";
    let tidegate = Tidegate::start(config.ejection(ejection));
    eventually("it was ejected some times", || {
        answered(&tidegate, 1);
        tidegate.count_of(EJECTIONS, &name) >= 4
    });
    // Three failures for the first time, and one for each later one.
    let metrics = tidegate.metrics();
    let (failures, ejections) = (metrics.sum(FAILURES, &[]) as u64, metrics.sum(EJECTIONS, &[]) as u64);
    assert!((ejections + 2..=ejections + 3).contains(&failures), "{failures} failures, {ejections} ejections");
}

#[test]
fn f33_off_means_that_traffic_sets_nobody_aside() {
    let (bad, good) = (resetting(), Backend::echo());
    let config = Config::over([&bad, &good]).pool("replay = \"1KiB\"").ejection("consecutive_failures = \"off\"");
    let tidegate = Tidegate::start(config);
    answered(&tidegate, 40);
    assert_eq!(tidegate.count(EJECTIONS), 0);
    assert!(bad.accepted() >= 15, "it is tried again and again");
}

#[test]
fn f33_what_the_client_causes_never_counts() {
    // Answers nothing, and ends after the client's FIN.
    let backend = Backend::sink();
    let config = Config::over([&backend]).ejection("consecutive_failures = 1").log("level = \"debug\"");
    let tidegate = Tidegate::start(config);
    for _ in 0..5 {
        tidegate.connect().reset();
        let mut client = tidegate.connect();
        client.send("ping");
        client.reset();
        let mut client = tidegate.connect();
        client.finish();
        client.expect_end(End::Fin);
        let mut client = tidegate.connect();
        client.send("ping");
        client.finish();
        client.expect_end(End::Fin);
    }
    tidegate.until_idle();
    assert_eq!((tidegate.count(EJECTIONS), tidegate.count(FAILURES)), (0, 0));
    assert_eq!(tidegate.state(&backend), "up");
}

#[test]
fn f33_silence_up_to_the_idle_time_out_does_not_count() {
    let backend = Backend::sink();
    let config = Config::over([&backend]).listener("idle_timeout = \"100ms\"").ejection("consecutive_failures = 1");
    let tidegate = Tidegate::start(config);
    let clients: Vec<Conn> = (0..5).map(|_| tidegate.connect()).collect();
    for mut client in clients {
        client.expect_end(End::Rst);
    }
    eventually_eq("each for that reason", &5, || tidegate.closed("idle_timeout"));
    assert_eq!((tidegate.count(EJECTIONS), tidegate.count(FAILURES)), (0, 0));
}

#[test]
fn f33_a_backend_that_has_answered_may_end_as_it_likes() {
    let echo = Backend::echo();
    let toxic = Toxic::before(&echo.addr);
    toxic.poison(Way::Back, Poison::ResetAfter(4));
    let tidegate = Tidegate::start(Config::over([&toxic]).ejection("consecutive_failures = 1"));
    for _ in 0..5 {
        let mut client = tidegate.connect();
        client.send("ping");
        client.expect("ping");
        client.expect_end(End::Rst);
    }
    assert_eq!((tidegate.count(EJECTIONS), tidegate.count(FAILURES)), (0, 0));
}

#[test]
fn f33_a_success_in_between_begins_the_count_anew() {
    let listening = Listening::new();
    let tidegate = Tidegate::start(Config::over([&listening]).ejection("consecutive_failures = 3"));
    for round in 0..4 {
        for failure in 1..=2 {
            let mut client = tidegate.connect();
            client.send("ping");
            let mut backend = listening.accept();
            backend.expect("ping");
            backend.reset();
            client.expect_end(End::Rst);
            eventually_eq("it is counted", &(2 * round + failure), || tidegate.count(FAILURES));
        }
        let mut client = tidegate.connect();
        let mut backend = listening.accept();
        backend.send("pong");
        client.expect("pong");
        drop((client, backend));
        tidegate.until_idle();
    }
    assert_eq!((tidegate.count(EJECTIONS), tidegate.count(FAILURES)), (0, 8));
}

#[test]
fn f33_a_connect_that_is_slower_than_the_bound_counts() {
    let (silent, good) = (Silent::new(), Backend::echo());
    let name = silent.to_string();
    let config = Config::over([&silent.addr, &good.addr]).connect("timeout = \"60s\"\nbudget = \"60s\"");
    let ejection = "consecutive_failures = 1\nbase_time = \"300s\"\nslow_connect = \"100ms\"";
    let tidegate = Tidegate::start(config.ejection(ejection));
    let mut client = tidegate.connect();
    client.send("ping");
    let port = silent.addr.tcp().port();
    eventually("the connect is under way", || kernel::sockets_to(port, &["02"]) == 1);
    crate::kit::wait::pace(Duration::from_millis(200));
    // It is served all the same.
    let mut backend = silent.wake().accept();
    backend.expect("ping");
    backend.send("pong");
    client.expect("pong");
    eventually_eq("it is set aside", &"ejected".to_owned(), || tidegate.state(&name));
    answered(&tidegate, 5);
}

/// An answer doesn't make up for the wait.
#[test]
fn f33_slow_connects_count_in_a_row_although_each_is_served() {
    let mut silent = Silent::new();
    let name = silent.addr.to_string();
    let config = Config::over([&silent.addr]).connect("timeout = \"60s\"\nbudget = \"60s\"");
    let ejection = "consecutive_failures = 2\nbase_time = \"300s\"\nslow_connect = \"100ms\"";
    let tidegate = Tidegate::start(config.ejection(ejection));
    for failures in 1..=2 {
        let mut client = tidegate.connect();
        client.send("ping");
        let port = silent.addr.tcp().port();
        eventually("the connect is under way", || kernel::sockets_to(port, &["02"]) == 1);
        crate::kit::wait::pace(Duration::from_millis(200));
        let listening = silent.wake();
        let mut backend = listening.accept();
        backend.expect("ping");
        backend.send("pong");
        client.expect("pong");
        assert_eq!(tidegate.count_of(FAILURES, &name), failures);
        silent = Silent::of(listening);
    }
    assert_eq!(tidegate.state(&name), "ejected");
}

#[test]
fn f33_an_attempt_that_the_budget_cuts_short_proves_nothing() {
    let silent = [Silent::new(), Silent::new()];
    let config = Config::over(silent.iter().map(|silent| &silent.addr)).connect("timeout = \"4s\"\nbudget = \"5s\"");
    let ejection = "consecutive_failures = 1\nbase_time = \"300s\"\nmax_ejected = \"100%\"";
    let tidegate = Tidegate::start(config.ejection(ejection));
    tidegate.connect().expect_end(End::Rst);
    tidegate.until_idle();
    assert_eq!((tidegate.count(FAILURES), tidegate.count(EJECTIONS)), (1, 1));
}

/// Tired of waiting, or with no more to do for a client that has gone.
#[test]
fn f33_a_reset_of_a_client_that_asked_nothing_does_not_count() {
    let tired = Backend::new(|conn| {
        // Far later than an end that counts, on the slowest machine.
        crate::kit::wait::pace(Duration::from_millis(2_500));
        conn.reset();
    });
    let done = Backend::new(|mut conn| {
        let _ = conn.read(&mut [0; 1]);
        conn.reset();
    });
    for (backend, finishes) in [(tired, false), (done, true)] {
        for replay in ["replay = \"off\"", "replay = \"1KiB\""] {
            let config = Config::over([&backend]).pool(replay).ejection("consecutive_failures = 1");
            let tidegate = Tidegate::start(config);
            let mut client = tidegate.connect();
            if finishes {
                client.finish();
            }
            client.expect_end(End::Rst);
            tidegate.until_idle();
            assert_eq!((tidegate.count(FAILURES), tidegate.count(EJECTIONS)), (0, 0), "{replay}, {finishes}");
        }
    }
}

/// Or whoever connects and waits could keep a backend out for as long as it likes.
#[test]
fn f33_a_client_that_says_nothing_does_not_keep_a_backend_out() {
    let bad_once = Listening::new();
    let name = bad_once.to_string();
    let good = Backend::echo();
    let config = Config::over([&bad_once.addr, &good.addr]).pool("slow_start = \"0s\"");
    let tidegate = Tidegate::start(config.ejection("consecutive_failures = 1\nbase_time = \"500ms\""));
    let mut client = tidegate.connect();
    client.send("ping");
    let mut backend = bad_once.accept();
    backend.expect("ping");
    backend.reset();
    client.expect_end(End::Rst);
    eventually_eq("its time is over", &"half_open".to_owned(), || tidegate.state(&name));
    let mut silent = Vec::new();
    let _trial = eventually_some("one of them is the trial", || {
        silent.push(tidegate.connect());
        bad_once.accept_now()
    });
    let (mut client, mut backend) = eventually_some("another one gets its turn", || {
        let mut client = tidegate.connect();
        client.send("ping");
        client.read_timeout(Duration::from_millis(10));
        let backend = eventually_some("one of the two gets it", || match bad_once.accept_now() {
            Some(backend) => Some(Some(backend)),
            None => client.try_receive(4).map(|_| None),
        })?;
        client.read_timeout(PATIENCE);
        Some((client, backend))
    });
    backend.expect("ping");
    backend.send("pong");
    client.expect("pong");
    eventually_eq("it is back", &"up".to_owned(), || tidegate.state(&name));
    drop(silent);
}

#[test]
fn f33_the_only_backend_is_served_from_even_when_it_is_ejected() {
    let bad = Backend::new(|mut conn| {
        let mut byte = [0; 1];
        match conn.read(&mut byte) {
            Ok(1) if byte[0] == b'!' => conn.reset(),
            Ok(1) => drop(conn.try_send("fine")),
            _ => {}
        }
    });
    let ejection = "consecutive_failures = 2\nbase_time = \"300s\"";
    let tidegate = Tidegate::start(Config::over([&bad]).ejection(ejection));
    for _ in 0..2 {
        let mut client = tidegate.connect();
        client.send("!");
        client.expect_end(End::Rst);
    }
    // With nobody left the pool panics, and uses whom it has.
    for _ in 0..5 {
        let mut client = tidegate.connect();
        client.send("?");
        client.expect("fine");
    }
}
