//! What a run says to people: a summary, a table for each mode, and everything that went wrong. `json.rs` says it to
//! scripts. Reads a `Record`, decides nothing.

pub mod json;
mod table;

use std::fmt::Write as _;

use crate::bench::Record;
use crate::cli::Options;
use crate::mode::{Figure, Mode, ModeName};
use crate::peers::{Peer, State};
use crate::stats::{self, Spread};
use table::{Style, Table};

/// A rate without a proxy that is not this much higher than the fastest proxy's says that the clients or the backends
/// were the limit.
const CLEARLY_FASTER: f64 = 1.15;

/// A share of the machine that other processes may use before a reader is warned.
const STRANGERS: f64 = 0.05;

/// One column of the summary.
const SUMMARY: &[(ModeName, Figure, &str)] = &[
    (ModeName::Conn, Figure::CpuPerConnection, "conn: CPU µs"),
    (ModeName::Conn, Figure::Connections, "conn/s"),
    (ModeName::Rr, Figure::CpuPerRequest, "rr: CPU µs"),
    (ModeName::Rr, Figure::Requests, "req/s"),
    (ModeName::Bulk, Figure::CpuPerGigabyte, "bulk: CPU s/GB"),
    (ModeName::Bulk, Figure::Gigabits, "Gbit/s"),
    (ModeName::Mixed, Figure::Requests, "mixed: req/s"),
    (ModeName::Mixed, Figure::P99, "p99 µs"),
    (ModeName::Mixed, Figure::Gigabits, "Gbit/s"),
    (ModeName::Idle, Figure::IdleBytes, "idle: bytes"),
];

/// Value and ratio to the base, each over the rounds.
pub struct Reading {
    pub value: Option<Spread>,
    pub ratio: Option<Spread>,
}

/// All the text of a report.
pub fn tables(record: &Record, options: &Options) -> String {
    let style = if options.markdown { Style::Markdown } else { Style::Text };
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", machine_line(record, options));
    let _ = writeln!(text, "{}", summary(record, options).print(style));
    for mode in &record.modes {
        let _ = writeln!(text, "{}\n", style.title(mode.title));
        let _ = writeln!(text, "{}", mode_table(record, options, mode).print(style));
    }
    for remark in remarks(record, options) {
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
    format!(
        "{} cores of {}, Linux {}; {}; workers each: {}; health checks: {}; rounds: {}, windows of {:.1} s; \
         ratios to {} in brackets.\n",
        facts.cores,
        facts.processor,
        facts.kernel,
        versions.join(", "),
        options.workers,
        format!("{:?}", options.health).to_lowercase(),
        record.rounds,
        record.window.as_secs_f64(),
        options.base,
    )
}

fn summary(record: &Record, options: &Options) -> Table {
    let columns: Vec<_> =
        SUMMARY.iter().filter(|(name, ..)| record.modes.iter().any(|mode| mode.name == *name)).collect();
    let mut table = Table::new(["peer"].into_iter().chain(columns.iter().map(|(_, _, heading)| *heading)));
    for (index, peer) in record.peers.iter().enumerate() {
        let cells = columns.iter().map(|&&(name, figure, _)| {
            let Some(mode) = record.modes.iter().find(|mode| mode.name == name) else { return String::new() };
            let reading = record.reading(index, mode, figure, options);
            let mark = if record.troubled(index, mode) { "! " } else { "" };
            format!("{mark}{}", brief(peer, &reading))
        });
        table.row(std::iter::once(peer.name.clone()).chain(cells));
    }
    table
}

fn mode_table(record: &Record, options: &Options, mode: &Mode) -> Table {
    let mut headings = vec!["peer".to_owned()];
    for figure in mode.figures {
        headings.push(figure.heading().to_owned());
        if !figure.is_latency() {
            headings.push("ratio (quartiles)".to_owned());
        }
    }
    if mode.name != ModeName::Idle {
        headings.push("proxy busy".to_owned());
        headings.push("trouble".to_owned());
    }
    let mut table = Table::new(headings.iter().map(String::as_str));
    for (index, peer) in record.peers.iter().enumerate() {
        let mut cells = vec![peer.name.clone()];
        for &figure in mode.figures {
            let reading = record.reading(index, mode, figure, options);
            if figure.is_latency() {
                cells.push(brief(peer, &reading));
                continue;
            }
            cells.push(reading.value.map_or(absent(peer).to_owned(), |value| number(value.median)));
            cells.push(reading.ratio.map_or_else(String::new, |ratio| {
                format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.lower_quartile, ratio.upper_quartile)
            }));
        }
        if mode.name != ModeName::Idle {
            let busy = Spread::of(record.samples(index, mode).filter_map(|s| Some(s.proxy_cpu? / s.seconds)));
            cells.push(busy.map_or_else(String::new, |busy| format!("{:.0} %", busy.median * 100.0)));
            cells.push(if record.troubled(index, mode) { "! see below".to_owned() } else { String::new() });
        }
        table.row(cells);
    }
    table
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

/// What a reader must know before believing a table.
fn remarks(record: &Record, options: &Options) -> Vec<String> {
    let mut remarks = record.facts.remarks.clone();
    for peer in &record.peers {
        match &peer.state {
            State::Missing(reason) => remarks.push(format!("{} is MISSING: {reason}", peer.name)),
            State::Present(_) => remarks.push(format!("{}: {}", peer.name, peer.description)),
        }
    }
    if !record.peers.iter().any(|peer| peer.name == options.base && peer.is_present()) {
        remarks.push(format!("there are no ratios, because {} was not measured", options.base));
    }
    for window in &record.windows {
        let place =
            || format!("{}, {:?}, round {}", record.peers[window.peer].name, window.mode.name, window.round + 1);
        match &window.result {
            Err(error) => remarks.push(format!("! {}: no window: {error}", place())),
            Ok(sample) if sample.trouble.any() => remarks.push(format!("! {}: {}", place(), sample.trouble)),
            Ok(_) => {}
        }
    }
    remarks.extend(strangers(record));
    remarks.extend(record.modes.iter().filter_map(|mode| saturation(record, options, mode)));
    remarks
}

/// Says so if processes that are none of ours took a share of the machine.
fn strangers(record: &Record) -> Option<String> {
    let samples = record.windows.iter().filter_map(|window| window.result.as_ref().ok());
    let shares = samples.filter(|sample| sample.machine_cpu > 0.0).map(|sample| {
        let ours = sample.load_cpu + sample.server_cpu + sample.proxy_cpu.unwrap_or(0.0);
        (sample.machine_cpu - ours) / (sample.seconds * f64::from(record.facts.cores))
    });
    let share = Spread::of(shares)?.median;
    (share > STRANGERS).then(|| {
        format!(
            "other processes used {:.0} % of the machine during the windows: that bends rates and latencies, and the CPU \
             figures less",
            share * 100.0
        )
    })
}

/// Says so where no proxy at all is not clearly faster than every proxy.
fn saturation(record: &Record, options: &Options, mode: &Mode) -> Option<String> {
    let figure = *mode.figures.iter().find(|figure| figure.is_rate())?;
    let rate = |index| record.reading(index, mode, figure, options).value.map(|value| value.median);
    let direct = rate(record.peers.iter().position(|peer| !peer.is_proxy())?)?;
    let proxies = record.peers.iter().enumerate().filter(|(_, peer)| peer.is_proxy());
    let (fastest, peer) =
        proxies.filter_map(|(index, peer)| Some((rate(index)?, peer))).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (direct < fastest * CLEARLY_FASTER).then(|| {
        format!(
            "in {:?} no proxy at all is only {:.2} times as fast as {}: clients and backends are near their limit, so \
             trust the CPU more than the rate",
            mode.name,
            direct / fastest,
            peer.name
        )
    })
}

impl Record {
    /// The good windows of a peer in a mode.
    fn samples(&self, peer: usize, mode: &Mode) -> impl Iterator<Item = &crate::load::Sample> {
        let name = mode.name;
        let windows = self.windows.iter().filter(move |window| window.peer == peer && window.mode.name == name);
        windows.filter_map(|window| window.result.as_ref().ok())
    }

    fn troubled(&self, peer: usize, mode: &Mode) -> bool {
        self.windows
            .iter()
            .filter(|window| window.peer == peer && window.mode.name == mode.name)
            .any(|window| window.result.as_ref().map_or(true, |sample| sample.trouble.any()))
    }

    /// A figure of a peer over the rounds.
    pub fn reading(&self, peer: usize, mode: &Mode, figure: Figure, options: &Options) -> Reading {
        let by_round = |peer: usize| -> Vec<Option<f64>> {
            let mut values = vec![None; self.rounds as usize];
            for window in self.windows.iter().filter(|w| w.peer == peer && w.mode.name == mode.name) {
                values[window.round as usize] = window.result.as_ref().ok().and_then(|sample| figure.of(sample));
            }
            values
        };
        let values = by_round(peer);
        let base = self.peers.iter().position(|peer| peer.name == options.base).map(by_round);
        Reading {
            value: Spread::of(values.iter().flatten().copied()),
            ratio: base.and_then(|base| Spread::of(stats::ratios(&values, &base))),
        }
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

    fn window(peer: usize, round: u32, requests: Option<u64>) -> Window {
        let mode = MODES.iter().find(|mode| mode.name == ModeName::Rr).unwrap();
        let sample = |requests| Sample { seconds: 1.0, requests, ..Sample::default() };
        Window { peer, mode, round, result: requests.map(sample).ok_or_else(|| "it broke".to_owned()) }
    }

    #[test]
    fn a_lost_window_is_flagged_and_its_round_has_no_ratio() {
        let options =
            Cli::parse_from(["compare", "--base", "a", "--peers", "", "--extra", "a=x", "--extra", "b=y"]).options;
        let options = Options { peers: vec!["a".to_owned(), "b".to_owned()], ..options };
        let record = Record {
            facts: Facts::read(&Placement::new(1).unwrap()),
            peers: crate::peers::find(&options).unwrap(),
            modes: vec![window(0, 0, None).mode],
            windows: vec![window(0, 0, Some(100)), window(0, 1, Some(50)), window(1, 0, None), window(1, 1, Some(200))],
            rounds: 2,
            window: Duration::from_secs(1),
            idle_connections: 0,
        };
        let text = tables(&record, &options);
        assert!(text.contains("! 200 (4.00)"), "{text}");
        assert!(text.contains("75.0 (1.00)"), "{text}");
        assert!(text.contains("! b, Rr, round 1: no window: it broke"), "{text}");
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
