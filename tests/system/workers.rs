//! Several workers: how long connections spread over them, and what becomes of those that the kernel gives to a stuck
//! one.
//!
//! A debug build stands still in one worker for as long as there is the file that `TIDEGATE_TEST_STALL` names.

use crate::kit::conn::transfer;
use crate::kit::metrics::Metrics;
use crate::kit::{Addr, Backend, Config, Conn, End, Launch, Listening, Tidegate, eventually, eventually_some, kernel};
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};

const WORKERS: usize = 4;
/// Long enough for every session of a test to end by itself.
const DRAIN: &str = "drain_timeout = \"60s\"";

fn workers(config: Config, count: usize) -> Config {
    config.only_runtime(&format!("workers = {count}"))
}

fn echoes(client: &mut Conn) {
    client.send("ping");
    client.expect("ping");
}

/// True once connects are refused.
fn refuses(address: &Addr) -> bool {
    Conn::try_to(address).map(Conn::reset).is_err()
}

/// Sessions of each worker, once there are `count` of them.
fn spread(tidegate: &Tidegate, count: usize) -> Vec<usize> {
    let of = |metrics: &Metrics, worker: usize| {
        metrics.one("tidegate_worker_sessions", &[("worker", &worker.to_string())]) as usize
    };
    eventually_some("every session is counted", || {
        let metrics = tidegate.metrics();
        let spread: Vec<usize> = (0..WORKERS).map(|worker| of(&metrics, worker)).collect();
        (spread.iter().sum::<usize>() == count).then_some(spread)
    })
}

#[test]
fn long_connections_spread_over_the_workers() {
    kernel::raise_own_fd_limit();
    for count in [8, 64, 1_000] {
        let listening = Listening::new();
        let tidegate = Tidegate::start(workers(Config::over([&listening]), WORKERS));
        let held: Vec<(Conn, Conn)> = (0..count).map(|_| (tidegate.connect(), listening.accept())).collect();
        let spread = spread(&tidegate, count);
        let handed_over = tidegate.metrics().sum("tidegate_worker_handed_over_total", &[]);
        println!("{count} connections: {spread:?}, {handed_over} handed over");
        let most = spread.iter().max().unwrap();
        if count < 64 {
            assert!(*most <= count / WORKERS + 1, "{spread:?}");
        } else {
            assert!(most * WORKERS * 10 <= count * 13, "{spread:?}");
        }
        drop(held);
        tidegate.until_idle();
    }
}

/// With four workers, and the file that makes number 1 of them stand still.
fn stallable(config: Config, drain: &str) -> (Tidegate, PathBuf) {
    let launch = Launch::new(workers(config, WORKERS).runtime(drain));
    let file = launch.dir().join("stall");
    let hook = format!("1:{}", file.display());
    (launch.env("TIDEGATE_TEST_STALL", &hook).start(), file)
}

/// Worker 1 does nothing from here on. Nobody knows of it yet.
fn stall(file: &Path) {
    fs::write(file, "").unwrap();
    eventually("worker 1 stands still", || file.with_extension("begun").exists());
}

#[test]
fn new_clients_of_a_stuck_worker_are_served_by_another_and_its_sessions_wait() {
    let backend = Backend::echo();
    let (tidegate, file) = stallable(Config::over([&backend]), DRAIN);
    let mut before: Vec<Conn> = (0..40).map(|_| tidegate.connect()).collect();
    before.iter_mut().for_each(echoes);
    stall(&file);
    // The kernel gives a quarter of them to worker 1; most of these before anybody can know that it is stuck.
    let mut fresh: Vec<Conn> = (0..100).map(|_| tidegate.connect()).collect();
    fresh.iter_mut().for_each(echoes);
    tidegate.logged(&["a worker is stuck", "worker=1", "accepts in its place"]);
    assert_eq!(tidegate.metrics().one("tidegate_worker_stuck", &[("worker", "1")]) as usize, 1);
    fresh.extend((0..100).map(|_| tidegate.connect()));
    fresh.iter_mut().for_each(echoes);

    for client in &mut before {
        client.send("late");
    }
    fs::remove_file(&file).unwrap();
    for client in &mut before {
        client.expect("late");
    }
    tidegate.logged(&["a worker that was stuck is back", "worker=1"]);
    eventually("the metric says so too", || tidegate.metrics().sum("tidegate_worker_stuck", &[]) == 0.0);
    fresh.extend((0..40).map(|_| tidegate.connect()));
    fresh.iter_mut().chain(&mut before).for_each(echoes);
}

#[test]
fn f52_a_stop_serves_the_queue_of_a_stuck_worker_and_ends_its_listening() {
    let backend = Backend::echo();
    let dir = tempfile::tempdir().unwrap();
    let unix = Addr::Unix(dir.path().join("web.sock"));
    let config = Config::over([&backend]).binds(["127.0.0.1:0", &unix.to_string()]);
    let (mut tidegate, file) = stallable(config, DRAIN);
    stall(&file);
    // Some wait for worker 1 when the stop comes, which isn't known to be stuck yet.
    let address = tidegate.addr();
    let mut waiting: Vec<Conn> = (0..100).map(|_| Conn::to(&address)).collect();
    tidegate.signal(Signal::TERM);
    for client in &mut waiting {
        echoes(client);
        client.finish();
        client.expect_end(End::Fin);
    }
    eventually("no socket listens any more", || refuses(&address) && refuses(&unix));
    assert!(tidegate.lives(), "worker 1 has not heard of the stop");
    fs::remove_file(&file).unwrap();
    assert_eq!(tidegate.wait().code, Some(0));
    assert_eq!(tidegate.count_logged(&["listener broke"]), 0, "{}", tidegate.log());
}

#[test]
fn f53_a_stuck_worker_does_not_hold_up_the_drain_deadline_nor_a_second_signal() {
    for second in [false, true] {
        let listening = Listening::new();
        let drain = if second { "drain_timeout = \"10m\"" } else { "drain_timeout = \"500ms\"" };
        let (mut tidegate, file) = stallable(Config::over([&listening]), drain);
        let mut held: Vec<(Conn, Conn)> = (0..40).map(|_| (tidegate.connect(), listening.accept())).collect();
        for (client, backend) in &mut held {
            transfer(client, backend, 0, 100);
        }
        stall(&file);
        tidegate.signal(Signal::TERM);
        if second {
            eventually("it drains", || refuses(&tidegate.addr()));
            tidegate.signal(Signal::TERM);
        }
        for (client, backend) in &mut held {
            client.expect_end(End::Rst);
            backend.expect_end(End::Rst);
        }
        let exit = tidegate.wait();
        // A worker that doesn't end is a bug of ours, and so says the exit code.
        assert_eq!((exit.code, exit.signal), (Some(70), None), "{exit:?}");
    }
}

/// The clients wait until all workers go on at once, so that many are handed over while the inboxes are being closed.
#[test]
fn f52_nobody_who_is_being_handed_over_is_lost_at_a_stop() {
    for stops in [false, true, true, true, true] {
        let backend = Backend::echo();
        let mut tidegate = Tidegate::start(workers(Config::over([&backend]), 8).runtime(DRAIN));
        tidegate.signal(Signal::STOP);
        let mut waiting: Vec<Conn> = (0..300).map(|_| tidegate.connect()).collect();
        if stops {
            tidegate.signal(Signal::TERM);
        }
        tidegate.signal(Signal::CONT);
        waiting.iter_mut().for_each(echoes);
        if !stops {
            let handed_over = tidegate.metrics().sum("tidegate_worker_handed_over_total", &[]);
            assert!(handed_over > 0.0, "as the others can be expected to have them, too");
            tidegate.signal(Signal::TERM);
        }
        for client in &mut waiting {
            client.finish();
            client.expect_end(End::Fin);
        }
        assert_eq!(tidegate.wait().code, Some(0));
    }
}

#[test]
fn one_worker_hands_nothing_over() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(workers(Config::over([&backend]), 1));
    let mut clients: Vec<Conn> = (0..20).map(|_| tidegate.connect()).collect();
    clients.iter_mut().for_each(echoes);
    assert_eq!(tidegate.metrics().sum("tidegate_worker_handed_over_total", &[]) as usize, 0);
    eventually("they are counted", || tidegate.metrics().sum("tidegate_worker_sessions", &[]) as usize == 20);
}
