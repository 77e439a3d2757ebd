//! Which addresses get into each other's way: two listeners on one, a wildcard over another, a listener in a circle.
//!
//! Owns no syntax; every address here is good by itself. A wildcard counts as overlapping although the kernel would
//! let one be bound beside it in some cases, because which of the two gets a connection would be a surprise.

use super::findings::{At, Findings, Given, Placed};
use super::validate::Bound;
use super::{Address, Pool, Socket, address, limits};
use crate::name::{BindAddr, Endpoint, PoolName};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// Reports overlapping addresses, and listeners that lead to themselves.
pub(super) fn check(findings: &Findings, admin: &Given<Vec<Placed<BindAddr>>>, listeners: &[Bound], pools: &[Pool]) {
    overlaps(findings, admin, listeners);
    circles(findings, listeners, pools);
}

fn overlaps(findings: &Findings, admin: &Given<Vec<Placed<BindAddr>>>, listeners: &[Bound]) {
    let mut taken = Taken::default();
    let plain = Socket::default();
    let mut binds: Vec<(&At, &BindAddr, &Socket)> = listeners
        .iter()
        .flat_map(|bound| bound.binds.iter().map(|bind| (&bind.at, &bind.value, &bound.listener.socket)))
        .collect();
    let default = address::bind(limits::DEFAULT_ADMIN).ok();
    match (admin, &default) {
        (Given::Absent, Some(default)) => _ = taken.take(&default.0, &plain, || Holder::DefaultAdmin),
        (Given::Good(list), _) => binds.extend(list.value.iter().map(|bind| (&bind.at, &bind.value, &plain))),
        _ => {}
    }
    binds.sort_by_key(|(at, ..)| at.span.start);
    // Of a range that overlaps, the first port says it all.
    let mut said = None;
    for (at, bind, socket) in binds {
        let line = || findings.source.position(at.span.start).line;
        let Some(Overlap { other, holder }) = taken.take(&bind.0, socket, || Holder::Key(at.key.clone(), line()))
        else {
            continue;
        };
        if said.replace(at.span.start) == Some(at.span.start) {
            continue;
        }
        let holder = match holder {
            Holder::Key(key, line) => format!("{key} on line {line}"),
            Holder::DefaultAdmin => "the default of admin.listen".to_owned(),
        };
        let message = format!("{} overlaps {}, which is {holder}", bind.0, other);
        findings.mistake(at, message, overlap_hint(&bind.0, &other));
    }
}

fn overlap_hint(one: &Endpoint, other: &Endpoint) -> &'static str {
    let is_wildcard = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Tcp(address) if address.ip().is_unspecified());
    let is_v6 = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Tcp(SocketAddr::V6(_)));
    match (is_wildcard(one), is_wildcard(other)) {
        _ if one == other => "use another port or address",
        (true, true) => "[::] takes IPv4 connections too, so keep only that one",
        _ if is_v6(one) != is_v6(other) => "[::] takes IPv4 connections too; use another port",
        _ => "a wildcard takes connections to every address; use another port",
    }
}

/// Who holds an address.
#[derive(Clone)]
enum Holder {
    /// The key, and the line that it is on.
    Key(String, usize),
    DefaultAdmin,
}

struct Overlap {
    other: Endpoint,
    holder: Holder,
}

/// The addresses seen so far.
#[derive(Default)]
struct Taken<'b> {
    paths: HashMap<&'b Path, Holder>,
    /// By the interface that they are for, or `None` for all.
    ports: HashMap<Option<&'b str>, HashMap<u16, Port<'b>>>,
}

/// One port's addresses. The first of each family stands for all, as far as a wildcard is concerned.
#[derive(Default)]
struct Port<'b> {
    exact: HashMap<&'b SocketAddr, Holder>,
    first_v4: Option<(&'b SocketAddr, Holder)>,
    first_v6: Option<(&'b SocketAddr, Holder)>,
    wildcard_v4: Option<(&'b SocketAddr, Holder)>,
    wildcard_v6: Option<(&'b SocketAddr, Holder)>,
    /// One of IPv6 that takes clients of IPv4 as well.
    wildcard_both: Option<(&'b SocketAddr, Holder)>,
}

impl<'b> Taken<'b> {
    /// Adds an address, and returns one that it gets into the way of.
    fn take(&mut self, endpoint: &'b Endpoint, socket: &'b Socket, holder: impl Fn() -> Holder) -> Option<Overlap> {
        match endpoint {
            Endpoint::Unix(path) => {
                if let Some(first) = self.paths.get(&**path) {
                    return Some(Overlap { other: endpoint.clone(), holder: first.clone() });
                }
                self.paths.insert(path, holder());
                None
            }
            // The kernel picks a free one.
            Endpoint::Tcp(address) if address.port() == 0 => None,
            Endpoint::Tcp(address) => {
                let (own, v6only) = (socket.interface.as_deref(), socket.v6only);
                // A socket for all interfaces is for each of them.
                let mut others =
                    self.ports.iter().filter(|(other, _)| own.is_none() || other.is_none() || **other == own);
                let found = others.find_map(|(_, ports)| ports.get(&address.port())?.overlap(address, v6only));
                let ports = self.ports.entry(own).or_default();
                ports.entry(address.port()).or_default().take(address, v6only, holder());
                found
            }
        }
    }
}

impl<'b> Port<'b> {
    fn overlap(&self, address: &SocketAddr, v6only: bool) -> Option<Overlap> {
        let exact = self.exact.get_key_value(address).map(|(&address, holder)| (address, holder.clone()));
        let others = match (address.ip(), address.ip().is_unspecified()) {
            (IpAddr::V4(_), false) => [&self.wildcard_v4, &self.wildcard_both],
            (IpAddr::V4(_), true) => [&self.first_v4, &self.wildcard_both],
            (IpAddr::V6(_), false) => [&self.wildcard_v6, &None],
            (IpAddr::V6(_), true) if v6only => [&self.first_v6, &None],
            (IpAddr::V6(_), true) => [&self.first_v4, &self.first_v6],
        };
        let overlap = exact.or_else(|| others.into_iter().flatten().next().cloned());
        overlap.map(|(&other, holder)| Overlap { other: Endpoint::Tcp(other), holder })
    }

    fn take(&mut self, address: &'b SocketAddr, v6only: bool, holder: Holder) {
        let is_wildcard = address.ip().is_unspecified();
        let (first, wildcard) = match address {
            SocketAddr::V4(_) => (&mut self.first_v4, &mut self.wildcard_v4),
            SocketAddr::V6(_) => (&mut self.first_v6, &mut self.wildcard_v6),
        };
        self.exact.entry(address).or_insert_with(|| holder.clone());
        if is_wildcard {
            if address.is_ipv6() && !v6only {
                self.wildcard_both.get_or_insert_with(|| (address, holder.clone()));
            }
            wildcard.get_or_insert_with(|| (address, holder.clone()));
        }
        first.get_or_insert((address, holder));
    }
}

/// A listener whose pool holds the listener's own address would serve itself until the descriptors are used up.
fn circles(findings: &Findings, listeners: &[Bound], pools: &[Pool]) {
    let endpoints = |pool: &'_ Pool| -> HashSet<Endpoint> {
        let endpoint = |member: &super::Member| match &member.address {
            Address::Endpoint(endpoint) => Some(endpoint.clone()),
            Address::Host { .. } => None,
        };
        pool.members.iter().filter_map(endpoint).collect()
    };
    let members: HashMap<&PoolName, HashSet<Endpoint>> =
        pools.iter().map(|pool| (&pool.name, endpoints(pool))).collect();
    for Bound { listener, binds, .. } in listeners {
        let own: BTreeSet<&PoolName> = listener.pools().collect();
        for Placed { at, value: BindAddr(bind) } in binds {
            let back = |pool: &&PoolName| {
                let members = members.get(pool)?;
                reached(bind).into_iter().find(|endpoint| members.contains(endpoint))
            };
            if let Some((pool, member)) = own.iter().find_map(|pool| Some((pool, back(pool)?))) {
                let message = format!("the listener's own pool {pool} leads back to it at {member}");
                findings.mistake(at, message, "connections would go round; use another address");
            }
        }
    }
}

/// The addresses through which this machine reaches what is bound here, as far as they are known.
fn reached(bind: &Endpoint) -> Vec<Endpoint> {
    let local = |ip: IpAddr, port| Endpoint::Tcp(SocketAddr::new(ip, port));
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    match bind {
        Endpoint::Tcp(address) if address.port() == 0 => Vec::new(),
        Endpoint::Tcp(SocketAddr::V4(address)) if address.ip().is_unspecified() => vec![local(v4, address.port())],
        Endpoint::Tcp(SocketAddr::V6(address)) if address.ip().is_unspecified() => {
            vec![local(v4, address.port()), local(v6, address.port())]
        }
        exact => vec![exact.clone()],
    }
}
