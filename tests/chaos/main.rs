//! Chaos: the real binary over ten backends that are killed, stopped, slowed, reset and revived each second, under a
//! steady load of short and long connections, and no client may notice: `cargo test --test chaos`.
//!
//! `TIDEGATE_CHAOS_SECONDS` is how long (120), `TIDEGATE_CHAOS_SEED` repeats a script. A program of its own instead of
//! a list of tests, since it is also its own backends, and prints a summary in any case.
//!
//! What must hold is exact: no error of a client, since `script` keeps a backend good at each moment; each first answer
//! within the budget; and at the end nothing left over. Read next: `script` for what happens, `load` for what an error
//! is.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../kit/mod.rs"]
mod kit;

mod backend;
mod load;
mod protocol;
mod script;
mod stalls;
mod summary;

use backend::{ROLE, Server, serve};
use kit::{Config, Tidegate, eventually, eventually_eq};
use load::{Exchange, Failure, Seen};
use protocol::{HEALTH, HEALTHY};
use script::{BACKENDS, BUDGET, Script, Step};
use stalls::Stalls;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Of a probe; a stall of this machine that is as long can take down a good backend.
const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// A stopped backend takes a session no longer than its verdict takes: in the worst case an interval (250 ms and a
/// tenth), a probe that times out (250 ms), a fast interval (100 ms and a tenth) and another one, which makes 0.89 s.
/// The script lets a session meet three of those within its budget; the rest of the five seconds is for the machine. So
/// the bound is the budget itself.
const BOUND: Duration = Duration::from_secs(BUDGET);
/// The connections that a backend may have. All long ones together leave a few places on the last one that is good.
const ROOM: u64 = load::LONG_CLIENTS + 6;
/// How much of the script is printed beside an error.
const RECENT: usize = 60;
const POLICIES: [&str; 5] = ["round_robin", "random", "least_connections", "power_of_two", "peak_ewma"];

fn main() {
    if let Ok(role) = std::env::var(ROLE) {
        return serve(&role);
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("TIDEGATE_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let seconds = number("TIDEGATE_CHAOS_SECONDS").unwrap_or(120);
    println!("chaos: seed {seed} (TIDEGATE_CHAOS_SEED={seed} repeats the script), {seconds} s");
    for other in 0..20 {
        script::keeps_its_promise(seed.wrapping_add(other), 600);
    }
    run(seed, seconds);
}

fn config(servers: &[Server], balance: &str) -> Config {
    let entry = |server: &Server| format!("{{ address = \"{}\", name = \"{}\" }}", server.address, server.name);
    let backends = servers.iter().map(entry).collect::<Vec<_>>().join(", ");
    let budget = format!("budget = \"{BUDGET}s\"");
    Config::with_pool(&format!("backends = [{backends}]"))
        .log("access = \"$DIR/sessions.log\"\nformat = \"json\"")
        .pool(&format!("balance = \"{balance}\""))
        // Nine of ten may be out of order. In panic mode they would be used all the same, and no verdict can save a
        // session from a backend that was believed dead when it was chosen: a stopped one would hold it until the
        // client gives up.
        .pool("panic_threshold = \"0%\"")
        .pool("slow_start = \"2s\"\nreplay = \"16KiB\"\non_down = \"reset\"")
        .connect("timeout = \"500ms\"\nattempts = 16\nhedge_after = \"100ms\"")
        .connect(&budget)
        .health(&format!(
            "probe = \"exchange\"\nexchange = {{ send = \"{HEALTH}\\n\", expect_prefix = \"{HEALTHY}\" }}\n\
             interval = \"250ms\"\nfast_interval = \"100ms\"\ntimeout = \"{}ms\"\nrise = 2\nfall = 2",
            PROBE_TIMEOUT.as_millis()
        ))
        // Fewer places than there are clients: when one backend alone is good, some of them wait in the queue. Nobody
        // ever finds that all are lost, or it would be held.
        .pool(&format!("backend_max_connections = {ROOM}"))
        .more("[pools.web.queue]\nmax_wait = \"2s\"\n[pools.web.hold]\nmax_wait = \"2s\"")
        // The times are short, so that the guards of the script are in use again before they are needed.
        .ejection("base_time = \"1s\"\nmax_time = \"2s\"\nmax_ejected = \"90%\"")
}

fn run(seed: u64, seconds: u64) {
    let mut servers: Vec<Server> = (0..BACKENDS).map(|index| Server::start(&format!("b{index}"))).collect();
    let untouched = Server::start("witness");
    let balance = POLICIES[seed as usize % POLICIES.len()];
    println!("balance: {balance}");
    let mut tidegate = Tidegate::start(config(&servers, balance));
    let up = |tidegate: &Tidegate| tidegate.metrics().sum("tidegate_backend_up", &[]) as usize;
    eventually_eq("all backends are up", &BACKENDS, || up(&tidegate));
    let fds = tidegate.fds().len();

    let (stop_load, stop_watch) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut script = Script::new(seed);
    let (saw, stalls, history) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| Stalls::watch(&untouched, &stop_watch));
        let load = scope.spawn(|| load::run(tidegate.addr().tcp(), seed, &stop_load));
        let history = torment(&mut script, &mut servers, seconds);
        stop_load.store(true, Ordering::Relaxed);
        let saw = load.join().unwrap();
        stop_watch.store(true, Ordering::Relaxed);
        (saw, watch.join().unwrap(), history)
    });
    for step in script.end() {
        act(step, &mut servers);
    }
    assert!(tidegate.lives(), "the process has ended");
    tidegate.until_idle();
    eventually("its fds are as many as at the start", || tidegate.fds().len() <= fds);
    eventually_eq("all backends are up again", &BACKENDS, || up(&tidegate));
    println!("{}", summary::of(&tidegate, &saw, &stalls));
    println!("fds: {fds} at the start, {} at the end", tidegate.fds().len());
    judge(&saw, &stalls, &history, &summary::sessions(&tidegate));
    println!("chaos: no client noticed");
}

/// What was done, and when.
type History = Vec<(Instant, String)>;

/// Plays the script. A second that takes longer on a slow machine is longer, and the next begins after it: what the
/// script promises in seconds holds in longer ones too.
fn torment(script: &mut Script, servers: &mut [Server], seconds: u64) -> History {
    let mut history = Vec::new();
    let begun = Instant::now();
    for number in 1..=seconds {
        let second = Instant::now();
        for (at, step) in script.second() {
            kit::wait::pace(at.saturating_sub(second.elapsed()));
            act(step, servers);
            history.push((Instant::now(), format!("{step}")));
        }
        kit::wait::pace(Duration::from_secs(1).saturating_sub(second.elapsed()));
        if number % 10 == 0 {
            println!("{:4} s: {}", begun.elapsed().as_secs(), script.states());
        }
    }
    history
}

fn act(step: Step, servers: &mut [Server]) {
    match step {
        Step::Fault(index, fault) => servers[index].suffer(fault),
        Step::Recover(index, fault) => servers[index].recover(fault),
    }
}

/// Errors and latencies, less what this machine is to blame for.
fn judge(saw: &Seen, stalls: &Stalls, history: &History, sessions: &str) {
    // A verdict that a stall has brought about may be that old and still shut out a good backend.
    let old = Duration::from_secs(BUDGET);
    let excused = |failure: &&Failure| {
        let Exchange { from, until } = failure.exchange;
        stalls.any_of(PROBE_TIMEOUT, Exchange { from: from.checked_sub(old).unwrap_or(from), until })
    };
    let (excused, errors): (Vec<_>, Vec<_>) = saw.failures.iter().partition(excused);
    if !excused.is_empty() {
        println!("{} errors are forgiven: this machine stood still for as long as a probe may take", excused.len());
    }
    for failure in errors.iter().take(10) {
        let client = failure.client.map_or_else(|| "no connection".to_owned(), |client| format!("\"{client}\""));
        // Its port may have been another client's before.
        let lines: Vec<_> = sessions.lines().filter(|line| line.contains(&client)).collect();
        println!("error: {failure}\n  access log: {}\n{}", lines.join("\n  "), before(failure.exchange, history));
    }
    assert!(errors.is_empty(), "{} errors of clients while a backend was good", errors.len());
    let late: Vec<_> = saw.first.iter().filter(|exchange| stalls.took(**exchange) >= BOUND).collect();
    for exchange in late.iter().take(10) {
        println!("late: {:?}\n{}", stalls.took(**exchange), before(**exchange, history));
    }
    assert!(late.is_empty(), "{} answers took {BOUND:?} or longer", late.len());
}

/// What was done up to the end of an exchange, with the time before that.
fn before(exchange: Exchange, history: &History) -> String {
    let mut lines = VecDeque::new();
    for (at, what) in history.iter().take_while(|(at, _)| *at < exchange.until) {
        lines.push_back(format!("  {:7.3} s before: {what}", (exchange.until - *at).as_secs_f64()));
        if lines.len() > RECENT {
            lines.pop_front();
        }
    }
    Vec::from(lines).join("\n")
}
