//! Sessions that come to the engine with something behind them: each end of `docs/ends.md` once more.

use super::tests::{LARGE, Log, PATIENT, Probe, Rig, SMALL, pair, pattern, read_end, reset};
use super::*;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

const ONE_WAY: [Direction; 2] = [Direction::ToBackend, Direction::ToClient];

/// Bytes that the backend has not taken yet.
fn pending(amount: usize) -> Handover {
    Handover { pending: (0..amount).map(pattern).collect(), ..Handover::default() }
}

/// The client has sent its FIN, and the backend has got it.
fn half_closed(_: &mut TcpStream, far: &mut TcpStream) -> Handover {
    far.shutdown(Shutdown::Write).unwrap();
    Handover { client_fin: Fin::PassedOn, ..Handover::default() }
}

/// Reads from `stream` until it has all that `pattern` says.
fn expect(rig: &mut Rig, stream: &mut impl Read, amount: usize) {
    let (mut received, mut buffer) = (0, vec![0; 65_536]);
    rig.until("all bytes", |_| {
        let count = stream.read(&mut buffer).unwrap_or(0);
        for (at, byte) in buffer[..count].iter().enumerate() {
            assert_eq!(*byte, pattern(received + at), "byte {}", received + at);
        }
        received += count;
        assert!(received <= amount);
        received == amount
    });
}

#[test]
fn what_the_backend_has_not_taken_comes_first_and_is_counted_once() {
    // The last one is more than a socket takes at once.
    for amount in [0, 1, SMALL, 4 * LARGE] {
        let mut rig = Rig::resumed(PATIENT, |_, _| pending(amount));
        let late: Vec<u8> = (amount..amount + SMALL).map(pattern).collect();
        rig.client.write_all(&late).unwrap();
        let mut backend = rig.backend.try_clone().unwrap();
        expect(&mut rig, &mut backend, amount + SMALL);
        rig.carry(Side::Backend, SMALL);
        assert_eq!(rig.log.borrow().moved, [amount + SMALL, SMALL]);
        assert_eq!(rig.end(), None);
    }
}

#[test]
fn a_fin_that_was_read_before_follows_what_came_before_it() {
    for amount in [0, SMALL, 4 * LARGE] {
        let handover = Handover { client_fin: Fin::Read, ..pending(amount) };
        let mut rig = Rig::resumed(PATIENT, |_, _| handover);
        let mut backend = rig.backend.try_clone().unwrap();
        expect(&mut rig, &mut backend, amount);
        rig.until("the FIN", |_| read_end(&mut backend) == Some(Ok(())));
        assert_eq!(rig.log.borrow().ended_one_way, ONE_WAY[..1]);
        rig.carry(Side::Backend, LARGE);
        backend.shutdown(Shutdown::Write).unwrap();
        rig.until("the end", |rig| rig.end().is_some());
        assert_eq!(rig.end(), Some(RelayEnd::Complete));
        assert_eq!(read_end(&mut rig.client), Some(Ok(())));
        assert_eq!(rig.log.borrow().ended_one_way, ONE_WAY);
    }
}

/// After both FINs the backend's connection looks torn down, and that is no reset: by copy and by splice.
#[test]
fn a_fin_that_was_passed_on_before_is_not_sent_again_and_the_answer_ends_in_order() {
    for amount in [0, SMALL, LARGE] {
        let mut rig = Rig::resumed(PATIENT, half_closed);
        assert_eq!(rig.log.borrow().ended_one_way, ONE_WAY[..1]);
        rig.carry(Side::Backend, amount);
        assert_eq!(read_end(&mut rig.backend), Some(Ok(())));
        rig.backend.shutdown(Shutdown::Write).unwrap();
        rig.until("the end", |rig| rig.end().is_some());
        assert_eq!(rig.end(), Some(RelayEnd::Complete));
        assert_eq!(read_end(&mut rig.client), Some(Ok(())));
        assert_eq!(rig.log.borrow().ended_one_way, ONE_WAY);
    }
}

#[test]
fn a_reset_after_a_fin_from_before_is_still_a_reset() {
    for amount in [0, LARGE] {
        for side in Side::BOTH {
            let mut rig = Rig::resumed(PATIENT, half_closed);
            rig.carry(Side::Backend, amount);
            let (from, mut other) = match side {
                Side::Client => (&mut rig.client, rig.backend.try_clone().unwrap()),
                Side::Backend => (&mut rig.backend, rig.client.try_clone().unwrap()),
            };
            reset(std::mem::replace(from, pair().0));
            rig.until("the end", |rig| rig.end().is_some());
            assert_eq!(rig.end(), Some(RelayEnd::Reset(side)));
            if side == Side::Backend {
                assert_eq!(read_end(&mut other), Some(Err(ErrorKind::ConnectionReset)));
            } else {
                assert_eq!(read_end(&mut other), Some(Ok(())), "the FIN came first");
                // The kernel's word for a reset behind a FIN.
                assert_eq!(other.take_error().unwrap().unwrap().kind(), ErrorKind::BrokenPipe);
            }
        }
    }
}

#[test]
fn the_half_close_time_out_runs_from_the_start() {
    let quick = Timeouts { half_close: 50, ..PATIENT };
    for (handover, timeouts, end) in [
        (Fin::PassedOn, quick, RelayEnd::HalfCloseTimeout),
        (Fin::Read, quick, RelayEnd::HalfCloseTimeout),
        (Fin::PassedOn, Timeouts { half_close: 0, ..PATIENT }, RelayEnd::HalfClosed(Side::Client)),
        (Fin::Read, Timeouts { half_close: 0, ..PATIENT }, RelayEnd::HalfClosed(Side::Client)),
    ] {
        let mut rig = Rig::resumed(timeouts, |near, far| match handover {
            Fin::PassedOn => half_closed(near, far),
            _ => Handover { client_fin: handover, ..pending(SMALL) },
        });
        let mut backend = rig.backend.try_clone().unwrap();
        if handover == Fin::Read {
            expect(&mut rig, &mut backend, SMALL);
        }
        rig.until("the FIN", |_| read_end(&mut backend) == Some(Ok(())));
        rig.until("the end", |rig| rig.end().is_some());
        assert_eq!(rig.end(), Some(end), "{handover:?}");
        assert_eq!(read_end(&mut rig.client), Some(Err(ErrorKind::ConnectionReset)));
    }
}

#[test]
fn quiet_time_counts_from_the_last_byte() {
    let start = Instant::now();
    let after = |span| start + Duration::from_secs(span);
    for (last_moved, ended) in [(None, false), (Some(after(1)), true)] {
        let mut engine = Engine::new(PipeBounds::default(), RelayMode::Auto, start).unwrap();
        let log = Rc::new(std::cell::RefCell::new(Log::default()));
        let ((_client, near), (_backend, far)) = (pair(), pair());
        let [near, far] = [near, far].map(|socket| Stream::new(socket.into()).unwrap());
        let timeouts = Timeouts { idle: 10_000, ..PATIENT };
        let handover = Handover { last_moved, ..Handover::default() };
        engine.resume(near, far, handover, timeouts, Probe(Rc::clone(&log)), after(8));
        engine.turn(after(10)).unwrap();
        assert_eq!(engine.entries.len(), 1);
        engine.turn(after(12)).unwrap();
        assert_eq!(engine.entries.is_empty(), ended);
    }
}

/// The kernel tells of a reset once. Who has been told must say so, or the end of file that comes next is believed.
#[test]
fn a_write_that_failed_before_is_the_end_once_what_was_sent_is_delivered() {
    for (error, end) in [
        (Errno::CONNRESET, RelayEnd::Reset(Side::Backend)),
        (Errno::PIPE, RelayEnd::Reset(Side::Backend)),
        (Errno::TIMEDOUT, RelayEnd::Lost(Side::Backend, Errno::TIMEDOUT)),
    ] {
        for answer in [0, SMALL] {
            let mut rig = Rig::resumed(PATIENT, |_, far| {
                let (mut backend, new) = pair();
                *far = new;
                backend.write_all(&vec![pattern(0); answer]).unwrap();
                reset(backend);
                assert_eq!(far.take_error().unwrap().unwrap().kind(), ErrorKind::ConnectionReset);
                Handover { backend_error: Some(error), client_fin: Fin::Read, ..pending(SMALL) }
            });
            let (mut received, mut buffer, mut failed) = (0, [0; 4_096], None);
            rig.until("the reset", |rig| {
                match rig.client.read(&mut buffer) {
                    Ok(0) => panic!("a false end"),
                    Ok(count) => received += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => failed = Some(error.kind()),
                }
                failed.is_some()
            });
            rig.until("the end", |rig| rig.end().is_some());
            assert_eq!((received, failed, rig.end()), (answer, Some(ErrorKind::ConnectionReset), Some(end)));
        }
    }
}

/// What the client had sent before its reset has a moment to arrive, as everywhere.
#[test]
fn a_read_that_failed_before_is_the_end_once_what_came_before_it_is_delivered() {
    for amount in [0, SMALL] {
        let mut rig = Rig::resumed(PATIENT, |near, _| {
            let (client, new) = pair();
            *near = new;
            reset(client);
            let error = near.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            Handover { client_error: Some(Errno::CONNRESET), ..pending(amount) }
        });
        let (mut received, mut buffer, mut failed) = (0, vec![0; 65_536], None);
        rig.until("the reset", |rig| {
            match rig.backend.read(&mut buffer) {
                Ok(0) => panic!("a false end"),
                Ok(count) => received += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => failed = Some(error.kind()),
            }
            failed.is_some()
        });
        rig.until("the end", |rig| rig.end().is_some());
        assert_eq!((received, failed), (amount, Some(ErrorKind::ConnectionReset)));
        assert_eq!(rig.end(), Some(RelayEnd::Reset(Side::Client)));
    }
}

/// No event will come: the client's socket is closed by then, and the backend's is full.
#[test]
fn a_read_that_failed_before_is_the_end_of_a_backend_that_takes_nothing() {
    let mut rig = Rig::resumed(PATIENT, |near, far| {
        let (client, new) = pair();
        *near = new;
        reset(client);
        assert_eq!(near.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let piece = vec![0; 65_536];
        while far.write(&piece).is_ok() {}
        Handover { client_error: Some(Errno::CONNRESET), ..pending(SMALL) }
    });
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::Reset(Side::Client)));
}

#[test]
fn unix_sockets_on_either_side() {
    for (unix, amount) in [(Side::Client, SMALL), (Side::Backend, SMALL), (Side::Backend, LARGE)] {
        for fin in [Fin::Awaited, Fin::Read] {
            let mut rig = Rig::new(PATIENT);
            let log = Rc::new(std::cell::RefCell::new(Log::default()));
            let (mut unix_peer, ours) = UnixStream::pair().unwrap();
            unix_peer.set_nonblocking(true).unwrap();
            ours.set_nonblocking(true).unwrap();
            let (mut tcp_peer, tcp) = pair();
            let (ours, tcp) = (Stream::unix(ours.into()), Stream::new(tcp.into()).unwrap());
            let (client, backend) = if unix == Side::Client { (ours, tcp) } else { (tcp, ours) };
            let handover = Handover { client_fin: fin, ..pending(amount) };
            let owner = Probe(Rc::clone(&log));
            rig.engine.resume(client, backend, handover, PATIENT, owner, Instant::now());
            match unix {
                Side::Client => expect(&mut rig, &mut tcp_peer, amount),
                Side::Backend => expect(&mut rig, &mut unix_peer, amount),
            }
            unix_peer.shutdown(Shutdown::Write).unwrap();
            tcp_peer.shutdown(Shutdown::Write).unwrap();
            rig.until("the end", |_| !log.borrow().ends.is_empty());
            assert_eq!(log.borrow().ends, [RelayEnd::Complete]);
            assert_eq!(read_end(&mut tcp_peer), Some(Ok(())));
        }
    }
}
