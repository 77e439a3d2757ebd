//! The loop that accepts on one socket, and what each error of accept(2) means.
//!
//! Owns the pace: sixteen connections a turn, then everybody else's; a pause by a timer when file descriptors run
//! out, because readiness doesn't come back by itself then. Invariant: accepting never ends but when the socket is
//! retired, by itself or with the process, and then its queue is emptied first; a socket that is broken is bound again,
//! with backoff, while the other listeners go on.

use super::balance::SharedSocket;
use super::close::CloseReason;
use super::record::Record;
use super::{Arrival, Worker};
use crate::admission::{Early, Full, Permit, Refusal};
use crate::backoff::Backoff;
use crate::clock;
use crate::drain::{Drain, Stage};
use crate::name::ClientAddr;
use crate::net::listen::{ListenSocket, bind_again};
use crate::net::stream::Stream;
use crate::sys;
use crate::table::Listener;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Connections accepted before other tasks get their turn.
const ACCEPTS_PER_TURN: usize = 16;
/// Turns in a row for one accept queue that is being emptied, after which the caller looks at others.
const TURNS: usize = 256;
/// Connections lost before we could take them, in a row, after which others get their turn.
const LOST_PER_TURN: usize = 64;
/// The pause after a firewall refused a connection.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);
/// The shortest and longest pause while file descriptors or memory are short.
const SHORTAGE_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// How long a socket whose address others have is listened on for those that are being connected: a round trip around
/// the world, and some.
const LINGER: Duration = Duration::from_millis(300);
/// How long the accept queue is left alone while clients wait for a limit.
const FULL_PAUSE: Duration = Duration::from_millis(10);
/// The shortest and longest time between two tries to bind a broken listener again.
const REBIND: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What an error of accept(2) asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The queue is empty: wait for readiness.
    Empty,
    /// That one connection is lost: go on.
    Lost,
    /// Go on after a short pause.
    Refused,
    /// Out of file descriptors or memory: pause by a timer.
    Shortage,
    /// This socket will never accept again.
    Broken,
}

/// Why a turn of accepting stopped early.
enum Halt {
    /// A limit is reached, for which clients wait.
    Full(Full),
    Error(Errno),
}

fn judge(error: Errno) -> Verdict {
    match error {
        Errno::AGAIN => Verdict::Empty,
        Errno::PERM => Verdict::Refused,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => Verdict::Shortage,
        Errno::INVAL | Errno::BADF | Errno::NOTSOCK => Verdict::Broken,
        // EINTR, ECONNABORTED, EPROTO, ENETDOWN, ENETUNREACH, EHOSTUNREACH, EHOSTDOWN, ENONET, ENOPROTOOPT,
        // EOPNOTSUPP, and what a future kernel may say of a connection that didn't come to be.
        _ => Verdict::Lost,
    }
}

/// Accepts until the socket is retired, and closes it then. Siblings may accept from it meanwhile.
pub async fn run(shared: Arc<SharedSocket>, worker: Rc<Worker>) {
    let seat = Arc::clone(&worker.seat);
    accept_until_retired(&shared, worker).await;
    seat.close(&shared);
}

/// Binds the socket again whenever it breaks.
async fn accept_until_retired(shared: &Arc<SharedSocket>, worker: Rc<Worker>) {
    let Some(mut socket) = shared.get() else { return };
    let address = socket.address.clone();
    let mut acceptor = Acceptor::new(Arc::clone(shared), worker);
    let mut backoff = Backoff::new(REBIND.0, REBIND.1);
    let mut bound_at = Instant::now();
    while let Err(error) = acceptor.accept_from(&socket).await {
        if bound_at.elapsed() > REBIND.1 {
            backoff.reset();
        }
        // A predecessor that stops has ended its listening, and is about to say that this process is to stop as well.
        while socket.is_lent() {
            if acceptor.pause(FULL_PAUSE).await > Stage::Serving {
                return;
            }
        }
        shared.replace(None);
        drop(socket);
        let broken = acceptor.listener.mark_broken();
        let (listener, error) = (acceptor.listener.name.clone(), std::io::Error::from(error));
        tracing::error!(%listener, %address, %error, "listener broke; binding it again");
        socket = loop {
            let delay = backoff.next_delay(&mut acceptor.worker.rng.borrow_mut());
            if acceptor.pause(delay).await > Stage::Serving {
                return;
            }
            match bind_again(&address, &shared.options()) {
                Ok(bound) => break Arc::new(bound),
                Err(error) => tracing::warn!(%listener, "{error}"),
            }
        };
        shared.replace(Some(Arc::clone(&socket)));
        drop(broken);
        bound_at = Instant::now();
        tracing::info!(%listener, %address, "listener is bound again");
    }
}

/// Accepts from one socket.
pub struct Acceptor {
    shared: Arc<SharedSocket>,
    /// The one that the socket belonged to at the last turn.
    listener: Arc<Listener>,
    worker: Rc<Worker>,
    /// Of the socket.
    drain: Drain,
    /// Connections accepted so far.
    taken: u64,
    /// Connections lost in a row.
    lost: usize,
    /// The next pause while something is short.
    shortage: Duration,
}

impl Acceptor {
    #[must_use]
    pub fn new(shared: Arc<SharedSocket>, worker: Rc<Worker>) -> Self {
        let (listener, drain) = (shared.listener(), shared.drain());
        Self { shared, listener, worker, drain, taken: 0, lost: 0, shortage: SHORTAGE_PAUSE.0 }
    }

    /// `Ok` once it is retired and with the queue emptied; an error if the socket is broken.
    async fn accept_from(&mut self, socket: &ListenSocket) -> Result<(), Errno> {
        let watched = self.watch(socket).await?;
        let mut drain = self.drain.clone();
        let mut stop = pin!(drain.reached(Stage::Draining));
        while let (Some(watched), Stage::Serving) = (&watched, self.drain.stage()) {
            let mut ready = tokio::select! {
                biased;
                () = stop.as_mut() => break,
                ready = watched.readable() => ready.map_err(|_| Errno::INVAL)?,
            };
            match self.accept_some(socket) {
                Ok(()) => tokio::task::yield_now().await,
                Err(Halt::Error(Errno::AGAIN)) => ready.clear_ready(),
                // A sibling has ended the listening in place of this worker, which was stuck when that came.
                Err(_) if self.drain.stage() > Stage::Serving => break,
                Err(halt) => self.after(halt).await?,
            }
        }
        // Another one may go on with the socket at once; see `watch`.
        drop(watched);
        if socket.is_passed_on() {
            return Ok(());
        }
        // The clients that the kernel has connected already are served; those that come later are refused by it, also
        // where the first ones have to wait for room.
        let queued = || sys::accept_queue(socket).map_or(u64::MAX, |queue| queue.length.into());
        let (last, until) = if self.shared.lingers() {
            (u64::MAX, Instant::now() + LINGER)
        } else {
            (self.taken.saturating_add(queued()), Instant::now())
        };
        while self.drain.stage() < Stage::Aborting {
            let is_done = self.take_queue(socket).await || self.taken >= last;
            if is_done && Instant::now() >= until {
                break;
            }
            // They wait for room, as they would have without the end.
            tokio::time::sleep(FULL_PAUSE).await;
        }
        Ok(())
    }

    /// The socket, to wait for its clients; `None` if it is retired before that can be. The kernel watches a descriptor
    /// once for each thread, and where an operator has a listener take clients again, the acceptor from before may not
    /// have come to its end yet.
    async fn watch<'s>(&mut self, socket: &'s ListenSocket) -> Result<Option<AsyncFd<BorrowedFd<'s>>>, Errno> {
        loop {
            match sys::watch(socket.as_fd(), Interest::READABLE) {
                Err(Errno::EXIST) if self.pause(FULL_PAUSE).await > Stage::Serving => return Ok(None),
                Err(Errno::EXIST) => {}
                watched => return watched.map(Some),
            }
        }
    }

    /// Accepts what waits; whether nothing is left. It may be interrupted by a lack of room or of file descriptors.
    pub async fn take_queue(&mut self, socket: &ListenSocket) -> bool {
        if socket.is_passed_on() {
            return true;
        }
        for _ in 0..TURNS {
            match self.accept_some(socket) {
                Ok(()) => tokio::task::yield_now().await,
                // Nobody may be there to wait for it.
                Err(Halt::Full(_)) => return !socket.has_waiting(),
                Err(Halt::Error(error)) => return judge(error) != Verdict::Shortage,
            }
        }
        false
    }

    /// Accepts a turn's worth; `Ok` if there may be more.
    fn accept_some(&mut self, socket: &ListenSocket) -> Result<(), Halt> {
        self.listener = self.shared.listener();
        let listener = Arc::clone(&self.listener);
        let gate = &listener.gate;
        // For what is asked before there is a client: a turn is short.
        let begun = if gate.waits() { clock::nanos(Instant::now()) } else { 0 };
        for _ in 0..ACCEPTS_PER_TURN {
            // Nobody waits, so that nothing is taken either. A broken socket has to say so itself.
            if gate.waits() && socket.is_quiet() {
                return Err(Halt::Error(Errno::AGAIN));
            }
            // Who may refuse must hold nothing for a client that isn't there: another worker's would be refused.
            let early = gate.before_accept(begun).map_err(Halt::Full)?;
            match socket.accept() {
                Ok((client, address)) => self.judge_client(client, address, early),
                Err(error) if judge(error) == Verdict::Lost => {
                    self.listener.metrics.accept_error(name_of(error));
                    self.lost += 1;
                    if self.lost >= LOST_PER_TURN {
                        self.lost = 0;
                        return Ok(());
                    }
                }
                Err(error) => return Err(Halt::Error(error)),
            }
        }
        Ok(())
    }

    fn judge_client(&mut self, client: Stream, address: ClientAddr, early: Early<'_>) {
        (self.lost, self.shortage) = (0, SHORTAGE_PAUSE.0);
        self.taken += 1;
        let accepted = Instant::now();
        let now = clock::nanos(accepted);
        let admitted = if self.listener.config.accept_proxy.is_some() {
            // Who it is, its first bytes will say.
            early.admit_unknown(now)
        } else {
            early.admit(address, now)
        };
        match admitted {
            Ok(permit) => self.serve(client, address, permit, accepted),
            Err(refusal) => self.refuse(client, address, refusal, accepted),
        }
    }

    fn serve(&self, client: Stream, address: ClientAddr, permit: Permit, accepted: Instant) {
        let listener = Arc::clone(&self.listener);
        self.worker.place(Arrival { client, address, listener, permit, place: None, accepted });
    }

    /// Ends a client that isn't served, before any backend hears of it.
    fn refuse(&self, client: Stream, address: ClientAddr, refusal: Refusal, accepted: Instant) {
        if self.listener.gate.refuses_by_fin() {
            client.close();
        } else {
            drop(client);
        }
        let listener = Arc::clone(&self.listener);
        Record::new(address, listener, accepted, &self.worker).finish(CloseReason::of_refusal(refusal));
    }

    /// Pauses as the halt asks for; an error only if the socket is broken.
    async fn after(&mut self, halt: Halt) -> Result<(), Errno> {
        let error = match halt {
            Halt::Error(error) => error,
            Halt::Full(full) => {
                if self.listener.gate.waits_for_descriptors(full.why) {
                    self.say_shortage("as many sessions run as the file descriptor limit carries");
                } else {
                    self.listener.gate.delay(full.why);
                }
                let retry = full.retry_in.map_or(FULL_PAUSE, Duration::from_nanos);
                self.pause(retry.min(FULL_PAUSE)).await;
                return Ok(());
            }
        };
        self.listener.metrics.accept_error(name_of(error));
        match judge(error) {
            Verdict::Broken => return Err(error),
            Verdict::Shortage => {
                self.say_shortage(&format!("can't accept: {}", std::io::Error::from(error)));
                self.pause(self.shortage).await;
                self.shortage = (self.shortage * 2).min(SHORTAGE_PAUSE.1);
            }
            Verdict::Refused => {
                self.pause(REFUSED_PAUSE).await;
            }
            Verdict::Empty | Verdict::Lost => {}
        }
        Ok(())
    }

    fn say_shortage(&self, what: &str) {
        if self.worker.shortage.is_due(Instant::now()) {
            let sessions = self.listener.gate.process().active();
            let listener = &self.listener.name;
            tracing::warn!(%listener, sessions, "{what}; clients wait; raise the limit (LimitNOFILE, ulimit -n)");
        }
    }

    /// Waits, but not longer than the socket serves.
    async fn pause(&mut self, span: Duration) -> Stage {
        tokio::select! {
            () = self.drain.reached(Stage::Draining) => {}
            () = tokio::time::sleep(span) => {}
        }
        self.drain.stage()
    }
}

fn name_of(error: Errno) -> &'static str {
    match error {
        Errno::INTR => "EINTR",
        Errno::CONNABORTED => "ECONNABORTED",
        Errno::PROTO => "EPROTO",
        Errno::NETDOWN => "ENETDOWN",
        Errno::NETUNREACH => "ENETUNREACH",
        Errno::HOSTUNREACH => "EHOSTUNREACH",
        Errno::HOSTDOWN => "EHOSTDOWN",
        Errno::NONET => "ENONET",
        Errno::NOPROTOOPT => "ENOPROTOOPT",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::PERM => "EPERM",
        Errno::MFILE => "EMFILE",
        Errno::NFILE => "ENFILE",
        Errno::NOBUFS => "ENOBUFS",
        Errno::NOMEM => "ENOMEM",
        Errno::INVAL => "EINVAL",
        Errno::BADF => "EBADF",
        Errno::NOTSOCK => "ENOTSOCK",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_accept_has_its_verdict() {
        for (error, verdict) in [
            (Errno::AGAIN, Verdict::Empty),
            (Errno::INTR, Verdict::Lost),
            (Errno::CONNABORTED, Verdict::Lost),
            (Errno::PROTO, Verdict::Lost),
            (Errno::HOSTDOWN, Verdict::Lost),
            (Errno::PERM, Verdict::Refused),
            (Errno::MFILE, Verdict::Shortage),
            (Errno::NFILE, Verdict::Shortage),
            (Errno::NOBUFS, Verdict::Shortage),
            (Errno::NOMEM, Verdict::Shortage),
            (Errno::INVAL, Verdict::Broken),
            (Errno::BADF, Verdict::Broken),
            (Errno::NOTSOCK, Verdict::Broken),
        ] {
            assert_eq!(judge(error), verdict, "{error:?}");
            assert!(error == Errno::AGAIN || name_of(error) != "other", "{error:?} has a name in the metrics");
        }
    }
}
