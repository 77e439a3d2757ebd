//! `tidegate demo`: the balancer over three backends of its own, for the newcomer with five minutes.
//!
//! Owns three small HTTP servers on loopback ports, the config that balances over them, and the script that lets one
//! die and come back now and then. The balancer itself is the real one, run by `daemon`. Next: `cli`.

use crate::config::{
    Access, Address, Admin, Balance, Config, Ejection, Format, Level, Listener, Log, Member, Pool, Protection, Runtime,
};
use crate::daemon::{self, Announce, ConfigSource, Failure};
use crate::drain::spawn;
use crate::name::{BindAddr, Endpoint, ListenerName, PoolName};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

const NAMES: [&str; 3] = ["amber", "birch", "coral"];
const BALANCER_PORT: u16 = 8_080;
const ADMIN_PORT: u16 = 9_900;
/// Ports that are tried after a busy one.
const PORT_TRIES: u16 = 100;
/// How long all three live, and how long one is dead.
const ALIVE: Duration = Duration::from_secs(12);
const DEAD: Duration = Duration::from_secs(8);
/// Connections that all demo backends together serve at once.
const MAX_SERVED: usize = 768;
/// How long a demo backend waits for a request, and the largest one it reads.
const REQUEST_LIMITS: (Duration, usize) = (Duration::from_secs(10), 8_192);

/// Runs the demo until it is told to stop.
pub fn run(announce: Announce) -> Result<(), Failure> {
    let system = |error: std::io::Error| Failure::System(format!("can't start the demo backends: {error}"));
    let mut listeners = Vec::new();
    for _ in NAMES {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        listeners.push(listener);
    }
    let addresses: Vec<SocketAddr> =
        listeners.iter().map(StdListener::local_addr).collect::<Result<_, _>>().map_err(system)?;
    let balancer = free_port(BALANCER_PORT, "the balancer")?;
    let admin = free_port(ADMIN_PORT, "the admin page")?;
    std::thread::Builder::new()
        .name("demo-backends".into())
        .spawn(move || serve_backends(listeners))
        .map_err(system)?;
    say(&introduction(balancer, admin));
    daemon::run(ConfigSource::Given(config(&addresses, balancer, admin)), announce)
}

fn introduction(balancer: u16, admin: u16) -> String {
    format!(
        "tidegate demo: a balancer over three backends, {}\n\n  \
         curl http://127.0.0.1:{balancer}/          which backend answers? ask again and again\n  \
         curl http://127.0.0.1:{admin}/status    what the balancer knows\n  \
         curl http://127.0.0.1:{admin}/metrics   the same for Prometheus\n  \
         http://127.0.0.1:{admin}/               a page for the browser\n\n\
         Every {} seconds one backend dies for {} seconds: watch the answers go on without it. Ctrl-C stops.\n",
        NAMES.join(", "),
        (ALIVE + DEAD).as_secs(),
        DEAD.as_secs(),
    )
}

/// The wanted port, or the next one that is free; a port that differs is said aloud.
fn free_port(wanted: u16, what: &str) -> Result<u16, Failure> {
    let free = |port: &u16| StdListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let last = wanted + PORT_TRIES;
    match (wanted..=last).find(free) {
        Some(port) => {
            if port != wanted {
                say(&format!("port {wanted} is busy: {what} is on port {port} instead\n"));
            }
            Ok(port)
        }
        None => {
            Err(Failure::System(format!("no port for {what}: {wanted} to {last} are all busy; stop what has them")))
        }
    }
}

fn config(backends: &[SocketAddr], balancer: u16, admin: u16) -> Config {
    let local = |port| BindAddr(Endpoint::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    let pool = PoolName::new("demo");
    let member = |(name, address): (&&str, &SocketAddr)| Member {
        name: Some((*name).to_owned()),
        ..Member::new(Address::Endpoint(Endpoint::Tcp(*address)), "demo".to_owned())
    };
    let members = NAMES.iter().zip(backends).map(member).collect();
    // One that has died is back in full before the next one dies.
    let ejection = Ejection { base_time: DEAD / 2, ..Ejection::default() };
    let protection = Protection { slow_start: ALIVE / 2, ..Protection::default() };
    Config {
        runtime: Runtime { drain_timeout: Duration::from_secs(5), ..Runtime::default() },
        admin: Admin { listen: vec![local(admin)], ..Admin::default() },
        log: Log { level: Level::Info, format: Format::Text, access: Access::Stderr },
        limits: Vec::new(),
        listeners: vec![Listener::new(ListenerName::new("demo"), vec![local(balancer)], pool.clone())],
        pools: vec![Pool { protection, ejection, ..Pool::new(pool, Balance::RoundRobin, members) }],
    }
}

fn serve_backends(listeners: Vec<StdListener>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return say(&format!("the demo backends can't run: {error}\n")),
    };
    runtime.block_on(async {
        let backends = listeners.into_iter().zip(NAMES).enumerate();
        let tasks: Vec<_> = backends
            .map(|(index, (listener, name))| {
                spawn(async move {
                    if let Err(error) = live_and_die(listener, name, index as u32).await {
                        say(&format!("the demo backend {name} has ended: {error}\n"));
                    }
                })
            })
            .collect();
        for task in tasks {
            // A panic has been reported; the others go on.
            let _ = task.await;
        }
    });
}

/// Serves, and at its own turn closes its socket for a while, so that connects are refused.
async fn live_and_die(listener: StdListener, name: &'static str, turn: u32) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    let mut listener = TcpListener::from_std(listener)?;
    let mut life = ALIVE + (ALIVE + DEAD) * turn;
    loop {
        // The time is up: that is the script, not an error.
        let _ = timeout(life, serve(&listener, name)).await;
        drop(listener);
        sleep(DEAD).await;
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        listener = socket.listen(128)?;
        life = ALIVE + (ALIVE + DEAD) * (NAMES.len() as u32 - 1);
    }
}

async fn serve(listener: &TcpListener, name: &'static str) {
    static PLACES: Semaphore = Semaphore::const_new(MAX_SERVED);
    loop {
        let Ok(place) = PLACES.acquire().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => drop(spawn(async move {
                // The client may do what it likes; its answer is lost, no more.
                let _ = timeout(REQUEST_LIMITS.0, answer(stream, name)).await;
                drop(place);
            })),
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Reads one request head and answers with the backend's name.
async fn answer(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > REQUEST_LIMITS.1 || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let body = format!("{name}\n");
    let response = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

fn say(text: &str) {
    // The demo goes on if nobody reads.
    let _ = writeln!(std::io::stderr(), "{text}");
}
