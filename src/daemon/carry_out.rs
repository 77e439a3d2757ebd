//! Which part of the daemon carries out which command, one after the other.
//!
//! Owns the refusal of what can't be done during a stop, and the audit: a line for each change and each refusal. What
//! takes long runs beside the loop (a [`Work`]), so that signals are still heard; other commands wait meanwhile, but for
//! those that come during an upgrade, which are refused. Next: each arm.

use super::gates::{notify_reloaded, notify_reloading};
use super::history::Next;
use super::inherit::Inherited;
use super::live::{self, Base, Candidate, Committed, Examined, Live};
use super::upgrade::{Attempt, Program, Successor};
use super::{Failure, Stop, control, parking, plan};
use crate::admin::command::{Asker, Call, Command, Done, Refused, Reply, Why};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;

/// The command that changes nothing.
const PLAN: &str = "plan";

/// A command whose slow part is under way.
pub struct Work {
    command: &'static str,
    by: Asker,
    reply: oneshot::Sender<Reply>,
    doing: Doing,
}

enum Doing {
    Preparing(oneshot::Receiver<Result<Prepared, Failure>>),
    Upgrading(Attempt),
}

/// The slow part of a command, which has ended.
pub struct Worked {
    command: &'static str,
    by: Asker,
    reply: oneshot::Sender<Reply>,
    outcome: Outcome,
}

enum Outcome {
    Prepared(Result<Prepared, Failure>),
    Upgraded(Result<Successor, String>),
}

/// What the slow part of a command has come to.
enum Prepared {
    Reload(Box<Candidate>),
    Rollback(Box<Candidate>, Back),
    Plan(Box<Examined>),
}

/// A way back.
struct Back {
    to: u64,
    /// What the config file says meanwhile.
    warning: Option<String>,
}

impl Work {
    /// Has it done beside the loop, once there is a base.
    fn begin(
        name: &'static str,
        by: Asker,
        reply: oneshot::Sender<Reply>,
        live: &Live,
        work: impl FnOnce(&Base) -> Result<Prepared, Failure> + Send + 'static,
    ) -> Self {
        let base = live.base();
        let (done, result) = oneshot::channel();
        crate::drain::spawn(async move {
            let base = base.await;
            // Who waits sees that the sender is gone.
            let thread = std::thread::Builder::new().name(name.to_owned());
            let _ = thread.spawn(move || drop(done.send(work(&base))));
        });
        Self { command: name, by, reply, doing: Doing::Preparing(result) }
    }

    /// Waits for its end.
    pub async fn ended(work: &mut Option<Self>) -> Worked {
        let died = |_| Err(Failure::Internal("the thread that read the config died".into()));
        let outcome = match work.as_mut().map(|work| &mut work.doing) {
            Some(Doing::Preparing(result)) => Outcome::Prepared(result.await.unwrap_or_else(died)),
            Some(Doing::Upgrading(attempt)) => Outcome::Upgraded(attempt.ended().await),
            None => std::future::pending().await,
        };
        let Some(Self { command, by, reply, .. }) = work.take() else { std::future::pending().await };
        Worked { command, by, reply, outcome }
    }

    /// Whether other commands are refused meanwhile, and don't wait.
    pub fn is_upgrade(&self) -> bool {
        matches!(self.doing, Doing::Upgrading(_))
    }
}

/// Begins one command, and answers it if it is done at once; who asked may have gone.
pub fn begin(call: Call, stop: Stop, live: &mut Live, program: Option<&Program>, is_busy: bool) -> Option<Work> {
    let Call { command, by, reply } = call;
    let name = name_of(&command);
    let no = match (command, stop, live.path.clone()) {
        (_, Stop::Retired(_), _) => refused(Why::Conflict, "this process has handed over to another one"),
        (_, Stop::LameDuck(_) | Stop::Draining(_) | Stop::Aborting(_), _) => stopping(),
        _ if is_busy => refused(Why::Conflict, "an upgrade is under way: try again when it is done"),
        (Command::Reload | Command::Plan(None) | Command::Rollback(_), _, None) => {
            refused(Why::Conflict, "there is no config file to read again")
        }
        (
            command @ (Command::Backend { .. }
            | Command::AddBackend { .. }
            | Command::RemoveBackend { .. }
            | Command::LogLevel(_)),
            ..,
        ) => {
            answer(name, &by, reply, control::carry_out(command, &by, live));
            return None;
        }
        (Command::Listener { name: listener, state, deadline }, ..) => {
            let done = parking::carry_out(&listener, state, deadline, &by, live);
            answer(name, &by, reply, done);
            return None;
        }
        (Command::Upgrade, _, None) => refused(Why::Conflict, "there is no config file that a successor could read"),
        (Command::Upgrade, ..) => match attempt(live, program) {
            Ok(attempt) => return Some(Work { command: name, by, reply, doing: Doing::Upgrading(attempt) }),
            Err(text) => refused(Why::Conflict, &text),
        },
        (Command::Reload, _, Some(path)) => {
            notify_reloading();
            let work = move |base: &Base| {
                let candidate = live::prepare(base, live::load(&path)?, &mut Inherited::default())?;
                Ok(Prepared::Reload(Box::new(candidate)))
            };
            return Some(Work::begin(name, by, reply, live, work));
        }
        (Command::Plan(given), _, path) => {
            let work = move |base: &Base| {
                let path = path.unwrap_or_else(|| "config".into());
                let loaded = given.map_or_else(|| live::load(&path), |text| live::parse(&path, &text))?;
                live::examine(base, loaded).map(|examined| Prepared::Plan(Box::new(examined)))
            };
            return Some(Work::begin(name, by, reply, live, work));
        }
        (Command::Rollback(number), _, Some(path)) => match live.history.find(number) {
            Ok((to, text)) => {
                notify_reloading();
                let work = move |base: &Base| back(base, &path, to, &text);
                return Some(Work::begin(name, by, reply, live, work));
            }
            Err(text) => refused(if number.is_some() { Why::NotFound } else { Why::Conflict }, &text),
        },
        (Command::Drain, ..) => refused(Why::Invalid, "this can't be done yet"),
    };
    answer(name, &by, reply, Err(no));
    None
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

/// Prepares a way back to a text that was in force.
fn back(base: &Base, path: &Path, to: u64, text: &str) -> Result<Prepared, Failure> {
    let lines = |failure: Failure| {
        let lines: Vec<String> = failure.to_string().lines().map(|line| format!("generation {to}: {line}")).collect();
        Failure::Config(lines.join("\n"))
    };
    let candidate = live::parse(path, text)
        .and_then(|loaded| live::prepare(base, loaded, &mut Inherited::default()))
        .map_err(lines)?;
    let shown = path.display();
    let warning = match live::load(path) {
        Ok(loaded) if *loaded.text == *text => None,
        Ok(_) => {
            Some(format!("{shown} has another config, which the next reload takes; put this one there to keep it"))
        }
        Err(_) => {
            Some(format!("{shown} has no good config, so the next reload is refused; put this one there to keep it"))
        }
    };
    Ok(Prepared::Rollback(Box::new(candidate), Back { to, warning }))
}

/// Ends a command whose slow part has ended. A successor to whom everything is to be left, if that was its result.
pub fn finish(worked: Worked, stop: Stop, live: &mut Live) -> Option<Successor> {
    let Worked { command, by, reply, outcome } = worked;
    match outcome {
        Outcome::Prepared(result) => {
            finish_prepared(command, &by, reply, result, stop, live);
            None
        }
        Outcome::Upgraded(result) => finish_upgrade(&by, reply, result, stop, live),
    }
}

fn finish_prepared(
    command: &'static str,
    by: &Asker,
    reply: oneshot::Sender<Reply>,
    result: Result<Prepared, Failure>,
    stop: Stop,
    live: &mut Live,
) {
    let invalid = |text| Refused { why: Why::Invalid, text };
    let done = match (stop, result) {
        (Stop::Retired(_) | Stop::LameDuck(_) | Stop::Draining(_) | Stop::Aborting(_), _) => Err(stopping()),
        (Stop::No, Ok(Prepared::Plan(examined))) => Ok(plan::plan(&examined, live)),
        (Stop::No, Ok(Prepared::Reload(candidate))) => take(*candidate, None, by, live).map_err(invalid),
        (Stop::No, Ok(Prepared::Rollback(candidate, back))) => take(*candidate, Some(back), by, live).map_err(invalid),
        (Stop::No, Err(failure)) => Err(invalid(failure.to_string())),
    };
    if let Err(Refused { why: Why::Invalid, text }) = &done {
        // A plan that is wrong is no config that was to come into force.
        if command != PLAN {
            live.history.refused(by.to_string(), text.clone());
        }
    }
    if stop == Stop::No && command != PLAN {
        notify_reloaded(live.generation(), done.as_ref().err().map(|refused| &*refused.text));
    }
    answer(command, by, reply, done);
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

/// Phase two of a reload or a rollback, and what is said of it.
fn take(candidate: Candidate, back: Option<Back>, by: &Asker, live: &mut Live) -> Result<Done, String> {
    let from = live.generation();
    let Committed { generation: to, changed, mut warnings } = live.commit(candidate)?;
    let (hash, text, config) = (live.hash(), Arc::clone(&live.text), Arc::clone(&live.config));
    let rollback_to = back.as_ref().map(|back| back.to);
    if changed {
        let (hash, by) = (hash.clone(), by.to_string());
        let next = Next { generation: to, hash, text: &text, config: &config, by, rollback_to };
        live.history.changed(next);
    } else {
        live.history.unchanged();
    }
    let needs_upgrade = live.history.needs_upgrade();
    warnings.extend(needs_upgrade.iter().map(|key| {
        format!("{key} is as the process was started with it: it needs a new one, which tidegate upgrade starts")
    }));
    warnings.extend(back.and_then(|back| back.warning));
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let command = if rollback_to.is_some() { "rollback" } else { "reload" };
    let summary = match (changed, rollback_to) {
        (true, None) => format!("generation {to} runs"),
        (true, Some(back)) => format!("generation {to} runs, which is generation {back} again"),
        (false, _) => format!("nothing has changed: generation {to} runs on"),
    };
    match (changed, rollback_to) {
        (true, None) => tracing::info!(%by, command, from, to, hash, "changed"),
        (true, Some(rollback_to)) => tracing::info!(%by, command, from, to, rollback_to, hash, "changed"),
        (false, _) => tracing::info!(%by, command, generation = to, hash, "nothing has changed"),
    }
    let details = json!({"generation": to, "hash": hash, "warnings": warnings, "needs_upgrade": needs_upgrade});
    Ok(Done { summary, changed, details })
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
