//! Listening sockets: binding them, one for each worker, and accepting from them.
//!
//! Owns the socket options that accepted sockets inherit (`TCP_NODELAY`, out-of-band data inline, reset at close), so
//! that a connection pays no call for them. TCP addresses get one `SO_REUSEPORT` socket a worker (`tcp`); a unix socket
//! is bound once and shared (`unix`). Binding and listening are two steps, so that what is bound can be given up again
//! before anybody could have connected. A socket that is bound again has the same options as the first; of a living
//! socket, some options can be changed. Sockets that somebody else has made are taken over (`adopt`); those that
//! outlive us are closed, but their listening isn't ended. What an accept error means is decided by
//! `session::acceptor`.

mod adopt;
mod tcp;
#[cfg(test)]
mod tests;
mod unix;

pub use adopt::{Given, Source, Unfit, adopt};

use super::stream::{Stream, reset_at_close};
use crate::config::Socket;
use crate::name::{BindAddr, ClientAddr, Endpoint};
use crate::sys::option;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, acceptfrom_with, shutdown, sockopt};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use unix::OwnedPath;

/// What a listening socket needs to know besides its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Connections that the kernel completes before they are accepted; the kernel's `somaxconn` caps it.
    pub backlog: u32,
    pub at_close: AtClose,
    /// For TCP sockets; what it says of unix sockets is `access`, with names made into numbers.
    pub socket: Socket,
    pub access: SocketAccess,
}

impl Options {
    /// Whether a living socket at `address` can't be given these options in the place of `self`: others must be bound.
    #[must_use]
    pub fn needs_new_socket(&self, wanted: &Self, address: &BindAddr) -> bool {
        let key = |options: &Self| {
            let Socket { interface, v6only, transparent, mptcp, .. } = &options.socket;
            (options.at_close, interface.clone(), *v6only, *transparent, *mptcp)
        };
        match address.0 {
            Endpoint::Tcp(_) => key(self) != key(wanted),
            Endpoint::Unix(_) => false,
        }
    }
}

/// Who may be on an address already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbours {
    /// Nobody: somebody there is an error.
    None,
    /// Sockets of this process, beside which others are bound.
    Own,
}

/// What closing an accepted socket does to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtClose {
    /// Resets it, unless it is closed by [`Stream::close`].
    Reset,
    /// Sends what is queued and a FIN, as usual.
    Finish,
}

/// Who may connect to a unix socket: whoever may write to its file. What isn't given is as the process's user, group
/// and umask make it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// The lowest nine bits of a file's mode.
    pub mode: Option<u32>,
    /// A user's number.
    pub owner: Option<u32>,
    /// A group's number.
    pub group: Option<u32>,
}

impl SocketAccess {
    /// The process's own user alone.
    pub const OWNER: Self = Self { mode: Some(0o600), owner: None, group: None };
}

/// A bound, nonblocking socket, which listens or is about to.
#[derive(Debug)]
pub struct ListenSocket {
    /// Removes the path of a unix socket once the last worker has closed it. Before the socket itself goes, which keeps
    /// the file's number from being another one's.
    path: Option<Arc<OwnedPath>>,
    socket: OwnedFd,
    /// Where it is really bound: a port of 0 is replaced by the kernel's choice.
    pub address: BindAddr,
    /// Another process listens on it after this one.
    kept: AtomicBool,
    /// Because this process, or one before it, has given it to the service manager's store.
    stored: AtomicBool,
    /// The predecessor's, until it is taken over.
    lent: AtomicBool,
    /// The successor accepts from it.
    passed_on: AtomicBool,
    /// Connections in the queue that came before the socket had our options.
    earlier: Option<Arc<AtomicU32>>,
}

impl ListenSocket {
    fn own(socket: OwnedFd, address: BindAddr, path: Option<Arc<OwnedPath>>) -> Self {
        Self {
            socket,
            address,
            path,
            kept: AtomicBool::new(false),
            stored: AtomicBool::new(false),
            lent: AtomicBool::new(false),
            passed_on: AtomicBool::new(false),
            earlier: None,
        }
    }

    /// Takes the next connection from the accept queue of a socket that was bound with [`AtClose::Reset`].
    pub fn accept(&self) -> Result<(Stream, ClientAddr), Errno> {
        let (socket, peer) = acceptfrom_with(&self.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
        if let Some(earlier) = &self.earlier {
            Self::make_up(&socket, earlier)?;
        }
        let client = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).map_or(ClientAddr::Unix, ClientAddr::tcp);
        let stream = match client {
            ClientAddr::Tcp(_) => Stream::accepted(socket),
            ClientAddr::Unix => Stream::unix(socket),
        };
        Ok((stream, client))
    }

    /// Sets what an accepted socket would have inherited, while there are some that came too early for that.
    fn make_up(socket: &OwnedFd, earlier: &AtomicU32) -> Result<(), Errno> {
        let counted = earlier.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if counted.is_ok() {
            reset_at_close(socket)?;
            sockopt::set_tcp_nodelay(socket, true)?;
            sockopt::set_socket_oobinline(socket, true).or_else(|error| match error {
                // MPTCP has no out-of-band data.
                Errno::NOPROTOOPT | Errno::OPNOTSUPP => Ok(()),
                error => Err(error),
            })?;
        }
        Ok(())
    }

    /// Gives a TCP socket to another user, who alone can bind others beside it then. Only root may.
    pub fn give_to(&self, user: u32) -> Result<(), Errno> {
        match self.address.0 {
            Endpoint::Tcp(_) => rustix::fs::fchown(&self.socket, Some(rustix::fs::Uid::from_raw(user)), None),
            Endpoint::Unix(_) => Ok(()),
        }
    }

    /// Another process listens on it from now on, be it at the same time or after this one: when this one closes it, it
    /// goes on listening, and the path of a unix socket stays.
    pub fn leave(&self) {
        self.kept.store(true, Ordering::Relaxed);
        if let Some(path) = &self.path {
            path.give_away();
        }
    }

    /// The service manager's store has it too, for a process after this one.
    pub fn leave_in_store(&self) {
        self.leave();
        self.stored.store(true, Ordering::Relaxed);
    }

    /// Whether the service manager has it because it was given to its store.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.stored.load(Ordering::Relaxed)
    }

    /// The store is about to have it no more, so that it is this process's to end.
    pub fn take_from_store(&self) {
        if self.stored.swap(false, Ordering::Relaxed) {
            self.be_the_last();
        }
    }

    fn be_the_last(&self) {
        self.kept.store(false, Ordering::Relaxed);
        if let Some(path) = &self.path {
            path.take_back();
        }
    }

    /// A successor accepts from it by now: this process leaves its queue alone.
    pub fn pass_on(&self) {
        self.leave();
        self.passed_on.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_passed_on(&self) -> bool {
        self.passed_on.load(Ordering::Relaxed)
    }

    /// The same socket once more, with the same path.
    pub fn twin(&self) -> Result<Self, Refused> {
        adopt::once_more(self)
    }

    /// The predecessor needs it no more: it is this process's alone, with the path of a unix socket, if it was its own.
    pub fn take_over(&self) {
        if self.lent.swap(false, Ordering::Relaxed) {
            self.be_the_last();
        }
    }

    /// Whether the predecessor, which may end its listening, hasn't left it to this process yet.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.lent.load(Ordering::Relaxed)
    }

    /// Whether another process listens on it after this one.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// Whether the path of a unix socket is removed when this process closes it, or would be but for the store.
    #[must_use]
    pub fn owns_path(&self) -> bool {
        self.path.as_ref().is_some_and(|path| self.is_stored() || !path.is_given_away())
    }

    /// Leaves new clients to other sockets of its address, or has the kernel refuse them, and goes on listening for
    /// those that are being connected. False, and nothing has changed, where the kernel can't, on a path, and where
    /// another process listens on it after this one.
    #[must_use]
    pub fn hide(&self) -> bool {
        matches!(self.address.0, Endpoint::Tcp(_)) && !self.is_kept() && option::hide(&self.socket).is_ok()
    }

    /// Has sockets that begin to listen at its address from now on be a group apart, or has them join this one's, as at
    /// first. The kernel spreads clients over a group, and looks in no other once it has found one. Source:
    /// `inet_reuseport_add_sock` in Linux's `net/ipv4/inet_hashtables.c`: a socket that begins to listen joins one that
    /// has `SO_REUSEPORT` just then.
    pub fn stand_apart(&self, apart: bool) -> Result<(), Errno> {
        sockopt::set_socket_reuseport(&self.socket, !apart)
    }

    /// Ends listening at once, whoever in this process still holds the socket: clients in its queue are reset. But for
    /// one that another process listens on after this one, of which nothing is ended.
    pub fn end(&self) {
        if !self.is_kept() {
            self.stop();
        }
    }

    /// Ends listening at once, also where another process has the socket.
    pub fn stop(&self) {
        // Of a socket that doesn't listen, it would be the end of reading for all clients that come when it listens
        // again.
        if sockopt::socket_acceptconn(&self.socket) == Ok(true) {
            let _ = shutdown(&self.socket, Shutdown::Read);
        }
    }

    /// Begins to listen; on a socket that listens already, it changes the backlog.
    pub fn listen(&self, backlog: u32) -> Result<(), BindError> {
        let listening = rustix::net::listen(&self.socket, backlog as i32);
        listening.map_err(|error| BindError { address: self.address.clone(), refused: error.into() })
    }

    /// Gives a listening socket other options, as far as they differ from those `before`; see
    /// [`Options::needs_new_socket`] for those that it can't be given.
    pub fn adjust(&self, before: &Options, wanted: &Options) -> Result<(), BindError> {
        self.adjust_idle(before, wanted)?;
        if before.backlog == wanted.backlog { Ok(()) } else { self.listen(wanted.backlog) }
    }

    /// The same for one that isn't to listen for now: the backlog is given when it does again.
    pub fn adjust_idle(&self, before: &Options, wanted: &Options) -> Result<(), BindError> {
        let adjusted = match &self.address.0 {
            Endpoint::Tcp(_) => tcp::adjust(&self.socket, &before.socket, &wanted.socket),
            Endpoint::Unix(path) if before.access != wanted.access => unix::give(path, wanted.access),
            Endpoint::Unix(_) => Ok(()),
        };
        adjusted.map_err(|refused| BindError { address: self.address.clone(), refused })
    }

    /// Whether a client waits in the accept queue; of a socket whose listening has ended, nobody does.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
        // Without an answer, the next accept has one.
        self.look().is_none_or(|seen| seen.contains(PollFlags::IN) && !seen.intersects(ended))
    }

    /// Whether an accept would find nobody, and nothing wrong either.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.look().is_some_and(|seen| seen.is_empty())
    }

    /// What there is to see at once; `None` if the kernel doesn't say.
    fn look(&self) -> Option<PollFlags> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN | PollFlags::RDHUP)];
        let answer = poll(&mut fds, Some(&Timespec::default()));
        answer.is_ok().then(|| fds[0].revents())
    }

    /// The bare socket, for those who accept by other means (the admin endpoint); the guard must outlive it.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, BindAddr, PathGuard) {
        (self.socket, self.address, PathGuard { _path: self.path })
    }
}

/// Keeps the path of a unix socket for as long as it lives.
#[derive(Debug)]
pub struct PathGuard {
    _path: Option<Arc<OwnedPath>>,
}

impl AsFd for ListenSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// An address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address}: {refused}; {}", refused.way_out())]
pub struct BindError {
    pub address: BindAddr,
    #[source]
    pub refused: Refused,
}

/// What the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    pub step: Step,
    pub error: Errno,
}

/// What of a listening socket was being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The socket itself and its address.
    Bind,
    /// An option, by its key.
    Option(&'static str),
}

impl Step {
    /// For `map_err`.
    fn refused(self) -> impl FnOnce(Errno) -> Refused {
        move |error| Refused { step: self, error }
    }
}

impl From<Errno> for Refused {
    fn from(error: Errno) -> Self {
        Self { step: Step::Bind, error }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Step::Option(key) = self.step {
            write!(f, "socket.{key}: ")?;
        }
        io::Error::from(self.error).fmt(f)
    }
}

impl Refused {
    fn way_out(self) -> &'static str {
        match (self.step, self.error) {
            (Step::Option("interface"), Errno::NODEV) => {
                "this host has no such interface: choose one that `ip link` lists"
            }
            (Step::Option("transparent" | "interface"), Errno::PERM) => {
                "it needs CAP_NET_ADMIN or CAP_NET_RAW: add one to AmbientCapabilities= and CapabilityBoundingSet= of \
                 the unit, or to runtime.keep_capabilities"
            }
            (Step::Option("owner" | "group"), Errno::PERM) => {
                "only root and CAP_CHOWN give files to other users; a group must be one of the process's own \
                 (SupplementaryGroups= in the unit)"
            }
            (Step::Option(_), _) => "remove the key",
            (_, Errno::ADDRINUSE) => "another process or listener has it: stop that one or choose another address",
            (_, Errno::ACCESS | Errno::PERM) => {
                "a port below 1024 needs root or CAP_NET_BIND_SERVICE (runtime.keep_capabilities = \
                 [\"net_bind_service\"]), a unix socket a directory that this user may write"
            }
            (_, Errno::ADDRNOTAVAIL) => {
                "no interface of this host has that address: choose one that `ip address` lists"
            }
            (_, Errno::NOENT | Errno::NOTDIR) => "the directory of the socket doesn't exist: create it",
            (_, Errno::AFNOSUPPORT) => "this host has that address family turned off: use the other one",
            (_, Errno::MFILE | Errno::NFILE) => {
                "file descriptors have run out: raise the limit (LimitNOFILE, ulimit -n)"
            }
            _ => "choose another address",
        }
    }
}

/// Binds `count` sockets to one address, which don't listen yet.
pub fn bind_all(
    address: &BindAddr,
    options: &Options,
    count: usize,
    neighbours: Neighbours,
) -> Result<Vec<ListenSocket>, BindError> {
    let bound = match &address.0 {
        Endpoint::Tcp(wanted) => tcp::bind_all(*wanted, options, count, neighbours).map(|sockets| {
            let bound = |(socket, actual)| ListenSocket::own(socket, tcp_address(actual), None);
            sockets.into_iter().map(bound).collect()
        }),
        Endpoint::Unix(path) => unix::bind_all(path, options, count).map(|(sockets, guard)| {
            let bound = |socket| ListenSocket::own(socket, address.clone(), Some(Arc::clone(&guard)));
            sockets.into_iter().map(bound).collect()
        }),
    };
    bound.map_err(|refused| BindError { address: address.clone(), refused })
}

/// Binds one more socket to an address that other workers of this process already listen on, and listens.
pub fn bind_again(address: &BindAddr, options: &Options) -> Result<ListenSocket, BindError> {
    let bound = match &address.0 {
        Endpoint::Tcp(wanted) => tcp::bind_one(*wanted, options).map(|socket| (socket, None)),
        Endpoint::Unix(path) => unix::bind_all(path, options, 1).and_then(|(mut sockets, guard)| {
            let socket = sockets.pop().ok_or(Refused::from(Errno::IO))?;
            Ok((socket, Some(guard)))
        }),
    };
    let (socket, path) = bound.map_err(|refused| BindError { address: address.clone(), refused })?;
    let bound = ListenSocket::own(socket, address.clone(), path);
    bound.listen(options.backlog)?;
    Ok(bound)
}

fn tcp_address(address: SocketAddr) -> BindAddr {
    BindAddr(Endpoint::Tcp(address))
}
