//! Connections that the kernel doesn't complete, and those that it completes and nobody accepts.

use crate::kit::{Addr, Backend, Config, Conn, Launch, Tidegate, eventually, eventually_eq, kernel};
use crate::net;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs;

const FLOOD: usize = 200;

/// Connects that have begun and are not waited for; they end when they are dropped.
fn begin(address: &Addr, count: usize) -> Vec<Socket> {
    let address = SockAddr::from(address.tcp());
    let connect = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        // It is in progress.
        let _ = socket.connect(&address);
        socket
    };
    (0..count).map(connect).collect()
}

fn value(tidegate: &Tidegate, name: &str) -> u64 {
    tidegate.metrics().sum(name, &[]) as u64
}

#[test]
fn f15_a_flood_of_half_open_connections_is_the_kernels_and_its_drops_are_exported() {
    let Some(cable) = net::cable() else { return };
    // In this namespace only.
    let cookies = |on: &str| fs::write("/proc/sys/net/ipv4/tcp_syncookies", on).unwrap();
    cookies("0");
    let backend = Backend::echo();
    let config = Config::over([&backend]).bind("198.18.0.1:0").only_runtime("workers = 1").listener("backlog = 16");
    let tidegate = Tidegate::start(config);
    let (address, cpu) = (tidegate.addr(), kernel::cpu(tidegate.pid));
    // The answers to the flood never arrive.
    cable.lose_far("tcp flags & (syn | ack) == syn | ack");
    let target = address.clone();
    let _flood = cable.beyond(move || begin(&target, FLOOD)).join().unwrap();
    eventually("the kernel drops what its queue can't hold", || {
        value(&tidegate, "tidegate_kernel_listen_drops_total") > 0
    });
    for name in ["tidegate_listener_connections_total", "tidegate_listener_accept_queue_length"] {
        assert_eq!(value(&tidegate, name), 0, "{name}");
    }
    assert_eq!(tidegate.sessions(), 0);
    println!("{:?} of CPU meanwhile", kernel::cpu(tidegate.pid).saturating_sub(cpu));
    // With cookies, as is the default, others are served at the height of it.
    cookies("1");
    Conn::to(&address).speak();
    assert_eq!(value(&tidegate, "tidegate_listener_connections_total"), 1);
}

#[test]
fn f15_an_accept_queue_that_overflows_is_seen_and_counted() {
    let Some(_cable) = net::cable() else { return };
    let backend = Backend::echo();
    let launch = Launch::new(Config::over([&backend]).only_runtime("workers = 1").listener("backlog = 8"));
    let file = launch.dir().join("stall");
    let tidegate = launch.env("TIDEGATE_TEST_STALL", &format!("0:{}", file.display())).start();
    assert_eq!(value(&tidegate, "tidegate_kernel_listen_overflows_total"), 0);
    fs::write(&file, "").unwrap();
    eventually("the worker stands still", || file.with_extension("begun").exists());
    let flood = begin(&tidegate.addr(), FLOOD);
    eventually("it is full", || {
        let (length, limit) = ("tidegate_listener_accept_queue_length", "tidegate_listener_accept_queue_limit");
        value(&tidegate, length) >= 8 && value(&tidegate, limit) == 8
    });
    eventually("what doesn't fit is counted", || value(&tidegate, "tidegate_kernel_listen_overflows_total") > 0);
    assert!(value(&tidegate, "tidegate_kernel_listen_drops_total") > 0);
    drop(flood);
    fs::remove_file(&file).unwrap();
    eventually_eq("it is empty again", &0, || value(&tidegate, "tidegate_listener_accept_queue_length"));
    Conn::to(&tidegate.addr()).speak();
}
