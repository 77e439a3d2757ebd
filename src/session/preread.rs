//! Where a session goes; and reading what its client sends first, where that depends on it.
//!
//! Owns the first bytes from the socket to whoever gives them to a backend. Which rule is taken, and whether more must
//! be read for that, is `table::routes`' decision, asked again after each read and always of the table that holds then.
//! Invariants: nothing is read unless the table needs it; no more than `preread_bytes`, and not for longer than
//! `preread_timeout`; what was read goes on byte for byte, before everything that comes later; a FIN is kept like the
//! bytes before it, and a reset ends the session before any backend hears of it.

use super::Session;
use super::close::CloseReason;
use super::pending::Shown;
use super::record::{Phase, Record};
use super::worker::Worker;
use crate::config::PrereadFailed;
use crate::name::{ClientAddr, Side};
use crate::net::first_bytes::{FirstBytes, Known};
use crate::net::relay::{Fin, Handover, RelayEnd};
use crate::net::stream::Stream;
use crate::pool::Pool;
use crate::sys;
use crate::table::{self, Facts, Passed, RoutingTable, Rule, Verdict};
use rustix::io::Errno;
use rustix::net::{RecvFlags, getsockname, recv};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The largest read.
const READ: usize = 16 << 10;

/// What a client has sent before its session had a backend.
#[derive(Debug, Default)]
pub struct Early {
    pub bytes: Vec<u8>,
    pub fin: Fin,
}

impl Early {
    pub fn into_handover(self) -> Handover {
        Handover { pending: self.bytes.into(), client_fin: self.fin, ..Handover::default() }
    }
}

/// Where a session goes, as far as that is known.
pub enum Way {
    /// To this pool, with the key that it goes by; 0 if it goes by none.
    To(Arc<Pool>, u64),
    /// The client must have sent more.
    Open(Question),
    Nowhere(CloseReason),
}

/// What stays the same about a session while its first bytes come, and what was found so far.
#[derive(Clone, Copy, Default)]
pub struct Question {
    local: Option<SocketAddr>,
    chance: u64,
    passed: Passed,
}

/// Looks for the way of a session of which nothing has been read.
pub fn find(client: &Stream, record: &mut Record, worker: &Worker) -> Way {
    let table = worker.table.load();
    let mut question = Question::default();
    if record.client == ClientAddr::Unix {
        question.chance = worker.rng.borrow_mut().below(u64::MAX);
    } else if table.wants_local(&record.listener.name) {
        question.local = local_address(client);
    }
    look(&table, record, &FirstBytes::default(), question)
}

/// Where the client has connected to; an IPv4-mapped address is the IPv4 address that it means.
fn local_address(client: &Stream) -> Option<SocketAddr> {
    let local = SocketAddr::try_from(getsockname(client).ok()?).ok()?;
    Some(SocketAddr::new(local.ip().to_canonical(), local.port()))
}

/// What the table says of it.
fn look(table: &RoutingTable, record: &mut Record, first: &FirstBytes, question: Question) -> Way {
    let Question { local, chance, passed } = question;
    let facts = Facts { listener: &record.listener.name, client: record.client, local, first, chance, passed };
    let (rule, way) = match table.route(&facts) {
        Verdict::NeedsMore(passed) => return Way::Open(Question { passed, ..question }),
        Verdict::To { rule, pool, passed } => {
            let Known::Yes(key) = key(pool, &facts) else { return Way::Open(Question { passed, ..question }) };
            (Arc::clone(rule), Way::To(Arc::clone(pool), key))
        }
        Verdict::Refuse { rule } => (Arc::clone(rule), Way::Nowhere(CloseReason::RouteRefused)),
        Verdict::NoRoute => return Way::Nowhere(CloseReason::NoRoute),
    };
    take(record, rule);
    way
}

/// What the pool goes by: until that is known, the way is open.
fn key(pool: &Pool, facts: &Facts<'_>) -> Known<u64> {
    pool.hash.as_ref().map_or(Known::Yes(0), |hash| table::hash_key(hash, facts))
}

/// From here on the session is one of this rule.
fn take(record: &mut Record, rule: Arc<Rule>) {
    record.phase = Phase::Route;
    // Where there is only one way, nothing is said of it.
    if let Some(sessions) = &rule.sessions {
        sessions.inc();
        record.rule = Some(rule);
    }
}

/// Reads until it's known where the session goes, for as long as it may take from `since` on.
pub async fn run(session: &mut Session, question: Question, since: Instant) -> Result<(Arc<Pool>, u64), CloseReason> {
    let Session { client, record, worker, early } = session;
    record.phase = Phase::Preread;
    let listener = Arc::clone(&record.listener);
    let preread = &listener.config.preread;
    let mut reading = Reading::new(early.take(), preread.bytes);
    let deadline = tokio::time::Instant::from_std(since + preread.timeout);
    let stop = tokio::time::timeout_at(deadline, reading.run(client, record, worker, question)).await;
    let found = match stop {
        Ok(Stop::Found(pool, key)) => Ok((pool, key)),
        Ok(Stop::Nowhere(reason)) => Err(reason),
        Ok(Stop::ClientFailed(error)) => Err(CloseReason::of_relay(RelayEnd::of_error(Side::Client, error))),
        Ok(Stop::Unjudgeable(reason)) => match preread.failed {
            PrereadFailed::Reset => Err(reason),
            PrereadFailed::Pool => without_first_bytes(record, worker, question, reason),
        },
        Err(_) if reading.first.bytes().is_empty() => silent(record, worker, question),
        Err(_) => Err(CloseReason::PrereadTimeout),
    };
    record.note(reading.first.hello().yes(), found.as_ref().ok().map(|(pool, _)| pool));
    listener.metrics.preread().observe(record.age().as_secs_f64());
    *early = Some(Box::new(reading.into_early()));
    found
}

/// Where a session goes of whose first bytes nothing is known.
fn without_first_bytes(
    record: &mut Record,
    worker: &Worker,
    question: Question,
    reason: CloseReason,
) -> Result<(Arc<Pool>, u64), CloseReason> {
    let mut nothing = FirstBytes::default();
    nothing.finish();
    match look(&worker.table.load(), record, &nothing, Question { passed: Passed::default(), ..question }) {
        Way::To(pool, key) => Ok((pool, key)),
        Way::Nowhere(reason) => Err(reason),
        Way::Open(_) => Err(reason),
    }
}

/// Where a session goes whose client has waited for the server to speak.
fn silent(record: &mut Record, worker: &Worker, question: Question) -> Result<(Arc<Pool>, u64), CloseReason> {
    let table = worker.table.load();
    let (rule, pool) = table.on_silence(&record.listener.name).ok_or(CloseReason::PrereadTimeout)?;
    let mut nothing = FirstBytes::default();
    nothing.finish();
    let Question { local, chance, passed } = question;
    let facts =
        Facts { listener: &record.listener.name, client: record.client, local, first: &nothing, chance, passed };
    // Of nothing, nothing is open.
    let key = key(pool, &facts).yes().unwrap_or_default();
    let pool = Arc::clone(pool);
    take(record, Arc::clone(rule));
    Ok((pool, key))
}

/// Why no more is read.
enum Stop {
    Found(Arc<Pool>, u64),
    Nowhere(CloseReason),
    /// Too much, or malformed.
    Unjudgeable(CloseReason),
    ClientFailed(Errno),
}

/// First bytes on their way in.
struct Reading {
    first: FirstBytes,
    fin: Fin,
    limit: usize,
}

impl Reading {
    fn new(early: Option<Box<Early>>, limit: usize) -> Self {
        let mut reading = Self { first: FirstBytes::default(), fin: Fin::Awaited, limit };
        if let Some(early) = early {
            reading.first.push(&early.bytes);
            if early.fin != Fin::Awaited {
                reading.finish();
            }
        }
        reading
    }

    fn into_early(self) -> Early {
        Early { bytes: self.first.into_bytes(), fin: self.fin }
    }

    async fn run(&mut self, client: &Stream, record: &mut Record, worker: &Worker, mut question: Question) -> Stop {
        let mut watched = None;
        loop {
            // Of one that has sent nothing, the table has said already that it must.
            if !self.first.bytes().is_empty() || self.fin != Fin::Awaited {
                match look(&worker.table.load(), record, &self.first, question) {
                    Way::To(pool, key) => return Stop::Found(pool, key),
                    Way::Nowhere(reason) => return Stop::Nowhere(reason),
                    Way::Open(open) => question = open,
                }
                // Of one that has ended its side nothing is open but what is malformed.
                if self.first.malformed().is_some() || self.fin != Fin::Awaited {
                    return Stop::Unjudgeable(CloseReason::PrereadMalformed);
                }
                if self.first.bytes().len() >= self.limit {
                    return Stop::Unjudgeable(CloseReason::PrereadTooLong);
                }
            }
            if let Err(stop) = Shown::new(record, worker).during(self.more(client, &mut watched)).await {
                return stop;
            }
        }
    }

    /// One read, as soon as there is something.
    async fn more<'c>(
        &mut self,
        client: &'c Stream,
        watched: &mut Option<AsyncFd<BorrowedFd<'c>>>,
    ) -> Result<(), Stop> {
        loop {
            // Mostly the first bytes have come with the connection, and to read them is cheaper than to be told.
            let failed = match self.fetch(client) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match (failed, watched.as_ref()) {
                (Errno::AGAIN, None) => {
                    let new = sys::watch(client.as_fd(), Interest::READABLE);
                    *watched = Some(new.map_err(|_| Stop::Nowhere(CloseReason::NoResources))?);
                }
                (Errno::AGAIN, Some(watched)) => {
                    let ready = watched.readable().await;
                    let mut ready = ready.map_err(|_| Stop::Nowhere(CloseReason::NoResources))?;
                    // Before the socket is used to the end, so that no edge is lost.
                    ready.clear_ready();
                }
                (error, _) => return Err(Stop::ClientFailed(error)),
            }
        }
    }

    /// One read, of no more than may be.
    fn fetch(&mut self, client: &Stream) -> Result<(), Errno> {
        // Not cleared: that would take longer than to read a hello.
        let mut buffer = [MaybeUninit::uninit(); READ];
        let room = READ.min(self.limit.saturating_sub(self.first.bytes().len()));
        loop {
            match recv(client, &mut buffer[..room], RecvFlags::empty()) {
                Ok((([], _), _)) => self.finish(),
                Ok(((bytes, _), _)) => self.first.push(bytes),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            }
            return Ok(());
        }
    }

    fn finish(&mut self) {
        self.fin = Fin::Read;
        self.first.finish();
    }
}
