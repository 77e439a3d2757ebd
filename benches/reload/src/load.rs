//! The clients: short connections at an even pace, and streams whose every byte is compared.
//!
//! Nothing is tried again: whatever a client notices is counted, by its kind. It says `ready` once the first streams
//! have had an answer, and ends by itself, in order, when the window is over.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tidegate_compare::sys;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// What is taken for an answer that never comes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Source addresses, so that no port is needed twice while the kernel remembers its last use.
const SOURCES: u32 = 16;
/// Bytes of a question, and of its answer.
pub const QUESTION: usize = 64;
/// What a stream sends at once, and how often.
const PIECE: usize = 2_048;
const PACE: Duration = Duration::from_millis(200);

#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    pub target: SocketAddrV4,
    /// Of the window, which begins with `ready`.
    pub milliseconds: u64,
    /// Short connections a second.
    pub rate: u32,
    /// Streams from before the window, and those that begin in it.
    pub streams: u32,
    pub late_streams: u32,
}

/// What the clients noticed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Short connections that were begun, and that had the right answer and an end in order.
    pub begun: u64,
    pub served: u64,
    /// Short connections that weren't, by what happened: at the connect, and later.
    pub failed_connects: BTreeMap<String, u64>,
    pub failed_later: BTreeMap<String, u64>,
    /// Streams that had a first answer, and that ended in another way than by us.
    pub streams: u64,
    pub cut_streams: BTreeMap<String, u64>,
    /// That came back to streams, and were right.
    pub compared_bytes: u64,
    /// From the connect to the last byte of the answer, in milliseconds.
    pub median: f64,
    pub p99: f64,
    pub longest: f64,
    /// Short connections served in a second.
    pub rate: f64,
}

/// What a task has to do with the others.
struct Shared {
    sample: RefCell<Sample>,
    times: RefCell<Vec<Duration>>,
    /// Of streams of the beginning that had an answer or have failed.
    started: RefCell<u32>,
    start: Notify,
}

type Step = (&'static str, io::Error);

/// Runs the load to its end.
pub fn run(job: &Job) -> Result<Sample> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?;
    let shared = Rc::new(Shared {
        sample: RefCell::default(),
        times: RefCell::default(),
        started: RefCell::new(0),
        start: Notify::new(),
    });
    tokio::task::LocalSet::new().block_on(&runtime, drive(job, &shared));
    let mut sample = shared.sample.take();
    let mut times = shared.times.take();
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        times.get(index.min(times.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    (sample.median, sample.p99, sample.longest) = (at(0.5), at(0.99), at(1.0));
    Ok(sample)
}

async fn drive(job: &Job, shared: &Rc<Shared>) {
    let mut streams = JoinSet::new();
    // The end is set when the window begins; until then it is far away.
    let end = Rc::new(RefCell::new(Instant::now() + Duration::from_secs(3_600)));
    for index in 0..job.streams {
        streams.spawn_local(stream(job.target, PACE * (index % 16) / 16, Rc::clone(shared), Rc::clone(&end)));
    }
    while *shared.started.borrow() < job.streams {
        shared.start.notified().await;
    }
    println!("ready");
    let begun = Instant::now();
    let window = Duration::from_millis(job.milliseconds);
    *end.borrow_mut() = begun + window;
    for index in 0..job.late_streams {
        let wait = window * index / job.late_streams;
        streams.spawn_local(stream(job.target, wait, Rc::clone(shared), Rc::clone(&end)));
    }
    storm(job, begun + window, shared).await;
    let served = shared.sample.borrow().served;
    shared.sample.borrow_mut().rate = served as f64 / begun.elapsed().as_secs_f64();
    while streams.join_next().await.is_some() {}
}

/// At an even pace, whether answers come or not; a machine that can't keep it begins as many as it can.
async fn storm(job: &Job, end: Instant, shared: &Rc<Shared>) {
    let mut running = JoinSet::new();
    let (begun, mut count) = (Instant::now(), 0_u32);
    while Instant::now() < end {
        let source = Ipv4Addr::new(127, 0, 1, 1 + (count % SOURCES) as u8);
        let (shared, target) = (Rc::clone(shared), job.target);
        running.spawn_local(async move {
            let begun = Instant::now();
            let outcome = timeout(PATIENCE, ask(target, source)).await;
            let mut sample = shared.sample.borrow_mut();
            sample.begun += 1;
            let failed = match outcome {
                Ok(Ok(answered)) => {
                    sample.served += 1;
                    shared.times.borrow_mut().push(answered - begun);
                    return;
                }
                Ok(Err(step)) => step,
                Err(_) => ("no answer", ErrorKind::TimedOut.into()),
            };
            let list = if failed.0 == "connect" { &mut sample.failed_connects } else { &mut sample.failed_later };
            note(list, &failed);
        });
        count += 1;
        while running.try_join_next().is_some() {}
        sleep_until(begun + Duration::from_secs(1) * count / job.rate).await;
    }
    while running.join_next().await.is_some() {}
}

fn note(list: &mut BTreeMap<String, u64>, (what, error): &Step) {
    *list.entry(format!("{what}: {error}")).or_default() += 1;
}

/// One short connection, from the SYN to the end of the other side; when the answer was complete.
async fn ask(target: SocketAddrV4, source: Ipv4Addr) -> Result<Instant, Step> {
    let mut stream = connect(target, source).await.map_err(|error| ("connect", error))?;
    let question = [b'?'; QUESTION];
    stream.write_all(&question).await.map_err(|error| ("question", error))?;
    let mut answer = [0; QUESTION];
    stream.read_exact(&mut answer).await.map_err(|error| ("answer", error))?;
    let answered = Instant::now();
    if answer != question {
        return Err(("wrong bytes", ErrorKind::InvalidData.into()));
    }
    stream.shutdown().await.map_err(|error| ("end", error))?;
    match stream.read(&mut answer).await {
        Ok(0) => Ok(answered),
        Ok(_) => Err(("more than was asked", ErrorKind::InvalidData.into())),
        Err(error) => Err(("end", error)),
    }
}

async fn connect(target: SocketAddrV4, source: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    sys::bind_address_only(&socket)?;
    socket.bind((IpAddr::V4(source), 0).into())?;
    socket.set_nodelay(true)?;
    socket.connect(target.into()).await
}

/// One stream after a wait, until the end of the window.
async fn stream(target: SocketAddrV4, wait: Duration, shared: Rc<Shared>, end: Rc<RefCell<Instant>>) {
    sleep(wait).await;
    let mut answered = false;
    let first = || {
        *shared.started.borrow_mut() += 1;
        shared.start.notify_one();
    };
    let outcome = exchange(target, &shared, &end, || {
        shared.sample.borrow_mut().streams += 1;
        answered = true;
        first();
    });
    if let Err(step) = outcome.await {
        note(&mut shared.sample.borrow_mut().cut_streams, &step);
        if !answered {
            first();
        }
    }
}

/// What is sent comes back, in order and right, until we end it; `first` hears of the first answer.
async fn exchange(
    target: SocketAddrV4,
    shared: &Shared,
    end: &RefCell<Instant>,
    mut first: impl FnMut(),
) -> Result<(), Step> {
    let mut stream = connect(target, Ipv4Addr::new(127, 0, 2, 1)).await.map_err(|error| ("connect", error))?;
    let (mut offset, mut answer) = (0, vec![0; PIECE]);
    while Instant::now() < *end.borrow() {
        let sent = pattern(offset);
        stream.write_all(&sent).await.map_err(|error| ("sending", error))?;
        let read = timeout(PATIENCE, stream.read_exact(&mut answer)).await;
        read.unwrap_or_else(too_late).map_err(|error| ("receiving", error))?;
        if answer != sent {
            return Err(("wrong bytes", ErrorKind::InvalidData.into()));
        }
        if offset == 0 {
            first();
        }
        offset += PIECE;
        shared.sample.borrow_mut().compared_bytes += PIECE as u64;
        sleep(PACE).await;
    }
    stream.shutdown().await.map_err(|error| ("end", error))?;
    match timeout(PATIENCE, stream.read(&mut answer)).await.unwrap_or_else(too_late) {
        Ok(0) => Ok(()),
        Ok(_) => Err(("more than was sent", ErrorKind::InvalidData.into())),
        Err(error) => Err(("end", error)),
    }
}

fn too_late<T>(_: Elapsed) -> io::Result<T> {
    Err(ErrorKind::TimedOut.into())
}

/// Bytes of a stream from here on: none of their neighbours are the same, and no block of a power of two is like the
/// next one.
fn pattern(offset: usize) -> Vec<u8> {
    (offset..offset + PIECE).map(|position| (position % 251) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_the_pattern_differ() {
        assert_ne!(pattern(0), pattern(PIECE));
        assert_eq!(pattern(0)[..3], [0, 1, 2]);
    }
}
