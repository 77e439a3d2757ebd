//! A process that a test has started, or that such a one has: its end, and signals.

use super::wait::{PATIENCE, eventually};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};

/// A process that was started by the test, or by one that was.
pub enum Running {
    Child(Child),
    /// It becomes a child of this process when its predecessor ends.
    Follower {
        pid: u32,
        status: Option<ExitStatus>,
    },
}

impl Running {
    fn pid(&self) -> u32 {
        match self {
            Self::Child(child) => child.id(),
            Self::Follower { pid, .. } => *pid,
        }
    }

    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        match self {
            Self::Child(child) => child.try_wait().unwrap(),
            Self::Follower { pid, status } => {
                if status.is_none() {
                    // Until its predecessor has ended it is that one's child.
                    let ended = waitpid(Pid::from_raw(*pid as i32), WaitOptions::NOHANG).ok().flatten();
                    *status = ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw()));
                }
                *status
            }
        }
    }

    /// Whether it is gone, whoever has reaped it: a successor is its predecessor's child as long as that one lives.
    pub fn has_ended(&mut self) -> bool {
        self.try_wait().is_some() || !std::path::Path::new(&format!("/proc/{}", self.pid())).exists()
    }

    /// Waits for its end.
    pub fn end(&mut self) -> Option<ExitStatus> {
        let deadline = std::time::Instant::now() + PATIENCE;
        let mut status = None;
        eventually("the process has ended, or time is up", || {
            status = self.try_wait();
            status.is_some() || std::time::Instant::now() + PATIENCE / 10 > deadline
        });
        status
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid() as i32).unwrap(), signal).unwrap();
    }

    pub fn kill(&mut self) {
        if self.try_wait().is_none() {
            let _ = kill_process(Pid::from_raw(self.pid() as i32).unwrap(), Signal::KILL);
            // One that is nobody's child here is reaped by another.
            let _ = match self {
                Self::Child(child) => child.wait().ok(),
                Self::Follower { .. } => self.try_wait(),
            };
        }
    }
}
