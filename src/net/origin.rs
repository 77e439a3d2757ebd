//! Where connects come from: source addresses, an interface, a mark, the client's own address, and the kind of socket.
//!
//! Owns a pool's prepared answer to that, and the sockets that it asks for. Decides in which order source addresses
//! are tried: from a random one on, so that no worker waits for another, and the next one where an address has no port
//! left. Invariants: an [`Origin`] with nothing set costs no system call; whatever fails before the connect is an error
//! of ours. A source address is bound without a port (`IP_BIND_ADDRESS_NO_PORT`), which connect(2) chooses: so each
//! backend may have all ports of each address. Next: `connect`.

use super::connect::ConnectError;
use crate::config;
use crate::every::Every;
use crate::name::ClientAddr;
use crate::sys::option;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is lacking here is said at most this often for a pool.
const COMPLAINTS: Duration = Duration::from_secs(10);
/// For so long a source address isn't tried again for a backend that it had no port left for, in ms. To find that out,
/// the kernel looks at each port: some 2 ms of CPU for the 28,232 of the default.
const SPENT: u32 = 100;

/// Where the connects of a pool come from, made ready once.
#[derive(Debug)]
pub struct Origin {
    /// Of IPv4 and of IPv6.
    sources: [Box<[Own]>; 2],
    since: Instant,
    config: config::Origin,
    is_plain: bool,
    complaints: Every,
}

/// A source address.
#[derive(Debug)]
struct Own {
    address: SocketAddr,
    /// For which backend it had no port left last, and when: the upper half of a hash, and milliseconds below it.
    spent: AtomicU64,
}

impl Own {
    /// Whether it had no port left for this backend, by its hash, a moment ago.
    fn is_spent(&self, backend: u64, now: u32) -> bool {
        let spent = self.spent.load(Ordering::Relaxed);
        spent >> 32 == backend >> 32 && now.wrapping_sub(spent as u32) < SPENT
    }

    fn spend(&self, backend: u64, now: u32) {
        self.spent.store(backend >> 32 << 32 | u64::from(now), Ordering::Relaxed);
    }
}

/// For whom a connect is made.
#[derive(Clone, Copy, Debug)]
pub enum Behalf {
    /// A client, with random bits that choose the source address.
    Client(ClientAddr, u32),
    /// Ourselves: a probe, or an agent's line.
    Own,
}

/// What a socket is bound to before it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Nothing: the kernel chooses.
    Any,
    /// This address, with a port of the kernel's choice.
    Address(SocketAddr),
    /// This address and port of another host.
    Whole(SocketAddr),
}

impl Default for Origin {
    /// As the kernel chooses.
    fn default() -> Self {
        Self::new(&config::Origin::default())
    }
}

impl Origin {
    #[must_use]
    pub fn new(config: &config::Origin) -> Self {
        let own = |&address| Own { address, spent: AtomicU64::new(u64::MAX) };
        let family = |is_ipv4| config.source_address.iter().filter(|ip| ip.is_ipv4() == is_ipv4).map(own).collect();
        Self {
            sources: [family(true), family(false)],
            since: Instant::now(),
            config: config.clone(),
            is_plain: *config == config::Origin::default(),
            complaints: Every::new(COMPLAINTS, Instant::now()),
        }
    }

    /// The origin of probes and agents of a pool with this one: the same, but by plain TCP and from an address of this
    /// host.
    #[must_use]
    pub fn of_probes(config: &config::Origin) -> Self {
        Self::new(&config::Origin { transparent: false, fast_open: false, mptcp: false, ..config.clone() })
    }

    /// Whether there is nothing to do but to connect.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Whether a connect may come from any port, not only from those that the kernel gives out.
    pub(super) fn is_from_any_port(&self) -> bool {
        self.config.transparent
    }

    /// What to bind to, one after the other, until one has a port left; never nothing. Fails where none had one a
    /// moment ago, and where the client's own address is wanted, and it has none of the backend's family.
    pub(super) fn sources(&self, to: &SocketAddr, behalf: Behalf) -> Result<Vec<Source>, Errno> {
        if let (true, Behalf::Client(client, _)) = (self.config.transparent, behalf) {
            return match client {
                ClientAddr::Tcp(own) if own.is_ipv4() == to.is_ipv4() => {
                    let mut portless = own;
                    portless.set_port(0);
                    // Its port may be in use here: then any other one of the same address.
                    Ok(vec![Source::Whole(own), Source::Address(portless)])
                }
                ClientAddr::Tcp(_) | ClientAddr::Unix => Err(Errno::AFNOSUPPORT),
            };
        }
        let addresses = &self.sources[usize::from(!to.is_ipv4())];
        if addresses.is_empty() {
            return Ok(vec![Source::Any]);
        }
        let first = match behalf {
            Behalf::Client(_, dice) => dice as usize % addresses.len(),
            Behalf::Own => 0,
        };
        let (before, from_here) = addresses.split_at(first);
        let (backend, now) = (hash(to), self.now());
        let left = from_here.iter().chain(before).filter(|own| !own.is_spent(backend, now));
        let left: Vec<_> = left.map(|own| Source::Address(own.address)).collect();
        if left.is_empty() { Err(Errno::ADDRNOTAVAIL) } else { Ok(left) }
    }

    /// `source` has no port left for this backend.
    pub(super) fn spent(&self, source: Source, to: &SocketAddr) {
        let own = self.sources.iter().flatten().find(|own| source == Source::Address(own.address));
        if let Some(own) = own {
            own.spend(hash(to), self.now());
        }
    }

    /// In ms; it begins anew now and then.
    fn now(&self) -> u32 {
        self.since.elapsed().as_millis() as u32
    }

    /// A nonblocking socket with everything set but what it is bound to.
    pub(super) fn open(&self, to: &SocketAddr) -> Result<OwnedFd, Errno> {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = if self.config.mptcp { open_mptcp(family)? } else { open(family)? };
        sockopt::set_tcp_nodelay(&socket, true)?;
        // MPTCP has no out-of-band data.
        sockopt::set_socket_oobinline(&socket, true)
            .or_else(|error| if self.config.mptcp { Ok(()) } else { Err(error) })?;
        if let Some(interface) = &self.config.interface {
            option::bind_to_device(&socket, interface)?;
        }
        if let Some(mark) = self.config.mark {
            option::set_mark(&socket, mark)?;
        }
        if self.config.fast_open {
            // Without it the connect takes a round trip more.
            let _ = option::set_fast_open_connect(&socket);
        }
        Ok(socket)
    }

    pub(super) fn bind(&self, socket: &OwnedFd, source: Source) -> Result<(), Errno> {
        let (Source::Address(address) | Source::Whole(address)) = source else { return Ok(()) };
        if self.config.transparent {
            option::set_transparent(socket, address.is_ipv4())?;
        }
        match source {
            // A hedge connects from there as well, to another backend.
            Source::Whole(_) => sockopt::set_socket_reuseaddr(socket, true)?,
            Source::Address(_) | Source::Any => option::set_bind_address_no_port(socket)?,
        }
        bind(socket, &address)
    }

    /// A sentence about a connect that has failed for want of something here; `None` if it isn't that, or if another
    /// one was said a moment ago.
    pub fn complaint(&self, error: ConnectError, behalf: Behalf, now: Instant) -> Option<String> {
        if self.is_plain || !error.is_ours() || error.affects_all_backends() || !self.complaints.is_due(now) {
            return None;
        }
        let why = match (error.0, behalf) {
            (Errno::AFNOSUPPORT, Behalf::Client(ClientAddr::Unix, _)) if self.config.transparent => {
                "the pool connects from the client's own address, and a client of a unix socket has none; lead such \
                 clients to a pool without transparent"
                    .to_owned()
            }
            (Errno::AFNOSUPPORT, Behalf::Client(client, _)) if self.config.transparent => {
                format!(
                    "the pool connects from the client's own address, and the backend is of another family than \
                     {client}; route the clients of each family to a pool of their own"
                )
            }
            (Errno::ADDRNOTAVAIL | Errno::ADDRINUSE, _) => {
                format!(
                    "{error}: the source addresses have no port left for this backend, or this host doesn't have \
                     them; add to source_address, widen net.ipv4.ip_local_port_range, or see `ip address`"
                )
            }
            _ => error.to_string(),
        };
        Some(why)
    }
}

fn hash(to: &SocketAddr) -> u64 {
    let mut hasher = DefaultHasher::new();
    to.hash(&mut hasher);
    hasher.finish()
}

/// A nonblocking stream socket.
pub(super) fn open(family: AddressFamily) -> Result<OwnedFd, Errno> {
    open_of(family, None)
}

/// One of MPTCP, or of plain TCP where the kernel has no MPTCP, or has it turned off.
pub(super) fn open_mptcp(family: AddressFamily) -> Result<OwnedFd, Errno> {
    match open_of(family, Some(ipproto::MPTCP)) {
        Err(Errno::PROTONOSUPPORT | Errno::NOPROTOOPT | Errno::INVAL) => open(family),
        result => result,
    }
}

fn open_of(family: AddressFamily, protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(addresses: &[&str]) -> config::Origin {
        let source_address = addresses.iter().map(|text| text.parse().unwrap()).collect();
        config::Origin { source_address, ..config::Origin::default() }
    }

    fn client(text: &str, dice: u32) -> Behalf {
        Behalf::Client(ClientAddr::tcp(text.parse().unwrap()), dice)
    }

    fn sources(origin: &Origin, to: &str, behalf: Behalf) -> Vec<String> {
        let sources = origin.sources(&to.parse().unwrap(), behalf).unwrap();
        sources.into_iter().map(|source| format!("{source:?}")).collect()
    }

    #[test]
    fn each_address_of_the_backends_family_is_tried_once_from_a_random_one_on() {
        let origin = Origin::new(&origin(&["10.0.0.1:0", "[::1]:0", "10.0.0.2:0", "10.0.0.3:0"]));
        let four = |order: [u8; 3]| order.map(|last| format!("Address(10.0.0.{last}:0)")).to_vec();
        for (dice, order) in [(0, [1, 2, 3]), (1, [2, 3, 1]), (2, [3, 1, 2]), (u32::MAX, [1, 2, 3])] {
            assert_eq!(sources(&origin, "10.9.9.9:80", client("192.0.2.1:5", dice)), four(order), "{dice}");
        }
        assert_eq!(sources(&origin, "10.9.9.9:80", Behalf::Own), four([1, 2, 3]));
        assert_eq!(sources(&origin, "[2001:db8::1]:80", Behalf::Own), ["Address([::1]:0)"]);
    }

    #[test]
    fn an_address_without_a_port_for_a_backend_is_left_alone_for_a_moment() {
        let origin = Origin::new(&origin(&["10.0.0.1:0"]));
        let own = &origin.sources[0][0];
        let [full, other] = ["10.9.9.9:80", "10.9.9.9:81"].map(|to| hash(&to.parse().unwrap()));
        for begun in [0, 1_000, u32::MAX - 5] {
            assert!(!own.is_spent(full, begun));
            own.spend(full, begun);
            assert!(own.is_spent(full, begun) && own.is_spent(full, begun.wrapping_add(SPENT - 1)));
            assert!(!own.is_spent(other, begun), "another backend has ports of its own");
            assert!(!own.is_spent(full, begun.wrapping_add(SPENT)));
        }
    }

    #[test]
    fn with_all_addresses_spent_nothing_is_tried() {
        let origin = Origin::new(&origin(&["10.0.0.1:0", "10.0.0.2:0"]));
        let to: SocketAddr = "10.9.9.9:80".parse().unwrap();
        // A slow machine may look too late, but not each time.
        let spent = (0..1_000).any(|_| {
            for last in 1..=2 {
                origin.spent(Source::Address(SocketAddr::from(([10, 0, 0, last], 0))), &to);
            }
            origin.sources(&to, Behalf::Own) == Err(Errno::ADDRNOTAVAIL)
        });
        assert!(spent);
    }

    #[test]
    fn with_no_address_of_the_family_the_kernel_chooses() {
        for addresses in [&[][..], &["[::1]:0"]] {
            assert_eq!(sources(&Origin::new(&origin(addresses)), "10.9.9.9:80", Behalf::Own), ["Any"]);
        }
    }

    #[test]
    fn transparent_is_the_clients_own_address_or_none() {
        let config = config::Origin { transparent: true, ..origin(&["10.0.0.1:0"]) };
        let transparent = Origin::new(&config);
        let own = client("192.0.2.1:5", 1);
        assert_eq!(
            sources(&transparent, "10.9.9.9:80", own),
            ["Whole(192.0.2.1:5)", "Address(192.0.2.1:0)"],
            "its own port first"
        );
        let to = "[::1]:80".parse().unwrap();
        for behalf in [own, Behalf::Client(ClientAddr::Unix, 0)] {
            assert_eq!(transparent.sources(&to, behalf), Err(Errno::AFNOSUPPORT));
            let error = ConnectError(Errno::AFNOSUPPORT);
            assert!(error.is_ours());
            let fresh = Origin::new(&config);
            let said = fresh.complaint(error, behalf, Instant::now()).unwrap();
            assert!(said.contains("the client's own address"), "{said}");
            assert_eq!(fresh.complaint(error, behalf, Instant::now()), None, "not twice");
        }
        assert_eq!(sources(&Origin::of_probes(&config), "10.9.9.9:80", Behalf::Own), ["Address(10.0.0.1:0)"]);
    }

    #[test]
    fn only_what_has_no_key_is_plain() {
        assert!(Origin::default().is_plain() && !Origin::new(&origin(&["10.0.0.1:0"])).is_plain());
        let mptcp = config::Origin { mptcp: true, ..config::Origin::default() };
        assert!(!Origin::new(&mptcp).is_plain() && Origin::of_probes(&mptcp).is_plain());
    }

    #[test]
    fn a_socket_gets_its_interface_and_one_that_is_not_there_is_an_error_of_ours() {
        let with = |interface: &str| {
            Origin::new(&config::Origin { interface: Some(interface.into()), ..config::Origin::default() })
        };
        let to = "127.0.0.1:80".parse().unwrap();
        assert!(with("lo").open(&to).is_ok());
        let error = ConnectError(with("no-such-one").open(&to).unwrap_err());
        assert!(error.is_ours(), "{error}");
    }
}
