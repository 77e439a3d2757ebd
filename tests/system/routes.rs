//! Routes on the real binary: each condition leads where it says, however the first bytes are cut, and every byte
//! arrives.

use crate::kit::backend::echo;
use crate::kit::wait::pace;
use crate::kit::{Addr, Backend, Config, Conn, End, Tidegate, eventually_eq, free_port};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Duration;
use tidegate::net::client_hello;

/// Says its name on a line, then gives back what it gets.
pub fn named_echo(name: &str) -> Backend {
    let name = format!("{name}\n");
    Backend::new(move |mut conn| {
        if conn.try_send(&name).is_ok() {
            echo(conn);
        }
    })
}

/// Pool `web` and these others, each with one backend of its name; and these lines at the end of the listener's table,
/// which may be routes.
pub struct Pools {
    backends: Vec<(String, Backend)>,
}

impl Pools {
    pub fn new(names: &[&str]) -> Self {
        let of_name = |name: &&str| ((*name).to_owned(), named_echo(name));
        Self { backends: ["web"].iter().chain(names).map(of_name).collect() }
    }

    pub fn config(&self, listener: &str, routes: &str) -> Config {
        let mut more = String::new();
        for (name, backend) in &self.backends[1..] {
            writeln!(more, "[pools.{name}]\nbackends = [\"{backend}\"]\nhealth.probe = \"none\"").unwrap();
        }
        Config::over([&self.backends[0].1]).logged().listener(listener).more(&more).more(routes)
    }

    pub fn touched(&self) -> usize {
        self.backends.iter().map(|(_, backend)| backend.accepted()).sum()
    }
}

/// Sends these bytes, cut into so many pieces, and asserts that this pool gives them back; then more, and the end.
#[track_caller]
fn arrives(tidegate: &Tidegate, address: &Addr, pool: &str, sent: &[u8], pieces: usize) {
    let mut client = Conn::to(address);
    let length = sent.len().div_ceil(pieces).max(1);
    for piece in sent.chunks(length) {
        client.send(piece);
        // So that it comes as a segment of its own.
        pace(Duration::from_millis(2));
    }
    assert_eq!(client.line(), pool, "for {}", sent.escape_ascii());
    assert_eq!(client.receive(sent.len()), sent);
    client.send("and more");
    client.finish();
    let rest = client.rest();
    assert_eq!((rest.text().as_str(), rest.end), ("and more", End::Fin));
    tidegate.until_idle();
}

const ROUTES: &str = r#"
[[listeners.web.routes]]
name = "names"
sni = ["a.example.com", "*.one.example", ".any.example"]
pool = "names"
[[listeners.web.routes]]
name = "http2"
alpn_all = ["h2"]
pool = "http2"
[[listeners.web.routes]]
name = "tls"
protocol = "tls"
pool = "tls"
[[listeners.web.routes]]
name = "search"
http_host = "www.example"
http_path = "/search"
http_method = ["GET", "HEAD"]
pool = "search"
[[listeners.web.routes]]
name = "redis"
protocol = "redis"
pool = "redis"
[[listeners.web.routes]]
name = "magic"
prefix = ["hex:00010203", "MAGIC"]
pool = "magic"
"#;

fn request(method: &str, path: &str, host: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nX-Padding: {}\r\n\r\nbody", "x".repeat(200)).into_bytes()
}

/// What is sent first, and where it leads.
fn cases() -> Vec<(Vec<u8>, &'static str)> {
    let hello = |name: &str, alpn: &[&str]| client_hello::write(Some(name), alpn);
    vec![
        (hello("a.example.com", &["h2", "http/1.1"]), "names"),
        (hello("A.Example.COM", &[]), "names"),
        (hello("x.one.example", &[]), "names"),
        (hello("x.y.one.example", &[]), "tls"),
        (hello("x.y.any.example", &["h2"]), "names"),
        (hello("any.example", &["h2"]), "http2"),
        (hello("any.example", &["h2", "http/1.1"]), "tls"),
        (client_hello::write(None, &[]), "tls"),
        (request("GET", "/search?q=tide", "www.example:80"), "search"),
        (request("HEAD", "/search/deep", "WWW.example"), "search"),
        (request("POST", "/search", "www.example"), "web"),
        (request("GET", "/searching", "www.example"), "web"),
        (request("GET", "/search", "other.example"), "web"),
        (b"*1\r\n$4\r\nPING\r\n".to_vec(), "redis"),
        (b"\x00\x01\x02\x03 and what follows".to_vec(), "magic"),
        (b"MAGIC\n".to_vec(), "magic"),
        (b"MAGNET\n".to_vec(), "web"),
    ]
}

#[test]
fn each_condition_leads_where_it_says_however_the_bytes_are_cut() {
    let pools = Pools::new(&["names", "http2", "tls", "search", "redis", "magic"]);
    let tidegate = Tidegate::start(pools.config("", ROUTES));
    let address = tidegate.addr();
    for (sent, pool) in cases() {
        for pieces in [1, 2, 7, sent.len().min(40)] {
            arrives(&tidegate, &address, pool, &sent, pieces);
        }
    }
    let taken = |rule: &str| tidegate.metrics().one("tidegate_route_sessions_total", &[("rule", rule)]) as usize;
    assert_eq!((taken("names"), taken("search"), taken("default")), (4 * 4, 2 * 4, 4 * 4));
    assert_eq!(
        tidegate.metrics().one("tidegate_preread_seconds_count", &[("listener", "web")]) as usize,
        cases().len() * 4
    );
}

#[test]
fn f09_one_byte_at_a_time_still_arrives_where_it_should() {
    let pools = Pools::new(&["names", "http2", "tls", "search", "redis", "magic"]);
    let tidegate = Tidegate::start(pools.config("", ROUTES));
    let sent = client_hello::write(Some("a.example.com"), &["h2"]);
    arrives(&tidegate, &tidegate.addr(), "names", &sent, sent.len());
}

#[test]
fn addresses_and_ports_decide_without_a_byte() {
    let pools = Pools::new(&["near", "far", "second"]);
    let routes = r#"
[[listeners.web.routes]]
source = ["127.0.0.2/31", "10.0.0.0/8"]
pool = "near"
[[listeners.web.routes]]
local_address = "127.0.0.9"
pool = "far"
"#;
    let config = pools.config("", routes).bind("0.0.0.0:0");
    let tidegate = Tidegate::start(config);
    let port = tidegate.addr().tcp().port();
    // The server speaks first: nobody waits for the client.
    for (from, to, pool) in [
        ("127.0.0.2", "127.0.0.1", "near"),
        ("127.0.0.3", "127.0.0.1", "near"),
        ("127.0.0.4", "127.0.0.1", "web"),
        ("127.0.0.4", "127.0.0.9", "far"),
    ] {
        let mut client = Conn::from(from.parse().unwrap(), &Addr::parse(&format!("{to}:{port}")));
        assert_eq!(client.line(), pool, "from {from} to {to}");
    }
    tidegate.until_idle();
    assert!(!tidegate.metrics().has("tidegate_preread_seconds_count", &[]), "nothing was read");
}

#[test]
fn one_of_several_ports_has_a_pool_of_its_own() {
    let pools = Pools::new(&["second"]);
    let (one, two) = (free_port(), free_port());
    let routes = format!("[[listeners.web.routes]]\nlocal_port = [\"{two}-{two}\", 1]\npool = \"second\"\n");
    let config = pools.config("", &routes).binds([format!("127.0.0.1:{one}"), format!("[::1]:{two}")]);
    let _tidegate = Tidegate::start(config);
    assert_eq!(Conn::to(&Addr::parse(&format!("127.0.0.1:{one}"))).line(), "web");
    assert_eq!(Conn::to(&Addr::parse(&format!("[::1]:{two}"))).line(), "second");
}

#[test]
fn a_share_is_the_same_clients_and_weights_are_kept() {
    let pools = Pools::new(&["canary", "a", "b"]);
    let routes = r#"
[[listeners.web.routes]]
name = "canary"
share = "25%"
pool = "canary"
[[listeners.web.routes]]
name = "split"
pools = [{ pool = "a", weight = 3 }, { pool = "b" }]
source = "127.0.0.0/8"
"#;
    let tidegate = Tidegate::start(pools.config("", routes));
    let address = tidegate.addr();
    let round = || -> Vec<String> {
        let client = |number: u8| Conn::from([127, 0, 1, number].into(), &address).line();
        (0..200).map(client).collect()
    };
    let first = round();
    assert_eq!(first, round(), "the same client, the same pool");
    let count = |pool: &str| first.iter().filter(|found| *found == pool).count();
    // Their addresses are fixed, and so is what becomes of them.
    assert_eq!((count("canary") + count("a") + count("b"), count("web")), (200, 0));
    assert!((30..70).contains(&count("canary")) && count("a") > count("b") && count("b") > 15, "{first:?}");
}

#[test]
fn who_is_refused_is_reset_before_any_backend_is_touched() {
    let pools = Pools::new(&["names"]);
    let routes = r#"
[[listeners.web.routes]]
sni = "a.example.com"
pool = "names"
[[listeners.web.routes]]
name = "others"
refuse = true
"#;
    let routes = routes.replace("\"others\"", "\"strangers\"");
    let config = pools.config("", &routes).to_string().replace("pool = \"web\"\n", "");
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    client.send(client_hello::write(Some("b.example.com"), &["h2", "a,b\n"]));
    client.expect_end(End::Rst);
    let mut client = tidegate.connect();
    client.send(client_hello::write(Some("a.example.com"), &[]));
    assert_eq!(client.line(), "names");
    drop(client);
    let records = tidegate.records(2);
    // The lines of two workers come in any order.
    let of = |rule: &str| records.iter().find(|record| record["rule"] == rule).unwrap_or_else(|| panic!("{records:?}"));
    let (refused, served) = (of("strangers"), of("route-1"));
    assert_eq!(
        (&refused["reason"], &refused["phase"], &refused["rule"]),
        (&json!("route_refused"), &json!("route"), &json!("strangers"))
    );
    assert_eq!((&refused["sni"], &refused["alpn"]), (&json!("b.example.com"), &json!(r"h2,a,b\n")));
    assert_eq!((&refused["pool"], &refused["ended_by"]), (&Value::Null, &json!("balancer")));
    assert_eq!((&served["sni"], &served["alpn"]), (&json!("a.example.com"), &Value::Null));
    assert_eq!((pools.touched(), tidegate.closed("route_refused")), (1, 1));
}

#[test]
fn routes_are_told_with_their_counts() {
    let pools = Pools::new(&["names", "late"]);
    let routes = r#"
[[listeners.web.routes]]
name = "names"
sni = "*"
pools = [{ pool = "names", weight = 9 }, { pool = "late" }]
[[listeners.web.routes]]
protocol = "ssh"
refuse = true
"#;
    let tidegate = Tidegate::start(pools.config("preread_timeout_pool = \"late\"", routes));
    let mut client = tidegate.connect();
    client.send("SSH-2.0-x\r\n");
    client.expect_end(End::Rst);
    eventually_eq("it is counted", &1, || tidegate.closed("route_refused"));
    assert_eq!(
        tidegate.status()["listeners"][0]["routes"],
        json!([
            { "rule": "names", "pools": [{ "pool": "names", "weight": 9 }, { "pool": "late", "weight": 1 }],
              "refuse": false, "sessions": 0 },
            { "rule": "route-2", "pools": [], "refuse": true, "sessions": 1 },
            { "rule": "default", "pools": [{ "pool": "web", "weight": 1 }], "refuse": false, "sessions": 0 },
            { "rule": "preread_timeout", "pools": [{ "pool": "late", "weight": 1 }], "refuse": false, "sessions": 0 },
        ])
    );
    let page = tidegate.get("/").body;
    for row in [
        "<tr><td>names<td>names (9), late (1)<td class=\"number\">0",
        "<tr><td>route-2<td>refused<td class=\"number\">1",
    ] {
        assert!(page.contains(row), "{page}");
    }
}

#[test]
fn a_listener_without_routes_shows_nothing_of_them() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]).logged());
    let mut client = tidegate.connect();
    client.send(client_hello::write(Some("a.example.com"), &[]));
    client.finish();
    client.rest();
    let record = &tidegate.records(1)[0];
    assert_eq!((&record["rule"], &record["sni"]), (&json!("default"), &Value::Null), "nobody has looked");
    let metrics = tidegate.metrics();
    assert!(!metrics.has("tidegate_route_sessions_total", &[]) && !metrics.has("tidegate_preread_seconds_count", &[]));
    assert_eq!(tidegate.status()["listeners"][0]["routes"], json!([]));
}
