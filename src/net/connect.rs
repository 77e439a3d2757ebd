//! One attempt to connect to a backend.
//!
//! Owns the nonblocking connect and the verdict on whose fault a failure is; the time limit and the next attempt
//! are the session's business. The set-up reactor watches the socket only until the connect is decided.

use super::stream::Stream;
use crate::metrics::ConnectErrorReason;
use crate::name::{BackendAddr, Endpoint};
use crate::sys;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, getsockname, socket_with};
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;

/// A unix socket with a full accept queue can't be waited for by readiness; it is tried again this often.
const UNIX_RETRY: Duration = Duration::from_millis(10);

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectError(pub Errno);

impl ConnectError {
    /// Whether this process or host lacks something; such an error says nothing about the backend.
    #[must_use]
    pub fn is_ours(self) -> bool {
        self.reason().is_ours()
    }

    /// Whether no other backend could be connected to either.
    #[must_use]
    pub fn affects_all_backends(self) -> bool {
        matches!(self.reason(), ConnectErrorReason::NoFd | ConnectErrorReason::NoMemory)
    }

    #[must_use]
    pub fn reason(self) -> ConnectErrorReason {
        match self.0 {
            Errno::CONNREFUSED | Errno::NOENT => ConnectErrorReason::Refused,
            Errno::TIMEDOUT => ConnectErrorReason::Timeout,
            Errno::HOSTUNREACH | Errno::HOSTDOWN => ConnectErrorReason::Unreachable,
            Errno::CONNRESET | Errno::CONNABORTED | Errno::PIPE => ConnectErrorReason::Reset,
            Errno::MFILE | Errno::NFILE => ConnectErrorReason::NoFd,
            Errno::ADDRNOTAVAIL => ConnectErrorReason::NoPort,
            Errno::NOBUFS | Errno::NOMEM => ConnectErrorReason::NoMemory,
            Errno::NETUNREACH | Errno::NETDOWN | Errno::PERM | Errno::ACCESS => ConnectErrorReason::NoRoute,
            _ => ConnectErrorReason::Other,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from(self.0).fmt(f)
    }
}

impl From<Errno> for ConnectError {
    fn from(error: Errno) -> Self {
        Self(error)
    }
}

/// Connects a nonblocking socket; waits as long as the kernel does, so the caller sets the limit.
pub async fn connect(address: &BackendAddr, keepalive: Option<Duration>) -> Result<Stream, ConnectError> {
    match &address.0 {
        Endpoint::Tcp(address) => {
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let mut socket = open(family)?;
            sockopt::set_tcp_nodelay(&socket, true)?;
            sockopt::set_socket_oobinline(&socket, true)?;
            if let Some(idle) = keepalive {
                set_keepalive(&socket, idle)?;
            }
            match rustix::net::connect(&socket, address) {
                Ok(()) => {}
                Err(Errno::INPROGRESS | Errno::INTR) => socket = decided(socket).await?,
                Err(error) => return Err(error.into()),
            }
            // Not before: a probe or an attempt that is given up is none of the backend's business.
            not_itself(Stream::new(socket)?, address)
        }
        Endpoint::Unix(path) => {
            let address = SocketAddrUnix::new(&**path)?;
            loop {
                let socket = open(AddressFamily::UNIX)?;
                match rustix::net::connect(&socket, &address) {
                    Ok(()) => return Ok(Stream::unix(socket)),
                    Err(Errno::AGAIN) => drop(socket),
                    Err(error) => return Err(error.into()),
                }
                tokio::time::sleep(UNIX_RETRY).await;
            }
        }
    }
}

/// Lets the kernel find a peer that died while the connection was idle: it probes after `idle` without a sign of life
/// and gives up after [`give_up_after`]. A peer that dies with data in flight is found by the relay, by the same bound:
/// `TCP_USER_TIMEOUT` would find it too, but it also ends living peers that keep their window closed for so long.
pub fn set_keepalive<Fd: AsFd>(socket: Fd, idle: Duration) -> rustix::io::Result<()> {
    let idle = idle.max(Duration::from_secs(1));
    let interval = (idle / PROBES).max(Duration::from_secs(1));
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, idle)?;
    sockopt::set_tcp_keepintvl(&socket, interval)?;
    sockopt::set_tcp_keepcnt(&socket, PROBES)
}

/// When a peer that answers nothing counts as dead: after twice the keepalive time.
#[must_use]
pub fn give_up_after(keepalive: Duration) -> Duration {
    keepalive * 2
}

/// Keepalive probes before the kernel gives up.
const PROBES: u32 = 4;

fn open(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
}

/// With nobody listening on one of this host's own addresses, a connect whose local port happens to be the wanted
/// port meets itself, and would echo: that is a refusal.
fn not_itself(stream: Stream, wanted: &SocketAddr) -> Result<Stream, ConnectError> {
    let local = getsockname(&stream).and_then(SocketAddr::try_from);
    if local.is_ok_and(|local| local == *wanted) { Err(Errno::CONNREFUSED.into()) } else { Ok(stream) }
}

async fn decided(socket: OwnedFd) -> Result<OwnedFd, ConnectError> {
    let watched = sys::watch(socket, Interest::WRITABLE)?;
    // Fails only when the runtime shuts down, and this task with it.
    watched.writable().await.map_err(|_| Errno::CANCELED)?.retain_ready();
    let socket = watched.into_inner();
    sockopt::socket_error(&socket)??;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::bind;
    use std::net::{Ipv4Addr, TcpListener};

    #[tokio::test(flavor = "current_thread")]
    async fn who_listens_is_connected_to_and_who_does_not_refuses() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = BackendAddr(Endpoint::Tcp(listener.local_addr().unwrap()));
        assert!(connect(&address, Some(Duration::from_secs(60))).await.is_ok());
        drop(listener);
        let error = connect(&address, None).await.unwrap_err();
        assert_eq!((error.reason(), error.is_ours()), (ConnectErrorReason::Refused, false));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_socket_that_met_itself_is_a_refusal() {
        let socket = open(AddressFamily::INET).unwrap();
        bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let own = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
        // A simultaneous open with itself: how such a connection comes about, made certain.
        let started = rustix::net::connect(&socket, &own);
        assert!(matches!(started, Ok(()) | Err(Errno::INPROGRESS)));
        let stream = Stream::new(decided(socket).await.unwrap()).unwrap();
        assert_eq!(not_itself(stream, &own).err(), Some(ConnectError(Errno::CONNREFUSED)));
    }

    #[test]
    fn what_this_host_lacks_is_not_the_backends_fault() {
        for error in [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NETUNREACH, Errno::PERM] {
            assert!(ConnectError(error).is_ours(), "{error:?}");
        }
        for error in [Errno::CONNREFUSED, Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::CONNRESET, Errno::NOENT] {
            assert!(!ConnectError(error).is_ours(), "{error:?}");
        }
    }
}
