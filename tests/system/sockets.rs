//! How listeners' sockets are made: ranges of ports, families, files of unix sockets, and what the kernel keeps back.

use crate::kit::daemon::{file, run};
use crate::kit::{Addr, Backend, Config, Conn, Listening, Tidegate};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// Ports of the machine's own choice can't be in a row: these are set aside for the tests here.
const RANGE: &str = "127.0.0.1:23000-23009";

fn with_socket(config: Config, keys: &str) -> Config {
    config.listener(&format!("[listeners.web.socket]\n{keys}"))
}

#[test]
fn a_range_is_served_on_each_of_its_ports_and_shown_as_one() {
    let backend = Backend::named("x");
    let tidegate = Tidegate::start(Config::over([&backend]).bind(RANGE));
    for port in 23_000..=23_009 {
        assert_eq!(Conn::to(&Addr::parse(&format!("127.0.0.1:{port}"))).rest().text(), "x\n");
    }
    assert_eq!(tidegate.metrics().one("tidegate_listener_connections_total", &[("listener", "web")]) as u64, 10);
    let listener = &tidegate.status()["listeners"][0];
    assert_eq!((&listener["bind"][0], listener["bind"].as_array().unwrap().len()), (&RANGE.into(), 1));
    assert_eq!(listener["sockets"], 20, "ten addresses for two workers");
    tidegate.logged(&["listening", RANGE]);
}

#[test]
fn ipv6_alone_leaves_the_port_to_a_listener_of_ipv4() {
    let (six, four) = (Backend::named("six"), Backend::named("four"));
    let more = format!(
        "[listeners.four]\nbind = \"0.0.0.0:23010\"\npool = \"four\"\n[pools.four]\nbackends = [\"{four}\"]\n\
         health.probe = \"none\""
    );
    let config = with_socket(Config::over([&six]).bind("[::]:23010"), "v6only = true").more(&more);
    let _tidegate = Tidegate::start(config);
    assert_eq!(Conn::to(&Addr::parse("[::1]:23010")).rest().text(), "six\n");
    assert_eq!(Conn::to(&Addr::parse("127.0.0.1:23010")).rest().text(), "four\n");
}

#[test]
fn a_client_that_says_nothing_stays_with_the_kernel_until_it_does() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(with_socket(Config::over([&backend]), "defer_accept = \"60s\""));
    let mut silent = tidegate.connect();
    // The handshake of this one is over, and that of the next one comes after it.
    tidegate.connect().speak();
    let accepted = || tidegate.count("tidegate_listener_connections_total");
    assert_eq!(accepted(), 1);
    silent.speak();
    assert_eq!(accepted(), 2);
}

#[test]
fn fast_open_defer_accept_and_an_interface_leave_sessions_as_they_are() {
    let backend = Backend::echo();
    let keys = "interface = \"lo\"\nfast_open = 16\ndefer_accept = \"5s\"";
    let tidegate = Tidegate::start(with_socket(Config::over([&backend]), keys).connect("fast_open = true"));
    for _ in 0..4 {
        tidegate.connect().speak();
    }
    assert!(tidegate.count("tidegate_listener_accept_queue_limit") > 0);
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen").unwrap();
    let of_servers = setting.trim().parse::<u32>().unwrap() & 2 != 0;
    // Behind all that a start has to say.
    tidegate.logged(&["ready"]);
    let told = tidegate.count_logged(&["listeners.web.socket.fast_open: net.ipv4.tcp_fastopen = "]);
    assert_eq!(told, usize::from(!of_servers), "net.ipv4.tcp_fastopen = {setting}");
}

#[test]
fn mptcp_serves_clients_of_tcp_with_it_or_without() {
    let backend = Backend::echo();
    let config = with_socket(Config::over([&backend]), "mptcp = true").connect("mptcp = true");
    let mut tidegate = Tidegate::start(config.logged());
    for _ in 0..4 {
        tidegate.connect().speak();
    }
    for record in tidegate.records(4) {
        assert_eq!(record["reason"], "complete", "{record}");
    }
    let is_there = std::fs::read_to_string("/proc/sys/net/mptcp/enabled").is_ok_and(|on| on.trim() == "1");
    // Behind all that a start has to say.
    tidegate.logged(&["ready"]);
    let told = tidegate.count_logged(&["mptcp: ", "plain TCP is used"]);
    assert_eq!(told, if is_there { 0 } else { 2 });
    tidegate.signal(rustix::process::Signal::TERM);
    assert_eq!(tidegate.wait().code, Some(0));
}

#[test]
fn a_unix_socket_has_its_mode_and_group_from_the_start() {
    let backend = Backend::named("x");
    let group = rustix::process::getegid().as_raw();
    let keys = format!("mode = \"0606\"\ngroup = \"{group}\"");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.sock");
    let mut tidegate = Tidegate::start(with_socket(Config::over([&backend]).bind(Addr::Unix(path.clone())), &keys));
    let seen = std::fs::metadata(&path).unwrap();
    assert_eq!((seen.permissions().mode() & 0o7777, seen.gid()), (0o606, group));
    assert_eq!(tidegate.connect().rest().text(), "x\n");
    tidegate.signal(rustix::process::Signal::TERM);
    tidegate.wait();
    assert!(!path.exists());
}

#[test]
fn what_a_socket_can_not_have_ends_the_start_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}", dir.path().join("web.sock").display());
    for (bind, keys, sentence) in [
        (
            "127.0.0.1:0",
            "interface = \"no-such-one\"",
            "listeners.web.socket.interface: no-such-one: No such device (os error 19); this host has no such interface: \
             choose one that `ip link` lists",
        ),
        (
            &*unix,
            "owner = \"no-such-one\"",
            "listeners.web.socket.owner: this host doesn't know no-such-one; create it, or write a number",
        ),
        (
            &*unix,
            "group = \"no-such-one\"",
            "listeners.web.socket.group: this host doesn't know no-such-one; create it, or write a number",
        ),
    ] {
        let config = with_socket(Config::over(["127.0.0.1:1"]).bind(bind), keys).to_string();
        let path = file(dir.path(), "lb.toml", config);
        let path = path.to_str().unwrap();
        let ran = run(&["run", "--config", path]);
        assert_eq!(ran.code, Some(71), "{ran:?}");
        assert!(ran.stderr.contains(sentence), "{}", ran.stderr);
        let checked = run(&["check", "--config", path]);
        assert_eq!((checked.code, checked.stderr.trim_end()), (Some(0), &*format!("on this host: {sentence}")));
    }
}

#[test]
fn a_port_of_a_range_that_is_taken_is_named() {
    let taken = Listening::at(&Addr::parse("127.0.0.1:23021"));
    let dir = tempfile::tempdir().unwrap();
    let config = Config::over(["127.0.0.1:1"]).bind("127.0.0.1:23020-23022").to_string();
    let ran = run(&["run", "--config", file(dir.path(), "lb.toml", config).to_str().unwrap()]);
    assert_eq!(ran.code, Some(71), "{ran:?}");
    assert!(ran.stderr.contains(&format!("listeners.web: can't listen on {}: ", taken.addr)), "{}", ran.stderr);
}
