//! The backends: one process, one thread, one epoll, all the listening sockets of a run.
//!
//! It does as little as a backend can: echo what it receives, send without end, or drop what it receives. Which of
//! these, the first byte of a connection says: see the requests below; all else is an echo. PROXY headers of version 2
//! that come first are taken off. Downloads come out of a file in memory by sendfile(2), as static content does:
//! copying instead would cost more CPU than a splicing proxy uses, and measure the backend. Uploads are taken off the
//! socket uncopied (`MSG_TRUNC`) and counted in a file that the clients read: bytes that have arrived, not bytes that
//! wait somewhere on the way. It ends by being killed.

use std::fs::File;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags, SocketFlags};
use serde::{Deserialize, Serialize};
use slab::Slab;
use tidegate_compare::ports;

/// What a client sends to get a download.
pub const DOWNLOAD_REQUEST: [u8; REQUEST_BYTES] = [b'd'; REQUEST_BYTES];
/// What goes before an upload without end.
pub const UPLOAD_REQUEST: [u8; REQUEST_BYTES] = [b'u'; REQUEST_BYTES];
/// What goes before an upload while a download comes back.
pub const BOTH_REQUEST: [u8; REQUEST_BYTES] = [b'b'; REQUEST_BYTES];
/// What goes before `CHECKED_BYTES` of the pattern; the answer is `INTACT`, or the end of the connection.
pub const CHECK_REQUEST: [u8; REQUEST_BYTES] = [b'c'; REQUEST_BYTES];
/// With these bytes a PROXY header of version 2 begins.
pub const PROXY_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Enough to go through a splice as well as through a copy.
pub const CHECKED_BYTES: usize = 4 << 20;
pub const INTACT: u8 = b'y';
const REQUEST_BYTES: usize = 64;
/// The bytes of a download or a checked upload count 0, 1, ... up to this, and begin again. A prime, so that no block
/// of a power of two looks like the next one.
pub const PATTERN: usize = 251;
/// Largest message that is echoed in one piece.
const ECHO_AT_ONCE: usize = 64 << 10;
/// Largest receive of an upload. A bound also for how long the other connections of a turn wait.
const RECEIVE_AT_ONCE: usize = 256 << 10;
/// One send of a download. A bound also for how long the other connections of a turn wait.
const SEND_AT_ONCE: usize = 256 << 10;
const EVENTS_A_TURN: usize = 256;
const ACCEPTS_AT_ONCE: usize = 64;

/// Event data of a listening socket: its index, with this bit.
const LISTENER: u64 = 1 << 63;

/// Where the bytes of a download or an upload come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Source {
    /// A file, by sendfile(2): pages of 4 KiB that nobody copies.
    File,
    /// The memory of the sender, by send(2): copied once, into larger pieces.
    Memory,
}

enum Role {
    Unknown,
    Echo,
    /// Position in the pattern.
    Download(usize),
    Upload,
    /// Position in the pattern.
    Both(usize),
    /// Bytes received, the request included.
    Checked(usize),
}

impl Role {
    /// What a connection is for that begins with this byte, and what its socket is watched for then.
    fn of(first: u8) -> (Self, EventFlags) {
        match first {
            b'd' => (Self::Download(0), EventFlags::OUT | EventFlags::RDHUP),
            b'u' => (Self::Upload, EventFlags::IN),
            b'b' => (Self::Both(0), EventFlags::IN | EventFlags::OUT),
            b'c' => (Self::Checked(0), EventFlags::IN),
            _ => (Self::Echo, EventFlags::IN),
        }
    }
}

struct Connection {
    socket: OwnedFd,
    role: Role,
}

/// Serves until the process is killed; returns only with an error. The bytes of all uploads so far stand in the file
/// `tally`, as `received_in` reads them.
pub fn run(source: Source, tally: &Path, listen: &[SocketAddrV4]) -> Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("creating an epoll")?;
    let listeners: Vec<OwnedFd> = listen.iter().map(|&address| ports::listen(address)).collect::<Result<_>>()?;
    for (index, listener) in listeners.iter().enumerate() {
        epoll::add(&epoll, listener, EventData::new_u64(LISTENER | index as u64), EventFlags::IN)?;
    }
    let tally = File::create(tally).with_context(|| format!("creating {}", tally.display()))?;
    let mut server = Server {
        epoll,
        connections: Slab::new(),
        buffer: vec![0; RECEIVE_AT_ONCE],
        content: Content::new(source)?,
        uploaded: 0,
    };
    let mut told = None;
    let mut events = Vec::with_capacity(EVENTS_A_TURN);
    loop {
        match epoll::wait(&server.epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for events"),
        }
        // Downloads come last, so that the latency of echoes beside them is the proxy's and not ours.
        for downloads in [false, true] {
            for event in &events {
                let (token, flags): (u64, EventFlags) = (event.data.u64(), event.flags);
                if flags.contains(EventFlags::OUT) != downloads {
                    continue;
                }
                if token & LISTENER == 0 {
                    server.serve(token as usize, flags);
                } else {
                    server.accept(&listeners[(token & !LISTENER) as usize])?;
                }
            }
        }
        events.clear();
        if told != Some(server.uploaded) {
            tally.write_all_at(&server.uploaded.to_ne_bytes(), 0).context("writing the tally of uploads")?;
            told = Some(server.uploaded);
        }
    }
}

/// The bytes of all uploads so far.
pub fn received_in(tally: &File) -> Result<u64> {
    let mut bytes = [0; 8];
    tally.read_exact_at(&mut bytes, 0).context("reading the tally of uploads")?;
    Ok(u64::from_ne_bytes(bytes))
}

struct Server {
    epoll: OwnedFd,
    connections: Slab<Connection>,
    buffer: Vec<u8>,
    content: Content,
    /// Bytes of all uploads so far.
    uploaded: u64,
}

impl Server {
    fn accept(&mut self, listener: &OwnedFd) -> Result<()> {
        for _ in 0..ACCEPTS_AT_ONCE {
            match net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    let entry = self.connections.vacant_entry();
                    epoll::add(&self.epoll, &socket, EventData::new_u64(entry.key() as u64), EventFlags::IN)?;
                    entry.insert(Connection { socket, role: Role::Unknown });
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                // Out of descriptors, most likely: the run is worth nothing, so say it and end.
                Err(error) => return Err(error).context("accepting on a backend"),
            }
        }
        Ok(())
    }

    /// One step for this connection, or its end.
    fn serve(&mut self, key: usize, flags: EventFlags) {
        // Removed by an earlier event of the same turn.
        let Some(connection) = self.connections.get_mut(key) else { return };
        let goes_on = match &mut connection.role {
            // Nobody wants the rest of a download.
            Role::Download(_) if flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) => false,
            Role::Download(position) => self.content.send(&connection.socket, position).is_ok(),
            Role::Upload => drop_bytes(&connection.socket, &mut self.buffer, &mut self.uploaded),
            Role::Both(position) => {
                (!flags.contains(EventFlags::OUT) || self.content.send(&connection.socket, position).is_ok())
                    && (!flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR)
                        || drop_bytes(&connection.socket, &mut self.buffer, &mut self.uploaded))
            }
            Role::Unknown | Role::Echo | Role::Checked(_) => self.receive(key),
        };
        if !goes_on {
            self.connections.remove(key);
        }
    }

    /// Receives what matters byte by byte; false if the connection is over.
    fn receive(&mut self, key: usize) -> bool {
        let Connection { socket, role } = &mut self.connections[key];
        let count = match net::recv(&*socket, &mut self.buffer[..ECHO_AT_ONCE], RecvFlags::empty()) {
            Err(Errno::AGAIN) => return true,
            Ok((_, 0)) | Err(_) => return false,
            Ok((_, count)) => count,
        };
        let mut received = &self.buffer[..count];
        if matches!(role, Role::Unknown) {
            // A header goes out in one piece, so it comes in one.
            while let Some(behind) = behind_proxy_header(received) {
                received = behind;
            }
            if received.is_empty() {
                return true;
            }
            let (named, interest) = Role::of(received[0]);
            *role = named;
            // An echo, the most frequent by far, is watched for what it was watched for.
            if interest != EventFlags::IN
                && epoll::modify(&self.epoll, &*socket, EventData::new_u64(key as u64), interest).is_err()
            {
                return false;
            }
        }
        match role {
            Role::Echo | Role::Unknown => {
                // Our clients have one message under way, far smaller than an empty send buffer. Should one not fit,
                // then the connection ends here and the client counts a short answer.
                net::send(&*socket, received, SendFlags::NOSIGNAL) == Ok(received.len())
            }
            Role::Checked(before) => {
                let intact = received.iter().enumerate().all(|(index, &byte)| byte == checked_byte(*before + index));
                *before += received.len();
                let complete = *before >= REQUEST_BYTES + CHECKED_BYTES;
                intact && (!complete || net::send(&*socket, &[INTACT], SendFlags::NOSIGNAL) == Ok(1))
            }
            Role::Upload | Role::Both(_) => {
                self.uploaded += received.len() as u64;
                true
            }
            Role::Download(_) => true,
        }
    }
}

/// What is behind a PROXY header; `None` if there is none.
fn behind_proxy_header(bytes: &[u8]) -> Option<&[u8]> {
    let [_, _, high, low, rest @ ..] = bytes.strip_prefix(&PROXY_SIGNATURE)? else { return None };
    rest.get(usize::from(u16::from_be_bytes([*high, *low]))..)
}

/// What a checked upload has at this place.
fn checked_byte(index: usize) -> u8 {
    match index.checked_sub(REQUEST_BYTES) {
        None => CHECK_REQUEST[index],
        Some(place) => (place % PATTERN) as u8,
    }
}

/// Takes bytes of an upload off the socket uncopied, and counts them; false if the connection is over.
fn drop_bytes(socket: &OwnedFd, buffer: &mut [u8], uploaded: &mut u64) -> bool {
    match net::recv(socket, buffer, RecvFlags::TRUNC) {
        Err(Errno::AGAIN) => true,
        Ok((_, 0)) | Err(_) => false,
        Ok((_, count)) => {
            *uploaded += count as u64;
            true
        }
    }
}

/// What a download or an upload brings, long enough for one send from any position in the pattern.
pub enum Content {
    File(OwnedFd),
    Memory(Vec<u8>),
}

impl Content {
    pub fn new(source: Source) -> Result<Self> {
        let pattern: Vec<u8> = (0..SEND_AT_ONCE + PATTERN).map(|index| (index % PATTERN) as u8).collect();
        if source == Source::Memory {
            return Ok(Self::Memory(pattern));
        }
        let file = memfd_create("download", MemfdFlags::CLOEXEC).context("creating a file in memory")?;
        let written = rustix::io::write(&file, &pattern).context("writing a file in memory")?;
        ensure!(written == pattern.len(), "a file in memory took only {written} bytes");
        Ok(Self::File(file))
    }

    /// Sends from this position on, moves it, and returns how many bytes went: none if the socket is full.
    pub fn send(&self, socket: &OwnedFd, position: &mut usize) -> Result<usize, Errno> {
        let sent = match self {
            Self::File(file) => sendfile(socket, file, Some(&mut (*position as u64)), SEND_AT_ONCE),
            Self::Memory(bytes) => net::send(socket, &bytes[*position..*position + SEND_AT_ONCE], SendFlags::NOSIGNAL),
        };
        match sent {
            Ok(count) => {
                *position = (*position + count) % PATTERN;
                Ok(count)
            }
            Err(Errno::AGAIN) => Ok(0),
            Err(error) => Err(error),
        }
    }
}
