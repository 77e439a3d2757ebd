//! Listening sockets: binding them, one for each worker, and accepting from them.
//!
//! Owns the socket options that accepted sockets inherit (`TCP_NODELAY`, out-of-band data inline, reset at close), so
//! that a connection pays no call for them. TCP addresses get one `SO_REUSEPORT` socket a worker; a unix socket is
//! bound once and shared. What an accept error means is decided by `session::acceptor`.

use super::stream::{Stream, reset_at_close};
use crate::name::{BindAddr, ClientAddr, Endpoint};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, chmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with, bind, connect, getsockname, listen,
    socket_with, sockopt,
};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a listening socket needs to know besides its address.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Connections that the kernel completes before they are accepted; the kernel's `somaxconn` caps it.
    pub backlog: u32,
    pub access: SocketAccess,
    pub at_close: AtClose,
}

/// What closing an accepted socket does to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtClose {
    /// Resets it, unless it is closed by [`Stream::close`].
    Reset,
    /// Sends what is queued and a FIN, as usual.
    Finish,
}

/// Who may connect to a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketAccess {
    /// Whom the process's umask lets.
    Umask,
    /// This user alone (mode 0600).
    Owner,
}

/// A bound, listening, nonblocking socket.
#[derive(Debug)]
pub struct ListenSocket {
    socket: OwnedFd,
    /// Where it is really bound: a port of 0 is replaced by the kernel's choice.
    pub address: BindAddr,
    /// Removes the path of a unix socket once the last worker has closed it.
    path: Option<Arc<OwnedPath>>,
}

impl ListenSocket {
    /// Takes the next connection from the accept queue of a socket that was bound with [`AtClose::Reset`].
    pub fn accept(&self) -> Result<(Stream, ClientAddr), Errno> {
        let (socket, peer) = acceptfrom_with(&self.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
        let client = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).map_or(ClientAddr::Unix, ClientAddr::tcp);
        let stream = match client {
            ClientAddr::Tcp(_) => Stream::accepted(socket),
            ClientAddr::Unix => Stream::unix(socket),
        };
        Ok((stream, client))
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
#[error("can't listen on {address}: {}; {}", io::Error::from(*source), way_out(*source))]
pub struct BindError {
    pub address: BindAddr,
    #[source]
    pub source: Errno,
}

fn way_out(error: Errno) -> &'static str {
    match error {
        Errno::ADDRINUSE => "another process or listener has it: stop that one or choose another address",
        Errno::ACCESS | Errno::PERM => {
            "a port below 1024 needs root or CAP_NET_BIND_SERVICE, a unix socket a directory that this user may write"
        }
        Errno::ADDRNOTAVAIL => "no interface of this host has that address: choose one that `ip address` lists",
        Errno::NOENT | Errno::NOTDIR => "the directory of the socket doesn't exist: create it",
        Errno::AFNOSUPPORT => "this host has that address family turned off: use the other one",
        Errno::MFILE | Errno::NFILE => "file descriptors have run out: raise the limit (LimitNOFILE, ulimit -n)",
        _ => "choose another address",
    }
}

/// Binds `count` sockets to one address and listens on them.
pub fn bind_all(address: &BindAddr, options: &Options, count: usize) -> Result<Vec<ListenSocket>, BindError> {
    let fail = |source| BindError { address: address.clone(), source };
    match &address.0 {
        Endpoint::Tcp(wanted) => {
            refuse_to_share(*wanted).map_err(fail)?;
            let mut sockets = Vec::with_capacity(count);
            let mut actual = *wanted;
            for _ in 0..count {
                let socket = bind_tcp(actual, *options).map_err(fail)?;
                actual = bound_to(&socket).map_err(fail)?;
                sockets.push(ListenSocket { socket, address: BindAddr(Endpoint::Tcp(actual)), path: None });
            }
            Ok(sockets)
        }
        Endpoint::Unix(path) => {
            let socket = bind_unix(path, *options).map_err(fail)?;
            let guard = Arc::new(OwnedPath::of(path).map_err(fail)?);
            let clone = || {
                let socket = socket.try_clone().map_err(|error| fail(from_io(&error)))?;
                Ok(ListenSocket { socket, address: address.clone(), path: Some(Arc::clone(&guard)) })
            };
            (0..count).map(|_| clone()).collect()
        }
    }
}

/// Binds one more socket to an address that other workers of this process already listen on.
pub fn bind_again(address: &BindAddr, options: &Options) -> Result<ListenSocket, BindError> {
    let fail = |source| BindError { address: address.clone(), source };
    match &address.0 {
        Endpoint::Tcp(tcp) => {
            let socket = bind_tcp(*tcp, *options).map_err(fail)?;
            Ok(ListenSocket { socket, address: address.clone(), path: None })
        }
        Endpoint::Unix(path) => {
            let socket = bind_unix(path, *options).map_err(fail)?;
            let guard = Arc::new(OwnedPath::of(path).map_err(fail)?);
            Ok(ListenSocket { socket, address: address.clone(), path: Some(guard) })
        }
    }
}

/// `SO_REUSEPORT` would let a second instance take half of the first one's connections without a word; a bind
/// without it tells whether somebody is there.
fn refuse_to_share(address: SocketAddr) -> Result<(), Errno> {
    if address.port() == 0 {
        return Ok(());
    }
    let socket = open_tcp(address)?;
    bind(&socket, &address)
}

fn open_tcp(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // `[::]` serves IPv4 clients as well; they are shown with their IPv4 address.
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    Ok(socket)
}

fn bind_tcp(address: SocketAddr, options: Options) -> Result<OwnedFd, Errno> {
    let socket = open_tcp(address)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_oobinline(&socket, true)?;
    if options.at_close == AtClose::Reset {
        reset_at_close(&socket)?;
    }
    bind(&socket, &address)?;
    listen(&socket, options.backlog as i32)?;
    Ok(socket)
}

fn bound_to(socket: &OwnedFd) -> Result<SocketAddr, Errno> {
    SocketAddr::try_from(getsockname(socket)?)
}

fn bind_unix(path: &Path, options: Options) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    remove_stale(path, &address)?;
    let socket = open_unix()?;
    bind(&socket, &address)?;
    if options.access == SocketAccess::Owner {
        chmod(path, Mode::RUSR | Mode::WUSR)?;
    }
    listen(&socket, options.backlog as i32)?;
    Ok(socket)
}

fn open_unix() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
}

/// Removes the socket file of a process that is gone; never one that somebody listens on, or another kind of file.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), Errno> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket && connect(open_unix()?, address) == Err(Errno::CONNREFUSED) {
        fs::remove_file(path).map_err(|error| from_io(&error))?;
    }
    Ok(())
}

fn from_io(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The path of a socket that we have bound: removed on drop, unless another process has replaced it meanwhile.
#[derive(Debug)]
struct OwnedPath {
    path: PathBuf,
    inode: u64,
}

impl OwnedPath {
    fn of(path: &Path) -> Result<Self, Errno> {
        let inode = fs::symlink_metadata(path).map_err(|error| from_io(&error))?.ino();
        Ok(Self { path: path.to_owned(), inode })
    }
}

impl Drop for OwnedPath {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            // A file that can't be removed is found stale by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options = Options { backlog: 16, access: SocketAccess::Owner, at_close: AtClose::Reset };

    fn tcp(address: &str) -> BindAddr {
        BindAddr(Endpoint::Tcp(address.parse().unwrap()))
    }

    #[test]
    fn workers_share_the_port_that_the_kernel_chose() {
        let sockets = bind_all(&tcp("127.0.0.1:0"), &OPTIONS, 3).unwrap();
        assert!(sockets.iter().all(|socket| socket.address == sockets[0].address));
        assert_ne!(sockets[0].address, tcp("127.0.0.1:0"));
    }

    #[test]
    fn an_address_that_is_taken_is_never_shared() {
        let first = bind_all(&tcp("127.0.0.1:0"), &OPTIONS, 2).unwrap();
        let error = bind_all(&first[0].address, &OPTIONS, 2).unwrap_err();
        assert_eq!(error.source, Errno::ADDRINUSE);
        assert!(error.to_string().contains(&first[0].address.to_string()), "{error}");
    }

    #[test]
    fn a_socket_is_quiet_until_somebody_comes_or_it_breaks() {
        let socket = bind_all(&tcp("127.0.0.1:0"), &OPTIONS, 1).unwrap().remove(0);
        assert!(socket.is_quiet() && !socket.has_waiting());
        let BindAddr(Endpoint::Tcp(address)) = &socket.address else { panic!("not TCP") };
        let _client = std::net::TcpStream::connect(address).unwrap();
        assert!(!socket.is_quiet() && socket.has_waiting());
        socket.accept().unwrap();
        assert!(socket.is_quiet() && !socket.has_waiting());
        rustix::net::shutdown(&socket, rustix::net::Shutdown::Read).unwrap();
        assert!(!socket.is_quiet() && !socket.has_waiting(), "accept has to say what is wrong");
        assert!(socket.accept().is_err());
    }

    #[test]
    fn a_unix_socket_replaces_a_stale_file_but_no_living_one_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tide.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let address = BindAddr(Endpoint::Unix(path.as_path().into()));
        let living = bind_all(&address, &OPTIONS, 2).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(bind_all(&address, &OPTIONS, 1).unwrap_err().source, Errno::ADDRINUSE);
        drop(living);
        assert!(!path.exists());
    }
}
