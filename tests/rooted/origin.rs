//! Where connects come from, in namespaces with few ports, routes by mark, and clients whose own address is kept.

use crate::kit::files::copy_program;
use crate::kit::{Addr, Backend, Config, Conn, End, Launch, Listening, Tidegate, eventually, eventually_eq, outcomes};
use crate::net::{self, Cable, ip, nft, set};
use std::time::Duration;

/// Local ports of the near namespace, so few that a test may use them all.
const PORTS: usize = 200;

/// Clients of a unix socket, which need no ports: as long as there are backends for them.
fn fill(tidegate: &Tidegate, count: usize) -> Vec<Conn> {
    (0..count).map(|_| tidegate.connect()).collect()
}

/// Over backends beyond the cable, for clients of a unix socket.
fn over_the_cable(cable: &Cable, backends: usize) -> (Vec<Listening>, Config) {
    let listening = cable
        .beyond(move || (0..backends).map(|_| Listening::at(&Addr::parse("198.18.0.2:0"))).collect::<Vec<_>>())
        .join()
        .unwrap();
    let config = Config::over(listening.iter().map(|listening| &listening.addr)).bind("unix:$DIR/web.sock").logged();
    let config = config.listener("half_close_timeout = \"0s\"");
    (listening, config.ejection("consecutive_failures = 1\nmax_ejected = \"100%\"").connect("attempts = 1"))
}

/// `most` clients are served, and one more finds no port, which is no fault of a backend's.
fn carries_exactly(tidegate: &Tidegate, listening: &[Listening], most: usize) {
    // Only now: a port that somebody listens on, as the admin endpoint does, is none for connects.
    set("ipv4/ip_local_port_range", &format!("20000 {}", 20_000 + PORTS - 1));
    let clients = fill(tidegate, most);
    eventually_eq("all of them have a backend", &(most as u64), || {
        tidegate.count("tidegate_backend_connections_total")
    });
    assert_eq!(tidegate.closed("no_resources"), 0);
    for _ in 0..3 {
        let mut one_more = tidegate.connect();
        assert_eq!(one_more.rest().bytes, b"");
    }
    let labels = [("reason", "no_port")];
    assert_eq!(tidegate.metrics().sum("tidegate_backend_connect_errors_total", &labels) as u64, 3);
    eventually_eq("each for that reason", &3, || tidegate.closed("no_resources"));
    for listening in listening {
        assert_eq!(tidegate.state(&listening.addr), "up");
    }
    // A port that comes free is used again.
    drop(clients);
    eventually_eq("they have gone", &0, || tidegate.sessions());
    // A moment later: an address that had none left is given some time.
    let mut again = Vec::new();
    eventually("one more is served", || {
        again.push(tidegate.connect());
        tidegate.count("tidegate_backend_connections_total") > most as u64
    });
}

#[test]
fn the_ports_of_one_address_bound_the_connections_to_one_backend() {
    let Some(cable) = net::cable() else { return };
    let (listening, config) = over_the_cable(&cable, 1);
    carries_exactly(&Tidegate::start(config), &listening, PORTS);
}

#[test]
fn several_source_addresses_carry_as_many_times_the_connections() {
    let Some(cable) = net::cable() else { return };
    for last in 11..=14 {
        ip(&format!("address add 198.18.0.{last}/24 dev cable"));
    }
    let (listening, config) = over_the_cable(&cable, 1);
    let sources = "source_address = [\"198.18.0.11\", \"198.18.0.12\", \"198.18.0.13\", \"198.18.0.14\"]";
    let tidegate = Tidegate::start(config.connect(sources));
    carries_exactly(&tidegate, &listening, 4 * PORTS);
    tidegate.logged(&["can't connect", "no port left"]);
    assert_eq!(tidegate.count_logged(&["can't connect"]), 1, "one line in ten seconds");
}

#[test]
fn each_backend_has_all_ports_of_a_source_address() {
    let Some(cable) = net::cable() else { return };
    let (listening, config) = over_the_cable(&cable, 2);
    // A port that were chosen by the bind could be used for one of the two only.
    let tidegate = Tidegate::start(config.connect("source_address = \"198.18.0.1\""));
    carries_exactly(&tidegate, &listening, 2 * PORTS);
}

/// A backend behind an address to which there is no route.
fn off_the_map(cable: &Cable) -> Listening {
    cable.far_ip("address add 198.51.100.1/32 dev lo");
    cable.beyond(|| Listening::at(&Addr::parse("198.51.100.1:0"))).join().unwrap()
}

/// That a session gets through to `listening`, from `source`.
fn arrives(config: Config, listening: &Listening) {
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    let mut backend = listening.accept();
    assert_eq!(backend.peer().ip().to_string(), "198.18.0.1");
    client.send("hello");
    backend.expect("hello");
}

fn finds_no_route(config: Config) {
    let tidegate = Tidegate::start(config.logged());
    tidegate.connect().expect_end(End::Rst);
    let record = tidegate.records(1).remove(0);
    assert!(outcomes(&record)[0].ends_with(" no_route"), "{record}");
}

#[test]
fn a_mark_leads_by_another_table() {
    let Some(cable) = net::cable() else { return };
    let listening = off_the_map(&cable);
    ip("rule add fwmark 7 lookup 77");
    ip("route add 198.51.100.1/32 dev cable table 77");
    let config = || Config::over([&listening]).connect("attempts = 1");
    finds_no_route(config());
    finds_no_route(config().connect("mark = 8"));
    arrives(config().connect("mark = 7"), &listening);
    // Probes carry it too: without a way, this one would never be up.
    let probed = config().connect("mark = 7").health("probe = \"tcp\"\ninterval = \"100ms\"\ntimeout = \"100ms\"");
    let tidegate = Tidegate::start(probed);
    eventually("it is up", || tidegate.count("tidegate_backend_up") == 1);
}

#[test]
fn an_interface_leads_out_whatever_the_routes_say() {
    let Some(cable) = net::cable() else { return };
    let listening = off_the_map(&cable);
    let config = || Config::over([&listening]).connect("attempts = 1");
    finds_no_route(config());
    arrives(config().connect("interface = \"cable\""), &listening);
}

#[test]
fn a_mark_without_the_privilege_ends_the_start_with_the_way_out() {
    if !net::is_root("this test starts as another user") {
        return;
    }
    let who = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
    for (keys, sentence) in [
        ("mark = 7", "pools.web.connect.mark: Operation not permitted (os error 1); a mark needs CAP_NET_ADMIN"),
        ("transparent = true", "pools.web.connect.transparent: Operation not permitted (os error 1); other hosts'"),
    ] {
        let launch = Launch::new(Config::over(["127.0.0.1:1"]).connect(keys));
        let copy = launch.dir().join("tidegate");
        copy_program(env!("CARGO_BIN_EXE_tidegate"), &copy);
        for path in [launch.dir(), &launch.dir().join("lb.toml")] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(path, mode).unwrap();
        }
        let script = format!("exec {} \"$@\"", copy.display());
        let exit = launch.wrapped(who.into_iter().chain(["sh", "-c", &script])).run_to_end();
        assert_eq!(exit.code, Some(71), "{exit:?}");
        assert!(exit.stderr.contains(sentence) && exit.stderr.contains("AmbientCapabilities="), "{}", exit.stderr);
    }
}

/// The way back to this machine for answers to other hosts' addresses, as docs/routing.md describes it.
fn divert_answers() {
    nft("add table inet tidegate");
    nft("add chain inet tidegate answers { type filter hook prerouting priority mangle; policy accept; }");
    nft("add rule inet tidegate answers meta l4proto tcp socket transparent 1 meta mark set 1 accept");
    for family in ["-4", "-6"] {
        ip(&format!("{family} rule add fwmark 1 lookup 100"));
        ip(&format!("{family} route add local default dev lo table 100"));
    }
}

#[test]
fn transparent_backends_see_the_clients_own_address_and_port() {
    let Some(cable) = net::cable() else { return };
    let branch = cable.branch();
    for (family, host, own, near, far) in [
        ("-4", "10.99.0.2", "10.99.0.1", "198.18.0.1", "198.18.0.2"),
        ("-6", "fd00:9::2", "fd00:9::1", "fd00:1::1", "fd00:1::2"),
    ] {
        let (width, option) = if family == "-4" { (24, "") } else { (64, " nodad") };
        ip(&format!("{family} address add {own}/{width} dev rope{option}"));
        branch.ip(&format!("{family} address add {host}/{width} dev rope{option}"));
        branch.ip(&format!("{family} route add default via {own}"));
        if family == "-6" {
            ip(&format!("{family} address add {near}/{width} dev cable{option}"));
            cable.far_ip(&format!("{family} address add {far}/{width} dev cable{option}"));
        }
    }
    divert_answers();
    for interface in ["all", "cable", "rope"] {
        set(&format!("ipv4/conf/{interface}/rp_filter"), "1");
    }
    for (host, near, far) in [("10.99.0.2", "198.18.0.1", "198.18.0.2"), ("[fd00:9::2]", "[fd00:1::1]", "fd00:1::2")] {
        let at = Addr::parse(&format!("{host}:0"));
        let listening = branch.beyond(move || Listening::at(&at)).join().unwrap();
        let health = "probe = \"tcp\"\ninterval = \"100ms\"\ntimeout = \"100ms\"";
        let config = Config::over([&listening]).bind(format!("{near}:0")).health(health);
        let tidegate = Tidegate::start(config.connect("transparent = true").logged());
        let (probe, address) = (listening.accept().try_peer(), tidegate.addr());
        assert!(probe.is_none_or(|peer| peer.ip().to_string() != far), "probes come from this machine");
        for _ in 0..3 {
            let target = address.clone();
            let mut client = cable.beyond(move || Conn::to(&target)).join().unwrap();
            let own = client.local();
            assert_eq!(own.ip().to_string(), far);
            let mut backend = std::iter::repeat_with(|| listening.accept())
                .find(|conn| conn.try_peer().is_some_and(|peer| peer == own))
                .unwrap();
            client.send("who am I?");
            backend.expect("who am I?");
            backend.send(own.to_string());
            client.expect(own.to_string());
            client.finish();
            backend.expect_end(End::Fin);
            drop(backend);
            client.expect_end(End::Fin);
        }
    }
}

#[test]
fn transparent_without_an_address_is_an_error_of_ours() {
    let Some(_cable) = net::cable() else { return };
    let backend = Backend::named("x");
    let config = Config::over([&backend]).bind("unix:$DIR/web.sock").connect("transparent = true");
    let tidegate = Tidegate::start(config.ejection("consecutive_failures = 1\nmax_ejected = \"100%\"").logged());
    for _ in 0..3 {
        assert_eq!(tidegate.connect().rest().bytes, b"");
    }
    for record in tidegate.records(3) {
        assert_eq!(record["reason"], "no_resources");
        assert_eq!(outcomes(&record), [format!("{} no_route", backend.addr)]);
    }
    assert_eq!(tidegate.state(&backend.addr), "up");
    tidegate.logged(&["a client of a unix socket has none"]);
    assert_eq!(tidegate.count_logged(&["can't connect"]), 1);
}

#[test]
fn transparent_uses_another_port_where_the_clients_own_is_taken() {
    let Some(cable) = net::cable() else { return };
    let branch = cable.branch();
    ip("address add 10.99.0.1/24 dev rope");
    branch.ip("address add 10.99.0.2/24 dev rope");
    branch.ip("route add default via 10.99.0.1");
    divert_answers();
    let listening = branch.beyond(|| Listening::at(&Addr::parse("10.99.0.2:0"))).join().unwrap();
    let config = Config::over([&listening]).bind("198.18.0.1:0").connect("transparent = true");
    let tidegate = Tidegate::start(config);
    let address = tidegate.addr();
    let client = cable.beyond(move || Conn::to(&address)).join().unwrap();
    let (first, own) = (listening.accept().peer(), client.local());
    assert_eq!(first, own);
    // Somebody here listens on the port that the next client has.
    let (port, address) = (own.port(), tidegate.addr());
    client.reset();
    tidegate.until_idle();
    let _taken = Listening::at(&Addr::parse(&format!("0.0.0.0:{port}")));
    let from_there = move || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&std::net::SocketAddr::from(([198, 18, 0, 2], port)).into()).unwrap();
        socket.connect_timeout(&address.tcp().into(), Duration::from_secs(10)).unwrap();
        Conn::new(socket)
    };
    let client = cable.beyond(from_there).join().unwrap();
    assert_eq!(client.local().port(), port);
    let seen = listening.accept().peer();
    assert_eq!(seen.ip(), own.ip());
    assert_ne!(seen.port(), port);
}
