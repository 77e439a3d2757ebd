//! Refuses request heads that two readers could understand differently, before the HTTP library sees them.
//!
//! The library takes a bare line feed for the end of a line, drops a `Content-Length` that stands beside a
//! `Transfer-Encoding`, and merges equal `Content-Length`s: each is how one request is smuggled inside another past
//! somebody who reads it differently. The guard looks at each byte that comes in, and where it finds such a thing
//! it puts a NUL, which is valid nowhere in a head; so the library answers 400 and closes, in its order.
//!
//! Invariant: it reads heads only. After a head that announces a body it looks at nothing more, because `routes`
//! lets such a connection end with its answer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose input is guarded.
pub struct Guarded<S> {
    stream: S,
    guard: Guard,
}

impl<S> Guarded<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, guard: Guard::default() }
    }

    /// Whether a head has begun and not ended.
    pub fn is_within_head(&self) -> bool {
        matches!(self.guard.at, At::LineStart | At::Line | At::Return) && !self.guard.is_before_head()
    }

    /// Whether the client may have sent, or be sending, what nobody will read.
    pub fn has_unread(&self) -> bool {
        matches!(self.guard.at, At::Body | At::Poisoned) || self.is_within_head()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.guard.look_at(&mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

const LENGTH: &[u8] = b"content-length";
const ENCODING: &[u8] = b"transfer-encoding";

#[derive(Debug, Default)]
struct Guard {
    at: At,
    line: Line,
    head: Head,
}

/// Where the next byte belongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    LineStart,
    Line,
    /// After a carriage return.
    Return,
    Body,
    /// After something that is refused.
    Poisoned,
}

/// Of the head so far.
#[derive(Debug, Default)]
struct Head {
    has_request_line: bool,
    lengths: usize,
    encodings: usize,
    has_body: bool,
}

/// Of the header line so far.
#[derive(Debug, Default)]
struct Line {
    len: usize,
    /// The start of the name in lower case, with room for one byte more than the names that matter.
    name: [u8; ENCODING.len() + 1],
    name_len: usize,
    has_colon: bool,
    /// The value has a digit that isn't zero.
    is_nonzero: bool,
}

/// A head that is refused.
struct Refused;

impl Guard {
    fn is_before_head(&self) -> bool {
        !self.head.has_request_line && self.line.len == 0
    }

    fn look_at(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if matches!(self.at, At::Body | At::Poisoned) {
                return;
            }
            self.at = self.step(*byte).unwrap_or_else(|Refused| {
                *byte = 0;
                At::Poisoned
            });
        }
    }

    fn step(&mut self, byte: u8) -> Result<At, Refused> {
        match (self.at, byte) {
            (At::Return, b'\n') => self.end_line(),
            // A bare CR, a bare LF, a line that would continue the one before.
            (At::Return, _) | (_, b'\n') | (At::LineStart, b' ' | b'\t') => Err(Refused),
            (_, b'\r') => Ok(At::Return),
            (_, byte) => {
                self.line.push(byte);
                Ok(At::Line)
            }
        }
    }

    fn end_line(&mut self) -> Result<At, Refused> {
        let line = std::mem::take(&mut self.line);
        let head = &mut self.head;
        if line.len == 0 {
            // Empty lines before a request line are allowed.
            let has_body = std::mem::take(head).has_body;
            return Ok(if has_body { At::Body } else { At::LineStart });
        }
        if !head.has_request_line {
            head.has_request_line = true;
            return Ok(At::LineStart);
        }
        match &line.name[..line.name_len] {
            LENGTH => {
                head.lengths += 1;
                head.has_body |= line.is_nonzero;
            }
            ENCODING => {
                head.encodings += 1;
                head.has_body = true;
            }
            _ => {}
        }
        if head.lengths + head.encodings > 1 { Err(Refused) } else { Ok(At::LineStart) }
    }
}

impl Line {
    fn push(&mut self, byte: u8) {
        self.len += 1;
        if self.has_colon {
            self.is_nonzero |= matches!(byte, b'1'..=b'9');
        } else if byte == b':' {
            self.has_colon = true;
        } else if let Some(place) = self.name.get_mut(self.name_len) {
            *place = byte.to_ascii_lowercase();
            self.name_len += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the guard lets through, fed in pieces of each size in turn, which must not matter.
    fn guarded(input: &str) -> (Vec<u8>, At) {
        let feed = |size| {
            let mut guard = Guard::default();
            let mut bytes = input.as_bytes().to_vec();
            bytes.chunks_mut(size).for_each(|piece| guard.look_at(piece));
            (bytes, guard.at)
        };
        let whole = feed(input.len());
        for size in 1..input.len() {
            assert_eq!(feed(size), whole, "in pieces of {size}: {input:?}");
        }
        whole
    }

    #[test]
    fn plain_requests_pass_untouched() {
        for input in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 00\r\n\r\nGET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length-Not: 5\r\nX: Content-Length: 5\r\nTransfer-Encodings: b\r\n\r\n",
        ] {
            assert_eq!(guarded(input), (input.as_bytes().to_vec(), At::LineStart), "{input:?}");
        }
    }

    #[test]
    fn a_body_is_not_looked_at() {
        for input in [
            "GET / HTTP/1.1\r\ncontent-LENGTH:5\r\n\r\n\n\n\n\n\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\n\n0\n\n",
        ] {
            assert_eq!(guarded(input), (input.as_bytes().to_vec(), At::Body), "{input:?}");
        }
    }

    #[test]
    fn what_can_be_misread_gets_a_nul() {
        // The bar is where the NUL must be, instead of the byte after it.
        for input in [
            "GET / HTTP/1.1|\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a|\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n|\n",
            "|\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r|b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n| folded\r\n\r\n",
            "GET / HTTP/1.1\r\n|\tfolded\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 0\r|\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r|\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r|\n\r\n",
            "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r|\n\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r|\n\r\n",
            "GET / HTTP/1.1\r\n\r\nGET /second HTTP/1.1|\n\r\n",
        ] {
            let (before, after) = input.split_once('|').unwrap();
            let expected = format!("{before}\0{}", &after[1..]);
            let (bytes, at) = guarded(&format!("{before}{after}"));
            assert_eq!((String::from_utf8(bytes).unwrap(), at), (expected, At::Poisoned));
        }
    }
}
