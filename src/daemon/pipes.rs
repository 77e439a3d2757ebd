//! Pipes: how much buffer they may take, by the limits of the user and the memory of the machine.
//!
//! Owns the arithmetic (pure) and the reading of the host's limits. What a worker does with its share is
//! `net::relay::pipe`. Invariant: all workers together stay below half of what the kernel allows the user.

use crate::net::relay::PipeBounds;
use rustix::thread::CapabilitySet;
use std::fs;

/// Of the user's pages: another process of the same user, such as the next one at a restart that overlaps, finds as
/// much.
const USER_PART: u64 = 2;
/// Of the machine's memory, for a user whom the kernel doesn't limit. What lies in full pipes is kernel memory that no
/// limit on sockets counts; 3 % of it can be missed anywhere, and with 1 GiB that is what other users get by default.
const MEMORY_PART: u64 = 32;
/// The kernel's own defaults, for where /proc/sys can't be read.
const DEFAULT_USER_PAGES: u64 = 16_384;
const DEFAULT_LARGEST: u64 = 1 << 20;

/// What the host allows this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Bytes of memory.
    memory: u64,
    /// Bytes of pipes of this user, over all its processes; `None` if the kernel doesn't limit it.
    user: Option<u64>,
    /// Bytes of one pipe.
    largest: u64,
}

impl Host {
    /// Asks the kernel.
    pub fn read() -> Self {
        let memory = rustix::system::sysinfo();
        let page = rustix::param::page_size() as u64;
        let limit = |name: &str, default| number(&format!("/proc/sys/fs/{name}")).unwrap_or(default);
        // Zero is no limit, see proc(5).
        let soft = limit("pipe-user-pages-soft", DEFAULT_USER_PAGES);
        let hard = limit("pipe-user-pages-hard", 0);
        let pages = [soft, hard].into_iter().filter(|&pages| pages > 0).min();
        Self {
            memory: memory.totalram as u64 * u64::from(memory.mem_unit),
            user: if is_privileged() { None } else { pages.map(|pages| pages * page) },
            largest: limit("pipe-max-size", DEFAULT_LARGEST),
        }
    }

    /// The share of each of `workers`, of `count` pipes in all.
    pub fn share(&self, count: usize, workers: usize) -> PipeBounds {
        let memory = self.memory / MEMORY_PART;
        let all = self.user.map_or(memory, |user| memory.min(user / USER_PART));
        let workers = workers.max(1);
        let all = if count < workers { 0 } else { all };
        PipeBounds { count: count / workers, bytes: all as usize / workers, largest: self.largest as usize }
    }
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Whether the kernel exempts us from the limits on pipes. It asks for capabilities of the initial user namespace:
/// root of a container that has its own isn't exempt.
fn is_privileged() -> bool {
    let exempt = CapabilitySet::SYS_RESOURCE | CapabilitySet::SYS_ADMIN;
    let has = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.intersects(exempt));
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    has && map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const SERVICE: Host = Host { memory: 24 * GIB, user: Some(64 << 20), largest: 1 << 20 };

    #[test]
    fn workers_share_half_of_what_the_user_may_have() {
        assert_eq!(SERVICE.share(1_024, 2), PipeBounds { count: 512, bytes: 16 << 20, largest: 1 << 20 });
        assert_eq!(SERVICE.share(1_024, 1).bytes, 32 << 20);
    }

    #[test]
    fn memory_bounds_those_whom_the_kernel_does_not() {
        let root = Host { user: None, ..SERVICE };
        assert_eq!(root.share(1_024, 4).bytes, (24 << 30) / 32 / 4);
        let small = Host { memory: GIB / 4, ..SERVICE };
        assert_eq!(small.share(1_024, 1).bytes, 8 << 20, "a small machine bounds a service user as well");
    }

    #[test]
    fn this_host_is_read() {
        let host = Host::read();
        assert!(host.memory > 1 << 20, "{host:?}");
        assert!(host.largest >= 4_096, "{host:?}");
        assert!(host.user.is_none_or(|bytes| bytes >= 4_096), "{host:?}");
    }
}
