//! A run for scripts: the summary and each window, as one JSON document.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum as _;
use serde_json::{Map, Value, json};

use crate::bench::Record;
use crate::cli::Options;
use crate::mode::ModeName;
use crate::peers::State;

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
            "rounds": record.rounds,
            "window_s": record.window.as_secs_f64(),
            "workers": options.workers,
            "health_checks": format!("{:?}", options.health).to_lowercase(),
            "idle_connections": record.idle_connections,
            "source": format!("{:?}", options.source).to_lowercase(),
            "base": options.base,
        },
        "peers": record.peers.iter().map(|peer| match &peer.state {
            State::Present(version) => json!({"name": peer.name, "setup": peer.description, "version": version}),
            State::Missing(reason) => json!({"name": peer.name, "setup": peer.description, "missing": reason}),
        }).collect::<Vec<_>>(),
        "summary": summary(record, options),
        "windows": record.windows.iter().map(|window| {
            let (sample, error) = match &window.result {
                Ok(sample) => (Some(sample), None),
                Err(error) => (None, Some(error)),
            };
            json!({
                "peer": record.peers[window.peer].name,
                "mode": key(window.mode.name),
                "round": window.round + 1,
                "sample": sample,
                "error": error,
            })
        }).collect::<Vec<_>>(),
    })
}

/// mode -> peer -> figure -> value and ratio.
fn summary(record: &Record, options: &Options) -> Value {
    let modes = record.modes.iter().map(|mode| {
        let peers = record.peers.iter().enumerate().map(|(index, peer)| {
            let figures = mode.figures.iter().map(|&figure| {
                let reading = record.reading(index, mode, figure, options);
                (figure.key().to_owned(), json!({"value": reading.value, "ratio": reading.ratio}))
            });
            (peer.name.clone(), Value::Object(figures.collect::<Map<_, _>>()))
        });
        (key(mode.name), Value::Object(peers.collect()))
    });
    Value::Object(modes.collect())
}

fn key(mode: ModeName) -> String {
    mode.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
