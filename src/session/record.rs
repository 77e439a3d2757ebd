//! What is known of one session, and its one exit.
//!
//! Owns the metrics and the access-log line of a session. A [`Record`] ends exactly once, when it is dropped:
//! with the reason that [`Record::finish`] was given, or, in a task that panicked or was cancelled by an operator or at
//! the drain deadline, with that. The fields of the line stand in [`Record::write`], in the order of the line.

use super::balance::Place;
use super::close::CloseReason;
use super::hold::Kept;
use super::proxy;
use super::report::{self, Traffic};
use super::worker::Worker;
use crate::admission::{Permit, Refusal};
use crate::clock::{self, Millis};
use crate::config::{DEFAULT_RULE, OnDown};
use crate::drain::Alive;
use crate::log::Line;
use crate::name::{ClientAddr, Direction, SessionId};
use crate::net::client_hello::{ClientHello, Offers};
use crate::net::proxy_protocol::Tlvs;
use crate::net::relay::Handover;
use crate::pool::hold::HeldBytes;
use crate::pool::{Backend, Pool, Slot};
use crate::table::{Listener, Rule};
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Where in its life a session is; the access log says in which phase it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Admit,
    Preread,
    Route,
    Queue,
    Hold,
    Connect,
    Relay,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Preread => "preread",
            Self::Route => "route",
            Self::Queue => "queue",
            Self::Hold => "hold",
            Self::Connect => "connect",
            Self::Relay => "relay",
        }
    }
}

/// A connect try that came to nothing.
pub struct FailedAttempt {
    pub backend: Arc<str>,
    pub outcome: &'static str,
    pub took: Duration,
}

/// What is known of a session so far. Its drop is the session's end in metrics and log.
pub struct Record {
    pub id: SessionId,
    pub listener: Arc<Listener>,
    pub client: ClientAddr,
    pub phase: Phase,
    /// The rule that it has taken; `None` before that, and where its listener has no routes.
    pub rule: Option<Arc<Rule>>,
    pub pool: Option<Arc<Pool>>,
    /// The backend that was connected to, and how long its attempt took.
    pub connected: Option<(Arc<Backend>, Duration)>,
    /// What has passed between the client and that backend; from the relay on.
    pub traffic: Option<Traffic>,
    /// From the first attempt to the connection, or to giving up, in µs: 71 minutes at most, so that it is small.
    connect_wait: u32,
    /// Apart, so that it takes no room while most sessions are idle.
    detours: Option<Box<Detours>>,
    bytes: [u64; 2],
    pub accepted: Instant,
    reason: Option<CloseReason>,
    worker: Rc<Worker>,
    permit: Option<Permit>,
    place: Option<Place>,
    _alive: Alive,
}

/// What most sessions never have.
#[derive(Default)]
struct Detours {
    failed: Vec<FailedAttempt>,
    /// In the pool's queue and hold together.
    waited: Duration,
    /// What its PROXY header has said.
    proxied: Option<Proxied>,
    /// What was kept of it while it was held, as far as no backend has got it yet.
    held: Option<HeldBytes>,
    /// What its TLS client has asked for, if there is a log to tell it.
    hello: Option<ClientHello>,
}

/// Where a client comes from that has come through a proxy.
pub struct Proxied {
    /// The proxy: who has sent the header.
    pub peer: ClientAddr,
    /// What the client has connected to, if the header says so.
    pub destination: Option<SocketAddr>,
    pub tlvs: Tlvs,
}

impl Record {
    pub fn new(client: ClientAddr, listener: Arc<Listener>, accepted: Instant, worker: &Rc<Worker>) -> Self {
        listener.metrics.connections_total.inc();
        listener.metrics.active.inc();
        Self {
            id: worker.next_session(),
            listener,
            client,
            phase: Phase::Admit,
            rule: None,
            pool: None,
            connected: None,
            traffic: None,
            connect_wait: 0,
            detours: None,
            bytes: [0; 2],
            accepted,
            reason: None,
            worker: Rc::clone(worker),
            permit: None,
            place: None,
            _alive: worker.living.enter(),
        }
    }

    /// The client is the one that its proxy says.
    pub fn come_through(&mut self, client: ClientAddr, proxied: Proxied) {
        self.client = client;
        self.detours().proxied = Some(proxied);
    }

    /// The proxy through which it came.
    pub fn proxied(&self) -> Option<&Proxied> {
        self.detours.as_ref()?.proxied.as_ref()
    }

    /// Asks the limits of single clients, now that it is known who it is.
    pub fn identify(&mut self) -> Result<(), Refusal> {
        let now = clock::nanos(Instant::now());
        self.permit.as_mut().map_or(Ok(()), |permit| permit.identify(self.client, now))
    }

    /// Keeps what the session occupies until its end.
    pub fn hold(&mut self, permit: Permit, place: Option<Place>) {
        (self.permit, self.place) = (Some(permit), place);
    }

    pub fn moved(&mut self, direction: Direction, bytes: u64) {
        super::hook::relay(self.id);
        self.bytes[direction as usize] += bytes;
        if let Some((backend, _)) = &self.connected {
            backend.metrics.bytes[direction as usize].inc_by(bytes);
        }
        if direction == Direction::ToBackend
            && let Some(detours) = &mut self.detours
            && let Some(held) = &mut detours.held
        {
            held.shrink(bytes as usize);
            if held.is_empty() {
                detours.held = None;
            }
        }
        report::moved(self, direction);
    }

    /// What the sinks have taken.
    pub fn bytes(&self) -> [u64; 2] {
        self.bytes
    }

    /// What was kept while the client was held, for whoever gives it to a backend.
    pub fn hand_over(&mut self, kept: Kept) -> Handover {
        let (handover, held) = kept.into_handover();
        self.detours().held = Some(held).filter(|held| !held.is_empty());
        handover
    }

    /// The connect tries that came to nothing.
    pub fn failed(&self) -> &[FailedAttempt] {
        self.detours.as_ref().map_or(&[], |detours| &detours.failed)
    }

    /// The same, to add to them or to forget some.
    pub fn failed_mut(&mut self) -> &mut Vec<FailedAttempt> {
        &mut self.detours().failed
    }

    /// In the pool's queue and hold together, so far.
    pub fn waited(&self) -> Duration {
        self.detours.as_ref().map_or(Duration::ZERO, |detours| detours.waited)
    }

    /// From the first attempt to the connection, or to giving up; zero before that.
    pub fn connect_wait(&self) -> Duration {
        Duration::from_micros(self.connect_wait.into())
    }

    pub fn set_connect_wait(&mut self, wait: Duration) {
        self.connect_wait = wait.as_micros().try_into().unwrap_or(u32::MAX);
    }

    /// It has waited for so long once more.
    pub fn add_wait(&mut self, took: Duration) {
        self.detours().waited += took;
    }

    /// What a TLS client has asked for, for the log, and for the backends of a pool that tells them.
    pub fn note(&mut self, hello: Option<&ClientHello>, pool: Option<&Arc<Pool>>) {
        let is_wanted = self.worker.access.is_some() || pool.is_some_and(|pool| proxy::tells_of_tls(pool));
        if let Some(hello) = hello.filter(|_| is_wanted) {
            self.detours().hello = Some(hello.clone());
        }
    }

    /// What a TLS client has asked for, as far as that was read.
    pub fn hello(&self) -> Option<&ClientHello> {
        self.detours.as_ref()?.hello.as_ref()
    }

    fn detours(&mut self) -> &mut Detours {
        self.detours.get_or_insert_default()
    }

    /// What the backend so far has been given begins anew with the next one: each byte of the client's counts once.
    pub fn begin_anew(&mut self) {
        self.bytes[Direction::ToBackend as usize] = 0;
    }

    /// How long ago the client was accepted.
    pub fn age(&self) -> Duration {
        self.accepted.elapsed()
    }

    /// Whether the backend has gone down since it was chosen, and the pool's sessions don't outlive that.
    pub fn has_lost(&self, slot: &Slot) -> bool {
        let resets = self.pool.as_ref().is_some_and(|pool| pool.protection.on_down == OnDown::Reset);
        resets && !slot.is_up() && self.traffic.as_ref().is_some_and(|traffic| traffic.chosen_up)
    }

    /// Until when it may stay, for its listener's or its backend's sake.
    pub fn drain_deadline(&self, backend: Option<&Backend>) -> Option<Millis> {
        let deadlines = [self.listener.drain_deadline(), backend.and_then(Backend::drain_deadline)];
        deadlines.into_iter().flatten().min()
    }

    /// The one exit.
    pub fn finish(mut self, reason: CloseReason) {
        self.reason = Some(reason);
    }

    fn write(&self, line: &mut Line<'_>, reason: CloseReason, duration: Duration) {
        line.time("time", SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH));
        line.display("id", &self.id);
        line.text("listener", self.listener.name.as_str());
        line.display("client", &self.client);
        match self.proxied() {
            Some(proxied) => line.display("proxy", &proxied.peer),
            None => line.none("proxy"),
        }
        match &self.rule {
            Some(rule) => line.text("rule", &rule.name),
            None if self.listener.config.routes.is_empty() => line.text("rule", DEFAULT_RULE),
            None => line.none("rule"),
        }
        let hello = self.hello();
        match hello.and_then(|hello| hello.server_name.as_ref()) {
            Some(name) => line.text("sni", name),
            None => line.none("sni"),
        }
        match hello.filter(|hello| !hello.alpn.is_empty()) {
            Some(hello) => line.display("alpn", &Alpn(&hello.alpn)),
            None => line.none("alpn"),
        }
        match &self.pool {
            Some(pool) => line.text("pool", pool.name.as_str()),
            None => line.none("pool"),
        }
        match &self.connected {
            Some((backend, _)) => line.text("backend", &backend.label),
            None => line.none("backend"),
        }
        line.display("attempts", &Attempts(self));
        line.seconds("connect", self.connect_wait());
        line.seconds("wait", self.waited());
        line.seconds("duration", duration);
        line.number("to_backend", self.bytes[Direction::ToBackend as usize]);
        line.number("to_client", self.bytes[Direction::ToClient as usize]);
        line.text("ended_by", reason.ended_by());
        line.text("phase", self.phase.as_str());
        line.text("reason", reason.label());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let reason = self.reason.unwrap_or_else(|| match () {
            () if std::thread::panicking() => CloseReason::Panic,
            () => self.worker.pending.take_called_off(self.id).unwrap_or(CloseReason::DrainDeadline),
        });
        if reason == CloseReason::DrainDeadline {
            self.worker.count_cut();
        }
        // Whoever sees that it is over finds its place free.
        drop((self.permit.take(), self.place.take()));
        let duration = self.accepted.elapsed();
        let metrics = &self.listener.metrics;
        metrics.closed[reason as usize].inc();
        metrics.duration.observe(duration.as_secs_f64());
        metrics.active.dec();
        if let Some(access) = &self.worker.access {
            access.borrow_mut().line(|line| self.write(line, reason, duration));
        }
    }
}

/// `h2,http/1.1`; bytes that are no letters are escaped.
struct Alpn<'a>(&'a Offers);

impl fmt::Display for Alpn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, offer) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}", offer.escape_ascii())?;
        }
        Ok(())
    }
}

/// `10.0.0.1:80 refused 0.000112, 10.0.0.2:80 connected 0.000351`.
struct Attempts<'a>(&'a Record);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = self.0.failed().iter().map(|attempt| (&attempt.backend, attempt.outcome, attempt.took));
        let connected = self.0.connected.iter().map(|(backend, took)| (&backend.label, "connected", *took));
        for (index, (backend, outcome, took)) in failed.chain(connected).enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{backend} {outcome} {:.6}", took.as_secs_f64())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each session has one, however idle: with the allocator's own 8 bytes this is what it rounds to.
    #[test]
    fn a_record_stays_small() {
        assert!(size_of::<Record>() <= 232, "{}", size_of::<Record>());
    }
}
