//! A load that notices everything: short connections in great number, and long streams whose every byte is compared.
//!
//! Owns its own backends (echoes that end in order), a paced storm of connections that each ask, get their answer back
//! and end by FIN on both sides, and streams that send and compare the kit's pattern for as long as the load lasts, or
//! each for some seconds, after which it ends in order and another one takes its place.
//! What went wrong is counted by its kind; nothing is tried again. Runs on threads of its own, one runtime each, and
//! stops by itself when it is asked how it went.

use crate::kit::pattern;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tidegate::drain::spawn_local;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, sleep_until, timeout};

/// What is taken for an answer that never comes.
const PATIENCE: Duration = Duration::from_secs(20);
/// Source addresses of the clients, so that no port is needed twice while the kernel remembers its last use.
const SOURCES: u8 = 8;
/// Short connections under way at once. With more of them, a machine that is too slow would run into limits instead.
const AT_ONCE: usize = 500;
/// What each short connection asks.
const QUESTION: usize = 64;
/// What a stream sends at once, and how often.
const PIECE: u64 = 2_048;
const PACE: Duration = Duration::from_millis(200);

/// Echoes on these many ports, until they are dropped.
pub struct Echoes {
    pub addresses: Vec<SocketAddr>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echoes {
    pub fn new(count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sockets: Vec<_> = (0..count)
            .map(|_| {
                let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            })
            .collect();
        let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let stopped = Arc::clone(&stop);
        let serve = async move {
            for socket in sockets {
                drop(spawn_local(accept(TcpListener::from_std(socket).unwrap())));
            }
            until(&stopped).await;
        };
        Self { addresses, stop, thread: Some(on_a_thread("echoes", serve)) }
    }
}

impl Drop for Echoes {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn accept(socket: TcpListener) {
    while let Ok((mut stream, _)) = socket.accept().await {
        drop(spawn_local(async move {
            let (mut reader, mut writer) = stream.split();
            // A client that resets ends it; a FIN is answered by a FIN.
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            let _ = writer.shutdown().await;
        }));
    }
}

/// What clients have seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Short connections that ended in order, with the right answer.
    pub served: AtomicU64,
    /// Bytes of streams that came back and were right.
    pub compared: AtomicU64,
    /// Streams that ended in order.
    pub ended: AtomicU64,
    /// What went wrong, by its kind.
    pub wrong: Mutex<BTreeMap<String, u64>>,
}

impl Seen {
    fn note(&self, what: &str, error: &io::Error) {
        let kind = format!("{what}: {error}");
        *self.wrong.lock().unwrap().entry(kind).or_default() += 1;
    }
}

/// A load that runs.
pub struct Load {
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    begun: Instant,
}

/// How a load went.
#[derive(Debug)]
pub struct Report {
    pub served: u64,
    pub compared: u64,
    pub ended: u64,
    pub wrong: BTreeMap<String, u64>,
    /// Short connections that were served in a second.
    pub rate: f64,
}

impl Load {
    /// So many connections a second to any of `storm`, and so many streams to any of `streams`, to the end.
    pub fn start(storm: Vec<SocketAddr>, rate: u32, streams: &[SocketAddr], count: usize) -> Self {
        Self::with_lives(storm, rate, streams, count, Duration::MAX)
    }

    /// The same with streams of at most this life, and at least half of it; each has a successor at once.
    pub fn with_lives(storm: Vec<SocketAddr>, rate: u32, streams: &[SocketAddr], count: usize, life: Duration) -> Self {
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let (storm_seen, storm_stop) = (Arc::clone(&seen), Arc::clone(&stop));
        let streams: Vec<SocketAddr> = (0..count).map(|index| streams[index % streams.len()]).collect();
        let (streams_seen, streams_stop) = (Arc::clone(&seen), Arc::clone(&stop));
        let threads = vec![
            on_a_thread("storm", async move { storm_of(&storm, rate, &storm_seen, &storm_stop).await }),
            on_a_thread("streams", async move { run_streams(streams, life, &streams_seen, &streams_stop).await }),
        ];
        Self { seen, stop, threads, begun: Instant::now() }
    }

    /// How often something of this kind has gone wrong so far.
    pub fn wrong(&self, kind: &str) -> u64 {
        let wrong = self.seen.wrong.lock().unwrap();
        wrong.iter().filter(|(name, _)| name.contains(kind)).map(|(_, count)| count).sum()
    }

    pub fn served(&self) -> u64 {
        self.seen.served.load(Relaxed)
    }

    /// Ends it in order: what has begun is finished and counted.
    pub fn finish(self) -> Report {
        self.stop.store(true, Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let rate = self.seen.served.load(Relaxed) as f64 / self.begun.elapsed().as_secs_f64();
        Report {
            served: self.seen.served.load(Relaxed),
            compared: self.seen.compared.load(Relaxed),
            ended: self.seen.ended.load(Relaxed),
            wrong: std::mem::take(&mut *self.seen.wrong.lock().unwrap()),
            rate,
        }
    }
}

fn on_a_thread(name: &str, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, task);
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).unwrap()
}

async fn until(stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        sleep(Duration::from_millis(20)).await;
    }
}

/// At an even pace; a machine that can't keep it does as many as it can.
async fn storm_of(targets: &[SocketAddr], rate: u32, seen: &Arc<Seen>, stop: &AtomicBool) {
    let mut running = tokio::task::JoinSet::new();
    let (begun, mut count) = (tokio::time::Instant::now(), 0_u32);
    while !stop.load(Relaxed) {
        let target = targets[count as usize % targets.len()];
        let source = Ipv4Addr::new(127, 0, 1, 1 + (count % u32::from(SOURCES)) as u8);
        let seen = Arc::clone(seen);
        running.spawn_local(async move {
            match timeout(PATIENCE, ask(target, source)).await {
                Ok(Ok(())) => _ = seen.served.fetch_add(1, Relaxed),
                Ok(Err((what, error))) => seen.note(what, &error),
                Err(_) => seen.note("no answer", &ErrorKind::TimedOut.into()),
            }
        });
        count += 1;
        while running.try_join_next().is_some() {}
        while running.len() >= AT_ONCE {
            running.join_next().await;
        }
        sleep_until(begun + Duration::from_secs(1) * count / rate).await;
    }
    while running.join_next().await.is_some() {}
}

type Step = (&'static str, io::Error);

/// One short connection, from the SYN to the FIN of the other side.
async fn ask(target: SocketAddr, source: Ipv4Addr) -> Result<(), Step> {
    let mut stream = connect(target, source).await.map_err(|error| ("connect", error))?;
    let question = [b'?'; QUESTION];
    stream.write_all(&question).await.map_err(|error| ("write", error))?;
    let mut answer = [0; QUESTION];
    stream.read_exact(&mut answer).await.map_err(|error| ("read", error))?;
    if answer != question {
        return Err(("answer", ErrorKind::InvalidData.into()));
    }
    stream.shutdown().await.map_err(|error| ("shutdown", error))?;
    match stream.read(&mut answer).await {
        Ok(0) => Ok(()),
        Ok(_) => Err(("end", ErrorKind::InvalidData.into())),
        Err(error) => Err(("end", error)),
    }
}

async fn connect(target: SocketAddr, source: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((IpAddr::V4(source), 0).into())?;
    socket.connect(target).await
}

async fn run_streams(targets: Vec<SocketAddr>, life: Duration, seen: &Arc<Seen>, stop: &Arc<AtomicBool>) {
    let mut running = tokio::task::JoinSet::new();
    for (index, target) in targets.into_iter().enumerate() {
        let (seen, stop) = (Arc::clone(seen), Arc::clone(stop));
        running.spawn_local(async move {
            // Not all in step.
            let place = index as u32 % 16;
            sleep(PACE * place / 16).await;
            let life = life.saturating_sub(life / 32 * place);
            while !stop.load(Relaxed) {
                match stream(target, life, &seen, &stop).await {
                    Ok(()) => _ = seen.ended.fetch_add(1, Relaxed),
                    // Nothing is tried again.
                    Err((what, error)) => return seen.note(what, &error),
                }
            }
        });
    }
    while running.join_next().await.is_some() {}
}

/// One long stream: what is sent comes back, in order and right, and then the end.
async fn stream(target: SocketAddr, life: Duration, seen: &Seen, stop: &AtomicBool) -> Result<(), Step> {
    let begun = Instant::now();
    let mut stream =
        connect(target, Ipv4Addr::new(127, 0, 2, 1)).await.map_err(|error| ("connect of a stream", error))?;
    let mut offset = 0;
    let mut piece = vec![0; PIECE as usize];
    while !stop.load(Relaxed) && begun.elapsed() < life {
        let sent = pattern::bytes(offset, PIECE as usize);
        stream.write_all(&sent).await.map_err(|error| ("write of a stream", error))?;
        timeout(PATIENCE, stream.read_exact(&mut piece))
            .await
            .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
            .map_err(|error| ("read of a stream", error))?;
        if piece != sent {
            return Err(("bytes of a stream", ErrorKind::InvalidData.into()));
        }
        offset += PIECE;
        seen.compared.fetch_add(PIECE, Relaxed);
        sleep(PACE).await;
    }
    stream.shutdown().await.map_err(|error| ("shutdown of a stream", error))?;
    match timeout(PATIENCE, stream.read(&mut piece)).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
        Ok(0) => Ok(()),
        Ok(_) => Err(("end of a stream", ErrorKind::InvalidData.into())),
        Err(error) => Err(("end of a stream", error)),
    }
}
