//! Explain: what `tidegate explain` and `/explain` say, word for word, and that it is what then happens.

use crate::kit::backend::naming;
use crate::kit::{Backend, Config, Conn, Tidegate, daemon, eventually_eq};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

const CONFIG: &str = r#"
[listeners.web]
bind = "127.0.0.1:22500"
pool = "rest"
deny = ["10.9.0.0/16"]

[[listeners.web.routes]]
name = "office"
source = ["10.0.0.0/8"]
local_port = 443
pool = "office"

[[listeners.web.routes]]
name = "shop"
sni = ["shop.example.com", "*.shop.example.com"]
pools = [{ pool = "shop", weight = 9 }, { pool = "rest", weight = 1 }]

[[listeners.web.routes]]
name = "nameless"
sni = []
refuse = true

[pools.office]
backends = ["192.0.2.1:80", { address = "192.0.2.2:80", weight = 3, name = "big" }]
balance = "random"

[pools.shop]
backends = ["192.0.2.11:80", "192.0.2.12:80", { address = "192.0.2.13:80", backup = true }]
balance = "source_hash"
hash.key = "sni"

[pools.rest]
backends = ["192.0.2.21:80", "192.0.2.22:80"]
"#;

/// What the command says about a client; with this config in a file.
fn explain(config: &str, arguments: &[&str]) -> daemon::Exit {
    let dir = tempfile::tempdir().unwrap();
    let path = daemon::file(dir.path(), "lb.toml", config);
    let fixed = ["explain", "--config", path.to_str().unwrap()];
    daemon::run(&[&fixed[..], arguments].concat())
}

#[track_caller]
fn assert_explained(arguments: &[&str], expected: &str) {
    let exit = explain(CONFIG, arguments);
    assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""));
    assert_eq!(exit.stdout, expected);
}

#[test]
fn the_command_says_where_a_client_goes_and_why() {
    assert_explained(
        &["--listener", "web", "--from", "10.1.2.3:4711", "--to", "198.51.100.1:443"],
        "listener web: 10.1.2.3 to 198.51.100.1:443, has sent nothing so far\n\
         state: from the config alone; every backend is taken to be up and idle\n\
         admission: let in: allow and deny let it in\n\
         rule office: yes, leads to office\n    \
             local_port: yes; wants 443, sees 443\n    \
             source: yes; wants 10.0.0.0/8, sees 10.1.2.3\n\
         rule shop: not asked, leads to shop (9), rest (1)\n\
         rule nameless: not asked, refuses\n\
         rule default: not asked, leads to rest\n\
         pool office: random\n\
         backend by chance\n    \
             big (192.0.2.2:80): 75.0 %\n    \
             192.0.2.1:80: 25.0 %\n",
    );
    assert_explained(
        &["--listener", "web", "--from", "203.0.113.9", "--sni", "a.shop.example.com", "--alpn", "h2"],
        "listener web: 203.0.113.9, has sent a TLS ClientHello for a.shop.example.com, ALPN h2\n\
         state: from the config alone; every backend is taken to be up and idle\n\
         admission: let in: allow and deny let it in\n\
         rule office: no\n    \
             local_port: no; wants 443, sees nothing\n    \
             source: no; wants 10.0.0.0/8, sees 203.0.113.9\n\
         rule shop: yes, leads to shop (9), rest (1)\n    \
             sni: yes; wants shop.example.com, *.shop.example.com, sees a.shop.example.com\n\
         rule nameless: not asked, refuses\n\
         rule default: not asked, leads to rest\n\
         pool shop: source_hash by sni (\"a.shop.example.com\", hash 8eae410c53305181)\n\
         backend 192.0.2.11:80: its own by its hash\n    \
             192.0.2.11:80: 100.0 %\n    \
             192.0.2.12:80: no: the table leads this client to another one\n    \
             192.0.2.13:80: no: in tier 1, and the tiers up to 0 are in use\n\
         note: a rule asks where the client connects to, and nothing was said of that (to)\n",
    );
}

#[test]
fn the_command_says_what_is_still_open_and_who_is_refused() {
    let head = |client: &str, sent: &str, admission: &str| {
        format!(
            "listener web: {client}, has sent {sent}\n\
             state: from the config alone; every backend is taken to be up and idle\n\
             admission: {admission}\n\
             rule office: no\n    \
                 local_port: no; wants 443, sees nothing\n    \
                 source: {}; wants 10.0.0.0/8, sees {client}\n",
            if client.starts_with("10.") { "yes" } else { "no" }
        )
    };
    let note = "note: a rule asks where the client connects to, and nothing was said of that (to)\n";
    let sni = "sni: needs more; wants shop.example.com, *.shop.example.com, sees nothing";
    assert_explained(
        &["--listener", "web", "--from", "10.9.1.1"],
        &format!(
            "{}rule shop: needs more, leads to shop (9), rest (1)\n    {sni}\n\
             rule nameless: not asked, refuses\n\
             rule default: not asked, leads to rest\n\
             open: the client must send more, for sni\n{note}\
             note: after 5s it is reset (preread_timeout)\n",
            head("10.9.1.1", "nothing so far", "kept out: allow and deny keep it out")
        ),
    );
    assert_explained(
        &["--listener", "web", "--from", "2001:db8::1", "--sni", ""],
        &format!(
            "{}rule shop: no\n    sni: no; wants shop.example.com, *.shop.example.com, sees nothing\n\
             rule nameless: yes, refuses\n    sni: yes; wants no name, sees nothing\n\
             rule default: not asked, leads to rest\n\
             refused (route_refused)\n{note}",
            head("2001:db8::1", "a TLS ClientHello that names no server", "let in: allow and deny let it in")
        ),
    );
    assert_explained(
        &["--listener", "web", "--from", "203.0.113.9", "--path", "/x", "--host", "shop.example.com"],
        &format!(
            "{}rule shop: no\n    sni: no; wants shop.example.com, *.shop.example.com, sees nothing\n\
             rule nameless: no\n    sni: no; wants no name, sees nothing\n\
             rule default: yes, leads to rest\n\
             pool rest: round_robin\n\
             backend 192.0.2.21:80: its turn is next\n    \
                 192.0.2.21:80: 100.0 %\n    \
                 192.0.2.22:80: no: its turn comes later\n{note}",
            head("203.0.113.9", "a request GET /x of shop.example.com", "let in: allow and deny let it in")
        ),
    );
}

/// What the notes say about a client of a listener with these lines, whose pool goes by the host.
fn notes(lines: &str, first_bytes: &str) -> Vec<String> {
    let config = format!(
        "[listeners.web]\nbind = \"127.0.0.1:22501\"\npool = \"a\"\n{lines}\n\
         [pools.a]\nbackends = [\"192.0.2.1:80\"]\nbalance = \"source_hash\"\nhash.key = \"http_host\"\n\
         [pools.b]\nbackends = [\"192.0.2.2:80\"]\n"
    );
    let arguments = ["--listener", "web", "--from", "192.0.2.9", "--first-bytes", first_bytes, "--json"];
    let exit = explain(&config, &arguments);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let json: Value = serde_json::from_str(&exit.stdout).unwrap();
    assert_eq!((&json["verdict"], &json["needs"]), (&json!("needs_more"), &json!(["http_host"])), "{json}");
    json["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_becomes_of_a_client_that_says_no_more_is_told() {
    let silent = "preread_timeout = \"300ms\"\npreread_timeout_pool = \"b\"";
    let twice = "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    for (lines, first_bytes, expected) in [
        (silent, "", "if it sends nothing for 300ms, it goes to b (preread_timeout_pool)"),
        (silent, "GET / HT", "after 300ms it is reset (preread_timeout)"),
    ] {
        assert_eq!(notes(lines, first_bytes), [expected]);
    }
    for (failed, fate) in
        [("reset", "it is reset"), ("pool", "it goes on as if nothing were known of what it has sent")]
    {
        let lines = format!("{silent}\npreread_bytes = \"64B\"\npreread_failed = \"{failed}\"");
        let malformed = notes(&lines, twice).remove(0);
        let (begins, ends) = ("what it has sent is malformed (", format!("): {fate} (preread_failed)"));
        assert!(malformed.starts_with(begins) && malformed.ends_with(&ends), "{malformed}");
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(100));
        assert_eq!(notes(&lines, &long), [format!("it has sent too much for that: {fate} (preread_failed)")]);
    }
}

#[test]
fn what_makes_no_sense_is_said_with_a_way_out() {
    for (arguments, said) in [
        (&["--listener", "wbe", "--from", "10.1.2.3"][..], "--listener: there is no listener \"wbe\"; use web\n"),
        (
            &["--listener", "web", "--from", "10.1.2"],
            "--from: \"10.1.2\" is no address; write one such as 10.1.2.3, 10.1.2.3:4711 or 2001:db8::1, or unix for a \
             client of a unix socket\n",
        ),
        (
            &["--listener", "web", "--from", "10.1.2.3", "--first-bytes", "hex:1"],
            "--first-bytes: \"hex:1\" isn't hex; write pairs of hex digits, such as hex:160301, or text\n",
        ),
    ] {
        let exit = explain(CONFIG, arguments);
        assert_eq!((exit.code, exit.stdout.as_str(), exit.stderr.as_str()), (Some(2), "", said));
    }
    let bad = explain("[listeners.web]\n", &["--listener", "web", "--from", "10.1.2.3"]);
    assert_eq!(bad.code, Some(78), "{}", bad.stderr);
}

#[test]
fn the_json_of_the_command_is_that_of_the_endpoint() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let config = Config::over([&a, &b]).pool("balance = \"source_hash\"");
    let tidegate = Tidegate::start(config.clone());
    let live = tidegate.get("/explain?listener=web&from=10.1.2.3&host=a.example&header=X-Tenant:+7");
    assert_eq!((live.status, live.header("content-type")), (200, Some("application/json")));
    let arguments = ["--listener", "web", "--from", "10.1.2.3", "--host", "a.example", "--header", "X-Tenant: 7"];
    let command = explain(&config.to_string(), &[&arguments[..], &["--json"]].concat());
    assert_eq!(command.code, Some(0), "{}", command.stderr);
    let (mut live, mut command) = (live.json(), serde_json::from_str::<Value>(&command.stdout).unwrap());
    assert_eq!((live["state"].take(), command["state"].take()), (json!("live"), json!("config")));
    assert_eq!(live, command);
    assert_eq!(live["sent"], "a request GET / of a.example");
}

fn served_by(tidegate: &Tidegate, client: Ipv4Addr) -> String {
    Conn::from(client, &tidegate.addr()).rest().text().trim_end().to_owned()
}

fn explained(tidegate: &Tidegate, client: Ipv4Addr) -> Value {
    let answer = tidegate.get(&format!("/explain?listener=web&from={client}"));
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

#[test]
fn what_the_endpoint_says_is_what_happens() {
    let names = ["a", "b", "c"];
    let mut backends: Vec<Backend> = names.map(Backend::named).into();
    let list =
        names.iter().zip(&backends).map(|(name, backend)| format!("{{ address = \"{backend}\", name = \"{name}\" }}"));
    let config = format!("backends = [{}]\nbalance = \"source_hash\"", list.collect::<Vec<_>>().join(", "));
    let health = "interval = \"300ms\"\nfast_interval = \"100ms\"\ntimeout = \"300ms\"\nrise = 2\nfall = 2";
    let tidegate = Tidegate::start(Config::with_pool(&config).health(health));
    let up = || tidegate.metrics().sum("tidegate_backend_up", &[]) as u64;
    eventually_eq("all are up", &3, up);
    let clients = || (1..30).map(|last| Ipv4Addr::new(127, 4, 0, last));
    for client in clients() {
        let seen = explained(&tidegate, client);
        assert_eq!(seen["pool"]["hash"]["home"], seen["pool"]["backends"][0]["name"]);
        assert_eq!(seen["pool"]["backends"][0]["name"], served_by(&tidegate, client), "{client}");
        assert_eq!((&seen["verdict"], &seen["pool"]["certain"]), (&json!("pool"), &json!(true)));
    }
    let gone = backends.remove(1).die();
    eventually_eq("one is down", &2, up);
    let mut moved = 0;
    for client in clients() {
        let seen = explained(&tidegate, client);
        let first = &seen["pool"]["backends"][0];
        assert_eq!(first["name"], served_by(&tidegate, client), "{client}");
        let down = seen["pool"]["backends"].as_array().unwrap().iter().find(|backend| backend["name"] == "b").unwrap();
        let because = down["because"].as_str().unwrap();
        assert!(because.starts_with("down since 2") && because.contains(", last error: "), "{because}");
        if seen["pool"]["hash"]["home"] == "b" {
            moved += 1;
            let first = first["name"].as_str().unwrap();
            assert_eq!(seen["pool"]["choice"], format!("{first}: by its hash, after b, its own, which is passed over"));
        }
    }
    assert!(moved > 0);
    drop(Backend::at(&gone, naming("b")));
}

#[test]
fn to_ask_changes_nothing() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let tidegate = Tidegate::start(Config::over([&a, &b]));
    let client = Ipv4Addr::LOCALHOST;
    let mut last = String::new();
    for _ in 0..6 {
        let next = explained(&tidegate, client)["pool"]["choice"].as_str().unwrap().to_owned();
        for _ in 0..5 {
            assert_eq!(explained(&tidegate, client)["pool"]["choice"], *next);
        }
        assert_ne!(next, last, "in turn");
        let name = if next.starts_with(&format!("{a}: its turn")) { "a" } else { "b" };
        assert_eq!(served_by(&tidegate, client), name, "{next}");
        last = next;
    }
    assert_eq!(tidegate.metrics().sum("tidegate_listener_connections_total", &[]) as u64, 6);
}

#[test]
fn a_bad_question_gets_a_sentence() {
    let backend = Backend::named("a");
    let tidegate = Tidegate::start(Config::over([&backend]));
    for (query, said) in [
        ("", "listener: it is missing; name a listener\n"),
        ("?listener=web", "from: it is missing; write the client's address, such as 10.1.2.3\n"),
        ("?listener=api&from=::1", "listener: there is no listener \"api\"; use web\n"),
        (
            "?listener=web&from=::1&port=80",
            "\"port\": unknown parameter; use listener, from, to, sni, alpn, method, host, path, header, first_bytes\n",
        ),
        (
            "?listener=web&from=::1&to=%FF",
            "\"to\": \"%FF\" isn't text with %XX for special bytes; write %25 for a % and \
          %2B for a +, in UTF-8\n",
        ),
    ] {
        let answer = tidegate.get(&format!("/explain{query}"));
        assert_eq!((answer.status, answer.body.as_str()), (400, said), "{query}");
    }
}

#[test]
fn a_full_backend_and_a_queue_are_told() {
    let backend = Backend::echo();
    let config = Config::over([&backend]).pool("backend_max_connections = 1").more("[pools.web.queue]");
    let tidegate = Tidegate::start(config);
    let held = tidegate.echoed();
    let seen = explained(&tidegate, Ipv4Addr::LOCALHOST);
    let pool = &seen["pool"];
    assert_eq!(
        (&pool["waits"], &pool["choice"]),
        (&json!(true), &json!("nobody has a place: it would wait in the queue"))
    );
    assert_eq!(pool["backends"][0]["because"], "full: 1 of 1 connections");
    drop(held);
}
