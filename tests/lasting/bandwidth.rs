//! Limited bandwidth: `rate_to_client`, `rate_to_backend` and `rate_burst` of a listener, by the wall clock. Never more
//! than the tokens given by then; how close below that it comes is for the tests of the engine, which turn its clock.

use crate::kit::conn::transfer;
use crate::kit::wait::pace;
use crate::kit::{Addr, Config, Conn, End, Listening, PATIENCE, Tidegate, eventually, kernel};
use std::time::{Duration, Instant};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Of two clocks that count in milliseconds.
const GRAIN: Duration = Duration::from_millis(2);

fn limited(config: Config, lines: &str) -> Config {
    config.listener(lines).logged()
}

/// Moves the bytes, and asserts that they were not given sooner than the tokens for them.
fn paced(from: &mut Conn, to: &mut Conn, offset: u64, count: u64, rate: u64, burst: u64) {
    let begun = Instant::now();
    transfer(from, to, offset, count);
    let span = begun.elapsed();
    // What was saved up may go at once, also what came together between two transfers.
    let least = Duration::from_secs_f64((count - burst) as f64 / rate as f64);
    println!(
        "{count} bytes in {span:?}, {:.1} % of the rate",
        (count - burst) as f64 / rate as f64 / span.as_secs_f64() * 100.0
    );
    assert!(span + GRAIN >= least, "{count} bytes in {span:?}");
    assert!(span < least * 3 + PATIENCE, "{count} bytes in {span:?}");
}

#[test]
fn each_direction_has_its_rate_by_copy_and_by_splice() {
    for relay in ["copy", "auto", "splice"] {
        let listening = Listening::new();
        let config = Config::over([&listening]).runtime(&format!("relay = \"{relay}\""));
        let lines = "rate_to_client = \"4MiB/s\"\nrate_to_backend = \"1MiB/s\"";
        let tidegate = Tidegate::start(limited(config, lines));
        let (mut client, mut backend) = (tidegate.connect(), listening.accept());
        paced(&mut backend, &mut client, 0, 8 * MIB, 4 * MIB, 64 * KIB);
        paced(&mut client, &mut backend, 0, 2 * MIB, MIB, 64 * KIB);
        client.finish();
        backend.expect_end(End::Fin);
        backend.finish();
        client.expect_end(End::Fin);
        assert_eq!(tidegate.records(1)[0]["reason"], "complete");
    }
}

#[test]
fn unix_sockets_have_it_too_and_the_burst_is_the_configs() {
    let dir = tempfile::tempdir().unwrap();
    let listening = Listening::unix(dir.path());
    let web = Addr::Unix(dir.path().join("web.sock"));
    let lines = "rate_to_client = \"1MiB/s\"\nrate_burst = \"1MiB\"";
    let tidegate = Tidegate::start(limited(Config::over([&listening]).bind(&web), lines));
    let (mut client, mut backend) = (tidegate.connect(), listening.accept());
    paced(&mut backend, &mut client, 0, 3 * MIB, MIB, MIB);
    // The other direction has no limit.
    transfer(&mut client, &mut backend, 0, 16 * MIB);
}

#[test]
fn two_thousand_sessions_at_once_have_each_their_own() {
    const SESSIONS: usize = 2_000;
    const EACH: u64 = 48 * KIB;
    kernel::raise_own_fd_limit();
    let listening = Listening::new();
    let lines = "rate_to_client = \"8KiB/s\"\nrate_burst = \"8KiB\"";
    let tidegate = Tidegate::start(Config::over([&listening]).listener(lines));
    let mut sessions: Vec<(Conn, Conn)> = (0..SESSIONS).map(|_| (tidegate.connect(), listening.accept())).collect();
    let begun = Instant::now();
    for (_, backend) in &mut sessions {
        // Its end's buffer takes all of it.
        backend.send_pattern(0, EACH);
        backend.finish();
    }
    for (client, _) in &mut sessions {
        client.wait_up_to(PATIENCE * 3);
        let flood = client.rest_of_pattern(0);
        assert_eq!((flood.bytes, flood.end), (EACH, End::Fin));
    }
    let (span, cpu) = (begun.elapsed(), kernel::cpu(tidegate.pid));
    println!("{SESSIONS} sessions of {EACH} bytes in {span:?}, {cpu:?} of CPU");
    assert!(span + GRAIN >= Duration::from_secs((EACH - 8 * KIB) / (8 * KIB)), "{span:?}");
}

#[test]
fn who_waits_for_tokens_costs_no_cpu_and_is_not_idle() {
    let listening = Listening::new();
    let lines = "rate_to_client = \"1KiB/s\"\nrate_burst = \"4KiB\"\nidle_timeout = \"500ms\"";
    let tidegate = Tidegate::start(limited(Config::over([&listening]), lines));
    let (mut client, mut backend) = (tidegate.connect(), listening.accept());
    backend.send_pattern(0, 8 * KIB);
    client.expect_pattern(0, 5 * KIB);
    let (span, before) = (Duration::from_secs(2), kernel::cpu(tidegate.pid));
    // Nobody looks at it meanwhile: that costs more than all that it has to do.
    pace(span);
    let used = kernel::cpu(tidegate.pid).saturating_sub(before);
    assert!(used < span / 5, "{used:?} of CPU in {span:?}");
    client.expect_pattern(5 * KIB, 3 * KIB);
    client.expect_end(End::Rst);
    assert_eq!(tidegate.records(1)[0]["reason"], "idle_timeout");
}

#[test]
fn ends_are_passed_on_while_it_waits() {
    let listening = Listening::new();
    let lines = "rate_to_client = \"1KiB/s\"\nrate_burst = \"4KiB\"";
    let tidegate = Tidegate::start(limited(Config::over([&listening]), lines));
    let (client, mut backend) = (tidegate.connect(), listening.accept());
    backend.send_pattern(0, 20 * KIB);
    eventually("it waits for tokens", || tidegate.metrics().sum("tidegate_backend_bytes_total", &[]) > 0.0);
    client.reset();
    backend.expect_cut();
    assert_eq!(tidegate.records(1)[0]["reason"], "client_reset");

    // What the backend sent before its reset comes first, and no false end.
    let (mut client, mut backend) = (tidegate.connect(), listening.accept());
    backend.send_pattern(0, 6 * KIB);
    client.expect_pattern(0, 4 * KIB);
    backend.reset();
    client.expect_pattern(4 * KIB, 2 * KIB);
    client.expect_end(End::Rst);
    assert_eq!(tidegate.records(2)[1]["reason"], "backend_reset");
}
