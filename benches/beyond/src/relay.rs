//! The epoll relay: one thread, edge-triggered, copying through one shared buffer; and the sockmap relay, which sets a
//! connection up the same way and then leaves the bytes to the kernel.
//!
//! Owns the sessions and the loop. Invariants: a FIN is passed on after all bytes that came before it; every other end
//! is a reset, after what was read has been delivered. The sockmap relay with the naive ending breaks both: that is
//! what it is there to show. A connection that the map refuses is copied.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{EventData, EventFlags};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags, Shutdown, SocketFlags, sockopt};
use slab::Slab;

use crate::sockets::{self, LONGEST_FLUSH, LOOK_AGAIN};
use crate::sys::{self, SockHash};
use crate::{Ending, program};

const BUFFER_BYTES: usize = 64 << 10;
const EVENTS_A_TURN: usize = 256;
const ACCEPTS_A_TURN: usize = 16;
/// Sockets in the map.
const MAP_ENTRIES: u32 = 65_536;
const LISTENER: u64 = u64::MAX;
const CLIENT: usize = 0;
const BACKEND: usize = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Copying,
    InKernel,
    Closed,
}

/// From one socket to the other one.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts, not states of one machine")]
struct Way {
    readable: bool,
    hung_up: bool,
    ended: bool,
    passed: bool,
    /// Read, and not yet taken by the other side.
    held: Vec<u8>,
    /// Bytes that TCP counted as given to the other socket before the first of this way.
    given_before: u64,
}

impl Way {
    /// Moves at most one buffer. Fails with the side that broke.
    fn pump(&mut self, side: usize, from: &OwnedFd, to: &OwnedFd, buffer: &mut [u8]) -> Result<(), usize> {
        if !self.held.is_empty() {
            let sent = send(to, &self.held).map_err(|_| 1 - side)?;
            self.held.drain(..sent);
            if !self.held.is_empty() {
                return Ok(());
            }
            // An idle session holds no buffer.
            self.held = Vec::new();
        }
        if self.readable && !self.ended {
            match net::recv(from, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) => (self.ended, self.readable) = (true, false),
                Ok((count, _)) => {
                    // A short read has emptied the queue; only a hang-up can still be behind it.
                    self.readable = count == buffer.len() || self.hung_up;
                    let sent = send(to, &buffer[..count]).map_err(|_| 1 - side)?;
                    self.held.extend_from_slice(&buffer[sent..count]);
                }
                Err(error) if sockets::would_block(error) => self.readable = false,
                Err(_) => {
                    self.readable = false;
                    return Err(side);
                }
            }
        }
        if self.ended && self.held.is_empty() && !self.passed {
            net::shutdown(to, Shutdown::Write).map_err(|_| 1 - side)?;
            self.passed = true;
        }
        Ok(())
    }

    /// Has the kernel given to one socket all that it received on the other?
    fn all_given(&self, from: &OwnedFd, to: &OwnedFd) -> bool {
        // A FIN counts as one byte received.
        let received = sys::tcp_counts(from).map_or(0, |counts| counts.received);
        given(to).saturating_sub(self.given_before) >= received.saturating_sub(u64::from(self.ended))
    }
}

/// What a socket was given to send so far: acknowledged or still queued.
fn given(socket: &OwnedFd) -> u64 {
    // The order matters: between the two calls bytes may be acknowledged, which must not count twice.
    let acknowledged = sys::tcp_counts(socket).map_or(u64::MAX, |counts| counts.acknowledged);
    acknowledged.saturating_add(u64::from(sys::unacknowledged(socket).unwrap_or(0)))
}

fn send(to: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    match net::send(to, bytes, SendFlags::NOSIGNAL) {
        Err(error) if sockets::would_block(error) => Ok(0),
        result => result,
    }
}

struct Session {
    sockets: [OwnedFd; 2],
    phase: Phase,
    ways: [Way; 2],
    /// The side that broke, and when the wait for its last bytes ends.
    broken: Option<(usize, Instant)>,
    waiting: bool,
    queued: bool,
}

struct Relay {
    epoll: OwnedFd,
    listener: OwnedFd,
    backends: Vec<SocketAddrV4>,
    next: usize,
    sessions: Slab<Session>,
    buffer: Vec<u8>,
    /// Sessions with work left after their turn.
    again: Vec<usize>,
    /// Sessions whose end waits for bytes that announce themselves with no event.
    waiting: Vec<usize>,
    closed: Vec<usize>,
    maps: Option<(Maps, Ending)>,
    refused: u64,
}

/// Serves until it is killed; returns only with an error. With an `ending` it is the sockmap relay.
pub fn run(listen: SocketAddrV4, backends: &[SocketAddrV4], ending: Option<Ending>) -> Result<()> {
    let maps = ending.map(|ending| Maps::new().map(|maps| (maps, ending))).transpose()?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let listener = sockets::listener(listen)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut relay = Relay {
        epoll,
        listener,
        backends: backends.to_vec(),
        next: 0,
        sessions: Slab::new(),
        buffer: vec![0; BUFFER_BYTES],
        again: Vec::new(),
        waiting: Vec::new(),
        closed: Vec::new(),
        maps,
        refused: 0,
    };
    let mut events = Vec::with_capacity(EVENTS_A_TURN);
    loop {
        relay.turn(&mut events)?;
    }
}

/// A socket runs the program from the moment at which it enters the map that the program is attached to. If that were
/// also the map in which the program looks for the other socket, the first of the two to enter would run it too early.
struct Maps {
    /// Under one side's cookie stands the other side.
    other: SockHash,
    /// Under its own cookie stands each socket that runs the program.
    running: SockHash,
}

impl Maps {
    fn new() -> Result<Self> {
        let new = || SockHash::new(MAP_ENTRIES).context("making a map of sockets (needs CAP_BPF and CAP_NET_ADMIN)");
        let maps = Self { other: new()?, running: new()? };
        maps.running.attach(&program::redirect_to_the_other(maps.other.fd())).context("loading the program")?;
        Ok(maps)
    }

    fn insert(&self, sockets: &[OwnedFd; 2]) -> std::io::Result<()> {
        let [client, backend] = [sockopt::socket_cookie(&sockets[CLIENT])?, sockopt::socket_cookie(&sockets[BACKEND])?];
        self.other.insert(client, &sockets[BACKEND])?;
        let rest = self.other.insert(backend, &sockets[CLIENT]).and_then(|()| self.run(client, backend, sockets));
        if rest.is_err() {
            // What isn't there can't be removed, and need not.
            let _ = self.other.remove(client);
            let _ = self.other.remove(backend);
        }
        rest
    }

    fn run(&self, client: u64, backend: u64, sockets: &[OwnedFd; 2]) -> std::io::Result<()> {
        self.running.insert(client, &sockets[CLIENT])?;
        self.running.insert(backend, &sockets[BACKEND])
    }
}

impl Relay {
    fn turn(&mut self, events: &mut Vec<epoll::Event>) -> Result<()> {
        let wait = match (self.again.is_empty(), self.waiting.is_empty()) {
            (false, _) => Some(Timespec { tv_sec: 0, tv_nsec: 0 }),
            (true, false) => Some(Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK_AGAIN.subsec_nanos()) }),
            (true, true) => None,
        };
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(events), wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for events"),
        }
        let again = std::mem::take(&mut self.again);
        for event in &*events {
            let (token, flags): (u64, EventFlags) = (event.data.u64(), event.flags);
            if token == LISTENER {
                self.accept()?;
            } else {
                self.on_event((token >> 1) as usize, (token & 1) as usize, flags)?;
            }
        }
        for index in again {
            self.sessions[index].queued = false;
            self.pump(index);
        }
        for index in std::mem::take(&mut self.waiting) {
            self.sessions[index].waiting = false;
            self.settle(index);
        }
        for index in self.closed.drain(..) {
            self.sessions.remove(index);
        }
        self.waiting.retain(|&index| self.sessions.contains(index));
        self.again.retain(|&index| self.sessions.contains(index));
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        for _ in 0..ACCEPTS_A_TURN {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let client = match net::accept_with(&self.listener, flags) {
                Ok(client) => client,
                Err(error) if sockets::would_block(error) => break,
                Err(error) => return Err(error).context("accepting"),
            };
            let backend = sockets::to_backend(flags)?;
            let address = self.backends[self.next % self.backends.len()];
            self.next += 1;
            match net::connect(&backend, &address) {
                Ok(()) | Err(Errno::INPROGRESS) => {}
                Err(_) => {
                    sockets::will_reset(&client);
                    continue;
                }
            }
            let index = self.sessions.insert(Session {
                sockets: [client, backend],
                phase: Phase::Connecting,
                ways: [Way::default(), Way::default()],
                broken: None,
                waiting: false,
                queued: false,
            });
            self.register(index, BACKEND, EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP)?;
        }
        Ok(())
    }

    fn register(&self, index: usize, side: usize, flags: EventFlags) -> Result<()> {
        let token = EventData::new_u64((index as u64) << 1 | side as u64);
        epoll::add(&self.epoll, &self.sessions[index].sockets[side], token, flags | EventFlags::ET)?;
        Ok(())
    }

    fn on_event(&mut self, index: usize, side: usize, flags: EventFlags) -> Result<()> {
        let session = &mut self.sessions[index];
        match session.phase {
            Phase::Closed => {}
            Phase::Connecting => {
                if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
                    self.close(index, true);
                } else if flags.contains(EventFlags::OUT) {
                    self.begin(index)?;
                }
            }
            Phase::Copying => {
                let way = &mut session.ways[side];
                way.hung_up |= flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
                way.readable |= way.hung_up || flags.contains(EventFlags::IN);
                // One that is queued already has its turn at the end of this one.
                if !session.queued {
                    self.pump(index);
                }
            }
            Phase::InKernel => {
                let socket = &session.sockets[side];
                // Once a FIN without bytes has gone through the program, the kernel marks the *other* socket with
                // EPIPE, though nothing is wrong with it. A reset says ECONNRESET, unless that side had sent its FIN
                // before.
                let broken = flags.contains(EventFlags::ERR) && sockopt::socket_error(socket) != Ok(Err(Errno::PIPE));
                if broken {
                    session.broken.get_or_insert((side, Instant::now() + LONGEST_FLUSH));
                } else if flags.intersects(EventFlags::RDHUP | EventFlags::HUP) {
                    session.ways[side].ended = true;
                }
                self.settle(index);
            }
        }
        Ok(())
    }

    /// Both sides are connected: the relay begins.
    fn begin(&mut self, index: usize) -> Result<()> {
        let all = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP;
        if self.hand_over(index) {
            self.sessions[index].phase = Phase::InKernel;
            // Bytes are the kernel's matter now; only the ends are ours.
            self.register(index, CLIENT, EventFlags::RDHUP)?;
            let token = EventData::new_u64((index as u64) << 1 | BACKEND as u64);
            let ends = EventFlags::RDHUP | EventFlags::ET;
            epoll::modify(&self.epoll, &self.sessions[index].sockets[BACKEND], token, ends)?;
            for side in [CLIENT, BACKEND] {
                // What came before the map knew both sockets is looked at again, in its order.
                sys::set_receive_low_water(&self.sessions[index].sockets[side], 1)?;
            }
            return Ok(());
        }
        let session = &mut self.sessions[index];
        session.phase = Phase::Copying;
        session.ways[BACKEND].readable = true;
        self.register(index, CLIENT, all)
    }

    /// False: the session has to be copied.
    fn hand_over(&mut self, index: usize) -> bool {
        let Some((maps, ending)) = &self.maps else { return false };
        let session = &mut self.sessions[index];
        if *ending == Ending::Counted {
            for side in [CLIENT, BACKEND] {
                session.ways[side].given_before = given(&session.sockets[1 - side]);
            }
        }
        let both = maps.insert(&session.sockets);
        if let Err(error) = &both {
            self.refused += 1;
            eprintln!("refused by the map ({}), copied instead: {error}", self.refused);
        }
        both.is_ok()
    }

    /// Moves at most one buffer each way.
    fn pump(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        if session.phase != Phase::Copying {
            return;
        }
        let [client, backend] = &session.sockets;
        for (side, from, to) in [(CLIENT, client, backend), (BACKEND, backend, client)] {
            if let Err(side) = session.ways[side].pump(side, from, to, &mut self.buffer) {
                session.broken.get_or_insert((side, Instant::now() + LONGEST_FLUSH));
            }
        }
        if session.broken.is_some() {
            self.settle(index);
        } else if session.ways.iter().all(|way| way.passed) {
            self.close(index, false);
        } else if !session.queued && session.ways.iter().any(|way| way.readable && way.held.is_empty()) {
            session.queued = true;
            self.again.push(index);
        }
    }

    /// Ends what can be ended of a session that waits for its last bytes.
    fn settle(&mut self, index: usize) {
        let counted = self.maps.as_ref().is_none_or(|(_, ending)| *ending == Ending::Counted);
        let session = &mut self.sessions[index];
        if session.phase == Phase::Closed {
            return;
        }
        if let Some((side, deadline)) = session.broken {
            let (way, to) = (&session.ways[side], &session.sockets[1 - side]);
            let out = match session.phase {
                Phase::InKernel => !counted || (way.all_given(&session.sockets[side], to) && sockets::flushed(to)),
                _ => way.held.is_empty() && sockets::flushed(to),
            };
            if out || Instant::now() >= deadline {
                self.close(index, true);
            } else {
                self.wait_for(index);
            }
            return;
        }
        if session.phase != Phase::InKernel {
            return;
        }
        let mut waits = false;
        for side in [CLIENT, BACKEND] {
            let (from, to) = (&session.sockets[side], &session.sockets[1 - side]);
            let way = &mut session.ways[side];
            if !way.ended || way.passed {
                continue;
            }
            if !counted || way.all_given(from, to) {
                // A side that is gone already can't be told.
                let _ = net::shutdown(to, Shutdown::Write);
                way.passed = true;
            } else {
                waits = true;
            }
        }
        if session.ways.iter().all(|way| way.passed) {
            self.close(index, false);
        } else if waits {
            self.wait_for(index);
        }
    }

    fn wait_for(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        if !session.waiting {
            session.waiting = true;
            self.waiting.push(index);
        }
    }

    fn close(&mut self, index: usize, reset: bool) {
        let session = &mut self.sessions[index];
        if session.phase == Phase::Closed {
            return;
        }
        session.phase = Phase::Closed;
        if reset {
            session.sockets.iter().for_each(sockets::will_reset);
        }
        self.closed.push(index);
    }
}
