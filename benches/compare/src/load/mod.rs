//! The clients: one process a window, one thread, one epoll, told what to do by a `Job` and answering with a `Sample`.
//!
//! It reads the proxy's CPU clock itself, at the very moments at which its window begins and ends. `client.rs` is
//! what one client does, `sample.rs` what a window brings; here are the order of a window and its bounds. Nothing here
//! knows which peer is measured.

mod client;
mod first;
mod sample;
mod trouble;

use std::fs::File;
use std::path::PathBuf;

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use serde::{Deserialize, Serialize};

use crate::cpu;
use crate::server::{Content, Source, received_in};
use client::{Client, Meter, Role};
pub use first::{First, proxy_header};
pub use sample::{Idle, Latency, Sample, Storm};
pub use trouble::Trouble;

/// The longest that the event loop sleeps, and the pause before a failed client tries again.
const TICK: Duration = Duration::from_millis(10);
const EVENTS_A_TURN: usize = 256;
/// How many idle connections are being opened at a time.
const OPENING_AT_ONCE: usize = 64;
/// Bound on opening all the idle connections.
const OPENING_TIMEOUT: Duration = Duration::from_secs(20);
/// Bound on a storm. What has no answer by then counts as stalled.
const STORM_TIMEOUT: Duration = Duration::from_secs(10);
/// After a storm all connections are closed, and the proxy has this long to close its own.
const CLOSING: Duration = Duration::from_millis(250);
/// Idle connections rest this long before memory is read.
const SETTLE: Duration = Duration::from_millis(300);

/// What the clients do at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Clients that connect, send `bytes`, receive them back, close, and begin again.
    pub short: usize,
    /// Clients that send `bytes` and wait for them, again and again, on one connection.
    pub pings: usize,
    /// Clients that download without end.
    pub downloads: usize,
    /// Clients that upload without end.
    pub uploads: usize,
    /// Clients that do both on one connection.
    pub both: usize,
    /// Size of a request and of its answer.
    pub bytes: usize,
    /// What short connections begin with.
    pub first: First,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Keeps the clients busy for a warm-up and then for a window that is measured.
    Traffic { traffic: Traffic, warm_up: Duration, window: Duration },
    /// Opens so many connections, has one echo on each, and reads the proxy's memory before and after.
    Idle { connections: usize },
    /// Opens so many connections at once, has one echo on each, then closes all.
    Storm { connections: usize },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    pub task: Task,
    /// The clients go to these in turn.
    pub targets: Vec<SocketAddrV4>,
    /// The clients of the short connections come from these addresses in turn.
    pub sources: Vec<SocketAddrV4>,
    /// Whose CPU and memory is read. Empty if there is no proxy.
    pub proxy: Vec<i32>,
    pub server: i32,
    /// Where the backends write how many bytes of uploads have arrived.
    pub tally: PathBuf,
    /// Where the bytes of an upload come from.
    pub source: Source,
}

/// Does the job in this process.
pub fn run(job: &Job) -> Result<Sample> {
    ensure!(!job.targets.is_empty() && !job.sources.is_empty(), "a job needs targets and sources");
    match job.task {
        Task::Traffic { traffic, warm_up, window } => run_traffic(job, traffic, warm_up, window),
        Task::Idle { connections } => run_idle(job, connections),
        Task::Storm { connections } => run_storm(job, connections),
    }
}

fn run_traffic(job: &Job, traffic: Traffic, warm_up: Duration, window: Duration) -> Result<Sample> {
    let roles = [
        (Role::Short, traffic.short),
        (Role::Ping, traffic.pings),
        (Role::Download, traffic.downloads),
        (Role::Upload, traffic.uploads),
        (Role::Both, traffic.both),
    ];
    let roles = roles.iter().flat_map(|&(role, count)| std::iter::repeat_n(role, count));
    let mut load = Load::new(job, roles, traffic.first.request(traffic.bytes))?;
    let count = load.clients.len();
    load.start(0..count);

    load.turn_until(Instant::now() + warm_up)?;
    let warm_trouble = load.meter.trouble.clone();
    load.meter = Meter::new()?;
    load.clients.iter_mut().for_each(Client::begin_window);
    let before = Clocks::read(job)?;
    load.turn_until(before.at + window)?;
    let after = Clocks::read(job)?;

    let Meter { connections, requests, bytes, latency, mut trouble } = load.meter;
    // Trouble in the warm-up (a connection that never came up) spoils the window as well.
    trouble.add(&warm_trouble);
    for client in load.clients.iter().filter(|client| client.idle_in_window()) {
        trouble.stalled(client.role_name());
    }
    Ok(Sample { connections, requests, bytes, latency: Latency::of(&latency), trouble, ..before.until(&after) })
}

fn run_idle(job: &Job, connections: usize) -> Result<Sample> {
    let mut load =
        Load::new(job, std::iter::repeat_n(Role::Once, connections), First::Message.request(client::GREETING_BYTES))?;
    let resident_before = cpu::resident(&job.proxy)?;
    let begin = Instant::now();
    let mut opened = 0;
    loop {
        let resting = load.meter.requests as usize;
        if resting >= connections {
            break;
        }
        let next = connections.min(resting + OPENING_AT_ONCE);
        if next > opened {
            load.start(opened..next);
            opened = next;
        }
        ensure!(
            begin.elapsed() < OPENING_TIMEOUT,
            "{resting} of {connections} idle connections within {OPENING_TIMEOUT:?}: {}",
            load.meter.trouble
        );
        load.turn()?;
    }
    load.turn_until(Instant::now() + SETTLE)?;
    let resident_after = cpu::resident(&job.proxy)?;
    Ok(Sample {
        seconds: begin.elapsed().as_secs_f64(),
        idle: Some(Idle { connections: connections as u64, resident_before, resident_after }),
        trouble: load.meter.trouble,
        ..Sample::default()
    })
}

/// The window of its clocks reaches from before the first connect until the proxy had time to close everything.
fn run_storm(job: &Job, connections: usize) -> Result<Sample> {
    let mut load =
        Load::new(job, std::iter::repeat_n(Role::Once, connections), First::Message.request(client::GREETING_BYTES))?;
    load.tries_again = false;
    let before = Clocks::read(job)?;
    load.start(0..connections);
    let count = connections as u64;
    while load.meter.requests + load.meter.trouble.count() < count && before.at.elapsed() < STORM_TIMEOUT {
        load.turn()?;
    }
    let elapsed = before.at.elapsed();
    load.clients.clear();
    load.turn_until(Instant::now() + CLOSING)?;
    let after = Clocks::read(job)?;

    let Meter { requests: served, latency, mut trouble, .. } = load.meter;
    for _ in served + trouble.count()..count {
        trouble.stalled("connection");
    }
    let failed = count.saturating_sub(served);
    let all_served_s = (failed == 0).then_some(elapsed.as_secs_f64());
    Ok(Sample {
        connections: served,
        latency: Latency::of(&latency),
        storm: Some(Storm { connections: count, failed, all_served_s }),
        trouble,
        ..before.until(&after)
    })
}

/// All the clients of this process and the loop that serves them.
struct Load<'a> {
    job: &'a Job,
    epoll: rustix::fd::OwnedFd,
    clients: Vec<Client>,
    message: Vec<u8>,
    /// Bytes that come back of the message.
    answer: usize,
    buffer: Vec<u8>,
    content: Content,
    events: Vec<epoll::Event>,
    meter: Meter,
    /// Clients that failed and start again at the next tick.
    failed: Vec<usize>,
    next_retry: Instant,
    tries_again: bool,
}

impl<'a> Load<'a> {
    fn new(job: &'a Job, roles: impl Iterator<Item = Role>, (message, answer): (Vec<u8>, usize)) -> Result<Self> {
        Ok(Self {
            job,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("creating an epoll")?,
            clients: roles.enumerate().map(|(index, role)| Client::new(index, role)).collect(),
            message,
            answer,
            buffer: vec![0; client::RECEIVE_AT_ONCE],
            content: Content::new(job.source)?,
            events: Vec::with_capacity(EVENTS_A_TURN),
            meter: Meter::new()?,
            failed: Vec::new(),
            next_retry: Instant::now(),
            tries_again: true,
        })
    }

    fn start(&mut self, range: std::ops::Range<usize>) {
        for index in range {
            self.serve(index, Step::Start);
        }
    }

    fn turn_until(&mut self, deadline: Instant) -> Result<()> {
        while Instant::now() < deadline {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<()> {
        let tick = Timespec::try_from(TICK).context("the tick")?;
        let mut events = std::mem::take(&mut self.events);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&tick)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for events"),
        }
        for bulk in [false, true] {
            for event in &events {
                let index = event.data.u64() as usize;
                if self.clients[index].role().is_bulk() == bulk {
                    self.serve(index, Step::Event(event.flags));
                }
            }
        }
        events.clear();
        self.events = events;
        let now = Instant::now();
        if !self.failed.is_empty() && now >= self.next_retry {
            self.next_retry = now + TICK;
            for index in std::mem::take(&mut self.failed) {
                self.serve(index, Step::Start);
            }
        }
        Ok(())
    }

    fn serve(&mut self, index: usize, step: Step) {
        let mut surroundings = client::Surroundings {
            epoll: &self.epoll,
            job: self.job,
            message: &self.message,
            answer: self.answer,
            buffer: &mut self.buffer,
            content: &self.content,
            meter: &mut self.meter,
        };
        let client = &mut self.clients[index];
        let result = match step {
            Step::Start => client.start(&mut surroundings),
            Step::Event(flags) => client.event(flags, &mut surroundings),
        };
        if let Err(failure) = result {
            client.abandon();
            self.meter.trouble.note(client.role_name(), &failure);
            if self.tries_again {
                self.failed.push(index);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Step {
    Start,
    Event(epoll::EventFlags),
}

/// All the clocks and counters at one moment.
struct Clocks {
    at: Instant,
    /// `None` without a proxy.
    proxy: Option<Duration>,
    server: Duration,
    own: Duration,
    machine: cpu::MachineTime,
    uploaded: u64,
}

impl Clocks {
    fn read(job: &Job) -> Result<Self> {
        let tally = File::open(&job.tally).with_context(|| format!("opening {}", job.tally.display()))?;
        Ok(Self {
            at: Instant::now(),
            uploaded: received_in(&tally)?,
            proxy: if job.proxy.is_empty() { None } else { Some(cpu::time(&job.proxy)?) },
            server: cpu::time(&[job.server])?,
            machine: cpu::machine_time()?,
            own: cpu::time(&[std::process::id() as i32])?,
        })
    }

    /// The part of a sample that lies between two readings.
    fn until(&self, after: &Self) -> Sample {
        let seconds = |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64();
        Sample {
            seconds: (after.at - self.at).as_secs_f64(),
            bytes_up: after.uploaded.saturating_sub(self.uploaded),
            proxy_cpu: self.proxy.zip(after.proxy).map(|(before, after)| seconds(before, after)),
            load_cpu: seconds(self.own, after.own),
            server_cpu: seconds(self.server, after.server),
            machine_cpu: seconds(self.machine.busy, after.machine.busy),
            stolen_cpu: seconds(self.machine.stolen, after.machine.stolen),
            ..Sample::default()
        }
    }
}
