//! `[pools.NAME.health]`: what good checks mean, and what is said about wrong ones.

use super::example::self_signed;
use super::{Case, assert_said, good, said, with_pool};
use std::time::Duration;
use tidegate::config::{Expect, Health, Percent, Probe};

/// The health's keys begin at line 7.
fn with_health(keys: &str) -> String {
    with_pool(&format!("backends = [\"10.0.0.1:80\"]\n[pools.web.health]\n{keys}"))
}

fn health(keys: &str) -> Health {
    good(&with_health(keys)).pools.remove(0).health
}

#[test]
fn each_probe_has_its_table() {
    let Probe::Http(http) = health("probe = \"http\"").probe else { panic!("no http") };
    assert_eq!((http.method.as_str(), http.path.as_str(), http.max_bytes), ("GET", "/", 64 << 10));
    assert_eq!((http.status.to_string().as_str(), &http.host, &http.body), ("200-399", &None, &None));
    let table = r#"method = "POST", path = "/h?a=b", host = "a.example", status = [200, "301-302"], max_bytes = "1KiB",
        body = "ok", headers = { X-One = "1", x-two = "2" }"#;
    let Probe::Http(http) = health(&format!("probe = \"http\"\nhttp = {{ {} }}", table.replace('\n', " "))).probe
    else {
        panic!("no http")
    };
    assert_eq!((http.method.as_str(), http.path.as_str(), http.max_bytes), ("POST", "/h?a=b", 1 << 10));
    assert_eq!((http.status.to_string().as_str(), http.body.as_deref()), ("200, 301-302", Some("ok")));
    assert_eq!((http.headers["x-one"].as_bytes(), http.headers["x-two"].as_bytes()), (&b"1"[..], &b"2"[..]));

    let ca = self_signed();
    let keys = format!("probe = \"tls\"\ntls = {{ name = \"a.example\", ca = \"{}\" }}", ca.path().display());
    let Probe::Tls(tls) = health(&keys).probe else { panic!("no tls") };
    assert_eq!(tls.name.as_ref().unwrap().to_str(), "a.example");
    assert_eq!(tls.ca.as_ref().unwrap().certificates.len(), 1);
    assert_eq!(tls.expiry_warning, Duration::from_secs(14 * 24 * 3_600));

    for (table, send, expect) in [
        ("send = \"PING\\r\\n\", expect_prefix = \"+PONG\"", "PING\r\n", Expect::Prefix(b"+PONG".to_vec())),
        ("send_hex = \"50 49\", expect_prefix_hex = \"00ff\"", "PI", Expect::Prefix(vec![0, 255])),
        ("expect = \"ESMTP\"", "", Expect::Text(b"ESMTP".to_vec())),
    ] {
        let keys = format!("probe = \"exchange\"\nexchange = {{ {table} }}");
        let Probe::Exchange(exchange) = health(&keys).probe else { panic!("no exchange") };
        assert_eq!(
            (exchange.send.as_slice(), &exchange.expect, exchange.max_bytes),
            (send.as_bytes(), &expect, 4 << 10)
        );
    }
}

#[test]
fn times_places_and_the_agent() {
    let plain = health("interval = \"5s\"");
    assert_eq!((plain.down_interval, plain.jitter), (Duration::from_secs(5), Percent::whole(10)), "as the interval");
    assert_eq!((plain.port, plain.address, &plain.agent), (None, None, &None));
    let full = health(
        "down_interval = \"1m\"\njitter = \"50%\"\nport = 81\naddress = \"[::1]\"\nagent = { port = 9999, send = \"x\\n\" }",
    );
    assert_eq!((full.down_interval, full.jitter), (Duration::from_secs(60), Percent::whole(50)));
    assert_eq!((full.port, full.address), (Some(81), Some("::1".parse().unwrap())));
    let agent = full.agent.unwrap();
    assert_eq!((agent.port, agent.interval, agent.send.as_slice()), (9_999, Duration::from_secs(2), &b"x\n"[..]));
    // An agent alone is enough for some.
    let only_agent = health("probe = \"none\"\ntimeout = \"2s\"\njitter = \"0%\"\nagent.port = 1");
    assert_eq!((only_agent.probe, only_agent.agent.unwrap().port), (Probe::None, 1));
}

#[test]
fn the_exchanges_of_the_guide_are_good() {
    const GUIDE: &str = include_str!("../../docs/operating.md");
    let section = GUIDE.split("\n## Health checks\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let tables = section.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let pools = ["cache", "db", "standby", "mail"];
    let pool = |(index, name): (usize, &&str)| {
        format!(
            "[pools.{name}]\nbackends = [\"a:1\"]\n[listeners.{name}]\nbind = \"127.0.0.1:{}\"\npool = \"{name}\"\n",
            1 + index
        )
    };
    let config = good(&format!("{}{tables}", pools.iter().enumerate().map(pool).collect::<String>()));
    let sent = |name: &str| {
        let pool = config.pools.iter().find(|pool| pool.name.as_str() == name).unwrap();
        let Probe::Exchange(exchange) = &pool.health.probe else { panic!("{name} has no exchange") };
        exchange.send.clone()
    };
    assert_eq!((sent("cache"), sent("mail")), (b"PING\r\n".to_vec(), Vec::new()));
    assert_eq!(sent("db"), [8_u32.to_be_bytes(), 80_877_103_u32.to_be_bytes()].concat(), "a request for TLS");
    // A startup packet of version 3.0: its length, then names and values that end with a zero each.
    let startup = sent("standby");
    assert_eq!(startup[..8], [(startup.len() as u32).to_be_bytes(), 196_608_u32.to_be_bytes()].concat());
    assert_eq!(startup[8..], *b"user\0tidegate\0database\0postgres\0\0");
}

#[test]
fn mistakes_of_probes() {
    let cases: &[Case] = &[
        (
            "http.path = \"/health\"",
            &[
                "7:1: pools.web.health.http: this has no effect with probe = \"tcp\"; write probe = \"http\", or remove it",
            ],
        ),
        (
            "probe = \"none\"\ntls.name = \"a\"",
            &[
                "8:1: pools.web.health.tls: this has no effect with probe = \"none\"; write probe = \"tls\", or remove it",
            ],
        ),
        (
            "probe = \"exchange\"",
            &["6:1: pools.web.health: exchange is missing; write exchange = { send = \"PING\\r\\n\", expect_prefix = \
               \"+PONG\" }"],
        ),
        (
            "probe = \"exchange\"\nexchange = { send = \"PING\" }",
            &[
                "8:12: pools.web.health.exchange: an exchange that expects nothing can't fail; add expect, expect_prefix or \
               expect_prefix_hex; to ask for no answer, use probe = \"tcp\"",
            ],
        ),
        (
            "probe = \"exchange\"\nexchange = { send = \"a\", send_hex = \"61\", expect = \"b\", expect_prefix = \"c\" }",
            &[
                "8:37: pools.web.health.exchange.send_hex: there is send already; remove one of the two",
                "8:73: pools.web.health.exchange.expect_prefix: an exchange expects one thing; remove all but one of the \
                 keys that expect",
            ],
        ),
        (
            "probe = \"exchange\"\nexchange = { send_hex = \"0x0\", expect = \"\", max_bytes = \"1GiB\" }",
            &[
                "8:25: pools.web.health.exchange.send_hex: \"0x0\" is not made of pairs of hex digits; write it as in \
                 \"00 00 00 08 04 d2 16 2f\"",
                "8:41: pools.web.health.exchange.expect: the text is empty; every answer has that; write what a good one \
                 has",
                "8:57: pools.web.health.exchange.max_bytes: \"1GiB\" is out of range; use 1B to 256KiB",
            ],
        ),
        (
            "probe = \"exchange\"\nexchange = { expect = \"four\", max_bytes = \"3B\" }",
            &["8:23: pools.web.health.exchange.expect: these are 4 bytes, of which 3 are read; make max_bytes larger"],
        ),
        ("jitter = 10", &["7:10: pools.web.health.jitter: 10 has no sign; write \"10%\""]),
        (
            "port = 0\naddress = \"10.0.0.9:81\"",
            &[
                "7:8: pools.web.health.port: 0 is out of range; use 1 to 65535",
                "8:11: pools.web.health.address: \"10.0.0.9:81\" is not an IP address; write it as in \"10.0.0.9\", and a \
                 port, if need be, as port",
            ],
        ),
        (
            "agent = 9999",
            &[
                "7:9: pools.web.health.agent: 9999 is an integer, but a table is wanted; write { port = ... }; the keys \
               here are port, interval, send",
            ],
        ),
        (
            "agent = { interval = \"1s\" }",
            &["7:9: pools.web.health.agent: port is missing; write port = 9999, where the backends' agents listen"],
        ),
        (
            "probe = \"none\"\nport = 81\ndown_interval = \"5s\"\njitter = \"1%\"",
            &[
                "8:8: pools.web.health.port: warning: this has no effect with probe = \"none\"; remove it",
                "9:17: pools.web.health.down_interval: warning: this has no effect with probe = \"none\"; remove it",
                "10:10: pools.web.health.jitter: warning: this has no effect with probe = \"none\"; remove it",
            ],
        ),
    ];
    for (keys, expected) in cases {
        assert_said(&with_health(keys), expected);
    }
}

#[test]
fn mistakes_of_http() {
    let cases: &[Case] = &[
        (
            "probe = \"http\"\nhttp = { method = \"get\", path = \"health\", host = \"\" }",
            &[
                "8:19: pools.web.health.http.method: \"get\" is not known here; use \"GET\", \"HEAD\", \"OPTIONS\" or \
                 \"POST\"",
                "8:33: pools.web.health.http.path: \"health\" is not a path; begin it with \"/\"",
                "8:50: pools.web.health.http.host: the text is empty; leave the key out",
            ],
        ),
        (
            "probe = \"http\"\nhttp = { status = [200, \"399-200\", 99, []], headers = { Host = \"a\", \"b c\" = \"d\", e = 1 } }",
            &[
                "8:25: pools.web.health.http.status[1]: \"399-200\" is not a status; use 100 to 599, or two of them as in \
                 \"200-399\"",
                "8:36: pools.web.health.http.status[2]: \"99\" is not a status; use 100 to 599, or two of them as in \
                 \"200-399\"",
                "8:40: pools.web.health.http.status[3]: this is a list, but a status is wanted",
                "8:57: pools.web.health.http.headers.Host: the header host is set by itself; use host instead",
                "8:69: pools.web.health.http.headers.\"b c\": \"b c\" is not a header's name; use letters, digits and -",
                "8:86: pools.web.health.http.headers.e: 1 is an integer, but a string is wanted; write \"1\"",
            ],
        ),
        (
            "probe = \"http\"\nhttp = { method = \"HEAD\", body = \"ok\" }",
            &["8:34: pools.web.health.http.body: the answer to a HEAD has no body; use another method, or remove this"],
        ),
        (
            "probe = \"http\"\nhttp.status = []",
            &["8:15: pools.web.health.http.status: the list is empty; name a status, such as 200 or \"200-399\""],
        ),
    ];
    for (keys, expected) in cases {
        assert_said(&with_health(keys), expected);
    }
}

#[test]
fn a_unix_socket_has_no_port_and_no_agent() {
    let keys =
        "backends = [\"a:1\", \"unix:/run/a.sock\"]\nhealth = { port = 81, address = \"::1\", agent = { port = 1 } }";
    let way_out = "the backend unix:/run/a.sock has no port; remove this, or give unix sockets a pool of their own";
    assert_said(
        &with_pool(keys),
        &[
            &format!("6:19: pools.web.health.port: {way_out}"),
            &format!("6:33: pools.web.health.address: {way_out}"),
            &format!("6:48: pools.web.health.agent: {way_out}"),
        ],
    );
}

#[test]
fn mistakes_of_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let (empty, garbage) = (file("empty", "no PEM"), file("garbage", garbage));
    let half = file("half", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    let folder = folder.path().display().to_string();
    for (ca, message) in [
        ("ca.pem", "\"ca.pem\" is not an absolute path".to_owned()),
        ("/nowhere/ca.pem", "can't read \"/nowhere/ca.pem\": No such file or directory (os error 2)".to_owned()),
        (&folder, format!("\"{folder}\" is not a file")),
        (&empty, format!("\"{empty}\" holds no certificate")),
        (&garbage, format!("certificate 1 of \"{garbage}\" can't be understood")),
        (&half, format!("\"{half}\" is not a whole PEM file")),
    ] {
        let keys = format!("probe = \"tls\"\ntls.ca = \"{ca}\"");
        let way_out = "name a PEM file with the certificates of issuers";
        let line = format!("lb.toml:8:10: pools.web.health.tls.ca: {message}; {way_out}");
        assert_eq!(said(&with_health(&keys)), [line]);
    }
    assert_said(
        &with_health("probe = \"tls\"\ntls.name = \"not a name\""),
        &[
            "8:12: pools.web.health.tls.name: \"not a name\" is no name that a certificate carries; write a host name such \
           as \"db.example\", or an IP address",
        ],
    );
}
