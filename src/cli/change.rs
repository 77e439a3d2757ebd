//! The subcommands that change the running process: each is one POST to its admin endpoint.
//!
//! Owns what is typed for which path and body. What may be, the process decides; its words are passed on.

use super::client::{Client, Remote, Shape, escaped, wait_for};
use super::table::clean_lines;
use super::{DEFAULT_CONFIG, Exit};
use crate::config::values::shell_word;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What a backend is called.
const BACKEND: &str = "As tidegate status shows them, such as web/10.0.0.1:80";

/// Of what takes the config file.
const OWN_FILE: &str =
    "The config of the process, which says where it is; another file than the process's own is refused";

#[derive(Subcommand)]
pub(super) enum Change {
    /// Have the process take its config file as it is now, or refuse it as a whole.
    #[command(mut_arg("path", |file| file.help(OWN_FILE)))]
    Reload {
        #[command(flatten)]
        how: How,
    },
    /// Go back to an earlier generation of the config.
    Rollback {
        /// Which; without it the one before.
        #[arg(value_name = "GENERATION")]
        generation: Option<u64>,
        #[command(flatten)]
        how: How,
    },
    /// Start the binary that is there now and hand every listening socket over to it.
    #[command(mut_arg("path", |file| file.help(OWN_FILE)))]
    Upgrade {
        #[command(flatten)]
        how: How,
    },
    /// Let nobody new in: on a listener, to a backend, or into the whole process, which then ends.
    Drain {
        /// A listener; or POOL/BACKEND, as tidegate status shows them.
        #[arg(value_name = "LISTENER|POOL/BACKEND", required_unless_present = "process", conflicts_with = "process")]
        target: Option<String>,
        /// Stop the process as SIGTERM does.
        #[arg(long, conflicts_with = "deadline")]
        process: bool,
        #[command(flatten)]
        deadline: Deadline,
        #[command(flatten)]
        how: How,
    },
    /// Put a listener or a backend back into service.
    Enable {
        /// A listener; or POOL/BACKEND, as tidegate status shows them.
        #[arg(value_name = "LISTENER|POOL/BACKEND")]
        target: String,
        #[command(flatten)]
        how: How,
    },
    /// Drain a listener or a backend, and don't probe it either.
    Disable {
        /// A listener; or POOL/BACKEND, as tidegate status shows them.
        #[arg(value_name = "LISTENER|POOL/BACKEND")]
        target: String,
        #[command(flatten)]
        deadline: Deadline,
        #[command(flatten)]
        how: How,
    },
    /// Set a backend's share of its pool.
    Weight {
        #[arg(value_name = "POOL/BACKEND", help = BACKEND)]
        backend: String,
        /// 1 to 256, in relation to the others.
        #[arg(value_name = "N")]
        weight: u64,
        #[command(flatten)]
        how: How,
    },
    /// Override what the probes say of a backend, or let them decide again.
    Health {
        #[arg(value_name = "POOL/BACKEND", help = BACKEND)]
        backend: String,
        /// What counts from now on.
        verdict: Verdict,
        #[command(flatten)]
        how: How,
    },
    /// Add a backend that isn't in the config file.
    Add {
        /// Which pool.
        pool: String,
        #[arg(help = "Such as 10.0.0.1:80 or unix:/run/app.sock")]
        address: String,
        /// What it is called. Default: its address
        #[arg(long)]
        name: Option<String>,
        /// Its share in relation to the others. Default: 1
        #[arg(long, value_name = "N")]
        weight: Option<u64>,
        /// The tier that it belongs to. Default: 0, which is used first
        #[arg(long, value_name = "N")]
        tier: Option<u64>,
        #[command(flatten)]
        how: How,
    },
    /// Remove a backend; the sessions that it has go on.
    Remove {
        #[arg(value_name = "POOL/BACKEND", help = BACKEND)]
        backend: String,
        #[command(flatten)]
        deadline: Deadline,
        #[command(flatten)]
        how: How,
    },
    /// End a session by a reset to both sides.
    Close {
        /// As in the access log and in tidegate connections, such as 1-4711.
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        how: How,
    },
    /// Set what is worth a line in the log.
    Log {
        /// As log.level in the config.
        level: Level,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Args)]
pub(super) struct How {
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    shape: Shape,
}

#[derive(Args)]
pub(super) struct Deadline {
    /// After how long the sessions that are left are ended, such as 30s. Default: never
    #[arg(long, value_name = "SPAN")]
    deadline: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Verdict {
    /// It is up, whatever probes and agent say.
    Up,
    /// It is down, whatever they say.
    Down,
    /// As they say.
    Auto,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// One POST.
#[derive(Debug, PartialEq)]
struct Request {
    path: String,
    /// `None` where there is nothing to say.
    body: Option<Value>,
}

/// Asks for it, and says what came of it.
pub(super) fn run(change: Change) -> Result<(), Exit> {
    let takes_file = matches!(change, Change::Reload { .. } | Change::Upgrade { .. });
    let (request, How { remote, shape }) = request(change)?;
    let client = remote.client()?;
    if takes_file {
        is_own_file(&remote, &client)?;
    }
    let answer = wait_for(client.post(&request.path, request.body.as_ref()))??;
    answer.tell(&shape)
}

fn request(change: Change) -> Result<(Request, How), Exit> {
    let simple = |path: &str| Request { path: path.to_owned(), body: None };
    Ok(match change {
        Change::Reload { how } => (simple("/reload"), how),
        Change::Rollback { generation, how } => (
            Request { path: "/rollback".to_owned(), body: generation.map(|number| json!({"generation": number})) },
            how,
        ),
        Change::Upgrade { how } => (simple("/upgrade"), how),
        Change::Drain { process: true, how, .. } => (simple("/drain"), how),
        Change::Drain { target, deadline, how, .. } => {
            (state(&target.unwrap_or_default(), "draining", Some(deadline)), how)
        }
        Change::Enable { target, how } => (state(&target, "enabled", None), how),
        Change::Disable { target, deadline, how } => (state(&target, "disabled", Some(deadline)), how),
        Change::Weight { backend, weight, how } => {
            (Request { path: backend_path(&backend)?, body: Some(json!({"weight": weight})) }, how)
        }
        Change::Health { backend, verdict, how } => {
            let health = word(&verdict);
            (Request { path: backend_path(&backend)?, body: Some(json!({"health": health})) }, how)
        }
        Change::Add { pool, address, name, weight, tier, how } => {
            let mut body = Map::from_iter([("address".to_owned(), address.into())]);
            body.extend(name.map(|name| ("name".to_owned(), name.into())));
            body.extend(weight.map(|weight| ("weight".to_owned(), weight.into())));
            body.extend(tier.map(|tier| ("tier".to_owned(), tier.into())));
            (Request { path: format!("/pools/{}/backends", escaped(&pool)), body: Some(body.into()) }, how)
        }
        Change::Remove { backend, deadline, how } => {
            let body = deadline.deadline.map(|span| json!({"deadline": span}));
            (Request { path: backend_path(&backend)? + "/remove", body }, how)
        }
        Change::Close { id, how } => (simple(&format!("/connections/{}/close", escaped(&id))), how),
        Change::Log { level, how } => {
            (Request { path: "/log".to_owned(), body: Some(json!({"level": word(&level)})) }, how)
        }
    })
}

/// Refuses a file that was named and isn't the one that the process reads: whoever names one means that one. What can't
/// be told, because the process says nothing or its file isn't here to be compared, is nobody's mistake.
fn is_own_file(remote: &Remote, client: &Client) -> Result<(), Exit> {
    let named = remote.file().path();
    if named == Path::new(DEFAULT_CONFIG) {
        return Ok(());
    }
    let Ok((_, status)) = wait_for(client.look("/status"))? else { return Ok(()) };
    let Some(own) = status["config"]["file"].as_str() else { return Ok(()) };
    let same = match (std::fs::canonicalize(named), std::fs::canonicalize(own)) {
        (Ok(named), Ok(own)) => named == own,
        // In a container, or another process's folder.
        (Ok(_), Err(_)) => true,
        (Err(_), _) => named == Path::new(own),
    };
    if same {
        return Ok(());
    }
    let named = std::path::absolute(named).unwrap_or_else(|_| named.to_owned()).display().to_string();
    let own = clean_lines(own);
    let (typed, put) = (shell_word(&named), shell_word(&own));
    Err(Exit::usage(format!(
        "nothing is done: the process reads {own}, not {named}\nput the new config there, and ask again with -c {put}; \
         what it would change: tidegate plan -c {typed}; to say only where the process is: --admin ADDRESS, without -c \
         and TIDEGATE_CONFIG"
    )))
}

/// The word that is typed for it.
fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Of a listener, or of a backend if there is a `/` in its name.
fn state(target: &str, state: &str, deadline: Option<Deadline>) -> Request {
    let path = backend_path(target).unwrap_or_else(|_| format!("/listeners/{}", escaped(target)));
    let mut body = Map::from_iter([("state".to_owned(), state.into())]);
    body.extend(deadline.and_then(|deadline| deadline.deadline).map(|span| ("deadline".to_owned(), span.into())));
    Request { path, body: Some(body.into()) }
}

/// Of `POOL/BACKEND`; a backend's name may have a `/` in it, a pool's has none.
fn backend_path(target: &str) -> Result<String, Exit> {
    let Some((pool, backend)) =
        target.split_once('/').filter(|(pool, backend)| !pool.is_empty() && !backend.is_empty())
    else {
        return Err(Exit::usage(format!("{target:?} is no POOL/BACKEND; write it as in web/10.0.0.1:80")));
    };
    Ok(format!("/pools/{}/backends/{}", escaped(pool), escaped(backend)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    /// What is asked for by this command line.
    fn asked(line: &str) -> Result<Request, String> {
        let arguments = std::iter::once("tidegate").chain(line.split(' '));
        let parsed = Cli::try_parse_from(arguments).map_err(|error| error.kind().to_string())?;
        let crate::cli::Command::Change(change) = parsed.command else { panic!("{line} changes nothing") };
        request(change).map(|(request, _)| request).map_err(|exit| exit.text)
    }

    #[test]
    fn each_line_is_its_request() {
        for (line, path, body) in [
            ("reload", "/reload", None),
            ("rollback", "/rollback", None),
            ("rollback 3", "/rollback", Some(json!({"generation": 3}))),
            ("upgrade", "/upgrade", None),
            ("drain --process", "/drain", None),
            ("drain web", "/listeners/web", Some(json!({"state": "draining"}))),
            ("drain web --deadline 30s", "/listeners/web", Some(json!({"state": "draining", "deadline": "30s"}))),
            ("drain app/10.0.0.1:80", "/pools/app/backends/10.0.0.1%3A80", Some(json!({"state": "draining"}))),
            (
                "enable app/unix:/run/a.sock",
                "/pools/app/backends/unix%3A%2Frun%2Fa.sock",
                Some(json!({"state": "enabled"})),
            ),
            ("disable web --deadline 1m", "/listeners/web", Some(json!({"state": "disabled", "deadline": "1m"}))),
            ("weight app/a 3", "/pools/app/backends/a", Some(json!({"weight": 3}))),
            ("health app/a down", "/pools/app/backends/a", Some(json!({"health": "down"}))),
            ("add app 10.0.0.9:80", "/pools/app/backends", Some(json!({"address": "10.0.0.9:80"}))),
            (
                "add app 10.0.0.9:80 --name nine --weight 2 --tier 1",
                "/pools/app/backends",
                Some(json!({"address": "10.0.0.9:80", "name": "nine", "weight": 2, "tier": 1})),
            ),
            ("remove app/a", "/pools/app/backends/a/remove", None),
            ("remove app/a --deadline 5s", "/pools/app/backends/a/remove", Some(json!({"deadline": "5s"}))),
            ("close 1-4711", "/connections/1-4711/close", None),
            ("log debug", "/log", Some(json!({"level": "debug"}))),
        ] {
            assert_eq!(asked(line), Ok(Request { path: path.to_owned(), body }), "{line}");
        }
    }

    #[test]
    fn a_line_that_makes_no_sense_asks_for_nothing() {
        for line in [
            "drain",
            "drain web --process",
            "drain --process --deadline 5s",
            "health app/a maybe",
            "log loud",
            "weight app/a x",
        ] {
            assert!(asked(line).is_err(), "{line}");
        }
        let told = "\"app\" is no POOL/BACKEND; write it as in web/10.0.0.1:80";
        assert_eq!(asked("weight app 3"), Err(told.to_owned()));
        assert!(asked("remove app/").is_err());
        assert!(asked("remove /a").is_err());
    }
}
