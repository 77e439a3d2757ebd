//! Measures tidegate beside HAProxy, nginx and no proxy at all, on one machine, in one run.
//!
//! The walk: `cli` → `plan` (which `mode`s, how long) → `bench` (a run) → `peers` (found, started, checked) and
//! `server` (the backends) → for each window a `load` (the clients, in a process of their own), or `calls` (strace) →
//! `figure` (computed from a window) → `stats` → `report`. `process`, `ports`, `cpu`, `machine` and `sys` are what it
//! needs from the system. It is Linux only, stays on loopback, and everything that it starts ends with it. README.md
//! says how to read what it prints.

mod bench;
mod calls;
mod cli;
mod figure;
mod load;
mod machine;
mod mode;
mod peers;
mod plan;
mod report;
mod server;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use cli::{Cli, Helper};
// What other benchmarks share: `lib.rs`.
use tidegate_compare::{cpu, ports, process, stats, sys};

fn main() -> ExitCode {
    process::exit_code(run(Cli::parse()))
}

fn run(cli: Cli) -> Result<()> {
    match cli.helper {
        None => bench::run(&cli.options),
        Some(Helper::Exec(guarded)) => guarded.exec(),
        Some(Helper::Server { source, tally, listen }) => server::run(source, &tally, &listen),
        Some(Helper::Load { job }) => process::tell(&load::run(&process::job(&job)?)?),
    }
}
