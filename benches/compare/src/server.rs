//! The backends: one process, one thread, one epoll, all the listening sockets of a run.
//!
//! It does as little as a backend can: echo what it receives, or send without end. Which of the two, the first byte of
//! a connection says: `d` is a download, all else is an echo. Downloads come out of a file in memory by sendfile(2), as
//! static content does: copying instead would cost more CPU than a splicing proxy uses, and measure the backend. It ends
//! by being killed.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use slab::Slab;

/// What a client sends to get a download.
pub const DOWNLOAD_REQUEST: [u8; 64] = [b'd'; 64];
/// The bytes of a download count 0, 1, ... up to this, and begin again. A prime, so that no block of a power of two
/// looks like the next one.
pub const PATTERN: usize = 251;
/// Largest message that is echoed in one piece.
const RECEIVE_AT_ONCE: usize = 64 << 10;
/// One send of a download. A bound also for how long the other connections of a turn wait.
const SEND_AT_ONCE: usize = 256 << 10;
const EVENTS_A_TURN: usize = 256;
const ACCEPTS_AT_ONCE: usize = 64;
const BACKLOG: i32 = 4096;

/// Event data of a listening socket: its index, with this bit.
const LISTENER: u64 = 1 << 63;

/// Where the bytes of a download come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// A file, by sendfile(2): pages of 4 KiB that nobody copies.
    File,
    /// The memory of the backend, by send(2): copied once, into larger pieces.
    Memory,
}

enum Role {
    Unknown,
    Echo,
    /// Position in the pattern.
    Download(usize),
}

struct Connection {
    socket: OwnedFd,
    role: Role,
}

/// Serves until the process is killed; returns only with an error.
pub fn run(source: Source, listen: &[SocketAddrV4]) -> Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("creating an epoll")?;
    let listeners: Vec<OwnedFd> = listen.iter().map(|&address| listener(address)).collect::<Result<_>>()?;
    for (index, listener) in listeners.iter().enumerate() {
        epoll::add(&epoll, listener, EventData::new_u64(LISTENER | index as u64), EventFlags::IN)?;
    }
    let mut server =
        Server { epoll, connections: Slab::new(), buffer: vec![0; RECEIVE_AT_ONCE], content: Content::new(source)? };
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
    }
}

fn listener(address: SocketAddrV4) -> Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    net::sockopt::set_socket_reuseaddr(&socket, true)?;
    // Accepted sockets inherit it.
    net::sockopt::set_tcp_nodelay(&socket, true)?;
    net::bind(&socket, &address).with_context(|| format!("binding a backend to {address}"))?;
    net::listen(&socket, BACKLOG).with_context(|| format!("listening on {address}"))?;
    Ok(socket)
}

struct Server {
    epoll: OwnedFd,
    connections: Slab<Connection>,
    buffer: Vec<u8>,
    content: Content,
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
            Role::Download(position) => self.content.send(&connection.socket, position),
            Role::Echo | Role::Unknown => match net::recv(&connection.socket, &mut self.buffer[..], RecvFlags::empty())
            {
                Err(Errno::AGAIN) => true,
                Ok((_, 0)) | Err(_) => false,
                Ok((_, count)) => {
                    if matches!(connection.role, Role::Unknown) && self.buffer[0] == DOWNLOAD_REQUEST[0] {
                        connection.role = Role::Download(0);
                        let interest = EventFlags::OUT | EventFlags::RDHUP;
                        epoll::modify(&self.epoll, &connection.socket, EventData::new_u64(key as u64), interest).is_ok()
                    } else {
                        connection.role = Role::Echo;
                        // Our clients have one message under way, far smaller than an empty send buffer. Should one
                        // not fit, then the connection ends here and the client counts a short answer.
                        net::send(&connection.socket, &self.buffer[..count], SendFlags::NOSIGNAL) == Ok(count)
                    }
                }
            },
        };
        if !goes_on {
            self.connections.remove(key);
        }
    }
}

/// What a download brings, long enough for one send from any position in the pattern.
enum Content {
    File(OwnedFd),
    Memory(Vec<u8>),
}

impl Content {
    fn new(source: Source) -> Result<Self> {
        let pattern: Vec<u8> = (0..SEND_AT_ONCE + PATTERN).map(|index| (index % PATTERN) as u8).collect();
        if source == Source::Memory {
            return Ok(Self::Memory(pattern));
        }
        let file = memfd_create("download", MemfdFlags::CLOEXEC).context("creating a file in memory")?;
        let written = rustix::io::write(&file, &pattern).context("writing a file in memory")?;
        ensure!(written == pattern.len(), "a file in memory took only {written} bytes");
        Ok(Self::File(file))
    }

    /// Sends from this position on, and moves it; false if the connection is over.
    fn send(&self, socket: &OwnedFd, position: &mut usize) -> bool {
        let sent = match self {
            Self::File(file) => sendfile(socket, file, Some(&mut (*position as u64)), SEND_AT_ONCE),
            Self::Memory(bytes) => net::send(socket, &bytes[*position..*position + SEND_AT_ONCE], SendFlags::NOSIGNAL),
        };
        match sent {
            Ok(count) => {
                *position = (*position + count) % PATTERN;
                true
            }
            Err(Errno::AGAIN) => true,
            Err(_) => false,
        }
    }
}
