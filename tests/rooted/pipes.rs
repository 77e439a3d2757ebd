//! Many large downloads by a process that the kernel gives only so many pipes, because its user isn't root.

use crate::kit::{Backend, Config, End, Tidegate, eventually, kernel};
use crate::net;
use std::sync::Barrier;
use std::time::Duration;
use std::{fs, thread};

const SESSIONS: usize = 1_500;
/// Of each download: more than all buffers on its way hold.
const BYTES: u64 = 2_000_000;
/// For all of them together; a pool that starves its sessions would need minutes for each.
const BOUND: Duration = Duration::from_secs(240);

/// Half of `fs.pipe-user-pages-soft`.
fn half_of_the_users_limit() -> u64 {
    let text = fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").unwrap();
    text.trim().parse::<u64>().unwrap() * rustix::param::page_size() as u64 / 2
}

#[test]
fn f90_a_service_user_serves_1500_large_downloads_within_its_share_of_pipes() {
    let Some(_cable) = net::cable() else { return };
    // In this namespace only. Otherwise sockets on loopback take a whole download by themselves.
    fs::write("/proc/sys/net/ipv4/tcp_wmem", "4096 16384 262144").unwrap();
    fs::write("/proc/sys/net/ipv4/tcp_rmem", "4096 65536 131072").unwrap();
    kernel::raise_own_fd_limit();

    let backend = Backend::pouring(BYTES);
    let tidegate = Tidegate::start(Config::over([&backend]).runtime("user = \"nobody\""));
    let status = fs::read_to_string(format!("/proc/{}/status", tidegate.pid)).unwrap();
    assert!(status.contains("Uid:\t65534\t65534") && status.contains("CapEff:\t0000000000000000"), "{status}");
    let gauge = |name: &str| tidegate.metrics().one(name, &[]) as u64;
    let (most, most_bytes) = (gauge("tidegate_max_pipes"), gauge("tidegate_max_pipe_bytes"));
    assert!(most_bytes > 0 && most_bytes <= half_of_the_users_limit(), "{most_bytes}");
    let within = || {
        let metrics = tidegate.metrics();
        let value = |name: &str| metrics.one(name, &[]) as u64;
        let (held, bytes) = (value("tidegate_pipes_held"), value("tidegate_pipe_bytes_held"));
        assert!(held <= most && bytes <= most_bytes, "{held} pipes of {most}, {bytes} bytes of {most_bytes}");
        bytes
    };

    let open = Barrier::new(SESSIONS + 1);
    let download = |open: &Barrier| {
        let mut client = tidegate.connect();
        client.wait_up_to(BOUND);
        open.wait();
        let flood = client.rest_of_pattern(0);
        assert_eq!((flood.bytes, flood.end), (BYTES, End::Fin));
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..SESSIONS)
            .map(|_| thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, || download(&open)).unwrap())
            .collect();
        // Nobody reads yet: those who have a pipe keep it, and the share is used up.
        eventually("all sessions run", || tidegate.sessions() as usize == SESSIONS);
        eventually("no room is left for a pipe of the smallest size", || within() + 2 * (64 << 10) > most_bytes);
        eventually("the others are copied", || gauge("tidegate_pipe_fallbacks_total") > 0);
        open.wait();
        while clients.iter().any(|client| !client.is_finished()) {
            within();
            thread::yield_now();
        }
    });
    eventually("all ended in order", || tidegate.closed("complete") as usize == SESSIONS);
    eventually("at rest it holds none", || within() == 0);
}
