//! The bytes that we have to say ourselves on a connection, before the relay has it.

use super::stream::Stream;
use crate::sys;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendFlags, send};
use std::os::fd::AsFd;
use tokio::io::Interest;

/// Sends all of `bytes`, however few of them the socket takes at once; waits as long as that takes, so the caller sets
/// the limit. Fails with the socket's error, or where the runtime can't watch it.
pub async fn send_all(stream: &Stream, bytes: &[u8]) -> Result<(), Errno> {
    let left = send_some(stream, bytes)?;
    if left.is_empty() {
        return Ok(());
    }
    // Boxed, so that it takes no room where it isn't needed, which is nearly everywhere.
    Box::pin(send_rest(stream, left)).await
}

/// What the socket does not take just now.
fn send_some<'b>(stream: &Stream, mut bytes: &'b [u8]) -> Result<&'b [u8], Errno> {
    while !bytes.is_empty() {
        match retry_on_intr(|| send(stream, bytes, SendFlags::NOSIGNAL)) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::AGAIN) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

async fn send_rest(stream: &Stream, mut left: &[u8]) -> Result<(), Errno> {
    let watched = sys::watch(stream.as_fd(), Interest::WRITABLE)?;
    while !left.is_empty() {
        // Fails only when the runtime shuts down, and this task with it.
        let mut ready = watched.writable().await.map_err(|_| Errno::CANCELED)?;
        left = send_some(stream, left)?;
        if !left.is_empty() {
            ready.clear_ready();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt::set_socket_send_buffer_size;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    /// A stream whose buffer holds as little as the kernel lets it, and its other end.
    fn narrow() -> (Stream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        set_socket_send_buffer_size(&near, 1).unwrap();
        (Stream::unix(near.into()), far)
    }

    #[tokio::test]
    async fn all_of_it_goes_before_anything_else_through_a_buffer_that_takes_little_at_once() {
        let (near, mut far) = narrow();
        let bytes: Vec<u8> = (0..200_000_u32).map(|number| number as u8).collect();
        assert!(!send_some(&near, &vec![0; 100_000]).unwrap().is_empty(), "the buffer holds all of it");
        let reader = std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut byte = [0];
            // Byte by byte, so that the buffer is full nearly all the time.
            while far.read(&mut byte).unwrap() == 1 {
                seen.push(byte[0]);
            }
            seen
        });
        send_all(&near, &bytes).await.unwrap();
        send_all(&near, b"and then the client").await.unwrap();
        near.close();
        let seen = reader.join().unwrap();
        let behind = seen.len() - bytes.len() - 19;
        assert!(seen[..behind].iter().all(|byte| *byte == 0));
        assert!(seen[behind..].starts_with(&bytes) && seen.ends_with(b"and then the client"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_waited_for_as_long_as_the_caller_says() {
        let (near, mut far) = narrow();
        let bytes = vec![7; 1 << 20];
        let limit = Duration::from_secs(3);
        assert!(tokio::time::timeout(limit, send_all(&near, &bytes)).await.is_err());
        // It says so when there is nobody any more.
        far.write_all(b"unread").unwrap();
        drop(far);
        assert!(matches!(send_all(&near, &bytes).await, Err(Errno::PIPE | Errno::CONNRESET)));
    }
}
