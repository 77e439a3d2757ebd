//! What a tree of processes costs: CPU time and resident bytes. Reads only; `process.rs` owns the processes.
//!
//! CPU is read from the POSIX clock of each process (`clock_getcpuclockid`). /proc/PID/stat counts in ticks of 10 ms
//! on many kernels, too coarse for a window of one second, and /proc/PID/schedstat forgets threads that have ended
//! and lags up to a tick behind for one that is running. The process clock has nanoseconds, is brought up to date by
//! being read, and keeps the time of ended threads. A child has its own clock, so a tree is the sum over its processes.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::sys;

/// The process and all its descendants, itself first.
pub fn tree(root: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that ended since the listing is no member.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some(parent) = parent_in(&stat) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut members = vec![root];
    let mut next = 0;
    while let Some(&pid) = members.get(next) {
        members.extend(children.remove(&pid).unwrap_or_default());
        next += 1;
    }
    members
}

/// Field 4 of /proc/PID/stat. The name in field 2 may hold blanks and brackets, so count from its last bracket.
fn parent_in(stat: &str) -> Option<i32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// CPU time of these processes together.
pub fn time(pids: &[i32]) -> Result<Duration> {
    pids.iter()
        .map(|&pid| sys::process_cpu(pid).with_context(|| format!("reading the CPU clock of process {pid}")))
        .sum()
}

/// Of all cores together.
#[derive(Clone, Copy, Debug)]
pub struct MachineTime {
    /// Whoever with.
    pub busy: Duration,
    /// A core was wanted, and the hypervisor had given it to somebody else.
    pub stolen: Duration,
}

/// In ticks of the kernel, mostly 10 ms: a window of a second on two cores is 200 of them.
pub fn machine_time() -> Result<MachineTime> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let (busy, stolen) = machine_ticks(&stat).context("/proc/stat has no line for all cores")?;
    let time = |ticks| Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64);
    Ok(MachineTime { busy: time(busy), stolen: time(stolen) })
}

/// Busy and stolen of a line `cpu user nice system idle iowait irq softirq steal guest guest_nice`. Busy is all but
/// idle, iowait and steal; guests are part of user and nice already.
fn machine_ticks(stat: &str) -> Option<(u64, u64)> {
    let fields: Vec<u64> = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().flat_map(str::parse).collect();
    let field = |index: usize| fields.get(index).copied().unwrap_or(0);
    Some(([0, 1, 2, 5, 6].map(field).iter().sum(), field(7)))
}

/// Resident bytes of these processes together. Pages that two of them share count twice, so only a difference of two
/// readings means anything.
pub fn resident(pids: &[i32]) -> Result<u64> {
    pids.iter().map(|&pid| resident_of(pid)).sum()
}

fn resident_of(pid: i32) -> Result<u64> {
    // smaps_rollup walks the page tables. The counters in statm are kept for each core and may be off by hundreds of
    // kilobytes, which is much when divided by a few thousand connections.
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let bytes = rss_in(&text);
    ensure!(bytes > 0, "{path} has no Rss line");
    Ok(bytes)
}

fn rss_in(rollup: &str) -> u64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kilobytes: Option<u64> = line.and_then(|rest| rest.trim().strip_suffix(" kB")).and_then(|n| n.parse().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_is_found_behind_an_ugly_name() {
        assert_eq!(parent_in("17 (a) S 3) S 42 17 17 0 -1"), Some(42));
        assert_eq!(parent_in("17 (nginx: worker) R 9 1"), Some(9));
        assert_eq!(parent_in(""), None);
    }

    #[test]
    fn resident_bytes_come_from_the_rss_line() {
        let rollup = "55d0-7ffd ---p 00000000 00:00 0   [rollup]\nRss:                2048 kB\nPss:     10 kB\n";
        assert_eq!(rss_in(rollup), 2 << 20);
        assert_eq!(rss_in("Pss: 1 kB"), 0);
    }

    #[test]
    fn waiting_is_not_busy() {
        assert_eq!(machine_ticks("cpu  100 20 3 4000 500 6 7 8 90 9\ncpu0 1 1 1 1\n"), Some((136, 8)));
        assert_eq!(machine_ticks("intr 1"), None);
    }

    #[test]
    fn own_tree_begins_with_itself() {
        let own = std::process::id() as i32;
        assert_eq!(tree(own)[0], own);
        assert!(tree(1).contains(&1));
    }
}
