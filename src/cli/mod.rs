//! The command line: what was typed, and which part of the library answers it.
//!
//! One file a group of subcommands. Owns the list of them, where messages go (mistakes to stderr, verdicts to stdout)
//! and the exit codes; decides nothing about traffic.

mod change;
mod client;
mod explain;
mod generate;
mod look;
mod plan;
mod serve;
mod table;
mod top;

use crate::config::{Config, Loaded, Mistakes, Style};
use crate::daemon::Failure;
use crate::demo;
use clap::{Args, Parser, Subcommand};
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Of sysexits.h: the command line is wrong; what was asked for can't be written.
const EX_USAGE: u8 = 64;
const EX_IOERR: u8 = 74;

/// Below the list of subcommands.
const EXIT_CODES: &str = "\
Exit codes: 0 it is so; 1 it can't be done as things are; 2 the command line is wrong (of plan: changes); 3 of plan: \
changes that users notice; 64 of plan: the command line is wrong; 65 what was asked for is wrong; 66 no token file; 69 no \
process answers; 70 a bug; 71 the system refuses; 74 the answer can't be written; 77 not allowed; 78 the config has a \
mistake.";

/// A Layer-4 TCP load balancer that is honest about how a connection ended.
#[derive(Parser)]
#[command(name = "tidegate", version, max_term_width = 100, after_help = EXIT_CODES)]
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
    /// Say what a config would change of the running process, and which sessions that touches; or of another file.
    ///
    /// Exit code 0 if nothing would change, 2 for changes, 3 for those that users notice or that need a new process.
    #[command(mut_arg("path", |file| file.help(NEW_CONFIG)))]
    Plan {
        #[command(flatten)]
        comparison: Box<plan::Comparison>,
    },
    /// Say where a client would go and why: its rule, its pool, its backend, and why no other.
    ///
    /// From a config alone every backend is taken to be up and idle.
    #[command(mut_arg("path", |file| file.help("The config; with --live, the one that says where the process is")))]
    Explain {
        /// Ask the running process, as it stands, and not the config.
        #[arg(long)]
        live: bool,
        #[command(flatten)]
        remote: client::Remote,
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
    #[command(flatten)]
    Look(look::Look),
    /// Watch the running process: rates, backends, and the sessions that move most; q ends it.
    Top(top::Top),
    #[command(flatten)]
    Change(change::Change),
    /// Print what a shell reads to complete command lines of tidegate.
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages, one for each subcommand.
    Man {
        /// Where to; it is made if it isn't there.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

#[derive(Args)]
struct File {
    /// The config.
    #[arg(long = "config", short = 'c', value_name = "FILE", env = "TIDEGATE_CONFIG")]
    #[arg(default_value = DEFAULT_CONFIG)]
    path: PathBuf,
}

/// Of `plan`.
const NEW_CONFIG: &str = "The config that is to come; without --admin, its admin.listen says where the process is";

/// Where the config is if nothing says it.
const DEFAULT_CONFIG: &str = "/etc/tidegate/lb.toml";

/// What the process ends with where it fails, and why.
#[derive(Debug)]
struct Exit {
    code: u8,
    text: String,
}

impl Exit {
    fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// What was typed makes no sense.
    fn usage(text: String) -> Self {
        Failure::Usage(text).into()
    }

    /// The running process can't do it as things are.
    fn refused(text: String) -> Self {
        Self::new(1, text)
    }
}

impl From<Failure> for Exit {
    fn from(failure: Failure) -> Self {
        Self::new(failure.exit_code(), failure.to_string())
    }
}

/// Parses the arguments of the process, does what they say, and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            // Nobody is left to be told if there is no reader.
            let _ = error.print();
            return ExitCode::from(usage_code(&error));
        }
    };
    let done = |()| ExitCode::SUCCESS;
    let verdict = match command {
        Command::Run { file, output } => serve::run(&file, &output).map(done).map_err(Exit::from),
        Command::Check { file } => serve::check(&file).map(done).map_err(Exit::from),
        Command::Plan { comparison } => plan::run(&comparison),
        Command::Explain { live, remote, client, json } => explain::explain(&remote, live, *client, json).map(done),
        Command::Demo { output } => demo::run(output.announce()).map(done).map_err(Exit::from),
        Command::Look(look) => look::run(look).map(done),
        Command::Top(top) => top::run(&top).map(done),
        Command::Change(change) => change::run(change).map(done),
        Command::Completions { shell } => generate::completions(shell).map(done),
        Command::Man { folder } => generate::man(&folder).map(done),
    };
    verdict.unwrap_or_else(|exit| {
        say(&exit.text);
        ExitCode::from(exit.code)
    })
}

/// Of a command line that can't be read, or that asks for help.
fn usage_code(error: &clap::Error) -> u8 {
    // What clap and most programs have; but of `plan` it means that something would change.
    let wrong = if std::env::args_os().nth(1).is_some_and(|word| word == "plan") { EX_USAGE } else { 2 };
    if error.use_stderr() { wrong } else { 0 }
}

impl File {
    fn path(&self) -> &Path {
        &self.path
    }

    /// A good config; its warnings are said on stderr.
    fn load(&self) -> Result<Config, Failure> {
        self.read().map(|loaded| loaded.config)
    }

    /// The same, with the text that it comes from and its warnings, of which nothing is said.
    fn judge(&self) -> Result<Loaded, Failure> {
        Config::load(&self.path).map_err(|mistakes: Mistakes| Failure::Config(mistakes.render(style())))
    }

    /// The same, with the warnings said on stderr.
    fn read(&self) -> Result<Loaded, Failure> {
        let loaded = self.judge()?;
        for warning in &loaded.warnings {
            say(&warning.render(style()));
        }
        Ok(loaded)
    }
}

/// Prints an answer on stdout, with a line end behind it. That nobody reads on is nobody's mistake; else a script must
/// not take for an answer what was cut.
fn print(text: &[u8]) -> Result<(), Exit> {
    let mut stdout = std::io::stdout().lock();
    let end: &[u8] = if text.ends_with(b"\n") { b"" } else { b"\n" };
    match stdout.write_all(text).and_then(|()| stdout.write_all(end)).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Exit::new(EX_IOERR, format!("the answer can't be written: {error}")))
        }
        _ => Ok(()),
    }
}

fn say(text: &str) {
    // Nobody is left to be told if stderr is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn style() -> Style {
    if std::io::stderr().is_terminal() { Style::Colour } else { Style::Plain }
}
