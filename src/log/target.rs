//! Where lines end up: stderr, stdout, or a file that log rotation may move away.
//!
//! Blocks, so it belongs to a writer thread. Invariant: a write that fails half-way never glues the next line to
//! the torn one. A file is opened again when its path names another one; until that works, the old one is written.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often at most a file's path is looked at.
const CHECK_PATH: Duration = Duration::from_secs(2);

/// A log says who talks to whom: for its owner, and the group that reads logs.
const MODE: u32 = 0o640;

/// The turn to write to stderr, where both logs may go: a long write to a pipe isn't atomic.
static STDERR: Mutex<()> = Mutex::new(());

/// A write that failed.
#[derive(Debug)]
pub struct Lost {
    pub error: io::Error,
    /// Lines that aren't in the target as a whole.
    pub lines: u64,
}

/// An open target.
#[derive(Debug)]
pub struct Target {
    sink: Sink,
    /// The last byte written belongs to a line whose rest is lost.
    torn: bool,
}

#[derive(Debug)]
enum Sink {
    /// Whatever is standard error at that time: an upgrade puts another one in its place.
    Stderr,
    Fd(File),
    Path {
        path: PathBuf,
        file: File,
        checked: Option<Instant>,
    },
}

impl Target {
    // Both past the handles of `std::io`: those have a lock that others may want, and stdout's has a buffer that
    // keeps what could not be written.
    pub fn stderr() -> Self {
        Self { sink: Sink::Stderr, torn: false }
    }

    pub fn stdout() -> io::Result<Self> {
        Ok(Self::from_fd(io::stdout().as_fd().try_clone_to_owned()?))
    }

    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { sink: Sink::Fd(File::from(fd)), torn: false }
    }

    /// Opens the file for appending, and creates it if need be. A fifo must have a reader.
    pub fn path(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        Ok(Self { sink: Sink::Path { path: path.to_owned(), file, checked: None }, torn: false })
    }

    /// Gives a file that belongs to this process's user to another one. Whose it isn't, and what is no plain file,
    /// stays as it is.
    pub fn give_to(&self, user: u32, group: u32) -> io::Result<()> {
        let Sink::Path { file, .. } = &self.sink else { return Ok(()) };
        let metadata = file.metadata()?;
        if metadata.is_file() && metadata.uid() == rustix::process::geteuid().as_raw() {
            std::os::unix::fs::fchown(file, Some(user), Some(group))?;
        }
        Ok(())
    }

    /// Writes whole lines; waits as long as the target takes.
    pub fn write(&mut self, lines: &str, now: Instant) -> Result<(), Lost> {
        // An error here isn't the lines' loss: the file that was open before still takes them.
        let followed = self.follow_path(now).map_err(|error| Lost { error, lines: 0 });
        self.write_lines(lines).and(followed)
    }

    /// Opens the path again if the file isn't there any more.
    fn follow_path(&mut self, now: Instant) -> io::Result<()> {
        let Sink::Path { path, file, checked } = &mut self.sink else { return Ok(()) };
        if checked.is_some_and(|checked| now.saturating_duration_since(checked) < CHECK_PATH) {
            return Ok(());
        }
        *checked = Some(now);
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let current = std::fs::metadata(&*path).map(identity).ok();
        if current != Some(identity(file.metadata()?)) {
            *file = open(path)?;
            self.torn = false;
        }
        Ok(())
    }

    fn write_lines(&mut self, lines: &str) -> Result<(), Lost> {
        let mut rest = lines.as_bytes();
        self.finish_torn().and_then(|()| self.sink.write(&mut rest)).map_err(|error| {
            if let Some(&last) = lines.as_bytes()[..lines.len() - rest.len()].last() {
                self.torn = last != b'\n';
            }
            Lost { error, lines: rest.split(|&byte| byte == b'\n').count() as u64 - 1 }
        })
    }

    fn finish_torn(&mut self) -> io::Result<()> {
        if self.torn {
            self.sink.write(&mut &b"\n"[..])?;
            self.torn = false;
        }
        Ok(())
    }
}

impl Sink {
    /// Writes all of `rest`, which after an error is what hasn't been written.
    fn write(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr => {
                let _turn = STDERR.lock().unwrap_or_else(PoisonError::into_inner);
                write_all(io::stderr().as_fd(), rest)
            }
            Self::Fd(file) | Self::Path { file, .. } => write_all(file.as_fd(), rest),
        }
    }
}

fn write_all(file: BorrowedFd<'_>, rest: &mut &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        match rustix::io::write(file, rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => *rest = &rest[written..],
            Err(Errno::INTR) => {}
            // A terminal or pipe that somebody who shares it has set to non-blocking, or our own fifo.
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&file, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    // Non-blocking changes nothing for a file; a fifo without a reader is an error instead of a wait without end.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().append(true).create(true).mode(MODE).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_file_is_appended_to_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let now = Instant::now();
        Target::path(&path).unwrap().write("a\n", now).unwrap();
        Target::path(&path).unwrap().write("b\n", now).unwrap();
        assert_eq!(read(&path), "a\nb\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o137, 0);
    }

    #[test]
    fn a_rotated_file_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let start = Instant::now();
        let mut target = Target::path(&path).unwrap();
        target.write("a\n", start).unwrap();
        std::fs::rename(&path, &old).unwrap();
        target.write("b\n", start + CHECK_PATH / 2).unwrap();
        target.write("c\n", start + CHECK_PATH).unwrap();
        assert_eq!((read(&old).as_str(), read(&path).as_str()), ("a\nb\n", "c\n"));
    }

    #[test]
    fn a_path_that_cannot_be_opened_again_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let start = Instant::now();
        let mut target = Target::path(&path).unwrap();
        std::fs::rename(&path, &old).unwrap();
        std::fs::create_dir(&path).unwrap();
        let lost = target.write("a\n", start).unwrap_err();
        assert_eq!((lost.error.kind(), lost.lines), (ErrorKind::IsADirectory, 0));
        assert_eq!(read(&old), "a\n");
        std::fs::remove_dir(&path).unwrap();
        target.write("b\n", start + CHECK_PATH).unwrap();
        assert_eq!(read(&path), "b\n");
    }

    #[test]
    fn a_fifo_without_a_reader_is_an_error_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(Target::path(&path).unwrap_err().raw_os_error(), Some(libc::ENXIO));
    }

    /// A pipe that takes a part of a write and then breaks, as a disk that becomes full.
    #[test]
    fn a_torn_line_is_ended_before_the_next_one() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, 4_096).unwrap();
        let mut target = Target::from_fd(writer.into());
        let lines = format!("first\n{}\nthird\n", "x".repeat(5_000));
        let writing = std::thread::spawn(move || (target.write(&lines, Instant::now()), target));
        let mut first = [0; 6];
        reader.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"first\n");
        drop(reader);
        let (result, mut target) = writing.join().unwrap();
        assert_eq!(result.unwrap_err().lines, 2);

        let (mut reader, writer) = io::pipe().unwrap();
        target.sink = Sink::Fd(File::from(OwnedFd::from(writer)));
        target.write("fourth\n", Instant::now()).unwrap();
        target.write("fifth\n", Instant::now()).unwrap();
        drop(target);
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        assert_eq!(all, "\nfourth\nfifth\n");
    }
}
