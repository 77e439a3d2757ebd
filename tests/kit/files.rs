//! Files that tests write beside a config.

use super::http;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

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
