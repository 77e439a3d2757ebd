//! One question to one backend: does it take a connection, does it answer as it should?
//!
//! Owns the answer and whose fault a failure is; keeps no state and retries nothing. Each protocol is a file of its
//! own: `http`, `tls`, `exchange`, and `super::agent` for what a backend says of itself. Bounded in time by the
//! caller's limit and in bytes by the spec, whatever comes. A conversation that came to an answer is closed in order,
//! so that the backend's log stays quiet; one that ran out of time is reset.

mod exchange;
mod http;
mod text;
mod tls;
mod validity;

use super::agent::{self, Statement};
use crate::config;
use crate::metrics::{CheckResult, ConnectErrorReason};
use crate::name::BackendAddr;
use crate::net::async_stream::AsyncStream;
use crate::net::connect::{ConnectError, connect};
use crate::net::origin::{Behalf, Origin};
use crate::net::proxy_protocol::{Version, write_local};
use crate::net::send::send_all;
use crate::net::stream::Stream;
use crate::pool::health::Outcome;
use rustix::io::Errno;
use rustix::net::{getpeername, getsockname};
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

pub(super) use text::quoted;
pub(super) use tls::date;

/// What is found out this much too late says that we were not running, and nothing about the backend: it may have
/// closed a connection that was silent for so long.
const STALL: Duration = Duration::from_millis(500);
/// How long at least one looks again after a time-out: as long as a look at the sockets takes.
const LAST_LOOK: Duration = Duration::from_millis(1);

/// What a backend is asked, made ready once for a whole pool.
#[derive(Clone, Debug)]
pub enum Question {
    Tcp,
    Http(Arc<config::Http>),
    Tls(Arc<tls::Handshake>),
    Exchange(Arc<config::Exchange>),
    /// Not whether it is well, but what it says of itself.
    Agent(Arc<config::Agent>),
    /// The same after a PROXY header that says that the connection is our own.
    Introduced(Version, Arc<Question>),
}

/// Whom it is asked, and from where.
#[derive(Clone, Debug)]
pub struct Way {
    pub to: BackendAddr,
    pub origin: Arc<Origin>,
}

impl From<BackendAddr> for Way {
    /// From wherever the kernel chooses.
    fn from(to: BackendAddr) -> Self {
        Self { to, origin: Arc::default() }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Good,
    /// Good, by a certificate that ends at this second of Unix time.
    GoodUntil(u64),
    Agent(Statement),
}

/// Why a probe did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("{0}")]
    Connect(ConnectError),
    /// We lack something in mid-conversation.
    #[error("{0}")]
    Shortage(ConnectError),
    /// It answered, but not as it should: a sentence.
    #[error("{0}")]
    Wrong(String),
    #[error("no answer within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// A part of an answer came: a sentence.
    #[error("{seen} within {}", humantime::format_duration(*.limit))]
    Unfinished { seen: String, limit: Duration },
    #[error("this process was not running for {}", humantime::format_duration(*.0))]
    Stalled(Duration),
}

/// What has been seen of an answer so far, as a sentence that "within 1s" may follow.
type Seen = Option<String>;

impl Question {
    /// The question of a pool's probe; `None` where nobody asks.
    pub fn of(health: &config::Health) -> Option<Self> {
        match &health.probe {
            config::Probe::Tcp => Some(Self::Tcp),
            config::Probe::Http(spec) => Some(Self::Http(Arc::clone(spec))),
            config::Probe::Tls(spec) => Some(Self::Tls(Arc::new(tls::Handshake::new(spec)))),
            config::Probe::Exchange(spec) => Some(Self::Exchange(Arc::clone(spec))),
            config::Probe::None => None,
        }
    }

    /// The question for backends that get such PROXY headers.
    #[must_use]
    pub fn introduced(self, send: &config::SendProxy) -> Self {
        let version = match send {
            config::SendProxy::V1 => Version::V1,
            config::SendProxy::V2(_) => Version::V2,
        };
        Self::Introduced(version, Arc::new(self))
    }

    /// The question itself, and the version of the header before it.
    fn split(&self) -> (Option<Version>, &Self) {
        match self {
            Self::Introduced(version, question) => (Some(*version), question),
            plain => (None, plain),
        }
    }

    /// The most bytes that are read from the backend.
    fn most(&self) -> usize {
        match self {
            Self::Tcp => 0,
            Self::Http(spec) => http::MAX_HEAD + spec.max_bytes,
            Self::Tls(_) => tls::MAX_HANDSHAKE,
            Self::Exchange(spec) => spec.max_bytes,
            Self::Agent(_) => agent::MAX_LINE,
            Self::Introduced(_, question) => question.most(),
        }
    }

    /// Without its header.
    async fn converse(
        &self,
        stream: &mut AsyncStream,
        to: &BackendAddr,
        seen: &mut Seen,
    ) -> Result<Answer, ProbeError> {
        match self {
            Self::Tcp | Self::Introduced(..) => Ok(Answer::Good),
            Self::Http(spec) => http::ask(spec, to, stream, seen).await.map(|()| Answer::Good),
            Self::Tls(handshake) => handshake.make(stream).await.map(Answer::GoodUntil),
            Self::Exchange(spec) => exchange::ask(spec, stream, seen).await.map(|()| Answer::Good),
            Self::Agent(spec) => agent::ask(spec, stream).await.map(Answer::Agent),
        }
    }
}

impl ProbeError {
    #[must_use]
    pub fn check_result(&self) -> CheckResult {
        match self {
            Self::Connect(error) if error.is_ours() => CheckResult::Frozen,
            Self::Connect(error) if error.reason() == ConnectErrorReason::Timeout => CheckResult::Timeout,
            Self::Connect(_) | Self::Wrong(_) => CheckResult::Failure,
            Self::TimedOut(_) | Self::Unfinished { .. } => CheckResult::Timeout,
            Self::Shortage(_) | Self::Stalled(_) => CheckResult::Frozen,
        }
    }

    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self.check_result() {
            CheckResult::Frozen => Outcome::Frozen,
            CheckResult::Success | CheckResult::Failure | CheckResult::Timeout => Outcome::Failure,
        }
    }
}

/// Connects, asks, and has the answer within `limit`; then closes, which takes a moment more where the backend is slow
/// to end.
pub async fn ask<W: Into<Way>>(question: Question, way: W, limit: Duration) -> Result<Answer, ProbeError> {
    let Way { to, origin } = way.into();
    let started = Instant::now();
    let (mut stream, mut seen) = (None, None);
    let answer = {
        let asking = async {
            let connected = connect(&to, &origin, Behalf::Own).await.map_err(ProbeError::Connect)?;
            let (version, question) = question.split();
            if let Some(version) = version {
                let lost = |error: Errno| ProbeError::Connect(error.into());
                send_all(&connected, &introduction(&connected, version)).await.map_err(lost)?;
            }
            if let Question::Tcp = question {
                connected.close();
                return Ok(Answer::Good);
            }
            let watched = AsyncStream::new(connected, question.most());
            let stream = stream.insert(watched.map_err(|error| ProbeError::Shortage(error.into()))?);
            question.converse(stream, &to, &mut seen).await
        };
        within(limit, started, asking).await
    };
    let late = started.elapsed().saturating_sub(limit);
    let Some(answer) = answer else { return Err(timed_out(late, limit, seen)) };
    if let Some(stream) = stream {
        stream.finish().await;
    }
    if answer.is_err() && late > STALL { Err(ProbeError::Stalled(late)) } else { answer }
}

/// The PROXY header of a connection of our own.
fn introduction(connected: &Stream, version: Version) -> Vec<u8> {
    let own = getsockname(connected).ok().and_then(|own| SocketAddr::try_from(own).ok());
    let peer = getpeername(connected).ok().flatten().and_then(|peer| SocketAddr::try_from(peer).ok());
    write_local(version, own.zip(peer))
}

/// What comes of `asking` within `limit`. A time-out that comes late gives back the time that was lost: the answer may
/// be here, unread.
async fn within<T>(limit: Duration, started: Instant, asking: impl Future<Output = T>) -> Option<T> {
    let mut asking = pin!(asking);
    if let Ok(answer) = timeout(limit, &mut asking).await {
        return Some(answer);
    }
    let late = started.elapsed().saturating_sub(limit);
    if late.is_zero() { None } else { timeout(late.clamp(LAST_LOOK, limit.max(LAST_LOOK)), asking).await.ok() }
}

/// The shortage of our own that is behind `error`, if it is one: it says nothing about the backend.
pub(super) fn shortage(error: &(dyn Error + 'static)) -> Option<ProbeError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(errno) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            let error = ConnectError(Errno::from_raw_os_error(errno));
            return error.is_ours().then_some(ProbeError::Shortage(error));
        }
        cause = error.source();
    }
    None
}

fn timed_out(late: Duration, limit: Duration, seen: Seen) -> ProbeError {
    match seen {
        _ if late > STALL => ProbeError::Stalled(late),
        Some(seen) => ProbeError::Unfinished { seen, limit },
        None => ProbeError::TimedOut(limit),
    }
}

#[cfg(test)]
pub(super) mod kit;
#[cfg(test)]
mod tests;
