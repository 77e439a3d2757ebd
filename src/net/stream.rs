//! A connected stream socket that ends in a reset unless somebody says otherwise.
//!
//! Owns the choice between FIN and RST at close: dropping a [`Stream`], by a panic, a cancelled task or an early
//! return, resets the peer, so that a cut connection can't look finished by accident; only [`Stream::close`] ends
//! it in order. Unix sockets know no reset: their peer sees an end of file either way. Next: `relay`.

use rustix::net::Shutdown;
use rustix::net::sockopt::{set_socket_linger, socket_error};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A nonblocking, connected stream socket.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    on_drop: OnDrop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnDrop {
    Reset,
    Close,
}

impl Stream {
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, on_drop: OnDrop::Reset }
    }

    /// Ends in order: what is queued is still sent, then a FIN if none was sent before.
    pub fn close(mut self) {
        self.on_drop = OnDrop::Close;
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

impl Drop for Stream {
    fn drop(&mut self) {
        if self.on_drop == OnDrop::Reset {
            // It fails only on what is no socket; closing is all that is left to do then anyway.
            let _ = set_socket_linger(&self.socket, Some(Duration::ZERO));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Stream::new(near.into()), listener.accept().unwrap().0)
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
}
