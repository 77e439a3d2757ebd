//! What is printed: a row for each window, and below it whatever clients noticed, by its kind.

use std::collections::BTreeMap;

use tidegate_compare::table::{Style, Table};

use crate::bench::Window;
use crate::cli::{Change, Options};
use crate::group::Holds;

/// Percent of the machine that others may have had before it is said.
const STOLEN: f64 = 2.0;

pub fn text(options: &Options, windows: &[Window], troubles: &[String]) -> String {
    let style = if options.markdown { Style::Markdown } else { Style::Text };
    let what = match options.change {
        Change::Reload => "reloads",
        Change::Upgrade => "upgrades",
    };
    let mut table = Table::new([
        "proxy",
        what,
        "failed",
        "median ms",
        "longest ms",
        "conn/s",
        "failed connects",
        "failed later",
        "streams",
        "cut",
        "p99 ms",
        "processes",
        "fds",
        "MiB",
        "CPU %",
    ]);
    for window in windows {
        table.row(row(window));
    }
    let title = format!(
        "{} {what} in {} s, {} connections a second, {} streams from before and {} that begin meanwhile; \
         processes, fds and MiB before, at the end, and after the last client",
        options.count(),
        options.seconds,
        options.rate,
        options.streams,
        options.late_streams
    );
    let mut text = format!("{}\n\n{}\n", style.title(&title), table.print(style));
    for window in windows {
        let sample = &window.sample;
        for (what, list) in
            [("connects", &sample.failed_connects), ("later", &sample.failed_later), ("streams", &sample.cut_streams)]
        {
            for (kind, count) in list {
                text += &style.item(&format!("{}, {what}: {count} × {kind}\n", window.contestant));
            }
        }
    }
    for window in windows {
        if window.lost_signals > 0 {
            let lost = window.lost_signals;
            text +=
                &style.item(&format!("{}: {lost} signals had to be sent again after a second\n", window.contestant));
        }
        if window.stolen_percent > STOLEN {
            text += &style.item(&format!(
                "{}: the hypervisor gave {:.0} % of the machine to others: that bends times and rates\n",
                window.contestant, window.stolen_percent
            ));
        }
        text += &style.item(&format!("{}: {}\n", window.contestant, window.version));
    }
    for trouble in troubles {
        text += &style.item(&format!("MISSING: {trouble}\n"));
    }
    text
}

fn row(window: &Window) -> Vec<String> {
    let sample = &window.sample;
    let mut changes = window.changes.clone();
    changes.sort_by(f64::total_cmp);
    let of = |index: usize| changes.get(index).map_or(String::new(), |time| format!("{time:.1}"));
    let sum = |list: &BTreeMap<String, u64>| list.values().sum::<u64>().to_string();
    let three = |show: fn(&Holds) -> String| {
        format!("{} → {} → {}", show(&window.before), show(&window.end), show(&window.after))
    };
    vec![
        window.contestant.clone(),
        changes.len().to_string(),
        window.failed_changes.to_string(),
        of(changes.len() / 2),
        of(changes.len().saturating_sub(1)),
        format!("{:.0}", sample.rate),
        sum(&sample.failed_connects),
        sum(&sample.failed_later),
        sample.streams.to_string(),
        sum(&sample.cut_streams),
        format!("{:.1}", sample.p99),
        three(|holds| holds.processes.to_string()),
        three(|holds| holds.descriptors.to_string()),
        three(|holds| format!("{:.0}", holds.bytes as f64 / 1_048_576.0)),
        format!("{:.0}", window.cpu_percent),
    ]
}
