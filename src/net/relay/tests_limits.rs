//! Ends that no peer has asked for: the bound on a session's age, and what the owner orders.

use super::tests::{LARGE, PATIENT, Rig, SMALL, read_end};
use super::*;
use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};

const RESET: Option<Result<(), ErrorKind>> = Some(Err(ErrorKind::ConnectionReset));

/// What one side still gets, up to its reset.
fn rest(rig: &mut Rig, side: Side) -> usize {
    let mut stream = if side == Side::Client { rig.client.try_clone() } else { rig.backend.try_clone() }.unwrap();
    let (mut received, mut buffer) = (0, vec![0; 65_536]);
    let mut failed = None;
    rig.until("the reset", |_| {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("a false end"),
            Ok(count) => received += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => failed = Some(error.kind()),
        }
        failed.is_some()
    });
    assert_eq!(failed, Some(ErrorKind::ConnectionReset));
    received
}

/// Sends from `side` until everything between it and the other, which does not read, is full; what was sent.
fn fill(rig: &mut Rig, side: Side) -> usize {
    let (mut sent, mut quiet) = (0, 0);
    let block = vec![5; 65_536];
    rig.until("everything is full", |rig| {
        let stream = if side == Side::Client { &mut rig.client } else { &mut rig.backend };
        match stream.write(&block) {
            Ok(count) => (sent, quiet) = (sent + count, 0),
            Err(_) => quiet += 1,
        }
        quiet > 200
    });
    sent
}

#[test]
fn a_session_lives_no_longer_than_it_may_whatever_moves() {
    let begun = Instant::now();
    let mut rig = Rig::new(Timeouts { lifetime: 200, ..PATIENT });
    let (mut moved, mut failed) = (0, None);
    rig.until("the reset", |rig| {
        match rig.client.write(b"tide") {
            Ok(_) => moved += 1,
            Err(error) => failed = Some(error.kind()),
        }
        let _ = rig.backend.read(&mut [0; 64]);
        failed.is_some()
    });
    assert_eq!(failed, Some(ErrorKind::ConnectionReset));
    assert!(begun.elapsed() >= Duration::from_millis(199) && moved > 10, "{moved} messages");
    rest(&mut rig, Side::Backend);
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::Lifetime));
}

#[test]
fn without_a_limit_only_quiet_ends_it() {
    let start = Instant::now();
    for (lifetime, ended) in [(0, false), (3_600_000, true)] {
        let mut rig = Rig::new(Timeouts { idle: 7_200_000, lifetime, ..PATIENT });
        rig.engine.turn(start + Duration::from_secs(3_500)).unwrap();
        assert_eq!(rig.end(), None);
        rig.engine.turn(start + Duration::from_secs(3_700)).unwrap();
        assert_eq!(rig.end(), ended.then_some(RelayEnd::Lifetime));
    }
}

#[test]
fn what_was_read_is_delivered_before_the_end_of_its_life() {
    let mut rig = Rig::new(Timeouts { lifetime: 500, ..PATIENT });
    let sent = fill(&mut rig, Side::Backend);
    rig.until("it is closing", |rig| rig.engine.closing.len() == 1);
    let held = rig.log.borrow().moved[Direction::ToClient as usize];
    assert_eq!(rig.end(), None, "the client has not got everything yet");
    let received = rest(&mut rig, Side::Client);
    assert!(received >= held && held > LARGE / 8, "{received} of {held} received, {sent} sent");
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::Lifetime));
    assert_eq!(read_end(&mut rig.backend), RESET);
}

#[test]
fn a_review_shows_owner_and_age_and_ends_what_it_names() {
    let (mut rig, mut other) = (Rig::new(PATIENT), Rig::new(PATIENT));
    let later = Instant::now() + Duration::from_secs(60);
    let seen = RefCell::new(Vec::new());
    let looked = |owner: &super::tests::Probe, age: Millis| {
        seen.borrow_mut().push((Rc::as_ptr(&owner.0), age));
        None
    };
    assert_eq!(rig.engine.review(later, looked), 0);
    let (owner, age) = seen.borrow()[0];
    assert_eq!(owner, Rc::as_ptr(&rig.log));
    assert!((59_000..120_000).contains(&age), "{age} ms");
    rig.carry(Side::Client, SMALL);

    assert_eq!(rig.engine.review(Instant::now(), |_, _| Some(Order::Rebalance)), 1);
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::Ordered(Order::Rebalance)));
    assert_eq!([read_end(&mut rig.client), read_end(&mut rig.backend)], [RESET; 2]);
    assert_eq!(rig.engine.review(Instant::now(), |_, _| Some(Order::Rebalance)), 0, "nobody is left");
    other.carry(Side::Client, SMALL);
}

#[test]
fn who_is_ending_is_not_asked_about_again() {
    let mut rig = Rig::new(PATIENT);
    fill(&mut rig, Side::Backend);
    assert_eq!(rig.engine.review(Instant::now(), |_, _| Some(Order::Rebalance)), 1);
    assert_eq!(rig.engine.review(Instant::now(), |_, _| Some(Order::BackendDown)), 0);
    rest(&mut rig, Side::Client);
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::Ordered(Order::Rebalance)));
}

/// Both directions are full: the backend, which reads nothing, is gone at once, and the client gets what was read.
#[test]
fn a_backend_that_is_down_is_not_waited_for() {
    let mut rig = Rig::new(PATIENT);
    fill(&mut rig, Side::Client);
    fill(&mut rig, Side::Backend);
    let held = rig.log.borrow().moved[Direction::ToClient as usize];
    assert_eq!(rig.engine.review(Instant::now(), |_, _| Some(Order::BackendDown)), 1);
    let (mut client, mut buffer, mut received) = (rig.client.try_clone().unwrap(), vec![0; 65_536], 0);
    rig.until("the backend is closed", |rig| {
        // Room for what the engine itself still holds.
        received += client.read(&mut buffer).unwrap_or(0);
        rig.log.borrow().backend_closed
    });
    assert_eq!(rig.end(), None, "the client has not got everything yet");
    received += rest(&mut rig, Side::Client);
    rest(&mut rig, Side::Backend);
    assert!(received >= held && held > LARGE / 8, "{received} of {held} received");
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::Ordered(Order::BackendDown)));
}

/// It is here, and the engine has not been told of it.
#[test]
fn what_a_backend_that_is_down_had_said_is_delivered() {
    let mut rig = Rig::new(PATIENT);
    rig.carry(Side::Client, SMALL);
    rig.backend.write_all(b"the answer").unwrap();
    assert_eq!(rig.engine.review(Instant::now(), |_, _| Some(Order::BackendDown)), 1);
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::Ordered(Order::BackendDown)));
    let mut said = [0; 10];
    rig.client.read_exact(&mut said).unwrap();
    assert_eq!((&said, read_end(&mut rig.client)), (b"the answer", RESET));
}

/// No socket tells the driver of an order, and a client that reads nothing makes no event either.
#[tokio::test(flavor = "local")]
async fn an_order_wakes_the_driver() {
    let mut rig = Rig::new(Timeouts { linger: 50, ..PATIENT });
    fill(&mut rig, Side::Backend);
    let engine = Rc::new(RefCell::new(rig.engine));
    let driver = crate::drain::spawn_local(drive(Rc::clone(&engine)).unwrap());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(engine.borrow_mut().review(Instant::now(), |_, _| Some(Order::Rebalance)), 1);
    let begun = Instant::now();
    while rig.log.borrow().ends.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never ended");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(rig.log.borrow().ends, [RelayEnd::Ordered(Order::Rebalance)]);
    driver.abort();
}

/// One that an operator ends still delivers what was read for it.
#[test]
fn one_session_is_found_and_ended_by_its_place() {
    let mut rig = Rig::new(PATIENT);
    rig.client.write_all(&[7; SMALL]).unwrap();
    rig.until("the bytes", |rig| rig.backend.peek(&mut [0; 2 * SMALL]).is_ok_and(|count| count == SMALL));
    let seen: Vec<_> = rig.engine.places().filter_map(|place| rig.engine.look_at(place)).collect();
    let [seen] = &seen[..] else { panic!("{} sessions", seen.len()) };
    assert!(!seen.is_closing && seen.last_moved <= Instant::now());
    let place = seen.place;
    rig.engine.order(place + 1, Order::Operator, Instant::now());
    assert_eq!(rig.end(), None);
    rig.engine.order(place, Order::Operator, Instant::now());
    assert_eq!(rest(&mut rig, Side::Backend), SMALL);
    assert_eq!(rest(&mut rig, Side::Client), 0);
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::Ordered(Order::Operator)));
    assert!(rig.engine.look_at(place).is_none());
}
