//! What refusing a client costs beside serving one: `cargo bench --bench refuse`.
//!
//! One tidegate with a listener for each way to be refused, one worker on a core of its own; clients and the backend
//! have the other core. Beside it runs what the kernel takes in any case: a loop that only accepts and closes, in a
//! process of its own. Each way gets a window in each of several rounds, in turn. What is measured is the CPU time of
//! tidegate's process, user and kernel, for each connection that a client has seen end as it should. On loopback the
//! kernel handles a packet on the time of whoever sends it, so that a reset's whole way to the client counts here.

#![allow(clippy::unwrap_used, reason = "a benchmark that fails is done")]

#[path = "../tests/kit/mod.rs"]
mod kit;

use kit::{Addr, Backend, Config, Conn, Tidegate};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::{Domain, Socket, Type};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

const ROUNDS: usize = 5;
const WINDOW: Duration = Duration::from_millis(1_500);
const WARM_UP: Duration = Duration::from_millis(300);
const CLIENTS: u32 = 16;
/// What a served client sends and gets back.
const MESSAGE: [u8; 64] = [7; 64];
/// Tells this program that it is the loop that only accepts and closes.
const FLOOR: &str = "TIDEGATE_BENCH_FLOOR";

/// A listener: its name, what it is for, the lines that make it so, and how its clients end.
struct Way {
    name: &'static str,
    title: &'static str,
    lines: &'static str,
    end: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Served,
    Reset,
    Finished,
}

const WAYS: [Way; 7] = [
    Way { name: "web", title: "served: connect, 64 bytes there and back, close", lines: "", end: Outcome::Served },
    Way {
        name: "all",
        title: "served, with every kind of limit asked and none reached",
        lines: "max_connections = 100000\nmax_connections_per_client = 10000\naccept_rate = \"1000000/s\"\n\
                accept_rate_per_client = \"1000000/s\"\nallow = [\"127.0.0.0/8\"]\ndeny = [\"10.0.0.0/8\"]",
        end: Outcome::Served,
    },
    Way {
        name: "reset",
        title: "refused by max_connections, overload = \"reset\"",
        lines: "max_connections = 1",
        end: Outcome::Reset,
    },
    Way {
        name: "close",
        title: "refused by max_connections, overload = \"close\"",
        lines: "max_connections = 1\noverload = \"close\"",
        end: Outcome::Finished,
    },
    Way {
        name: "rate",
        title: "refused by accept_rate",
        lines: "accept_rate = \"1/h\"\nburst = 1",
        end: Outcome::Reset,
    },
    Way {
        name: "client",
        title: "refused by accept_rate_per_client",
        // To it, all clients of this machine are one.
        lines: "accept_rate_per_client = \"1/h\"\nburst_per_client = 1\nclient_prefix_ipv4 = 8",
        end: Outcome::Reset,
    },
    Way {
        name: "deny",
        title: "refused by a list of networks",
        lines: "deny = [\"127.0.0.0/8\"]",
        end: Outcome::Reset,
    },
];

fn main() {
    if env::var_os(FLOOR).is_some() {
        return accept_and_close();
    }
    let cores = allowed_cores();
    let split = cores.len() > 1;
    pin(&cores[cores.len() - 1..]);
    let backend = pinned_backend(&cores, split);
    let listeners: Vec<String> = WAYS[1..]
        .iter()
        .map(|Way { name, lines, .. }| format!("[listeners.{name}]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n{lines}\n"))
        .collect();
    let config = Config::over([&backend]).only_runtime("workers = 1\nmax_connections = 5000").more(&listeners.concat());
    let tidegate = Tidegate::start(config);
    // It ends with its input, which is this program's to close.
    let mut floor = Command::new(env::current_exe().unwrap());
    let mut floor = floor.env(FLOOR, "").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(floor.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let floor_address = Addr::Tcp(line.trim().parse().unwrap());
    if split {
        pin(&cores[..cores.len() - 1]);
    }
    let address = |way: &Way| if way.name == "web" { tidegate.addr() } else { tidegate.addr_of(way.name, 0) };
    // What uses the limits up.
    let mut held: Vec<Conn> = WAYS[2..4].iter().map(|way| hold(&address(way))).collect();
    for way in &WAYS[4..6] {
        drive(&address(way), Outcome::Served, 1, Duration::ZERO);
    }

    let mut costs = vec![Vec::new(); WAYS.len()];
    let mut floor_costs = Vec::new();
    for _ in 0..ROUNDS {
        // The kit's backend gives up who says nothing for long.
        for conn in &mut held {
            conn.send("x");
            conn.expect("x");
        }
        for (way, costs) in WAYS.iter().zip(&mut costs) {
            costs.push(measure(&address(way), way.end, tidegate.pid));
        }
        floor_costs.push(measure(&floor_address, Outcome::Reset, floor.id()));
    }
    drop(floor.stdin.take());
    floor.wait().unwrap();
    let place = if split { "on a core of its own" } else { "on the only core" };
    println!("{ROUNDS} windows of {WINDOW:?} each, {CLIENTS} clients, one worker {place}; medians:\n");
    println!("{:<62}{:>12}{:>12}{:>12}", "", "CPU µs/conn", "of serving", "conn/s");
    let served = median(costs[0].iter().map(|(cost, _)| *cost));
    let rows = WAYS.iter().map(|way| way.title).zip(&costs);
    for (title, costs) in rows.chain([("a bare loop of accept4 and close with a reset", &floor_costs)]) {
        let cost = median(costs.iter().map(|(cost, _)| *cost));
        let rate = median(costs.iter().map(|(_, rate)| *rate));
        println!("{title:<62}{cost:>12.2}{:>10.1} %{rate:>12.0}", 100.0 * cost / served);
    }
}

/// One window: the CPU time of a process for each connection, in µs, and connections a second.
fn measure(address: &Addr, end: Outcome, pid: u32) -> (f64, f64) {
    drive(address, end, CLIENTS, WARM_UP);
    let before = cpu(pid);
    let count = drive(address, end, CLIENTS, WINDOW);
    let used = cpu(pid).saturating_sub(before);
    (used.as_secs_f64() * 1e6 / count as f64, count as f64 / WINDOW.as_secs_f64())
}

/// What refusing takes at least: all who wait are accepted and reset, then it waits for others.
fn accept_and_close() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    // Those that are accepted inherit it.
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.listen(4_096).unwrap();
    println!("{}", socket.local_addr().unwrap().as_socket().unwrap());
    thread::spawn(|| {
        io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
        std::process::exit(0);
    });
    loop {
        match accept_with(&socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(client) => drop(client),
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&socket, PollFlags::IN)], None).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A client that stays.
fn hold(address: &Addr) -> Conn {
    let mut conn = Conn::to(address);
    conn.send("x");
    conn.expect("x");
    conn
}

/// Connects again and again for `span`, and once at least, from so many addresses; how many ended as they should.
fn drive(address: &Addr, end: Outcome, clients: u32, span: Duration) -> u64 {
    let to = address.tcp();
    std::thread::scope(|scope| {
        let client = |number: u32| {
            move || {
                let (begun, mut count) = (Instant::now(), 0);
                while count == 0 || begun.elapsed() < span {
                    // One of many addresses, since each has so many ports only.
                    let source = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + 256 * number + count as u32 % 8);
                    once(source, to, end);
                    count += 1;
                }
                count
            }
        };
        let threads: Vec<_> = (0..clients).map(|number| scope.spawn(client(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

/// One connection, which must end as expected.
fn once(source: Ipv4Addr, to: SocketAddr, end: Outcome) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(IpAddr::V4(source), 0).into()).unwrap();
    let refused = match socket.connect(&to.into()) {
        Ok(()) => false,
        // Reset as soon as it was established.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
        Err(error) => panic!("{error}"),
    };
    let mut stream = TcpStream::from(socket);
    let mut buffer = [0; MESSAGE.len()];
    let found = match end {
        Outcome::Served => {
            stream.write_all(&MESSAGE).unwrap();
            stream.read_exact(&mut buffer).unwrap();
            Outcome::Served
        }
        Outcome::Reset | Outcome::Finished if refused => Outcome::Reset,
        Outcome::Reset | Outcome::Finished => match stream.read(&mut buffer) {
            Ok(0) => Outcome::Finished,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Outcome::Reset,
            other => panic!("{other:?}"),
        },
    };
    assert_eq!(found, end, "from {source} to {to}: refused while connecting: {refused}");
}

/// The CPU time of all threads of a process, to the nanosecond.
fn cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanos = tasks.map(|task| {
        let text = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(nanos.sum())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn allowed_cores() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

/// This thread, and the threads and processes that it starts from now on.
fn pin(cores: &[usize]) {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core);
    }
    sched_setaffinity(None, &set).unwrap();
}

/// The backend with its threads on the clients' cores.
fn pinned_backend(cores: &[usize], split: bool) -> Backend {
    if split {
        pin(&cores[..cores.len() - 1]);
    }
    let backend = Backend::echo();
    pin(&cores[cores.len() - 1..]);
    backend
}
