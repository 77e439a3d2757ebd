//! Real programs through the real binary: `cargo test --test peers`. Debian has them all:
//! `apt-get install redis-server redis-tools postgresql postgresql-contrib iperf3 prometheus haproxy nginx
//! libnginx-mod-stream curl openssl chromium mariadb-server mariadb-client`.
//!
//! A program that isn't there is a failure that says what to install, never a test that passes without it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod activation;
#[path = "../kit/mod.rs"]
mod kit;
mod proxy;
mod routes;
mod tls;

use kit::program::{Beside, run, succeed};
use kit::{Addr, Backend, Config, Conn, Tidegate, eventually, eventually_eq, free_port};
use rustix::process::Signal;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

fn local(port: u16) -> Addr {
    Addr::parse(&format!("127.0.0.1:{port}"))
}

fn until_listening(what: &str, port: u16, program: &mut Beside) {
    eventually(&format!("{what} listens"), || {
        assert!(program.lives(), "{what} ended at once");
        Conn::try_to(&local(port)).is_ok()
    });
}

/// Who may end a session: both in order, or a peer that closes with something unread, which the kernel makes a reset.
const BY_PEERS: [&str; 2] = ["complete", "client_reset"];

/// No session may have ended by anything but its peers, in the ways that they have.
fn assert_flawless(tidegate: &Tidegate, ways: &[&str]) {
    tidegate.until_idle();
    let metrics = tidegate.metrics();
    for reason in metrics.values("tidegate_connections_closed_total", "reason") {
        let ended = tidegate.closed(&reason);
        assert!(ways.contains(&&*reason) || ended == 0, "{ended} sessions ended by {reason}\n{metrics}");
    }
    assert_eq!(metrics.sum("tidegate_backend_connect_errors_total", &[]) as u64, 0);
}

const REDIS: &str = "Install it: apt-get install redis-server redis-tools";
const POSTGRES: &str = "Install it: apt-get install postgresql postgresql-contrib";

/// A server of another make, with its files, until it is dropped.
struct Server {
    port: u16,
    _program: Beside,
    dir: TempDir,
}

fn redis() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.args(["--dir", dir.path().to_str().unwrap()]);
    let mut redis = Beside::start(&mut command, Signal::TERM, REDIS);
    until_listening("redis-server", port, &mut redis);
    Server { port, _program: redis, dir }
}

/// With these words of initdb about who may log in.
fn postgres(log_in: &[&str]) -> Server {
    let programs = postgres_programs();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("password"), "secret\n").unwrap();
    if rustix::process::geteuid().is_root() {
        succeed(Command::new("chown").args(["-R", "postgres:postgres"]).arg(dir.path()), POSTGRES);
    }
    let data = dir.path().join("data");
    let mut initdb = as_postgres(&programs.join("initdb"));
    initdb.current_dir(dir.path()).args(["--no-sync", "-U", "postgres"]).args(log_in).arg("-D").arg(&data);
    succeed(&mut initdb, POSTGRES);
    let port = free_port();
    let mut server = as_postgres(&programs.join("postgres"));
    server.current_dir(dir.path()).arg("-D").arg(&data).arg("-k").arg(dir.path());
    server.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
    server.args(["-c", "logging_collector=on", "-c", "log_directory=.", "-c", "log_filename=server.log"]);
    server.args(["-c", "lc_messages=C"]);
    let mut postgres = Beside::start(&mut server, Signal::INT, POSTGRES);
    // Nobody looks before: what a look is told is in the log as well, and comes there some time later.
    eventually("the database takes connections", || {
        assert!(postgres.lives(), "postgres ended at once");
        let log = fs::read_to_string(data.join("server.log")).unwrap_or_default();
        log.contains("database system is ready to accept connections\n")
    });
    Server { port, _program: postgres, dir }
}

/// The lines of the guide's example for the pool of this name, as they would stand in `[pools.web.health]`.
fn example(pool: &str) -> String {
    let guide = include_str!("../../docs/operating.md");
    let (_, rest) = guide.split_once(&format!("[pools.{pool}.health]")).expect("the guide has the example");
    let (comment, lines) = rest.split_once('\n').unwrap();
    assert!(comment.trim_start().starts_with('#'), "{comment}");
    let example = lines.split("\n\n").next().unwrap().split("\n```").next().unwrap();
    example.replace(&format!("[pools.{pool}."), "[pools.web.")
}

#[test]
fn the_guides_probes_suit_the_servers_that_they_are_for() {
    let scram = ["-A", "scram-sha-256", "--pwfile", "password"];
    let servers = [("cache", redis()), ("db", postgres(&["-A", "trust"])), ("standby", postgres(&scram))];
    std::thread::scope(|scope| {
        for (pool, server) in servers {
            scope.spawn(move || is_suited_by_its_probe(pool, server));
        }
    });
}

fn is_suited_by_its_probe(pool: &str, server: Server) {
    // Patient enough for a slow machine: a probe that is given up leaves its mark in a log.
    let patient = "interval = \"3s\"\ntimeout = \"3s\"\nfall = 1000";
    let log = || fs::read_to_string(server.dir.path().join("data/server.log")).unwrap_or_default();
    // What it said as it started.
    let before = log().len();
    let tidegate = Tidegate::start(Config::over([local(server.port)]).health(&format!("{patient}\n{}", example(pool))));
    let checks = |result| tidegate.metrics().sum("tidegate_backend_health_checks_total", &[("result", result)]) as u64;
    eventually(&format!("{pool}: the probes succeed"), || checks("success") >= 3);
    assert_eq!((checks("failure"), checks("timeout")), (0, 0), "{pool}: {}", tidegate.log());
    assert_eq!(&log()[before..], "", "{pool} keeps quiet about its probes");
    drop(server);
    eventually(&format!("{pool}: the probes fail once it is gone"), || checks("failure") >= 1);
}

#[test]
fn redis_benchmark_pipelined_runs_without_an_error() {
    let redis = redis();
    let tidegate = Tidegate::start(Config::over([local(redis.port)]));
    let target = tidegate.addr().tcp().port().to_string();
    for options in [
        &["-P", "16", "-n", "200000", "-c", "50", "-t", "set,get,incr,lpush,lrange_100"][..],
        &["-P", "16", "-n", "2000", "-c", "20", "-d", "100000", "-t", "set,get"],
        &["-k", "0", "-n", "3000", "-c", "20", "-t", "set,get"],
    ] {
        let mut command = Command::new("redis-benchmark");
        command.args(["-h", "127.0.0.1", "-p", &target, "-q"]).args(options);
        let said = succeed(&mut command, REDIS);
        assert!(said.contains("requests per second"), "{said}");
        assert!(!said.to_lowercase().contains("error"), "{said}");
    }
    assert_flawless(&tidegate, &BY_PEERS);
}

/// PostgreSQL refuses to run as root: then its programs run as the user that Debian's package makes.
fn as_postgres(program: &Path) -> Command {
    if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

/// The newest installed version's programs; Debian keeps those of the server out of the path.
fn postgres_programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").map(|entries| entries.flatten().collect::<Vec<_>>());
    let newest = versions.unwrap_or_default().into_iter().map(|entry| entry.path().join("bin")).max();
    newest.expect("PostgreSQL's server isn't there. Install it: apt-get install postgresql postgresql-contrib")
}

#[test]
fn pgbench_runs_without_an_error() {
    let postgres = postgres(&["-A", "trust"]);
    let tidegate = Tidegate::start(Config::over([local(postgres.port)]));
    let target = tidegate.addr().tcp().port().to_string();
    let pgbench = |options: &[&str]| {
        let mut command = Command::new("pgbench");
        command.args(["-h", "127.0.0.1", "-p", &target, "-U", "postgres"]).args(options).arg("postgres");
        succeed(&mut command, POSTGRES)
    };
    pgbench(&["-i", "-s", "2"]);
    for options in [
        &["-c", "8", "-j", "2", "-t", "400"][..],
        &["-S", "-M", "prepared", "-c", "8", "-j", "2", "-t", "2000"],
        &["-S", "-C", "-c", "4", "-j", "2", "-t", "100"],
    ] {
        let said = pgbench(options);
        assert!(said.contains("number of failed transactions: 0 "), "{said}");
        assert!(!said.contains("error") && !said.contains("aborted"), "{said}");
    }
    assert_flawless(&tidegate, &BY_PEERS);
}

#[test]
fn iperf3_runs_in_both_directions_without_an_error() {
    const WAY_OUT: &str = "Install it: apt-get install iperf3";
    let port = free_port();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("iperf3.log");
    let mut command = Command::new("iperf3");
    command.args(["-s", "-B", "127.0.0.1", "-p", &port.to_string(), "--forceflush", "--logfile"]).arg(&log);
    let mut iperf = Beside::start(&mut command, Signal::TERM, WAY_OUT);
    // Its server tells the two directions of `--bidir` apart by the order in which connections come; two workers may
    // connect in another order than the client did.
    let tidegate = Tidegate::start(Config::over([local(port)]).only_runtime("workers = 1"));
    let target = tidegate.addr().tcp().port().to_string();
    let tests = [&["-P", "1"][..], &["-R"], &["-P", "8"], &["-P", "8", "-R"], &["--bidir"], &["-n", "300M"]];
    for (number, options) in (1..).zip(tests) {
        // Between two tests its server closes the socket that it listens on and opens another, which resets whoever
        // came too early, directly as through a balancer; it writes when it is there for the next one.
        eventually("iperf3 is there for the next test", || {
            assert!(iperf.lives(), "iperf3 ended at once");
            fs::read_to_string(&log).is_ok_and(|log| log.contains(&format!("(test #{number})\n")))
        });
        let mut command = Command::new("iperf3");
        command.args(["-c", "127.0.0.1", "-p", &target, "-J"]).args(options);
        if !options.contains(&"-n") {
            command.args(["-t", "2"]);
        }
        let answer: serde_json::Value = serde_json::from_slice(&run(&mut command, WAY_OUT).stdout).unwrap();
        assert!(answer.get("error").is_none(), "{options:?}: {}", answer["error"]);
        let received = answer["end"]["sum_received"]["bytes"].as_f64().unwrap_or_default();
        assert!(received > 10e6, "{options:?}: {received} bytes");
    }
    // Its server ends a timed upload by closing the data connections with bytes unread, directly as through a balancer.
    assert_flawless(&tidegate, &[&BY_PEERS[..], &["backend_reset"]].concat());
}

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    const WAY_OUT: &str = "Install it: apt-get install prometheus";
    let (backend, dead) = (Backend::named("x"), kit::Refusing::new());
    let health = "interval = \"100ms\"\ninitial = \"up\"\nfall = 1000";
    let tidegate = Tidegate::start(Config::over([&backend.addr, &dead.addr]).health(health));
    for _ in 0..4 {
        assert_eq!(tidegate.connect().rest().text(), "x\n");
    }
    eventually_eq("all are counted", &4, || tidegate.closed("complete"));
    eventually("probes of both kinds", || {
        let metrics = tidegate.metrics();
        metrics.values("tidegate_backend_health_checks_total", "result").contains(&"failure".to_owned())
    });
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("can't run promtool: {error}. {WAY_OUT}"));
    promtool.stdin.take().unwrap().write_all(tidegate.metrics().to_string().as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn the_programs_are_found() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (program, package) in [
        ("redis-server", "redis-server"),
        ("redis-benchmark", "redis-tools"),
        ("pgbench", "postgresql-contrib"),
        ("iperf3", "iperf3"),
        ("promtool", "prometheus"),
        ("setpriv", "util-linux"),
        ("haproxy", "haproxy"),
        ("nginx", "nginx"),
        ("curl", "curl"),
        ("openssl", "openssl"),
        ("chromium", "chromium"),
        ("mariadbd", "mariadb-server"),
        ("mariadb-install-db", "mariadb-server"),
        ("mariadb", "mariadb-client"),
    ] {
        let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
        assert!(found, "{program} isn't there. Install it: apt-get install {package}");
    }
}
