//! Where the token comes from: a file, or a credential of the service manager; and who else may read it.
//!
//! Owns the demands on both. A complaint names the file and the way out, never what is in it.

use super::secret::Secret;
use crate::config::Admin;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Shorter tokens could be guessed; longer ones fit no head. In bytes.
const LEAST: usize = 16;
const MOST: usize = 4 << 10;

const NEW: &str = "write a new one: `openssl rand -hex 32`";

/// Reads the token, if there is to be one, for a process that runs as `own`. Fails with the key, the file, what is
/// wrong with it and the way out.
pub fn read(admin: &Admin, own: &Own) -> Result<Option<Secret>, String> {
    let (key, path) = match (&admin.token_file, &admin.token_credential) {
        (Some(path), _) => ("token_file", path.clone()),
        (None, Some(name)) => ("token_credential", credential(name)?),
        (None, None) => return Ok(None),
    };
    let read = || {
        let (file, metadata) = open(&path)?;
        // The service manager's own are its business, as long as they are not everybody's.
        let is_file = admin.token_file.is_some();
        if is_file { own.judge(&metadata, &path) } else { not_for_everybody(&metadata, &path) }?;
        token(file)
    };
    let text = read().map_err(|text: String| format!("admin.{key}: {}: {text}", path.display()))?;
    Ok(Some(Secret::new(text.as_bytes())))
}

/// The token that a file of a config holds, for whoever may read it. Fails as [`token`] does.
pub fn in_file(path: &Path) -> Result<String, String> {
    token(open(path)?.0)
}

/// The token that is all of `source`. Fails with what is wrong with it and the way out.
pub fn token(source: impl Read) -> Result<String, String> {
    let mut bytes = Vec::new();
    source.take(MOST as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let token = bytes.trim_ascii();
    match token.len() {
        0 => Err(format!("it is empty; {NEW}")),
        length if length < LEAST => Err(format!("a token of {length} bytes can be guessed; {NEW}")),
        _ if bytes.len() > MOST => Err(format!("it has more than {MOST} bytes; {NEW}")),
        _ if !token.iter().all(u8::is_ascii_graphic) => {
            Err(format!("it holds what no header may: blanks, or characters beyond ASCII; {NEW}"))
        }
        _ => Ok(String::from_utf8_lossy(token).into_owned()),
    }
}

/// Where a credential of the service manager is. Fails where there are none.
pub fn credential(name: &str) -> Result<PathBuf, String> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty());
    folder.map(|folder| Path::new(&folder).join(name)).ok_or_else(|| {
        format!(
            "admin.token_credential: $CREDENTIALS_DIRECTORY isn't set; add LoadCredential={name}:/path to the unit, or \
             use token_file"
        )
    })
}

/// A FIFO must not hold anybody up.
fn open(path: &Path) -> Result<(File, Metadata), String> {
    let open = || {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        io::Result::Ok((file, metadata))
    };
    let (file, metadata) = open().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no file; name the file that holds the token".to_owned());
    }
    Ok((file, metadata))
}

/// Whom the process runs as, or will.
pub struct Own {
    pub uid: u32,
    pub groups: Vec<u32>,
}

impl Own {
    #[must_use]
    pub fn now() -> Self {
        let groups = rustix::process::getgroups().unwrap_or_default();
        let mut groups: Vec<u32> = groups.into_iter().map(rustix::process::Gid::as_raw).collect();
        groups.push(rustix::process::getegid().as_raw());
        Self { uid: rustix::process::geteuid().as_raw(), groups }
    }

    fn judge(&self, metadata: &Metadata, path: &Path) -> Result<(), String> {
        not_for_everybody(metadata, path)?;
        let (uid, gid, mode) = (metadata.uid(), metadata.gid(), metadata.mode() & 0o777);
        if uid != self.uid && uid != 0 {
            return Err(format!(
                "it belongs to user {uid}, who may change it; run `chown {} {}`",
                self.uid,
                path.display()
            ));
        }
        if mode & 0o030 != 0 {
            let path = path.display();
            return Err(format!("its group may change it (mode {mode:04o}); run `chmod 640 {path}`"));
        }
        if mode & 0o040 != 0 && !self.groups.contains(&gid) {
            let path = path.display();
            return Err(format!("group {gid}, which isn't ours, may read it; run `chmod 600 {path}`, or chgrp"));
        }
        Ok(())
    }
}

fn not_for_everybody(metadata: &Metadata, path: &Path) -> Result<(), String> {
    let mode = metadata.mode() & 0o777;
    let of_others = mode & 0o007;
    if of_others == 0 {
        return Ok(());
    }
    Err(format!("every user of this host may use it (mode {mode:04o}); run `chmod 600 {}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write(&path, content).unwrap();
        set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    fn own() -> Own {
        Own::now()
    }

    fn in_file(path: PathBuf) -> Admin {
        Admin { token_file: Some(path), ..Admin::default() }
    }

    fn refused(content: &[u8], mode: u32) -> String {
        let (_dir, path) = file(content, mode);
        let text = read(&in_file(path.clone()), &own()).unwrap_err();
        let begin = format!("admin.token_file: {}: ", path.display());
        text.strip_prefix(&begin).unwrap_or_else(|| panic!("{text}")).replace(path.to_str().unwrap(), "TOKEN")
    }

    const TOKEN: &[u8] = b"canary-0123456789";

    #[test]
    fn a_token_is_what_the_file_holds_without_the_line_break() {
        for (content, mode) in [(&b"canary-0123456789"[..], 0o600), (b" canary-0123456789\r\n", 0o400), (TOKEN, 0o640)]
        {
            let (_dir, path) = file(content, mode);
            assert!(read(&in_file(path), &own()).unwrap().unwrap().is(TOKEN), "{mode:o}");
        }
    }

    #[test]
    fn f85_a_file_that_others_may_use_is_refused() {
        for (mode, expected) in [
            (0o644, "every user of this host may use it (mode 0644); run `chmod 600 TOKEN`"),
            (0o602, "every user of this host may use it (mode 0602); run `chmod 600 TOKEN`"),
            (0o660, "its group may change it (mode 0660); run `chmod 640 TOKEN`"),
        ] {
            assert_eq!(refused(TOKEN, mode), expected);
        }
        let (_dir, path) = file(TOKEN, 0o640);
        let metadata = path.metadata().unwrap();
        let us = |uid, gid| Own { uid, groups: vec![gid] };
        let (uid, gid) = (metadata.uid(), metadata.gid());
        assert_eq!(us(uid, gid).judge(&metadata, &path), Ok(()));
        let foreign = us(uid, gid + 1).judge(&metadata, &path).unwrap_err();
        assert!(foreign.starts_with(&format!("group {gid}, which isn't ours, may read it; ")), "{foreign}");
        if uid != 0 {
            let foreign = us(uid + 1, gid).judge(&metadata, &path).unwrap_err();
            assert!(foreign.starts_with(&format!("it belongs to user {uid}, ")), "{foreign}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_shown() {
        for (content, expected) in [
            (&b"\n"[..], "it is empty; write a new one: `openssl rand -hex 32`"),
            (b"canary-01234567", "a token of 15 bytes can be guessed; write a new one: `openssl rand -hex 32`"),
            (
                b"canary 0123456789",
                "it holds what no header may: blanks, or characters beyond ASCII; write a new one: `openssl rand -hex 32`",
            ),
            (&[b'x'; MOST + 1], "it has more than 4096 bytes; write a new one: `openssl rand -hex 32`"),
        ] {
            assert_eq!(refused(content, 0o600), expected);
        }
        let dir = tempfile::tempdir().unwrap();
        let text = read(&in_file(dir.path().into()), &own()).unwrap_err();
        assert!(text.ends_with("it is no file; name the file that holds the token"), "{text}");
        let text = read(&in_file(dir.path().join("none")), &own()).unwrap_err();
        assert!(text.contains("No such file"), "{text}");
    }
}
