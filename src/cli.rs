//! The command line: what was typed, and which part of the library answers it.
//!
//! Owns the subcommands, where messages go (mistakes to stderr, verdicts to stdout) and the exit codes; decides
//! nothing about traffic.

use crate::admin::explain::{Complaint, Explanation, Question, Standpoint};
use crate::clock::Now;
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
    /// Say where a client would go and why, from a config alone: its rule, its pool, its backend, and why no other.
    ///
    /// Every backend is taken to be up and idle. GET /explain of the admin endpoint answers the same for a running
    /// process, as it stands.
    Explain {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        client: Box<Client>,
        /// Answer in JSON.
        #[arg(long)]
        json: bool,
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

/// A client that there might be; the names are those of [`crate::admin::explain::PARAMETERS`].
#[derive(Args)]
struct Client {
    /// The listener that it connects to.
    #[arg(long, value_name = "NAME")]
    listener: String,
    /// Its address, such as 10.1.2.3 or 10.1.2.3:4711, or unix.
    #[arg(long, value_name = "ADDRESS")]
    from: String,
    /// Where it connects to, for rules that ask for that: 192.0.2.1:443.
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: Option<String>,
    /// It begins with TLS, and names this server; "" names none.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// It begins with TLS, and offers this protocol; may be given several times.
    #[arg(long, value_name = "PROTOCOL")]
    alpn: Vec<String>,
    /// It begins with a request of HTTP/1, with this method. Default: GET
    #[arg(long)]
    method: Option<String>,
    /// The same, of this host.
    #[arg(long)]
    host: Option<String>,
    /// The same, of this path. Default: /
    #[arg(id = "request_path", long = "path", value_name = "PATH")]
    path: Option<String>,
    /// The same, with this header; may be given several times.
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// It begins with these bytes: text, or hex:160301.
    #[arg(long, value_name = "TEXT")]
    first_bytes: Option<String>,
}

impl Client {
    fn parameters(self) -> Vec<(String, String)> {
        let Self { listener, from, to, sni, alpn, method, host, path, header, first_bytes } = self;
        let once = [
            ("listener", Some(listener)),
            ("from", Some(from)),
            ("to", to),
            ("sni", sni),
            ("method", method),
            ("host", host),
            ("path", path),
            ("first_bytes", first_bytes),
        ];
        let once = once.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let more =
            alpn.into_iter().map(|value| ("alpn", value)).chain(header.into_iter().map(|value| ("header", value)));
        once.chain(more).map(|(name, value)| (name.to_owned(), value)).collect()
    }
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
        Command::Explain { file, client, json } => explain(&file, *client, json),
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

/// What would become of a client.
fn explain(file: &File, client: Client, json: bool) -> Result<(), Failure> {
    let usage = |mut complaint: Complaint| {
        complaint.parameter = format!("--{}", complaint.parameter.replace('_', "-"));
        Failure::Usage(complaint.to_string())
    };
    let question = Question::parse(&client.parameters()).map_err(usage)?;
    let table = daemon::offline_table(&file.load()?)?;
    let explanation = Explanation::of(&table, &question, Standpoint::Config, Now::read()).map_err(usage)?;
    let text = if json {
        let json = serde_json::to_string_pretty(&explanation);
        json.map_err(|error| Failure::Internal(error.to_string()))? + "\n"
    } else {
        explanation.to_string()
    };
    // A closed stdout is nobody's mistake.
    let _ = std::io::stdout().write_all(text.as_bytes());
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
