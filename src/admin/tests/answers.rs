//! What is answered, by path, method and state.

use super::*;

#[tokio::test]
async fn each_path_has_its_answer() {
    let served = Served::tcp();
    served.all_up();
    for (path, content_type, part) in [
        ("/livez", "text/plain; charset=utf-8", "alive\n"),
        ("/readyz", "text/plain; charset=utf-8", "ready\n"),
        ("/metrics", "text/plain; version=0.0.4", "tidegate_build_info{"),
        ("/metrics?name[]=x", "text/plain; version=0.0.4", "tidegate_build_info{"),
        ("/status", "application/json", "\"generation\": 1"),
        ("/", "text/html; charset=utf-8", "<title>tidegate</title>"),
        ("/style.css", "text/css; charset=utf-8", "table {"),
        ("http://localhost/livez", "text/plain; charset=utf-8", "alive\n"),
    ] {
        let answer = served.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(answer.headers["content-type"], content_type, "{path}");
        assert!(answer.body.contains(part), "{path}: {answer:?}");
        assert_eq!(answer.headers["content-length"], answer.body.len().to_string(), "{path}");
        for header in ["content-security-policy", "x-content-type-options", "x-frame-options"] {
            assert!(answer.headers.contains_key(header), "{path}: {header}");
        }
    }
}

#[tokio::test]
async fn everything_that_is_shown_is_of_the_type_that_is_described() {
    let served = Served::tcp();
    served.all_up();
    for shown in shown::SHOWN {
        let query = if shown.path == "/explain" { "?listener=web&from=unix" } else { "" };
        let answer = served.get(&format!("{}{query}", shown.path)).await;
        assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, shown.content_type), "{answer:?}");
    }
    let description: Value = serde_json::from_str(&served.get("/openapi.json").await.body).unwrap();
    for change in crate::admin::changes::CHANGES {
        assert!(description["paths"][change.path]["post"].is_object(), "{}", change.path);
        let path = change.path.replace(['{', '}'], "");
        assert_eq!(served.ask("POST", &path).await.status, 403, "{path} is there, and nobody may");
    }
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let served = Served::tcp();
    for path in ["/livez", "/readyz", "/status", "/nothing"] {
        let (get, head) = (served.get(path).await, served.ask("HEAD", path).await);
        assert_eq!((head.status, head.body.as_str()), (get.status, ""), "{path}");
        assert_eq!(head.headers["content-length"], get.body.len().to_string(), "{path}");
    }
}

#[tokio::test]
async fn only_the_paths_themselves_exist() {
    let served = Served::tcp();
    for path in [
        "/nothing",
        "//",
        "//livez",
        "/livez/",
        "/./livez",
        "/../livez",
        "/x/../livez",
        "/%2e/livez",
        "/%2e%2e/livez",
        "/%6civez",
        "/livez%00",
        "/LIVEZ",
        "/livez;x",
        "*",
    ] {
        let answer = served.get(path).await;
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    }
}

#[tokio::test]
async fn each_path_has_its_methods() {
    let served = Served::tcp();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"] {
        let answer = served.ask(method, "/status").await;
        assert_eq!((answer.status, answer.headers["allow"].as_str()), (405, "GET, HEAD"), "{method}");
        assert_eq!(served.ask(method, "/nothing").await.status, 404, "{method}");
    }
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"] {
        for path in ["/reload", "/pools/app/backends/10.0.0.1:80", "/connections/1-1/close"] {
            let answer = served.ask(method, path).await;
            assert_eq!((answer.status, answer.headers["allow"].as_str()), (405, "POST"), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn readiness_names_each_gate() {
    let served = Served::tcp();
    let answer = served.get("/readyz").await;
    let down = "pool app has no available backend\npool spare has no available backend\n";
    assert_eq!((answer.status, answer.body.as_str()), (503, down));

    served.all_up();
    assert_eq!(served.get("/readyz").await.status, 200);

    let listener = Arc::clone(&served.table.load().listeners[0]);
    let mut broken: Vec<_> = (1..2 * WORKERS).map(|_| listener.mark_broken()).collect();
    assert_eq!(served.get("/readyz").await.status, 200, "one socket still works");
    broken.push(listener.mark_broken());
    let answer = served.get("/readyz").await;
    assert_eq!((answer.status, answer.body.as_str()), (503, "listener web has no working socket\n"));

    served.phase.send_replace(Phase::Draining);
    assert_eq!(served.get("/readyz").await.body, "draining\nlistener web has no working socket\n");
    assert_eq!(served.get("/livez").await.status, 200);
    drop(broken);
    served.phase.send_replace(Phase::Starting);
    assert_eq!(served.get("/readyz").await.body, "starting\n");
}

#[tokio::test]
async fn status_shows_the_table_and_its_state() {
    let served = Served::tcp();
    served.all_up();
    let backend = served.backend(0);
    backend.set_last_error("it broke", 1_650_000_000_123);
    backend.metrics.connections_total.inc_by(5);
    backend.metrics.bytes[0].inc_by(70);
    backend.metrics.bytes[1].inc_by(80);
    let slot = backend.claim();
    let listener = Arc::clone(&served.table.load().listeners[0]);
    listener.metrics.connections_total.inc_by(9);
    listener.metrics.active.set(2);
    let broken = listener.mark_broken();

    let status: Value = serde_json::from_str(&served.get("/status").await.body).unwrap();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&status["generation"], &status["phase"]), (&json!(1), &json!("ready")));
    assert_eq!((&status["ready"], &status["gates"]), (&json!(true), &json!([])));
    assert_eq!((&status["started"], &status["workers"]), (&json!("1970-01-01T00:00:00.000Z"), &json!(WORKERS)));
    assert_eq!(status["needs_upgrade"], json!(["runtime.workers"]));
    assert_eq!(
        status["config"],
        json!({
            "hash": "00000000deadbeef", "loaded": "1970-01-01T00:00:01.000Z", "by": "start",
            "file": "/etc/tidegate/lb.toml",
            "generations": [
                { "generation": 1, "hash": "00000000deadbeef", "loaded": "1970-01-01T00:00:01.000Z", "by": "start" },
            ],
            "last_refused": { "at": "1970-01-01T00:00:02.000Z", "by": "SIGHUP", "text": "lb.toml:3:1: no <key>" },
        })
    );
    assert_eq!(
        status["listeners"],
        json!([{
            "name": "web", "bind": ["127.0.0.1:8080", "[::1]:8080"], "pool": "app", "state": "degraded",
            "sockets": 4, "sockets_broken": 1, "active": 2, "total": 9, "reserved": 0, "proxy_headers": null, "routes": [],
        }])
    );
    assert_eq!(status["pools"][0]["name"], "app");
    assert_eq!((&status["pools"][0]["panic"], &status["pools"][0]["tier"]), (&json!(false), &json!(0)));
    assert_eq!((&status["pools"][0]["balance"], &status["pools"][0]["available"]), (&json!("round_robin"), &json!(2)));
    assert_eq!(
        status["pools"][0]["backends"][0],
        json!({
            "name": "10.0.0.1:80", "address": "10.0.0.1:80", "weight": 1, "weight_configured": 1, "tier": 0,
            "admin": "enabled", "health_override": "auto",
            "state": "up", "share": 1.0, "agent": null, "ejection": null,
            "load": { "active": 1, "connect_ms": null, "answer_ms": null },
            "since": "2023-11-14T22:13:20.000Z", "active": 1, "max_connections": null, "total": 5,
            "bytes": { "to_backend": 70, "to_client": 80 },
            "last_error": { "text": "it broke", "at": "2022-04-15T05:20:00.123Z" },
        })
    );
    let second = &status["pools"][0]["backends"][1];
    assert_eq!((&second["weight"], &second["last_error"]), (&json!(3), &Value::Null));
    drop((slot, broken));
}

#[tokio::test]
async fn the_page_says_what_keeps_it_from_being_ready_and_what_is_not_as_in_the_file() {
    let served = Served::tcp();
    let page = served.get("/").await.body;
    for part in
        ["<p>not ready, ", "<li>pool app has no available backend\n", ">waits for an upgrade: runtime.workers\n"]
    {
        assert!(page.contains(part), "no {part} in {page}");
    }
    assert!(!page.contains("changed at run time") && !page.contains("(file: "), "{page}");

    served.all_up();
    let adjusted = r#"{"listeners": {"web": "enabled"}, "pools": {"app": {"backends": {"10.0.0.1:80": {"weight": 7}}}},
        "log_level": "debug"}"#;
    let adjusted: Adjustments = serde_json::from_str(adjusted).unwrap();
    let app = Arc::clone(&served.table.load().pools[0]);
    app.adjust(&adjusted.pools["app"].backends, &served.metrics, false, Now::read());
    served.adjustments.store(Arc::new(adjusted));
    let page = served.get("/").await.body;
    let row = "<tr><td>10.0.0.1:80<td>10.0.0.1:80<td class=\"number\">0<td class=\"number\">7 (file: 1)<td";
    for part in ["<p>ready, ", "<p>changed at run time: listener web, pool app, log debug\n", row] {
        assert!(page.contains(part), "no {part} in {page}");
    }
}

#[tokio::test]
async fn the_page_shows_markup_as_text_and_runs_nothing() {
    let served = Served::tcp();
    served.backend(0).set_last_error("</td><script>alert(1)</script>", 1_650_000_000_123);
    let answer = served.get("/").await;
    assert!(answer.body.contains("&lt;img src=x onerror=&#39;alert(1)&#39;&gt;"), "{}", answer.body);
    for forbidden in ["<img", "<script", " style=", "<style", " onerror='", "javascript:"] {
        assert!(!answer.body.contains(forbidden), "{forbidden} in {}", answer.body);
    }
    let row = "<tr><td class=\"number\">1<td>00000000deadbeef<td>";
    for part in ["/etc/tidegate/lb.toml", row, "asked for by SIGHUP: lb.toml:3:1: no &lt;key&gt;\n"] {
        assert!(answer.body.contains(part), "no {part} in {}", answer.body);
    }
    let policy = &answer.headers["content-security-policy"];
    assert!(policy.starts_with("default-src 'none'; style-src 'self';"), "{policy}");
    assert_eq!(answer.headers["x-frame-options"], "DENY");
}
