//! A run: finds the peers, starts backends and proxies, measures window after window, and hands all of it to the
//! report.
//!
//! Memory and system calls come first, on a fresh process of each peer, one at a time: a proxy that has already carried
//! load keeps memory for connections to come. Then all proxies are up at once and take turns: in each round every mode
//! is measured with every peer, modes and peers in random order. Invariants: one job runs at a time, and each is
//! bounded; a window belongs to processes that were the same before and after it.

use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum as _;

use crate::calls::{self, Strace};
use crate::cli::{Health, Options};
use crate::load::{Job, Sample, Task};
use crate::machine::{self, Facts, Placement};
use crate::mode::{Cores, IdleCount, Mode, Workload};
use crate::peers::{self, Peer, Running, Start, State};
use crate::plan::{Plan, Section};
use crate::process::{Ending, Process, own_executable};
use crate::{ports, report};

/// A job that takes this much longer than its windows is ended.
const JOB_GRACE: Duration = Duration::from_secs(30);
/// The clients of short connections come from 127.0.0.100 and up.
const SOURCES: u8 = 16;
const FIRST_SOURCE_HOST: u8 = 100;

/// One measurement.
pub struct Window {
    /// Index into the sections of the plan.
    pub section: usize,
    pub peer: usize,
    pub mode: &'static Mode,
    pub round: u32,
    pub result: Result<Sample, String>,
}

/// Everything that a run found out.
pub struct Record {
    pub facts: Facts,
    pub peers: Vec<Peer>,
    pub plan: Plan,
    pub windows: Vec<Window>,
    pub idle_connections: u32,
    /// What went wrong beside the windows.
    pub remarks: Vec<String>,
    pub took: Duration,
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(options.backend_ports.len() == 2, "--backend-ports wants two ports");
    let connections = machine::raise_descriptor_limit()?;
    let plan = Plan::new(options);
    let placement = Placement::new(options.workers)?;
    let facts = Facts::read(&placement);
    let directory = Directory::new(options.keep.as_deref())?;
    let mut run = Run {
        options,
        placement,
        connections,
        idle_connections: options.idle.min(peers::most_connections(connections)),
        tally: directory.path().join("uploads"),
        directory: directory.path().to_owned(),
        peers: peers::find(options)?,
        server: None,
        section: 0,
        plan,
        windows: Vec::new(),
        remarks: Vec::new(),
        dice: fastrand::Rng::new(),
    };
    let began = Instant::now();
    run.announce(&facts);
    // Better now than after minutes of measuring.
    run.peers.iter().filter(|peer| peer.is_present()).try_for_each(Peer::ensure_port_free)?;
    run.start_server()?;
    for section in 0..run.plan.sections.len() {
        run.section = section;
        run.placement = Placement::new(run.section().workers)?;
        run.measure_section()?;
    }

    let record = Record {
        facts,
        plan: run.plan,
        idle_connections: run.idle_connections,
        peers: run.peers,
        windows: run.windows,
        remarks: run.remarks,
        took: began.elapsed(),
    };
    // The table first: a file that can't be written must not cost what was measured.
    print!("{}", report::tables(&record, options));
    if let Some(file) = &options.json {
        report::json::write(&record, options, file)?;
    }
    if let Some(file) = &options.plot {
        report::plot::write(&record, options, file)?;
    }
    Ok(())
}

struct Run<'a> {
    options: &'a Options,
    placement: Placement,
    /// Connections that a proxy can carry.
    connections: u32,
    idle_connections: u32,
    directory: PathBuf,
    /// Where the backends count uploads.
    tally: PathBuf,
    peers: Vec<Peer>,
    server: Option<Process>,
    plan: Plan,
    /// The one that is being measured.
    section: usize,
    windows: Vec<Window>,
    remarks: Vec<String>,
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
        let count = |wanted: fn(&Peer) -> bool| self.peers.iter().filter(|peer| wanted(peer)).count() as u32;
        let expected = self.plan.expected(count(Peer::is_present), count(|peer| peer.is_present() && peer.is_proxy()));
        eprintln!("this takes about {}:{:02} minutes", expected.as_secs() / 60, expected.as_secs() % 60);
    }

    fn section(&self) -> &Section {
        &self.plan.sections[self.section]
    }

    fn start_server(&mut self) -> Result<()> {
        let mut listen: Vec<SocketAddrV4> = self.peers.iter().flat_map(|peer| peer.backends().to_vec()).collect();
        listen.sort_unstable();
        listen.dedup();
        listen.iter().try_for_each(|&address| ports::ensure_free(address))?;
        let source =
            self.options.source.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let tally = self.tally.display().to_string();
        let mut command = vec![own_executable()?.display().to_string(), "server".to_owned(), source, tally];
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

    fn measure_section(&mut self) -> Result<()> {
        let modes = self.section().modes.clone();
        for &mode in &modes {
            match mode.workload {
                Workload::Idle(IdleCount::AsAsked) => self.measure_idle(mode, self.idle_connections)?,
                Workload::Idle(IdleCount::Limit) => {
                    self.measure_idle(mode, peers::most_connections(self.connections))?;
                }
                Workload::Calls => self.count_calls(mode)?,
                Workload::Traffic(_) | Workload::Storm(_) => {}
            }
        }
        self.take_turns(modes.into_iter().filter(|mode| mode.takes_turns()).collect())
    }

    /// A fresh process of each proxy in turn.
    fn measure_idle(&mut self, mode: &'static Mode, connections: u32) -> Result<()> {
        for round in 0..self.plan.length.idle_rounds {
            for index in self.shuffled(|peer| peer.is_present() && peer.is_proxy()) {
                progress(&format!("{}, round {}: {}", mode.name, round + 1, self.peers[index].name));
                if let Some(mut running) = self.start_peer(index, self.options.health) {
                    self.measure(index, &mut running, mode, round, Task::Idle { connections: connections as usize })?;
                }
            }
        }
        progress("");
        Ok(())
    }

    /// A fresh process of each proxy in turn, without health checks: their calls would be counted as well.
    fn count_calls(&mut self, mode: &'static Mode) -> Result<()> {
        let strace = match Strace::find() {
            Ok(strace) => strace,
            Err(reason) => {
                eprintln!("\n!!! strace is MISSING, so no system calls will be counted: {reason}\n");
                self.remarks.push(format!("{}: strace is MISSING: {reason}", mode.name));
                return Ok(());
            }
        };
        for index in self.shuffled(|peer| peer.is_present() && peer.is_proxy()) {
            progress(&format!("{}: {}", mode.name, self.peers[index].name));
            let Some(mut running) = self.start_peer(index, Health::Off) else { continue };
            let processes = running.pids();
            let result = calls::count(&strace, &processes, &running.targets, &self.directory);
            let result = match running.fate(&processes)? {
                Some(reason) => Err(reason),
                None => result.map_err(|error| format!("{error:#}")),
            };
            self.push(index, mode, 0, result);
        }
        progress("");
        Ok(())
    }

    /// All peers at once, and windows in random order.
    fn take_turns(&mut self, mut modes: Vec<&'static Mode>) -> Result<()> {
        if modes.is_empty() {
            return Ok(());
        }
        let mut running: Vec<Option<Running>> = (0..self.peers.len())
            .map(|index| self.peers[index].is_present().then(|| self.start_peer(index, self.options.health))?)
            .collect();
        let length = self.plan.length;
        for round in 0..length.rounds {
            self.dice.shuffle(&mut modes);
            for &mode in &modes {
                let task = match mode.workload {
                    Workload::Traffic(traffic) => {
                        Task::Traffic { traffic, warm_up: length.warm_up, window: length.window }
                    }
                    Workload::Storm(connections) => {
                        Task::Storm { connections: connections.min(peers::most_connections(self.connections)) as usize }
                    }
                    Workload::Idle(_) | Workload::Calls => continue,
                };
                for index in self.shuffled(Peer::is_present) {
                    progress(&format!(
                        "section {} of {}, round {} of {}: {}, {}",
                        self.section + 1,
                        self.plan.sections.len(),
                        round + 1,
                        length.rounds,
                        mode.name,
                        self.peers[index].name
                    ));
                    // One that ended in the middle was told then; the windows to come get a fresh process.
                    if running[index].is_none() {
                        running[index] = self.start_peer(index, self.options.health);
                    }
                    let Some(process) = &mut running[index] else { continue };
                    if !self.measure(index, process, mode, round, task)? {
                        running[index] = None;
                    }
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
    fn start_peer(&mut self, index: usize, health: Health) -> Option<Running> {
        let start = Start { workers: self.section().workers, health, connections: self.connections };
        let peer = &mut self.peers[index];
        match peer.start(start, &self.directory) {
            Ok(running) => Some(running),
            Err(error) => {
                let reason = format!("{error:#}");
                let so_far =
                    if self.windows.iter().any(|window| window.peer == index) { " again, in the middle" } else { "" };
                let name = &peer.name;
                eprintln!("\n!!! {name} DID NOT START{so_far} and will not be measured any more: {reason}\n");
                peer.state = State::Missing(format!("it did not start{so_far}: {reason}"));
                None
            }
        }
    }

    /// One window. False if the proxy is not what it was any more.
    fn measure(
        &mut self,
        peer: usize,
        running: &mut Running,
        mode: &'static Mode,
        round: u32,
        task: Task,
    ) -> Result<bool> {
        let server = self.server.as_ref().context("the backends are not up")?;
        let proxy = running.pids();
        let cores = self.section().cores(mode);
        self.placement.pin_proxy(cores, &proxy)?;
        self.placement.pin_others(cores, &[server.pid()])?;
        let host = |index| SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, FIRST_SOURCE_HOST + index), 0);
        let job = Job {
            task,
            targets: running.targets.clone(),
            sources: (0..SOURCES).map(host).collect(),
            proxy: proxy.clone(),
            server: server.pid(),
            tally: self.tally.clone(),
            source: self.options.source,
        };
        let result = self.run_job(&job, cores).map_err(|error| format!("{error:#}"));
        let fate = running.fate(&proxy)?;
        let lives = fate.is_none();
        if let Some(reason) = &fate {
            eprintln!("\n!!! {} FAILED in {}, round {}: {reason}\n", self.peers[peer].name, mode.name, round + 1);
        }
        // Without backends every window that follows would be a lie.
        if let Some(server) = &mut self.server
            && let Some(status) = server.wait(Duration::ZERO)?
        {
            bail!("the backends ended ({status}){}", server.last_words());
        }
        self.push(peer, mode, round, fate.map_or(result, Err));
        Ok(lives)
    }

    fn push(&mut self, peer: usize, mode: &'static Mode, round: u32, result: Result<Sample, String>) {
        self.windows.push(Window { section: self.section, peer, mode, round, result });
    }

    fn run_job(&self, job: &Job, cores: Cores) -> Result<Sample> {
        let text = serde_json::to_string(job).context("writing a job")?;
        let command = [own_executable()?.display().to_string(), "load".to_owned(), text];
        let mut load = Process::start("load", &command, Ending::Kill, &self.directory)?;
        self.placement.pin_others(cores, &[load.pid()])?;
        let limit = self.plan.length.warm_up + self.plan.length.window + JOB_GRACE;
        let status = load.wait(limit)?.ok_or_else(|| anyhow!("the clients did not end within {limit:?}"))?;
        ensure!(status.success(), "the clients failed ({status}){}", load.last_words());
        serde_json::from_str(&load.output()).context("reading the clients' sample")
    }
}

/// One line that changes in place, for somebody who watches.
fn progress(line: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{line:<78}\r");
    }
}

/// Where the configurations and logs of the peers lie during the run.
enum Directory {
    Kept(PathBuf),
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
