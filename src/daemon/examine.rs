//! A config on its way in: whether it is good, and makes sense on this host.
//!
//! Owns the words of a refusal for those who ask the process: one line for each mistake. Only looks; what is bound and
//! taken is `live`'s.

use super::Failure;
use super::fds;
use super::live::Base;
use super::sockets::{self, Severity};
use super::start::resolve;
use crate::config::{Config, Loaded, Mistake, Mistakes};
use crate::table::Resolution;
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// A config that makes sense here, of which nothing has been bound.
pub struct Examined {
    pub config: Config,
    pub text: Arc<str>,
    pub resolution: Resolution,
    pub plan: fds::Plan,
    /// What it does that is hardly meant.
    pub warnings: Vec<String>,
}

/// The part of phase one that is only looking. Fails with a line for each mistake.
pub fn examine(base: &Base, loaded: Loaded) -> Result<Examined, Failure> {
    let Loaded { config, warnings, text } = loaded;
    let mut warnings: Vec<String> = warnings.iter().map(Mistake::first_line).collect();
    let resolution = resolve(&config)?;
    let (lacks, refusals): (Vec<_>, Vec<_>) =
        sockets::lacks(&config).into_iter().partition(|lack| lack.severity == Severity::Warning);
    warnings.extend(lacks.into_iter().map(|lack| lack.text));
    if !refusals.is_empty() {
        let texts: Vec<String> = refusals.into_iter().map(|lack| lack.text).collect();
        return Err(Failure::System(texts.join("\n")));
    }
    let plan = fds::plan(&config, base.workers, base.limit).map_err(Failure::System)?;
    warnings.extend(limits_out_of_reach(&config, plan.max_sessions));
    Ok(Examined { config, text, resolution, plan, warnings })
}

/// The config file as it is now, if it is good.
pub fn load(path: &Path) -> Result<Loaded, Failure> {
    Config::load(path).map_err(|mistakes| mistaken(&mistakes))
}

/// The same for a text that stands for the file.
pub fn parse(path: &Path, text: &str) -> Result<Loaded, Failure> {
    Config::parse(&path.to_string_lossy(), text.as_bytes()).map_err(|mistakes| mistaken(&mistakes))
}

fn mistaken(mistakes: &Mistakes) -> Failure {
    let mut lines: Vec<String> = mistakes.iter().map(Mistake::first_line).collect();
    if mistakes.unlisted() > 0 {
        lines.push(format!("and {} more", mistakes.unlisted()));
    }
    Failure::Config(lines.join("\n"))
}

/// A limit that the process reaches first is hardly meant.
fn limits_out_of_reach(config: &Config, max_sessions: usize) -> impl Iterator<Item = String> {
    config.listeners.iter().filter_map(move |listener| {
        let own = listener.admission.limits.max_connections.filter(|&own| own > max_sessions)?;
        let name = &listener.name;
        Some(format!(
            "listeners.{name}: max_connections = {own} is never reached: the process serves {max_sessions} at most"
        ))
    })
}

/// Of a config's text; 16 hexadecimal digits.
pub fn hash(text: &str) -> String {
    format!("{:016x}", xxh3_64(text.as_bytes()))
}
