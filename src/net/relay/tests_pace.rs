//! Who waits for whom in one engine: small messages beside large transfers, and large transfers beside each other.

use super::tests::{PATIENT, PIPES, Probe, pair};
use super::*;
use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::rc::Rc;

/// One session's peers, and what has gone through it to the backend.
struct Peers {
    client: TcpStream,
    /// The engine's end of the client's connection.
    near: TcpStream,
    backend: TcpStream,
    log: Rc<RefCell<super::tests::Log>>,
    /// What `log` said when the turn began.
    before: usize,
}

impl Peers {
    fn join(engine: &mut Engine<Probe>) -> Self {
        let log = Rc::default();
        let ((client, near), (backend, far)) = (pair(), pair());
        let streams = [near.try_clone().unwrap(), far].map(|socket| Stream::new(socket.into()).unwrap());
        let [accepted, connected] = streams;
        engine.add(accepted, connected, PATIENT, Probe(Rc::clone(&log)), Instant::now());
        Self { client, near, backend, log, before: 0 }
    }

    fn fill(&mut self) {
        while self.client.write(&vec![7; 65_536]).is_ok() {}
    }

    fn empty(&mut self) {
        let mut buffer = vec![0; 1 << 20];
        while self.backend.read(&mut buffer).is_ok() {}
    }

    fn moved(&self) -> usize {
        self.log.borrow().moved[Direction::ToBackend as usize]
    }

    fn moved_in_turn(&mut self) -> usize {
        let (before, now) = (self.before, self.moved());
        self.before = now;
        now - before
    }
}

/// An engine with sessions in the middle of large transfers, all of them with more to move.
fn busy(sessions: usize) -> (Engine<Probe>, Vec<Peers>) {
    let mut engine = Engine::new(PIPES, RelayMode::Auto, Instant::now()).unwrap();
    let mut bulk: Vec<Peers> = (0..sessions).map(|_| Peers::join(&mut engine)).collect();
    while bulk.iter().any(|peers| peers.moved() < 4 << 20) {
        for peers in &mut bulk {
            peers.fill();
            peers.empty();
        }
        engine.turn(Instant::now()).unwrap();
    }
    (engine, bulk)
}

#[test]
fn a_turn_of_large_transfers_is_bounded_and_each_gets_its_share() {
    let (mut engine, mut bulk) = busy(6);
    let mut shares = [0; 6];
    for _ in 0..200 {
        for (peers, share) in bulk.iter_mut().zip(&mut shares) {
            peers.fill();
            peers.empty();
            *share += peers.moved_in_turn();
        }
        let before: usize = bulk.iter().map(Peers::moved).sum();
        engine.turn(Instant::now()).unwrap();
        let moved = bulk.iter().map(Peers::moved).sum::<usize>() - before;
        // The last step may begin just below the limit, and a piece just below the step's.
        assert!(moved < ALONE.turn.max(BESIDE_OTHERS.turn) + 2 * ALONE.step, "{moved} bytes in one turn");
    }
    let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
    assert!(*least > 0 && most / least < 4, "{shares:?}");
}

#[test]
fn a_small_message_is_moved_in_the_turn_that_sees_it_whatever_else_waits() {
    let (mut engine, mut bulk) = busy(6);
    let mut light = Peers::join(&mut engine);
    engine.turn(Instant::now()).unwrap();
    for _ in 0..50 {
        for peers in &mut bulk {
            peers.fill();
            peers.empty();
        }
        light.client.write_all(b"tide").unwrap();
        while light.near.peek(&mut [0; 4]).unwrap_or(0) < 4 {
            std::thread::yield_now();
        }
        engine.turn(Instant::now()).unwrap();
        assert_eq!(light.moved_in_turn(), 4);
        light.empty();
    }
}
