//! The admin endpoint: its answers, its refusals, and that nobody who talks to it badly harms anybody else.

use crate::kit::conn::Rest;
use crate::kit::{Addr, Backend, Config, Conn, End, Listening, Tidegate, eventually, eventually_eq, http, kernel};

fn start() -> (Backend, Tidegate) {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    (backend, tidegate)
}

fn serves(tidegate: &Tidegate) {
    let mut client = tidegate.connect();
    client.send("still here");
    client.expect("still here");
}

#[test]
fn livez_and_readyz_answer() {
    let (_backend, tidegate) = start();
    for path in ["/livez", "/readyz"] {
        let answer = tidegate.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
}

#[test]
fn readyz_names_a_pool_without_backends() {
    let tidegate = Tidegate::start(Config::with_pool("backends = []"));
    let answer = tidegate.get("/readyz");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("web"), "{}", answer.body);
}

#[test]
fn methods_paths_and_head_are_answered_as_http_asks() {
    let (_backend, tidegate) = start();
    for path in ["/livez", "/readyz", "/metrics", "/status"] {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let answer = http::request(tidegate.admin(), method, path);
            assert_eq!(answer.status, 405, "{method} {path}");
            let allow = answer.header("allow").unwrap_or_else(|| panic!("no Allow with the 405 of {path}"));
            assert!(allow.contains("GET") && allow.contains("HEAD"), "{allow}");
        }
        let (get, head) = (tidegate.get(path), http::request(tidegate.admin(), "HEAD", path));
        assert_eq!((head.status, head.body.as_str()), (get.status, ""), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"));
    }
    assert_eq!(tidegate.get("/nothing").status, 404);
    let content_type = tidegate.get("/metrics").header("content-type").unwrap().to_owned();
    assert!(content_type.starts_with("text/plain") && content_type.contains("version=0.0.4"), "{content_type}");
    assert_eq!(tidegate.get("/status").header("content-type"), Some("application/json"));
}

#[test]
fn the_status_shows_listeners_pools_and_backends() {
    let backend = Backend::echo();
    let listening = Listening::new();
    let list = format!(
        "backends = [\"{backend}\", {{ address = \"{listening}\", weight = 7, name = \"seven\" }}]\nbalance = \"random\""
    );
    let tidegate = Tidegate::start(Config::with_pool(&list));
    let status = tidegate.status();
    assert!(status["version"].as_str().unwrap().starts_with(env!("CARGO_PKG_VERSION")), "{status}");
    assert_eq!(status["generation"], 1);
    assert_eq!(status["listeners"][0]["name"], "web");
    assert_eq!(status["listeners"][0]["active"], 0);
    assert_eq!(status["listeners"][0]["total"], 0);
    assert_eq!(status["pools"][0]["name"], "web");
    assert_eq!(status["pools"][0]["balance"], "random");
    let seven = tidegate.backend_status("seven");
    assert_eq!(seven["address"], listening.to_string());
    assert_eq!(seven["weight"], 7);
    assert_eq!(seven["state"], "up");
    assert_eq!(seven["active"], 0);
    assert_eq!(seven["total"], 0);
}

#[test]
fn every_metric_family_of_the_core_is_there_after_one_session() {
    let backend = Backend::echo();
    let health = "interval = \"100ms\"";
    let tidegate = Tidegate::start(Config::over([&backend]).health(health));
    let mut client = tidegate.connect();
    client.send("x");
    client.expect("x");
    drop(client);
    tidegate.until_idle();
    let metrics = tidegate.metrics();
    let name = backend.to_string();
    let listener = [("listener", "web")];
    let pool = [("pool", "web")];
    let of = [("pool", "web"), ("backend", &*name)];
    for (family, kind, labels) in [
        ("tidegate_build_info", "gauge", &[][..]),
        ("tidegate_listener_connections_total", "counter", &listener),
        ("tidegate_listener_connections_active", "gauge", &listener),
        ("tidegate_connections_closed_total", "counter", &[("listener", "web"), ("reason", "complete")]),
        ("tidegate_pool_failovers_total", "counter", &pool),
        ("tidegate_pool_no_backend_total", "counter", &pool),
        ("tidegate_backend_up", "gauge", &of),
        ("tidegate_backend_connections_total", "counter", &of),
        ("tidegate_backend_connections_active", "gauge", &of),
        ("tidegate_backend_bytes_total", "counter", &[("backend", &*name), ("direction", "to_backend")]),
        ("tidegate_backend_bytes_total", "counter", &[("backend", &*name), ("direction", "to_client")]),
        ("tidegate_backend_health_checks_total", "counter", &[("backend", &*name), ("result", "success")]),
        ("process_open_fds", "gauge", &[]),
        ("process_max_fds", "gauge", &[]),
        ("process_resident_memory_bytes", "gauge", &[]),
    ] {
        assert_eq!(metrics.kind(family), Some(kind), "{family}");
        assert!(metrics.has(family, labels), "{family} {labels:?} in\n{metrics}");
    }
    for (family, labels) in
        [("tidegate_connection_duration_seconds", &listener), ("tidegate_pool_connect_wait_seconds", &pool)]
    {
        assert_eq!(metrics.kind(family), Some("histogram"));
        assert_eq!(metrics.one(&format!("{family}_count"), labels) as u64, 1, "{family}");
    }
    // Those that count errors have no series before there is one; `connecting` and `limits` see them.
    for line in metrics.to_string().lines().filter(|line| line.starts_with("tidegate_")) {
        assert!(!line.contains("127.0.0.1:") || line.contains(&name), "a client's address as a label: {line}");
    }
}

/// Sends these bytes and reads to the end; also what an RST cut off counts as a refusal.
fn answers(admin: &Addr, bytes: &[u8]) -> (Vec<u16>, Rest) {
    let mut conn = Conn::to(admin);
    let _ = conn.try_send(bytes);
    let rest = conn.rest();
    let statuses = rest.text().split("HTTP/1.1 ").skip(1).filter_map(|answer| answer[..3].parse().ok()).collect();
    (statuses, rest)
}

#[test]
fn f78_a_request_that_two_parties_could_read_differently_is_refused_and_the_connection_closed() {
    let (_backend, tidegate) = start();
    let smuggled = "GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (what, request) in [
        (
            "TE with CL",
            "POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "GET with TE and CL",
            "GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("two CLs", "POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nabcde"),
        ("a list of CLs", "POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0, 5\r\n\r\nabcde"),
        ("a signed CL", "POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\nabcde"),
        ("an unknown TE", "POST /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("an obs-fold", "GET /livez HTTP/1.1\r\nHost: localhost\r\nX: one\r\n two\r\n\r\n"),
        ("a space before the colon", "POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length : 5\r\n\r\nabcde"),
        ("a bare LF", "GET /livez HTTP/1.1\nHost: localhost\n\n"),
        ("a bare LF in the header", "GET /livez HTTP/1.1\r\nHost: localhost\nX: b\r\n\r\n"),
        ("a bare CR", "GET /livez HTTP/1.1\r\nHost: localhost\r\nX: b\rY: c\r\n\r\n"),
        ("a NUL in a value", "GET /livez HTTP/1.1\r\nHost: localhost\r\nX: b\0c\r\n\r\n"),
        ("no method", " /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("garbage", "\u{16}\u{3}\u{1}\u{2}\r\n\r\n"),
    ] {
        let (statuses, rest) = answers(tidegate.admin(), format!("{request}{smuggled}").as_bytes());
        assert!(statuses.iter().all(|status| *status == 400 || *status == 431), "{what}: {}", rest.text());
        assert!(statuses.len() <= 1, "{what}: the smuggled request was answered: {}", rest.text());
        assert!(!statuses.is_empty() || rest.end == End::Rst || rest.bytes.is_empty(), "{what}: {rest:?}");
    }
    assert_eq!(tidegate.get("/livez").status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (_backend, tidegate) = start();
    let one = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let last = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let (statuses, _) = answers(tidegate.admin(), format!("{}{}{last}", one("/livez"), one("/nothing")).as_bytes());
    assert_eq!(statuses, [200, 404, 200]);
}

#[test]
fn f79_slow_and_idle_connections_are_ended_and_the_data_path_is_unchanged() {
    let (_backend, tidegate) = start();
    let mut slow: Vec<Conn> = Vec::new();
    for bytes in [
        "",
        "G",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\n",
        "POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nfew",
    ] {
        let mut conn = Conn::to(tidegate.admin());
        conn.send(bytes);
        slow.push(conn);
    }
    // Keeps asking for the largest answer, reads nothing, and then stays.
    let mut reader = Conn::with_small_window(tidegate.admin());
    let _ = reader.try_send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200));
    slow.push(reader);
    serves(&tidegate);
    // Each of these reads waits for an end within the kit's patience, and fails without one.
    for mut conn in slow {
        conn.rest();
    }
    assert_eq!(tidegate.get("/livez").status, 200);
}

#[test]
fn f79_hundreds_of_idle_connections_meet_a_cap_and_then_a_time_out() {
    let (_backend, tidegate) = start();
    let fds = tidegate.fds().len();
    let idle: Vec<Conn> = (0..600).map(|_| Conn::to(tidegate.admin())).collect();
    serves(&tidegate);
    assert!(tidegate.fds().len() < fds + 400, "{} fds for idle admin connections", tidegate.fds().len() - fds);
    for mut conn in idle {
        conn.rest();
    }
    eventually_eq("the endpoint answers again", &200, || {
        let mut conn = Conn::to(tidegate.admin());
        let _ = conn.try_send("GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let rest = conn.rest();
        if rest.bytes.is_empty() { 0 } else { http::Answer::parse(&rest).status }
    });
    assert!(tidegate.metrics().one("tidegate_admin_connections_refused_total", &[]) >= 1.0);
}

#[test]
fn f79_whoever_only_came_makes_room_before_somebody_who_reads_an_answer() {
    let addresses = (0..1_000).map(|n| format!("127.1.{}.{}:9", n / 250, n % 250 + 1));
    let config = Config::over(addresses).to_string();
    let config = config.replace("listen = \"127.0.0.1:0\"", "listen = [\"127.0.0.1:0\", \"unix:$DIR/admin.sock\"]");
    let tidegate = Tidegate::start(&config);
    let whole = tidegate.get("/metrics").body;
    let mut reader = Conn::to(&Addr::Unix(tidegate.dir().join("admin.sock")));
    reader.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    // Its answer is under way, and larger than what a unix socket holds.
    reader.expect("HTTP/1.1 200");
    let refused = || tidegate.metrics().one("tidegate_admin_connections_refused_total", &[]) as u64;
    // The places are those of all addresses; and here a client waits where the accept queue is full.
    eventually("twice as many have come and gone as there are places", || {
        let _idle: Vec<Conn> = (0..130).map(|_| Conn::to(tidegate.admin())).collect();
        refused() >= 128
    });
    let rest = reader.rest();
    assert_eq!(rest.end, End::Fin);
    let (families, lines) = (|text: &str| text.matches("# TYPE").count(), |text: &str| text.lines().count());
    let text = rest.text();
    assert_eq!(families(&text), families(&whole), "the answer is whole");
    assert!(lines(&text) >= lines(&whole), "{} lines of {}", lines(&text), lines(&whole));
}

#[test]
fn f80_a_huge_body_is_refused_in_bounded_memory() {
    let (_backend, tidegate) = start();
    let resident = kernel::resident(tidegate.pid);
    for head in [
        "POST /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1073741824\r\n\r\n",
        "GET /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1073741824\r\n\r\n",
    ] {
        let mut conn = Conn::to(tidegate.admin());
        conn.send(head);
        // It need not be taken; what counts is that it isn't kept.
        let _ = conn.try_send_pattern(0, 64 << 20);
        let rest = conn.rest();
        let text = rest.text();
        let status = text.get(9..12).unwrap_or("none");
        assert!(["400", "405", "413", "none"].contains(&status), "{text}");
    }
    let grown = kernel::resident(tidegate.pid).saturating_sub(resident);
    assert!(grown < 16 << 20, "{grown} bytes more");
    serves(&tidegate);
}

#[test]
fn f80_a_huge_head_is_refused() {
    let (_backend, tidegate) = start();
    for request in [
        format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(1 << 20)),
        format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "b".repeat(1 << 20)),
        format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(10_000)),
    ] {
        let (statuses, rest) = answers(tidegate.admin(), request.as_bytes());
        let refused = statuses.iter().all(|status| [400, 414, 431].contains(status));
        assert!(refused && statuses.len() <= 1, "{}", rest.text());
    }
    assert_eq!(tidegate.get("/livez").status, 200);
}

#[test]
fn f80_odd_paths_are_not_found() {
    let (_backend, tidegate) = start();
    for path in [
        "/../livez",
        "/livez/..",
        "/./livez",
        "//livez",
        "/livez/",
        "/%6civez",
        "/%2e%2e/livez",
        "/status/../metrics",
        "/metrics%00",
        "/etc/passwd",
        "/..%2f..%2fetc/passwd",
    ] {
        let status = tidegate.get(path).status;
        assert!(status == 404 || status == 400, "{path}: {status}");
    }
    assert_eq!(tidegate.get("/livez?verbose=1").status, 200, "a query is no other path");
}

#[test]
fn an_admin_port_beyond_loopback_is_refused_at_start() {
    let config = Config::over(["127.0.0.1:1"]).to_string();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9900"] {
        let config = config.replace("token_file = \"$DIR/token\"\n", "");
        let config = config.replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{address}\""));
        let exit = crate::kit::Launch::new(config).run_to_end();
        assert_eq!(exit.code, Some(78), "{exit:?}");
        assert!(exit.stderr.contains("admin.listen") && exit.stderr.contains("loopback"), "{}", exit.stderr);
    }
}

#[test]
fn a_scrape_under_load_is_consistent() {
    let (_backend, tidegate) = start();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            for _ in 0..300 {
                serves(&tidegate);
            }
        });
        eventually("the load is over", || {
            let metrics = tidegate.metrics();
            let total = metrics.one("tidegate_listener_connections_total", &[]);
            let closed = metrics.sum("tidegate_connections_closed_total", &[]);
            assert!(closed <= total + 1.0, "{closed} closed of {total}");
            load.is_finished()
        });
    });
}
