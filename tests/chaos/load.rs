//! The clients: a steady load of short and of long connections, and what counts as an error.
//!
//! Owns the words for what a client saw. Errors are: a connect that fails; a first request without its whole answer; an
//! answer with wrong bytes; an end that looks like a complete one in the middle of an answer; and silence for longer
//! than [`SILENCE`]. A long connection that ends after its first answer is none, as its backend may die; it is counted
//! and made anew.

use crate::kit::conn::uninterrupted;
use crate::kit::wait::pace;
use crate::protocol::{is_answer, request};
use crate::script::BUDGET;
use std::fmt::{self, Display};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// For each kind; each short one makes at most [`SHORT_RATE`] connections a second.
const SHORT_CLIENTS: u64 = 24;
const SHORT_RATE: u64 = 8;
pub const LONG_CLIENTS: u64 = 16;
/// Between two requests of a long connection.
const LONG_PAUSE: Duration = Duration::from_millis(60);
/// Far beyond every bound: who is silent for so long is hung.
const SILENCE: Duration = Duration::from_secs(3 * BUDGET);

/// A request that a client was owed an answer to.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// When the whole request was sent, or the error's attempt began.
    pub from: Instant,
    /// When the whole answer was there, or the error.
    pub until: Instant,
}

#[derive(Debug)]
pub struct Failure {
    pub exchange: Exchange,
    /// The client's own address, if it had a connection: the access log names it.
    pub client: Option<SocketAddr>,
    pub what: String,
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.exchange.until - self.exchange.from;
        write!(f, "after {:.3} s: {}", took.as_secs_f64(), self.what)
    }
}

/// What the clients saw, all together.
#[derive(Debug, Default)]
pub struct Seen {
    pub short: u64,
    pub half_closing: u64,
    pub long: u64,
    /// Long connections that ended before their time, after their first answer.
    pub cut: u64,
    pub later_requests: u64,
    /// First requests, short and long.
    pub first: Vec<Exchange>,
    pub failures: Vec<Failure>,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.short += other.short;
        self.half_closing += other.half_closing;
        self.long += other.long;
        self.cut += other.cut;
        self.later_requests += other.later_requests;
        self.first.extend(other.first);
        self.failures.extend(other.failures);
    }
}

/// Why there was no answer.
enum Miss {
    /// It ended before the first byte of this answer.
    Ended(&'static str),
    Wrong(String),
}

/// A client of the balancer, with its own dice.
struct Client<'a> {
    to: SocketAddr,
    rng: fastrand::Rng,
    ids: &'a AtomicU64,
    stop: &'a AtomicBool,
    /// Of the connection that it has now.
    local: Option<SocketAddr>,
    seen: Seen,
}

/// Runs the load until `stop`, and says what the clients saw.
pub fn run(to: SocketAddr, seed: u64, stop: &AtomicBool) -> Seen {
    let ids = &AtomicU64::new(1);
    let mut saw = Seen::default();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..SHORT_CLIENTS + LONG_CLIENTS)
            .map(|number| {
                let rng = fastrand::Rng::with_seed(seed.wrapping_add(number + 1));
                let mut client = Client { to, rng, ids, stop, local: None, seen: Seen::default() };
                scope.spawn(move || {
                    if number < SHORT_CLIENTS {
                        client.short_ones();
                    } else {
                        client.long_ones();
                    }
                    client.seen
                })
            })
            .collect();
        for client in clients {
            saw.add(client.join().unwrap());
        }
    });
    saw
}

impl Client<'_> {
    fn short_ones(&mut self) {
        let turn = Duration::from_millis(1_000 / SHORT_RATE);
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            self.short_one();
            // Give or take a half, so that the clients don't come in step.
            let turn = turn.mul_f64(0.5 + self.rng.f64());
            pace(turn.saturating_sub(begun.elapsed()));
        }
    }

    fn short_one(&mut self) {
        self.seen.short += 1;
        let Some(mut conn) = self.connect() else { return };
        let half_closing = self.rng.u8(..3) == 0;
        if self.first_exchange(&mut conn, half_closing) && half_closing {
            self.seen.half_closing += 1;
            // After its answer a backend may die; what matters is that the end comes.
            if uninterrupted(|| conn.read(&mut [0; 1])).is_err_and(|error| is_silence(error.kind())) {
                self.fail(Instant::now(), "no end after the answer".to_owned());
            }
        }
    }

    fn long_ones(&mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            self.long_one();
            pace(LONG_PAUSE);
        }
    }

    fn long_one(&mut self) {
        self.seen.long += 1;
        let Some(mut conn) = self.connect() else { return };
        if !self.first_exchange(&mut conn, false) {
            return;
        }
        let requests = self.rng.u64(20..=200);
        for _ in 0..requests {
            pace(LONG_PAUSE.mul_f64(0.5 + self.rng.f64()));
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.seen.later_requests += 1;
            let from = Instant::now();
            match self.exchange(&mut conn, false) {
                Ok(_) => {}
                Err(Miss::Ended(_)) => {
                    self.seen.cut += 1;
                    return;
                }
                Err(Miss::Wrong(what)) => return self.fail(from, format!("later request: {what}")),
            }
        }
    }

    /// Whoever connects to the balancer must be taken, whatever its backends do.
    fn connect(&mut self) -> Option<TcpStream> {
        let from = Instant::now();
        self.local = None;
        match TcpStream::connect_timeout(&self.to, SILENCE) {
            Ok(conn) => {
                self.local = conn.local_addr().ok();
                conn.set_nodelay(true).unwrap();
                conn.set_read_timeout(Some(SILENCE)).unwrap();
                conn.set_write_timeout(Some(SILENCE)).unwrap();
                Some(conn)
            }
            Err(error) => {
                self.fail(from, format!("connect: {error}"));
                None
            }
        }
    }

    /// True if it was answered.
    fn first_exchange(&mut self, conn: &mut TcpStream, half_closing: bool) -> bool {
        // Some say nothing for a while: the backend may die before it has been asked anything.
        if self.rng.u8(..10) == 0 {
            pace(Duration::from_millis(self.rng.u64(20..300)));
        }
        let from = Instant::now();
        let what = match self.exchange(conn, half_closing) {
            Ok(from) => {
                self.seen.first.push(Exchange { from, until: Instant::now() });
                return true;
            }
            Err(Miss::Ended(end)) => format!("first request: {end} instead of an answer"),
            Err(Miss::Wrong(what)) => format!("first request: {what}"),
        };
        self.fail(from, what);
        false
    }

    fn fail(&mut self, from: Instant, what: String) {
        let exchange = Exchange { from, until: Instant::now() };
        self.seen.failures.push(Failure { exchange, client: self.local, what });
    }

    /// Asks, and takes the answer. Returns when the whole request was sent.
    fn exchange(&mut self, conn: &mut TcpStream, half_closing: bool) -> Result<Instant, Miss> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let length = if self.rng.u8(..5) == 0 { self.rng.usize(1_000..8_000) } else { self.rng.usize(1..200) };
        let payload: String = std::iter::repeat_with(|| self.rng.alphanumeric()).take(length).collect();
        let request = request(id, &payload);
        // Now and then in two pieces: what is sent again must be put together rightly.
        let cut = if self.rng.u8(..5) == 0 { self.rng.usize(1..request.len()) } else { 0 };
        let (begin, rest) = request.split_at(cut);
        let mut sent = conn.write_all(begin.as_bytes());
        if sent.is_ok() {
            if cut > 0 {
                pace(Duration::from_millis(self.rng.u64(1..30)));
            }
            sent = conn.write_all(rest.as_bytes());
        }
        if let Err(error) = sent {
            return Err(if is_silence(error.kind()) { hung(id) } else { Miss::Ended("a reset while sending") });
        }
        if half_closing && conn.shutdown(Shutdown::Write).is_err() {
            return Err(Miss::Ended("a reset before the FIN"));
        }
        let asked = Instant::now();
        let line = receive(conn, id)?;
        let fine = is_answer(&line, id, &payload);
        if fine { Ok(asked) } else { Err(Miss::Wrong(format!("request {id}: wrong bytes: {:.80}", line.trim_end()))) }
    }
}

/// A line with its line feed.
fn receive(conn: &mut TcpStream, id: u64) -> Result<String, Miss> {
    let (mut line, mut buffer) = (Vec::new(), [0; 4_096]);
    while line.last() != Some(&b'\n') {
        match uninterrupted(|| conn.read(&mut buffer)) {
            Ok(0) if line.is_empty() => return Err(Miss::Ended("a FIN")),
            Ok(0) => return Err(Miss::Wrong(format!("request {id}: a FIN after {} bytes of the answer", line.len()))),
            Ok(count) => line.extend_from_slice(&buffer[..count]),
            Err(error) if is_silence(error.kind()) => return Err(hung(id)),
            // After the first byte a backend's reset is passed on as one: nobody takes that for an answer.
            Err(_) => return Err(Miss::Ended("a reset")),
        }
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn is_silence(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn hung(id: u64) -> Miss {
    Miss::Wrong(format!("request {id}: nothing for {SILENCE:?}"))
}
