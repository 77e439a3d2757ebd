//! The engine with real sockets, turned by hand: the table of `docs/ends.md`, row by row, by copying and by splice.

use super::*;
use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::rc::Rc;

#[derive(Default)]
pub struct Log {
    pub moved: [usize; 2],
    pub ended_one_way: Vec<Direction>,
    pub backend_closed: bool,
    pub ends: Vec<RelayEnd>,
}

pub struct Probe(pub Rc<RefCell<Log>>);

impl Owner for Probe {
    fn moved(&mut self, direction: Direction, bytes: usize) {
        self.0.borrow_mut().moved[direction as usize] += bytes;
        assert!(bytes != PANIC_AT, "a test asked for it");
    }

    fn ended_one_way(&mut self, direction: Direction) {
        self.0.borrow_mut().ended_one_way.push(direction);
    }

    fn closed(&mut self, side: Side) {
        self.0.borrow_mut().backend_closed |= side == Side::Backend;
    }

    fn ended(self, end: RelayEnd) {
        self.0.borrow_mut().ends.push(end);
    }
}

const PANIC_AT: usize = 4_711;
pub const SMALL: usize = 1_000;
pub const PIPES: PipeBounds = PipeBounds { count: 8, bytes: 8 << 20, largest: 1 << 20 };
/// Enough for both directions to have switched to splicing.
pub const LARGE: usize = 3 << 20;
pub const PATIENT: Timeouts =
    Timeouts { idle: 600_000, half_close: 600_000, linger: 60_000, keepalive: 0, unanswered: 0, lifetime: 0 };

pub struct Rig {
    pub engine: Engine<Probe>,
    pub client: TcpStream,
    pub backend: TcpStream,
    pub log: Rc<RefCell<Log>>,
}

pub fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    far.set_nonblocking(true).unwrap();
    near.set_nonblocking(true).unwrap();
    // As `net::listen` and `net::connect` do it.
    rustix::net::sockopt::set_socket_oobinline(&near, true).unwrap();
    rustix::net::sockopt::set_socket_oobinline(&far, true).unwrap();
    (near, far)
}

impl Rig {
    pub fn new(timeouts: Timeouts) -> Self {
        Self::resumed(timeouts, |_, _| Handover::default())
    }

    /// With a session that `begin` has begun, on its client's and its backend's socket.
    pub fn resumed(timeouts: Timeouts, begin: impl FnOnce(&mut TcpStream, &mut TcpStream) -> Handover) -> Self {
        let mut engine = Engine::new(PIPES, RelayMode::Auto, Instant::now()).unwrap();
        let log = Rc::new(RefCell::new(Log::default()));
        let (client, mut near) = pair();
        let (backend, mut far) = pair();
        let owner = Probe(Rc::clone(&log));
        let handover = begin(&mut near, &mut far);
        let [near, far] = [near, far].map(|socket| Stream::new(socket.into()).unwrap());
        engine.resume(near, far, handover, timeouts, owner, Instant::now());
        Self { engine, client, backend, log }
    }

    pub fn turn(&mut self) {
        self.engine.turn(Instant::now()).unwrap();
    }

    pub fn end(&self) -> Option<RelayEnd> {
        self.log.borrow().ends.first().copied()
    }

    /// Turns until `done` says so.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(begun.elapsed() < Duration::from_secs(20), "never happened: {what}");
            self.turn();
        }
    }

    /// Writes `amount` bytes into one end and reads them, checked, from the other.
    pub fn carry(&mut self, from: Side, amount: usize) {
        let (mut sent, mut received) = (0, 0);
        let (mut out, mut buffer) = (vec![0; 65_536], vec![0; 65_536]);
        self.until("all bytes carried", |rig| {
            let (source, sink) = match from {
                Side::Client => (&rig.client, &rig.backend),
                Side::Backend => (&rig.backend, &rig.client),
            };
            let chunk = (amount - sent).min(out.len());
            for (at, byte) in out[..chunk].iter_mut().enumerate() {
                *byte = pattern(sent + at);
            }
            if chunk > 0 {
                sent += (&mut &*source).write(&out[..chunk]).unwrap_or(0);
            }
            if let Ok(count) = (&mut &*sink).read(&mut buffer) {
                for (at, byte) in buffer[..count].iter().enumerate() {
                    assert_eq!(*byte, pattern(received + at), "byte {}", received + at);
                }
                received += count;
            }
            received == amount
        });
    }
}

pub fn pattern(position: usize) -> u8 {
    (position.wrapping_mul(2_654_435_761) >> 13) as u8
}

pub fn read_end(stream: &mut TcpStream) -> Option<Result<(), ErrorKind>> {
    match stream.read(&mut [0; 4_096]) {
        Ok(0) => Some(Ok(())),
        Ok(_) => None,
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => Some(Err(error.kind())),
    }
}

pub fn reset(stream: TcpStream) {
    drop(Stream::new(stream.into()).unwrap());
}

#[test]
fn bytes_arrive_unchanged_and_an_idle_session_holds_no_pipe() {
    let mut rig = Rig::new(PATIENT);
    for amount in [1, SMALL, 100_000, LARGE] {
        rig.carry(Side::Client, amount);
        rig.carry(Side::Backend, amount);
    }
    assert_eq!(rig.log.borrow().moved, [1 + SMALL + 100_000 + LARGE; 2]);
    assert!(rig.engine.pipe_use().open > 0, "large transfers go through pipes");
    rig.client.shutdown(Shutdown::Write).unwrap();
    rig.backend.shutdown(Shutdown::Write).unwrap();
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::Complete));
    assert_eq!(rig.engine.pipe_use().open, 0);
}

#[test]
fn a_half_close_passes_and_the_late_answer_arrives() {
    for side in Side::BOTH {
        for amount in [SMALL, LARGE] {
            let mut rig = Rig::new(PATIENT);
            rig.carry(side, amount);
            let (first, mut second) = match side {
                Side::Client => (rig.client.try_clone().unwrap(), rig.backend.try_clone().unwrap()),
                Side::Backend => (rig.backend.try_clone().unwrap(), rig.client.try_clone().unwrap()),
            };
            first.shutdown(Shutdown::Write).unwrap();
            rig.until("the FIN passed on", |_| read_end(&mut second) == Some(Ok(())));
            assert_eq!(rig.end(), None);
            rig.carry(side.other(), amount);
            second.shutdown(Shutdown::Write).unwrap();
            rig.until("the end", |rig| rig.end().is_some());
            assert_eq!(rig.end(), Some(RelayEnd::Complete));
        }
    }
}

#[test]
fn a_reset_reaches_the_other_side_as_a_reset() {
    for amount in [SMALL, LARGE] {
        let mut rig = Rig::new(PATIENT);
        rig.carry(Side::Backend, amount);
        reset(std::mem::replace(&mut rig.backend, pair().0));
        rig.until("the end", |rig| rig.end().is_some());
        assert_eq!(rig.end(), Some(RelayEnd::Reset(Side::Backend)));
        assert_eq!(read_end(&mut rig.client), Some(Err(ErrorKind::ConnectionReset)));

        let mut rig = Rig::new(PATIENT);
        rig.carry(Side::Client, amount);
        reset(std::mem::replace(&mut rig.client, pair().0));
        rig.until("the end", |rig| rig.end().is_some());
        assert_eq!(rig.end(), Some(RelayEnd::Reset(Side::Client)));
        assert_eq!(read_end(&mut rig.backend), Some(Err(ErrorKind::ConnectionReset)));
    }
}

#[test]
fn a_reset_after_half_close_is_still_a_reset() {
    let mut rig = Rig::new(PATIENT);
    rig.client.shutdown(Shutdown::Write).unwrap();
    let mut backend = rig.backend.try_clone().unwrap();
    rig.until("the FIN", |_| read_end(&mut backend) == Some(Ok(())));
    drop(backend);
    reset(std::mem::replace(&mut rig.backend, pair().0));
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::Reset(Side::Backend)));
    assert_eq!(read_end(&mut rig.client), Some(Err(ErrorKind::ConnectionReset)));
}

/// The kernel tells a reset only once: if a write takes the error, a later read finds an end of file.
#[test]
fn a_write_that_finds_the_reset_first_makes_no_false_end() {
    for round in 0..50 {
        let mut rig = Rig::new(PATIENT);
        rig.carry(Side::Client, SMALL);
        rig.until("rest", |rig| rig.engine.turn(Instant::now()).unwrap() == Turn::Idle);
        // Both events are in the same turn: the request on one side, the reset on the other. Whichever is there first
        // is looked at first: with the request before the reset, it is the write that finds out.
        let mut backend = Some(std::mem::replace(&mut rig.backend, pair().0));
        if round % 2 == 0 {
            reset(backend.take().unwrap());
        }
        rig.client.write_all(&[7; SMALL]).unwrap();
        backend.into_iter().for_each(reset);
        rig.until("the end", |rig| rig.end().is_some());
        assert_eq!(rig.end(), Some(RelayEnd::Reset(Side::Backend)));
        assert_eq!(read_end(&mut rig.client), Some(Err(ErrorKind::ConnectionReset)));
    }
}

#[test]
fn what_was_read_before_a_reset_is_delivered_before_it() {
    let mut rig = Rig::new(PATIENT);
    let mut sent = 0;
    let block = vec![5; 65_536];
    // The client does not read: sockets and pipe fill up.
    let mut quiet = 0;
    rig.until("everything is full", |rig| {
        match rig.backend.write(&block) {
            Ok(count) => (sent, quiet) = (sent + count, 0),
            Err(_) => quiet += 1,
        }
        quiet > 200
    });
    let held = rig.log.borrow().moved[Direction::ToClient as usize];
    assert!(sent > held && held > LARGE / 8, "{sent} sent, {held} taken by the client's kernel");
    reset(std::mem::replace(&mut rig.backend, pair().0));
    rig.until("the backend's socket is closed or drained", |rig| {
        rig.turn();
        rig.engine.closing.len() == 1
    });
    assert_eq!(rig.end(), None, "the client has not got everything yet");
    let (mut received, mut buffer) = (0, vec![0; 65_536]);
    let mut error = None;
    rig.until("the reset", |rig| {
        match rig.client.read(&mut buffer) {
            Ok(0) => panic!("a false end after {received} of {sent}"),
            Ok(count) => received += count,
            Err(failed) if failed.kind() == ErrorKind::WouldBlock => {}
            Err(failed) => error = Some(failed.kind()),
        }
        error.is_some()
    });
    assert_eq!(error, Some(ErrorKind::ConnectionReset));
    assert!(received >= held, "{received} received, {held} were already with the client's kernel");
    assert_eq!(rig.end(), Some(RelayEnd::Reset(Side::Backend)));
}

#[test]
fn a_client_reset_frees_the_backend_although_it_does_not_read() {
    let mut rig = Rig::new(PATIENT);
    let block = vec![5; 65_536];
    let mut quiet = 0;
    rig.until("everything is full", |rig| {
        quiet = if rig.client.write(&block).is_ok() { 0 } else { quiet + 1 };
        quiet > 200
    });
    reset(std::mem::replace(&mut rig.client, pair().0));
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::Reset(Side::Client)));
    assert_eq!(rig.engine.pipe_use().open, 0, "a pipe with data in it is closed");
}

#[test]
fn a_half_close_time_out_of_zero_ends_with_the_first_fin_once_it_is_delivered() {
    let mut rig = Rig::new(Timeouts { half_close: 0, ..PATIENT });
    rig.carry(Side::Backend, LARGE);
    rig.backend.shutdown(Shutdown::Write).unwrap();
    let mut ended = None;
    rig.until("the FIN at the client", |rig| {
        ended = ended.or_else(|| read_end(&mut rig.client));
        ended.is_some()
    });
    assert_eq!(ended, Some(Ok(())));
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::HalfClosed(Side::Backend)));
    assert_eq!(read_end(&mut rig.backend), Some(Err(ErrorKind::ConnectionReset)));
}

#[test]
fn quiet_sessions_end_by_their_own_limit() {
    let mut rig = Rig::new(Timeouts { idle: 50, ..PATIENT });
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::IdleTimeout));
    assert_eq!(read_end(&mut rig.client), Some(Err(ErrorKind::ConnectionReset)));
    assert_eq!(read_end(&mut rig.backend), Some(Err(ErrorKind::ConnectionReset)));

    let mut rig = Rig::new(Timeouts { half_close: 50, ..PATIENT });
    rig.client.shutdown(Shutdown::Write).unwrap();
    rig.until("the end", |rig| rig.end().is_some());
    assert_eq!(rig.end(), Some(RelayEnd::HalfCloseTimeout));
    assert_eq!(read_end(&mut rig.client), Some(Err(ErrorKind::ConnectionReset)));
}

#[test]
fn urgent_data_does_not_stall_what_follows_it() {
    let mut rig = Rig::new(PATIENT);
    rig.carry(Side::Client, 1);
    rustix::net::send(&rig.client, b"ab!", rustix::net::SendFlags::OOB).unwrap();
    rig.client.write_all(&[9; SMALL]).unwrap();
    let (mut received, mut buffer) = (0, [0; 4_096]);
    rig.until("the bytes after the urgent one", |rig| {
        received += rig.backend.read(&mut buffer).unwrap_or(0);
        // The urgent byte itself arrives only if the socket was made to keep it inline.
        received >= 2 + SMALL
    });
}

#[test]
fn urgent_data_ends_no_bulk_transfer() {
    for rest in [0, SMALL] {
        let mut rig = Rig::new(PATIENT);
        rustix::net::sockopt::set_socket_send_buffer_size(&rig.client, 4 << 20).unwrap();
        let (mut sent, mut received, mut buffer) = (0, 0, vec![0; 65_536]);
        while sent < LARGE / 4 {
            sent += rig.client.write(&vec![9; LARGE / 4 - sent]).unwrap();
        }
        sent += rustix::net::send(&rig.client, b"!", rustix::net::SendFlags::OOB).unwrap();
        sent += rig.client.write(&vec![9; rest]).unwrap();
        rig.client.shutdown(Shutdown::Write).unwrap();
        rig.until("the end of file", |rig| match rig.backend.read(&mut buffer) {
            Ok(0) => true,
            read => {
                received += read.unwrap_or(0);
                false
            }
        });
        assert_eq!(received, sent, "with {rest} bytes after the urgent one");
    }
}

/// splice(2) into a socket sends piece by piece. If the reset comes between two of them, the second takes the error
/// from the socket, and the call reports the bytes of the first. Here the test takes the error.
#[test]
fn a_reset_whose_error_was_taken_unseen_is_no_end_of_file() {
    for request in [SMALL, 0] {
        let mut rig = Rig::new(PATIENT);
        let (mut client, near) = pair();
        let (mut backend, far) = pair();
        let far_too = Stream::new(far.try_clone().unwrap().into()).unwrap();
        let log = Rc::new(RefCell::new(Log::default()));
        let (near, far) = (Stream::new(near.into()).unwrap(), Stream::new(far.into()).unwrap());
        rig.engine.add(near, far, PATIENT, Probe(Rc::clone(&log)), Instant::now());
        let (mut sent, mut received, mut buffer) = (0, 0, vec![0; 65_536]);
        rig.until("enough carried to be spliced", |_| {
            sent += if sent < LARGE { client.write(&buffer).unwrap_or(0) } else { 0 };
            received += backend.read(&mut buffer).unwrap_or(0);
            sent >= LARGE && received == sent
        });
        client.write_all(&vec![1; request]).unwrap();
        reset(backend);
        assert_eq!(far_too.take_error(), Err(Errno::CONNRESET));
        rig.until("the end", |_| !log.borrow().ends.is_empty());
        assert_eq!(log.borrow().ends, [RelayEnd::Reset(Side::Backend)]);
        drop(far_too);
        let mut end = None;
        rig.until("the client's end", |_| {
            end = end.or_else(|| read_end(&mut client));
            end.is_some()
        });
        assert_eq!(end, Some(Err(ErrorKind::ConnectionReset)));
    }
}

#[test]
fn a_piece_of_a_unix_stream_that_carries_descriptors_stalls_nothing() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    let mut rig = Rig::new(PATIENT);
    let (mut client, near) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let (mut backend, far) = pair();
    let owner = Probe(Rc::clone(&rig.log));
    let fds = [client.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&client, &[io::IoSlice::new(b"one")], &mut control, SendFlags::empty()).unwrap();
    client.write_all(b"two").unwrap();
    rig.engine.add(Stream::unix(near.into()), Stream::new(far.into()).unwrap(), PATIENT, owner, Instant::now());
    let (mut received, mut buffer) = (0, [0; 16]);
    rig.until("all bytes", |_| {
        received += backend.read(&mut buffer).unwrap_or(0);
        received == 6
    });
}

#[test]
fn a_panic_in_one_session_resets_that_session_alone() {
    let mut rig = Rig::new(PATIENT);
    let log = Rc::new(RefCell::new(Log::default()));
    let (mut client, near) = pair();
    let (_backend, far) = pair();
    let owner = Probe(Rc::clone(&log));
    rig.engine.add(Stream::new(near.into()).unwrap(), Stream::new(far.into()).unwrap(), PATIENT, owner, Instant::now());
    client.write_all(&[1; PANIC_AT]).unwrap();
    rig.until("the end of the one", |_| !log.borrow().ends.is_empty());
    assert_eq!(log.borrow().ends, [RelayEnd::Panicked]);
    assert_eq!(read_end(&mut client), Some(Err(ErrorKind::ConnectionReset)));
    rig.carry(Side::Client, SMALL);
}

#[test]
fn without_pipes_everything_is_copied() {
    let mut rig = Rig::new(PATIENT);
    rig.engine.shared.pipes = Pipes::new(PipeBounds::default());
    rig.carry(Side::Client, LARGE);
    rig.carry(Side::Backend, LARGE);
    let used = rig.engine.pipe_use();
    assert_eq!((used.open, used.bytes), (0, 0));
    assert!(used.fallbacks > 0);
}

#[test]
fn the_mode_decides_how_much_is_copied_first() {
    for (mode, bytes, splices) in [
        (RelayMode::Copy, LARGE, false),
        (RelayMode::Auto, SMALL, false),
        (RelayMode::Auto, LARGE, true),
        (RelayMode::Splice, SMALL, false),
        (RelayMode::Splice, LARGE, true),
    ] {
        let mut rig = Rig::new(PATIENT);
        rig.engine.shared = Shared::new(Pipes::new(PIPES), mode);
        rig.carry(Side::Client, bytes);
        let used = rig.engine.pipe_use();
        assert_eq!((used.open > 0, used.fallbacks), (splices, 0), "{mode:?}, {bytes} bytes");
    }
}

#[test]
fn aborting_resets_everybody_and_counts_them() {
    let mut rig = Rig::new(PATIENT);
    rig.carry(Side::Client, SMALL);
    assert_eq!(rig.engine.abort_all(), 1);
    assert_eq!(rig.end(), Some(RelayEnd::Aborted));
    assert!(rig.engine.entries.is_empty());
    assert_eq!(read_end(&mut rig.client), Some(Err(ErrorKind::ConnectionReset)));
}
