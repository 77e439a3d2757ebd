//! The checker: one task that probes whatever the routing table holds.
//!
//! Owns the loop over what can happen (a probe ends, a turn comes, the table changes). When is `schedule`, how is
//! `probe`, what is said of it is `told`, the verdict is the backend's own. May panic and be run again: nothing that
//! matters lives here.

use super::MAX_PROBES;
use super::agent::Statement;
use super::limit::Limit;
use super::probe::{Answer, ProbeError, Question, Way, ask};
use super::schedule::{Key, Kind, Schedule};
use super::told::{self, Told};
use crate::clock::{Now, unix_ms};
use crate::config;
use crate::metrics::CheckResult;
use crate::name::BackendId;
use crate::pool::health::{AgentAdmin, AgentReport, Outcome};
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

/// Probes that could not be made, of all backends together, that are logged at once, and then one in each period.
const FROZEN_LINES: (u32, Duration) = (1, Duration::from_secs(10));
/// The same for words of agents that aren't known.
const UNKNOWN_LINES: (u32, Duration) = (1, Duration::from_secs(10));

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
    Checker::new(inputs, rng).run(ask).await;
}

pub(super) struct Checker {
    inputs: Inputs,
    rng: Rng,
    schedule: Schedule,
    targets: HashMap<BackendId, Target>,
    frozen: Limit,
    unknown: Limit,
}

struct Target {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
    /// What it is asked, if anything.
    probe: Option<Question>,
    agent: Option<Question>,
    told: Told,
}

impl Target {
    fn question(&self, kind: Kind) -> Option<(Question, Way)> {
        let (health, own) = (&self.pool.health, &self.backend.address);
        let (question, to) = match kind {
            Kind::Probe => (self.probe.clone()?, health.target(own)),
            Kind::Agent => (self.agent.clone()?, health.agent.as_ref()?.target(own)),
        };
        Some((question, Way { to, origin: Arc::clone(&self.pool.origin_of_probes) }))
    }
}

/// What the backends of a pool are asked; after a PROXY header, where their clients have one. A port or an address for
/// probes alone is none of these.
fn question(pool: &Pool) -> Option<Question> {
    let question = Question::of(&pool.health)?;
    let elsewhere = pool.health.port.is_some() || pool.health.address.is_some();
    let send = pool.send_proxy.as_ref().filter(|_| !elsewhere);
    Some(match send {
        Some(send) => question.introduced(send),
        None => question,
    })
}

type Ended = (Key, Result<Answer, ProbeError>);

impl Checker {
    pub fn new(inputs: Inputs, rng: Rng) -> Self {
        let frozen = Limit::new(FROZEN_LINES.0, FROZEN_LINES.1);
        let unknown = Limit::new(UNKNOWN_LINES.0, UNKNOWN_LINES.1);
        Self { inputs, rng, schedule: Schedule::default(), targets: HashMap::new(), frozen, unknown }
    }

    pub async fn run<P, F>(mut self, probe: P)
    where
        P: Fn(Question, Way, Duration) -> F,
        F: Future<Output = Result<Answer, ProbeError>> + Send + 'static,
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
        let (mut wanted, mut known, mut changed): (Vec<Key>, Vec<_>, Vec<Key>) = Default::default();
        let is_first_round = !*self.inputs.first_round.borrow();
        for pool in &table.pools {
            let probe = question(pool);
            let agent = pool.health.agent.as_ref().map(|agent| Question::Agent(Arc::clone(agent)));
            for backend in &pool.view().backends {
                let before = before.remove(&backend.id);
                if probe.is_none() {
                    count_as_up(backend);
                }
                if agent.is_none() && before.as_ref().is_some_and(|target| target.agent.is_some()) {
                    pool.set_agent(backend, &AgentReport::of_nobody(), Now::read());
                }
                let kinds = [probe.as_ref().map(|_| Kind::Probe), agent.as_ref().map(|_| Kind::Agent)];
                let keys = kinds.into_iter().flatten().map(|kind| (backend.id, kind)).filter(|_| !backend.is_unasked());
                if is_first_round && backend.is_believed() {
                    // The process before this one has told.
                    known.extend(keys.clone().map(|key| (key, pool.health.interval)));
                }
                wanted.extend(keys.clone());
                if before.as_ref().is_some_and(|target| target.pool.health != pool.health) {
                    changed.extend(keys);
                }
                let told = before.map_or_else(Told::default, |target| target.told);
                let (pool, backend) = (Arc::clone(pool), Arc::clone(backend));
                let target = Target { pool, probe: probe.clone(), agent: agent.clone(), told, backend };
                self.targets.insert(target.backend.id, target);
            }
        }
        let now = Instant::now();
        self.schedule.update(wanted, now);
        for (key, interval) in known {
            self.schedule.count_as_asked(key, interval, now, &mut self.rng);
        }
        for key in changed {
            if let Some(target) = self.targets.get(&key.0) {
                self.schedule.hasten(key, target.delay(key.1, &mut self.rng), now, &mut self.rng);
            }
        }
    }

    fn start_what_is_due<P, F>(&mut self, probes: &mut JoinSet<Ended>, probe: &P)
    where
        P: Fn(Question, Way, Duration) -> F,
        F: Future<Output = Result<Answer, ProbeError>> + Send + 'static,
    {
        let now = Instant::now();
        while probes.len() < MAX_PROBES
            && let Some(key) = self.schedule.start(now)
        {
            let Some(target) = self.targets.get(&key.0) else { continue };
            let Some((question, way)) = target.question(key.1) else { continue };
            let asking = probe(question, way, target.pool.health.timeout);
            probes.spawn(async move { (key, asking.await) });
        }
    }

    fn take_in(&mut self, (key, result): Ended) {
        let now = Instant::now();
        let Some(target) = self.targets.get_mut(&key.0) else { return };
        if let Err(reason) = &result
            && reason.outcome() == Outcome::Frozen
            && let Some(unsaid) = self.frozen.event(now)
        {
            let (pool, backend) = (&target.pool.name, &*target.backend.label);
            tracing::warn!(%pool, backend, %reason, unsaid, "can't probe; the backend stays what it is");
        }
        match key.1 {
            Kind::Probe => target.take_in_probe(&result, now),
            Kind::Agent => target.take_in_agent(&result, &mut self.unknown, now),
        }
        let delay = target.delay(key.1, &mut self.rng);
        self.schedule.finish(key, delay, now, &mut self.rng);
    }

    fn announce_first_round(&self) {
        if *self.inputs.first_round.borrow() || !self.schedule.first_round_is_over() {
            return;
        }
        // Large pools have not been looked at yet, and clients come next.
        for pool in &self.inputs.table.load().pools {
            pool.review(Now::read().millis);
        }
        self.inputs.first_round.send_replace(true);
        let probed = self.targets.values().filter(|target| target.probe.is_some());
        told::first_round(probed.map(|target| (&*target.pool, &*target.backend)));
    }
}

impl Target {
    /// The time from one turn to the next.
    fn delay(&self, kind: Kind, rng: &mut Rng) -> Duration {
        let health = &self.pool.health;
        match (kind, &health.agent) {
            (Kind::Agent, Some(agent)) => rng.jitter(agent.interval, health.jitter.ratio()),
            _ => self.backend.probe_delay(health, rng),
        }
    }

    fn take_in_probe(&mut self, result: &Result<Answer, ProbeError>, now: Instant) {
        let (pool, backend) = (&self.pool, &self.backend);
        let outcome = match result {
            Ok(answer) => {
                backend.metrics.health_check(CheckResult::Success);
                if let (Answer::GoodUntil(end), config::Probe::Tls(spec)) = (answer, &pool.health.probe) {
                    self.told.certificate(pool, backend, *end, spec.expiry_warning, unix_ms() / 1_000, now);
                }
                Outcome::Success
            }
            Err(error) => {
                backend.metrics.health_check(error.check_result());
                error.outcome()
            }
        };
        if let (Err(reason), Outcome::Failure) = (result, outcome) {
            backend.set_last_error(&reason.to_string(), unix_ms());
        }
        if outcome != Outcome::Frozen {
            backend.set_known();
        }
        let changed = pool.observe(backend, outcome, Now::at(now.into_std())).is_some();
        self.told.change(pool, backend, changed, now);
    }

    /// An agent that doesn't answer takes nothing back.
    fn take_in_agent(&mut self, result: &Result<Answer, ProbeError>, unknown: &mut Limit, now: Instant) {
        let (pool, backend) = (&self.pool, &self.backend);
        match result {
            Ok(Answer::Agent(statement)) => {
                if let Some(word) = &statement.unknown
                    && let Some(unsaid) = unknown.event(now)
                {
                    let (pool, backend) = (&pool.name, &*backend.label);
                    tracing::warn!(%pool, backend, word, unsaid, "the agent says a word that is not known");
                }
                if self.told.agent(pool, backend, Ok(statement), now)
                    && let Some(why) = taken_out(statement)
                {
                    backend.set_last_error(&why, unix_ms());
                }
                pool.set_agent(backend, &statement.report, Now::at(now.into_std()));
            }
            Err(error) if error.outcome() != Outcome::Frozen => {
                self.told.agent(pool, backend, Err(error), now);
            }
            _ => {}
        }
    }
}

/// Why a backend gets nothing, if its agent says so.
fn taken_out(Statement { report, reason, .. }: &Statement) -> Option<String> {
    let word = match (report.state, report.admin, report.weight) {
        (Some(Health::Down), ..) => Health::Down.as_str(),
        (_, Some(admin @ (AgentAdmin::Drain | AgentAdmin::Maint)), _) => admin.as_str(),
        (_, _, Some(0)) => "0%",
        _ => return None,
    };
    let colon = if reason.is_empty() { "" } else { ": " };
    Some(format!("the agent says {word}{colon}{reason}"))
}

/// A backend that nobody probes is up, also if its pool was probed before this table.
fn count_as_up(backend: &Backend) {
    if backend.health().0 == Health::Down {
        backend.set_health(Health::Up, unix_ms());
    }
    backend.set_known();
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
