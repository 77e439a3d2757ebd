//! Memory: a burst of sessions leaves nothing behind.

use crate::kit::{Config, Conn, Listening, Tidegate, eventually, kernel};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
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
