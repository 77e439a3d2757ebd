//! One end of a connection as a script uses it: blocking, with a time-out on everything, and a clear word for how it
//! ended.
//!
//! TCP and unix alike. Every wait is bounded by [`PATIENCE`]; running out of it fails the test.

use super::pattern;
use super::wait::{PATIENCE, eventually};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where something listens, written as the config writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addr {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Addr {
    pub fn tcp(&self) -> SocketAddr {
        match self {
            Self::Tcp(address) => *address,
            Self::Unix(path) => panic!("{} is not a TCP address", path.display()),
        }
    }

    pub fn parse(text: &str) -> Self {
        match text.strip_prefix("unix:") {
            Some(path) => Self::Unix(path.into()),
            None => Self::Tcp(text.parse().unwrap_or_else(|_| panic!("{text:?} is no address"))),
        }
    }

    /// An address, or those of a range of ports.
    pub fn parse_all(text: &str) -> Vec<Self> {
        let range = || {
            let (first, last) = text.rsplit_once('-')?;
            let first: SocketAddr = first.parse().ok()?;
            let port = |port| Self::Tcp(SocketAddr::new(first.ip(), port));
            Some((first.port()..=last.parse().ok()?).map(port).collect())
        };
        range().unwrap_or_else(|| vec![Self::parse(text)])
    }

    pub(super) fn socket(&self) -> (Socket, SockAddr) {
        match self {
            Self::Tcp(address) => {
                let domain = Domain::for_address(*address);
                (Socket::new(domain, Type::STREAM, None).unwrap(), SockAddr::from(*address))
            }
            Self::Unix(path) => (Socket::new(Domain::UNIX, Type::STREAM, None).unwrap(), SockAddr::unix(path).unwrap()),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Addr {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Does it again as long as a signal comes between. A socket with a time-out says so whenever its process was stopped
/// and goes on, even if no signal is handled: see signal(7).
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// How the other side ended what it sends us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Fin,
    Rst,
}

/// What came until the end.
#[derive(Debug, PartialEq, Eq)]
pub struct Rest {
    pub bytes: Vec<u8>,
    pub end: End,
}

impl Rest {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// How many bytes of the pattern came until the end.
#[derive(Debug, PartialEq, Eq)]
pub struct Flood {
    pub bytes: u64,
    pub end: End,
}

/// One end of a connection. Dropping it closes it as the kernel does: by FIN, or RST if bytes were left unread.
#[derive(Debug)]
pub struct Conn {
    socket: Socket,
    /// Its reset was told to the connect or to a write; the kernel says so once, and "end of file" from then on.
    heard_reset: bool,
}

impl Conn {
    pub fn new(socket: Socket) -> Self {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { socket, heard_reset: false }
    }

    /// # Panics
    /// When the connection can't be made.
    pub fn to(address: &Addr) -> Self {
        Self::try_to(address).unwrap_or_else(|error| panic!("can't connect to {address}: {error}"))
    }

    pub fn try_to(address: &Addr) -> io::Result<Self> {
        let (socket, target) = address.socket();
        if let Addr::Tcp(_) = address {
            socket.set_tcp_nodelay(true)?;
        }
        match socket.connect_timeout(&target, PATIENCE) {
            Ok(()) => Ok(Self::new(socket)),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                Ok(Self { heard_reset: true, ..Self::new(socket) })
            }
            Err(error) => Err(error),
        }
    }

    /// From this address of the machine's own.
    pub fn from(source: Ipv4Addr, to: &Addr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source.into(), 0).into()).unwrap();
        socket.connect_timeout(&to.tcp().into(), PATIENCE).unwrap();
        Self::new(socket)
    }

    /// With a receive buffer so small that the window closes after a few KiB.
    pub fn with_small_window(address: &Addr) -> Self {
        let (socket, target) = address.socket();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket.connect_timeout(&target, PATIENCE).unwrap();
        Self::new(socket)
    }

    pub fn local(&self) -> SocketAddr {
        self.socket.local_addr().unwrap().as_socket().unwrap()
    }

    pub fn peer(&self) -> SocketAddr {
        self.socket.peer_addr().unwrap().as_socket().unwrap()
    }

    /// `None` if it has gone already.
    pub fn try_peer(&self) -> Option<SocketAddr> {
        self.socket.peer_addr().ok()?.as_socket()
    }

    /// A second handle on the same connection, for a thread that sends while this one receives.
    pub fn twin(&self) -> Self {
        Self { socket: self.socket.try_clone().unwrap(), heard_reset: self.heard_reset }
    }

    /// Bounds a single read; the default is the kit's patience.
    pub fn read_timeout(&self, timeout: Duration) {
        self.socket.set_read_timeout(Some(timeout)).unwrap();
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.write_all(bytes.as_ref()).unwrap_or_else(|error| panic!("can't send: {error}"));
    }

    /// Sends these bytes with the last one marked as urgent.
    pub fn send_urgent(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.send_out_of_band(bytes.as_ref()).unwrap_or_else(|error| panic!("can't send: {error}"));
    }

    /// Sends until it's all gone or the other side doesn't take any more; true if it's all gone.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let sent = self.socket.write_all(bytes.as_ref());
        self.heard_reset |= sent.as_ref().is_err_and(is_reset);
        sent
    }

    /// Sends the pattern's bytes from `offset` to `offset + count`.
    pub fn send_pattern(&mut self, offset: u64, count: u64) {
        self.try_send_pattern(offset, count).unwrap_or_else(|error| panic!("can't send the pattern: {error}"));
    }

    pub fn try_send_pattern(&mut self, offset: u64, count: u64) -> io::Result<()> {
        let end = offset + count;
        let mut at = offset;
        while at < end {
            let piece = pattern::at(at);
            let length = (piece.len() as u64).min(end - at) as usize;
            self.socket.write_all(&piece[..length])?;
            at += length as u64;
        }
        Ok(())
    }

    /// Sends the pattern until nothing more goes for `still`, and says how many bytes went: fills every buffer on the
    /// way.
    pub fn stuff(&mut self, offset: u64, most: u64, still: Duration) -> u64 {
        self.socket.set_write_timeout(Some(still)).unwrap();
        let (mut sent, mut moved) = (0, Instant::now());
        while sent < most {
            match self.socket.write(pattern::at(offset + sent)) {
                Ok(count) => (sent, moved) = (sent + count as u64, Instant::now()),
                // Each interruption begins the kernel's own time anew.
                Err(error) if error.kind() == ErrorKind::Interrupted && moved.elapsed() < still => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => break,
                Err(error) => panic!("can't send: {error}"),
            }
        }
        self.socket.set_write_timeout(Some(PATIENCE)).unwrap();
        sent
    }

    /// Sends the pattern from `offset` until the kernel takes no more right now, and says how many bytes went.
    pub fn stuff_now(&mut self, offset: u64) -> u64 {
        self.socket.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(count) = uninterrupted(|| self.socket.write(pattern::at(offset + sent))) {
            sent += count as u64;
        }
        self.socket.set_nonblocking(false).unwrap();
        sent
    }

    /// One read: `Ok(0)` is a FIN.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| self.socket.read(buffer))
    }

    /// Exactly `count` bytes.
    pub fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut done = 0;
        while done < count {
            match self.read(&mut bytes[done..]) {
                Ok(0) => panic!("a FIN after {done} of {count} bytes"),
                Ok(more) => done += more,
                Err(error) => panic!("after {done} of {count} bytes: {error}"),
            }
        }
        bytes
    }

    /// Exactly `count` bytes, or `None` if the connection ends before.
    pub fn try_receive(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.socket.read_exact(&mut bytes).ok().map(|()| bytes)
    }

    /// Says a word to an echo, and hears it.
    pub fn speak(&mut self) {
        self.send("ping");
        self.expect("ping");
    }

    /// Asserts that exactly these bytes come next.
    pub fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let wanted = bytes.as_ref();
        let seen = self.receive(wanted.len());
        assert_eq!(String::from_utf8_lossy(&seen), String::from_utf8_lossy(wanted));
    }

    /// Up to and including the next line feed; the line is given without it.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            match self.receive(1)[0] {
                b'\n' => return String::from_utf8(line).unwrap(),
                byte => line.push(byte),
            }
        }
    }

    /// Waits longer than usual for what comes next.
    pub fn wait_up_to(&mut self, patience: Duration) {
        self.socket.set_read_timeout(Some(patience)).unwrap();
    }

    /// Asserts that the pattern's bytes from `offset` to `offset + count` come next.
    pub fn expect_pattern(&mut self, offset: u64, count: u64) {
        let mut buffer = vec![0; 64 << 10];
        let mut done = 0;
        while done < count {
            let room = (buffer.len() as u64).min(count - done) as usize;
            match self.read(&mut buffer[..room]) {
                Ok(0) => panic!("a FIN after {done} of {count} bytes"),
                Ok(more) => {
                    pattern::check(offset + done, &buffer[..more]);
                    done += more as u64;
                }
                Err(error) => panic!("after {done} of {count} bytes: {error}"),
            }
        }
    }

    /// Reads to the end.
    pub fn rest(&mut self) -> Rest {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.step(&mut buffer) {
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(end) => return Rest { bytes, end },
            }
        }
    }

    /// Reads to the end, keeping nothing, and asserts that all of it is the pattern from `offset` on.
    pub fn rest_of_pattern(&mut self, offset: u64) -> Flood {
        let mut bytes = 0;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.step(&mut buffer) {
                Ok(count) => {
                    pattern::check(offset + bytes, &buffer[..count]);
                    bytes += count as u64;
                }
                Err(end) => return Flood { bytes, end },
            }
        }
    }

    /// Asserts that the end comes next, and that it is this one.
    pub fn expect_end(&mut self, end: End) {
        let rest = self.rest();
        assert_eq!(rest.end, end, "after {:?}", rest.text());
        assert_eq!(rest.text(), "", "bytes that nobody sent");
    }

    /// Up to and including the next line feed; or what came until the end, if that came first.
    pub fn line_or_rest(&mut self) -> Result<String, Rest> {
        let (mut bytes, mut byte) = (Vec::new(), [0]);
        while byte != [b'\n'] {
            match self.step(&mut byte) {
                Ok(_) => bytes.extend(byte),
                Err(end) => return Err(Rest { bytes, end }),
            }
        }
        Ok(String::from_utf8(bytes).unwrap())
    }

    fn step(&mut self, buffer: &mut [u8]) -> Result<usize, End> {
        match self.read(buffer) {
            Ok(0) if self.heard_reset => Err(End::Rst),
            Ok(0) => Err(End::Fin),
            Ok(count) => Ok(count),
            Err(error) if is_reset(&error) => Err(End::Rst),
            Err(error) => panic!("no end within {PATIENCE:?}: {error}"),
        }
    }

    /// Shuts down our sending side: the other side sees a FIN.
    pub fn finish(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap_or_else(|error| panic!("can't shut down: {error}"));
    }

    /// Waits until the connection is cut by an RST, also after a FIN (which a read would go on to report).
    pub fn expect_cut(&self) {
        eventually("the connection is cut", || self.is_cut());
    }

    /// True if a reset has arrived; taking the error means that later reads don't see it.
    pub fn is_cut(&self) -> bool {
        self.heard_reset || self.socket.take_error().unwrap().is_some()
    }

    /// True if it was reset, or has ended both ways. Takes no error away.
    pub fn is_over(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&now)).unwrap();
        polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    pub fn try_finish(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }

    /// Closes with zero linger: the other side sees an RST. For unix sockets this is a plain close.
    pub fn reset(self) {
        self.socket.set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Ends whoever reads from it now, and lets the last close of its twins be a reset.
    pub fn condemn(&self) {
        let _ = self.socket.set_linger(Some(Duration::ZERO));
        let _ = self.socket.shutdown(Shutdown::Read);
    }

    pub fn set_recv_buffer(&self, size: usize) {
        self.socket.set_recv_buffer_size(size).unwrap();
    }
}

/// Moves `count` bytes of the pattern from one end to the other, both at once, and checks each of them.
pub fn transfer(from: &mut Conn, to: &mut Conn, offset: u64, count: u64) {
    let mut sender = from.twin();
    std::thread::scope(|scope| {
        scope.spawn(move || sender.send_pattern(offset, count));
        to.expect_pattern(offset, count);
    });
}
