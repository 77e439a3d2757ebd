//! A soak of the maxima and the queue before them: backends that count their connections themselves, clients of every
//! kind, and backends that die and come back.

use crate::kit::conn::Rest;
use crate::kit::ledger::{Ledger, backend};
use crate::kit::{Backend, Config, End, Tidegate, eventually, wait};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const BACKENDS: usize = 3;
const ROOM: usize = 3;
const CLIENTS: usize = 40;
const SOAK: Duration = Duration::from_secs(12);
/// So many looks in a row at a queue that isn't served although places are free are no chance.
const STUCK: usize = 30;

/// What the clients have seen, in all.
#[derive(Default)]
struct Seen {
    came: AtomicUsize,
    /// By the port of each client that stayed: how often it was served and how often reset.
    stayed: Mutex<HashMap<u16, [usize; 2]>>,
}

/// One client: some stay, some shut down their side at once, some hang up, some reset.
fn visit(tidegate: &Tidegate, number: usize, seen: &Seen, dice: &mut fastrand::Rng) {
    let mut client = tidegate.connect();
    seen.came.fetch_add(1, Ordering::Relaxed);
    let line = format!("client {number} {}\n", dice.u32(..));
    let sent = client.try_send(&line).is_ok();
    let kind = dice.u8(..6);
    if kind < 2 {
        wait::pace(Duration::from_millis(dice.u64(..25)));
        return if kind == 0 { client.reset() } else { drop(client) };
    }
    let early = kind < 4;
    let port = client.local().port();
    // The kernel tells of a reset once, and says "end of file" from then on.
    let reset = || Rest { bytes: Vec::new(), end: End::Rst };
    let begun = if sent && !early { client.line_or_rest() } else { Ok(String::new()) };
    let (answer, end) = match begun {
        Ok(answer) if sent => {
            let _ = client.try_finish();
            (answer, client.rest())
        }
        Ok(answer) => (answer, reset()),
        Err(cut) => (String::new(), cut),
    };
    let answer = answer + &end.text();
    assert!(answer.is_empty() || answer == line, "{answer:?} for {line:?}");
    let served = end.end == End::Fin;
    assert!(!served || answer == line, "a FIN without an answer");
    seen.stayed.lock().unwrap().entry(port).or_default()[usize::from(!served)] += 1;
}

/// Lets one backend after the other die and come back, until it is told to stop; all of them live at the end.
fn torment(backends: &mut [Option<Backend>], ledgers: &[Arc<Ledger>], stop: &AtomicBool) {
    let mut dice = fastrand::Rng::with_seed(28);
    while !stop.load(Ordering::Relaxed) {
        let index = dice.usize(..BACKENDS);
        let address = backends[index].take().unwrap().die();
        if dice.bool() {
            ledgers[index].condemn();
        }
        wait::pace(Duration::from_millis(dice.u64(100..500)));
        backends[index] = Some(backend(Some(&address), &ledgers[index]));
        wait::pace(Duration::from_millis(dice.u64(100..700)));
    }
}

/// Waits until nobody waits, and sees to it that meanwhile no place is left free for long.
fn drain(tidegate: &Tidegate) {
    let (mut still, mut before) = (0, None);
    eventually("nobody waits", || {
        let metrics = tidegate.metrics();
        let of = |name: &str| metrics.sum(name, &[]) as u64;
        let waiting = of("tidegate_pool_queue_waiting");
        let now = (waiting, of("tidegate_pool_queue_outcomes_total"), of("tidegate_backend_connections_active"));
        still = if waiting > 0 && now.2 == 0 && before == Some(now) { still + 1 } else { 0 };
        assert!(still < STUCK, "{now:?}: so many wait, although every place is free");
        before = Some(now);
        waiting == 0
    });
}

#[test]
fn f28_no_backend_ever_has_more_than_its_maximum_and_nobody_is_forgotten() {
    let ledgers: Vec<Arc<Ledger>> = (0..BACKENDS).map(|_| Arc::default()).collect();
    let mut backends: Vec<Option<Backend>> = ledgers.iter().map(|ledger| Some(backend(None, ledger))).collect();
    let config = Config::over(backends.iter().flatten())
        .pool(&format!("backend_max_connections = {ROOM}\nbalance = \"least_connections\"\nslow_start = \"1s\""))
        .ejection("consecutive_failures = 2\nbase_time = \"200ms\"\nmax_time = \"500ms\"")
        .more("[pools.web.queue]\nmax_wait = \"2s\"")
        .logged();
    let tidegate = Tidegate::start(config);
    let fds = tidegate.fds().len();
    let (seen, stop, ends) = (Seen::default(), AtomicBool::new(false), Instant::now() + SOAK);
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| torment(&mut backends, &ledgers, &stop));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (tidegate, seen) = (&tidegate, &seen);
                scope.spawn(move || {
                    let mut dice = fastrand::Rng::with_seed(number as u64);
                    while Instant::now() < ends {
                        visit(tidegate, number, seen, &mut dice);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = clients.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        stop.store(true, Ordering::Relaxed);
        storm.join().unwrap();
        for client in ended {
            client.unwrap();
        }
    });
    for (ledger, name) in ledgers.iter().zip(&backends) {
        let most = ledger.most();
        assert_eq!(most, ROOM, "{} had so many at once, and may have {ROOM}", name.as_ref().unwrap());
    }
    // A crowd before backends that all live, and then nobody more.
    let mut dice = fastrand::Rng::with_seed(800);
    eventually("all are used again", || {
        // Who was set aside comes back by traffic.
        visit(&tidegate, CLIENTS, &seen, &mut dice);
        tidegate.pool_status()["available"] == BACKENDS
    });
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (tidegate, seen) = (&tidegate, &seen);
            scope.spawn(move || visit(tidegate, number, seen, &mut fastrand::Rng::with_seed(900 + number as u64)));
        }
        drain(&tidegate);
    });
    tidegate.until_idle();
    assert_eq!(tidegate.count("tidegate_pool_queue_waiting"), 0);
    eventually("its fds are as many as at the start", || tidegate.fds().len() <= fds);
    for ledger in &ledgers {
        eventually("the backends have no connection either", || ledger.open() == 0);
    }
    check_reasons(&tidegate, &seen);
}

/// Every client is in the log, and each that stayed with an end that agrees with what it has seen.
fn check_reasons(tidegate: &Tidegate, seen: &Seen) {
    let records = tidegate.records(seen.came.load(Ordering::Relaxed));
    let mut reasons: HashMap<u16, Vec<String>> = HashMap::new();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for record in &records {
        let client: std::net::SocketAddr = record["client"].as_str().unwrap().parse().unwrap();
        let reason = record["reason"].as_str().unwrap().to_owned();
        *counts.entry(format!("{reason} in {}", record["phase"])).or_default() += 1;
        reasons.entry(client.port()).or_default().push(reason);
    }
    println!("{} clients: {counts:?}", records.len());
    for (port, [served, reset]) in &*seen.stayed.lock().unwrap() {
        let of = &reasons[port];
        let complete = of.iter().filter(|reason| *reason == "complete").count();
        let told = of.iter().filter(|reason| *reason != "complete" && *reason != "client_reset").count();
        assert!(complete >= *served && told >= *reset, "{port}: {served} served, {reset} reset, but {of:?}");
    }
    let outcomes = tidegate.count("tidegate_pool_queue_outcomes_total");
    assert!(outcomes > 100, "only {outcomes} have waited");
}
