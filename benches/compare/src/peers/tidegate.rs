//! tidegate itself: the release build of this repository, or a binary that was named.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Launch, Setup, State};
use crate::cli::Health;
use crate::process::{Ending, output_of};

pub fn find(named: Option<&Path>) -> (PathBuf, State) {
    let path = match named {
        Some(path) => Ok(path.to_owned()),
        None => build(),
    };
    match path {
        Ok(path) => {
            let state = match output_of(&path, &["--version"]) {
                Some(version) => {
                    State::Present(version.split_whitespace().nth(1).unwrap_or("of an unknown version").to_owned())
                }
                None => State::Missing(format!("{} can't be started", path.display())),
            };
            (path, state)
        }
        Err(error) => (PathBuf::new(), State::Missing(format!("{error:#}"))),
    }
}

/// Builds the repository that this benchmark is part of, and returns the path of the program as cargo reports it.
fn build() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    eprintln!("building tidegate (cargo build --release) ...");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--locked", "--bin", "tidegate", "--message-format", "json", "--manifest-path"])
        .arg(&manifest)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo to build tidegate")?;
    ensure!(output.status.success(), "cargo build --release failed ({})", output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "tidegate")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo named no program")
}

pub fn launch(path: &Path, name: &str, setup: &Setup<'_>) -> Result<Launch> {
    let file = setup.directory.join(format!("{name}.toml"));
    fs::write(&file, config(setup)).with_context(|| format!("writing {}", file.display()))?;
    let command = [&path.display().to_string(), "run", "--announce", "--config", &file.display().to_string()];
    Ok(Launch { command: command.map(str::to_owned).to_vec(), ending: Ending::Kill, announces: Some("\"ready\":true") })
}

fn config(setup: &Setup<'_>) -> String {
    let backends: Vec<String> = setup.backends.iter().map(|backend| format!("\"{backend}\"")).collect();
    let health = match setup.health {
        Health::On => "probe = \"tcp\"\ninterval = \"2s\"",
        Health::Off => "probe = \"none\"",
    };
    format!(
        "[runtime]\nworkers = {}\nmax_connections = {}\n\n[admin]\nlisten = \"127.0.0.1:0\"\n\n\
         [listeners.bench]\nbind = \"{}\"\npool = \"backends\"\n\n\
         [pools.backends]\nbackends = [{}]\n\n[pools.backends.health]\n{health}\n",
        setup.workers,
        // Left alone, it keeps more descriptors for pipes than any mode can use.
        super::most_connections(setup.connections),
        setup.listen,
        backends.join(", "),
    )
}
