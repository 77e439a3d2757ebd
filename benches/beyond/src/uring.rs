//! The `io_uring` relay: accepts, connects, receives and sends are requests; one system call a turn submits and waits.
//!
//! Owns the sessions and the loop. A buffer that the kernel filled from one socket is sent to the other from where it
//! lies, and given back when the send completes. Invariants: a FIN is passed on after all bytes that came before it; a
//! session is removed only when none of its requests is under way.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::net::{self, Shutdown, SocketFlags};
use slab::Slab;

use crate::sockets::{self, LONGEST_FLUSH, LOOK_AGAIN};
use crate::sys::{self, Address, Completion, Ring};

/// With so many buffers held for a reader, receiving for it is cancelled. More may come until the kernel has done so.
const MOST_HELD: usize = 2;
const CLIENT: usize = 0;
const BACKEND: usize = 1;

/// What a completion is about; in the low bits of its token, above the side.
const ACCEPT: u64 = 0;
const CONNECT: u64 = 1;
const RECEIVE: u64 = 2;
const SEND: u64 = 3;
const CANCEL: u64 = 4;

fn token(index: usize, what: u64, side: usize) -> u64 {
    (index as u64) << 4 | what << 1 | side as u64
}

/// From one socket to the other one.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts, not states of one machine")]
struct Way {
    receiving: bool,
    cancelling: bool,
    starving: bool,
    sending: bool,
    ended: bool,
    passed: bool,
    /// Filled buffers with their lengths; the first is under way while `sending`.
    held: VecDeque<(u16, u32)>,
}

struct Session {
    sockets: [OwnedFd; 2],
    ways: [Way; 2],
    /// Requests under way.
    requests: u32,
    /// The side that broke, and when the wait for its last bytes ends.
    broken: Option<(usize, Instant)>,
    waiting: bool,
    closing: bool,
}

struct Relay {
    ring: Ring,
    single_shot: bool,
    listener: OwnedFd,
    backends: Vec<&'static Address>,
    next: usize,
    sessions: Slab<Session>,
    starving: Vec<usize>,
    waiting: Vec<usize>,
    /// Times that the kernel found no buffer.
    shortages: u64,
}

pub fn start(buffers: u16, buffer_bytes: u32) -> Result<Ring> {
    Ring::new(buffers, buffer_bytes).context("making an io_uring (see kernel.io_uring_disabled)")
}

/// Serves until it is killed; returns only with an error.
pub fn run(listen: SocketAddrV4, backends: &[SocketAddrV4], ring: Ring, single_shot: bool) -> Result<()> {
    let backends = backends.iter().map(|&address| &*Box::leak(Box::new(Address::from(address)))).collect();
    let listener = sockets::listener(listen)?;
    let mut relay = Relay {
        ring,
        single_shot,
        listener,
        backends,
        next: 0,
        sessions: Slab::new(),
        starving: Vec::new(),
        waiting: Vec::new(),
        shortages: 0,
    };
    relay.ring.accept(relay.listener.as_raw_fd(), token(0, ACCEPT, 0));
    let mut completions = Vec::new();
    loop {
        relay.ring.wait((!relay.waiting.is_empty()).then_some(LOOK_AGAIN)).context("waiting for completions")?;
        relay.ring.completions(&mut completions);
        for completion in completions.drain(..) {
            relay.on_completion(completion)?;
        }
        for index in std::mem::take(&mut relay.waiting) {
            if let Some(session) = relay.sessions.get_mut(index) {
                session.waiting = false;
                relay.step(index);
            }
        }
        for index in std::mem::take(&mut relay.starving) {
            if let Some(session) = relay.sessions.get_mut(index) {
                session.ways.iter_mut().for_each(|way| way.starving = false);
                relay.step(index);
            }
        }
    }
}

impl Relay {
    fn on_completion(&mut self, completion: Completion) -> Result<()> {
        let (index, side) = ((completion.token >> 4) as usize, (completion.token & 1) as usize);
        match completion.token >> 1 & 7 {
            ACCEPT => return self.on_accept(completion),
            CONNECT => {
                self.sessions[index].requests -= 1;
                if completion.result < 0 {
                    self.close(index);
                }
            }
            RECEIVE => self.on_receive(index, side, &completion),
            SEND => self.on_send(index, side, completion.result),
            _ => self.sessions[index].requests -= 1,
        }
        self.step(index);
        Ok(())
    }

    fn on_accept(&mut self, completion: Completion) -> Result<()> {
        if !completion.more {
            self.ring.accept(self.listener.as_raw_fd(), token(0, ACCEPT, 0));
        }
        let result = completion.result;
        let Some(client) = sys::accepted(completion) else { bail!("accepting: error {}", -result) };
        let backend = sockets::to_backend(SocketFlags::CLOEXEC)?;
        let address = self.backends[self.next % self.backends.len()];
        self.next += 1;
        let socket = backend.as_raw_fd();
        let index = self.sessions.insert(Session {
            sockets: [client, backend],
            ways: [Way::default(), Way::default()],
            requests: 1,
            broken: None,
            waiting: false,
            closing: false,
        });
        self.ring.connect(socket, address, token(index, CONNECT, 0));
        Ok(())
    }

    fn on_receive(&mut self, index: usize, side: usize, completion: &Completion) {
        let session = &mut self.sessions[index];
        let way = &mut session.ways[side];
        if !completion.more {
            session.requests -= 1;
            (way.receiving, way.cancelling) = (false, false);
        }
        match (completion.buffer, completion.result) {
            (Some(buffer), length @ 1..) => way.held.push_back((buffer, length as u32)),
            (buffer, result) => {
                if let Some(buffer) = buffer {
                    self.ring.give_back(buffer);
                }
                match -result {
                    0 => way.ended = true,
                    libc::ECANCELED => {}
                    libc::ENOBUFS => {
                        self.shortages += 1;
                        if self.shortages.is_power_of_two() {
                            eprintln!("no buffer left, {} times so far", self.shortages);
                        }
                        if !way.starving {
                            way.starving = true;
                            self.starving.push(index);
                        }
                    }
                    _ => _ = session.broken.get_or_insert((side, Instant::now() + LONGEST_FLUSH)),
                }
            }
        }
    }

    fn on_send(&mut self, index: usize, side: usize, result: i32) {
        let session = &mut self.sessions[index];
        session.requests -= 1;
        let way = &mut session.ways[side];
        way.sending = false;
        let Some((buffer, length)) = way.held.pop_front() else { return };
        self.ring.give_back(buffer);
        // MSG_WAITALL sends all or fails.
        if result != length as i32 {
            session.broken = Some((1 - side, Instant::now()));
        }
    }

    /// Asks for whatever the session needs next.
    fn step(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        if !session.closing
            && let Some((side, deadline)) = session.broken
        {
            let delivered = session.ways[side].held.is_empty() && sockets::flushed(&session.sockets[1 - side]);
            if delivered || Instant::now() >= deadline {
                self.close(index);
            } else if !session.waiting {
                session.waiting = true;
                self.waiting.push(index);
            }
        }
        let session = &mut self.sessions[index];
        if session.closing {
            if session.requests == 0 {
                for way in &mut session.ways {
                    way.held.drain(..).for_each(|(buffer, _)| self.ring.give_back(buffer));
                }
                self.sessions.remove(index);
            }
            return;
        }
        for side in [CLIENT, BACKEND] {
            let (from, to) = (session.sockets[side].as_raw_fd(), &session.sockets[1 - side]);
            let way = &mut session.ways[side];
            if let (false, Some(&(buffer, length))) = (way.sending, way.held.front()) {
                way.sending = true;
                session.requests += 1;
                self.ring.send(to.as_raw_fd(), buffer, length, token(index, SEND, side));
            }
            if way.ended && way.held.is_empty() && !way.passed {
                way.passed = true;
                // The request for this is always handed to a thread of the kernel, so a system call is quicker.
                let _ = net::shutdown(to, Shutdown::Write);
            }
            if way.receiving {
                if way.held.len() >= MOST_HELD && !way.cancelling && !self.single_shot {
                    way.cancelling = true;
                    session.requests += 1;
                    self.ring.cancel(token(index, RECEIVE, side), token(index, CANCEL, side));
                }
            } else if !way.ended && !way.starving && way.held.is_empty() && session.broken.is_none() {
                way.receiving = true;
                session.requests += 1;
                if self.single_shot {
                    self.ring.receive_once(from, token(index, RECEIVE, side));
                } else {
                    self.ring.receive_again_and_again(from, token(index, RECEIVE, side));
                }
            }
        }
        if session.ways.iter().all(|way| way.passed) && session.requests == 0 {
            self.sessions.remove(index);
        }
    }

    /// Ends with a reset, as soon as the requests under way have been cancelled.
    fn close(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        session.closing = true;
        session.sockets.iter().for_each(sockets::will_reset);
        for side in [CLIENT, BACKEND] {
            let way = &session.ways[side];
            for (under_way, what) in [(way.receiving, RECEIVE), (way.sending, SEND)] {
                if under_way {
                    session.requests += 1;
                    self.ring.cancel(token(index, what, side), token(index, CANCEL, side));
                }
            }
        }
    }
}
