//! What is wrong with the keys of demand control: contradictions, references, and keys that have no effect.

use super::{Admission, Bandwidth, ClientPrefix, Hold, Limits, Queue, SharedLimit, Shed, given};
use crate::config::findings::{Findings, Given, Placed};
use crate::config::{Member, unit, words};
use crate::name::LimitName;
use std::collections::HashSet;

/// A shared limit; its name has been judged.
pub fn shared(name: &Placed<String>, given: &given::Limits, findings: &Findings) -> SharedLimit {
    let limits = limits(findings, given);
    if limits.bounds_nothing() {
        findings.warning(
            &name.at,
            "this limit bounds nothing",
            "add max_connections, accept_rate, or one of them per client",
        );
    }
    SharedLimit { name: LimitName::new(&name.value), limits }
}

/// The limits that `given` asks for.
fn limits(findings: &Findings, given: &given::Limits) -> Limits {
    let default = Limits::default();
    let limits = Limits {
        max_connections: given.max_connections.or(None),
        max_connections_per_client: given.max_connections_per_client.or(None),
        accept_rate: given.accept_rate.or(None),
        burst: given.burst.good().map(|placed| placed.value),
        accept_rate_per_client: given.accept_rate_per_client.or(None),
        burst_per_client: given.burst_per_client.good().map(|placed| placed.value),
        client_prefix: ClientPrefix {
            ipv4: given.client_prefix_ipv4.or(default.client_prefix.ipv4),
            ipv6: given.client_prefix_ipv6.or(default.client_prefix.ipv6),
        },
        max_clients: given.max_clients.or(default.max_clients),
    };
    if let (Some(Placed { at, .. }), None) = (given.burst.good(), limits.accept_rate) {
        findings.warning(at, "this has no effect without accept_rate", "add it, or remove this");
    }
    if let (Some(Placed { at, .. }), None) = (given.burst_per_client.good(), limits.accept_rate_per_client) {
        findings.warning(at, "this has no effect without accept_rate_per_client", "add it, or remove this");
    }
    if !limits.knows_clients() {
        let places = [
            given.client_prefix_ipv4.good().map(|placed| &placed.at),
            given.client_prefix_ipv6.good().map(|placed| &placed.at),
            given.max_clients.good().map(|placed| &placed.at),
        ];
        for at in places.into_iter().flatten() {
            findings.warning(at, "this has no effect without a limit per client", "add one, or remove this");
        }
    }
    limits
}

/// What a listener may serve; `known` are the names of the shared limits, unless they are not even a table.
pub fn admission(findings: &Findings, given: &given::Admission, known: Option<&HashSet<String>>) -> Admission {
    let limits = limits(findings, &given.limits);
    let complain = |text: &Placed<String>, complaint| findings.complaint(&text.at, complaint);
    let (allow, deny) = (given::networks(&given.allow, complain), given::networks(&given.deny, complain));
    for denied in deny.iter().filter(|denied| allow.iter().any(|allowed| allowed.value == denied.value)) {
        findings.warning(&denied.at, format!("{} is allowed as well, and denied it is", denied.value), "remove one");
    }
    if let Some(Placed { at, value }) = given.allow.good()
        && value.is_empty()
    {
        findings.mistake(at, "the list is empty", "name the networks that are served, or remove the key");
    }
    let reserved_connections = given.reserved_connections.or(0);
    if let (Some(Placed { at, .. }), Some(most)) = (given.reserved_connections.good(), limits.max_connections)
        && reserved_connections > most
    {
        let message = format!("{reserved_connections} is more than the listener's max_connections of {most}");
        findings.mistake(at, message, "reserve less");
    }
    let admission = Admission {
        limits,
        shared: shared_names(findings, &given.shared, known),
        reserved_connections,
        allow: allow.into_iter().map(|network| network.value).collect(),
        deny: deny.into_iter().map(|network| network.value).collect(),
        overload: given.overload.good().map(|placed| placed.value),
        dry_run: given.dry_run.or(false),
    };
    let refuses_nobody = admission.limits.bounds_nothing()
        && admission.shared.is_empty()
        && admission.allow.is_empty()
        && admission.deny.is_empty();
    if let (Some(Placed { at, value: true }), true) = (given.dry_run.good(), refuses_nobody) {
        let message = "this has no effect on a listener without a limit or list of its own";
        findings.warning(at, message, "add one, or remove this");
    }
    admission
}

/// The shared limits that a listener names, each once.
fn shared_names(
    findings: &Findings,
    given: &Given<Vec<Placed<String>>>,
    known: Option<&HashSet<String>>,
) -> Vec<LimitName> {
    let mut names = Vec::new();
    for Placed { at, value: name } in given.good().map(|placed| placed.value.as_slice()).unwrap_or_default() {
        if let Some(known) = known.filter(|known| !known.contains(name)) {
            let meant = if findings.is_full() { None } else { words::nearest(name, known.iter().map(String::as_str)) };
            let hint = match meant {
                Some(meant) => format!("did you mean {}?", words::quoted(meant)),
                None => format!("add [limits.{}]", words::key(name)),
            };
            findings.missing(at, format!("there is no limit {}", words::quoted(name)), hint);
        }
        let name = LimitName::new(name);
        if names.contains(&name) {
            findings.warning(at, "the same limit is named twice", "remove one");
        } else {
            names.push(name);
        }
    }
    names
}

pub fn bandwidth(findings: &Findings, given: &given::Bandwidth) -> Bandwidth {
    let default = Bandwidth::default();
    let (to_client, to_backend) = (given.to_client.or(None), given.to_backend.or(None));
    if let (Some(Placed { at, .. }), None, None) = (given.burst.good(), to_client, to_backend) {
        findings.warning(at, "this has no effect without rate_to_client or rate_to_backend", "add one, or remove this");
    }
    Bandwidth { to_client, to_backend, burst: given.burst.or(default.burst) }
}

/// The queue of a pool in which backends may have a maximum.
pub fn queue(
    findings: &Findings,
    given: &given::Queue,
    members: &[Member],
    backend_max_connections: Option<u32>,
) -> Queue {
    let default = Queue::default();
    if backend_max_connections.is_none() && members.iter().all(|member| member.max_connections.is_none()) {
        let hint = "add backend_max_connections, or max_connections to a backend";
        findings.warning(&given.at, "no backend has a maximum, so that nobody ever waits in the queue", hint);
    }
    Queue {
        max_wait: given.max_wait.or(default.max_wait),
        max_waiting: given.max_waiting.or(default.max_waiting),
        order: given.order.or(default.order),
        client_fin: given.client_fin.or(default.client_fin),
    }
}

pub fn shed(findings: &Findings, given: &given::Shed, queue: Option<&given::Queue>) -> Option<Shed> {
    let shed = Shed {
        connect_time: given.connect_time.or(None),
        first_byte: given.first_byte.or(None),
        queue_time: given.queue_time.or(None),
        window: given.window.or(Shed::DEFAULT_WINDOW),
        dry_run: given.dry_run.or(false),
    };
    if let (Some(Placed { at, .. }), Some(target)) = (given.queue_time.good(), shed.queue_time) {
        match queue {
            None => {
                findings.missing(at, "the pool has no queue", "add the table queue, or use connect_time or first_byte");
            }
            Some(queue) if target >= queue.max_wait.or(Queue::default().max_wait) => findings.warning(
                at,
                "nobody waits for longer than queue.max_wait, so that this has no effect",
                "choose a target well below it",
            ),
            Some(_) => {}
        }
    }
    let has_target = shed.connect_time.or(shed.first_byte).or(shed.queue_time).is_some();
    if !has_target {
        let places = [given.window.good().map(|placed| &placed.at), given.dry_run.good().map(|placed| &placed.at)];
        for at in places.into_iter().flatten() {
            let hint = "add connect_time, first_byte or queue_time";
            findings.warning(at, "this has no effect without a target", hint);
        }
    }
    has_target.then_some(shed)
}

pub fn hold(findings: &Findings, given: &given::Hold) -> Hold {
    let default = Hold::default();
    let max_bytes = given.max_bytes.or(default.max_bytes);
    if let Some(Placed { at, value: each }) = given.max_bytes_each.good()
        && *each > max_bytes
        && !matches!(given.max_bytes, Given::Bad)
    {
        let message =
            format!("{} is more than the {} of all together", unit::show_bytes(*each), unit::show_bytes(max_bytes));
        let hint = "make it smaller, or max_bytes larger";
        if given.max_bytes.is_absent() {
            findings.missing(at, message, hint);
        } else {
            findings.mistake(at, message, hint);
        }
    }
    let hold = Hold {
        max_connections: given.max_connections.or(default.max_connections),
        max_bytes,
        max_bytes_each: given.max_bytes_each.or(default.max_bytes_each.min(max_bytes)),
        max_wait: given.max_wait.or(default.max_wait),
        overflow: given.overflow.or(default.overflow),
        release_rate: given.release_rate.or(default.release_rate),
    };
    let release = u128::from(hold.release_rate.interval_nanos()) * (hold.max_connections as u128 - 1);
    let places = [
        given.release_rate.good().map(|placed| &placed.at),
        given.max_connections.good().map(|placed| &placed.at),
        given.max_wait.good().map(|placed| &placed.at),
    ];
    if release >= hold.max_wait.as_nanos()
        && let Some(at) = places.into_iter().flatten().next()
    {
        let message = format!(
            "{} clients released at {} take as long as max_wait at least: the last ones never make it",
            hold.max_connections, hold.release_rate
        );
        findings.warning(at, message, "make release_rate or max_wait larger, or max_connections smaller");
    }
    hold
}
