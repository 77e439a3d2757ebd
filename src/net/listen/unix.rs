//! Listening unix sockets: their files, and who may connect.
//!
//! Owns the file of a socket from the bind on: stale ones are replaced, living ones never, and our own is removed in
//! the end. Mode, owner and group are set between the bind and the listen, when nobody can connect yet.

use super::{Options, Refused, SocketAccess, Step};
use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid, chmod, chownat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Held from a look at a path to what follows from it, so that what is removed is what was seen: a worker may just be
/// closing the socket in whose place another one is bound.
static PATHS: Mutex<()> = Mutex::new(());

/// One socket, bound, as often as there are workers, and the guard of its path.
pub(super) fn bind_all(
    path: &Path,
    options: &Options,
    count: usize,
) -> Result<(Vec<OwnedFd>, Arc<OwnedPath>), Refused> {
    let address = SocketAddrUnix::new(path)?;
    let socket = open()?;
    {
        let _held = PATHS.lock();
        remove_stale(path, &address)?;
        bind(&socket, &address)?;
    }
    let guard = Arc::new(OwnedPath::of(path)?);
    give(path, options.access)?;
    let clone = || socket.try_clone().map_err(|error| Refused::from(from_io(&error)));
    Ok(((0..count).map(|_| clone()).collect::<Result<_, _>>()?, guard))
}

/// Lets in whom the file shall let in.
pub(super) fn give(path: &Path, access: SocketAccess) -> Result<(), Refused> {
    // Of the two at once the kernel wouldn't say which one it refuses. A symbolic link is none of ours.
    let chown = |owner, group| chownat(CWD, path, owner, group, AtFlags::SYMLINK_NOFOLLOW);
    if let Some(group) = access.group {
        chown(None, Some(Gid::from_raw(group))).map_err(Step::Option("group").refused())?;
    }
    if let Some(mode) = access.mode {
        chmod(path, Mode::from_raw_mode(mode)).map_err(Step::Option("mode").refused())?;
    }
    // Last, since it is no longer ours then.
    if let Some(owner) = access.owner {
        chown(Some(Uid::from_raw(owner)), None).map_err(Step::Option("owner").refused())?;
    }
    Ok(())
}

fn open() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
}

/// Removes the socket file of a process that is gone; never one that somebody listens on, or another kind of file.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), Errno> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket && connect(open()?, address) == Err(Errno::CONNREFUSED) {
        fs::remove_file(path).map_err(|error| from_io(&error))?;
    }
    Ok(())
}

fn from_io(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The path of a socket that we have bound: removed on drop, unless another process has replaced it meanwhile.
#[derive(Debug)]
pub(super) struct OwnedPath {
    path: PathBuf,
    inode: u64,
    /// Another process removes it.
    given_away: AtomicBool,
}

impl OwnedPath {
    pub(super) fn of(path: &Path) -> Result<Self, Errno> {
        let inode = fs::symlink_metadata(path).map_err(|error| from_io(&error))?.ino();
        Ok(Self { path: path.to_owned(), inode, given_away: AtomicBool::new(false) })
    }

    /// Removes it in the end, after all.
    pub(super) fn take_back(&self) {
        self.given_away.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_given_away(&self) -> bool {
        self.given_away.load(Ordering::Relaxed)
    }

    /// Leaves it to another process to remove it.
    pub(super) fn give_away(&self) {
        self.given_away.store(true, Ordering::Relaxed);
    }
}

impl Drop for OwnedPath {
    fn drop(&mut self) {
        let _held = PATHS.lock();
        let is_ours = !self.given_away.load(Ordering::Relaxed);
        if is_ours && fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            // A file that can't be removed is found stale by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}
