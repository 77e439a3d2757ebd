//! The processes of a contestant, whoever started them: how many, their descriptors, memory and CPU time.
//!
//! A proxy that starts its next program itself may leave it to be adopted. So this program adopts (`adopt`), and a
//! contestant is whatever descends from it but for its own helpers.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal, set_child_subreaper};
use serde::{Deserialize, Serialize};
use tidegate_compare::cpu;

/// What a contestant holds at one time.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Holds {
    pub processes: usize,
    pub descriptors: usize,
    /// Resident, with each page that several processes share counted once in all.
    pub bytes: u64,
    /// Used so far, those that have ended included.
    pub cpu: Duration,
}

/// From now on, orphans of what this program starts are its own children.
pub fn adopt() -> Result<()> {
    set_child_subreaper(Some(getpid())).context("adopting orphans")
}

/// Everything that descends from this program, but for these and what descends from them.
pub fn members(helpers: &[i32]) -> Vec<i32> {
    let own = getpid().as_raw_nonzero().get();
    let others: HashSet<i32> = helpers.iter().flat_map(|&helper| cpu::tree(helper)).collect();
    cpu::tree(own).into_iter().skip(1).filter(|pid| !others.contains(pid)).filter(|&pid| lives(pid)).collect()
}

/// An ended process that nobody has waited for yet holds nothing.
fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| field(&stat, 0).is_some_and(|state| state != "Z"))
}

/// A field of /proc/PID/stat, counted from the state behind the name.
fn field(stat: &str, index: usize) -> Option<&str> {
    stat.rsplit_once(") ")?.1.split(' ').nth(index)
}

/// What these processes hold. One that ends meanwhile holds nothing.
pub fn holds(pids: &[i32]) -> Holds {
    let mut holds = Holds { processes: pids.len(), ..Holds::default() };
    for pid in pids {
        holds.descriptors += fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        holds.bytes += fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).map_or(0, |text| proportional(&text));
        holds.cpu +=
            fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| used(&stat)).unwrap_or_default();
    }
    holds
}

/// Its own CPU time, and that of children that it has waited for.
fn used(stat: &str) -> Option<Duration> {
    let ticks: u64 = (11..15).map(|index| field(stat, index)?.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

fn proportional(rollup: &str) -> u64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Ends these, and waits for those that are our children.
pub fn kill(pids: &[i32]) {
    for pid in pids.iter().filter_map(|&pid| Pid::from_raw(pid)) {
        // An error means that it has ended already.
        if let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) {
            let _ = pidfd_send_signal(handle, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_behind_an_ugly_name() {
        let stat = "17 (a) S 3) S 42 17 17 0 -1 4194304 1 2 3 4 100 50 30 20 20 0";
        assert_eq!(field(stat, 0), Some("S"));
        let ticks = 200.0 / rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(used(stat), Some(Duration::from_secs_f64(ticks)));
        assert_eq!(proportional("Rss: 2048 kB\nPss:    10 kB\nPss_Dirty: 4 kB\n"), 10 << 10);
    }

    #[test]
    fn this_process_holds_something() {
        let holds = holds(&[getpid().as_raw_nonzero().get()]);
        assert!(holds.descriptors >= 3 && holds.bytes > 0 && holds.processes == 1);
    }
}
