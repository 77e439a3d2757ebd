//! The commands that take another config, or say what one would change: reload, rollback and plan.
//!
//! Owns what each of them prepares beside the loop, what is told of it in the log and the answer, and that it goes into
//! the history. Next: `live` for the two phases, `plan`, `history`.

use super::Failure;
use super::examine::{Examined, examine, load, parse};
use super::gates::notify_reloaded;
use super::history::Next;
use super::inherit::Inherited;
use super::live::{Base, Candidate, Committed, Live, prepare};
use super::plan;
use super::status_line;
use crate::admin::command::{Asker, Done, Refused, Reply, Why};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// What came of the part beside the loop.
pub enum Prepared {
    Reload(Box<Candidate>),
    Rollback(Box<Candidate>, Back),
    /// Nothing is to be taken; a refusal of it is none of a reload.
    Plan(Result<Box<Examined>, Failure>),
}

/// A way back.
pub struct Back {
    to: u64,
    /// What the config file says meanwhile, if that is good.
    file: Option<Arc<str>>,
    /// What is to be said of that.
    warning: Option<String>,
}

/// The file as it is now.
pub fn reload(base: &Base, path: &Path) -> Result<Prepared, Failure> {
    let candidate = prepare(base, load(path)?, &mut Inherited::default())?;
    Ok(Prepared::Reload(Box::new(candidate)))
}

/// This text, or the file as it is now.
pub fn examined(base: &Base, path: Option<&Path>, text: Option<&str>) -> Prepared {
    let path = path.unwrap_or(Path::new("config"));
    let loaded = text.map_or_else(|| load(path), |text| parse(path, text));
    Prepared::Plan(loaded.and_then(|loaded| examine(base, loaded)).map(Box::new))
}

/// Prepares a way back to a text that was in force.
pub fn rollback(base: &Base, path: &Path, to: u64, text: &str) -> Result<Prepared, Failure> {
    let lines = |failure: Failure| {
        let lines: Vec<String> = failure.to_string().lines().map(|line| format!("generation {to}: {line}")).collect();
        Failure::Config(lines.join("\n"))
    };
    let candidate =
        parse(path, text).and_then(|loaded| prepare(base, loaded, &mut Inherited::default())).map_err(lines)?;
    let (shown, file) = (path.display(), load(path).ok().map(|loaded| loaded.text));
    let warning = match file.as_deref() {
        Some(file) if *file == *text => None,
        Some(_) => {
            Some(format!("{shown} has another config, which the next reload takes; put this one there to keep it"))
        }
        None => {
            Some(format!("{shown} has no good config, so the next reload is refused; put this one there to keep it"))
        }
    };
    Ok(Prepared::Rollback(Box::new(candidate), Back { to, file, warning }))
}

/// Ends one of these commands.
pub fn finish(prepared: Result<Prepared, Failure>, by: &Asker, live: &mut Live) -> Reply {
    let invalid = |text| Refused { why: Why::Invalid, text };
    let done = match prepared {
        Ok(Prepared::Plan(examined)) => {
            let examined = examined.map_err(|failure| invalid(failure.to_string()))?;
            return Ok(plan::plan(&examined, live));
        }
        Ok(Prepared::Reload(candidate)) => {
            live.has_tried(&candidate.text);
            take(*candidate, None, by, live).map_err(invalid)
        }
        Ok(Prepared::Rollback(candidate, back)) => {
            back.file.iter().for_each(|text| live.has_tried(text));
            take(*candidate, Some(back), by, live).map_err(invalid)
        }
        Err(failure) => Err(invalid(failure.to_string())),
    };
    if let Err(refused) = &done {
        live.history.refused(by.to_string(), refused.text.clone());
    }
    notify_reloaded(&status_line::of(&live.shared));
    done
}

/// Phase two of a reload or a rollback, and what is said of it.
fn take(candidate: Candidate, back: Option<Back>, by: &Asker, live: &mut Live) -> Result<Done, String> {
    let from = live.generation();
    let Committed { generation: to, changed, other_access, mut warnings } = live.commit(candidate)?;
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
        (false, _) if other_access => format!("generation {to} runs on, and the token or the users who may are others"),
        (false, _) => format!("nothing has changed: generation {to} runs on"),
    };
    match (changed, rollback_to) {
        (true, None) => tracing::info!(%by, command, from, to, hash, "changed"),
        (true, Some(rollback_to)) => tracing::info!(%by, command, from, to, rollback_to, hash, "changed"),
        (false, _) if other_access => {}
        (false, _) => tracing::info!(%by, command, generation = to, hash, "nothing has changed"),
    }
    if other_access {
        tracing::info!(%by, command, generation = to, "changed: the admin endpoint's token, users or hosts");
    }
    let details = json!({"generation": to, "hash": hash, "warnings": warnings, "needs_upgrade": needs_upgrade});
    Ok(Done { summary, changed: changed || other_access, details })
}
