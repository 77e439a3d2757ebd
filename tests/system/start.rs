//! What keeps it from starting: mistakes in the file, and a system that refuses. `check` says the same and touches
//! nothing.

use crate::kit::daemon::{Exit, file, run};
use crate::kit::files::copy_program;
use crate::kit::{Addr, Backend, Config, Conn, Launch, Listening, eventually};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What `run` and `check` say of this file: the same, with exit code 78.
fn refused(path: &Path) -> Exit {
    let path = path.to_str().unwrap();
    let (ran, checked) = (run(&["run", "--config", path]), run(&["check", "--config", path]));
    assert_eq!(ran.code, Some(78), "{ran:?}");
    assert_eq!(checked.code, Some(78), "{checked:?}");
    assert_eq!(ran.stderr, checked.stderr, "`run` and `check` agree to the letter");
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    ran
}

fn good() -> String {
    Config::over(["127.0.0.1:1"]).to_string()
}

#[test]
fn i06_f42_files_that_are_no_config_are_refused_with_a_sentence_and_78() {
    let dir = tempfile::tempdir().unwrap();
    let good = good();
    let truncated = &good[..good.find("pool =").unwrap() + 4];
    for (name, content) in [
        ("garbage", b"\x7fELF\x02\x01\x01 what is this {{{".to_vec()),
        ("truncated", truncated.as_bytes().to_vec()),
        ("empty", Vec::new()),
        ("nul", [good.as_bytes(), b"\0"].concat()),
        ("invalid-utf-8", [b"# \xff\xfe\n", good.as_bytes()].concat()),
        ("latin-1", [good.as_bytes(), b"\nname = \"caf\xe9\"\n"].concat()),
        ("nested", format!("a = {}{}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes()),
        ("nested-tables", format!("a = {}{}", "{a=".repeat(10_000), "}".repeat(10_000)).into_bytes()),
        ("long-key", format!("{} = 1\n", "a.".repeat(10_000) + "b").into_bytes()),
        ("cr", good.replace('\n', "\r").into_bytes()),
    ] {
        let path = file(dir.path(), name, &content);
        let exit = refused(&path);
        assert!(exit.stderr.contains(name), "{name}: the message names the file: {}", exit.stderr);
        assert!(exit.stderr.len() < 20_000, "{name}: a message of {} bytes", exit.stderr.len());
    }
}

#[test]
fn f42_a_byte_order_mark_is_no_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "bom.toml", format!("\u{feff}{}", good()));
    let exit = run(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!(exit.code, Some(0), "{exit:?}");
}

#[test]
fn f42_windows_line_ends_are_no_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "crlf.toml", good().replace('\n', "\r\n"));
    let exit = run(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!(exit.code, Some(0), "{exit:?}");
}

#[test]
fn i06_f42_what_is_no_file_or_too_large_is_refused_with_a_sentence_and_78() {
    let dir = tempfile::tempdir().unwrap();
    let large = file(dir.path(), "large.toml", "");
    fs::File::options().write(true).open(&large).unwrap().set_len(100 << 20).unwrap();
    let fifo = dir.path().join("fifo.toml");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let missing = dir.path().join("missing.toml");
    let below_a_file = large.join("lb.toml");
    for path in
        [&large, &fifo, &dir.path().to_owned(), &missing, &below_a_file, &"/dev/null".into(), &"/dev/zero".into()]
    {
        let exit = refused(path);
        assert!(exit.stderr.contains(path.to_str().unwrap()), "{}: {}", path.display(), exit.stderr);
    }
}

#[test]
fn f42_an_unreadable_file_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "lb.toml", good());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&path).is_ok() {
        // Root reads everything; a process with less must not.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let binary = dir.path().join("tidegate");
        copy_program(env!("CARGO_BIN_EXE_tidegate"), &binary);
        let output = std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&binary)
            .args(["check", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains("lb.toml") && said.contains("ermission"), "{said}");
    } else {
        assert!(refused(&path).stderr.contains("ermission"));
    }
}

#[test]
fn f42_a_path_that_is_no_utf_8_is_named_all_the_same() {
    let path = Path::new(OsStr::from_bytes(b"/nowhere/\xff.toml")).to_owned();
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_tidegate")).args(["check", "--config"]).arg(&path).output();
    assert_eq!(output.unwrap().status.code(), Some(78));
}

#[test]
fn i06_f43_every_mistake_is_listed_at_once_with_place_value_and_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let text = r#"[runtime]
worker = 2

[listeners.a]
bind = "127.0.0.1:8080"
pool = "nowhere"

[listeners.b]
bind = ["127.0.0.1:8080"]
pool = "web"
idle_timeout = "10"

[pools.web]
balance = "round_robbin"
backends = [
    "127.0.0.1:0",
    { address = "127.0.0.1:1", weight = 0 },
    "127.0.0.1:65536",
    { address = "127.0.0.1:2", name = "twin" },
    { address = "127.0.0.1:3", name = "twin" },
]
[pools.web.connect]
timeout = "20s"
budget = "10s"
[pools.web.health]
intervall = "2s"
"#;
    let path = file(dir.path(), "lb.toml", text);
    let exit = refused(&path);
    let said = &exit.stderr;
    for (place, words) in [
        ("lb.toml:2:1: runtime.worker: ", "did you mean \"workers\""),
        ("lb.toml:6:8: listeners.a.pool: ", "nowhere"),
        ("lb.toml:9:9: listeners.b.bind[0]: ", "127.0.0.1:8080 overlaps"),
        ("lb.toml:11:16: listeners.b.idle_timeout: ", "\"10s\""),
        ("lb.toml:14:11: pools.web.balance: ", "\"round_robin\""),
        ("lb.toml:16:5: pools.web.backends[0]: ", "port 0 is not a port; use 1 to 65535"),
        ("lb.toml:17:41: pools.web.backends[1].weight: ", "0 is out of range; use 1 to 256"),
        ("lb.toml:18:5: pools.web.backends[2]: ", "port 65536 is not a port; use 1 to 65535"),
        ("lb.toml:20:39: pools.web.backends[4].name: ", "\"twin\" already"),
        ("lb.toml:23:11: pools.web.connect.timeout: ", "longer than the budget"),
        ("lb.toml:26:1: pools.web.health.intervall: ", "did you mean \"interval\""),
    ] {
        let line = said.lines().find(|line| line.contains(place));
        let line = line.unwrap_or_else(|| panic!("no line with {place}:\n{said}"));
        assert!(line.contains(words), "{line}: no {words}");
    }
    let mistakes = said.lines().filter(|line| line.contains("lb.toml:")).count();
    assert_eq!(mistakes, 11, "one line for each and no other:\n{said}");
}

#[test]
fn f43_a_table_given_twice_is_a_mistake_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "lb.toml", format!("{}\n[listeners.web]\nbind = \"127.0.0.1:1\"\n", good()));
    let line = good().lines().count() + 2;
    let said = refused(&path).stderr;
    assert!(said.contains("lb.toml:") && said.contains("web"), "{said}");
    assert!((line - 1..=line + 1).any(|line| said.contains(&format!("lb.toml:{line}:"))), "{line}: {said}");
}

#[test]
fn f48_check_gives_the_verdict_and_binds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let taken = Listening::new();
    let socket = dir.path().join("web.sock");
    let text = Config::over(["127.0.0.1:1"]).binds([taken.to_string(), format!("unix:{}", socket.display())]);
    let path = file(dir.path(), "lb.toml", text.to_string());
    let exit = run(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(exit.stdout.contains("fine"), "{exit:?}");
    assert!(exit.stdout.contains("1 listener") && exit.stdout.contains("1 pool"), "{exit:?}");
    assert!(!socket.exists(), "it bound a socket");
    assert!(taken.accept_now().is_none(), "it connected somewhere");
}

#[test]
fn f48_an_empty_pool_is_a_warning_and_none_at_all_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "lb.toml", Config::with_pool("backends = []").to_string());
    let exit = run(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(exit.stderr.contains("lb.toml:") && exit.stderr.contains("backends"), "{exit:?}");
    refused(&file(dir.path(), "none.toml", Config::with_pool("").to_string()));
}

#[test]
fn f48_the_shipped_example_is_fine() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("lb.toml.example");
    let exit = run(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!(exit.code, Some(0), "{exit:?}");
}

#[test]
fn a_port_that_is_taken_refuses_the_start_with_71_and_names_it() {
    let taken = Listening::new();
    let backend = Backend::named("x");
    let exit = Launch::new(Config::over([&backend]).bind(&taken)).run_to_end();
    assert_eq!(exit.code, Some(71), "{exit:?}");
    assert!(exit.stderr.contains(&taken.to_string()), "{}", exit.stderr);
    assert_eq!(exit.stdout, "", "never ready");
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn a_second_process_does_not_share_the_first_ones_port() {
    let backend = Backend::named("x");
    let first = crate::kit::Tidegate::start(Config::over([&backend]));
    let exit = Launch::new(Config::over([&backend]).bind(first.addr())).run_to_end();
    assert_eq!(exit.code, Some(71), "{exit:?}");
    for _ in 0..4 {
        assert_eq!(first.connect().rest().text(), "x\n");
    }
}

#[test]
fn the_command_line_explains_itself() {
    let help = run(&["--help"]);
    assert_eq!(help.code, Some(0));
    for word in ["run", "check", "demo"] {
        assert!(help.stdout.contains(word), "{}", help.stdout);
    }
    assert!(run(&["--version"]).stdout.contains(env!("CARGO_PKG_VERSION")));
    let wrong = run(&["runn"]);
    assert!(wrong.code != Some(0) && wrong.stderr.contains("run"), "{wrong:?}");
}

#[test]
fn the_demo_starts_and_serves_and_fails_over() {
    let demo = Launch::demo().start();
    let (_, addresses) = demo.listeners.iter().next().expect("the demo has a listener");
    let ask = || {
        let mut client = Conn::to(&addresses[0]);
        client.send("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let text = client.rest().text();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        text.rsplit("\r\n").next().unwrap().to_owned()
    };
    let mut seen: Vec<String> = Vec::new();
    eventually("each of the three has answered with its name", || {
        let answer = ask();
        if !seen.contains(&answer) {
            seen.push(answer);
        }
        seen.len() >= 3
    });
    assert_eq!(demo.get("/livez").status, 200);
    let said = demo.stdout() + &demo.log();
    assert!(said.contains("curl"), "it says what to do: {said}");
    assert!(matches!(&addresses[0], Addr::Tcp(address) if address.ip().is_loopback()));
}
