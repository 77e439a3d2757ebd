//! The machine that a run is on: its cores and how they are dealt out, its limits, and the words that describe it.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::mode::Cores;

/// Descriptors that a proxy needs beside its connections.
const SPARE_DESCRIPTORS: u64 = 200;
/// With fewer there is no room for the modes.
const LEAST_DESCRIPTORS: u64 = 2_000;

/// Which cores this run may use, and for whom.
pub struct Placement {
    proxy: CpuSet,
    others: CpuSet,
    all: CpuSet,
    /// False: everybody runs anywhere, always.
    pub pinned: bool,
}

impl Placement {
    /// The last core goes to the proxy: the first often has the interrupts. With one core, or with more workers than
    /// one core is for, nobody is pinned.
    pub fn new(workers: u16) -> Result<Self> {
        let all = sched_getaffinity(None).context("asking for the own cores")?;
        let last = (0..CpuSet::MAX_CPU).rev().find(|&core| all.is_set(core)).context("a process without cores")?;
        let (mut proxy, mut others) = (CpuSet::new(), all);
        proxy.set(last);
        others.unset(last);
        Ok(Self { proxy, others, all, pinned: workers == 1 && all.count() > 1 })
    }

    /// Puts all threads of these processes to the proxy's cores.
    pub fn pin_proxy(&self, cores: Cores, pids: &[i32]) -> Result<()> {
        pin(pids, if self.pinned && cores == Cores::Split { &self.proxy } else { &self.all })
    }

    /// Puts all threads of these processes to the cores of clients and backends.
    pub fn pin_others(&self, cores: Cores, pids: &[i32]) -> Result<()> {
        pin(pids, if self.pinned && cores == Cores::Split { &self.others } else { &self.all })
    }
}

fn pin(pids: &[i32], cores: &CpuSet) -> Result<()> {
    for pid in pids {
        // A process or thread that ended meanwhile needs no core.
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let Some(thread) = task.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match sched_setaffinity(Pid::from_raw(thread), cores) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).context(format!("pinning thread {thread}")),
            }
        }
    }
    Ok(())
}

/// Raises this process's limit of descriptors, which all children inherit, as far as it may be, and returns how many
/// connections a proxy can then carry.
pub fn raise_descriptor_limit() -> Result<u32> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("raising the limit of descriptors")?;
    let descriptors = limit.maximum.unwrap_or(u64::from(u32::MAX));
    ensure!(descriptors >= LEAST_DESCRIPTORS, "a limit of {descriptors} descriptors is too small to measure with");
    Ok(((descriptors - SPARE_DESCRIPTORS) / 2) as u32)
}

/// What a reader needs to judge the figures.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    pub processor: String,
    pub cores: u32,
    pub kernel: String,
    pub ephemeral_ports: String,
    /// Things about this machine that bend the figures.
    pub remarks: Vec<String>,
}

impl Facts {
    pub fn read(placement: &Placement) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned());
        let mut remarks = Vec::new();
        if !placement.pinned {
            remarks.push("nobody is pinned to a core: the figures wobble more".to_owned());
        }
        // Closed connections leave their pair of addresses for a minute unless the kernel may take it again.
        if system_value("net/ipv4/tcp_tw_reuse") == "0" {
            remarks.push("net.ipv4.tcp_tw_reuse is 0: proxies may run out of local ports in conn".to_owned());
        }
        if let Some(load) =
            fs::read_to_string("/proc/loadavg").ok().and_then(|text| text.split(' ').next()?.parse::<f64>().ok())
            && load > 0.5
        {
            remarks.push(format!("the machine was busy when the run began (load {load}): only ratios mean anything"));
        }
        Self {
            processor,
            cores: placement.all.count(),
            kernel: system_value("kernel/osrelease"),
            ephemeral_ports: system_value("net/ipv4/ip_local_port_range").replace('\t', "–"),
            remarks,
        }
    }
}

fn system_value(path: &str) -> String {
    fs::read_to_string(format!("/proc/sys/{path}")).unwrap_or_default().trim().to_owned()
}
