//! How listeners' sockets are made, where it takes privileges or a namespace of one's own: interfaces, other hosts'
//! addresses, owners, fast open and MPTCP.

use crate::kit::{Addr, Backend, Config, Conn, End, Launch, Listening, Tidegate, kernel};
use crate::net::{self, ip, nft, set};
use socket2::{Domain, Protocol, Socket, Type};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use tidegate::sys::option;

fn with_socket(config: Config, keys: &str) -> Config {
    config.listener(&format!("[listeners.web.socket]\n{keys}"))
}

#[test]
fn an_interface_lets_in_whom_it_brings() {
    let Some(cable) = net::cable() else { return };
    let backend = Backend::named("x");
    let config = || with_socket(Config::over([&backend]).bind("0.0.0.0:23102"), "interface = \"cable\"");
    let near = || Conn::try_to(&Addr::parse("127.0.0.1:23102"));
    let through = || Conn::to(&Addr::parse("198.18.0.1:23102")).rest().text();
    let tidegate = Tidegate::start(config());
    assert!(near().is_err(), "nobody listens on lo");
    assert_eq!(cable.beyond(through).join().unwrap(), "x\n");
    drop(tidegate);
    // The same address for another interface is another listener.
    let inside = Backend::named("inside");
    let more = format!(
        "[listeners.inside]\nbind = \"0.0.0.0:23102\"\npool = \"inside\"\nsocket.interface = \"lo\"\n\
         [pools.inside]\nbackends = [\"{inside}\"]\nhealth.probe = \"none\""
    );
    let _tidegate = Tidegate::start(config().more(&more));
    assert_eq!(near().unwrap().rest().text(), "inside\n");
    assert_eq!(cable.beyond(through).join().unwrap(), "x\n");
}

#[test]
fn an_address_of_another_host_can_be_bound_transparently_and_not_otherwise() {
    let Some(cable) = net::cable() else { return };
    let backend = Backend::named("x");
    let config = || Config::over([&backend]).bind("203.0.113.7:23100");
    let exit = Launch::new(config()).run_to_end();
    assert_eq!(exit.code, Some(71), "{exit:?}");
    assert!(exit.stderr.contains("no interface of this host has that address"), "{}", exit.stderr);
    let _tidegate = Tidegate::start(with_socket(config(), "transparent = true"));
    // Packets for it are this machine's by a route.
    ip("route add local 203.0.113.7/32 dev lo");
    cable.far_ip("route add 203.0.113.7/32 via 198.18.0.1");
    let reach = || Conn::to(&Addr::parse("203.0.113.7:23100")).rest().text();
    assert_eq!(cable.beyond(reach).join().unwrap(), "x\n");
}

#[test]
fn clients_of_any_address_are_diverted_by_the_firewall() {
    let Some(cable) = net::cable() else { return };
    let (backend, eight) = (Backend::named("x"), Backend::named("eight"));
    let more = format!(
        "[[listeners.web.routes]]\nlocal_address = \"203.0.113.8/32\"\nlocal_port = 80\npool = \"eight\"\n\
         [pools.eight]\nbackends = [\"{eight}\"]\nhealth.probe = \"none\""
    );
    let config = with_socket(Config::over([&backend]).bind("0.0.0.0:23101"), "transparent = true").more(&more);
    let _tidegate = Tidegate::start(config);
    nft("add table inet tidegate");
    nft("add chain inet tidegate clients { type filter hook prerouting priority mangle; policy accept; }");
    nft("add rule inet tidegate clients iifname cable tcp dport 80 meta mark set 1 tproxy ip to :23101 accept");
    ip("rule add fwmark 1 lookup 100");
    ip("route add local default dev lo table 100");
    cable.far_ip("route add 203.0.113.0/24 via 198.18.0.1");
    // Routes go by the address that the client has connected to.
    for (host, answer) in [("203.0.113.7", "x\n"), ("203.0.113.8", "eight\n")] {
        let reach = move || {
            let mut conn = Conn::to(&Addr::parse(&format!("{host}:80")));
            (conn.peer().ip().to_string(), conn.rest().text())
        };
        assert_eq!(cable.beyond(reach).join().unwrap(), (host.to_owned(), answer.to_owned()));
    }
}

#[test]
fn a_unix_socket_has_its_owner_mode_and_group_and_they_decide_who_connects() {
    if !net::is_root("this test gives a file to another user") {
        return;
    }
    let backend = Backend::named("x");
    let config = with_socket(
        Config::over([&backend]).bind("unix:$DIR/web.sock"),
        "mode = \"0600\"\nowner = \"nobody\"\ngroup = \"65534\"",
    );
    let tidegate = Tidegate::start(config);
    let path = tidegate.dir().join("web.sock");
    let seen = std::fs::metadata(&path).unwrap();
    assert_eq!((seen.permissions().mode() & 0o7777, seen.uid(), seen.gid()), (0o600, 65_534, 65_534));
    // The folder lets everybody through; what is left to decide is the socket's own.
    std::fs::set_permissions(tidegate.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let connects = |user: &str| {
        let ids = [format!("--reuid={user}"), format!("--regid={user}")];
        let mut command = std::process::Command::new("setpriv");
        command.args(ids).args(["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
        command.args(["curl", "--silent", "http://x/", "--unix-socket"]).arg(&path);
        let code = crate::kit::program::run(&mut command, "Install it: apt-get install util-linux curl").status.code();
        // 7 is "can't connect"; what is answered there is no HTTP, which is another matter.
        code.unwrap() != 7
    };
    assert!(connects("65534") && !connects("65533"));
}

/// A listening socket that takes bytes with a SYN.
fn with_fast_open(address: &str) -> Listening {
    let listening = Listening::at(&Addr::parse(address));
    option::set_fast_open_queue(listening.as_fd(), 16).unwrap();
    listening
}

#[test]
fn fast_open_saves_the_round_trip_to_a_backend_that_has_it() {
    let Some(cable) = net::cable() else { return };
    set("ipv4/tcp_fastopen", "1");
    let listening = cable
        .beyond(|| {
            set("ipv4/tcp_fastopen", "3");
            with_fast_open("198.18.0.2:0")
        })
        .join()
        .unwrap();
    let tidegate = Tidegate::start(Config::over([&listening]).connect("fast_open = true").logged());
    for round in 0..4 {
        let mut client = tidegate.connect();
        client.send("first");
        let mut backend = listening.accept();
        backend.expect("first");
        client.send_pattern(0, 300_000);
        backend.expect_pattern(0, 300_000);
        backend.send_pattern(0, 300_000);
        client.expect_pattern(0, 300_000);
        client.finish();
        backend.expect_end(End::Fin);
        backend.send("last");
        drop(backend);
        client.expect("last");
        client.expect_end(End::Fin);
        // The first connection brings the cookie.
        let passive = cable.beyond(|| kernel::tcp_ext("TCPFastOpenPassive")).join().unwrap();
        assert_eq!((kernel::tcp_ext("TCPFastOpenActive"), passive), (round, round));
    }
    for record in tidegate.records(4) {
        assert_eq!(record["reason"], "complete", "{record}");
    }
}

#[test]
fn fast_open_clients_are_taken_with_their_first_bytes() {
    let Some(cable) = net::cable() else { return };
    set("ipv4/tcp_fastopen", "3");
    let backend = Backend::echo();
    let tidegate = Tidegate::start(with_socket(Config::over([&backend]).bind("198.18.0.1:0"), "fast_open = 16"));
    for round in 0..3 {
        let address = tidegate.addr();
        let speak = move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            option::set_fast_open_connect(&socket).unwrap();
            socket.connect(&address.tcp().into()).unwrap();
            Conn::new(socket).speak();
        };
        cable.beyond(speak).join().unwrap();
        assert_eq!(kernel::tcp_ext("TCPFastOpenPassive"), round);
    }
    assert_eq!(tidegate.count_logged(&["fast_open"]), 0);
}

#[test]
fn fast_open_to_a_backend_that_has_gone_ends_in_a_reset_and_nothing_else() {
    let Some(cable) = net::cable() else { return };
    set("ipv4/tcp_fastopen", "1");
    let listening = cable
        .beyond(|| {
            set("ipv4/tcp_fastopen", "3");
            with_fast_open("198.18.0.2:0")
        })
        .join()
        .unwrap();
    let tidegate = Tidegate::start(Config::over([&listening]).connect("fast_open = true"));
    let mut client = tidegate.connect();
    client.send("x");
    listening.accept().expect("x");
    drop((client, listening));
    tidegate.until_idle();
    // The cookie is known, so that the connect seems to succeed.
    let mut client = tidegate.connect();
    client.send("x");
    client.expect_end(End::Rst);
    // One that says nothing but goodbye.
    let mut client = tidegate.connect();
    client.finish();
    client.expect_end(End::Rst);
}

#[test]
fn fast_open_and_replay_together_bear_a_backend_that_has_gone() {
    let Some(cable) = net::cable() else { return };
    set("ipv4/tcp_fastopen", "1");
    let listening = cable
        .beyond(|| {
            set("ipv4/tcp_fastopen", "3");
            with_fast_open("198.18.0.2:0")
        })
        .join()
        .unwrap();
    let near = Backend::echo();
    let config = Config::with_pool(&format!(
        "backends = [\"{}\", {{ address = \"{near}\", backup = true }}]\nreplay = \"1KiB\"",
        listening.addr
    ));
    let config = config.connect("fast_open = true").ejection("consecutive_failures = 1");
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    client.send("x");
    listening.accept().expect("x");
    let gone = listening.addr.clone();
    drop((client, listening));
    tidegate.until_idle();
    // With its cookie known, the connect seems to succeed; what follows doesn't.
    tidegate.connect().speak();
    assert_eq!(tidegate.state(&gone), "ejected");
}

/// Whether this kernel has MPTCP.
fn has_mptcp() -> bool {
    let enabled = std::fs::read_to_string("/proc/sys/net/mptcp/enabled").is_ok_and(|on| on.trim() == "1");
    if !enabled {
        println!("this kernel has no MPTCP, or has it turned off");
    }
    enabled
}

fn mptcp_socket() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap()
}

/// MPTCP connections that this namespace has accepted.
fn accepted_by_mptcp() -> u64 {
    kernel::netstat("MPTcpExt", "MPCapableACKRX")
}

#[test]
fn mptcp_goes_from_end_to_end_with_its_ends_as_they_are() {
    let Some(cable) = net::cable() else { return };
    if !has_mptcp() {
        return;
    }
    let listening = cable.beyond(|| Listening::on(mptcp_socket(), "198.18.0.2:0")).join().unwrap();
    let config = with_socket(Config::over([&listening]).bind("198.18.0.1:0"), "mptcp = true");
    let tidegate = Tidegate::start(config.connect("mptcp = true").logged());
    let connect = || {
        let address = tidegate.addr();
        let client = cable.beyond(move || {
            let socket = mptcp_socket();
            socket.connect(&address.tcp().into()).unwrap();
            Conn::new(socket)
        });
        (client.join().unwrap(), listening.accept())
    };
    let (mut client, mut backend) = connect();
    client.send_pattern(0, 1_000_000);
    backend.expect_pattern(0, 1_000_000);
    client.finish();
    backend.expect_end(End::Fin);
    backend.send_pattern(0, 1_000_000);
    drop(backend);
    client.expect_pattern(0, 1_000_000);
    client.expect_end(End::Fin);
    assert_eq!(accepted_by_mptcp(), 1, "the client's");
    assert_eq!(cable.beyond(accepted_by_mptcp).join().unwrap(), 1, "the backend's");

    let (mut client, mut backend) = connect();
    client.send("hello");
    backend.expect("hello");
    backend.reset();
    client.expect_end(End::Rst);

    let (mut client, mut backend) = connect();
    client.send("hello");
    backend.expect("hello");
    client.reset();
    backend.expect_end(End::Rst);

    let (mut client, mut backend) = connect();
    client.send("hello");
    backend.expect("hello");
    let mut tidegate = tidegate;
    tidegate.signal(rustix::process::Signal::KILL);
    for end in [&mut client, &mut backend] {
        end.expect_end(End::Rst);
    }
    assert_eq!(tidegate.wait().code, None);
}

#[test]
fn mptcp_falls_back_to_tcp_where_it_is_off_or_the_other_side_has_none() {
    let Some(_cable) = net::cable() else { return };
    if !has_mptcp() {
        return;
    }
    let backend = Backend::echo();
    let config = || with_socket(Config::over([&backend]), "mptcp = true").connect("mptcp = true");
    Tidegate::start(config()).connect().speak();
    set("mptcp/enabled", "0");
    let tidegate = Tidegate::start(config());
    tidegate.connect().speak();
    for key in ["listeners.web.socket.mptcp", "pools.web.connect.mptcp"] {
        tidegate.logged(&[key, "net.mptcp.enabled = 0 keeps it off, so that plain TCP is used"]);
    }
}
