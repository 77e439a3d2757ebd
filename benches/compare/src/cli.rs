//! The command line: what a person may type, and the hidden subcommands with which this program runs its helpers.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::mode;
use crate::process::Guarded;
use crate::server::Source;

/// Measures tidegate beside HAProxy, nginx and no proxy at all: one machine, one run, interleaved windows
#[derive(Debug, Parser)]
#[command(name = "compare", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub helper: Option<Helper>,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Health {
    On,
    Off,
}

#[derive(Debug, Args)]
pub struct Options {
    /// The modes of the usual run with short windows and few rounds: under two minutes
    #[arg(long, conflicts_with = "full")]
    pub quick: bool,
    /// All modes, and then some with two workers: about 20 minutes
    #[arg(long, conflicts_with = "workers")]
    pub full: bool,
    /// How often each peer is measured in each mode [default: 7, quick: 3, full: 5]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: Option<u32>,
    /// Length of a window in milliseconds [default: 1500, quick: 600]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(50..=60_000))]
    pub window: Option<u64>,
    /// Only these modes, or groups of modes
    #[arg(long, value_delimiter = ',', value_name = "MODE,...", value_parser = PossibleValuesParser::new(mode::names()))]
    pub only: Vec<String>,
    /// Only these peers: direct, tidegate, haproxy, haproxy-auto, haproxy-best, nginx
    #[arg(long, value_delimiter = ',', value_name = "PEER,...")]
    pub peers: Vec<String>,
    /// The peer that all ratios refer to
    #[arg(long, value_name = "PEER", default_value = "haproxy")]
    pub base: String,
    /// Writes all windows and the summary to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draws the ratios of the most telling figures to this file as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Prints the tables as Markdown
    #[arg(long)]
    pub markdown: bool,
    /// The tidegate to measure [default: cargo build --release of this repository]
    #[arg(long, value_name = "PATH")]
    pub tidegate: Option<PathBuf>,
    /// Workers (threads, processes) of each proxy; more than one runs unpinned
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// Active health checks, in the peers that have them
    #[arg(long, value_enum, default_value_t = Health::On)]
    pub health: Health,
    /// Idle connections in the mode idle
    #[arg(long, value_name = "COUNT", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub idle: u32,
    /// Where the bytes of a download or an upload come from: a file (sendfile) or the sender's memory (send)
    #[arg(long, value_enum, default_value_t = Source::File)]
    pub source: Source,
    /// First of the ports of the proxies
    #[arg(long, value_name = "PORT", default_value_t = 17_100)]
    pub base_port: u16,
    /// Ports of the two backends
    #[arg(long, value_name = "PORT,PORT", value_delimiter = ',', num_args = 1, default_values_t = [9_001, 9_002])]
    pub backend_ports: Vec<u16>,
    /// Keeps the configurations and logs of the peers in this directory
    #[arg(long, value_name = "DIRECTORY")]
    pub keep: Option<PathBuf>,
    /// One more proxy: a shell command that listens on 127.0.0.1:{port} and goes to the backends 127.0.0.1:{backend1}
    /// and 127.0.0.1:{backend2}
    #[arg(long, value_name = "NAME=COMMAND", hide = true)]
    pub extra: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Helper {
    /// Becomes a command that ends with its parent
    #[command(hide = true)]
    Exec(Guarded),
    /// Does a job, given as JSON, and prints the sample as JSON
    #[command(hide = true)]
    Load { job: String },
    /// Runs the backends
    #[command(hide = true)]
    Server { source: Source, tally: PathBuf, listen: Vec<std::net::SocketAddrV4> },
}
