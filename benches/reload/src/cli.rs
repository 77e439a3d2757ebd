//! The command line: what a person may type, and the hidden subcommands with which this program runs its helpers.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tidegate_compare::process::Guarded;

use crate::contestant::Proxy;

/// Reloads and upgrades proxies while clients come and stay: what do the clients notice?
#[derive(Debug, Parser)]
#[command(name = "reload", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub helper: Option<Helper>,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Debug, Args)]
pub struct Options {
    /// What is done to the proxy
    #[arg(long, value_enum, default_value_t = Change::Reload)]
    pub change: Change,
    /// How often [default: 300 reloads, 10 upgrades]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: Option<u32>,
    /// Seconds of each window, over which the changes are spread
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(3..=600))]
    pub seconds: u64,
    /// How often each contestant is measured
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Only these
    #[arg(long, value_delimiter = ',', value_name = "NAME,...", value_enum)]
    pub only: Vec<Proxy>,
    /// Short connections a second
    #[arg(long, default_value_t = 1_200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
    /// Streams that run before the first change, and streams that begin one after the other during the window
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    pub streams: u32,
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    pub late_streams: u32,
    /// Threads of tidegate and HAProxy, processes of nginx
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: u32,
    /// Writes all windows to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Prints the table as Markdown
    #[arg(long)]
    pub markdown: bool,
    /// The tidegate to measure [default: cargo build --release of this repository]
    #[arg(long, value_name = "PATH")]
    pub tidegate: Option<PathBuf>,
    /// First of twenty ports
    #[arg(long, value_name = "PORT", default_value_t = 17_400)]
    pub base_port: u16,
    /// Keeps the configurations and logs of the proxies in this directory
    #[arg(long, value_name = "DIRECTORY")]
    pub keep: Option<PathBuf>,
}

/// What is done to a running proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Change {
    /// Another config.
    Reload,
    /// Another config, and the program is started anew.
    Upgrade,
}

impl Options {
    pub fn count(&self) -> u32 {
        self.count.unwrap_or(match self.change {
            Change::Reload => 300,
            Change::Upgrade => 10,
        })
    }

    pub fn window(&self) -> Duration {
        Duration::from_secs(self.seconds)
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
    /// Runs the clients, told by JSON, and prints the sample as JSON
    #[command(hide = true)]
    Load { job: String },
}
