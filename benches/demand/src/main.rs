//! Drives a slow pool at a multiple of its capacity, through tidegate and HAProxy, with and without demand control.
//!
//! The walk: `cli` → `bench` (rounds of windows) → for each window `contestant` (a proxy with one setting), `backend`
//! (the slow pool) and `users` (who come whatever happens, give up, and come again), each in a process of its own →
//! `report`. `bulkheads` is another run: two pools behind one tidegate, of which one is overloaded. Processes, ports,
//! CPU clocks and tables come from `../compare`. Linux only; it stays on loopback, and everything that it starts ends
//! with it. README.md says how to read what it prints.

mod backend;
mod bench;
mod bulkheads;
mod cli;
mod contestant;
mod report;
mod users;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use tidegate_compare::process;

use cli::{Cli, Helper};

fn main() -> ExitCode {
    process::exit_code(run(Cli::parse()))
}

fn run(cli: Cli) -> Result<()> {
    match cli.helper {
        None if cli.options.bulkheads => bulkheads::run(&cli.options),
        None => bench::run(&cli.options),
        Some(Helper::Exec(guarded)) => guarded.exec(),
        Some(Helper::Backends { job }) => backend::run(&process::job(&job)?),
        Some(Helper::Users { job }) => process::tell(&users::run(&process::job(&job)?)?),
    }
}
