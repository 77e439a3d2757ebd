//! A run: in each round each contestant gets one window, in an order of chance, with fresh backends and a fresh proxy,
//! so that no contestant inherits what another one has left behind.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use tidegate_compare::ports;
use tidegate_compare::process::{Ending, Process, own_executable};

use crate::backend;
use crate::cli::Options;
use crate::contestant::{CONTESTANTS, Contestant, Programs, Setup};
use crate::report;
use crate::users::{self, Sample};

/// The backends are at 127.0.0.10 and up.
const FIRST_BACKEND_HOST: u8 = 10;
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// Bound on a window beyond its own length.
const SPARE: Duration = Duration::from_secs(10);
/// Descriptors that a proxy needs beside two for each connection.
const SPARE_DESCRIPTORS: u64 = 300;

#[derive(Serialize)]
pub struct Window {
    pub contestant: &'static str,
    pub round: u64,
    pub sample: Option<Sample>,
    /// Why there is no sample.
    pub lost: Option<String>,
    /// Lines of tidegate's metrics: what it counted since its start.
    pub told: Vec<String>,
}

/// All that a run brought.
pub struct Record {
    pub contestants: Vec<&'static Contestant>,
    pub versions: Vec<String>,
    pub windows: Vec<Window>,
    pub took: Duration,
}

pub fn run(options: &Options) -> Result<()> {
    raise_descriptor_limit(options)?;
    let contestants: Vec<&Contestant> = CONTESTANTS
        .iter()
        .filter(|contestant| {
            let named = options.only.iter().any(|name| name == contestant.name);
            named || options.only.is_empty() && (contestant.is_quick || !options.quick)
        })
        .collect();
    let programs = Programs::find(options);
    let kept = tempfile::tempdir().context("making a directory")?;
    let directory = options.keep.as_deref().unwrap_or(kept.path());
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let each = options.warm_up() + options.window();
    let seconds = each.as_secs_f64() * (contestants.len() as u64 * options.rounds()) as f64;
    eprintln!("{} contestants, {} rounds: about {seconds:.0} s", contestants.len(), options.rounds());
    let began = Instant::now();
    let mut windows = Vec::new();
    let mut dice = fastrand::Rng::new();
    for round in 0..options.rounds() {
        let mut order = contestants.clone();
        dice.shuffle(&mut order);
        for contestant in order {
            eprintln!("round {}: {}", round + 1, contestant.name);
            windows.push(window(contestant, round, &programs, options, directory));
        }
    }
    let record = Record { contestants, versions: programs.versions(), windows, took: began.elapsed() };
    print!("{}", report::text(&record, options));
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report::json(&record, options)).context("writing JSON")?;
        fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
    }
    if record.windows.iter().all(|window| window.sample.is_none()) {
        bail!("no window came about");
    }
    Ok(())
}

/// Without control, everybody who hasn't given up yet is there at once, on both sides of the proxy.
pub fn raise_descriptor_limit(options: &Options) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("raising the limit of descriptors")?;
    let users = options.capacity() * options.load * f64::from(options.retries + 1) * options.patience().as_secs_f64();
    let needed = 2 * users.ceil() as u64 + SPARE_DESCRIPTORS;
    match limit.maximum {
        Some(maximum) if maximum < needed => bail!(
            "this needs {needed} descriptors in one process, and the limit is {maximum}: raise it (ulimit -Hn), or ask for \
             less (--backends, --at-once, --load, --retries, --patience)"
        ),
        _ => Ok(()),
    }
}

fn window(
    contestant: &'static Contestant,
    round: u64,
    programs: &Programs,
    options: &Options,
    directory: &Path,
) -> Window {
    let mut window = Window { contestant: contestant.name, round, sample: None, lost: None, told: Vec::new() };
    match measure(contestant, round, programs, options, directory) {
        Ok((sample, told)) => (window.sample, window.told) = (Some(sample), told),
        Err(error) => {
            eprintln!("  lost: {error:#}");
            window.lost = Some(format!("{error:#}"));
        }
    }
    window
}

fn measure(
    contestant: &Contestant,
    round: u64,
    programs: &Programs,
    options: &Options,
    directory: &Path,
) -> Result<(Sample, Vec<String>)> {
    let backends = Backends::start("backends", 0, options, directory)?;
    let setup = Setup {
        listen: local(options.base_port + 1),
        admin: local(options.base_port + 2),
        backends: &backends.listen,
        directory,
    };
    let running = contestant.start(programs, options, &setup)?;
    let before = running.pids();
    let job = users::Job {
        targets: running.targets.clone(),
        rate: options.capacity() * contestant.load(options),
        patience: options.patience(),
        retries: options.retries,
        warm_up: options.warm_up(),
        window: options.window(),
        seed: round,
        tally: backends.tally.clone(),
        proxy: before.clone(),
        backends: backends.process.pid(),
    };
    let sample = Users::start("users", &job, directory)?.sample()?;
    if running.pids() != before {
        bail!("the processes of the proxy were {before:?} and are {:?}", running.pids());
    }
    Ok((sample, running.told()?))
}

pub fn local(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

/// One pool's backends, in a process of their own.
pub struct Backends {
    pub process: Process,
    pub listen: Vec<SocketAddrV4>,
    pub tally: PathBuf,
}

impl Backends {
    /// The pool with this number, counted from zero, and this name; returns once they listen.
    pub fn start(name: &str, pool: u8, options: &Options, directory: &Path) -> Result<Self> {
        let first = FIRST_BACKEND_HOST + pool * options.backends;
        let hosts = (0..options.backends).map(|index| Ipv4Addr::new(127, 0, 0, first + index));
        let listen: Vec<_> = hosts.map(|host| SocketAddrV4::new(host, options.base_port)).collect();
        listen.iter().try_for_each(|&address| ports::ensure_free(address))?;
        let tally = directory.join(format!("{name}.answers"));
        let job = backend::Job {
            listen: listen.clone(),
            at_once: options.at_once as usize,
            service: Duration::from_millis(options.service),
            crowd: options.crowd,
            tally: tally.clone(),
        };
        let own = own_executable()?.display().to_string();
        let command = [own, "backends".to_owned(), serde_json::to_string(&job)?];
        let mut process = Process::start(name, &command, Ending::Kill, directory)?;
        process.wait_until("listening", START_TIMEOUT, |process| {
            listen.iter().try_fold(true, |all, &address| Ok(all && ports::listened_by(address, &process.tree())?))
        })?;
        Ok(Self { process, listen, tally })
    }
}

/// Users, in a process of their own.
pub struct Users {
    process: Process,
    bound: Duration,
}

impl Users {
    pub fn start(name: &str, job: &users::Job, directory: &Path) -> Result<Self> {
        let command = [own_executable()?.display().to_string(), "users".to_owned(), serde_json::to_string(job)?];
        let process = Process::start(name, &command, Ending::Kill, directory)?;
        Ok(Self { process, bound: job.warm_up + job.window + SPARE })
    }

    /// Waits for their end.
    pub fn sample(mut self) -> Result<Sample> {
        match self.process.wait(self.bound)? {
            Some(status) if status.success() => {
                serde_json::from_str(&self.process.output()).context("reading what the users say")
            }
            Some(status) => bail!("the users ended ({status}){}", self.process.last_words()),
            None => bail!("the users took too long"),
        }
    }
}
