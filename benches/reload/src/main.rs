//! Reloads and upgrades proxies while clients come and stay, and counts what the clients notice.
//!
//! The walk: `cli` → `bench` (rounds of windows) → for each window `contestant` (a proxy whose config changes each
//! time), `backend` (echoes) and `load` (short connections and long streams), each in a process of its own → `group`
//! (processes, descriptors, memory and CPU of the proxy) → `report`. Processes, ports and tables come from
//! `../compare`. Linux only; it stays on loopback, and everything that it starts ends with it. README.md says how to
//! read what it prints.

#![allow(clippy::disallowed_methods, reason = "tidegate's own rules for tasks and sleeping; a pace is made of time")]

mod backend;
mod bench;
mod cli;
mod contestant;
mod group;
mod load;
mod report;

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
        None => bench::run(&cli.options),
        Some(Helper::Exec(guarded)) => guarded.exec(),
        Some(Helper::Backends { job }) => backend::run(&process::job(&job)?),
        Some(Helper::Load { job }) => process::tell(&load::run(&process::job(&job)?)?),
    }
}
