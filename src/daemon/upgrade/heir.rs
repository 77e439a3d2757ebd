//! The successor's side of an upgrade.
//!
//! Owns the connection to the predecessor. Until it hears the go it may end at any time, and nothing has happened; a
//! predecessor that dies after the successor has said that it accepts has left it everything. Invariant: a process that
//! accepts goes on with that until it has heard the word, also when it is told to stop meanwhile: the predecessor may
//! just have left it everything.

use super::VARIABLE;
use super::handover::Handover;
use super::wire::{self, Message};
use crate::clock;
use crate::daemon::Failure;
use crate::daemon::inherit::Candidate;
use crate::sys;
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::time::Duration;
use tokio::io::Interest;

/// How long the predecessor may take from one message to the next while it tells.
const PATIENCE: Duration = Duration::from_secs(10);

/// A successor that isn't on its own yet.
pub struct Heir {
    predecessor: OwnedFd,
    pub handover: Handover,
    descriptors: Vec<OwnedFd>,
    /// The predecessor's standard streams, for output and errors: until this process is on its own, what it says of
    /// errors goes through that one.
    streams: Vec<OwnedFd>,
}

/// What the predecessor says to a process that accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// All is this process's; with the signal that has told it to stop meanwhile.
    Go(Option<&'static str>),
    /// It is to finish the sessions that it has, and nothing else.
    No,
}

impl Heir {
    /// What a predecessor leaves, if there is one. To be asked before anybody asks what time it is.
    pub fn from_environment() -> Result<Option<Self>, Failure> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let alone = |error| {
            Failure::Usage(format!(
                "{VARIABLE} is set, but there is no predecessor at the other end of the standard input: {error}; unset it"
            ))
        };
        let taken = std::io::stdin().as_fd().try_clone_to_owned();
        let predecessor = taken.map_err(|error| alone(Errno::from_io_error(&error).unwrap_or(Errno::BADF)))?;
        sockopt::set_socket_timeout(&predecessor, Timeout::Recv, Some(PATIENCE)).map_err(alone)?;
        // Nothing is read from it any more, and no other process is to have it.
        let nothing = File::open("/dev/null").map_err(|error| Failure::System(format!("/dev/null: {error}")))?;
        dup2_stdin(&nothing).map_err(alone)?;
        let (mut text, mut descriptors) = (Vec::new(), Vec::new());
        let streams = loop {
            match wire::receive(&predecessor).map_err(alone)? {
                Some(Message::Description(bytes)) => text.extend(bytes),
                Some(Message::Descriptors(some)) => descriptors.extend(some),
                Some(Message::Complete(streams)) => break streams,
                Some(Message::No) | None => return Err(gone()),
                Some(_) => return Err(alone(Errno::BADMSG)),
            }
        };
        let handover = Handover::parse(&text).map_err(Failure::System)?;
        // Nobody has asked for the time yet; if somebody had, the ages of sessions in the log would begin anew.
        let _ = clock::go_on(handover.clock());
        Ok(Some(Self { predecessor, handover, descriptors, streams }))
    }

    /// The sockets that came along; once.
    pub fn candidates(&mut self) -> Vec<Candidate> {
        self.handover.candidates(std::mem::take(&mut self.descriptors))
    }

    /// Tells the predecessor that this process accepts from these sockets, and waits for its word; without end, if it
    /// doesn't come. Asks for that word if there is a `stop`. The standard streams are the predecessor's then.
    pub async fn take_over(self, taken: &[usize], stop: impl Future<Output = &'static str>) -> Result<Word, Failure> {
        let broken = |error| Failure::System(format!("can't speak with the predecessor: {error}"));
        let words = serde_json::to_vec(taken).unwrap_or_default();
        // One that is gone may have left its word.
        let is_heard = wire::send_ready(&self.predecessor, &words).is_ok();
        rustix::io::ioctl_fionbio(&self.predecessor, true).map_err(broken)?;
        let watched = sys::watch(self.predecessor, Interest::READABLE).map_err(broken)?;
        let (mut stop, mut told) = (pin!(stop), None);
        loop {
            let ready = tokio::select! {
                ready = watched.readable() => ready,
                signal = &mut stop, if told.is_none() => {
                    told = Some(signal);
                    // One that has gone is seen at once.
                    let _ = wire::send_leave(watched.get_ref(), signal);
                    continue;
                }
            };
            let mut ready = ready.map_err(|_| broken(Errno::IO))?;
            match wire::receive(watched.get_ref()) {
                Ok(Some(Message::Go)) => {
                    use_streams(&self.streams);
                    return Ok(Word::Go(told));
                }
                Ok(Some(Message::No)) => {
                    use_streams(&self.streams);
                    if let Some(signal) = told {
                        tracing::info!(signal, "told to stop before it has taken over; finishing its sessions");
                    } else {
                        tracing::info!("the predecessor stops, and this process with it");
                    }
                    return Ok(Word::No);
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Ok(None) | Err(Errno::CONNRESET) if !is_heard => return Err(gone()),
                Ok(None) | Err(Errno::CONNRESET) => {
                    use_streams(&self.streams);
                    tracing::warn!("the predecessor has gone without a word; going on without it");
                    return Ok(Word::Go(told));
                }
                Ok(Some(_)) => return Err(broken(Errno::BADMSG)),
                Err(error) => return Err(broken(error)),
            }
        }
    }
}

fn gone() -> Failure {
    Failure::System("the predecessor has gone before it handed over".to_owned())
}

/// Lets this process write where the predecessor wrote.
fn use_streams(streams: &[OwnedFd]) {
    if let [output, errors] = streams {
        // If that fails, there is nobody to tell.
        let _ = dup2_stdout(output);
        let _ = dup2_stderr(errors);
    }
}
