//! The pools: members from a list or from a target, and the times and counts of connect and ejection.
//!
//! Owns what is wrong within one pool. A time that isn't given shrinks to fit those that are, so that setting one
//! key never makes another one wrong. Next: `target` for the syntax of groups, `address` for that of addresses.

use super::demand;
use super::file;
use super::findings::{At, Complaint, Findings, Given, Placed};
use super::hash;
use super::health::judge;
use super::target;
use super::{Address, Balance, Connect, Ejection, Group, Member, Pool, Protection, address, limits, unit, words};
use crate::name::PoolName;
use std::collections::HashMap;
use std::time::Duration;

/// Builds a pool, reporting what is wrong with it.
pub(super) fn pool(findings: &Findings, mut given: file::Pool) -> Pool {
    let name = PoolName::new(&given.name.value);
    let connect = connect(findings, &given.connect);
    let ejection = ejection(findings, &given.ejection);
    let health = judge::health(findings, &given.health);
    let tcp_only = judge::tcp_only(&given.health);
    let protection = protection(&given.protection);
    let send_proxy = given.send_proxy.judged(findings);
    let backend_max_connections = given.backend_max_connections.or(None);
    let shed = demand::judge::shed(findings, &given.shed, given.queue.as_ref());
    let (queue, hold) = (given.queue.take(), given.hold.take());
    let rebalance = given.protection.rebalance.good().cloned();
    let origin = given.origin.take();
    let (balance, members, given_hash) = members(findings, given);
    let origin = origin.map(|origin| origin.judged(findings, &members)).unwrap_or_default();
    let hash = hash::judged(findings, &given_hash, balance.as_ref(), &members);
    let balance = balance.unwrap_or(Balance::RoundRobin);
    hash::check_rebalance(findings, &balance, rebalance.as_ref());
    judge::check_unix_members(findings, &tcp_only, &members);
    Pool {
        name,
        balance,
        queue: queue.map(|queue| demand::judge::queue(findings, &queue, &members, backend_max_connections)),
        members,
        protection,
        connect,
        origin,
        ejection,
        health,
        backend_max_connections,
        shed,
        hold: hold.map(|hold| demand::judge::hold(findings, &hold)),
        hash,
        send_proxy,
    }
}

fn protection(given: &file::Protection) -> Protection {
    let default = Protection::default();
    Protection {
        panic_threshold: given.panic_threshold.or(default.panic_threshold),
        min_available: given.min_available.or(default.min_available),
        tier_hold: given.tier_hold.or(default.tier_hold),
        slow_start: given.slow_start.or(default.slow_start),
        replay: given.replay.or(None).map(|bytes| bytes as u32),
        on_down: given.on_down.or(default.on_down),
        max_lifetime: given.max_lifetime.or(default.max_lifetime),
        rebalance: given.rebalance.or(default.rebalance).filter(|share| !share.is_zero()),
    }
}

/// The policy is `None` if the file names none that there is.
fn members(findings: &Findings, given: file::Pool) -> (Option<Balance>, Vec<Member>, hash::Given) {
    let mut members = Members::new(findings);
    let balance = match (&given.target, given.backends) {
        (Given::Absent, backends) => {
            if backends.is_absent() {
                let hint = "write backends = [\"10.0.0.1:80\"] or target = \"failover:(tcp://a:1|tcp://b:2)\"";
                findings.missing(&given.at, "the pool has neither backends nor a target", hint);
            }
            if let Some(Placed { at, .. }) = backends.good().filter(|backends| backends.value.is_empty()) {
                let message = "the list is empty, so that every connection to this pool is refused";
                findings.warning(at, message, "add a backend");
            }
            if let Given::Good(Placed { at, value: backends }) = backends {
                for backend in backends {
                    members.add_backend(backend);
                }
                members.check_number(&at);
            }
            balance(findings, &given.balance)
        }
        (target, backends) => {
            if let (Some(target), false) = (target.good(), backends.is_absent()) {
                findings.mistake(&target.at, "a pool has either backends or a target", "remove one of the two");
            }
            if let Some(balance) = given.balance.good() {
                findings.mistake(&balance.at, "a target says itself how to choose", "remove balance");
            }
            target.good().map(|target| members.add_target(target))
        }
    };
    (balance, members.all, given.hash)
}

fn balance(findings: &Findings, given: &Given<String>) -> Option<Balance> {
    let Placed { at, value } = match given {
        Given::Absent => return Some(Balance::RoundRobin),
        Given::Bad => return None,
        Given::Good(placed) => placed,
    };
    if let Some((_, balance)) = Balance::WORDS.into_iter().find(|(word, _)| word == value) {
        return Some(balance);
    }
    let hint = match value.as_str() {
        "failover" => "write target = \"failover:(tcp://a:1|tcp://b:2)\" instead of balance and backends".to_owned(),
        _ => format!("use {}", words::any_of(&Balance::WORDS.map(|(word, _)| words::quoted(word)))),
    };
    findings.mistake(at, format!("{} is not known here", words::quoted(value)), hint);
    None
}

/// The members so far, with what must not come twice.
struct Members<'f> {
    findings: &'f Findings<'f>,
    all: Vec<Member>,
    /// The line of each.
    addresses: HashMap<Address, usize>,
    /// What logs and metrics call each: its name, or its address.
    labels: HashMap<String, usize>,
}

/// A member as the file names it.
struct Named {
    address: Address,
    weight: u16,
    tier: u8,
    max_connections: Option<u32>,
    name: Option<Placed<String>>,
}

impl<'f> Members<'f> {
    fn new(findings: &'f Findings) -> Self {
        Self { findings, all: Vec::new(), addresses: HashMap::new(), labels: HashMap::new() }
    }

    fn add_backend(&mut self, given: file::Backend) {
        if given.address.is_absent() {
            self.findings.missing(&given.at, "address is missing", "write address = \"10.0.0.1:80\"");
        }
        if let Some(name) = given.name.good() {
            check_name(self.findings, name);
        }
        let tier = self.tier(&given);
        let Given::Good(Placed { at, value: text }) = given.address else { return };
        match address::backend(&text) {
            Ok(address) => {
                let max_connections = given.max_connections.good().map(|placed| placed.value);
                let (weight, name) = (given.weight.value_or(1), given.name.into_good());
                let named = Named { address, weight, tier, max_connections, name };
                self.add(&given.at, &at, named);
            }
            Err(complaint) => self.findings.complaint(&at, complaint),
        }
    }

    /// A backup is the second tier in one word.
    fn tier(&self, given: &file::Backend) -> u8 {
        if let (Some(backup), Some(tier)) = (given.backup.good(), given.tier.good()) {
            self.findings.mistake(
                &backup.at,
                format!("the backend is in tier {} already", tier.value),
                "remove one of the two",
            );
        }
        given.tier.or(u8::from(given.backup.or(false)))
    }

    fn add_target(&mut self, target: &Placed<String>) -> Balance {
        let part = target.at.parts(self.findings.source, &target.value);
        match target::parse(&target.value) {
            Ok(parsed) => {
                for leaf in &parsed.leaves {
                    let at = part(leaf.span.clone());
                    match leaf.address() {
                        Ok(address) => {
                            self.add(
                                &at,
                                &at,
                                Named { address, weight: 1, tier: 0, max_connections: None, name: None },
                            );
                        }
                        Err(complaint) => self.findings.complaint(&at, complaint),
                    }
                }
                self.check_number(&target.at);
                Balance::Failover(parsed.group)
            }
            Err((span, complaint)) => {
                self.findings.complaint(&part(span), complaint);
                Balance::Failover(Group::Any(Vec::new()))
            }
        }
    }

    fn add(&mut self, at: &At, address_at: &At, Named { address, weight, tier, max_connections, name }: Named) {
        let place = self.findings.source.place(at.span.start, &at.key);
        let line = place.position.map_or(0, |position| position.line);
        let label = name.as_ref().map_or_else(|| address.to_string(), |name| name.value.clone());
        if let Some(first) = self.addresses.get(&address) {
            let message = format!("{} is in this pool already, on line {first}", words::escaped(&address.to_string()));
            self.findings.mistake(address_at, message, "remove one; a larger share is a matter of weight");
        } else if let Some(first) = self.labels.get(&label) {
            let at = name.as_ref().map_or(address_at, |name| &name.at);
            let message = format!("the backend on line {first} is called {} already", words::quoted(&label));
            self.findings.mistake(at, message, "use another name");
        }
        self.addresses.entry(address.clone()).or_insert(line);
        self.labels.entry(label).or_insert(line);
        let (name, place) = (name.map(|name| name.value), place.to_string());
        self.all.push(Member { address, weight, tier, max_connections, name, place });
    }

    fn check_number(&self, at: &At) {
        let number = self.all.len();
        if number > limits::MAX_BACKENDS {
            let hint = format!("a pool has up to {}", limits::MAX_BACKENDS);
            self.findings.mistake(at, format!("the pool has {number} backends"), hint);
        }
    }
}

fn check_name(findings: &Findings, name: &Placed<String>) {
    if let Some((message, hint)) = wrong_name(&name.value) {
        findings.mistake(&name.at, message, hint);
    }
}

/// What is wrong with the name of a backend, and the way out.
pub(super) fn wrong_name(name: &str) -> Option<(String, String)> {
    let message = match name.len() {
        0 => "the name is empty".to_owned(),
        length if length > limits::MAX_NAME => format!("the name has {length} bytes"),
        _ if name.contains(words::is_unsafe) => {
            format!("{} holds characters that can't be seen", words::quoted(name))
        }
        _ if words::is_folder(name) => format!("{} is not a name", words::quoted(name)),
        _ => return None,
    };
    Some((message, format!("use up to {} bytes of printable text", limits::MAX_NAME)))
}

fn connect(findings: &Findings, given: &file::Connect) -> Connect {
    let default = Connect::default();
    let budget = given.budget.good().map_or(default.budget, |placed| placed.value);
    let timeout = Bounded { given: &given.timeout, limit: budget, limit_name: "budget", limit_given: &given.budget };
    let hedge_after = given.hedge_after.or(default.hedge_after);
    if let (Some(after), Some(Placed { at, .. })) = (hedge_after, given.hedge_after.good())
        && after >= timeout.limit_of(default.timeout)
    {
        let message = format!("{} is not shorter than the time-out of an attempt", unit::show(after));
        findings.complaint(at, Complaint::new(message, "make it shorter, or timeout longer"));
    }
    Connect {
        timeout: timeout.judged(findings, default.timeout),
        attempts: given.attempts.or(default.attempts),
        budget,
        hedge_after,
        hedge_share: given.hedge_share.or(default.hedge_share),
        max_rate: given.max_rate.or(default.max_rate),
    }
}

fn ejection(findings: &Findings, given: &file::Ejection) -> Ejection {
    let default = Ejection::default();
    let consecutive_failures = given.consecutive_failures.or(default.consecutive_failures);
    if consecutive_failures.is_none() {
        let places = [
            given.base_time.good().map(|placed| &placed.at),
            given.max_time.good().map(|placed| &placed.at),
            given.max_ejected.good().map(|placed| &placed.at),
            given.slow_connect.good().map(|placed| &placed.at),
        ];
        for at in places.into_iter().flatten() {
            findings.warning(at, "this has no effect with consecutive_failures = \"off\"", "remove it");
        }
    }
    let max_time = given.max_time.or(default.max_time);
    let base_time =
        Bounded { given: &given.base_time, limit: max_time, limit_name: "max_time", limit_given: &given.max_time };
    Ejection {
        consecutive_failures,
        base_time: base_time.judged(findings, default.base_time),
        max_time,
        max_ejected: given.max_ejected.or(default.max_ejected),
        slow_connect: given.slow_connect.or(default.slow_connect),
    }
}

/// A time that makes sense only up to another one.
pub(super) struct Bounded<'g> {
    pub given: &'g Given<Duration>,
    pub limit: Duration,
    pub limit_name: &'static str,
    pub limit_given: &'g Given<Duration>,
}

impl Bounded<'_> {
    /// The time in force, judged elsewhere.
    fn limit_of(&self, default: Duration) -> Duration {
        self.given.or(default.min(self.limit))
    }

    /// The time as it is given, or as much of the default as fits.
    pub fn judged(&self, findings: &Findings, default: Duration) -> Duration {
        let Some(Placed { at, value }) = self.given.good() else { return default.min(self.limit) };
        // A limit that is wrong by itself is no measure.
        if *value > self.limit && !matches!(self.limit_given, Given::Bad) {
            let whose = if self.limit_given.is_absent() { "default " } else { "" };
            let (value, limit, name) = (unit::show(*value), unit::show(self.limit), self.limit_name);
            let message = format!("{value} is longer than the {whose}{name} of {limit}");
            findings.complaint(at, Complaint::new(message, format!("make it shorter, or {name} longer")));
        }
        *value
    }
}
