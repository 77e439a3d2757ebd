//! What the kernel tells about sockets and processes: queues, fds, memory, CPU.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

/// Raises this process's own limit on open files: both ends of each session are descriptors of it.
pub fn raise_own_fd_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}

/// Bytes that wait in one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// Sent by the program and not yet acknowledged.
    pub unsent: u64,
    /// Received and not yet read by the program.
    pub unread: u64,
}

/// The queues of the IPv4 socket between `local` and `remote`; `None` if there is none.
pub fn queues(local: SocketAddr, remote: SocketAddr) -> Option<Queues> {
    let (local, remote) = (hex(local), hex(remote));
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        if fields.next()? != local || fields.next()? != remote {
            return None;
        }
        let (unsent, unread) = fields.nth(1)?.split_once(':')?;
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        Some(Queues { unsent: number(unsent), unread: number(unread) })
    })
}

/// How many IPv4 sockets have `port` on the remote side, in the given states (as the file numbers them, "02" is
/// `SYN_SENT`).
pub fn sockets_to(port: u16, states: &[&str]) -> usize {
    let suffix = format!(":{port:04X}");
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    table
        .lines()
        .skip(1)
        .filter(|line| {
            let mut fields = line.split_ascii_whitespace().skip(2);
            fields.next().is_some_and(|remote| remote.ends_with(&suffix))
                && fields.next().is_some_and(|state| states.contains(&state))
        })
        .count()
}

fn hex(address: SocketAddr) -> String {
    let SocketAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    hex_v4(address)
}

fn hex_v4(address: SocketAddrV4) -> String {
    format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
}

/// The process's open file descriptors, as what they point to.
pub fn fds(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let mut fds: Vec<String> = entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    fds.sort();
    fds
}

/// The process's resident memory in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// The CPU time that the process has used so far, in user and kernel mode.
pub fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = &stat[stat.rfind(')').unwrap() + 2..];
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 on every Linux that Rust runs on.
    Duration::from_millis(ticks * 10)
}

/// A counter of /proc/net/netstat's `TcpExt`, as `ListenDrops`.
pub fn tcp_ext(name: &str) -> u64 {
    netstat("TcpExt", name)
}

/// A counter of /proc/net/netstat in a group, as `MPTcpExt` and `MPCapableSYNRX`.
pub fn netstat(group: &str, name: &str) -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with(&format!("{group}:")));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|column| column == name).unwrap_or_else(|| panic!("no {group} {name}"));
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// The lowest fd number that the process could get now.
pub fn lowest_free_fd(pid: u32) -> u64 {
    let used = |number: &u64| fs::symlink_metadata(format!("/proc/{pid}/fd/{number}")).is_ok();
    (0..1 << 20).find(|number| !used(number)).unwrap()
}

/// Whether a SIGSTOP has reached every thread of a process: the signal's sender doesn't wait for that.
pub fn is_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state stands behind the name, which may hold anything.
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
}

/// Whether every thread of a process is stopped by a signal.
pub fn all_stopped(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    // Behind the name in parentheses, which may hold anything.
    let state = |stat: String| stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("stat")).ok())
        .all(|stat| state(stat) == Some('T'))
}
