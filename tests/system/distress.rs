//! Panic mode: when too few backends are up, all are used, loudly.

use crate::kit::{Backend, Config, End, Refusing, Tidegate, eventually, eventually_eq};
use std::collections::BTreeSet;

/// Probes go to a port of their own, so that the tests decide what they find while traffic works.
fn health(port: u16) -> String {
    format!(
        "port = {port}\ninitial = \"up\"\ninterval = \"1s\"\nfast_interval = \"100ms\"\ntimeout = \"1s\"\n\
         rise = 2\nfall = 2"
    )
}

/// A backend at this address of the loopback net, and its address.
fn at(ip: &str, name: &str) -> Backend {
    Backend::at(&crate::kit::Addr::parse(&format!("{ip}:0")), crate::kit::backend::naming(name))
}

fn panics(tidegate: &Tidegate) -> bool {
    let metric = tidegate.metrics().one("tidegate_pool_panic", &[("pool", "web")]) > 0.5;
    let status = tidegate.pool_status()["panic"].as_bool().unwrap();
    // Two looks, between which it may change.
    metric && status
}

#[test]
fn f30_when_all_fail_they_are_used_all_the_same_and_loudly() {
    let backends = ["a", "b", "c"].map(Backend::named);
    let nobody = Refusing::new();
    let tidegate =
        Tidegate::start(Config::over(&backends).pool("slow_start = \"0s\"").health(&health(nobody.addr.tcp().port())));
    eventually_eq("all are down", &0, || tidegate.count("tidegate_backend_up"));
    eventually("the pool panics", || panics(&tidegate));
    let seen: BTreeSet<String> = (0..9).map(|_| tidegate.connect().rest().text()).collect();
    assert_eq!(seen.len(), 3, "all of them are used: {seen:?}");
    tidegate.logged(&["panic", "web"]);
    assert_eq!(tidegate.pool_status()["available"], 0);
    assert_eq!(tidegate.state(&backends[0]), "down", "what a probe has found stays to be seen");
    let entered = tidegate.count_logged(&["panic"]);
    assert_eq!(entered, 1, "{}", tidegate.log());

    let address = nobody.addr.clone();
    drop(nobody);
    let _answers = Backend::at(&address, drop);
    eventually_eq("all are up", &3, || tidegate.count("tidegate_backend_up"));
    eventually("it is over", || !tidegate.pool_status()["panic"].as_bool().unwrap());
    assert_eq!(tidegate.metrics().one("tidegate_pool_panic", &[("pool", "web")]) as u64, 0);
    eventually("leaving is logged as well", || tidegate.count_logged(&["panic"]) > entered);
}

#[test]
fn f30_zero_per_cent_turns_it_off() {
    let backends = ["a", "b"].map(Backend::named);
    let nobody = Refusing::new();
    let config = Config::over(&backends).pool("panic_threshold = \"0%\"");
    let tidegate = Tidegate::start(config.health(&health(nobody.addr.tcp().port())));
    eventually_eq("all are down", &0, || tidegate.count("tidegate_backend_up"));
    tidegate.connect().expect_end(End::Rst);
    eventually_eq("for this reason", &1, || tidegate.closed("no_backend"));
    assert!(!panics(&tidegate));
    assert_eq!(tidegate.get("/readyz").status, 503);
}

#[test]
fn f30_the_threshold_is_a_share_of_the_enabled_ones() {
    // Four backends of which two, one and none can be probed: each has its probe port at an address of its own.
    const IPS: [&str; 4] = ["127.3.0.1", "127.3.0.2", "127.3.0.3", "127.3.0.4"];
    let backends: Vec<Backend> = IPS.iter().map(|ip| at(ip, ip)).collect();
    let first = at(IPS[0], "probe");
    let port = first.addr.tcp().port();
    let probed = |ip: &str| Backend::at(&crate::kit::Addr::parse(&format!("{ip}:{port}")), drop);
    let second = probed(IPS[1]);
    let tidegate = Tidegate::start(Config::over(&backends).health(&health(port)));
    eventually_eq("two are up", &2, || tidegate.count("tidegate_backend_up"));
    assert!(!panics(&tidegate), "half of them is not less than half");
    let names: BTreeSet<String> = (0..8).map(|_| tidegate.connect().rest().text()).collect();
    assert_eq!(names, BTreeSet::from(["127.3.0.1\n".to_owned(), "127.3.0.2\n".to_owned()]));

    second.die();
    eventually("a quarter is", || panics(&tidegate));
    let names: BTreeSet<String> = (0..8).map(|_| tidegate.connect().rest().text()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    let _second = probed(IPS[1]);
    eventually("half of them is enough again", || !tidegate.pool_status()["panic"].as_bool().unwrap());
    drop(first);
}

#[test]
fn f30_in_panic_a_failover_prefers_those_believed_good() {
    // One of three is up, which is less than half: the first attempt may meet a dead one, the second must not.
    const IPS: [&str; 3] = ["127.3.1.1", "127.3.1.2", "127.3.1.3"];
    let good = at(IPS[0], "good");
    let probe = at(IPS[0], "probe");
    let bound: Vec<socket2::Socket> = IPS[1..]
        .iter()
        .map(|ip| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            let address: std::net::SocketAddr = format!("{ip}:0").parse().unwrap();
            socket.bind(&address.into()).unwrap();
            socket
        })
        .collect();
    let mut list = vec![good.to_string()];
    list.extend(bound.iter().map(|socket| socket.local_addr().unwrap().as_socket().unwrap().to_string()));
    let config = Config::over(list).connect("attempts = 2").ejection("consecutive_failures = \"off\"");
    let tidegate = Tidegate::start(config.health(&health(probe.addr.tcp().port())));
    eventually_eq("one is up", &1, || tidegate.count("tidegate_backend_up"));
    eventually("the pool panics", || panics(&tidegate));
    for _ in 0..12 {
        assert_eq!(tidegate.connect().rest().text(), "good\n");
    }
}
