//! Changes through the admin endpoint of the real binary: who may, what a browser may not, and that no secret is shown.

use crate::kit::http::{self, TOKEN};
use crate::kit::{Backend, Config, Conn, End, Launch, Tidegate, eventually, eventually_eq};
use serde_json::json;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

fn start() -> (Backend, Tidegate) {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    (backend, tidegate)
}

fn write_token(dir: &Path, token: &str, mode: u32) {
    let path = dir.join("token");
    fs::write(&path, token).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn f82_a_change_is_made_for_the_token_told_of_with_who_and_what_and_made_once() {
    let (_backend, tidegate) = start();
    let set = |level: &str| tidegate.post("/log", &json!({ "level": level }).to_string());
    let answer = set("debug");
    assert_eq!((answer.status, &answer.json()["ok"], &answer.json()["changed"]), (200, &json!(true), &json!(true)));
    let line = tidegate.logged(&["command=\"log level\"", "changed"]);
    assert!(line.contains("token from 127.0.0.1:") && line.contains("debug"), "{line}");
    let again = set("debug");
    assert_eq!((again.status, &again.json()["changed"]), (200, &json!(false)), "{}", again.body);
    assert_eq!(set("info").json()["changed"], true);
    // A line for each change, and none for what was so already.
    eventually_eq("both changes are told of", &2, || tidegate.count_logged(&["command=\"log level\"", "changed"]));
}

#[test]
fn f82_each_change_is_one_line_that_says_who_made_it_and_what_was_before() {
    let (_backend, mut tidegate) = start();
    let mut session = tidegate.echoed();
    let id = tidegate.get("/connections").json()["connections"][0]["id"].as_str().unwrap().to_owned();
    let file = tidegate.dir().join("lb.toml");
    fs::write(&file, fs::read_to_string(&file).unwrap() + "# another text\n").unwrap();
    let (close, new) = (format!("/connections/{id}/close"), "/pools/web/backends/new");
    let of_new =
        |from: &str, to: &str| format!("command=\"backend\" pool=web backend=\"new\" from=\"{from}\" to=\"{to}\"");
    let closed = format!("command=\"close\" from={id} to=\"closed\"");
    let changes = [
        ("/log", "{\"level\": \"warn\"}", "command=\"log level\" from=\"info\" to=\"warn\"".to_owned()),
        ("/log", "{\"level\": \"info\"}", "command=\"log level\" from=\"warn\" to=\"info\"".to_owned()),
        (
            "/pools/web/backends",
            "{\"address\": \"127.0.0.1:9\", \"name\": \"new\"}",
            "command=\"add backend\"".to_owned(),
        ),
        (new, "{\"weight\": 7}", of_new("enabled, weight 1", "enabled, weight 7")),
        (new, "{\"state\": \"draining\"}", of_new("enabled, weight 7", "draining, weight 7")),
        (new, "{\"health\": \"down\"}", of_new("draining, weight 7", "draining, weight 7, forced down")),
        (
            "/pools/web/backends/new/remove",
            "",
            "command=\"remove backend\" pool=web backend=\"new\" from=\"draining\"".to_owned(),
        ),
        (
            "/listeners/web",
            "{\"state\": \"draining\"}",
            "command=\"listener\" listener=web from=\"enabled\" to=\"draining\"".to_owned(),
        ),
        (&close, "", closed),
        ("/reload", "", "command=\"reload\" from=1 to=2".to_owned()),
        ("/rollback", "", "command=\"rollback\" from=2 to=3".to_owned()),
        ("/drain", "", "command=\"drain\" from=\"serving\" to=\"draining\"".to_owned()),
    ];
    let count = changes.len();
    for (path, body, words) in changes {
        let answer = tidegate.post(path, body);
        assert_eq!((answer.status, &answer.json()["changed"]), (200, &json!(true)), "{path} {body}: {}", answer.body);
        tidegate.logged(&["INFO changed by=\"token from 127.0.0.1:", &words]);
    }
    session.expect_end(End::Rst);
    assert_eq!(tidegate.wait().code, Some(0));
    assert_eq!(tidegate.count_logged(&["INFO changed"]), count, "{}", tidegate.log());
}

#[test]
fn f76_only_json_of_our_own_site_with_the_token_changes_anything() {
    let (_backend, tidegate) = start();
    let body = r#"{"level": "debug"}"#;
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let with = |more: &str| http::post_with(tidegate.admin(), "/log", &format!("{bearer}{more}"), body);
    for (more, status) in [
        ("Origin: http://evil.example\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\n", 403),
        ("Content-Type: text/plain\r\n", 415),
    ] {
        let answer = with(more);
        assert_eq!(answer.status, status, "{more}: {}", answer.body);
        for header in ["access-control-allow-origin", "access-control-allow-headers", "set-cookie"] {
            assert_eq!(answer.header(header), None, "{more}");
        }
    }
    let without = http::post_with(tidegate.admin(), "/log", "", body);
    assert_eq!((without.status, without.header("www-authenticate").is_some()), (401, true));
    let preflight = http::request(tidegate.admin(), "OPTIONS", "/log");
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (405, None));
    assert_eq!(tidegate.count_logged(&["command=\"log level\""]), 0);
    assert_eq!(with("").status, 200);
}

#[test]
fn f75_wrong_tokens_are_refused_counted_and_told_of_within_bounds() {
    let (_backend, tidegate) = start();
    let guess = |n: usize| {
        http::post_with(tidegate.admin(), "/reload", &format!("Authorization: Bearer guess-{n:032}\r\n"), "").status
    };
    let begun = std::time::Instant::now();
    let statuses: Vec<u16> = (0..100).map(guess).collect();
    assert!(statuses.iter().all(|status| matches!(status, 401 | 429)) && statuses[0] == 401, "{statuses:?}");
    let denied =
        |reason| tidegate.metrics().sum("tidegate_admin_requests_denied_total", &[("reason", reason)]) as usize;
    let of = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!((denied("token"), denied("too_many")), (of(401), of(429)));
    tidegate.logged(&["refused", "reason="]);
    let (lines, seconds) = (tidegate.count_logged(&["refused", "reason="]), begun.elapsed().as_secs() as usize);
    assert!((1..=seconds + 2).contains(&lines), "{lines} lines in {seconds} s:\n{}", tidegate.log());
    assert!(!tidegate.log().contains("guess-"), "what was sent for a token is nobody's business");
    assert_eq!(tidegate.post("/log", r#"{"level": "info"}"#).status, 200, "the right one always passes");
}

/// The fields behind the word `refused` of the newest such line.
fn newest_refusal(tidegate: &Tidegate, status: u16) -> String {
    tidegate.logged(&["WARN refused ", "reason=form", &format!("status={status} ")])
}

#[test]
fn f82_a_request_to_change_something_that_makes_no_sense_is_told_of_but_not_what_is_in_it() {
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let json = "Content-Type: application/json\r\n";
    let secret = "canary-in-a-body";
    let body = format!("{{\"level\": \"{secret}\"}}");
    let with_body = |more: &str, body: &str| format!("{bearer}{more}Content-Length: {}\r\n\r\n{body}", body.len());
    for (status, request, rest) in [
        (400, "POST /log", with_body(json, &format!("{{{secret}"))),
        (404, "POST /pools/<img src=x>%0a/nothing", with_body(json, &body)),
        (404, "POST /connections/all/close", with_body("", "")),
        (405, "DELETE /pools/web/backends/a", with_body(json, &body)),
        (405, "GET /reload", "\r\n".to_owned()),
        (413, "POST /log", format!("{bearer}{json}Content-Length: 1000000\r\n\r\n")),
        (415, "POST /log", with_body("", &body)),
        (422, "POST /log", with_body(json, &body)),
        (422, "POST /pools/web/backends/a", with_body(json, &format!("{{\"{secret}\": 1}}"))),
    ] {
        let (_backend, tidegate) = start();
        let sent = request.replace("<img src=x>", "%3Cimg%20src=x%3E");
        let head = format!("{sent} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{rest}");
        let answer = http::raw(tidegate.admin(), &head);
        assert_eq!(answer.status, status, "{request}: {}", answer.body);
        let line = newest_refusal(&tidegate, status);
        assert!(line.contains(&format!("request=\"{sent}\"")), "{line}");
        let by = if matches!(status, 404 | 405 | 413) { "by=127.0.0.1:" } else { "by=\"token from 127.0.0.1:" };
        assert!(line.contains(by) || request.contains("connections"), "{line}");
        assert!(!tidegate.log().contains(secret), "{}", tidegate.log());
        assert_eq!(tidegate.metrics().sum("tidegate_admin_requests_denied_total", &[("reason", "form")]) as u64, 1);
    }
}

/// Whoever mistypes by the hundred costs a line a second, and keeps nobody's wrong token out of the log.
#[test]
fn f82_lines_of_requests_that_make_no_sense_are_bounded_and_hide_nobody() {
    let (_backend, tidegate) = start();
    let begun = std::time::Instant::now();
    for _ in 0..100 {
        assert_eq!(tidegate.post("/nothing", "").status, 404);
    }
    let without = http::post_with(tidegate.admin(), "/reload", "", "");
    assert_eq!(without.status, 401);
    tidegate.logged(&["refused", "reason=token"]);
    let (lines, seconds) = (tidegate.count_logged(&["reason=form"]), begun.elapsed().as_secs() as usize);
    assert!((1..=seconds + 2).contains(&lines), "{lines} lines in {seconds} s:\n{}", tidegate.log());
    assert_eq!(tidegate.get("/nothing").status, 404);
    let told = tidegate.metrics().sum("tidegate_admin_requests_denied_total", &[("reason", "form")]);
    assert_eq!(told as u64, 100, "to look for what isn't there changes nothing");
}

#[test]
fn f77_requests_for_names_that_are_not_ours_are_misdirected() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]).admin("allowed_hosts = [\"lb.example.com\"]"));
    let ask = |host: &str| {
        http::raw(tidegate.admin(), &format!("GET /status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
            .status
    };
    for (host, status) in [
        ("localhost:9900", 200),
        ("127.0.0.1", 200),
        ("lb.example.com:80", 200),
        ("rebound.example", 421),
        ("192.0.2.1", 421),
    ] {
        assert_eq!(ask(host), status, "{host}");
    }
    tidegate.logged(&["refused", "reason=host"]);
}

#[test]
fn over_a_unix_socket_the_user_counts_and_several_addresses_are_served() {
    let backend = Backend::echo();
    let config = Config::over([&backend]).to_string();
    let config = config.replace(
        "listen = \"127.0.0.1:0\"",
        "listen = [\"127.0.0.1:0\", \"unix:$DIR/admin.sock\"]\nallow_uids = [4711]",
    );
    let tidegate = Tidegate::start(&config);
    let unix = crate::kit::Addr::Unix(tidegate.dir().join("admin.sock"));
    assert_eq!(http::get(&unix, "/livez").status, 200);
    assert_eq!(http::get(tidegate.admin(), "/livez").status, 200);
    let refused = http::post_with(&unix, "/log", "", r#"{"level": "debug"}"#);
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert!(refused.body.contains("allow_uids"), "{}", refused.body);
    assert_eq!(http::post(&unix, "/log", r#"{"level": "debug"}"#).status, 200, "the token does as well");
    let own = Tidegate::start(config.replace("allow_uids = [4711]\n", ""));
    let unix = crate::kit::Addr::Unix(own.dir().join("admin.sock"));
    assert_eq!(http::post_with(&unix, "/log", "", r#"{"level": "debug"}"#).status, 200);
    let uid = rustix::process::geteuid().as_raw();
    own.logged(&[&format!("uid {uid}"), "command=\"log level\""]);
}

#[test]
fn f74_an_address_that_others_reach_wants_a_token_for_all_but_probes() {
    let backend = Backend::echo();
    let config = Config::over([&backend]).to_string().replace("127.0.0.1:0\"\ntoken", "0.0.0.0:0\"\ntoken");
    let refused = Launch::new(config.replace("token_file = \"$DIR/token\"\n", "")).run_to_end();
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("add a token_file, or use a loopback address"), "{}", refused.stderr);
    // The kit asks without the token, so nothing of it may look at the end.
    let mut tidegate = Tidegate::start(&config);
    tidegate.leaks_not_asked();
    let port = tidegate.admin().to_string().rsplit(':').next().unwrap().to_owned();
    let admin = crate::kit::Addr::parse(&format!("127.0.0.1:{port}"));
    for path in ["/", "/status", "/metrics", "/openapi.json", "/connections", "/nothing", "/livez/", "/readyz/x"] {
        assert_eq!(http::get(&admin, path).status, 401, "{path}");
    }
    let with = |path: &str, token: &str| {
        let head = "HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close";
        http::raw(&admin, &format!("GET {path} {head}\r\nAuthorization: Bearer {token}\r\n\r\n"))
    };
    assert_eq!((with("/status", TOKEN).status, with("/nothing", TOKEN).status), (200, 404));
    // What asks whether it lives can't carry a token, and hears no more than that.
    let plain = |path: &str| {
        let answer = http::get(&admin, path);
        (answer.status, answer.body)
    };
    assert_eq!(plain("/livez"), (200, "alive\n".to_owned()));
    assert_eq!(plain("/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(http::post(&admin, "/listeners/web", r#"{"state": "draining"}"#).status, 200);
    assert_eq!(plain("/readyz"), (503, "not ready\n".to_owned()));
    let told = with("/readyz", TOKEN);
    assert_eq!((told.status, told.body.as_str()), (503, "listener web is draining\n"));
    for path in ["/livez", "/readyz"] {
        assert_eq!(with(path, "wrong-wrong-wrong").status, 401, "nobody tries tokens at will: {path}");
    }
}

#[test]
fn f85_a_token_that_others_may_read_is_refused_at_start_without_being_shown() {
    let backend = Backend::echo();
    for (token, mode, says) in [
        (TOKEN, 0o644, "chmod 600"),
        (TOKEN, 0o660, "its group may change it"),
        ("canary-short", 0o600, "can be guessed"),
        ("canary with blanks, long enough", 0o600, "blanks"),
    ] {
        let launch = Launch::new(Config::over([&backend]));
        write_token(launch.dir(), token, mode);
        let exit = launch.run_to_end();
        assert_eq!(exit.code, Some(71), "{exit:?}");
        assert!(exit.stderr.contains("admin.token_file") && exit.stderr.contains(says), "{}", exit.stderr);
        assert!(!(exit.stderr + &exit.stdout).contains("canary"), "{mode:o}");
    }
}

/// systemd leaves a credential to one user by an access list, which shows as the right of a group that isn't ours.
#[test]
fn f85_a_credential_of_the_service_manager_is_the_token_unless_all_may_read_it() {
    let backend = Backend::echo();
    let launch = || {
        let config = Config::over([&backend]).to_string();
        let launch = Launch::new(config.replace("token_file = \"$DIR/token\"", "token_credential = \"admin\""));
        let path = launch.dir().join("admin");
        fs::rename(launch.dir().join("token"), &path).unwrap();
        let given = launch.dir().to_str().unwrap().to_owned();
        (launch.env("CREDENTIALS_DIRECTORY", &given), path)
    };
    for mode in [0o400, 0o440] {
        let (launch, path) = launch();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        chown(&path, None, Some(4711)).ok();
        let tidegate = launch.start();
        assert_eq!(tidegate.post("/log", "{\"level\": \"debug\"}").status, 200, "{mode:o}");
    }
    let (to_all, path) = launch();
    fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
    let not_given = launch().0.env("CREDENTIALS_DIRECTORY", "");
    for (launch, says) in [(to_all, "every user of this host"), (not_given, "LoadCredential=admin:")] {
        let exit = launch.run_to_end();
        assert_eq!(exit.code, Some(71), "{exit:?}");
        assert!(exit.stderr.contains("admin.token_credential") && exit.stderr.contains(says), "{}", exit.stderr);
    }
}

#[test]
fn f85_the_token_is_read_again_at_a_reload_and_shown_nowhere() {
    let backend = Backend::echo();
    let config = Config::over([&backend]).log("level = \"trace\"\naccess = \"$DIR/access.log\"");
    let mut tidegate = Tidegate::start(config);
    tidegate.echoed();
    let second = "canary-second-0123456789abcdef";
    let mut seen = String::new();
    let mut keep = |answer: http::Answer| {
        seen.push_str(&answer.body);
        answer.status
    };
    for path in ["/", "/status", "/metrics", "/openapi.json", "/connections", "/explain?listener=web&from=unix"] {
        assert_eq!(keep(tidegate.get(path)), 200, "{path}");
    }
    let posts = [("/reload", ""), ("/plan", ""), ("/log", r#"{"level": "trace"}"#), ("/log", "{"), ("/rollback", "")];
    for (path, body) in posts {
        assert!(keep(tidegate.post(path, body)) < 500, "{path}");
    }
    // A file that is no good leaves the token that there is.
    write_token(tidegate.dir(), "canary-bad", 0o644);
    assert_eq!(keep(tidegate.post("/reload", "")), 422);
    write_token(tidegate.dir(), second, 0o600);
    assert_eq!(keep(tidegate.post("/reload", "")), 200);
    assert_eq!(keep(tidegate.post("/reload", "")), 401, "that was the token before");
    let bearer = format!("Authorization: Bearer {second}\r\n");
    assert_eq!(keep(http::post_with(tidegate.admin(), "/log", &bearer, r#"{"level": "trace"}"#)), 200);
    assert_eq!(keep(http::post_with(tidegate.admin(), "/log", "Authorization: Bearer canary-wrong\r\n", "{}")), 401);
    tidegate.until_idle();
    tidegate.signal(rustix::process::Signal::TERM);
    let exit = tidegate.wait();
    let access = fs::read_to_string(tidegate.dir().join("access.log")).unwrap();
    let printed = crate::kit::daemon::run(&["check", "--config", tidegate.dir().join("lb.toml").to_str().unwrap()]);
    for (what, text) in [
        ("answers", &seen),
        ("stderr", &exit.stderr),
        ("stdout", &exit.stdout),
        ("the access log", &access),
        ("check", &(printed.stdout + &printed.stderr)),
    ] {
        assert!(!text.contains("canary"), "a token in {what}");
        assert!(what == "stdout" || what == "check" || !text.is_empty(), "there is nothing in {what}");
    }
}

#[test]
fn f81_a_backend_with_markup_for_a_name_is_text_wherever_it_is_shown() {
    let backend = Backend::echo();
    let name = "<img src=x onerror=alert(1)>";
    let list = format!("backends = [{{ address = \"{backend}\", name = \"{name}\" }}]");
    let tidegate = Tidegate::start(Config::with_pool(&list));
    let page = tidegate.get("/");
    assert!(page.body.contains("&lt;img src=x onerror=alert(1)&gt;") && !page.body.contains("<img"), "{}", page.body);
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    for path in ["/", "/status", "/metrics", "/openapi.json", "/nothing"] {
        let answer = tidegate.get(path);
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("x-frame-options"), Some("DENY"), "{path}");
        assert!(path == "/" || !answer.header("content-type").unwrap().contains("html"), "{path}");
    }
    let path = "/pools/web/backends/%3Cimg%20src=x%20onerror=alert(1)%3E";
    let answer = tidegate.post(path, r#"{"weight": 7}"#);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{}", answer.body);
    assert_eq!(tidegate.backend_status(name)["weight"], 7);
}

#[test]
fn sessions_are_listed_and_one_of_them_is_closed() {
    let (_backend, tidegate) = start();
    let clients: Vec<Conn> = (0..3).map(|_| tidegate.echoed()).collect();
    let list = |query: &str| tidegate.get(&format!("/connections{query}")).json();
    eventually("all three are there", || list("?pool=web")["connections"].as_array().unwrap().len() == 3);
    let first = list("?limit=2");
    let next = first["next"].as_str().unwrap();
    assert_eq!(list(&format!("?after={next}"))["connections"].as_array().unwrap().len(), 1);
    let id = first["connections"][0]["id"].as_str().unwrap();
    let answer = tidegate.post(&format!("/connections/{id}/close"), "");
    assert_eq!(answer.status, 200, "{}", answer.body);
    tidegate.logged(&["command=\"close\"", "changed"]);
    eventually("it has ended", || tidegate.sessions() == 2);
    assert_eq!(tidegate.post(&format!("/connections/{id}/close"), "").status, 404);
    drop(clients);
}

#[test]
fn f80_bodies_are_bounded_and_what_is_no_json_is_told_so() {
    let (_backend, tidegate) = start();
    let resident = crate::kit::kernel::resident(tidegate.pid);
    let deep = "[".repeat(60_000);
    for (body, status) in [(deep.as_str(), 400), ("{\"level\": 1}", 422), ("{\"level\": \"info\",}", 400), ("nul", 400)]
    {
        let answer = tidegate.post("/log", body);
        assert_eq!((answer.status, &answer.json()["ok"]), (status, &json!(false)), "{}", answer.body);
    }
    let head = format!(
        "POST /plan HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n\
         Content-Length: 1073741824\r\n\r\n"
    );
    assert_eq!(http::raw(tidegate.admin(), &head).status, 413);
    let nested = format!("{{\"config\": {}}}", "[0,".repeat(2_000_000));
    let mut conn = Conn::to(tidegate.admin());
    conn.send(head.replace("1073741824", &nested.len().to_string()));
    conn.send(&nested);
    assert_eq!(http::Answer::parse(&conn.rest()).status, 400);
    let grown = crate::kit::kernel::resident(tidegate.pid).saturating_sub(resident);
    assert!(grown < 64 << 20, "{grown} bytes more");
}
