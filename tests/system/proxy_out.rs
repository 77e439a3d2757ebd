//! The PROXY header that a backend gets: whole, first, once, and with what the pool wants it to say.

use crate::hold::{QUICK, until_held};
use crate::kit::proxied::{Told, told, told_v1};
use crate::kit::{
    Addr, Backend, Config, Conn, End, Listening, Refusing, Silent, Tidegate, eventually, eventually_eq, outcomes,
};
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use tidegate::net::client_hello;

fn over<T: Display>(backends: impl IntoIterator<Item = T>, version: &str) -> Config {
    Config::over(backends).pool(&format!("send_proxy_protocol = \"{version}\"")).logged()
}

fn told_by(version: &str, conn: &mut Conn) -> Told {
    if version == "v1" { told_v1(conn) } else { told(conn) }
}

#[test]
fn f73_the_header_comes_first_and_says_from_where_to_where() {
    for version in ["v1", "v2"] {
        for bind in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let backend = Listening::new();
            let tidegate = Tidegate::start(over([&backend], version).bind(bind));
            let mut address = tidegate.addr().tcp();
            if address.ip().is_unspecified() {
                // An IPv4 client of a socket for both families.
                address.set_ip("127.0.0.1".parse().unwrap());
            }
            let mut client = Conn::to(&address.into());
            let mut served = backend.accept();
            let told = told_by(version, &mut served);
            assert_eq!(told.addresses, Some((client.local(), client.peer())), "{version} {bind}");
            client.send("hello");
            served.expect("hello");
            served.send("hi there");
            client.expect("hi there");
            client.finish();
            served.expect_end(End::Fin);
            drop(served);
            client.expect_end(End::Fin);
            // What we say ourselves counts nowhere.
            let record = tidegate.records(1).remove(0);
            assert_eq!((&record["to_backend"], &record["to_client"]), (&5.into(), &8.into()), "{record}");
            let bytes = tidegate.metrics().sum("tidegate_backend_bytes_total", &[("direction", "to_backend")]);
            assert_eq!(bytes as u64, 5);
        }
    }
}

#[test]
fn a_client_without_an_address_is_one_of_whom_nothing_is_known() {
    let directory = tempfile::tempdir().unwrap();
    for version in ["v1", "v2"] {
        let backend = Listening::new();
        let socket = directory.path().join(version);
        let tidegate = Tidegate::start(over([&backend], version).bind(format!("unix:{}", socket.display())));
        let mut client = Conn::to(&tidegate.addr());
        let mut served = backend.accept();
        let told = told_by(version, &mut served);
        assert_eq!(told.addresses, None);
        // A client there is: a proxy's own connection it isn't.
        assert_eq!((told.command, told.family), if version == "v2" { (0x21, 0) } else { (0, 0) });
        client.send("x");
        served.expect("x");
    }
}

#[test]
fn a_binary_header_says_what_the_pool_wants() {
    let backend = Listening::new();
    let tlvs = "unique_id = true\ntlvs = { \"0xE1\" = \"edge\", \"0xF0\" = \"hex:00ff\" }";
    let tidegate = Tidegate::start(over([&backend], "v2").more(&format!("[pools.web.proxy_protocol]\n{tlvs}")));
    let client = tidegate.connect();
    let told = told(&mut backend.accept());
    assert!(told.checked);
    drop(client);
    let id = tidegate.records(1)[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(told.tlvs, [(0xe1, b"edge".to_vec()), (0xf0, vec![0, 255]), (5, id.into_bytes())]);

    let backend = Listening::new();
    let plain = over([&backend], "v2").more("[pools.web.proxy_protocol]\ncrc32c = false");
    let tidegate = Tidegate::start(plain);
    let _client = tidegate.connect();
    let plain = self::told(&mut backend.accept());
    assert_eq!((plain.tlvs, plain.checked), (Vec::new(), false));
}

#[test]
fn f73_a_long_header_goes_through_a_window_of_a_few_bytes_before_anything_else() {
    let backend = Listening::new().small_windows();
    let value = "x".repeat(3_000);
    let tlvs = format!("[pools.web.proxy_protocol]\ntlvs = {{ \"0xE0\" = \"{value}\" }}");
    let tidegate = Tidegate::start(over([&backend], "v2").more(&tlvs));
    let mut client = tidegate.connect();
    // The client is quicker than its backend.
    client.send_pattern(0, 20_000);
    let mut served = backend.accept();
    let mut header = Vec::new();
    for _ in 0..16 + 12 + 3 + 3_000 + 7 {
        header.extend(served.receive(1));
    }
    assert!(header.starts_with(crate::kit::proxied::SIGNATURE));
    assert_eq!(header[31..3_031], *value.as_bytes());
    served.expect_pattern(0, 20_000);
}

#[test]
fn each_backend_that_is_tried_gets_one_header() {
    for version in ["v1", "v2"] {
        let (refusing, dying, living) = (Refusing::new(), Listening::new(), Listening::new());
        let tiers = [(refusing.to_string(), 0), (dying.to_string(), 1), (living.to_string(), 1)];
        let backends = tiers.map(|(address, tier)| format!("{{ address = \"{address}\", tier = {tier} }}"));
        let config = Config::with_pool(&format!("backends = [{}]", backends.join(", ")))
            .pool(&format!("send_proxy_protocol = \"{version}\"\nreplay = \"16KiB\""))
            .connect("attempts = 4")
            .logged();
        let tidegate = Tidegate::start(config);
        let mut client = tidegate.connect();
        client.send("a request");
        // Which of the two is first is open: either dies with the request.
        let all = [dying, living];
        for last in [false, true] {
            let mut served = crate::kit::eventually_some("a connection", || all.iter().find_map(Listening::accept_now));
            let told = told_by(version, &mut served);
            assert_eq!(told.source(), client.local(), "{version}");
            served.expect("a request");
            if last {
                served.send("an answer");
                client.expect("an answer");
                client.send(" and more");
                served.expect(" and more");
                client.finish();
                served.expect_end(End::Fin);
            } else {
                served.reset();
            }
        }
        client.expect_end(End::Fin);
        let record = tidegate.records(1).remove(0);
        assert_eq!(record["to_backend"], "a request and more".len(), "{record}");
        let outcomes = outcomes(&record);
        let expected =
            [format!("{refusing} refused"), format!("{} unanswered", outcomes[1].split(' ').next().unwrap())];
        assert_eq!((outcomes.len(), &outcomes[..2]), (3, &expected[..]), "{record}");
    }
}

#[test]
fn the_winner_of_two_connects_has_its_header() {
    let (silent, alive) = (Silent::new(), Listening::new());
    let patient = "timeout = \"60s\"\nbudget = \"60s\"\nhedge_after = \"100ms\"\nhedge_share = \"100%\"";
    let tidegate = Tidegate::start(over([&silent.addr, &alive.addr], "v2").connect(patient));
    let mut client = tidegate.connect();
    client.send("hello");
    let mut served = alive.accept();
    assert_eq!(told(&mut served).source(), client.local());
    served.expect("hello");
}

#[test]
fn who_has_waited_in_the_queue_is_introduced_as_any_other() {
    let backend = Listening::new();
    let config = over([&backend], "v2").pool("backend_max_connections = 1").more("[pools.web.queue]");
    let tidegate = Tidegate::start(config);
    let first = tidegate.connect();
    let mut served = backend.accept();
    assert_eq!(told(&mut served).source(), first.local());
    let mut second = tidegate.connect();
    second.send("hello");
    eventually_eq("it waits", &1, || tidegate.count("tidegate_pool_queue_waiting"));
    drop((first, served));
    let mut served = backend.accept();
    assert_eq!(told(&mut served).source(), second.local());
    served.expect("hello");
}

#[test]
fn what_was_held_comes_behind_the_header() {
    let backend = Backend::named("soon gone");
    let config = over([&backend], "v2").health(QUICK).ejection("consecutive_failures = \"off\"");
    let tidegate = Tidegate::start(config.pool("slow_start = \"0s\"").more("[pools.web.hold]\nmax_wait = \"60s\""));
    eventually_eq("it is up", &1, || tidegate.count("tidegate_backend_up"));
    let address = backend.die();
    eventually_eq("it is down", &0, || tidegate.count("tidegate_backend_up"));
    let mut client = tidegate.connect();
    client.send("hello");
    until_held(&tidegate, 1);
    let backend = Listening::at(&address);
    loop {
        let mut served = backend.accept();
        let told = told(&mut served);
        if told.command == 0x20 {
            // A probe, which says nothing more.
            served.expect_end(End::Fin);
            continue;
        }
        assert_eq!(told.source(), client.local());
        served.expect("hello");
        break;
    }
}

#[test]
fn a_large_transfer_has_nothing_of_the_header_in_it() {
    for relay in ["copy", "splice"] {
        let backend = Listening::new();
        let tidegate = Tidegate::start(over([&backend], "v1").runtime(&format!("relay = \"{relay}\"")));
        let mut client = tidegate.connect();
        let mut served = backend.accept();
        assert_eq!(told_v1(&mut served).source(), client.local());
        crate::kit::conn::transfer(&mut client, &mut served, 0, 5 << 20);
        crate::kit::conn::transfer(&mut served, &mut client, 0, 5 << 20);
    }
}

/// What the connections of a backend have begun with, besides clients.
type Introductions = Arc<Mutex<Vec<Told>>>;

/// Takes the header, and answers a request for its health.
fn introduced(version: &'static str) -> (Backend, Introductions) {
    let seen = Introductions::default();
    let noted = seen.clone();
    let backend = Backend::new(move |mut conn| {
        let told = told_by(version, &mut conn);
        noted.lock().unwrap().push(told);
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            match conn.read(&mut byte) {
                Ok(1) => request.push(byte[0]),
                _ => return,
            }
        }
        let _ = conn.try_send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let _ = conn.try_finish();
        let _ = conn.read(&mut byte);
    });
    (backend, seen)
}

#[test]
fn probes_introduce_themselves_as_our_own() {
    for version in ["v1", "v2"] {
        for probe in ["probe = \"http\"", "probe = \"tcp\""] {
            let (backend, seen) = introduced(version);
            let tidegate = Tidegate::start(over([&backend], version).health(&format!("{probe}\n{QUICK}")));
            eventually("it is up", || tidegate.state(&backend) == "up");
            eventually("some probes", || seen.lock().unwrap().len() > 2);
            for told in seen.lock().unwrap().iter() {
                if version == "v2" {
                    assert_eq!((told.command, told.family), (0x20, 0));
                    assert!(told.tlvs.is_empty());
                } else {
                    // Receivers may refuse UNKNOWN: the line has the probe's own addresses.
                    assert_eq!(told.addresses.map(|(_, to)| Addr::from(to)), Some(backend.addr.clone()));
                }
            }
        }
    }
}

#[test]
fn probes_of_another_port_have_no_header_and_agents_never() {
    let said = Arc::new(Mutex::new(Vec::new()));
    let noted = said.clone();
    let elsewhere = Backend::new(move |mut conn| {
        let _ = conn.try_send("up\n");
        let _ = conn.try_finish();
        let rest = conn.rest();
        noted.lock().unwrap().push(rest.bytes);
    });
    let port = elsewhere.addr.tcp().port();
    let backend = Backend::echo();
    let health = format!(
        "probe = \"exchange\"\nexchange = {{ send = \"ping\", expect = \"up\" }}\nport = {port}\n{QUICK}\n\
         agent = {{ port = {port}, interval = \"100ms\", send = \"state?\" }}"
    );
    let tidegate = Tidegate::start(over([&backend], "v2").health(&health));
    eventually("it is up", || tidegate.state(&backend) == "up");
    eventually("both have asked", || {
        let said = said.lock().unwrap();
        said.contains(&b"ping".to_vec()) && said.contains(&b"state?".to_vec())
    });
    let others: Vec<_> =
        said.lock().unwrap().iter().filter(|said| *said != b"ping" && *said != b"state?").cloned().collect();
    assert_eq!(others, Vec::<Vec<u8>>::new());
}

#[test]
fn the_name_and_the_protocols_that_a_route_has_read_are_told() {
    let backend = Listening::new();
    let tlvs = "[pools.web.proxy_protocol]\nauthority = true\nalpn = true";
    let route = "[[listeners.web.routes]]\nsni = \"*\"\npool = \"web\"";
    // Also where no access log wants to know them.
    let config = Config::over([&backend]).pool("send_proxy_protocol = \"v2\"").more(tlvs).more(route);
    let tidegate = Tidegate::start(config);
    let offers: [(&[&str], Option<&str>); 3] =
        [(&["h2"], Some("h2")), (&["h2", "http/1.1"], Some("\0\x0c\x02h2\x08http/1.1")), (&[], None)];
    for (alpn, expected) in offers {
        let hello = client_hello::write(Some("a.Example.com"), alpn);
        let mut client = tidegate.connect();
        client.send(&hello[..20]);
        client.send(&hello[20..]);
        let mut served = backend.accept();
        let told = told(&mut served);
        assert_eq!((told.tlv(2).as_deref(), told.tlv(1).as_deref()), (Some("a.example.com"), expected));
        assert_eq!(served.receive(hello.len()), hello);
    }
    // Of whom nothing was read, nothing is told.
    let mut client = tidegate.connect();
    client.send("no TLS at all, and none that begins like it");
    assert_eq!(told(&mut backend.accept()).tlvs, []);
}
