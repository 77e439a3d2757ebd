//! The configuration as the rest of the crate sees it: complete, validated, every default filled in.
//!
//! Owns the plain data of `lb.toml` and the defaults' values. Reading and judging the file is `file` and
//! `validate`; what a mistake looks like is `error`. A `Config` that exists is a good one: there is no second
//! check anywhere. Host names are still names here; the daemon resolves them before it builds a table.

mod address;
mod adjustments;
mod admin;
mod binds;
mod demand;
pub mod diff;
mod error;
mod file;
mod findings;
mod hash;
mod health;
pub mod plan;
mod pool;
mod pools;
mod privileges;
mod proxy;
mod routes;
mod section;
mod socket;
mod source;
mod syntax;
mod target;
mod unit;
mod validate;
pub mod values;
mod words;

pub use adjustments::{
    AddedBackend, Adjustment, Adjustments, AdminState, HealthOverride, PoolAdjustments, unknown_name, wrong_weight,
};
pub use admin::Admin;
pub use demand::{
    Admission, Bandwidth, Cidr, ClientFin, ClientPrefix, Hold, Limits, Order, Overflow, Overload, Queue, Rate,
    SharedLimit, Shed,
};
pub use error::{Mistake, Mistakes, Place, Position, Severity, Style};
pub use file::TABLES;
pub use hash::{Hash, HashKey};
pub use health::{Agent, Ca, Exchange, Expect, Health, Http, Initial, Probe, StatusSet, Tls};
pub use pool::{Address, Balance, Connect, Ejection, Group, Member, OnDown, Percent, Pool, Protection};
pub use privileges::{Capability, Landlock, Privileges};
pub use proxy::{AcceptProxy, SendProxy, Tlvs};
pub use routes::{
    Conditions, DEFAULT_RULE, Destination, NamePattern, OTHER_RULES, Prefix, Preread, PrereadFailed, Protocol, Route,
    TIMEOUT_RULE, WeightedPool,
};
pub use socket::{Origin, Owner, Socket};

use crate::name::{BindAddr, ListenerName, PoolName};
use findings::Findings;
use source::Source;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A whole configuration. Limits, listeners and pools stand in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub runtime: Runtime,
    pub admin: Admin,
    pub log: Log,
    /// Those that listeners share.
    pub limits: Vec<SharedLimit>,
    pub listeners: Vec<Listener>,
    pub pools: Vec<Pool>,
}

/// A good configuration, and what in it is hardly meant.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<Mistake>,
    /// The file, as it was read.
    pub text: Arc<str>,
}

impl Config {
    /// Reads and judges a file. Fails with everything that is wrong with it, or with the one reason for which it
    /// can't be read.
    pub fn load(path: &Path) -> Result<Loaded, Mistakes> {
        judge(&Source::load(path)?)
    }

    /// As [`load`](Self::load), for the content of a file that is called `source_name` in messages.
    pub fn parse(source_name: &str, bytes: &[u8]) -> Result<Loaded, Mistakes> {
        judge(&Source::from_bytes(source_name, bytes)?)
    }
}

impl Admin {
    /// What a file says of the admin endpoint, as far as it can be understood, whatever else is wrong with it: for
    /// those who look for a process that runs by an earlier content of it. Fails if the file can't be read.
    pub fn of_file(path: &Path) -> Result<Self, Mistakes> {
        let source = Source::load(path)?;
        let findings = Findings::new(&source);
        Ok(syntax::guess(&findings, |table| file::read(&findings, table).admin.judged(&findings).0))
    }
}

fn judge(source: &Source) -> Result<Loaded, Mistakes> {
    let findings = Findings::new(source);
    let config = syntax::parse(&findings, |table| validate::config(&findings, file::read(&findings, table)));
    let text = source.text.as_str().into();
    Ok(Loaded { config, warnings: findings.finish()?, text })
}

/// `[runtime]`: limits of the whole process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Worker threads; `None` is one for each core that the process may run on.
    pub workers: Option<usize>,
    /// Client connections served at once, over which new ones are refused with an RST. `None` is as many as the
    /// file descriptor limit carries; beyond it, clients wait in the accept queue.
    pub max_connections: Option<usize>,
    /// How long sessions may go on after a stop has begun.
    pub drain_timeout: Duration,
    /// From so long before the end of that, what is left is reset evenly.
    pub drain_spread: Duration,
    /// How long a stopping process reports "not ready" while it still accepts.
    pub lame_duck: Duration,
    pub relay: RelayMode,
    /// The share of the memory that the process's cgroup may have above which new connections are refused; `None` never
    /// refuses them for that.
    pub memory_high: Option<Percent>,
    /// How long a process that has handed over to another one may go on with its sessions; `None` is until they end.
    pub retired_timeout: Option<Duration>,
    pub state_file: StateFile,
    /// How often the config file is looked at, and read again if its content is another one; `None` never.
    pub watch: Option<Duration>,
    /// What it may still do while it serves.
    pub privileges: Privileges,
}

/// Where what operators change at run time is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StateFile {
    /// In the directory that the service manager gives for such things; nowhere if it gives none.
    #[default]
    Given,
    /// Nowhere.
    Off,
    At(PathBuf),
}

/// How bytes get from one socket of a session to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RelayMode {
    /// By copying, until a direction has moved much in a row; from then on by splice(2).
    #[default]
    Auto,
    /// Always by copying: no pipe is ever made.
    Copy,
    /// By splice(2) as soon as a read was big, as far as there are pipes.
    Splice,
}

impl RelayMode {
    /// The words of the file.
    pub(super) const WORDS: [(&str, Self); 3] = [("auto", Self::Auto), ("copy", Self::Copy), ("splice", Self::Splice)];
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub level: Level,
    pub format: Format,
    pub access: Access,
}

/// How much the log says, from little to much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    pub(super) const WORDS: [(&str, Self); 5] = [
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];

    /// The word in the config, commands and the log.
    #[must_use]
    pub fn word(self) -> &'static str {
        Self::WORDS.into_iter().find_map(|(word, level)| (level == self).then_some(word)).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

impl Format {
    pub(super) const WORDS: [(&str, Self); 2] = [("text", Self::Text), ("json", Self::Json)];
}

/// Where the line of each session goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    Off,
    Stdout,
    Stderr,
    /// Appended to; opened again when the path names another file (log rotation).
    File(PathBuf),
}

/// `[listeners.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    pub name: ListenerName,
    /// At least one address.
    pub bind: Vec<BindAddr>,
    /// For what no route takes; `None` only if some route takes everybody.
    pub pool: Option<PoolName>,
    /// Connections that the kernel completes before we accept them, for each socket.
    pub backlog: u32,
    /// A session that moves no byte for this long is reset.
    pub idle_timeout: Duration,
    /// A session of which one direction has ended is reset after this long without a byte; zero ends it as soon
    /// as that first FIN has been delivered.
    pub half_close_timeout: Duration,
    /// The longest time without a sign of life before the kernel probes a peer, on both sides, and the shortest is half
    /// of it; a dead peer is given up after twice this. `None` (`keepalive = "off"`) never probes.
    pub keepalive: Option<Duration>,
    pub admission: Admission,
    pub bandwidth: Bandwidth,
    pub socket: Socket,
    /// `None` takes no PROXY headers: they would be data like any other.
    pub accept_proxy: Option<AcceptProxy>,
    pub preread: Preread,
    /// The first one that a session matches decides.
    pub routes: Vec<Route>,
}

impl Listener {
    /// A listener with every other key as it is by default.
    #[must_use]
    pub fn new(name: ListenerName, bind: Vec<BindAddr>, pool: PoolName) -> Self {
        Self {
            name,
            bind,
            pool: Some(pool),
            backlog: limits::DEFAULT_BACKLOG,
            idle_timeout: limits::DEFAULT_IDLE_TIMEOUT,
            half_close_timeout: limits::DEFAULT_HALF_CLOSE_TIMEOUT,
            keepalive: Some(limits::DEFAULT_KEEPALIVE),
            admission: Admission::default(),
            bandwidth: Bandwidth::default(),
            socket: Socket::default(),
            accept_proxy: None,
            preread: Preread::default(),
            routes: Vec::new(),
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            workers: None,
            max_connections: None,
            drain_timeout: Duration::from_secs(60),
            drain_spread: Duration::ZERO,
            lame_duck: Duration::ZERO,
            relay: RelayMode::default(),
            memory_high: Some(Percent::whole(80)),
            retired_timeout: None,
            state_file: StateFile::default(),
            watch: None,
            privileges: Privileges::default(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Level::Info, format: Format::Text, access: Access::Off }
    }
}

/// The bounds within which the file's numbers must lie.
pub mod limits {
    use std::ops::{Bound, RangeInclusive};
    use std::time::Duration;

    pub const MAX_WORKERS: usize = 1_024;
    pub const MAX_CONNECTIONS: usize = 100_000_000;
    /// Also the size of the inline list of backends that a session has tried.
    pub const MAX_ATTEMPTS: u8 = 16;
    /// As in HAProxy, so that weights can be carried over.
    pub const MAX_WEIGHT: u16 = 256;
    pub const MAX_TIER: u8 = 15;
    /// Connects a second to one backend; and the count of any [`Rate`](super::Rate).
    pub const MAX_RATE: u32 = 1_000_000;
    /// Clients that a limit remembers at once.
    pub const MIN_CLIENTS: usize = 16;
    pub const MAX_CLIENTS: usize = 1 << 24;
    /// What a session may be held to, in bytes a second.
    pub const BYTE_RATE: RangeInclusive<u64> = 1 << 10..=1 << 40;
    /// What a session that is held to a rate may move at once, in bytes.
    pub const RATE_BURST: RangeInclusive<u64> = 4 << 10..=1 << 30;
    pub const SHED_WINDOW: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(60);
    /// What may be held of all clients of a pool that has no backend, and of one, in bytes.
    pub const MAX_HELD: u64 = 1 << 40;
    pub const MAX_HELD_EACH: u64 = 64 << 20;
    /// What may be kept of each client that waits for its first answer byte.
    pub const MAX_REPLAY: u64 = 1 << 20;
    /// What the configured TLVs of a PROXY header may have together, in bytes: of the 4 KiB of a header, what
    /// addresses, checksum and the TLVs of a session surely leave.
    pub const MAX_TLVS: usize = 3 << 10;
    pub const MAX_BACKENDS: usize = 65_535;
    /// Places in the table of a pool that goes by a hash: both ends are primes.
    pub const TABLE_SIZE: RangeInclusive<u32> = 251..=5_000_011;
    /// How many times its share of all connections a backend may have. More than 1, or there would be no room for the
    /// last one.
    pub const MAX_LOAD: (Bound<f64>, Bound<f64>) = (Bound::Excluded(1.0), Bound::Included(10.0));
    pub const MAX_BACKLOG: u32 = 1 << 20;
    /// Of rise and fall.
    pub const MAX_STREAK: u16 = 1_000;
    /// The most that a probe reads of an answer, in bytes.
    pub const MAX_PROBE_BYTES: u64 = 256 << 10;
    /// The most that a probe sends, or looks for, in bytes.
    pub const MAX_PROBE_SEND: usize = 4 << 10;
    /// The longest name of a listener, pool or backend, in bytes.
    pub const MAX_NAME: usize = 128;
    /// The deepest nesting of failover groups.
    pub const MAX_GROUP_DEPTH: usize = 16;
    /// The largest file that is read, in bytes.
    pub const MAX_FILE: u64 = 16 << 20;
    pub const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3_600);
    /// Between two looks at the config file.
    pub const WATCH: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3_600);
    /// Of durations that must not be zero.
    pub const MIN_DURATION: Duration = Duration::from_millis(1);
    /// The kernel counts keepalive in whole seconds, and up to 32,767 of them.
    pub const MIN_KEEPALIVE: Duration = Duration::from_secs(1);
    pub const MAX_KEEPALIVE: Duration = Duration::from_secs(32_767);
    /// Of a client, before its route is known.
    pub const PREREAD_BYTES: RangeInclusive<u64> = 64..=1 << 20;
    /// Of one listener.
    pub const MAX_ROUTES: usize = 1_000_000;
    /// Of what a route compares with the first bytes.
    pub const MAX_PREFIX: usize = 1 << 10;
    /// The longest path that a unix socket's address holds, in bytes: 108 with the final NUL.
    pub const MAX_UNIX_PATH: usize = 107;
    /// The addresses of the admin endpoint.
    pub const MAX_ADMIN_BINDS: usize = 8;
    /// The addresses of one listener, each port of a range counted.
    pub const MAX_BINDS: usize = 1_000;
    /// The addresses that the connects of one pool may come from.
    pub const MAX_SOURCES: usize = 64;
    /// The longest name of an interface, in bytes: `IFNAMSIZ` with the final NUL is 16.
    pub const MAX_INTERFACE: usize = 15;
    /// Counted in whole seconds by the kernel, which asks for no longer than some minutes.
    pub const DEFER_ACCEPT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);

    pub const DEFAULT_ADMIN: &str = "127.0.0.1:9900";
    pub const DEFAULT_TABLE_SIZE: u32 = 65_537;
    pub const DEFAULT_BACKLOG: u32 = 4_096;
    pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(600);
    pub const DEFAULT_HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
    pub const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(60);
}
