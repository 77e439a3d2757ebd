//! What the kernel did with connections before any process of ours saw them: overflows of accept queues and
//! dropped requests, read from `/proc/self/net/netstat` at each scrape.
//!
//! The counters are those of the whole network namespace: the kernel keeps none for one socket. A kernel that
//! doesn't tell leaves the families out, rather than showing a zero that nobody counted.

use super::family::head;
use super::names::{KERNEL_LISTEN_DROPS, KERNEL_LISTEN_OVERFLOWS, Name};
use std::fmt::Write;

/// Under `self`, because `/proc/net` isn't there when only processes are shown (`ProcSubset=pid`).
const NETSTAT: &str = "/proc/self/net/netstat";

/// The kernel's field for each family.
const FIELDS: [(&str, Name); 2] = [("ListenOverflows", KERNEL_LISTEN_OVERFLOWS), ("ListenDrops", KERNEL_LISTEN_DROPS)];

/// Appends the two families, as far as the kernel tells.
pub fn write(out: &mut String) {
    let netstat = std::fs::read_to_string(NETSTAT).unwrap_or_default();
    for (field, name) in FIELDS {
        if let Some(value) = tcp_ext(&netstat, field) {
            head(out, &name, "counter");
            // Writing to a string can't fail.
            let _ = writeln!(out, "{} {value}", name.name);
        }
    }
}

/// The value of a field of `TcpExt`: the file has a line of names, then a line of values, each with that prefix.
fn tcp_ext(netstat: &str, field: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let position = names.split(' ').position(|name| name == field)?;
    values.split(' ').nth(position)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_name() {
        let netstat =
            "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 22 333\nIpExt: ListenDrops\nIpExt: 9\n";
        assert_eq!(tcp_ext(netstat, "ListenOverflows"), Some(22));
        assert_eq!(tcp_ext(netstat, "ListenDrops"), Some(333));
        assert_eq!(tcp_ext(netstat, "Nothing"), None);
        assert_eq!(tcp_ext("", "ListenDrops"), None);
        assert_eq!(tcp_ext("TcpExt: ListenDrops\n", "ListenDrops"), None);
    }

    #[test]
    fn this_kernel_tells() {
        let mut text = String::new();
        write(&mut text);
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 2, "{text}");
    }
}
