//! `tidegate run`, `check` and `demo`: the process itself, and the verdict that it would give of a config.

use super::{File, say};
use crate::config::Config;
use crate::daemon::{self, Announce, ConfigSource, Failure};
use clap::Args;
use std::io::Write;

#[derive(Args)]
pub(super) struct Output {
    /// When ready, print one line of JSON on stdout that says where everything is bound.
    #[arg(long)]
    announce: bool,
}

impl Output {
    pub(super) fn announce(&self) -> Announce {
        if self.announce { Announce::Stdout } else { Announce::Quiet }
    }
}

/// Serves until it is told to stop.
pub(super) fn run(file: &File, output: &Output) -> Result<(), Failure> {
    let source = ConfigSource::File { path: file.path().to_owned(), loaded: file.read()? };
    daemon::run(source, output.announce())
}

/// The verdict that a start or a reload would give, short of what only binding can tell.
pub(super) fn check(file: &File) -> Result<(), Failure> {
    let config = examine(file)?;
    let backends = config.pools.iter().map(|pool| pool.members.len()).sum();
    let counts =
        [plural(config.listeners.len(), "listener"), plural(config.pools.len(), "pool"), plural(backends, "backend")];
    // A closed stdout doesn't change the verdict.
    let _ = writeln!(std::io::stdout(), "{}: fine: {}", file.path.display(), counts.join(", "));
    Ok(())
}

/// A config that this verdict finds good; what is hardly meant is said.
pub(super) fn examine(file: &File) -> Result<Config, Failure> {
    let config = file.load()?;
    daemon::resolve(&config)?;
    // It may be meant for another host, or for a user that may more.
    for lack in daemon::lacks(&config).iter().filter(|lack| lack.severity != daemon::Severity::Privilege) {
        say(&format!("on this host: {}", lack.text));
    }
    Ok(config)
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
