//! What a process leaves to the next one, in words: which socket is which, and what is known of the backends.
//!
//! Owns the format, which is versioned: a successor refuses a version that it doesn't know. What the config file says
//! now isn't in it, but what it said before is; nor is what sessions are about. A field that is missing counts as
//! nothing, one that isn't known is passed over, so that versions next to each other can go both ways.

use crate::clock::Now;
use crate::config::Adjustments;
use crate::daemon::fd_store::Stored;
use crate::daemon::history::Past;
use crate::daemon::inherit::Candidate;
use crate::name::{BindAddr, Endpoint};
use crate::net::listen::{Given, ListenSocket, Source};
use crate::pool::{Known, Pool};
use rustix::fs::fstat;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The version that this binary writes and reads.
const VERSION: u32 = 1;
/// What the socket of the admin endpoint is called; no listener can be called so.
const ADMIN: &str = "[admin]";

/// The words; the descriptors of `sockets` come beside them, in the same order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Handover {
    version: u32,
    /// How long the clock runs whose moments are in here, in ms.
    clock_ms: u64,
    pub generation: u64,
    /// Of the text of the config.
    #[serde(default)]
    pub hash: String,
    /// The configs that have been in force, the oldest first; the last one is.
    #[serde(default)]
    pub history: Vec<Past>,
    #[serde(default)]
    pub adjustments: Adjustments,
    sockets: Vec<Socket>,
    #[serde(default)]
    backends: Vec<BackendKnown>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about a socket")]
struct Socket {
    /// The listener's name.
    name: String,
    /// As the config has it: `127.0.0.1:0`, `unix:/run/tidegate/web.sock`.
    wanted: String,
    /// The service manager has it too.
    #[serde(default)]
    kept: bool,
    /// Because a process has given it to its store.
    #[serde(default)]
    stored: bool,
    #[serde(default)]
    inode: u64,
    #[serde(default)]
    owns_path: bool,
    /// An operator has taken the listener out: it doesn't listen.
    #[serde(default)]
    parked: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct BackendKnown {
    pool: String,
    /// What `/status` calls it.
    backend: String,
    address: String,
    known: Known,
}

/// All that goes over: the words, the descriptors, and the sockets that they are of.
pub struct Estate {
    pub handover: Handover,
    pub descriptors: Vec<OwnedFd>,
    /// Each with the place of its descriptor; several may be the same socket.
    sockets: Vec<(usize, Arc<ListenSocket>)>,
}

impl Estate {
    #[must_use]
    pub fn new(
        generation: u64,
        hash: String,
        history: Vec<Past>,
        adjustments: Adjustments,
        pools: &[Arc<Pool>],
    ) -> Self {
        let mut backends = Vec::new();
        for pool in pools {
            for backend in &pool.view().backends {
                if let Some(known) = backend.known() {
                    let (pool, backend, address) =
                        (pool.name.to_string(), backend.label.to_string(), backend.address.to_string());
                    backends.push(BackendKnown { pool, backend, address, known });
                }
            }
        }
        let clock_ms = crate::clock::age().as_millis() as u64;
        let sockets = Vec::new();
        let handover =
            Handover { version: VERSION, clock_ms, generation, hash, history, adjustments, sockets, backends };
        Self { handover, descriptors: Vec::new(), sockets: Vec::new() }
    }

    /// Adds the sockets of one address of a listener. Of a socket that several workers share, one descriptor goes over.
    pub fn add(
        &mut self,
        name: &str,
        wanted: &BindAddr,
        sockets: impl IntoIterator<Item = Arc<ListenSocket>>,
        parked: bool,
    ) -> Result<(), Errno> {
        let first = self.descriptors.len();
        let mut inodes = Vec::new();
        for socket in sockets {
            let inode = fstat(&*socket)?.st_ino;
            let place = inodes.iter().position(|known| *known == inode);
            if place.is_none() {
                inodes.push(inode);
                let copy = socket.as_fd().try_clone_to_owned();
                self.descriptors.push(copy.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?);
                let (name, wanted) = (name.to_owned(), wanted.to_string());
                let (kept, stored, owns_path) = (socket.is_kept(), socket.is_stored(), socket.owns_path());
                self.handover.sockets.push(Socket { name, wanted, kept, stored, inode, owns_path, parked });
            }
            self.sockets.push((first + place.unwrap_or(inodes.len() - 1), socket));
        }
        Ok(())
    }

    pub fn add_admin(&mut self, wanted: &BindAddr, socket: Arc<ListenSocket>) -> Result<(), Errno> {
        self.add(ADMIN, wanted, [socket], false)
    }

    /// The successor has these descriptors: their sockets are its own now.
    pub fn pass_on(&self, taken: &[usize]) {
        for (_, socket) in self.sockets.iter().filter(|(index, _)| taken.contains(index)) {
            socket.pass_on();
        }
    }
}

impl Handover {
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Fails with a sentence.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Any {
            version: u32,
        }
        let unclear = |error: serde_json::Error| format!("can't understand the predecessor: {error}");
        let Any { version } = serde_json::from_slice(bytes).map_err(unclear)?;
        if version != VERSION {
            return Err(format!(
                "the predecessor hands over in version {version}, but this binary knows version {VERSION} alone; restart \
                 instead of upgrading"
            ));
        }
        serde_json::from_slice(bytes).map_err(unclear)
    }

    #[must_use]
    pub fn clock(&self) -> Duration {
        Duration::from_millis(self.clock_ms)
    }

    /// What the service manager's store holds of the predecessor's.
    #[must_use]
    pub fn stored(&self) -> Stored {
        let mut stored = Stored::new();
        for socket in self.sockets.iter().filter(|socket| socket.kept && !socket.parked && socket.name != ADMIN) {
            stored.entry(socket.name.clone()).or_default().insert(socket.inode);
        }
        stored
    }

    /// What the descriptors are; those that are of no use are told of and left out.
    #[must_use]
    pub fn candidates(&self, descriptors: Vec<OwnedFd>) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for (index, (socket, descriptor)) in self.sockets.iter().zip(descriptors).enumerate() {
            let owns_path = socket.owns_path;
            let source = match (socket.kept, socket.stored) {
                (true, true) => Source::Store { owns_path },
                (true, false) => Source::ServiceManager,
                (false, _) => Source::Predecessor { owns_path },
            };
            let is_admin = socket.name == ADMIN;
            let given = if socket.parked { Given::bound(descriptor) } else { Given::new(descriptor) };
            match (given, address(&socket.wanted)) {
                (Ok(given), Some(wanted)) => {
                    let name = socket.name.clone();
                    candidates.push(Candidate { index, name, is_admin, wanted, source, given });
                }
                (Err(unfit), _) => {
                    tracing::warn!(name = socket.name, "a socket of the predecessor is of no use: {unfit}");
                }
                (_, None) => tracing::warn!(wanted = socket.wanted, "the predecessor names an address that isn't one"),
            }
        }
        candidates
    }

    /// Lets the backends of these pools go on with what was known of them. How many.
    #[must_use]
    pub fn tell(&self, pools: &[Arc<Pool>], now: Now) -> usize {
        let mut told = 0;
        for pool in pools {
            for backend in &pool.view().backends {
                let (label, address) = (&*backend.label, backend.address.to_string());
                let same = |known: &&BackendKnown| {
                    known.pool == pool.name.as_str() && known.backend == label && known.address == address
                };
                if let Some(found) = self.backends.iter().find(same) {
                    backend.believe(&found.known, pool.protection.slow_start, pool.health.agent.is_some(), now);
                    told += 1;
                }
            }
            pool.review(now.millis);
        }
        told
    }
}

/// As [`BindAddr`] is written.
fn address(text: &str) -> Option<BindAddr> {
    match text.strip_prefix("unix:") {
        Some(path) => Some(BindAddr(Endpoint::Unix(Path::new(path).into()))),
        None => text.parse().ok().map(|address| BindAddr(Endpoint::Tcp(address))),
    }
}
