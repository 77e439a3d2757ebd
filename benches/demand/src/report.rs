//! What a run says: a table for people, JSON for scripts. Decides nothing.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tidegate_compare::stats::Spread;
use tidegate_compare::table::{Style, Table};

use crate::bench::{Record, Window};
use crate::cli::Options;
use crate::users::Sample;

/// A process that takes this share of a core may be in the way of the others.
const BUSY: f64 = 0.8;

/// Strangers that take this share of a core are: they delay answers, and that is capacity where places are few.
const STRANGERS: f64 = 0.3;

type Figure = fn(&Sample, f64) -> f64;

/// Heading, key in JSON, value of a window (with the capacity), decimals.
const FIGURES: &[(&str, &str, Figure, usize)] = &[
    ("goodput %", "goodput", |s, capacity| share(s.useful, s, capacity), 1),
    ("for nobody %", "for_nobody", |s, capacity| share(s.worked.saturating_sub(s.useful), s, capacity), 1),
    ("wait p50 ms", "wait_p50_ms", |s, _| s.wait.p50, 0),
    ("p99 ms", "wait_p99_ms", |s, _| s.wait.p99, 0),
    ("offered %", "offered", |s, capacity| share(s.attempts, s, capacity), 0),
    ("refused %", "refused", |s, capacity| share(s.refused, s, capacity), 0),
    ("after p50 ms", "refusal_p50_ms", |s, _| s.refusal.p50, 1),
    ("timed out %", "timed_out", |s, capacity| share(s.timed_out, s, capacity), 0),
    ("users served %", "users_served", |s, _| 100.0 * s.useful as f64 / (s.useful + s.lost_users).max(1) as f64, 0),
    ("proxy CPU %", "proxy_cpu", |s, _| 100.0 * s.proxy_cpu / s.seconds, 0),
];

/// Of the capacity, in percent.
fn share(count: u64, sample: &Sample, capacity: f64) -> f64 {
    100.0 * count as f64 / sample.seconds / capacity
}

/// What others than the three took of a core.
fn strangers(sample: &Sample) -> f64 {
    let own = sample.proxy_cpu + sample.backends_cpu + sample.users_cpu;
    (sample.machine_cpu + sample.stolen_cpu - own) / sample.seconds
}

/// The windows that count: those in which nobody else was in the way, if there are any.
fn samples<'a>(windows: &'a [Window], contestant: &str) -> Vec<&'a Sample> {
    let own = windows.iter().filter(|window| window.contestant == contestant);
    let all: Vec<_> = own.filter_map(|window| window.sample.as_ref()).collect();
    let quiet: Vec<_> = all.iter().copied().filter(|sample| strangers(sample) <= STRANGERS).collect();
    if quiet.is_empty() { all } else { quiet }
}

fn spread(windows: &[Window], contestant: &str, figure: Figure, capacity: f64) -> Option<Spread> {
    Spread::of(samples(windows, contestant).into_iter().map(|sample| figure(sample, capacity)))
}

pub fn text(record: &Record, options: &Options) -> String {
    let style = if options.markdown { Style::Markdown } else { Style::Text };
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "{}\n", setting(record, options));
    let mut table = Table::new(["contestant"].into_iter().chain(FIGURES.iter().map(|figure| figure.0)));
    for contestant in &record.contestants {
        let disturbed = samples(&record.windows, contestant.name).iter().any(|sample| strangers(sample) > STRANGERS);
        let cells = FIGURES.iter().map(|&(_, _, figure, decimals)| {
            spread(&record.windows, contestant.name, figure, options.capacity())
                .map_or_else(|| "MISSING".to_owned(), |spread| format!("{:.decimals$}", spread.median))
        });
        let mark = if disturbed { "! " } else { "" };
        table.row(std::iter::once(format!("{mark}{}", contestant.name)).chain(cells));
    }
    let _ = writeln!(text, "{}", table.print(style));
    for contestant in &record.contestants {
        let _ = writeln!(text, "{}", style.item(&format!("{}: {}", contestant.name, contestant.description)));
    }
    for remark in remarks(record) {
        let _ = writeln!(text, "{}", style.item(&format!("! {remark}")));
    }
    text
}

fn setting(record: &Record, options: &Options) -> String {
    format!(
        "{} backends, {} requests at a time each, {} ms for each request: {:.0} answers/s. New users: {} times that; each \
         waits {} ms for an answer, and tries again up to {} times. More than a backend can work on {}. {} round(s) of {:.1} s \
         after {:.1} s; medians; shares are of the capacity. {}. {:.0} s in all.",
        options.backends,
        options.at_once,
        options.service,
        options.capacity(),
        options.load,
        options.patience,
        options.retries,
        match options.crowd {
            crate::backend::Crowd::Queue => "waits inside it",
            crate::backend::Crowd::Share => "makes all slower",
        },
        options.rounds(),
        options.window().as_secs_f64(),
        options.warm_up().as_secs_f64(),
        record.versions.join("; "),
        record.took.as_secs_f64(),
    )
}

/// What makes figures worth less than they look.
fn remarks(record: &Record) -> Vec<String> {
    let mut remarks = Vec::new();
    for window in &record.windows {
        let place = format!("{}, round {}", window.contestant, window.round + 1);
        if let Some(lost) = &window.lost {
            remarks.push(format!("{place}: no window: {lost}"));
        }
        let Some(sample) = &window.sample else { continue };
        if sample.broken > 0 {
            remarks.push(format!("{place}: {} connects failed for want of something on this host", sample.broken));
        }
        let cpus = [("proxy", sample.proxy_cpu), ("backends", sample.backends_cpu), ("users", sample.users_cpu)];
        for (who, seconds) in cpus.into_iter().filter(|(_, seconds)| seconds / sample.seconds > BUSY) {
            remarks.push(format!("{place}: {who} took {:.0} % of a core", 100.0 * seconds / sample.seconds));
        }
        let strangers = strangers(sample);
        if strangers > STRANGERS {
            remarks.push(format!("{place}: others than the three took {:.0} % of a core", 100.0 * strangers));
        }
    }
    remarks
}

pub fn json(record: &Record, options: &Options) -> Value {
    let summary = record.contestants.iter().map(|contestant| {
        let figures = FIGURES.iter().map(|&(_, key, figure, _)| {
            (key.to_owned(), json!(spread(&record.windows, contestant.name, figure, options.capacity())))
        });
        (contestant.name.to_owned(), Value::Object(figures.collect()))
    });
    json!({
        "setting": setting(record, options),
        "capacity": options.capacity(),
        "load": options.load,
        "patience_ms": options.patience,
        "retries": options.retries,
        "backends": options.backends,
        "at_once": options.at_once,
        "service_ms": options.service,
        "crowd": options.crowd,
        "versions": record.versions,
        "summary": Value::Object(summary.collect()),
        "windows": record.windows,
        "remarks": remarks(record),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(useful: u64, machine_cpu: f64) -> Window {
        let sample = Sample { seconds: 2.0, useful, machine_cpu, users_cpu: 0.5, ..Sample::default() };
        Window { contestant: "a", round: 0, sample: Some(sample), lost: None, told: Vec::new() }
    }

    #[test]
    fn a_disturbed_window_counts_only_where_there_is_no_other() {
        let goodput = FIGURES[0].2;
        let windows = [window(1_600, 0.6), window(200, 2.5)];
        assert!((spread(&windows, "a", goodput, 800.0).unwrap().median - 100.0).abs() < 0.01);
        assert!((spread(&windows[1..], "a", goodput, 800.0).unwrap().median - 12.5).abs() < 0.01);
        assert!(spread(&windows, "b", goodput, 800.0).is_none());
    }
}
