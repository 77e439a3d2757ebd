//! Health: up and down, damped; where new connections go; how many probes at once; what the log says.

use crate::kit::backend::naming;
use crate::kit::{Backend, Config, End, Refusing, Silent, Tidegate, eventually, eventually_eq, kernel, throughout};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const QUICK: &str = "interval = \"300ms\"\nfast_interval = \"100ms\"\ntimeout = \"300ms\"\nrise = 2\nfall = 2";

fn up(tidegate: &Tidegate, backend: &str) -> u64 {
    tidegate.metrics().one("tidegate_backend_up", &[("pool", "web"), ("backend", backend)]) as u64
}

fn checks(tidegate: &Tidegate, backend: &str, result: &str) -> u64 {
    let labels = [("backend", backend), ("result", result)];
    tidegate.metrics().sum("tidegate_backend_health_checks_total", &labels) as u64
}

const EXCHANGE: &str = "probe = \"exchange\"\nexchange = { send = \"PING\\r\\n\", expect = \"+PONG\" }\n";

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

fn last_error(tidegate: &Tidegate, backend: &str) -> String {
    let status = tidegate.backend_status(backend);
    status["last_error"]["text"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_backend_that_dies_is_left_alone_until_it_is_back() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let address = a.addr.clone();
    let name = address.to_string();
    let tidegate = Tidegate::start(Config::over([&a, &b]).health(QUICK));
    eventually_eq("both are up", &2, || tidegate.metrics().sum("tidegate_backend_up", &[]) as u64);
    assert_eq!(tidegate.get("/readyz").status, 200);
    assert_eq!(tidegate.backend_status(&name)["state"], "up");

    let address = a.die();
    eventually_eq("it is down", &0, || up(&tidegate, &name));
    let refused = |tidegate: &Tidegate| {
        tidegate.metrics().sum("tidegate_backend_connect_errors_total", &[("backend", &name)]) as u64
    };
    let before = refused(&tidegate);
    for _ in 0..6 {
        assert_eq!(tidegate.connect().rest().text(), "b\n");
    }
    assert_eq!(refused(&tidegate), before, "the next connection sees the verdict: it isn't even tried");
    let status = tidegate.backend_status(&name);
    assert_eq!(status["state"], "down");
    assert!(status["last_error"]["text"].as_str().is_some_and(|error| error.contains("refused")), "{status}");

    let _a = Backend::at(&address, naming("a"));
    eventually_eq("it is up again", &1, || up(&tidegate, &name));
    eventually("it is served again", || tidegate.connect().rest().text() == "a\n");
    // One line each for what changed, however many probes there were.
    assert_eq!(tidegate.count_logged(&[&name, "down"]), 1, "{}", tidegate.log());
    let changes = tidegate.metrics().sum("tidegate_backend_state_changes_total", &[("backend", &name)]) as u64;
    assert!((2..=3).contains(&changes), "{changes} changes");
}

#[test]
fn with_all_backends_down_clients_are_reset_and_readyz_says_why() {
    let dead = Refusing::new();
    let tidegate = Tidegate::start(Config::over([&dead]).health(QUICK).pool("panic_threshold = \"0%\""));
    eventually("it was probed", || checks(&tidegate, &dead.to_string(), "failure") >= 2);
    tidegate.connect().expect_end(End::Rst);
    eventually_eq("for this reason", &1, || tidegate.closed("no_backend"));
    let answer = tidegate.get("/readyz");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("web"), "the gate names the pool: {}", answer.body);
    assert_eq!(tidegate.get("/livez").status, 200);
}

#[test]
fn initial_up_serves_before_the_first_verdict_and_probe_none_never_asks() {
    let backend = Backend::named("x");
    let tidegate = Tidegate::start(Config::over([&backend]).health("initial = \"up\"\ninterval = \"1h\""));
    assert_eq!(tidegate.connect().rest().text(), "x\n");
    drop(tidegate);

    let backend = Backend::named("x");
    let tidegate = Tidegate::start(Config::over([&backend]));
    assert_eq!(tidegate.connect().rest().text(), "x\n");
    assert_eq!(backend.accepted(), 1);
    assert_eq!(tidegate.metrics().sum("tidegate_backend_health_checks_total", &[]) as u64, 0);
}

#[test]
fn the_first_round_is_over_before_the_process_is_ready() {
    let backend = Backend::named("x");
    // A second round would come in an hour.
    let tidegate = Tidegate::start(Config::over([&backend]).health("interval = \"1h\""));
    assert_eq!(tidegate.connect().rest().text(), "x\n");
    assert_eq!(up(&tidegate, &backend.to_string()), 1);
}

#[test]
fn a_first_round_that_hangs_does_not_hold_up_the_start_for_ever() {
    let (silent, alive) = (Silent::new(), Backend::named("alive"));
    let health = "interval = \"1h\"\ntimeout = \"300ms\"";
    let tidegate = Tidegate::start(Config::over([&silent.addr, &alive.addr]).health(health));
    assert_eq!(tidegate.connect().rest().text(), "alive\n");
    eventually("its probe has timed out", || checks(&tidegate, &silent.to_string(), "timeout") == 1);
    assert_eq!(up(&tidegate, &silent.to_string()), 0);
}

#[test]
fn f29_a_backend_that_flaps_from_probe_to_probe_stays_what_it_was() {
    // By turns, whoever looks at it and when.
    let asked = AtomicUsize::new(0);
    let backend = Backend::new(move |mut conn| {
        let well = asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        let _ = conn.try_send(if well { "+PONG\r\n" } else { "-ERR\r\n" });
        let _ = conn.rest();
    });
    let name = backend.to_string();
    let exchange = "probe = \"exchange\"\nexchange = { expect_prefix = \"+PONG\" }";
    let health = "interval = \"1s\"\nfast_interval = \"100ms\"\ntimeout = \"1s\"\nrise = 3\nfall = 3";
    let tidegate = Tidegate::start(Config::over([&backend]).health(&format!("{exchange}\n{health}")));
    eventually_eq("it is up", &1, || up(&tidegate, &name));
    tidegate.logged(&["ready"]);
    let changes = || tidegate.metrics().sum("tidegate_backend_state_changes_total", &[("backend", &name)]) as u64;
    let (before, lines) = (changes(), tidegate.count_logged(&[&name]));
    let seen = |result| checks(&tidegate, &name, result);
    let first = (seen("failure"), seen("success"));
    eventually("some probes of either kind", || {
        assert_eq!(up(&tidegate, &name), 1);
        seen("failure") >= first.0 + 3 && seen("success") >= first.1 + 3
    });
    assert_eq!(changes(), before);
    assert_eq!(tidegate.count_logged(&[&name]), lines, "flapping is no flood:\n{}", tidegate.log());
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
    // A few at once, and from then on two a minute.
    let most = 7 + begun.elapsed().as_secs() / 15;
    assert!(lines <= most, "{lines} lines for 20 changes:\n{}", tidegate.log());
}

#[test]
fn f32_garbage_is_shown_without_control_characters() {
    let says = answer(b"\x1b[31m\0\xff\r\nred");
    let backend = answering(&says);
    let name = backend.to_string();
    let config = Config::over([&backend]).pool("panic_threshold = \"0%\"").health(&format!("{EXCHANGE}{QUICK}"));
    let tidegate = Tidegate::start(config);
    eventually("it was asked", || last_error(&tidegate, &name).contains("red"));
    assert!(!tidegate.log().contains('\u{1b}') && !tidegate.get("/status").body.contains('\u{1b}'));
}

#[test]
fn f31_probes_are_bounded_in_number_and_spread() {
    const BACKENDS: u32 = 700;
    const AT_ONCE: usize = 256;
    // What it has besides: three that listen, a pair for signals, the admin's answers.
    const OTHERS: usize = 16;
    // All of 127.0.0.0/8 leads to this one socket, which answers nobody.
    let silent = Silent::on(Ipv4Addr::UNSPECIFIED);
    let port = silent.addr.tcp().port();
    let address = |index: u32| format!("{}:{port}", Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + index));
    let health = "interval = \"1s\"\nfast_interval = \"1s\"\ntimeout = \"1s\"\ninitial = \"up\"";
    let tidegate = Tidegate::start(Config::over((0..BACKENDS).map(address)).health(health));
    let timeouts = || tidegate.metrics().sum("tidegate_backend_health_checks_total", &[("result", "timeout")]) as u64;
    let mut most = 0;
    eventually("each was probed", || {
        for _ in 0..20 {
            // Each probe is a descriptor. The kernel's table of sockets is no measure: while it is walked, one that has
            // just ended may be seen beside its successor.
            most = most.max(tidegate.sockets());
        }
        timeouts() >= u64::from(BACKENDS)
    });
    assert!(most > AT_ONCE / 2, "{most} sockets: nothing was seen");
    assert!(most <= AT_ONCE + OTHERS, "{most} sockets at once");
    assert_eq!(tidegate.get("/livez").status, 200);
}

#[test]
fn f31_the_probes_of_many_backends_do_not_march_in_step() {
    use std::time::Instant;
    const BACKENDS: u32 = 40;
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let log = times.clone();
    let everywhere = crate::kit::Addr::parse("0.0.0.0:0");
    let backend = Backend::at(&everywhere, move |_| log.lock().unwrap().push(Instant::now()));
    let port = backend.addr.tcp().port();
    let config = Config::over((1..=BACKENDS).map(|index| format!("127.2.0.{index}:{port}")));
    let _tidegate = Tidegate::start(config.health("interval = \"1s\"\nfast_interval = \"1s\"\nrise = 1"));
    eventually("five rounds", || times.lock().unwrap().len() >= 5 * BACKENDS as usize);
    // In tenths of a second since the first one: in step, they would all be in five or six of them.
    let times = times.lock().unwrap();
    let mut tenths: Vec<u128> = times.iter().map(|time| (*time - times[0]).as_millis() / 100).collect();
    tenths.sort_unstable();
    tenths.dedup();
    assert!(tenths.len() >= 15, "{tenths:?}");
}

#[test]
fn a_probe_never_disturbs_the_backend_with_a_half_open_connection() {
    let backend = Backend::new(|mut conn| {
        // A probe ends by itself; one that stayed open would keep this thread for the kit's whole patience.
        let _ = conn.rest();
    });
    let tidegate = Tidegate::start(Config::over([&backend]).health(QUICK));
    eventually("some probes", || checks(&tidegate, &backend.to_string(), "success") >= 5);
    let open = || kernel::sockets_to(backend.addr.tcp().port(), &["01", "08"]);
    eventually("no probe stays open", || open() <= 1);
}

#[test]
fn state_and_times_stand_in_the_status() {
    let backend = Backend::named("x");
    let tidegate = Tidegate::start(Config::over([&backend]).health(QUICK));
    eventually_eq("it is up", &1, || up(&tidegate, &backend.to_string()));
    let status = tidegate.backend_status(&backend);
    for key in ["address", "weight", "state", "since", "active", "total", "last_error"] {
        assert!(status.get(key).is_some(), "no {key} in {status}");
    }
    assert_eq!(status["weight"], 1);
    throughout("it stays up", Duration::from_millis(300), || up(&tidegate, &backend.to_string()) == 1);
}
