//! What to start again: the path of the running binary and the words after it.
//!
//! Owns the choice of the path. It is looked up at the start, when it still means what runs: the name by which the
//! process was started, with its symbolic links, if it leads to the running binary; else what the kernel says that
//! runs.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the kernel writes behind the path of a binary that is gone.
const DELETED: &[u8] = b" (deleted)";

/// A program and its arguments.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    pub arguments: Vec<OsString>,
}

impl Program {
    /// Of this process; to be asked at its start. `None` if nobody says what it is.
    #[must_use]
    pub fn own() -> Option<Self> {
        let mut words = std::env::args_os();
        let name = words.next().unwrap_or_default();
        let running = fs::read_link("/proc/self/exe").ok().map(|path| without_mark(&path));
        let path = by_name(Path::new(&name)).or(running)?;
        Some(Self { path, arguments: words.collect() })
    }
}

/// The path that a process was started by, if it has one and that leads to what runs.
fn by_name(name: &Path) -> Option<PathBuf> {
    let has_folder = name.as_os_str().as_bytes().contains(&b'/');
    let path = has_folder.then(|| std::path::absolute(name).ok())??;
    let (found, running) = (fs::metadata(&path).ok()?, fs::metadata("/proc/self/exe").ok()?);
    ((found.dev(), found.ino()) == (running.dev(), running.ino())).then_some(path)
}

fn without_mark(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(DELETED).unwrap_or(bytes);
    OsString::from_vec(bytes.to_vec()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_folder_keeps_its_links_and_any_other_is_what_runs() {
        let running = fs::read_link("/proc/self/exe").unwrap();
        assert_eq!(by_name(Path::new("tidegate")), None);
        assert_eq!(by_name(Path::new("/bin/sh")), None, "something else runs");
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("current");
        std::os::unix::fs::symlink(&running, &link).unwrap();
        assert_eq!(by_name(&link), Some(link));
        assert_eq!(Program::own().unwrap().path.file_name(), running.file_name());
    }

    #[test]
    fn a_binary_that_is_gone_is_looked_for_in_its_place() {
        assert_eq!(without_mark(Path::new("/opt/tidegate (deleted)")), Path::new("/opt/tidegate"));
        assert_eq!(without_mark(Path::new("/opt/tidegate")), Path::new("/opt/tidegate"));
    }
}
