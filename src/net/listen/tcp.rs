//! Listening TCP sockets, with the options of the listener.
//!
//! Owns the order: what decides who else may be bound there comes before the bind, what concerns clients before the
//! listen, which is the caller's. MPTCP falls back to TCP where the kernel hasn't got it; anything else that the kernel
//! refuses is an error, with the key that asked for it.

use super::{AtClose, Neighbours, Options, Refused, Step};
use crate::config::Socket;
use crate::net::origin::{open, open_mptcp};
use crate::net::stream::reset_at_close;
use crate::sys::option;
use rustix::io::Errno;
use rustix::net::{AddressFamily, bind, getsockname, ipproto, sockopt};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// One socket a worker, each with the address where it is bound: a port of 0 is chosen once for all.
pub(super) fn bind_all(
    wanted: SocketAddr,
    options: &Options,
    count: usize,
    neighbours: Neighbours,
) -> Result<Vec<(OwnedFd, SocketAddr)>, Refused> {
    if neighbours == Neighbours::None {
        refuse_to_share(wanted, options)?;
    }
    // A socket whose port was chosen by the kernel loses it when it stops listening; those beside it keep theirs.
    let chosen = bind_one(wanted, options)?;
    let actual = SocketAddr::try_from(getsockname(&chosen)?)?;
    let first = if wanted.port() == 0 { bind_one(actual, options)? } else { chosen };
    let rest = (1..count).map(|_| bind_one(actual, options));
    std::iter::once(Ok(first)).chain(rest).take(count).map(|socket| Ok((socket?, actual))).collect()
}

/// Gives a listening socket what differs in these options.
pub(super) fn adjust(socket: &OwnedFd, before: &Socket, wanted: &Socket) -> Result<(), Refused> {
    if before.defer_accept != wanted.defer_accept {
        let seconds = wanted.defer_accept.unwrap_or(0);
        option::set_defer_accept(socket, seconds).map_err(Step::Option("defer_accept").refused())?;
    }
    if before.fast_open != wanted.fast_open {
        let queue = wanted.fast_open.unwrap_or(0);
        option::set_fast_open_queue(socket, queue).map_err(Step::Option("fast_open").refused())?;
    }
    Ok(())
}

/// One socket beside others.
pub(super) fn bind_one(address: SocketAddr, options: &Options) -> Result<OwnedFd, Refused> {
    let socket = open_for(address, options)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    prepare(&socket, options)?;
    bind(&socket, &address)?;
    let none = Socket { defer_accept: None, fast_open: None, ..options.socket.clone() };
    adjust(&socket, &none, &options.socket)?;
    Ok(socket)
}

/// What accepted sockets inherit.
pub(super) fn prepare(socket: &OwnedFd, options: &Options) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(socket, true)?;
    let is_mptcp = options.socket.mptcp;
    // MPTCP has no out-of-band data.
    sockopt::set_socket_oobinline(socket, true).or_else(|error| if is_mptcp { Ok(()) } else { Err(error) })?;
    match options.at_close {
        AtClose::Reset => reset_at_close(socket),
        AtClose::Finish => Ok(()),
    }
}

/// `SO_REUSEPORT` would let a second instance take half of the first one's connections without a word; a bind
/// without it tells whether somebody is there.
fn refuse_to_share(address: SocketAddr, options: &Options) -> Result<(), Refused> {
    if address.port() == 0 {
        return Ok(());
    }
    let socket = open_for(address, options)?;
    Ok(bind(&socket, &address)?)
}

/// With all that makes a difference to the bind.
fn open_for(address: SocketAddr, options: &Options) -> Result<OwnedFd, Refused> {
    let wanted = &options.socket;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = if wanted.mptcp { open_mptcp(family)? } else { open(family)? };
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // Otherwise `[::]` serves IPv4 clients as well; they are shown with their IPv4 address.
        sockopt::set_ipv6_v6only(&socket, wanted.v6only)?;
    }
    if let Some(interface) = &wanted.interface {
        option::bind_to_device(&socket, interface).map_err(Step::Option("interface").refused())?;
    }
    if wanted.transparent {
        let set = |is_ipv4| option::set_transparent(&socket, is_ipv4);
        set(address.is_ipv4()).map_err(Step::Option("transparent").refused())?;
    }
    Ok(socket)
}

/// Whether two sockets of this kind would be of the same protocol: MPTCP falls back to TCP where there is none.
pub(super) fn is_of_protocol(socket: &OwnedFd, options: &Options) -> Result<bool, Errno> {
    let is_mptcp = |socket: &OwnedFd| Ok(sockopt::socket_protocol(socket)? == Some(ipproto::MPTCP));
    let wanted = options.socket.mptcp && is_mptcp(&open_mptcp(AddressFamily::INET)?)?;
    Ok(is_mptcp(socket)? == wanted)
}
