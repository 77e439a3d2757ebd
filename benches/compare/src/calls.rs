//! The system calls that a short connection costs a proxy, counted by strace.
//!
//! strace is attached twice to the same processes, once for `FEW` connections and once for twice as many. The
//! difference is what the additional connections cost: what a proxy does anyway, and what the attaching itself brings
//! about, is in both. Connections come one after the other, so nothing is shared between them; a busy proxy needs fewer
//! calls, for one wait brings it many events.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::load::Sample;
use crate::process::{Ending, Process, find_program};

const FEW: u32 = 100;
const TIMEOUT: Duration = Duration::from_secs(5);
/// After the last connection a proxy has this long to close what it has.
const CLOSING: Duration = Duration::from_millis(150);
const MESSAGE: [u8; 64] = [b'e'; 64];

/// The program.
pub struct Strace(PathBuf);

impl Strace {
    /// The reason if there is none.
    pub fn find() -> Result<Self, String> {
        find_program("strace").map(Self).ok_or_else(|| "no program strace; Debian: apt-get install strace".to_owned())
    }
}

/// Calls a connection of these processes, by name.
pub fn count(strace: &Strace, processes: &[i32], targets: &[SocketAddrV4], directory: &Path) -> Result<Sample> {
    let target = *targets.first().context("a proxy without an address")?;
    // The first connections of a process make it allocate and look up what the later ones find.
    connections(target, FEW / 10)?;
    let few = trace(strace, processes, target, FEW, directory)?;
    let many = trace(strace, processes, target, 2 * FEW, directory)?;
    let calls = difference(&few, &many, FEW);
    ensure!(!calls.is_empty(), "strace saw no calls");
    Ok(Sample { calls: Some(calls), ..Sample::default() })
}

/// Calls while so many connections come and go.
fn trace(
    strace: &Strace,
    processes: &[i32],
    target: SocketAddrV4,
    count: u32,
    directory: &Path,
) -> Result<BTreeMap<String, u64>> {
    let file = directory.join("strace.txt");
    let mut command = vec![strace.0.display().to_string(), "-f".to_owned(), "-c".to_owned()];
    command.extend(["-o".to_owned(), file.display().to_string()]);
    command.extend(processes.iter().flat_map(|process| ["-p".to_owned(), process.to_string()]));
    let mut process = Process::start("strace", &command, Ending::Terminate, directory)?;
    process.wait_until("attaching", TIMEOUT, |_| Ok(processes.iter().all(|&process| is_traced(process))))?;
    let result = connections(target, count);
    let ended = process.wait(CLOSING)?;
    ensure!(ended.is_none(), "strace ended by itself{}", process.last_words());
    // It lets go of the processes and writes the counts when it is told to end.
    process.end()?;
    result?;
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    Ok(parse(&text))
}

/// One connection after the other: an echo on each.
fn connections(target: SocketAddrV4, count: u32) -> Result<()> {
    for _ in 0..count {
        let mut stream = TcpStream::connect_timeout(&target.into(), TIMEOUT).context("connecting through strace")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(&MESSAGE).context("sending through strace")?;
        stream.read_exact(&mut [0; MESSAGE.len()]).context("receiving through strace")?;
    }
    Ok(())
}

/// Every thread of it.
fn is_traced(process: i32) -> bool {
    let mut tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten().peekable();
    tasks.peek().is_some()
        && tasks.all(|task| fs::read_to_string(task.path().join("status")).is_ok_and(|text| has_tracer(&text)))
}

fn has_tracer(status: &str) -> bool {
    status.lines().find_map(|line| line.strip_prefix("TracerPid:")).is_some_and(|pid| pid.trim() != "0")
}

/// The rows `% time, seconds, usecs/call, calls, errors (may be empty), syscall` of strace -c, between two rules.
fn parse(text: &str) -> BTreeMap<String, u64> {
    let rows = text.lines().skip_while(|line| !line.starts_with("---")).skip(1);
    rows.take_while(|line| !line.starts_with("---"))
        .filter_map(|row| {
            let fields: Vec<&str> = row.split_whitespace().collect();
            Some(((*fields.last()?).to_owned(), fields.get(3)?.parse().ok()?))
        })
        .collect()
}

/// For each of the additional connections. What differs by less than a tenth of a call is chance: a timer of the
/// proxy's own.
fn difference(few: &BTreeMap<String, u64>, many: &BTreeMap<String, u64>, additional: u32) -> BTreeMap<String, f64> {
    let each = many.iter().map(|(name, &calls)| {
        let before = few.get(name).copied().unwrap_or(0);
        (name.clone(), (calls as f64 - before as f64) / f64::from(additional))
    });
    each.filter(|(_, calls)| *calls >= 0.1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 56.53    0.012026          12       959       100 recvfrom
 10.08    0.002145          10       200           accept4
  0.00    0.000000           0         1           restart_syscall
------ ----------- ----------- --------- --------- ----------------
100.00    0.021275          11      1160       100 total
";

    #[test]
    fn rows_with_and_without_errors_are_read_and_the_total_is_none() {
        let calls = parse(SUMMARY);
        let expected = [("accept4", 200), ("recvfrom", 959), ("restart_syscall", 1)];
        assert_eq!(calls, expected.map(|(name, calls)| (name.to_owned(), calls)).into());
        assert!(parse("").is_empty());
    }

    #[test]
    fn what_is_in_both_counts_falls_out() {
        let map = |calls: &[(&str, u64)]| calls.iter().map(|&(name, calls)| (name.to_owned(), calls)).collect();
        let few = map(&[("read", 130), ("futex", 7), ("close", 200)]);
        let many = map(&[("read", 230), ("futex", 9), ("close", 400), ("write", 50)]);
        let expected = [("close", 2.0), ("read", 1.0), ("write", 0.5)].map(|(name, calls)| (name.to_owned(), calls));
        assert_eq!(difference(&few, &many, 100), expected.into());
    }

    #[test]
    fn a_tracer_is_seen() {
        assert!(has_tracer("Name:\tx\nTracerPid:\t17\n"));
        assert!(!has_tracer("Name:\tx\nTracerPid:\t0\n"));
        assert!(!is_traced((1 << 22) + 1));
    }
}
