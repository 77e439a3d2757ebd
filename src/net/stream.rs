//! A connected stream socket that ends in a reset unless somebody says otherwise.
//!
//! Owns the choice between FIN and RST at close. The socket lingers for zero seconds from its first moment, so that
//! whatever closes it (a drop, a panic, a cancelled task, the kernel after kill -9) resets the peer: a connection that
//! was cut can't look finished by accident. Only [`Stream::close`] ends it in order. Unix sockets know no reset: their
//! peer sees an end of file either way. Next: `relay`.

use rustix::net::sockopt::{set_socket_linger, socket_error};
use rustix::net::{Shutdown, getpeername};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A nonblocking, connected stream socket.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    family: Family,
}

/// What kind of socket it is, where that makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Tcp,
    Unix,
}

impl Stream {
    /// A TCP socket of our own making.
    pub fn new(socket: OwnedFd) -> rustix::io::Result<Self> {
        reset_at_close(&socket)?;
        Ok(Self { socket, family: Family::Tcp })
    }

    /// A TCP socket from accept(2) on a listener that [`reset_at_close`] was called for; it has inherited that.
    #[must_use]
    pub fn accepted(socket: OwnedFd) -> Self {
        Self { socket, family: Family::Tcp }
    }

    /// A unix socket.
    #[must_use]
    pub fn unix(socket: OwnedFd) -> Self {
        Self { socket, family: Family::Unix }
    }

    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether a reset or a time-out has ended the connection, also where its error has been reported already.
    ///
    /// Before our own FIN only: a connection that both sides have ended in order looks the same.
    #[must_use]
    pub fn is_torn_down(&self) -> bool {
        // The kernel forgets the peer's address with the connection. Source: inet_getname() in Linux.
        self.family == Family::Tcp && getpeername(&self.socket).is_err()
    }

    /// Ends in order: what is queued is still sent, then a FIN if none was sent before.
    pub fn close(self) {
        // It fails only on what is no socket; then there is nobody to end anything for.
        let _ = set_socket_linger(&self.socket, None);
    }

    /// The socket alone, which still resets at close.
    pub(super) fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Passes on the peer's FIN and goes on reading.
    pub fn send_fin(&self) -> rustix::io::Result<()> {
        rustix::net::shutdown(&self.socket, Shutdown::Write)
    }

    /// The pending error of the socket, which this call consumes.
    pub fn take_error(&self) -> rustix::io::Result<()> {
        socket_error(&self.socket)?
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Makes closing a socket, or one accepted from it, reset the connection and drop what is queued.
pub fn reset_at_close<Fd: AsFd>(socket: Fd) -> rustix::io::Result<()> {
    set_socket_linger(socket, Some(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Stream::new(near.into()).unwrap(), listener.accept().unwrap().0)
    }

    #[test]
    fn dropping_resets_and_closing_finishes() {
        let (dropped, mut peer) = pair();
        drop(dropped);
        assert_eq!(peer.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);

        let (closed, mut peer) = pair();
        closed.close();
        assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn accepted_sockets_inherit_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        reset_at_close(&listener).unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(Stream::accepted(listener.accept().unwrap().0.into()));
        assert_eq!(peer.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
