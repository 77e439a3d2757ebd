//! How bytes are relayed: by copying or through pipes, as the config asks for it, and always exactly.

use crate::kit::conn::transfer;
use crate::kit::{Config, End, Listening, Tidegate, eventually};
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
