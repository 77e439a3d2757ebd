//! Reading first bytes: its deadline and its bound, how clients end meanwhile, and that what was read survives the
//! queue, the hold and the replay.

use super::hold::{QUICK, until_held, until_up};
use super::routes::{Pools, named_echo};
use crate::kit::wait::pace;
use crate::kit::{Addr, Backend, Config, End, Listening, Refusing, Tidegate, eventually, eventually_eq};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tidegate::net::client_hello;

/// Whoever asks for a name goes to this pool.
const BY_NAME: &str = "[[listeners.web.routes]]\nname = \"names\"\nsni = \"*\"\npool = \"names\"\n";

fn hello() -> Vec<u8> {
    client_hello::write(Some("a.example.com"), &["h2"])
}

fn ended(record: &Value) -> (&str, &str, &str) {
    let text = |key: &str| record[key].as_str().unwrap_or("-");
    (text("reason"), text("phase"), text("rule"))
}

#[test]
fn f09_a_client_that_dribbles_is_cut_at_the_deadline_and_touches_nobody() {
    let pools = Pools::new(&["names"]);
    let tidegate = Tidegate::start(pools.config("preread_timeout = \"1s\"", BY_NAME));
    let mut client = tidegate.connect();
    let begun = Instant::now();
    let mut sent = 0;
    for byte in hello() {
        if client.try_send([byte]).is_err() {
            break;
        }
        sent += 1;
        pace(Duration::from_millis(50));
    }
    eventually("it is cut", || client.is_over());
    assert!(begun.elapsed() >= Duration::from_secs(1), "not before its deadline");
    assert!(sent < hello().len(), "it was cut before it had sent all");
    let record = &tidegate.records(1)[0];
    assert_eq!(ended(record), ("preread_timeout", "preread", "-"));
    assert_eq!((&record["to_backend"], &record["ended_by"]), (&json!(0), &json!("balancer")));
    assert_eq!(pools.touched(), 0);
}

#[test]
fn one_that_says_nothing_is_cut_or_goes_where_the_server_speaks_first() {
    let pools = Pools::new(&["names", "greets"]);
    let quick = "preread_timeout = \"300ms\"";
    let tidegate = Tidegate::start(pools.config(quick, BY_NAME));
    tidegate.connect().expect_end(End::Rst);
    assert_eq!(ended(&tidegate.records(1)[0]), ("preread_timeout", "preread", "-"));
    assert_eq!(pools.touched(), 0);
    drop(tidegate);

    let tidegate = Tidegate::start(pools.config(&format!("{quick}\npreread_timeout_pool = \"greets\""), BY_NAME));
    let mut client = tidegate.connect();
    assert_eq!(client.line(), "greets");
    client.speak();
    drop(client);
    // One that has begun to speak is another thing.
    let mut client = tidegate.connect();
    client.send(&hello()[..7]);
    client.expect_end(End::Rst);
    let records = tidegate.records(2);
    let rules: Vec<_> = records.iter().map(|record| record["rule"].as_str().unwrap_or("-")).collect();
    assert_eq!(rules, ["preread_timeout", "-"]);
    assert_eq!(tidegate.closed("preread_timeout"), 1);
}

/// The same hello in records of so many bytes.
fn in_records_of(size: usize, hello: &[u8]) -> Vec<u8> {
    hello[5..].chunks(size).flat_map(|piece| [&[22, 3, 1, 0, piece.len() as u8], piece].concat()).collect()
}

#[test]
fn f72_odd_hellos_go_where_their_name_leads_or_are_reset_or_go_on_as_the_config_says() {
    let pools = Pools::new(&["names"]);
    let named = |name: &str| client_hello::write(Some(name), &["h2"]);
    let plain = named("a.example.com");
    let good = [
        in_records_of(1, &plain),
        in_records_of(7, &plain),
        named("A.eXample.COM"),
        named("a.example.com."),
        named("A.EXAMPLE.COM."),
    ];
    let other = [client_hello::write(None, &["h2"]), b"not TLS at all\n".to_vec(), b"\x16 nor this".to_vec()];
    // The last one is longer than may be read.
    let long = vec!["x"; 9_000];
    let broken = [
        named("a.example.com\0"),
        named("\0"),
        named(""),
        named("a..example.com"),
        named("a.example.com.."),
        named("ä.example.com"),
        named("a example.com"),
        client_hello::write(Some("a.example.com"), &long),
    ];
    let exactly = BY_NAME.replace("\"*\"", "\"a.example.com\"");
    for failed in ["reset", "pool"] {
        let tidegate = Tidegate::start(pools.config(&format!("preread_failed = \"{failed}\""), &exactly));
        let arrives = |pool: &str, sent: &[u8]| {
            let mut client = tidegate.connect();
            client.send(sent);
            assert_eq!(client.line(), pool, "{failed}: {}", sent.escape_ascii());
            assert_eq!(client.receive(sent.len()), sent);
        };
        for sent in &good {
            arrives("names", sent);
        }
        for sent in &other {
            arrives("web", sent);
        }
        let before = pools.touched();
        for sent in &broken {
            if failed == "pool" {
                arrives("web", sent);
            } else {
                let mut client = tidegate.connect();
                let _ = client.try_send(sent);
                eventually("it is cut", || client.is_over());
            }
        }
        let expected = if failed == "pool" { broken.len() } else { 0 };
        assert_eq!(pools.touched() - before, expected);
        tidegate.until_idle();
        let cut = (tidegate.closed("preread_malformed"), tidegate.closed("preread_too_long"));
        assert_eq!(cut, if failed == "pool" { (0, 0) } else { (broken.len() as u64 - 1, 1) });
    }
}

#[test]
fn f72_too_much_is_reset_or_goes_on_with_nothing_known() {
    let pools = Pools::new(&["names", "tls"]);
    // A hello of several KiB: its list of protocols is long.
    let offers: Vec<String> = (0..200).map(|number| format!("protocol-number-{number}")).collect();
    let offers: Vec<&str> = offers.iter().map(String::as_str).collect();
    let long = client_hello::write(Some("a.example.com"), &offers);
    assert!(long.len() > 3_000);
    let tidegate = Tidegate::start(pools.config("preread_bytes = \"1KiB\"", BY_NAME));
    let mut client = tidegate.connect();
    let _ = client.try_send(&long);
    eventually("it is cut", || client.is_over());
    assert_eq!(ended(&tidegate.records(1)[0]), ("preread_too_long", "preread", "-"));
    assert_eq!(pools.touched(), 0);
    drop(tidegate);

    let by_protocol = format!("{BY_NAME}[[listeners.web.routes]]\nprotocol = \"tls\"\nalpn = \"x\"\npool = \"tls\"\n");
    let tidegate = Tidegate::start(pools.config("preread_bytes = \"1KiB\"\npreread_failed = \"pool\"", &by_protocol));
    let mut client = tidegate.connect();
    client.send(&long);
    assert_eq!(client.line(), "web");
    assert_eq!(client.receive(long.len()), long);
    drop(client);
    assert_eq!(tidegate.records(1)[0]["rule"], "default");
}

#[test]
fn f72_what_is_malformed_is_reset_or_goes_on_with_nothing_known() {
    let pools = Pools::new(&["names", "tls"]);
    // A ClientHello that says that it has no bytes.
    let broken = b"\x16\x03\x01\x00\x04\x01\x00\x00\x00";
    let tidegate = Tidegate::start(pools.config("", BY_NAME));
    let mut client = tidegate.connect();
    client.send(broken);
    client.expect_end(End::Rst);
    assert_eq!(ended(&tidegate.records(1)[0]), ("preread_malformed", "preread", "-"));
    assert_eq!(pools.touched(), 0);
    drop(tidegate);

    let tidegate = Tidegate::start(pools.config("preread_failed = \"pool\"", BY_NAME));
    let mut client = tidegate.connect();
    client.send(broken);
    assert_eq!(client.line(), "web");
    assert_eq!(client.receive(broken.len()), broken);
    drop(client);
    drop(tidegate);

    // What is known of it is known.
    let first = format!("[[listeners.web.routes]]\nprotocol = \"tls\"\npool = \"tls\"\n{BY_NAME}");
    let tidegate = Tidegate::start(pools.config("", &first));
    let mut client = tidegate.connect();
    client.send(broken);
    assert_eq!(client.line(), "tls");
}

#[test]
fn a_fin_decides_at_once_and_is_passed_on_after_the_bytes() {
    let listening = Listening::new();
    let config = Config::over([&listening])
        .logged()
        .more(&format!("{BY_NAME}[pools.names]\nbackends = [\"{listening}\"]\nhealth.probe = \"none\"\n"));
    let tidegate = Tidegate::start(config);
    // The first half of a hello, all of one, and nothing at all.
    for sent in [&hello()[..40], &hello()[..], &[]] {
        let mut client = tidegate.connect();
        client.send(sent);
        client.finish();
        let mut backend = listening.accept();
        let rest = backend.rest();
        assert_eq!((&rest.bytes[..], rest.end), (sent, End::Fin));
        backend.send("a late answer");
        drop(backend);
        assert_eq!(client.rest().text(), "a late answer");
    }
    let mut rules: Vec<_> = tidegate.records(3).iter().map(|record| record["rule"].to_string()).collect();
    // Of different workers, in any order.
    rules.sort_unstable();
    assert_eq!(rules, ["\"default\"", "\"default\"", "\"names\""]);
    assert_eq!(tidegate.closed("complete"), 3);
}

#[test]
fn a_reset_ends_it_before_any_backend_hears_of_it() {
    let pools = Pools::new(&["names"]);
    let tidegate = Tidegate::start(pools.config("", BY_NAME));
    let mut client = tidegate.connect();
    client.send(&hello()[..20]);
    // It counts as a session a moment before.
    eventually("it is being read", || tidegate.get("/connections").json()["connections"][0]["phase"] == "preread");
    client.reset();
    eventually_eq("its end is seen", &1, || tidegate.closed("client_reset"));
    assert_eq!(ended(&tidegate.records(1)[0]), ("client_reset", "preread", "-"));
    assert_eq!(pools.touched(), 0);
}

#[test]
fn the_drain_deadline_cuts_it() {
    let pools = Pools::new(&["names"]);
    let config = pools.config("preread_timeout = \"60s\"", BY_NAME).runtime("drain_timeout = \"300ms\"");
    let mut tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    client.send(&hello()[..20]);
    eventually_eq("it is being read", &1, || tidegate.sessions());
    tidegate.signal(Signal::TERM);
    client.expect_end(End::Rst);
    assert_eq!(tidegate.wait().code, Some(0));
    let log = std::fs::read_to_string(tidegate.dir().join("access.log")).unwrap();
    assert!(log.contains("\"phase\":\"preread\",\"reason\":\"drain_deadline\""), "{log}");
    assert_eq!(pools.touched(), 0);
}

/// Pool `names` is that of the test; `web` is never wanted.
fn with_names(backends: &[&Addr], tables: &str) -> (Backend, Config) {
    let web = named_echo("web");
    let list: Vec<String> = backends.iter().map(|address| format!("\"{address}\"")).collect();
    let list = list.join(", ");
    let config = Config::over([&web]).logged().more(&format!("{BY_NAME}[pools.names]\nbackends = [{list}]\n{tables}"));
    (web, config)
}

#[test]
fn what_was_read_waits_in_the_queue() {
    let listening = Listening::new();
    let tables = "backend_max_connections = 1\nqueue.max_wait = \"30s\"\nhealth.probe = \"none\"";
    let (_web, config) = with_names(&[&listening.addr], tables);
    let tidegate = Tidegate::start(config);
    let mut first = tidegate.connect();
    first.send(hello());
    let mut backend = listening.accept();
    let mut second = tidegate.connect();
    second.send(hello());
    second.send("more, and ");
    second.finish();
    eventually("it waits", || tidegate.metrics().sum("tidegate_pool_queue_waiting", &[]) as u64 == 1);
    backend.expect(hello());
    backend.finish();
    first.finish();
    first.rest();
    backend.rest();
    drop(backend);
    let rest = listening.accept().rest();
    assert_eq!((rest.bytes, rest.end), ([&hello()[..], b"more, and "].concat(), End::Fin));
    second.rest();
}

#[test]
fn what_was_read_is_kept_in_the_hold_and_counts_there() {
    let refusing = Refusing::new();
    let dead = refusing.addr.clone();
    let tables = format!(
        "ejection.consecutive_failures = \"off\"\nslow_start = \"0s\"\nhold.max_bytes_each = \"100B\"\n[pools.names.health]\n{QUICK}"
    );
    let (_web, config) = with_names(&[&dead], &tables);
    let tidegate = Tidegate::start(config);
    assert!(hello().len() > 100, "more than may be kept");
    let mut client = tidegate.connect();
    client.send(hello());
    until_held(&tidegate, 1);
    client.send("more");
    eventually_eq("it counts", &(hello().len() as u64), || tidegate.count("tidegate_pool_held_bytes"));
    drop(refusing);
    let listening = Listening::at(&dead);
    eventually("the probes find it", || {
        while let Some(mut backend) = listening.accept_now() {
            let Some(first) = backend.try_receive(hello().len()) else { continue };
            assert_eq!(first, hello());
            backend.expect("more");
            backend.send("thanks");
            return true;
        }
        false
    });
    client.expect("thanks");
    eventually_eq("nothing is kept", &0, || tidegate.count("tidegate_pool_held_bytes"));
    drop(client);
    until_up(&tidegate, 2);
    assert_eq!(ended(&tidegate.records(1)[0]).2, "names");
}

#[test]
fn what_was_read_goes_to_the_next_backend_by_replay() {
    let dying = Backend::new(|mut conn| {
        let mut buffer = [0; 4_096];
        let _ = conn.read(&mut buffer);
        conn.reset();
    });
    let good = named_echo("good");
    let tables = "replay = \"16KiB\"\nhealth.probe = \"none\"\nejection.consecutive_failures = \"off\"";
    let (_web, config) = with_names(&[&dying.addr, &good.addr], tables);
    let tidegate = Tidegate::start(config);
    for _ in 0..4 {
        let mut client = tidegate.connect();
        client.send(hello());
        assert_eq!(client.line(), "good");
        assert_eq!(client.receive(hello().len()), hello());
        client.finish();
        client.rest();
    }
    let records = tidegate.records(4);
    assert!(records.iter().any(|record| record["attempts"].to_string().contains("unanswered")), "{records:#?}");
    let bytes: Vec<_> = records.iter().map(|record| record["to_backend"].as_u64().unwrap()).collect();
    assert_eq!(bytes, [hello().len() as u64; 4]);
}

#[test]
fn a_long_transfer_behind_the_first_bytes_arrives_whole() {
    const BYTES: u64 = 8 << 20;
    let listening = Listening::new();
    let (_web, config) = with_names(&[&listening.addr], "health.probe = \"none\"");
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    client.send(hello());
    let mut backend = listening.accept();
    backend.expect(hello());
    crate::kit::conn::transfer(&mut client, &mut backend, 0, BYTES);
    crate::kit::conn::transfer(&mut backend, &mut client, 7, BYTES);
    client.finish();
    backend.expect_end(End::Fin);
    drop(backend);
    client.expect_end(End::Fin);
    assert_eq!(tidegate.records(1)[0]["to_backend"], json!(BYTES + hello().len() as u64));
}
