//! Probes that ask more than a connect: HTTP, and an exchange of bytes; what they find, and hostile answers.

use crate::kit::{Backend, Config, Conn, Poison, Tidegate, Toxic, Way, eventually, eventually_eq};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const QUICK: &str = "interval = \"200ms\"\nfast_interval = \"100ms\"\ntimeout = \"200ms\"\nrise = 1\nfall = 2";
const EXCHANGE: &str = "probe = \"exchange\"\nexchange = { send = \"PING\\r\\n\", expect = \"+PONG\" }\n";

fn up(tidegate: &Tidegate) -> u64 {
    tidegate.count("tidegate_backend_up")
}

/// Answers each line with what the test says at the time.
fn answering(answer: &Arc<Mutex<Vec<u8>>>) -> Backend {
    let answer = answer.clone();
    Backend::new(move |mut conn| {
        let mut buffer = [0; 4_096];
        while conn.read(&mut buffer).is_ok_and(|count| count > 0) {
            let bytes = answer.lock().unwrap().clone();
            if conn.try_send(bytes).is_err() {
                return;
            }
        }
    })
}

fn answer(bytes: &[u8]) -> Arc<Mutex<Vec<u8>>> {
    Arc::new(Mutex::new(bytes.to_vec()))
}

/// The words for what the last probe of the backend has found.
fn text(tidegate: &Tidegate, backend: &str) -> String {
    let probe = tidegate.backend_status(backend)["probe"].clone();
    probe["text"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn an_exchange_that_does_not_find_its_text_takes_the_backend_down() {
    let says = answer(b"-LOADING not ready\r\n");
    let backend = answering(&says);
    let name = backend.to_string();
    let config = Config::over([&backend]).pool("panic_threshold = \"0%\"").health(&format!("{EXCHANGE}{QUICK}"));
    let tidegate = Tidegate::start(config);
    eventually("it was asked", || tidegate.backend_status(&name)["probe"].is_object());
    assert_eq!(up(&tidegate), 0);
    eventually("the answer is named in words", || text(&tidegate, &name).contains("LOADING"));
    *says.lock().unwrap() = b"+PONG\r\n".to_vec();
    eventually_eq("it is up", &1, || up(&tidegate));
    *says.lock().unwrap() = b"-ERR\r\n".to_vec();
    eventually_eq("it is down", &0, || up(&tidegate));
    tidegate.logged(&[&name, "down", "-ERR"]);
}

#[test]
fn an_http_probe_judges_status_and_body() {
    let says = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready");
    let backend = answering(&says);
    let health = "probe = \"http\"\nhttp = { path = \"/health\", host = \"a.example\", status = \"200-299\", body = \"ready\" }\n";
    let config = Config::over([&backend]).pool("panic_threshold = \"0%\"").health(&format!("{health}{QUICK}"));
    let tidegate = Tidegate::start(config);
    eventually_eq("it is up", &1, || up(&tidegate));
    for bad in [
        &b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nready"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsoon",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"SSH-2.0-OpenSSH\r\n",
    ] {
        let good = std::mem::replace(&mut *says.lock().unwrap(), bad.to_vec());
        eventually_eq("it is down", &0, || up(&tidegate));
        *says.lock().unwrap() = good;
        eventually_eq("it is up again", &1, || up(&tidegate));
    }
}

#[test]
fn f32_a_probe_that_hangs_times_out() {
    let backend = Backend::echo();
    let toxic = Toxic::before(&backend.addr);
    let health = format!("probe = \"exchange\"\nexchange = {{ send = \"PING\", expect = \"PING\" }}\n{QUICK}");
    let tidegate = Tidegate::start(Config::over([&toxic]).pool("panic_threshold = \"0%\"").health(&health));
    eventually_eq("it is up", &1, || up(&tidegate));
    toxic.poison(Way::Back, Poison::Stall);
    eventually_eq("it is down", &0, || up(&tidegate));
    assert!(tidegate.metrics().sum("tidegate_backend_health_checks_total", &[("result", "timeout")]) >= 2.0);
    toxic.cure();
    eventually_eq("it is up again", &1, || up(&tidegate));
}

#[test]
fn f32_an_answer_without_end_is_cut_off_at_the_cap() {
    for (probe, head) in [
        ("probe = \"exchange\"\nexchange = { send = \"PING\", expect = \"PONG\" }", &b""[..]),
        ("probe = \"http\"\nhttp = { body = \"never said\" }", b"HTTP/1.1 200 OK\r\n\r\n"),
    ] {
        let poured = Arc::new(AtomicU64::new(0));
        let probes = Arc::new(AtomicU64::new(0));
        let (sum, count) = (poured.clone(), probes.clone());
        let backend = Backend::new(move |mut conn| {
            count.fetch_add(1, Ordering::SeqCst);
            let block = vec![b'x'; 64 << 10];
            if conn.read(&mut [0; 4_096]).is_ok_and(|got| got > 0) && conn.try_send(head).is_ok() {
                // A gigabyte, if anybody took it.
                for _ in 0..16_384 {
                    if conn.try_send(&block).is_err() {
                        return;
                    }
                    sum.fetch_add(block.len() as u64, Ordering::SeqCst);
                }
            }
        });
        let health = format!("{probe}\ninterval = \"5s\"\nfast_interval = \"200ms\"\ntimeout = \"5s\"\nfall = 2");
        let config = Config::over([&backend]).pool("panic_threshold = \"0%\"").health(&health);
        let tidegate = Tidegate::start(config);
        let failures =
            || tidegate.metrics().sum("tidegate_backend_health_checks_total", &[("result", "failure")]) as u64;
        eventually("it fails again and again, not by a time-out", || failures() >= 3);
        assert_eq!(up(&tidegate), 0);
        // What the kernel's buffers on both sides took goes with each probe.
        let each = poured.load(Ordering::SeqCst) / probes.load(Ordering::SeqCst).max(1);
        assert!(each < 32 << 20, "{each} bytes a probe");
        tidegate.get("/livez");
    }
}

#[test]
fn f32_garbage_is_shown_without_control_characters() {
    let says = answer(b"\x1b[31m\0\xff\r\nred");
    let backend = answering(&says);
    let name = backend.to_string();
    let config = Config::over([&backend]).pool("panic_threshold = \"0%\"").health(&format!("{EXCHANGE}{QUICK}"));
    let tidegate = Tidegate::start(config);
    eventually("it was asked", || text(&tidegate, &name).contains("red"));
    assert!(!tidegate.log().contains('\u{1b}') && !tidegate.get("/status").body.contains('\u{1b}'));
}

#[test]
fn f29_a_backend_whose_verdict_flips_with_each_probe_does_not_flood_the_log() {
    let says = answer(b"+PONG\r\n");
    let backend = answering(&says);
    let name = backend.to_string();
    let health = "interval = \"50ms\"\nfast_interval = \"50ms\"\ntimeout = \"50ms\"\nrise = 1\nfall = 1";
    let begun = std::time::Instant::now();
    let tidegate = Tidegate::start(Config::over([&backend]).health(&format!("{EXCHANGE}{health}")));
    for _ in 0..10 {
        for (state, bytes) in [("up", &b"+PONG\r\n"[..]), ("down", b"-ERR\r\n")] {
            *says.lock().unwrap() = bytes.to_vec();
            eventually_eq("it flips", &state.to_owned(), || tidegate.state(&name));
        }
    }
    let lines = tidegate.count_logged(&["backend is"]) as u64;
    let most = 3 + begun.elapsed().as_secs() / 15;
    assert!(lines <= most, "{lines} lines for 20 changes:\n{}", tidegate.log());
}

#[test]
fn probes_end_with_a_fin_after_an_orderly_exchange() {
    let ends = Arc::new(Mutex::new(Vec::new()));
    let seen = ends.clone();
    let backend = Backend::new(move |mut conn: Conn| {
        let mut buffer = [0; 64];
        if conn.read(&mut buffer).is_ok_and(|count| count > 0) && conn.try_send("+PONG\r\n").is_ok() {
            let end = conn.read(&mut buffer).map_err(|error| error.kind());
            seen.lock().unwrap().push(end);
        }
    });
    let tidegate = Tidegate::start(Config::over([&backend]).health(&format!("{EXCHANGE}{QUICK}")));
    eventually_eq("it is up", &1, || up(&tidegate));
    eventually("some probes", || ends.lock().unwrap().len() >= 5);
    assert!(ends.lock().unwrap().iter().all(|end| *end == Ok(0)), "{:?}", ends.lock().unwrap());
}
