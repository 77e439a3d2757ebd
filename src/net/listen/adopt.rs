//! Listening sockets that somebody else has made: the service manager, or the process before this one.
//!
//! Owns the look at what a descriptor is, the options that it gets, and how few or many of them become one for each
//! worker. Which listener a socket is for is the daemon's to say. Invariants: a socket that listens is never closed
//! here because there are more than workers; one whose address or kind isn't known is never taken; nothing is ended
//! that whoever gave it still needs.

use super::unix::OwnedPath;
use super::{AtClose, ListenSocket, Options, Refused, tcp};
use crate::config::Socket;
use crate::name::{BindAddr, Endpoint};
use crate::sys;
use crate::sys::option;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketType, getsockname, sockopt};
use std::ffi::OsStr;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};

/// A socket that listens, wherever it comes from.
#[derive(Debug)]
pub struct Given {
    socket: OwnedFd,
    /// Where it is bound.
    pub address: BindAddr,
}

/// Why a descriptor is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("it is no stream socket")]
    NoStream,
    #[error("it doesn't listen")]
    Deaf,
    #[error("it is neither a TCP socket nor a unix socket with a path")]
    Family,
    #[error("the kernel doesn't tell what it is: {0}")]
    Unknown(Errno),
}

/// Whose a socket is besides ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It keeps the socket for the next process, and the path of a unix socket as well.
    ServiceManager,
    /// A process before this one has given it to the service manager's store: see [`ListenSocket::take_from_store`].
    /// Whether the path of a unix socket is to be removed then.
    Store { owns_path: bool },
    /// It keeps both until they are ours alone: see [`ListenSocket::take_over`]. Whether it would have removed the path
    /// of a unix socket in the end.
    Predecessor { owns_path: bool },
}

impl Given {
    /// Looks at a descriptor that should listen.
    pub fn new(socket: OwnedFd) -> Result<Self, Unfit> {
        let socket = stream(socket)?;
        match sockopt::socket_acceptconn(&socket) {
            Ok(true) => Self::of(socket),
            Ok(false) => Err(Unfit::Deaf),
            Err(error) => Err(Unfit::Unknown(error)),
        }
    }

    /// Looks at a descriptor that need not listen yet.
    pub fn bound(socket: OwnedFd) -> Result<Self, Unfit> {
        Self::of(stream(socket)?)
    }

    fn of(socket: OwnedFd) -> Result<Self, Unfit> {
        let address = address_of(&getsockname(&socket).map_err(Unfit::Unknown)?).ok_or(Unfit::Family)?;
        Ok(Self { socket, address: BindAddr(address) })
    }

    /// Whether others can be bound at its address, as beside all TCP sockets that a process like this one makes.
    #[must_use]
    pub fn has_room_beside(&self) -> bool {
        matches!(self.address.0, Endpoint::Tcp(_)) && sockopt::socket_reuseport(&self.socket) == Ok(true)
    }

    /// Whether it could have been made for these options, as far as they can't be changed any more.
    #[must_use]
    pub fn suits(&self, options: &Options) -> bool {
        let Endpoint::Tcp(address) = self.address.0 else { return true };
        let wanted = &options.socket;
        let same = || {
            let interface = option::device(&self.socket)?;
            // Of any other address the kernel says that it is for IPv6 only, which it is.
            let takes_both = address.ip() == Ipv6Addr::UNSPECIFIED;
            let v6only = !takes_both || sockopt::ipv6_v6only(&self.socket)? == wanted.v6only;
            let transparent = option::is_transparent(&self.socket, address.is_ipv4())? == wanted.transparent;
            let protocol = tcp::is_of_protocol(&self.socket, options)?;
            Ok::<_, Errno>(interface.as_deref() == wanted.interface.as_deref() && v6only && transparent && protocol)
        };
        same().unwrap_or(false)
    }
}

/// The descriptor, if it is a stream socket.
fn stream(socket: OwnedFd) -> Result<OwnedFd, Unfit> {
    match sockopt::socket_type(&socket) {
        Ok(SocketType::STREAM) => Ok(socket),
        Ok(_) | Err(Errno::NOTSOCK) => Err(Unfit::NoStream),
        Err(error) => Err(Unfit::Unknown(error)),
    }
}

impl AsFd for Given {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Makes sockets that were bound to one address into at least one for each of `workers`, which listen if they did.
///
/// Where there are too few, several workers take from one accept queue, as they do from a unix socket's: sockets beside
/// them would have clients at once, whom nobody serves yet. Fails if an option can't be set.
pub fn adopt(
    given: Vec<Given>,
    source: Source,
    options: &Options,
    workers: usize,
) -> Result<Vec<ListenSocket>, Refused> {
    let mut sockets = Vec::with_capacity(given.len().max(workers));
    for each in given {
        sockets.push(take(each, source, options)?);
    }
    let count = sockets.len();
    for index in 0..workers.saturating_sub(count) {
        let Some(like) = sockets.get(index % count.max(1)) else { break };
        sockets.push(once_more(like)?);
    }
    Ok(sockets)
}

fn take(given: Given, source: Source, options: &Options) -> Result<ListenSocket, Refused> {
    let Given { socket, address } = given;
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    fcntl_setfl(&socket, fcntl_getfl(&socket)? | OFlags::NONBLOCK)?;
    let (mut path, mut earlier) = (None, None);
    match &address.0 {
        Endpoint::Tcp(_) => {
            let plain = options.at_close == AtClose::Reset && sockopt::socket_linger(&socket)?.is_none();
            tcp::prepare(&socket, options)?;
            let none = Socket { defer_accept: None, fast_open: None, ..options.socket.clone() };
            let (deferred, early) = (option::defers_accept(&socket)?, option::fast_open_queue(&socket)? > 0);
            let before = Socket { defer_accept: deferred.then_some(0), fast_open: early.then_some(0), ..none };
            tcp::adjust(&socket, &before, &options.socket)?;
            let waiting = sys::accept_queue(&socket).map_or(0, |queue| queue.length);
            earlier = (plain && waiting > 0).then(|| Arc::new(AtomicU32::new(waiting)));
        }
        Endpoint::Unix(file) => {
            if matches!(source, Source::Predecessor { owns_path: true } | Source::Store { owns_path: true }) {
                let lent = OwnedPath::of(file)?;
                lent.give_away();
                path = Some(Arc::new(lent));
            }
        }
    }
    let (kept, lent) = (AtomicBool::new(true), AtomicBool::new(matches!(source, Source::Predecessor { .. })));
    let stored = AtomicBool::new(matches!(source, Source::Store { .. }));
    let passed_on = AtomicBool::new(false);
    Ok(ListenSocket { path, socket, address, kept, stored, lent, passed_on, earlier })
}

/// Another descriptor of the same socket.
pub(super) fn once_more(like: &ListenSocket) -> Result<ListenSocket, Refused> {
    let socket = like.socket.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?;
    let (kept, lent) = (AtomicBool::new(like.is_kept()), AtomicBool::new(like.is_lent()));
    let (address, path, earlier) = (like.address.clone(), like.path.clone(), like.earlier.clone());
    let (stored, passed_on) = (AtomicBool::new(like.is_stored()), AtomicBool::new(false));
    Ok(ListenSocket { path, socket, address, kept, stored, lent, passed_on, earlier })
}

fn address_of(address: &SocketAddrAny) -> Option<Endpoint> {
    match address.address_family() {
        AddressFamily::INET | AddressFamily::INET6 => SocketAddr::try_from(address.clone()).ok().map(Endpoint::Tcp),
        AddressFamily::UNIX => {
            let address = SocketAddrUnix::try_from(address.clone()).ok()?;
            let path = Path::new(OsStr::from_bytes(address.path_bytes()?));
            Some(Endpoint::Unix(path.into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BindError, Neighbours, SocketAccess};
    use super::*;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn options() -> Options {
        let (at_close, socket) = (AtClose::Reset, Socket::default());
        Options { backlog: 16, at_close, socket, access: SocketAccess::OWNER }
    }

    fn bind_all(address: &BindAddr, options: &Options, count: usize) -> Result<Vec<ListenSocket>, BindError> {
        let bound = super::super::bind_all(address, options, count, Neighbours::None)?;
        bound.iter().try_for_each(|socket| socket.listen(options.backlog))?;
        Ok(bound)
    }

    fn given(socket: impl Into<OwnedFd>) -> Given {
        Given::new(socket.into()).unwrap()
    }

    #[test]
    fn only_what_listens_is_taken() {
        let why = |socket: OwnedFd| Given::new(socket).unwrap_err();
        assert_eq!(why(UdpSocket::bind("127.0.0.1:0").unwrap().into()), Unfit::NoStream);
        assert_eq!(why(std::fs::File::open("/dev/null").unwrap().into()), Unfit::NoStream);
        assert_eq!(why(UnixStream::pair().unwrap().0.into()), Unfit::Deaf);
        let deaf = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        assert_eq!(why(deaf), Unfit::Deaf);
        let name = rustix::net::SocketAddrUnix::new_abstract_name(b"tidegate-adopt-test").unwrap();
        let nameless = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&nameless, &name).unwrap();
        rustix::net::listen(&nameless, 1).unwrap();
        assert_eq!(why(nameless), Unfit::Family);
    }

    #[test]
    fn whoever_came_before_the_options_is_reset_like_all_others() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let early = TcpStream::connect(address).unwrap();
        let sockets = adopt(vec![given(listener)], Source::ServiceManager, &options(), 2).unwrap();
        assert_eq!(sockets.len(), 2, "one for each worker");
        let late = TcpStream::connect(address).unwrap();
        for (mut client, socket) in [early, late].into_iter().zip(&sockets) {
            let (stream, _) = socket.accept().unwrap();
            assert!(sockopt::tcp_nodelay(&stream).unwrap() && sockopt::socket_oobinline(&stream).unwrap());
            drop(stream);
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        assert_eq!(sockets[1].accept().unwrap_err(), Errno::AGAIN, "nonblocking");
    }

    #[test]
    fn what_another_process_keeps_goes_on_listening() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let elsewhere = listener.try_clone().unwrap();
        let sockets = adopt(vec![given(listener)], Source::ServiceManager, &options(), 1).unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"tide").unwrap();
        sockets.iter().for_each(ListenSocket::end);
        drop(sockets);
        elsewhere.set_nonblocking(false).unwrap();
        let (mut stream, _) = elsewhere.accept().unwrap();
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"tide");
    }

    #[test]
    fn more_workers_share_sockets_and_fewer_lose_none() {
        let predecessor = Source::Predecessor { owns_path: false };
        let address = BindAddr(Endpoint::Tcp("127.0.0.1:0".parse().unwrap()));
        for (before, workers, expected) in [(1, 3, 3), (3, 1, 3), (2, 2, 2)] {
            let first = bind_all(&address, &options(), before).unwrap();
            let candidates = first.into_iter().map(|socket| given(socket.into_parts().0)).collect::<Vec<_>>();
            assert!(candidates.iter().all(|given| given.suits(&options())));
            let sockets = adopt(candidates, predecessor, &options(), workers).unwrap();
            assert_eq!(sockets.len(), expected, "{before} for {workers}");
            let inodes: std::collections::BTreeSet<_> =
                sockets.iter().map(|socket| rustix::fs::fstat(socket).unwrap().st_ino).collect();
            assert_eq!(inodes.len(), before, "the queues are those that were there");
        }
    }

    #[test]
    fn the_path_of_a_unix_socket_is_removed_by_its_last_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tide.sock");
        let address = BindAddr(Endpoint::Unix(path.as_path().into()));
        let first = bind_all(&address, &options(), 1).unwrap().remove(0);
        let copy = given(first.as_fd().try_clone_to_owned().unwrap());
        assert!(first.owns_path());
        first.leave();
        drop(first);
        assert!(path.exists(), "it is no longer the first one's");
        let owner = Source::Predecessor { owns_path: true };
        let again = given(copy.as_fd().try_clone_to_owned().unwrap());
        let failed = adopt(vec![again], owner, &options(), 1).unwrap();
        failed.iter().for_each(ListenSocket::end);
        drop(failed);
        UnixStream::connect(&path).expect("it still listens: nobody has taken over");
        let second = adopt(vec![copy], owner, &options(), 2).unwrap();
        second.iter().for_each(ListenSocket::take_over);
        drop(second);
        assert!(!path.exists());
        let managed = UnixListener::bind(&path).unwrap();
        drop(adopt(vec![given(managed)], Source::ServiceManager, &options(), 1).unwrap());
        assert!(path.exists(), "the service manager removes its own");
    }

    #[test]
    fn what_can_not_be_changed_any_more_is_seen() {
        let made = |socket: Socket| {
            let address = BindAddr(Endpoint::Tcp("[::]:0".parse().unwrap()));
            let all = bind_all(&address, &Options { socket, ..options() }, 1).unwrap();
            given(all.into_iter().next().unwrap().into_parts().0)
        };
        let plain = made(Socket::default());
        let v6only = Socket { v6only: true, ..Socket::default() };
        let on_lo = Socket { interface: Some("lo".into()), ..Socket::default() };
        assert!(plain.suits(&Options { backlog: 7, ..options() }));
        for other in [v6only, on_lo] {
            let options = Options { socket: other.clone(), ..options() };
            assert!(!plain.suits(&options), "{other:?}");
            assert!(made(other).suits(&options));
        }
        let later = Socket { defer_accept: Some(3), fast_open: Some(5), ..Socket::default() };
        assert!(plain.suits(&Options { socket: later.clone(), ..options() }));
        let options = Options { socket: later, ..options() };
        let sockets = adopt(vec![plain], Source::ServiceManager, &options, 1).unwrap();
        assert_eq!(option::fast_open_queue(&sockets[0]), Ok(5));
        sockets[0].accept().map_or_else(|error| assert_eq!(error, Errno::AGAIN), |_| panic!("nobody has come"));
    }
}
