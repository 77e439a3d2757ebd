//! Bytes arrive exactly as they were sent, in any size of piece; what nobody reads isn't read, and memory stays
//! bounded.

use crate::kit::conn::transfer;
use crate::kit::{Addr, Backend, Config, Conn, End, Listening, Tidegate, eventually, kernel, pattern};
use std::time::Duration;

/// Sends `total` bytes of the pattern as runs of single bytes between bursts of 64 KiB.
fn send_mixed(conn: &mut Conn, total: u64) {
    let mut at = 0;
    while at < total {
        for _ in 0..40.min(total - at) {
            conn.send_pattern(at, 1);
            at += 1;
        }
        let burst = (64 << 10).min(total - at);
        conn.send_pattern(at, burst);
        at += burst;
    }
}

fn mixed_both_ways(mut client: Conn, mut backend: Conn) {
    const TOTAL: u64 = 4_000_000;
    let (mut to_backend, mut to_client) = (client.twin(), backend.twin());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            send_mixed(&mut to_backend, TOTAL);
            to_backend.finish();
        });
        scope.spawn(move || {
            send_mixed(&mut to_client, TOTAL);
            to_client.finish();
        });
        scope.spawn(move || {
            let flood = backend.rest_of_pattern(0);
            assert_eq!((flood.bytes, flood.end), (TOTAL, End::Fin));
        });
        let flood = client.rest_of_pattern(0);
        assert_eq!((flood.bytes, flood.end), (TOTAL, End::Fin));
    });
}

#[test]
fn f14_single_bytes_among_bursts_are_exact_both_ways() {
    let listening = Listening::new();
    let tidegate = Tidegate::start(Config::over([&listening]));
    mixed_both_ways(tidegate.connect(), listening.accept());
}

#[test]
fn f14_single_bytes_among_bursts_are_exact_over_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let listening = Listening::unix(dir.path());
    let tidegate = Tidegate::start(Config::over([&listening]).bind("unix:$DIR/web.sock"));
    mixed_both_ways(tidegate.connect(), listening.accept());
}

#[test]
fn f14_many_sessions_at_once_are_exact() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    std::thread::scope(|scope| {
        for number in 0..24_u64 {
            let tidegate = &tidegate;
            scope.spawn(move || {
                let mut client = tidegate.connect();
                let mut sender = client.twin();
                let total = 1_000 + number * 60_000;
                std::thread::scope(|scope| {
                    scope.spawn(move || {
                        sender.send_pattern(number, total);
                        sender.finish();
                    });
                    let flood = client.rest_of_pattern(number);
                    assert_eq!((flood.bytes, flood.end), (total, End::Fin));
                });
            });
        }
    });
}

#[test]
fn a_large_download_and_a_large_upload_are_exact() {
    let listening = Listening::new();
    let tidegate = Tidegate::start(Config::over([&listening]));
    let (mut client, mut backend) = (tidegate.connect(), listening.accept());
    transfer(&mut backend, &mut client, 0, 100_000_000);
    transfer(&mut client, &mut backend, 0, 100_000_000);
}

#[test]
fn f13_a_slow_reader_throttles_its_peer_and_nobody_else() {
    let listening = Listening::new();
    let tidegate = Tidegate::start(Config::over([&listening]));
    let mut slow = Conn::with_small_window(&tidegate.addr());
    let mut pouring = listening.accept();
    let resident = kernel::resident(tidegate.pid);
    let sent = pouring.stuff(0, 10 << 30, Duration::from_millis(500));
    // The kernel's buffers of two connections and one pipe: far from what a balancer that went on reading would take.
    assert!(sent < 64 << 20, "{sent} bytes went to a client that reads nothing");
    let grown = kernel::resident(tidegate.pid).saturating_sub(resident);
    assert!(grown < 16 << 20, "{grown} bytes more for one slow reader");

    let (mut other, mut far) = (tidegate.connect(), listening.accept());
    transfer(&mut other, &mut far, 0, 3_000_000);
    transfer(&mut far, &mut other, 0, 3_000_000);

    slow.expect_pattern(0, sent);
    transfer(&mut pouring, &mut slow, sent, 3_000_000);
}

#[test]
fn f13_i05_a_thousand_readers_with_a_closed_window_stay_within_64_mib() {
    const READERS: usize = 1_000;
    kernel::raise_own_fd_limit();
    let listening = Listening::new();
    listening.limit_send_buffers(64 << 10);
    let tidegate = Tidegate::start(Config::over([&listening]));
    let (mut other, mut far) = (tidegate.connect(), listening.accept());
    transfer(&mut other, &mut far, 0, 1_000_000);
    let resident = kernel::resident(tidegate.pid);

    let mut sessions: Vec<(Conn, Conn, u64)> =
        (0..READERS).map(|_| (Conn::with_small_window(&tidegate.addr()), listening.accept(), 0)).collect();
    // Pour until nobody takes any more, twice in a row.
    let mut still = 0;
    eventually("all of them are stuffed", || {
        let before: u64 = sessions.iter().map(|(_, _, sent)| sent).sum();
        for (_, backend, sent) in &mut sessions {
            *sent += backend.stuff_now(*sent);
        }
        let after: u64 = sessions.iter().map(|(_, _, sent)| sent).sum();
        still = if after == before { still + 1 } else { 0 };
        still >= 20
    });
    let grown = kernel::resident(tidegate.pid).saturating_sub(resident);
    assert!(grown < 64 << 20, "{grown} bytes more for {READERS} readers that read nothing");

    transfer(&mut other, &mut far, 1_000_000, 3_000_000);
    // What was taken is delivered, exactly: a few of them read on.
    let mut reading = Vec::new();
    for (index, (client, backend, sent)) in sessions.into_iter().enumerate() {
        if index % 100 == 0 {
            reading.push((client, backend, sent));
        } else {
            client.reset();
        }
    }
    for (client, _, sent) in &mut reading {
        // So many full sockets put the kernel's TCP under memory pressure: it drops segments, and the backend's kernel
        // may have backed off from sending them again by half a minute.
        client.wait_up_to(Duration::from_secs(120));
        client.expect_pattern(0, *sent);
    }
    for (client, backend, _) in reading {
        client.reset();
        drop(backend);
    }
}

#[test]
fn i05_idle_sessions_hold_neither_buffers_nor_pipes() {
    const SESSIONS: usize = 400;
    kernel::raise_own_fd_limit();
    let listening = Listening::new();
    let tidegate = Tidegate::start(Config::over([&listening]));
    let open = || {
        let (mut client, mut backend) = (tidegate.connect(), listening.accept());
        transfer(&mut client, &mut backend, 0, 300_000);
        transfer(&mut backend, &mut client, 0, 300_000);
        (client, backend)
    };
    let mut sessions: Vec<(Conn, Conn)> = (0..50).map(|_| open()).collect();
    let resident = kernel::resident(tidegate.pid);
    sessions.extend((0..SESSIONS).map(|_| open()));
    let each = kernel::resident(tidegate.pid).saturating_sub(resident) / SESSIONS as u64;
    assert!(each < 8 << 10, "{each} bytes for each idle session");
    let pipes = tidegate.fds().iter().filter(|target| target.starts_with("pipe:")).count();
    // Each pipe is two fds; a pool for each of the two workers may keep some.
    assert!(pipes < SESSIONS / 2, "{pipes} fds of pipes for {SESSIONS} idle sessions");
}

#[test]
fn a_quarter_of_a_period_shifted_is_noticed() {
    let wrong = pattern::bytes(16_381, 1_000);
    assert!(std::panic::catch_unwind(|| pattern::check(0, &wrong)).is_err(), "the kit's checker checks");
}

#[test]
fn unix_clients_are_served_beside_tcp_ones() {
    let backend = Backend::named("one");
    let tidegate = Tidegate::start(Config::over([&backend]).binds(["127.0.0.1:0", "unix:$DIR/web.sock"]));
    for listener in 0..2 {
        assert_eq!(Conn::to(&tidegate.addr_of("web", listener)).rest().text(), "one\n");
    }
    assert!(matches!(tidegate.addr_of("web", 1), Addr::Unix(_)));
}
