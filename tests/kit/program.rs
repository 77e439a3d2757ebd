//! Other programs as children: run to their end, or kept until the test is over and then ended by their id.

use super::wait::eventually;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};

/// Runs a command to its end.
///
/// # Panics
/// When it can't be started, with the sentence that says what to do, or when it fails.
pub fn succeed(command: &mut Command, way_out: &str) -> String {
    let output = run(command, way_out);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed ({}):\n{text}", output.status);
    text
}

pub fn run(command: &mut Command, way_out: &str) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("can't run {command:?}: {error}. {way_out}"))
}

/// A program that runs beside the test.
pub struct Beside {
    child: Child,
    stop: Signal,
}

impl Beside {
    /// Ended by `stop` when it goes out of scope, and waited for. In a process group of its own, so that none of its
    /// own children outlives a test that fails.
    pub fn start(command: &mut Command, stop: Signal, way_out: &str) -> Self {
        command.process_group(0);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self { child: child.unwrap_or_else(|error| panic!("can't run {command:?}: {error}. {way_out}")), stop }
    }

    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn id(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32).unwrap()
    }

    /// Asks it to stop, and waits for its end.
    pub fn stop(&mut self) {
        if self.lives() {
            kill_process(self.id(), self.stop).unwrap();
            eventually("the program has stopped", || !self.lives());
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = kill_process_group(self.id(), Signal::KILL);
            let _ = self.child.wait();
        } else {
            self.stop();
        }
    }
}
