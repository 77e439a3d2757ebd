//! A backend as a process of its own, so that SIGKILL and SIGSTOP are the real ones: this binary, executed again.
//!
//! Owns both halves: [`serve`] is what the child runs, [`Server`] is the handle of the one who torments it. The child
//! obeys lines on its standard input and ends with it. A server's port stays bound by its handle, so that nobody else
//! gets it while the child is dead.

use crate::protocol::{HEALTH, HEALTHY, answer};
use crate::script::Fault;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use socket2::{Domain, Socket, Type};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Set for a child: its name, a blank, and the address on which it listens.
pub const ROLE: &str = "TIDEGATE_CHAOS_BACKEND";

const BACKLOG: i32 = 1_024;

/// How the child treats those who come.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Manner {
    #[default]
    Normal,
    /// Answers, the health question too, only after this.
    Slow(Duration),
    /// Resets a new connection after it has read its first request. It says that it is healthy.
    Reset,
    /// Ends a new connection at once.
    Close,
    /// Takes no connection out of its queue, which is short now: the next SYNs vanish.
    Deaf,
}

#[derive(Default)]
struct Shared {
    manner: Mutex<Manner>,
    changed: Condvar,
}

impl Shared {
    fn manner(&self) -> Manner {
        *self.manner.lock().unwrap()
    }

    fn wait_until_it_hears(&self) {
        let deaf = self.changed.wait_while(self.manner.lock().unwrap(), |manner| *manner == Manner::Deaf);
        drop(deaf.unwrap());
    }
}

/// The child's life. It says `ready` once it listens.
pub fn serve(role: &str) {
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let (name, address) = role.split_once(' ').unwrap();
    let socket = reserve(address.parse().unwrap());
    socket.listen(BACKLOG).unwrap();
    println!("ready");
    let (socket, shared, name) = (Arc::new(socket), Arc::new(Shared::default()), Arc::<str>::from(name));
    std::thread::spawn({
        let (socket, shared) = (socket.clone(), shared.clone());
        move || accept(&socket, &shared, &name)
    });
    for line in std::io::stdin().lines() {
        let manner = manner(&line.unwrap());
        *shared.manner.lock().unwrap() = manner;
        socket.listen(if manner == Manner::Deaf { 0 } else { BACKLOG }).unwrap();
        shared.changed.notify_all();
    }
}

/// The manner of a line on the child's standard input.
fn manner(line: &str) -> Manner {
    match line.split_once(' ') {
        Some(("slow", ms)) => Manner::Slow(Duration::from_millis(ms.parse().unwrap())),
        _ => match line {
            "normal" => Manner::Normal,
            "reset" => Manner::Reset,
            "close" => Manner::Close,
            "deaf" => Manner::Deaf,
            _ => panic!("no manner: {line}"),
        },
    }
}

fn accept(socket: &Socket, shared: &Arc<Shared>, name: &Arc<str>) {
    loop {
        shared.wait_until_it_hears();
        let Ok((conn, _)) = socket.accept() else { continue };
        // It may have gone deaf during the call.
        shared.wait_until_it_hears();
        let (shared, name) = (shared.clone(), name.clone());
        let talk = move || {
            // A connection that breaks is the other side's affair.
            let _ = talk(&conn.into(), &shared, &name);
        };
        std::thread::Builder::new().stack_size(128 << 10).spawn(talk).unwrap();
    }
}

fn talk(conn: &TcpStream, shared: &Shared, name: &str) -> std::io::Result<()> {
    if shared.manner() == Manner::Close {
        return Ok(());
    }
    conn.set_nodelay(true)?;
    let mut lines = BufReader::new(conn);
    let (mut line, mut first) = (String::new(), true);
    while lines.read_line(&mut line)? > 0 {
        let manner = shared.manner();
        let text = line.trim_end();
        let answer = if text == HEALTH { format!("{HEALTHY}{name}\n") } else { answer(text, name).unwrap_or_default() };
        if manner == Manner::Reset && first && text != HEALTH {
            return socket2::SockRef::from(conn).set_linger(Some(Duration::ZERO));
        }
        if let Manner::Slow(delay) = manner {
            crate::kit::wait::pace(delay);
        }
        let mut conn = conn;
        conn.write_all(answer.as_bytes())?;
        line.clear();
        first = false;
    }
    Ok(())
}

/// A socket that holds this address without listening. Another one with the same option may still bind it and listen.
fn reserve(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap_or_else(|error| panic!("can't bind {address}: {error}"));
    socket
}

/// The handle of a backend, alive or not. Its child must be made by a thread that lives as long as the test: it dies
/// with it.
pub struct Server {
    pub name: String,
    pub address: SocketAddr,
    _reserved: Socket,
    child: Child,
    orders: ChildStdin,
}

impl Server {
    pub fn start(name: &str) -> Self {
        let reserved = reserve(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = reserved.local_addr().unwrap().as_socket().unwrap();
        let (child, orders) = spawn(name, address);
        Self { name: name.to_owned(), address, _reserved: reserved, child, orders }
    }

    /// Does it; what was done before is undone first, as far as it stands in the way.
    pub fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
            }
            Fault::Stop => self.signal(Signal::STOP),
            Fault::Slow(delay) => self.order(&format!("slow {}", delay.as_millis())),
            Fault::Reset => self.order("reset"),
            Fault::Close => self.order("close"),
            Fault::Deaf => self.order("deaf"),
        }
    }

    /// Good again, whatever it was.
    pub fn recover(&mut self, from: Fault) {
        match from {
            Fault::Kill => (self.child, self.orders) = spawn(&self.name, self.address),
            Fault::Stop => self.signal(Signal::CONT),
            Fault::Slow(_) | Fault::Reset | Fault::Close | Fault::Deaf => self.order("normal"),
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    fn order(&mut self, line: &str) {
        writeln!(self.orders, "{line}").unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child that listens already.
fn spawn(name: &str, address: SocketAddr) -> (Child, ChildStdin) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ROLE, format!("{name} {address}")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (orders, says) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut line = String::new();
    let read = BufReader::new(says).read_line(&mut line);
    assert!(read.is_ok() && line == "ready\n", "backend {name} at {address} isn't ready: {line:?}");
    (child, orders)
}

/// Asks a backend directly, without the balancer: one request on a connection that stands.
pub fn ask(conn: &TcpStream, line: &str) -> std::io::Result<String> {
    let mut writer = conn;
    writer.write_all(line.as_bytes())?;
    let mut seen = String::new();
    BufReader::new(conn).read_line(&mut seen)?;
    if seen.ends_with('\n') { Ok(seen) } else { Err(ErrorKind::UnexpectedEof.into()) }
}
