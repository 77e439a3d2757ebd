//! The access log: what a line says, as text and as JSON, and that no trouble with it touches traffic.

use crate::kit::{Backend, Config, Conn, End, Launch, Listening, Refusing, Tidegate, eventually, kernel};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

const FILE: &str = "access = \"$DIR/access.log\"";

/// The keys of a line, in their order.
const KEYS: [&str; 19] = [
    "time",
    "id",
    "listener",
    "client",
    "proxy",
    "rule",
    "sni",
    "alpn",
    "pool",
    "backend",
    "attempts",
    "connect",
    "wait",
    "duration",
    "to_backend",
    "to_client",
    "ended_by",
    "phase",
    "reason",
];

/// One session of 5 bytes to the backend and 7 to the client, ended in order; the client's own address.
fn one_session(tidegate: &Tidegate, listening: &Listening) -> String {
    let (mut client, mut backend) = (tidegate.connect(), listening.accept());
    let own = client.local().to_string();
    client.send("12345");
    backend.expect("12345");
    client.finish();
    backend.send("1234567");
    drop(backend);
    client.expect("1234567");
    client.expect_end(End::Fin);
    own
}

/// Serves and ends a few sessions, each of which must be flawless.
fn sessions(tidegate: &Tidegate, count: usize) {
    for _ in 0..count {
        let mut client = tidegate.connect();
        client.send("ping");
        client.expect("ping");
        client.finish();
        client.expect_end(End::Fin);
    }
}

#[test]
fn a_json_line_says_everything_about_a_session() {
    let (dead, listening) = (Refusing::new(), Listening::new());
    let config = Config::over([&dead.addr, &listening.addr]).log(FILE).log("format = \"json\"");
    let tidegate = Tidegate::start(config);
    let client = one_session(&tidegate, &listening);
    let lines = tidegate.access_lines(1);
    let record = tidegate.records(1).remove(0);
    for key in KEYS {
        assert!(record.get(key).is_some(), "no {key} in {record}");
    }
    let places: Vec<usize> = KEYS.iter().map(|key| lines[0].find(&format!("\"{key}\":")).unwrap()).collect();
    assert!(places.is_sorted(), "the order of the keys: {}", lines[0]);
    assert_eq!(record["listener"], "web");
    assert_eq!(record["client"], client);
    assert_eq!(record["pool"], "web");
    assert_eq!(record["backend"], listening.to_string());
    assert_eq!(record["to_backend"], 5);
    assert_eq!(record["to_client"], 7);
    assert_eq!(record["reason"], "complete");
    assert_eq!(record["ended_by"], "both");
    assert_eq!(record["phase"], "relay");
    let attempts = record["attempts"].as_str().unwrap();
    assert!(attempts.starts_with(&format!("{dead} refused ")), "{attempts}");
    assert!(attempts.contains(&format!("{listening} connected ")), "{attempts}");
    assert!(record["connect"].as_f64().unwrap() > 0.0);
    assert!(record["duration"].as_f64().unwrap() >= record["connect"].as_f64().unwrap());
    let time = record["time"].as_str().unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z') && time.contains('T'), "{time}");
}

#[test]
fn a_text_line_says_the_same_as_key_and_value() {
    let listening = Listening::new();
    let tidegate = Tidegate::start(Config::over([&listening]).log(FILE));
    let client = one_session(&tidegate, &listening);
    let line = tidegate.access_lines(1).remove(0);
    let places: Vec<usize> = KEYS
        .iter()
        .map(|key| {
            let (first, later) = (format!("{key}="), format!(" {key}="));
            if line.starts_with(&first) { 0 } else { line.find(&later).unwrap_or_else(|| panic!("no {key}: {line}")) }
        })
        .collect();
    assert!(places.is_sorted(), "{line}");
    for pair in [
        "listener=web".to_owned(),
        format!("client={client}"),
        format!("backend={listening}"),
        "to_backend=5".to_owned(),
        "to_client=7".to_owned(),
        "reason=complete".to_owned(),
    ] {
        assert!(line.split(' ').any(|word| word == pair), "no {pair}: {line}");
    }
}

#[test]
fn ids_are_unique_and_there_is_one_line_a_session() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]).log(FILE).log("format = \"json\""));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| sessions(&tidegate, 50));
        }
    });
    let records = tidegate.records(200);
    let mut ids: Vec<String> = records.iter().map(|record| record["id"].to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 200);
}

#[test]
fn the_access_log_can_go_to_stdout_and_stderr() {
    let backend = Backend::echo();
    for target in ["stdout", "stderr"] {
        let tidegate = Tidegate::start(Config::over([&backend]).log(&format!("access = \"{target}\"")));
        sessions(&tidegate, 3);
        eventually("its lines are there", || {
            let text = if target == "stdout" { tidegate.stdout() } else { tidegate.log() };
            text.lines().filter(|line| line.contains("reason=complete")).count() == 3
        });
    }
}

#[test]
fn a_log_file_that_was_moved_away_is_opened_anew() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]).log(FILE));
    let (path, moved) = (tidegate.dir().join("access.log"), tidegate.dir().join("access.log.1"));
    sessions(&tidegate, 2);
    tidegate.access_lines(2);
    std::fs::rename(&path, &moved).unwrap();
    eventually("the new file gets lines", || {
        sessions(&tidegate, 1);
        std::fs::read_to_string(&path).is_ok_and(|text| !text.is_empty())
    });
}

#[test]
fn i09_f86_a_full_disk_drops_lines_counts_them_and_touches_nothing_else() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]).log("access = \"/dev/full\""));
    sessions(&tidegate, 50);
    eventually("dropped lines are counted", || {
        tidegate.metrics().one("tidegate_log_dropped_total", &[("log", "access")]) as u64 == 50
    });
    sessions(&tidegate, 5);
    assert!(tidegate.log().lines().count() < 40, "no flood of complaints:\n{}", tidegate.log());
}

#[test]
fn i09_f86_a_pipe_that_nobody_reads_drops_lines_and_holds_up_nobody() {
    let backend = Backend::echo();
    let launch = Launch::new(Config::over([&backend]).log("access = \"$DIR/pipe\""));
    let path = launch.dir().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    // Open for reading, so that its opening for writing succeeds; nothing is ever read.
    let _reader = OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(&path);
    let mut tidegate = launch.start();
    let resident = kernel::resident(tidegate.pid);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| sessions(&tidegate, 400));
        }
    });
    let grown = kernel::resident(tidegate.pid).saturating_sub(resident);
    assert!(grown < 32 << 20, "{grown} bytes of lines are kept");
    tidegate.until_idle();
    // The stop waits for the writer, but not for ever.
    tidegate.signal(rustix::process::Signal::TERM);
    assert_eq!(tidegate.wait().code, Some(0));
}

#[test]
fn i09_f86_an_operational_log_that_nobody_reads_holds_up_nobody() {
    let backend = Backend::echo();
    let (reader, writer) = std::io::pipe().unwrap();
    // Long names make long lines, so that few thousand sessions fill what the queue may hold.
    let dead = Refusing::new();
    let named = |addr: &dyn std::fmt::Display, letter: &str| {
        format!("{{ address = \"{addr}\", name = \"{}\" }}", letter.repeat(128))
    };
    let backends = format!("backends = [{}, {}]", named(&backend, "a"), named(&dead.addr, "b"));
    let config = Config::with_pool(&backends).ejection("consecutive_failures = \"off\"");
    let config = config.log("access = \"stderr\"\nlevel = \"trace\"");
    let mut tidegate = Launch::new(config).stderr_to(writer).start();
    // However long that takes: what is waited for is a number of lines.
    let dropped = (0..100).any(|_| {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| sessions(&tidegate, 100));
            }
        });
        tidegate.metrics().sum("tidegate_log_dropped_total", &[]) > 0.0
    });
    assert!(dropped, "dropped lines are counted");
    tidegate.signal(rustix::process::Signal::TERM);
    assert_eq!(tidegate.wait().code, Some(0));
    drop(reader);
}

#[test]
fn i09_f86_a_closed_stdout_and_stderr_touch_no_traffic_and_no_sigpipe_kills() {
    let backend = Backend::echo();
    let (reader, writer) = std::io::pipe().unwrap();
    let config = Config::over([&backend]).log("access = \"stderr\"\nlevel = \"debug\"");
    let tidegate = Launch::new(config).stderr_to(writer).start();
    drop(reader);
    sessions(&tidegate, 100);
    eventually("dropped lines are counted", || tidegate.metrics().sum("tidegate_log_dropped_total", &[]) > 0.0);
}

#[test]
fn f86_an_access_log_that_cannot_be_opened_refuses_the_start() {
    let exit = Launch::new(Config::over(["127.0.0.1:1"]).log("access = \"/nowhere/at/all/access.log\"")).run_to_end();
    assert_eq!(exit.code, Some(71), "{exit:?}");
    assert!(exit.stderr.contains("/nowhere/at/all/access.log"), "{}", exit.stderr);
}

#[test]
fn f87_a_name_with_control_characters_is_refused_and_shown_escaped() {
    let list = "backends = [{ address = \"127.0.0.1:1\", name = \"a\\n\\u001b[31mred\" }]";
    let exit = Launch::new(Config::with_pool(list)).run_to_end();
    assert_eq!(exit.code, Some(78), "{exit:?}");
    assert!(!exit.stderr.contains("\u{1b}[31mred"), "an escape sequence reached the terminal");
}

#[test]
fn f87_quotes_blanks_and_equals_signs_in_a_name_cannot_forge_a_field() {
    let evil = "x reason=complete \\\" {'";
    let listening = Listening::new();
    let list = format!("backends = [{{ address = \"{listening}\", name = \"x reason=complete \\\\\\\" {{'\" }}]");
    for format in ["text", "json"] {
        let tidegate = Tidegate::start(Config::with_pool(&list).log(FILE).log(&format!("format = \"{format}\"")));
        let mut client = tidegate.connect();
        let mut backend = listening.accept();
        backend.send("x");
        client.expect("x");
        backend.reset();
        client.expect_cut();
        let line = tidegate.access_lines(1).remove(0);
        if format == "json" {
            let record: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(record["backend"], evil);
        } else {
            assert!(line.contains("reason=backend_reset"), "{line}");
            assert!(line.contains("backend=\""), "a value with blanks is quoted: {line}");
        }
        // The same name as a label.
        assert!(tidegate.metrics().has("tidegate_backend_up", &[("backend", evil)]));
    }
}

#[test]
fn f87_what_clients_send_never_reaches_the_logs() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]).log("access = \"stderr\"\nlevel = \"trace\""));
    let mut client = tidegate.connect();
    client.send("canary-4711\n\u{1b}[31m");
    client.expect("canary-4711\n\u{1b}[31m");
    drop(client);
    let mut conn = Conn::to(tidegate.admin());
    conn.send("GET /canary-4711\u{1b}[31m HTTP/1.1\r\nHost: a\r\n\r\n");
    let _ = conn.try_finish();
    conn.rest();
    tidegate.logged(&["reason="]);
    assert!(!tidegate.log().contains('\u{1b}'), "{}", tidegate.log());
}
