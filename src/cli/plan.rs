//! `tidegate plan`: what a config would change, of the running process or of another file.
//!
//! Owns where the two configs come from, and the exit code: 0 where nothing would change, 2 for changes, 3 for such
//! as users notice, 78 for a config that is wrong. What is said of it is `config::plan`.

use super::client::{Remote, Shape, wait_for};
use super::{Exit, File, print, say, serve, table};
use crate::config::plan::Plan;
use crate::daemon::Failure;
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub(super) struct Comparison {
    #[arg(help = "Compare with this file, without asking any process")]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["admin", "token_file"])]
    against: Option<PathBuf>,
    /// Its `--config` is the config that is to come.
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    shape: Shape,
}

pub(super) fn run(comparison: &Comparison) -> Result<ExitCode, Exit> {
    let Comparison { against, remote, shape } = comparison;
    let (plan, json) = match against {
        Some(path) => {
            let from = File { path: path.clone() }.load()?;
            let to = serve::examine(remote.file())?;
            let plan = Plan::of(&from, &to, None);
            let json = serde_json::to_value(&plan).map_err(|error| Failure::Internal(error.to_string()))?;
            (plan, json)
        }
        None => of_process(remote)?,
    };
    if shape.json {
        print(format!("{json:#}").as_bytes())?;
    } else {
        print(table::clean_lines(&plan.to_string()).as_bytes())?;
    }
    Ok(ExitCode::from(plan.severity.exit_code()))
}

/// Asks the running process, which says it of its own sessions too.
fn of_process(remote: &Remote) -> Result<(Plan, Value), Exit> {
    // Its warnings come with the answer.
    let text = remote.file().judge()?.text;
    let body = json!({ "config": &*text });
    let client = remote.client()?;
    let answer = wait_for(client.post("/plan", Some(&body)))??.good()?;
    let strange = |error| Exit::refused(format!("/plan: the answer can't be understood: {error}"));
    let mut answer: Value = serde_json::from_slice(&answer.body).map_err(strange)?;
    let details = answer["details"].take();
    for warning in details["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        say(&table::clean_lines(warning));
    }
    let plan = Plan::deserialize(&details).map_err(strange)?;
    Ok((plan, details))
}
