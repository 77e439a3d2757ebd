//! `lb.toml`, field for field: which tables and keys there are, and of what type and range each value is.
//!
//! Owns the lists of keys, but for those of `health`; there is no other place that knows them. What is read here isn't
//! judged beyond the single value: defaults, references and everything that takes two keys to be wrong is `validate`'s.

use super::admin::{ADMIN, GivenAdmin};
use super::demand::given as demand;
use super::findings::{At, Complaint, Findings, Given, Placed};
use super::hash;
use super::health::given;
use super::routes::given as routes;
use super::section::{self, Section};
use super::{
    Access, Format, Level, OnDown, Percent, RelayMode, StateFile, limits, privileges, proxy, socket, unit, words,
};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// Each table and its keys. `NAME` is what the user calls it, `[]` an entry of a list.
pub const TABLES: [(&str, &[&str]); 24] = [
    ("", ROOT),
    ("runtime", RUNTIME),
    ("admin", ADMIN),
    ("log", LOG),
    ("limits.NAME", demand::LIMIT),
    ("listeners.NAME", LISTENER),
    ("listeners.NAME.socket", socket::SOCKET),
    ("listeners.NAME.accept_proxy_protocol", proxy::ACCEPT),
    ("listeners.NAME.routes[]", routes::ROUTE),
    ("listeners.NAME.routes[].pools[]", routes::WEIGHTED),
    ("pools.NAME", POOL),
    ("pools.NAME.backends[]", BACKEND),
    ("pools.NAME.connect", CONNECT),
    ("pools.NAME.proxy_protocol", proxy::SEND),
    ("pools.NAME.ejection", EJECTION),
    ("pools.NAME.queue", demand::QUEUE),
    ("pools.NAME.shed", demand::SHED),
    ("pools.NAME.hold", demand::HOLD),
    ("pools.NAME.hash", hash::KEYS),
    ("pools.NAME.health", given::HEALTH),
    ("pools.NAME.health.http", given::HTTP),
    ("pools.NAME.health.tls", given::TLS),
    ("pools.NAME.health.exchange", given::EXCHANGE),
    ("pools.NAME.health.agent", given::AGENT),
];
const ROOT: &[&str] = &["runtime", "admin", "log", "limits", "listeners", "pools"];
const RUNTIME: &[&str] = &[
    "workers",
    "max_connections",
    "drain_timeout",
    "drain_spread",
    "lame_duck",
    "relay",
    "memory_high",
    "retired_timeout",
    "state_file",
    "watch",
    "user",
    "group",
    "keep_capabilities",
    "landlock",
];
const LOG: &[&str] = &["level", "format", "access"];
/// Its limits are in the middle.
const LISTENER: &[&str] = &joined::<{ FIRST.len() + demand::LIMIT.len() + demand::LISTENER.len() + LATER.len() }>([
    FIRST,
    demand::LIMIT,
    demand::LISTENER,
    LATER,
]);
const FIRST: &[&str] = &["bind", "pool", "backlog", "idle_timeout", "half_close_timeout", "keepalive"];
const LATER: &[&str] = &[
    "socket",
    "accept_proxy_protocol",
    "preread_timeout",
    "preread_bytes",
    "preread_timeout_pool",
    "preread_failed",
    "routes",
];
const POOL: &[&str] = &[
    "balance",
    "backends",
    "target",
    "panic_threshold",
    "min_available",
    "tier_hold",
    "slow_start",
    "replay",
    "on_down",
    "max_lifetime",
    "rebalance",
    "backend_max_connections",
    "connect",
    "ejection",
    "queue",
    "shed",
    "hold",
    "health",
    "hash",
    "send_proxy_protocol",
    "proxy_protocol",
];
const BACKEND: &[&str] = &["address", "weight", "name", "tier", "backup", "max_connections"];
const CONNECT: &[&str] = &[
    "timeout",
    "attempts",
    "budget",
    "hedge_after",
    "hedge_share",
    "max_rate",
    "source_address",
    "interface",
    "mark",
    "transparent",
    "fast_open",
    "mptcp",
];
const EJECTION: &[&str] = &["consecutive_failures", "base_time", "max_time", "max_ejected", "slow_connect"];

/// The keys of several lists, one list after the other; there must be `N`.
const fn joined<const N: usize>(lists: [&[&'static str]; 4]) -> [&'static str; N] {
    let mut all = [""; N];
    let (mut list, mut key, mut next) = (0, 0, 0);
    while list < lists.len() {
        if key < lists[list].len() {
            all[next] = lists[list][key];
            (key, next) = (key + 1, next + 1);
        } else {
            (list, key) = (list + 1, 0);
        }
    }
    assert!(next == N, "a key is missing");
    all
}

pub(super) struct File {
    pub runtime: Runtime,
    pub admin: GivenAdmin,
    pub log: Log,
    pub limits: Given<Vec<(Placed<String>, demand::Limits)>>,
    pub listeners: Given<Vec<Listener>>,
    pub pools: Given<Vec<Pool>>,
}

pub(super) struct Runtime {
    pub workers: Given<usize>,
    pub max_connections: Given<usize>,
    pub drain_timeout: Given<Duration>,
    pub drain_spread: Given<Duration>,
    pub lame_duck: Given<Duration>,
    pub relay: Given<RelayMode>,
    pub memory_high: Given<Option<Percent>>,
    pub retired_timeout: Given<Option<Duration>>,
    pub state_file: Given<StateFile>,
    pub watch: Given<Option<Duration>>,
    pub privileges: privileges::GivenPrivileges,
}

pub(super) struct Log {
    pub level: Given<Level>,
    pub format: Given<Format>,
    pub access: Given<Access>,
}

pub(super) struct Listener {
    pub name: Placed<String>,
    /// The table itself.
    pub at: At,
    pub bind: Given<Vec<Placed<String>>>,
    pub pool: Given<String>,
    pub backlog: Given<u32>,
    pub idle_timeout: Given<Duration>,
    pub half_close_timeout: Given<Duration>,
    pub keepalive: Given<Option<Duration>>,
    pub admission: demand::Admission,
    pub bandwidth: demand::Bandwidth,
    pub socket: socket::GivenSocket,
    pub accept_proxy: Option<proxy::GivenAccept>,
    pub routing: routes::Routing,
}

pub(super) struct Pool {
    pub name: Placed<String>,
    /// The table itself.
    pub at: At,
    pub balance: Given<String>,
    pub backends: Given<Vec<Backend>>,
    pub target: Given<String>,
    pub protection: Protection,
    pub connect: Connect,
    /// Until it is judged.
    pub origin: Option<socket::GivenOrigin>,
    pub ejection: Ejection,
    pub health: given::Health,
    pub backend_max_connections: Given<Option<u32>>,
    pub queue: Option<demand::Queue>,
    pub shed: demand::Shed,
    pub hold: Option<demand::Hold>,
    pub hash: hash::Given,
    pub send_proxy: proxy::GivenSend,
}

/// The keys of the pool itself that protect its users.
pub(super) struct Protection {
    pub panic_threshold: Given<Percent>,
    pub min_available: Given<u16>,
    pub tier_hold: Given<Duration>,
    pub slow_start: Given<Duration>,
    pub replay: Given<Option<u64>>,
    pub on_down: Given<OnDown>,
    pub max_lifetime: Given<Option<Duration>>,
    pub rebalance: Given<Option<Percent>>,
}

pub(super) struct Backend {
    pub at: At,
    pub address: Given<String>,
    pub weight: Given<u16>,
    pub name: Given<String>,
    pub tier: Given<u8>,
    pub backup: Given<bool>,
    pub max_connections: Given<u32>,
}

pub(super) struct Connect {
    pub timeout: Given<Duration>,
    pub attempts: Given<u8>,
    pub budget: Given<Duration>,
    pub hedge_after: Given<Option<Duration>>,
    pub hedge_share: Given<Percent>,
    pub max_rate: Given<Option<u32>>,
}

pub(super) struct Ejection {
    pub consecutive_failures: Given<Option<u16>>,
    pub base_time: Given<Duration>,
    pub max_time: Given<Duration>,
    pub max_ejected: Given<Percent>,
    pub slow_connect: Given<Option<Duration>>,
}

/// Reads every key, reporting what is wrong with each by itself.
pub(super) fn read(findings: &Findings, table: &DeTable) -> File {
    let root = Section::root(findings, table, ROOT);
    File {
        runtime: Runtime::read(&root.section("runtime", RUNTIME)),
        admin: GivenAdmin::read(findings, &root.section("admin", ADMIN)),
        log: Log::read(&root.section("log", LOG)),
        limits: root
            .named("limits", demand::LIMIT)
            .map(|all| all.into_iter().map(|(name, section)| (name, demand::Limits::read(&section))).collect()),
        listeners: root
            .named("listeners", LISTENER)
            .map(|all| all.into_iter().map(|one| Listener::read(findings, one)).collect()),
        pools: root.named("pools", POOL).map(|all| all.into_iter().map(|pool| Pool::read(findings, pool)).collect()),
    }
}

impl Runtime {
    fn read(section: &Section) -> Self {
        Self {
            workers: section.integer("workers", &(1..=limits::MAX_WORKERS)),
            max_connections: section.integer("max_connections", &(1..=limits::MAX_CONNECTIONS)),
            drain_timeout: section.duration("drain_timeout", &(Duration::ZERO..=limits::MAX_DURATION)),
            drain_spread: section.duration("drain_spread", &(Duration::ZERO..=limits::MAX_DURATION)),
            lame_duck: section.duration("lame_duck", &(Duration::ZERO..=limits::MAX_DURATION)),
            relay: section.choice("relay", &RelayMode::WORDS),
            memory_high: section.percent_or_off("memory_high"),
            retired_timeout: section.duration_or_off("retired_timeout", &(Duration::ZERO..=limits::MAX_DURATION)),
            state_file: section.parsed("state_file", state_file),
            watch: section.duration_or_off("watch", &limits::WATCH),
            privileges: privileges::GivenPrivileges::read(section),
        }
    }
}

impl Log {
    fn read(section: &Section) -> Self {
        Self {
            level: section.choice("level", &Level::WORDS),
            format: section.choice("format", &Format::WORDS),
            access: section.parsed("access", access),
        }
    }
}

fn state_file(text: &str) -> Result<StateFile, Complaint> {
    match text {
        "off" => Ok(StateFile::Off),
        path if path.starts_with('/') && !path.ends_with('/') && !path.contains(words::is_unsafe) => {
            Ok(StateFile::At(path.into()))
        }
        _ => {
            let hint = "use \"off\" or the absolute path of a file, such as \"/var/lib/tidegate/state.json\"";
            Err(Complaint::new(format!("{} is no place for state", words::quoted(text)), hint))
        }
    }
}

fn access(text: &str) -> Result<Access, Complaint> {
    match text {
        "off" => Ok(Access::Off),
        "stdout" => Ok(Access::Stdout),
        "stderr" => Ok(Access::Stderr),
        path if path.starts_with('/') && !path.ends_with('/') && !path.contains(words::is_unsafe) => {
            Ok(Access::File(path.into()))
        }
        _ => {
            let hint = "use \"off\", \"stdout\", \"stderr\" or the absolute path of a file";
            Err(Complaint::new(format!("{} is no place for a log", words::quoted(text)), hint))
        }
    }
}

impl Listener {
    fn read(findings: &Findings, (name, section): (Placed<String>, Section)) -> Self {
        let above_zero = limits::MIN_DURATION..=limits::MAX_DURATION;
        Self {
            bind: section.texts("bind"),
            pool: section.text("pool"),
            backlog: section.integer("backlog", &(1..=limits::MAX_BACKLOG)),
            idle_timeout: section.duration("idle_timeout", &above_zero),
            half_close_timeout: section.duration("half_close_timeout", &(Duration::ZERO..=limits::MAX_DURATION)),
            keepalive: section.duration_or_off("keepalive", &(limits::MIN_KEEPALIVE..=limits::MAX_KEEPALIVE)),
            admission: demand::Admission::read(&section),
            bandwidth: demand::Bandwidth::read(&section),
            socket: socket::GivenSocket::read(&section),
            accept_proxy: proxy::GivenAccept::read(&section),
            routing: routes::Routing::read(findings, &section),
            name,
            at: section.at,
        }
    }
}

impl Pool {
    fn read(findings: &Findings, (name, section): (Placed<String>, Section)) -> Self {
        let connect = section.section("connect", CONNECT);
        Self {
            balance: section.text("balance"),
            backends: section
                .list("backends")
                .map(|list| list.into_iter().map(|entry| Backend::read(findings, &entry)).collect()),
            target: section.text("target"),
            protection: Protection::read(&section),
            connect: Connect::read(&connect),
            origin: Some(socket::GivenOrigin::read(&connect)),
            ejection: Ejection::read(&section.section("ejection", EJECTION)),
            health: given::Health::read(&section.section("health", given::HEALTH)),
            backend_max_connections: section.integer_or_off("backend_max_connections", &(1..=u32::MAX)),
            queue: demand::Queue::read(&section),
            shed: demand::Shed::read(&section),
            hold: demand::Hold::read(&section),
            hash: hash::Given::read(&section),
            send_proxy: proxy::GivenSend::read(&section),
            name,
            at: section.at,
        }
    }
}

impl Protection {
    fn read(section: &Section) -> Self {
        let above_zero = limits::MIN_DURATION..=limits::MAX_DURATION;
        Self {
            panic_threshold: section.percent("panic_threshold"),
            min_available: section.integer("min_available", &(1..=u16::MAX)),
            tier_hold: section.duration("tier_hold", &(Duration::ZERO..=limits::MAX_DURATION)),
            slow_start: section.duration("slow_start", &(Duration::ZERO..=limits::MAX_DURATION)),
            replay: section.parsed_or_off("replay", |text| unit::bytes(text, &(1..=limits::MAX_REPLAY))),
            on_down: section.choice("on_down", &OnDown::WORDS),
            max_lifetime: section.duration_or_off("max_lifetime", &above_zero),
            rebalance: section.percent_or_off("rebalance"),
        }
    }
}

impl Backend {
    /// An address, or a table with one.
    fn read(findings: &Findings, entry: &Placed<&section::Value>) -> Self {
        let Placed { at, value } = entry;
        let bare = |address| Self {
            at: at.clone(),
            address,
            weight: Given::Absent,
            name: Given::Absent,
            tier: Given::Absent,
            backup: Given::Absent,
            max_connections: Given::Absent,
        };
        match value.get_ref() {
            DeValue::String(text) => bare(Given::Good(Placed { at: at.clone(), value: text.to_string() })),
            DeValue::Table(_) => match Section::of_value(findings, value, at.key.clone(), BACKEND) {
                Some(section) => Self {
                    at: at.clone(),
                    address: section.text("address"),
                    weight: section.integer("weight", &(1..=limits::MAX_WEIGHT)),
                    name: section.text("name"),
                    tier: section.integer("tier", &(0..=limits::MAX_TIER)),
                    backup: section.boolean("backup"),
                    max_connections: section.integer("max_connections", &(1..=u32::MAX)),
                },
                None => bare(Given::Bad),
            },
            _ => {
                let mut complaint = section::wrong_type(value, "a backend");
                complaint.hint = "write \"10.0.0.1:80\" or { address = \"10.0.0.1:80\", weight = 2 }".into();
                findings.complaint(at, complaint);
                bare(Given::Bad)
            }
        }
    }
}

impl Connect {
    fn read(section: &Section) -> Self {
        let above_zero = limits::MIN_DURATION..=limits::MAX_DURATION;
        Self {
            timeout: section.duration("timeout", &above_zero),
            attempts: section.integer("attempts", &(1..=limits::MAX_ATTEMPTS)),
            budget: section.duration("budget", &above_zero),
            hedge_after: section.duration_or_off("hedge_after", &above_zero),
            hedge_share: section.percent("hedge_share"),
            max_rate: section.integer_or_off("max_rate", &(1..=limits::MAX_RATE)),
        }
    }
}

impl Ejection {
    fn read(section: &Section) -> Self {
        let above_zero = limits::MIN_DURATION..=limits::MAX_DURATION;
        Self {
            consecutive_failures: section.integer_or_off("consecutive_failures", &(1..=limits::MAX_STREAK)),
            base_time: section.duration("base_time", &above_zero),
            max_time: section.duration("max_time", &above_zero),
            max_ejected: section.percent("max_ejected"),
            slow_connect: section.duration_or_off("slow_connect", &above_zero),
        }
    }
}
