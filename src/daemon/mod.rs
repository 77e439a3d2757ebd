//! The process: it owns every task and thread, in one loop with one match over events.
//!
//! | who | where | waits on | ends |
//! |---|---|---|---|
//! | this loop | control thread | signals, commands, events of workers, deadlines | with the process |
//! | reload | a thread for each | the config file, the resolver | with its verdict |
//! | worker N | a thread each | its sockets, sessions, the drain signal | drained or aborted |
//! | health checker | control thread | probes due | after the workers |
//! | memory | control thread | a tick of a second | after the workers |
//! | headroom | control thread | a quarter of a second | after the workers |
//! | refusals | control thread | a tick of a second | after the workers |
//! | watchdog | control thread | half of the service manager's span | after the workers |
//! | look at the file | control thread | `runtime.watch` | after the workers |
//! | status line | control thread | a tick of five seconds | after the workers |
//! | upgrade | a thread for each | the successor | with it |
//! | admin endpoint | control thread | its socket | last |
//! | state file | a thread | what is to be kept | flushed at exit |
//! | log writers | a thread each | their queues | flushed at exit |
//!
//! Panic policy: a session's panic is contained where it runs; the checker, the memory task and the admin endpoint are
//! started again (what must last lives elsewhere); a worker that dies takes the process with it, non-zero, because half
//! a balancer that looks alive is worse than a restart. Read next: `start` (what happens before), `live` (how a config
//! takes the place of another), `carry_out`, `worker`.

mod accept_queues;
mod carry_out;
mod cgroup;
mod configs;
mod control;
mod endpoint;
mod examine;
mod fd_store;
mod fds;
mod files;
mod gates;
mod headroom;
mod history;
mod inherit;
mod landlock;
mod listening;
mod live;
mod look;
mod memory;
mod offline;
mod parking;
mod pipes;
mod plan;
mod privileges;
mod refusals;
mod sessions;
mod signals;
mod sockets;
mod start;
mod state_file;
mod status_line;
mod supervise;
mod upgrade;
mod watchdog;
mod worker;

pub use live::ConfigSource;
pub use offline::table as offline_table;
pub use sockets::{Lack, Severity, lacks};
pub use start::resolve;

use crate::admin::Phase;
use crate::admin::command::{self, Asker, Call, Command, Commands};
use crate::drain::{self, Drain, Spread, Stage, Stopper};
use crate::sys::Held;
use carry_out::{Begun, Work, Worked};
use gates::{Announcement, notify};
use live::Live;
use sd_notify::NotifyState;
use signals::Signals;
use start::{Inheritance, Shared, Started};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep_until, timeout};
use tracing::field::debug;
use upgrade::{Program, Successor, Word};
use worker::{Ended, WorkerThread};

/// How long workers may take to reset what is left, once told to.
const ABORT_PATIENCE: Duration = Duration::from_secs(2);

/// What the command line adds to the config.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Announce {
    #[default]
    Quiet,
    /// One line of JSON on stdout, when ready, that says where everything is bound.
    Stdout,
}

/// Why the process could not start or go on.
#[derive(Debug)]
pub enum Failure {
    /// The file asks for something that can't be; the text has one line for each mistake.
    Config(String),
    /// The system refuses something that the config may rightly ask for.
    System(String),
    /// A bug of ours.
    Internal(String),
    /// Something was asked for in a way that makes no sense.
    Usage(String),
}

impl Failure {
    /// The exit code, from sysexits.h: `EX_CONFIG`, `EX_OSERR`, `EX_SOFTWARE`; for usage, as the
    /// command line's parser has it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 78,
            Self::System(_) => 71,
            Self::Internal(_) => 70,
            Self::Usage(_) => 2,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(text) | Self::System(text) | Self::Internal(text) | Self::Usage(text) => f.write_str(text),
        }
    }
}

/// Runs the balancer until it is told to stop.
pub fn run(source: ConfigSource, announce: Announce) -> Result<(), Failure> {
    let held = signals::hold();
    let started = start::start(source)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::System(format!("can't start the control runtime: {error}")))?;
    runtime.block_on(Daemon::new(announce).live(started, held))
}

struct Daemon {
    announce: Announce,
    phase: watch::Sender<Phase>,
    stopper: Stopper,
    drain: Drain,
}

/// What the loop reacts to.
enum Event {
    Terminate(&'static str),
    /// A signal that asks for a command.
    Asked(Command, &'static str),
    Call(Call),
    /// The slow part of a command has ended.
    Worked(Worked),
    /// Something is to be forgotten that was kept for the last clients of what is gone.
    Forget,
    WorkerEnded(Ended),
    Deadline,
}

/// How far the stop has come, as the loop sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    No,
    /// Not ready any more, but still accepting, until then.
    LameDuck(Instant),
    /// Sessions may finish until then.
    Draining(Instant),
    /// What is left is being reset; the process goes by then.
    Aborting(Instant),
    /// Another process serves in this one's place. Sessions may finish, until then if ever.
    Retired(Option<Instant>),
}

impl Daemon {
    fn new(announce: Announce) -> Self {
        let (stopper, drain) = drain::channel();
        Self { announce, phase: watch::Sender::new(Phase::Starting), stopper, drain }
    }

    async fn live(self, started: Started, held: Held) -> Result<(), Failure> {
        let mut signals = Signals::new(held)?;
        let Started { mut live, announcement, pipes, log, program, inheritance } = started;
        let shared = live.shared.clone();
        let (commands, mut calls) = command::channel();
        let mut control = supervise::Control::start(&shared);
        let (phase, file) = (self.phase.subscribe(), live.looked());
        let mut voice = Some(supervise::Voice { phase, commands: commands.clone(), file });
        if let Some(voice) = voice.take_if(|_| inheritance.is_none()) {
            open(&mut live, &mut control, voice)?;
        }
        let verdict = if let Some(signal) = self.first_round(&live, &control, &mut signals).await {
            tracing::info!(signal, "stopped before it was ready");
            Ok(())
        } else {
            let (events, mut ended) = mpsc::channel(shared.workers.max(1));
            let relay = live.config.runtime.relay;
            let (up, ups) = mpsc::channel(shared.workers.max(1));
            let workers = worker::spawn_all(live.sockets(), &shared, pipes, relay, &self.drain, &up, &events)?;
            drop(up);
            let are_up = all_up(ups).await == workers.len();
            let (mut stop, mut told) = (Stop::No, None);
            if let (true, Some(Inheritance { heir, taken })) = (are_up, inheritance) {
                // Its watchdog is the predecessor's until then, and so is the admin endpoint.
                match heir.take_over(&taken, signals.terminate()).await? {
                    Word::Go(signal) => {
                        told = signal;
                        live.take_over();
                        if let Some(voice) = voice.take() {
                            open(&mut live, &mut control, voice)?;
                        }
                    }
                    Word::No => {
                        gates::fall_silent();
                        live.let_go();
                        stop = self.start_draining(&live);
                    }
                }
            }
            if are_up && stop == Stop::No {
                live.keep_in_store();
                self.say_ready(&announcement, &shared);
            }
            if told.is_some() {
                stop = self.begin_stop(told, &live);
            }
            let (ended, calls) = (&mut ended, &mut calls);
            let (control, program) = (&control, program.as_ref());
            let reloads = Arc::new(Semaphore::new(RELOADS_BY_SIGNAL));
            let commands = &commands;
            let inputs =
                Inputs { signals: &mut signals, ended, calls, commands, work: None, control, program, reloads };
            let verdict = self.serve(stop, workers, &mut live, inputs).await;
            if let Some(access) = &shared.access {
                access.close();
            }
            verdict
        };
        control.stop();
        live.endpoint.stop().await;
        drop(live.keeper.take());
        if verdict.is_ok() {
            tracing::info!("stopped");
        }
        drop(log);
        verdict
    }

    /// Lets the checker look at every backend once, within a bound; a signal's name if one came first.
    async fn first_round(
        &self,
        live: &Live,
        control: &supervise::Control,
        signals: &mut Signals,
    ) -> Option<&'static str> {
        let probe_limits = live.config.pools.iter().map(|pool| pool.health.timeout);
        let bound = probe_limits.max().unwrap_or_default().min(FIRST_ROUND) + Duration::from_secs(1);
        tokio::select! {
            signal = signals.terminate() => Some(signal),
            probed = timeout(bound, control.first_round()) => {
                if probed.is_err() {
                    tracing::warn!("some backends have not been probed within {bound:?}; starting without their verdict");
                }
                None
            }
        }
    }

    fn say_ready(&self, announcement: &Announcement, shared: &Shared) {
        self.phase.send_replace(Phase::Ready);
        announcement.log();
        if self.announce == Announce::Stdout {
            announcement.print();
        }
        notify(&[NotifyState::Ready, NotifyState::Status(&status_line::of(shared))]);
    }

    async fn serve(
        &self,
        mut stop: Stop,
        mut workers: Vec<WorkerThread>,
        live: &mut Live,
        mut inputs: Inputs<'_>,
    ) -> Result<(), Failure> {
        let mut cut = 0;
        while !workers.is_empty() {
            match inputs.next(stop, live.forget_at).await {
                Event::Terminate(signal) => {
                    if inputs.work.as_ref().is_some_and(Work::is_upgrade) {
                        inputs.work = None;
                    }
                    stop = self.stop_further(stop, signal, live);
                }
                Event::Asked(command, signal) => inputs.ask(command, signal),
                Event::Call(call) => match carry_out::begin(call, stop, live, inputs.program, inputs.work.is_some()) {
                    Begun::Done => {}
                    Begun::Work(work) => inputs.work = Some(work),
                    Begun::Stop => {
                        inputs.work = None;
                        stop = self.begin_stop(None, live);
                    }
                },
                Event::Worked(worked) => {
                    if let Some(successor) = carry_out::finish(worked, stop, live) {
                        stop = self.hand_over(&successor, live, inputs.control);
                    }
                }
                Event::Forget => live.forget(),
                Event::WorkerEnded(worker) => {
                    workers.retain(|thread| thread.index != worker.index);
                    cut += worker.result?;
                }
                Event::Deadline => match stop {
                    Stop::LameDuck(_) => stop = self.start_draining(live),
                    Stop::Draining(_) => stop = self.start_aborting("the drain deadline has passed", live),
                    Stop::Retired(_) => stop = self.start_aborting("runtime.retired_timeout has passed", live),
                    Stop::No | Stop::Aborting(_) => {
                        return Err(Failure::Internal("the workers did not stop in time".to_owned()));
                    }
                },
            }
        }
        if cut > 0 {
            tracing::warn!(sessions = cut, "reset the sessions that had not finished");
        }
        Ok(())
    }

    /// The first signal begins the stop, a second one ends everything now.
    fn stop_further(&self, stop: Stop, signal: &'static str, live: &Live) -> Stop {
        match stop {
            Stop::Aborting(_) => stop,
            Stop::LameDuck(_) | Stop::Draining(_) => self.start_aborting("a second signal came", live),
            Stop::Retired(_) => {
                tracing::info!(signal, drain_timeout = ?live.config.runtime.drain_timeout, "stopping");
                Stop::Draining(self.end_after(live.config.runtime.drain_timeout, live))
            }
            Stop::No => self.begin_stop(Some(signal), live),
        }
    }

    /// For a signal, or for whoever the log has named already.
    fn begin_stop(&self, signal: Option<&'static str>, live: &Live) -> Stop {
        self.phase.send_replace(Phase::Draining);
        notify(&[NotifyState::Stopping, NotifyState::Status(&status_line::draining(&live.shared))]);
        let lame_duck = live.config.runtime.lame_duck;
        let told = (!lame_duck.is_zero()).then_some(debug(lame_duck));
        let drain_timeout = live.config.runtime.drain_timeout;
        tracing::info!(signal, lame_duck = told, ?drain_timeout, "stopping");
        if lame_duck.is_zero() { self.start_draining(live) } else { Stop::LameDuck(Instant::now() + lame_duck) }
    }

    /// Leaves everything to a successor that accepts already, but for the sessions.
    fn hand_over(&self, successor: &Successor, live: &mut Live, control: &supervise::Control) -> Stop {
        // First of all, or the service manager would take an end of this process for the end of the service.
        notify(&[NotifyState::MainPid(successor.pid)]);
        gates::fall_silent();
        self.phase.send_replace(Phase::Draining);
        // Two would write one state file.
        drop(live.keeper.take());
        successor.estate.pass_on(&successor.taken);
        live.endpoint.close();
        control.fall_silent();
        self.advance(Stage::Draining, live);
        if let Err(error) = successor.say_go() {
            tracing::error!(%error, "can't tell the successor to go");
        }
        let retired_timeout = live.config.runtime.retired_timeout;
        let told = retired_timeout.map(debug);
        tracing::info!(successor = successor.pid, retired_timeout = told, "handed over; finishing the sessions");
        Stop::Retired(retired_timeout.map(|timeout| self.end_after(timeout, live)))
    }

    /// When sessions have had so long to finish. In the last part of that they are ended one after the other, where the
    /// config says so.
    fn end_after(&self, span: Duration, live: &Live) -> Instant {
        let until = Instant::now() + span;
        let spread = live.config.runtime.drain_spread.min(span);
        if !spread.is_zero() {
            self.stopper.spread(Spread { from: until.checked_sub(spread).unwrap_or(until), until });
        }
        until
    }

    fn start_draining(&self, live: &Live) -> Stop {
        let until = self.end_after(live.config.runtime.drain_timeout, live);
        self.advance(Stage::Draining, live);
        Stop::Draining(until)
    }

    fn start_aborting(&self, why: &str, live: &Live) -> Stop {
        tracing::info!("{why}: resetting what is left");
        self.advance(Stage::Aborting, live);
        Stop::Aborting(Instant::now() + ABORT_PATIENCE)
    }

    /// Tells the workers, and each listening socket.
    fn advance(&self, stage: Stage, live: &Live) {
        self.stopper.advance(stage);
        if let Some(seats) = live.shared.seats.get() {
            seats.advance(stage);
        }
    }
}

/// Lets the process be spoken to, and speak.
fn open(live: &mut Live, control: &mut supervise::Control, voice: supervise::Voice) -> Result<(), Failure> {
    let state = control.open(&live.shared, voice);
    let served = live.endpoint.serve(state);
    served.map_err(|error| Failure::System(format!("can't watch the admin socket: {error}")))
}

/// Where the loop's events come from.
struct Inputs<'a> {
    signals: &'a mut Signals,
    ended: &'a mut mpsc::Receiver<Ended>,
    calls: &'a mut mpsc::Receiver<Call>,
    /// For what the loop asks of itself.
    commands: &'a Commands,
    /// The command that is being carried out; others wait for its end.
    work: Option<Work>,
    control: &'a supervise::Control,
    program: Option<&'a Program>,
    /// Room for reloads that signals have asked for.
    reloads: Arc<Semaphore>,
}

/// One that is being carried out, and one that waits.
const RELOADS_BY_SIGNAL: usize = 2;

impl Inputs<'_> {
    /// Asks the loop itself, for whoever has sent a signal; what comes of it is in the log.
    fn ask(&self, command: Command, signal: &'static str) {
        let is_reload = command == Command::Reload;
        let reload = is_reload.then(|| Arc::clone(&self.reloads).try_acquire_owned());
        // Besides one that may have read the file already, and one that waits, a third would find what that one finds.
        if matches!(reload, Some(Err(_))) {
            return;
        }
        let commands = self.commands.clone();
        drop(drain::spawn(async move {
            let answer = commands.ask(command, Asker::Signal(signal)).await;
            drop(reload);
            answer
        }));
    }

    async fn next(&mut self, stop: Stop, forget_at: Option<Instant>) -> Event {
        // During a stop there is a refusal at once.
        let idle = self.work.is_none();
        let hears = stop != Stop::No || self.work.as_ref().is_none_or(Work::is_upgrade);
        let deadline = match stop {
            Stop::No => None,
            Stop::Retired(at) => at,
            Stop::LameDuck(at) | Stop::Draining(at) | Stop::Aborting(at) => Some(at),
        };
        tokio::select! {
            event = self.signals.next() => event,
            Some(worker) = self.ended.recv() => Event::WorkerEnded(worker),
            Some(call) = self.calls.recv(), if hears => Event::Call(call),
            worked = Work::ended(&mut self.work), if !idle => Event::Worked(worked),
            () = until(deadline) => Event::Deadline,
            () = until(forget_at) => Event::Forget,
        }
    }
}

/// Without end, if there is no such moment.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The longest that the first round of probes may hold up the start, but for the spread of its beginning.
const FIRST_ROUND: Duration = Duration::from_secs(5);

/// How many workers have come up, once each has or has died trying.
async fn all_up(mut ups: mpsc::Receiver<()>) -> usize {
    let mut count = 0;
    while ups.recv().await.is_some() {
        count += 1;
    }
    count
}
