//! The text of a config file: read from one descriptor in one settled state, and mapped to lines and columns.
//!
//! Owns the limits on what is read at all: regular files only (a FIFO or a device could block or never end), up to
//! [`limits::MAX_FILE`], UTF-8 without NUL. Knows no TOML. Next: `syntax`.

use super::error::{Excerpt, Mistake, Mistakes, Place, Position, Severity};
use super::{limits, words};
use std::cell::Cell;
use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read, Seek};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// How often a file is read again that changed while it was read.
const MAX_READS: u32 = 5;
/// Of longer lines, an excerpt shows this many bytes around the mistake.
const MAX_EXCERPT: usize = 200;

/// What a mistake's place refers to. Offsets are bytes of `text`, which has no byte order mark.
pub(super) struct Source {
    pub name: Arc<str>,
    pub text: String,
    /// Where each line begins.
    lines: Vec<usize>,
    /// The last offset asked for, and its position; what follows on the same line counts on from there, so that a
    /// hundred thousand backends on one line don't take a square of that to place.
    last: Cell<(usize, Position)>,
}

impl Source {
    /// Reads a file. Fails if it can't be read, isn't a regular file, is too large, isn't text or won't hold still.
    pub fn load(path: &Path) -> Result<Self, Mistakes> {
        let name: Arc<str> = words::escaped(&path.to_string_lossy()).into();
        match read(path, |_| ()) {
            Ok(bytes) => Self::new(name, bytes),
            Err(fault) => Err(fault.of(&name)),
        }
    }

    /// Fails if `bytes` is too large or isn't text.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self, Mistakes> {
        let name: Arc<str> = words::escaped(name).into();
        if bytes.len() as u64 > limits::MAX_FILE {
            return Err(Fault::too_large().of(&name));
        }
        Self::new(name, bytes.to_vec())
    }

    fn new(name: Arc<str>, mut bytes: Vec<u8>) -> Result<Self, Mistakes> {
        if bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        match String::from_utf8(bytes) {
            Ok(text) => {
                let source = Self::of_text(name, text);
                match foreign(&source.text) {
                    None => Ok(source),
                    Some((at, message)) => Err(source.not_text(at, message)),
                }
            }
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let bytes = error.into_bytes();
                let utf16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
                let message = if utf16 {
                    "the file looks like UTF-16".into()
                } else {
                    format!("byte 0x{:02x} is not UTF-8", bytes[at])
                };
                Err(Self::of_text(name, String::from_utf8_lossy(&bytes).into_owned()).not_text(at, message))
            }
        }
    }

    fn of_text(name: Arc<str>, text: String) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name, text, lines, last: Cell::new((0, Position { line: 1, column: 1 })) }
    }

    fn not_text(&self, at: usize, message: String) -> Mistakes {
        self.mistake(Severity::Error, at..at + 1, "", message, "save the file as UTF-8 text").into()
    }

    /// A mistake at `span`, with the line that it is on.
    pub fn mistake(
        &self,
        severity: Severity,
        span: Range<usize>,
        key: &str,
        message: impl AsRef<str>,
        hint: impl AsRef<str>,
    ) -> Mistake {
        Mistake::new(severity, self.place(span.start, key), message, hint).with_excerpt(self.excerpt(span))
    }

    pub fn place(&self, offset: usize, key: &str) -> Place {
        Place { source: self.name.clone(), position: Some(self.position(offset)), key: key.to_owned() }
    }

    pub fn position(&self, offset: usize) -> Position {
        let offset = self.floor(offset);
        let line = self.lines.partition_point(|&start| start <= offset);
        let (last, position) = self.last.get();
        let (from, column) =
            if position.line == line && last <= offset { (last, position.column) } else { (self.lines[line - 1], 1) };
        let position = Position { line, column: column + self.text[from..offset].chars().count() };
        self.last.set((offset, position));
        position
    }

    /// The bytes of the lines that `span` touches, without the last line's end.
    pub fn whole_lines(&self, span: Range<usize>) -> Range<usize> {
        let line = self.position(span.start).line;
        let after = self.lines.partition_point(|&start| start < span.end.max(span.start + 1)).max(line);
        self.lines[line - 1]..self.end_of_line(after)
    }

    /// Where the line ends that has this number, before its line break.
    fn end_of_line(&self, line: usize) -> usize {
        self.lines.get(line).map_or(self.text.len(), |&next| next - 1)
    }

    fn excerpt(&self, span: Range<usize>) -> Excerpt {
        let start = self.floor(span.start);
        let position = self.position(start);
        let line = self.lines[position.line - 1];
        let line_end = self.end_of_line(position.line);
        let from = line.max(self.floor(start.saturating_sub(MAX_EXCERPT / 2)));
        let to = line_end.min(self.floor(from + MAX_EXCERPT));
        let end = self.floor(span.end).clamp(start, to);
        let [before, marked, after] = [from..start, start..end, end..to].map(|part| words::masked(&self.text[part]));
        let after = after.trim_end_matches(char::REPLACEMENT_CHARACTER);
        Excerpt { marked: before.len()..before.len() + marked.len(), line: before + &marked + after }
    }

    /// The nearest offset at or below this one that is inside the text and between two characters.
    fn floor(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }
}

/// The first character that no text file holds. The parser would refuse each of them, but not say it is no text.
fn foreign(text: &str) -> Option<(usize, String)> {
    let bytes = text.as_bytes();
    let is_foreign = |(at, &byte): (usize, &u8)| match byte {
        b'\t' | b'\n' => false,
        b'\r' => bytes.get(at + 1) != Some(&b'\n'),
        byte => byte.is_ascii_control(),
    };
    let at = bytes.iter().enumerate().position(is_foreign)?;
    Some((at, format!("the control character 0x{:02x} has no place in a text file", bytes[at])))
}

/// Why a file can't be read, in words.
struct Fault {
    message: String,
    hint: String,
}

impl Fault {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }

    fn of(self, name: &Arc<str>) -> Mistakes {
        Mistake::of_file(name, self.message, self.hint).into()
    }

    fn of_system(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::new("there is no such file", "name the config with --config"),
            io::ErrorKind::PermissionDenied => {
                Self::new("the file can't be read: permission denied", "let the user that runs tidegate read it")
            }
            _ => Self::new(format!("the file can't be read: {error}"), ""),
        }
    }

    fn too_large() -> Self {
        let limit = bytesize::ByteSize::b(limits::MAX_FILE).display().iec();
        Self::new(format!("the file is larger than {limit}"), "a config is smaller than that")
    }
}

/// Reads a file from one descriptor, again if it changed meanwhile, so that what comes back is never a mixture of
/// two states. `after_read` is told the number of each read before the file is looked at again.
fn read(path: &Path, mut after_read: impl FnMut(u32)) -> Result<Vec<u8>, Fault> {
    let system = |error: io::Error| Fault::of_system(&error);
    // Not blocking, or the open of a FIFO would wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Err(not_a_file("a socket or device")),
        Err(error) => return Err(system(error)),
    };
    for number in 1..=MAX_READS {
        let before = file.metadata().map_err(system)?;
        check_kind(&before)?;
        if before.len() > limits::MAX_FILE {
            return Err(Fault::too_large());
        }
        let mut bytes = Vec::with_capacity(before.len() as usize);
        file.rewind().map_err(system)?;
        Read::by_ref(&mut file).take(limits::MAX_FILE + 1).read_to_end(&mut bytes).map_err(system)?;
        after_read(number);
        let after = file.metadata().map_err(system)?;
        if state(&before) == state(&after) && bytes.len() as u64 == after.len() {
            return Ok(bytes);
        }
    }
    Err(Fault::new("the file keeps changing while it is read", "write it under another name and rename it into place"))
}

fn check_kind(metadata: &Metadata) -> Result<(), Fault> {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => Ok(()),
        () if kind.is_dir() => Err(not_a_file("a directory")),
        () if kind.is_fifo() => Err(not_a_file("a FIFO")),
        () => Err(not_a_file("a device")),
    }
}

fn not_a_file(what: &str) -> Fault {
    Fault::new(format!("this is {what}, not a file"), "name a regular file")
}

/// What of a file's state changes with its content.
fn state(metadata: &Metadata) -> impl PartialEq + use<> {
    (metadata.len(), metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn source(text: &str) -> Source {
        Source::from_bytes("lb.toml", text.as_bytes()).unwrap()
    }

    fn at(source: &Source, offset: usize) -> (usize, usize) {
        let position = source.position(offset);
        (position.line, position.column)
    }

    #[test]
    fn columns_count_characters_in_any_order_of_asking() {
        let source = source("añb\n\nxyz\n");
        let expected = [(0, (1, 1)), (1, (1, 2)), (3, (1, 3)), (4, (1, 4)), (5, (2, 1)), (6, (3, 1)), (8, (3, 3))];
        for (offset, position) in expected.into_iter().chain(expected.into_iter().rev()) {
            assert_eq!(at(&source, offset), position, "offset {offset}");
        }
        assert_eq!(at(&source, 2), (1, 2), "an offset inside a character is the character's");
        assert_eq!(at(&source, 10), (4, 1), "the end");
        assert_eq!(at(&source, 99), (4, 1), "beyond the end");
    }

    #[test]
    fn lines_are_whole_without_the_last_end() {
        let source = source("ab\ncd\nef");
        assert_eq!(source.whole_lines(1..1), 0..2);
        assert_eq!(source.whole_lines(0..3), 0..2);
        assert_eq!(source.whole_lines(1..4), 0..5);
        assert_eq!(source.whole_lines(7..8), 6..8);
        assert_eq!(source.whole_lines(8..8), 6..8);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        let source = source("\u{feff}a");
        assert_eq!((source.text.as_str(), at(&source, 0)), ("a", (1, 1)));
    }

    #[test]
    fn what_is_not_text_is_placed() {
        let fault =
            |bytes: &[u8]| Source::from_bytes("lb.toml", bytes).err().unwrap().iter().next().unwrap().first_line();
        assert_eq!(fault(b"a = 1\n\xc3\xbc\xff"), "lb.toml:2:2: byte 0xff is not UTF-8; save the file as UTF-8 text");
        assert_eq!(fault(b"\xff\xfea\0"), "lb.toml:1:1: the file looks like UTF-16; save the file as UTF-8 text");
        assert_eq!(
            fault(b"a = 1\nb\0c"),
            "lb.toml:2:2: the control character 0x00 has no place in a text file; save the file as UTF-8 text"
        );
    }

    #[test]
    fn a_mistake_on_an_endless_line_shows_a_window_of_it() {
        let source = source(&format!("{}X{}", "ü".repeat(50_000), "y".repeat(50_000)));
        let mistake = source.mistake(Severity::Error, 100_000..100_001, "", "here", "");
        let text = mistake.render(super::super::error::Style::Plain);
        assert!(text.starts_with("lb.toml:1:50001: here\n"), "{text}");
        assert!(text.len() < 2_000 && text.contains('X') && text.contains('^'), "{text}");
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.toml");
        fs::write(&path, "old state").unwrap();
        let append = || OpenOptions::new().append(true).open(&path).unwrap().write_all(b"+").unwrap();
        let read_until = |changes: u32| {
            read(&path, |number| {
                if number <= changes {
                    append();
                }
            })
        };
        let bytes = read_until(2).ok().unwrap();
        assert_eq!(bytes, b"old state++");
        let fault = read_until(MAX_READS).err().unwrap();
        assert_eq!(fault.message, "the file keeps changing while it is read");
    }

    #[test]
    fn a_file_that_is_overwritten_with_as_many_bytes_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.toml");
        fs::write(&path, "old").unwrap();
        let overwrite = |number: u32| {
            if number == 1 {
                let mut file = OpenOptions::new().write(true).open(&path).unwrap();
                file.write_all(b"new").unwrap();
                // The clock of file times is coarse.
                file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
            }
        };
        assert_eq!(read(&path, overwrite).ok().unwrap(), b"new");
    }

    #[test]
    fn a_file_that_is_replaced_while_it_is_read_is_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.toml");
        fs::write(&path, "old").unwrap();
        let replace = |_| {
            let new = directory.path().join("new");
            fs::write(&new, "new and longer").unwrap();
            fs::rename(&new, &path).unwrap();
        };
        assert_eq!(read(&path, replace).ok().unwrap(), b"old");
    }
}
