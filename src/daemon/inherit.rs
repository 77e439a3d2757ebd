//! Listening sockets that are there before the process: from the service manager, or from the process before this one.
//!
//! Owns which of them is for which address of the config. What belongs to an address is found in this order: what is
//! called like the listener and was bound for that address; what was bound for that address, whatever it is called;
//! and of the service manager's, what is called like the listener, in the order of its addresses, wherever it is bound:
//! there the unit decides (what a process has stored is known by its `SO_REUSEPORT`). Whatever nobody wants is named in
//! the log and closed. Next: `net::listen::adopt`.

use super::fd_store;
use crate::config::Config;
use crate::name::{BindAddr, Endpoint, ListenerName};
use crate::net::listen::{BindError, Given, ListenSocket, Options, Source, adopt};
use crate::sys;
use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;

/// One descriptor that was given.
#[derive(Debug)]
pub struct Candidate {
    /// The place in the list of whoever gave it.
    pub index: usize,
    /// What it is called: like the listener that it is for.
    pub name: String,
    /// It is the admin endpoint's, whatever it is called.
    pub is_admin: bool,
    /// Where it was wanted; of the service manager's, where it is.
    pub wanted: BindAddr,
    pub source: Source,
    pub given: Given,
}

/// Those that are for one address, all bound to one address.
type Group = Vec<Candidate>;

/// What was given and isn't in use yet.
#[derive(Debug, Default)]
pub struct Inherited {
    /// By listener and the place of the address in its list.
    places: HashMap<(ListenerName, usize), Group>,
    admin: Vec<Group>,
    /// The places of those that are in use.
    pub taken: Vec<usize>,
    /// Where others may be bound beside what was given.
    pub beside: HashSet<BindAddr>,
    /// What nobody wants.
    unwanted: Vec<Group>,
    /// It comes from the service manager itself, not by way of a predecessor.
    is_managers: bool,
}

impl Inherited {
    /// What the service manager gives to the process, if it does. Once; the second time there is nothing.
    pub fn from_service_manager(config: &Config) -> Self {
        let listed = match sd_notify::listen_fds_with_names() {
            Ok(listed) => listed.map(|(_, name)| name).collect(),
            Err(error) => {
                tracing::warn!(%error, "can't take the sockets of the service manager (LISTEN_FDS)");
                Vec::new()
            }
        };
        let descriptors = sys::passed_descriptors(listed.len());
        let mut candidates = Vec::new();
        for (index, (name, descriptor)) in listed.into_iter().zip(descriptors).enumerate() {
            match Given::new(descriptor) {
                Ok(given) => {
                    let (wanted, source) = (given.address.clone(), Source::ServiceManager);
                    candidates.push(Candidate { index, name, is_admin: false, wanted, source, given });
                }
                Err(unfit) => tracing::warn!(name, "a descriptor of the service manager is of no use: {unfit}"),
            }
        }
        let mut inherited = Self { is_managers: true, ..Self::new(config, candidates) };
        for group in std::mem::take(&mut inherited.unwanted) {
            let found = &group[0];
            tracing::warn!(
                name = found.name,
                address = %found.given.address,
                "no listener wants this socket of the service manager's, which is closed: call it like a listener \
                 (FileDescriptorName=), or bind a listener there"
            );
            inherited.forget(&found.name);
        }
        inherited
    }

    /// What a predecessor passes on. It empties what nobody wants, and that leaves the store when this process has
    /// taken over: see [`fd_store::Store`].
    pub fn from_predecessor(config: &Config, candidates: Vec<Candidate>) -> Self {
        let mut inherited = Self::new(config, candidates);
        inherited.unwanted.clear();
        inherited
    }

    /// Finds out what is for whom.
    fn new(config: &Config, candidates: Vec<Candidate>) -> Self {
        let mut inherited = Self::default();
        let open = candidates.iter().filter(|found| found.given.has_room_beside());
        inherited.beside = open.map(|found| found.given.address.clone()).collect();
        let (admin, candidates): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|found| found.is_admin);
        let mut groups = groups(candidates);
        let rules: [fn(&ListenerName, &BindAddr, &Candidate) -> bool; 3] = [
            |listener, address, found| found.name == listener.as_str() && found.wanted == *address,
            |_, address, found| found.wanted == *address,
            |listener, address, found| {
                let is_tcp = |address: &BindAddr| matches!(address.0, Endpoint::Tcp(_));
                let by_name = found.name == listener.as_str() && found.source == Source::ServiceManager;
                // One that a process has made and stored is where an earlier config had it.
                by_name && !found.given.has_room_beside() && is_tcp(address) == is_tcp(&found.given.address)
            },
        ];
        for rule in rules {
            for listener in &config.listeners {
                for (place, address) in listener.bind.iter().enumerate() {
                    let key = (listener.name.clone(), place);
                    if inherited.places.contains_key(&key) {
                        continue;
                    }
                    let fits = |group: &Group| group.first().is_some_and(|found| rule(&listener.name, address, found));
                    if let Some(found) = groups.iter().position(fits) {
                        inherited.places.insert(key, groups.remove(found));
                    }
                }
            }
        }
        // Its own come first. A port that the kernel has chosen for a listener is known to the clients of that one.
        for group in self::groups(admin).into_iter().chain(groups) {
            let (wanted, is_own) = (&group[0].wanted, group[0].is_admin);
            let is_taken = inherited.admin.iter().any(|other| other[0].wanted == *wanted);
            let suits = is_own || !matches!(wanted.0, Endpoint::Tcp(address) if address.port() == 0);
            if suits && !is_taken && config.admin.listen.contains(wanted) {
                inherited.admin.push(group);
            } else {
                inherited.unwanted.push(group);
            }
        }
        inherited
    }

    /// The service manager shall not keep for the next start what this one has no use for, if it does; all that has its
    /// name is stored together.
    fn forget(&self, name: &str) {
        fd_store::forget(name);
        let namesakes = self.places.values().flatten().filter(|other| other.name == name);
        let namesakes: Vec<_> = namesakes.map(|other| other.given.as_fd()).collect();
        fd_store::store(name, &namesakes);
    }

    /// At least one socket for each of `workers`, all at one address; `None` if there is nothing for this place.
    pub fn take(
        &mut self,
        (listener, place): (&ListenerName, usize),
        address: &BindAddr,
        options: &Options,
        workers: usize,
    ) -> Option<Result<Vec<ListenSocket>, BindError>> {
        let group = self.places.remove(&(listener.clone(), place))?;
        self.adopt(group, address, options, workers)
    }

    /// The admin endpoint's socket for this address, if there is one.
    pub fn take_admin(&mut self, address: &BindAddr, options: &Options) -> Option<Result<ListenSocket, BindError>> {
        let found = self.admin.iter().position(|group| group[0].wanted == *address)?;
        let group = self.admin.remove(found);
        let adopted = self.adopt(group, address, options, 1)?;
        adopted.map(|sockets| sockets.into_iter().next()).transpose()
    }

    fn adopt(
        &mut self,
        group: Group,
        address: &BindAddr,
        options: &Options,
        workers: usize,
    ) -> Option<Result<Vec<ListenSocket>, BindError>> {
        let (name, source) = group.first().map(|found| (found.name.clone(), found.source))?;
        if group.iter().any(|found| !found.given.suits(options)) {
            if group.iter().all(|found| found.given.has_room_beside()) {
                // Of a process before this one: others are bound in its place.
                if self.is_managers {
                    self.forget(&name);
                }
                return None;
            }
            tracing::warn!(
                name,
                %address,
                "the service manager's socket has another interface, v6only, transparent or mptcp than the listener asks \
                 for; the unit decides (BindToDevice=, BindIPv6Only=, Transparent=, SocketProtocol=)"
            );
        }
        self.taken.extend(group.iter().map(|found| found.index));
        let given = group.into_iter().map(|found| found.given).collect();
        Some(adopt(given, source, options, workers).map_err(|refused| BindError { address: address.clone(), refused }))
    }
}

/// In the order in which they came.
fn groups(candidates: Vec<Candidate>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for found in candidates {
        let same = |group: &&mut Group| {
            let first = &group[0];
            (&first.name, &first.wanted, &first.given.address) == (&found.name, &found.wanted, &found.given.address)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(found),
            None => groups.push(vec![found]),
        }
    }
    groups
}
