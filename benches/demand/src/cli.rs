//! The command line: what a person may type, and the hidden subcommands with which this program runs its helpers.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tidegate_compare::process::Guarded;

use crate::backend::Crowd;
use crate::contestant;

/// Drives a slow pool at a multiple of its capacity: what do the users get, with and without demand control?
#[derive(Debug, Parser)]
#[command(name = "demand", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub helper: Option<Helper>,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Debug, Args)]
pub struct Options {
    /// The most telling contestants, one round: about a minute
    #[arg(long)]
    pub quick: bool,
    /// How often each contestant is measured [default: 2, quick: 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub rounds: Option<u64>,
    /// Length of a window in milliseconds [default: 4000, quick: 3000]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(500..=60_000))]
    pub window: Option<u64>,
    /// Instead: two listeners with a pool each; what do the users of the one notice of the other's load?
    #[arg(long, conflicts_with_all = ["quick", "only", "json"])]
    pub bulkheads: bool,
    /// Only these contestants
    #[arg(long, value_delimiter = ',', value_name = "NAME,...", value_parser = clap::builder::PossibleValuesParser::new(contestant::names()))]
    pub only: Vec<String>,
    /// Users a second, in units of the pool's capacity
    #[arg(long, default_value_t = 3.0)]
    pub load: f64,
    /// Milliseconds that a user waits for an answer
    #[arg(long, value_name = "MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub patience: u64,
    /// Attempts of a user after its first
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=10))]
    pub retries: u32,
    /// Backends in the pool
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=50))]
    pub backends: u8,
    /// Requests that each backend works on at a time
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub at_once: u32,
    /// Milliseconds that each request takes
    #[arg(long, value_name = "MS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub service: u64,
    /// What a backend does with more than it can work on
    #[arg(long, value_enum, default_value_t = Crowd::Queue)]
    pub crowd: Crowd,
    /// Writes all windows and the summary to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Prints the table as Markdown
    #[arg(long)]
    pub markdown: bool,
    /// The tidegate to measure [default: cargo build --release of this repository]
    #[arg(long, value_name = "PATH")]
    pub tidegate: Option<PathBuf>,
    /// First of the ports: the backends', then the proxy's and its admin endpoint's
    #[arg(long, value_name = "PORT", default_value_t = 17_300)]
    pub base_port: u16,
    /// Keeps the configurations and logs of the proxies in this directory
    #[arg(long, value_name = "DIRECTORY")]
    pub keep: Option<PathBuf>,
}

impl Options {
    pub fn rounds(&self) -> u64 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 2 })
    }

    pub fn window(&self) -> Duration {
        Duration::from_millis(self.window.unwrap_or(if self.quick { 3_000 } else { 4_000 }))
    }

    /// Until late answers have brought back everybody that they bring back: each attempt takes up to `patience`.
    pub fn warm_up(&self) -> Duration {
        self.patience() * (self.retries + 1)
    }

    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.patience)
    }

    /// Answers a second of the whole pool.
    pub fn capacity(&self) -> f64 {
        f64::from(self.backends) * f64::from(self.at_once) * 1e3 / self.service as f64
    }
}

#[derive(Debug, Subcommand)]
pub enum Helper {
    /// Becomes a command that ends with its parent
    #[command(hide = true)]
    Exec(Guarded),
    /// Runs the backends, told by JSON
    #[command(hide = true)]
    Backends { job: String },
    /// Runs the users, told by JSON, and prints the sample as JSON
    #[command(hide = true)]
    Users { job: String },
}
