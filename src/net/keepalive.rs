//! Finding a peer that died without a word.
//!
//! Owns the kernel's keepalive options and the bound that follows from them. The relay sets them only on sockets
//! that have become quiet: a short session pays for none of it, neither the calls nor the kernel's timers.

use super::stream::{Family, Stream};
use rustix::net::sockopt;
use std::time::Duration;

/// Probes before the kernel gives up.
const PROBES: u32 = 4;

/// Lets the kernel find a peer that died while the connection was idle: it probes `idle` after the last sign of life,
/// however long ago that was when this is called, and gives up after [`give_up_after`]. A peer that dies with data in
/// flight is found by the relay, by the same bound: `TCP_USER_TIMEOUT` would find it too, but it also ends living
/// peers that keep their window closed for so long. A unix peer can't die without a word.
pub fn watch_over(stream: &Stream, idle: Duration) -> rustix::io::Result<()> {
    if stream.family() == Family::Unix {
        return Ok(());
    }
    let idle = idle.max(Duration::from_secs(1));
    let interval = (idle / PROBES).max(Duration::from_secs(1));
    sockopt::set_tcp_keepintvl(stream, interval)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    // In this order: only the second looks at how long the peer has been silent already. Source:
    // tcp_sock_set_keepidle_locked() in Linux.
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, idle)
}

/// When a peer that answers nothing counts as dead: after twice the keepalive time.
#[must_use]
pub fn give_up_after(keepalive: Duration) -> Duration {
    keepalive * 2
}
