//! Memory: a burst of sessions leaves nothing behind.

use crate::kit::{Config, Conn, Listening, Tidegate, eventually, kernel};

/// What may stay of a burst, whatever its size: pages in which something long-lived came to lie, and the table of the
/// sessions; some 0.7 MiB were seen.
const MARGIN: u64 = 2 << 20;

/// As many sessions at once, each with a client that doesn't read and a backend that has sent until nobody took more:
/// what is on its way is in buffers of ours. How much memory that took.
fn burst(tidegate: &Tidegate, listening: &Listening, sessions: usize) -> u64 {
    let before = kernel::resident(tidegate.pid);
    let mut open: Vec<(Conn, Conn, u64)> = (0..sessions).map(|_| (tidegate.connect(), listening.accept(), 0)).collect();
    let mut still = 0;
    eventually("all of them are stuffed", || {
        let more: u64 = open
            .iter_mut()
            .map(|(_, backend, sent)| {
                let more = backend.stuff_now(*sent);
                *sent += more;
                more
            })
            .sum();
        still = if more == 0 { still + 1 } else { 0 };
        still >= 10
    });
    let took = kernel::resident(tidegate.pid).saturating_sub(before);
    for (mut client, _backend, sent) in open.drain(..).step_by(50) {
        client.expect_pattern(0, sent);
    }
    took
}

#[test]
fn i05_memory_returns_after_a_burst() {
    kernel::raise_own_fd_limit();
    let dir = tempfile::tempdir().unwrap();
    let listening = Listening::unix(dir.path());
    // By copying: what lies in a pipe is the kernel's.
    let config = Config::over([&listening]).runtime("relay = \"copy\"").bind("unix:$DIR/web.sock");
    let tidegate = Tidegate::start(config);
    // What is allocated once for all, and the pages of code that this touches.
    burst(&tidegate, &listening, 20);
    tidegate.until_idle();
    let before = kernel::resident(tidegate.pid);
    for _ in 0..2 {
        let took = burst(&tidegate, &listening, 1_000);
        assert!(took > 4 * MARGIN, "no burst at all: {took} bytes");
        tidegate.until_idle();
        let left = || kernel::resident(tidegate.pid).saturating_sub(before);
        eventually("the memory is given back", || left() <= MARGIN);
    }
}

/// Also of what a scrape shows.
#[test]
fn f83_five_thousand_backends_take_little_memory_and_are_all_in_the_metrics() {
    const BACKENDS: usize = 5_000;
    /// Bytes for each, its part of the config and of the metrics included.
    const EACH: u64 = 2_500;
    let resident = |backends: usize| {
        let backends = (0..backends).map(|index| format!("127.1.{}.{}:9", index / 250, index % 250 + 1));
        let tidegate = Tidegate::start(Config::over(backends));
        let resident = kernel::resident(tidegate.pid);
        (tidegate, resident)
    };
    let (_, one) = resident(1);
    let (tidegate, many) = resident(BACKENDS);
    let each = many.saturating_sub(one) / BACKENDS as u64;
    assert!(each <= EACH, "{each} bytes for each backend");
    let metrics = tidegate.metrics();
    assert_eq!(metrics.sum("tidegate_backend_up", &[]) as usize, BACKENDS);
    assert_eq!(metrics.values("tidegate_backend_bytes_total", "direction").len(), 2 * BACKENDS);
    assert_eq!(tidegate.status()["pools"][0]["backends"].as_array().unwrap().len(), BACKENDS);
    assert_eq!(
        tidegate.get("/").body.matches("<tr>").count(),
        4 + 3 + BACKENDS,
        "four heads, the process's limit, one listener, one generation"
    );
}
