//! Where connects come from, as far as it needs no privileges: addresses of loopback, and its interface.

use crate::kit::daemon::{file, run};
use crate::kit::{Addr, Backend, Config, Conn, End, Tidegate, outcomes};
use std::collections::BTreeMap;
use std::net::TcpListener;

/// A backend that says from which IP address it was connected to.
fn telling() -> Backend {
    telling_at("127.0.0.1:0")
}

fn telling_at(address: &str) -> Backend {
    Backend::at(&Addr::parse(address), |mut conn: Conn| {
        let peer = conn.peer().ip().to_string();
        let _ = conn.try_send(format!("{peer}\n"));
    })
}

fn seen(tidegate: &Tidegate, count: usize) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        *seen.entry(tidegate.connect().rest().text()).or_insert(0) += 1;
    }
    seen
}

#[test]
fn connects_are_spread_over_the_source_addresses() {
    let backend = telling();
    let config = Config::over([&backend]).connect("source_address = [\"127.0.0.2\", \"127.0.0.3\", \"127.0.0.4\"]");
    let seen = seen(&Tidegate::start(config), 90);
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["127.0.0.2\n", "127.0.0.3\n", "127.0.0.4\n"]);
    // The chance of fewer by an even choice is below one in a million.
    assert!(seen.values().all(|&count| count >= 8), "{seen:?}");
}

#[test]
fn one_source_address_is_the_only_one_and_backends_of_the_other_family_have_the_kernels_choice() {
    let (four, six) = (telling(), telling_at("[::1]:0"));
    let config = Config::over([&four.addr, &six.addr]).connect("source_address = \"127.0.0.9\"");
    let seen = seen(&Tidegate::start(config), 8);
    assert_eq!(seen, BTreeMap::from([("127.0.0.9\n".to_owned(), 4), ("::1\n".to_owned(), 4)]));
}

#[test]
fn probes_and_agents_come_from_there_too() {
    // accept(2) says who it was, also of those who have gone again.
    let [backend, agent] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let health = format!(
        "probe = \"tcp\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\nagent = {{ port = {}, interval = \"100ms\" }}",
        agent.local_addr().unwrap().port()
    );
    let config = Config::over([backend.local_addr().unwrap()]).health(&health);
    let _tidegate = Tidegate::start(config.connect("source_address = \"127.0.0.9\"\ninterface = \"lo\""));
    for listening in [&backend, &agent] {
        assert_eq!(listening.accept().unwrap().1.ip().to_string(), "127.0.0.9");
    }
}

#[test]
fn an_interface_that_is_there_is_used() {
    let backend = Backend::named("x");
    let tidegate = Tidegate::start(Config::over([&backend]).connect("interface = \"lo\""));
    assert_eq!(tidegate.connect().rest().text(), "x\n");
}

#[test]
fn what_this_host_does_not_have_ends_the_start_with_a_sentence_and_a_check_tells_of_it() {
    let dir = tempfile::tempdir().unwrap();
    for (keys, sentence) in [
        (
            "source_address = \"192.0.2.77\"",
            "pools.web.connect.source_address: 192.0.2.77: Cannot assign requested address (os error 99); no interface of \
             this host has that address: choose one that `ip address` lists",
        ),
        (
            "interface = \"no-such-one\"",
            "pools.web.connect.interface: no-such-one: No such device (os error 19); this host has no such interface: \
             choose one that `ip link` lists",
        ),
    ] {
        let path = file(dir.path(), "lb.toml", Config::over(["127.0.0.1:1"]).connect(keys).to_string());
        let path = path.to_str().unwrap();
        let ran = run(&["run", "--config", path]);
        assert_eq!(ran.code, Some(71), "{ran:?}");
        assert!(ran.stderr.contains(sentence), "{}", ran.stderr);
        let checked = run(&["check", "--config", path]);
        assert_eq!((checked.code, checked.stderr.trim_end()), (Some(0), &*format!("on this host: {sentence}")));
    }
}

/// From an address of loopback no way leads to another host: the kernel refuses before a packet is sent.
#[test]
fn a_way_that_does_not_exist_is_never_the_backends_fault() {
    let config = Config::over(["192.0.2.77:9"]).connect("source_address = \"127.0.0.2\"");
    let tidegate = Tidegate::start(config.ejection("consecutive_failures = 1\nmax_ejected = \"100%\"").logged());
    for _ in 0..3 {
        tidegate.connect().expect_end(End::Rst);
    }
    for record in tidegate.records(3) {
        assert_eq!(record["reason"], "no_resources");
        assert_eq!(outcomes(&record), ["192.0.2.77:9 no_route"]);
    }
    assert_eq!(tidegate.state("192.0.2.77:9"), "up");
    tidegate.logged(&["can't connect", "192.0.2.77:9"]);
    assert_eq!(tidegate.count_logged(&["can't connect"]), 1, "not a line for each");
}
