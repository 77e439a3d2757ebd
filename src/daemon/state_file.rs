//! The state file: what operators have changed, kept over restarts.
//!
//! Owns the format, the way to the disk and the thread that goes it: the loop only leaves word of what is to be kept.
//! JSON with a version and a checksum; written beside the old one, brought to the disk and renamed over it, so that
//! there is always a whole one, whatever dies when. Invariants: a file that isn't good in every bit is not used at all,
//! but set aside (`.bad`), and never keeps the process from starting; what can't be written is tried again and told,
//! and costs nobody anything but what a restart forgets. Of changes that come fast only the last one is written.

use crate::backoff::Backoff;
use crate::config::{Adjustments, Config, StateFile as Place};
use crate::metrics::Metrics;
use crate::rng::Rng;
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// Of the file's format; another one is none of ours.
const VERSION: u64 = 1;
/// What tells such a file from others.
const FORMAT: &str = "tidegate state";
/// More than this was never written by us, in bytes.
const MAX_SIZE: u64 = 64 << 20;
/// Between two attempts at writing.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A failure to write that goes on is told of so often.
const TELL: Duration = Duration::from_secs(60);
/// How long a stop waits for the disk.
const FLUSH: Duration = Duration::from_secs(2);

/// Where the file is, if there is to be one.
#[must_use]
pub fn path_of(config: &Config) -> Option<PathBuf> {
    match &config.runtime.state_file {
        Place::Off => None,
        Place::At(path) => Some(path.clone()),
        Place::Given => {
            let given = std::env::var_os("STATE_DIRECTORY")?;
            let first = std::env::split_paths(&given).next().filter(|path| path.is_absolute())?;
            Some(first.join("state.json"))
        }
    }
}

/// Why nothing could be written there, and the way out.
#[must_use]
pub fn obstacle(path: &Path) -> Option<String> {
    let folder = folder_of(path);
    let at = path.display();
    if path.is_dir() {
        return Some(format!("{at} is a directory; name a file in it"));
    }
    let tried = rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    let error = io::Error::from(tried.err()?);
    let folder = folder.display();
    Some(match error.kind() {
        ErrorKind::NotFound => format!("there is no directory {folder}; create it"),
        _ => format!("the directory {folder} can't be written: {error}; let the process write there, or name another"),
    })
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("/"))
}

/// What the file says. Nothing if there is none; a warning as well where it can't be used, and has been set aside.
fn read(path: &Path) -> (Adjustments, Option<String>) {
    let at = path.display();
    let why = match read_whole(path) {
        Ok(None) => return (Adjustments::default(), None),
        Ok(Some(bytes)) => match parse(&bytes) {
            Ok(adjustments) => return (adjustments, None),
            Err(why) => why,
        },
        Err(error) => error.to_string(),
    };
    let aside = match set_aside(path) {
        Ok(aside) => format!("it is set aside as {}; look at it there, and make the changes again", aside.display()),
        Err(error) => {
            format!("it stays where it is, as it can't be renamed ({error}); remove it, or name another file")
        }
    };
    (Adjustments::default(), Some(format!("the state file {at} is not used, and starts empty: {why}; {aside}")))
}

/// `None` if there is nothing there. Waits for nobody, as who writes into a FIFO may never come.
fn read_whole(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut file = match OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    (&mut file).take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(io::Error::other("it is larger than any that was ever written"));
    }
    Ok(Some(bytes))
}

/// Directories and devices stay: they belong to somebody.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if !(kind.is_file() || kind.is_fifo() || kind.is_socket() || kind.is_symlink()) {
        return Err(io::Error::other("it is no file"));
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(".bad");
    let aside = PathBuf::from(aside);
    fs::rename(path, &aside)?;
    Ok(aside)
}

fn parse(bytes: &[u8]) -> Result<Adjustments, String> {
    let unreadable = |error: serde_json::Error| format!("it is damaged ({error})");
    let Value::Object(mut whole) = serde_json::from_slice(bytes).map_err(unreadable)? else {
        return Err("it is damaged (no object)".to_owned());
    };
    if whole.get("format").and_then(Value::as_str) != Some(FORMAT) {
        return Err("it is no state file".to_owned());
    }
    match whole.get("version").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(version) if version > VERSION => {
            return Err(format!("it has version {version}, of a newer tidegate; this one knows {VERSION}"));
        }
        version => {
            let version = version.map_or_else(|| "no version".to_owned(), |version| format!("version {version}"));
            return Err(format!("it has {version}; this tidegate knows {VERSION}"));
        }
    }
    let state = whole.remove("state").ok_or("it is damaged (no state)")?;
    if whole.get("checksum").and_then(Value::as_str) != Some(&checksum(&state)) || whole.len() != 3 {
        return Err("it is damaged (the checksum is another)".to_owned());
    }
    let adjustments: Adjustments =
        serde_json::from_value(state).map_err(|error| format!("it says what can't be ({error})"))?;
    adjustments.judge().map_err(|wrong| format!("it says what can't be ({wrong})"))?;
    Ok(adjustments)
}

/// Of what a value says, however it is written: 16 hexadecimal digits.
fn checksum(state: &Value) -> String {
    format!("{:016x}", xxh3_64(state.to_string().as_bytes()))
}

fn text_of(adjustments: &Adjustments) -> Result<String, serde_json::Error> {
    let state = serde_json::to_value(adjustments)?;
    let whole = json!({"format": FORMAT, "version": VERSION, "checksum": checksum(&state), "state": state});
    Ok(serde_json::to_string_pretty(&whole)? + "\n")
}

/// Has this on the disk in place of what was there, or fails and leaves that.
fn write(path: &Path, adjustments: &Adjustments) -> io::Result<()> {
    let text = text_of(adjustments)?;
    let folder = folder_of(path);
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let written = (|| {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        drop(file);
        fs::rename(&beside, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // What is left of it would only take up the room that is missing.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Keeps what it is told in the file, by a thread of its own.
pub struct Keeper {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    metrics: Arc<Metrics>,
    word: Mutex<Word>,
    /// Told of each change of the word.
    changed: Condvar,
}

/// What the loop and the thread say to each other.
#[derive(Default)]
struct Word {
    /// What is to be written.
    wanted: Option<Adjustments>,
    /// What was taken from there and is on its way.
    is_writing: bool,
    is_over: bool,
}

impl Keeper {
    /// Reads the file. What can't be read is told, and does no more harm.
    pub fn open(path: PathBuf, metrics: &Arc<Metrics>) -> (Self, Adjustments) {
        let (adjustments, warning) = read(&path);
        if let Some(warning) = warning {
            metrics.state_file_errors.inc();
            tracing::warn!("{warning}");
        }
        let (word, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { path, metrics: Arc::clone(metrics), word, changed });
        (Self { shared, thread: None }, adjustments)
    }

    /// Begins to keep the file, by a thread that may do what the process may do now.
    pub fn start(&mut self) {
        let own = Arc::clone(&self.shared);
        match thread::Builder::new().name("state".into()).spawn(move || own.keep()) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::warn!("the state file is not kept, for want of a thread: {error}"),
        }
    }

    /// Leaves word that this is to be kept.
    pub fn keep(&self, adjustments: Adjustments) {
        self.shared.word().wanted = Some(adjustments);
        self.shared.changed.notify_all();
    }

    /// Waits until all that was to be kept is on the disk, or a while.
    pub fn flush(&self) {
        let deadline = Instant::now() + FLUSH;
        let mut word = self.shared.word();
        while self.thread.is_some() && (word.wanted.is_some() || word.is_writing) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
            word = self.shared.changed.wait_timeout(word, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Keeper {
    /// The last word is written, if the disk lets it: it is tried once more, and waited for so long as a stop may take.
    fn drop(&mut self) {
        self.shared.word().is_over = true;
        self.shared.changed.notify_all();
        self.flush();
        let is_done = {
            let word = self.shared.word();
            word.wanted.is_none() && !word.is_writing
        };
        if is_done && let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn keep(&self) {
        let (mut backoff, mut rng) = (Backoff::new(RETRY.0, RETRY.1), Rng::from_entropy());
        let mut told: Option<Instant> = None;
        loop {
            let (wanted, is_over) = {
                let mut word = self.word();
                while word.wanted.is_none() && !word.is_over {
                    word = self.changed.wait(word).unwrap_or_else(PoisonError::into_inner);
                }
                let Some(wanted) = word.wanted.take() else { return };
                word.is_writing = true;
                (wanted, word.is_over)
            };
            let written = write(&self.path, &wanted);
            let mut word = self.word();
            word.is_writing = false;
            match written {
                Ok(()) => {
                    backoff.reset();
                    if told.take().is_some() {
                        tracing::info!(path = %self.path.display(), "the state file is written again");
                    }
                }
                Err(error) => {
                    self.metrics.state_file_errors.inc();
                    if told.is_none_or(|told| told.elapsed() >= TELL) {
                        told = Some(Instant::now());
                        let path = self.path.display();
                        tracing::warn!(
                            "the state file {path} can't be written: {error}; what operators have changed holds, but a \
                             restart forgets it; make room, or let the process write there: it is tried again"
                        );
                    }
                    if !is_over {
                        word.wanted.get_or_insert(wanted);
                        let delay = backoff.next_delay(&mut rng);
                        let goes_on = |word: &mut Word| !word.is_over;
                        let rested = self.changed.wait_timeout_while(word, delay, goes_on);
                        drop(rested.unwrap_or_else(PoisonError::into_inner));
                        continue;
                    }
                }
            }
            drop(word);
            self.changed.notify_all();
        }
    }

    /// Whole at each instant, so a holder's panic leaves nothing to distrust.
    fn word(&self) -> MutexGuard<'_, Word> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
