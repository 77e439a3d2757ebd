//! The command line: what was typed, and which part of the library answers it.
//!
//! One file a group of subcommands. Owns the list of them, where messages go (mistakes to stderr, verdicts to stdout)
//! and the exit codes; decides nothing about traffic.

mod explain;
mod serve;

use crate::config::{Config, Loaded, Mistakes, Style};
use crate::daemon::{self, ConfigSource, Failure};
use crate::demo;
use clap::{Args, Parser, Subcommand};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// A Layer-4 TCP load balancer that is honest about how a connection ended.
#[derive(Parser)]
#[command(name = "tidegate", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT; a second one ends at once.
    Run {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        output: serve::Output,
    },
    /// Say whether a config is good, binding nothing: exit code 0, or 78 and every mistake.
    Check {
        #[command(flatten)]
        file: File,
    },
    /// Say where a client would go and why, from a config alone: its rule, its pool, its backend, and why no other.
    ///
    /// Every backend is taken to be up and idle. GET /explain of the admin endpoint answers the same for a running
    /// process, as it stands.
    Explain {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        client: Box<explain::Client>,
        /// Answer in JSON.
        #[arg(long)]
        json: bool,
    },
    /// Balance over three built-in backends, one of which dies and comes back now and then.
    Demo {
        #[command(flatten)]
        output: serve::Output,
    },
}

#[derive(Args)]
struct File {
    /// The config.
    #[arg(long = "config", short = 'c', value_name = "FILE", env = "TIDEGATE_CONFIG")]
    #[arg(default_value = "/etc/tidegate/lb.toml")]
    path: PathBuf,
}

/// Parses the arguments of the process, does what they say, and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let done = |()| ExitCode::SUCCESS;
    let verdict = match Cli::parse().command {
        Command::Run { file, output } => {
            let run = |loaded| daemon::run(ConfigSource::File { path: file.path.clone(), loaded }, output.announce());
            file.read().and_then(run).map(done)
        }
        Command::Check { file } => serve::check(&file).map(done),
        Command::Explain { file, client, json } => explain::explain(&file, *client, json).map(done),
        Command::Demo { output } => demo::run(output.announce()).map(done),
    };
    verdict.unwrap_or_else(|failure| {
        say(&failure.to_string());
        ExitCode::from(failure.exit_code())
    })
}

impl File {
    /// A good config; its warnings are said on stderr.
    fn load(&self) -> Result<Config, Failure> {
        self.read().map(|loaded| loaded.config)
    }

    /// The same, with the text that it comes from.
    fn read(&self) -> Result<Loaded, Failure> {
        let loaded =
            Config::load(&self.path).map_err(|mistakes: Mistakes| Failure::Config(mistakes.render(style())))?;
        for warning in &loaded.warnings {
            say(&warning.render(style()));
        }
        Ok(loaded)
    }
}

fn say(text: &str) {
    // Nobody is left to be told if stderr is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn style() -> Style {
    if std::io::stderr().is_terminal() { Style::Colour } else { Style::Plain }
}
