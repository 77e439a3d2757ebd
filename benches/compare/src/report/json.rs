//! A run for scripts: the summary and each window, as one JSON document.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::bench::Record;
use crate::cli::Options;
use crate::peers::State;

use super::remarks;
use super::view::View;

/// Goes up when a script that reads the document has to change.
const FORMAT: u32 = 1;

pub fn write(record: &Record, options: &Options, file: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(&document(record, options)).context("writing the document")?;
    fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
}

fn document(record: &Record, options: &Options) -> Value {
    json!({
        "format": FORMAT,
        "machine": record.facts,
        "run": {
            "rounds": record.plan.length.rounds,
            "window_s": record.plan.length.window.as_secs_f64(),
            "workers": record.plan.sections[0].workers,
            "took_s": record.took.as_secs_f64(),
            "health_checks": format!("{:?}", options.health).to_lowercase(),
            "idle_connections": record.idle_connections,
            "source": format!("{:?}", options.source).to_lowercase(),
            "base": options.base,
        },
        "peers": record.peers.iter().map(|peer| match &peer.state {
            State::Present(version) => json!({"name": peer.name, "setup": peer.description, "version": version}),
            State::Missing(reason) => json!({"name": peer.name, "setup": peer.description, "missing": reason}),
        }).collect::<Vec<_>>(),
        "summary": summary(record, &View::new(record, 0, &options.base)),
        "more_workers": (1..record.plan.sections.len()).map(|section| json!({
            "workers": record.plan.sections[section].workers,
            "summary": summary(record, &View::new(record, section, &options.base)),
            "scaling": scaling(record, options, section),
        })).collect::<Vec<_>>(),
        "remarks": remarks::of(record, options),
        "windows": record.windows.iter().map(|window| {
            let (sample, error) = match &window.result {
                Ok(sample) => (Some(sample), None),
                Err(error) => (None, Some(error)),
            };
            json!({
                "peer": record.peers[window.peer].name,
                "mode": window.mode.name,
                "workers": record.plan.sections[window.section].workers,
                "round": window.round + 1,
                "sample": sample,
                "error": error,
                "trouble": window.result.as_ref().map_or(true, |sample| sample.trouble.any()),
            })
        }).collect::<Vec<_>>(),
    })
}

/// mode -> peer -> figure -> value and ratio; and beside the figures the number of windows, lost and troubled ones.
fn summary(record: &Record, view: &View<'_>) -> Value {
    let modes = view.modes().iter().map(|mode| {
        let peers = record.peers.iter().enumerate().map(|(index, peer)| {
            let figures = mode.figures.iter().map(|&figure| {
                let reading = view.reading(index, mode, figure);
                (figure.key().to_owned(), json!({"value": reading.value, "ratio": reading.ratio}))
            });
            let marks = view.marks(index, mode);
            let windows = json!({"count": marks.windows, "lost": marks.lost, "troubled": marks.troubled});
            let figures = figures.chain([("windows".to_owned(), windows)]);
            (peer.name.clone(), Value::Object(figures.collect::<Map<_, _>>()))
        });
        (mode.name.to_owned(), Value::Object(peers.collect()))
    });
    Value::Object(modes.collect())
}

/// mode -> peer -> figure -> the median of this section divided by that of the first.
fn scaling(record: &Record, options: &Options, section: usize) -> Value {
    let [first, view] = [0, section].map(|section| View::new(record, section, &options.base));
    let modes = view.modes().iter().map(|mode| {
        let peers = record.peers.iter().enumerate().filter(|(_, peer)| peer.is_proxy()).map(|(index, peer)| {
            let figures = mode.figures.iter();
            let figures =
                figures.map(|&figure| (figure.key().to_owned(), json!(view.scaling(&first, index, mode, figure))));
            (peer.name.clone(), Value::Object(figures.collect()))
        });
        (mode.name.to_owned(), Value::Object(peers.collect()))
    });
    Value::Object(modes.collect())
}
