//! Which part of the daemon carries out which command, one after the other.
//!
//! Owns the refusal of what can't be done now, the audit line of each change and of each refusal, and the answer. What
//! takes long runs beside the loop (a [`Work`]), so that signals are still heard; other commands wait meanwhile. Next:
//! each arm.

use super::configs::{self, Prepared};
use super::control;
use super::gates::notify_reloading;
use super::live::{Base, Live};
use super::parking;
use super::upgrade::{Attempt, Program, Successor};
use super::{Failure, Stop};
use crate::admin::command::{Asker, Call, Command, Done, Refused, Reply, Why};
use serde_json::json;
use std::time::Duration;
use tokio::sync::oneshot;

/// The command that changes nothing.
const PLAN: &str = "plan";

/// A command whose slow part is under way.
pub struct Work {
    command: &'static str,
    by: Asker,
    reply: oneshot::Sender<Reply>,
    result: Doing,
}

enum Doing {
    /// A reload, a rollback or a plan.
    Config(oneshot::Receiver<Result<Prepared, Failure>>),
    Upgrade(Attempt),
}

/// The slow part of a command, which has ended.
pub struct Worked {
    command: &'static str,
    by: Asker,
    reply: oneshot::Sender<Reply>,
    result: Outcome,
}

enum Outcome {
    Config(Result<Prepared, Failure>),
    Upgrade(Result<Successor, String>),
}

impl Work {
    /// Looks at a config beside the loop, once there is a base.
    fn of_config(
        command: &'static str,
        by: Asker,
        reply: oneshot::Sender<Reply>,
        live: &Live,
        look: impl FnOnce(&Base) -> Result<Prepared, Failure> + Send + 'static,
    ) -> Self {
        let base = live.base();
        let (done, result) = oneshot::channel();
        crate::drain::spawn(async move {
            let base = base.await;
            // Who waits sees that the sender is gone.
            let thread = std::thread::Builder::new().name(command.to_owned());
            let _ = thread.spawn(move || drop(done.send(look(&base))));
        });
        Self { command, by, reply, result: Doing::Config(result) }
    }

    /// Waits for its end.
    pub async fn ended(work: &mut Option<Self>) -> Worked {
        let died = |_| Err(Failure::Internal("the thread that read the config died".into()));
        let result = match work.as_mut().map(|work| &mut work.result) {
            Some(Doing::Config(result)) => Outcome::Config(result.await.unwrap_or_else(died)),
            Some(Doing::Upgrade(attempt)) => Outcome::Upgrade(attempt.ended().await),
            None => std::future::pending().await,
        };
        let Some(Self { command, by, reply, .. }) = work.take() else { std::future::pending().await };
        Worked { command, by, reply, result }
    }

    /// Whether other commands are refused meanwhile, and don't wait.
    pub fn is_upgrade(&self) -> bool {
        matches!(self.result, Doing::Upgrade(_))
    }
}

/// What the loop has to do of a command.
pub enum Begun {
    /// Nothing more: it was answered.
    Done,
    /// Wait for the slow part of it.
    Work(Work),
    /// Stop, as for SIGTERM.
    Stop,
}

/// Begins one command, and answers it if it is done at once; who asked may have gone.
pub fn begin(call: Call, stop: Stop, live: &mut Live, program: Option<&Program>, is_busy: bool) -> Begun {
    let Call { command, by, reply } = call;
    let name = name_of(&command);
    let no = match (command, stop, live.path.clone()) {
        (_, Stop::Retired(_), _) => refused(Why::Conflict, "this process has handed over to another one"),
        (_, Stop::LameDuck(_) | Stop::Draining(_) | Stop::Aborting(_), _) => stopping(),
        (Command::Drain, Stop::No, _) => {
            tracing::info!(%by, command = name, from = "serving", to = "draining", "changed");
            answer(name, &by, reply, Ok(draining(live)));
            return Begun::Stop;
        }
        _ if is_busy => refused(Why::Conflict, "an upgrade is under way: try again when it is done"),
        (Command::Reload | Command::Plan(None) | Command::Rollback(_), _, None) => {
            refused(Why::Conflict, "there is no config file to read again")
        }
        (Command::Reload, _, Some(path)) => {
            notify_reloading();
            return Begun::Work(Work::of_config(name, by, reply, live, move |base| configs::reload(base, &path)));
        }
        (Command::Plan(text), _, path) => {
            let look = move |base: &Base| Ok(configs::examined(base, path.as_deref(), text.as_deref()));
            return Begun::Work(Work::of_config(name, by, reply, live, look));
        }
        (Command::Rollback(number), _, Some(path)) => match live.history.find(number) {
            Ok((to, text)) => {
                notify_reloading();
                let look = move |base: &Base| configs::rollback(base, &path, to, &text);
                return Begun::Work(Work::of_config(name, by, reply, live, look));
            }
            Err(text) => refused(if number.is_some() { Why::NotFound } else { Why::Conflict }, &text),
        },
        (
            command @ (Command::Backend { .. }
            | Command::AddBackend { .. }
            | Command::RemoveBackend { .. }
            | Command::LogLevel(_)),
            ..,
        ) => {
            answer(name, &by, reply, control::carry_out(command, &by, live));
            return Begun::Done;
        }
        (Command::Upgrade, _, None) => refused(Why::Conflict, "there is no config file that a successor could read"),
        (Command::Upgrade, ..) => match attempt(live, program) {
            Ok(attempt) => return Begun::Work(Work { command: name, by, reply, result: Doing::Upgrade(attempt) }),
            Err(text) => refused(Why::Conflict, &text),
        },
        (Command::Listener { name: listener, state, deadline }, ..) => {
            let done = parking::carry_out(&listener, state, deadline, &by, live);
            answer(name, &by, reply, done);
            return Begun::Done;
        }
    };
    answer(name, &by, reply, Err(no));
    Begun::Done
}

/// Starts a successor; a sentence if that makes no sense.
fn attempt(live: &Live, program: Option<&Program>) -> Result<Attempt, String> {
    if std::process::id() == 1 {
        return Err(
            "the process with the number 1 can't leave its place to another one, since all others end with it; start \
                    a new container instead"
                .to_owned(),
        );
    }
    let program = program.ok_or("nobody says which binary this is: /proc can't be read")?;
    let estate =
        live.estate().map_err(|error| format!("can't pass the sockets on: {}", std::io::Error::from(error)))?;
    tracing::info!(binary = %program.path.display(), sockets = estate.descriptors.len(), "starting a successor");
    Ok(Attempt::begin(program.clone(), estate))
}

/// Ends a command whose slow part has ended. A successor to whom everything is to be left, if that was its result.
pub fn finish(worked: Worked, stop: Stop, live: &mut Live) -> Option<Successor> {
    let Worked { command, by, reply, result } = worked;
    match result {
        Outcome::Config(result) => {
            let done = match stop {
                Stop::No => configs::finish(result, &by, live),
                _ => Err(stopping()),
            };
            answer(command, &by, reply, done);
            None
        }
        Outcome::Upgrade(result) => finish_upgrade(&by, reply, result, stop, live),
    }
}

fn finish_upgrade(
    by: &Asker,
    reply: oneshot::Sender<Reply>,
    result: Result<Successor, String>,
    stop: Stop,
    live: &Live,
) -> Option<Successor> {
    let found = match (stop, result) {
        (Stop::No, result) => result.and_then(|found| found.adopt().map(|()| found)),
        _ => Err("the process is stopping".to_owned()),
    };
    match found {
        Ok(found) => {
            let (from, to, generation) = (std::process::id(), found.pid, live.generation());
            tracing::info!(%by, command = "upgrade", from, to, "changed");
            let summary = format!("process {to} serves; process {from} finishes its sessions");
            let details = json!({"pid": to, "predecessor": from, "generation": generation});
            answer("upgrade", by, reply, Ok(Done { summary, changed: true, details }));
            Some(found)
        }
        Err(text) => {
            answer("upgrade", by, reply, Err(Refused { why: Why::Invalid, text }));
            None
        }
    }
}

/// What is told of a stop before it begins.
fn draining(live: &Live) -> Done {
    let runtime = &live.config.runtime;
    let (lame_duck, drain_timeout) = (runtime.lame_duck, runtime.drain_timeout);
    let first = if lame_duck.is_zero() { String::new() } else { format!("new clients are served for {lame_duck:?}; ") };
    let summary = format!("draining: {first}what is left after {drain_timeout:?} is reset");
    let details = json!({"lame_duck_ms": millis(lame_duck), "drain_timeout_ms": millis(drain_timeout)});
    Done { summary, changed: true, details }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn stopping() -> Refused {
    refused(Why::Conflict, "the process is stopping")
}

fn refused(why: Why, text: &str) -> Refused {
    Refused { why, text: text.to_owned() }
}

/// Tells of a refusal, with the same text as the answer, and answers.
fn answer(command: &'static str, by: &Asker, reply: oneshot::Sender<Reply>, done: Reply) {
    // A plan changes nothing: there is nothing to account for.
    if let (Err(refused), true) = (&done, command != PLAN) {
        for line in refused.text.lines() {
            tracing::warn!(%by, command, "refused: {line}");
        }
    }
    // Who asked may have gone.
    let _ = reply.send(done);
}

fn name_of(command: &Command) -> &'static str {
    match command {
        Command::Reload => "reload",
        Command::Plan(_) => PLAN,
        Command::Rollback(_) => "rollback",
        Command::Upgrade => "upgrade",
        Command::Drain => "drain",
        Command::Listener { .. } => "listener",
        Command::Backend { .. } => "backend",
        Command::AddBackend { .. } => "add backend",
        Command::RemoveBackend { .. } => "remove backend",
        Command::LogLevel(_) => "log level",
    }
}
