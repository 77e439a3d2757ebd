//! System calls that fail on demand: strace attached to the running process for as long as a fault lasts.

use crate::kit::program::Beside;
use crate::kit::{Tidegate, eventually};
use rustix::process::Signal;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// A fault that lasts until this is ended.
pub struct Fault {
    strace: Beside,
    log: PathBuf,
    _dir: TempDir,
}

impl Fault {
    /// Lets system calls of `tidegate` fail, each as in `accept4:error=ENFILE:when=1..5` (counted for each thread by
    /// itself).
    pub fn on(tidegate: &Tidegate, faults: &[&str]) -> Self {
        Self::beside(tidegate, faults, "")
    }

    /// The same, and other calls are noted, too, as they are.
    pub fn beside(tidegate: &Tidegate, faults: &[&str], others: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("strace");
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-ttt", "-o"]).arg(&log).args(["-p", &tidegate.pid.to_string()]);
        let calls = faults.iter().map(|fault| fault.split(':').next().unwrap());
        let calls: Vec<&str> = calls.chain((!others.is_empty()).then_some(others)).collect();
        command.args(["-e", &format!("trace={}", calls.join(","))]);
        for fault in faults {
            command.args(["-e", &format!("inject={fault}")]);
        }
        let way_out = "Install it: apt-get install strace";
        let mut strace = Beside::start(&mut command, Signal::INT, way_out);
        eventually("strace holds every thread (it needs root, or kernel.yama.ptrace_scope=0)", || {
            assert!(strace.lives(), "strace ended at once: it may not trace that process");
            let threads = fs::read_dir(format!("/proc/{}/task", tidegate.pid)).unwrap();
            threads.flatten().all(|thread| {
                let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0\n")
            })
        });
        Self { strace, log, _dir: dir }
    }

    /// The calls that have failed so far: seconds of the wall clock, and the line.
    pub fn hits(&self) -> Vec<(f64, String)> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines()
            .filter(|line| line.contains("(INJECTED)"))
            .map(|line| (line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap(), line.to_owned()))
            .collect()
    }

    /// Ends the fault; how often it has hit, and how often its thread has made other calls between the first hit and
    /// the last.
    pub fn end_beside(mut self) -> (usize, usize) {
        self.strace.stop();
        let hits = self.hits().len();
        let text = fs::read_to_string(&self.log).unwrap();
        let thread = |line: &str| line.split_ascii_whitespace().next().map(str::to_owned);
        let is_hit = |line: &&str| line.contains("(INJECTED)");
        let own = text.lines().find(is_hit).and_then(thread);
        let lines: Vec<&str> = text.lines().filter(|line| thread(line) == own).collect();
        let (first, last) = (lines.iter().position(is_hit), lines.iter().rposition(is_hit));
        let between = first.zip(last).map_or(&[][..], |(first, last)| &lines[first..last]);
        (hits, between.iter().filter(|line| !is_hit(line)).count())
    }

    /// Ends the fault; how often it has hit.
    pub fn end(mut self) -> usize {
        self.strace.stop();
        self.hits().len()
    }
}
