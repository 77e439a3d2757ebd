//! A run: finds the peers, starts backends and proxies, measures window after window, and hands all of it to the
//! report.
//!
//! Memory comes first, on a fresh process of each peer, one at a time: a proxy that has already carried load keeps
//! memory for connections to come. Then all proxies are up at once and take turns: in each round every mode is
//! measured with every peer, modes and peers in random order. Invariant: one job runs at a time, and each is bounded.

use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum as _;

use crate::cli::Options;
use crate::load::{Job, Sample, Task};
use crate::machine::{self, Facts, Placement};
use crate::mode::{Cores, MODES, Mode, Workload};
use crate::peers::{self, Peer, Running, State};
use crate::process::{Ending, Process, own_executable};
use crate::{ports, report};

const QUICK: Length = Length { rounds: 3, window: Duration::from_millis(800), warm_up: Duration::from_millis(150) };
const FULL: Length = Length { rounds: 7, window: Duration::from_secs(3), warm_up: Duration::from_millis(400) };
/// Idle memory hardly differs from round to round.
const IDLE_ROUNDS: u32 = 3;
/// A job that takes this much longer than its windows is ended.
const JOB_GRACE: Duration = Duration::from_secs(30);
/// The clients of short connections come from 127.0.0.100 and up.
const SOURCES: u8 = 16;
const FIRST_SOURCE_HOST: u8 = 100;

#[derive(Clone, Copy)]
struct Length {
    rounds: u32,
    window: Duration,
    warm_up: Duration,
}

/// One measurement.
pub struct Window {
    pub peer: usize,
    pub mode: &'static Mode,
    pub round: u32,
    pub result: Result<Sample, String>,
}

/// Everything that a run found out.
pub struct Record {
    pub facts: Facts,
    pub peers: Vec<Peer>,
    pub modes: Vec<&'static Mode>,
    pub windows: Vec<Window>,
    pub rounds: u32,
    pub window: Duration,
    pub idle_connections: u32,
}

pub fn run(options: &Options) -> Result<()> {
    let length = length(options);
    ensure!(options.backend_ports.len() == 2, "--backend-ports wants two ports");
    let connections = machine::raise_descriptor_limit()?;
    let placement = Placement::new(options.workers)?;
    let facts = Facts::read(&placement);
    let directory = Directory::new(options.keep.as_deref())?;
    let modes: Vec<_> = MODES.iter().filter(|m| options.only.is_empty() || options.only.contains(&m.name)).collect();
    let mut run = Run {
        options,
        length,
        placement,
        connections,
        idle_connections: options.idle.min(connections),
        directory: directory.path().to_owned(),
        peers: peers::find(options)?,
        server: None,
        windows: Vec::new(),
        dice: fastrand::Rng::new(),
    };
    run.announce(&facts);
    // Better now than after minutes of measuring.
    run.peers.iter().filter(|peer| peer.is_present()).try_for_each(Peer::ensure_port_free)?;
    run.start_server()?;
    for mode in modes.iter().filter(|mode| matches!(mode.workload, Workload::Idle)) {
        run.measure_idle(mode)?;
    }
    run.measure_traffic(&modes)?;

    let record = Record {
        facts,
        modes,
        rounds: length.rounds,
        window: length.window,
        idle_connections: run.idle_connections,
        peers: run.peers,
        windows: run.windows,
    };
    if let Some(file) = &options.json {
        report::json::write(&record, options, file)?;
    }
    print!("{}", report::tables(&record, options));
    Ok(())
}

fn length(options: &Options) -> Length {
    let mut length = if options.quick { QUICK } else { FULL };
    if let Some(rounds) = options.rounds {
        length.rounds = rounds;
    }
    if let Some(window) = options.window {
        length.window = Duration::from_millis(window);
    }
    length
}

struct Run<'a> {
    options: &'a Options,
    length: Length,
    placement: Placement,
    /// Connections that a proxy can carry.
    connections: u32,
    idle_connections: u32,
    directory: std::path::PathBuf,
    peers: Vec<Peer>,
    server: Option<Process>,
    windows: Vec<Window>,
    dice: fastrand::Rng,
}

impl Run<'_> {
    /// What is missing is said before anything else, and again in the report.
    fn announce(&self, facts: &Facts) {
        for remark in &facts.remarks {
            eprintln!("note: {remark}");
        }
        for peer in &self.peers {
            if let State::Missing(reason) = &peer.state {
                eprintln!("\n!!! {} is MISSING and will not be measured: {reason}\n", peer.name);
            }
        }
        if self.idle_connections < self.options.idle {
            eprintln!("note: the limit of descriptors leaves room for only {} idle connections", self.idle_connections);
        }
    }

    fn start_server(&mut self) -> Result<()> {
        let mut listen: Vec<SocketAddrV4> = self.peers.iter().flat_map(|peer| peer.backends().to_vec()).collect();
        listen.sort_unstable();
        listen.dedup();
        listen.iter().try_for_each(|&address| ports::ensure_free(address))?;
        let source =
            self.options.source.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let mut command = vec![own_executable()?.display().to_string(), "server".to_owned(), source];
        command.extend(listen.iter().map(SocketAddrV4::to_string));
        let mut server = Process::start("backends", &command, Ending::Kill, &self.directory)?;
        server.wait_until("listening", Duration::from_secs(5), |server| {
            for &address in &listen {
                if !ports::listened_by(address, &server.tree())? {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// A fresh process of each proxy in turn.
    fn measure_idle(&mut self, mode: &'static Mode) -> Result<()> {
        for round in 0..self.length.rounds.min(IDLE_ROUNDS) {
            for index in self.shuffled(|peer| peer.is_present() && peer.is_proxy()) {
                progress(&format!("memory, round {}: {}", round + 1, self.peers[index].name));
                if let Some(mut running) = self.start_peer(index) {
                    let task = Task::Idle { connections: self.idle_connections as usize };
                    self.measure(index, &mut running, mode, round, task)?;
                }
            }
        }
        progress("");
        Ok(())
    }

    /// All peers at once, and windows in random order.
    fn measure_traffic(&mut self, modes: &[&'static Mode]) -> Result<()> {
        let mut modes: Vec<_> = modes
            .iter()
            .filter_map(|&mode| match mode.workload {
                Workload::Traffic(traffic) => Some((mode, traffic)),
                Workload::Idle => None,
            })
            .collect();
        if modes.is_empty() {
            return Ok(());
        }
        let mut running: Vec<Option<Running>> = (0..self.peers.len())
            .map(|index| self.peers[index].is_present().then(|| self.start_peer(index))?)
            .collect();
        for round in 0..self.length.rounds {
            self.dice.shuffle(&mut modes);
            for &(mode, traffic) in &modes {
                for index in self.shuffled(Peer::is_present) {
                    let Some(running) = &mut running[index] else { continue };
                    let name = &self.peers[index].name;
                    progress(&format!("round {} of {}: {:?}, {name}", round + 1, self.length.rounds, mode.name));
                    let task = Task::Traffic { traffic, warm_up: self.length.warm_up, window: self.length.window };
                    self.measure(index, running, mode, round, task)?;
                }
            }
        }
        progress("");
        Ok(())
    }

    fn shuffled(&mut self, wanted: impl Fn(&Peer) -> bool) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.peers.len()).filter(|&index| wanted(&self.peers[index])).collect();
        self.dice.shuffle(&mut order);
        order
    }

    /// A proxy that does not come up counts as missing from then on.
    fn start_peer(&mut self, index: usize) -> Option<Running> {
        let peer = &mut self.peers[index];
        match peer.start(self.options, self.connections, &self.directory) {
            Ok(running) => Some(running),
            Err(error) => {
                let reason = format!("{error:#}");
                eprintln!("\n!!! {} DID NOT START and will not be measured: {reason}\n", peer.name);
                peer.state = State::Missing(reason);
                None
            }
        }
    }

    fn measure(
        &mut self,
        peer: usize,
        running: &mut Running,
        mode: &'static Mode,
        round: u32,
        task: Task,
    ) -> Result<()> {
        let server = self.server.as_ref().context("the backends are not up")?;
        let proxy = running.pids();
        self.placement.pin_proxy(mode.cores, &proxy)?;
        self.placement.pin_others(mode.cores, &[server.pid()])?;
        let host = |index| SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, FIRST_SOURCE_HOST + index), 0);
        let job = Job {
            task,
            targets: running.targets.clone(),
            sources: (0..SOURCES).map(host).collect(),
            proxy,
            server: server.pid(),
        };
        let result = self.run_job(&job, mode.cores).map_err(|error| format!("{error:#}"));
        let result = running.ended()?.map_or(result, Err);
        // Without backends every window that follows would be a lie.
        if let Some(server) = &mut self.server
            && let Some(status) = server.wait(Duration::ZERO)?
        {
            bail!("the backends ended ({status}){}", server.last_words());
        }
        self.windows.push(Window { peer, mode, round, result });
        Ok(())
    }

    fn run_job(&self, job: &Job, cores: Cores) -> Result<Sample> {
        let text = serde_json::to_string(job).context("writing a job")?;
        let command = [own_executable()?.display().to_string(), "load".to_owned(), text];
        let mut load = Process::start("load", &command, Ending::Kill, &self.directory)?;
        self.placement.pin_others(cores, &[load.pid()])?;
        let limit = self.length.warm_up + self.length.window + JOB_GRACE;
        let status = load.wait(limit)?.ok_or_else(|| anyhow!("the clients did not end within {limit:?}"))?;
        ensure!(status.success(), "the clients failed ({status}){}", load.last_words());
        serde_json::from_str(&load.output()).context("reading the clients' sample")
    }
}

/// One line that changes in place, for somebody who watches.
fn progress(line: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{line:<60}\r");
    }
}

/// Where the configurations and logs of the peers lie during the run.
enum Directory {
    Kept(std::path::PathBuf),
    Temporary(tempfile::TempDir),
}

impl Directory {
    fn new(keep: Option<&Path>) -> Result<Self> {
        match keep {
            Some(path) => {
                std::fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
                Ok(Self::Kept(path.canonicalize()?))
            }
            None => Ok(Self::Temporary(
                tempfile::Builder::new()
                    .prefix("tidegate-compare-")
                    .tempdir()
                    .context("creating a temporary directory")?,
            )),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(directory) => directory.path(),
        }
    }
}
