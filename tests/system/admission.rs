//! Who is let in: limits of a listener, shared ones, per client and by network, what a client finds that is refused,
//! and what is kept for others.

use crate::kit::conn::Addr;
use crate::kit::{Backend, Config, Conn, End, Listening, Tidegate, eventually, eventually_eq, kernel, throughout};
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// A client with this address of its own.
pub fn connect_from(source: Ipv4Addr, to: &Addr) -> Conn {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(IpAddr::V4(source), 0).into()).unwrap();
    socket.connect(&to.tcp().into()).unwrap();
    Conn::new(socket)
}

pub fn local(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + number)
}

fn served(mut client: Conn) -> Conn {
    client.send("hello");
    client.expect("hello");
    client
}

/// The value of a metric of the limits, for this scope and name.
fn limit(tidegate: &Tidegate, metric: &str, scope: &str, name: &str) -> u64 {
    tidegate.metrics().sum(&format!("tidegate_limit_{metric}"), &[("scope", scope), ("name", name)]) as u64
}

fn other_listener(lines: &str) -> String {
    format!("[listeners.other]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n{lines}")
}

#[test]
fn each_limit_of_a_listener_refuses_with_a_reason_of_its_own_and_no_backend_is_touched() {
    let listening = Listening::new();
    let limits = "max_connections = 3\nmax_connections_per_client = 2\ndeny = [\"127.9.0.0/16\"]";
    let tidegate = Tidegate::start(Config::over([&listening]).listener(limits).logged());
    let addr = tidegate.addr();
    let held: Vec<_> = [1, 1, 2].map(|client| (connect_from(local(client), &addr), listening.accept())).into();
    connect_from(local(1), &addr).expect_end(End::Rst);
    connect_from(local(3), &addr).expect_end(End::Rst);
    connect_from(Ipv4Addr::new(127, 9, 0, 1), &addr).expect_end(End::Rst);
    assert!(listening.accept_now().is_none());
    for (bound, count) in [("max_connections_per_client", 1), ("max_connections", 1), ("denied", 1), ("accept_rate", 0)]
    {
        let labels = [("scope", "listener"), ("name", "web"), ("dry_run", "false"), ("reason", bound)];
        assert_eq!(tidegate.metrics().sum("tidegate_limit_refusals_total", &labels) as u64, count, "{bound}");
    }
    let status = &tidegate.status()["limits"][1];
    assert_eq!((&status["scope"], &status["name"]), (&"listener".into(), &"web".into()));
    assert_eq!((&status["connections"], &status["max_connections"]), (&3.into(), &3.into()));
    assert_eq!((&status["clients"], &status["refused"]), (&2.into(), &3.into()));
    drop(held);
    let records = tidegate.records(6);
    let mut said: Vec<(&str, &str, &str)> = records
        .iter()
        .filter(|record| record["reason"] != "complete")
        .map(|record| {
            let field = |name: &str| record[name].as_str().unwrap();
            (field("reason"), field("ended_by"), field("phase"))
        })
        .collect();
    said.sort_unstable();
    let reasons = ["client_max_connections", "denied", "listener_max_connections"];
    assert_eq!(said, reasons.map(|reason| (reason, "balancer", "admit")));
}

#[test]
fn a_limit_that_two_listeners_share_counts_them_together() {
    let backend = Backend::echo();
    let shared = "[limits.users]\nmax_connections = 3\nmax_connections_per_client = 2";
    let config = Config::over([&backend]).listener("limits = [\"users\"]");
    let tidegate = Tidegate::start(config.more(shared).more(&other_listener("limits = [\"users\"]")));
    let (web, other) = (tidegate.addr(), tidegate.addr_of("other", 0));
    let first = served(connect_from(local(1), &web));
    let _second = served(connect_from(local(1), &other));
    connect_from(local(1), &web).expect_end(End::Rst);
    let _third = served(connect_from(local(2), &other));
    connect_from(local(3), &web).expect_end(End::Rst);
    connect_from(local(3), &other).expect_end(End::Rst);
    eventually_eq("two for the sake of all", &2, || tidegate.closed("shared_max_connections"));
    eventually_eq("one for its own", &1, || tidegate.closed("client_max_connections"));
    assert_eq!(limit(&tidegate, "connections", "shared", "users"), 3);
    first.reset();
    eventually_eq("a place is free", &2, || limit(&tidegate, "connections", "shared", "users"));
    served(connect_from(local(3), &other));
}

#[test]
fn a_rate_refuses_what_comes_faster_and_one_per_client_only_that_client() {
    let backend = Backend::echo();
    let slow = "accept_rate_per_client = \"1/h\"\nburst_per_client = 2";
    let tidegate = Tidegate::start(
        Config::over([&backend]).listener(slow).more(&other_listener("accept_rate = \"1/h\"\nburst = 3")),
    );
    let addr = tidegate.addr();
    for client in [1, 2] {
        for _ in 0..2 {
            served(connect_from(local(client), &addr)).reset();
        }
        connect_from(local(client), &addr).expect_end(End::Rst);
    }
    let other = tidegate.addr_of("other", 0);
    for client in 1..=3 {
        served(connect_from(local(client), &other)).reset();
    }
    connect_from(local(4), &other).expect_end(End::Rst);
    eventually_eq("two of clients", &2, || tidegate.closed("client_accept_rate"));
    eventually_eq("one of all", &1, || tidegate.closed("accept_rate"));
    assert_eq!(limit(&tidegate, "clients", "listener", "web"), 2);
}

#[test]
fn with_overload_wait_clients_come_in_no_faster_than_the_rate_and_none_is_refused() {
    const CLIENTS: u32 = 20;
    let backend = Backend::named("x");
    let paced = "accept_rate = \"20/s\"\nburst = 1\noverload = \"wait\"";
    let tidegate = Tidegate::start(Config::over([&backend]).listener(paced));
    let begun = Instant::now();
    let clients: Vec<Conn> = (0..CLIENTS).map(|_| tidegate.connect()).collect();
    for mut client in clients {
        assert_eq!(client.rest().text(), "x\n");
    }
    assert!(begun.elapsed() >= Duration::from_millis(50) * (CLIENTS - 1), "{:?}", begun.elapsed());
    assert_eq!(tidegate.metrics().sum("tidegate_limit_refusals_total", &[]) as u64, 0);
}

#[test]
fn overload_close_ends_with_a_fin_and_overload_wait_leaves_clients_in_the_queue() {
    let backend = Backend::echo();
    let closing = "max_connections = 1\noverload = \"close\"";
    let waiting = "max_connections = 1\noverload = \"wait\"\nmax_connections_per_client = 1";
    let config = Config::over([&backend]).listener(closing).more(&other_listener(waiting));
    let tidegate = Tidegate::start(config);
    let _held = served(tidegate.connect());
    tidegate.connect().expect_end(End::Fin);
    eventually_eq("it counts as refused", &1, || tidegate.closed("listener_max_connections"));

    let other = tidegate.addr_of("other", 0);
    let first = served(connect_from(local(1), &other));
    let mut second = connect_from(local(2), &other);
    second.send("patience");
    let active = || tidegate.metrics().one("tidegate_listener_connections_active", &[("listener", "other")]) as u64;
    throughout("it waits", Duration::from_millis(500), || active() == 1);
    assert!(!second.is_cut());
    // Of the other listener it's said that it refuses.
    tidegate.logged(&["clients wait to be accepted", "listener=other", "limits=listener_max_connections"]);
    assert_eq!(tidegate.count_logged(&["clients wait", "listener=web"]), 0);
    first.reset();
    second.expect("patience");
    assert_eq!(limit(&tidegate, "refusals_total", "listener", "other"), 0);
}

#[test]
fn a_listener_that_lets_wait_asks_for_no_place_while_nobody_wants_one() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]).listener("max_connections = 1\noverload = \"wait\""));
    let first = served(tidegate.connect());
    let told = || tidegate.count_logged(&["clients wait to be accepted"]);
    // It is told within a second.
    throughout("nobody waits", Duration::from_millis(2_500), || told() == 0);
    let mut second = tidegate.connect();
    second.send("patience");
    eventually_eq("somebody waits", &1, told);
    first.reset();
    second.expect("patience");
}

#[test]
fn a_dry_run_serves_everybody_and_says_whom_it_would_have_refused() {
    let backend = Backend::echo();
    let limits = "max_connections = 2\nallow = [\"127.0.0.0/24\"]\ndry_run = true";
    let tidegate = Tidegate::start(Config::over([&backend]).listener(limits));
    let addr = tidegate.addr();
    let _held: Vec<Conn> = (1..=5).map(|client| served(connect_from(local(client), &addr))).collect();
    let _foreign = served(connect_from(Ipv4Addr::new(127, 1, 0, 0), &addr));
    let counted = |reason: &str| {
        let labels = [("name", "web"), ("dry_run", "true"), ("reason", reason)];
        tidegate.metrics().sum("tidegate_limit_refusals_total", &labels) as u64
    };
    assert_eq!((counted("max_connections"), counted("denied")), (3, 1));
    assert_eq!(tidegate.metrics().sum("tidegate_limit_refusals_total", &[("dry_run", "false")]) as u64, 0);
    assert_eq!(tidegate.status()["limits"][1]["refused_dry_run"], 4);
    assert_eq!(limit(&tidegate, "connections", "listener", "web"), 2, "as if it had refused");
}

#[test]
fn f36_at_the_maximum_each_policy_does_its_own_and_the_admin_endpoint_and_the_probes_go_on() {
    let backend = Backend::echo();
    let health = "interval = \"50ms\"\nfast_interval = \"50ms\"";
    for overload in ["reset", "close", "wait"] {
        let config = Config::over([&backend]).runtime("max_connections = 3").health(health);
        let tidegate = Tidegate::start(config.listener(&format!("overload = \"{overload}\"")));
        let mut held: Vec<Conn> = (0..3).map(|_| served(tidegate.connect())).collect();
        let mut late = tidegate.connect();
        match overload {
            "reset" => late.expect_end(End::Rst),
            "close" => late.expect_end(End::Fin),
            _ => late.send("late"),
        }
        let checks = || tidegate.metrics().sum("tidegate_backend_health_checks_total", &[("result", "success")]) as u64;
        let before = checks();
        eventually("probes go on", || checks() >= before + 3);
        assert_eq!(tidegate.get("/readyz").status, 200, "{overload}");
        assert_eq!(limit(&tidegate, "connections", "process", ""), 3, "{overload}");
        assert_eq!(limit(&tidegate, "max_connections", "process", ""), 3, "{overload}");
        let refused = u64::from(overload != "wait");
        eventually_eq("refused or not", &refused, || tidegate.closed("max_connections"));
        assert_eq!(limit(&tidegate, "refusals_total", "process", ""), refused, "{overload}");
        held.remove(0).reset();
        if overload == "wait" {
            late.expect("late");
        } else {
            eventually_eq("a place is free", &2, || limit(&tidegate, "connections", "process", ""));
            served(tidegate.connect());
        }
    }
}

#[test]
fn what_a_listener_has_reserved_is_there_while_another_one_is_flooded() {
    let backend = Backend::echo();
    let config =
        Config::over([&backend]).runtime("max_connections = 6").more(&other_listener("reserved_connections = 2"));
    let tidegate = Tidegate::start(config);
    let other = tidegate.addr_of("other", 0);
    let flood: Vec<Conn> = (0..4).map(|_| served(tidegate.connect())).collect();
    for _ in 0..5 {
        tidegate.connect().expect_end(End::Rst);
    }
    let kept: Vec<Conn> = (0..2).map(|_| served(Conn::to(&other))).collect();
    Conn::to(&other).expect_end(End::Rst);
    // What the flood leaves may be taken by either; what was reserved comes back to its listener alone.
    drop(kept);
    eventually_eq("the reserve is free", &4, || limit(&tidegate, "connections", "process", ""));
    tidegate.connect().expect_end(End::Rst);
    served(Conn::to(&other));
    assert_eq!(tidegate.status()["listeners"][1]["reserved"], 2);
    drop(flood);
    tidegate.until_idle();
    eventually_eq("all come back", &0, || limit(&tidegate, "connections", "process", ""));
}

#[test]
fn a_listener_that_lets_wait_holds_up_no_other_one() {
    let backend = Backend::echo();
    let config =
        Config::over([&backend]).only_runtime("workers = 1").listener("max_connections = 1\noverload = \"wait\"");
    let tidegate = Tidegate::start(config.more(&other_listener("")));
    let _held = served(tidegate.connect());
    let _waiting: Vec<Conn> = (0..50).map(|_| tidegate.connect()).collect();
    let other = tidegate.addr_of("other", 0);
    for _ in 0..100 {
        served(Conn::to(&other));
    }
    assert_eq!(limit(&tidegate, "connections", "listener", "web"), 1);
}

#[test]
fn f05_clients_that_reset_before_they_are_accepted_leave_no_count_behind() {
    let backend = Backend::echo();
    let limits = "max_connections = 3\nmax_connections_per_client = 3";
    let tidegate = Tidegate::start(Config::over([&backend]).listener(limits));
    tidegate.signal(Signal::STOP);
    for _ in 0..50 {
        tidegate.connect().reset();
    }
    tidegate.signal(Signal::CONT);
    let ended = || {
        let reasons = ["client_reset", "listener_max_connections", "client_max_connections"];
        reasons.iter().map(|reason| tidegate.closed(reason)).sum::<u64>()
    };
    eventually_eq("all have ended", &50, ended);
    assert_eq!(backend.accepted(), 0);
    let _held: Vec<Conn> = (0..3).map(|_| served(tidegate.connect())).collect();
    tidegate.connect().expect_end(End::Rst);
}

#[test]
fn f16_thousands_of_connect_and_close_leave_no_descriptor_and_no_count_behind() {
    const EACH: u32 = 1_000;
    let backend = Backend::echo();
    let limits = "max_connections = 500\nmax_connections_per_client = 400\naccept_rate_per_client = \"100000/s\"";
    let tidegate = Tidegate::start(Config::over([&backend]).listener(limits).runtime("max_connections = 1000"));
    let addr = tidegate.addr();
    served(tidegate.connect()).reset();
    tidegate.until_idle();
    let before = tidegate.fds().len();
    std::thread::scope(|scope| {
        for client in 1..=4 {
            let addr = &addr;
            // Resets, so that the test itself leaves no ports in TIME_WAIT either.
            scope.spawn(move || (0..EACH).for_each(|_| connect_from(local(client), addr).reset()));
        }
    });
    tidegate.until_idle();
    eventually("all descriptors are closed", || tidegate.fds().len() <= before);
    eventually_eq("no connection is left", &0, || limit(&tidegate, "connections", "listener", "web"));
    eventually_eq("nor in the process", &0, || limit(&tidegate, "connections", "process", ""));
    eventually_eq("nor at the backend", &0, || kernel::sockets_to(backend.addr.tcp().port(), &["01"]));
    served(tidegate.connect());
}

#[test]
fn f37_a_flood_of_addresses_leaves_the_table_bounded_and_the_established_known() {
    const ADDRESSES: u32 = 5_000;
    let backend = Backend::sink();
    let limits = "max_connections_per_client = 1\naccept_rate_per_client = \"10/h\"\nburst_per_client = 10\n\
                  max_clients = 100";
    let tidegate = Tidegate::start(Config::over([&backend]).listener(limits));
    let addr = tidegate.addr();
    let known: Vec<Conn> = (1..=20).map(|client| connect_from(local(client), &addr)).collect();
    eventually_eq("they are established", &20, || limit(&tidegate, "connections", "listener", "web"));
    let before = kernel::resident(tidegate.pid);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let addr = &addr;
            scope.spawn(move || {
                for number in (0..ADDRESSES).filter(|number| number % 4 == thread) {
                    connect_from(local(1_000 + number), addr).reset();
                }
            });
        }
    });
    let accepted = || tidegate.metrics().one("tidegate_listener_connections_total", &[]) as u32;
    eventually_eq("all were accepted", &(ADDRESSES + 20), accepted);
    eventually_eq("the flood is over", &20, || limit(&tidegate, "connections", "listener", "web"));
    assert!(limit(&tidegate, "clients", "listener", "web") <= 100);
    assert_eq!(limit(&tidegate, "max_clients", "listener", "web"), 100);
    let grown = kernel::resident(tidegate.pid).saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes");
    // All owe something for a while. Whom the table doesn't know any more it tells, and whom it had no room for.
    let told = ["evictions_total", "untracked_total"].map(|metric| limit(&tidegate, metric, "listener", "web"));
    assert_eq!(told.iter().sum::<u64>() + 100, u64::from(ADDRESSES) + 20, "{told:?}");
    for client in 1..=20 {
        connect_from(local(client), &addr).expect_end(End::Rst);
    }
    eventually_eq("each is still known", &20, || tidegate.closed("client_max_connections"));
    drop(known);
}
