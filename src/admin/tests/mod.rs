//! The endpoint over real sockets: what is answered, what is refused, and what a bad client costs.
//!
//! Here is what all tests share; `answers` and `changes` are those about content, `hostile` those about bad clients,
//! `clock` those in which time matters.

mod answers;
mod changes;
mod clock;
mod hostile;

use super::*;
use crate::admin::command::{Asker, Done, Reply};
use crate::admission::Gate;
use crate::clock::Now;
use crate::config::Socket;
use crate::config::{Adjustments, Config};
use crate::listing::{self, Cursor, Page, Query};
use crate::name::{BindAddr, ClientAddr, ListenerName, SessionId};
use crate::net::listen::{AtClose, Neighbours, Options, SocketAccess, bind_all};
use crate::pool::{Backend, Health};
use crate::table::{self, Resolution};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::time::UNIX_EPOCH;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, yield_now};
use tokio::time;

const CONFIG: &str = r#"
[listeners.web]
bind = ["127.0.0.1:8080", "[::1]:8080"]
pool = "app"
[pools.app]
backends = ["10.0.0.1:80", { address = "10.0.0.2:80", weight = 3, name = "<img src=x onerror='alert(1)'>" }]
[pools.spare]
backends = ["10.0.1.1:80"]
"#;

fn options() -> Options {
    let (at_close, access) = (AtClose::Finish, SocketAccess::OWNER);
    Options { backlog: 128, at_close, socket: Socket::default(), access }
}

const WORKERS: usize = 2;

/// A running endpoint, and what it shows.
struct Served {
    address: BindAddr,
    table: Arc<ArcSwap<RoutingTable>>,
    adjustments: Arc<ArcSwap<Adjustments>>,
    metrics: Arc<Metrics>,
    phase: watch::Sender<Phase>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    /// What the daemon would get.
    calls: mpsc::Receiver<command::Call>,
}

/// Of a process that has had one config.
fn config_status() -> ConfigStatus {
    let loaded = Moment::of_unix_ms(1_000);
    let (hash, by) = ("00000000deadbeef".to_owned(), "start".to_owned());
    let first = Generation { generation: 1, hash: hash.clone(), loaded, by: by.clone(), rollback_to: None };
    let refused = RefusedConfig {
        at: Moment::of_unix_ms(2_000),
        by: "SIGHUP".to_owned(),
        text: "lb.toml:3:1: no <key>".to_owned(),
    };
    ConfigStatus {
        hash,
        loaded,
        by,
        file: Some("/etc/tidegate/lb.toml".to_owned()),
        needs_upgrade: vec!["runtime.workers"],
        generations: vec![first],
        last_refused: Some(refused),
    }
}

impl Served {
    fn tcp() -> Self {
        Self::at("127.0.0.1:0".parse().map(Endpoint::Tcp).unwrap(), CONFIG)
    }

    fn unix(path: &Path, config: &str) -> Self {
        Self::at(Endpoint::Unix(path.into()), config)
    }

    fn at(endpoint: Endpoint, config: &str) -> Self {
        let socket = bind_all(&BindAddr(endpoint), &options(), 1, Neighbours::None).unwrap().pop().unwrap();
        socket.listen(128).unwrap();
        Self::on(socket, config)
    }

    fn on(socket: ListenSocket, config: &str) -> Self {
        let address = socket.address.clone();
        let metrics = Arc::new(Metrics::new().unwrap());
        let table = Arc::new(ArcSwap::from_pointee(table(config, &metrics)));
        let (adjustments, phase) = (Arc::default(), watch::Sender::new(Phase::Ready));
        let (commands, calls) = command::channel();
        let own = Own::now();
        let access = Access::load(&Config::parse("lb.toml", config.as_bytes()).unwrap().config.admin, &own).unwrap();
        let state = State {
            commands,
            sessions: Arc::new(Known),
            who: Arc::new(Who::new(access)),
            places: Places::new(MAX_CONNECTIONS),
            table: Arc::clone(&table),
            adjustments: Arc::clone(&adjustments),
            metrics: Arc::clone(&metrics),
            phase: phase.subscribe(),
            workers: WORKERS,
            started: UNIX_EPOCH,
            config: Arc::new(ArcSwap::from_pointee(config_status())),
            refresh: Box::new(|| {}),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = Arc::new(Listener::new(socket).unwrap());
        let stopped = async move { _ = stopped.await };
        let serving = drain::spawn(serve(listener, Arc::new(state), stopped));
        Self { address, table, adjustments, metrics, phase, stop, serving, calls }
    }

    async fn connect(&self) -> Stream {
        match &self.address.0 {
            Endpoint::Tcp(address) => Box::new(TcpStream::connect(address).await.unwrap()),
            Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await.unwrap()),
        }
    }

    /// Sends something and returns all that comes until the endpoint ends the connection.
    async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        rest(&mut stream).await
    }

    async fn ask(&self, method: &str, path: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        Answer::parse(&self.exchange(&request).await)
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path).await
    }

    fn backend(&self, index: usize) -> Arc<Backend> {
        Arc::clone(&self.table.load().pools[0].view().backends[index])
    }

    fn all_up(&self) {
        for pool in &self.table.load().pools {
            pool.view().backends.iter().for_each(|backend| backend.set_health(Health::Up, 1_700_000_000_000));
            pool.review(1);
        }
    }
}

/// Sessions that nobody serves: two of them.
struct Known;

impl Sessions for Known {
    fn list(&self, query: Query) -> Soon<Page> {
        let bytes = listing::Bytes { to_backend: 5, to_client: 7 };
        let row = |count: u64| listing::Row {
            place: Cursor { rank: count, id: SessionId::new(1, count) },
            id: SessionId::new(1, count),
            client: ClientAddr::Unix,
            listener: ListenerName::new("web"),
            rule: None,
            pool: None,
            backend: None,
            backend_address: None,
            phase: "connect",
            age_ms: 3,
            idle_ms: 2,
            bytes,
        };
        let rows = [1, 2].map(row).into_iter().filter(|row| query.after.is_none_or(|after| row.place > after));
        let all = listing::Answer { rows: rows.collect(), up_to: None };
        Box::pin(std::future::ready(Page::merge(vec![all], Vec::new(), query.limit)))
    }

    fn close(&self, id: SessionId, by: Asker) -> Soon<Reply> {
        let summary = format!("{id} closed for {by}");
        Box::pin(std::future::ready(Ok(Done { summary, changed: true, details: Value::Null })))
    }
}

fn table(config: &str, metrics: &Arc<Metrics>) -> RoutingTable {
    let config = Config::parse("lb.toml", config.as_bytes()).unwrap().config;
    let listeners = config.listeners.iter().map(|listener| {
        let handles = metrics.listener(&listener.name, &["complete"]);
        let gate = Gate::open(&listener.name, 1, metrics);
        Arc::new(table::Listener::new(listener.clone(), handles, listener.bind.clone(), gate, None))
    });
    let listeners = listeners.collect();
    let now = Now { millis: 1, unix_ms: 1_600_000_000_000 };
    RoutingTable::build(&config, &Resolution::default(), &Adjustments::default(), listeners, metrics, None, now).table
}

/// What comes until the end; a reset ends it too.
async fn rest(stream: &mut Stream) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4_096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        all.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8(all).unwrap()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: String,
}

impl Answer {
    #[track_caller]
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header =
            |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
        Self { status, headers: lines.map(header).collect(), body: body.to_owned() }
    }
}

/// Its metrics are more than a socket takes at once.
fn large_config() -> String {
    let backends: Vec<_> = (0..1_000).map(|n| format!("\"10.0.{}.{}:80\"", n / 250, n % 250 + 1)).collect();
    let backends = backends.join(",");
    format!("[listeners.web]\nbind = \"127.0.0.1:1\"\npool = \"app\"\n[pools.app]\nbackends = [{backends}]")
}
