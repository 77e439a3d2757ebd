//! A connected stream that protocols can be spoken over: hyper, rustls, or plain reads and writes.
//!
//! Owns the adapter between a [`Stream`] and tokio's I/O traits, the bound on what is read, and the quiet end of such
//! a conversation. The relay has no use for it: a session's sockets are watched by its engine. As with every stream,
//! dropping it resets; only [`AsyncStream::finish`] ends it in order.

use super::stream::Stream;
use crate::sys;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg};
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf};

/// How long, and for how many bytes, [`AsyncStream::finish`] reads on: enough for what was under way.
const FINISH_TIME: Duration = Duration::from_millis(100);
const FINISH_BYTES: usize = 64 << 10;

/// A stream that the current runtime watches, and that gives out a bounded number of bytes.
#[derive(Debug)]
pub struct AsyncStream {
    socket: AsyncFd<OwnedFd>,
    /// Bytes that may still be read.
    left: usize,
}

/// The other side has sent more than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many bytes")]
pub struct TooMuch;

impl AsyncStream {
    /// Gives out `most` bytes at most; more of them are [`TooMuch`]. Fails where the runtime can't watch the socket.
    pub fn new(stream: Stream, most: usize) -> Result<Self, Errno> {
        let socket = sys::watch(stream.into_socket(), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, left: most })
    }

    /// Ends in order: sends a FIN, takes what the peer has still under way, and closes. A socket that is closed with
    /// bytes unread resets its peer instead, which fills logs; so a peer that goes on sending gets that after all.
    pub async fn finish(mut self) {
        if rustix::net::shutdown(self.socket.get_ref(), Shutdown::Write).is_ok() {
            self.left = FINISH_BYTES;
            let read_on = async {
                let mut buffer = [0; 4 << 10];
                while self.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
            };
            // Not more than an attempt: who doesn't end by then is left.
            let _ = tokio::time::timeout(FINISH_TIME, read_on).await;
        }
        // Of which family it is makes no difference to a close.
        Stream::unix(self.socket.into_inner()).close();
    }
}

impl AsyncRead for AsyncStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buffer.remaining().min(self.left);
        if room == 0 && buffer.remaining() > 0 {
            return Poll::Ready(Err(io::Error::other(TooMuch)));
        }
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            let tried = ready.try_io(|socket| {
                let piece = buffer.initialize_unfilled_to(room);
                recv(socket.get_ref(), piece, RecvFlags::empty()).map(|(count, _)| count).map_err(io::Error::from)
            });
            match tried {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => {
                    let count = result?;
                    buffer.advance(count);
                    self.left -= count;
                    return Poll::Ready(Ok(()));
                }
                Err(_not_ready) => {}
            }
        }
    }
}

impl AsyncWrite for AsyncStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    /// rustls tries once to send the alert behind what else is queued.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.socket.poll_write_ready(cx))?;
            let tried = ready.try_io(|socket| {
                let mut nothing_else = SendAncillaryBuffer::default();
                sendmsg(socket.get_ref(), pieces, &mut nothing_else, SendFlags::NOSIGNAL).map_err(io::Error::from)
            });
            match tried {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_not_ready) => {}
            }
        }
    }

    /// Nothing is kept back here.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(self.socket.get_ref(), Shutdown::Write).map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{BackendAddr, Endpoint};
    use crate::net::connect::connect;
    use crate::net::origin::{Behalf, Origin};
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use tokio::io::AsyncWriteExt;

    async fn pair(most: usize) -> (AsyncStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = BackendAddr(Endpoint::Tcp(listener.local_addr().unwrap()));
        let stream = connect(&address, &Origin::default(), Behalf::Own).await.unwrap();
        (AsyncStream::new(stream, most).unwrap(), listener.accept().unwrap().0)
    }

    #[tokio::test]
    async fn it_reads_and_writes_what_is_not_there_yet() {
        let (mut near, mut far) = pair(1_000).await;
        let peer = std::thread::spawn(move || {
            far.read_exact(&mut [0; 4]).unwrap();
            far.write_all(b"pong").unwrap();
            far
        });
        near.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        near.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"pong");
        drop(peer.join().unwrap());
    }

    #[tokio::test]
    async fn no_more_is_read_than_was_allowed() {
        let (mut near, mut far) = pair(10).await;
        far.write_all(&[7; 100]).unwrap();
        let mut taken = Vec::new();
        let error = near.read_to_end(&mut taken).await.unwrap_err();
        assert_eq!((taken.len(), error.to_string()), (10, TooMuch.to_string()));
    }

    #[tokio::test]
    async fn it_finishes_in_order_even_with_bytes_unread_and_a_drop_resets() {
        let (near, mut far) = pair(1).await;
        far.write_all(&[7; 10_000]).unwrap();
        far.shutdown(std::net::Shutdown::Write).unwrap();
        near.finish().await;
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0, "an end of file, no reset");

        let (near, mut far) = pair(1).await;
        drop(near);
        assert_eq!(far.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_never_ends_is_not_waited_for() {
        let (near, mut far) = pair(1).await;
        let begun = tokio::time::Instant::now();
        near.finish().await;
        assert_eq!(begun.elapsed(), FINISH_TIME);
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
    }
}
