//! One client: what it does with its socket, as a small machine that the event loop steps.
//!
//! Level-triggered, one receive and one send an event: that is the fewest calls for messages that fit one segment.
//! The first byte tells our backend what the connection is for: see `server.rs`.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::Job;
use super::trouble::{Failure, Trouble};
use crate::server::{self, Content};
use crate::sys;

/// Largest receive of a download. A bound also for how long the other clients of a turn wait.
pub const RECEIVE_AT_ONCE: usize = 256 << 10;
/// The one echo on a connection that idles then.
pub const GREETING_BYTES: usize = 64;
/// Latencies above are recorded as this.
const LONGEST_LATENCY_NS: u64 = 60_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Connect, one echo, close, again.
    Short,
    /// One echo after the other.
    Ping,
    /// One request, then bytes without end.
    Download,
    /// Bytes without end to the other side.
    Upload,
    /// Bytes without end, both ways.
    Both,
    /// One echo, then nothing.
    Once,
}

impl Role {
    /// What goes first; `None`: the message of the window.
    fn request(self) -> Option<&'static [u8]> {
        match self {
            Self::Short | Self::Ping | Self::Once => None,
            Self::Download => Some(&server::DOWNLOAD_REQUEST),
            Self::Upload => Some(&server::UPLOAD_REQUEST),
            Self::Both => Some(&server::BOTH_REQUEST),
        }
    }

    /// What its socket is watched for once the request is out.
    fn interest(self) -> EventFlags {
        match self {
            Self::Short | Self::Ping | Self::Once | Self::Download => EventFlags::IN,
            // Nothing but the end comes back from an upload.
            Self::Upload | Self::Both => EventFlags::IN | EventFlags::OUT,
        }
    }

    /// Comes last in a turn, so that the latency of requests beside it is the proxy's and not ours.
    pub fn is_bulk(self) -> bool {
        matches!(self, Self::Download | Self::Upload | Self::Both)
    }
}

/// What the clients of a window count together.
pub struct Meter {
    pub connections: u64,
    pub requests: u64,
    /// Downloaded. Uploaded bytes are counted where they arrive.
    pub bytes: u64,
    pub latency: Histogram<u64>,
    pub trouble: Trouble,
}

impl Meter {
    pub fn new() -> Result<Self> {
        let latency = Histogram::new_with_bounds(1, LONGEST_LATENCY_NS, 3).context("making a histogram")?;
        Ok(Self { connections: 0, requests: 0, bytes: 0, latency, trouble: Trouble::default() })
    }
}

/// What a client needs from the loop for one step.
pub struct Surroundings<'a> {
    pub epoll: &'a OwnedFd,
    pub job: &'a Job,
    pub message: &'a [u8],
    /// Bytes that come back of the message.
    pub answer: usize,
    pub buffer: &'a mut [u8],
    /// What uploads bring.
    pub content: &'a Content,
    pub meter: &'a mut Meter,
}

pub struct Client {
    index: usize,
    role: Role,
    socket: Option<OwnedFd>,
    request_sent: bool,
    /// Bytes of the current answer.
    received: usize,
    /// Of an upload, in its content.
    position: usize,
    /// Of the current connection (short) or request.
    began: Instant,
    /// Something was completed since the window began.
    completed: bool,
}

impl Client {
    pub fn new(index: usize, role: Role) -> Self {
        Self {
            index,
            role,
            socket: None,
            request_sent: false,
            received: 0,
            position: 0,
            began: Instant::now(),
            completed: false,
        }
    }

    pub fn role(&self) -> Role {
        self.role
    }

    pub fn role_name(&self) -> &'static str {
        match self.role {
            Role::Short => "short connection",
            Role::Ping => "request",
            Role::Download => "download",
            Role::Upload => "upload",
            Role::Both => "download and upload",
            Role::Once => "connection",
        }
    }

    pub fn begin_window(&mut self) {
        self.completed = false;
    }

    pub fn idle_in_window(&self) -> bool {
        !self.completed
    }

    /// Drops the connection after a failure.
    pub fn abandon(&mut self) {
        self.socket = None;
    }

    /// Opens a fresh connection.
    pub fn start(&mut self, around: &mut Surroundings<'_>) -> Result<(), Failure> {
        self.began = Instant::now();
        self.received = 0;
        self.position = 0;
        self.request_sent = false;
        let socket = self.connect(around.job).map_err(|error| Failure::Connect(error.into()))?;
        // Over loopback the handshake is mostly over by the time connect returns, so the request can go at once.
        self.send_request(&socket, around.message).map_err(|error| Failure::Connect(error.into()))?;
        let interest = if self.request_sent { self.role.interest() } else { EventFlags::IN | EventFlags::OUT };
        epoll::add(around.epoll, &socket, EventData::new_u64(self.index as u64), interest).map_err(broken)?;
        self.socket = Some(socket);
        Ok(())
    }

    /// Reacts to whatever the socket has.
    pub fn event(&mut self, flags: EventFlags, around: &mut Surroundings<'_>) -> Result<(), Failure> {
        // A client that failed earlier in the same turn has no socket.
        let Some(socket) = self.socket.take() else { return Ok(()) };
        if !self.request_sent {
            self.send_request(&socket, around.message).map_err(|error| Failure::Connect(error.into()))?;
            if self.request_sent {
                let data = EventData::new_u64(self.index as u64);
                epoll::modify(around.epoll, &socket, data, self.role.interest()).map_err(broken)?;
            }
            self.socket = Some(socket);
            return Ok(());
        }
        if flags.contains(EventFlags::OUT) {
            let sent = around.content.send(&socket, &mut self.position).map_err(broken)?;
            self.completed |= sent > 0 && self.role == Role::Upload;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.socket = Some(socket);
            return Ok(());
        }
        // What a download brings was checked once when its peer was started. Here it is taken off the socket without
        // being copied (MSG_TRUNC), which leaves more of this core to the backend.
        let flags = if self.role.is_bulk() { RecvFlags::TRUNC } else { RecvFlags::empty() };
        match net::recv(&socket, &mut *around.buffer, flags) {
            Ok((_, 0)) => return Err(Failure::Short { received: self.received }),
            Ok((_, count)) => self.received += count,
            Err(Errno::AGAIN) => {
                self.socket = Some(socket);
                return Ok(());
            }
            Err(error) => return Err(broken(error)),
        }
        match self.role {
            // Nobody asked for an answer to an upload.
            Role::Upload => return Err(Failure::Short { received: self.received }),
            Role::Download | Role::Both => {
                around.meter.bytes += self.received as u64;
                self.received = 0;
                self.completed = true;
            }
            _ if self.received < around.answer => {}
            Role::Once => {
                around.meter.requests += 1;
                self.record_latency(around.meter);
            }
            Role::Ping => {
                around.meter.requests += 1;
                self.record_latency(around.meter);
                self.received = 0;
                self.began = Instant::now();
                self.request_sent = false;
                self.send_request(&socket, around.message).map_err(broken)?;
                if !self.request_sent {
                    return Err(broken(Errno::NOBUFS));
                }
            }
            Role::Short => {
                around.meter.connections += 1;
                self.record_latency(around.meter);
                drop(socket);
                return self.start(around);
            }
        }
        self.socket = Some(socket);
        Ok(())
    }

    fn connect(&self, job: &Job) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        net::sockopt::set_tcp_nodelay(&socket, true)?;
        if matches!(self.role, Role::Short | Role::Once) {
            // A closed connection keeps its pair of addresses for a minute (TIME_WAIT); many source addresses hold
            // many pairs.
            sys::bind_address_only(&socket).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
            net::bind(&socket, &job.sources[self.index % job.sources.len()])?;
        }
        match net::connect(&socket, &job.targets[self.index % job.targets.len()]) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error),
        }
    }

    /// Sends the request if the socket takes it; a message is far smaller than an empty send buffer, so in whole.
    fn send_request(&mut self, socket: &OwnedFd, message: &[u8]) -> Result<(), Errno> {
        match net::send(socket, self.role.request().unwrap_or(message), SendFlags::NOSIGNAL) {
            Ok(_) => {
                self.request_sent = true;
                Ok(())
            }
            Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn record_latency(&mut self, meter: &mut Meter) {
        self.completed = true;
        // Saturating: a latency beyond the bound counts as the bound.
        meter.latency.saturating_record(self.began.elapsed().as_nanos() as u64);
    }
}

fn broken(error: Errno) -> Failure {
    Failure::Broken(io::Error::from(error))
}
