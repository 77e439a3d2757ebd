//! The admin endpoint: HTTP for probes, scrapers, people and those who change things.
//!
//! Owns the accept loop, the limits on connections and their ends. Which answer there is, `routes` finds: `shown` from
//! the view in `status`, which `page` shows to people; `changes` become commands that the daemon carries out. What may
//! not be asked is `guard`, and who may ask `who`, `token` and `browser`.
//!
//! Invariants: the endpoint answers also when file descriptors have run out (`Spare`); a client that is slow, silent or
//! hostile costs one of [`MAX_CONNECTIONS`] for `LIFE` at most, keeps nobody out (`places`), and costs traffic nothing.
//! Connection tasks hold no state of their own: one that panics, or the loop that is started again, loses nothing.
//! Nothing is changed here, and nobody who may not change things has a body read.

mod answer;
mod body;
mod browser;
mod changes;
pub mod command;
mod connections;
pub mod explain;
mod fields;
mod generations;
mod guard;
mod moment;
mod openapi;
mod page;
mod places;
mod refusals;
mod routes;
mod secret;
mod shown;
mod status;
pub mod token;
mod who;

pub use connections::{Sessions, Soon};
pub use places::Places;
pub use token::{Own, credential};
pub use who::Access;

pub use generations::{ConfigStatus, Generation, RefusedConfig};
pub use moment::Moment;

use crate::config::Adjustments;
use crate::drain;
use crate::every::Every;
use crate::metrics::Metrics;
use crate::name::{BindAddr, Endpoint};
use crate::net::listen::{ListenSocket, PathGuard};
use crate::table::RoutingTable;
use arc_swap::ArcSwap;
use body::Room;
use guard::Guarded;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use places::{Place, Written};
use refusals::Refusals;
use std::convert::Infallible;
use std::fs::File;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use who::Peer;

/// Connections at once; for one more, one for which nothing is being done is closed.
pub const MAX_CONNECTIONS: usize = 64;

/// For a request's head, from the moment the connection is ready for one. So it is also how long a connection may
/// be idle.
const HEAD: Duration = Duration::from_secs(5);

/// After this a connection takes no new request.
const LAST_REQUEST: Duration = Duration::from_secs(20);

/// After this a connection is cut, unless a change is being carried out for it: then it has as long again. It is the
/// limit on a slow reader: enough for a scrape of the largest config over a bad link.
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
    /// What operators have changed on top of the config.
    pub adjustments: Arc<ArcSwap<Adjustments>>,
    pub metrics: Arc<Metrics>,
    pub phase: watch::Receiver<Phase>,
    /// Each worker has a socket for each address of a listener.
    pub workers: usize,
    pub started: SystemTime,
    pub config: Arc<ArcSwap<ConfigStatus>>,
    /// Where changes are asked for.
    pub commands: command::Commands,
    pub sessions: Arc<dyn Sessions>,
    pub who: Arc<Who>,
    /// All sockets of the endpoint share them.
    pub places: Arc<Places>,
    /// Brings those gauges up to date that nobody keeps; called before each scrape.
    pub refresh: Box<dyn Fn() + Send + Sync>,
}

/// Who may do what, and what became of those who may not.
pub struct Who {
    /// Swapped whole by a reload.
    pub access: ArcSwap<Access>,
    refusals: Refusals,
    room: Room,
}

impl Who {
    #[must_use]
    pub fn new(access: Access) -> Self {
        let refusals = Refusals::new(Instant::now());
        Self { access: ArcSwap::from_pointee(access), refusals, room: Room::default() }
    }
}

/// The changes that are being carried out for one connection.
#[derive(Clone, Default)]
struct Carrying(Arc<AtomicUsize>);

/// One of them, until it is dropped.
struct Carried(Carrying);

impl Carrying {
    fn begin(&self) -> Carried {
        self.0.fetch_add(1, Relaxed);
        Carried(self.clone())
    }

    fn any(&self) -> bool {
        self.0.load(Relaxed) > 0
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// One of the endpoint's sockets, known to the runtime.
pub struct Listener {
    socket: Socket,
    /// Only this host reaches it.
    is_loopback: bool,
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
        let (socket, is_loopback) = match address {
            Endpoint::Tcp(address) => (Socket::Tcp(TcpListener::from_std(socket.into())?), address.ip().is_loopback()),
            Endpoint::Unix(_) => (Socket::Unix(UnixListener::from_std(socket.into())?), false),
        };
        Ok(Self { socket, is_loopback, _path: path })
    }

    async fn accept(&self) -> io::Result<(Stream, Peer)> {
        Ok(match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                let at = stream.local_addr()?;
                (Box::new(stream), Peer::Tcp { from, at, is_loopback: self.is_loopback })
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred().ok().map(|peer| peer.uid());
                (Box::new(stream), Peer::Unix(uid))
            }
        })
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

type Stream = Box<dyn Duplex>;

/// Serves one socket until `stop` is ready, then lets answers that have begun be finished, within a bound. Who comes
/// after that is left to another process that has the socket.
pub async fn serve(listener: Arc<Listener>, state: Arc<State>, stop: impl Future<Output = ()>) {
    let mut stop = pin!(stop);
    // Its drop, also by a panic, tells all connections to end.
    let (serving, ending) = watch::channel(());
    let mut spare = Spare::default();
    spare.keep();
    let tell = Every::new(TELL, Instant::now());
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match state.places.take() {
                Some((place, is_full)) => {
                    drain::spawn(connection(stream, peer, Arc::clone(&state), ending.clone(), place));
                    if is_full {
                        state.metrics.admin_refused.inc();
                        // Whoever makes room goes first, with its file descriptor.
                        yield_now().await;
                    }
                }
                None => state.metrics.admin_refused.inc(),
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
    drop(ending);
    serving.send_replace(());
    // What isn't finished by then ends with the runtime.
    _ = timeout(STOP, serving.closed()).await;
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

async fn connection(stream: Stream, peer: Peer, state: Arc<State>, mut ending: watch::Receiver<()>, place: Place) {
    let carrying = Carrying::default();
    let answer = |request| {
        let (state, carrying, place) = (Arc::clone(&state), carrying.clone(), &place);
        async move {
            let _work = place.work();
            Ok::<_, Infallible>(routes::answer(request, peer, &state, &carrying).await)
        }
    };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .half_close(true)
        .serve_connection(TokioIo::new(Written { stream: Guarded::new(stream), place: &place }), service_fn(answer));
    let life = async {
        tokio::select! {
            ended = &mut connection => return ended,
            _ = ending.changed() => {}
            () = sleep(LAST_REQUEST) => {}
        }
        Pin::new(&mut connection).graceful_shutdown();
        (&mut connection).await
    };
    let ended = tokio::select! {
        ended = within_life(life, &carrying) => ended,
        () = place.leave() => None,
    };
    let Some(ended) = ended else { return };
    let mut stream = connection.into_parts().io.into_inner().stream;
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

/// What comes of a connection; `None` if that takes too long.
async fn within_life<T>(life: impl Future<Output = T>, carrying: &Carrying) -> Option<T> {
    let mut life = pin!(life);
    loop {
        match timeout(LIFE, &mut life).await {
            Ok(ended) => return Some(ended),
            Err(_) if carrying.any() => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests;
