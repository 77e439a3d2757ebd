//! From the file as it is written to the configuration as it is meant: defaults, references, contradictions.
//!
//! Owns the listeners and what concerns the whole process; `pools` and `binds` are its other halves. Whatever can't
//! be used is reported and left out, so that the rest is judged too; nobody sees the result if anything was reported.

use super::file::{self, File};
use super::findings::{At, Findings, Given, Placed};
use super::{
    Config, HashKey, Listener, Log, Pool, Runtime, SharedLimit, address, binds, demand, limits, pools, routes, unit,
    words,
};
use crate::name::{BindAddr, ListenerName, PoolName};
use std::collections::HashSet;
use std::time::Duration;

/// Builds the configuration, reporting what is wrong with it.
pub(super) fn config(findings: &Findings, file: File) -> Config {
    let references = References::of(&file);
    let (admin, admin_binds) = file.admin.judged(findings);
    let shared = shared_limits(findings, file.limits, &references);
    check_reserves(findings, &file.listeners, &file.runtime.max_connections);
    let listeners = listeners(findings, file.listeners, &references);
    let pools = file.pools.value_or(Vec::new());
    let pools: Vec<_> = pools.into_iter().map(|pool| self::pool(findings, pool, &references)).collect();
    binds::check(findings, &admin_binds, &listeners, &pools);
    check_preread(findings, &listeners, &pools);
    Config {
        runtime: runtime(findings, file.runtime),
        admin,
        log: log(file.log),
        limits: shared,
        listeners: listeners.into_iter().map(|bound| bound.listener).collect(),
        pools,
    }
}

/// A listener with the places of its addresses.
pub(super) struct Bound {
    pub listener: Listener,
    pub binds: Vec<Placed<BindAddr>>,
    /// The keys that say how first bytes are read.
    preread_keys: Vec<At>,
}

/// Who names whom.
struct References {
    /// `None` if the pools are not even a table.
    pools: Option<HashSet<String>>,
    /// The shared limits; `None` if they are not even a table.
    limits: Option<HashSet<String>>,
    /// The shared limits that listeners name.
    limits_used: HashSet<String>,
    /// The pools that listeners lead to; `None` if not every listener says so.
    used: Option<HashSet<String>>,
}

impl References {
    fn of(file: &File) -> Self {
        let pools = match &file.pools {
            Given::Good(pools) => Some(pools.value.iter().map(|pool| pool.name.value.clone()).collect()),
            Given::Absent => Some(HashSet::new()),
            Given::Bad => None,
        };
        let used = file
            .listeners
            .good()
            .and_then(|listeners| listeners.value.iter().map(pools_of).collect::<Option<Vec<_>>>());
        let used = used.map(|used| used.into_iter().flatten().collect());
        let limits = match &file.limits {
            Given::Good(limits) => Some(limits.value.iter().map(|(name, _)| name.value.clone()).collect()),
            Given::Absent => Some(HashSet::new()),
            Given::Bad => None,
        };
        let listeners = file.listeners.good().map(|placed| placed.value.as_slice()).unwrap_or_default();
        let named = listeners.iter().filter_map(|listener| listener.admission.shared.good());
        let limits_used = named.flat_map(|names| &names.value).map(|name| name.value.clone()).collect();
        Self { pools, limits, limits_used, used }
    }
}

/// The pools that a listener may lead to; `None` if it isn't known of all.
fn pools_of(listener: &file::Listener) -> Option<Vec<String>> {
    let text = |given: &Given<String>| match given {
        Given::Bad => None,
        Given::Absent => Some(None),
        Given::Good(placed) => Some(Some(placed.value.clone())),
    };
    let own = [text(&listener.pool)?, text(&listener.routing.timeout_pool)?];
    let routes = match &listener.routing.routes {
        Given::Bad => return None,
        Given::Absent => [].as_slice(),
        Given::Good(placed) => placed.value.as_slice(),
    };
    // Without any, it isn't said where it leads.
    if listener.pool.is_absent() && routes.is_empty() {
        return None;
    }
    let mut all: Vec<String> = own.into_iter().flatten().collect();
    for route in routes {
        all.extend(route.pools()?.into_iter().map(str::to_owned));
    }
    Some(all)
}

/// What says how first bytes are read says nothing where nobody reads them.
fn check_preread(findings: &Findings, listeners: &[Bound], pools: &[Pool]) {
    let reads = |pool: &&Pool| pool.hash.as_ref().is_some_and(|hash| hash.key != HashKey::Source);
    let reading: HashSet<&PoolName> = pools.iter().filter(reads).map(|pool| &pool.name).collect();
    let reads =
        |listener: &Listener| listener.reads_first_bytes() || listener.pools().any(|pool| reading.contains(pool));
    for Bound { preread_keys, .. } in listeners.iter().filter(|bound| !reads(&bound.listener)) {
        for at in preread_keys {
            let hint = "remove it, or add a route with a condition such as sni, protocol or prefix";
            findings.warning(at, "this has no effect: no route or pool looks at what clients send", hint);
        }
    }
}

fn runtime(findings: &Findings, given: file::Runtime) -> Runtime {
    let default = Runtime::default();
    let drain_timeout = given.drain_timeout.value_or(default.drain_timeout);
    if let Some(Placed { at, value }) = given.drain_spread.good().filter(|spread| spread.value > drain_timeout) {
        let message = format!("{value:?} is more than the drain_timeout of {drain_timeout:?}");
        findings.mistake(at, message, "make it shorter, or raise drain_timeout");
    }
    Runtime {
        workers: given.workers.into_good().map(|placed| placed.value),
        max_connections: given.max_connections.into_good().map(|placed| placed.value),
        drain_timeout,
        drain_spread: given.drain_spread.value_or(default.drain_spread),
        lame_duck: given.lame_duck.value_or(default.lame_duck),
        relay: given.relay.value_or(default.relay),
        memory_high: given.memory_high.value_or(default.memory_high),
        state_file: given.state_file.value_or(default.state_file),
        watch: given.watch.value_or(default.watch),
        privileges: given.privileges.judged(findings),
        retired_timeout: given.retired_timeout.value_or(default.retired_timeout),
    }
}

type GivenLimits = Given<Vec<(Placed<String>, demand::given::Limits)>>;

fn shared_limits(findings: &Findings, given: GivenLimits, references: &References) -> Vec<SharedLimit> {
    let limit = |(name, given): (Placed<String>, demand::given::Limits)| {
        check_name(findings, &name);
        if !references.limits_used.contains(&name.value) {
            findings.warning(&name.at, "no listener names this limit", "remove it, or name it in a listener's limits");
        }
        demand::judge::shared(&name, &given, findings)
    };
    given.value_or(Vec::new()).into_iter().map(limit).collect()
}

/// What is kept for some listeners must be there for all of them together.
fn check_reserves(findings: &Findings, listeners: &Given<Vec<file::Listener>>, most: &Given<usize>) {
    let (Some(listeners), Some(Placed { value: most, .. })) = (listeners.good(), most.good()) else { return };
    let mut reserved = 0_usize;
    for Placed { at, value } in listeners.value.iter().filter_map(|one| one.admission.reserved_connections.good()) {
        reserved = reserved.saturating_add(*value);
        if reserved > *most {
            let message = format!("{reserved} connections are reserved so far, but runtime.max_connections is {most}");
            return findings.mistake(at, message, "reserve less, or raise runtime.max_connections");
        }
    }
}

fn log(given: file::Log) -> Log {
    let default = Log::default();
    Log {
        level: given.level.value_or(default.level),
        format: given.format.value_or(default.format),
        access: given.access.value_or(default.access),
    }
}

fn listeners(findings: &Findings, given: Given<Vec<file::Listener>>, references: &References) -> Vec<Bound> {
    let empty = match &given {
        Given::Absent => Some(At { span: 0..0, key: "listeners".into() }),
        Given::Good(placed) if placed.value.is_empty() => Some(placed.at.clone()),
        _ => None,
    };
    if let Some(at) = empty {
        let message = match findings.source.text.trim() {
            "" => "the file is empty",
            _ => "there is no listener",
        };
        findings.missing(&at, message, "add [listeners.NAME] with bind and pool");
    }
    given.value_or(Vec::new()).into_iter().map(|listener| self::listener(findings, listener, references)).collect()
}

fn listener(findings: &Findings, given: file::Listener, references: &References) -> Bound {
    check_name(findings, &given.name);
    let idle_timeout = given.idle_timeout.good().map_or(limits::DEFAULT_IDLE_TIMEOUT, |placed| placed.value);
    check_half_close(findings, &given.half_close_timeout, idle_timeout);
    let binds = binds(findings, &given);
    let routing = routes::judge::routing(findings, &given.routing, &given.pool, references.pools.as_ref());
    let listener = Listener {
        bind: binds.iter().map(|bind| bind.value.clone()).collect(),
        pool: own_pool(findings, &given, references, routing.takes_all),
        backlog: given.backlog.value_or(limits::DEFAULT_BACKLOG),
        idle_timeout,
        half_close_timeout: given.half_close_timeout.value_or(limits::DEFAULT_HALF_CLOSE_TIMEOUT.min(idle_timeout)),
        keepalive: given.keepalive.value_or(Some(limits::DEFAULT_KEEPALIVE)),
        admission: demand::judge::admission(findings, &given.admission, references.limits.as_ref()),
        bandwidth: demand::judge::bandwidth(findings, &given.bandwidth),
        accept_proxy: given.accept_proxy.as_ref().map(|accept| accept.judged(findings)),
        preread: routing.preread,
        routes: routing.routes,
        name: ListenerName::new(&given.name.value),
        socket: given.socket.judged(findings, &binds),
    };
    Bound { listener, binds, preread_keys: routing.preread_keys }
}

fn binds(findings: &Findings, given: &file::Listener) -> Vec<Placed<BindAddr>> {
    if given.bind.is_absent() {
        findings.missing(&given.at, "bind is missing", "write bind = \"0.0.0.0:8080\"");
    }
    let Some(Placed { at, value: texts }) = given.bind.good() else { return Vec::new() };
    if texts.is_empty() {
        findings.missing(at, "the list is empty", "name at least one address, such as \"0.0.0.0:8080\"");
    }
    let mut binds: Vec<Placed<BindAddr>> = Vec::new();
    for Placed { at, value: text } in texts {
        match address::binds(text) {
            Ok(addresses) if binds.len() + addresses.len() > limits::MAX_BINDS => {
                let message = format!("these are {} addresses so far", binds.len() + addresses.len());
                findings.mistake(at, message, address::TOO_MANY_BINDS);
                break;
            }
            Ok(addresses) => binds.extend(addresses.into_iter().map(|value| Placed { at: at.clone(), value })),
            Err(complaint) => findings.complaint(at, complaint),
        }
    }
    binds
}

/// The listener's own pool, which only one that has a route for everybody can do without.
fn own_pool(findings: &Findings, given: &file::Listener, references: &References, takes_all: bool) -> Option<PoolName> {
    if given.pool.is_absent() && !takes_all {
        let only = references.pools.as_ref().filter(|pools| pools.len() == 1).and_then(|pools| pools.iter().next());
        let name = only.map_or("NAME", String::as_str);
        let hint = match given.routing.routes {
            Given::Absent => format!("write pool = {}", words::quoted(name)),
            _ => format!("write pool = {}, or end with a route without conditions", words::quoted(name)),
        };
        findings.missing(&given.at, "pool is missing", hint);
    }
    Some(routes::judge::pool(findings, given.pool.good()?, references.pools.as_ref()))
}

fn check_half_close(findings: &Findings, half_close: &Given<Duration>, idle: Duration) {
    let Some(Placed { at, value }) = half_close.good().filter(|placed| placed.value > idle) else { return };
    let message = format!("{} has no effect beside the idle_timeout of {}", unit::show(*value), unit::show(idle));
    findings.warning(at, message, "make it shorter");
}

fn pool(findings: &Findings, given: file::Pool, references: &References) -> super::Pool {
    check_name(findings, &given.name);
    if references.used.as_ref().is_some_and(|used| !used.contains(&given.name.value)) {
        findings.warning(&given.name.at, "no listener leads to this pool", "remove it, or name it in a listener");
    }
    pools::pool(findings, given)
}

/// Of a listener, pool or route: it becomes a label, a part of key paths and of URLs.
pub(super) fn check_name(findings: &Findings, name: &Placed<String>) {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let Placed { at, value } = name;
    let message = match value.len() {
        0 => "the name is empty".to_owned(),
        length if length > limits::MAX_NAME => format!("the name has {length} bytes"),
        _ if value.bytes().all(good) && !words::is_folder(value) => return,
        _ => format!("{} is not a name", words::quoted(value)),
    };
    findings.mistake(at, message, format!("use up to {} letters, digits, _ . and -", limits::MAX_NAME));
}
