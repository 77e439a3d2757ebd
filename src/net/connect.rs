//! One attempt to connect to a backend.
//!
//! Owns the nonblocking connect and the verdict on whose fault a failure is; the time limit and the next attempt
//! are the session's business, where it comes from is `origin`'s. The worker's runtime watches the socket only until
//! the connect is decided.

use super::origin::{Behalf, Origin, Source, open};
use super::stream::Stream;
use crate::metrics::ConnectErrorReason;
use crate::name::{BackendAddr, Endpoint};
use crate::sys;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketAddrUnix, getsockname};
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;
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
            Errno::ADDRNOTAVAIL | Errno::ADDRINUSE => ConnectErrorReason::NoPort,
            Errno::NOBUFS | Errno::NOMEM => ConnectErrorReason::NoMemory,
            // Besides what the name says: an interface that has gone; a family that is off, or of which the client has
            // no address; a source address from which no way leads there; options that the kernel doesn't have.
            Errno::NETUNREACH
            | Errno::NETDOWN
            | Errno::PERM
            | Errno::ACCESS
            | Errno::NODEV
            | Errno::AFNOSUPPORT
            | Errno::INVAL
            | Errno::PROTONOSUPPORT
            | Errno::NOPROTOOPT
            | Errno::OPNOTSUPP => ConnectErrorReason::NoRoute,
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
pub async fn connect(address: &BackendAddr, origin: &Origin, behalf: Behalf) -> Result<Stream, ConnectError> {
    match &address.0 {
        Endpoint::Tcp(address) if origin.is_plain() => {
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = open(family)?;
            sockopt::set_tcp_nodelay(&socket, true)?;
            sockopt::set_socket_oobinline(&socket, true)?;
            finish(socket, address, false).await
        }
        // Boxed, so that it takes no room where it isn't used.
        Endpoint::Tcp(address) => Box::pin(connect_from(origin, address, behalf)).await,
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

/// Tries what `origin` binds to, until something has a port left for this backend.
async fn connect_from(origin: &Origin, address: &SocketAddr, behalf: Behalf) -> Result<Stream, ConnectError> {
    let sources = origin.sources(address, behalf)?;
    let mut result = Err(ConnectError(Errno::ADDRNOTAVAIL));
    for (index, source) in sources.into_iter().enumerate() {
        if index > 0 {
            // That an address has no port left is found out by looking at all of them: others get their turn.
            tokio::task::yield_now().await;
        }
        result = connect_as(origin, source, address).await;
        if !matches!(result, Err(ConnectError(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE))) {
            break;
        }
        origin.spent(source, address);
    }
    result
}

async fn connect_as(origin: &Origin, source: Source, address: &SocketAddr) -> Result<Stream, ConnectError> {
    let socket = origin.open(address)?;
    origin.bind(&socket, source)?;
    finish(socket, address, origin.is_from_any_port()).await
}

/// Connects a socket that is made ready.
async fn finish(mut socket: OwnedFd, address: &SocketAddr, from_any_port: bool) -> Result<Stream, ConnectError> {
    let mut result = rustix::net::connect(&socket, address);
    if result == Err(Errno::INPROGRESS) {
        // On one host the handshake is over by now, and to ask is a sixth of the price of being told.
        result = rustix::net::connect(&socket, address);
    }
    while let Err(Errno::ALREADY | Errno::INPROGRESS | Errno::INTR) = result {
        socket = decided(socket).await?;
        result = rustix::net::connect(&socket, address);
    }
    result?;
    // Reset at close only from here on: an attempt that is given up at the last moment ends in order, and the
    // backend's log stays quiet.
    let stream = Stream::new(socket)?;
    if from_any_port || LOCAL_PORTS.contains(&address.port()) { not_itself(stream, address) } else { Ok(stream) }
}

/// The ports that the kernel gives to connecting sockets; all, where it doesn't say. Read once: the setting is the
/// host's, and hardly ever changes.
static LOCAL_PORTS: LazyLock<RangeInclusive<u16>> = LazyLock::new(|| {
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ports = setting.split_whitespace().map_while(|port| port.parse().ok());
    ports.next().unwrap_or(1)..=ports.next().unwrap_or(u16::MAX)
});

/// With nobody listening on one of this host's own addresses, a connect whose local port happens to be the wanted
/// port meets itself, and would echo: that is a refusal. It can't happen with a port that is never a local one.
fn not_itself(stream: Stream, wanted: &SocketAddr) -> Result<Stream, ConnectError> {
    let local = getsockname(&stream).and_then(SocketAddr::try_from);
    if local.is_ok_and(|local| local == *wanted) { Err(Errno::CONNREFUSED.into()) } else { Ok(stream) }
}

/// Waits until the kernel knows how the connect went; a second connect(2) tells.
async fn decided(socket: OwnedFd) -> Result<OwnedFd, ConnectError> {
    let watched = sys::watch(socket, Interest::WRITABLE)?;
    // Fails only when the runtime shuts down, and this task with it.
    watched.writable().await.map_err(|_| Errno::CANCELED)?.retain_ready();
    Ok(watched.into_inner())
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
        let (plain, own) = (Origin::default(), Behalf::Own);
        assert!(connect(&address, &plain, own).await.is_ok());
        drop(listener);
        let error = connect(&address, &plain, own).await.unwrap_err();
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
        let socket = decided(socket).await.unwrap();
        rustix::net::connect(&socket, &own).unwrap();
        let stream = Stream::new(socket).unwrap();
        assert_eq!(not_itself(stream, &own).err(), Some(ConnectError(Errno::CONNREFUSED)));
    }

    #[test]
    fn what_this_host_lacks_is_not_the_backends_fault() {
        for error in [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NETUNREACH, Errno::PERM] {
            assert!(ConnectError(error).is_ours(), "{error:?}");
        }
        for error in [Errno::ADDRINUSE, Errno::NODEV, Errno::AFNOSUPPORT, Errno::INVAL, Errno::NOPROTOOPT] {
            assert!(ConnectError(error).is_ours(), "{error:?}");
        }
        for error in [Errno::CONNREFUSED, Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::CONNRESET, Errno::NOENT] {
            assert!(!ConnectError(error).is_ours(), "{error:?}");
        }
    }
}
