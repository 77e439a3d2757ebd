//! Changes: what reaches the daemon and what is answered, as the one who carries commands out would say it.

use super::*;
use crate::admin::command::{Command, Refused, Why};
use std::fmt::Write;

/// Everything of a request but its path.
struct Post<'a> {
    path: &'a str,
    headers: String,
    body: &'a str,
}

impl<'a> Post<'a> {
    fn to(path: &'a str, body: &'a str) -> Self {
        Self { path, headers: String::new(), body }.with("Content-Type: application/json")
    }

    fn with(mut self, header: &str) -> Self {
        write!(self.headers, "{header}\r\n").unwrap();
        self
    }

    fn text(&self) -> String {
        let Self { path, headers, body } = self;
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        )
    }
}

/// An endpoint that may be changed over its unix socket, and somebody who says the same to every command.
async fn answered(post: &Post<'_>, reply: Reply) -> (Answer, Vec<(Command, Asker)>) {
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::unix(&dir.path().join("admin.sock"), CONFIG);
    let mut calls = std::mem::replace(&mut served.calls, mpsc::channel(1).1);
    let asked = drain::spawn(async move {
        let mut asked = Vec::new();
        while let Some(call) = calls.recv().await {
            asked.push((call.command, call.by));
            call.reply.send(reply.clone()).unwrap();
        }
        asked
    });
    let answer = Answer::parse(&served.exchange(&post.text()).await);
    served.stop.send(()).unwrap();
    served.serving.await.unwrap();
    (answer, asked.await.unwrap())
}

#[allow(clippy::unnecessary_wraps, reason = "it is a reply")]
fn done() -> Reply {
    Ok(Done { summary: "it is so".to_owned(), changed: true, details: Value::Null })
}

#[tokio::test]
async fn what_was_done_is_answered_and_who_asked_is_passed_on() {
    let post = Post::to("/log", r#"{"level": "debug"}"#);
    let details = json!({ "before": "info" });
    let reply = Ok(Done { summary: "more is logged".to_owned(), changed: true, details: details.clone() });
    let (answer, asked) = answered(&post, reply).await;
    let own = rustix::process::geteuid().as_raw();
    assert_eq!(asked, [(Command::LogLevel(crate::config::Level::Debug), Asker::Uid(own))]);
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    let expected = json!({ "ok": true, "changed": true, "summary": "more is logged", "details": details });
    assert_eq!((answer.status, body), (200, expected));
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["connection"], "close", "nobody knows where a next request would begin");
    assert!(!answer.headers.keys().any(|name| name.starts_with("access-control-") || name == "set-cookie"));
}

#[tokio::test]
async fn each_refusal_has_its_status() {
    for (why, status) in [(Why::NotFound, 404), (Why::Conflict, 409), (Why::Invalid, 422), (Why::Busy, 503)] {
        let reply = Err(Refused { why, text: "line 1\nline 2".to_owned() });
        let (answer, _) = answered(&Post::to("/reload", ""), reply).await;
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!((answer.status, body), (status, json!({ "ok": false, "error": "line 1\nline 2" })));
    }
}

#[tokio::test]
async fn sessions_are_listed_by_page_and_closed_by_id() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::unix(&dir.path().join("admin.sock"), CONFIG);
    let page = served.get("/connections?limit=1").await;
    let page: Value = serde_json::from_str(&page.body).unwrap();
    assert_eq!((&page["connections"][0]["id"], &page["next"]), (&json!("1-1"), &json!("1.1-1")));
    let last: Value = serde_json::from_str(&served.get("/connections?after=1.1-1").await.body).unwrap();
    assert_eq!((&last["connections"][0]["id"], &last["next"]), (&json!("1-2"), &Value::Null));
    let wrong = served.get("/connections?limit=all").await;
    assert_eq!((wrong.status, wrong.body.starts_with("limit: \"all\" is no such number")), (400, true));
    let (answer, asked) = answered(&Post::to("/connections/1-4711/close", ""), done()).await;
    let own = rustix::process::geteuid().as_raw();
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(body["summary"], format!("1-4711 closed for uid {own}"));
    assert!(asked.is_empty(), "the workers are asked, not the daemon");
}

#[tokio::test]
async fn names_of_the_path_are_decoded_once() {
    let post = Post::to("/pools/app/backends/unix:%2Frun%2F%2525.sock", r#"{"weight": 7}"#);
    let (answer, asked) = answered(&post, done()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let Command::Backend { pool, backend, .. } = &asked[0].0 else { panic!("{asked:?}") };
    assert_eq!((pool.as_str(), &**backend), ("app", "unix:/run/%25.sock"));
}

#[tokio::test]
async fn f80_what_is_no_command_reaches_nobody() {
    let deep = "[".repeat(30_000);
    for (path, body, status) in [
        ("/log", "", 422),
        ("/log", "{", 400),
        ("/log", deep.as_str(), 400),
        ("/log", "{\"level\": {\"level\": \"info\"}}", 422),
        ("/log", "[]", 422),
        ("/log", r#"{"level": "loud"}"#, 422),
        ("/log", r#"{"level": "info", "x": 1}"#, 422),
        ("/reload", "0", 422),
        ("/connections/all/close", "", 404),
        ("/log/", r#"{"level": "info"}"#, 404),
        ("//log", r#"{"level": "info"}"#, 404),
        ("/%6cog", r#"{"level": "info"}"#, 404),
        ("/pools/%2e%2e/backends", r#"{"address": "10.0.0.1:80"}"#, 404),
        ("/pools/app/backends/../remove", "", 404),
    ] {
        let (answer, asked) = answered(&Post::to(path, body), done()).await;
        assert_eq!((answer.status, asked.len()), (status, 0), "{path} {body:.40}: {answer:?}");
    }
}

#[tokio::test]
async fn f76_a_body_is_json_and_says_so() {
    let body = r#"{"level": "info"}"#;
    let typed = |content_type: &str| {
        let mut post = Post::to("/log", body);
        post.headers = format!("Content-Type: {content_type}\r\n");
        post
    };
    for good in ["application/json", "Application/JSON; charset=utf-8"] {
        assert_eq!(answered(&typed(good), done()).await.0.status, 200, "{good}");
    }
    for bad in ["text/plain", "application/x-www-form-urlencoded", "application/json+x", "application/jsonp", ""] {
        let (answer, asked) = answered(&typed(bad), done()).await;
        assert_eq!((answer.status, asked.len()), (415, 0), "{bad}");
    }
    let none = Post { path: "/log", headers: String::new(), body };
    assert_eq!(answered(&none, done()).await.0.status, 415);
    let empty = Post { path: "/reload", headers: String::new(), body: "" };
    assert_eq!(answered(&empty, done()).await.0.status, 200, "who sends nothing need not say what it is");
    let form = Post { path: "/reload", headers: "Content-Type: text/plain\r\n".to_owned(), body: "" };
    assert_eq!(answered(&form, done()).await.0.status, 415);
}

#[tokio::test]
async fn f76_another_sites_page_changes_nothing() {
    for (header, status) in [
        ("Origin: http://localhost", 200),
        ("Sec-Fetch-Site: same-origin", 200),
        ("Origin: http://localhost:3000", 403),
        ("Origin: http://evil.example", 403),
        ("Origin: null", 403),
        ("Sec-Fetch-Site: cross-site", 403),
        ("Sec-Fetch-Site: same-site", 403),
    ] {
        let (answer, asked) = answered(&Post::to("/reload", "").with(header), done()).await;
        assert_eq!((answer.status, asked.len()), (status, usize::from(status == 200)), "{header}");
        assert!(!answer.headers.keys().any(|name| name.starts_with("access-control-")), "{answer:?}");
    }
}

#[tokio::test]
async fn a_config_may_be_larger_than_any_other_body() {
    let config = "#".repeat(1 << 20);
    let body = json!({ "config": config }).to_string();
    let (answer, asked) = answered(&Post::to("/plan", &body), done()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(asked.iter().map(|(command, _)| command).eq([&Command::Plan(Some(config))]));
    let served = Served::tcp();
    for (path, length) in [("/log", (64 << 10) + 1), ("/plan", (16 << 20) + 1), ("/status", (64 << 10) + 1)] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
        assert_eq!(Answer::parse(&served.exchange(&head).await).status, 413, "{path}");
    }
}

#[tokio::test]
async fn f79_large_bodies_are_read_one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::unix(&dir.path().join("admin.sock"), CONFIG);
    let head = "POST /plan HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n";
    let mut first = served.connect().await;
    first.write_all(head.as_bytes()).await.unwrap();
    let mut going_on = [0; 25];
    first.read_exact(&mut going_on).await.unwrap();
    assert_eq!(&going_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    let answer = Answer::parse(&served.exchange(head).await);
    assert_eq!((answer.status, answer.headers["retry-after"].as_str()), (503, "1"));
    drop(first);
    assert_eq!(served.get("/livez").await.status, 200);
}

#[tokio::test]
async fn without_a_token_tcp_changes_nothing() {
    let served = Served::tcp();
    for header in ["X: y", "Authorization: Bearer ", "Authorization: Bearer 0123456789abcdef"] {
        let answer = Answer::parse(&served.exchange(&Post::to("/reload", "").with(header).text()).await);
        assert_eq!(answer.status, 403, "{header}");
        assert!(answer.body.contains("admin.token_file"), "{answer:?}");
    }
}

#[tokio::test]
async fn f75_wrong_tokens_are_refused_and_too_many_are_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let served = with_token(dir.path());
    let ask = |header: &'static str| served.exchange(Post::to("/reload", "").with(header).text().leak());
    let mut statuses = Vec::new();
    // Where they take longer than two seconds, no second has too many, and there is less to see.
    for _ in 0..=(2 * refusals::MOST) {
        let answer = Answer::parse(&ask("Authorization: Bearer canary-0123456788").await);
        if answer.status == 401 {
            assert_eq!(answer.headers["www-authenticate"], "Bearer realm=\"tidegate\"");
        } else {
            assert_eq!((answer.status, answer.headers["retry-after"].as_str()), (429, "1"), "{answer:?}");
        }
        statuses.push(answer.status);
    }
    assert_eq!(statuses[0], 401);
    let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count() as u64;
    assert_eq!(served.metrics.admin_denied(crate::metrics::AdminDenial::Token).get(), count(401));
    assert_eq!(served.metrics.admin_denied(crate::metrics::AdminDenial::TooMany).get(), count(429));
    let Served { address, mut calls, .. } = served;
    let Endpoint::Tcp(address) = address.0 else { unreachable!() };
    let asking = drain::spawn(async move {
        let mut stream: Stream = Box::new(TcpStream::connect(address).await.unwrap());
        let post = Post::to("/reload", "").with("Authorization: Bearer canary-0123456789").text();
        stream.write_all(post.as_bytes()).await.unwrap();
        Answer::parse(&rest(&mut stream).await).status
    });
    let call = calls.recv().await.unwrap();
    assert!(matches!(&call.by, Asker::Token(from) if from.starts_with("127.0.0.1:")), "{:?}", call.by);
    call.reply.send(done()).unwrap();
    assert_eq!(asking.await.unwrap(), 200, "the right one always passes");
}

/// Over TCP, with a token of its own.
fn with_token(dir: &Path) -> Served {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("token");
    std::fs::write(&path, "canary-0123456789\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = format!("[admin]\ntoken_file = \"{}\"\n{CONFIG}", path.display());
    Served::at("127.0.0.1:0".parse().map(Endpoint::Tcp).unwrap(), &config)
}

#[tokio::test]
async fn f77_a_name_that_is_not_ours_is_misdirected() {
    let served = Served::tcp();
    for (host, status) in [("localhost:1", 200), ("127.0.0.1", 200), ("evil.example", 421), ("", 400)] {
        let text = format!("GET /status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(Answer::parse(&served.exchange(&text).await).status, status, "{host}");
    }
    assert_eq!(served.metrics.admin_denied(crate::metrics::AdminDenial::Host).get(), 1);
}

#[tokio::test]
async fn who_comes_when_another_process_has_the_socket_is_left_to_it() {
    let address = BindAddr("127.0.0.1:0".parse().map(Endpoint::Tcp).unwrap());
    let socket = bind_all(&address, &options(), 1, Neighbours::None).unwrap().pop().unwrap();
    socket.listen(128).unwrap();
    for _ in 0..32 {
        let served = Served::on(socket.twin().unwrap(), CONFIG);
        served.get("/livez").await;
        // Somebody comes, and it is told to stop, before it has looked.
        let Endpoint::Tcp(at) = socket.address.0 else { panic!("a TCP address") };
        let _client = std::net::TcpStream::connect(at).unwrap();
        yield_now().await;
        served.stop.send(()).unwrap();
        served.serving.await.unwrap();
        assert!(socket.has_waiting());
        socket.accept().unwrap();
    }
}
