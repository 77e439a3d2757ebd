//! Ports for those who can't take port 0.

use std::fs;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// A port that is free, for a program that can't take port 0. Each is given once, and from below those that the kernel
/// gives out by itself: the listeners and connections of the tests beside this one can't get there first.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first_of_kernel = range.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(32_768_u16);
    let (lowest, count) = (10_000, first_of_kernel.saturating_sub(10_000));
    assert!(count > 1_000, "the kernel's own ports begin at {first_of_kernel}, which leaves none for the programs");
    // Another place for another process.
    let start = (std::process::id() % 997) as u16;
    (0..count)
        .map(|_| lowest + (start + GIVEN.fetch_add(1, Ordering::Relaxed)) % count)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a free port")
}
