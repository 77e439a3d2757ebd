//! The signals that the process listens to.
//!
//! Owns what becomes of those that come before it is ready: a wish for a stop is heard at once, a wish for a reload is
//! kept until it can be done, since the file may be another one than was read, and a wish for an upgrade is refused.

use super::{Event, Failure};
use crate::admin::command::{Asker, Command};
use crate::sys::Held;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Those that would end a process which doesn't listen yet, though nobody means that, wait until it does.
pub fn hold() -> Held {
    Held::new(&[libc::SIGHUP, libc::SIGUSR2])
}

pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    upgrade: Signal,
    /// Never waited for; caught, so that a log that hits the file size limit costs lines, not the process.
    _file_size: Signal,
    /// A reload was asked for that nobody has begun.
    reload_waits: bool,
}

impl Signals {
    pub fn new(held: Held) -> Result<Self, Failure> {
        let watch = |kind| signal(kind).map_err(|error| Failure::System(format!("can't watch signals: {error}")));
        let signals = Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
            hangup: watch(SignalKind::hangup())?,
            upgrade: watch(SignalKind::user_defined2())?,
            _file_size: watch(SignalKind::from_raw(libc::SIGXFSZ))?,
            reload_waits: false,
        };
        held.let_go();
        Ok(signals)
    }

    /// What a signal asks for; may be cancelled.
    pub async fn next(&mut self) -> Event {
        if std::mem::take(&mut self.reload_waits) {
            return Event::Asked(Command::Reload, "SIGHUP");
        }
        tokio::select! {
            _ = self.terminate.recv() => Event::Terminate("SIGTERM"),
            _ = self.interrupt.recv() => Event::Terminate("SIGINT"),
            _ = self.hangup.recv() => Event::Asked(Command::Reload, "SIGHUP"),
            _ = self.upgrade.recv() => Event::Asked(Command::Upgrade, "SIGUSR2"),
        }
    }

    /// Before the process is ready: the name of the next signal that asks for a stop.
    pub async fn terminate(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    tracing::info!(signal = "SIGHUP", "the config is read again once the process is ready");
                    self.reload_waits = true;
                }
                _ = self.upgrade.recv() => {
                    let by = Asker::Signal("SIGUSR2");
                    tracing::warn!(%by, command = "upgrade", "refused: the process isn't ready yet; try again when it is");
                }
            }
        }
    }
}
