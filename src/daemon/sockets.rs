//! What this host, its kernel and the process's privileges allow of the sockets that the config asks for.
//!
//! Owns the sentences about it, with the way out of each. Tries every option on a socket of its own that goes nowhere.
//! Decides what ends a start: an interface, an address, a mark, or a client's own address that can't be had, since
//! traffic would leave by another way than it should. Fast open and MPTCP only make things quicker: without them the
//! start goes on, with a warning. What a listening socket can't have shows when it is bound.

use super::privileges::Identity;
use super::state_file;
use crate::config::{Config, Origin, Owner, Socket};
use crate::net::listen::SocketAccess;
use crate::sys::option;
use crate::sys::user::{self, Database};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, bind, ipproto, socket_with};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// Something that can't be had here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    pub severity: Severity,
    /// The key and a sentence.
    pub text: String,
}

/// The bit of `net.ipv4.tcp_fastopen` that lets servers take bytes with a SYN.
const OF_SERVERS: u32 = 2;

/// What follows from it for a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It goes on without.
    Warning,
    /// It ends.
    Refusal,
    /// It ends, but another user's might not.
    Privilege,
}

/// Everything that this process can't have, in the order of the config.
#[must_use]
pub fn lacks(config: &Config) -> Vec<Lack> {
    let mut lacks = Vec::new();
    if let Err(text) = Identity::of(&config.runtime.privileges) {
        lacks.push(Lack { severity: Severity::Refusal, text });
    }
    for listener in &config.listeners {
        of_listener(&format!("listeners.{}.socket", listener.name), &listener.socket, &mut lacks);
    }
    for pool in &config.pools {
        of_origin(&format!("pools.{}.connect", pool.name), &pool.origin, &mut lacks);
    }
    if let Some(obstacle) = state_file::path_of(config).and_then(|path| state_file::obstacle(&path)) {
        lacks.push(Lack { severity: Severity::Warning, text: format!("runtime.state_file: {obstacle}") });
    }
    lacks
}

/// Who may connect to a listener's unix sockets, in numbers; the key and a sentence if a name has none.
pub fn access(socket: &Socket) -> Result<SocketAccess, String> {
    let number = |key: &str, owner: &Option<Owner>, database| match owner {
        None => Ok(None),
        Some(Owner::Number(number)) => Ok(Some(*number)),
        Some(Owner::Name(name)) => match user::number_of(database, name) {
            Ok(Some(number)) => Ok(Some(number)),
            Ok(None) => Err(format!("{key}: this host doesn't know {name}; create it, or write a number")),
            Err(error) => Err(format!("{key}: {name}: {}; write a number", io::Error::from(error))),
        },
    };
    Ok(SocketAccess {
        mode: socket.mode,
        owner: number("owner", &socket.owner, Database::Users)?,
        group: number("group", &socket.group, Database::Groups)?,
    })
}

fn of_listener(at: &str, socket: &Socket, lacks: &mut Vec<Lack>) {
    let mut add = |severity, text: String| lacks.push(Lack { severity, text: format!("{at}.{text}") });
    if let Some(interface) = &socket.interface {
        try_interface(interface, &mut add);
    }
    if socket.transparent {
        try_transparent(&mut add);
    }
    if let Err(text) = access(socket) {
        add(Severity::Refusal, text);
    }
    if let (Some(_), Some(setting)) = (socket.fast_open, fast_open_setting())
        && setting & OF_SERVERS == 0
    {
        let wanted = setting | OF_SERVERS;
        let text = format!(
            "fast_open: net.ipv4.tcp_fastopen = {setting} keeps it off for servers, so that clients connect as usual; \
             set it to {wanted}"
        );
        add(Severity::Warning, text);
    }
    if socket.mptcp {
        try_mptcp(&mut add);
    }
}

fn of_origin(at: &str, origin: &Origin, lacks: &mut Vec<Lack>) {
    let mut add = |severity, text: String| lacks.push(Lack { severity, text: format!("{at}.{text}") });
    for address in &origin.source_address {
        try_source(address, &mut add);
    }
    if let Some(interface) = &origin.interface {
        try_interface(interface, &mut add);
    }
    if let Some(mark) = origin.mark {
        judge("mark", tcp().and_then(|socket| option::set_mark(socket, mark)), &mut add, |error| match error {
            Errno::PERM => {
                "a mark needs CAP_NET_ADMIN (CAP_NET_RAW does, since Linux 5.17): add it to AmbientCapabilities= and \
                 CapabilityBoundingSet= of the unit, or to runtime.keep_capabilities"
            }
            _ => "remove the key",
        });
    }
    if origin.transparent {
        try_transparent(&mut add);
    }
    if origin.fast_open && tcp().and_then(option::set_fast_open_connect) == Err(Errno::OPNOTSUPP) {
        let setting = fast_open_setting().unwrap_or_default();
        let text = format!(
            "fast_open: net.ipv4.tcp_fastopen = {setting} keeps it off for clients, so that connects go as usual; \
             set it to {}",
            setting | 1
        );
        add(Severity::Warning, text);
    }
    if origin.mptcp {
        try_mptcp(&mut add);
    }
}

fn try_source(address: &SocketAddr, add: &mut impl FnMut(Severity, String)) {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let bound = open(family, None).and_then(|socket| bind(socket, address));
    judge(&format!("source_address: {}", address.ip()), bound, add, |error| match error {
        Errno::ADDRNOTAVAIL => "no interface of this host has that address: choose one that `ip address` lists",
        Errno::AFNOSUPPORT => "this host has that address family turned off: use the other one",
        Errno::INVAL => "an address with a zone needs the number of its interface, as in fe80::1%2",
        _ => "choose another address",
    });
}

fn try_interface(interface: &str, add: &mut impl FnMut(Severity, String)) {
    let bound = tcp().and_then(|socket| option::bind_to_device(socket, interface));
    judge(&format!("interface: {interface}"), bound, add, |error| match error {
        Errno::NODEV => "this host has no such interface: choose one that `ip link` lists",
        Errno::PERM => {
            "this kernel wants CAP_NET_RAW for it (since Linux 5.7 none does): add that to AmbientCapabilities= and \
             CapabilityBoundingSet= of the unit, or to runtime.keep_capabilities"
        }
        _ => "choose another one",
    });
}

fn try_transparent(add: &mut impl FnMut(Severity, String)) {
    judge("transparent", tcp().and_then(|socket| option::set_transparent(socket, true)), add, |error| match error {
        Errno::PERM => {
            "other hosts' addresses need CAP_NET_ADMIN or CAP_NET_RAW: add one to AmbientCapabilities= and \
             CapabilityBoundingSet= of the unit, or to runtime.keep_capabilities"
        }
        _ => "remove the key",
    });
}

fn try_mptcp(add: &mut impl FnMut(Severity, String)) {
    let Err(error) = open(AddressFamily::INET, Some(ipproto::MPTCP)) else { return };
    let why = match error {
        Errno::NOPROTOOPT => "net.mptcp.enabled = 0 keeps it off, so that plain TCP is used; set it to 1".to_owned(),
        Errno::PROTONOSUPPORT | Errno::INVAL => {
            "this kernel has no MPTCP (since Linux 5.6, with CONFIG_MPTCP), so that plain TCP is used".to_owned()
        }
        error => format!("{}, so that plain TCP is used", io::Error::from(error)),
    };
    add(Severity::Warning, format!("mptcp: {why}"));
}

fn judge(
    what: &str,
    result: Result<(), Errno>,
    add: &mut impl FnMut(Severity, String),
    way_out: fn(Errno) -> &'static str,
) {
    let Err(error) = result else { return };
    let severity = if matches!(error, Errno::PERM | Errno::ACCESS) { Severity::Privilege } else { Severity::Refusal };
    add(severity, format!("{what}: {}; {}", io::Error::from(error), way_out(error)));
}

fn tcp() -> Result<OwnedFd, Errno> {
    open(AddressFamily::INET, None)
}

fn open(family: AddressFamily, protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, protocol)
}

/// `None` where the kernel doesn't say.
fn fast_open_setting() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(origin: &Origin) -> Vec<Lack> {
        let mut lacks = Vec::new();
        of_origin("pools.web.connect", origin, &mut lacks);
        lacks
    }

    #[test]
    fn what_is_there_is_not_told() {
        let source_address = vec!["127.0.0.1:0".parse().unwrap(), "127.0.0.2:0".parse().unwrap()];
        let interface = Some("lo".into());
        assert_eq!(of(&Origin { source_address, interface, ..Origin::default() }), []);
    }

    #[test]
    fn an_address_or_interface_that_is_not_there_ends_the_start_with_a_way_out() {
        let lacks = of(&Origin {
            // Of the block for documentation.
            source_address: vec!["192.0.2.77:0".parse().unwrap()],
            interface: Some("no-such-one".into()),
            ..Origin::default()
        });
        let texts: Vec<_> = lacks.iter().map(|lack| &*lack.text).collect();
        assert_eq!(
            texts,
            [
                "pools.web.connect.source_address: 192.0.2.77: Cannot assign requested address (os error 99); no \
                 interface of this host has that address: choose one that `ip address` lists",
                "pools.web.connect.interface: no-such-one: No such device (os error 19); this host has no such \
                 interface: choose one that `ip link` lists",
            ]
        );
        assert!(lacks.iter().all(|lack| lack.severity == Severity::Refusal));
    }
}
