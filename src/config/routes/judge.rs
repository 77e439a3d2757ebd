//! What is wrong with the routes of a listener: conditions that can't hold, destinations that don't exist, routes that
//! are never reached.

use super::given::{self, Port, Texts};
use super::text::{self, Addresses};
use super::{Conditions, DEFAULT_RULE, Destination, OTHER_RULES, Preread, Protocol, Route, TIMEOUT_RULE, WeightedPool};
use crate::config::demand::given::networks;
use crate::config::findings::{At, Complaint, Findings, Given, Placed};
use crate::config::{Cidr, limits, words};
use crate::name::PoolName;
use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

/// The names of the pools; `None` if they are not even a table.
pub type Pools<'p> = Option<&'p HashSet<String>>;

/// What a listener says of its routes.
pub struct Routing {
    pub preread: Preread,
    /// The keys that have no effect if nothing of what clients send is looked at.
    pub preread_keys: Vec<At>,
    pub routes: Vec<Route>,
    /// There is a route for everybody, or there may be one that isn't understood.
    pub takes_all: bool,
}

/// The routes of a listener whose own pool is `own`.
pub fn routing(findings: &Findings, given: &given::Routing, own: &Given<String>, pools: Pools<'_>) -> Routing {
    let default = Preread::default();
    let keys = [
        given.timeout.good().map(|placed| &placed.at),
        given.bytes.good().map(|placed| &placed.at),
        given.timeout_pool.good().map(|placed| &placed.at),
        given.failed.good().map(|placed| &placed.at),
    ];
    let preread_keys = keys.into_iter().flatten().cloned().collect();
    let preread = Preread {
        timeout: given.timeout.or(default.timeout),
        bytes: given.bytes.good().map_or(default.bytes, |placed| placed.value as usize),
        timeout_pool: given.timeout_pool.good().map(|name| pool(findings, name, pools)),
        failed: given.failed.or(default.failed),
    };
    if let Some(Placed { at, value }) = given.routes.good()
        && value.len() > limits::MAX_ROUTES
    {
        let message = format!("the listener has {} routes", value.len());
        findings.mistake(at, message, format!("a listener has up to {}", limits::MAX_ROUTES));
    }
    let understood = !matches!(given.routes, Given::Bad);
    let given = given.routes.good().map(|placed| placed.value.as_slice()).unwrap_or_default();
    let names = Names::of(findings, given);
    let routes: Vec<Route> =
        given.iter().zip(names.0).map(|(given, name)| route(findings, given, &name, pools)).collect();
    let all = given.iter().zip(&routes).position(|(given, route)| takes_all(given, &route.when));
    if let Some(first) = all {
        if let Some(next) = given.get(first + 1) {
            let message =
                format!("nothing ever comes here: route {} takes everybody", words::quoted(&routes[first].name));
            findings.warning(&next.at, message, "move that one to the end, or give it a condition");
        } else if let Some(Placed { at, .. }) = own.good() {
            let message =
                format!("nothing ever comes here: route {} takes everybody", words::quoted(&routes[first].name));
            findings.warning(at, message, "remove the key, or give that route a condition");
        }
    }
    let strange = given.iter().any(|given| given.is_strange);
    Routing { preread, preread_keys, routes, takes_all: all.is_some() || strange || !understood }
}

/// The name of a pool, which must exist.
pub fn pool(findings: &Findings, Placed { at, value: name }: &Placed<String>, pools: Pools<'_>) -> PoolName {
    if let Some(pools) = pools.filter(|pools| !pools.contains(name)) {
        let meant = if findings.is_full() { None } else { words::nearest(name, pools.iter().map(String::as_str)) };
        let hint = match meant {
            Some(meant) => format!("did you mean {}?", words::quoted(meant)),
            None => format!("add [pools.{}]", words::key(name)),
        };
        findings.missing(at, format!("there is no pool {}", words::quoted(name)), hint);
    }
    PoolName::new(name)
}

/// A condition that was not understood is one all the same.
fn takes_all(given: &given::Route, when: &Conditions) -> bool {
    let lists = [
        &given.source,
        &given.local_address,
        &given.sni,
        &given.alpn,
        &given.alpn_all,
        &given.protocol,
        &given.http_host,
        &given.http_path,
        &given.http_method,
        &given.prefix,
    ];
    when.is_empty()
        && !given.is_strange
        && lists.into_iter().all(Given::is_absent)
        && given.local_port.is_absent()
        && given.share.is_absent()
}

/// What the routes are called.
struct Names(Vec<String>);

impl Names {
    fn of(findings: &Findings, given: &[given::Route]) -> Self {
        let mut lines = HashMap::new();
        let mut name = |(index, route): (usize, &given::Route)| {
            let (at, name) = match &route.name {
                Given::Good(Placed { at, value }) => (at, value.clone()),
                _ => (&route.at, format!("route-{}", index + 1)),
            };
            if [DEFAULT_RULE, TIMEOUT_RULE, OTHER_RULES].contains(&name.as_str()) {
                let message = format!("{} has a meaning of its own in log and metrics", words::quoted(&name));
                findings.mistake(at, message, "use another name");
            }
            let line = findings.source.position(at.span.start).line;
            if let Some(first) = lines.get(&name) {
                let message = format!("the route on line {first} is called {} already", words::quoted(&name));
                findings.mistake(at, message, "use another name");
            }
            lines.entry(name.clone()).or_insert(line);
            name
        };
        Self(given.iter().enumerate().map(&mut name).collect())
    }
}

fn route(findings: &Findings, given: &given::Route, name: &str, pools: Pools<'_>) -> Route {
    if let Some(name) = given.name.good() {
        crate::config::validate::check_name(findings, name);
    }
    let when = conditions(findings, given);
    check_protocols(findings, given, &when);
    check_meaning(findings, &given.http_path, text::doubt_path);
    check_meaning(findings, &given.alpn, text::doubt_alpn);
    check_meaning(findings, &given.alpn_all, text::doubt_alpn);
    check_meaning(findings, &given.prefix, text::doubt_prefix);
    Route { name: name.into(), when, to: destination(findings, given, pools) }
}

fn conditions(findings: &Findings, given: &given::Route) -> Conditions {
    let server = |addresses| move |text: &str| text::name(text, addresses);
    Conditions {
        source: nets(findings, &given.source),
        local_port: ports(findings, given),
        local_address: nets(findings, &given.local_address),
        sni: given.sni.good().map(|_| list(findings, &given.sni, server(Addresses::No), MayBeEmpty::Yes)),
        alpn: list(findings, &given.alpn, text::alpn, MayBeEmpty::No),
        alpn_all: given.alpn_all.good().map(|_| list(findings, &given.alpn_all, text::alpn, MayBeEmpty::Yes)),
        protocol: list(findings, &given.protocol, protocol, MayBeEmpty::No),
        http_host: list(findings, &given.http_host, server(Addresses::Yes), MayBeEmpty::No),
        http_path: list(findings, &given.http_path, text::path, MayBeEmpty::No),
        http_method: list(findings, &given.http_method, text::method, MayBeEmpty::No),
        prefix: list(findings, &given.prefix, text::prefix, MayBeEmpty::No),
        share: given.share.good().map(|placed| placed.value),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MayBeEmpty {
    No,
    Yes,
}

fn check_empty(findings: &Findings, at: &At) {
    findings.mistake(at, "the list is empty", "name at least one, or remove the key");
}

/// The values of a list, each once.
fn list<T: PartialEq>(
    findings: &Findings,
    given: &Texts,
    parse: impl Fn(&str) -> Result<T, Complaint>,
    may_be_empty: MayBeEmpty,
) -> Vec<T> {
    let Some(Placed { at, value: texts }) = given.good() else { return Vec::new() };
    if texts.is_empty() && may_be_empty == MayBeEmpty::No {
        check_empty(findings, at);
    }
    let mut values = Vec::with_capacity(texts.len());
    let mut seen = HashSet::new();
    for text in texts {
        match parse(&text.value) {
            Ok(value) if seen.insert(text.value.as_str()) => values.push(value),
            Ok(_) => findings.warning(&text.at, format!("{} is here twice", words::quoted(&text.value)), "remove one"),
            Err(complaint) => findings.complaint(&text.at, complaint),
        }
    }
    values
}

fn nets(findings: &Findings, given: &Texts) -> Vec<Cidr> {
    if let Some(Placed { at, value }) = given.good()
        && value.is_empty()
    {
        check_empty(findings, at);
    }
    let found = networks(given, |text, complaint| findings.complaint(&text.at, complaint));
    found.into_iter().map(|network| network.value).collect()
}

fn ports(findings: &Findings, given: &given::Route) -> Vec<RangeInclusive<u16>> {
    let Some(Placed { at, value: list }) = given.local_port.good() else { return Vec::new() };
    if list.is_empty() && !findings.source.text[at.span.clone()].trim_matches(['[', ']', ' ']).is_empty() {
        return Vec::new();
    }
    if list.is_empty() {
        check_empty(findings, at);
    }
    let parse = |port: &Port| match port {
        Port::Number(number) => text::port(*number),
        Port::Text(text) => text::ports(text),
    };
    let good = |port: &Placed<Port>| match parse(&port.value) {
        Ok(range) => Some(range),
        Err(complaint) => {
            findings.complaint(&port.at, complaint);
            None
        }
    };
    list.iter().filter_map(good).collect()
}

fn protocol(text: &str) -> Result<Protocol, Complaint> {
    Protocol::of_word(text).ok_or_else(|| {
        let hint = format!("use {}", words::any_of(&Protocol::WORDS.map(|(word, _)| words::quoted(word))));
        Complaint::new(format!("{} is not known here", words::quoted(text)), hint)
    })
}

/// Warns of what can stand so, but hardly was meant so.
fn check_meaning(findings: &Findings, given: &Texts, doubt: impl Fn(&str) -> text::Doubt) {
    let texts = given.good().map(|placed| placed.value.as_slice()).unwrap_or_default();
    for Placed { at, value } in texts {
        if let Some((message, hint)) = doubt(value) {
            findings.warning(at, message, hint);
        }
    }
}

/// A route whose conditions are about different protocols is never taken.
fn check_protocols(findings: &Findings, given: &given::Route, when: &Conditions) {
    let tls = [("sni", when.sni.is_some()), ("alpn", !when.alpn.is_empty()), ("alpn_all", when.alpn_all.is_some())];
    let http = [
        ("http_host", !when.http_host.is_empty()),
        ("http_path", !when.http_path.is_empty()),
        ("http_method", !when.http_method.is_empty()),
    ];
    let first = |keys: [(&'static str, bool); 3]| keys.into_iter().find(|(_, given)| *given).map(|(key, _)| key);
    let listed = |protocol| when.protocol.is_empty() || when.protocol.contains(&protocol);
    let never = |what: String| {
        findings.warning(&given.at, format!("this route is never taken: {what}"), "remove one, or make two routes");
    };
    match (first(tls), first(http)) {
        (Some(tls), Some(http)) => never(format!("{tls} is about TLS, which hides {http}")),
        (Some(tls), None) if !listed(Protocol::Tls) => never(format!("{tls} is about TLS, and protocol is not")),
        (None, Some(http)) if !listed(Protocol::Http1) => {
            never(format!("{http} is about HTTP/1, and protocol is not"));
        }
        _ => {}
    }
}

fn destination(findings: &Findings, given: &given::Route, pools: Pools<'_>) -> Destination {
    if let Some(Placed { at, value: false }) = given.refuse.good() {
        findings.warning(at, "this says nothing", "remove the key");
    }
    let refuses = matches!(given.refuse.good(), Some(Placed { value: true, .. }));
    let chosen = [!given.pool.is_absent(), !given.pools.is_absent(), refuses];
    match chosen.into_iter().filter(|chosen| *chosen).count() {
        0 if !matches!(given.refuse, Given::Bad) => {
            findings.missing(&given.at, "the route leads nowhere", "add pool, pools or refuse = true");
        }
        0 | 1 => {}
        _ => {
            findings.mistake(&given.at, "the route leads to more than one place", "keep one of pool, pools and refuse");
        }
    }
    let several = given.pools.good().map(|placed| weighted(findings, placed, pools));
    let one = given.pool.good().map(|name| pool(findings, name, pools));
    match (one, several) {
        (Some(pool), _) => Destination::Pool(pool),
        (None, Some(pools)) => Destination::Pools(pools),
        (None, None) => Destination::Refuse,
    }
}

fn weighted(
    findings: &Findings,
    Placed { at, value: given }: &Placed<Vec<given::Weighted>>,
    pools: Pools<'_>,
) -> Vec<WeightedPool> {
    if given.is_empty() {
        check_empty(findings, at);
    }
    let mut found: Vec<WeightedPool> = Vec::with_capacity(given.len());
    for one in given {
        if one.pool.is_absent() {
            findings.missing(&one.at, "pool is missing", "write { pool = \"NAME\", weight = 1 }");
        }
        let Some(name) = one.pool.good() else { continue };
        let weighted = WeightedPool { pool: pool(findings, name, pools), weight: one.weight.or(1) };
        if found.iter().any(|other| other.pool == weighted.pool) {
            findings.mistake(&name.at, "the same pool is here twice", "remove one, and give the other its weight");
        }
        found.push(weighted);
    }
    found
}
