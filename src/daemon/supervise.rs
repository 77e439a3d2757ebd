//! The control tasks (the health checker, the keeper of the pools, those that look after memory, the one that tells of
//! refusals, and the one that feeds the watchdog): started, started again after a panic, stopped.
//!
//! Owns their lives, not their work. What they know that must last is kept elsewhere (pools, metrics), so that starting
//! one again is all there is to do; how often that happened is a metric.

use super::accept_queues::AcceptQueues;
use super::look::{self, Looked};
use super::sessions::Sessions;
use super::start::Shared;
use super::{headroom, memory, refusals, status_line, watchdog};
use crate::admin::command::Commands;
use crate::admin::{self, Phase};
use crate::backoff::Backoff;
use crate::drain::spawn;
use crate::health;
use crate::metrics::Metrics;
use crate::rng::Rng;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// The shortest and longest time before a control task that died is started again.
const RESTART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// The control tasks while they run.
pub struct Control {
    checker: JoinHandle<()>,
    keeper: JoinHandle<()>,
    memory: JoinHandle<()>,
    headroom: JoinHandle<()>,
    refusals: JoinHandle<()>,
    /// Those that act or speak for the service as a whole.
    voices: Vec<JoinHandle<()>>,
    first_round: watch::Receiver<bool>,
}

/// What those are made of that act or speak for the service as a whole.
pub struct Voice {
    pub phase: watch::Receiver<Phase>,
    pub commands: Commands,
    /// The config file, as it was read.
    pub file: Option<Looked>,
}

impl Control {
    /// All that looks after this process alone.
    pub fn start(shared: &Shared) -> Self {
        let (done, first_round) = watch::channel(false);
        let (table, table_changed) = (Arc::clone(&shared.table), Arc::clone(&shared.table_changed));
        let inputs = health::Inputs { table, table_changed, first_round: done };
        let checker = keep_running("checker", Arc::clone(&shared.metrics), move || {
            health::run(inputs.clone(), Rng::from_entropy())
        });
        let table = Arc::clone(&shared.table);
        let asked = first_round.clone();
        let keeper = keep_running("keeper", Arc::clone(&shared.metrics), move || {
            health::keep(Arc::clone(&table), asked.clone())
        });
        let process = Arc::clone(&shared.process);
        let memory =
            keep_running("memory", Arc::clone(&shared.metrics), move || memory::keep_small(Arc::clone(&process)));
        let (config, pressure) = (Arc::clone(&shared.config), shared.process.pressure.clone());
        let metrics = Arc::clone(&shared.metrics);
        let headroom = keep_running("headroom", Arc::clone(&shared.metrics), move || {
            headroom::watch(Arc::clone(&config), pressure.clone(), Arc::clone(&metrics))
        });
        let table = Arc::clone(&shared.table);
        let refusals =
            keep_running("refusals", Arc::clone(&shared.metrics), move || refusals::tell(Arc::clone(&table)));
        let (checker, keeper, memory) = (spawn(checker), spawn(keeper), spawn(memory));
        let (headroom, refusals) = (spawn(headroom), spawn(refusals));
        Self { checker, keeper, memory, headroom, refusals, voices: Vec::new(), first_round }
    }

    /// All that speaks for the service: the look at the config file, what the service manager hears, and the admin
    /// endpoint, of which this is what it shows.
    pub fn open(&mut self, shared: &Shared, voice: Voice) -> Arc<admin::State> {
        let Voice { phase, commands, file } = voice;
        let seats = Arc::clone(&shared.seats);
        let watchdog =
            keep_running("watchdog", Arc::clone(&shared.metrics), move || watchdog::feed(Arc::clone(&seats)));
        let (config, asked) = (Arc::clone(&shared.config), commands.clone());
        let look = keep_running("look", Arc::clone(&shared.metrics), move || {
            look::at_the_file(file.clone(), Arc::clone(&config), asked.clone())
        });
        let (told, ready) = (shared.clone(), phase.clone());
        let status =
            keep_running("status", Arc::clone(&shared.metrics), move || status_line::tell(told.clone(), ready.clone()));
        self.voices = vec![spawn(watchdog), spawn(look), spawn(status)];
        let queues = AcceptQueues::new(Arc::clone(&shared.seats), Arc::clone(&shared.metrics));
        Arc::new(admin::State {
            table: Arc::clone(&shared.table),
            adjustments: Arc::clone(&shared.adjustments),
            metrics: Arc::clone(&shared.metrics),
            phase,
            workers: shared.workers,
            started: SystemTime::now(),
            config: Arc::clone(&shared.config_status),
            commands,
            sessions: Arc::new(Sessions(Arc::clone(&shared.seats))),
            who: Arc::clone(&shared.who),
            places: admin::Places::new(admin::MAX_CONNECTIONS),
            refresh: Box::new(move || queues.refresh()),
        })
    }

    /// Another process speaks in this one's place.
    pub fn fall_silent(&self) {
        for voice in &self.voices {
            voice.abort();
        }
    }

    /// Waits until every backend has been asked once.
    pub async fn first_round(&self) {
        // A checker that is gone for good was cancelled by `stop`.
        let _ = self.first_round.clone().wait_for(|done| *done).await;
    }

    /// Ends them all at once.
    pub fn stop(self) {
        self.fall_silent();
        for task in [self.checker, self.keeper, self.memory, self.headroom, self.refusals] {
            task.abort();
        }
    }
}

/// Runs what `start` gives, again after each panic.
pub async fn keep_running<F>(name: &'static str, metrics: Arc<Metrics>, mut start: impl FnMut() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut rng = Rng::from_entropy();
    let mut backoff = Backoff::new(RESTART.0, RESTART.1);
    loop {
        // A set of one: dropping it cancels the task with this one.
        let mut task = JoinSet::new();
        task.spawn(start());
        let started = Instant::now();
        let ended = task.join_next().await;
        if !matches!(ended, Some(Err(error)) if error.is_panic()) {
            return;
        }
        metrics.task_restarted(name);
        if started.elapsed() > RESTART.1 {
            backoff.reset();
        }
        let delay = backoff.next_delay(&mut rng);
        tracing::error!(task = name, ?delay, "a control task panicked; starting it again");
        tokio::time::sleep(delay).await;
    }
}
