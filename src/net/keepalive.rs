//! Finding a peer that died without a word.
//!
//! Owns the kernel's keepalive options and the bound that follows from them. The relay sets them only on sockets
//! that have become quiet: a short session pays for none of it, neither the calls nor the kernel's timers.

use super::stream::{Family, Stream};
use rustix::net::sockopt;
use std::time::Duration;

/// Probes before the kernel gives up, and the fewest where the times are so short that they don't fit. Many, since
/// whole bursts of them get lost: sockets that became quiet together are probed together, and beyond
/// `net.core.netdev_max_backlog` (1,000) of them at once a local link drops the rest.
const PROBES: (u32, u32) = (8, 3);
/// The kernel counts in whole seconds; other times are rounded up as they are set.
const SECOND: Duration = Duration::from_secs(1);

/// How long a session's peers may be silent before they are probed: at most `keepalive`, and not the same time for
/// all, so that sessions that became quiet together aren't probed together. `dice` is below 1,024 and random.
#[must_use]
pub fn idle_before_probe(keepalive: Duration, dice: u32) -> Duration {
    keepalive / 2 + keepalive * dice / 2_048
}

/// Lets the kernel find a peer that died while the connection was idle: it probes `idle` after the last sign of life,
/// however long ago that was when this is called, and gives up `give_up` after it. A peer that dies with data in
/// flight is found by the relay, by the same bound: `TCP_USER_TIMEOUT` would find it too, but it also ends living
/// peers that keep their window closed for so long. A unix peer can't die without a word.
pub fn watch_over(stream: &Stream, idle: Duration, give_up: Duration) -> rustix::io::Result<()> {
    if stream.family() == Family::Unix {
        return Ok(());
    }
    let idle = idle.max(SECOND);
    let rest = give_up.saturating_sub(idle);
    let interval = (rest / PROBES.0).max(SECOND);
    let probes = (rest.as_secs() / interval.as_secs()) as u32;
    sockopt::set_tcp_keepintvl(stream, interval)?;
    sockopt::set_tcp_keepcnt(stream, probes.clamp(PROBES.1, PROBES.0))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn probing_begins_between_half_and_all_of_the_time_and_the_kernel_gives_up_no_earlier_than_the_relay() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Stream::new(near.into()).unwrap();
        for keepalive in [1, 2, 3, 10, 60, 3_600, 32_767].map(Duration::from_secs) {
            for dice in [0, 1, 500, 1_023] {
                let (idle, give_up) = (idle_before_probe(keepalive, dice), give_up_after(keepalive));
                assert!(idle >= keepalive / 2 && idle < keepalive, "{idle:?} of {keepalive:?}");
                watch_over(&stream, idle, give_up).unwrap();
                let begins = sockopt::tcp_keepidle(&stream).unwrap();
                let probes = sockopt::tcp_keepcnt(&stream).unwrap();
                let ends = begins + sockopt::tcp_keepintvl(&stream).unwrap() * probes;
                assert!(begins >= idle && begins < idle + SECOND, "{begins:?} for {idle:?}");
                assert!(ends >= give_up && ends < give_up + SECOND * (PROBES.0 + 1), "{ends:?} for {give_up:?}");
                assert!((PROBES.1..=PROBES.0).contains(&probes), "{probes} probes");
            }
        }
    }
}
