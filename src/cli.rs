//! The command line: what was typed, and which part of the library answers it.
//!
//! Owns the subcommands, where messages go (mistakes to stderr, verdicts to stdout) and the exit codes; decides
//! nothing about traffic.

use crate::config::{Config, Loaded, Mistakes, Style};
use crate::daemon::{self, Announce, Failure};
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
        output: Output,
    },
    /// Say whether a config is good, binding nothing: exit code 0, or 78 and every mistake.
    Check {
        #[command(flatten)]
        file: File,
    },
    /// Balance over three built-in backends, one of which dies and comes back now and then.
    Demo {
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Args)]
struct File {
    /// The config.
    #[arg(long = "config", short = 'c', value_name = "FILE", env = "TIDEGATE_CONFIG")]
    #[arg(default_value = "/etc/tidegate/lb.toml")]
    path: PathBuf,
}

#[derive(Args)]
struct Output {
    /// When ready, print one line of JSON on stdout that says where everything is bound.
    #[arg(long)]
    announce: bool,
}

impl Output {
    fn announce(&self) -> Announce {
        if self.announce { Announce::Stdout } else { Announce::Quiet }
    }
}

/// Parses the arguments of the process, does what they say, and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let verdict = match Cli::parse().command {
        Command::Run { file, output } => file.load().and_then(|config| daemon::run(&config, output.announce())),
        Command::Check { file } => check(&file),
        Command::Demo { output } => demo::run(output.announce()),
    };
    match verdict {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    }
}

impl File {
    /// A good config; its warnings are said on stderr.
    fn load(&self) -> Result<Config, Failure> {
        let Loaded { config, warnings } =
            Config::load(&self.path).map_err(|mistakes: Mistakes| Failure::Config(mistakes.render(style())))?;
        for warning in &warnings {
            say(&warning.render(style()));
        }
        Ok(config)
    }
}

/// The verdict that a start or a reload would give, short of what only binding can tell.
fn check(file: &File) -> Result<(), Failure> {
    let config = file.load()?;
    daemon::resolve(&config)?;
    // It may be meant for another host, or for a user that may more.
    for lack in daemon::lacks(&config).iter().filter(|lack| lack.severity != daemon::Severity::Privilege) {
        say(&format!("on this host: {}", lack.text));
    }
    let backends = config.pools.iter().map(|pool| pool.members.len()).sum();
    let counts =
        [plural(config.listeners.len(), "listener"), plural(config.pools.len(), "pool"), plural(backends, "backend")];
    // A closed stdout doesn't change the verdict.
    let _ = writeln!(std::io::stdout(), "{}: fine: {}", file.path.display(), counts.join(", "));
    Ok(())
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn say(text: &str) {
    // Nobody is left to be told if stderr is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn style() -> Style {
    if std::io::stderr().is_terminal() { Style::Colour } else { Style::Plain }
}
