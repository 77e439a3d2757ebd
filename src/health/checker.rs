//! The checker: one task that probes whatever the routing table holds.
//!
//! Owns the loop over what can happen (a probe ends, a turn comes, the table changes) and what is told of it. When
//! is `schedule`, how is `probe`, the verdict is the backend's own. May panic and be run again: nothing that
//! matters lives here.

use super::MAX_PROBES;
use super::limit::Limit;
use super::probe::{ProbeError, probe};
use super::schedule::Schedule;
use crate::clock::{Now, unix_ms};
use crate::config;
use crate::metrics::CheckResult;
use crate::name::{BackendAddr, BackendId};
use crate::pool::health::Outcome;
use crate::pool::{Backend, Health, Pool};
use crate::rng::Rng;
use crate::table::RoutingTable;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Changes of one backend that are logged at once, and then one in each period.
const CHANGE_LINES: (u32, Duration) = (5, Duration::from_secs(30));
/// The same for probes that could not be made, of all backends together.
const FROZEN_LINES: (u32, Duration) = (1, Duration::from_secs(10));
/// Backends named in the line about the first round; the rest is only counted.
const NAMED_DOWN: usize = 10;

/// What the checker works on and whom it tells; cloned for each time that it is run.
#[derive(Clone)]
pub struct Inputs {
    pub table: Arc<ArcSwap<RoutingTable>>,
    /// Notified (`notify_one`) after each swap of the table.
    pub table_changed: Arc<Notify>,
    /// Becomes true once every backend of the table has been asked.
    pub first_round: watch::Sender<bool>,
}

/// Probes without end. Cancel it by dropping it, which drops the probes under way too.
pub async fn run(inputs: Inputs, rng: Rng) {
    #[cfg(debug_assertions)]
    hook::panic_once();
    Checker::new(inputs, rng).run(probe).await;
}

pub(super) struct Checker {
    inputs: Inputs,
    rng: Rng,
    schedule: Schedule,
    targets: HashMap<BackendId, Target>,
    frozen: Limit,
}

struct Target {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
    changes: Limit,
}

type Ended = (BackendId, Result<(), ProbeError>);

impl Checker {
    pub fn new(inputs: Inputs, rng: Rng) -> Self {
        let frozen = Limit::new(FROZEN_LINES.0, FROZEN_LINES.1);
        Self { inputs, rng, schedule: Schedule::default(), targets: HashMap::new(), frozen }
    }

    pub async fn run<P, F>(mut self, probe: P)
    where
        P: Fn(BackendAddr, Duration) -> F,
        F: Future<Output = Result<(), ProbeError>> + Send + 'static,
    {
        let mut probes = JoinSet::new();
        self.follow_table();
        loop {
            self.start_what_is_due(&mut probes, &probe);
            self.announce_first_round();
            let turn = if probes.len() < MAX_PROBES { self.schedule.next_due() } else { None };
            tokio::select! {
                Some(ended) = probes.join_next() => match ended {
                    Ok(ended) => self.take_in(ended),
                    // Not to be survived here: whoever runs the checker runs it again.
                    Err(error) => if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    },
                },
                () = wait_for(turn) => {}
                () = self.inputs.table_changed.notified() => self.follow_table(),
            }
        }
    }

    /// Makes the backends of the current table the targets; what has gone is forgotten, with its probe.
    fn follow_table(&mut self) {
        let table = self.inputs.table.load_full();
        let mut before = std::mem::take(&mut self.targets);
        let mut wanted = Vec::new();
        for pool in &table.pools {
            for backend in &pool.view().backends {
                if pool.health.probe == config::Probe::None {
                    count_as_up(backend);
                    continue;
                }
                let changes = match before.remove(&backend.id) {
                    Some(target) => target.changes,
                    None => Limit::new(CHANGE_LINES.0, CHANGE_LINES.1),
                };
                let target = Target { pool: Arc::clone(pool), backend: Arc::clone(backend), changes };
                self.targets.insert(backend.id, target);
                wanted.push(backend.id);
            }
        }
        self.schedule.update(wanted, Instant::now());
    }

    fn start_what_is_due<P, F>(&mut self, probes: &mut JoinSet<Ended>, probe: &P)
    where
        P: Fn(BackendAddr, Duration) -> F,
        F: Future<Output = Result<(), ProbeError>> + Send + 'static,
    {
        let now = Instant::now();
        while probes.len() < MAX_PROBES
            && let Some(id) = self.schedule.start(now)
        {
            let Some(target) = self.targets.get(&id) else { continue };
            let asking = probe(target.backend.address.clone(), target.pool.health.timeout);
            probes.spawn(async move { (id, asking.await) });
        }
    }

    fn take_in(&mut self, (id, result): Ended) {
        let Some(target) = self.targets.get_mut(&id) else { return };
        let (pool, backend, now) = (&target.pool, &target.backend, Instant::now());
        let outcome = match &result {
            Ok(()) => {
                backend.metrics.health_check(CheckResult::Success);
                Outcome::Success
            }
            Err(error) => {
                backend.metrics.health_check(error.check_result());
                error.outcome()
            }
        };
        match (&result, outcome) {
            (Err(reason), Outcome::Failure) => backend.set_last_error(&reason.to_string(), unix_ms()),
            (Err(reason), Outcome::Frozen) => {
                if let Some(unsaid) = self.frozen.event(now) {
                    let (pool, backend) = (&pool.name, &*backend.label);
                    tracing::warn!(%pool, backend, %reason, unsaid, "can't probe; the backend stays what it is");
                }
            }
            _ => {}
        }
        let changed = pool.observe(backend, outcome, Now::at(now.into_std()));
        let said = if changed.is_some() { target.changes.event(now) } else { target.changes.overdue(now) };
        if let Some(unsaid) = said {
            tell(pool, backend, unsaid);
        }
        let delay = backend.probe_delay(&pool.health, &mut self.rng);
        self.schedule.finish(id, delay, now, &mut self.rng);
    }

    fn announce_first_round(&self) {
        if *self.inputs.first_round.borrow() || !self.schedule.first_round_is_over() {
            return;
        }
        self.inputs.first_round.send_replace(true);
        if self.targets.is_empty() {
            return;
        }
        let down: Vec<&Target> = self.targets.values().filter(|target| !target.backend.is_up()).collect();
        let up = self.targets.len() - down.len();
        if down.is_empty() {
            tracing::info!(up, "every backend has been probed");
            return;
        }
        let mut names: Vec<String> =
            down.iter().map(|target| format!("{}/{}", target.pool.name, target.backend.label)).collect();
        names.sort_unstable();
        names.truncate(NAMED_DOWN);
        tracing::warn!(up, down = down.len(), names = names.join(" "), "every backend has been probed; some are down");
    }
}

/// The one line about a change, or about the last of those that came too fast to tell each.
fn tell(pool: &Pool, backend: &Backend, unsaid: u64) {
    let (name, label) = (&pool.name, &*backend.label);
    match backend.health().0 {
        Health::Up => tracing::info!(pool = %name, backend = label, unsaid, "backend is up"),
        Health::Down => {
            let reason = backend.last_error().map_or_else(String::new, |error| error.text);
            tracing::warn!(pool = %name, backend = label, reason, unsaid, "backend is down");
        }
    }
}

/// A backend that nobody probes is up, also if its pool was probed before this table.
fn count_as_up(backend: &Backend) {
    if !backend.is_up() {
        backend.set_health(Health::Up, unix_ms());
    }
}

async fn wait_for(turn: Option<Instant>) {
    match turn {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// A fault that tests ask for; not there in a release build.
#[cfg(debug_assertions)]
mod hook {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    /// Panics the first time it is called in a process with `TIDEGATE_TEST_PANIC=checker`.
    pub fn panic_once() {
        static DONE: AtomicBool = AtomicBool::new(false);
        let asked = std::env::var_os("TIDEGATE_TEST_PANIC").is_some_and(|wanted| wanted == "checker");
        assert!(!asked || DONE.swap(true, Relaxed), "a test asked for a panic in the checker");
    }
}
