//! tidegate itself: the release build of this repository, or a binary that was named.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tidegate_compare::build;

use super::{Launch, Setup, State};
use crate::cli::Health;
use crate::process::{Ending, output_of};

pub fn find(named: Option<&Path>) -> (PathBuf, State) {
    let path = match named {
        Some(path) => Ok(path.to_owned()),
        None => build::tidegate(),
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
