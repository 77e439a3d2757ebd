//! How bytes are relayed: by copying or through pipes, as the config asks for it, and always exactly.

use crate::kit::backend::echo;
use crate::kit::conn::transfer;
use crate::kit::{Backend, Config, End, Listening, Tidegate, eventually};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A session that has carried megabytes both ways, and whose client has left the backend's last bytes unread.
fn pour(tidegate: &Tidegate, listening: &Listening, while_full: impl FnOnce()) {
    const FIRST: u64 = 3_000_000;
    let (mut client, mut backend) = (tidegate.connect(), listening.accept());
    transfer(&mut client, &mut backend, 0, FIRST);
    transfer(&mut backend, &mut client, 0, FIRST);
    let sent = backend.stuff(FIRST, 64 << 20, Duration::from_millis(500));
    while_full();
    client.expect_pattern(FIRST, sent);
    client.finish();
    backend.expect_end(End::Fin);
    backend.finish();
    client.expect_end(End::Fin);
}

/// Pipes that the process has open, beside those of its start.
fn pipes(tidegate: &Tidegate, at_start: usize) -> usize {
    (count_pipe_ends(tidegate) - at_start) / 2
}

fn count_pipe_ends(tidegate: &Tidegate) -> usize {
    tidegate.fds().iter().filter(|target| target.starts_with("pipe:")).count()
}

#[test]
fn who_asks_for_copying_gets_no_pipe() {
    let listening = Listening::new();
    let tidegate = Tidegate::start(Config::over([&listening]).runtime("relay = \"copy\""));
    let at_start = count_pipe_ends(&tidegate);
    pour(&tidegate, &listening, || assert_eq!(pipes(&tidegate, at_start), 0));
    tidegate.until_idle();
    let metrics = tidegate.metrics();
    assert_eq!(metrics.one("tidegate_pipes_held", &[]) as u64, 0);
    // Nobody wanted one.
    assert_eq!(metrics.one("tidegate_pipe_fallbacks_total", &[]) as u64, 0);
}

#[test]
fn who_asks_for_splicing_gets_pipes_that_hold_what_nobody_reads() {
    let listening = Listening::new();
    let tidegate = Tidegate::start(Config::over([&listening]).runtime("relay = \"splice\""));
    let at_start = count_pipe_ends(&tidegate);
    pour(&tidegate, &listening, || {
        assert!(pipes(&tidegate, at_start) > 0);
        eventually("the metrics tell of them", || tidegate.metrics().one("tidegate_pipes_held", &[]) >= 1.0);
    });
    eventually("a worker at rest holds none", || tidegate.metrics().one("tidegate_pipes_held", &[]) == 0.0);
    assert_eq!(pipes(&tidegate, at_start), 0);
}

#[test]
fn splicing_that_is_asked_for_begins_with_the_first_big_read() {
    /// Less than the 128 KiB that are copied first without being asked.
    const BURST: u64 = 100_000;
    for (mode, spliced) in [("auto", false), ("splice", true)] {
        let listening = Listening::new();
        let tidegate = Tidegate::start(Config::over([&listening]).runtime(&format!("relay = \"{mode}\"")));
        let at_start = count_pipe_ends(&tidegate);
        let (mut client, mut backend) = (tidegate.connect(), listening.accept());
        client.send("hello");
        backend.expect("hello");
        assert_eq!(pipes(&tidegate, at_start), 0, "not for small reads");
        transfer(&mut backend, &mut client, 0, BURST);
        let held = || tidegate.metrics().one("tidegate_pipes_held", &[]) as u64;
        if spliced {
            // How much the first reads find is up to the kernel's timing, and it takes two big ones.
            let mut at = BURST;
            eventually("a pipe was made", || {
                transfer(&mut backend, &mut client, at, BURST);
                at += BURST;
                held() > 0
            });
        } else {
            assert_eq!(pipes(&tidegate, at_start), 0);
        }
    }
}

/// 64 downloads without end on the only worker, and everybody else beside them.
#[test]
fn large_transfers_starve_nobody_not_even_each_other() {
    const STREAMS: usize = 64;
    let backend = Backend::new(|mut conn| {
        let mut kind = [0];
        match conn.read(&mut kind) {
            Ok(1) if kind == *b"d" => while conn.try_send(vec![7; 256 << 10]).is_ok() {},
            Ok(1) => echo(conn),
            _ => {}
        }
    });
    let config = Config::over([&backend]).only_runtime("workers = 1");
    let tidegate = Tidegate::start(config.health("interval = \"50ms\"\nfast_interval = \"50ms\"\nfall = 1"));
    let done = AtomicBool::new(false);
    let moved: Vec<AtomicU64> = (0..STREAMS).map(|_| AtomicU64::new(0)).collect();
    let so_far = || -> Vec<u64> { moved.iter().map(|moved| moved.load(Ordering::Relaxed)).collect() };
    let all_moved_since = |before: &[u64]| so_far().iter().zip(before).all(|(now, before)| now - before > 1 << 20);
    std::thread::scope(|scope| {
        for moved in &moved {
            let mut client = tidegate.connect();
            let done = &done;
            scope.spawn(move || {
                client.send("d");
                let mut buffer = vec![0; 256 << 10];
                while !done.load(Ordering::Relaxed) {
                    moved.fetch_add(client.read(&mut buffer).unwrap() as u64, Ordering::Relaxed);
                }
                client.reset();
            });
        }
        // Ends the streams also where an expectation fails.
        let _ends = Raised(&done);
        let name = backend.to_string();
        let checks = || {
            let labels = [("backend", &*name), ("result", "success")];
            tidegate.metrics().sum("tidegate_backend_health_checks_total", &labels) as u64
        };
        eventually("all transfers are large", || all_moved_since(&[0; STREAMS]));
        let (before, checked) = (so_far(), checks());
        let mut resident = tidegate.connect();
        resident.send("e");
        for _ in 0..20 {
            let mut client = tidegate.connect();
            client.send("etide");
            client.expect("tide");
            resident.send("gate");
            resident.expect("gate");
            assert_eq!(tidegate.get("/livez").status, 200);
        }
        eventually("each transfer has gone on", || all_moved_since(&before));
        eventually("probes have gone on", || checks() >= checked + 5);
        assert_eq!(tidegate.metrics().one("tidegate_backend_up", &[("backend", &name)]) as u64, 1);
        assert_eq!(tidegate.count_logged(&["is down"]), 0, "{}", tidegate.log());
    });
}

/// Set when it goes out of scope.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
