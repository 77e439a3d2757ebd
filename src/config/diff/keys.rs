//! Every key that may differ: how it is compared, written, and taken over from another config.
//!
//! Owns the lists, one for each kind of things. A test holds them against the keys of the file, so that a new key can't
//! be forgotten here. Next: `show` for how values are written.

#![expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "all that shows a value has one signature")]

use super::show::{self, Show, Text};
use crate::config::{
    AcceptProxy, Agent, Balance, ClientFin, Config, Exchange, Format, Hash, HashKey, Hold, Http, Initial, Landlock,
    Level, Limits, Listener, Member, OnDown, Order, Overflow, Overload, Pool, PrereadFailed, Probe, Queue, RelayMode,
    Route, SendProxy, SharedLimit, Shed, Tls, Tlvs,
};

/// A key, or a table that is compared as a whole.
#[derive(Debug)]
pub struct Key<T> {
    pub differs: fn(&T, &T) -> bool,
    /// Its value; of a table, first what it is, then its keys.
    pub texts: fn(&T) -> Vec<Text>,
    pub take: fn(&mut T, &T),
}

/// `"name" = field.field`, written by [`Show`]; `as function` writes it otherwise, `in function` as several keys, which
/// have names of their own.
macro_rules! keys {
    ($type:ty: $($name:literal = $($field:ident).+ $(as $show:expr)? $(; in $texts:expr)?),+ $(,)?) => {
        &[$(Key::<$type> {
            differs: |a, b| a.$($field).+ != b.$($field).+,
            texts: keys!(@texts $type, $name, ($($field).+) $(as $show)? $(in $texts)?),
            take: |it, other| it.$($field).+.clone_from(&other.$($field).+),
        }),+]
    };
    (@texts $type:ty, $name:literal, ($($field:ident).+)) => {
        |it: &$type| vec![Text::new($name, Show::show(&it.$($field).+))]
    };
    (@texts $type:ty, $name:literal, ($($field:ident).+) as $show:expr) => {
        |it: &$type| vec![Text::new($name, $show(&it.$($field).+))]
    };
    (@texts $type:ty, $name:literal, ($($field:ident).+) in $texts:expr) => { $texts };
}

pub const PROCESS: &[Key<Config>] = keys![Config:
    "runtime.workers" = runtime.workers as show::or_default,
    "runtime.max_connections" = runtime.max_connections as show::or_default,
    "runtime.drain_timeout" = runtime.drain_timeout,
    "runtime.drain_spread" = runtime.drain_spread,
    "runtime.lame_duck" = runtime.lame_duck,
    "runtime.relay" = runtime.relay as |relay| show::word(relay, &RelayMode::WORDS),
    "runtime.memory_high" = runtime.memory_high,
    "runtime.state_file" = runtime.state_file,
    "runtime.retired_timeout" = runtime.retired_timeout,
    "runtime.watch" = runtime.watch,
    "runtime.user" = runtime.privileges.user,
    "runtime.group" = runtime.privileges.group as show::or_default,
    "runtime.keep_capabilities" = runtime.privileges.keep_capabilities,
    "runtime.landlock" = runtime.privileges.landlock as |landlock| show::word(landlock, &Landlock::WORDS),
    "admin.listen" = admin.listen as show::addresses,
    "admin.token_file" = admin.token_file,
    "admin.token_credential" = admin.token_credential,
    "admin.allow_uids" = admin.allow_uids as show::or_default,
    "admin.allowed_hosts" = admin.allowed_hosts,
    "log.level" = log.level as |word| show::word(word, &Level::WORDS),
    "log.format" = log.format as |word| show::word(word, &Format::WORDS),
    "log.access" = log.access,
];

/// Of a listener, and of what listeners share.
const LIMITS: &[Key<Limits>] = keys![Limits:
    "max_connections" = max_connections,
    "max_connections_per_client" = max_connections_per_client,
    "accept_rate" = accept_rate,
    "burst" = burst as show::or_default,
    "accept_rate_per_client" = accept_rate_per_client,
    "burst_per_client" = burst_per_client as show::or_default,
    "client_prefix_ipv4" = client_prefix.ipv4,
    "client_prefix_ipv6" = client_prefix.ipv6,
    "max_clients" = max_clients,
];

pub const LIMIT: &[Key<SharedLimit>] = keys![SharedLimit: "its own" = limits; in |it| texts(LIMITS, &it.limits)];

pub const LISTENER: &[Key<Listener>] = keys![Listener:
    "bind" = bind,
    "pool" = pool as |pool: &Option<_>| pool.as_ref().map_or_else(|| "none".to_owned(), Show::show),
    "backlog" = backlog,
    "idle_timeout" = idle_timeout,
    "half_close_timeout" = half_close_timeout,
    "keepalive" = keepalive,
    "its own" = admission.limits; in |it| texts(LIMITS, &it.admission.limits),
    "limits" = admission.shared,
    "reserved_connections" = admission.reserved_connections,
    "allow" = admission.allow,
    "deny" = admission.deny,
    "overload" = admission.overload as overload,
    "dry_run" = admission.dry_run,
    "rate_to_client" = bandwidth.to_client as show::byte_rate,
    "rate_to_backend" = bandwidth.to_backend as show::byte_rate,
    "rate_burst" = bandwidth.burst as show::size,
    "socket.interface" = socket.interface as show::or_any,
    "socket.v6only" = socket.v6only,
    "socket.fast_open" = socket.fast_open,
    "socket.defer_accept" = socket.defer_accept as show::seconds,
    "socket.transparent" = socket.transparent,
    "socket.mptcp" = socket.mptcp,
    "socket.mode" = socket.mode as show::mode,
    "socket.owner" = socket.owner as show::or_default,
    "socket.group" = socket.group as show::or_default,
    "accept_proxy_protocol" = accept_proxy; in |it| {
        table("accept_proxy_protocol", it.accept_proxy.as_ref(), AcceptProxy::show, ACCEPT)
    },
    "preread_timeout" = preread.timeout,
    "preread_bytes" = preread.bytes as show_size,
    "preread_timeout_pool" = preread.timeout_pool as show::or_default,
    "preread_failed" = preread.failed as |word| show::word(word, &PrereadFailed::WORDS),
];

const ACCEPT: &[Key<AcceptProxy>] = keys![AcceptProxy:
    "accept_proxy_protocol.from" = from as |from: &std::sync::Arc<[_]>| from.as_ref().show(),
    "accept_proxy_protocol.timeout" = timeout,
];

pub const ROUTE: &[Key<Route>] = keys![Route:
    "source" = when.source,
    "local_port" = when.local_port,
    "local_address" = when.local_address,
    "sni" = when.sni as show::or_any,
    "alpn" = when.alpn,
    "alpn_all" = when.alpn_all as show::or_any,
    "protocol" = when.protocol,
    "http_host" = when.http_host,
    "http_path" = when.http_path,
    "http_method" = when.http_method,
    "prefix" = when.prefix,
    "share" = when.share as show::or_any,
    "to" = to,
];

pub const POOL: &[Key<Pool>] = keys![Pool:
    "balance" = balance; in |it| {
        let mut texts = vec![Text::new("balance", it.balance.as_str().to_owned())];
        if let Balance::Failover(group) = &it.balance {
            texts.push(Text::new("target", show::target(it, group)));
        }
        texts
    },
    "panic_threshold" = protection.panic_threshold,
    "min_available" = protection.min_available,
    "tier_hold" = protection.tier_hold,
    "slow_start" = protection.slow_start,
    "replay" = protection.replay as show::size_or_off,
    "on_down" = protection.on_down as |word| show::word(word, &OnDown::WORDS),
    "max_lifetime" = protection.max_lifetime,
    "rebalance" = protection.rebalance,
    "backend_max_connections" = backend_max_connections,
    "connect.timeout" = connect.timeout,
    "connect.attempts" = connect.attempts,
    "connect.budget" = connect.budget,
    "connect.hedge_after" = connect.hedge_after,
    "connect.hedge_share" = connect.hedge_share,
    "connect.max_rate" = connect.max_rate,
    "connect.source_address" = origin.source_address,
    "connect.interface" = origin.interface as show::or_any,
    "connect.mark" = origin.mark,
    "connect.transparent" = origin.transparent,
    "connect.fast_open" = origin.fast_open,
    "connect.mptcp" = origin.mptcp,
    "ejection.consecutive_failures" = ejection.consecutive_failures,
    "ejection.base_time" = ejection.base_time,
    "ejection.max_time" = ejection.max_time,
    "ejection.max_ejected" = ejection.max_ejected,
    "ejection.slow_connect" = ejection.slow_connect,
    "queue" = queue; in |it| table("queue", it.queue.as_ref(), |_| "on".to_owned(), QUEUE),
    "shed" = shed; in |it| table("shed", it.shed.as_ref(), |_| "on".to_owned(), SHED),
    "hold" = hold; in |it| table("hold", it.hold.as_ref(), |_| "on".to_owned(), HOLD),
    "hash" = hash; in |it| table("hash.key", it.hash.as_ref(), |hash| hash.key.word().to_owned(), HASH),
    "send_proxy_protocol" = send_proxy; in |it| {
        let word = |send: &SendProxy| send.word().to_owned();
        let mut texts = table("send_proxy_protocol", it.send_proxy.as_ref(), word, &[]);
        if let Some(SendProxy::V2(tlvs)) = &it.send_proxy {
            texts.extend(self::texts(TLVS, tlvs));
        }
        texts
    },
    "health.interval" = health.interval,
    "health.fast_interval" = health.fast_interval,
    "health.down_interval" = health.down_interval,
    "health.jitter" = health.jitter,
    "health.timeout" = health.timeout,
    "health.rise" = health.rise,
    "health.fall" = health.fall,
    "health.initial" = health.initial as |word| show::word(word, &Initial::WORDS),
    "health.port" = health.port as show::or_default,
    "health.address" = health.address as show::or_default,
    "health.probe" = health.probe; in |it| probe(&it.health.probe),
    "health.agent" = health.agent; in |it| {
        table("health.agent", it.health.agent.as_deref(), |_| "on".to_owned(), AGENT)
    },
];

pub const BACKEND: &[Key<Member>] = keys![Member:
    "weight" = weight,
    "tier" = tier,
    "max_connections" = max_connections as show::or_default,
];

const QUEUE: &[Key<Queue>] = keys![Queue:
    "queue.max_wait" = max_wait,
    "queue.max_waiting" = max_waiting,
    "queue.order" = order as |word| show::word(word, &Order::WORDS),
    "queue.client_fin" = client_fin as |word| show::word(word, &ClientFin::WORDS),
];

const SHED: &[Key<Shed>] = keys![Shed:
    "shed.connect_time" = connect_time,
    "shed.first_byte" = first_byte,
    "shed.queue_time" = queue_time,
    "shed.window" = window,
    "shed.dry_run" = dry_run,
];

const HOLD: &[Key<Hold>] = keys![Hold:
    "hold.max_connections" = max_connections,
    "hold.max_bytes" = max_bytes as show::size,
    "hold.max_bytes_each" = max_bytes_each as show::size,
    "hold.max_wait" = max_wait,
    "hold.overflow" = overflow as |word| show::word(word, &Overflow::WORDS),
    "hold.release_rate" = release_rate,
];

const HASH: &[Key<Hash>] = keys![Hash:
    "hash.header" = key as header,
    "hash.prefix_ipv4" = prefix.ipv4,
    "hash.prefix_ipv6" = prefix.ipv6,
    "hash.table_size" = table_size,
    "hash.max_load" = max_load,
];

const TLVS: &[Key<Tlvs>] = keys![Tlvs:
    "proxy_protocol.unique_id" = unique_id,
    "proxy_protocol.authority" = authority,
    "proxy_protocol.alpn" = alpn,
    "proxy_protocol.pass" = pass,
    "proxy_protocol.ssl" = ssl,
    "proxy_protocol.crc32c" = crc32c,
    // What a backend trusts us by may be among them.
    "proxy_protocol.tlvs" = own; in |it| {
        let parts = it.own.iter().flat_map(|(number, value)| [std::slice::from_ref(number), value]);
        vec![Text::secret("proxy_protocol.tlvs", parts)]
    },
];

const HTTP: &[Key<Http>] = keys![Http:
    "health.http.method" = method,
    "health.http.path" = path,
    "health.http.host" = host as |host: &Option<hyper::header::HeaderValue>| {
        host.as_ref().map_or_else(|| "default".to_owned(), |host| show::bytes(host.as_bytes()))
    },
    // With what the probe says who it is.
    "health.http.headers" = headers; in |it| {
        let parts = it.headers.iter().flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]);
        vec![Text::secret("health.http.headers", parts)]
    },
    "health.http.status" = status as |status: &crate::config::StatusSet| format!("[{status}]"),
    "health.http.body" = body as show::or_any,
    "health.http.max_bytes" = max_bytes as show_size,
];

const TLS: &[Key<Tls>] = keys![Tls:
    "health.tls.name" = name as |name: &Option<rustls::pki_types::ServerName<'static>>| {
        name.as_ref().map_or_else(|| "any".to_owned(), |name| name.to_str().show())
    },
    "health.tls.ca" = ca as show::ca,
    "health.tls.expiry_warning" = expiry_warning,
];

const EXCHANGE: &[Key<Exchange>] = keys![Exchange:
    // A password may be in it.
    "health.exchange.send" = send; in |it| vec![Text::secret("health.exchange.send", [it.send.as_slice()])],
    "health.exchange.expect" = expect as show::expect,
    "health.exchange.max_bytes" = max_bytes as show_size,
];

const AGENT: &[Key<Agent>] = keys![Agent:
    "health.agent.port" = port,
    "health.agent.interval" = interval,
    "health.agent.send" = send; in |it| vec![Text::secret("health.agent.send", [it.send.as_slice()])],
];

/// A table that needn't be there: under `name` what it is, and its keys.
fn table<T>(name: &'static str, value: Option<&T>, what: impl Fn(&T) -> String, keys: &[Key<T>]) -> Vec<Text> {
    let Some(value) = value else { return vec![Text::new(name, "off".to_owned())] };
    std::iter::once(Text::new(name, what(value))).chain(texts(keys, value)).collect()
}

fn texts<T>(keys: &[Key<T>], value: &T) -> Vec<Text> {
    keys.iter().flat_map(|key| (key.texts)(value)).collect()
}

fn probe(probe: &Probe) -> Vec<Text> {
    let with = |word: &str, keys: Vec<Text>| {
        std::iter::once(Text::new("health.probe", word.to_owned())).chain(keys).collect::<Vec<_>>()
    };
    match probe {
        Probe::Tcp => with("tcp", Vec::new()),
        Probe::None => with("none", Vec::new()),
        Probe::Http(http) => with("http", texts(HTTP, http)),
        Probe::Tls(tls) => with("tls", texts(TLS, tls)),
        Probe::Exchange(exchange) => with("exchange", texts(EXCHANGE, exchange)),
    }
}

fn show_size(bytes: &usize) -> String {
    show::size(bytes)
}

fn overload(overload: &Option<Overload>) -> String {
    overload.as_ref().map_or_else(|| "default".to_owned(), |overload| show::word(overload, &Overload::WORDS))
}

/// Which header, where it is one.
fn header(key: &HashKey) -> String {
    match key {
        HashKey::HttpHeader(name) => name.show(),
        _ => "none".to_owned(),
    }
}
