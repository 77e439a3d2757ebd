//! The sockets that all three relays begin with, so that what differs is the mechanism and not an option.

use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

use crate::sys;

const BACKLOG: i32 = 4096;
/// Bound on the wait for the peer's acknowledgement before a reset throws away what is queued.
pub const LONGEST_FLUSH: Duration = Duration::from_secs(2);
/// How often something that announces itself with no event is looked at.
pub const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Accepted sockets inherit `TCP_NODELAY`.
pub fn listener(address: SocketAddrV4) -> Result<OwnedFd> {
    let socket = stream(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    net::bind(&socket, &address).with_context(|| format!("binding {address}"))?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

pub fn stream(flags: SocketFlags) -> Result<OwnedFd> {
    net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).context("making a socket")
}

/// What is passed on is passed on at once.
pub fn to_backend(flags: SocketFlags) -> Result<OwnedFd> {
    let socket = stream(flags)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    Ok(socket)
}

/// The close that follows will be a reset, and will throw away what is queued.
pub fn will_reset(socket: impl AsFd) {
    // It fails on a socket that is no longer one; then there is nothing to reset.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// Everything sent has been acknowledged, or will never be.
pub fn flushed(socket: impl AsFd) -> bool {
    sys::unacknowledged(socket).map_or(true, |bytes| bytes == 0)
}

pub fn would_block(error: Errno) -> bool {
    error == Errno::AGAIN || error == Errno::INTR
}
