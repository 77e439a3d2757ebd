//! The addresses that the process listens on: which of them a config keeps, which are new, and which go.
//!
//! Owns the matching of a config's addresses with those that are bound (pure), and the steps that make it so: bind all
//! that is new, then give the kept ones their options and listen on the new ones; what fails undoes what came before
//! it. Invariants: an address that stays keeps its sockets, whichever listener it belongs to; one that is bound anew
//! for the sake of an option is bound beside the old one, which goes afterwards; nobody can connect to what is only
//! bound.

use super::inherit::Inherited;
use super::privileges::Identity;
use super::sockets;
use crate::config::{Config, Listener as ListenerConfig};
use crate::name::{BindAddr, Endpoint, ListenerName};
use crate::net::listen::{AtClose, BindError, ListenSocket, Neighbours, Options, SocketAccess, bind_all};
use crate::session::balance::{Heir, SharedSocket};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

/// An address that is listened on.
#[derive(Clone)]
pub struct Bound {
    pub listener: ListenerName,
    /// As the config has it: the port may be 0.
    pub wanted: BindAddr,
    pub actual: BindAddr,
    pub options: Options,
    /// One for each worker; more, if another process had more workers.
    pub sockets: Vec<Arc<SharedSocket>>,
    /// No group with those that were at the address before.
    pub apart: bool,
    /// While it doesn't listen: the sockets to listen on again, as far as there are any; see `parking`. Else empty.
    pub parked: Vec<Option<Arc<ListenSocket>>>,
}

impl Bound {
    pub fn is_parked(&self) -> bool {
        !self.parked.is_empty()
    }
}

/// Where an address of a config comes from.
pub enum Place {
    /// From the one with this index.
    Kept { index: usize, options: Options },
    /// From sockets of its own, which don't listen yet, or somebody else has made them: one for each worker at least.
    New { sockets: Vec<ListenSocket>, options: Options },
}

/// An address of a config before anything is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Keep(usize),
    /// Beside the one with this index, for the sake of an option.
    Beside(usize),
    Bind(Neighbours),
}

/// What a place is made of in the end.
pub enum Opened {
    /// The one with this index.
    Kept(usize),
    New {
        sockets: Vec<ListenSocket>,
        /// See [`Bound`].
        apart: bool,
    },
}

/// Finds or binds a place for each address of each listener of `config`, in their order; `others` are addresses of this
/// process that are on their way out. What is `inherited` for an address isn't bound. Fails with a line for each
/// address that can't be had, and nothing is bound then.
pub fn bind(
    config: &Config,
    bound: &[Bound],
    others: &HashSet<BindAddr>,
    workers: usize,
    identity: Option<&Identity>,
    inherited: &mut Inherited,
) -> Result<Vec<Vec<Place>>, Vec<String>> {
    let mut refused = Vec::new();
    let mut options = Vec::new();
    for listener in &config.listeners {
        let access = sockets::access(&listener.socket).unwrap_or_else(|text| {
            refused.push(format!("listeners.{}.socket.{text}", listener.name));
            SocketAccess::default()
        });
        let access = identity.map_or(access, |identity| identity.fill_in(access));
        let (at_close, socket) = (AtClose::Reset, listener.socket.clone());
        options.push(Options { backlog: listener.backlog, at_close, socket, access });
    }
    let ways = ways(&config.listeners, &options, bound, others);
    let mut places = Vec::new();
    for ((listener, options), ways) in config.listeners.iter().zip(options).zip(ways) {
        let mut own = Vec::new();
        for (place, (address, way)) in listener.bind.iter().zip(ways).enumerate() {
            let options = options.clone();
            if let Some(taken) = inherited.take((&listener.name, place), address, &options, workers) {
                match taken {
                    Ok(sockets) => own.push(Place::New { sockets, options }),
                    Err(error) => refused.push(format!("listeners.{}: {error}", listener.name)),
                }
                continue;
            }
            let (address, neighbours) = match way {
                Way::Keep(index) => {
                    own.push(Place::Kept { index, options });
                    continue;
                }
                Way::Beside(index) => (&bound[index].actual, Neighbours::Own),
                Way::Bind(neighbours) => (address, neighbours),
            };
            match bind_all(address, &options, workers, neighbours) {
                Ok(sockets) => own.push(Place::New { sockets, options }),
                Err(error) => refused.push(format!("listeners.{}: {error}", listener.name)),
            }
        }
        places.push(own);
    }
    if refused.is_empty() { Ok(places) } else { Err(refused) }
}

/// For each listener, the way of each of its addresses. Its own come first; what is left goes to whoever has the same
/// address. Ports of 0 are told apart by their order alone.
fn ways(
    listeners: &[ListenerConfig],
    options: &[Options],
    bound: &[Bound],
    others: &HashSet<BindAddr>,
) -> Vec<Vec<Way>> {
    let mut own: HashMap<(&ListenerName, &BindAddr), VecDeque<usize>> = HashMap::new();
    for (index, bound) in bound.iter().enumerate() {
        own.entry((&bound.listener, &bound.wanted)).or_default().push_back(index);
    }
    let mut found: Vec<Vec<Option<usize>>> = Vec::new();
    for listener in listeners {
        let mut take = |address| own.get_mut(&(&listener.name, address)).and_then(VecDeque::pop_front);
        found.push(listener.bind.iter().map(&mut take).collect());
    }
    let mut left: HashMap<&BindAddr, VecDeque<usize>> = HashMap::new();
    let mut rest: Vec<usize> = own.into_values().flatten().collect();
    rest.sort_unstable();
    for index in rest {
        left.entry(&bound[index].wanted).or_default().push_back(index);
    }
    for (listener, found) in listeners.iter().zip(&mut found) {
        for (address, found) in listener.bind.iter().zip(found).filter(|(_, found)| found.is_none()) {
            *found = left.get_mut(address).and_then(VecDeque::pop_front);
        }
    }
    let ours = Ours::new(bound.iter().map(|bound| &bound.actual).chain(others));
    let way = |address: &BindAddr, found: Option<usize>, options: &Options| match found {
        Some(index) if bound[index].options.needs_new_socket(options, address) => Way::Beside(index),
        Some(index) => Way::Keep(index),
        None if ours.has(address) => Way::Bind(Neighbours::Own),
        None => Way::Bind(Neighbours::None),
    };
    let listeners = listeners.iter().zip(found).zip(options);
    listeners
        .map(|((listener, found), options)| {
            listener.bind.iter().zip(found).map(|(address, found)| way(address, found, options)).collect()
        })
        .collect()
}

/// Who takes the clients of `gone`, whose sockets are none of `bound`.
pub fn heir(gone: &Bound, bound: &[Bound]) -> Heir {
    let listening = || bound.iter().filter(|bound| !bound.is_parked());
    let group = |bound: &Bound| {
        let socket = &bound.options.socket;
        (bound.actual.clone(), socket.interface.clone(), socket.v6only)
    };
    if listening().any(|other| group(other) == group(gone) && !other.apart) {
        Heir::Same
    } else if Ours::new(listening().map(|bound| &bound.actual)).has(&gone.actual) {
        Heir::Other
    } else {
        Heir::Nobody
    }
}

/// The TCP addresses that this process has.
pub struct Ours(HashMap<u16, Vec<SocketAddr>>);

impl Ours {
    pub fn new<'a>(addresses: impl Iterator<Item = &'a BindAddr>) -> Self {
        let mut by_port: HashMap<u16, Vec<SocketAddr>> = HashMap::new();
        for address in addresses {
            if let Endpoint::Tcp(address) = address.0 {
                by_port.entry(address.port()).or_default().push(address);
            }
        }
        Self(by_port)
    }

    /// Whether clients of a socket there may come to one of these, which is in the way of a bind there: it is on the
    /// same address, or one of the two is for all addresses.
    pub fn has(&self, address: &BindAddr) -> bool {
        let Endpoint::Tcp(address) = address.0 else { return false };
        let meets =
            |own: &SocketAddr| own.ip() == address.ip() || own.ip().is_unspecified() || address.ip().is_unspecified();
        self.0.get(&address.port()).is_some_and(|own| own.iter().any(meets))
    }
}

/// Gives what is kept its options, and listens on what is new, but where its listener is `idle`. If anything of that
/// fails, all is as before, and what was new is closed.
pub fn open(places: Vec<Vec<Place>>, idle: &[bool], bound: &[Bound]) -> Result<Vec<Vec<(Opened, Options)>>, String> {
    let mut adjusted = Vec::new();
    let mut apart = Vec::new();
    for (place, idle) in places.iter().zip(idle).flat_map(|(own, idle)| own.iter().map(move |place| (place, *idle))) {
        let opened = match place {
            Place::Kept { index, options } => {
                adjusted.push((&bound[*index], options));
                adjust(&bound[*index], &bound[*index].options, options).map(|()| false)
            }
            Place::New { .. } if idle => Ok(false),
            Place::New { sockets, options } => listen(sockets, options.backlog, &there(sockets, bound)),
        };
        match opened {
            Ok(is_apart) => apart.push(is_apart),
            Err(error) => {
                for (bound, options) in adjusted {
                    // It had these before; what can't be had again has never been taken away.
                    let _ = adjust(bound, options, &bound.options);
                }
                return Err(error.to_string());
            }
        }
    }
    let mut apart = apart.into_iter();
    let mut open = |place| {
        let apart = apart.next().unwrap_or_default();
        match place {
            Place::Kept { index, options } => (Opened::Kept(index), options),
            Place::New { sockets, options } => (Opened::New { sockets, apart }, options),
        }
    };
    Ok(places.into_iter().map(|own| own.into_iter().map(&mut open).collect()).collect())
}

/// The TCP sockets of `bound` at the address of these.
fn there(sockets: &[ListenSocket], bound: &[Bound]) -> Vec<Arc<ListenSocket>> {
    let Some(address) = sockets.first().map(|socket| &socket.address).filter(|address| !address.is_path()) else {
        return Vec::new();
    };
    let there = bound.iter().filter(|bound| bound.actual == *address).flat_map(|bound| &bound.sockets);
    there.filter_map(|shared| shared.get()).collect()
}

/// Listens on new sockets, beside those that are there before. Whether they are a group apart from those, which can be
/// hidden then.
fn listen(sockets: &[ListenSocket], backlog: u32, before: &[Arc<ListenSocket>]) -> Result<bool, BindError> {
    let all = || sockets.iter().try_for_each(|socket| socket.listen(backlog));
    let apart = !before.is_empty() && before.iter().all(|socket| socket.stand_apart(true).is_ok());
    let listening = all();
    for socket in before {
        // Else nothing could be bound beside it.
        let _ = socket.stand_apart(false);
    }
    match listening {
        // Where addresses of several users and networks share a port, the kernel asks them all for the option again.
        Err(error) if apart && error.refused.error == Errno::ADDRINUSE => all().map(|()| false),
        listening => listening.map(|()| apart),
    }
}

fn adjust(bound: &Bound, before: &Options, wanted: &Options) -> Result<(), BindError> {
    if before == wanted {
        return Ok(());
    }
    let has_path = bound.actual.is_path();
    for (index, shared) in bound.sockets.iter().enumerate() {
        // What has no socket just now gets them when it is bound again.
        match (shared.get(), bound.parked.get(index)) {
            (Some(socket), None) => socket.adjust(before, wanted)?,
            (Some(socket), Some(_)) => socket.adjust_idle(before, wanted)?,
            (None, Some(Some(parked))) if !has_path => parked.adjust_idle(before, wanted)?,
            (None, _) => {}
        }
        shared.set_options(wanted.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Socket;
    use crate::name::ClientAddr;
    use std::collections::BTreeSet;
    use std::io::Write;
    use std::net::TcpStream;
    use std::time::{Duration, Instant};

    #[test]
    fn sockets_that_are_bound_anew_get_all_clients_but_those_that_are_being_connected() {
        let options = |socket: Socket| {
            let (at_close, access) = (AtClose::Reset, SocketAccess::default());
            Options { backlog: 64, at_close, socket, access }
        };
        let bind = |address: &BindAddr, socket, neighbours| bind_all(address, &options(socket), 2, neighbours).unwrap();
        // It connects its clients when they have sent something.
        let deferred = Socket { defer_accept: Some(60), ..Socket::default() };
        let anywhere = BindAddr(Endpoint::Tcp("127.0.0.1:0".parse().unwrap()));
        let old: Vec<_> = bind(&anywhere, deferred, Neighbours::None).into_iter().map(Arc::new).collect();
        for socket in &old {
            socket.listen(64).unwrap();
        }
        let address = old[0].address.clone();
        let Endpoint::Tcp(at) = address.0 else { panic!("a TCP address") };
        let mut early: Vec<_> = (0..8).map(|_| TcpStream::connect(at).unwrap()).collect();

        let new = bind(&address, Socket { mptcp: true, ..Socket::default() }, Neighbours::Own);
        assert!(listen(&new, 64, &old).unwrap());
        assert!(old.iter().all(|socket| socket.hide()));
        let late: Vec<_> = (0..32).map(|_| TcpStream::connect_timeout(&at, Duration::from_secs(10)).unwrap()).collect();
        for client in &mut early {
            client.write_all(b"tide").unwrap();
        }
        let addresses = |clients: &[TcpStream]| -> BTreeSet<_> {
            clients.iter().map(|client| ClientAddr::Tcp(client.local_addr().unwrap()).to_string()).collect()
        };
        assert_eq!(accepted(&new, late.len()), addresses(&late));
        let old: Vec<_> = old.into_iter().filter_map(Arc::into_inner).collect();
        assert_eq!(accepted(&old, early.len()), addresses(&early));
        // Others can be bound beside those that go.
        bind(&address, Socket::default(), Neighbours::Own);
    }

    /// Who comes to these sockets, until there are so many.
    fn accepted(sockets: &[ListenSocket], count: usize) -> BTreeSet<String> {
        let (mut clients, begun) = (BTreeSet::new(), Instant::now());
        while clients.len() < count {
            assert!(begun.elapsed() < Duration::from_secs(30), "only {clients:?}");
            clients.extend(sockets.iter().filter_map(|socket| Some(socket.accept().ok()?.1.to_string())));
        }
        clients
    }

    /// Without sockets.
    fn bound(address: &str, change: impl FnOnce(&mut Bound)) -> Bound {
        let address = BindAddr(Endpoint::Tcp(address.parse().unwrap()));
        let access = SocketAccess::default();
        let options =
            Options { backlog: 1, at_close: AtClose::Reset, socket: crate::config::Socket::default(), access };
        let (listener, wanted, actual) = (ListenerName::new("web"), address.clone(), address);
        let (sockets, parked) = (Vec::new(), Vec::new());
        let mut bound = Bound { listener, wanted, actual, options, sockets, apart: false, parked };
        change(&mut bound);
        bound
    }

    #[test]
    fn the_heir_of_an_address_is_who_gets_its_clients() {
        let gone = bound("127.0.0.1:80", |_| {});
        let of = |other: Bound| heir(&gone, &[bound("127.0.0.2:80", |_| {}), other]);
        assert_eq!(of(bound("127.0.0.1:81", |_| {})), Heir::Nobody);
        assert_eq!(of(bound("0.0.0.0:80", |_| {})), Heir::Other);
        assert_eq!(of(bound("0.0.0.0:80", |bound| bound.parked.push(None))), Heir::Nobody);
        assert_eq!(of(bound("127.0.0.1:80", |bound| bound.options.socket.mptcp = true)), Heir::Same);
        assert_eq!(of(bound("127.0.0.1:80", |bound| bound.apart = true)), Heir::Other);
        let elsewhere = |bound: &mut Bound| bound.options.socket.interface = Some("lo".into());
        assert_eq!(of(bound("127.0.0.1:80", elsewhere)), Heir::Other);
    }
}
