//! What a run says to people: for each section a summary and a table for each mode, then everything that went wrong
//! (`remarks.rs`). `json.rs` says it to scripts, `plot.rs` to the eye. Reads a `Record` through `view.rs`, decides
//! nothing.

pub mod json;
pub mod plot;
mod remarks;
mod view;

use std::fmt::Write as _;

use crate::bench::Record;
use crate::cli::Options;
use crate::figure::{Figure, Per};
use crate::mode::Mode;
use crate::peers::{Peer, State};
use crate::stats::Spread;
use tidegate_compare::table::{Style, Table};
use view::{Reading, View};

/// One column of a summary: mode, figure, heading.
type Column = (&'static str, Figure, &'static str);

/// The tables of a summary.
const SUMMARY: &[&[Column]] = &[
    &[
        ("conn", Figure::Cpu(Per::Connection), "conn: CPU µs"),
        ("conn", Figure::Connections, "conn/s"),
        ("rr", Figure::Cpu(Per::Request), "rr: CPU µs"),
        ("rr", Figure::Requests, "req/s"),
        ("bulk", Figure::Cpu(Per::Gigabyte), "bulk: CPU s/GB"),
        ("bulk", Figure::Gigabits, "Gbit/s"),
        ("mixed", Figure::Requests, "mixed: req/s"),
        ("mixed", Figure::P99, "p99 µs"),
        ("mixed", Figure::Gigabits, "Gbit/s"),
        ("idle", Figure::IdleBytes, "idle: bytes"),
    ],
    &[
        ("rr-4k", Figure::Cpu(Per::Request), "rr-4k: CPU µs"),
        ("rr-4k", Figure::Requests, "req/s"),
        ("up", Figure::Cpu(Per::Gigabyte), "up: CPU s/GB"),
        ("up", Figure::Gigabits, "Gbit/s"),
        ("storm", Figure::Cpu(Per::Connection), "storm: CPU µs"),
        ("storm", Figure::AllServed, "all served ms"),
        ("storm", Figure::P99, "p99 µs"),
        ("calls", Figure::Calls, "calls/conn"),
    ],
];

/// What more workers can change: more of a rate, CPU for each thing.
const SCALING: &[Column] = &[
    ("conn", Figure::Connections, "conn/s"),
    ("conn", Figure::Cpu(Per::Connection), "CPU a conn"),
    ("rr", Figure::Requests, "req/s"),
    ("rr", Figure::Cpu(Per::Request), "CPU a req"),
    ("bulk", Figure::Gigabits, "Gbit/s"),
    ("bulk", Figure::Cpu(Per::Gigabyte), "CPU a GB"),
    ("mixed", Figure::Requests, "mixed: req/s"),
    ("mixed", Figure::Gigabits, "Gbit/s"),
];

/// All the text of a report.
pub fn tables(record: &Record, options: &Options) -> String {
    let style = if options.markdown { Style::Markdown } else { Style::Text };
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", machine_line(record, options));
    for (index, section) in record.plan.sections.iter().enumerate() {
        let view = View::new(record, index, &options.base);
        if record.plan.sections.len() > 1 {
            let _ = writeln!(text, "{}\n", style.title(&section.to_string()));
        }
        for table in SUMMARY.iter().filter_map(|columns| summary(record, &view, columns)) {
            let _ = writeln!(text, "{}", table.print(style));
        }
        if index > 0 {
            let title = format!("Scaling: medians with {} workers divided by medians with one", section.workers);
            let _ = writeln!(text, "{}\n", style.title(&title));
            let first = View::new(record, 0, &options.base);
            let _ = writeln!(text, "{}", scaling(record, &view, &first).print(style));
        }
        for mode in view.modes() {
            let _ = writeln!(text, "{}\n", style.title(mode.title));
            let _ = writeln!(text, "{}", mode_table(record, &view, mode).print(style));
        }
        if let Some(calls) = view.mode("calls") {
            for line in calls_by_name(record, &view, calls) {
                let _ = writeln!(text, "{}", style.item(&line));
            }
            let _ = writeln!(text);
        }
    }
    for remark in remarks::of(record, options).into_iter().chain(remarks::about_system_cpu(record)) {
        let _ = writeln!(text, "{}", style.item(&remark));
    }
    text
}

fn machine_line(record: &Record, options: &Options) -> String {
    let facts = &record.facts;
    let versions: Vec<String> = record
        .peers
        .iter()
        .filter(|peer| !peer.name.contains("haproxy-"))
        .filter_map(|peer| match &peer.state {
            State::Present(version) if !version.is_empty() => Some(format!("{} {version}", peer.name)),
            _ => None,
        })
        .collect();
    let workers: Vec<String> = record.plan.sections.iter().map(|section| section.workers.to_string()).collect();
    format!(
        "{} cores of {}, Linux {}; {}; workers each: {}; health checks: {}; rounds: {}, windows of {:.1} s, {} minutes \
         in all; ratios to {} in brackets.\n",
        facts.cores,
        facts.processor,
        facts.kernel,
        versions.join(", "),
        workers.join(", then "),
        format!("{:?}", options.health).to_lowercase(),
        record.plan.length.rounds,
        record.plan.length.window.as_secs_f64(),
        number(record.took.as_secs_f64() / 60.0),
        options.base,
    )
}

/// `None` if no column has a mode in this section.
fn summary(record: &Record, view: &View<'_>, columns: &[Column]) -> Option<Table> {
    let columns: Vec<_> =
        columns.iter().filter_map(|&(name, figure, heading)| Some((view.mode(name)?, figure, heading))).collect();
    if columns.is_empty() {
        return None;
    }
    let mut table = Table::new(["peer"].into_iter().chain(columns.iter().map(|(.., heading)| *heading)));
    for (index, peer) in record.peers.iter().enumerate() {
        let cells = columns.iter().map(|&(mode, figure, _)| {
            let mark = if view.marks(index, mode).any() { "! " } else { "" };
            format!("{mark}{}", brief(peer, &view.reading(index, mode, figure)))
        });
        table.row(std::iter::once(peer.name.clone()).chain(cells));
    }
    Some(table)
}

fn scaling(record: &Record, view: &View<'_>, first: &View<'_>) -> Table {
    let columns: Vec<_> =
        SCALING.iter().filter_map(|&(name, figure, heading)| Some((view.mode(name)?, figure, heading))).collect();
    let mut table = Table::new(["peer"].into_iter().chain(columns.iter().map(|(.., heading)| *heading)));
    for (index, peer) in record.peers.iter().enumerate().filter(|(_, peer)| peer.is_proxy()) {
        let cells = columns.iter().map(|&(mode, figure, _)| {
            let mark = if [view, first].iter().any(|view| view.marks(index, mode).any()) { "! " } else { "" };
            let value = view.scaling(first, index, mode, figure);
            format!("{mark}{}", value.map_or(absent(peer).to_owned(), |value| format!("{value:.2}")))
        });
        table.row(std::iter::once(peer.name.clone()).chain(cells));
    }
    table
}

fn mode_table(record: &Record, view: &View<'_>, mode: &Mode) -> Table {
    let mut headings = vec!["peer"];
    for figure in mode.figures {
        headings.push(figure.heading());
        if figure.is_central() {
            headings.push("ratio (quartiles)");
        }
    }
    headings.extend(["proxy busy", "trouble"]);
    let mut table = Table::new(headings);
    for (index, peer) in record.peers.iter().enumerate() {
        let mut cells = vec![peer.name.clone()];
        for &figure in mode.figures {
            let reading = view.reading(index, mode, figure);
            if !figure.is_central() {
                cells.push(brief(peer, &reading));
                continue;
            }
            cells.push(reading.value.map_or(absent(peer).to_owned(), |value| number(value.median)));
            cells.push(reading.ratio.map_or_else(String::new, |ratio| {
                format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.lower_quartile, ratio.upper_quartile)
            }));
        }
        let shares = view.samples(index, mode).filter(|sample| sample.seconds > 0.0);
        let busy = Spread::of(shares.filter_map(|sample| Some(sample.proxy_cpu? / sample.seconds)));
        cells.push(busy.map_or_else(String::new, |busy| format!("{:.0} %", busy.median * 100.0)));
        cells.push(view.marks(index, mode).to_string());
        table.row(cells);
    }
    table
}

/// For each peer one line that names its calls, the most frequent first.
fn calls_by_name(record: &Record, view: &View<'_>, mode: &Mode) -> Vec<String> {
    let peers = record.peers.iter().enumerate();
    let lines = peers.filter_map(|(index, peer)| {
        let mut calls: Vec<_> = view.samples(index, mode).find_map(|sample| sample.calls.as_ref())?.iter().collect();
        calls.sort_by(|a, b| b.1.total_cmp(a.1));
        let words: Vec<String> = calls.iter().map(|(name, calls)| format!("{name} {calls:.1}")).collect();
        Some(format!("{}: {}", peer.name, words.join(", ")))
    });
    lines.collect()
}

/// Value and ratio in one cell.
fn brief(peer: &Peer, reading: &Reading) -> String {
    match (reading.value, reading.ratio) {
        (None, _) => absent(peer).to_owned(),
        (Some(value), None) => number(value.median),
        (Some(value), Some(ratio)) => format!("{} ({:.2})", number(value.median), ratio.median),
    }
}

fn absent(peer: &Peer) -> &'static str {
    if peer.is_present() { "–" } else { "MISSING" }
}

/// Three significant digits, thousands apart.
fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude < 10.0 {
        format!("{value:.2}")
    } else if magnitude < 100.0 {
        format!("{value:.1}")
    } else {
        let digits = format!("{magnitude:.0}");
        let groups: Vec<&str> =
            digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
        format!("{}{}", if value < 0.0 { "-" } else { "" }, groups.join(","))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser as _;

    use super::*;
    use crate::bench::Window;
    use crate::cli::Cli;
    use crate::load::Sample;
    use crate::machine::{Facts, Placement};
    use crate::mode::MODES;
    use crate::plan::Plan;

    fn window(mode: &str, peer: usize, round: u32, requests: Option<u64>) -> Window {
        let mode = MODES.iter().find(|entry| entry.name == mode).unwrap();
        let sample = |requests| Sample { seconds: 1.0, requests, ..Sample::default() };
        Window { section: 0, peer, mode, round, result: requests.map(sample).ok_or_else(|| "it broke".to_owned()) }
    }

    /// Two peers and two rounds, of which the second peer lost the first.
    pub(super) fn record() -> (Record, Options) {
        let options =
            Cli::parse_from(["compare", "--base", "a", "--peers", "", "--extra", "a=x", "--extra", "b=y"]).options;
        let options = Options { peers: vec!["a".to_owned(), "b".to_owned()], ..options };
        let record = Record {
            facts: Facts::read(&Placement::new(1).unwrap()),
            peers: crate::peers::find(&options).unwrap(),
            plan: Plan::new(&Cli::parse_from(["compare", "--only", "rr,mixed"]).options),
            windows: vec![
                window("rr", 0, 0, Some(100)),
                window("rr", 0, 1, Some(50)),
                window("rr", 1, 0, None),
                window("rr", 1, 1, Some(200)),
                window("mixed", 0, 0, Some(10)),
                window("mixed", 1, 0, Some(5)),
            ],
            idle_connections: 0,
            remarks: Vec::new(),
            took: Duration::from_secs(1),
        };
        (record, options)
    }

    #[test]
    fn a_lost_window_is_flagged_and_its_round_has_no_ratio() {
        let (record, options) = record();
        let text = tables(&record, &options);
        assert!(text.contains("! 200 (4.00)"), "{text}");
        assert!(text.contains("! 1 of 2 lost"), "{text}");
        assert!(text.contains("75.0 (1.00)"), "{text}");
        assert!(text.contains("! b, rr, round 1: no window: it broke"), "{text}");
    }

    #[test]
    fn numbers_have_three_digits_and_groups() {
        let cases =
            [(0.274, "0.27"), (11.84, "11.8"), (126.6, "127"), (34_012.3, "34,012"), (-1_234_567.0, "-1,234,567")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }
}
