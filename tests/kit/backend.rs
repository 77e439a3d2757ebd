//! Scripted backends: one that a test accepts from by hand, one that serves by itself, and ones that refuse or stay
//! silent.

use super::conn::{Addr, Conn, uninterrupted};
use super::wait::PATIENCE;
use socket2::{SockAddr, Socket};
use std::fmt;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Every test's own corner of the loopback net: port 0 of 127.0.0.1.
pub fn anywhere() -> Addr {
    Addr::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn bind(address: &Addr) -> (Socket, Addr) {
    let (socket, target) = address.socket();
    if let Addr::Tcp(_) = address {
        socket.set_reuse_address(true).unwrap();
    }
    socket.bind(&target).unwrap_or_else(|error| panic!("can't bind {address}: {error}"));
    let bound = match address {
        Addr::Tcp(_) => Addr::Tcp(socket.local_addr().unwrap().as_socket().unwrap()),
        Addr::Unix(path) => Addr::Unix(path.clone()),
    };
    if let Addr::Tcp(asked) = address
        && asked.port() == 0
    {
        keep(&bound);
    }
    (socket, bound)
}

/// Keeps a port for as long as the tests run, also while nobody listens there: another test that was given it would be
/// visited by the probes of the one whose backend has died. Who listens there again is not in the way.
fn keep(bound: &Addr) {
    let (socket, target) = bound.socket();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&target).unwrap_or_else(|error| panic!("can't keep {bound}: {error}"));
    std::mem::forget(socket);
}

/// A backend whose connections the test takes one by one, to play the backend's part itself.
#[derive(Debug)]
pub struct Listening {
    socket: Socket,
    pub addr: Addr,
}

impl Listening {
    pub fn new() -> Self {
        Self::at(&anywhere())
    }

    pub fn at(address: &Addr) -> Self {
        let (socket, addr) = bind(address);
        Self::with(socket, addr)
    }

    /// On a TCP socket of the caller's making, bound to this address.
    pub fn on(socket: Socket, address: &str) -> Self {
        socket.bind(&Addr::parse(address).tcp().into()).unwrap();
        let addr = Addr::Tcp(socket.local_addr().unwrap().as_socket().unwrap());
        Self::with(socket, addr)
    }

    fn with(socket: Socket, addr: Addr) -> Self {
        socket.listen(1_024).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, addr }
    }

    pub fn unix(directory: &Path) -> Self {
        Self::at(&Addr::Unix(directory.join("backend.sock")))
    }

    /// The next connection.
    ///
    /// # Panics
    /// When none comes.
    pub fn accept(&self) -> Conn {
        let (socket, _) =
            uninterrupted(|| self.socket.accept()).unwrap_or_else(|error| panic!("no connection came: {error}"));
        Conn::new(socket)
    }

    /// A connection that has come already, if there is one.
    pub fn accept_now(&self) -> Option<Conn> {
        self.socket.set_nonblocking(true).unwrap();
        let accepted = uninterrupted(|| self.socket.accept());
        self.socket.set_nonblocking(false).unwrap();
        match accepted {
            Ok((socket, _)) => Some(Conn::new(socket)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("can't accept: {error}"),
        }
    }

    /// What connections accepted from now on may hold back themselves.
    pub fn limit_send_buffers(&self, size: usize) {
        self.socket.set_send_buffer_size(size).unwrap();
    }

    /// What connections accepted from now on inherit: so small that the window closes after a few KiB.
    pub fn small_windows(self) -> Self {
        self.socket.set_recv_buffer_size(4_096).unwrap();
        self
    }
}

impl Default for Listening {
    fn default() -> Self {
        Self::new()
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr.fmt(f)
    }
}

/// A backend that serves each connection with the same script on a thread of its own, until it's dropped.
pub struct Backend {
    pub addr: Addr,
    socket: Arc<Socket>,
    stopping: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    acceptor: Option<JoinHandle<()>>,
}

impl Backend {
    pub fn new(script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        Self::at(&anywhere(), script)
    }

    pub fn at(address: &Addr, script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        let (socket, addr) = bind(address);
        socket.listen(4_096).unwrap();
        let socket = Arc::new(socket);
        let stopping = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(AtomicUsize::new(0));
        let script = Arc::new(script);
        let acceptor = std::thread::spawn({
            let (socket, stopping, accepted) = (socket.clone(), stopping.clone(), accepted.clone());
            move || {
                while let Ok((conn, _)) = uninterrupted(|| socket.accept()) {
                    if stopping.load(Ordering::SeqCst) {
                        // As the kernel does with those that nobody has accepted.
                        Conn::new(conn).reset();
                        break;
                    }
                    accepted.fetch_add(1, Ordering::SeqCst);
                    let script = script.clone();
                    std::thread::spawn(move || script(Conn::new(conn)));
                }
            }
        });
        Self { addr, socket, stopping, accepted, acceptor: Some(acceptor) }
    }

    /// Sends back what it gets, and its FIN after the other's.
    pub fn echo() -> Self {
        Self::new(echo)
    }

    /// Says its name on a line, then FIN; takes what the client sends meanwhile.
    pub fn named(name: &str) -> Self {
        Self::new(naming(name))
    }

    /// Sends `count` bytes of the pattern, then FIN, then waits for the client's end.
    pub fn pouring(count: u64) -> Self {
        Self::new(move |mut conn| {
            if conn.try_send_pattern(0, count).is_ok() {
                conn.finish();
                conn.rest();
            }
        })
    }

    /// Takes everything and answers nothing; FIN after the client's.
    pub fn sink() -> Self {
        Self::new(|mut conn| {
            let mut buffer = vec![0; 256 << 10];
            while conn.read(&mut buffer).is_ok_and(|count| count > 0) {}
        })
    }

    /// How many connections it has accepted so far, probes included.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Stops listening: connects are refused from now on. Connections that stand go on.
    pub fn die(mut self) -> Addr {
        self.stop();
        self.addr.clone()
    }

    fn stop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr.fmt(f)
    }
}

/// The script of [`Backend::echo`].
pub fn echo(mut conn: Conn) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match conn.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if conn.try_send(&buffer[..count]).is_err() {
                    return;
                }
            }
        }
    }
}

/// The script of [`Backend::named`].
pub fn naming(name: &str) -> impl Fn(Conn) + Send + Sync + 'static {
    let name = name.to_owned();
    move |mut conn| {
        // A probe is gone by now; that's no news.
        if conn.try_send(format!("{name}\n")).is_ok() && conn.try_finish().is_ok() {
            let mut buffer = [0; 4_096];
            while conn.read(&mut buffer).is_ok_and(|count| count > 0) {}
        }
    }
}

/// An address at which every connect is refused, for as long as this lives: bound, but not listening.
pub struct Refusing {
    _socket: Socket,
    pub addr: Addr,
}

impl Refusing {
    pub fn new() -> Self {
        let (socket, addr) = bind(&anywhere());
        Self { _socket: socket, addr }
    }
}

impl Default for Refusing {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Refusing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr.fmt(f)
    }
}

/// An address at which SYNs vanish: it listens, its accept queue is full, and nobody accepts.
pub struct Silent {
    listening: Listening,
    fillers: Vec<Socket>,
    pub addr: Addr,
}

impl Silent {
    pub fn new() -> Self {
        Self::on(Ipv4Addr::LOCALHOST)
    }

    /// On every address of the host, for many backends that are all silent.
    pub fn on(ip: Ipv4Addr) -> Self {
        Self::of(Listening::at(&Addr::Tcp(SocketAddr::from((ip, 0)))))
    }

    /// Accepts no more.
    pub fn of(listening: Listening) -> Self {
        let addr = listening.addr.clone();
        listening.socket.listen(0).unwrap();
        let target = SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, addr.tcp().port())));
        let mut fillers = Vec::new();
        loop {
            let (filler, _) = addr.socket();
            let _ = filler.connect_timeout(&target, Duration::from_millis(300));
            // On a slow machine the time may be over, and the handshake too.
            let connected = filler.peer_addr().is_ok();
            fillers.push(filler);
            if !connected {
                break;
            }
            assert!(fillers.len() < 16, "the accept queue of {addr} never fills");
        }
        // The last one was still trying: its handshake must not take the first free place.
        fillers.pop();
        Self { listening, fillers, addr }
    }

    /// Begins to accept: takes the fillers out of the queue, so that the next SYN (the kernel sends one each second at
    /// first) is answered.
    pub fn wake(self) -> Listening {
        for filler in self.fillers {
            drop(self.listening.accept());
            drop(filler);
        }
        self.listening
    }
}

impl Default for Silent {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr.fmt(f)
    }
}
