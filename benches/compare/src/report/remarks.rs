//! What a reader must know before believing a table: what is missing, what went wrong, what bends the figures.

use super::view::View;
use crate::bench::Record;
use crate::cli::Options;
use crate::figure::Figure;
use crate::load::Sample;
use crate::mode::Mode;
use crate::peers::State;
use crate::stats::Spread;

/// A rate without a proxy that is not this much higher than the fastest proxy's says that the clients or the backends
/// were the limit.
const CLEARLY_FASTER: f64 = 1.15;

/// A share of the machine that others may use before a reader is warned.
const STRANGERS: f64 = 0.05;

pub fn of(record: &Record, options: &Options) -> Vec<String> {
    let mut remarks = record.facts.remarks.clone();
    for peer in &record.peers {
        match &peer.state {
            State::Missing(reason) => remarks.push(format!("{} is MISSING: {reason}", peer.name)),
            State::Present(_) => remarks.push(format!("{}: {}", peer.name, peer.description)),
        }
    }
    if !record.peers.iter().any(|peer| peer.name == options.base && peer.is_present()) {
        remarks.push(format!("ratios are missing or incomplete, because {} was not measured", options.base));
    }
    remarks.extend(record.remarks.iter().cloned());
    remarks.extend(marked_windows(record));
    remarks.extend(strangers(record));
    remarks.extend(stolen(record));
    for section in 0..record.plan.sections.len() {
        let view = View::new(record, section, &options.base);
        remarks.extend(view.modes().iter().filter_map(|mode| saturation(record, &view, mode)));
    }
    remarks
}

fn marked_windows(record: &Record) -> impl Iterator<Item = String> {
    record.windows.iter().filter_map(|window| {
        let words = match &window.result {
            Err(error) => format!("no window: {error}"),
            Ok(sample) if sample.trouble.any() => sample.trouble.to_string(),
            Ok(_) => return None,
        };
        let workers = match (window.section, &record.plan.sections[window.section]) {
            (0, _) => String::new(),
            (_, section) => format!(", {} workers", section.workers),
        };
        let name = &record.peers[window.peer].name;
        Some(format!("! {name}, {}{workers}, round {}: {words}", window.mode.name, window.round + 1))
    })
}

/// The windows in which the clock of the machine was read.
fn clocked(record: &Record) -> impl Iterator<Item = &Sample> {
    let samples = record.windows.iter().filter_map(|window| window.result.as_ref().ok());
    samples.filter(|sample| sample.machine_cpu > 0.0 && sample.seconds > 0.0)
}

/// Says so if processes that are none of ours took a share of the machine.
fn strangers(record: &Record) -> Option<String> {
    let shares = clocked(record).map(|sample| {
        let ours = sample.load_cpu + sample.server_cpu + sample.proxy_cpu.unwrap_or(0.0);
        (sample.machine_cpu - ours) / (sample.seconds * f64::from(record.facts.cores))
    });
    let share = Spread::of(shares)?.median;
    (share > STRANGERS).then(|| {
        format!(
            "other processes used {:.0} % of the machine during the windows: that bends rates, latencies and the CPU of \
             the system, and the CPU of the proxies less",
            share * 100.0
        )
    })
}

/// Says so if a hypervisor took cores away.
fn stolen(record: &Record) -> Option<String> {
    let shares = clocked(record).map(|sample| sample.stolen_cpu / (sample.seconds * f64::from(record.facts.cores)));
    let shares: Vec<f64> = shares.collect();
    let share = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    (share > STRANGERS).then(|| {
        format!("the hypervisor gave {:.0} % of the machine to others: that bends rates and latencies", share * 100.0)
    })
}

/// Says so where no proxy at all is not clearly faster than every proxy.
fn saturation(record: &Record, view: &View<'_>, mode: &Mode) -> Option<String> {
    let figure = *mode.figures.iter().find(|figure| figure.is_rate())?;
    let rate = |index| view.reading(index, mode, figure).value.map(|value| value.median);
    let direct = rate(record.peers.iter().position(|peer| !peer.is_proxy())?)?;
    let proxies = record.peers.iter().enumerate().filter(|(_, peer)| peer.is_proxy());
    let (fastest, peer) =
        proxies.filter_map(|(index, peer)| Some((rate(index)?, peer))).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (fastest > 0.0 && direct < fastest * CLEARLY_FASTER).then(|| {
        format!(
            "in {} no proxy at all is only {:.2} times as fast as {}: clients and backends are near their limit, so \
             trust the CPU more than the rate",
            mode.name,
            direct / fastest,
            peer.name
        )
    })
}

/// What the columns of the system's CPU are worth; nothing if there are none.
pub fn about_system_cpu(record: &Record) -> Option<String> {
    let mut modes = record.plan.sections.iter().flat_map(|section| &section.modes);
    let shown = modes.any(|mode| mode.figures.iter().any(|figure| matches!(figure, Figure::SystemCpu(_))));
    shown.then(|| {
        let rate = rustix::param::clock_ticks_per_second() as f64;
        let ticks = record.plan.length.window.as_secs_f64() * f64::from(record.facts.cores) * rate;
        format!(
            "system: all time that the cores were not idle, clients, backends and strangers included, in ticks: at most \
             {ticks:.0} of them in a window, so only as exact as that"
        )
    })
}
