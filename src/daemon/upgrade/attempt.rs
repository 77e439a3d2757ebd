//! The predecessor's side of an upgrade: one attempt to start a successor, on a thread of its own.
//!
//! Owns the child: what it is told, what it writes to its standard error (which goes on to ours, and its last lines
//! into the answer if it fails), its end if it fails, and its reaping. Decides when an attempt has failed: the child
//! has ended, or has hung up, or hasn't said within [`PATIENCE`] that it accepts, or hasn't lived through
//! [`PROBATION`] after that. Until somebody adopts the [`Successor`], it can be taken back: one that has no clients yet
//! is killed, one that may have some is told to finish their sessions.

use super::VARIABLE;
use super::handover::Estate;
use super::program::Program;
use super::wire::{self, Message, Outgoing};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long a successor may take until it accepts.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one that accepts must do so beside this process before everything is left to it: a binary that dies of its
/// first clients has died by then.
const PROBATION: Duration = Duration::from_secs(1);
/// How often the attempt looks whether it is given up, or the child has ended.
const LOOK: Duration = Duration::from_millis(50);
/// How long what a child has written is read after its end: its own children may hold the pipe.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How much of its last words is told.
const TOLD: usize = 4 << 10;

/// Variables that are about one process alone.
const OWN_VARIABLES: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// What becomes of the child.
mod fate {
    pub const OPEN: u8 = 0;
    pub const ADOPTED: u8 = 1;
    pub const ABANDONED: u8 = 2;
}

/// An attempt under way. Dropped, it is given up.
pub struct Attempt {
    /// Until there is a successor, which has it then.
    fate: Option<Arc<AtomicU8>>,
    /// To the child, once there is one.
    socket: Arc<OnceLock<Arc<OwnedFd>>>,
    result: oneshot::Receiver<Result<Successor, String>>,
}

/// A child that accepts. Dropped before it is adopted, it is ended.
pub struct Successor {
    pub pid: u32,
    socket: Arc<OwnedFd>,
    /// The places of the descriptors that it uses.
    pub taken: Vec<usize>,
    fate: Arc<AtomicU8>,
    pub estate: Box<Estate>,
}

impl Attempt {
    /// Starts the program with all that goes over.
    pub fn begin(program: Program, estate: Estate) -> Self {
        let (done, result) = oneshot::channel();
        let fate = Arc::new(AtomicU8::new(fate::OPEN));
        let (own, socket) = (Arc::clone(&fate), Arc::new(OnceLock::new()));
        let started = Arc::clone(&socket);
        let attempt = move || match Candidate::start(&program, own) {
            Ok(candidate) => {
                // Nobody else sets it.
                let _ = started.set(Arc::clone(&candidate.socket));
                candidate.raise(estate, done);
            }
            // Who waits may have given up.
            Err(text) => drop(done.send(Err(text))),
        };
        // Who waits sees that the sender is gone.
        let _ = std::thread::Builder::new().name("upgrade".into()).spawn(attempt);
        Self { fate: Some(fate), socket, result }
    }

    /// Waits for its end: a successor, or a sentence with what it said.
    pub async fn ended(&mut self) -> Result<Successor, String> {
        let ended = (&mut self.result).await;
        self.fate = None;
        ended.unwrap_or_else(|_| Err("the thread that looks after the successor has died".to_owned()))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some(fate) = &self.fate else { return };
        abandon(fate);
        if let Some(socket) = self.socket.get() {
            // This process may end before the thread looks again: without a word, a child that accepts by now, or is
            // just about to, would go on.
            let _ = wire::send_no(socket);
        }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        abandon(&self.fate);
        if self.fate.load(Ordering::Acquire) != fate::ADOPTED {
            // As for an attempt.
            let _ = wire::send_no(&self.socket);
        }
    }
}

fn abandon(fate: &AtomicU8) {
    // It may be decided already.
    let _ = fate.compare_exchange(fate::OPEN, fate::ABANDONED, Ordering::AcqRel, Ordering::Acquire);
}

impl Successor {
    /// Leaves it everything. Fails if it is gone; then nothing has changed.
    pub fn adopt(&self) -> Result<(), String> {
        let adopted = self.fate.compare_exchange(fate::OPEN, fate::ADOPTED, Ordering::AcqRel, Ordering::Acquire);
        if adopted.is_err() {
            return Err("the successor has ended after it was ready".to_owned());
        }
        Ok(())
    }

    /// Tells it that it is on its own.
    pub fn say_go(&self) -> Result<(), Errno> {
        wire::send_go(&self.socket)
    }
}

/// A child that may become a successor.
struct Candidate {
    child: Child,
    socket: Arc<OwnedFd>,
    errors: ChildStderr,
    /// Until it has closed that.
    is_heard: bool,
    last_words: LastWords,
    fate: Arc<AtomicU8>,
}

impl Candidate {
    fn start(program: &Program, fate: Arc<AtomicU8>) -> Result<Self, String> {
        let path = program.path.display();
        let (near, far) = wire::pair().map_err(|error| format!("can't make a pair of sockets: {error}"))?;
        let mut command = Command::new(&program.path);
        command.arg0(&program.path).args(&program.arguments).env(VARIABLE, "0");
        for variable in OWN_VARIABLES {
            command.env_remove(variable);
        }
        command.stdin(Stdio::from(far)).stdout(Stdio::inherit()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("can't start {path}: {error}"))?;
        let errors = child.stderr.take().ok_or_else(|| "the successor has no standard error".to_owned())?;
        // Its end is closed here: the command holds it.
        drop(command);
        let nonblocking = rustix::io::ioctl_fionbio(&near, true).and(rustix::io::ioctl_fionbio(&errors, true));
        let (socket, last_words) = (Arc::new(near), LastWords::default());
        let candidate = Self { child, socket, errors, is_heard: true, last_words, fate };
        match nonblocking {
            Ok(()) => Ok(candidate),
            Err(error) => Err(candidate.fail(&format!("can't watch it: {error}"))),
        }
    }

    /// Looks after it to its end, or to that of this process.
    fn raise(mut self, estate: Estate, done: oneshot::Sender<Result<Successor, String>>) {
        let taken = match self.grow_up(&estate) {
            Ok(taken) => taken,
            Err(why) => return drop(done.send(Err(self.fail(&why)))),
        };
        let probation = hook::probation().unwrap_or(PROBATION);
        tracing::info!(successor = self.child.id(), ?probation, "the successor accepts, too");
        let proven = Instant::now() + probation;
        while Instant::now() < proven {
            wait_for(&self.errors, Some((&self.socket, false)), self.is_heard);
            self.listen();
            let failed = match wire::receive(&self.socket) {
                Ok(Some(Message::Leave(signal))) => {
                    let signal = String::from_utf8_lossy(&signal);
                    // Who waits may have given up.
                    drop(done.send(Err(format!("the successor was told to stop ({signal}); this process serves on"))));
                    return self.leave();
                }
                Err(Errno::AGAIN | Errno::INTR) => self.child.try_wait().ok().flatten().map(how),
                Ok(Some(_)) => Some("says what isn't known".to_owned()),
                Ok(None) | Err(_) => Some(self.has_hung_up()),
            };
            if let Some(how) = failed {
                let why = format!("it accepted clients, and {how}");
                return drop(done.send(Err(self.fail(&why))));
            }
            if self.fate.load(Ordering::Acquire) == fate::ABANDONED {
                return self.leave();
            }
        }
        let successor = Successor {
            pid: self.child.id(),
            socket: Arc::clone(&self.socket),
            taken,
            fate: Arc::clone(&self.fate),
            estate: Box::new(estate),
        };
        // Who has given up drops it.
        drop(done.send(Ok(successor)));
        loop {
            self.listen();
            match self.fate.load(Ordering::Acquire) {
                fate::ABANDONED => return self.leave(),
                fate::ADOPTED if !self.is_heard => break,
                _ => wait_for(&self.errors, None, self.is_heard),
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                abandon(&self.fate);
                return told_of_end(status);
            }
        }
        if let Ok(status) = self.child.wait() {
            told_of_end(status);
        }
    }

    /// Tells one that has clients that it isn't wanted: it finishes their sessions by itself.
    fn leave(mut self) {
        // It may be gone.
        let _ = wire::send_no(&self.socket);
        while self.is_heard {
            wait_for(&self.errors, None, true);
            self.listen();
        }
        let _ = self.child.wait();
    }

    /// Tells it everything, and waits until it accepts; what it has taken, or why it hasn't.
    fn grow_up(&mut self, estate: &Estate) -> Result<Vec<usize>, String> {
        let patience = hook::patience().unwrap_or(PATIENCE);
        let deadline = Instant::now() + patience;
        let description = estate.handover.to_bytes();
        let mut pieces: VecDeque<Outgoing> = wire::pieces(&description, estate.descriptors.len()).collect();
        loop {
            while let Some(piece) = pieces.front() {
                match wire::send_piece(&self.socket, piece, &estate.descriptors) {
                    Ok(()) => drop(pieces.pop_front()),
                    Err(Errno::AGAIN) => break,
                    // Why it has hung up, its end tells.
                    Err(_) => pieces.clear(),
                }
            }
            wait_for(&self.errors, Some((&self.socket, !pieces.is_empty())), self.is_heard);
            self.listen();
            match wire::receive(&self.socket) {
                Ok(Some(Message::Ready(taken))) => {
                    return serde_json::from_slice(&taken)
                        .map_err(|error| format!("it says what isn't known: {error}"));
                }
                Ok(Some(_)) => return Err("it says what isn't known".to_owned()),
                Ok(None) | Err(Errno::CONNRESET) => return Err(format!("it {}", self.has_hung_up())),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(format!("can't hear it: {error}")),
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("it {}", how(status)));
            }
            if self.fate.load(Ordering::Acquire) == fate::ABANDONED {
                return Err("the process is stopping".to_owned());
            }
            if Instant::now() >= deadline {
                return Err(format!("it has not been ready within {patience:?}"));
            }
        }
    }

    /// Passes on what it has written.
    fn listen(&mut self) {
        self.is_heard = self.is_heard && pump(&mut self.errors, &mut self.last_words);
    }

    /// What it has done: a child that ends hangs up just before that.
    fn has_hung_up(&mut self) -> String {
        let until = Instant::now() + LAST_WORDS;
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return how(status);
            }
            wait_for(&self.errors, None, false);
        }
        "has hung up".to_owned()
    }

    /// Ends it; why, and what it said last.
    fn fail(mut self, why: &str) -> String {
        end(&mut self.child);
        let until = Instant::now() + LAST_WORDS;
        self.listen();
        while self.is_heard && Instant::now() < until {
            wait_for(&self.errors, None, true);
            self.listen();
        }
        let words = self.last_words.text();
        let colon = if words.is_empty() { "" } else { ":\n" };
        format!("the successor failed: {why}{colon}{words}")
    }
}

/// Kills and reaps it.
fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

fn how(status: ExitStatus) -> String {
    format!("ended ({status})")
}

/// A successor that fails after this process has left it everything leaves nobody who accepts.
fn told_of_end(status: ExitStatus) {
    if status.success() {
        tracing::info!(%status, "the successor has ended, too");
    } else {
        tracing::error!(%status, "the successor has ended; this process only finishes its sessions: start the service again");
    }
}

/// Waits for something to read or, if wanted, room to send; a while at most.
fn wait_for(errors: &ChildStderr, socket: Option<(&OwnedFd, bool)>, open: bool) {
    let mut fds = Vec::new();
    if open {
        fds.push(PollFd::new(errors, PollFlags::IN));
    }
    if let Some((socket, sends)) = socket {
        let room = if sends { PollFlags::OUT } else { PollFlags::empty() };
        fds.push(PollFd::new(socket, PollFlags::IN | room));
    }
    let span = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
    // Interrupted or not, the caller looks.
    let _ = poll(&mut fds, Some(&span));
}

/// Passes on what it has written; false at its end.
fn pump(errors: &mut ChildStderr, last_words: &mut LastWords) -> bool {
    let mut buffer = [0; 4_096];
    loop {
        match errors.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => {
                last_words.add(&buffer[..count]);
                // Nobody may read it.
                let _ = std::io::stderr().write_all(&buffer[..count]);
            }
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

/// The end of what a child has written.
#[derive(Default)]
struct LastWords(VecDeque<u8>);

impl LastWords {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let over = self.0.len().saturating_sub(TOLD);
        self.0.drain(..over);
    }

    /// Whole lines, if there are any.
    fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let whole = match bytes.iter().position(|&byte| byte == b'\n') {
            Some(end) if bytes.len() == TOLD => &bytes[end + 1..],
            _ => &bytes[..],
        };
        String::from_utf8_lossy(whole).trim_end().to_owned()
    }
}

/// Other spans that tests ask for; not there in a release build.
mod hook {
    use std::time::Duration;

    pub fn patience() -> Option<Duration> {
        millis("TIDEGATE_TEST_PATIENCE")
    }

    pub fn probation() -> Option<Duration> {
        millis("TIDEGATE_TEST_PROBATION")
    }

    fn millis(variable: &str) -> Option<Duration> {
        #[cfg(debug_assertions)]
        if let Some(millis) = std::env::var(variable).ok().and_then(|text| text.parse().ok()) {
            return Some(Duration::from_millis(millis));
        }
        let _ = variable;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Adjustments;
    use std::fs;
    use std::path::Path;

    /// Waits for it; for half a minute at most.
    #[expect(clippy::disallowed_methods, reason = "a look is repeated after it")]
    fn eventually(what: &str, is_so: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// It may say that it accepts at any moment then, and this process may be gone at the next.
    #[test]
    fn a_child_that_does_not_accept_yet_hears_as_well_that_it_is_not_wanted() {
        let dir = tempfile::tempdir().unwrap();
        // What hears outlives what is killed.
        let lines = "exec 3<&0; cd \"$0\" && { cat <&3 >heard; touch done; } 2>/dev/null & wait";
        let folder = dir.path().to_str().unwrap().to_owned();
        let arguments = ["-c", lines, &folder].map(Into::into).to_vec();
        let program = Program { path: Path::new("/bin/sh").to_owned(), arguments };
        let estate = Estate::new(1, String::new(), Vec::new(), Adjustments::default(), &[]);
        let attempt = Attempt::begin(program, estate);
        let heard = || fs::read(dir.path().join("heard")).unwrap_or_default();
        eventually("it has been told everything", || heard().ends_with(b"}e"));
        drop(attempt);
        eventually("nobody says any more", || dir.path().join("done").exists());
        assert!(heard().ends_with(b"}en"), "{:?}", String::from_utf8_lossy(&heard()));
    }
}
