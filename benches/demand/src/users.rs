//! The users: one process a window, one thread, one epoll, told what to do by a `Job`, answering with a `Sample`.
//!
//! Open loop: users come by chance (Poisson) at a rate of their own, however slow the answers are. Each connects, sends
//! a request and waits for the answer; after `patience` it gives up (closes) and tries again at once, as people and
//! libraries do; when it is turned away it tries again after a pause of about `patience`, so that a refusal brings a
//! user back as late as a time-out does. After `retries` more it goes. So late answers and refusals alike raise the
//! load. Knows nothing of who is asked.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use slab::Slab;
use tidegate_compare::{cpu, sys};

use crate::backend::{MESSAGE_BYTES, answers_in};

const EVENTS_A_TURN: usize = 512;
/// The users come from 127.0.0.100 and up, so that closed connections (`TIME_WAIT`) don't use up the ports of one.
const FIRST_SOURCE: u8 = 100;
const SOURCES: u64 = 16;
/// A user that is turned away waits this share of its patience at least, and as much above one at most.
const SHORTEST_PAUSE: f64 = 0.5;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Asked in turn.
    pub targets: Vec<SocketAddrV4>,
    /// Users a second.
    pub rate: f64,
    pub patience: Duration,
    /// After the first attempt.
    pub retries: u32,
    pub warm_up: Duration,
    pub window: Duration,
    /// The same seed brings the same users at the same times.
    pub seed: u64,
    /// Where the backends write how many answers they have finished.
    pub tally: PathBuf,
    /// Empty without a proxy.
    pub proxy: Vec<i32>,
    pub backends: i32,
}

/// What happened in a window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    pub seconds: f64,
    /// First attempts.
    pub users: u64,
    /// Connects, first ones and later ones.
    pub attempts: u64,
    /// Answers in time.
    pub useful: u64,
    /// Answers that the backends worked out, be it for somebody or for nobody any more.
    pub worked: u64,
    /// Attempts that were ended by the other side before an answer.
    pub refused: u64,
    /// Attempts that were given up.
    pub timed_out: u64,
    /// Users that went without an answer.
    pub lost_users: u64,
    /// From the connect to the answer.
    pub wait: Spread,
    /// From the connect to being turned away.
    pub refusal: Spread,
    /// Connects that this host couldn't make: a window with any is worth nothing.
    pub broken: u64,
    /// CPU seconds.
    pub proxy_cpu: f64,
    pub backends_cpu: f64,
    pub users_cpu: f64,
    /// Of the whole machine, whoever it was; and what a hypervisor kept from it.
    pub machine_cpu: f64,
    pub stolen_cpu: f64,
}

/// In milliseconds; zero if there was nothing.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Spread {
    pub p50: f64,
    pub p99: f64,
}

impl Spread {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |share| histogram.value_at_quantile(share) as f64 / 1e3;
        if histogram.is_empty() { Self::default() } else { Self { p50: at(0.5), p99: at(0.99) } }
    }
}

/// Counts, and histograms in microseconds.
struct Meter {
    sample: Sample,
    wait: Histogram<u64>,
    refusal: Histogram<u64>,
}

impl Meter {
    fn new(patience: Duration) -> Result<Self> {
        let histogram =
            || Histogram::new_with_bounds(1, patience.as_micros().max(2) as u64 * 10, 3).context("making a histogram");
        Ok(Self { sample: Sample::default(), wait: histogram()?, refusal: histogram()? })
    }
}

struct Attempt {
    /// Tells this attempt from an earlier one in the same place.
    id: u64,
    socket: OwnedFd,
    began: Instant,
    /// Attempts that this user has left after this one.
    left: u32,
    sent: bool,
    received: usize,
}

/// What is over in one way or another.
enum End {
    Answered,
    Refused,
}

struct Users<'a> {
    job: &'a Job,
    epoll: OwnedFd,
    attempts: Slab<Attempt>,
    /// Each with the moment at which it is given up; all are equally patient, so these are in order.
    deadlines: VecDeque<(Instant, usize, u64)>,
    /// Users that come again, with the attempts that they have left.
    returning: BinaryHeap<Reverse<(Instant, u32)>>,
    next_user: Instant,
    made: u64,
    dice: fastrand::Rng,
    meter: Meter,
}

struct Clocks {
    at: Instant,
    worked: u64,
    proxy: Duration,
    backends: Duration,
    users: Duration,
    machine: cpu::MachineTime,
}

impl Clocks {
    fn read(job: &Job, tally: &File) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            worked: answers_in(tally)?,
            proxy: cpu::time(&job.proxy)?,
            backends: cpu::time(&[job.backends])?,
            users: cpu::time(&[std::process::id().cast_signed()])?,
            machine: cpu::machine_time()?,
        })
    }
}

/// Does the job in this process.
pub fn run(job: &Job) -> Result<Sample> {
    let tally = File::open(&job.tally).with_context(|| format!("opening {}", job.tally.display()))?;
    let mut users = Users {
        job,
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("creating an epoll")?,
        attempts: Slab::new(),
        deadlines: VecDeque::new(),
        returning: BinaryHeap::new(),
        next_user: Instant::now(),
        made: 0,
        dice: fastrand::Rng::with_seed(job.seed),
        meter: Meter::new(job.patience)?,
    };
    users.turn_until(Instant::now() + job.warm_up)?;
    users.meter = Meter::new(job.patience)?;
    let before = Clocks::read(job, &tally)?;
    users.turn_until(before.at + job.window)?;
    let after = Clocks::read(job, &tally)?;
    let Meter { sample, wait, refusal } = users.meter;
    Ok(Sample {
        seconds: (after.at - before.at).as_secs_f64(),
        worked: after.worked - before.worked,
        wait: Spread::of(&wait),
        refusal: Spread::of(&refusal),
        proxy_cpu: after.proxy.saturating_sub(before.proxy).as_secs_f64(),
        backends_cpu: after.backends.saturating_sub(before.backends).as_secs_f64(),
        users_cpu: after.users.saturating_sub(before.users).as_secs_f64(),
        machine_cpu: after.machine.busy.saturating_sub(before.machine.busy).as_secs_f64(),
        stolen_cpu: after.machine.stolen.saturating_sub(before.machine.stolen).as_secs_f64(),
        ..sample
    })
}

impl Users<'_> {
    fn turn_until(&mut self, end: Instant) -> Result<()> {
        let mut events = Vec::with_capacity(EVENTS_A_TURN);
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            self.give_up(now);
            while self.next_user <= now {
                self.meter.sample.users += 1;
                self.connect(self.job.retries);
                // Exponential distances make a Poisson process. 1 - x is never zero.
                let distance = -(1.0 - self.dice.f64()).ln() / self.job.rate;
                self.next_user += Duration::from_secs_f64(distance);
            }
            while self.returning.peek().is_some_and(|Reverse((at, _))| *at <= now) {
                if let Some(Reverse((_, left))) = self.returning.pop() {
                    self.connect(left);
                }
            }
            let deadline = self.deadlines.front().map(|(at, ..)| *at);
            let comes_again = self.returning.peek().map(|Reverse((at, _))| *at);
            let wake = [Some(end), Some(self.next_user), deadline, comes_again].into_iter().flatten().min();
            let sleep = wake.map(|at| at.saturating_duration_since(Instant::now())).unwrap_or_default();
            let timeout = Timespec::try_from(sleep).context("a time-out too long for the kernel")?;
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("waiting for events"),
            }
            for event in &events {
                self.step(event.data.u64() as usize);
            }
            events.clear();
        }
    }

    /// One attempt begins.
    fn connect(&mut self, left: u32) {
        self.meter.sample.attempts += 1;
        self.made += 1;
        let began = Instant::now();
        match self.open() {
            Ok(socket) => {
                let entry = self.attempts.vacant_entry();
                let key = entry.key();
                let both = EventFlags::IN | EventFlags::OUT;
                if epoll::add(&self.epoll, &socket, EventData::new_u64(key as u64), both).is_err() {
                    self.meter.sample.broken += 1;
                    return;
                }
                entry.insert(Attempt { id: self.made, socket, began, left, sent: false, received: 0 });
                self.deadlines.push_back((began + self.job.patience, key, self.made));
                // Over loopback the handshake is mostly over by now.
                self.step(key);
            }
            Err(Errno::CONNREFUSED | Errno::CONNRESET) => self.turned_away(began, left),
            Err(_) => self.meter.sample.broken += 1,
        }
    }

    fn open(&self) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        net::sockopt::set_tcp_nodelay(&socket, true)?;
        sys::bind_address_only(&socket).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
        let source = Ipv4Addr::new(127, 0, 0, FIRST_SOURCE + (self.made % SOURCES) as u8);
        net::bind(&socket, &SocketAddrV4::new(source, 0))?;
        match net::connect(&socket, &self.job.targets[self.made as usize % self.job.targets.len()]) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error),
        }
    }

    /// Goes as far with this attempt as its socket lets it.
    fn step(&mut self, key: usize) {
        let Some(attempt) = self.attempts.get_mut(key) else { return };
        let Some(end) = attempt.step(&self.epoll, key) else { return };
        let attempt = self.attempts.remove(key);
        match end {
            Ok(End::Answered) => {
                self.meter.sample.useful += 1;
                self.meter.wait.saturating_record(attempt.began.elapsed().as_micros() as u64);
            }
            Ok(End::Refused) => self.turned_away(attempt.began, attempt.left),
            Err(_) => self.meter.sample.broken += 1,
        }
    }

    /// Whoever's patience is over closes its connection, and tries again at once.
    fn give_up(&mut self, now: Instant) {
        while let Some(&(at, key, id)) = self.deadlines.front().filter(|(at, ..)| *at <= now) {
            self.deadlines.pop_front();
            if self.attempts.get(key).is_some_and(|attempt| attempt.id == id) {
                let attempt = self.attempts.remove(key);
                self.meter.sample.timed_out += 1;
                self.come_again(at, attempt.left);
            }
        }
    }

    fn turned_away(&mut self, began: Instant, left: u32) {
        self.meter.sample.refused += 1;
        let now = Instant::now();
        self.meter.refusal.saturating_record((now - began).as_micros() as u64);
        let pause = self.job.patience.mul_f64(SHORTEST_PAUSE + self.dice.f64());
        self.come_again(now + pause, left);
    }

    fn come_again(&mut self, at: Instant, left: u32) {
        match left.checked_sub(1) {
            Some(left) => self.returning.push(Reverse((at, left))),
            None => self.meter.sample.lost_users += 1,
        }
    }
}

impl Attempt {
    /// `None` while there is more to come. An error is one of this host.
    fn step(&mut self, epoll: &OwnedFd, key: usize) -> Option<Result<End, Errno>> {
        if !self.sent {
            match net::send(&self.socket, &[b'q'; MESSAGE_BYTES], SendFlags::NOSIGNAL) {
                Ok(_) => self.sent = true,
                // Not connected yet.
                Err(Errno::AGAIN | Errno::NOTCONN) => return None,
                Err(Errno::CONNREFUSED | Errno::CONNRESET | Errno::PIPE) => return Some(Ok(End::Refused)),
                Err(error) => return Some(Err(error)),
            }
            if let Err(error) = epoll::modify(epoll, &self.socket, EventData::new_u64(key as u64), EventFlags::IN) {
                return Some(Err(error));
            }
        }
        let mut buffer = [0_u8; 4 * MESSAGE_BYTES];
        match net::recv(&self.socket, &mut buffer, RecvFlags::empty()) {
            Err(Errno::AGAIN) => None,
            Ok((_, 0)) | Err(Errno::CONNRESET | Errno::PIPE) => Some(Ok(End::Refused)),
            Err(error) => Some(Err(error)),
            Ok((_, count)) => {
                self.received += count;
                (self.received >= MESSAGE_BYTES).then_some(Ok(End::Answered))
            }
        }
    }
}
