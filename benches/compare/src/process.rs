//! Child processes that cannot outlive this program: started by id, ended by id.
//!
//! Invariants: a child is started through `Guarded`, which has the kernel end it when this program ends, however
//! that happens; a dropped `Process` has taken all its descendants along. Reads nothing about cost: see `cpu.rs`.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cpu;

/// How long a child may take to end after it was asked to, before it is killed.
const END_GRACE: Duration = Duration::from_secs(3);

/// What ends a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Ending {
    /// SIGKILL: right for a single process, which leaves nothing behind.
    Kill,
    /// SIGTERM: for a master that has to end its workers itself.
    Terminate,
}

impl Ending {
    fn signal(self) -> Signal {
        match self {
            Self::Kill => Signal::KILL,
            Self::Terminate => Signal::TERM,
        }
    }
}

/// The hidden subcommand through which a child is started.
#[derive(Debug, clap::Args)]
pub struct Guarded {
    #[arg(long)]
    parent: u32,
    #[arg(long)]
    ending: Ending,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Guarded {
    /// Becomes the command, with `ending` as the signal that the kernel sends to it when `parent` ends.
    ///
    /// This runs between fork and exec of every child, as a program of its own: so it needs no code in a forked
    /// process. Returns only on failure.
    pub fn exec(&self) -> Result<()> {
        rustix::process::set_parent_process_death_signal(Some(self.ending.signal()))
            .context("setting the parent death signal")?;
        // The parent may have ended before the signal was set.
        if rustix::process::getppid().map(Pid::as_raw_nonzero).map(i32::from) != Some(self.parent as i32) {
            bail!("the benchmark that wanted this process is gone");
        }
        let (program, arguments) = self.command.split_first().context("no command given")?;
        let error = Command::new(program).args(arguments).exec();
        Err(anyhow!(error).context(format!("starting {program}")))
    }
}

/// What a helper is to do, as it was given on its command line.
pub fn job<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).context("reading the job")
}

/// Prints what a helper has found.
pub fn tell(sample: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(sample).context("writing the sample")?);
    Ok(())
}

/// How this program ends: an error goes to stderr.
#[must_use]
pub fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A running child and where its output goes.
pub struct Process {
    child: Child,
    exited: OwnedFd,
    name: String,
    ending: Ending,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command` (program first) with its output in files `NAME.out` and `NAME.err` of `directory`.
    pub fn start(name: &str, command: &[String], ending: Ending, directory: &Path) -> Result<Self> {
        let stdout = directory.join(format!("{name}.out"));
        let stderr = directory.join(format!("{name}.err"));
        let ending_value = match ending {
            Ending::Kill => "kill",
            Ending::Terminate => "terminate",
        };
        let child = Command::new(own_executable()?)
            .args(["exec", "--parent", &std::process::id().to_string(), "--ending", ending_value, "--"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).with_context(|| format!("creating {}", stdout.display()))?)
            .stderr(File::create(&stderr).with_context(|| format!("creating {}", stderr.display()))?)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let pid = Pid::from_child(&child);
        let exited = pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("watching {name}"))?;
        Ok(Self { child, exited, name: name.to_owned(), ending, stdout, stderr })
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The child and its descendants as they are now.
    pub fn tree(&self) -> Vec<i32> {
        cpu::tree(self.pid())
    }

    /// Waits for the end at most this long; `None` if it is still running then.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        wait_readable(&self.exited, timeout)?;
        Ok(self.child.try_wait()?)
    }

    /// Asks it to end, and waits until it has. An error if it does not.
    pub fn end(&mut self) -> Result<()> {
        // An error here means that it has ended already.
        let _ = pidfd_send_signal(&self.exited, self.ending.signal());
        match self.wait(END_GRACE)? {
            Some(_) => Ok(()),
            None => bail!("{} did not end within {} s{}", self.name, END_GRACE.as_secs(), self.last_words()),
        }
    }

    /// Asks `ready` again and again until it says true. An end of the child or of the time is an error that tells
    /// what the child said last.
    pub fn wait_until(
        &mut self,
        what: &str,
        timeout: Duration,
        mut ready: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            if ready(self)? {
                return Ok(());
            }
            if let Some(status) = self.wait(Duration::from_millis(10))? {
                bail!("{} ended ({status}) before {what}{}", self.name, self.last_words());
            }
            if Instant::now() > deadline {
                bail!("{}: {what} did not come within {} s{}", self.name, timeout.as_secs(), self.last_words());
            }
        }
    }

    /// What the child wrote to its standard output so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// The end of what it wrote to its standard error, as a clause for an error message.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.stderr).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n    ");
        if tail.is_empty() { String::new() } else { format!("; it said:\n    {tail}") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Handles to the descendants are taken before the parent goes: an orphan can't be found any more, and its
        // number may by then belong to somebody else.
        let descendants: Vec<OwnedFd> = self.tree()[1..]
            .iter()
            .filter_map(|&pid| Pid::from_raw(pid))
            .filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .collect();
        // Errors here mean that it has ended already.
        let _ = pidfd_send_signal(&self.exited, self.ending.signal());
        if !matches!(self.wait(END_GRACE), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        for descendant in descendants {
            let _ = pidfd_send_signal(descendant, Signal::KILL);
        }
    }
}

/// The path of this program.
pub fn own_executable() -> Result<PathBuf> {
    std::env::current_exe().context("finding the benchmark's own program")
}

/// Runs a short command and returns its two outputs together; `None` if it can't be started.
pub fn output_of(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    Some(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// Finds a program in PATH, and in the system directories that an unprivileged PATH often lacks.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    places.into_iter().map(|place| place.join(name)).find(|file| file.is_file())
}

fn wait_readable(fd: &OwnedFd, timeout: Duration) -> Result<()> {
    let timeout = Timespec::try_from(timeout).context("a time-out too long for the kernel")?;
    match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("waiting for a child"),
    }
}
