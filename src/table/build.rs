//! From a config to a table: host names become backends, listeners find their pools, and what stays is kept.
//!
//! Owns the expansion of members, and who of them is left out or added by an operator. No I/O: names were resolved
//! before (`Resolution`), and nothing is bound or probed. Next: `Pool::new` and `pool::succession` for how pools and
//! backends go on, `admission::succeed` for limits.

use super::{Listener, Routes, RoutingTable, Ways};
use crate::admission::{self, Gate};
use crate::clock::{Millis, Now};
use crate::config::{self, AddedBackend, Address, Adjustments, Balance, Config, Group, PoolAdjustments, limits};
use crate::metrics::Metrics;
use crate::name::{BackendAddr, Endpoint, ListenerName, PoolName};
use crate::pool::{FormerPool, Members, Pool, ResolvedMember};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long the ways of a retired listener are kept, besides the time that its clients have for what they send first:
/// long enough for whoever waits for a place.
const RETIRED: Duration = Duration::from_secs(10);
/// Of that time, no more than this.
const MAX_FIRST: Duration = Duration::from_secs(60);

/// What the host names of a config stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolution(HashMap<(Arc<str>, u16), Vec<SocketAddr>>);

/// A table, and what somebody should be told about it.
pub struct Built {
    pub table: RoutingTable,
    pub warnings: Vec<Warning>,
}

/// Something in the config that does no harm but can't be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Two members of a pool are the same address; the second is left out.
    SameAddress { pool: PoolName, place: String, address: BackendAddr, first: Address },
    /// A host name stands for no address.
    NoAddress { pool: PoolName, place: String, member: Address },
    /// What was added at run time can't stand beside what the config has.
    NotAdded { pool: PoolName, address: String, why: String },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameAddress { place, address, first, .. } => {
                write!(f, "{place}: {address} is already in the pool, from {first}; it is left out here")
            }
            Self::NoAddress { place, member, .. } => {
                write!(f, "{place}: {member} has no address; the pool goes without it")
            }
            Self::NotAdded { pool, address, why } => {
                write!(f, "pools.{pool}: the backend {address}, which was added at run time, is left out: {why}")
            }
        }
    }
}

impl RoutingTable {
    /// The table for `config`, with one of `listeners` for each of the config's.
    ///
    /// To be called when that is certain: what stays is shared with `previous`, and goes by the new config from here
    /// on. A pool of which only members change is the same one; backends that are in the same pool of `previous`, at
    /// the same address and by the same name, keep their state. What an operator has changed stands on top of the
    /// config.
    #[must_use]
    pub fn build(
        config: &Config,
        resolution: &Resolution,
        adjustments: &Adjustments,
        listeners: Vec<Arc<Listener>>,
        metrics: &Arc<Metrics>,
        previous: Option<&Self>,
        now: Now,
    ) -> Built {
        let mut warnings = Vec::new();
        let former = |name: &PoolName| previous?.former.iter().find(|former| former.name == *name);
        let pools: Vec<Arc<Pool>> = config
            .pools
            .iter()
            .map(|pool| {
                let adjusted = adjustments.pool(&pool.name);
                let members = members(pool, resolution, adjusted, &mut warnings);
                let before = previous.and_then(|table| table.pool(&pool.name));
                let built = match before.filter(|before| before.is_as(pool)) {
                    Some(same) => {
                        if same.view().members != members {
                            same.set_members(members, &adjusted.backends, metrics, now);
                        }
                        Arc::clone(same)
                    }
                    None => Arc::new(match (before, former(&pool.name)) {
                        (None, Some(former)) => Pool::again(pool, &members, metrics, former, now),
                        (before, _) => Pool::new(pool, &members, metrics, before.map(|pool| &**pool), now),
                    }),
                };
                built.adjust(&adjusted.backends, metrics, previous.is_none(), now);
                built
            })
            .collect();
        for old in previous.into_iter().flat_map(|table| &table.pools) {
            let new = pools.iter().find(|new| new.name == old.name);
            if new.is_none_or(|new| !Arc::ptr_eq(new, old)) {
                old.retire(new);
            }
        }
        let listens: HashSet<&ListenerName> = listeners.iter().map(|listener| &listener.name).collect();
        let left = previous.into_iter().flat_map(|table| &table.listeners);
        left.filter(|listener| !listens.contains(&listener.name)).for_each(|listener| listener.metrics.up.withdraw());
        let by_name: HashMap<&PoolName, &Arc<Pool>> = pools.iter().map(|pool| (&pool.name, pool)).collect();
        let gone = previous.into_iter().flat_map(|table| &table.pools).filter(|pool| !by_name.contains_key(&pool.name));
        let mut former: Vec<FormerPool> = gone.map(|pool| pool.leave()).collect();
        for earlier in previous.into_iter().flat_map(|table| &table.former) {
            match by_name.get(&earlier.name) {
                Some(pool) => earlier.return_as(pool),
                None if earlier.has_sessions() => former.push(earlier.clone()),
                None => {}
            }
        }
        let pool = |name: &PoolName| by_name.get(name).copied();
        let new = |listener: &Arc<Listener>| Ways {
            routes: Arc::new(Routes::new(&listener.config, pool, metrics)),
            until: None,
        };
        let mut ways: Vec<_> = listeners.iter().map(new).collect();
        ways.extend(previous.into_iter().flat_map(|table| table.retired(&listeners, now.millis)));
        ways.sort_unstable_by(|a, b| a.routes.listener.cmp(&b.routes.listener));
        let generation = previous.map_or(1, |table| table.generation + 1);
        let gates: Vec<&Gate> = listeners.iter().map(|listener| &*listener.gate).collect();
        let before = previous.into_iter().flat_map(|table| &table.listeners).map(|listener| &*listener.gate);
        admission::succeed(before, &gates, now.nanos());
        let wants_local = ways.iter().any(|ways| ways.routes.wants_local);
        Built { table: Self { generation, listeners, pools, former, wants_local, ways }, warnings }
    }
}

impl RoutingTable {
    /// The ways of listeners that are no longer among `listeners`, or were already retired in this table.
    fn retired(&self, listeners: &[Arc<Listener>], now: Millis) -> impl Iterator<Item = Ways> {
        let names: HashSet<&ListenerName> = listeners.iter().map(|listener| &listener.name).collect();
        let left = self.ways.iter().filter(move |ways| !names.contains(&ways.routes.listener) && ways.is_wanted(now));
        left.map(move |ways| {
            let until = ways.until.unwrap_or_else(|| {
                let config = self.listeners.iter().find(|listener| listener.name == ways.routes.listener);
                let header = |config: &config::Listener| config.accept_proxy.as_ref().map(|proxy| proxy.timeout);
                let first = |config: &config::Listener| header(config).unwrap_or_default() + config.preread.timeout;
                let first = config.map(|listener| first(&listener.config)).unwrap_or_default();
                now + (first.min(MAX_FIRST) + RETIRED).as_millis() as Millis
            });
            Ways { routes: Arc::clone(&ways.routes), until: Some(until) }
        })
    }
}

impl Resolution {
    /// The names that must be inserted before a table can be built from `config`, each once.
    #[must_use]
    pub fn wanted(config: &Config) -> Vec<(Arc<str>, u16)> {
        let mut seen = HashSet::new();
        config
            .pools
            .iter()
            .flat_map(|pool| &pool.members)
            .filter_map(|member| match &member.address {
                Address::Host { host, port } => Some((Arc::clone(host), *port)),
                Address::Endpoint(_) => None,
            })
            .filter(|wanted| seen.insert(wanted.clone()))
            .collect()
    }

    /// The order of the addresses doesn't matter: a resolver that shuffles them changes nothing.
    pub fn insert(&mut self, host: Arc<str>, port: u16, mut addresses: Vec<SocketAddr>) {
        addresses.sort_unstable();
        addresses.dedup();
        self.0.insert((host, port), addresses);
    }

    /// What it stands for, in the order of the addresses; nothing for a name that wasn't inserted.
    #[must_use]
    pub fn endpoints(&self, address: &Address) -> Vec<Endpoint> {
        match address {
            Address::Endpoint(endpoint) => vec![endpoint.clone()],
            Address::Host { host, port } => {
                let found = self.0.get(&(Arc::clone(host), *port));
                found.into_iter().flatten().copied().map(Endpoint::Tcp).collect()
            }
        }
    }
}

/// The members of a pool: those of the config, but for those that an operator has removed, and those that he has added,
/// unless the config has come to have them itself.
#[must_use]
pub fn members(
    pool: &config::Pool,
    resolution: &Resolution,
    adjusted: &PoolAdjustments,
    warnings: &mut Vec<Warning>,
) -> Members {
    let removed = adjusted.removed.iter().map(String::as_str).collect();
    let mut expansion = Expansion { list: Vec::new(), sources: HashMap::new(), removed };
    let indices: Vec<Vec<usize>> =
        pool.members.iter().map(|member| expansion.add(pool, member, resolution, warnings)).collect();
    let mut balance = match &pool.balance {
        Balance::Failover(group) => Balance::Failover(expand(group, &indices)),
        other => other.clone(),
    };
    for added in &adjusted.added {
        match expansion.add_at_run_time(pool, added) {
            Ok(None) => {}
            // Beside the groups that the config has.
            Ok(Some(index)) => {
                if let Balance::Failover(group) = &mut balance {
                    let mut groups = match std::mem::replace(group, Group::Member(index)) {
                        Group::Any(groups) => groups,
                        alone @ Group::Member(_) => vec![alone],
                    };
                    groups.push(Group::Member(index));
                    *group = Group::Any(groups);
                }
            }
            Err(why) => {
                let (pool, address) = (pool.name.clone(), added.address.clone());
                warnings.push(Warning::NotAdded { pool, address, why });
            }
        }
    }
    Members { list: expansion.list, balance }
}

/// The adjustments without what the config has taken over: an added backend whose address stands in the file now is the
/// file's, and what was said of it stays said of it under the name that it has there.
#[must_use]
pub fn settled(config: &Config, resolution: &Resolution, adjustments: &Adjustments) -> Adjustments {
    let mut settled = adjustments.clone();
    for pool in &config.pools {
        let Some(own) = settled.pools.get_mut(pool.name.as_str()) else { continue };
        let file = PoolAdjustments { added: Vec::new(), ..own.clone() };
        let file = members(pool, resolution, &file, &mut Vec::new()).list;
        for added in std::mem::take(&mut own.added) {
            let address = pool.may_add(&added).ok();
            let Some(taken_over) = file.iter().find(|member| Some(&member.address) == address.as_ref()) else {
                own.added.push(added);
                continue;
            };
            if let Some(said) = own.backends.remove(added.label()) {
                own.backends.entry(taken_over.label.to_string()).or_insert(said);
            }
        }
    }
    settled.prune();
    settled
}

/// The members of one pool as they are found, each address once.
struct Expansion<'a> {
    list: Vec<ResolvedMember>,
    /// Which configured member an address comes from.
    sources: HashMap<BackendAddr, &'a Address>,
    /// By label.
    removed: HashSet<&'a str>,
}

impl<'a> Expansion<'a> {
    /// The indices of the backends that `member` stands for.
    fn add(
        &mut self,
        pool: &config::Pool,
        member: &'a config::Member,
        resolution: &Resolution,
        warnings: &mut Vec<Warning>,
    ) -> Vec<usize> {
        let endpoints = resolution.endpoints(&member.address);
        if endpoints.is_empty() {
            let (place, address) = (member.place.clone(), member.address.clone());
            warnings.push(Warning::NoAddress { pool: pool.name.clone(), place, member: address });
        }
        let several = endpoints.len() > 1;
        let mut indices = Vec::with_capacity(endpoints.len());
        for address in endpoints.into_iter().map(BackendAddr) {
            if let Some(&first) = self.sources.get(&address) {
                let (pool, place, first) = (pool.name.clone(), member.place.clone(), first.clone());
                warnings.push(Warning::SameAddress { pool, place, address, first });
                continue;
            }
            let label: Arc<str> = match &member.name {
                Some(name) if several => format!("{name}/{address}").into(),
                Some(name) => name.as_str().into(),
                None => address.to_string().into(),
            };
            if self.removed.contains(&*label) {
                continue;
            }
            self.sources.insert(address.clone(), &member.address);
            indices.push(self.list.len());
            let (weight, tier) = (member.weight, member.tier);
            let max_connections = member.max_connections.or(pool.backend_max_connections);
            self.list.push(ResolvedMember { address, weight, tier, max_connections, label });
        }
        indices
    }

    /// `None` if the config has the address. Fails if it can't be in this pool.
    fn add_at_run_time(&mut self, pool: &config::Pool, added: &AddedBackend) -> Result<Option<usize>, String> {
        let address = pool.may_add(added)?;
        if self.list.iter().any(|member| member.address == address) {
            return Ok(None);
        }
        if self.list.iter().any(|member| *member.label == *added.label()) {
            return Err(format!("there is another backend called {:?} in the pool", added.label()));
        }
        if self.list.len() >= limits::MAX_BACKENDS {
            return Err(format!("a pool has up to {} backends", limits::MAX_BACKENDS));
        }
        let (weight, tier, label) = (added.weight, added.tier, added.label().into());
        let max_connections = pool.backend_max_connections;
        self.list.push(ResolvedMember { address, weight, tier, max_connections, label });
        Ok(Some(self.list.len() - 1))
    }
}

/// A failover group over backends, from one over members and the backends that each member stands for.
fn expand(group: &Group, indices: &[Vec<usize>]) -> Group {
    match group {
        Group::Any(groups) => Group::Any(groups.iter().map(|group| expand(group, indices)).collect()),
        Group::Member(member) => match indices[*member].as_slice() {
            [index] => Group::Member(*index),
            several => Group::Any(several.iter().copied().map(Group::Member).collect()),
        },
    }
}
