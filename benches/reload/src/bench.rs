//! The rounds: each contestant in turn gets fresh backends, clients and processes, and is changed while they run.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tidegate_compare::process::{Ending, Process, own_executable};
use tidegate_compare::{cpu, ports};

use crate::cli::{Change, Options};
use crate::contestant::{self, Layout, Proxy};
use crate::group::{self, Holds};
use crate::load::{self, Sample};
use crate::{backend, report};

/// Bound on the time until all first streams have had an answer.
const READY: Duration = Duration::from_secs(20);
/// How long after the last client a proxy may take to let go of what it had for it.
const SETTLE: Duration = Duration::from_secs(4);
/// Between a change that has come into force and the next one, at least.
const PAUSE: Duration = Duration::from_millis(20);
/// A proxy that has not changed in time so often in a row won't any more.
const MOST_FAILED: u32 = 3;

/// What one contestant did in one window.
#[derive(Debug, Serialize, Deserialize)]
pub struct Window {
    pub contestant: String,
    pub version: String,
    pub round: u32,
    pub sample: Sample,
    /// Changes that were made, in milliseconds each, and that didn't come within the bound.
    pub changes: Vec<f64>,
    pub failed_changes: u32,
    /// Signals that had to be sent again after a second.
    pub lost_signals: u32,
    /// Before the first change, at the end with the streams still running, and some seconds after the last client.
    pub before: Holds,
    pub end: Holds,
    pub after: Holds,
    /// The most processes at any change.
    pub most_processes: usize,
    /// Of one core, over the window.
    pub cpu_percent: f64,
    /// Of all cores, over the window: what the host of a virtual machine has given to others.
    pub stolen_percent: f64,
}

pub fn run(options: &Options) -> Result<()> {
    group::adopt()?;
    let proxies = if options.only.is_empty() { Proxy::ALL.to_vec() } else { options.only.clone() };
    let layout = Layout::of(options);
    let programs: Vec<_> = proxies.iter().map(|&proxy| (proxy, proxy.program(options))).collect();
    let mut windows = Vec::new();
    let mut troubles = Vec::new();
    for round in 0..options.rounds {
        for index in 0..programs.len() {
            let (proxy, program) = &programs[(index + round as usize) % programs.len()];
            let window = program.as_ref().map_err(|error| format!("{error:#}")).and_then(|program| {
                eprintln!("round {}: {} ...", round + 1, proxy.name());
                window(options, layout, *proxy, program, round).map_err(|error| format!("{error:#}"))
            });
            match window {
                Ok(window) => windows.push(window),
                Err(error) => troubles.push(format!("{}, round {}: {error}", proxy.name(), round + 1)),
            }
        }
    }
    print!("{}", report::text(options, &windows, &troubles));
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&windows).context("writing the windows")?;
        fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn window(options: &Options, layout: Layout, proxy: Proxy, program: &Path, round: u32) -> Result<Window> {
    let kept = options.keep.as_ref().map(|path| path.join(format!("{}-{round}", proxy.name())));
    let temporary = tempfile::tempdir().context("making a directory for the proxy's files")?;
    let directory = kept.unwrap_or_else(|| temporary.path().to_owned());
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    layout.all().try_for_each(ports::ensure_free)?;

    let job = backend::Job { listen: layout.backends() };
    let backends = helper("backends", &job, &directory)?;
    let mut running = contestant::start(proxy, options.change, program, layout, &directory)?;
    // Whatever becomes of this window, nothing of it is there in the next one.
    let outcome = drive(options, layout, &directory, &mut running, backends.pid());
    let version = proxy.version(running.program());
    drop(running);
    group::kill(&group::members(&[backends.pid()]));
    drop(backends);
    let mut window = outcome?;
    (window.contestant, window.version, window.round) = (proxy.name().to_owned(), version, round);
    Ok(window)
}

fn helper(name: &str, job: &impl Serialize, directory: &Path) -> Result<Process> {
    let job = serde_json::to_string(job).context("writing a job")?;
    let command = [own_executable()?.display().to_string(), name.to_owned(), job];
    Process::start(name, &command, Ending::Kill, directory)
}

fn drive(
    options: &Options,
    layout: Layout,
    directory: &Path,
    running: &mut contestant::Running,
    backends: i32,
) -> Result<Window> {
    let job = load::Job {
        target: layout.listen(),
        milliseconds: options.window().as_millis() as u64,
        rate: options.rate,
        streams: options.streams,
        late_streams: options.late_streams,
    };
    let mut clients = helper("load", &job, directory)?;
    let helpers = [backends, clients.pid()];
    clients.wait_until("the first answers", READY, |clients| Ok(clients.output().contains("ready")))?;
    let (begun, machine) = (Instant::now(), cpu::machine_time()?);
    let before = group::holds(&group::members(&helpers));
    let (mut changes, mut failed_changes, mut in_a_row, mut most_processes) = (Vec::new(), 0, 0, before.processes);
    // The last change leaves time to look at what is there with all streams.
    let span = options.window().saturating_sub(Duration::from_secs(1));
    for index in 0..options.count() {
        let due = begun + span * index / options.count();
        std::thread::sleep(due.saturating_duration_since(Instant::now()).max(PAUSE));
        if begun.elapsed() > span || in_a_row == MOST_FAILED {
            break;
        }
        if let Some(took) = running.change(options.change, begun + span)? {
            changes.push(took.as_secs_f64() * 1e3);
            in_a_row = 0;
        } else if begun.elapsed() < span {
            failed_changes += 1;
            in_a_row += 1;
        }
        if index % 50 == 0 || options.change == Change::Upgrade {
            most_processes = most_processes.max(group::members(&helpers).len());
        }
    }
    std::thread::sleep((begun + span).saturating_duration_since(Instant::now()));
    let end = group::holds(&group::members(&helpers));
    let measured = begun.elapsed();
    let cpu_percent = (end.cpu.saturating_sub(before.cpu)).as_secs_f64() / measured.as_secs_f64() * 100.0;
    let stolen = cpu::machine_time()?.stolen.saturating_sub(machine.stolen);
    let cores = std::thread::available_parallelism().context("counting cores")?;
    let stolen_percent = stolen.as_secs_f64() / measured.as_secs_f64() / cores.get() as f64 * 100.0;
    let Some(status) = clients.wait(options.window() + READY)? else { bail!("the clients didn't end in time") };
    let output = clients.output();
    let sample = output.lines().last().filter(|_| status.success()).context("the clients failed")?;
    let sample = serde_json::from_str(sample).context("reading what the clients saw")?;
    std::thread::sleep(SETTLE);
    let after = group::holds(&group::members(&helpers));
    Ok(Window {
        contestant: String::new(),
        version: String::new(),
        round: 0,
        sample,
        changes,
        failed_changes,
        lost_signals: running.lost_signals,
        before,
        end,
        after,
        most_processes: most_processes.max(end.processes),
        cpu_percent,
        stolen_percent,
    })
}
