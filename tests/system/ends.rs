//! How a session ends: the table of `docs/ends.md`, for bytes that were copied and for bytes that were spliced.
//!
//! Each test plays client and backend itself and moves [`Volume`] bytes before the event. What happens before a backend
//! is connected is in `connecting`, what time-outs and the stop do in `quiet` and `stop`.

use crate::kit::conn::{Rest, transfer};
use crate::kit::{Addr, Config, Conn, End, Listening, Tidegate, eventually, eventually_eq, kernel};

/// How much each direction has moved before the event.
#[derive(Clone, Copy, Debug)]
enum Volume {
    /// Nothing at all.
    Fresh,
    /// Less than is spliced.
    Copied,
    /// Far more than the 128 KiB after which a direction is spliced.
    Spliced,
}

impl Volume {
    const ALL: [Self; 3] = [Self::Fresh, Self::Copied, Self::Spliced];

    fn bytes(self) -> u64 {
        match self {
            Self::Fresh => 0,
            Self::Copied => 50_000,
            Self::Spliced => 1_500_000,
        }
    }
}

/// One session of which the test plays both ends.
struct Both {
    client: Conn,
    backend: Conn,
    moved: u64,
}

impl Both {
    fn new(tidegate: &Tidegate, listening: &Listening, volume: Volume) -> Self {
        let connected = || tidegate.metrics().one("tidegate_backend_connections_total", &[]) as u64;
        let before = connected();
        let client = tidegate.connect();
        let backend = listening.accept();
        // The kernel has made the connection; an event before tidegate knows of it would be another one.
        eventually("tidegate is connected too", || connected() > before);
        let mut both = Self { client, backend, moved: volume.bytes() };
        transfer(&mut both.client, &mut both.backend, 0, volume.bytes());
        transfer(&mut both.backend, &mut both.client, 0, volume.bytes());
        both
    }
}

/// A process over one backend that the test plays.
fn start() -> (Listening, Tidegate) {
    let listening = Listening::new();
    let tidegate = Tidegate::start(Config::over([&listening]).log("access = \"$DIR/access.log\"\nformat = \"json\""));
    (listening, tidegate)
}

/// The reason of each of the `count` sessions, from the access log, which must agree with the metric.
fn reasons(tidegate: &Tidegate, count: usize) -> Vec<String> {
    let records = tidegate.records(count);
    let reasons: Vec<String> = records.iter().map(|record| record["reason"].as_str().unwrap().to_owned()).collect();
    for reason in &reasons {
        let logged = reasons.iter().filter(|other| *other == reason).count();
        assert_eq!(tidegate.closed(reason), logged as u64, "{reason} in the metric and in the log");
    }
    reasons
}

#[test]
fn end_a_fin_of_the_client_is_passed_on_and_the_other_direction_goes_on() {
    let (listening, tidegate) = start();
    for volume in Volume::ALL {
        let Both { mut client, mut backend, moved } = Both::new(&tidegate, &listening, volume);
        client.send("last words");
        client.finish();
        assert_eq!(backend.rest(), Rest { bytes: b"last words".to_vec(), end: End::Fin });
        backend.send_pattern(moved, 300_000);
        backend.finish();
        client.expect_pattern(moved, 300_000);
        client.expect_end(End::Fin);
    }
    assert_eq!(reasons(&tidegate, 3), ["complete"; 3]);
}

#[test]
fn end_a_fin_of_the_backend_is_passed_on_and_the_other_direction_goes_on() {
    let (listening, tidegate) = start();
    for volume in Volume::ALL {
        let Both { mut client, mut backend, moved } = Both::new(&tidegate, &listening, volume);
        backend.send("last words");
        backend.finish();
        assert_eq!(client.rest(), Rest { bytes: b"last words".to_vec(), end: End::Fin });
        client.send_pattern(moved, 300_000);
        client.finish();
        backend.expect_pattern(moved, 300_000);
        backend.expect_end(End::Fin);
    }
    assert_eq!(reasons(&tidegate, 3), ["complete"; 3]);
}

#[test]
fn i02_f10_a_client_that_shut_down_gets_the_whole_late_answer() {
    let (listening, tidegate) = start();
    for volume in Volume::ALL {
        let Both { mut client, mut backend, moved } = Both::new(&tidegate, &listening, volume);
        client.finish();
        backend.expect_end(End::Fin);
        // Larger than every buffer on the way, so that most of it is read after the shutdown.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                backend.send_pattern(moved, 20_000_000);
                backend.finish();
            });
            client.expect_pattern(moved, 20_000_000);
        });
        client.expect_end(End::Fin);
    }
    assert_eq!(reasons(&tidegate, 3), ["complete"; 3]);
}

#[test]
fn i02_f10_a_backend_that_shut_down_still_receives_everything() {
    let (listening, tidegate) = start();
    for volume in Volume::ALL {
        let Both { mut client, mut backend, moved } = Both::new(&tidegate, &listening, volume);
        backend.finish();
        client.expect_end(End::Fin);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client.send_pattern(moved, 20_000_000);
                client.finish();
            });
            backend.expect_pattern(moved, 20_000_000);
        });
        backend.expect_end(End::Fin);
    }
    assert_eq!(reasons(&tidegate, 3), ["complete"; 3]);
}

#[test]
fn f10_half_close_holds_over_unix_sockets_too() {
    let dir = tempfile::tempdir().unwrap();
    let listening = Listening::unix(dir.path());
    let tidegate = Tidegate::start(Config::over([&listening]).binds(["127.0.0.1:0", "unix:$DIR/web.sock"]));
    assert_eq!(tidegate.addr_of("web", 1), Addr::Unix(tidegate.dir().join("web.sock")));
    for volume in Volume::ALL {
        for listener in 0..2 {
            let mut client = Conn::to(&tidegate.addr_of("web", listener));
            let mut backend = listening.accept();
            let moved = volume.bytes();
            transfer(&mut client, &mut backend, 0, moved);
            transfer(&mut backend, &mut client, 0, moved);
            client.finish();
            backend.expect_end(End::Fin);
            transfer(&mut backend, &mut client, moved, 3_000_000);
            backend.finish();
            client.expect_end(End::Fin);
        }
    }
    eventually_eq("all ended in order", &6, || tidegate.closed("complete"));
}

#[test]
fn f11_a_client_reset_in_mid_upload_reaches_the_backend_as_a_reset_and_frees_the_slot() {
    let (listening, tidegate) = start();
    for volume in Volume::ALL {
        let Both { mut client, mut backend, moved } = Both::new(&tidegate, &listening, volume);
        client.send_pattern(moved, 40_000);
        backend.expect_pattern(moved, 40_000);
        assert_eq!(tidegate.slots(), 1);
        client.reset();
        // The slot is free before the backend has even looked; idle and half-close timers are minutes away.
        eventually_eq("the slot is free", &0, || tidegate.slots());
        backend.expect_end(End::Rst);
    }
    assert_eq!(reasons(&tidegate, 3), ["client_reset"; 3]);
}

#[test]
fn f11_a_client_reset_is_noticed_while_the_backend_reads_nothing() {
    let (listening, tidegate) = start();
    let listening = listening.small_windows();
    let mut client = tidegate.connect();
    let mut backend = listening.accept();
    // More than the way can hold: tidegate has stopped reading from the client.
    client.stuff(0, 64 << 20, std::time::Duration::from_millis(500));
    client.reset();
    eventually_eq("the slot is free", &0, || tidegate.slots());
    assert_eq!(backend.rest_of_pattern(0).end, End::Rst);
    assert_eq!(reasons(&tidegate, 1), ["client_reset"]);
}

#[test]
fn f11_a_client_reset_is_noticed_while_the_backend_pours() {
    let (listening, tidegate) = start();
    let client = Conn::with_small_window(&tidegate.addr());
    let mut backend = listening.accept();
    // The client takes nothing: tidegate has stopped reading from the backend.
    backend.stuff(0, 64 << 20, std::time::Duration::from_millis(500));
    client.reset();
    eventually_eq("the slot is free", &0, || tidegate.slots());
    backend.expect_end(End::Rst);
    assert_eq!(reasons(&tidegate, 1), ["client_reset"]);
}

#[test]
fn i01_f20_a_backend_reset_reaches_the_client_as_a_reset() {
    let (listening, tidegate) = start();
    for volume in Volume::ALL {
        let Both { mut client, mut backend, moved } = Both::new(&tidegate, &listening, volume);
        backend.send_pattern(moved, 40_000);
        client.expect_pattern(moved, 40_000);
        backend.reset();
        client.expect_end(End::Rst);
    }
    assert_eq!(reasons(&tidegate, 3), ["backend_reset"; 3]);
    // What was sent to the backend is never sent to another, nor again.
    assert!(listening.accept_now().is_none());
}

#[test]
fn i01_f20_what_was_read_before_a_backend_reset_is_delivered_first() {
    let (listening, tidegate) = start();
    for volume in Volume::ALL {
        let Both { mut client, mut backend, moved } = Both::new(&tidegate, &listening, volume);
        let (near, far) = (backend.local(), backend.peer());
        backend.send_pattern(moved, 30_000);
        eventually("tidegate has read it all", || {
            kernel::queues(near, far).is_some_and(|backend| backend.unsent == 0)
                && kernel::queues(far, near).is_some_and(|tidegate| tidegate.unread == 0)
        });
        backend.reset();
        let flood = client.rest_of_pattern(moved);
        assert_eq!((flood.bytes, flood.end), (30_000, End::Rst), "after {volume:?}");
    }
    assert_eq!(reasons(&tidegate, 3), ["backend_reset"; 3]);
}

#[test]
fn i01_f26_an_answer_larger_than_every_buffer_arrives_as_far_as_it_was_read_before_the_reset() {
    let (listening, tidegate) = start();
    for volume in [Volume::Fresh, Volume::Spliced] {
        let moved = volume.bytes();
        let mut client = Conn::with_small_window(&tidegate.addr());
        let mut backend = listening.accept();
        transfer(&mut backend, &mut client, 0, moved);
        let sent = backend.stuff(moved, 64 << 20, std::time::Duration::from_millis(500));
        let (near, far) = (backend.local(), backend.peer());
        let (unsent, unread) = (kernel::queues(near, far).unwrap().unsent, kernel::queues(far, near).unwrap().unread);
        backend.reset();
        let flood = client.rest_of_pattern(moved);
        assert_eq!(flood.end, End::Rst);
        let read = sent - unsent - unread;
        assert!(read > 0, "tidegate read nothing");
        assert!(flood.bytes >= read, "{} of {read} bytes that tidegate had read ({volume:?})", flood.bytes);
        assert!(flood.bytes <= sent);
    }
    assert_eq!(reasons(&tidegate, 2), ["backend_reset"; 2]);
}

#[test]
fn f22_a_backend_that_shuts_down_in_mid_upload_keeps_receiving() {
    let (listening, tidegate) = start();
    let Both { mut client, mut backend, moved } = Both::new(&tidegate, &listening, Volume::Spliced);
    let mut upload = client.twin();
    std::thread::scope(|scope| {
        scope.spawn(move || upload.send_pattern(moved, 8_000_000));
        backend.expect_pattern(moved, 1_000_000);
        backend.finish();
        client.expect_end(End::Fin);
        backend.expect_pattern(moved + 1_000_000, 7_000_000);
    });
    client.finish();
    backend.expect_end(End::Fin);
    assert_eq!(reasons(&tidegate, 1), ["complete"]);
}

#[test]
fn f25_resets_from_both_sides_at_once_make_one_record() {
    let (listening, tidegate) = start();
    for volume in Volume::ALL {
        for _ in 0..10 {
            let Both { client, backend, .. } = Both::new(&tidegate, &listening, volume);
            let other = std::thread::spawn(move || backend.reset());
            client.reset();
            other.join().unwrap();
        }
    }
    for reason in reasons(&tidegate, 30) {
        assert!(["client_reset", "backend_reset"].contains(&&*reason), "{reason}");
    }
    assert_eq!(tidegate.metrics().sum("tidegate_connections_closed_total", &[]) as u64, 30);
}

#[test]
fn f25_a_fin_against_a_reset_makes_one_record() {
    let (listening, tidegate) = start();
    for volume in Volume::ALL {
        for _ in 0..5 {
            let Both { client, backend, .. } = Both::new(&tidegate, &listening, volume);
            let other = std::thread::spawn(move || backend.reset());
            // If the reset came first, there is nothing left to finish.
            let _ = client.try_finish();
            other.join().unwrap();
            client.expect_cut();

            let Both { client, backend, .. } = Both::new(&tidegate, &listening, volume);
            let other = std::thread::spawn(move || client.reset());
            let _ = backend.try_finish();
            other.join().unwrap();
            backend.expect_cut();
        }
    }
    let reasons = reasons(&tidegate, 30);
    assert_eq!(reasons.iter().filter(|reason| *reason == "backend_reset").count(), 15, "{reasons:?}");
    assert_eq!(reasons.iter().filter(|reason| *reason == "client_reset").count(), 15, "{reasons:?}");
}

#[test]
fn i01_a_reset_after_a_fin_still_cuts_the_other_side() {
    let (listening, tidegate) = start();
    for volume in Volume::ALL {
        // The backend has finished its answer and then dies with the upload unread.
        let Both { mut client, backend, .. } = Both::new(&tidegate, &listening, volume);
        backend.finish();
        client.expect_end(End::Fin);
        backend.reset();
        client.expect_cut();

        // The client has finished its request and then gives up.
        let Both { client, mut backend, .. } = Both::new(&tidegate, &listening, volume);
        client.finish();
        backend.expect_end(End::Fin);
        client.reset();
        backend.expect_cut();
    }
    // The workers write their lines each for itself.
    let mut reasons = reasons(&tidegate, 6);
    reasons.sort();
    assert_eq!(
        reasons,
        ["backend_reset", "backend_reset", "backend_reset", "client_reset", "client_reset", "client_reset"]
    );
}

#[test]
fn end_bytes_and_reset_are_counted_once_each_way() {
    let (listening, tidegate) = start();
    let Both { mut client, mut backend, moved } = Both::new(&tidegate, &listening, Volume::Spliced);
    client.send("abc");
    backend.expect("abc");
    backend.reset();
    client.expect_end(End::Rst);
    let record = tidegate.records(1).remove(0);
    assert_eq!(record["to_backend"], moved + 3);
    assert_eq!(record["to_client"], moved);
    let metrics = tidegate.metrics();
    let name = listening.to_string();
    for (direction, bytes) in [("to_backend", moved + 3), ("to_client", moved)] {
        let labels = [("pool", "web"), ("backend", &*name), ("direction", direction)];
        assert_eq!(metrics.one("tidegate_backend_bytes_total", &labels) as u64, bytes);
    }
}
