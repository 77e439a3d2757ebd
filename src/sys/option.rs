//! Socket options that rustix doesn't offer.
//!
//! Owns one wrapper for each option, with the privileges that it needs; no policy. Numbers are Linux's, from `libc`.

use rustix::io::Errno;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd};

/// Lets connect(2) choose the port of a socket that is bound to an address with port 0, so that sockets to different
/// peers may share one. Source: `IP_BIND_ADDRESS_NO_PORT` in ip(7); of IPv6 sockets too.
pub fn set_bind_address_no_port<Fd: AsFd>(socket: Fd) -> Result<(), Errno> {
    set(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Sends and receives through this interface alone; of one that isn't there: `ENODEV`. Source: `SO_BINDTODEVICE` in
/// socket(7); since Linux 5.7 it needs no privilege.
pub fn bind_to_device<Fd: AsFd>(socket: Fd, interface: &str) -> Result<(), Errno> {
    set_bytes(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, interface.as_bytes())
}

/// Has a listening socket found by no new client, though it listens: it is bound to an interface that there isn't. Who
/// has begun to connect comes into its queue. Source: `SO_BINDTOIFINDEX` in Linux's net/core/sock.c, since 5.1; `EPERM`
/// for a socket that is bound to an interface already, without `CAP_NET_RAW`.
pub fn hide<Fd: AsFd>(socket: Fd) -> Result<(), Errno> {
    set(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, c_int::MAX)
}

/// Marks every packet, for rules of routing and of the firewall. Source: `SO_MARK` in socket(7); needs
/// `CAP_NET_ADMIN`, or since Linux 5.17 `CAP_NET_RAW`.
pub fn set_mark<Fd: AsFd>(socket: Fd, mark: u32) -> Result<(), Errno> {
    set(socket, libc::SOL_SOCKET, libc::SO_MARK, mark as c_int)
}

/// Allows to bind to addresses of other hosts. Source: `IP_TRANSPARENT` in ip(7); needs `CAP_NET_ADMIN` or
/// `CAP_NET_RAW`.
pub fn set_transparent<Fd: AsFd>(socket: Fd, is_ipv4: bool) -> Result<(), Errno> {
    if is_ipv4 {
        set(socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1)
    } else {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 1)
    }
}

/// Lets a connect wait for the first bytes and send them with the SYN, to peers that have given us a cookie. Source:
/// `TCP_FASTOPEN_CONNECT` in tcp(7). `EOPNOTSUPP` where `net.ipv4.tcp_fastopen` lacks bit 1.
pub fn set_fast_open_connect<Fd: AsFd>(socket: Fd) -> Result<(), Errno> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)
}

/// Takes bytes that come with a SYN, of at most `queue` clients whose handshake isn't complete yet. Source:
/// `TCP_FASTOPEN` in tcp(7); without effect where `net.ipv4.tcp_fastopen` lacks bit 2.
pub fn set_fast_open_queue<Fd: AsFd>(socket: Fd, queue: u32) -> Result<(), Errno> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, queue as c_int)
}

/// Keeps a connection out of the accept queue until its client has sent something, or for about so many seconds.
/// Source: `TCP_DEFER_ACCEPT` in tcp(7).
pub fn set_defer_accept<Fd: AsFd>(socket: Fd, seconds: u32) -> Result<(), Errno> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, seconds as c_int)
}

/// What [`set_fast_open_queue`] has set.
pub fn fast_open_queue<Fd: AsFd>(socket: Fd) -> Result<u32, Errno> {
    get(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN).map(|queue| queue as u32)
}

/// Whether [`set_defer_accept`] has set anything.
pub fn defers_accept<Fd: AsFd>(socket: Fd) -> Result<bool, Errno> {
    get(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT).map(|seconds| seconds > 0)
}

/// The interface that [`bind_to_device`] has set.
pub fn device<Fd: AsFd>(socket: Fd) -> Result<Option<String>, Errno> {
    let mut name = [0u8; libc::IFNAMSIZ];
    let mut length = name.len() as libc::socklen_t;
    let (socket, level, option) = (socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
    // SAFETY: the kernel writes at most `length` bytes to `name`, which is that long.
    let failed = unsafe { libc::getsockopt(socket, level, option, name.as_mut_ptr().cast(), &raw mut length) };
    if failed != 0 {
        return Err(last_error());
    }
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok((!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned()))
}

/// Whether [`set_transparent`] has been set.
pub fn is_transparent<Fd: AsFd>(socket: Fd, is_ipv4: bool) -> Result<bool, Errno> {
    let (level, option) =
        if is_ipv4 { (libc::IPPROTO_IP, libc::IP_TRANSPARENT) } else { (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT) };
    get(socket, level, option).map(|set| set != 0)
}

fn get<Fd: AsFd>(socket: Fd, level: c_int, option: c_int) -> Result<c_int, Errno> {
    let (mut value, mut length): (c_int, _) = (0, size_of::<c_int>() as libc::socklen_t);
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes to `value`, which is that long, and any bytes are a number.
    let failed = unsafe { libc::getsockopt(socket, level, option, (&raw mut value).cast(), &raw mut length) };
    if failed == 0 { Ok(value) } else { Err(last_error()) }
}

fn set<Fd: AsFd>(socket: Fd, level: c_int, option: c_int, value: c_int) -> Result<(), Errno> {
    set_bytes(socket, level, option, &value.to_ne_bytes())
}

fn set_bytes<Fd: AsFd>(socket: Fd, level: c_int, option: c_int, value: &[u8]) -> Result<(), Errno> {
    let (socket, length) = (socket.as_fd().as_raw_fd(), value.len() as libc::socklen_t);
    // SAFETY: the kernel reads at most `length` bytes from `value`, which is that long.
    let failed = unsafe { libc::setsockopt(socket, level, option, value.as_ptr().cast::<c_void>(), length) };
    if failed == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn an_interface_is_there_or_it_is_not() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(bind_to_device(&socket, "no-such-one"), Err(Errno::NODEV));
        assert_eq!(bind_to_device(&socket, "lo"), Ok(()));
    }

    #[test]
    fn a_socket_that_is_hidden_serves_whoever_came_before() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let before = TcpStream::connect(address).unwrap();
        hide(&socket).unwrap();
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        assert_eq!(socket.accept().unwrap().1, before.local_addr().unwrap());
    }

    #[test]
    fn what_needs_no_privilege_is_taken() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(set_bind_address_no_port(&socket), Ok(()));
        assert_eq!(set_fast_open_queue(&socket, 16), Ok(()));
        assert_eq!(set_defer_accept(&socket, 3), Ok(()));
        let (pair, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(set_defer_accept(&pair, 3).is_err(), "no option of a unix socket");
    }
}
