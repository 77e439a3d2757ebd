//! Shedding: a share of new connections is refused while a latency stays above its target, and no longer.

use crate::kit::wait::pace;
use crate::kit::{Backend, Config, Silent, Tidegate, eventually};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A backend whose first byte takes 200 ms for as long as it is told to.
fn slow() -> (Backend, Arc<AtomicBool>) {
    let is_slow = Arc::new(AtomicBool::new(true));
    let slow = is_slow.clone();
    let backend = Backend::new(move |mut conn| {
        let mut buffer = [0; 1];
        while conn.read(&mut buffer).is_ok_and(|count| count > 0) {
            if slow.load(Ordering::SeqCst) {
                pace(Duration::from_millis(200));
            }
            if conn.try_send(buffer).is_err() {
                return;
            }
        }
    });
    (backend, is_slow)
}

/// One client's exchange; how it ends is the pool's business.
fn ask(tidegate: &Tidegate) {
    let mut client = tidegate.connect();
    if client.try_send("x").is_ok() {
        let mut buffer = [0; 1];
        // A refusal is an answer, too.
        drop(client.read(&mut buffer));
    }
}

fn probability(tidegate: &Tidegate) -> f64 {
    tidegate.pool_status()["shed"]["probability"].as_f64().unwrap()
}

fn shed(tidegate: &Tidegate, dry_run: &str) -> f64 {
    tidegate.metrics().sum("tidegate_pool_shed_total", &[("pool", "web"), ("dry_run", dry_run)])
}

fn config(backend: &Backend, more: &str) -> Config {
    Config::over([backend]).more(&format!("[pools.web.shed]\nfirst_byte = \"20ms\"\nwindow = \"100ms\"\n{more}"))
}

/// Ends the load, whatever happens.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn under_load(tidegate: &Tidegate, what: &str, check: impl FnMut() -> bool) {
    under_load_of(ask, tidegate, what, check);
}

fn under_load_of(ask: impl Fn(&Tidegate) + Sync, tidegate: &Tidegate, what: &str, mut check: impl FnMut() -> bool) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    ask(tidegate);
                    pace(Duration::from_millis(5));
                }
            });
        }
        // Also when it isn't so in time.
        let _stop = Stop(&done);
        eventually(what, &mut check);
    });
}

#[test]
fn a_latency_above_its_target_sheds_until_it_falls() {
    let (backend, is_slow) = slow();
    let tidegate = Tidegate::start(config(&backend, ""));
    under_load(&tidegate, "a share is refused", || tidegate.closed("shed") > 20 && probability(&tidegate) > 0.0);
    assert!(shed(&tidegate, "false") > 20.0);
    assert!(shed(&tidegate, "true").abs() < f64::EPSILON);
    let shown = tidegate.metrics();
    assert!(shown.has("tidegate_pool_shed_probability", &[("pool", "web")]));
    is_slow.store(false, Ordering::SeqCst);
    under_load(&tidegate, "it ends", || probability(&tidegate) <= 0.0);
}

#[test]
fn a_dry_run_counts_and_refuses_nobody() {
    let (backend, _) = slow();
    let tidegate = Tidegate::start(config(&backend, "dry_run = true"));
    under_load(&tidegate, "some would have been refused", || shed(&tidegate, "true") > 20.0);
    assert_eq!((tidegate.closed("shed"), shed(&tidegate, "false") as u64), (0, 0));
}

/// One client that waits for its answer no longer than this.
fn ask_in_vain(tidegate: &Tidegate) {
    let mut client = tidegate.connect();
    if client.try_send("x").is_ok() {
        client.read_timeout(Duration::from_millis(60));
        drop(client.read(&mut [0]));
    }
    client.reset();
}

#[test]
fn a_backend_that_never_answers_is_shed_as_a_slow_one_is() {
    let stalled = Backend::new(|mut conn| while conn.read(&mut [0]).is_ok_and(|count| count > 0) {});
    let tidegate = Tidegate::start(config(&stalled, ""));
    let rises = || tidegate.closed("shed") > 20 && probability(&tidegate) > 0.5;
    under_load_of(ask_in_vain, &tidegate, "a share is refused", rises);
}

#[test]
fn connects_that_time_out_are_shed_as_slow_ones_are() {
    let silent = Silent::new();
    let config = Config::over([&silent.addr])
        .connect("timeout = \"60ms\"\nattempts = 1")
        .ejection("consecutive_failures = \"off\"")
        .more("[pools.web.shed]\nconnect_time = \"20ms\"\nwindow = \"100ms\"");
    let tidegate = Tidegate::start(config);
    let rises = || tidegate.closed("shed") > 20 && probability(&tidegate) > 0.5;
    under_load(&tidegate, "a share is refused", rises);
}
