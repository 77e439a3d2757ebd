//! The admin endpoint: HTTP for probes, scrapers and people, on a loopback address or a unix socket.
//!
//! Owns the accept loop, the limits on connections and their ends. What is answered is `routes`, from the view in
//! `status`, which `page` shows to people; what may not be asked is `guard`. Everything here is read-only.
//!
//! Invariants: the endpoint answers also when file descriptors have run out (`Spare`); a client that is slow,
//! silent or hostile costs one of [`MAX_CONNECTIONS`] for `LIFE` at most, and traffic nothing. Connection tasks
//! hold no state of their own: one that panics, or the loop that is started again, loses nothing.

pub mod command;
pub mod explain;
mod guard;
mod page;
mod routes;
mod status;

use crate::drain;
use crate::every::Every;
use crate::metrics::Metrics;
use crate::name::{BindAddr, Endpoint};
use crate::net::listen::{ListenSocket, PathGuard};
use crate::table::RoutingTable;
use arc_swap::ArcSwap;
use guard::Guarded;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fs::File;
use std::future::{Future, ready};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

/// Connections at once; one more is closed without an answer.
pub const MAX_CONNECTIONS: usize = 64;

/// For a request's head, from the moment the connection is ready for one. So it is also how long a connection may
/// be idle.
const HEAD: Duration = Duration::from_secs(5);

/// After this a connection takes no new request.
const LAST_REQUEST: Duration = Duration::from_secs(20);

/// After this a connection is cut. It is the limit on a slow reader: enough for a scrape of the largest config
/// over a bad link.
const LIFE: Duration = Duration::from_secs(30);

/// Bytes of a request's head, and headers in it.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

/// How long, and for how many bytes, a client that we have answered too early for its taste may go on sending: closed
/// at once, the kernel would throw away the answer with the rest.
const LINGER: (Duration, u64) = (Duration::from_millis(500), 256 << 10);

/// After an error of accept(2). Readiness doesn't tell when a shortage is over.
const PAUSE: Duration = Duration::from_millis(50);

/// Errors of accept(2) are logged at most this often.
const TELL: Duration = Duration::from_secs(10);

/// How long answers that have begun may take once the endpoint is told to stop.
const STOP: Duration = Duration::from_secs(1);

/// How far the process is, which decides whether traffic may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Ready,
    Draining,
}

impl Phase {
    /// The word in `/status` and `/readyz`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

/// What the endpoint shows.
pub struct State {
    pub table: Arc<ArcSwap<RoutingTable>>,
    pub metrics: Arc<Metrics>,
    pub phase: watch::Receiver<Phase>,
    /// Each worker has a socket for each address of a listener.
    pub workers: usize,
    pub started: SystemTime,
    /// Where changes are asked for.
    pub commands: command::Commands,
    /// Brings those gauges up to date that nobody keeps; called before each scrape.
    pub refresh: Box<dyn Fn() + Send + Sync>,
}

/// The endpoint's socket, known to the runtime.
pub struct Listener {
    socket: Socket,
    /// Keeps the path of a unix socket.
    _path: PathGuard,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Hands the socket to the current runtime.
    pub fn new(socket: ListenSocket) -> io::Result<Self> {
        let (socket, BindAddr(address), path) = socket.into_parts();
        let socket = match address {
            Endpoint::Tcp(_) => Socket::Tcp(TcpListener::from_std(socket.into())?),
            Endpoint::Unix(_) => Socket::Unix(UnixListener::from_std(socket.into())?),
        };
        Ok(Self { socket, _path: path })
    }

    async fn accept(&self) -> io::Result<Stream> {
        Ok(match &self.socket {
            Socket::Tcp(listener) => Box::new(listener.accept().await?.0),
            Socket::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

type Stream = Box<dyn Duplex>;

/// Serves until `stop` is ready, then lets answers that have begun be finished, within a bound.
pub async fn serve(listener: Arc<Listener>, state: Arc<State>, stop: impl Future<Output = ()>) {
    let mut stop = pin!(stop);
    // Its drop, also by a panic, tells all connections to end.
    let (serving, ending) = watch::channel(());
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut spare = Spare::default();
    spare.keep();
    let tell = Every::new(TELL, Instant::now());
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => match Arc::clone(&permits).try_acquire_owned() {
                Ok(permit) => {
                    drain::spawn(connection(stream, Arc::clone(&state), ending.clone(), permit));
                }
                Err(_) => state.metrics.admin_refused.inc(),
            },
            // Not kept again before the next accept(2) has had its chance: that would go round and round.
            Err(error) if is_shortage(&error) && spare.give() => continue,
            Err(error) => {
                if tell.is_due(Instant::now()) {
                    tracing::warn!(%error, "the admin endpoint can't accept");
                }
                tokio::select! {
                    () = &mut stop => break,
                    () = sleep(PAUSE) => {}
                }
            }
        }
        spare.keep();
    }
    drop(serving);
    // What isn't finished by then ends with the runtime.
    _ = timeout(STOP, permits.acquire_many(MAX_CONNECTIONS as u32)).await;
}

/// A file descriptor to give up when there is none left for a connection.
#[derive(Default)]
struct Spare(Option<File>);

impl Spare {
    fn keep(&mut self) {
        if self.0.is_none() {
            self.0 = File::open("/dev/null").ok();
        }
    }

    /// Whether there was one, so that another accept(2) has a chance.
    fn give(&mut self) -> bool {
        self.0.take().is_some()
    }
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

async fn connection(stream: Stream, state: Arc<State>, mut ending: watch::Receiver<()>, _permit: OwnedSemaphorePermit) {
    let answer = |request| ready(Ok::<_, Infallible>(routes::answer(&request, &state)));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .half_close(true)
        .serve_connection(TokioIo::new(Guarded::new(stream)), service_fn(answer));
    let life = async {
        tokio::select! {
            ended = &mut connection => return ended,
            _ = ending.changed() => {}
            () = sleep(LAST_REQUEST) => {}
        }
        Pin::new(&mut connection).graceful_shutdown();
        (&mut connection).await
    };
    let Ok(ended) = timeout(LIFE, life).await else { return };
    let mut stream = connection.into_parts().io.into_inner();
    if ended.is_err_and(|error| error.is_timeout()) && stream.is_within_head() {
        // It fits into the empty send buffer of a client that has had no answer yet.
        _ = timeout(LINGER.0, stream.write_all(routes::TOO_SLOW)).await;
        _ = stream.shutdown().await;
    }
    if stream.has_unread() {
        let mut rest = stream.take(LINGER.1);
        _ = timeout(LINGER.0, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    }
}

#[cfg(test)]
mod tests;
