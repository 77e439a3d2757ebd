//! The kernel's accept queues as metrics.

use crate::kit::{Addr, Backend, Config, Conn, Launch, eventually, eventually_eq};
use std::fs;

const LENGTH: &str = "tidegate_listener_accept_queue_length";
const LIMIT: &str = "tidegate_listener_accept_queue_limit";

#[test]
fn clients_that_nobody_accepts_are_seen_in_the_queue() {
    let backend = Backend::echo();
    let launch = Launch::new(Config::over([&backend]).only_runtime("workers = 1").listener("backlog = 64"));
    let file = launch.dir().join("stall");
    let tidegate = launch.env("TIDEGATE_TEST_STALL", &format!("0:{}", file.display())).start();
    let value = |name: &str| tidegate.metrics().one(name, &[("listener", "web")]) as u64;
    assert_eq!((value(LENGTH), value(LIMIT)), (0, 64));
    fs::write(&file, "").unwrap();
    eventually("the worker stands still", || file.with_extension("begun").exists());
    let mut clients: Vec<Conn> = (0..40).map(|_| tidegate.connect()).collect();
    eventually_eq("all of them wait", &40, || value(LENGTH));
    fs::remove_file(&file).unwrap();
    clients.iter_mut().for_each(Conn::speak);
    assert_eq!(value(LENGTH), 0);
}

#[test]
fn each_worker_has_a_queue_and_a_unix_socket_none_that_the_kernel_tells_of() {
    let backend = Backend::echo();
    let dir = tempfile::tempdir().unwrap();
    let unix = Addr::Unix(dir.path().join("web.sock"));
    let config = Config::over([&backend]).only_runtime("workers = 3").listener("backlog = 10");
    let tidegate = Launch::new(config.clone().binds(["127.0.0.1:0", &unix.to_string()])).start();
    assert_eq!(tidegate.metrics().one(LIMIT, &[("listener", "web")]) as u64, 30);
    drop(tidegate);
    let tidegate = Launch::new(config.bind(&unix)).start();
    assert!(!tidegate.metrics().has(LIMIT, &[]));
}
