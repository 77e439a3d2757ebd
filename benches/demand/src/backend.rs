//! The slow backends: one process, one thread, one epoll, a listening socket for each.
//!
//! A backend answers a request after `service`, and works on `at_once` of them. What comes beyond that, it does as real
//! ones do (`Crowd`): they queue up inside, or all get slower. Either way it never looks whether somebody still wants
//! the answer, as a server doesn't that blocks in a handler. Invariant: `at_once` / `service` answers a second at most,
//! however many are asked for. It runs on its own clock: a turn that comes late delays answers, but costs no capacity,
//! as if the backend were another machine. It ends by being killed.

use std::collections::VecDeque;
use std::fs::File;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags, Shutdown, SocketFlags};
use serde::{Deserialize, Serialize};
use slab::Slab;
use tidegate_compare::ports;

/// A request, and an answer.
pub const MESSAGE_BYTES: usize = 64;
const EVENTS_A_TURN: usize = 256;
/// Event data of a listening socket: its index, with this bit.
const LISTENER: u64 = 1 << 63;

/// What a backend does with more than it can work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crowd {
    /// They wait inside, first come, first served: a pool of threads.
    Queue,
    /// The work is shared, so that all get slower: an event loop, or processes on too few cores.
    Share,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// One backend each.
    pub listen: Vec<SocketAddrV4>,
    pub at_once: usize,
    pub service: Duration,
    pub crowd: Crowd,
    /// Where the number of answers is written.
    pub tally: PathBuf,
}

/// What the requests that a backend has taken wait for. Pure: `now` is given.
struct Work {
    at_once: usize,
    service: Duration,
    crowd: Crowd,
    /// Keys of the requests that are worked on, in the order of their ends; all take the same, so that is the order of
    /// their beginnings. For `Queue` the end in time, for `Share` the end by the virtual clock.
    working: VecDeque<(Duration, usize)>,
    waiting: VecDeque<usize>,
    /// For `Share`: work that each request has got so far, had it been there from the beginning.
    virtual_now: Duration,
    at: Duration,
}

impl Work {
    fn new(at_once: usize, service: Duration, crowd: Crowd) -> Self {
        Self {
            at_once,
            service,
            crowd,
            working: VecDeque::new(),
            waiting: VecDeque::new(),
            virtual_now: Duration::ZERO,
            at: Duration::ZERO,
        }
    }

    /// A request came. `now` counts from any fixed moment.
    fn take(&mut self, now: Duration, key: usize) {
        self.advance(now);
        match self.crowd {
            Crowd::Queue if self.working.len() >= self.at_once => self.waiting.push_back(key),
            Crowd::Queue => self.working.push_back((now + self.service, key)),
            Crowd::Share => self.working.push_back((self.virtual_now + self.service, key)),
        }
    }

    /// The next request that is done by now. Ask again until there is none.
    fn done(&mut self, now: Duration) -> Option<usize> {
        let end = self.end().filter(|end| *end <= now)?;
        self.advance(end);
        let (_, key) = self.working.pop_front()?;
        // The next one begins when this one ended, not when we looked.
        if let Some(next) = self.waiting.pop_front() {
            self.working.push_back((end + self.service, next));
        }
        Some(key)
    }

    /// Brings the virtual clock to `now`, before the number of requests changes.
    fn advance(&mut self, now: Duration) {
        self.virtual_now += now.saturating_sub(self.at).div_f64(self.slowness());
        self.at = self.at.max(now);
    }

    /// When the next one is done, unless others come.
    fn end(&self) -> Option<Duration> {
        let end = self.working.front()?.0;
        Some(match self.crowd {
            Crowd::Queue => end,
            Crowd::Share => self.at + end.saturating_sub(self.virtual_now).mul_f64(self.slowness()),
        })
    }

    /// For `Share`: how much longer everything takes than alone.
    fn slowness(&self) -> f64 {
        (self.working.len() as f64 / self.at_once as f64).max(1.0)
    }
}

struct Connection {
    socket: OwnedFd,
    backend: usize,
    received: usize,
    answered: bool,
}

/// How many answers all backends together have finished; the clients read it from the file `tally`.
pub fn answers_in(tally: &File) -> Result<u64> {
    let mut bytes = [0; 8];
    tally.read_exact_at(&mut bytes, 0).context("reading the tally of answers")?;
    Ok(u64::from_ne_bytes(bytes))
}

struct Server {
    epoll: OwnedFd,
    connections: Slab<Connection>,
    backends: Vec<Work>,
    began: Instant,
}

/// Serves until the process is killed; returns only with an error.
pub fn run(job: &Job) -> Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("creating an epoll")?;
    let listeners: Vec<OwnedFd> = job.listen.iter().map(|&address| ports::listen(address)).collect::<Result<_>>()?;
    for (index, listener) in listeners.iter().enumerate() {
        epoll::add(&epoll, listener, EventData::new_u64(LISTENER | index as u64), EventFlags::IN)?;
    }
    let tally = File::create(&job.tally).with_context(|| format!("creating {}", job.tally.display()))?;
    let backends = job.listen.iter().map(|_| Work::new(job.at_once, job.service, job.crowd)).collect();
    let mut server = Server { epoll, connections: Slab::new(), backends, began: Instant::now() };
    let mut answers = 0_u64;
    let mut events = Vec::with_capacity(EVENTS_A_TURN);
    tally.write_all_at(&answers.to_ne_bytes(), 0).context("writing the tally of answers")?;
    loop {
        let timeout = server.until_next().and_then(|wait| Timespec::try_from(wait).ok());
        match epoll::wait(&server.epoll, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for events"),
        }
        // What is done makes room before others come.
        let before = answers;
        answers += server.answer();
        if answers != before {
            tally.write_all_at(&answers.to_ne_bytes(), 0).context("writing the tally of answers")?;
        }
        for event in &events {
            let token: u64 = event.data.u64();
            if token & LISTENER == 0 {
                server.receive(token as usize);
            } else {
                let backend = (token & !LISTENER) as usize;
                server.accept(&listeners[backend], backend)?;
            }
        }
        events.clear();
    }
}

impl Server {
    fn until_next(&self) -> Option<Duration> {
        let now = self.began.elapsed();
        self.backends.iter().filter_map(Work::end).min().map(|end| end.saturating_sub(now))
    }

    fn accept(&mut self, listener: &OwnedFd, backend: usize) -> Result<()> {
        loop {
            match net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    let entry = self.connections.vacant_entry();
                    epoll::add(&self.epoll, &socket, EventData::new_u64(entry.key() as u64), EventFlags::IN)?;
                    entry.insert(Connection { socket, backend, received: 0, answered: false });
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                // Out of descriptors, most likely: the run is worth nothing, so say it and end.
                Err(error) => return Err(error).context("accepting on a backend"),
            }
        }
    }

    /// Reads what came. A whole request becomes work, and its socket isn't watched until the answer is out.
    fn receive(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let mut buffer = [0_u8; 4 * MESSAGE_BYTES];
        match net::recv(&connection.socket, &mut buffer, RecvFlags::empty()) {
            Err(Errno::AGAIN) => {}
            Ok((_, 0)) | Err(_) => drop(self.connections.remove(key)),
            Ok((_, count)) => {
                connection.received += count;
                if connection.received >= MESSAGE_BYTES && !connection.answered {
                    if epoll::delete(&self.epoll, &connection.socket).is_err() {
                        self.connections.remove(key);
                        return;
                    }
                    let now = self.began.elapsed();
                    self.backends[connection.backend].take(now, key);
                }
            }
        }
    }

    /// Sends all answers that are done, each with the end of the connection behind it; how many those were.
    fn answer(&mut self) -> u64 {
        let now = self.began.elapsed();
        let mut answers = 0;
        for backend in &mut self.backends {
            while let Some(key) = backend.done(now) {
                answers += 1;
                let Some(connection) = self.connections.get_mut(key) else { continue };
                connection.answered = true;
                // A client that is gone doesn't take it: the work was done all the same.
                let sent = net::send(&connection.socket, &[b'a'; MESSAGE_BYTES], SendFlags::NOSIGNAL).is_ok()
                    && net::shutdown(&connection.socket, Shutdown::Write).is_ok()
                    && epoll::add(&self.epoll, &connection.socket, EventData::new_u64(key as u64), EventFlags::IN)
                        .is_ok();
                if !sent {
                    self.connections.remove(key);
                }
            }
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The times in milliseconds at which requests that come at `arrivals` are done.
    fn ends(crowd: Crowd, arrivals: &[u32]) -> Vec<(usize, u32)> {
        let mut work = Work::new(2, 50 * MS, crowd);
        let mut ends = Vec::new();
        for millisecond in 0..1_000 {
            let now = millisecond * MS;
            while let Some(key) = work.done(now) {
                ends.push((key, millisecond));
            }
            for (key, _) in arrivals.iter().enumerate().filter(|(_, arrival)| **arrival == millisecond) {
                work.take(now, key);
            }
        }
        ends
    }

    #[test]
    fn within_its_number_each_takes_the_same() {
        for crowd in [Crowd::Queue, Crowd::Share] {
            assert_eq!(ends(crowd, &[0, 10, 60]), [(0, 50), (1, 60), (2, 110)], "{crowd:?}");
        }
    }

    #[test]
    fn beyond_its_number_they_queue_up() {
        assert_eq!(ends(Crowd::Queue, &[0, 0, 0, 0, 0]), [(0, 50), (1, 50), (2, 100), (3, 100), (4, 150)]);
    }

    #[test]
    fn beyond_its_number_all_get_slower_and_the_rate_stays() {
        assert_eq!(ends(Crowd::Share, &[0, 0, 0, 0]), [(0, 100), (1, 100), (2, 100), (3, 100)]);
        // Half done when two more come: the other half takes twice as long; then the two others are alone.
        assert_eq!(ends(Crowd::Share, &[0, 0, 25, 25]), [(0, 75), (1, 75), (2, 100), (3, 100)]);
    }
}
