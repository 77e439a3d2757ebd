//! Files that tests write beside a config.

use super::http;
use super::program::succeed;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The path of a file with this content, in which `$DIR` stands for the folder; a token that it asks for is there too.
pub fn file(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let (path, content) = (dir.join(name), content.as_ref());
    match std::str::from_utf8(content) {
        Ok(text) if text.contains("$DIR") => {
            fs::write(&path, text.replace("$DIR", dir.to_str().unwrap())).unwrap();
            token(dir);
        }
        _ => fs::write(&path, content).unwrap(),
    }
    path
}

/// The token of the admin endpoint, for nobody else.
pub fn token(dir: &Path) {
    let path = dir.join("token");
    fs::write(&path, http::TOKEN).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Writes a shell script that can be run at once.
///
/// By a process of its own, as [`copy_program`]: of a file that this one writes, each child that another test starts
/// meanwhile has the descriptor until it becomes its program, and the kernel runs no file that somebody may write to.
pub fn script(path: &Path, lines: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped());
    let mut writing = command.spawn().unwrap();
    write!(writing.stdin.take().unwrap(), "#!/bin/sh\n{lines}\n").unwrap();
    assert!(writing.wait().unwrap().success(), "{}", path.display());
}

/// Copies a program so that everybody may run it, at once.
pub fn copy_program(from: &str, to: &Path) {
    succeed(Command::new("install").args(["-m", "755", "--", from]).arg(to), "Install it: apt-get install coreutils");
}
