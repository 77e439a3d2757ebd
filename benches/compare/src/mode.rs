//! The modes: what the clients do in one kind of window, and which figures come out of it. Data, so that a new mode
//! is one entry of `MODES`. The figures themselves are in `figure.rs`.
//!
//! Invariants: names are unique and stable, for scripts ask for them (`--only`, JSON); a group is never named like a
//! mode.

use crate::figure::{Figure, Per};
use crate::load::{First, Traffic};

pub struct Mode {
    /// For `--only` and for scripts.
    pub name: &'static str,
    pub group: &'static str,
    pub title: &'static str,
    pub workload: Workload,
    pub cores: Cores,
    pub figures: &'static [Figure],
    /// Measured without being asked for, in the quick and in the usual run.
    pub headline: bool,
    /// Measured in a full run with two workers as well.
    pub scales: bool,
}

#[derive(Clone, Copy)]
pub enum Workload {
    /// All proxies are up and take turns.
    Traffic(Traffic),
    /// So many connections at once, one echo on each, then all closed. All proxies are up and take turns.
    Storm(u32),
    /// On a fresh process.
    Idle(IdleCount),
    /// Counts system calls, on a fresh process.
    Calls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleCount {
    /// An option of the run.
    AsAsked,
    /// As many as the limit of descriptors allows.
    Limit,
}

/// Who may run where, on a machine with at least two cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// The proxy has one core, clients and backends have the others.
    Split,
    /// Everybody may run anywhere.
    Shared,
}

impl Mode {
    /// All proxies are up and take turns, in windows that are spread over the run.
    pub fn takes_turns(&self) -> bool {
        matches!(self.workload, Workload::Traffic(_) | Workload::Storm(_))
    }

    const fn headline(self) -> Self {
        Self { headline: true, ..self }
    }

    const fn scales(self) -> Self {
        Self { scales: true, ..self }
    }
}

const NONE: Traffic =
    Traffic { short: 0, pings: 0, downloads: 0, uploads: 0, both: 0, bytes: 64, first: First::Message };

const fn mode(
    group: &'static str,
    name: &'static str,
    title: &'static str,
    workload: Workload,
    figures: &'static [Figure],
) -> Mode {
    Mode { name, group, title, workload, cores: Cores::Split, figures, headline: false, scales: false }
}

const fn conn(name: &'static str, title: &'static str, short: usize) -> Mode {
    short_connections("conn", name, title, Traffic { short, ..NONE })
}

const fn first(name: &'static str, title: &'static str, short: usize, first: First) -> Mode {
    short_connections("first", name, title, Traffic { short, first, ..NONE })
}

const fn short_connections(group: &'static str, name: &'static str, title: &'static str, traffic: Traffic) -> Mode {
    const FIGURES: &[Figure] = &[
        Figure::Cpu(Per::Connection),
        Figure::SystemCpu(Per::Connection),
        Figure::Connections,
        Figure::P50,
        Figure::P99,
        Figure::P999,
    ];
    mode(group, name, title, Workload::Traffic(traffic), FIGURES)
}

const fn rr(name: &'static str, title: &'static str, pings: usize, bytes: usize) -> Mode {
    const FIGURES: &[Figure] = &[
        Figure::Cpu(Per::Request),
        Figure::SystemCpu(Per::Request),
        Figure::Requests,
        Figure::P50,
        Figure::P99,
        Figure::P999,
    ];
    mode("rr", name, title, Workload::Traffic(Traffic { pings, bytes, ..NONE }), FIGURES)
}

const fn bulk(name: &'static str, title: &'static str, traffic: Traffic) -> Mode {
    const ONE_WAY: &[Figure] = &[Figure::Cpu(Per::Gigabyte), Figure::SystemCpu(Per::Gigabyte), Figure::Gigabits];
    const BOTH_WAYS: &[Figure] = &[
        Figure::Cpu(Per::Gigabyte),
        Figure::SystemCpu(Per::Gigabyte),
        Figure::Gigabits,
        Figure::GigabitsDown,
        Figure::GigabitsUp,
    ];
    mode("bulk", name, title, Workload::Traffic(traffic), if traffic.both > 0 { BOTH_WAYS } else { ONE_WAY })
}

pub const MODES: &[Mode] = &[
    conn("conn-1", "conn-1: connect, 64 bytes there and back, close; 1 client", 1),
    conn("conn", "conn: connect, 64 bytes there and back, close; 64 clients", 64).headline().scales(),
    conn("conn-256", "conn-256: connect, 64 bytes there and back, close; 256 clients", 256),
    first("hello-1", "hello-1: as conn-1, with a TLS hello of 517 bytes there and back", 1, First::Hello),
    first("hello", "hello: as conn, with a TLS hello of 517 bytes there and back", 64, First::Hello),
    first("proxied-1", "proxied-1: as conn-1, with a PROXY header of version 2 in front", 1, First::Proxied),
    first("proxied", "proxied: as conn, with a PROXY header of version 2 in front", 64, First::Proxied),
    rr("rr-1", "rr-1: 64 bytes there and back, again and again, on 1 connection", 1, 64),
    rr("rr", "rr: 64 bytes there and back, again and again, on 64 connections", 64, 64).headline().scales(),
    rr("rr-1000", "rr-1000: 64 bytes there and back, again and again, on 1,000 connections", 1_000, 64),
    rr("rr-4k-1", "rr-4k-1: 4 KiB there and back, again and again, on 1 connection", 1, 4 << 10),
    rr("rr-4k", "rr-4k: 4 KiB there and back, again and again, on 64 connections", 64, 4 << 10).headline(),
    rr("rr-4k-1000", "rr-4k-1000: 4 KiB there and back, again and again, on 1,000 connections", 1_000, 4 << 10),
    bulk("bulk", "bulk: 4 downloads", Traffic { downloads: 4, ..NONE }).headline().scales(),
    bulk("bulk-64", "bulk-64: 64 downloads", Traffic { downloads: 64, ..NONE }),
    bulk("up", "up: 4 uploads", Traffic { uploads: 4, ..NONE }).headline(),
    bulk("up-64", "up-64: 64 uploads", Traffic { uploads: 64, ..NONE }),
    bulk("both", "both: 4 connections, both ways at once", Traffic { both: 4, ..NONE }),
    bulk("both-64", "both-64: 64 connections, both ways at once", Traffic { both: 64, ..NONE }),
    Mode {
        cores: Cores::Shared,
        ..mode(
            "mixed",
            "mixed",
            "mixed: rr on 8 connections beside 8 downloads",
            Workload::Traffic(Traffic { pings: 8, downloads: 8, ..NONE }),
            &[Figure::Requests, Figure::Gigabits, Figure::P50, Figure::P99, Figure::P999],
        )
    }
    .headline()
    .scales(),
    mode(
        "storm",
        "storm",
        "storm: 5,000 connects at once, one echo on each, then all closed",
        Workload::Storm(5_000),
        &[Figure::Cpu(Per::Connection), Figure::AllServed, Figure::Failed, Figure::P50, Figure::P99, Figure::P999],
    )
    .headline(),
    mode(
        "idle",
        "idle",
        "idle: resident memory for each idle connection, after one echo on each",
        Workload::Idle(IdleCount::AsAsked),
        &[Figure::IdleBytes],
    )
    .headline(),
    mode(
        "idle",
        "idle-max",
        "idle-max: the same, with as many connections as the limit of descriptors allows",
        Workload::Idle(IdleCount::Limit),
        &[Figure::IdleCount, Figure::IdleBytes],
    ),
    mode(
        "calls",
        "calls",
        "calls: system calls a short connection, one connection after the other",
        Workload::Calls,
        &[Figure::Calls],
    )
    .headline(),
];

/// A group in `--only`.
const GROUP_SUFFIX: &str = "-all";
const ALL: &str = "all";

/// What `--only` takes: every mode, every group of more than one, and all.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = MODES.iter().map(|mode| mode.name.to_owned()).collect();
    for mode in MODES {
        let group = format!("{}{GROUP_SUFFIX}", mode.group);
        if MODES.iter().filter(|other| other.group == mode.group).count() > 1 && !names.contains(&group) {
            names.push(group);
        }
    }
    names.push(ALL.to_owned());
    names
}

/// Is the mode one of those that a name stands for?
pub fn is_named(mode: &Mode, name: &str) -> bool {
    name == mode.name || name == ALL || name.strip_suffix(GROUP_SUFFIX) == Some(mode.group)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_each_stands_for_something() {
        let names = names();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        for name in &names {
            assert!(MODES.iter().any(|mode| is_named(mode, name)), "{name}");
        }
        let conn: Vec<_> = MODES.iter().filter(|mode| is_named(mode, "conn-all")).map(|mode| mode.name).collect();
        assert_eq!(conn, ["conn-1", "conn", "conn-256"]);
        let conn: Vec<_> = MODES.iter().filter(|mode| is_named(mode, "conn")).map(|mode| mode.name).collect();
        assert_eq!(conn, ["conn"]);
        assert_eq!(MODES.iter().filter(|mode| is_named(mode, "all")).count(), MODES.len());
    }

    #[test]
    fn a_title_begins_with_its_name() {
        for mode in MODES {
            assert!(mode.title.starts_with(&format!("{}: ", mode.name)), "{}", mode.title);
        }
    }
}
