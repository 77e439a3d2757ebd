//! PROXY headers from clients: who is believed, what is taken, what is the session's end, and whose address counts.

use crate::admission::{connect_from, local};
use crate::kit::proxied::{SIGNATURE, client, pair, told, told_v1, v2};
use crate::kit::{Backend, Config, Conn, End, Listening, Tidegate, eventually_eq};
use serde_json::Value;
use std::fmt::Display;
use tidegate::net::client_hello;

const TRUSTED: &str = "accept_proxy_protocol = { from = \"127.0.0.1\", timeout = \"60s\" }";
const OPTIONAL: &str = "accept_proxy_protocol = { from = \"127.0.0.1\", timeout = \"60s\", required = false }";
const V1: &str = "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";
const CARRIED: &str = "192.0.2.1:56324";

fn over<T: Display>(backends: impl IntoIterator<Item = T>, accept: &str) -> Config {
    Config::over(backends).listener(accept).logged()
}

fn headers(tidegate: &Tidegate, version: &str, result: &str) -> u64 {
    let labels = [("listener", "web"), ("version", version), ("result", result)];
    tidegate.metrics().sum("tidegate_proxy_headers_total", &labels) as u64
}

fn field<'r>(record: &'r Value, name: &str) -> &'r str {
    record[name].as_str().unwrap_or("-")
}

fn with_checksum() -> Vec<u8> {
    let mut header = client(CARRIED, "198.51.100.7:443", &[(0xe0, b"x"), (3, &[0; 4])]);
    let sum = crc32c::crc32c(&header).to_be_bytes();
    let at = header.len() - 4;
    header[at..].copy_from_slice(&sum);
    header
}

/// A session to its end in order.
fn exchange(mut conn: Conn, backend: &Listening) {
    let mut served = backend.accept();
    served.expect("payload");
    served.send("answer");
    conn.expect("answer");
    conn.finish();
    served.expect_end(End::Fin);
    drop(served);
    conn.expect_end(End::Fin);
}

#[test]
fn f67_a_header_split_at_each_byte_is_taken_and_what_is_behind_it_is_kept() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(over([&backend], TRUSTED));
    let mut count = 0;
    for header in [V1.as_bytes().to_vec(), with_checksum()] {
        for at in 0..=header.len() {
            let mut conn = tidegate.connect();
            conn.send(&header[..at]);
            if at > 0 && at < header.len() {
                // It has been looked at, and is no more than a part.
                eventually_eq("it waits", &1, || tidegate.sessions());
            }
            conn.send([&header[at..], b"payload"].concat());
            exchange(conn, &backend);
            count += 1;
        }
    }
    for record in tidegate.records(count) {
        assert_eq!((field(&record, "client"), field(&record, "reason")), (CARRIED, "complete"), "{record}");
        assert_eq!((&record["to_backend"], &record["to_client"]), (&7.into(), &6.into()), "{record}");
        assert!(field(&record, "proxy").starts_with("127.0.0.1:"), "{record}");
    }
    assert_eq!(headers(&tidegate, "v1", "client") + headers(&tidegate, "v2", "client"), count as u64);
}

#[test]
fn f67_a_header_that_comes_byte_by_byte_is_one_too() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(over([&backend], TRUSTED));
    for header in [V1.as_bytes().to_vec(), with_checksum()] {
        let mut conn = tidegate.connect();
        for byte in header {
            conn.send([byte]);
        }
        conn.send("payload");
        exchange(conn, &backend);
    }
}

#[test]
fn f68_one_without_a_header_is_reset_where_one_is_required() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(over([&backend], TRUSTED));
    let data: [&[u8]; 5] =
        [b"GET / HTTP/1.1\r\n\r\n", b"PROXX", b"PROXY\r\n", b"\r\n\r\n\0\r\nQUIT\r", b"\x16\x03\x01"];
    for data in data {
        let mut conn = tidegate.connect();
        conn.send(data);
        conn.expect_end(End::Rst);
    }
    // Its end, and what could still have become one.
    for data in ["", "PRO"] {
        let mut conn = tidegate.connect();
        conn.send(data);
        conn.finish();
        conn.expect_end(End::Rst);
    }
    assert!(backend.accept_now().is_none());
    for record in tidegate.records(7) {
        assert_eq!((field(&record, "reason"), field(&record, "phase")), ("proxy_missing", "preread"), "{record}");
        assert!(field(&record, "client").starts_with("127.0.0.1:"), "{record}");
        assert_eq!((field(&record, "ended_by"), field(&record, "proxy")), ("balancer", "-"), "{record}");
    }
    assert_eq!((tidegate.closed("proxy_missing"), headers(&tidegate, "none", "missing")), (7, 7));
}

#[test]
fn f68_where_none_is_required_data_is_data_and_a_header_is_one() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(over([&backend], OPTIONAL));
    for (data, seen) in [
        ("payload".as_bytes().to_vec(), "payload".as_bytes().to_vec()),
        ([V1.as_bytes(), b"payload"].concat(), b"payload".to_vec()),
        ([&with_checksum()[..], b"payload"].concat(), b"payload".to_vec()),
        (b"PROXY\r\n".to_vec(), b"PROXY\r\n".to_vec()),
    ] {
        let mut conn = tidegate.connect();
        conn.send(data);
        let mut served = backend.accept();
        assert_eq!(served.receive(seen.len()), seen);
        conn.finish();
        served.expect_end(End::Fin);
    }
    // Its end has come: what could have been the beginning of a header is data.
    for data in ["", "\r\n\r\n"] {
        let mut conn = tidegate.connect();
        conn.send(data);
        conn.finish();
        assert_eq!(backend.accept().rest().bytes, data.as_bytes());
    }
    assert_eq!((headers(&tidegate, "none", "absent"), headers(&tidegate, "v1", "client")), (4, 1));
    assert_eq!(headers(&tidegate, "v2", "client"), 1);
    // What has begun like one for certain must be one.
    for broken in [&b"PROXY TCP4 x\r\n"[..], &SIGNATURE.iter().copied().chain([0x31]).collect::<Vec<_>>()] {
        let mut conn = tidegate.connect();
        conn.send(broken);
        conn.expect_end(End::Rst);
    }
    eventually_eq("broken ones", &2, || tidegate.closed("proxy_invalid"));
}

#[test]
fn f68_who_says_nothing_in_time_goes_on_without_or_is_reset() {
    let backend = Backend::named("server first");
    let quick = |accept: &str| accept.replace("60s", "200ms");
    let tidegate = Tidegate::start(over([&backend], &quick(OPTIONAL)));
    assert_eq!(tidegate.connect().rest().text(), "server first\n");
    // Of what may yet be a header nobody knows what it is.
    let mut conn = tidegate.connect();
    conn.send("PROXY TCP4 192.0.2.1");
    conn.expect_end(End::Rst);
    assert_eq!((headers(&tidegate, "none", "absent"), headers(&tidegate, "v1", "timeout")), (1, 1));
    drop(tidegate);

    let tidegate = Tidegate::start(over([&backend], &quick(TRUSTED)));
    for begun in ["", "PRO", "PROXY TCP4 192.0.2.1"] {
        let mut conn = tidegate.connect();
        conn.send(begun);
        conn.expect_end(End::Rst);
    }
    for record in tidegate.records(3) {
        assert_eq!((field(&record, "reason"), field(&record, "phase")), ("proxy_timeout", "preread"), "{record}");
    }
}

#[test]
fn f69_from_an_address_that_is_not_trusted_a_header_is_no_header() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(over([&backend], TRUSTED));
    let mut stranger = connect_from(local(1), &tidegate.addr());
    // It is reset at once, whatever it says, and also if it says nothing.
    stranger.expect_end(End::Rst);
    let mut stranger = connect_from(local(1), &tidegate.addr());
    let _ = stranger.try_send(V1);
    stranger.expect_end(End::Rst);
    assert!(backend.accept_now().is_none());
    for record in tidegate.records(2) {
        assert_eq!((field(&record, "reason"), field(&record, "phase")), ("proxy_untrusted", "preread"), "{record}");
        assert!(field(&record, "client").starts_with("127.0.0.2:"), "nothing is believed: {record}");
    }
    assert_eq!((tidegate.closed("proxy_untrusted"), headers(&tidegate, "none", "untrusted")), (2, 2));
    drop(tidegate);

    let tidegate = Tidegate::start(over([&backend], OPTIONAL));
    let mut stranger = connect_from(local(1), &tidegate.addr());
    stranger.send(V1);
    let mut served = backend.accept();
    served.expect(V1);
    drop((stranger, served));
    let record = tidegate.records(1).remove(0);
    assert!(field(&record, "client").starts_with("127.0.0.2:"), "{record}");
    assert_eq!((field(&record, "proxy"), headers(&tidegate, "none", "absent")), ("-", 1));
}

#[test]
fn f70_a_broken_header_is_a_reset_and_a_sentence_in_the_log() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(over([&backend], TRUSTED));
    let addresses = pair(CARRIED, "198.51.100.7:443");
    let long = |length: u16| [SIGNATURE, &[0x21, 0x11], &length.to_be_bytes()].concat();
    let mut wrong_sum = with_checksum();
    wrong_sum[20] ^= 1;
    let broken = [
        v2(0x11, 0x11, &addresses, &[]),
        v2(0x22, 0x11, &addresses, &[]),
        v2(0x21, 0x41, &addresses, &[]),
        v2(0x21, 0x11, &addresses[..11], &[]),
        v2(0x21, 0x11, &[&addresses[..], &[0xe0, 0, 9, 1]].concat(), &[]),
        wrong_sum,
        // As soon as it says how long it is; nothing of it needs to come.
        long(u16::MAX),
        long(4_081),
        format!("PROXY UNKNOWN {}", "x".repeat(200)).into_bytes(),
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n".to_vec(),
        b"PROXY TCP5".to_vec(),
    ];
    for bytes in &broken {
        let mut conn = tidegate.connect();
        let _ = conn.try_send(bytes);
        conn.expect_end(End::Rst);
    }
    // One that ends in the middle.
    let mut conn = tidegate.connect();
    conn.send(&with_checksum()[..30]);
    conn.finish();
    conn.expect_end(End::Rst);
    assert!(backend.accept_now().is_none());
    for record in tidegate.records(broken.len() + 1) {
        assert_eq!((field(&record, "reason"), field(&record, "phase")), ("proxy_invalid", "preread"), "{record}");
    }
    assert_eq!((headers(&tidegate, "v1", "invalid"), headers(&tidegate, "v2", "invalid")), (3, 9));
    tidegate.logged(&["broken PROXY header", "version 1 is not known", "web"]);
    assert_eq!(tidegate.count_logged(&["broken PROXY header"]), 1, "one in a while is enough");
}

#[test]
fn f70_the_longest_header_is_taken() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(over([&backend], TRUSTED));
    let value = vec![b'x'; 4_096 - 16 - 12 - 3];
    let header = client(CARRIED, "198.51.100.7:443", &[(0xe0, &value)]);
    assert_eq!(header.len(), 4_096);
    let mut conn = tidegate.connect();
    conn.send([&header[..], b"payload"].concat());
    exchange(conn, &backend);
}

#[test]
fn f71_a_connection_of_the_proxys_own_has_the_proxys_address() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(over([&backend], TRUSTED));
    let addresses = pair(CARRIED, "198.51.100.7:443");
    let own = [
        v2(0x20, 0, &[], &[]),
        v2(0x20, 0x11, &addresses, &[]),
        v2(0x20, 0xff, b"whatever", &[]),
        v2(0x21, 0, &[], &[]),
        v2(0x21, 0x12, &addresses, &[]),
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 192.0.2.1 198.51.100.7 1 2\r\n".to_vec(),
    ];
    for header in &own {
        let mut conn = tidegate.connect();
        conn.send([&header[..], b"payload"].concat());
        exchange(conn, &backend);
    }
    for record in tidegate.records(own.len()) {
        assert!(field(&record, "client").starts_with("127.0.0.1:"), "{record}");
        assert_eq!(field(&record, "client"), field(&record, "proxy"), "{record}");
    }
    let count = |version, result| headers(&tidegate, version, result);
    assert_eq!([count("v2", "local"), count("v2", "unknown"), count("v1", "unknown")], [3, 2, 2]);
}

#[test]
fn a_client_of_a_unix_socket_is_believed_and_may_be_one_itself() {
    let directory = tempfile::tempdir().unwrap();
    let bind = format!("unix:{}", directory.path().join("in.sock").display());
    let backend = Listening::new();
    let tidegate = Tidegate::start(over([&backend], TRUSTED).bind(bind));
    for header in [V1.as_bytes().to_vec(), v2(0x21, 0x31, &[0; 216], &[])] {
        for at in [5, header.len()] {
            let mut conn = Conn::to(&tidegate.addr());
            conn.send(&header[..at]);
            conn.send([&header[at..], b"payload"].concat());
            let mut served = backend.accept();
            served.expect("payload");
            drop((conn, served));
        }
    }
    let mut clients: Vec<_> = tidegate.records(4).iter().map(|record| field(record, "client").to_owned()).collect();
    clients.sort();
    assert_eq!(clients, [CARRIED, CARRIED, "unix", "unix"]);
}

#[test]
fn limits_and_lists_are_asked_about_the_address_that_the_header_carries() {
    let backend = Listening::new();
    let limits = "max_connections_per_client = 1\nmax_connections = 3\ndeny = [\"192.0.2.0/24\"]";
    let config = over([&backend], &format!("accept_proxy_protocol = {{ from = \"127.0.0.0/8\" }}\n{limits}"));
    let tidegate = Tidegate::start(config);
    let come = |source: &str| {
        let mut conn = tidegate.connect();
        conn.send(client(source, "198.51.100.7:443", &[]));
        conn
    };
    // All of them come from one proxy.
    let held: Vec<_> = ["203.0.113.1:1", "203.0.113.2:1"].map(|source| (come(source), backend.accept())).into();
    come("203.0.113.1:2").expect_end(End::Rst);
    come("192.0.2.9:1").expect_end(End::Rst);
    // What was refused holds no place.
    let third = (come("203.0.113.3:1"), backend.accept());
    let mut fourth = tidegate.connect();
    fourth.expect_end(End::Rst);
    for (bound, count) in [("max_connections_per_client", 1), ("denied", 1), ("max_connections", 1)] {
        let labels = [("scope", "listener"), ("name", "web"), ("dry_run", "false"), ("reason", bound)];
        assert_eq!(tidegate.metrics().sum("tidegate_limit_refusals_total", &labels) as u64, count, "{bound}");
    }
    let shown = |metric: &str| {
        let labels = [("scope", "listener"), ("name", "web")];
        tidegate.metrics().sum(&format!("tidegate_limit_{metric}"), &labels) as u64
    };
    assert_eq!((shown("connections"), shown("clients")), (3, 3));
    drop((held, third));
    let records = tidegate.records(6);
    let mut refused: Vec<_> = records
        .iter()
        .map(|record| ["reason", "phase", "client"].map(|name| field(record, name).to_owned()))
        .filter(|[reason, ..]| ["client_max_connections", "denied", "listener_max_connections"].contains(&&**reason))
        .collect();
    refused.sort();
    assert_eq!(refused[0], ["client_max_connections", "admit", "203.0.113.1:2"]);
    assert_eq!(refused[1], ["denied", "admit", "192.0.2.9:1"]);
    assert_eq!(refused[2][..2], ["listener_max_connections", "admit"]);
    eventually_eq("nothing is held", &(0, 0), || (shown("connections"), shown("clients")));
}

#[test]
fn a_dry_run_and_a_fin_mean_the_same_after_a_header() {
    let backend = Listening::new();
    let limits = "max_connections_per_client = 1\ndry_run = true";
    let tidegate = Tidegate::start(over([&backend], &format!("{TRUSTED}\n{limits}")));
    let mut held = Vec::new();
    for port in 1..=3 {
        let mut conn = tidegate.connect();
        conn.send(client(&format!("203.0.113.1:{port}"), "198.51.100.7:443", &[]));
        held.push((conn, backend.accept()));
    }
    let labels =
        [("scope", "listener"), ("name", "web"), ("dry_run", "true"), ("reason", "max_connections_per_client")];
    assert_eq!(tidegate.metrics().sum("tidegate_limit_refusals_total", &labels) as u64, 2);
    let connections = tidegate.metrics().sum("tidegate_limit_connections", &[("scope", "listener")]);
    assert_eq!(connections as u64, 1, "those that would have been refused are not there");
    drop(held);
    drop(tidegate);

    for (overload, end) in [("close", End::Fin), ("wait", End::Rst), ("reset", End::Rst)] {
        let limits = format!("deny = \"203.0.113.0/24\"\noverload = \"{overload}\"");
        let tidegate = Tidegate::start(over([&backend], &format!("{TRUSTED}\n{limits}")));
        let mut conn = tidegate.connect();
        // Mostly a client's first bytes come with the header.
        let header = client("203.0.113.1:1", "198.51.100.7:443", &[]);
        conn.send([&header[..], b"GET / HTTP/1.1\r\n\r\n"].concat());
        conn.expect_end(end);
        eventually_eq("denied", &1, || tidegate.closed("denied"));
    }
}

#[test]
fn a_rate_for_each_client_is_one_of_the_carried_address() {
    let backend = Backend::named("served");
    let limits = "accept_rate_per_client = \"1/h\"\nburst_per_client = 1\naccept_rate = \"3/h\"\nburst = 3";
    let tidegate = Tidegate::start(over([&backend], &format!("{TRUSTED}\n{limits}")));
    let come = |source: &str| {
        let mut conn = tidegate.connect();
        // Of the listener's own rate it may hear before it has said who it is.
        let _ = conn.try_send(client(source, "198.51.100.7:443", &[]));
        conn.rest()
    };
    assert_eq!(come("203.0.113.1:1").text(), "served\n");
    for _ in 0..5 {
        // Nor does it use up what is for all of them.
        assert_eq!(come("203.0.113.1:1").end, End::Rst);
    }
    assert_eq!(come("203.0.113.2:1").text(), "served\n");
    assert_eq!(come("203.0.113.3:1").text(), "served\n");
    assert_eq!(come("203.0.113.4:1").end, End::Rst);
    let refused = || (tidegate.closed("client_accept_rate"), tidegate.closed("accept_rate"));
    eventually_eq("five of one client, and one of all", &(5, 1), refused);
}

/// In by one version and out by the other: the backend hears what the first proxy has heard.
#[test]
fn through_two_proxies_the_first_client_and_its_destination_are_told() {
    let backend = Listening::new();
    for (version, header) in [("v1", with_checksum()), ("v2", V1.as_bytes().to_vec())] {
        let send = format!("send_proxy_protocol = \"{version}\"");
        let tidegate = Tidegate::start(over([&backend], TRUSTED).pool(&send));
        let mut conn = tidegate.connect();
        conn.send([&header[..], b"payload"].concat());
        let mut served = backend.accept();
        let told = if version == "v1" { told_v1(&mut served) } else { told(&mut served) };
        let expected = (CARRIED.parse().unwrap(), "198.51.100.7:443".parse().unwrap());
        assert_eq!(told.addresses, Some(expected));
        served.expect("payload");
    }
}

#[test]
fn what_a_clients_own_header_carries_goes_on_as_the_pool_wants_it() {
    let ssl: &[u8] = &[1, 0, 0, 0, 0, 0x21, 0, 7, b'T', b'L', b'S', b'v', b'1', b'.', b'3'];
    let received: &[(u8, &[u8])] = &[
        (1, b"h2"),
        (2, b"a.example.com"),
        (4, b"..."),
        (5, b"first-id"),
        (0x20, ssl),
        (0xe0, b"theirs"),
        (0xe1, b""),
    ];
    let header = client(CARRIED, "198.51.100.7:443", received);
    let own = "unique_id = true\ntlvs = { \"0xE0\" = \"ours\", \"0xE2\" = \"more\" }";
    let backend = Listening::new();
    for (keys, expected) in [
        (
            "pass = true",
            vec![
                (0xe2, &b"more"[..]),
                (1, b"h2"),
                (2, b"a.example.com"),
                (5, b"first-id"),
                (0x20, ssl),
                (0xe0, b"theirs"),
                (0xe1, b""),
            ],
        ),
        ("ssl = true", vec![(0xe0, b"ours"), (0xe2, b"more"), (5, b"ID"), (0x20, ssl)]),
        (
            "authority = true\nalpn = true",
            vec![(0xe0, b"ours"), (0xe2, b"more"), (5, b"ID"), (2, b"a.example.com"), (1, b"h2")],
        ),
        ("", vec![(0xe0, b"ours"), (0xe2, b"more"), (5, b"ID")]),
    ] {
        let table = format!("[pools.web.proxy_protocol]\n{own}\n{keys}");
        let config = over([&backend], TRUSTED).pool("send_proxy_protocol = \"v2\"").more(&table);
        let tidegate = Tidegate::start(config);
        let mut conn = tidegate.connect();
        conn.send([&header[..], b"payload"].concat());
        let mut served = backend.accept();
        let told = told(&mut served);
        assert!(told.checked);
        served.expect("payload");
        drop((conn, served));
        let id = tidegate.records(1)[0]["id"].as_str().unwrap().to_owned();
        let expected: Vec<(u8, Vec<u8>)> = expected
            .into_iter()
            .map(|(kind, value)| (kind, if value == b"ID" { id.clone().into_bytes() } else { value.to_vec() }))
            .collect();
        assert_eq!(told.tlvs, expected, "{keys}");
    }
}

#[test]
fn behind_a_header_routes_find_what_they_look_for() {
    let (search, shop, web) = (Listening::new(), Listening::new(), Listening::new());
    let routes = format!(
        "[[listeners.web.routes]]\nsource = \"203.0.113.0/24\"\npool = \"search\"\n\
         [[listeners.web.routes]]\nsni = \"shop.example.com\"\npool = \"shop\"\n\
         [pools.search]\nbackends = [\"{search}\"]\nhealth.probe = \"none\"\n\
         [pools.shop]\nbackends = [\"{shop}\"]\nhealth.probe = \"none\""
    );
    let tidegate = Tidegate::start(over([&web], TRUSTED).more(&routes));
    let hello = client_hello::write(Some("shop.example.com"), &[]);
    let mut conn = tidegate.connect();
    conn.send(client("203.0.113.9:1", "198.51.100.7:443", &[]));
    conn.send("payload");
    search.accept().expect("payload");
    let header = client(CARRIED, "198.51.100.7:443", &[]);
    for at in [10, header.len() - 1, header.len(), header.len() + 1, header.len() + 40] {
        let all = [&header[..], &hello].concat();
        let mut conn = tidegate.connect();
        conn.send(&all[..at]);
        conn.send(&all[at..]);
        assert_eq!(shop.accept().receive(hello.len()), hello, "cut at {at}");
    }
    let mut conn = tidegate.connect();
    conn.send([V1.as_bytes(), b"GET / HTTP/1.1\r\n\r\n"].concat());
    web.accept().expect("GET / HTTP/1.1\r\n\r\n");
}
