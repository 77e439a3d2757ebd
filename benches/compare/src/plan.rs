//! What a run is going to measure, and how long that takes: from the options alone, before anything is started.
//!
//! A run has sections. In each all peers have the same number of workers. A run with `--full` has two: everything with
//! one worker, then what can gain from it with two.

use std::fmt;
use std::time::Duration;

use crate::cli::Options;
use crate::mode::{self, Cores, MODES, Mode, Workload};

const QUICK: Length =
    Length { rounds: 3, window: Duration::from_millis(600), warm_up: Duration::from_millis(120), idle_rounds: 2 };
const USUAL: Length =
    Length { rounds: 7, window: Duration::from_millis(1_500), warm_up: Duration::from_millis(300), idle_rounds: 3 };
const FULL: Length = Length { rounds: 5, ..USUAL };
/// Of the second section of a full run.
const MORE_WORKERS: u16 = 2;

/// What a window takes beyond its length, for the estimate: processes to start and to end, clocks to read.
const WINDOW_EXTRA: Duration = Duration::from_millis(40);
/// A storm of 5,000 connections, its closing and its clocks.
const STORM: Duration = Duration::from_secs(1);
/// A proxy started, and so many connections opened, one after the other in each.
const IDLE: Duration = Duration::from_millis(1_500);
/// A proxy started, and its calls counted twice.
const CALLS: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    pub rounds: u32,
    pub window: Duration,
    pub warm_up: Duration,
    /// Idle memory hardly differs from round to round.
    pub idle_rounds: u32,
}

pub struct Section {
    pub workers: u16,
    pub modes: Vec<&'static Mode>,
}

pub struct Plan {
    pub length: Length,
    pub sections: Vec<Section>,
}

impl Plan {
    pub fn new(options: &Options) -> Self {
        let wanted = |mode: &Mode| {
            if options.only.is_empty() {
                options.full || mode.headline
            } else {
                options.only.iter().any(|name| mode::is_named(mode, name))
            }
        };
        let modes: Vec<_> = MODES.iter().filter(|mode| wanted(mode)).collect();
        let more = Section { workers: MORE_WORKERS, modes: modes.iter().copied().filter(|m| m.scales).collect() };
        let mut sections = vec![Section { workers: options.workers, modes }];
        if options.full && !more.modes.is_empty() {
            sections.push(more);
        }
        Self { length: length(options), sections }
    }

    /// About how long the run takes with so many peers, of which so many are proxies. Without a build of tidegate.
    pub fn expected(&self, peers: u32, proxies: u32) -> Duration {
        let Length { rounds, window, warm_up, idle_rounds } = self.length;
        let modes = self.sections.iter().flat_map(|section| &section.modes);
        let times = modes.map(|mode| match mode.workload {
            Workload::Traffic(_) => (window + warm_up + WINDOW_EXTRA) * peers * rounds,
            Workload::Storm(_) => STORM * peers * rounds,
            Workload::Idle(_) => IDLE * proxies * idle_rounds,
            Workload::Calls => CALLS * proxies,
        });
        times.sum()
    }
}

impl Section {
    /// In a section with several workers everybody may run anywhere: a mode alone may ask for that, too.
    pub fn cores(&self, mode: &Mode) -> Cores {
        if self.workers > 1 { Cores::Shared } else { mode.cores }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.workers {
            1 => write!(f, "One worker each"),
            workers => write!(f, "{workers} workers each, nobody pinned to a core"),
        }
    }
}

fn length(options: &Options) -> Length {
    let mut length = match (options.quick, options.full) {
        (true, _) => QUICK,
        (_, true) => FULL,
        _ => USUAL,
    };
    if let Some(rounds) = options.rounds {
        length.rounds = rounds;
        length.idle_rounds = length.idle_rounds.min(rounds);
    }
    if let Some(window) = options.window {
        length.window = Duration::from_millis(window);
    }
    length
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn plan(arguments: &[&str]) -> Plan {
        Plan::new(&Cli::parse_from([&["compare"], arguments].concat()).options)
    }

    fn names(section: &Section) -> Vec<&'static str> {
        section.modes.iter().map(|mode| mode.name).collect()
    }

    #[test]
    fn a_full_run_has_every_mode_and_then_those_that_scale() {
        let full = plan(&["--full"]);
        assert_eq!(full.sections[0].modes.len(), MODES.len());
        assert_eq!(full.sections[1].workers, MORE_WORKERS);
        assert_eq!(names(&full.sections[1]), ["conn", "rr", "bulk", "mixed"]);
        assert!(full.sections[1].modes.iter().all(|mode| full.sections[1].cores(mode) == Cores::Shared));
    }

    #[test]
    fn only_narrows_every_section_and_drops_an_empty_one() {
        let one = plan(&["--only", "up"]);
        assert_eq!(names(&one.sections[0]), ["up"]);
        assert_eq!(one.sections.len(), 1);
        assert_eq!(plan(&["--full", "--only", "up"]).sections.len(), 1);
        let two = plan(&["--full", "--only", "conn-all"]);
        assert_eq!(names(&two.sections[0]), ["conn-1", "conn", "conn-256"]);
        assert_eq!(names(&two.sections[1]), ["conn"]);
    }

    #[test]
    fn the_runs_keep_their_budgets_with_every_peer() {
        let minutes = |arguments: &[&str], peers| plan(arguments).expected(peers, peers - 1).as_secs_f64() / 60.0;
        assert!(minutes(&["--quick"], 5) < 2.0, "{}", minutes(&["--quick"], 5));
        assert!(minutes(&["--full"], 6) < 25.0, "{}", minutes(&["--full"], 6));
        assert!(minutes(&[], 6) < 15.0, "{}", minutes(&[], 6));
    }

    #[test]
    fn rounds_and_windows_can_be_asked_for() {
        let length = plan(&["--quick", "--rounds", "1", "--window", "300"]).length;
        assert_eq!((length.rounds, length.idle_rounds, length.window.as_millis()), (1, 1, 300));
    }
}
