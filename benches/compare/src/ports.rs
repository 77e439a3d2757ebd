//! Listening, and whose listening socket it is. Makes sure that a window measures the proxy it names.
//!
//! `SO_REUSEPORT` lets a second process listen beside a leftover of an earlier run, and the kernel then deals the
//! connections out between the two. So a port is tried without that option before a peer starts, and afterwards every
//! listening socket on it must be one that the peer holds.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, anyhow, bail};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

/// `TCP_LISTEN` as /proc/net/tcp prints it.
const LISTEN: &str = "0A";
const BACKLOG: i32 = 4096;

/// A nonblocking listening socket for a backend of a benchmark.
pub fn listen(address: SocketAddrV4) -> Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    net::sockopt::set_socket_reuseaddr(&socket, true)?;
    // Accepted sockets inherit it.
    net::sockopt::set_tcp_nodelay(&socket, true)?;
    net::bind(&socket, &address).with_context(|| format!("binding a backend to {address}"))?;
    net::listen(&socket, BACKLOG).with_context(|| format!("listening on {address}"))?;
    Ok(socket)
}

/// Fails, with the name of the holder where it can be found, unless this address is free to listen on.
pub fn ensure_free(address: SocketAddrV4) -> Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let holder = listening_inodes(address)?.iter().find_map(|&inode| holder_of(inode));
            let holder = holder.unwrap_or_else(|| "a process that can't be seen from here".to_owned());
            bail!("{address} is taken by {holder}: end it, or choose other ports (--base-port, --backend-ports)")
        }
        Err(error) => Err(anyhow!(error).context(format!("trying {address}"))),
    }
}

/// Does somebody listen here, and nobody but these processes? An error if there is a stranger among them.
pub fn listened_by(address: SocketAddrV4, pids: &[i32]) -> Result<bool> {
    let inodes = listening_inodes(address)?;
    if inodes.is_empty() {
        return Ok(false);
    }
    let own: HashSet<u64> = pids.iter().flat_map(|&pid| sockets_of(pid)).collect();
    match inodes.iter().find(|inode| !own.contains(inode)) {
        None => Ok(true),
        Some(&stranger) => {
            let holder = holder_of(stranger).unwrap_or_else(|| "somebody unknown".to_owned());
            bail!("{address} is also listened on by {holder}: its share of the connections would be missing here")
        }
    }
}

fn listening_inodes(address: SocketAddrV4) -> Result<Vec<u64>> {
    let table = fs::read_to_string("/proc/net/tcp").context("reading /proc/net/tcp")?;
    Ok(listeners_in(&table, address))
}

/// The inodes of listening sockets on this address or on all addresses of its port.
fn listeners_in(table: &str, address: SocketAddrV4) -> Vec<u64> {
    let wanted = [hex(address), hex(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, address.port()))];
    let rows = table.lines().skip(1).map(|row| row.split_ascii_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() > 9 && row[3] == LISTEN && wanted.iter().any(|local| local == row[1]))
        .filter_map(|row| row[9].parse().ok())
        .collect()
}

/// As the kernel prints it: the address as one number in host byte order, the port as a number.
fn hex(address: SocketAddrV4) -> String {
    format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
}

fn sockets_of(pid: i32) -> Vec<u64> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|fd| fs::read_link(fd.path()).ok()).filter_map(|link| socket_inode(link.to_str()?)).collect()
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn holder_of(inode: u64) -> Option<String> {
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if sockets_of(pid).contains(&inode) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(format!("process {pid} ({})", name.trim()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_by_its_address_and_by_its_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:2329 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 x 100 0 0\n\
             1: 00000000:2329 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 x 100 0 0\n\
             2: 0100007F:2329 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 13 1 x 20 4 30\n\
             3: 0A00007F:2329 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 14 1 x 100 0 0\n";
        assert_eq!(listeners_in(table, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9001)), [11, 12]);
        assert_eq!(listeners_in(table, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9002)), [0; 0]);
    }

    #[test]
    fn a_taken_port_names_its_holder_and_a_stranger_is_noticed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("an IPv4 address") };
        let own = std::process::id() as i32;
        let error = ensure_free(address).unwrap_err().to_string();
        assert!(error.contains(&format!("process {own} ")), "{error}");
        assert!(listened_by(address, &[own]).unwrap());
        assert!(listened_by(address, &[1]).is_err());
        drop(listener);
        assert!(ensure_free(address).is_ok());
        assert!(!listened_by(address, &[own]).unwrap());
    }
}
