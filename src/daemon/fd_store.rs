//! The service manager's store of descriptors: listening sockets that outlive the process, so that a restart loses no
//! client that waits in an accept queue.
//!
//! Owns the messages and the count of what is stored; decides nothing about which sockets there are. A manager that
//! stores says so in `FDSTORE`, with how many it takes (since systemd 254; before that, the unit says it with
//! `Environment=`). What is stored comes back as other sockets of the manager do: see `inherit`. Invariant: a socket in
//! the store is closed without ending its listening, or nobody could go on with it.

use super::gates;
use crate::name::ListenerName;
use crate::net::listen::ListenSocket;
use rustix::fs::fstat;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

/// The kernel passes 253 descriptors in a message at most (`SCM_MAX_FD`).
const MOST: usize = 128;

/// Whether there is a store, and how many descriptors it takes.
fn room() -> Option<usize> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let room = std::env::var("FDSTORE").ok()?.parse().ok()?;
    (room > 0).then_some(room)
}

/// What is in the store: the inodes of the sockets, by the name under which they are there.
pub type Stored = BTreeMap<String, BTreeSet<u64>>;

/// The sockets of this process in the store. `None` at first, unless a predecessor has told: what the manager gives to
/// a process it has already.
#[derive(Debug, Default)]
pub struct Store(Option<Stored>);

impl Store {
    /// Of a process that goes on with what its predecessor has stored.
    #[must_use]
    pub fn of_predecessor(stored: Stored) -> Self {
        Self(Some(stored))
    }

    /// Makes the store hold these sockets, and no others, where there is one.
    pub fn keep(&mut self, sockets: &BTreeMap<ListenerName, Vec<Arc<ListenSocket>>>) {
        let Some(room) = room() else { return };
        let count: usize = sockets.values().map(Vec::len).sum();
        if count > room {
            tracing::warn!(
                "{count} listening sockets don't fit into the service manager's store of {room}; those that don't are lost \
                 with the process; raise FileDescriptorStoreMax="
            );
        }
        let (is_first, before) = (self.0.is_none(), self.0.take().unwrap_or_default());
        let inodes = |sockets: &Vec<Arc<ListenSocket>>| {
            sockets.iter().filter_map(|socket| Some(fstat(&**socket).ok()?.st_ino)).collect()
        };
        let mut now: Stored = sockets.iter().map(|(name, sockets)| (name.to_string(), inodes(sockets))).collect();
        // One by one they can't be taken out; and what is there by another name isn't stored again.
        before.iter().filter(|(name, stored)| now.get(*name) != Some(stored)).for_each(|(name, _)| forget(name));
        for (listener, sockets) in sockets {
            let name = listener.as_str();
            if before.get(name) == now.get(name) {
                continue;
            }
            let fresh: Vec<_> = sockets.iter().filter(|socket| !(is_first && socket.is_kept())).collect();
            if store(name, &fresh.iter().map(|socket| socket.as_fd()).collect::<Vec<_>>()) {
                // What the manager has given is its own, whatever is stored.
                for socket in fresh.into_iter().filter(|socket| !socket.is_kept()) {
                    socket.leave_in_store();
                }
            } else {
                // Tried again with the next change.
                now.remove(name);
            }
        }
        self.0 = Some(now);
    }
}

/// Puts descriptors into the store by that name; one that is there already is there once. Whether all went well.
pub fn store(name: &str, descriptors: &[BorrowedFd<'_>]) -> bool {
    descriptors.chunks(MOST).all(|some| {
        let sent = send(&format!("FDSTORE=1\nFDNAME={name}\n"), some);
        if let Err(error) = &sent {
            tracing::warn!(name, %error, "can't give sockets to the service manager's store");
        }
        sent.is_ok()
    })
}

/// Takes all sockets of that name out of the store; nothing happens where there is none.
pub fn forget(name: &str) {
    if room().is_some()
        && let Err(error) = send(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), &[])
    {
        tracing::warn!(name, %error, "can't take sockets out of the service manager's store");
    }
}

fn send(message: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let (Some(path), true) = (std::env::var_os("NOTIFY_SOCKET"), gates::may_speak()) else { return Ok(()) };
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(&socket, &[IoSlice::new(message.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
