//! Sessions on which nothing moves: the idle and the half-close time-out, and what starts them anew.

use crate::kit::conn::{Rest, transfer};
use crate::kit::wait::trickle;
use crate::kit::{Config, Conn, End, Listening, Tidegate};
use std::time::Duration;

fn start(listener: &str) -> (Listening, Tidegate) {
    let listening = Listening::new();
    let config = Config::over([&listening]).listener(listener).log("access = \"$DIR/access.log\"\nformat = \"json\"");
    let tidegate = Tidegate::start(config);
    (listening, tidegate)
}

fn both(tidegate: &Tidegate, listening: &Listening, moved: u64) -> (Conn, Conn) {
    let (mut client, mut backend) = (tidegate.connect(), listening.accept());
    transfer(&mut client, &mut backend, 0, moved);
    transfer(&mut backend, &mut client, 0, moved);
    (client, backend)
}

const COPIED: u64 = 20_000;
const SPLICED: u64 = 1_000_000;

#[test]
fn f08_end_an_idle_session_is_reset_both_ways_and_says_so() {
    let (listening, tidegate) = start("idle_timeout = \"700ms\"");
    for moved in [0, COPIED, SPLICED] {
        let (mut client, mut backend) = both(&tidegate, &listening, moved);
        client.expect_end(End::Rst);
        backend.expect_end(End::Rst);
    }
    for record in tidegate.records(3) {
        assert_eq!(record["reason"], "idle_timeout");
        assert_eq!(record["ended_by"], "balancer");
        assert!(record["duration"].as_f64().unwrap() >= 0.7, "{record}");
    }
}

#[test]
fn end_an_idle_session_that_reads_nothing_is_reset_too() {
    let (listening, tidegate) = start("idle_timeout = \"3s\"");
    let client = Conn::with_small_window(&tidegate.addr());
    let mut backend = listening.accept();
    // Everything on the way is full, so that nothing moves.
    backend.stuff(0, 64 << 20, Duration::from_millis(500));
    backend.expect_cut();
    client.expect_cut();
    assert_eq!(tidegate.records(1)[0]["reason"], "idle_timeout");
}

#[test]
fn a_byte_in_either_direction_starts_the_idle_time_anew() {
    let (listening, tidegate) = start("idle_timeout = \"2s\"");
    let (mut to_backend, mut far) = both(&tidegate, &listening, 0);
    let (mut near, mut to_client) = both(&tidegate, &listening, SPLICED);
    trickle(Duration::from_millis(100), Duration::from_millis(4_500), || {
        to_backend.send("x");
        far.expect("x");
        to_client.send("y");
        near.expect("y");
    });
    for record in {
        drop((to_backend, far, near, to_client));
        tidegate.records(2)
    } {
        assert_ne!(record["reason"], "idle_timeout");
    }
}

#[test]
fn i02_the_half_close_timer_resets_both_ways() {
    let (listening, tidegate) = start("half_close_timeout = \"700ms\"");
    for moved in [0, COPIED, SPLICED] {
        let (mut client, mut backend) = both(&tidegate, &listening, moved);
        client.finish();
        backend.expect_end(End::Fin);
        client.expect_end(End::Rst);
        backend.expect_cut();

        let (mut client, mut backend) = both(&tidegate, &listening, moved);
        backend.finish();
        client.expect_end(End::Fin);
        backend.expect_end(End::Rst);
        client.expect_cut();
    }
    for record in tidegate.records(6) {
        assert_eq!(record["reason"], "half_close_timeout");
    }
}

#[test]
fn i02_f22_bytes_start_the_half_close_timer_anew() {
    let (listening, tidegate) = start("half_close_timeout = \"2s\"");
    let (mut client, mut backend) = both(&tidegate, &listening, COPIED);
    client.finish();
    backend.expect_end(End::Fin);
    trickle(Duration::from_millis(100), Duration::from_millis(4_500), || {
        backend.send("z");
        client.expect("z");
    });
    backend.finish();
    client.expect_end(End::Fin);
    assert_eq!(tidegate.records(1)[0]["reason"], "complete");
}

#[test]
fn a_session_without_a_fin_outlives_the_half_close_time() {
    let (listening, tidegate) = start("half_close_timeout = \"200ms\"\nidle_timeout = \"1500ms\"");
    let (mut client, mut backend) = both(&tidegate, &listening, COPIED);
    client.expect_end(End::Rst);
    backend.expect_end(End::Rst);
    let record = tidegate.records(1).remove(0);
    assert_eq!(record["reason"], "idle_timeout");
    assert!(record["duration"].as_f64().unwrap() >= 1.5, "{record}");
}

#[test]
fn a_half_close_time_of_zero_ends_with_the_clients_fin_once_it_is_delivered() {
    let (listening, tidegate) = start("half_close_timeout = \"0s\"");
    for moved in [0, COPIED, SPLICED] {
        let (mut client, mut backend) = both(&tidegate, &listening, moved);
        client.send("last words");
        client.finish();
        assert_eq!(backend.rest(), Rest { bytes: b"last words".to_vec(), end: End::Fin });
        client.expect_end(End::Rst);
        backend.expect_cut();
    }
    for record in tidegate.records(3) {
        assert_eq!(record["reason"], "client_half_close");
    }
}

#[test]
fn a_half_close_time_of_zero_ends_with_the_backends_fin_once_all_of_it_is_delivered() {
    let (listening, tidegate) = start("half_close_timeout = \"0s\"");
    for moved in [0, COPIED, SPLICED] {
        let (mut client, mut backend) = both(&tidegate, &listening, moved);
        let sender = std::thread::spawn(move || {
            backend.send_pattern(moved, 5_000_000);
            backend.finish();
            backend
        });
        client.expect_pattern(moved, 5_000_000);
        client.expect_end(End::Fin);
        sender.join().unwrap().expect_end(End::Rst);
    }
    for record in tidegate.records(3) {
        assert_eq!(record["reason"], "backend_half_close");
    }
}
