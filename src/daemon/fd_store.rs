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
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
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

/// What this process has put into the store, by listener.
#[derive(Debug, Default)]
pub struct Store(BTreeMap<ListenerName, Vec<RawFd>>);

impl Store {
    /// Makes the store hold these sockets, where there is one.
    pub fn keep(&mut self, sockets: &BTreeMap<ListenerName, Vec<Arc<ListenSocket>>>) {
        let Some(room) = room() else { return };
        let count: usize = sockets.values().map(Vec::len).sum();
        if count > room {
            tracing::warn!(
                "{count} listening sockets don't fit into the service manager's store of {room}; those that don't are lost \
                 with the process; raise FileDescriptorStoreMax="
            );
        }
        self.0.retain(|listener, _| {
            let stays = sockets.contains_key(listener);
            if !stays {
                forget(listener.as_str());
            }
            stays
        });
        for (listener, sockets) in sockets {
            let numbers: Vec<RawFd> = sockets.iter().map(|socket| socket.as_fd().as_raw_fd()).collect();
            let before = self.0.insert(listener.clone(), numbers.clone());
            let changed = before.is_some_and(|before| before != numbers);
            if changed {
                // One by one they can't be taken out.
                forget(listener.as_str());
            }
            // Those that came from the manager it has.
            let fresh: Vec<_> = sockets.iter().filter(|socket| changed || !socket.is_kept()).collect();
            if store(listener.as_str(), &fresh.iter().map(|socket| socket.as_fd()).collect::<Vec<_>>()) {
                for socket in fresh {
                    socket.leave();
                }
            }
        }
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
