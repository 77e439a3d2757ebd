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
