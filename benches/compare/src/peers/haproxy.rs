//! HAProxy, `mode tcp`, in three ways: with its defaults, with `option splice-auto`, and with everything that makes it
//! fast for large transfers.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Launch, Setup, State};
use crate::cli::Health;
use crate::process::{Ending, find_program, output_of};

/// Pipes for splicing, two descriptors each. Left alone, HAProxy reserves one for every fourth connection and refuses
/// to start if the limit of descriptors has no room for them. No mode has half as many transfers at a time.
const MAX_PIPES: u32 = 256;
/// Descriptors for everything else, in connections.
const SPARE_CONNECTIONS: u32 = 50;
/// What it can't carry of the connections that the limit of descriptors leaves room for. No other peer needs more.
pub const RESERVE: u32 = MAX_PIPES + SPARE_CONNECTIONS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Default,
    SpliceAuto,
    Best,
}

impl Variant {
    pub const ALL: &'static [Self] = &[Self::Default, Self::SpliceAuto, Self::Best];

    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "haproxy",
            Self::SpliceAuto => "haproxy-auto",
            Self::Best => "haproxy-best",
        }
    }

    pub fn description(self) -> &'static str {
        match self {
            Self::Default => "mode tcp",
            Self::SpliceAuto => "mode tcp, splice-auto",
            Self::Best => "mode tcp, splice-request, splice-response, 1 MiB pipes, smart-accept, smart-connect",
        }
    }

    fn global_lines(self) -> &'static str {
        match self {
            Self::Default | Self::SpliceAuto => "",
            Self::Best => "    tune.pipesize 1048576\n",
        }
    }

    fn default_lines(self) -> &'static str {
        match self {
            Self::Default => "",
            Self::SpliceAuto => "    option splice-auto\n",
            Self::Best => {
                "    option splice-request\n    option splice-response\n    option tcp-smart-accept\n    option tcp-smart-connect\n"
            }
        }
    }
}

pub fn find() -> (PathBuf, State) {
    let Some(path) = find_program("haproxy") else {
        return (PathBuf::new(), State::Missing("no program haproxy; Debian: apt-get install haproxy".to_owned()));
    };
    let output = output_of(&path, &["-v"]).unwrap_or_default();
    let version = output.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let state = State::Present(version.unwrap_or("of an unknown version").to_owned());
    (path, state)
}

pub fn launch(path: &Path, variant: Variant, setup: &Setup<'_>) -> Result<Launch> {
    let file = setup.directory.join(format!("{}.cfg", variant.name()));
    fs::write(&file, config(variant, setup)).with_context(|| format!("writing {}", file.display()))?;
    let command = vec![path.display().to_string(), "-db".to_owned(), "-f".to_owned(), file.display().to_string()];
    // -db: one process in the foreground, no master.
    Ok(Launch { command, ending: Ending::Kill, announces: None })
}

fn config(variant: Variant, setup: &Setup<'_>) -> String {
    let mut config = format!(
        "global\n    nbthread {}\n    maxconn {}\n    maxpipes {MAX_PIPES}\n{}\
         defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 10m\n    timeout server 10m\n{}\
         listen bench\n    bind {} backlog 4096\n    balance roundrobin\n",
        setup.workers,
        setup.connections.saturating_sub(RESERVE),
        variant.global_lines(),
        variant.default_lines(),
        setup.listen,
    );
    let check = match setup.health {
        Health::On => " check inter 2s",
        Health::Off => "",
    };
    for (index, backend) in setup.backends.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(config, "    server b{index} {backend}{check}");
    }
    config
}
